"""Which records may have come of a registration whose answer was lost."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from .. import _protocol as protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .._config import StatusRules
    from .._models import Receipt, Video
    from .._polling import Poller
    from ..ledger.places import NoLedger
    from ..ledger.rows import Row
    from .order import Order

# Where nobody polls, claims are never seen in a list; those of long ago are no matter of one exchange.
_MOST_CLAIMS = 10_000
_CLOCK_TOLERANCE = timedelta(seconds=60)


class Candidates:
    """The records that no receipt claims."""

    def __init__(self, poller: Poller, rules: StatusRules, ledger: NoLedger) -> None:
        self._poller = poller
        self._rules = rules
        self._ledger = ledger
        # Ids on receipts that no list has shown yet: none of them can be an ambiguous order's record.
        # In the order of their arrival.
        self._claimed: dict[str, None] = {}
        self._lists = 0  # how many lists had been seen when that was last looked through

    def claim(self, receipt: Receipt, oldest: int) -> None:
        """Take the records of a receipt.

        Args:
            receipt: what has come.
            oldest: how many lists had been seen before the oldest order under way was sent.
        """
        if oldest > self._lists:
            # What those lists showed is new to none of the orders under way.
            left = self._poller.seen.new_since(self._claimed, oldest)
            self._claimed = {record_id: None for record_id in self._claimed if record_id in left}
            self._lists = oldest
        self._claimed.update(dict.fromkeys(receipt.record_ids))
        while len(self._claimed) > _MOST_CLAIMS:
            del self._claimed[next(iter(self._claimed))]

    def among(self, order: Order, answer: protocol.Answer, listing: protocol.Listing) -> dict[str, Video]:
        """Give those of a list that may have come of an order."""
        if order.lists:
            fresh = self._poller.seen.new_since(listing.statuses, order.lists) - self._claimed.keys()
            return protocol.read_some(answer, fresh, listing, self._rules)
        # No list was seen before it: the server's own clock tells what was made meanwhile.
        now = asyncio.get_running_loop().time()
        return self.made_between(answer, now - order.began, now - order.ended)

    def made_between(self, answer: protocol.Answer, began: float, ended: float) -> dict[str, Video]:
        """Give what was made within an exchange, give or take a minute by the server's clock.

        Args:
            answer: the list.
            began: how long before the list the exchange began, in seconds.
            ended: how long before the list it ended, in seconds.
        """
        if answer.date is None:
            return {}
        try:
            earliest = answer.date - timedelta(seconds=began) - _CLOCK_TOLERANCE
            latest = answer.date - timedelta(seconds=ended) + _CLOCK_TOLERANCE
        except OverflowError:  # a server's clock at one end of time
            return {}
        return {
            video.id: video
            for video in protocol.read_videos(answer, self._rules)
            if video.id not in self._claimed
            and video.created_at is not None
            and earliest <= video.created_at <= latest
        }

    async def look_back(self, rows: Iterable[Row], longest: float) -> dict[str, tuple[Video, ...]]:
        """Give the candidates that ambiguous requests have now: by a list, and by when they were sent.

        Args:
            rows: with the candidates that were seen before, which no receipt has claimed since.
            longest: how long an exchange may take, in seconds.

        Raises:
            QameraError: the list can't be had.
        """
        answer, listing = await self._poller.ask()
        now = datetime.now(UTC)
        found: dict[str, tuple[Video, ...]] = {}
        for row in rows:
            before = {video.id: video for video in row.candidates or ()}
            if before:
                found[row.id] = tuple(
                    {**before, **protocol.read_some(answer, before, listing, self._rules)}.values()
                )
            elif row.sent_at is not None:
                ago = (now - row.sent_at).total_seconds()
                near = self.made_between(answer, ago, ago - longest)
                left = await self._ledger.unclaimed(near)
                found[row.id] = tuple([video for video in near.values() if video.id in left])
        return found

    def without_claims(self, found: dict[str, Video]) -> dict[str, Video]:
        """Leave out what receipts of this session have claimed by now."""
        return {record_id: video for record_id, video in found.items() if record_id not in self._claimed}

    async def unclaimed(self, found: dict[str, Video]) -> tuple[Video, ...]:
        """Leave out what any receipt that is known has claimed by now."""
        left = await self._ledger.unclaimed(found)
        return tuple([video for video in self.without_claims(found).values() if video.id in left])
