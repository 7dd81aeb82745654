"""What a state is called on the page, and which filter shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..ledger import LedgerState

if TYPE_CHECKING:
    from ..ledger import LedgerEntry

_LABELS = {
    LedgerState.SENDING: "being sent",
    LedgerState.REFUSED: "refused",
    LedgerState.SUBMITTED: "under way",
    LedgerState.AMBIGUOUS: "ambiguous",
    LedgerState.ADOPTED: "under way",
    LedgerState.ABANDONED: "abandoned",
    LedgerState.DONE: "done",
    LedgerState.FAILED: "failed",
}

GROUPS = ("done", "failed", "ambiguous", "rest")
"""What can be filtered for."""


def group(entry: LedgerEntry) -> str:
    """Give which filter shows an entry.

    Args:
        entry: The entry.

    """
    name = label(entry)
    return name if name in GROUPS else "rest"


def label(entry: LedgerEntry) -> str:
    """Give what an entry's state is called.

    Args:
        entry: The entry.

    """
    if entry.state is LedgerState.CLAIMED:
        return "waiting to be sent" if entry.busy else "never sent"
    return _LABELS[entry.state]
