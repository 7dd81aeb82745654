"""The credits that a batch has spent and reserved, and whether its next request fits into ``max_credits``."""

from __future__ import annotations

import asyncio
from typing import TypeAlias

import attrs

from .._models import FrozenMapping, Request, VideoRequest
from ..errors import CreditLimitError

_ClassName: TypeAlias = tuple[str, str | int | None, FrozenMapping]


@attrs.define(eq=False)
class Kind:
    """All videos of a batch, or all reels, whatever their prices.

    Attributes:
        name: "video" or "reel".
        highest: The highest price that a receipt has stated for any request of the kind, in credits; None
            before the first such receipt.
        turn: Held by the request of the kind that waits for its reservation. The others wait for the lock.

    """

    name: str
    highest: int | None = None
    turn: asyncio.Lock = attrs.field(factory=asyncio.Lock)


@attrs.define(eq=False)
class PriceClass:
    """Requests of one kind that are expected to have the same price.

    Attributes:
        kind: The kind of the requests.
        price: The highest price that a receipt has stated for the class, in credits; None before the first.
        under_way: How many requests of the class hold a reservation.
        unstated: How many requests of the class are paid for, or may be, although no receipt has stated their
            credits.

    """

    kind: Kind
    price: int | None = None
    under_way: int = 0
    unstated: int = 0

    @property
    def estimate(self) -> int:
        """The credits to reserve for one request: its own price, or the highest price of its kind, or 0."""
        return (self.kind.highest or 0) if self.price is None else self.price


class Purse:
    """Grants a reservation to each new request of a batch while ``max_credits`` permits it.

    The API states a price only in a receipt. Requests with the same provider, or the same number of images,
    and the same ``extra`` form a price class, since the price may depend on any of these. The price of a
    class is the highest price that a receipt has stated for it.

    A class without a price is reserved at the highest known price of its kind, a video or a reel. The true
    price may be higher, so three rules limit what such a request can cost:

    1. At most one request without a known price is under way in each kind. Later requests of the kind wait
       for its receipt. Otherwise, several such requests could exceed the limit at the same time. Where each
       request has another ``extra``, for example a seed, the requests are therefore sent one at a time.
    2. All other requests fit into the limit together with everything spent and reserved. So the total exceeds
       the limit by no more than the difference between that one request's price and its estimate.
    3. A receipt above the estimate raises the price of the class and the highest price of the kind. Once the
       credits spent exceed the limit, every further reservation is refused.

    An ambiguous request, or a receipt without credits, leaves a price unknown. If the class has no price
    then, that request may already have exceeded the limit by any amount. So no further request without a
    known price is permitted in the kind, and classes with a known price go on.

    The rules assume that the price of a class does not rise while requests of the class are under way.

    Args:
        limit: ``max_credits``, in credits; None means no limit.

    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._kinds = {name: Kind(name) for name in ("video", "reel")}
        self._classes: dict[_ClassName, PriceClass] = {}
        # The classes that count below. There may be as many classes as requests, but few of them are in use.
        self._in_use: set[PriceClass] = set()
        self._stated = 0
        self._changed = asyncio.Event()

    @property
    def reserved(self) -> int:
        """The sum of the credits that the receipts have stated."""
        return self._stated

    async def hold(self, request: Request) -> PriceClass:
        """Reserve the price of a new request as soon as that is possible.

        Args:
            request: The request that is about to be sent.

        Returns:
            The price class of the request, to be passed to `spend` or `give_back`.

        Raises:
            CreditLimitError: The request would exceed the limit even if all requests under way were refused;
                or its price is unknown and so is the price of an earlier request of its kind.

        """
        name = _class_name(request)
        price_class = self._classes.get(name)
        if price_class is None:
            price_class = self._classes[name] = PriceClass(self._kinds[name[0]])
        async with price_class.kind.turn:
            while not self._allows(price_class):
                self._changed.clear()
                await self._changed.wait()
            price_class.under_way += 1
            self._in_use.add(price_class)
        return price_class

    def give_back(self, price_class: PriceClass) -> None:
        """Release the reservation of a request that was refused or not sent."""
        price_class.under_way -= 1
        if not price_class.under_way and not price_class.unstated:
            self._in_use.discard(price_class)
        self._changed.set()

    def spend(self, price_class: PriceClass, credits: int | None) -> None:  # noqa: A002 - the API's word
        """Replace the reservation of a request that is paid for, or may be.

        Args:
            price_class: The class that `hold` has returned for the request.
            credits: The credits that the receipt states. With None or a negative number the request counts at
                the estimate of its class.

        """
        if credits is None or credits < 0:
            price_class.unstated += 1
        else:
            kind = price_class.kind
            self._stated += credits
            price_class.price = max(price_class.price or 0, credits)
            kind.highest = max(kind.highest or 0, credits)
        self.give_back(price_class)

    def _allows(self, price_class: PriceClass) -> bool:
        if self._limit is None:
            return True
        kind, price = price_class.kind, price_class.price
        unpriced = [other for other in self._in_use if other.kind is kind and other.price is None]
        if any([other.under_way for other in unpriced]):
            return False
        spent = self._stated + sum(other.unstated * other.estimate for other in self._in_use)
        if price is None and any([other.unstated for other in unpriced]):
            raise CreditLimitError(
                f"max_credits={self._limit} can't be kept: the price of the next {kind.name} is not known, "
                f"and an earlier {kind.name} is, or may be, paid for, but no receipt states its credits.",
                max_credits=self._limit,
                spent=spent,
            )
        # A request with an unknown price costs something.
        least = max(price_class.estimate, 1) if price is None else price
        if spent + least > self._limit:
            raise CreditLimitError(
                f"The next {kind.name} would exceed max_credits={self._limit}: {spent} credits are spent, "
                f"and the {kind.name} costs {_described(price_class)}.",
                max_credits=self._limit,
                spent=spent,
                price=kind.highest if price is None else price,
            )
        return spent + sum(other.under_way * other.estimate for other in self._in_use) + least <= self._limit


def _class_name(request: Request) -> _ClassName:
    if isinstance(request, VideoRequest):
        return "video", request.provider, request.extra_body
    return "reel", len(request.image_ids), request.extra_body


def _described(price_class: PriceClass) -> str:
    if price_class.price is not None:
        return str(price_class.price)
    if price_class.kind.highest is None:
        return "an unknown number"
    return f"an unknown number, estimated at {price_class.kind.highest}"
