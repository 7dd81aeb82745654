"""The ledger in an SQLite file. The only room that imports sqlite3."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from ..._boot import boot_id
from ...errors import LedgerError, LedgerUnavailableError
from ..slots import owner_of
from ..sql import SqlStorage
from .board import SqliteBoard
from .opening import closed, opened, shrink
from .owners import owners_at
from .slots import SqliteSlots
from .worker import Worker

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable

    from .owners import Owners

_log = logging.getLogger("qamera_async")


class SqliteStorage(SqlStorage[sqlite3.Connection]):
    """One file for all sessions of this process with the same path, and for other processes."""

    one_writes: ClassVar[bool] = True
    _worker: Worker

    def __init__(self, path: str) -> None:
        super().__init__(path, Worker(path, self._connect, self._disconnect, self._check_place))
        self.folder: str | None = os.path.dirname(path)  # noqa: PTH120 - a text
        self._place: tuple[int, int] | None = None  # the file that is open, whatever has its name by now
        self._owners: Owners | None = None

    @classmethod
    def of(cls, path: str) -> Self:
        """Give the storage of a path; each is to be closed as often as it was given."""
        # The files beside it have the name of the file itself, whichever link led there.
        return cls._shared(os.path.realpath(path))

    @classmethod
    def _named(cls, name: Hashable) -> Self:
        return cls(str(name))

    def _new_slots(self, account: str, grace: float) -> SqliteSlots:
        return SqliteSlots(self._worker, account, grace, lambda: self._owner, self._lives)

    def board(self, account: str) -> SqliteBoard:
        """Give the board of an account's polls, for one poller."""
        return SqliteBoard(self.path, self._worker, account, lambda: self._owner, self._lives)

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
                "The ledger was replaced or removed while it was in use.",
                path=self.path,
                fix="Open it anew",
            )

    def _disconnect(self, connection: sqlite3.Connection) -> None:
        assert self._owners is not None  # noqa: S101 - made before the connection
        closed(connection, Path(self.path), self._owners, self._owner)

    def _lives(self, owner: int) -> bool:
        assert self._owners is not None  # noqa: S101 - made before the connection
        return self._owners.alive(owner)

    def _living(self, connection: sqlite3.Connection, owners: Collection[int]) -> Collection[int]:  # noqa: ARG002
        return {owner for owner in owners if self._lives(owner)}

    def _tidy(self, connection: sqlite3.Connection) -> None:
        # Those of another boot may count for one more window from now.
        expired = connection.execute(
            "SELECT id, settled, process FROM slots WHERE boot = ? AND expires <= ?",
            (boot_id(), time.monotonic()),
        ).fetchall()
        for ticket, settled, process in expired:
            owner = owner_of(process)
            # A process that lives may send the request of a slot in flight yet.
            if settled or owner is None or not self._lives(owner):
                connection.execute("DELETE FROM slots WHERE id = ?", (ticket,))
        others = self._entered(connection)
        dead = others - {*self._living(connection, others)}
        connection.executemany("DELETE FROM owners WHERE id = ?", [(owner,) for owner in dead])

    def _lock_out(self, connection: sqlite3.Connection) -> None:
        """Nothing: who comes has to write."""

    def _others(self, connection: sqlite3.Connection) -> bool:
        return bool(self._living(connection, self._entered(connection)))

    def _entered(self, connection: sqlite3.Connection) -> set[int]:
        return {owner for (owner,) in connection.execute("SELECT id FROM owners")} - {self._owner}

    async def _free_space(self) -> None:
        assert self._owners is not None  # noqa: S101 - made before
        if self.users == 1:  # else sessions of this process would wait for it
            try:
                await asyncio.to_thread(shrink, Path(self.path), self._owners, self._owner)
            except (sqlite3.Error, OSError, LedgerError) as error:
                # It takes room of its own for a while. What was removed is removed all the same.
                _log.warning("the ledger %s is as large as before: %s", self.path, error)

    def _alone(self, connection: sqlite3.Connection) -> None:
        """Nothing: only one transaction at a time writes."""
