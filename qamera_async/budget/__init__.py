"""The request budget: an exact sliding window that submissions and polls share.

A slot taken is free again one window after its answer came: then no delay on the way can make the
server count one more than the limit (the API's section "Every request": 60 requests in any 60 s).
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import math
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from ..errors import ConfigurationError
from ..policies import is_number
from .hold import Hold
from .window import Priority, Window

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..policies import RetryPolicy


_LONGEST_WINDOW = 1e9  # seconds


class Slot:
    """The right to send one request, until it is settled by one of its methods."""

    __slots__ = ("_budget", "_settled", "granted_at", "priority")

    def __init__(self, budget: RequestBudget, priority: Priority, granted_at: float) -> None:
        self._budget = budget
        self._settled = False
        self.priority = priority
        self.granted_at = granted_at

    def answered(self) -> None:
        """The server answered: the slot is free one window from now."""
        self._settle(0.0, ok=True)

    def cut_off(self, extra: float) -> None:
        """No answer will come: the server may count the request up to ``extra`` seconds from now."""
        self._settle(extra, ok=False)

    def unsent(self) -> None:
        """The request never left: the slot is free at once."""
        self._settle(None, ok=False)

    def _settle(self, extra: float | None, *, ok: bool) -> None:
        if not self._settled:
            self._settled = True
            self._budget.settle(self, extra, ok=ok)

    def rejected(self, retry_after: float | None, policy: RetryPolicy) -> float | None:
        """The server said 429: hold everybody.

        Returns:
            The seconds to hold, or None where this has gone on for five windows.
        """
        self._settled = True
        return self._budget.reject(self, retry_after, policy)


class _Waiter:
    __slots__ = ("future", "loop", "owner", "priority", "slot")

    def __init__(self, priority: Priority, owner: object) -> None:
        self.priority = priority
        self.owner = owner
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[None] = self.loop.create_future()
        self.slot: Slot | None = None


class RequestBudget:
    """The quota as a live object: at most ``limit`` requests in any ``window`` seconds.

    Sessions of one process with the same key and origin share one by themselves; pass one to several
    sessions to share it on purpose. Safe across threads; who waits belongs to an event loop.

    Args:
        limit: requests in a window, at least 1.
        window: length of the window in seconds.
        clock: a monotonic clock in seconds; replaceable in tests.

    Raises:
        ConfigurationError: a limit or window that is none.
    """

    def __init__(
        self, limit: int = 60, window: float = 60.0, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if type(limit) is not int or limit < 1:
            raise ConfigurationError(f"limit: got {limit!r}, allowed is a whole number of at least 1")
        if not is_number(window) or not 0 < window <= _LONGEST_WINDOW:
            raise ConfigurationError(
                f"window: got {window!r}, allowed are seconds above 0, at most {_LONGEST_WINDOW:g}"
            )
        self._clock = clock
        self._lock = threading.RLock()
        self._taken = Window(limit, float(window))
        self._hold = Hold()
        self._queues: dict[Priority, deque[_Waiter]] = {priority: deque() for priority in Priority}
        self._timers: dict[asyncio.AbstractEventLoop, asyncio.TimerHandle] = {}

    def __repr__(self) -> str:
        return f"RequestBudget(limit={self.limit}, window={self.window}, used={self.used})"

    @property
    def limit(self) -> int:
        """Requests allowed in one window."""
        return self._taken.limit

    @property
    def window(self) -> float:
        """Length of the window in seconds."""
        return self._taken.length

    @property
    def used(self) -> int:
        """Slots taken at this moment: requests under way and those of the last window."""
        with self._lock:
            self._taken.expire(self._clock())
            return self._taken.used

    @property
    def waiting(self) -> int:
        """How many requests wait for a slot."""
        with self._lock:
            return sum(map(len, self._queues.values()))

    @property
    def held_for(self) -> float:
        """Seconds until the hold after a 429 ends; 0 where there is none."""
        return max(0.0, self._hold.until - self._clock())

    # --- taking a slot ------------------------------------------------------------------------

    async def acquire(
        self, priority: Priority, on_wait: Callable[[float], None] | None = None, owner: object = None
    ) -> Slot:
        """Wait for a slot; submissions go first. Cancelling leaks none.

        Args:
            priority: whose slot it is.
            on_wait: called with a lower bound of the seconds to wait where there is no slot at once.
            owner: who may ``evict`` it.
        """
        with self._lock:
            if not any(self._queues.values()):
                slot = self._take(priority)
                if slot is not None:
                    return slot
            waiter = _Waiter(priority, owner)
            self._queues[priority].append(waiter)
            self._pump()
            if waiter.slot is not None:
                return waiter.slot
            expected = max(self._next_chance(self._clock()) - self._clock(), 0.0)
        try:
            if on_wait is not None and math.isfinite(expected):
                on_wait(expected)
            await waiter.future
        except BaseException:
            with self._lock:
                if waiter.slot is not None:
                    waiter.slot.unsent()
                elif waiter in self._queues[priority]:
                    self._queues[priority].remove(waiter)
                    self._pump()
            raise
        assert waiter.slot is not None  # noqa: S101 - the future is resolved with the slot only
        return waiter.slot

    def evict(self, owner: object, error: Exception) -> None:
        """Let those of ``owner`` who wait in this loop for a slot raise ``error``."""
        with self._lock:
            for priority, queue in self._queues.items():
                self._queues[priority] = deque(waiter for waiter in queue if waiter.owner is not owner)
                for waiter in queue:
                    if waiter.owner is owner and not waiter.future.done():
                        waiter.future.set_exception(copy.copy(error))
            self._pump()

    def pace(self, interval: float, stale_after: float) -> float:
        """Give the seconds to pause before the next poll, so that polls spread what is left.

        Args:
            interval: the pause with slots to spare, in seconds.
            stale_after: the longest pause that the quota may cause, in seconds.
        """
        with self._lock:
            now = self._clock()
            self._taken.expire(now)
            if self._queues[Priority.SUBMISSION]:
                return max(interval, stale_after)
            free, next_free = self._taken.free, self._taken.next_free
            if math.isinf(next_free):
                return interval
            return max(interval, min((next_free - now) / max(free, 1), stale_after))

    def reserve(self, owner: object, stale_after: float) -> None:
        """From now on leave slots to the polls of ``owner``: one for each ``stale_after`` seconds."""
        with self._lock:
            self._taken.reserve(owner, stale_after)

    def release(self, owner: object) -> None:
        """Take back what ``owner`` had reserved."""
        with self._lock:
            self._taken.release(owner)
            self._pump()

    # --- granting (all of it under the lock) ----------------------------------------------------

    def _open(self, now: float) -> bool:
        """Whether there is a slot at all."""
        if now < self._hold.until or self._taken.free <= 0:
            return False
        # After a hold one request probes, before the rest.
        return not (self._hold.probing and self._taken.under_way)

    def _take(self, priority: Priority) -> Slot | None:
        """Give a slot to who needn't queue; None where there is none."""
        now = self._clock()
        self._taken.expire(now)
        if not self._open(now) or (priority is Priority.SUBMISSION and not self._taken.may_submit(now)):
            return None
        return self._grant(priority, now)

    def _grant(self, priority: Priority, now: float) -> Slot:
        self._taken.take(priority, now)
        return Slot(self, priority, now)

    def _grantable(self, now: float) -> _Waiter | None:
        if not self._open(now):
            return None
        submissions, polls = self._queues[Priority.SUBMISSION], self._queues[Priority.POLL]
        if submissions and self._taken.may_submit(now):
            return submissions[0]
        return polls[0] if polls else None

    def _pump(self) -> None:
        """Grant what can be granted; see to it that somebody comes back when more can be."""
        if not any(self._queues.values()):
            return
        now = self._clock()
        here = _running_loop()
        self._taken.expire(now)
        while (waiter := self._grantable(now)) is not None:
            self._queues[waiter.priority].popleft()
            slot = waiter.slot = self._grant(waiter.priority, now)
            if waiter.loop is here:
                _resolve(waiter.future)
                continue
            try:
                waiter.loop.call_soon_threadsafe(_resolve, waiter.future)
            except RuntimeError:  # its loop is closed, so nobody will take the slot
                self._taken.settle(slot.priority, None)
        self._set_timers(now, here)

    def _next_chance(self, now: float) -> float:
        """The next moment at which time alone may free a slot; infinity where it can't."""
        if now < self._hold.until:
            return self._hold.until
        if self._queues[Priority.SUBMISSION] and self._taken.free > 0:
            return min(self._taken.next_free, self._taken.next_allowed(now))
        return self._taken.next_free

    def _set_timers(self, now: float, here: asyncio.AbstractEventLoop | None) -> None:
        chance = self._next_chance(now)
        if not math.isfinite(chance):
            return
        self._timers = {loop: timer for loop, timer in self._timers.items() if not loop.is_closed()}
        # Every loop that has a waiter keeps a timer of its own, since any of them may end.
        for loop in {waiter.loop for queue in self._queues.values() for waiter in queue}:
            if loop is here:
                self._set_timer(loop)
            else:
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(self._set_timer, loop)

    def _set_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            now = self._clock()
            chance = self._next_chance(now)
            old = self._timers.get(loop)
            if not math.isfinite(chance):
                return
            if old is not None:
                if old.when() <= loop.time() + (chance - now):
                    return  # it comes early enough, and sets the next one
                old.cancel()
            self._timers[loop] = loop.call_later(max(chance - now, 0.0), self._tick, loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            self._timers.pop(loop, None)
            self._pump()

    # --- settling a slot ------------------------------------------------------------------------

    def settle(self, slot: Slot, extra: float | None, *, ok: bool) -> None:
        """Settle a slot; for its own methods."""
        with self._lock:
            self._taken.settle(slot.priority, None if extra is None else self._clock() + extra)
            if ok:
                self._hold.passed(slot.granted_at)
            self._pump()

    def reject(self, slot: Slot, retry_after: float | None, policy: RetryPolicy) -> float | None:
        """Hold everybody after a 429; for ``Slot.rejected``."""
        with self._lock:
            now = self._clock()
            self._taken.settle(slot.priority, now)
            seconds = self._hold.rejected(slot.granted_at, now, self.window, retry_after, policy)
            self._pump()
            return seconds

    def absorb(self, other: RequestBudget) -> None:
        """Take over the slots that another budget of the same key and origin still counts."""
        with other._lock, self._lock:
            other._taken.expire(other._clock())
            ahead = self._clock() - other._clock()
            self._taken.absorb(other._taken, ahead)
            self._hold.absorb(other._hold, ahead)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
