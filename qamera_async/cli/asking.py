"""What spends credits says how many first, and asks."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from . import values
from .connection import origin, session_of
from .plan import describe, plan

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .. import Request
    from .options import Api
    from .running import Running


async def say_first(
    running: Running,
    requests: Sequence[Request],
    ledger: Path | None,
    api: Api,
    *,
    retry_failed: bool = False,
    dry_run: bool = False,
) -> int:
    """Say what would be ordered, for how many credits, and how long the quota makes it take.

    Args:
        running: Where it is said.
        requests: What would be ordered.
        ledger: What may be paid for already; None: nothing is known.
        api: The quota.
        retry_failed: Whether what has failed is ordered again.
        dry_run: Whether this is all that was asked for.

    Returns:
        How many would be ordered.

    Raises:
        ConfigurationError: A key or an address that can't be used; not in a dry run, which needs none.

    """
    if not dry_run:
        # Said before anybody is asked.
        await session_of(api).aclose()
    limit, window = api.limits
    planned = await plan(
        requests, ledger, origin=origin(), limit=limit, window=window, retry_failed=retry_failed
    )
    say = running.screen.out if dry_run and not running.manners.json else running.screen.note
    for text in describe(planned):
        say(text)
    if dry_run and running.manners.json:
        running.screen.out(values.line("plan", planned.as_dict()))
    return planned.orders


def agreed(orders: int, *, yes: bool) -> bool:
    """Ask at a terminal whether to go on; elsewhere, and with nothing to order, it is agreed.

    Raises:
        KeyboardInterrupt: Ctrl-C, which is an answer too.

    """
    if not orders or yes or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return True
    print("Order them? [y/N] ", end="", file=sys.stderr, flush=True)  # noqa: T201 - it is a command
    if sys.stdin.readline().strip().casefold() in {"y", "yes"}:
        return True
    print("Nothing was ordered.", file=sys.stderr)  # noqa: T201 - it is a command
    return False
