"""The sliding window: which slots are taken, and what submissions leave to the polls. No clock, no loop."""

from __future__ import annotations

import enum
import math
from bisect import bisect_right, insort
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .shared import Elsewhere


class Priority(enum.Enum):
    """Who goes first when a slot is free."""

    SUBMISSION = "submission"
    POLL = "poll"


class Window:
    """At most ``limit`` slots in any ``length`` seconds; each moment is the caller's, in seconds."""

    def __init__(self, limit: int, length: float) -> None:
        self.limit = limit
        self.length = length
        # When each settled slot is free again, sorted; and how many requests are not settled.
        self._expiries: dict[Priority, list[float]] = {priority: [] for priority in Priority}
        self.under_way = 0
        self._submitting = 0
        # The same of other processes that keep one quota with this one.
        self._theirs: dict[Priority, list[float]] = {priority: [] for priority in Priority}
        self._their_used = 0
        self._their_submitting = 0
        self._their_polling = 0
        self._their_reserve = 0.0
        self._lists = (*self._expiries.values(), *self._theirs.values())
        self._reserves: dict[object, float] = {}
        self._reserved = 0  # what all come to, since each request asks for it
        self._last_poll = -math.inf

    def expire(self, now: float) -> None:
        """Forget the slots that are free by ``now``; to be called before anything is asked."""
        for expiries in self._expiries.values():
            if expiries and expiries[0] <= now:
                del expiries[: bisect_right(expiries, now)]
        if self._their_used:
            for expiries in self._theirs.values():
                del expiries[: bisect_right(expiries, now)]
            self._count_theirs()

    @property
    def used(self) -> int:
        """How many slots are taken."""
        polls, submissions = self._expiries.values()
        return len(polls) + len(submissions) + self.under_way + self._their_used

    @property
    def free(self) -> int:
        """How many slots are left."""
        return self.limit - self.used

    @property
    def next_free(self) -> float:
        """When time alone will next free a slot; infinity where it won't."""
        return min((expiries[0] for expiries in self._lists if expiries), default=math.inf)

    def take(self, priority: Priority, now: float) -> None:
        """Take a slot for a request that is now under way."""
        self.under_way += 1
        if priority is Priority.POLL:
            self._last_poll = now
        else:
            self._submitting += 1

    def settle(self, priority: Priority, counted_until: float | None) -> None:
        """Settle a slot.

        Args:
            priority: whose it was.
            counted_until: the last moment at which the server may have counted the request; None means
                never.
        """
        self.under_way -= 1
        if priority is Priority.SUBMISSION:
            self._submitting -= 1
        if counted_until is not None:
            insort(self._expiries[priority], counted_until + self.length)

    def reserve(self, owner: object, stale_after: float) -> None:
        """From now on leave slots to the polls of ``owner``: one for each ``stale_after`` seconds."""
        self._reserves[owner] = min(self.length / stale_after, self.limit // 2)
        self._add_up()

    def release(self, owner: object) -> None:
        """Take back what ``owner`` had reserved."""
        self._reserves.pop(owner, None)
        self._add_up()

    @property
    def reserved_here(self) -> float:
        """How many slots of a window the owners here have reserved."""
        return float(sum(self._reserves.values()))

    def _add_up(self) -> None:
        # Who keeps one quota shares one poll, too: whoever polls, polls for all.
        self._reserved = min(math.ceil(max(self.reserved_here, self._their_reserve)), self.limit // 2)

    def may_submit(self, now: float) -> bool:
        """Whether a submission leaves the polls what is theirs.

        One slot for each poll that is due within the window, unless an older slot is free by then.
        """
        reserved = self._reserved
        free = self.free - 1
        if free >= reserved:
            return True
        submissions = self._submitting + len(self._expiries[Priority.SUBMISSION])
        submissions += self._their_submitting + len(self._theirs[Priority.SUBMISSION])
        if submissions >= self.limit - reserved:
            return False
        pause = self.length / reserved
        last = max(self._last_poll_of_all(now), now - pause)
        return all(free + self._freed_by(last + due * pause) >= due for due in range(1, reserved + 1))

    def left_enough(self, now: float) -> bool:
        """Whether a submission that has its slot already leaves the polls what is theirs."""
        if not self._reserved:
            return True
        self.under_way -= 1
        self._submitting -= 1
        may_submit = self.may_submit(now)
        self.under_way += 1
        self._submitting += 1
        return may_submit

    def next_allowed(self, now: float) -> float:
        """When time alone may next let a submission pass that polls to come are holding up.

        Without polls, those to come move on, until an older slot is free in time for them.
        """
        reserved = self._reserved
        pause = self.length / max(reserved, 1)
        moments = [self._last_poll_of_all(now) + pause]
        for due in range(reserved):
            for expiries in self._lists:
                place = bisect_right(expiries, now + due * pause)
                if place < len(expiries):
                    moments.append(expiries[place] - due * pause)
        return min((moment for moment in moments if moment > now), default=math.inf)

    def _freed_by(self, moment: float) -> int:
        return sum(bisect_right(expiries, moment) for expiries in self._lists)

    def _last_poll_of_all(self, now: float) -> float:
        polls = self._theirs[Priority.POLL]
        return max(self._last_poll, min(polls[-1] - self.length, now)) if polls else self._last_poll

    # --- what other processes take --------------------------------------------------------------

    def count_elsewhere(self, looks: Iterable[Elsewhere]) -> None:
        """From now on count what others have taken, and nothing else of theirs."""
        looks = tuple(looks)
        self._theirs[Priority.SUBMISSION][:] = sorted(at for look in looks for at in look.submissions)
        self._theirs[Priority.POLL][:] = sorted(at for look in looks for at in look.polls)
        self._their_submitting = sum(look.submitting for look in looks)
        self._their_polling = sum(look.polling for look in looks)
        self._their_reserve = max((look.reserve for look in looks), default=0.0)
        self._count_theirs()
        self._add_up()

    def _count_theirs(self) -> None:
        self._their_used = self._their_submitting + self._their_polling + sum(map(len, self._theirs.values()))

    def fill(self, until: float) -> None:
        """Count what is free as taken by others, until a moment or until more is known of them."""
        polls = self._theirs[Priority.POLL]
        polls[:] = sorted([*polls, *([until] * self.free)])
        self._count_theirs()

    def absorb(self, other: Window, shift: float) -> None:
        """Take over the slots that another window still counts; its clock is ``shift`` seconds behind."""
        for priority, expiries in other._expiries.items():
            own = self._expiries[priority]
            own[:] = sorted([*own, *(at + shift for at in expiries)])
            expiries.clear()  # they are counted here now, and once only
