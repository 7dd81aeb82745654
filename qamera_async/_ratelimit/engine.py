"""The state behind a rate limiter: the queue of waiting requests, and when each of them gets its slot.

The public face is ``RateLimiter`` in ``limiter``; other packages use ``SessionLimiter``.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import math
import os
import threading
import time
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

from .shared import Attachment
from .window import Cooldown, Priority, Window

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._config import RetryPolicy
    from .shared import ExternalUsage, SharedSlots

_READ_EVERY = 1.0  # seconds between readings of shared slots while a request waits


class Slot:
    """The right to send one request. The first call of one of its methods settles it; later ones do nothing.

    ``granted_at`` is when the request got the slot, in seconds of ``time.monotonic()``.
    """

    __slots__ = ("_engine", "granted_at", "priority", "settled", "shared")

    def __init__(self, engine: Engine, priority: Priority, granted_at: float) -> None:
        self._engine = engine
        self.settled = False
        self.priority = priority
        self.granted_at = granted_at
        self.shared: tuple[tuple[SharedSlots, object], ...] = ()  # its id in each store

    def on_response(self) -> None:
        """Settle after a response other than 429: the slot becomes free one window from now."""
        self._engine.settle(self, 0.0, succeeded=True)

    def on_lost(self, grace: float) -> None:
        """Settle a request that was sent and gets no response.

        Args:
            grace: for how many seconds from now the server may still receive the request.
        """
        self._engine.settle(self, grace)

    def give_back(self) -> None:
        """Settle a request that never left: the slot is free at once."""
        self._engine.settle(self, None)

    def on_429(self, retry_after: float | None, policy: RetryPolicy) -> None:
        """Settle after a 429 and begin a cooldown for all requests of the rate limiter.

        Args:
            retry_after: the seconds that the server asks for; None if it asks for none.
            policy: the first and the longest pause.
        """
        self._engine.on_429(self, retry_after, policy)


class _LoopTimer:
    """The one timer of an event loop whose tasks wait for slots."""

    __slots__ = ("due", "handle", "loop", "waiters")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.waiters = 0
        self.due = math.inf  # kept here, since timer handles of uvloop don't tell it
        self.handle: asyncio.TimerHandle | None = None


class _Waiter:
    """A request that waits for a slot."""

    __slots__ = ("future", "number", "priority", "slot", "timer")

    def __init__(self, number: int, priority: Priority, timer: _LoopTimer) -> None:
        self.number = number
        self.priority = priority
        self.timer = timer
        self.slot: Slot | None = None
        self.future: asyncio.Future[None] = timer.loop.create_future()

    def wait_again(self) -> None:
        """Wait for another slot."""
        self.slot = None
        self.future = self.timer.loop.create_future()


class _Queue:
    """The waiters of one priority in the order in which they arrived. Each operation is O(log n)."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, _Waiter]] = []  # also has waiters that were removed
        self.waiters: dict[int, _Waiter] = {}

    def first(self) -> _Waiter | None:
        """Return the waiter that arrived first."""
        while self._heap and self._heap[0][0] not in self.waiters:
            heapq.heappop(self._heap)
        return self._heap[0][1] if self._heap else None

    def add(self, waiter: _Waiter) -> None:
        """Add a waiter. A waiter that was in the queue before gets its old place again."""
        if len(self._heap) > 2 * len(self.waiters) + 16:
            self._heap = [(number, waiter) for number, waiter in self._heap if number in self.waiters]
            heapq.heapify(self._heap)
        self.waiters[waiter.number] = waiter
        heapq.heappush(self._heap, (waiter.number, waiter))
        waiter.timer.waiters += 1

    def remove(self, waiter: _Waiter) -> None:
        """Remove a waiter, if it is in the queue."""
        if self.waiters.pop(waiter.number, None) is not None:
            waiter.timer.waiters -= 1


