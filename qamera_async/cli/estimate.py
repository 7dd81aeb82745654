"""How long it will take: from the quota, and from how long it took so far."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque

_REMEMBERED = 200
_STALE_AFTER = 15.0  # seconds, as `PollPolicy` has it
_MOST_SLOTS = 2000  # in a window; a quota above that isn't what one waits for
_ENOUGH = 20  # submissions
_AT_ONCE = 4  # downloads, as many as a batch runs unless it is told otherwise


def submission_slots(limit: int, window: float, stale_after: float = _STALE_AFTER) -> int:
    """Give how many submissions fit into a window: what the library leaves to its polls isn't there for them.

    Args:
        limit: How many requests the quota allows in a window.
        window: The length of the window in seconds.
        stale_after: How old the list of videos may get while submissions queue, in seconds.

    """
    return limit - min(math.ceil(window / stale_after), limit // 2)


class Estimate:
    """Learns from each job, and tells what the rest will take.

    Args:
        limit: How many requests the quota allows in a window.
        window: The length of the window in seconds.

    """

    def __init__(self, limit: int, window: float) -> None:
        self._slots = submission_slots(limit, window)
        self._window = window
        self._taken: deque[float] = deque(maxlen=min(self._slots, _MOST_SLOTS))
        self._recent: deque[float] = deque(maxlen=_REMEMBERED)
        self._durations = Median()
        self._downloads = Median()

    def submitted(self, now: float) -> None:
        """Take note of a submission.

        Args:
            now: When it was, in seconds of the clock.

        """
        self._taken.append(now)
        self._recent.append(now)

    def finished(self, seconds: float) -> None:
        """Take note of how long a job took, in seconds."""
        self._durations.add(seconds)

    def downloaded(self, seconds: float) -> None:
        """Take note of how long a download took, in seconds."""
        self._downloads.add(seconds)

    def remaining(
        self,
        now: float,
        *,
        to_submit: int,
        youngest: float | None,
        to_download: int,
        unsettled: int,
        held: float,
    ) -> float | None:
        """Give the seconds until all is done; None while nobody can know.

        Args:
            now: In seconds of the clock.
            to_submit: How many requests are still to be sent.
            youngest: The age of the job that was submitted last and still runs, in seconds; None: none runs.
            to_download: How many results wait for their download, or are at it.
            unsettled: How many have no outcome yet, in whatever state.
            held: How long the quota holds everybody after a 429, in seconds.

        """
        job = self._durations.value
        download = self._downloads.value or 0.0
        # Where downloads are what takes longest, all of them have to come through.
        at_least = download * unsettled / min(max(unsettled, 1), _AT_ONCE)
        if to_submit <= 0 and youngest is None:
            if to_download > 0 and self._downloads.value is None:
                return None  # nobody knows yet how long a download takes
            return download * to_download / min(max(to_download, 1), _AT_ONCE)
        if job is None:
            return None
        if to_submit > 0:
            last = max(self._last_slot(now, to_submit) + self._behind(now, to_submit), held)
            return max(last + job + download, at_least)
        return max(max(job - (youngest or 0.0), 0.0) + download, at_least)

    def _last_slot(self, now: float, number: int) -> float:
        """Give the seconds until the quota has given slots to so many."""
        if self._slots > _MOST_SLOTS:
            return 0.0
        while self._taken and self._taken[0] + self._window <= now:
            self._taken.popleft()
        waiting = number - (self._slots - len(self._taken))
        if waiting <= 0:
            return 0.0
        # Slots come back in the order they were taken, those that are free now behind all others.
        rounds, place = divmod(waiting - 1, self._slots)
        taken = self._taken[place] if place < len(self._taken) else now
        return max(taken + self._window * (rounds + 1) - now, 0.0)

    def _behind(self, now: float, number: int) -> float:
        """Give the seconds that so many take longer than by the quota: something else may hold a batch up."""
        if len(self._recent) < _ENOUGH:
            return 0.0
        allowed = math.ceil(len(self._recent) / self._slots) * self._window
        return number * max(now - self._recent[0] - allowed, 0.0) / len(self._recent)


class Median:
    """The median of the last values."""

    def __init__(self) -> None:
        self._order: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, value: float) -> None:
        """Take one more, and forget the oldest of too many."""
        self._order.append(value)
        insort(self._sorted, value)
        if len(self._order) > _REMEMBERED:
            del self._sorted[bisect_left(self._sorted, self._order.popleft())]

    @property
    def value(self) -> float | None:
        """The median; None where there is no value yet."""
        return self._sorted[len(self._sorted) // 2] if self._sorted else None
