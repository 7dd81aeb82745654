"""One quota for several processes: a log of slots that they share, and what each knows of the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable

    from .window import Priority


@attrs.frozen(eq=False)
class Elsewhere:
    """What others have taken of the quota, as one look at the log showed it.

    Args:
        submissions: when each settled slot of theirs is free again, in seconds of ``time.monotonic()``,
            sorted.
        polls: the same of their polls.
        submitting: requests of theirs that are under way.
        polling: the same of their polls.
        reserve: the slots of a window that submissions leave to their polls.
    """

    submissions: tuple[float, ...] = ()
    polls: tuple[float, ...] = ()
    submitting: int = 0
    polling: int = 0
    reserve: float = 0.0


class SlotLog(Protocol):
    """Where processes write down the slots they take. Each method may be called in any thread or loop."""

    async def take(
        self, priority: Priority, limit: int, window: float, reserve: float
    ) -> tuple[object | None, Elsewhere]:
        """Take a slot if fewer than ``limit`` are taken in all, by whomever; durable when it returns.

        Cancelling it leaks no slot: the log sees to that.

        Args:
            priority: whose slot it is.
            limit: the slots in a window.
            window: its length in seconds.
            reserve: the slots of a window that submissions leave to the polls of this process.

        Returns:
            A ticket to settle, None where there is no slot; and what others have taken.
        """
        ...

    def settle(self, ticket: object, until: float | None) -> None:
        """Let a slot be free again; never waits and never raises, also when the log is closed.

        Args:
            ticket: what ``take`` gave.
            until: the moment in seconds of ``time.monotonic()``; None means at once.
        """
        ...

    def look(self, tell: Callable[[Elsewhere], None]) -> None:
        """Tell soon, from any thread, what others have taken; never waits and never raises."""
        ...
