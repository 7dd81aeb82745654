"""The shared poll in PostgreSQL, where NOTIFY tells others. Each call is one message there and one back."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, ClassVar

from ..board import Board
from .listening import CHANNEL
from .opening import ALIVE
from .schema import LOCKS
from .session import Session
from .slots import CLOCK
from .worker import Alone

if TYPE_CHECKING:
    from collections.abc import Callable

    from .worker import Worker


class PostgresBoard(Board[Session]):
    """The board of an account, for one poller.

    Args:
        worker: runs what is asked of the database.
        account: whose list it is.
        owner: gives who this process is.
    """

    tells: ClassVar[bool] = True
    _worker: Worker

    def __init__(self, worker: Worker, account: str, owner: Callable[[], int]) -> None:
        super().__init__(worker, account, owner)
        digest = blake2b(f"{account} polls".encode(), digest_size=8).digest()
        self._lock = int.from_bytes(digest, "big", signed=True)

    def _operation(self, operation: Callable[[Session], object]) -> Callable[[Session], object]:
        return Alone(operation)

    def _now(self) -> str:
        return CLOCK

    def _alone(self, connection: Session) -> None:
        connection.execute("SELECT pg_advisory_xact_lock(?)", (self._lock,))

    def _forget_dead(self, connection: Session) -> None:
        dead = f"owner NOT IN ({ALIVE})"
        connection.execute(
            f"UPDATE polls SET owner = 0, poller = '' WHERE account = ? AND owner <> 0 AND {dead}",  # noqa: S608
            (self._account, LOCKS),
        )
        connection.execute(
            f"DELETE FROM waiting WHERE account = ? AND {dead}",  # noqa: S608
            (self._account, LOCKS),
        )

    def _tell(self, connection: Session) -> None:
        connection.execute("SELECT pg_notify(?, ?)", (CHANNEL, self._account))

    def listen(self, tell: Callable[[], None]) -> None:
        """From now on tell, from another thread, when there may be news."""
        self._worker.listen(self, self._account, tell)

    def stop_listening(self) -> None:
        """Tell no more."""
        self._worker.stop_listening(self)
