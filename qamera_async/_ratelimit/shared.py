"""One rate limit for several processes: the store of slots that they share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable

    from .window import Priority


@attrs.frozen(eq=False)
class ExternalUsage:
    """The slots that other processes have taken, as one reading of the store showed them.

    Args:
        submissions: When each settled slot of a submission becomes free, in seconds of
            `time.monotonic()`, sorted.
        polls: The same for polls.
        submissions_in_flight: Number of submissions whose response has not arrived.
        polls_in_flight: The same for polls.
        reserve: Slots of a window that the other processes keep for their polls.
    """

    submissions: tuple[float, ...] = ()
    polls: tuple[float, ...] = ()
    submissions_in_flight: int = 0
    polls_in_flight: int = 0
    reserve: float = 0.0


class SharedSlots(Protocol):
    """The store in which processes record the slots they take. Methods may be called from any thread."""

    async def take(
        self, priority: Priority, limit: int, window: float, reserve: float
    ) -> tuple[object | None, ExternalUsage]:
        """Take a slot if all processes together have taken fewer than `limit`.

        The slot is durable when this returns. Cancelling leaks no slot: the store sees to that.

        Args:
            priority: Priority of the request.
            limit: Number of slots in a window.
            window: Length of the window in seconds.
            reserve: Slots of a window that this process keeps for its polls.

        Returns:
            The id of the slot, or None if none is left; and the usage of the other processes.

        Raises:
            Exception: the store can't be used.
        """
        ...

    def settle(self, slot_id: object, until: float | None) -> None:
        """Record when a slot becomes free; never waits and never raises, not even after closing.

        Args:
            slot_id: The id that `take` returned.
            until: The moment in seconds of `time.monotonic()`; None means now.
        """
        ...

    def fetch_usage(self, on_usage: Callable[[ExternalUsage], None]) -> None:
        """Read the usage of the other processes; never waits and never raises.

        Args:
            on_usage: Called soon with the usage, from any thread; not called if the reading fails.
        """
        ...


@attrs.define(eq=False)
class AttachedStore:
    """A store that is attached to a rate limiter, and the newest usage read from it.

    Attributes:
        slots: The store.
        read_at: When the newest reading began or arrived, in seconds.
        sessions: The sessions that have attached it.
        usage: The usage of other processes that the newest reading showed.
        number: Readings are numbered in the order in which they began; the number of the newest one.
    """

    slots: SharedSlots
    read_at: float
    sessions: set[object] = attrs.field(factory=set[object])
    usage: ExternalUsage = attrs.field(factory=ExternalUsage)
    number: int = -1
