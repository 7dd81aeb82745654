"""The state that the sessions of a key and origin share: which requests wait, and when each gets its slot.

The public face is `RateLimiter` in `limiter`; other packages use `SessionLimiter`.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import math
import threading
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

import attrs

from .shared import AttachedStore
from .window import Cooldown, Priority, Window

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._config import RetryPolicy
    from .shared import ExternalUsage, SharedSlots

    _Refusal = tuple[float | None, RetryPolicy]

_READ_EVERY = 1.0  # seconds between readings of shared slots while a request waits


@attrs.define(eq=False, repr=False)
class Slot:
    """The right to send one request. The first call of one of its methods settles it; later ones do nothing.

    Attributes:
        priority: Priority of the request.
        kind: Kind of the request.
        granted_at: When the request got the slot, in seconds of `time.monotonic()`.
        settled: Whether the slot is settled.
        shared: Its id in each store of slots that processes share.
    """

    _engine: Engine
    priority: Priority
    kind: str
    granted_at: float
    settled: bool = False
    shared: dict[AttachedStore, object] = attrs.field(factory=dict[AttachedStore, object])

    @property
    def exhausted(self) -> bool:
        """Whether all responses of the last five windows were 429, or all to requests of this kind."""
        return self._engine.cooldown.exhausted(self.kind)

    def on_response(self) -> None:
        """Settle after a response other than 429: the slot becomes free one window from now."""
        self._engine.settle(self, 0.0, succeeded=True)

    def on_lost(self, grace: float) -> None:
        """Settle a request that was sent and gets no response.

        Args:
            grace: For how many seconds from now the server may still receive the request.
        """
        self._engine.settle(self, grace)

    def give_back(self) -> None:
        """Settle a request that never left: the slot is free at once."""
        self._engine.settle(self, None)

    def on_429(self, retry_after: float | None, policy: RetryPolicy) -> None:
        """Settle after a 429 and begin a cooldown for all requests of the rate limiter.

        Args:
            retry_after: The seconds that the server asks for; None if it asks for none.
            policy: The first and the longest pause.
        """
        self._engine.settle(self, 0.0, (retry_after, policy))


@attrs.define(eq=False)
class _QueuedRequest:
    """A request that waits for a slot. Its future is resolved after its slot is set."""

    number: int
    priority: Priority
    kind: str
    loop: asyncio.AbstractEventLoop
    slot: Slot | None = None
    future: asyncio.Future[None] = attrs.field(init=False)


class _Queue:
    """The queued requests of one priority in the order of their numbers. Each operation is O(log n)."""

    def __init__(self) -> None:
        self.requests: dict[int, _QueuedRequest] = {}
        self._order: list[int] = []  # a heap of numbers; those of removed requests are dropped later

    def first(self) -> _QueuedRequest | None:
        """Return the request with the lowest number."""
        while self._order and self._order[0] not in self.requests:
            heapq.heappop(self._order)
        return self.requests[self._order[0]] if self._order else None

    def add(self, request: _QueuedRequest) -> None:
        """Add a request. A request that was in the queue before gets its old place again."""
        if len(self._order) > 2 * len(self.requests) + 16:
            self._order = sorted(self.requests)
        self.requests[request.number] = request
        heapq.heappush(self._order, request.number)

    def remove(self, request: _QueuedRequest) -> None:
        """Remove a request, if it is in the queue."""
        self.requests.pop(request.number, None)


class Engine:
    """Grants slots: an exact window, two priorities, one cooldown. Safe across threads.

    Each queued request belongs to the event loop that it waits in. No method of a `SharedSlots` is called
    while the lock is held, since a store may have a lock of its own.

    Args:
        limit: Slots in a window.
        length: Length of the window in seconds.
        clock: A monotonic clock in seconds. Tests pass their own one and call `tick` after moving it.

    Attributes:
        sessions: The open sessions that use it.
        from_parent_process: Whether it was made before a fork. Then a thread of the parent process may hold
            its lock, and its slots belong to the parent process.
        lock: Protects `window`, `cooldown` and `queues`.
        waiting: The requests that wait for a slot here or in a store.
    """

    # The clock must stop while the machine is suspended: a request that waits in a network buffer is then no
    # closer to the server, and its slot must not become free.
    def __init__(self, limit: int, length: float, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.sessions: set[object] = set()
        self.from_parent_process = False
        # Reentrant: the garbage collector may settle the slot of a coroutine that was never finished.
        self.lock = threading.RLock()
        self.window = Window(limit, length)
        self.cooldown = Cooldown(length)
        self.queues = {priority: _Queue() for priority in Priority}
        self.waiting: set[_QueuedRequest] = set()
        self._numbers = count()
        self._timers: dict[asyncio.AbstractEventLoop, float] = {}  # when the next timer of each loop fires
        self._next_grant = math.inf  # when time alone may next free a slot, as of the last granting
        self._granting = self._grant_again = False
        self._stores: dict[int, AttachedStore] = {}  # by identity, since a store need not be hashable

    @property
    def used(self) -> int:
        """Slots taken now: requests in flight and those of the last window."""
        with self.lock:
            return self.window.limit - self.window.free(self.clock())

    @property
    def cooldown_left(self) -> float:
        """Seconds until the cooldown after a 429 ends; 0 if there is none."""
        return max(0.0, self.cooldown.until - self.clock())

    def resize(self, limit: int, length: float) -> None:
        """Change the numbers of the rate limit, while no session is open."""
        with self.lock:
            self.window.resize(limit, length)
            self.cooldown.window = length

    # --- taking a slot ------------------------------------------------------------------------

    def take_free_slot(self, priority: Priority, kind: str) -> Slot | None:
        """Return a slot if one is free, no request waits and no store has to be asked; else None."""
        with self.lock:
            now = self.clock()
            if self.waiting or self._stores or not self._may_grant(priority, now):
                return None
            self.window.take(priority, now)
            return Slot(self, priority, kind, now)

    async def wait_for_slot(
        self, priority: Priority, kind: str, on_wait: Callable[[float], None] | None
    ) -> Slot:
        """Wait for a slot; see `SessionLimiter.acquire`. Cancelling leaks none."""
        request = _QueuedRequest(next(self._numbers), priority, kind, asyncio.get_running_loop())
        try:
            while True:
                seconds = self._enqueue(request)
                if request.slot is None:
                    if on_wait is not None and math.isfinite(seconds):
                        on_wait(seconds)
                    await request.future
                slot = request.slot
                assert slot is not None  # noqa: S101 - the future is resolved after the slot is set
                taken = await self._take_shared(slot)
                if taken and (not slot.shared or self._still_allowed(slot)):
                    return slot
                self._take_back(slot, full=not taken)
        except BaseException:
            if not self.from_parent_process:
                with self.lock:
                    self.queues[priority].remove(request)
                if request.slot is not None:
                    request.slot.give_back()
            raise
        finally:
            self.waiting.discard(request)

    def _enqueue(self, request: _QueuedRequest) -> float:
        """Queue a request, grant what can be granted, and return the least seconds that it will wait."""
        with self.lock:
            request.slot, request.future = None, request.loop.create_future()
            self.waiting.add(request)
            if request.loop not in self._timers:
                self._timers = {loop: due for loop, due in self._timers.items() if not loop.is_closed()}
                self._timers[request.loop] = math.inf
                self._set_timer(request.loop)
            queue = self.queues[request.priority]
            queue.add(request)
            if queue.first() is request:  # otherwise it waits for the same as the requests before it
                self.grant_queued()
            return max(self._next_grant - self.clock(), 0.0)

    # --- granting (under the lock) --------------------------------------------------------------

    def _may_grant(self, priority: Priority, now: float) -> bool:
        if now < self.cooldown.until or self.window.free(now) <= 0:
            return False
        if self.cooldown.first_429_at is not None and self.window.in_flight:
            return False  # after a cooldown one request goes first
        return priority is Priority.POLL or self.window.may_submit(now)

    def _next_request(self, now: float) -> _QueuedRequest | None:
        """Return the request that gets a slot now. Submissions are served first.

        Slots reserved for polls are not given to submissions. Of the requests that go first after cooldowns,
        every other one is a poll while a poll waits. Otherwise a submission that is refused each time would
        stop the polls.
        """
        order = [Priority.SUBMISSION, Priority.POLL]
        if self.cooldown.first_429_at is not None and self.window.last_taken is Priority.SUBMISSION:
            order.reverse()
        for priority in order:
            request = self.queues[priority].first()
            if request is not None and self._may_grant(priority, now):
                return request
        return None

    def grant_queued(self) -> None:
        """Grant all slots that can be granted, and set the timers for the next ones."""
        if self._granting:  # by the garbage collector, in the middle of the loop below
            self._grant_again = True
            return
        if not self.waiting:
            return
        self._granting = self._grant_again = True
        try:
            while self._grant_again:
                self._grant_again = False
                now = self.clock()
                while (request := self._next_request(now)) is not None:
                    self.queues[request.priority].remove(request)
                    self.window.take(request.priority, now)
                    self._wake(request, Slot(self, request.priority, request.kind, now))
                self._next_grant = self._find_next_grant(now)
        finally:
            self._granting = False
        for loop in self._timers:
            self._set_timer(loop)

    def _wake(self, request: _QueuedRequest, slot: Slot) -> None:
        request.slot = slot
        if not self._stores:
            self.waiting.discard(request)
        try:
            request.loop.call_soon_threadsafe(_resolve, request.future)
        except RuntimeError:  # its loop is closed
            slot.settled = True
            self.window.settle(slot.priority, None)
            self.waiting.discard(request)

    def _find_next_grant(self, now: float) -> float:
        if now < self.cooldown.until:
            return self.cooldown.until
        free = self.window.free(now)
        if self.queues[Priority.SUBMISSION].requests and free > 0:
            return min(self.window.next_free, self.window.next_submission(now))
        return self.window.next_free

    # --- timers (under the lock) ------------------------------------------------------------------

    def _set_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let a loop call `tick` when something may be due. Each loop has a timer, since any may end."""
        readings = [store.read_at + self._read_every for store in self._stores.values()]
        due = min([self._next_grant, *readings])
        if due < self._timers[loop]:  # otherwise an earlier timer is set already, and sets the next one
            self._timers[loop] = due
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._start_timer, loop, due)

    def _start_timer(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        loop.call_later(max(due - self.clock(), 0.0), self._on_timer, loop, due)

    def _on_timer(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        with self.lock:
            if self._timers[loop] == due:  # otherwise an earlier timer was set later
                self._timers[loop] = math.inf
        self.tick()

    def tick(self) -> None:
        """Grant the slots that have become free and refresh the usage of other processes."""
        stale: list[AttachedStore] = []
        with self.lock:
            if self.waiting:
                now = self.clock()
                stale = [one for one in self._stores.values() if now >= one.read_at + self._read_every]
                for store in stale:
                    store.read_at = now
                self.grant_queued()
        for store in stale:
            self._read_usage(store)

    # --- settling a slot ------------------------------------------------------------------------

    def settle(
        self,
        slot: Slot,
        counted_for: float | None,
        refused: _Refusal | None = None,
        *,
        succeeded: bool = False,
    ) -> None:
        """Settle a slot, unless it is settled or belongs to the parent process; for the methods of `Slot`.

        Args:
            slot: The slot.
            counted_for: How many seconds from now the server may still count the request; None means that
                the request never left.
            refused: After a 429: what `Slot.on_429` got.
            succeeded: Whether there was a response other than 429.
        """
        if slot.settled or self.from_parent_process:
            return
        slot.settled = True
        now = self.clock()
        counted_until = None if counted_for is None else now + counted_for
        for store, slot_id in slot.shared.items():
            store.slots.settle(slot_id, None if counted_until is None else counted_until + self.window.length)
        with self.lock:
            self.window.settle(slot.priority, counted_until)
            if succeeded:
                self.cooldown.on_success(slot.granted_at, slot.kind)
            if refused is not None:
                self.cooldown.on_429(slot.granted_at, now, *refused, slot.kind)
            self.grant_queued()

    # --- one rate limit for several processes -----------------------------------------------------

    def attach(self, session: object, slots: SharedSlots) -> None:
        """Take each slot in `slots` too from now on."""
        with self.lock:
            store = self._stores.setdefault(id(slots), AttachedStore(slots, self.clock()))
            store.sessions.add(session)
        self._read_usage(store)

    def detach(self, session: object) -> None:
        """Undo `attach`. The usage of a store is forgotten when no session has attached it."""
        with self.lock:
            for store in self._stores.values():
                store.sessions.discard(session)
            self._stores = {key: store for key, store in self._stores.items() if store.sessions}
            self.window.set_external(store.usage for store in self._stores.values())
            self.grant_queued()

    @property
    def _read_every(self) -> float:
        return min(_READ_EVERY, self.window.length / 20)

    def _read_usage(self, store: AttachedStore) -> None:
        store.slots.fetch_usage(partial(self._on_usage, store, next(self._numbers)))

    def _on_usage(self, store: AttachedStore, number: int, usage: ExternalUsage) -> None:
        with self.lock:
            self._update_usage(store, number, usage)
            self.grant_queued()

    def _update_usage(self, store: AttachedStore, number: int, usage: ExternalUsage) -> None:
        if number > store.number:  # otherwise a reading that began later has arrived already
            store.number, store.usage, store.read_at = number, usage, self.clock()
            self.window.set_external(one.usage for one in self._stores.values())

    async def _take_shared(self, slot: Slot) -> bool:
        """Take the slot in each store; return whether each of them had one left.

        Raises:
            Exception: An error of a store.
        """
        while True:
            with self.lock:
                missing = [store for store in self._stores.values() if store not in slot.shared]
                reserve = self.window.own_reserve
            if not missing:
                return True
            store, number = missing[0], next(self._numbers)
            limit, length = self.window.limit, self.window.length
            try:
                slot_id, usage = await store.slots.take(slot.priority, limit, length, reserve)
            except Exception:
                with self.lock:
                    if store in self._stores.values():
                        raise
                continue  # detached meanwhile and perhaps closed, so its error concerns no request
            if slot_id is None:
                with self.lock:
                    # Nothing is granted yet: a later request must not get the slot that this one has here.
                    self._update_usage(store, number, usage)
                return False
            slot.shared[store] = slot_id
            self._on_usage(store, number, usage)

    def _still_allowed(self, slot: Slot) -> bool:
        """Return whether a slot that was taken in the stores may still be used."""
        with self.lock:
            now = slot.granted_at = self.clock()
            # A cooldown may have begun, and the usage of others was not known when the slot was granted.
            return now >= self.cooldown.until and (
                slot.priority is Priority.POLL or self.window.may_submit(now, taken=True)
            )

    def _take_back(self, slot: Slot, *, full: bool) -> None:
        """Take back a slot that can't be used now, and grant it to no other request yet."""
        slot.settled = True
        for store, slot_id in slot.shared.items():
            store.slots.settle(slot_id, None)
        with self.lock:
            self.window.settle(slot.priority, None)
            if full:  # the usage of the store may not show why: ask again after a pause
                now = self.clock()
                self.window.mark_full(now, now + self._read_every)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
