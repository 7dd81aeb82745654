"""Orders and records: the values of the sandbox's world."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping

# Only DONE is documented; the others are those of the vendor's sibling API.
_DONE = frozenset({"DONE", "COMPLETED", "SUCCEEDED"})
_FAILED = frozenset(
    {"FAILED", "FAILURE", "ERROR", "CANCELLED", "CANCELED", "ABORTED", "EXPIRED", "TIMED_OUT"}
)


@attrs.frozen
class Order:
    """One accepted registration.

    Attributes:
        id: the order's id, as in the receipt's ``orderId``.
        kind: "video" or "reel".
        body: the registration's body, decoded.
        record_ids: what it makes.
        at: when it was taken, in seconds of ``time.monotonic()``.
        credits: what it reserved.
        idempotency_key: the header of that name; None: it was not sent.
    """

    id: str
    kind: str
    body: Mapping[str, Any]
    record_ids: tuple[str, ...]
    at: float
    credits: int
    idempotency_key: str | None = None

    @property
    def order_id(self) -> str:
        """The same as ``id``, by the receipt's word for it."""
        return self.id


@attrs.define(eq=False)
class Record:
    """One video or reel and its course; moments are seconds of ``time.monotonic()``.

    Attributes:
        id: the record's id.
        name: what it is called.
        created_at: when its order was taken, in the list's form.
        made_at: when its order was taken.
        done_at: when it reaches its ``outcome``; ``math.inf`` means not before it is settled by hand.
        outcome: the word for its state from then on.
        shown_from: it is in no list before.
        shown_until: it is in no list from then on.
        url_delay: so many seconds after ``done_at`` its URLs are known.
        price: its share of the order's credits.
        refunded: whether that share was given back.
        edition: how often its URLs have expired; each time there are others.
        encoded: its item of the list as JSON, as of the last list; None: it wasn't listed.
    """

    id: str
    name: str
    created_at: str
    made_at: float
    done_at: float
    outcome: str = "DONE"
    shown_from: float = -math.inf
    shown_until: float = math.inf
    url_delay: float = 0.0
    price: int = 0
    refunded: bool = False
    edition: int = 0
    encoded: bytes | None = None

    def status(self, now: float) -> str:
        """Give the server's word for its state.

        Args:
            now: the moment that is asked about.
        """
        if now >= self.done_at:
            return self.outcome
        return "PENDING" if now < (self.made_at + self.done_at) / 2 else "PROCESSING"

    def failed(self, now: float) -> bool:
        """Say whether it ended without a result.

        Args:
            now: the moment that is asked about.
        """
        return now >= self.done_at and self.outcome.upper() in _FAILED

    def complete(self, now: float) -> bool:
        """Say whether nothing more will happen to it by itself.

        Args:
            now: the moment that is asked about.
        """
        return self.failed(now) or self._has_urls(now)

    def moments(self) -> set[float]:
        """Give the moments at which the list may change because of it."""
        halfway = (self.made_at + self.done_at) / 2
        known = {self.made_at, halfway, self.done_at, self.done_at + self.url_delay}
        return {moment for moment in known | {self.shown_from, self.shown_until} if math.isfinite(moment)}

    def item(self, now: float, cdn_url: str) -> bytes:
        """Give its item of the list as JSON."""
        has_urls = self._has_urls(now)
        query = f"?edition={self.edition}" if self.edition else ""
        return json.dumps(
            {
                "id": self.id,
                "name": self.name,
                "thumbnail": f"{cdn_url}/videos/{self.id}.jpg{query}" if has_urls else None,
                "videoUrl": f"{cdn_url}/videos/{self.id}.mp4{query}" if has_urls else None,
                "status": self.status(now),
                "voting": None,
                "createdAt": self.created_at,
            }
        ).encode()

    def _has_urls(self, now: float) -> bool:
        return now >= self.done_at + self.url_delay and self.outcome.upper() in _DONE