class Engine:
    """Grants slots: an exact window, two priorities, one cooldown. Safe across threads.

    Each waiter belongs to the event loop it waits in. No method of a ``SharedSlots`` is called while the lock
    is held, since a store may have a lock of its own.

    Args:
        limit: slots in a window.
        window: length of the window in seconds.
        clock: a monotonic clock in seconds. Tests pass their own one and call ``tick`` after moving it.
    """

    # The clock must stop while the machine is suspended: a request that waits in a network buffer is then no
    # closer to the server, and its slot must not become free.
    def __init__(self, limit: int, window: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._pid = os.getpid()
        # Reentrant: the garbage collector may settle the slot of a coroutine that was never finished.
        self._lock = threading.RLock()
        self._window = Window(limit, window)
        self._cooldown = Cooldown(window)
        self._submissions, self._polls = _Queue(), _Queue()
        self._numbers = count()
        self._timers: dict[asyncio.AbstractEventLoop, _LoopTimer] = {}
        self._next_grant = math.inf  # when time alone may next free a slot, as of the last granting
        self._granting = self._grant_again = False
        self._attachments: list[Attachment] = []
        self._taking: set[_Waiter] = set()  # granted here, and not yet taken in the shared slots
        self._read_every = min(_READ_EVERY, window / 20)

    @property
    def limit(self) -> int:
        """Slots in a window."""
        return self._window.limit

    @property
    def window(self) -> float:
        """Length of the window in seconds."""
        return self._window.length

    @property
    def inherited(self) -> bool:
        """Whether it was made before a fork: then its lock may be held by a thread of the parent process."""
        return self._pid != os.getpid()

    @property
    def used(self) -> int:
        """Slots taken now: requests in flight and those of the last window."""
        with self._lock:
            self._window.expire(self.clock())
            return self._window.used

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot."""
        with self._lock:
            return len(self._submissions.waiters) + len(self._polls.waiters) + len(self._taking)

    @property
    def cooldown(self) -> float:
        """Seconds until the cooldown after a 429 ends; 0 if there is none."""
        return max(0.0, self._cooldown.until - self.clock())

    @property
    def exhausted(self) -> bool:
        """Whether all responses of the last five windows were 429."""
        return self._cooldown.exhausted

    # --- taking a slot ------------------------------------------------------------------------

    def acquire_nowait(self, priority: Priority) -> Slot | None:
        """Return a slot if one is free, no request waits and no store has to be asked; else None."""
        with self._lock:
            if self._attachments or self._submissions.waiters or self._polls.waiters:
                return None
            now = self.clock()
            self._window.expire(now)
            if not self._may_grant(priority, now):
                return None
            self._window.take(priority, now)
            return Slot(self, priority, now)

    async def acquire(self, priority: Priority, on_wait: Callable[[float], None] | None = None) -> Slot:
        """Wait for a slot. Cancelling leaks none.

        Args:
            priority: whether to wait with the submissions or with the polls.
            on_wait: called with a lower bound of the seconds to wait, if no slot is free.
        """
        with self._lock:
            waiter = _Waiter(next(self._numbers), priority, self._timer(asyncio.get_running_loop()))
            expected = self._enqueue(waiter)
        try:
            while True:
                if waiter.slot is None:
                    if on_wait is not None and math.isfinite(expected):
                        on_wait(expected)
                    await waiter.future
                slot = waiter.slot
                assert slot is not None  # noqa: S101 - the future is resolved after the slot is set
                taken = await self._take_shared(slot) if self._attachments else True
                if taken and (not slot.shared or self._may_use(slot)):
                    return slot
                expected = self._enqueue_again(waiter, slot, full=not taken)
        except BaseException:
            self._give_up(waiter)
            raise
        finally:
            if not self.inherited:
                with self._lock:
                    self._taking.discard(waiter)

    def _give_up(self, waiter: _Waiter) -> None:
        if self.inherited:
            return
        with self._lock:
            slot = waiter.slot
            if slot is None:
                self._queue(waiter.priority).remove(waiter)
        if slot is not None:
            slot.give_back()

    def _queue(self, priority: Priority) -> _Queue:
        return self._submissions if priority is Priority.SUBMISSION else self._polls

    def _enqueue(self, waiter: _Waiter) -> float:
        """Queue a waiter, grant what can be granted, and return the least seconds that it will wait."""
        queue = self._queue(waiter.priority)
        queue.add(waiter)
        if queue.first() is waiter:
            self._grant_waiters()
        else:  # what those before it wait for, it waits for as well
            self._set_timer(waiter.timer)
        return max(self._next_grant - self.clock(), 0.0)

    # --- granting (under the lock) --------------------------------------------------------------

    def _may_grant(self, priority: Priority, now: float) -> bool:
        if now < self._cooldown.until or self._window.free <= 0:
            return False
        if self._cooldown.run_began is not None and self._window.in_flight:
            return False  # after a cooldown one request goes first
        return priority is Priority.POLL or self._window.may_submit(now)

    def _next_waiter(self, now: float) -> _Waiter | None:
        for queue, priority in ((self._submissions, Priority.SUBMISSION), (self._polls, Priority.POLL)):
            if queue.waiters and self._may_grant(priority, now):
                return queue.first()
        return None

    def _grant_waiters(self) -> None:
        """Grant all slots that can be granted, and set the timers for the next ones."""
        if self._granting:  # by the garbage collector, in the middle of the loop below
            self._grant_again = True
            return
        if not self._submissions.waiters and not self._polls.waiters:
            return
        self._granting = self._grant_again = True
        try:
            while self._grant_again:
                self._grant_again = False
                now = self.clock()
                self._window.expire(now)
                while (waiter := self._next_waiter(now)) is not None:
                    self._queue(waiter.priority).remove(waiter)
                    self._window.take(waiter.priority, now)
                    self._wake(waiter, Slot(self, waiter.priority, now))
                self._next_grant = self._find_next_grant(now)
        finally:
            self._granting = False
        for timer in self._timers.values():
            if timer.waiters:
                self._set_timer(timer)

    def _wake(self, waiter: _Waiter, slot: Slot) -> None:
        waiter.slot = slot
        if self._attachments:
            self._taking.add(waiter)
        if waiter.timer.loop is _running_loop():
            _resolve(waiter.future)
            return
        try:
            waiter.timer.loop.call_soon_threadsafe(_resolve, waiter.future)
        except RuntimeError:  # its loop is closed
            self._window.settle(slot.priority, None)
            self._taking.discard(waiter)

    def _find_next_grant(self, now: float) -> float:
        if now < self._cooldown.until:
            return self._cooldown.until
        if self._submissions.waiters and self._window.free > 0:
            return min(self._window.next_free, self._window.next_submission(now))
        return self._window.next_free

    # --- timers (under the lock) ------------------------------------------------------------------

    def _timer(self, loop: asyncio.AbstractEventLoop) -> _LoopTimer:
        timer = self._timers.get(loop)
        if timer is None:
            for old in [old for old in self._timers if old.is_closed()]:
                del self._timers[old]
            timer = self._timers[loop] = _LoopTimer(loop)
        return timer

    def _set_timer(self, timer: _LoopTimer) -> None:
        """Let a loop call ``tick`` when something may be due. Each loop has a timer, since any may end."""
        due = self._next_grant
        if self._attachments:
            due = min(due, self._next_reading())
        if due >= timer.due:
            return  # an earlier timer is set already, and sets the next one
        timer.due = due
        if timer.loop is _running_loop():
            self._start_timer(timer)
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                timer.loop.call_soon_threadsafe(self._start_timer, timer)

    def _start_timer(self, timer: _LoopTimer) -> None:
        with self._lock:
            if timer.handle is not None:
                timer.handle.cancel()
                timer.handle = None
            if math.isfinite(timer.due):
                delay = max(timer.due - self.clock(), 0.0)
                timer.handle = timer.loop.call_later(delay, self._on_timer, timer)

    def _on_timer(self, timer: _LoopTimer) -> None:
        with self._lock:
            timer.handle, timer.due = None, math.inf
        self.tick()

    def tick(self) -> None:
        """Do what is due by the clock: grant the slots that became free, read the usage of others."""
        with self._lock:
            stale: list[Attachment] = []
            if self._submissions.waiters or self._polls.waiters:
                now = self.clock()
                stale = [one for one in self._attachments if now >= one.read_at + self._read_every]
                for attachment in stale:
                    attachment.read_at = now
                self._grant_waiters()
        for attachment in stale:
            self._read_usage(attachment)

    # --- settling a slot ------------------------------------------------------------------------

    def settle(self, slot: Slot, counted_for: float | None, *, succeeded: bool = False) -> None:
        """Settle a slot, unless it is settled or belongs to the parent process; for the methods of ``Slot``.

        Args:
            slot: the slot.
            counted_for: how many seconds from now the server may still count the request; None means that
                the request never left.
            succeeded: whether there was a response other than 429.
        """
        if slot.settled or self._pid != os.getpid():
            return
        slot.settled = True
        counted_until = None if counted_for is None else self.clock() + counted_for
        for shared, slot_id in slot.shared:
            shared.settle(slot_id, None if counted_until is None else counted_until + self.window)
        with self._lock:
            self._window.settle(slot.priority, counted_until)
            if succeeded:
                self._cooldown.on_success(slot.granted_at)
            self._grant_waiters()

    def on_429(self, slot: Slot, retry_after: float | None, policy: RetryPolicy) -> None:
        """Begin a cooldown and settle the slot; for ``Slot.on_429``."""
        if slot.settled or self.inherited:
            return
        with self._lock:
            self._cooldown.on_429(slot.granted_at, self.clock(), retry_after, policy)
        self.settle(slot, 0.0)

    # --- polls ------------------------------------------------------------------------------------

    def poll_delay(self, interval: float, stale_after: float) -> float:
        """Return the seconds to pause before the next poll; see ``SessionLimiter.poll_delay``."""
        with self._lock:
            now = self.clock()
            self._window.expire(now)
            if self._submissions.waiters:
                return max(interval, stale_after)
            free, next_free = self._window.free, self._window.next_free
            if math.isinf(next_free):
                return interval
            return max(interval, min((next_free - now) / max(free, 1), stale_after))

    def reserve(self, owner: object, stale_after: float) -> None:
        """Keep slots for the polls of ``owner``: one for each ``stale_after`` seconds of a window."""
        with self._lock:
            self._window.reserve(owner, stale_after)

    def release(self, owner: object) -> None:
        """Undo ``reserve``."""
        with self._lock:
            self._window.release(owner)
            self._grant_waiters()

    # --- one rate limit for several processes -----------------------------------------------------

    def attach(self, slots: SharedSlots) -> None:
        """Take each slot in ``slots`` too from now on. A store attached twice must be detached twice."""
        with self._lock:
            attachment = self._attachment(slots)
            if attachment is None:
                attachment = Attachment(slots, self.clock())
                self._attachments.append(attachment)
            attachment.count += 1
        self._read_usage(attachment)

    def detach(self, slots: SharedSlots) -> None:
        """Undo one ``attach``. The last one forgets the usage of the other processes."""
        with self._lock:
            attachment = self._attachment(slots)
            if attachment is None:
                return
            attachment.count -= 1
            if not attachment.count:
                self._attachments.remove(attachment)
                self._window.set_external(one.usage for one in self._attachments)
                self._grant_waiters()

    def _attachment(self, slots: SharedSlots) -> Attachment | None:
        # By identity: a store need not be hashable.
        return next((one for one in self._attachments if one.slots is slots), None)

    def _next_reading(self) -> float:
        return min(one.read_at for one in self._attachments) + self._read_every

    def _read_usage(self, attachment: Attachment) -> None:
        attachment.slots.fetch_usage(partial(self._on_usage, attachment, next(self._numbers)))

    def _on_usage(self, attachment: Attachment, number: int, usage: ExternalUsage) -> None:
        with self._lock:
            self._update_usage(attachment, number, usage)
            self._grant_waiters()

    def _update_usage(self, attachment: Attachment, number: int, usage: ExternalUsage) -> None:
        attachment.update(number, usage, self.clock())
        self._window.set_external(one.usage for one in self._attachments)

    async def _take_shared(self, slot: Slot) -> bool:
        """Take the slot in each store; return whether each of them had one left.

        Raises:
            Exception: an error of a store.
        """
        while (attachment := self._next_store(slot)) is not None:
            number = next(self._numbers)
            with self._lock:
                reserve = self._window.own_reserve
            try:
                slot_id, usage = await attachment.slots.take(slot.priority, self.limit, self.window, reserve)
            except Exception:
                with self._lock:
                    if attachment in self._attachments:
                        raise
                continue  # detached meanwhile and perhaps closed, so its error concerns no request
            if slot_id is None:
                with self._lock:
                    # Nothing is granted yet: a later request must not get the slot that this one has here.
                    self._update_usage(attachment, number, usage)
                return False
            slot.shared += ((attachment.slots, slot_id),)
            self._on_usage(attachment, number, usage)
        return True

    def _may_use(self, slot: Slot) -> bool:
        """Return whether a slot that was taken in the stores may still be used."""
        with self._lock:
            now = slot.granted_at = self.clock()
            self._window.expire(now)
            # A cooldown may have begun, and the usage of others was not known when the slot was granted.
            return now >= self._cooldown.until and (
                slot.priority is Priority.POLL or self._window.may_keep_submitting(now)
            )

    def _next_store(self, slot: Slot) -> Attachment | None:
        with self._lock:
            taken = {id(shared) for shared, _ in slot.shared}
            return next((one for one in self._attachments if id(one.slots) not in taken), None)

    def _enqueue_again(self, waiter: _Waiter, slot: Slot, *, full: bool) -> float:
        """Return a slot that can't be used now, and put its waiter back at its old place in the queue."""
        for shared, slot_id in slot.shared:
            shared.settle(slot_id, None)
        with self._lock:
            self._taking.discard(waiter)
            self._window.settle(slot.priority, None)
            waiter.wait_again()
            if full:  # the usage of the store may not show why: ask again after a pause
                self._window.assume_full(self.clock() + self._read_every)
            return self._enqueue(waiter)

    # --- replacing an engine ----------------------------------------------------------------------

    def take_over(self, other: Engine, *, move: bool) -> None:
        """Count the slots that another engine of the same key counts, and continue its cooldown.

        Args:
            other: the other engine.
            move: whether ``other`` stops counting them.
        """
        with other._lock, self._lock:
            other._window.expire(other.clock())
            shift = self.clock() - other.clock()
            self._window.copy_settled(other._window, shift)
            self._cooldown.copy(other._cooldown, shift)
            if move:
                other._window.forget_settled()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
