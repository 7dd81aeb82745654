"""The progress on a terminal, in place, or as plain lines where there is none."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from .words import clock, roughly

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from .snapshot import Snapshot
    from .writer import Stream

PLAIN_EVERY = 5.0
"""Between one plain line of progress and the next, in seconds."""

_UP = "\x1b[{}A"
_CLEAR_BELOW = "\x1b[J"
_CLEAR_RIGHT = "\x1b[K"


class Display:
    """Shows snapshots, or as it is here nothing; all of it is called in the thread that writes."""

    def show(self, snapshot: Snapshot) -> None:
        """Show this from now on."""

    def make_room(self) -> None:
        """Let lines be written where it stands."""

    def come_back(self) -> None:
        """Stand below the lines that were written."""

    def end(self) -> None:
        """Show nothing any more."""


class PlainDisplay(Display):
    """Writes a line now and then, when there is something to tell.

    Args:
        stream: Where to.
        every: Between one line and the next, in seconds.
        clock: A monotonic clock in seconds; replaceable in tests.

    """

    def __init__(
        self, stream: Stream, every: float = PLAIN_EVERY, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream
        self._every = every
        self._clock = clock
        self._snapshot: Snapshot | None = None
        self._told: object = None
        self._told_at = clock()

    def show(self, snapshot: Snapshot) -> None:
        """Write a line, if it is worth one and the last one was a while ago."""
        self._snapshot = snapshot
        if self._clock() - self._told_at >= self._every:
            self._tell(snapshot)

    def end(self) -> None:
        """Write a last line, unless the one before said the same."""
        if self._snapshot is not None:
            self._tell(self._snapshot)
            self._snapshot = None

    def _tell(self, snapshot: Snapshot) -> None:
        trouble = snapshot.wait.reason if snapshot.wait is not None and snapshot.wait.trouble else ""
        news = snapshot.settled, snapshot.submitted, snapshot.cooldown > 0, trouble
        if news != self._told:
            self._told, self._told_at = news, self._clock()
            self._stream.write(f"{summary(snapshot)}\n")


class TerminalDisplay(Display):
    """Draws in place. The cursor stands below it after each frame, so that it may end at any moment.

    A frame is one write and is never erased before the next: nothing flickers, and the cursor needn't hide.

    Args:
        stream: The terminal.

    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._console: Console | None = None
        self._frame: list[str] = []
        self._standing = 0  # lines of it on the terminal

    def show(self, snapshot: Snapshot) -> None:
        """Draw it over the one before."""
        columns, lines = self._stream.size()
        frame = self._drawn(snapshot, columns)
        self._frame = frame[: max(lines - 1, 0)]
        self._draw()

    def _draw(self) -> None:
        up = _UP.format(self._standing) if self._standing else ""
        below = _CLEAR_BELOW if len(self._frame) < self._standing else ""
        text = "".join([f"{line}{_CLEAR_RIGHT}\n" for line in self._frame])
        self._standing = len(self._frame)
        self._stream.write(f"{up}\r{text}{below}")

    def make_room(self) -> None:
        """Erase it for as long as lines are written."""
        if self._standing:
            self._stream.write(f"{_UP.format(self._standing)}\r{_CLEAR_BELOW}")
            self._standing = 0

    def come_back(self) -> None:
        """Draw it anew below them."""
        if self._frame and not self._standing:
            self._draw()

    def end(self) -> None:
        """Erase it: what there is to say at the end is a line like others."""
        self.make_room()
        self._frame = []

    def _drawn(self, snapshot: Snapshot, columns: int) -> list[str]:
        from rich.console import Console  # noqa: PLC0415 - costs time, and only a terminal needs it

        from .live import render  # noqa: PLC0415 - the same

        if self._console is None:
            self._console = Console(file=self._stream.file, highlight=False, force_terminal=True)
        self._console.width = columns
        with self._console.capture() as capture:
            self._console.print(render(snapshot, columns))
        return capture.get().splitlines()


def is_dumb() -> bool:
    """Whether the terminal says that it can't move its cursor."""
    return os.environ.get("TERM", "").lower() in {"dumb", "unknown"}


def summary(snapshot: Snapshot) -> str:
    """Give a snapshot as a plain line."""
    total = "" if snapshot.total is None else f" of {snapshot.total}"
    parts = [f"{snapshot.done}{total} done"]
    if snapshot.failed:
        parts.append(f"{snapshot.failed} failed")
    if snapshot.ambiguous:
        parts.append(f"{snapshot.ambiguous} ambiguous")
    parts.append(f"{snapshot.in_flight} in flight")
    if snapshot.reserved:
        parts.append(f"{snapshot.reserved} credits reserved")
    if snapshot.refunded:
        parts.append(f"{snapshot.refunded} refunded")
    parts.append(f"{clock(snapshot.elapsed)} passed")
    if snapshot.remaining is not None and snapshot.settled < (snapshot.total or 0):
        parts.append(f"about {roughly(max(snapshot.remaining, 1))} left")
    if snapshot.cooldown > 0:
        parts.append(f"held {roughly(max(snapshot.cooldown, 1))} by the quota")
    if snapshot.wait is not None and snapshot.wait.trouble:
        parts.append(f"{snapshot.wait.reason}, again in {roughly(max(snapshot.wait.seconds, 1))}")
    return ", ".join(parts)
