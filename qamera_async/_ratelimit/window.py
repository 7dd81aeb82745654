"""The arithmetic of the rate limit: the exact sliding window and the cooldown. No clock, no event loop.

Every moment is passed in by the caller, in seconds of one monotonic clock.
"""

from __future__ import annotations

import enum
import math
import random
from bisect import bisect_right, insort
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .._config import RetryPolicy
    from .shared import ExternalUsage

_EXHAUSTED_AFTER = 5  # windows of nothing but 429


class Priority(enum.Enum):
    """The order in which queued requests get a slot: submissions first."""

    SUBMISSION = "submission"
    POLL = "poll"


class Window:
    """At most `limit` requests in any `length` seconds, counted at the server.

    A slot is taken before its request is sent and settled when the response has arrived. It becomes free
    one window after that. So no delay in the network can make the server count one request too many.

    Args:
        limit: Slots in a window.
        length: Length of the window in seconds.
    """

    def __init__(self, limit: int, length: float) -> None:
        self.limit = limit
        self.length = length
        self.in_flight = 0  # slots taken and not settled
        self.last_taken = Priority.POLL  # priority of the request that took a slot last
        self.own_reserve = 0.0  # slots of a window that the sessions of this process keep for polls
        self._submissions_in_flight = 0
        # When each settled slot becomes free, sorted.
        self._expiries: dict[Priority, list[float]] = {priority: [] for priority in Priority}
        # The same for other processes that share the rate limit.
        self._external_expiries: dict[Priority, list[float]] = {priority: [] for priority in Priority}
        self._external_in_flight = self._external_submissions_in_flight = 0
        self._external_reserve = 0.0
        self._all_expiries = (*self._expiries.values(), *self._external_expiries.values())
        self._reserves: dict[object, float] = {}
        self._reserved = 0  # slots of each window that are kept for polls, by all processes
        self._last_poll = -math.inf

    def resize(self, limit: int, length: float) -> None:
        """Change the limit and the length. Requests that were sent before still count."""
        longer = max(length - self.length, 0.0)
        for expiries in self._expiries.values():
            expiries[:] = [expiry + longer for expiry in expiries]
        self.limit, self.length = limit, length

    def free(self, now: float) -> int:
        """Return the number of slots that are left, and forget the slots that have become free by `now`.

        The number is negative if slots were taken before those of other processes were known.
        """
        taken = self.in_flight + self._external_in_flight
        for expiries in self._all_expiries:
            if expiries and expiries[0] <= now:
                del expiries[: bisect_right(expiries, now)]
            taken += len(expiries)
        return self.limit - taken

    @property
    def next_free(self) -> float:
        """When the next slot becomes free by time alone, as of the last call of `free`; may be infinity."""
        return min((expiries[0] for expiries in self._all_expiries if expiries), default=math.inf)

    def take(self, priority: Priority, now: float) -> None:
        """Take a slot for a request that is in flight from now on."""
        self.in_flight += 1
        self.last_taken = priority
        if priority is Priority.POLL:
            self._last_poll = now
        else:
            self._submissions_in_flight += 1

    def settle(self, priority: Priority, counted_until: float | None) -> None:
        """Settle a slot.

        Args:
            priority: Priority of the request.
            counted_until: The last moment at which the server may have counted the request. None means
                that the request never left, and the slot is free at once.
        """
        self.in_flight -= 1
        if priority is Priority.SUBMISSION:
            self._submissions_in_flight -= 1
        if counted_until is not None:
            insort(self._expiries[priority], counted_until + self.length)

    # --- slots kept for polls -------------------------------------------------------------------

    def reserve(self, owner: object, stale_after: float | None) -> None:
        """Keep slots of each window for the polls of a session: one for each `stale_after` seconds.

        Args:
            owner: The session. Its earlier reserve is replaced.
            stale_after: Seconds; None means that it keeps no slots.
        """
        self._reserves.pop(owner, None)
        if stale_after is not None:
            self._reserves[owner] = min(self.length / stale_after, self.limit // 2)
        self.own_reserve = float(sum(self._reserves.values()))
        self._update_reserved()

    def _update_reserved(self) -> None:
        # Processes that share the rate limit share one poll too: whichever process polls, polls for all.
        self._reserved = min(math.ceil(max(self.own_reserve, self._external_reserve)), self.limit // 2)

    def may_submit(self, now: float, *, taken: bool = False) -> bool:
        """Return whether a submission now leaves enough slots for the polls of the next window.

        A poll is due every `length / reserved` seconds. For each of them there must be a slot: one that
        is free now, or one that becomes free by then.

        Args:
            now: The current time in seconds.
            taken: Whether the submission has taken its slot already.
        """
        reserved, needed = self._reserved, 0 if taken else 1
        free = self.free(now) - needed
        if not reserved or free >= reserved:
            return True
        submissions = needed + self._submissions_in_flight + len(self._expiries[Priority.SUBMISSION])
        submissions += self._external_submissions_in_flight
        submissions += len(self._external_expiries[Priority.SUBMISSION])
        if submissions > self.limit - reserved:
            return False
        pause = self.length / reserved
        last = max(self._newest_poll(now), now - pause)
        return all(free + self._freed_by(last + due * pause) >= due for due in range(1, reserved + 1))

    def next_submission(self, now: float) -> float:
        """Return when time alone may next allow a submission that waits because of the polls to come.

        Without polls, the expected times of the next polls move on until an older slot becomes free in time.
        """
        reserved = self._reserved
        pause = self.length / max(reserved, 1)
        moments = [self._newest_poll(now) + pause]
        for due in range(reserved):
            for expiries in self._all_expiries:
                index = bisect_right(expiries, now + due * pause)
                if index < len(expiries):
                    moments.append(expiries[index] - due * pause)
        return min((moment for moment in moments if moment > now), default=math.inf)

    def _freed_by(self, moment: float) -> int:
        return sum(bisect_right(expiries, moment) for expiries in self._all_expiries)

    def _newest_poll(self, now: float) -> float:
        polls = self._external_expiries[Priority.POLL]
        return max(self._last_poll, min(polls[-1] - self.length, now)) if polls else self._last_poll

    # --- slots of other processes ---------------------------------------------------------------

    def set_external(self, usages: Iterable[ExternalUsage]) -> None:
        """Replace what is counted for other processes."""
        usages = tuple(usages)
        expiries = self._external_expiries
        expiries[Priority.SUBMISSION][:] = sorted(at for usage in usages for at in usage.submissions)
        expiries[Priority.POLL][:] = sorted(at for usage in usages for at in usage.polls)
        self._external_submissions_in_flight = sum(usage.submissions_in_flight for usage in usages)
        polls_in_flight = sum(usage.polls_in_flight for usage in usages)
        self._external_in_flight = self._external_submissions_in_flight + polls_in_flight
        self._external_reserve = max((usage.reserve for usage in usages), default=0.0)
        self._update_reserved()

    def mark_full(self, now: float, until: float) -> None:
        """Count all free slots as taken by other processes, until a moment or the next `set_external`."""
        polls = self._external_expiries[Priority.POLL]
        polls[:] = sorted([*polls, *([until] * self.free(now))])


class Cooldown:
    """The pause of all requests after a 429, and the runs of 429s without a success in between.

    There is a run of all requests, and one of each kind of request, since a server may refuse one kind only.

    Args:
        window: Length of the rate limit's window in seconds.
    """

    def __init__(self, window: float) -> None:
        self.window = window
        self.until = -math.inf
        # When the first 429 of the run arrived; None: a request has succeeded since, or there was no 429.
        self.first_429_at: float | None = None
        self._first_429_of: dict[str, float] = {}  # the same for each kind of request that has a run
        self._last_429 = -math.inf
        self._rejections = 0  # 429s of the run of all requests

    def exhausted(self, kind: str = "") -> bool:
        """Return whether all responses of the last five windows were 429, or all to requests of a kind."""
        firsts = (self.first_429_at, self._first_429_of.get(kind))
        longest = max((self._last_429 - first for first in firsts if first is not None), default=-math.inf)
        return longest >= _EXHAUSTED_AFTER * self.window

    def on_success(self, granted_at: float, kind: str = "") -> None:
        """Note a response other than 429 to a request that got its slot at `granted_at`."""
        # A request that was sent before the last 429 says nothing about the time after it.
        if granted_at >= self._last_429:
            self.first_429_at = None
            self._first_429_of.pop(kind, None)

    def on_429(
        self, granted_at: float, now: float, retry_after: float | None, policy: RetryPolicy, kind: str = ""
    ) -> None:
        """Note a 429.

        The pause is what the server asks for, or 1, 2, 4, ... times `policy.base`. From the second 429
        of a run on it is at least `policy.base`, since a server may say `Retry-After: 0` for ever.

        Args:
            granted_at: When the request got its slot.
            now: When the response arrived.
            retry_after: The seconds that the server asks for; None if it asks for none.
            policy: The first and the longest pause.
            kind: Kind of the request.
        """
        if granted_at - self.until > self.window:
            # No request was sent for a whole window, or none was refused: the earlier runs are over.
            self.first_429_at = None
            self._first_429_of.clear()
        self._first_429_of.setdefault(kind, now)
        if self.first_429_at is None:
            self.first_429_at, self._rejections = now, 0
        elif granted_at < self._last_429:
            return  # sent before the last 429: the pause has begun already
        pause = retry_after
        if pause is None:
            jitter = random.uniform(0, 0.5)  # noqa: S311 - spreads load, guards nothing
            pause = policy.base * (2.0 ** min(self._rejections, 30) + jitter)
        elif self._rejections:
            pause = max(pause, policy.base)
        self._rejections += 1
        self._last_429 = now
        self.until = max(self.until, now + min(pause, policy.max_delay))
