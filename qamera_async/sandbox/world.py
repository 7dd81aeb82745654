"""What the API knows: accounts of credits, orders, records, and the quota's window."""

from __future__ import annotations

import json
import math
import random
import time
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping


@attrs.frozen
class Order:
    """One accepted registration; ``at`` is ``time.monotonic()``."""

    id: str
    kind: str
    body: Mapping[str, Any]
    record_ids: tuple[str, ...]
    at: float
    credits: int
    idempotency_key: str | None = None


@attrs.define(eq=False)
class Record:
    """One video or reel and its course; times are ``time.monotonic()``."""

    id: str
    name: str
    made_at: float
    created_at: str
    done_at: float
    outcome: str = "DONE"
    price: int = 0
    shown_from: float = -math.inf
    shown_until: float = math.inf
    url_from: float = -math.inf
    settled: bool = False

    def status(self, now: float) -> str:
        """Give the server's word for its state."""
        if now >= self.done_at:
            return self.outcome
        halfway = (self.made_at + self.done_at) / 2
        return "PENDING" if now < halfway else "PROCESSING"


class Quota:
    """The sliding window as the API counts it: accepted requests, by when they arrived."""

    def __init__(self, limit: int, window: float) -> None:
        self._limit = limit
        self._window = window
        self._counted: deque[float] = deque()

    def admits(self) -> bool:
        """Count a request that arrives now; False where it is one too many."""
        now = time.monotonic()
        while self._counted and self._counted[0] <= now - self._window:
            self._counted.popleft()
        if len(self._counted) >= self._limit:
            return False
        self._counted.append(now)
        return True


class World:
    """All of the server's state."""

    def __init__(self, job_seconds: float, balance: int, prices: Mapping[str, int], show: str) -> None:
        self.job_seconds = job_seconds
        self.prices = prices
        self.show = show
        self.orders: list[Order] = []
        self.records: dict[str, Record] = {}
        self.cdn_url = ""
        self._credits = balance
        self._unsettled: set[Record] = set()
        self._restless: set[Record] = set()
        self._body: bytes | None = None
        self._body_marks: tuple[object, ...] = ()

    @property
    def credits(self) -> int:
        """What is left to spend; failed jobs are refunded."""
        self._settle(time.monotonic())
        return self._credits

    def order(self, kind: str, body: Mapping[str, Any], key: str | None, details: Mapping[str, Any]) -> Order:
        """Take an order that can be paid for."""
        now = time.monotonic()
        price = self.prices[kind]
        number = len(self.orders) + 1
        prefix = "vid" if kind == "video" else "reel"
        ids = tuple(
            f"{prefix}_{len(self.records) + 1 + place:03d}" for place in range(details.get("count", 1))
        )
        for place, record_id in enumerate(ids):
            record = Record(
                record_id,
                f"{kind.title()} {number}",
                now,
                _iso(),
                now + self.job_seconds,
                details.get("outcome", "DONE"),
                price if place == 0 else 0,
                now + details.get("late", -math.inf),
                now + details.get("vanish", math.inf),
                now + self.job_seconds + details.get("no_url", -math.inf),
            )
            self.records[record_id] = record
            self._unsettled.add(record)
        self._credits -= price
        order = Order(f"order_{number:03d}", kind, dict(body), ids, now, price, key)
        self.orders.append(order)
        return order

    def add_old(self, number: int, status: str) -> None:
        """Put finished records into the list that nobody waits for."""
        now, created = time.monotonic(), "2026-03-20T17:00:00.000Z"
        for place in range(number):
            record_id = f"old_{len(self.records) + 1:06d}_{place}"
            self.records[record_id] = Record(record_id, "Old", now, created, now, status, settled=True)
        self._body = None

    def finish(self, record_id: str, status: str) -> None:
        """Settle a record by hand."""
        record = self.records[record_id]
        record.outcome = status
        record.done_at = time.monotonic()

    def listing(self) -> bytes:
        """Give the body of the list; the same bytes as long as nothing has changed."""
        now = time.monotonic()
        self._settle(now)
        restless = self._restless | self._unsettled
        marks: tuple[object, ...] = (
            len(self.records),
            *sorted((r.id, r.status(now), self._shown(r, now), now >= r.url_from) for r in restless),
        )
        if self._body is None or marks != self._body_marks:
            videos = [self._item(r, now) for r in self.records.values() if self._shown(r, now)]
            self._body = json.dumps({"videos": videos, "count": len(videos)}).encode()
            self._body_marks = marks
        return self._body

    def _shown(self, record: Record, now: float) -> bool:
        if self.show == "finished" and now < record.done_at:
            return False
        return record.shown_from <= now < record.shown_until

    def _item(self, record: Record, now: float) -> dict[str, object]:
        status = record.status(now)
        done = status == "DONE"
        return {
            "id": record.id,
            "name": record.name,
            "thumbnail": f"{self.cdn_url}/videos/{record.id}.jpg" if done else None,
            "videoUrl": f"{self.cdn_url}/videos/{record.id}.mp4" if done and now >= record.url_from else None,
            "status": status,
            "voting": None,
            "createdAt": record.created_at,
        }

    def _settle(self, now: float) -> None:
        for record in [record for record in self._unsettled if now >= record.done_at]:
            self._unsettled.discard(record)
            if record.shown_until < math.inf or record.shown_from > -math.inf or record.url_from > now:
                self._restless.add(record)
            if record.outcome != "DONE":
                self._credits += record.price
            self._body = None


def delayed(most: float) -> float:
    """Give a random part of ``most`` seconds."""
    return random.uniform(0, most)  # noqa: S311 - it spreads, it guards nothing


def _iso() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
