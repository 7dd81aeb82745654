"""The shared poll in an SQLite ledger: others are found by looking at the file, often and shortly."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ..board import Board

if TYPE_CHECKING:
    from collections.abc import Callable

    from .worker import Worker


class SqliteBoard(Board[sqlite3.Connection]):
    """The board of an account, for one poller.

    Args:
        path: where the database is.
        worker: runs what is asked of the database.
        account: whose list it is.
        owner: gives who this process is.
        alive: tells, in the worker's thread, whether an owner lives.
    """

    tells: ClassVar[bool] = False

    def __init__(
        self, path: str, worker: Worker, account: str, owner: Callable[[], int], alive: Callable[[int], bool]
    ) -> None:
        super().__init__(worker, account, owner)
        self._alive = alive
        self._path = path
        self._facts: tuple[int, int] | None = None

    def may_have_news(self) -> bool:
        """Tell, without asking the database, whether there may be something new since the last call."""
        try:
            # What is committed is written there first.
            facts = Path(f"{self._path}-wal").stat()
        except OSError:
            return True
        before, self._facts = self._facts, (facts.st_size, facts.st_mtime_ns)
        return before != self._facts

    def _operation(
        self, operation: Callable[[sqlite3.Connection], object]
    ) -> Callable[[sqlite3.Connection], object]:
        return operation

    def _now(self) -> str:
        # Of the machine, and so the same for all who have the file.
        return repr(time.monotonic())

    def _alone(self, connection: sqlite3.Connection) -> None:
        """Nothing: only one transaction at a time writes."""

    def _forget_dead(self, connection: sqlite3.Connection) -> None:
        run = connection.execute
        owners = run("SELECT owner FROM polls WHERE owner <> 0 UNION SELECT owner FROM waiting").fetchall()
        for (owner,) in owners:
            if not self._alive(owner):
                run("UPDATE polls SET owner = 0, poller = '' WHERE owner = ?", (owner,))
                run("DELETE FROM waiting WHERE owner = ?", (owner,))

    def _tell(self, connection: sqlite3.Connection) -> None:
        """Nothing: they look."""
