"""Find the records that may belong to a submission whose answer was lost.

A record that was not listed before the submission and that no receipt names is a candidate. Finding no
candidate proves nothing: a server may list a record late.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime, timedelta

from .._config import Timeouts
from .._models import Receipt, Record
from .._polling import Poller
from .._protocol import RecordList, kind_of
from ..errors import QameraError
from ..ledger.places import NoLedger
from ..ledger.rows import Row
from .claim import Claim, suspension_clock

_log = logging.getLogger("qamera_async")

_MAX_NAMED = 10_000  # record ids of receipts that no list has shown
_CLOCK_TOLERANCE = timedelta(seconds=60)


class Reconciler:
    """Look for the records of ambiguous submissions.

    Args:
        pollers: The poller of each list, by the path of the list.
        ledger: Knows the receipts of other processes.
        timeouts: ``reconcile`` limits the search for one submission; ``request`` limits one exchange.
        claims: The claims of the submitter that have no result yet.

    """

    def __init__(
        self,
        pollers: Mapping[str, Poller],
        ledger: NoLedger,
        timeouts: Timeouts,
        claims: Collection[Claim],
    ) -> None:
        self._pollers = pollers
        self._ledger = ledger
        self._timeouts = timeouts
        self._claims = claims
        self._active: dict[Claim, asyncio.Timeout] = {}
        self._stopped = False
        # By list: the record ids on receipts, in the order of their arrival. They belong to no ambiguous
        # submission. An id is forgotten once all submissions under way were sent after a list that shows it.
        self._named: dict[str, dict[str, None]] = {path: {} for path in pollers}
        self._pruned_at: dict[str, int] = dict.fromkeys(pollers, 0)  # the list number of the last pruning

    def stop(self) -> None:
        """Stop looking for candidates; what was found so far counts."""
        self._stopped = True
        for scope in self._active.values():
            if not scope.expired():
                scope.reschedule(0)

    def note_receipt(self, claim: Claim, receipt: Receipt) -> None:
        """Note that the records of a receipt belong to its submission."""
        path = claim.kind.records.path
        # Each submission under way was sent after this list.
        oldest = min(
            other.list_number
            for other in (*self._claims, claim)
            if other is claim or (other.sent_at and other.kind.records.path == path)
        )
        named = self._named[path]
        if oldest > self._pruned_at[path]:
            unlisted = self._pollers[path].new_since(named, oldest)
            named = self._named[path] = {record_id: None for record_id in named if record_id in unlisted}
            self._pruned_at[path] = oldest
        named.update(dict.fromkeys(receipt.record_ids))
        while len(named) > _MAX_NAMED:
            del named[next(iter(named))]

    async def reconcile(self, claim: Claim) -> tuple[Record, ...]:
        """Look for the candidates of a submission, for ``Timeouts.reconcile`` seconds at most.

        Never raises, not even `asyncio.CancelledError`: the error about the submission must reach the caller.
        """
        found: dict[str, Record] = {}
        try:
            if self._timeouts.reconcile and not self._stopped:
                async with asyncio.timeout(self._timeouts.reconcile) as scope:
                    self._active[claim] = scope
                    if len(self._active) > 1:
                        for other in self._active:
                            other.may_share_candidates = True
                    await self._look(claim, found)
        except QameraError as error:
            _log.info("The candidates of an ambiguous submission can't be looked for: %s", error)
        except TimeoutError:
            pass
        except Exception:
            _log.exception("Looking for the candidates of an ambiguous submission failed.")
        except asyncio.CancelledError:
            claim.orphaned = True  # the event loop ends; the candidates must still be stored
        finally:
            self._active.pop(claim, None)
        return await self._unclaimed(claim, found)

    async def _look(self, claim: Claim, found: dict[str, Record]) -> None:
        """Collect candidates until no other submission is under way whose receipt may name one of them."""
        while True:
            records = await self._pollers[claim.kind.records.path].next_list()
            found |= self._new_records(claim, records)
            in_flight = any(other is not claim and other.attempt.in_flight for other in self._claims)
            if not in_flight and self._not_named(claim, found) and await self._ledger.alone(claim.intent):
                return

    def _new_records(self, claim: Claim, records: RecordList) -> dict[str, Record]:
        """Return the records of a list that may belong to a submission."""
        path = claim.kind.records.path
        if claim.list_number:
            new = self._pollers[path].new_since(records.ids, claim.list_number) - self._named[path].keys()
            return {record_id: record for record_id in new if (record := records.get(record_id)) is not None}
        # No list was fetched before: compare with the clock of the server.
        now = suspension_clock()
        created = _created_between(records, records.date, now - claim.sent_at, now - claim.ended_at)
        return self._not_named(claim, created)

    def _not_named(self, claim: Claim, found: dict[str, Record]) -> dict[str, Record]:
        """Leave out the records that receipts of this session name."""
        named = self._named[claim.kind.records.path]
        return {record_id: record for record_id, record in found.items() if record_id not in named}

    async def _unclaimed(self, claim: Claim, found: dict[str, Record]) -> tuple[Record, ...]:
        """Leave out the records that any known receipt names by now."""
        candidates = self._not_named(claim, found)
        try:
            unclaimed = await self._ledger.unclaimed(candidates)
        except asyncio.CancelledError:
            claim.orphaned = True
        except Exception as error:
            _log.warning("The ledger can't say which candidates belong to other submissions: %s", error)
        else:
            return tuple(record for record in candidates.values() if record.id in unclaimed)
        return tuple(candidates.values())

    async def look_back(self, rows: Iterable[Row]) -> dict[str, tuple[Record, ...]]:
        """Return the candidates that earlier ambiguous submissions have by now.

        Args:
            rows: Rows of the ledger with the candidates seen so far, without those that receipts name.

        Returns:
            The candidates by intent id.

        Raises:
            QameraError: A list is not available.

        """
        lists: dict[str, tuple[RecordList, tuple[Record, ...]]] = {}
        found: dict[str, tuple[Record, ...]] = {}
        for row in rows:
            path = kind_of(row.request).records.path
            if path not in lists:
                fetched = await self._pollers[path].next_list()
                lists[path] = fetched, tuple(fetched)  # made once for all rows
            listed, records = lists[path]
            if row.candidates:
                found[row.id] = tuple(listed.get(seen.id) or seen for seen in row.candidates)
            elif row.sent_at is not None:
                began = (datetime.now(UTC) - row.sent_at).total_seconds()
                created = _created_between(records, listed.date, began, began - self._timeouts.request)
                unclaimed = await self._ledger.unclaimed(created)
                named = self._named[path]
                found[row.id] = tuple(
                    record for record in created.values() if record.id in unclaimed and record.id not in named
                )
        return found


def _created_between(
    records: Iterable[Record], date: datetime | None, began: float, ended: float
) -> dict[str, Record]:
    """Return the records that were created during an exchange by the server's clock, give or take 60 s.

    Args:
        records: The records of a list.
        date: When the server sent the list; None where it didn't say.
        began: How many seconds before the list the exchange began.
        ended: How many seconds before the list the exchange ended.

    """
    if date is None:
        return {}
    try:
        earliest = date - timedelta(seconds=began) - _CLOCK_TOLERANCE
        latest = date - timedelta(seconds=ended) + _CLOCK_TOLERANCE
    except OverflowError:  # the server's clock is at one end of time
        return {}
    return {
        record.id: record
        for record in records
        if record.created_at is not None and earliest <= record.created_at <= latest
    }
