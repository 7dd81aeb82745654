"""The time axis: from moments to places, with its long pauses cut out, and its ticks."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from datetime import datetime
from typing import TYPE_CHECKING, Final

import attrs

from .wording import duration

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import tzinfo

_IDLE = 30.0  # seconds without any job under way that may be worth a cut
_COVERED = 3600.0  # the same where a job goes on meanwhile, as it does while no program runs
_SHARE = 4  # a cut is worth it where the pause is longer than a fourth of what is left
_MOST_PAUSES = 24
_TICKS = 10
# How far labels are apart at least, in percent of the width, for steps below so many seconds.
_APART = ((1, 19.0), (60, 15.0), (math.inf, 11.0))
_STEPS: Final = (
    *(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800),
    *(3600, 7200, 10_800, 21_600, 43_200, 86_400, 172_800, 604_800, 2_592_000, 31_536_000),
)


@attrs.frozen
class Tick:
    """A place with a name.

    Args:
        x: Where it is, in percent of the width.
        time: The time of day.
        date: The date where it is another one than that of the tick before; else None.

    """

    x: float
    time: str
    date: str | None


@attrs.frozen
class Pause:
    """A stretch that is cut out.

    Args:
        x: Where it begins, in percent of the width.
        width: How wide the cut is, in percent of the width.
        seconds: How long it was, in seconds.

    """

    x: float
    width: float
    seconds: float

    @property
    def words(self) -> str:
        """How long it was."""
        return duration(self.seconds)


@attrs.frozen
class _Span:
    start: float
    end: float
    left: float
    width: float


class Axis:
    """Where moments are on a page, by what is known of the jobs.

    Args:
        jobs: The known moments of each job, in order, in seconds since the epoch; none of them empty.

    """

    def __init__(self, jobs: Sequence[Sequence[float]]) -> None:
        cuts = _cuts(jobs)
        start = min((job[0] for job in jobs), default=0.0)
        end = max((job[-1] for job in jobs), default=start)
        edges = [start, *itertools.chain.from_iterable(cuts), end]
        self.start, self.end = start, end
        self._spans, self.pauses = _laid_out(list(zip(edges[::2], edges[1::2], strict=True)))

    @property
    def active(self) -> float:
        """How long it is without its pauses, in seconds."""
        return sum(span.end - span.start for span in self._spans)

    def at(self, moment: float) -> float:
        """Give the place of a moment, in percent of the width; the nearest one for what is beyond.

        Args:
            moment: Seconds since the epoch.

        """
        span = self._spans[max(0, bisect_right(self._spans, moment, key=lambda span: span.start) - 1)]
        length = span.end - span.start
        share = min(1.0, max(0.0, (moment - span.start) / length)) if length else 0.0
        return round(span.left + span.width * share, 3)

    def ticks(self, zone: tzinfo | None) -> tuple[Tick, ...]:
        """Give its ticks, far enough from each other for their labels.

        Args:
            zone: The zone of the labels; None: this machine's.

        """
        step = next((step for step in _STEPS if self.active / step <= _TICKS), self.active / _TICKS)
        apart = next(apart for below, apart in _APART if step < below)
        places = [(self.at(moment), moment) for moment in self._round_moments(step, zone)]
        ticks: list[Tick] = []
        before = ""
        for x, moment in places:
            if ticks and x - ticks[-1].x < apart:
                continue
            at = datetime.fromtimestamp(moment, zone)
            date = f"{at.day} {at:%b}"
            ticks.append(Tick(x, _time(at, step), None if date == before else date))
            before = date
        return tuple(ticks)

    def _round_moments(self, step: float, zone: tzinfo | None) -> Iterator[float]:
        offset = datetime.fromtimestamp(self.start, zone).utcoffset()
        shift = offset.total_seconds() if offset else 0.0
        for span in self._spans:
            first = math.ceil((span.start + shift) / step)
            last = math.floor((span.end + shift) / step)
            if self.pauses or last < first:
                yield span.start  # where it goes on after a pause is what one wants to know
            yield from (number * step - shift for number in range(first, last + 1))


def _time(at: datetime, step: float) -> str:
    if step < 1:
        return f"{at:%H:%M:%S}.{at.microsecond // 10_000:02}"
    return f"{at:%H:%M:%S}" if step < 60 else f"{at:%H:%M}"  # noqa: PLR2004 - seconds in a minute


def _cuts(jobs: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    moments = sorted({moment for job in jobs for moment in job})
    left = iter(sorted((job[0], job[-1]) for job in jobs))
    following = next(left, None)
    reached = -math.inf
    long: list[tuple[float, float]] = []
    rest = 0.0
    for start, end in itertools.pairwise(moments):
        while following is not None and following[0] <= start:
            reached, following = max(reached, following[1]), next(left, None)
        if end - start > (_COVERED if reached >= end else _IDLE):
            long.append((start, end))
        else:
            rest += end - start
    long.sort(key=lambda gap: gap[1] - gap[0])
    while long and long[0][1] - long[0][0] <= rest / _SHARE:
        start, end = long.pop(0)
        rest += end - start
    return sorted(long[-_MOST_PAUSES:])


def _laid_out(spans: list[tuple[float, float]]) -> tuple[tuple[_Span, ...], tuple[Pause, ...]]:
    number = len(spans)
    cut = min(4.0, 24 / (number - 1)) if number > 1 else 0.0
    least = min(2.0, 30 / number)  # so that a short run is seen beside a long one
    rest = 100.0 - cut * (number - 1) - least * number
    active = sum(end - start for start, end in spans)
    placed: list[_Span] = []
    pauses: list[Pause] = []
    x = 0.0
    for start, end in spans:
        if placed:
            pauses.append(Pause(round(x, 3), round(cut, 3), start - placed[-1].end))
            x += cut
        width = least + rest * ((end - start) / active if active else 1 / number)
        placed.append(_Span(start, end, x, width))
        x += width
    return tuple(placed), tuple(pauses)
