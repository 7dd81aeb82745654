"""The numbers at the top: how many, how long, and how many credits."""

from __future__ import annotations

import statistics
from collections import Counter
from typing import TYPE_CHECKING

import attrs

from ..ledger import LedgerState
from .states import GROUPS, group, label

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..ledger import LedgerEntry

_UNDER_WAY = {"waiting to be sent", "being sent", "under way"}
_ORDER = ("done", "failed", "ambiguous", "under way", "never sent", "refused", "abandoned")
_ALWAYS = 3  # that none is ambiguous is worth saying too


@attrs.frozen
class Totals:
    """What a ledger has, in numbers.

    Args:
        states: How many entries there are by what became of them; of those that count for their refs.
        groups: The same by filter, ``all`` first.
        earlier: How many there are that were ordered anew since.
        reserved: The credits that were reserved.
        refunded: The credits of those that failed.
        unpriced: How many receipts don't tell their credits.
        median: The median time from receipt to end, in seconds; None where none is known.
        longest: The longest such time, in seconds; None where none is known.

    """

    states: tuple[tuple[str, int], ...]
    groups: tuple[tuple[str, int], ...]
    earlier: int
    reserved: int
    refunded: int
    unpriced: int
    median: float | None
    longest: float | None

    @property
    def spent(self) -> int:
        """The credits that didn't come back."""
        return self.reserved - self.refunded


def processing(entry: LedgerEntry) -> float | None:
    """Give the time from receipt to end, in seconds; None where it isn't known, or a clock was set back.

    Args:
        entry: The entry.

    """
    if entry.submitted_at is None or entry.settled_at is None:
        return None
    seconds = (entry.settled_at - entry.submitted_at).total_seconds()
    return seconds if seconds >= 0 else None


def totals(entries: Sequence[LedgerEntry]) -> Totals:
    """Give the totals of all entries, those that were ordered anew since as well.

    Args:
        entries: All of a ledger's.

    """
    current = [entry for entry in entries if entry.current]
    words = (label(entry) for entry in current)
    states = Counter("under way" if word in _UNDER_WAY else word for word in words)
    groups = Counter(map(group, current))
    receipts = [(entry, entry.receipt) for entry in entries if entry.receipt is not None]
    credit = [(entry, receipt.credits_reserved) for entry, receipt in receipts]
    known = [(entry, amount) for entry, amount in credit if amount is not None]
    durations = [seconds for entry in entries if (seconds := processing(entry)) is not None]
    return Totals(
        tuple((name, states[name]) for place, name in enumerate(_ORDER) if states[name] or place < _ALWAYS),
        (("all", len(current)), *((name, groups[name]) for name in GROUPS)),
        len(entries) - len(current),
        sum(amount for _, amount in known),
        sum(amount for entry, amount in known if entry.state is LedgerState.FAILED),
        len(credit) - len(known),
        statistics.median(durations) if durations else None,
        max(durations, default=None),
    )
