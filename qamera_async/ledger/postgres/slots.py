"""The slot log in PostgreSQL: what each process has taken of an account's quota, by the database's clock.

Every look and every taking is one message there and one back. Each of its statements sees what others have
committed before it began, so that who has waited for the account's lock counts what its last holder took.
"""

from __future__ import annotations

import time
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from ..slots import Slots, elsewhere_of
from .session import Session
from .worker import Alone

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..._ratelimit.shared import Elsewhere
    from ..._ratelimit.window import Priority
    from .worker import Worker

CLOCK = "extract(epoch FROM clock_timestamp())::float8"

_LOCK = "SELECT pg_advisory_xact_lock(%(lock)s)"
# A moment that no slot can have by this clock is of before it was set back.
_SET_BACK = (
    "UPDATE slots SET settled = true, expires = {now} + %(window)s "
    "WHERE account = %(account)s AND expires > {now} + %(longest)s"
)
_EXPIRE = "DELETE FROM slots WHERE account = %(account)s AND expires <= {now}"
# Should this process die, the request counts for as long as it could have been under way.
_TAKE = (
    "INSERT INTO slots "
    "SELECT %(ticket)s, %(account)s, %(process)s, %(priority)s, false, {now} + %(held)s, %(reserve)s "
    "WHERE (SELECT count(*) FROM slots WHERE account = %(account)s) < %(limit)s "
    "ON CONFLICT (id) DO NOTHING"
)
_TAKEN = "SELECT 1 FROM slots WHERE id = %(ticket)s"
_OTHERS = (
    "SELECT priority, settled, expires - {now}, reserve, process FROM slots "
    "WHERE account = %(account)s AND process <> %(process)s AND expires > {now} ORDER BY expires"
)
# What is lost of these in a crash makes a slot free later, never earlier.
_UNHURRIED = "SET LOCAL synchronous_commit = off"
_SETTLE = "UPDATE slots SET settled = true, expires = {now} + %(left)s WHERE id = %(ticket)s"
_GIVE_BACK = "DELETE FROM slots WHERE id = %(ticket)s"


class PostgresSlots(Slots[Session]):
    """An account's slots in a ledger.

    Args:
        worker: runs what is asked of the database.
        account: whose quota it is.
        grace: how long a request may be under way, in seconds.
        clock: this process's monotonic clock, in seconds; replaceable in tests.
        now: the database's clock in SQL, in seconds; replaceable in tests.
    """

    def __init__(
        self,
        worker: Worker,
        account: str,
        grace: float,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], str] = lambda: CLOCK,
    ) -> None:
        super().__init__(worker, account, grace)
        self._clock = clock
        self._now = now
        digest = blake2b(f"{account} slots".encode(), digest_size=8).digest()
        self._lock = int.from_bytes(digest, "big", signed=True)

    def _taking(
        self, ticket: str, priority: Priority, limit: int, window: float, reserve: float
    ) -> Callable[[Session], tuple[bool, Elsewhere]]:
        def operation(session: Session) -> tuple[bool, Elsewhere]:
            values = self._values() | {
                "lock": self._lock,
                "window": self._window,
                "longest": self._window + self._grace,
                "held": self._grace + window,
                "ticket": ticket,
                "priority": priority.value,
                "reserve": reserve,
                "limit": limit,
            }
            *_, taken, others = self._send(session, values, _LOCK, _SET_BACK, _EXPIRE, _TAKE, _TAKEN, _OTHERS)
            return bool(taken), self._elsewhere(others)

        return Alone(operation)

    def _settling(self, ticket: object, until: float | None) -> Callable[[Session], None]:
        def operation(session: Session) -> None:
            if until is None:
                self._send(session, {"ticket": ticket}, _UNHURRIED, _GIVE_BACK)
            else:
                left = until - self._clock()
                self._send(session, {"ticket": ticket, "left": left}, _UNHURRIED, _SETTLE)

        return Alone(operation)

    def _looking(self) -> Callable[[Session], Elsewhere]:
        def operation(session: Session) -> Elsewhere:
            (others,) = self._send(session, self._values(), _OTHERS)
            return self._elsewhere(others)

        return Alone(operation)

    def _values(self) -> dict[str, Any]:
        return {"account": self._account, "process": self._process()}

    def _send(
        self, session: Session, values: dict[str, Any], *statements: str
    ) -> list[list[tuple[Any, ...]]]:
        return session.message("; ".join(statements).replace("{now}", self._now()), values)

    def _elsewhere(self, rows: list[tuple[Any, ...]]) -> Elsewhere:
        # By now a little later than the database looked: so nothing is taken for free too early.
        now = self._clock()
        return elsewhere_of(
            (priority, settled, now + left, reserve, process)
            for priority, settled, left, reserve, process in rows
        )
