"""The request budget: an exact sliding window that submissions and polls share.

A slot taken is free again one window after its answer came: then no delay on the way can make the
server count one more than the limit (the API's section "Every request": 60 requests in any 60 s).
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from typing import TYPE_CHECKING

from ..errors import ConfigurationError, is_number
from .hold import Hold
from .logs import Logs
from .slot import Slot
from .timers import Timers
from .waiting import Queues, Waiter, resolve
from .window import Priority, Window

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._config import RetryPolicy
    from .shared import SlotLog

__all__ = ["RateLimiter", "Slot"]

_LONGEST_WINDOW = 1e9  # seconds


class RateLimiter:
    """The quota as a live object: at most ``limit`` requests in any ``window`` seconds.

    The defaults are the API's own (its section "Every request"): all requests of a key count, GET and POST.
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
        self._queues = Queues()
        self._timers = Timers(self._lock, clock, self._next_tick, self._tick)
        self._logs = Logs(self._lock, clock, self._taken, self._pump)
        self._confirming: set[Waiter] = set()  # granted here, and not yet in the logs

    def __repr__(self) -> str:
        return f"RateLimiter(limit={self.limit}, window={self.window}, used={self.used})"

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
            return sum(map(len, self._queues.values())) + len(self._confirming)

    @property
    def cooldown(self) -> float:
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
            slot = None if any(self._queues.values()) else self._take(priority)
            if slot is not None and not self._logs:
                return slot
            waiter = Waiter(priority, owner, slot)
            if slot is None:
                self._queue(waiter)
            else:
                self._confirming.add(waiter)
        try:
            while True:
                if waiter.slot is None:
                    if on_wait is not None and math.isfinite(waiter.expected):
                        on_wait(waiter.expected)
                    await waiter.future
                assert waiter.slot is not None  # noqa: S101 - the future is resolved with the slot only
                if not self._logs or await self._confirmed(waiter, waiter.slot):
                    return waiter.slot
        except BaseException:
            self._give_up(waiter)
            raise
        finally:
            if self._confirming:
                with self._lock:
                    self._confirming.discard(waiter)

    def _give_up(self, waiter: Waiter) -> None:
        with self._lock:
            slot = waiter.slot
            if slot is None:
                self._queues.discard(waiter)
                self._pump()
        if slot is not None:
            slot.unsent()

    def evict(self, owner: object, error: Exception) -> None:
        """Let those of ``owner`` who wait in this loop for a slot raise ``error``."""
        with self._lock:
            self._queues.evict(owner, error)
            for waiter in self._confirming:
                if waiter.owner is owner:
                    waiter.refuse(error)
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

    # --- one quota with other processes ---------------------------------------------------------

    def attach(self, log: SlotLog) -> None:
        """From now on take each slot in ``log`` too, and count what others have taken there.

        Attached twice, it is to be detached twice.
        """
        self._logs.attach(log)

    def detach(self, log: SlotLog) -> None:
        """Undo one ``attach``; with the last, forget what others have taken there."""
        self._logs.detach(log)

    async def _confirmed(self, waiter: Waiter, slot: Slot) -> bool:
        """Take a slot in the logs too; where they have none, queue again and say so."""
        taken = await self._logs.take(slot, waiter)
        with self._lock:
            now = slot.granted_at = self._clock()
            self._taken.expire(now)
            # What others had taken was not known when it was granted.
            if (
                taken
                and now >= self._hold.until
                and (slot.priority is Priority.POLL or self._taken.left_enough(now))
            ):
                return True
        slot.settle_tickets(None)
        with self._lock:
            self._confirming.discard(waiter)
            self._taken.settle(slot.priority, None)
            waiter.queue_again()
            if not taken:
                # They count what nobody here knows of. Without this it would ask again and again.
                self._taken.fill(now + self._logs.look_every)
            self._queue(waiter)
        return False

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

    def _grantable(self, now: float) -> Waiter | None:
        if not self._open(now):
            return None
        submissions, polls = self._queues[Priority.SUBMISSION], self._queues[Priority.POLL]
        if submissions and self._taken.may_submit(now):
            return submissions[0]
        return polls[0] if polls else None

    def _queue(self, waiter: Waiter) -> None:
        self._queues.add(waiter)
        self._pump()
        now = self._clock()
        waiter.expected = max(self._next_chance(now) - now, 0.0)

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
            if self._logs:
                self._confirming.add(waiter)
            if waiter.loop is here:
                resolve(waiter.future)
                continue
            try:
                waiter.loop.call_soon_threadsafe(resolve, waiter.future)
            except RuntimeError:  # its loop is closed, so nobody will take the slot
                self._taken.settle(slot.priority, None)
                self._confirming.discard(waiter)
        self._timers.set(self._queues.loops(), now, here)

    def _next_chance(self, now: float) -> float:
        """The next moment at which time alone may free a slot; infinity where it can't."""
        if now < self._hold.until:
            return self._hold.until
        if self._queues[Priority.SUBMISSION] and self._taken.free > 0:
            return min(self._taken.next_free, self._taken.next_allowed(now))
        return self._taken.next_free

    def _next_tick(self, now: float) -> float:
        chance = self._next_chance(now)
        return min(chance, self._logs.next_look()) if self._logs else chance

    def _tick(self) -> None:
        with self._lock:
            waiting = self._logs and any(self._queues.values())
            stale = self._logs.stale(self._clock()) if waiting else []
            self._pump()
        self._logs.look(stale)

    # --- settling a slot ------------------------------------------------------------------------

    def settle(self, slot: Slot, extra: float | None, *, ok: bool) -> None:
        """Settle a slot; for its own methods."""
        now = self._clock()
        if slot.tickets:
            slot.settle_tickets(None if extra is None else now + extra + self.window)
        with self._lock:
            self._taken.settle(slot.priority, None if extra is None else now + extra)
            if ok:
                self._hold.passed(slot.granted_at)
            self._pump()

    def reject(self, slot: Slot, retry_after: float | None, policy: RetryPolicy) -> float | None:
        """Hold everybody after a 429; for ``Slot.rejected``."""
        now = self._clock()
        slot.settle_tickets(now + self.window)
        with self._lock:
            self._taken.settle(slot.priority, now)
            seconds = self._hold.rejected(slot.granted_at, now, self.window, retry_after, policy)
            self._pump()
            return seconds

    def absorb(self, other: RateLimiter) -> None:
        """Take over the slots that another budget of the same key and origin still counts."""
        with other._lock, self._lock:
            other._taken.expire(other._clock())
            ahead = self._clock() - other._clock()
            self._taken.absorb(other._taken, ahead)
            self._hold.absorb(other._hold, ahead)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
