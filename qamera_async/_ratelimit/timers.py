"""The timers of a budget: each loop with somebody who waits comes back when more may be granted."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager


class Timers:
    """A timer in each loop, for the next moment at which there is something to do.

    Args:
        lock: the budget's.
        clock: the budget's, in seconds.
        due: gives that moment; infinity means that there is none.
        tick: called then, without the lock.
    """

    def __init__(
        self,
        lock: AbstractContextManager[object],
        clock: Callable[[], float],
        due: Callable[[float], float],
        tick: Callable[[], None],
    ) -> None:
        self._lock = lock
        self._clock = clock
        self._due = due
        self._tick = tick
        self._timers: dict[asyncio.AbstractEventLoop, asyncio.TimerHandle] = {}

    def set(
        self,
        loops: Iterable[asyncio.AbstractEventLoop],
        now: float,
        here: asyncio.AbstractEventLoop | None,
    ) -> None:
        """See to it that each of ``loops`` comes back in time; to be called under the lock."""
        if not math.isfinite(self._due(now)):
            return
        self._timers = {loop: timer for loop, timer in self._timers.items() if not loop.is_closed()}
        # Every loop that has a waiter keeps a timer of its own, since any of them may end.
        for loop in loops:
            if loop is here:
                self._set(loop)
            else:
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(self._set, loop)

    def _set(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            now = self._clock()
            due = self._due(now)
            old = self._timers.get(loop)
            if not math.isfinite(due):
                return
            if old is not None:
                if old.when() <= loop.time() + (due - now):
                    return  # it comes early enough, and sets the next one
                old.cancel()
            self._timers[loop] = loop.call_later(max(due - now, 0.0), self.ring, loop)

    def ring(self, loop: asyncio.AbstractEventLoop) -> None:
        """Do what is due; a loop's timer calls it."""
        with self._lock:
            self._timers.pop(loop, None)
        self._tick()
