"""The ledger in PostgreSQL. The only room that imports psycopg."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self, cast

from ..sql import SqlStorage
from .board import PostgresBoard
from .opening import LONG_DEAD, is_there, living
from .place import Place
from .schema import ADOPTING, LOCKS
from .session import Session
from .slots import CLOCK, IN_FLIGHT, PostgresSlots
from .worker import Worker

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable

    from ..address import Address


class PostgresStorage(SqlStorage[Session]):
    """One connection for all sessions of this process with the same address."""

    folder: str | None = None
    _locked: ClassVar[str] = " FOR UPDATE"
    _worker: Worker

    def __init__(self, address: Address) -> None:
        place = Place(address)
        worker = Worker(place)
        super().__init__(place.shown, worker)
        self._owner = worker.owner

    @classmethod
    def of(cls, address: Address) -> Self:
        """Give the storage of an address; each is to be closed as often as it was given.

        Raises:
            ConfigurationError: it is no address.
        """
        return cls._shared(address)

    @classmethod
    def _named(cls, name: Hashable) -> Self:
        return cls(cast("Address", name))

    def _new_slots(self, account: str, grace: float) -> PostgresSlots:
        return PostgresSlots(self._worker, account, grace, lambda: self._owner)

    def board(self, account: str) -> PostgresBoard:
        """Give the board of an account's polls, for one poller."""
        return PostgresBoard(self._worker, account, lambda: self._owner)

    # --- in the thread --------------------------------------------------------------------------

    def _living(self, connection: Session, owners: Collection[int]) -> Collection[int]:
        return living(connection) if owners else ()

    def _lock_out(self, connection: Session) -> None:
        connection.execute("LOCK TABLE moved IN ACCESS EXCLUSIVE MODE")

    def _others(self, connection: Session) -> bool:
        return bool(living(connection) - {self._owner})

    def _tidy(self, connection: Session) -> None:
        expired = f"DELETE FROM slots WHERE expires <= {CLOCK} AND NOT ({IN_FLIGHT})"  # noqa: S608 - our own words
        connection.execute(expired, (LOCKS,))
        connection.execute(f"DELETE FROM owners WHERE {LONG_DEAD}", (LOCKS,))  # noqa: S608 - our own words

    def _alone(self, connection: Session) -> None:
        connection.execute("SELECT pg_advisory_xact_lock(?, ?)", (LOCKS, ADOPTING))


def there(address: Address) -> bool:
    """Tell whether there is a ledger at an address; nothing is made.

    Raises:
        ConfigurationError: it is no address.
        LedgerError: the database can't be asked.
    """
    return is_there(Place(address))
