"""A snapshot of the progress as something rich can draw: a few calm lines, never wider than asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
from rich.cells import cell_len, set_cell_size
from rich.text import Text

from .snapshot import JobKind
from .words import clean, clock, roughly, size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.console import Console, ConsoleOptions, RenderableType

    from .snapshot import JobLine, Snapshot

_QUOTA_CELLS = 10
_WHAT_CELLS = 10  # of "reel of 10"
_BYTES_CELLS = 14  # of "123.4/123.4 MB"
_AGE_CELLS = 8  # of "812.0 kB" and "10:03:20"
_MIN_BAR = 6


def render(snapshot: Snapshot, width: int) -> RenderableType:
    """Give a snapshot as lines of at most ``width - 1`` cells: in the last one, some terminals would wrap.

    Args:
        snapshot: What to show.
        width: How many cells the terminal has in a line.

    """
    return _Lines(snapshot, width)


@attrs.frozen
class _Signs:
    done: str
    failed: str
    ambiguous: str
    rest: str
    between: str
    ellipsis: str
    marks: dict[JobKind, str]


_FINE = _Signs(
    "━",
    "╍",
    "┅",
    "─",
    " · ",
    "…",
    {JobKind.DOWNLOADING: "↓", JobKind.FAILED: "✗", JobKind.AMBIGUOUS: "?", JobKind.RUNNING: "·"},
)
_ASCII = _Signs(
    "#",
    "x",
    "?",
    "-",
    ", ",
    "...",
    {JobKind.DOWNLOADING: ">", JobKind.FAILED: "x", JobKind.AMBIGUOUS: "?", JobKind.RUNNING: "."},
)
_STYLES = {
    JobKind.DOWNLOADING: "cyan",
    JobKind.FAILED: "red",
    JobKind.AMBIGUOUS: "yellow",
    JobKind.RUNNING: "dim",
}


@attrs.frozen
class _Lines:
    snapshot: Snapshot
    width: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        width = max(min(self.width, options.max_width) - 1, 1)
        drawing = _Drawing(width, _ASCII if options.ascii_only else _FINE, plain=options.ascii_only)
        for line in drawing.lines(self.snapshot):
            line.no_wrap, line.overflow = True, "crop"
            line.truncate(width)
            yield line


@attrs.frozen
class _Drawing:
    width: int
    signs: _Signs
    plain: bool = attrs.field(kw_only=True)

    def lines(self, snapshot: Snapshot) -> Iterator[Text]:
        yield self._overall(snapshot)
        yield self._fitting(self._counts(snapshot))
        yield self._fitting(self._conditions(snapshot))
        for job in snapshot.jobs:
            yield self._job(job)

    # --- the whole ------------------------------------------------------------------------------

    def _overall(self, snapshot: Snapshot) -> Text:
        settled = snapshot.settled
        if snapshot.total is None:
            return Text.assemble((f"{settled:,}", "bold"), " settled")
        right = Text.assemble((f"  {settled:,}", "bold"), f"/{snapshot.total:,}")
        # Not 100 before all are.
        right.append(f"  {100 * settled // max(snapshot.total, 1):3d} %", "dim")
        left = self._left(snapshot)
        if left:
            right.append(f"  {left}", "cyan")
        bar = self._bar(
            self.width - right.cell_len,
            snapshot.total,
            (snapshot.done, "green", self.signs.done),
            (snapshot.failed, "red", self.signs.failed),
            (snapshot.ambiguous, "yellow", self.signs.ambiguous),
        )
        return bar.append_text(right)

    @staticmethod
    def _left(snapshot: Snapshot) -> str:
        if snapshot.settled >= (snapshot.total or 0):
            return ""
        if snapshot.remaining is None:
            return ""
        return f"about {roughly(snapshot.remaining)} left" if snapshot.remaining >= 1 else "nearly done"

    def _counts(self, snapshot: Snapshot) -> Iterator[Text]:
        yield Text(f"{snapshot.done:,} done", "green" if snapshot.done else "dim")
        if snapshot.failed:
            yield Text(f"{snapshot.failed:,} failed", "red")
        if snapshot.ambiguous:
            yield Text(f"{snapshot.ambiguous:,} ambiguous", "yellow")
        yield Text(f"{snapshot.in_flight:,} in flight", "" if snapshot.in_flight else "dim")
        yield Text(clock(snapshot.elapsed), "dim")

    def _conditions(self, snapshot: Snapshot) -> Iterator[Text]:
        wait = snapshot.wait
        if wait is not None and wait.trouble:
            yield Text(f"{self._data(wait.reason)}, again in {roughly(max(wait.seconds, 1))}", "yellow")
        full = snapshot.used >= snapshot.limit
        style = "yellow" if full or snapshot.cooldown else "blue"
        quota = Text.assemble(("quota ", "dim"))
        quota.append_text(self._bar(_QUOTA_CELLS, snapshot.limit, (snapshot.used, style, self.signs.done)))
        quota.append(f" {snapshot.used:,}/{snapshot.limit:,}")
        if snapshot.cooldown > 0:
            quota.append(f" held {roughly(max(snapshot.cooldown, 1))}", "yellow")
        yield quota
        if snapshot.reserved:
            credit = f"{snapshot.reserved:,} credits"
            yield Text(f"{credit}, {snapshot.refunded:,} back" if snapshot.refunded else credit)
        if wait is not None and not wait.trouble and not snapshot.cooldown:
            yield Text(f"{self._data(wait.reason)} in {roughly(max(wait.seconds, 1))}", "dim")

    def _fitting(self, parts: Iterable[Text]) -> Text:
        line = Text()
        for part in parts:
            between = self.signs.between if line else ""
            if line and line.cell_len + len(between) + part.cell_len > self.width:
                break
            line.append(between, "dim").append_text(part)
        return line

    # --- one job --------------------------------------------------------------------------------

    def _job(self, job: JobLine) -> Text:
        style = _STYLES[job.kind]
        name = max(min(self.width * 2 // 5, 48), 10)
        line = Text.assemble((f"{self.signs.marks[job.kind]} ", style), self._fixed(job.name, name), "  ")
        if job.done is not None and job.size:
            last = f"{size(job.done, job.size)}/{size(job.size)}".rjust(_BYTES_CELLS)
            cells = min(self.width - line.cell_len - len(last) - 2, 40)
            if cells >= _MIN_BAR:
                line.append_text(self._bar(cells, job.size, (job.done, "cyan", self.signs.done)))
                return line.append(f"  {last}")
        last = (clock(job.age) if job.done is None else size(job.done)).rjust(_AGE_CELLS)
        middle = min(self.width - line.cell_len - len(last) - 2, 40 + _BYTES_CELLS - len(last))
        if middle > _WHAT_CELLS + 2 + _MIN_BAR:
            line.append(self._fixed(job.what, _WHAT_CELLS), "dim").append("  ")
            middle -= _WHAT_CELLS + 2
        line.append(self._fixed(job.status, max(middle, 0)), style)
        return line.append(f"  {last}", "dim")

    def _data(self, text: str) -> str:
        text = clean(text)
        return text.encode("ascii", "replace").decode() if self.plain else text

    def _fixed(self, text: str, cells: int) -> str:
        """Give a text in exactly so many cells: cut in the middle, since names differ at their ends."""
        text = self._data(text)
        if cell_len(text) <= cells:
            return set_cell_size(text, cells)
        ellipsis = self.signs.ellipsis
        kept = cells - len(ellipsis)
        if kept < 2:  # noqa: PLR2004
            return set_cell_size(text, cells)
        tail = text[-(kept // 2) :]
        while cell_len(tail) > kept // 2:
            tail = tail[1:]
        return set_cell_size(set_cell_size(text, kept - cell_len(tail)) + ellipsis + tail, cells)

    # --- a bar ----------------------------------------------------------------------------------

    def _bar(self, cells: int, total: int, *parts: tuple[int, str, str]) -> Text:
        """Give a bar of so many cells; a part that isn't nothing is seen, and it is full only at the end."""
        pieces: list[tuple[str, str]] = []
        missing = sum(count for count, _, _ in parts) < total
        left = max(cells - missing, 0)
        for count, style, sign in reversed(parts):  # the rare ones first, so that there is room for them
            share = min(max(cells * count // max(total, 1), 1 if count else 0), left)
            left -= share
            pieces.insert(0, (sign * share, style))
        if not missing and total:
            _, style, sign = parts[0]
            pieces.insert(0, (sign * left, style))
            left = 0
        rest = (left + missing) if cells > 0 else 0
        return Text.assemble(*pieces, (self.signs.rest * rest, "bright_black"))
