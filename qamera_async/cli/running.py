"""Runs a command: its signals, its errors as lines, and its exit code."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import traceback
import warnings
from typing import TYPE_CHECKING

from .. import (
    AmbiguityLimitError,
    AmbiguousSubmissionError,
    ApiError,
    ConfigurationError,
    InvalidRequestError,
    QameraError,
)
from .advice import said
from .codes import Code
from .screen import Screen
from .values import error as error_fields
from .values import line

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

    from .options import Manners

_MASK = "***"


def code_of(error: BaseException) -> Code:
    """Give the exit code of what went wrong."""
    if isinstance(error, AmbiguousSubmissionError | AmbiguityLimitError):
        return Code.DOUBT
    if isinstance(error, ApiError):
        return Code.REFUSED
    if isinstance(error, ConfigurationError | InvalidRequestError):
        return Code.USAGE
    return Code.FAILED


class Running:
    """What a command in progress may use.

    Args:
        screen: Where it writes.
        manners: How it was asked to speak.

    """

    def __init__(self, screen: Screen, manners: Manners) -> None:
        self.screen = screen
        self.manners = manners
        self.how_to_go_on = ""
        """Said where it is interrupted."""

    def result(self, text: str, kind: str, fields: Callable[[], dict[str, object]]) -> None:
        """Write a result: lines of text, or with ``--json`` an object."""
        for part in [line(kind, fields())] if self.manners.json else text.splitlines():
            self.screen.out(part)

    def step(self, text: str) -> None:
        """Write a line of many, unless the display shows the same."""
        if not (self.manners.quiet or (self.screen.out_is_terminal and self.screen.err_is_terminal)):
            self.screen.out(text)

    def report(self, error: BaseException, about: str = "") -> Code:
        """Write what went wrong as one line, and as an object with ``--json``; give its exit code."""
        text = f"{about}: {said(error)}" if about else said(error)
        self.screen.error(f"error: {text}")
        if self.manners.json:
            self.screen.out(line("error", error_fields(error)))
        if self.manners.debug:
            for text in _without_key("".join(traceback.format_exception(error))).splitlines():
                self.screen.error(text)
        return code_of(error)


def run(manners: Manners, body: Callable[[Running], Awaitable[Code]]) -> Code:
    """Run a command to its end.

    The first Ctrl-C, SIGTERM or hang-up cancels it, which waits for registrations under way; the second
    leaves at once. An error is one line, with what to do; ``--debug`` adds its traceback.

    Args:
        manners: How to speak.
        body: The command.

    Returns:
        The exit code.

    """
    left: list[Callable[[], object]] = []
    gone = False
    before = signal.getsignal(signal.SIGTERM)

    def on_gone() -> None:
        nonlocal gone
        gone = True
        for leave in left:
            leave()

    with Screen(quiet=manners.quiet, as_json=manners.json, on_gone=on_gone) as screen:
        running = Running(screen, manners)
        with _told(screen, debug=manners.debug):
            try:
                code = asyncio.run(_until_left(running, body, left))
                signal.signal(signal.SIGTERM, before)  # which the loop has set to its default
            except (KeyboardInterrupt, asyncio.CancelledError):
                if gone:
                    return Code.GONE
                screen.error(f"Interrupted. {running.how_to_go_on}".strip())
                return Code.INTERRUPTED
            except (QameraError, OSError, ValueError) as error:
                return running.report(error)
            except Exception as error:
                return running.report(error, f"unexpected {type(error).__name__}")
    return Code.GONE if gone else code


async def _until_left(
    running: Running, body: Callable[[Running], Awaitable[Code]], left: list[Callable[[], object]]
) -> Code:
    """Run the body, cancelled by the first signal, or where nobody reads its output."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - this is one
    loop = asyncio.get_running_loop()
    numbers = [signal.SIGTERM]
    for name in ("SIGINT", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP.
        # A signal that the parent ignores stays ignored: SIGHUP under nohup, SIGINT in background jobs.
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            numbers.append(number)

    def leave(_number: int, _frame: object) -> None:
        running.screen.restore()
        os._exit(Code.INTERRUPTED)

    def first() -> None:
        for number in numbers:
            loop.remove_signal_handler(number)
            # Not by the loop, so that it works where that hangs.
            signal.signal(number, leave)
        running.screen.live(None)
        running.screen.error(
            "Stopping: registrations under way are waited for, a minute at most. Once more leaves at once."
        )
        task.cancel()

    for number in numbers:
        # Without signal handlers of the loop, as on Windows, Ctrl-C is a KeyboardInterrupt.
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(number, first)
    left.append(task.cancel)
    return await body(running)


@contextlib.contextmanager
def _told(screen: Screen, *, debug: bool) -> Generator[None]:
    """Let the log and the warnings of the library be lines like the others, while this lasts."""
    handler = _Lines(screen)
    root, ours = logging.getLogger(), logging.getLogger("qamera_async")
    root.addHandler(handler)
    ours.setLevel(logging.DEBUG if debug else logging.WARNING)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: screen.error(  # pyright: ignore[reportUnknownLambdaType]
            f"warning: {message}"
        )
        try:
            yield
        finally:
            root.removeHandler(handler)
            ours.setLevel(logging.NOTSET)


class _Lines(logging.Handler):
    def __init__(self, screen: Screen) -> None:
        super().__init__()
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        self._screen.error(_without_key(f"{record.levelname.lower()}: {self.format(record)}"))


def _without_key(text: str) -> str:
    key = os.environ.get("QAMERA_API_KEY")
    return text.replace(key, _MASK) if key else text
