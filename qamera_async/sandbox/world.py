"""What the API knows: credits, orders, and records that change as time goes by."""

from __future__ import annotations

import heapq
import itertools
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from .records import Order, Record

if TYPE_CHECKING:
    from collections.abc import Mapping

_OLD = "2026-03-20T17:00:00.000Z"
_PREFIXES = {"video": "vid", "reel": "reel"}


class World:
    """The server's state, brought up to date when somebody looks: no timer runs.

    Args:
        job_seconds: how long a job takes, in seconds.
        balance: the credits to spend.
        prices: credits by kind of order.
        records_per_order: how many records one order makes.
        show: "at_once" or "finished": from when on a record is listed.
        forget_finished: whether a record is forgotten once a list showed it finished.
    """

    def __init__(
        self,
        job_seconds: float,
        balance: int,
        prices: Mapping[str, int],
        *,
        records_per_order: int = 1,
        show: str = "at_once",
        forget_finished: bool = False,
    ) -> None:
        self.cdn_url = ""
        self.prices = prices
        self.orders: list[Order] = []
        self.records: dict[str, Record] = {}
        self._job_seconds = job_seconds
        self._records_per_order = records_per_order
        self._only_finished = show == "finished"
        self._forget_finished = forget_finished
        self._credits = balance
        self._numbers = {kind: itertools.count(1) for kind in ("video", "reel", "old")}
        # The moments to come, the soonest first; the number keeps records from being compared.
        self._moments: list[tuple[float, int, Record]] = []
        self._tickets = itertools.count()
        self._stale: dict[str, Record] = {}
        self._body: bytes | None = None

    @property
    def credits(self) -> int:
        """What is left to spend; the credits of failed jobs are back."""
        self._catch_up(time.monotonic())
        return self._credits

    def order(
        self, kind: str, body: Mapping[str, Any], key: str | None, mischief: Mapping[str, Mapping[str, Any]]
    ) -> Order:
        """Take an order that can be paid for.

        Args:
            kind: "video" or "reel".
            body: the registration, decoded.
            key: its Idempotency-Key; None: none was sent.
            mischief: the details of what goes wrong with the job, by the trouble's name.

        Returns:
            The order, its credits reserved.
        """
        now, price = time.monotonic(), self.prices[kind]
        count = mischief.get("multiple", {}).get("count", self._records_per_order)
        share, rest = divmod(price, count)
        ids: list[str] = []
        for place in range(count):
            number = next(self._numbers[kind])
            record = Record(
                f"{_PREFIXES[kind]}_{number:03d}",
                f"{kind.title()} {number}",
                _iso(),
                now,
                now + self._job_seconds,
                price=share + (rest if place == 0 else 0),
            )
            if "fail_job" in mischief:
                record.outcome = mischief["fail_job"]["status"]
            if "late" in mischief:
                record.shown_from = now + mischief["late"]["seconds"]
            if "vanish" in mischief:
                record.shown_until = now + mischief["vanish"]["after"]
            if "no_url" in mischief:
                record.url_delay = mischief["no_url"]["seconds"]
            self.records[record.id] = record
            self._schedule(record)
            ids.append(record.id)
        self._credits -= price
        number = len(self.orders) + 1
        order = Order(f"order_{number:03d}", kind, dict(body), tuple(ids), now, price, key)
        self.orders.append(order)
        return order

    def add_old(self, count: int, status: str) -> None:
        """Put finished records into the list that nobody waits for."""
        now = time.monotonic()
        for _ in range(count):
            number = next(self._numbers["old"])
            record = Record(f"old_{number:06d}", f"Old video {number}", _OLD, now, now, status)
            self.records[record.id] = self._stale[record.id] = record

    def finish(self, record_id: str, status: str) -> None:
        """Let a record reach ``status`` now.

        Raises:
            KeyError: there is no such record.
        """
        record = self.records[record_id]
        record.outcome = status
        record.done_at = time.monotonic()
        self._schedule(record)

    def expire(self, record_id: str) -> None:
        """Let the list give other URLs for a record; nothing happens where there is no such record."""
        record = self.records.get(record_id)
        if record is not None:
            record.edition += 1
            self._stale[record_id] = record

    def listing(self) -> bytes:
        """Give the body of the list; the same bytes as long as nothing has changed."""
        now = time.monotonic()
        self._catch_up(now)
        finished: list[str] = []
        for record in self._stale.values():
            encoded = record.item(now, self.cdn_url) if self._is_listed(record, now) else None
            if encoded != record.encoded:
                record.encoded = encoded
                self._body = None
            if encoded is not None and record.complete(now):
                finished.append(record.id)
        self._stale.clear()
        if self._body is None:
            items = [record.encoded for record in self.records.values() if record.encoded is not None]
            self._body = b'{"videos": [%b], "count": %d}' % (b", ".join(items), len(items))
        body = self._body
        if self._forget_finished and finished:
            for record_id in finished:
                del self.records[record_id]
            self._body = None
        return body

    def _is_listed(self, record: Record, now: float) -> bool:
        if self._only_finished and now < record.done_at:
            return False
        return record.shown_from <= now < record.shown_until

    def _schedule(self, record: Record) -> None:
        for moment in record.moments():
            heapq.heappush(self._moments, (moment, next(self._tickets), record))

    def _catch_up(self, now: float) -> None:
        while self._moments and self._moments[0][0] <= now:
            _, _, record = heapq.heappop(self._moments)
            if record.id not in self.records:
                continue
            self._stale[record.id] = record
            if record.failed(now) and not record.refunded:
                record.refunded = True
                self._credits += record.price


def _iso() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
