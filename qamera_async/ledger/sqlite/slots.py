"""The log of slots: what all processes with this ledger have taken of an account's quota.

A slot is stamped with the monotonic clock, which neither a changed date nor a sleeping machine can set
back. After another boot that clock has begun anew: then a slot counts for one more window from now.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from typing import TYPE_CHECKING

from ..._boot import boot_id
from ...budget.shared import Elsewhere
from ...budget.window import Priority
from ...errors import LedgerUnavailableError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

    from .worker import Worker

_log = logging.getLogger("qamera_async")

_USUAL_WINDOW = 60.0  # seconds
_tokens: dict[int, str] = {}


def _process() -> str:
    """A name of this process, that no other ever has; a forked child has another."""
    return _tokens.setdefault(os.getpid(), f"{os.getpid()}-{secrets.token_hex(8)}")


class SqliteSlots:
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
        self._worker = worker
        self._account = account
        self._grace = grace
        self._window = _USUAL_WINDOW  # the longest that was asked for
        self._clock = clock
        self._boot = boot
        self._seen = Elsewhere()  # what others had taken at the last look

    async def take(
        self, priority: Priority, limit: int, window: float, reserve: float
    ) -> tuple[object | None, Elsewhere]:
        """Take a slot if fewer than ``limit`` are taken in all."""
        self._window = max(self._window, window)
        ticket = secrets.token_hex(12)

        def operation(connection: sqlite3.Connection) -> tuple[object | None, Elsewhere]:
            now = self._expire(connection)
            (taken,) = connection.execute(
                "SELECT count(*) FROM slots WHERE account = ?", (self._account,)
            ).fetchone()
            if taken >= limit:
                return None, self._elsewhere(connection)
            # Should this process die, the request counts for as long as it could have been under way.
            expires = now + self._grace + window
            connection.execute(
                "INSERT INTO slots VALUES (?, ?, ?, ?, 0, ?, ?, ?)",
                (ticket, self._account, _process(), priority.value, expires, reserve, self._boot()),
            )
            return ticket, self._elsewhere(connection)

        try:
            return await self._worker.run("take a slot", operation)
        except LedgerUnavailableError as error:
            if priority is not Priority.POLL:
                raise
            # On a full disk nothing may be ordered, but what is paid for shall be seen to its end.
            _log.warning("a poll could not take its slot in the ledger, and is sent all the same: %s", error)
            return ticket, self._seen
        except BaseException:
            # Queued behind the taking, so that it finds what that has left.
            self.settle(ticket, None)
            raise

    def settle(self, ticket: object, until: float | None) -> None:
        """Note when a slot is free again; None: at once."""

        def operation(connection: sqlite3.Connection) -> None:
            if until is None:
                connection.execute("DELETE FROM slots WHERE id = ?", (ticket,))
            else:
                connection.execute("UPDATE slots SET settled = 1, expires = ? WHERE id = ?", (until, ticket))

        self._worker.post("settle a slot", operation)

    def look(self, tell: Callable[[Elsewhere], None]) -> None:
        """Tell soon, from another thread, what others have taken."""

        def operation(connection: sqlite3.Connection) -> None:
            self._expire(connection)
            tell(self._elsewhere(connection))

        self._worker.post("look at the slots", operation)

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
        settled: dict[str, list[float]] = {priority.value: [] for priority in Priority}
        under_way = dict.fromkeys(settled, 0)
        reserves: dict[str, float] = {}
        for priority, is_settled, expires, reserve, process in connection.execute(
            "SELECT priority, settled, expires, reserve, process FROM slots "
            "WHERE account = ? AND process != ? ORDER BY expires",
            (self._account, _process()),
        ):
            if is_settled:
                settled[priority].append(expires)
            else:
                under_way[priority] += 1
            reserves[process] = max(reserves.get(process, 0.0), reserve)
        submission, poll = Priority.SUBMISSION.value, Priority.POLL.value
        self._seen = Elsewhere(
            submissions=tuple(settled[submission]),
            polls=tuple(settled[poll]),
            submitting=under_way[submission],
            polling=under_way[poll],
            reserve=sum(reserves.values()),
        )
        return self._seen
