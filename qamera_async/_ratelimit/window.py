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
    """The order in which waiting requests get a slot: submissions first."""

    SUBMISSION = "submission"
    POLL = "poll"


class Window:
    """At most ``limit`` requests in any ``length`` seconds, counted at the server.

    A slot is taken before its request is sent and settled when the response has arrived. It becomes free
    one window after that. So no delay in the network can make the server count one request too many.

    Args:
        limit: slots in a window.
        length: length of the window in seconds.
    """

    def __init__(self, limit: int, length: float) -> None:
        self.limit = limit
        self.length = length
        self.in_flight = 0  # slots taken and not settled
        self._submissions_in_flight = 0
        # When each settled slot becomes free, sorted.
        self._expiries: dict[Priority, list[float]] = {priority: [] for priority in Priority}
        # The same for other processes that share the rate limit.
        self._external_expiries: dict[Priority, list[float]] = {priority: [] for priority in Priority}
        self._external_in_flight = 0
        self._external_submissions_in_flight = 0
        self._external_used = 0
        self._external_reserve = 0.0
        self._all_expiries = (*self._expiries.values(), *self._external_expiries.values())
        self._reserves: dict[object, float] = {}
        self.own_reserve = 0.0  # slots of a window that the sessions of this process keep for polls
        self._reserved = 0  # slots of each window that are kept for polls, by all processes
        self._last_poll = -math.inf

    def expire(self, now: float) -> None:
        """Drop the slots that are free by ``now``. Call this before any of the questions below."""
        for expiries in self._expiries.values():
            if expiries and expiries[0] <= now:
                del expiries[: bisect_right(expiries, now)]
        if self._external_used:
            for expiries in self._external_expiries.values():
                del expiries[: bisect_right(expiries, now)]
            self._count_external()

    @property
    def used(self) -> int:
        """Slots that are taken: requests in flight and those of the last window."""
        return self.limit - self.free

    @property
    def free(self) -> int:
        """Slots that are left; negative if other processes were not known when slots were taken."""
        submissions, polls = self._expiries.values()
        return self.limit - self.in_flight - len(submissions) - len(polls) - self._external_used

    @property
    def next_free(self) -> float:
        """When the next slot becomes free by time alone; infinity if none does."""
        return min((expiries[0] for expiries in self._all_expiries if expiries), default=math.inf)

    def take(self, priority: Priority, now: float) -> None:
        """Take a slot for a request that is in flight from now on."""
        self.in_flight += 1
        if priority is Priority.POLL:
            self._last_poll = now
        else:
            self._submissions_in_flight += 1

    def settle(self, priority: Priority, counted_until: float | None) -> None:
        """Settle a slot.

        Args:
            priority: priority of the request.
            counted_until: the last moment at which the server may have counted the request; None means
                that the request never left, and the slot is free at once.
        """
        self.in_flight -= 1
        if priority is Priority.SUBMISSION:
            self._submissions_in_flight -= 1
        if counted_until is not None:
            insort(self._expiries[priority], counted_until + self.length)

    # --- slots kept for polls -------------------------------------------------------------------

    def reserve(self, owner: object, stale_after: float) -> None:
        """Keep slots for the polls of ``owner``: one for each ``stale_after`` seconds of a window."""
        self._reserves[owner] = min(self.length / stale_after, self.limit // 2)
        self._update_reserved()

    def release(self, owner: object) -> None:
        """Undo ``reserve``."""
        self._reserves.pop(owner, None)
        self._update_reserved()

    def _update_reserved(self) -> None:
        self.own_reserve = float(sum(self._reserves.values()))
        # Processes that share the rate limit share one poll too: whichever process polls, polls for all.
        self._reserved = min(math.ceil(max(self.own_reserve, self._external_reserve)), self.limit // 2)

    def may_submit(self, now: float) -> bool:
        """Return whether a submission now leaves enough slots for the polls of the next window.

        A poll is due every ``length / reserved`` seconds. For each of them there must be a slot: one that
        is free now, or one that becomes free by then.
        """
        reserved = self._reserved
        free = self.free - 1
        if free >= reserved:
            return True
        submissions = self._submissions_in_flight + len(self._expiries[Priority.SUBMISSION])
        submissions += self._external_submissions_in_flight
        submissions += len(self._external_expiries[Priority.SUBMISSION])
        if submissions >= self.limit - reserved:
            return False
        pause = self.length / reserved
        last = max(self._newest_poll(now), now - pause)
        return all(free + self._freed_by(last + due * pause) >= due for due in range(1, reserved + 1))

    def may_keep_submitting(self, now: float) -> bool:
        """Return whether a submission that has taken its slot already leaves enough slots for polls."""
        if not self._reserved:
            return True
        self.in_flight -= 1
        self._submissions_in_flight -= 1
        may_submit = self.may_submit(now)
        self.in_flight += 1
        self._submissions_in_flight += 1
        return may_submit

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
        self._count_external()
        self._update_reserved()

    def assume_full(self, until: float) -> None:
        """Count all free slots as taken by other processes, until a moment or the next ``set_external``."""
        polls = self._external_expiries[Priority.POLL]
        polls[:] = sorted([*polls, *([until] * self.free)])
        self._count_external()

    def _count_external(self) -> None:
        settled = sum(map(len, self._external_expiries.values()))
        self._external_used = self._external_in_flight + settled

    # --- replacing a window ---------------------------------------------------------------------

    def copy_settled(self, other: Window, shift: float) -> None:
        """Count the settled slots of another window too.

        Args:
            other: the other window.
            shift: what to add to a moment of its clock to get a moment of this one's, in seconds.
        """
        for priority, expiries in self._expiries.items():
            added = [at + shift for at in other._expiries[priority]]
            expiries[:] = sorted([*expiries, *added])

    def forget_settled(self) -> None:
        """Stop counting the settled slots: another window counts them."""
        for expiries in self._expiries.values():
            expiries.clear()


class Cooldown:
    """The pause of all requests after a 429, and the run of 429s without a success in between.

    Args:
        window: length of the rate limit's window in seconds.
    """

    def __init__(self, window: float) -> None:
        self.until = -math.inf
        self._window = window
        # When the first 429 of the run arrived; None: a request has succeeded since, or there was no 429.
        self.run_began: float | None = None
        self._last_429 = -math.inf
        self._rejections = 0  # 429s of the run

    @property
    def exhausted(self) -> bool:
        """Whether all responses of the last five windows were 429."""
        began = self.run_began
        return began is not None and self._last_429 - began >= _EXHAUSTED_AFTER * self._window

    def on_success(self, granted_at: float) -> None:
        """Note a response other than 429 to a request that got its slot at ``granted_at``."""
        # A request that was sent before the last 429 says nothing about the time after it.
        if granted_at >= self._last_429:
            self.run_began = None

    def on_429(self, granted_at: float, now: float, retry_after: float | None, policy: RetryPolicy) -> None:
        """Note a 429.

        The pause is what the server asks for, or 1, 2, 4, ... times ``policy.base``. From the second 429
        of a run on it is at least ``policy.base``, since a server may say ``Retry-After: 0`` for ever.

        Args:
            granted_at: when the request got its slot.
            now: when the response arrived.
            retry_after: the seconds that the server asks for; None if it asks for none.
            policy: the first and the longest pause.
        """
        if self.run_began is None or granted_at - self.until > self._window:
            # No request was sent for a whole window: the earlier run is over.
            self.run_began, self._rejections = now, 0
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

    def copy(self, other: Cooldown, shift: float) -> None:
        """Take over another cooldown if it lasts longer; ``shift`` as for ``Window.copy_settled``."""
        if other.run_began is not None and other.until + shift > self.until:
            self.until, self._last_429 = other.until + shift, other._last_429 + shift
            self.run_began, self._rejections = other.run_began + shift, other._rejections
