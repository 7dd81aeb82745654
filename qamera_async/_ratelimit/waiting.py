"""Who waits for a slot: two queues, in the order of arrival."""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from itertools import count
from typing import TYPE_CHECKING

from .window import Priority

if TYPE_CHECKING:
    from .slot import Slot

_arrivals = count()


class Waiter:
    """A request that waits for its slot."""

    __slots__ = ("error", "expected", "future", "loop", "number", "owner", "priority", "scope", "slot")

    def __init__(self, priority: Priority, owner: object, slot: Slot | None = None) -> None:
        self.priority = priority
        self.owner = owner
        self.number = next(_arrivals)
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[None] = self.loop.create_future()
        self.slot = slot
        self.expected = 0.0  # a lower bound of the seconds that it will queue
        self.scope: asyncio.Timeout | None = None  # around what it awaits of the logs
        self.error: Exception | None = None  # what to raise when it comes back from there

    def queue_again(self) -> None:
        """Wait for another slot."""
        self.slot = None
        self.future = self.loop.create_future()

    def refuse(self, error: Exception) -> None:
        """Let it raise ``error`` in place of what it awaits of the logs; in its own loop."""
        if self.error is not None:
            return  # on its way out already
        self.error = copy.copy(error)
        if self.scope is not None:
            self.scope.reschedule(self.loop.time())


class Queues(dict[Priority, deque[Waiter]]):
    """Who waits, by priority; the first of a queue came first."""

    def __init__(self) -> None:
        super().__init__((priority, deque()) for priority in Priority)

    def add(self, waiter: Waiter) -> None:
        """Let a request queue: where it has queued before, ahead of those that came later."""
        queue = self[waiter.priority]
        place = len(queue)
        while place and queue[place - 1].number > waiter.number:
            place -= 1
        queue.insert(place, waiter)

    def discard(self, waiter: Waiter) -> None:
        """Take out a request that may have left."""
        if waiter in self[waiter.priority]:
            self[waiter.priority].remove(waiter)

    def evict(self, owner: object, error: Exception) -> None:
        """Take out those of ``owner``, and let each raise ``error``; in their own loop."""
        for priority, queue in self.items():
            self[priority] = deque(waiter for waiter in queue if waiter.owner is not owner)
            for waiter in queue:
                if waiter.owner is owner and not waiter.future.done():
                    waiter.future.set_exception(copy.copy(error))

    def loops(self) -> set[asyncio.AbstractEventLoop]:
        """Give the loops that have somebody waiting."""
        return {waiter.loop for queue in self.values() for waiter in queue}


def resolve(future: asyncio.Future[None]) -> None:
    """Wake who waits, unless it was cancelled."""
    if not future.done():
        future.set_result(None)
