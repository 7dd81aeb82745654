"""What a batch has spent, and whether it may spend more."""

from __future__ import annotations

import asyncio
from typing import TypeAlias

import attrs

from .._models import Request, VideoRequest
from ..errors import CreditLimitError

_Name: TypeAlias = tuple[str, str | int | None]


@attrs.define(eq=False)
class Kind:
    """Requests that take the same credits, and what is known of them.

    ``price``: the most that a receipt told, in credits; None before the first. ``under_way``: how many may
    still be refused. ``untold``: how many are, or may be, paid for and no receipt told what they took.
    """

    price: int | None = None
    under_way: int = 0
    untold: int = 0
    turn: asyncio.Lock = attrs.field(factory=asyncio.Lock)


class Purse:
    """Lets new orders through as far as the credits allow.

    Only the first of each kind may pass the limit, since nobody knows its price before its receipt. Where
    that doesn't tell it either, there is no second: a limit that can't be kept isn't passed in silence.

    Args:
        limit: ``max_credits``; None: there is none.

    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._kinds: dict[_Name, Kind] = {}
        self._told = 0
        self._changed = asyncio.Event()

    @property
    def reserved(self) -> int:
        """What the receipts told, in credits."""
        return self._told

    async def hold(self, request: Request) -> Kind:
        """Set the price of a new order aside, as soon as that is possible.

        Raises:
            CreditLimitError: It would pass the limit, whatever becomes of those under way; or nobody can
                tell.

        """
        kind = self._kinds.setdefault(_name(request), Kind())
        # One of each kind looks again at each change; the others of it queue, in their order.
        async with kind.turn:
            while not self._allows(kind):
                self._changed.clear()
                await self._changed.wait()
            kind.under_way += 1
        return kind

    def give_back(self, kind: Kind) -> None:
        """Nothing was ordered."""
        kind.under_way -= 1
        self._changed.set()

    def spend(self, kind: Kind, credits: int | None) -> None:  # noqa: A002 - the API's word
        """It is, or may be, paid for; None or less than 0: not told, so it counts at its kind's price."""
        if credits is None or credits < 0:
            kind.untold += 1
        else:
            self._told += credits
            kind.price = max(kind.price or 0, credits)
        self.give_back(kind)

    def _allows(self, kind: Kind) -> bool:
        if self._limit is None:
            return True
        if kind.price is None and kind.under_way:
            return False
        prices = [(other, other.price or 0) for other in self._kinds.values()]
        spent = self._told + sum(other.untold * price for other, price in prices)
        if kind.price is None and kind.untold:
            raise CreditLimitError(
                f"max_credits={self._limit} can't be kept: the price of the next request is not known, since "
                "one of its kind is, or may be, paid for and no receipt told what it took.",
                max_credits=self._limit,
                spent=spent,
            )
        # One that takes nobody knows how much takes something.
        least = 1 if kind.price is None else kind.price
        if spent + least > self._limit:
            raise CreditLimitError(
                f"The next request would pass max_credits={self._limit}: {spent} are spent, "
                f"and it takes {'an unknown number' if kind.price is None else kind.price}.",
                max_credits=self._limit,
                spent=spent,
                price=kind.price,
            )
        return spent + sum(other.under_way * price for other, price in prices) + least <= self._limit


def _name(request: Request) -> _Name:
    if isinstance(request, VideoRequest):
        return "video", request.provider
    return "reel", len(request.image_ids)
