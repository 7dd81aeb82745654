"""The thread that owns an SQLite connection."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING

from ...errors import LedgerCorruptError, LedgerUnavailableError, QameraError
from ..worker import Job
from ..worker import Worker as AnyWorker

if TYPE_CHECKING:
    from collections.abc import Callable

_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_FIXES = {
    sqlite3.SQLITE_BUSY: "Wait for the program that holds it, or end it",
    sqlite3.SQLITE_FULL: "Make room on its disk",
    sqlite3.SQLITE_READONLY: "Make its file and its folder writable",
}


class Worker(AnyWorker[sqlite3.Connection]):
    """Runs operations on a connection that no other thread touches.

    Args:
        path: what to call the database in messages.
        connect: opens it; called in the thread, with the first operation.
        disconnect: closes it; called in the thread.
        check: raises where it can't be relied on any more; called before each transaction.
    """

    def __init__(
        self,
        path: str,
        connect: Callable[[], sqlite3.Connection],
        disconnect: Callable[[sqlite3.Connection], None],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(path)
        self._connect = connect
        self._disconnect = disconnect
        self._check = check
        self._connection: sqlite3.Connection | None = None

    def _work(self, jobs: list[Job[sqlite3.Connection]]) -> None:
        if self._connection is None:
            try:
                self._connection = self._connect()
            except BaseException as error:
                self.fail(jobs, error)
                return
        self._together(jobs)

    def _leave(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._disconnect(connection)

    def _transact(self, jobs: list[Job[sqlite3.Connection]]) -> None:
        connection = self._connection
        assert connection is not None  # noqa: S101 - made before
        try:
            self._check()
            connection.execute("BEGIN IMMEDIATE")
        except (sqlite3.Error, OSError, QameraError) as error:
            self.fail(jobs, error)
            return
        try:
            for job in jobs:
                job.result = job.operation(connection)
            connection.execute("COMMIT")
        except BaseException:
            _roll_back(connection)
            raise

    def translated(self, error: BaseException) -> BaseException:
        """Give our error for one of SQLite's."""
        if isinstance(error, QameraError):
            return error
        if isinstance(error, sqlite3.DatabaseError):
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in _DAMAGED:
                return LedgerCorruptError(f"The ledger can't be used: {error}.", path=self._path)
            return LedgerUnavailableError(
                f"The ledger can't be used: {error}.", path=self._path, fix=_FIXES.get(code)
            )
        if isinstance(error, UnicodeDecodeError):
            return LedgerCorruptError("The ledger is damaged: a text in it is none.", path=self._path)
        if isinstance(error, OSError):
            return LedgerUnavailableError(f"The ledger can't be used: {error.strerror}.", path=self._path)
        return self.unexpected(error)


def _roll_back(connection: sqlite3.Connection) -> None:
    # A full disk has rolled back by itself; doing it again would hide why.
    if connection.in_transaction:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
