"""The timers of a budget: one for each event loop with waiters, due when more slots may be granted."""

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
        # Each timer is kept with its due time by the budget's clock. A handle can't be asked for that: for a
        # delay of 0, uvloop returns a Handle, and a Handle has no when().
        self._timers: dict[asyncio.AbstractEventLoop, tuple[asyncio.Handle, float]] = {}

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
                timer, old_due = old
                if old_due <= due:
                    return  # the timer fires early enough, and then the next one is set
                timer.cancel()
            self._timers[loop] = loop.call_later(max(due - now, 0.0), self.ring, loop), due

    def ring(self, loop: asyncio.AbstractEventLoop) -> None:
        """Do what is due; a loop's timer calls it."""
        with self._lock:
            self._timers.pop(loop, None)
        self._tick()
