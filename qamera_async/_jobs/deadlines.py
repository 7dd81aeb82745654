"""When the time of those who wait is up: a timer for each length of time, not for each of them."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
from functools import partial


class TimeIsUp(Exception):  # noqa: N818 - a signal between a deadline and who waits
    """A waiter's time is up."""


class Deadlines:
    """The deadlines of one event loop.

    Thousands wait with the same timeout, and since the loop's clock doesn't go back, those that came first
    are due first: what a waiter takes is an entry in a queue.
    """

    def __init__(self) -> None:
        self._queues: dict[float, dict[asyncio.Future[None], float]] = {}
        self._timers: dict[float, asyncio.TimerHandle] = {}

    def add(self, waiter: asyncio.Future[None], timeout: float) -> None:
        """Let it raise `TimeIsUp` after ``timeout`` seconds, unless it is done or taken out before."""
        loop = asyncio.get_running_loop()
        queue = self._queues.setdefault(timeout, {})
        queue[waiter] = loop.time() + timeout
        if len(queue) == 1:
            self._set(loop, timeout)

    def discard(self, waiter: asyncio.Future[None], timeout: float) -> None:
        """Take it out, if it is there."""
        queue = self._queues.get(timeout, {})
        queue.pop(waiter, None)
        if not queue and self._queues.pop(timeout, None) is not None:
            self._timers.pop(timeout).cancel()

    def _set(self, loop: asyncio.AbstractEventLoop, timeout: float) -> None:
        due = next(iter(self._queues[timeout].values()))
        # The caller's context would be kept alive, and one for all can be entered by one thread at a time.
        self._timers[timeout] = loop.call_at(
            due, partial(self._ring, loop, timeout, due), context=contextvars.Context()
        )

    def _ring(self, loop: asyncio.AbstractEventLoop, timeout: float, due: float) -> None:
        now = max(loop.time(), due)  # a timer may come early by the clock's resolution
        queue = self._queues[timeout]
        for waiter in [*itertools.takewhile(lambda waiter: queue[waiter] <= now, queue)]:
            del queue[waiter]
            if not waiter.done():
                waiter.set_exception(TimeIsUp())
        if queue:
            self._set(loop, timeout)
        else:
            del self._queues[timeout], self._timers[timeout]
