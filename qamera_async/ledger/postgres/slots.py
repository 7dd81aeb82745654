"""The slot log in PostgreSQL: what each process has taken of an account's quota, by the database's clock.

Every look and every taking is one message there and one back. Each of its statements sees what others have
committed before it began, so that who has waited for the account's lock counts what its last holder took.
"""

from __future__ import annotations

import time
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from ..slots import Slots, external_usage
from .opening import ALIVE
from .schema import LOCKS
from .session import Session
from .worker import Alone

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..._ratelimit import ExternalUsage, Priority
    from .worker import Worker

CLOCK = "extract(epoch FROM clock_timestamp())::float8"

_LOCK = "SELECT pg_advisory_xact_lock(%(lock)s)"
# A moment that no slot can have by this clock is of before it was set back.
_SET_BACK = (
    "UPDATE slots SET expires = {now} + %(window)s "
    "WHERE account = %(account)s AND expires > {now} + %(longest)s"
)
# A slot in flight whose process lives: the process may send its request yet.
IN_FLIGHT = (
    "NOT settled AND split_part(process, ':', 2) "  # noqa: S608 - our own words
    f"IN (SELECT id::text FROM ({ALIVE}) AS alive (id))"
)
_IN_FLIGHT = (
    IN_FLIGHT.replace("?", "%(locks)s")
    + " AND (split_part(process, ':', 2) <> %(owner)s OR id = ANY(%(in_flight)s))"
)
_EXPIRE = (
    "DELETE FROM slots WHERE account = %(account)s AND expires <= {now} AND NOT ("  # noqa: S608 - our own words
    + _IN_FLIGHT
    + ")"
)
# If this process dies, the slot counts for as long as the request could have been in flight.
_TAKE = (
    "INSERT INTO slots "
    "SELECT %(ticket)s, %(account)s, %(process)s, %(priority)s, false, {now} + %(held)s, %(reserve)s "
    "WHERE (SELECT count(*) FROM slots WHERE account = %(account)s) < %(limit)s "
    "ON CONFLICT (id) DO NOTHING"
)
_TAKEN = "SELECT 1 FROM slots WHERE id = %(ticket)s"
_OTHERS = (
    "SELECT priority, settled, expires - {now}, reserve, process FROM slots "  # noqa: S608 - our own words
    "WHERE account = %(account)s AND process NOT LIKE %(own_rows)s "
    f"AND (expires > {{now}} OR {_IN_FLIGHT}) ORDER BY expires"
)
# What is lost of these in a crash makes a slot free later, never earlier.
_UNHURRIED = "SET LOCAL synchronous_commit = off"
_SETTLE = "UPDATE slots SET settled = true, expires = {now} + %(left)s WHERE id = %(ticket)s"
_GIVE_BACK = "DELETE FROM slots WHERE id = %(ticket)s"


class PostgresSlots(Slots[Session]):
    """The slots of an account in a ledger.

    Args:
        worker: runs the statements.
        account: names the rate limit.
        grace: how long a request may take, in seconds.
        owner: returns the owner that this process is in the ledger.
        clock: this process's monotonic clock, in seconds; replaceable in tests.
        now: the database's clock in SQL, in seconds; replaceable in tests.
    """

    def __init__(
        self,
        worker: Worker,
        account: str,
        grace: float,
        owner: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], str] = lambda: CLOCK,
    ) -> None:
        super().__init__(worker, account, grace, owner)
        self._clock = clock
        self._now = now
        digest = blake2b(f"{account} slots".encode(), digest_size=8).digest()
        self._lock = int.from_bytes(digest, "big", signed=True)

    def _taking(
        self, ticket: str, priority: Priority, limit: int, window: float, reserve: float
    ) -> Callable[[Session], tuple[bool, ExternalUsage]]:
        def operation(session: Session) -> tuple[bool, ExternalUsage]:
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
            return bool(taken), self._usage(others)

        return Alone(operation)

    def _settling(self, ticket: object, until: float | None) -> Callable[[Session], None]:
        def operation(session: Session) -> None:
            if until is None:
                self._send(session, {"ticket": ticket}, _UNHURRIED, _GIVE_BACK)
            else:
                left = until - self._clock()
                self._send(session, {"ticket": ticket, "left": left}, _UNHURRIED, _SETTLE)

        return Alone(operation)

    def _reading(self) -> Callable[[Session], ExternalUsage]:
        def operation(session: Session) -> ExternalUsage:
            (others,) = self._send(session, self._values(), _OTHERS)
            return self._usage(others)

        return Alone(operation)

    def _values(self) -> dict[str, Any]:
        return {
            "account": self._account,
            "process": self._process(),
            "own_rows": self._own_rows(),
            "owner": str(self._owner()),
            "in_flight": [str(ticket) for ticket in self._in_flight.copy()],
            "locks": LOCKS,
        }

    def _send(
        self, session: Session, values: dict[str, Any], *statements: str
    ) -> list[list[tuple[Any, ...]]]:
        return session.message("; ".join(statements).replace("{now}", self._now()), values)

    def _usage(self, rows: list[tuple[Any, ...]]) -> ExternalUsage:
        # By now a little later than the database looked: so nothing is taken for free too early.
        now = self._clock()
        return external_usage(
            (priority, settled, now + left, reserve, process)
            for priority, settled, left, reserve, process in rows
        )
