"""What spends credits says how many first, and asks."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from .._transport import api_origin
from . import values
from .connection import session_of
from .plan import describe, plan

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from .. import Request
    from .options import Api
    from .plan import Plan
    from .running import Running

_TERMINAL = Path("/dev/tty")


async def say_first(
    running: Running,
    requests: Sequence[Request],
    ledger: str | os.PathLike[str] | None,
    api: Api,
    *,
    retry_failed: bool = False,
    dry_run: bool = False,
) -> Plan:
    """Say what would be ordered, for how many credits, and how long the quota makes it take.

    Args:
        running: Where it is said.
        requests: What would be ordered.
        ledger: What may be paid for already; None: nothing is known.
        api: The quota.
        retry_failed: Whether what has failed is ordered again.
        dry_run: Whether this is all that was asked for.

    Returns:
        What was said.

    Raises:
        ConfigurationError: A key or an address that can't be used; a dry run needs no key.

    """
    origin = api_origin(allow_http=api.allow_http)
    if not dry_run:
        # Said before anybody is asked.
        await session_of(api).aclose()
    limit, window = api.limits
    planned = await plan(
        requests, ledger, origin=origin, limit=limit, window=window, retry_failed=retry_failed
    )
    say = running.screen.out if dry_run and not running.manners.json else running.screen.note
    for text in describe(planned):
        say(text)
    if dry_run and running.manners.json:
        running.screen.out(values.line("plan", planned.as_dict()))
    return planned


def agreed(planned: Plan, *, yes: bool) -> bool:
    """Ask at the terminal whether to go on; where there is none, and with nothing to order, it is agreed.

    Raises:
        KeyboardInterrupt: Ctrl-C, which is an answer too.

    """
    if yes or not planned.orders:
        return True
    # Whole by itself: what was said before may have gone to a file, or nowhere.
    orders = "1 order" if planned.orders == 1 else f"{planned.orders:,} orders"
    answer = answered(f"Send {orders}, for about {planned.credits:,} credits?", "Nothing was ordered.")
    return answer is not False


def answered(question: str, declined: str) -> bool | None:
    """Ask at the terminal, and tell whether the answer is yes; None: there is no terminal.

    Args:
        question: What is asked.
        declined: Said to another answer.

    Raises:
        KeyboardInterrupt: Ctrl-C, which is an answer too.

    """
    with contextlib.ExitStack() as stack:
        terminal = _terminal(stack)
        if terminal is None:
            return None
        answers, questions = terminal
        questions.write(f"{question} [y/N] ")
        questions.flush()
        if answers.readline().strip().casefold() in {"y", "yes"}:
            return True
        questions.write(f"{declined}\n")
        questions.flush()
    return False


def _terminal(stack: contextlib.ExitStack) -> tuple[TextIO, TextIO] | None:
    """Give the terminal at which this was started, whatever is redirected; None where there is none."""
    try:
        # Two files: one that is read and written would have to be seekable.
        answers = stack.enter_context(_TERMINAL.open(encoding="utf-8", errors="replace"))
        return answers, stack.enter_context(_TERMINAL.open("w", encoding="utf-8"))
    except OSError:
        pass
    if sys.stdin is not None and sys.stdin.isatty() and sys.stderr is not None and sys.stderr.isatty():  # pyright: ignore[reportUnnecessaryComparison]
        return sys.stdin, sys.stderr
    return None
