"""The slot logs that are attached to a budget: each slot is taken in them too."""

from __future__ import annotations

import asyncio
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

from .shared import Elsewhere

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager

    from .shared import SlotLog
    from .slot import Slot
    from .waiting import Waiter
    from .window import Window


class Attached:
    """A log, how often it is attached, and the newest that is known from it."""

    __slots__ = ("_newest", "count", "elsewhere", "log", "looked_at")

    def __init__(self, log: SlotLog, now: float) -> None:
        self.log = log
        self.count = 0
        self.elsewhere = Elsewhere()
        self.looked_at = now
        self._newest = -1

    def learn(self, number: int, elsewhere: Elsewhere, now: float) -> None:
        """Keep what a look showed, unless one that began later has told more already."""
        if number > self._newest:
            self._newest = number
            self.elsewhere = elsewhere
            self.looked_at = now


class Logs(list[Attached]):
    """The logs of a budget.

    A log's own methods are never called under the lock, since it may tell while it holds one of its own.

    Args:
        lock: the budget's.
        clock: the budget's, in seconds.
        window: where what others have taken is counted.
        pump: grants what can be granted; called under the lock.
    """

    def __init__(
        self,
        lock: AbstractContextManager[object],
        clock: Callable[[], float],
        window: Window,
        pump: Callable[[], None],
    ) -> None:
        super().__init__()
        self._lock = lock
        self._clock = clock
        self._window = window
        self._pump = pump
        self._numbers = count()  # of the looks, since a log may tell in another order
        self.look_every = min(1.0, window.length / 20)  # seconds, while somebody waits for a slot

    def attach(self, log: SlotLog) -> None:
        """From now on take each slot in ``log`` too."""
        with self._lock:
            attached = self._find(log)
            if attached is None:
                attached = Attached(log, self._clock())
                self.append(attached)
            attached.count += 1
        self.look([attached])

    def detach(self, log: SlotLog) -> None:
        """Undo one ``attach``; with the last, forget what others have taken there."""
        with self._lock:
            attached = self._find(log)
            if attached is None:
                return
            attached.count -= 1
            if not attached.count:
                self.remove(attached)
                self._count()
                self._pump()

    def _find(self, log: SlotLog) -> Attached | None:
        # By identity, since nothing says that a log is hashable.
        return next((attached for attached in self if attached.log is log), None)

    # --- looking at what others have taken ------------------------------------------------------

    def next_look(self) -> float:
        """When to look again while somebody waits: others settle and give back without telling."""
        return min(attached.looked_at for attached in self) + self.look_every

    def stale(self, now: float) -> list[Attached]:
        """Give those to be looked at by ``now``, and count them as looked at."""
        found = [attached for attached in self if now >= attached.looked_at + self.look_every]
        for attached in found:
            attached.looked_at = now
        return found

    def look(self, logs: Iterable[Attached]) -> None:
        """Ask what others have taken; not to be called under the lock."""
        for attached in logs:
            attached.log.look(partial(self._told, attached, next(self._numbers)))

    def _told(self, attached: Attached, number: int, elsewhere: Elsewhere) -> None:
        with self._lock:
            self._learn(attached, number, elsewhere)
            self._pump()

    def _learn(self, attached: Attached, number: int, elsewhere: Elsewhere) -> None:
        attached.learn(number, elsewhere, self._clock())
        self._count()

    def _count(self) -> None:
        self._window.count_elsewhere(attached.elsewhere for attached in self)

    # --- taking a slot --------------------------------------------------------------------------

    async def take(self, slot: Slot, waiter: Waiter) -> bool:
        """Take the slot in each log; False where one has none left.

        Raises:
            Exception: a log's own, or what the waiter is refused with.
        """
        left = True
        try:
            async with asyncio.timeout(None) as waiter.scope:
                while left and waiter.error is None and (attached := self._missing(slot)) is not None:
                    left = await self._take(attached, slot)
        except TimeoutError:
            if waiter.error is None:
                raise  # the log's own
        finally:
            waiter.scope = None
        if waiter.error is not None:
            raise waiter.error
        return left

    def _missing(self, slot: Slot) -> Attached | None:
        with self._lock:
            taken = {id(log) for log, _ in slot.tickets}
            return next((attached for attached in self if id(attached.log) not in taken), None)

    async def _take(self, attached: Attached, slot: Slot) -> bool:
        number = next(self._numbers)
        window = self._window
        with self._lock:
            reserve = window.reserved_here
        try:
            ticket, elsewhere = await attached.log.take(slot.priority, window.limit, window.length, reserve)
        except Exception:
            with self._lock:
                if attached in self:
                    raise
            return True  # detached meanwhile, and maybe closed: its error is nobody's
        if ticket is not None:
            slot.tickets += ((attached.log, ticket),)
            self._told(attached, number, elsewhere)
            return True
        with self._lock:
            # No pump yet: who comes later must not get the slot that this request still holds here.
            self._learn(attached, number, elsewhere)
        return False
