"""What a ledger asks for, in SQL, as any database does it."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import TYPE_CHECKING, ClassVar, TypeVar

import attrs

from ..errors import LedgerError, RefConflictError
from . import executors
from .intents import Intents, Tables, claimed_in
from .pruning import IN_DOUBT, Pruned, prune_page, since_the_first_doubt
from .rows import OPEN_TO_ADOPTION, OPEN_TO_ANEW, UNDER_WAY, LedgerState, Row, same_request
from .shared import Shared
from .storage import Found

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Hashable
    from datetime import datetime
    from typing import Self

    from .worker import Worker

_HAS_RECORD = "id IN (SELECT intent FROM records WHERE origin = ? AND record_id = ?)"


_C = TypeVar("_C", bound=Tables)
_T = TypeVar("_T")


class SqlStorage(Shared[_C]):
    """The rows, for all sessions of this process with the same database, and for other processes."""

    _locked: ClassVar[str] = ""
    """What keeps others from a row that is selected, where a transaction alone doesn't."""
    folder: str | None
    one_writes: ClassVar[bool] = False
    """Whether only one transaction at a time can write."""

    def __init__(self, path: str, worker: Worker[_C]) -> None:
        super().__init__(path, worker)
        self._intents = Intents(path, self._locked)
        self._owner = 0
        # What this process works on. Where a disk is full, a row can say that and be wrong.
        self._at_work: set[str] = set()

    @abstractmethod
    def _living(self, connection: _C, owners: Collection[int]) -> Collection[int]:
        """Give at least those of the other owners who live."""

    @abstractmethod
    def _alone(self, connection: _C) -> None:
        """Keep others from adopting records until the transaction's end."""

    # --- what a ledger asks for -----------------------------------------------------------------

    def open(self) -> Awaitable[None]:
        """See to it that it can be worked with."""
        return self._worker.run("be opened", lambda _: None)

    def claim(self, row: Row, *, retry_failed: bool) -> Awaitable[Found | None]:
        """Store a new claim, or give the row that stands in its way."""

        def operation(connection: _C) -> Found | None:
            ref = row.request.ref
            while True:
                earlier = None
                if ref is not None:
                    earlier = self._intents.one(
                        connection, "origin = ? AND ref = ? AND current = 1", row.origin, ref
                    )
                if earlier is not None and not self._makes_place(
                    connection, earlier, row, retry_failed=retry_failed
                ):
                    return self._found(connection, earlier)
                # Another process may have been faster just now: then its row is there to be seen.
                if self._intents.insert(connection, attrs.evolve(row, owner=self._owner)):
                    self._at_work.add(row.id)
                    return None

        claimed = self._worker.run("claim a request", operation)
        claimed.add_done_callback(partial(self._not_at_work, row.id))
        return claimed

    def _not_at_work(self, intent_id: str, claimed: asyncio.Future[Found | None]) -> None:
        # Of a claim that nobody can be sure of, nobody here is at work on it.
        if not claimed.cancelled() and claimed.exception() is not None:
            self._at_work.discard(intent_id)

    def change(
        self, intent_id: str, allowed: Collection[LedgerState], change: Callable[[Row], Row]
    ) -> Awaitable[Row | None]:
        """Change a row that is in one of the allowed states; None where it isn't."""
        return self._change(allowed, change, "id = ?", intent_id)

    def change_of_record(
        self, origin: str, record_id: str, allowed: Collection[LedgerState], change: Callable[[Row], Row]
    ) -> Awaitable[Row | None]:
        """Change the row that has this record, as ``change`` does."""
        return self._change(allowed, change, _HAS_RECORD, origin, record_id)

    def _change(
        self, allowed: Collection[LedgerState], change: Callable[[Row], Row], where: str, *values: str
    ) -> Awaitable[Row | None]:
        def operation(connection: _C) -> Row | None:
            row = self._intents.one(connection, where, *values)
            if row is None or row.state not in allowed:
                return None
            changed = change(row)
            if changed != row:
                self._intents.update(connection, changed)
            return changed

        return self._worker.run("keep what became of a request", operation)

    def withdraw(self, intent_id: str) -> Awaitable[None]:
        """Forget a claim of which provably nothing was sent."""
        states = [state.value for state in UNDER_WAY]

        def operation(connection: _C) -> None:
            connection.execute(
                f"DELETE FROM intents WHERE id = ? AND state IN ({_marks(states)})",  # noqa: S608 - marks
                (intent_id, *states),
            )

        return self._worker.run("withdraw a claim", operation)

    def let_go(self, intent_id: str) -> None:
        """Say that its owner works on it no more, whatever could be written down of it."""
        # Queued, so that what was said before is seen first.
        self._worker.post("let go", lambda _: self._at_work.discard(intent_id))

    def find(self, intent_id: str) -> Awaitable[Found | None]:
        """Give a row by the intent's id."""

        def operation(connection: _C) -> Found | None:
            row = self._intents.one(connection, "id = ?", intent_id)
            return None if row is None else self._found(connection, row)

        return self._worker.run("find a request", operation)

    def of_record(self, origin: str, record_id: str) -> Awaitable[Row | None]:
        """Give the row that has this record."""

        def operation(connection: _C) -> Row | None:
            return self._intents.one(connection, _HAS_RECORD, origin, record_id)

        return self._worker.run("find a record", operation)

    async def rows(self, origin: str | None, states: Collection[LedgerState]) -> AsyncIterator[Found]:
        """Give the rows in these states, the oldest first."""
        # What is being sent may turn out to be ambiguous, so it is looked at whatever is asked for.
        looked_at = {*states, LedgerState.SENDING}
        last = 0

        def page(connection: _C) -> list[tuple[int, Found]]:
            rows = self._intents.some(connection, origin, looked_at, last)
            under_way = {numbered.row.owner for numbered in rows if numbered.row.state in UNDER_WAY}
            living = self._living(connection, under_way - {self._owner})
            return [
                (numbered.number, attrs.evolve(found, current=numbered.current))
                for numbered in rows
                if (found := self._seen(connection, numbered.row, living)) is not None
            ]

        # In pieces, so that a registration, of another process too, is never far behind in the queue.
        while rows := await self._worker.run("be read", page):
            last = rows[-1][0]
            for _, found in rows:
                if found.row.state in states:
                    yield found

    def adopt(self, intent_id: str, record_ids: tuple[str, ...]) -> Awaitable[Row | set[str] | None]:
        """Give an ambiguous row its records."""

        def operation(connection: _C) -> Row | set[str] | None:
            self._alone(connection)
            row = self._intents.one(connection, "id = ?", intent_id)
            if row is None or row.state not in OPEN_TO_ADOPTION:
                return None
            if set(row.record_ids) == set(record_ids):
                return row
            if taken := claimed_in(connection, row.origin, record_ids, but=intent_id):
                return taken
            connection.execute("DELETE FROM records WHERE intent = ?", (intent_id,))
            adopted = attrs.evolve(row, state=LedgerState.ADOPTED, record_ids=record_ids)
            self._intents.update(connection, adopted)
            return adopted

        return self._worker.run("adopt records", operation)

    def claimed(self, origin: str, record_ids: Collection[str]) -> Awaitable[set[str]]:
        """Give those of the records that a row has."""
        return self._worker.run(
            "look for claims", lambda connection: claimed_in(connection, origin, record_ids)
        )

    # --- who works on what ----------------------------------------------------------------------

    def become(self, name: str) -> Awaitable[bool]:
        """Have the name of an executor from now on; False where another has it who lives."""

        def operation(connection: _C) -> bool:
            self._alone(connection)
            holder = executors.holder_of(connection, name)
            if holder not in (None, self._owner) and holder in self._living(connection, {holder}):
                return False
            executors.give(connection, name, self._owner)
            return True

        return self._worker.run("take an executor's name", operation)

    def dead(self, names: Collection[str]) -> Awaitable[set[str]]:
        """Give those of the executors whom nobody is who lives."""

        def operation(connection: _C) -> set[str]:
            holders = executors.holders(connection)
            living = {self._owner, *self._living(connection, set(holders.values()) - {self._owner})}
            return {name for name in names if holders.get(name) not in living}

        return self._worker.run("look for the living", operation)

    def leave(self, name: str) -> Awaitable[None]:
        """Have the name of an executor no more."""
        return self._worker.run(
            "give up an executor's name", lambda connection: executors.take(connection, name, self._owner)
        )

    # --- what is settled ------------------------------------------------------------------------

    async def prune(self, before: datetime, *, remove: bool) -> Pruned:
        """Remove what has settled and had its last moment before one, or say what that would be."""
        doubts = [found.row async for found in self.rows(None, IN_DOUBT)]
        pruned = Pruned(since_the_first_doubt(doubts, before))
        last: int | None = 0
        # In pieces, as they are read.
        while last is not None:
            page = partial(prune_page, self._intents, before=pruned.before, last=last, remove=remove)
            last, more = await self._worker.run("be pruned", page)
            pruned += more
        if remove:
            await self._worker.run("be tidied", self._tidy)
            await self._free_space()
        return pruned

    # --- what a copy asks for -------------------------------------------------------------------

    @property
    def intents(self) -> Intents:
        """The rows, for an operation."""
        return self._intents

    @classmethod
    def apart(cls, name: Hashable) -> Self:
        """Give a storage that no session of this process has."""
        storage = cls._named(name)
        storage.users = 1
        return storage

    def run_alone(self, what: str, operation: Callable[[_C], _T]) -> asyncio.Future[_T]:
        """Queue a transaction; nothing else is queued here."""
        return self._worker.run(what, operation)

    def translated(self, error: BaseException) -> BaseException:
        """Give our error for one of the database's."""
        return self._worker.translated(error)

    def keep_out(self, connection: _C) -> None:
        """Let nobody come in until the transaction's end.

        Raises:
            LedgerError: somebody is in.
        """
        self._lock_out(connection)
        if self._others(connection):
            raise LedgerError(
                "A session, or somebody who looks into it, has the ledger open: end that first.",
                path=self.path,
            )

    async def _free_space(self) -> None:
        """Give the room of what was removed back, where the database doesn't do that by itself."""

    # --- in the thread --------------------------------------------------------------------------

    @abstractmethod
    def _lock_out(self, connection: _C) -> None:
        """Let those who come wait until the transaction's end."""

    @abstractmethod
    def _others(self, connection: _C) -> bool:
        """Whether anybody else has it open."""

    @abstractmethod
    def _tidy(self, connection: _C) -> None:
        """Forget slots that are free and owners that are dead."""

    def _busy(self, row: Row, living: Collection[int]) -> bool:
        """Whether somebody alive is at work on it."""
        if row.state not in UNDER_WAY:
            return False
        return row.id in self._at_work if row.owner == self._owner else row.owner in living

    def _makes_place(self, connection: _C, earlier: Row, row: Row, *, retry_failed: bool) -> bool:
        """Whether an earlier row stands in nobody's way; then it has made place.

        Raises:
            RefConflictError: it is for another request.
        """
        if earlier.state is LedgerState.CLAIMED and not self._busy(
            earlier, self._living(connection, {earlier.owner})
        ):
            connection.execute("DELETE FROM intents WHERE id = ?", (earlier.id,))
            return True
        if earlier.state not in OPEN_TO_ANEW and not same_request(earlier.request, row.request):
            raise RefConflictError(
                f"The ledger has another request under the ref {row.request.ref!r}.",
                path=self.path,
                request=row.request,
                earlier=earlier.request,
            )
        if earlier.state in OPEN_TO_ANEW or (retry_failed and earlier.state is LedgerState.FAILED):
            connection.execute("UPDATE intents SET current = 0 WHERE id = ?", (earlier.id,))
            return True
        return False

    def _seen(self, connection: _C, row: Row, living: Collection[int]) -> Found | None:
        """What is found of a row that may have changed since it was read; None where it is gone."""
        if row.state is LedgerState.SENDING and not self._busy(row, living):
            now = self._intents.one(connection, "id = ?", row.id)
            return None if now is None else self._found(connection, now)
        return Found(row, self._busy(row, living))

    def _found(self, connection: _C, row: Row) -> Found:
        """What is found of a row that others are kept from."""
        busy = row.state in UNDER_WAY and self._busy(row, self._living(connection, {row.owner}))
        if row.state is LedgerState.SENDING and not busy:
            row = attrs.evolve(
                row,
                state=LedgerState.AMBIGUOUS,
                reason="The process that sent it ended before the answer was kept.",
            )
            self._intents.update(connection, row)
        return Found(row, busy)


def _marks(values: Collection[object]) -> str:
    return ", ".join("?" * len(values))
