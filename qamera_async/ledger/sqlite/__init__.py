"""The ledger in an SQLite file. The only room that imports sqlite3."""

from __future__ import annotations

import asyncio
import os
import threading
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from ...errors import LedgerCorruptError, LedgerUnavailableError, RefConflictError
from ..rows import OPEN_TO_ADOPTION, OPEN_TO_ANEW, UNDER_WAY, LedgerState, Row, decoded, same_request
from ..storage import Found
from .opening import closed, opened
from .owners import owners_at
from .slots import SqliteSlots
from .worker import Worker

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence

    from .owners import Owners

_PAGE = 200  # rows that are read at a time
_LOOK = 0.005  # seconds
_HAS_RECORD = "id IN (SELECT intent FROM records WHERE origin = ? AND record_id = ?)"
_COLUMNS = "id, origin, ref, state, owner, body, digest"


class SqliteStorage:
    """One file for all sessions of this process with the same path, and for other processes."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._place: tuple[int, int] | None = None  # the file that is open, whatever has its name by now
        self._owners: Owners | None = None
        self._owner = 0
        self._worker = Worker(path, self._connect, self._disconnect, self._check_place)
        self._slots: dict[str, SqliteSlots] = {}
        self._users = 0
        # What this process works on. Where a disk is full, a row can say that and be wrong.
        self._at_work: set[str] = set()

    @classmethod
    def of(cls, path: str) -> SqliteStorage:
        """Give the storage of a path; each is to be closed as often as it was given."""
        # A forked child has a storage of its own: threads and locks stay with the parent. The files beside
        # it have the name of the file itself, whichever link led there.
        path = os.path.realpath(path)
        key = os.getpid(), path
        with _storages_lock:
            storage = _storages.get(key)
            if storage is None:
                storage = _storages[key] = cls(path)
            storage._users += 1
            return storage

    def release(self) -> threading.Thread | None:
        """Let go; the last one closes the file, in a thread that ends when it has."""
        with _storages_lock:
            self._users -= 1
            if self._users:
                return None
            for key in [key for key, storage in _storages.items() if storage is self]:
                del _storages[key]
        return self._worker.end()

    async def aclose(self) -> None:
        """Finish what is queued and let go."""
        thread = self.release()
        # Looked at, not joined: a thread that joins could not be left where the disk hangs.
        while thread is not None and thread.is_alive():  # noqa: ASYNC110 - a thread sets no asyncio.Event
            await asyncio.sleep(_LOOK)

    # --- rows -----------------------------------------------------------------------------------

    def open(self) -> Awaitable[None]:
        """See to it that it can be worked with."""
        return self._worker.run("be opened", lambda _: None)

    def claim(self, row: Row, *, retry_failed: bool) -> Awaitable[Found | None]:
        """Store a new claim, or give the row that stands in its way."""

        def operation(connection: sqlite3.Connection) -> Found | None:
            ref = row.request.ref
            earlier = None
            if ref is not None:
                earlier = self._one(connection, "origin = ? AND ref = ? AND current = 1", row.origin, ref)
            if earlier is not None and not self._makes_place(
                connection, earlier, row, retry_failed=retry_failed
            ):
                return self._found(connection, earlier)
            self._insert(connection, attrs.evolve(row, owner=self._owner))
            self._at_work.add(row.id)
            return None

        return self._worker.run("claim a request", operation)

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
        def operation(connection: sqlite3.Connection) -> Row | None:
            row = self._one(connection, where, *values)
            if row is None or row.state not in allowed:
                return None
            changed = change(row)
            if changed != row:
                self._update(connection, changed)
            return changed

        return self._worker.run("keep what became of a request", operation)

    def withdraw(self, intent_id: str) -> Awaitable[None]:
        """Forget a claim of which provably nothing was sent."""
        states = [state.value for state in UNDER_WAY]

        def operation(connection: sqlite3.Connection) -> None:
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

        def operation(connection: sqlite3.Connection) -> Found | None:
            row = self._one(connection, "id = ?", intent_id)
            return None if row is None else self._found(connection, row)

        return self._worker.run("find a request", operation)

    def of_record(self, origin: str, record_id: str) -> Awaitable[Row | None]:
        """Give the row that has this record."""

        def operation(connection: sqlite3.Connection) -> Row | None:
            return self._one(connection, _HAS_RECORD, origin, record_id)

        return self._worker.run("find a record", operation)

    async def rows(self, origin: str | None, states: Collection[LedgerState]) -> AsyncIterator[Found]:
        """Give the rows in these states, the oldest first."""
        # What is being sent may turn out to be ambiguous, so it is looked at whatever is asked for.
        looked_at = [state.value for state in {*states, LedgerState.SENDING}]
        where = f"state IN ({_marks(looked_at)}) AND number > ?"
        if origin is not None:
            where = f"origin = ? AND {where}"
        last = 0

        def page(connection: sqlite3.Connection) -> list[tuple[int, Found]]:
            values = [*looked_at, last] if origin is None else [origin, *looked_at, last]
            return [
                (number, attrs.evolve(self._found(connection, row), current=bool(current)))
                for number, current, row in self._some(connection, where, *values)
            ]

        # In pieces, so that a registration, of another process too, is never far behind in the queue.
        while rows := await self._worker.run("be read", page):
            last = rows[-1][0]
            for _, found in rows:
                if found.row.state in states:
                    yield found

    def adopt(self, intent_id: str, record_ids: tuple[str, ...]) -> Awaitable[Row | set[str] | None]:
        """Give an ambiguous row its records."""

        def operation(connection: sqlite3.Connection) -> Row | set[str] | None:
            row = self._one(connection, "id = ?", intent_id)
            if row is None or row.state not in OPEN_TO_ADOPTION:
                return None
            if set(row.record_ids) == set(record_ids):
                return row
            if taken := _claimed(connection, row.origin, record_ids, but=intent_id):
                return taken
            connection.execute("DELETE FROM records WHERE intent = ?", (intent_id,))
            adopted = attrs.evolve(row, state=LedgerState.ADOPTED, record_ids=record_ids)
            self._update(connection, adopted)
            return adopted

        return self._worker.run("adopt records", operation)

    def claimed(self, origin: str, record_ids: Collection[str]) -> Awaitable[set[str]]:
        """Give those of the records that a row has."""
        return self._worker.run(
            "look for claims", lambda connection: _claimed(connection, origin, record_ids)
        )

    def slots(self, account: str, grace: float) -> SqliteSlots:
        """Give the log of an account's slots."""
        with _storages_lock:
            slots = self._slots.get(account)
            if slots is None:
                slots = self._slots[account] = SqliteSlots(self._worker, account, grace)
            return slots

    # --- in the thread --------------------------------------------------------------------------

    def _connect(self) -> sqlite3.Connection:
        path = Path(self.path)
        self._owners = owners_at(f"{path}-owners")
        connection, self._owner = opened(path, self._owners)
        facts = path.stat()
        self._place = facts.st_dev, facts.st_ino
        return connection

    def _check_place(self) -> None:
        try:
            facts = Path(self.path).stat()
        except FileNotFoundError:
            facts = None
        if facts is None or (facts.st_dev, facts.st_ino) != self._place:
            raise LedgerUnavailableError(
                "The ledger was replaced or removed while it was in use.", path=self.path
            )

    def _disconnect(self, connection: sqlite3.Connection) -> None:
        assert self._owners is not None  # noqa: S101 - made before the connection
        closed(connection, Path(self.path), self._owners, self._owner)

    def _busy(self, row: Row) -> bool:
        """Whether somebody alive is at work on it."""
        assert self._owners is not None  # noqa: S101 - made before the connection
        if row.state not in UNDER_WAY:
            return False
        return row.id in self._at_work if row.owner == self._owner else self._owners.alive(row.owner)

    def _makes_place(
        self, connection: sqlite3.Connection, earlier: Row, row: Row, *, retry_failed: bool
    ) -> bool:
        """Whether an earlier row stands in nobody's way; then it has made place.

        Raises:
            RefConflictError: it is for another request.
        """
        if earlier.state is LedgerState.CLAIMED and not self._busy(earlier):
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

    def _found(self, connection: sqlite3.Connection, row: Row) -> Found:
        busy = self._busy(row)
        if row.state is LedgerState.SENDING and not busy:
            row = attrs.evolve(
                row,
                state=LedgerState.AMBIGUOUS,
                reason="The process that sent it ended before the answer was kept.",
            )
            self._update(connection, row)
        return Found(row, busy)

    def _one(self, connection: sqlite3.Connection, where: str, *values: object) -> Row | None:
        # `where` is this module's own, and what is looked for is bound to its marks.
        found = connection.execute(
            f"SELECT {_COLUMNS} FROM intents WHERE {where}",  # noqa: S608
            values,
        ).fetchone()
        return None if found is None else self._row(found)

    def _some(
        self, connection: sqlite3.Connection, where: str, *values: object
    ) -> list[tuple[int, int, Row]]:
        found = connection.execute(
            f"SELECT number, current, {_COLUMNS} FROM intents WHERE {where} "  # noqa: S608
            f"ORDER BY number LIMIT {_PAGE}",
            values,
        )
        return [(number, current, self._row(columns)) for number, current, *columns in found.fetchall()]

    def _row(self, columns: Sequence[Any]) -> Row:
        *searched, body, digest = columns
        try:
            if _digest(*searched, body) != digest:
                raise ValueError("the digest differs")  # noqa: TRY301 - one border for both
            return decoded(body)
        except ValueError as error:
            raise LedgerCorruptError(
                f"A row of the ledger is damaged: {searched[0]!r}, {error}.", path=self.path
            ) from None

    def _insert(self, connection: sqlite3.Connection, row: Row) -> None:
        connection.execute(
            "INSERT INTO intents (id, origin, ref, state, owner, current, body, digest) "
            "VALUES (?, ?, ?, ?, ?, 1, ?, ?)",
            _columns(row),
        )
        self._keep_records(connection, row)

    def _update(self, connection: sqlite3.Connection, row: Row) -> None:
        row_id, _, _, state, owner, body, digest = _columns(row)
        connection.execute(
            "UPDATE intents SET state = ?, owner = ?, body = ?, digest = ? WHERE id = ?",
            (state, owner, body, digest, row_id),
        )
        self._keep_records(connection, row)

    def _keep_records(self, connection: sqlite3.Connection, row: Row) -> None:
        connection.executemany(
            "INSERT OR IGNORE INTO records VALUES (?, ?, ?)",
            [(row.origin, record_id, row.id) for record_id in row.record_ids],
        )


_storages: dict[tuple[int, str], SqliteStorage] = {}
_storages_lock = threading.Lock()


def _columns(row: Row) -> tuple[Any, ...]:
    searched = row.id, row.origin, row.request.ref, row.state.value, row.owner
    body = row.encoded()
    return (*searched, body, _digest(*searched, body))


def _claimed(
    connection: sqlite3.Connection, origin: str, record_ids: Collection[str], but: str = ""
) -> set[str]:
    """Those of the records that a row has, one row aside."""
    query = "SELECT 1 FROM records WHERE origin = ? AND record_id = ? AND intent != ?"
    return {
        record_id
        for record_id in record_ids
        if connection.execute(query, (origin, record_id, but)).fetchone()
    }


def _digest(*columns: object) -> int:
    return zlib.crc32(repr(columns).encode())


def _marks(values: Collection[object]) -> str:
    return ", ".join("?" * len(values))
