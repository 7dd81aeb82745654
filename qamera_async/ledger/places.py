"""A durable record of what was meant, sent, received and seen: what makes a paid request once-only.

The intent is on disk before the POST, the receipt before the caller has it. So after any crash it is known
which requests were paid for, and which ones nobody can be sure of.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..errors import ConfigurationError
from .address import SCHEMES, Address

if TYPE_CHECKING:
    from collections.abc import Collection
    from types import ModuleType

    from .._models import Intent, Receipt, Video
    from .._ratelimit import SharedSlots
    from ..errors import QameraError
    from .board import Board
    from .ledger import Ledger
    from .rows import Row
    from .sql import SqlStorage


class NoLedger:
    """What a session without a ledger keeps: nothing."""

    kept = False

    async def open(self) -> None:
        """See to it that it can be worked with."""

    async def aclose(self) -> None:
        """Keep what couldn't be kept before, if that goes now, and let go of it."""

    def release(self) -> None:
        """Let go of what was never opened, or of what nobody has closed."""

    def slots(self, account: str, grace: float) -> SharedSlots | None:  # noqa: ARG002
        """Give the log of the slots that all processes with this ledger and account take."""
        return None

    def board(self, account: str) -> Board[Any] | None:  # noqa: ARG002
        """Give the board by which all processes with this ledger and account share one poll."""
        return None

    async def claim(self, intent: Intent, *, retry_failed: bool) -> Row | None:  # noqa: ARG002
        """Claim a request; give the row of an earlier one that stands for it."""
        return None

    async def sending(self, intent: Intent) -> None:
        """Keep, before the first byte leaves, that it is sent now."""

    def unsent(self, intent: Intent) -> None:
        """Keep that provably nothing of it was sent, and that it will be tried again."""

    def withdraw(self, intent: Intent) -> None:
        """Forget it: provably nothing of it was sent, and nothing will be."""

    def let_go(self, intent: Intent) -> None:
        """Say that nobody works on it any more."""

    async def refused(self, intent: Intent, error: QameraError) -> None:
        """Keep that the server said no."""

    async def submitted(self, intent: Intent, receipt: Receipt) -> None:
        """Keep the receipt."""

    async def ambiguous(self, intent: Intent, reason: str) -> None:
        """Keep that nobody knows, and what has been seen of it."""

    async def alone(self, intent: Intent) -> bool:  # noqa: ARG002
        """Tell whether no other process has a POST under way that may still bring a receipt."""
        return True

    async def unclaimed(self, record_ids: Collection[str]) -> set[str]:
        """Give those of the records that no earlier receipt has."""
        return set(record_ids)

    def settled(self, record_ids: tuple[str, ...], videos: tuple[Video, ...]) -> None:
        """Keep the final state of a job's records."""


def ledger_at(place: str | Address, origin: str) -> Ledger:
    """Give the ledger of a file or an address; nothing is opened before it is used.

    Raises:
        ConfigurationError: the address can't be read, or what it takes isn't installed.
    """
    # Many sessions have no ledger, and need not wait for the import of a database.
    from .ledger import Ledger  # noqa: PLC0415

    if isinstance(place, Address):
        return Ledger(_postgres().PostgresStorage.of(place), origin)
    from .sqlite import SqliteStorage  # noqa: PLC0415

    return Ledger(SqliteStorage.of(place), origin)


def storage_apart(place: str | Address) -> SqlStorage[Any]:
    """Give the storage of a ledger that no session of this process has; nothing is opened before it is used.

    Raises:
        ConfigurationError: as ``ledger_at``.
    """
    if isinstance(place, Address):
        storage: SqlStorage[Any] = _postgres().PostgresStorage.apart(place)
        return storage
    from .sqlite import SqliteStorage  # noqa: PLC0415 - as for a ledger

    return SqliteStorage.apart(os.path.realpath(place))


def shown_place(place: str | Address) -> str:
    """Give what to call a ledger in messages.

    Raises:
        ConfigurationError: as ``ledger_at``.
    """
    return str(_postgres().Place(place).shown) if isinstance(place, Address) else place


def ledger_is_there(place: str | Address) -> bool:
    """Tell whether there is a ledger, or something in its place; nothing is made. It may take a while.

    Raises:
        ConfigurationError: as ``ledger_at``.
        LedgerError: the database can't be asked.
    """
    return _postgres().there(place) if isinstance(place, Address) else Path(place).exists()


def _postgres() -> ModuleType:
    try:
        return import_module(".postgres", __package__)
    except ImportError as error:
        raise ConfigurationError(
            "ledger: an address needs psycopg, which isn't installed: pip install 'qamera-async[postgres]'"
        ) from error


def checked_place(ledger: object) -> str | Address:
    """Return a ledger's path as text, or its address.

    Raises:
        ConfigurationError: It is neither.
    """
    problem = _place_problem(ledger)
    if problem is not None:
        del ledger  # tracebacks with local variables must not show the password of a database
        raise ConfigurationError(f"ledger: {problem}.")
    path = os.fspath(cast("str | os.PathLike[str]", ledger))
    return path if "://" not in path else Address(path)


def _place_problem(ledger: object) -> str | None:
    # Returns a message and doesn't raise, so that no traceback contains this frame and with it the value.
    allowed = "allowed is the path of a file, an address postgresql://..., or None"
    if not isinstance(ledger, str | os.PathLike):
        return f"got {type(ledger).__name__}, {allowed}"
    path = os.fspath(ledger)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if not isinstance(path, str) or not path.strip() or "\0" in path or path == ":memory:":
        return allowed
    return None if "://" not in path or path.startswith(SCHEMES) else allowed
