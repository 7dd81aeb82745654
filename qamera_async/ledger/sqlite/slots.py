"""The slot log in an SQLite ledger: what each process has taken of an account's quota.

A slot is stamped with the monotonic clock, which neither a changed date nor a sleeping machine can set
back. After another boot that clock has begun anew: then a slot counts for one more window from now.
"""

from __future__ import annotations

import sqlite3
import time
from typing import TYPE_CHECKING

from ..._boot import boot_id
from ..slots import Slots, external_usage, owner_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..._ratelimit import ExternalUsage, Priority
    from .worker import Worker


class SqliteSlots(Slots[sqlite3.Connection]):
    """The slots of an account in a ledger file.

    Args:
        worker: runs the statements.
        account: names the rate limit.
        grace: how long a request may take, in seconds.
        owner: returns the owner that this process is in the ledger.
        alive: returns whether the process of an owner lives.
        clock: the machine's monotonic clock, in seconds; replaceable in tests.
        boot: names the clock's beginning; replaceable in tests.
    """

    def __init__(
        self,
        worker: Worker,
        account: str,
        grace: float,
        owner: Callable[[], int],
        alive: Callable[[int], bool],
        clock: Callable[[], float] = time.monotonic,
        boot: Callable[[], str] = boot_id,
    ) -> None:
        super().__init__(worker, account, grace, owner)
        self._alive = alive
        self._clock = clock
        self._boot = boot

    def _taking(
        self, ticket: str, priority: Priority, limit: int, window: float, reserve: float
    ) -> Callable[[sqlite3.Connection], tuple[bool, ExternalUsage]]:
        def operation(connection: sqlite3.Connection) -> tuple[bool, ExternalUsage]:
            now = self._expire(connection)
            (taken,) = connection.execute(
                "SELECT count(*) FROM slots WHERE account = ?", (self._account,)
            ).fetchone()
            if taken >= limit:
                return False, self._usage(connection)
            # If this process dies, the slot counts for as long as the request could have been in flight.
            expires = now + self._grace + window
            connection.execute(
                "INSERT INTO slots VALUES (?, ?, ?, ?, 0, ?, ?, ?)",
                (ticket, self._account, self._process(), priority.value, expires, reserve, self._boot()),
            )
            return True, self._usage(connection)

        return operation

    def _settling(self, ticket: object, until: float | None) -> Callable[[sqlite3.Connection], None]:
        def operation(connection: sqlite3.Connection) -> None:
            if until is None:
                connection.execute("DELETE FROM slots WHERE id = ?", (ticket,))
            else:
                connection.execute("UPDATE slots SET settled = 1, expires = ? WHERE id = ?", (until, ticket))

        return operation

    def _reading(self) -> Callable[[sqlite3.Connection], ExternalUsage]:
        def operation(connection: sqlite3.Connection) -> ExternalUsage:
            self._expire(connection)
            return self._usage(connection)

        return operation

    def _expire(self, connection: sqlite3.Connection) -> float:
        """Delete the slots that are free by now; return the current time."""
        now, boot = self._clock(), self._boot()
        connection.execute(
            "UPDATE slots SET settled = 1, expires = ?, boot = ? "
            "WHERE account = ? AND (boot != ? OR expires > ?)",
            # A moment that no slot of this boot can have is of another one too, where boots have no names.
            (now + self._window, boot, self._account, boot, now + self._window + self._grace),
        )
        expired = connection.execute(
            "SELECT id, settled, process FROM slots WHERE account = ? AND expires <= ?", (self._account, now)
        ).fetchall()
        for ticket, settled, process in expired:
            if settled or not self._may_be_sent(ticket, process):
                connection.execute("DELETE FROM slots WHERE id = ?", (ticket,))
        return now

    def _may_be_sent(self, ticket: str, process: str) -> bool:
        """Return whether a slot in flight belongs to a process that lives, and may send its request yet."""
        owner = owner_of(process)
        if owner == self._owner():
            return ticket in self._in_flight
        return owner is not None and self._alive(owner)

    def _usage(self, connection: sqlite3.Connection) -> ExternalUsage:
        return external_usage(
            connection.execute(
                "SELECT priority, settled, expires, reserve, process FROM slots "
                "WHERE account = ? AND process NOT LIKE ? ORDER BY expires",
                (self._account, self._own_rows()),
            )
        )
