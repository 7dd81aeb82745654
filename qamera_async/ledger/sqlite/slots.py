"""The slot log in an SQLite ledger: what each process has taken of an account's quota.

A slot is stamped with the monotonic clock, which neither a changed date nor a sleeping machine can set
back. After another boot that clock has begun anew: then a slot counts for one more window from now.
"""

from __future__ import annotations

import sqlite3
import time
from typing import TYPE_CHECKING

from ..._boot import boot_id
from ..slots import Slots, elsewhere_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..._ratelimit.shared import Elsewhere
    from ..._ratelimit.window import Priority
    from .worker import Worker


class SqliteSlots(Slots[sqlite3.Connection]):
    """An account's slots in a ledger.

    Args:
        worker: runs what is asked of the database.
        account: whose quota it is.
        grace: how long a request may be under way, in seconds.
        clock: the machine's monotonic clock, in seconds; replaceable in tests.
        boot: names the clock's beginning; replaceable in tests.
    """

    def __init__(
        self,
        worker: Worker,
        account: str,
        grace: float,
        clock: Callable[[], float] = time.monotonic,
        boot: Callable[[], str] = boot_id,
    ) -> None:
        super().__init__(worker, account, grace)
        self._clock = clock
        self._boot = boot

    def _taking(
        self, ticket: str, priority: Priority, limit: int, window: float, reserve: float
    ) -> Callable[[sqlite3.Connection], tuple[bool, Elsewhere]]:
        def operation(connection: sqlite3.Connection) -> tuple[bool, Elsewhere]:
            now = self._expire(connection)
            (taken,) = connection.execute(
                "SELECT count(*) FROM slots WHERE account = ?", (self._account,)
            ).fetchone()
            if taken >= limit:
                return False, self._elsewhere(connection)
            # Should this process die, the request counts for as long as it could have been under way.
            expires = now + self._grace + window
            connection.execute(
                "INSERT INTO slots VALUES (?, ?, ?, ?, 0, ?, ?, ?)",
                (ticket, self._account, self._process(), priority.value, expires, reserve, self._boot()),
            )
            return True, self._elsewhere(connection)

        return operation

    def _settling(self, ticket: object, until: float | None) -> Callable[[sqlite3.Connection], None]:
        def operation(connection: sqlite3.Connection) -> None:
            if until is None:
                connection.execute("DELETE FROM slots WHERE id = ?", (ticket,))
            else:
                connection.execute("UPDATE slots SET settled = 1, expires = ? WHERE id = ?", (until, ticket))

        return operation

    def _looking(self) -> Callable[[sqlite3.Connection], Elsewhere]:
        def operation(connection: sqlite3.Connection) -> Elsewhere:
            self._expire(connection)
            return self._elsewhere(connection)

        return operation

    def _expire(self, connection: sqlite3.Connection) -> float:
        """Forget the slots that are free by now; give the moment."""
        now, boot = self._clock(), self._boot()
        connection.execute(
            "UPDATE slots SET settled = 1, expires = ?, boot = ? "
            "WHERE account = ? AND (boot != ? OR expires > ?)",
            # A moment that no slot of this boot can have is of another one too, where boots have no names.
            (now + self._window, boot, self._account, boot, now + self._window + self._grace),
        )
        connection.execute("DELETE FROM slots WHERE account = ? AND expires <= ?", (self._account, now))
        return now

    def _elsewhere(self, connection: sqlite3.Connection) -> Elsewhere:
        return elsewhere_of(
            connection.execute(
                "SELECT priority, settled, expires, reserve, process FROM slots "
                "WHERE account = ? AND process != ? ORDER BY expires",
                (self._account, self._process()),
            )
        )
