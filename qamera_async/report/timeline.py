"""The timeline of a ledger: a bar for each job, and what it was waiting for."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import attrs

from ..ledger import LedgerState
from .axis import Axis, Pause, Tick
from .states import group, label
from .wording import duration, plural, visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import tzinfo

    from ..ledger import LedgerEntry

MOST_BARS = 1000
"""How many jobs the timeline shows at most."""

PHASES: Final = {
    "waiting": "waiting for the quota",
    "submitting": "being submitted",
    "processing": "processing",
    "downloading": "downloading",
}
"""What a job goes through, as it is called on the page."""

_NAMED = 40  # so many bars have room for a name each
_NAME = 19  # characters of a bar's name
_ROW, _HEIGHT = 22, 800  # pixels
_ENDS = {LedgerState.DONE, LedgerState.ABANDONED}
_EARLIEST = datetime(1971, 1, 1, tzinfo=UTC).timestamp()
_LATEST = datetime(9990, 1, 1, tzinfo=UTC).timestamp()


@attrs.frozen
class Part:
    """A part of a bar.

    Args:
        phase: One of the phases.
        x: Where it begins, in percent of the width.
        width: How wide it is, in percent of the width.

    """

    phase: str
    x: float
    width: float


@attrs.frozen
class Bar:
    """A job's bar.

    Args:
        name: What the job is called.
        words: What is to be known of it, in a line.
        parts: Its parts, from left to right.
        mark: What stands at its end, where it isn't done: a group's name; else None.
        end: Where it ends, in percent of the width.

    """

    name: str
    words: str
    parts: tuple[Part, ...]
    mark: str | None
    end: float


@attrs.frozen
class Timeline:
    """All of it.

    Args:
        bars: The bars, in the order in which the jobs were submitted.
        ticks: The ticks of its axis.
        pauses: The cuts in its axis.
        row: How high a row is, in pixels.
        left_out: What isn't shown, in words; empty: all is.
        took: How long it took from the first moment to the last one, in seconds.
        active: The same without the long pauses, in seconds.
        rests: How many long pauses there are, those of jobs that aren't shown as well.

    """

    bars: tuple[Bar, ...]
    ticks: tuple[Tick, ...]
    pauses: tuple[Pause, ...]
    row: int
    left_out: str
    took: float
    active: float
    rests: int

    @property
    def named(self) -> bool:
        """Whether there is room for a name at each bar."""
        return len(self.bars) <= _NAMED

    @property
    def thick(self) -> int:
        """How thick a bar is, in pixels."""
        return self.row - (10 if self.named else self.row // 4)


@attrs.frozen
class _Job:
    entry: LedgerEntry
    moments: tuple[tuple[str, float], ...]

    @property
    def order(self) -> tuple[bool, float]:
        phases = dict(self.moments)
        for phase in ("processing", "submitting", "waiting"):
            if phase in phases:
                return False, phases[phase]
        return True, self.moments[0][1]


def timeline(entries: Iterable[LedgerEntry], zone: tzinfo | None) -> Timeline:
    """Give the timeline of a ledger's entries.

    Args:
        entries: All of them, those that were ordered anew since as well.
        zone: The zone of its labels; None: this machine's.

    """
    every = list(entries)
    jobs = sorted((job for job in map(_job, every) if job.moments), key=lambda job: job.order)
    shown = jobs[:MOST_BARS]
    whole = Axis([_times(job) for job in jobs])
    axis = whole if len(shown) == len(jobs) else Axis([_times(job) for job in shown])
    return Timeline(
        tuple([_bar(job, axis) for job in shown]),
        axis.ticks(zone) if shown else (),
        axis.pauses,
        _ROW if len(shown) <= _NAMED else max(2, min(12, _HEIGHT // len(shown))),
        _left_out(jobs[MOST_BARS:], len(every) - len(jobs)),
        whole.end - whole.start,
        whole.active,
        len(whole.pauses),
    )


def name_of(entry: LedgerEntry, limit: int = 500) -> str:
    """Give what an entry is called: its ref, or else its first record, or else its own id.

    Args:
        entry: The entry.
        limit: How many characters of it are given at most.

    """
    return visible(entry.request.ref or next(iter(entry.record_ids), entry.id), limit)


def _job(entry: LedgerEntry) -> _Job:
    # The phase that begins with each moment. A clock that was set back must not turn a bar around.
    began = {
        "waiting": entry.claimed_at,
        "submitting": entry.sent_at,
        "processing": entry.submitted_at,
        "downloading": entry.settled_at,
        "over": entry.downloaded_at,
    }
    known = [(phase, moment.timestamp()) for phase, moment in began.items() if moment is not None]
    latest = itertools.accumulate((min(max(at, _EARLIEST), _LATEST) for _, at in known), max)
    return _Job(entry, tuple(zip([phase for phase, _ in known], latest, strict=True)))


def _times(job: _Job) -> list[float]:
    return [moment for _, moment in job.moments]


def _bar(job: _Job, axis: Axis) -> Bar:
    entry = job.entry
    phases = list(PHASES)
    parts: list[Part] = []
    took: list[str] = []
    for (_, start), (following, end) in itertools.pairwise(job.moments):
        # Where a moment between isn't known, it is the last phase of them that took the time.
        phase = phases[-1] if following == "over" else phases[phases.index(following) - 1]
        x = axis.at(start)
        parts.append(Part(phase, x, round(max(0.0, axis.at(end) - x), 3)))
        took.append(f"{duration(end - start)} {PHASES[phase]}")
    name, state = name_of(entry), label(entry)
    since = "" if entry.current else ", ordered anew since"
    return Bar(
        name if len(name) <= _NAME else f"{name[: _NAME - 1]}…",
        "; ".join([f"{name_of(entry, 80)}: {state}{since}", *took]),
        tuple(parts),
        None if entry.state in _ENDS else group(entry),
        axis.at(job.moments[-1][1]),
    )


def _left_out(later: Sequence[_Job], unknown: int) -> str:
    texts: list[str] = []
    if later:
        first, last = name_of(later[0].entry, 80), name_of(later[-1].entry, 80)
        texts.append(
            f"The first {MOST_BARS:,} by submission are shown; {plural(len(later), 'later one')} "
            f"({first} to {last}) {'is' if len(later) == 1 else 'are'} not."
        )
    if unknown:
        texts.append(f"Of {plural(unknown, 'request')} the ledger has no moments.")
    return " ".join(texts)
