"""Find the records that may belong to an ambiguous submission.

A record is a candidate if it was not listed before the submission and no receipt has its id. Finding no
candidate proves nothing, because a server may list a record late.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime, timedelta

import attrs

from .._config import Timeouts
from .._models import Receipt, Record
from .._polling import Poller, in_steps
from .._protocol import RecordList, kind_of
from ..errors import QameraError
from ..ledger.places import NoLedger
from ..ledger.rows import Row
from .claim import Claim, suspension_clock

_log = logging.getLogger("qamera_async")

_MAX_RECEIPT_IDS = 100_000  # limits the memory; a search needs only the ids of the last minutes
_CLOCK_TOLERANCE = timedelta(seconds=60)


@attrs.define(eq=False)
class Reconciler:
    """Look for the records of ambiguous submissions.

    Args:
        pollers: The poller of each list, by the path of the list.
        ledger: The receipts of other processes.
        timeouts: ``reconcile`` limits the search for one submission; ``request`` limits one exchange.
        claims: The claims of the submitter that have no result yet.

    """

    _pollers: Mapping[str, Poller]
    _ledger: NoLedger
    _timeouts: Timeouts
    _claims: Collection[Claim]
    _searches: dict[Claim, asyncio.Timeout] = attrs.field(factory=dict[Claim, asyncio.Timeout], init=False)
    _stopped: bool = attrs.field(default=False, init=False)
    # Record ids of receipts, oldest first. They belong to no ambiguous submission.
    _receipt_ids: dict[str, None] = attrs.field(factory=dict[str, None], init=False)

    def stop(self) -> None:
        """Stop all searches; the candidates found so far are kept."""
        self._stopped = True
        for scope in self._searches.values():
            if not scope.expired():
                scope.reschedule(0)

    def add_receipt(self, receipt: Receipt) -> None:
        """Exclude the records of a receipt from the candidates of other submissions."""
        self._receipt_ids.update(dict.fromkeys(receipt.record_ids))
        while len(self._receipt_ids) > _MAX_RECEIPT_IDS:
            del self._receipt_ids[next(iter(self._receipt_ids))]

    async def reconcile(self, claim: Claim) -> tuple[Record, ...]:
        """Look for the candidates of a submission, for ``Timeouts.reconcile`` seconds at most.

        Never raises, not even `asyncio.CancelledError`: the error about the submission must reach the caller.
        """
        found: dict[str, Record] = {}
        try:
            if self._timeouts.reconcile and not self._stopped:
                async with asyncio.timeout(self._timeouts.reconcile) as scope:
                    self._searches[claim] = scope
                    if len(self._searches) > 1:
                        for other in self._searches:
                            other.may_share_candidates = True
                    await self._search(claim, found)
        except QameraError as error:
            _log.info("Could not search for the candidates of an ambiguous submission: %s", error)
        except TimeoutError:
            pass
        except Exception:
            _log.exception("The search for the candidates of an ambiguous submission failed.")
        except asyncio.CancelledError:
            pass  # the event loop is closing; the candidates must still be stored
        finally:
            self._searches.pop(claim, None)
        return await self._unclaimed(found)

    async def _search(self, claim: Claim, found: dict[str, Record]) -> None:
        """Collect candidates until no receipt of another submission can still have one of their ids."""
        while True:
            records = await self._pollers[claim.kind.records.path].next_list()
            found |= await self._new_records(claim, records)
            in_flight = any(other is not claim and other.attempt.in_flight for other in self._claims)
            if not in_flight and self._without_receipt(found) and await self._ledger.alone(claim.intent):
                return

    async def _new_records(self, claim: Claim, records: RecordList) -> dict[str, Record]:
        """Return the records of a list that may belong to a submission."""
        if claim.list_number:
            new = self._pollers[claim.kind.records.path].new_since(records.entries, claim.list_number)
            made = await in_steps(map(records.get, [each for each in records.entries if each in new]))
            created = {record.id: record for record in made if record is not None}
        else:  # no list was fetched before: compare with the clock of the server
            now = suspension_clock()
            began, ended = now - claim.sent_at, now - claim.ended_at
            created = await _created_between(records, records.date, began, ended)
        return self._without_receipt(created)

    def _without_receipt(self, found: dict[str, Record]) -> dict[str, Record]:
        """Leave out the records whose ids are on receipts of this session."""
        return {
            record_id: record for record_id, record in found.items() if record_id not in self._receipt_ids
        }

    async def _unclaimed(self, found: dict[str, Record]) -> tuple[Record, ...]:
        """Leave out the records whose ids are on a receipt of this session or of the ledger."""
        candidates = self._without_receipt(found)
        try:
            unclaimed = await self._ledger.unclaimed(candidates)
        except asyncio.CancelledError:
            pass
        except Exception as error:
            _log.warning(
                "Could not read from the ledger which candidates belong to other submissions: %s", error
            )
        else:
            return tuple(record for record in candidates.values() if record.id in unclaimed)
        return tuple(candidates.values())

    async def find_candidates(self, rows: Iterable[Row]) -> dict[str, tuple[Record, ...]]:
        """Return the present candidates of earlier ambiguous submissions.

        Args:
            rows: Rows of the ledger with the candidates found so far, without those that are on receipts.

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
                lists[path] = fetched, tuple(await in_steps(fetched))
            listed, records = lists[path]
            if row.candidates:
                found[row.id] = tuple(listed.get(old.id) or old for old in row.candidates)
            elif row.sent_at is not None:
                began = (datetime.now(UTC) - row.sent_at).total_seconds()
                created = await _created_between(records, listed.date, began, began - self._timeouts.request)
                unclaimed = await self._ledger.unclaimed(created)
                found[row.id] = tuple(
                    record for record in self._without_receipt(created).values() if record.id in unclaimed
                )
        return found


async def _created_between(
    records: Iterable[Record], date: datetime | None, began: float, ended: float
) -> dict[str, Record]:
    """Return the records that the server created during an exchange, with a tolerance of 60 s.

    Args:
        records: The records of a list.
        date: When the server sent the list, by its own clock; None if unknown.
        began: The time from the beginning of the exchange to the list, in seconds.
        ended: The time from the end of the exchange to the list, in seconds.

    """
    if date is None:
        return {}
    try:
        earliest = date - timedelta(seconds=began) - _CLOCK_TOLERANCE
        latest = date - timedelta(seconds=ended) + _CLOCK_TOLERANCE
    except OverflowError:  # the server's date is near the first or last year that datetime can represent
        return {}
    return {
        record.id: record
        for record in await in_steps(records)
        if record.created_at is not None and earliest <= record.created_at <= latest
    }
