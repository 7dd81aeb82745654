"""What the ledger asks of a database: the few operations that the product needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import attrs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection
    from datetime import datetime

    from .._ratelimit import SharedSlots
    from .board import Board
    from .pruning import Pruned
    from .rows import LedgerState, Row


@attrs.frozen
class Found:
    """A row that was there already.

    Args:
        row: What it says now.
        busy: Whether somebody alive is at work on it.
        current: Whether it is the one that counts for its ref; where that was ordered anew, it isn't.

    """

    row: Row
    busy: bool
    current: bool = True


class Storage(Protocol):
    """A database of rows and of slots, shared by processes.

    Each call takes its place in a queue at once, in the order of the calls, whether or not what it gives
    is awaited; what it says is durable when it is there. Cancelling the wait cancels nothing.

    All of them raise `LedgerUnavailableError` and `LedgerCorruptError`, the first call of all
    `LedgerVersionError` as well.
    """

    path: str
    """What to call it in messages."""
    folder: str | None
    """What the paths of files are relative to, so that both may move together; None: they are whole."""

    def open(self) -> Awaitable[None]:
        """See to it that it can be worked with."""
        ...

    def claim(self, row: Row, *, retry_failed: bool) -> Awaitable[Found | None]:
        """Store a new claim, unless its ref has a row that stands in its way; then give that one.

        What stands in nobody's way makes place: a claim whose owner is dead, what was refused or abandoned,
        and with ``retry_failed`` what failed, where it is the same request. What a dead owner was sending
        becomes ambiguous.
        """
        ...

    def change(
        self, intent_id: str, allowed: Collection[LedgerState], change: Callable[[Row], Row]
    ) -> Awaitable[Row | None]:
        """Change a row that is in one of the allowed states; None where it isn't."""
        ...

    def adopt(self, intent_id: str, record_ids: tuple[str, ...]) -> Awaitable[Row | set[str] | None]:
        """Give an ambiguous or adopted row its records; it is adopted then.

        What comes back is the row, or those of the records that other rows have, or None where the row isn't
        open to adoption.
        """
        ...

    def withdraw(self, intent_id: str) -> Awaitable[None]:
        """Forget a claim of which provably nothing was sent."""
        ...

    def let_go(self, intent_id: str) -> None:
        """Say that its owner works on it no more, whatever could be written down of it."""
        ...

    def find(self, intent_id: str) -> Awaitable[Found | None]:
        """Give a row by the intent's id; what nobody alive is sending becomes ambiguous."""
        ...

    def of_record(self, origin: str, record_id: str) -> Awaitable[Row | None]:
        """Give the row that has this record."""
        ...

    def change_of_record(
        self, origin: str, record_id: str, allowed: Collection[LedgerState], change: Callable[[Row], Row]
    ) -> Awaitable[Row | None]:
        """Change the row that has this record, as ``change`` does."""
        ...

    def rows(self, origin: str | None, states: Collection[LedgerState]) -> AsyncIterator[Found]:
        """Give the rows in these states, the oldest first; what nobody alive is sending becomes ambiguous.

        None means those of every origin.
        """
        ...

    def claimed(self, origin: str, record_ids: Collection[str]) -> Awaitable[set[str]]:
        """Give those of the records that a row has."""
        ...

    def slots(self, account: str, grace: float) -> SharedSlots:
        """Give the log of an account's slots; ``grace``: seconds that a request may be under way."""
        ...

    def board(self, account: str) -> Board[Any]:
        """Give the board of an account's polls, for one poller."""
        ...

    def become(self, name: str) -> Awaitable[bool]:
        """Have the name of an executor from now on; False where another has it who lives."""
        ...

    def dead(self, names: Collection[str]) -> Awaitable[set[str]]:
        """Give those of the executors whom nobody is who lives."""
        ...

    def leave(self, name: str) -> Awaitable[None]:
        """Have the name of an executor no more."""
        ...

    async def prune(self, before: datetime, *, remove: bool) -> Pruned:
        """Remove what has settled and had its last moment before one, or say what that would be.

        Nothing that is under way, unfinished or in doubt, and nothing that may help to settle a doubt.
        """
        ...

    def release(self) -> object:
        """Let go without waiting; each is to be let go of once, by this or ``aclose``."""
        ...

    async def aclose(self) -> None:
        """Finish what is queued and let go."""
        ...
