"""Removing what is long settled, in short transactions, while others work with the ledger."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import attrs

from .rows import LedgerState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .intents import Intents, Tables
    from .rows import Row

IN_DOUBT = frozenset({LedgerState.AMBIGUOUS, LedgerState.SENDING})
"""The states that may need to know of which records others are."""

SETTLED = frozenset({LedgerState.DONE, LedgerState.FAILED, LedgerState.REFUSED, LedgerState.ABANDONED})
"""The states in which nobody waits for anything, and nobody is in doubt."""

_PAID = frozenset({LedgerState.DONE, LedgerState.FAILED})

_MARGIN = timedelta(hours=1)  # by which the clocks of those who wrote may differ


@attrs.frozen
class Pruned:
    """What was removed from a ledger, or would be.

    Args:
        before: What had its last moment before this one, an aware datetime in UTC; earlier than was asked for
            where a request is in doubt since then.
        counts: How many requests in each state; none where there are none.
        refs: How many of them are the done or failed request of a ref: each is ordered again, and paid for
            again, when it is asked for again.

    """

    before: datetime
    counts: Mapping[LedgerState, int] = attrs.field(factory=dict[LedgerState, int])
    refs: int = 0

    @property
    def requests(self) -> int:
        """How many in all."""
        return sum(self.counts.values())

    def __add__(self, other: Pruned) -> Pruned:
        """Give both together."""
        states = {**self.counts, **other.counts}
        counts = {state: self.counts.get(state, 0) + other.counts.get(state, 0) for state in states}
        return Pruned(self.before, counts, self.refs + other.refs)


def since_the_first_doubt(doubts: list[Row], before: datetime) -> datetime:
    """Give the moment before which rows may go, where these are in doubt.

    The candidates of a doubt are told from the records of other requests by the rows of those, so that what
    was made since then stays.
    """
    moments = [row.sent_at or row.claimed_at for row in doubts]
    if None in moments:
        return datetime.min.replace(tzinfo=before.tzinfo)
    return min([before, *[moment - _MARGIN for moment in moments if moment is not None]])


def prune_page(
    intents: Intents, connection: Tables, before: datetime, last: int, *, remove: bool
) -> tuple[int | None, Pruned]:
    """Remove what may go of the first rows after a number; gives the last number that was looked at."""
    rows = intents.some(connection, None, SETTLED, last)
    counts: dict[LedgerState, int] = {}
    refs = 0
    for found in rows:
        row = found.row
        moment = last_moment(row)
        if moment is None or moment >= before or (remove and not intents.remove(connection, found)):
            continue
        counts[row.state] = counts.get(row.state, 0) + 1
        refs += found.current and row.request.ref is not None and row.state in _PAID
    return (rows[-1].number if rows else None), Pruned(before, counts, refs)


def last_moment(row: Row) -> datetime | None:
    """Give the last moment of a row's life; None where none is known."""
    moments = (row.claimed_at, row.sent_at, row.submitted_at, row.settled_at, row.downloaded_at)
    return max((moment for moment in moments if moment is not None), default=None)
