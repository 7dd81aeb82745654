"""What says that a ledger was moved elsewhere, so that nobody orders with what was left behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import LedgerUnavailableError

if TYPE_CHECKING:
    from .intents import Tables


def check_not_moved(connection: Tables, path: str) -> None:
    """Refuse a ledger that was moved.

    Raises:
        LedgerUnavailableError: it was; it says where to.
    """
    found = connection.execute("SELECT place FROM moved").fetchone()
    if found is not None:
        raise LedgerUnavailableError(
            f"The ledger was moved to {found[0]}: what is ordered from here on is known there only.",
            path=path,
            fix=f"Give {found[0]} as the ledger",
        )


def mark_moved(connection: Tables, place: str) -> None:
    """Say where a ledger was moved to; nobody can open it any more."""
    connection.execute("INSERT INTO moved VALUES (?)", (place,))
