"""What stops or pauses a batch: credits, ambiguous submissions in a row, outages, and fatal errors."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from typing import TYPE_CHECKING, Final, cast

import attrs

from ..errors import (
    AmbiguityLimitError,
    ApiError,
    AuthenticationError,
    BatchStoppedError,
    CreditLimitError,
    InsufficientCreditsError,
    LedgerError,
    PermissionDeniedError,
    QameraError,
    RefConflictError,
    SessionClosedError,
    TransportError,
    is_permanent,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .._config import RetryPolicy
    from .._models import Request
    from ..errors import AmbiguousSubmissionError

_log = logging.getLogger("qamera_async")

MAX_AMBIGUOUS: Final = 5
"""How many ambiguous submissions in a row stop a batch."""

_PROXY_AUTHENTICATION_REQUIRED: Final = 407
_WITHOUT_EFFECT_ON_PRICE: Final = frozenset({"ref", "suggestion", "image_id", "generated_image_id"})


# --- credits ------------------------------------------------------------------------------------


@attrs.define(eq=False)
class _Kind:
    """All requests of one type in a batch, whatever their prices.

    Attributes:
        name: The name of the request's class, for messages.
        highest: The highest price that a receipt has stated for the kind, in credits; None before the first.

    """

    name: str
    highest: int | None = None


@attrs.define(eq=False)
class PriceClass:
    """Requests of one kind that are expected to have the same price.

    Attributes:
        kind: The kind of the requests.
        price: The highest price that a receipt has stated for the class, in credits; None before the first.
        reservations: How many requests of the class are being submitted.
        unstated: How many requests of the class are paid for, or may be, although no receipt states their
            credits.
        cause: The last ambiguous submission among these; None if there was none.

    """

    kind: _Kind
    price: int | None = None
    reservations: int = 0
    unstated: int = 0
    cause: AmbiguousSubmissionError | None = None

    @property
    def estimate(self) -> int:
        """The credits to reserve for one request: its own price, or the highest price of its kind, or 0."""
        return (self.kind.highest or 0) if self.price is None else self.price


class CreditLimit:
    """Grants a reservation to each new request of a batch while ``max_credits`` permits it.

    The API states a price only in a receipt. Requests that agree in everything that a price may depend on
    form a price class. The price of a class is the highest price that a receipt has stated for it.

    A class without a price is reserved at the highest known price of its kind. The true price may be higher,
    so three rules limit what such a request can cost:

    1. While a request without a known price is being submitted, no other request of its kind is. Otherwise
       several such requests could exceed the limit at the same time. If every request has another
       ``extra_body``, for example a seed, the requests are therefore submitted one at a time.
    2. All other requests fit into the limit together with everything spent and reserved. So the total exceeds
       the limit by no more than the difference between that one request's price and its estimate.
    3. A receipt above the estimate raises the price of the class and the highest price of the kind. Once the
       credits spent exceed the limit, every further reservation is refused.

    An ambiguous submission, or a receipt without credits, leaves a price unknown. If the class has no price
    then, that request may already have exceeded the limit by any amount. So no further request without a
    known price is permitted in the kind, and classes with a known price go on.

    The rules assume that the price of a class does not rise while requests of the class are being submitted.

    Args:
        max_credits: The limit, in credits; None means no limit.

    """

    def __init__(self, max_credits: int | None) -> None:
        self._limit = max_credits
        self._kinds: dict[type, _Kind] = {}
        self._classes: dict[tuple[type, str], PriceClass] = {}
        # The classes that count below. There may be as many classes as requests, but few of them are in use.
        self._in_use: set[PriceClass] = set()
        self.stated = 0
        """The sum of the credits that the receipts have stated."""

    def price_class(self, request: Request) -> PriceClass:
        """Return the price class of a request, for the other methods."""
        kind = self._kinds.setdefault(type(request), _Kind(type(request).__name__))
        if self._limit is None:
            return PriceClass(kind)
        return self._classes.setdefault((type(request), _price_factors(request)), PriceClass(kind))

    def reserve(self, price_class: PriceClass) -> bool:
        """Reserve the price of a new request.

        Returns:
            False if the answer to a request that is being submitted has to be awaited first.

        Raises:
            CreditLimitError: The request would exceed the limit even if all requests that are being submitted
                were refused; or its price is unknown and so is the price of an earlier request of its kind.

        """
        if self._limit is not None and not self._fits(price_class, self._limit):
            return False
        price_class.reservations += 1
        self._in_use.add(price_class)
        return True

    def release(self, price_class: PriceClass) -> None:
        """End the reservation of a request that was refused or not sent."""
        price_class.reservations -= 1
        if not price_class.reservations and not price_class.unstated:
            self._in_use.discard(price_class)

    def spend(
        self,
        price_class: PriceClass,
        credits: int | None,  # noqa: A002 - the API's word
        cause: AmbiguousSubmissionError | None = None,
    ) -> None:
        """End the reservation of a request that is paid for, or may be.

        Args:
            price_class: The class of the request.
            credits: The credits that the receipt states. With None or a negative number the request counts at
                the estimate of its class.
            cause: The error of an ambiguous submission; None if there is a receipt.

        """
        if credits is None or credits < 0:
            price_class.unstated += 1
            price_class.cause = cause
        else:
            kind = price_class.kind
            self.stated += credits
            price_class.price = max(price_class.price or 0, credits)
            kind.highest = max(kind.highest or 0, credits)
        self.release(price_class)

    def _fits(self, price_class: PriceClass, limit: int) -> bool:
        kind, price = price_class.kind, price_class.price
        unpriced = [other for other in self._in_use if other.kind is kind and other.price is None]
        if any([other.reservations for other in unpriced]):
            return False
        spent = self.stated + sum(other.unstated * other.estimate for other in self._in_use)
        if price is None and (unstated := [other for other in unpriced if other.unstated]):
            causes = [other.cause for other in unstated if other.cause is not None]
            reason = "its submission is ambiguous" if causes else "its receipt states no credits"
            raise CreditLimitError(
                f"max_credits={limit} can't be kept: the price of the next {kind.name} is not known, and an "
                f"earlier {kind.name} has no known price either, since {reason}.",
                max_credits=limit,
                spent=spent,
                cause=causes[-1] if causes else None,
            )
        # A request with an unknown price costs something.
        needed = max(price_class.estimate, 1) if price is None else price
        if spent + needed > limit:
            raise CreditLimitError(
                f"The next {kind.name} would exceed max_credits={limit}: {spent} credits are spent, "
                f"and the request costs {_described(price_class)}.",
                max_credits=limit,
                spent=spent,
                price=kind.highest if price is None else price,
            )
        return spent + sum(other.reservations * other.estimate for other in self._in_use) + needed <= limit


def _price_factors(request: Request) -> str:
    """Return everything in a request that its price may depend on, as JSON.

    A field that is added to a request later counts until it is known to have no effect on the price.
    """
    factors = {
        name: len(cast("tuple[object, ...]", value)) if isinstance(value, tuple) else value
        for name, value in attrs.asdict(request, recurse=False).items()
        if name not in _WITHOUT_EFFECT_ON_PRICE
    }
    return json.dumps(factors, sort_keys=True)


def _described(price_class: PriceClass) -> str:
    if price_class.price is not None:
        return str(price_class.price)
    if price_class.kind.highest is None:
        return "an unknown number"
    return f"an unknown number, estimated at {price_class.kind.highest}"


# --- ambiguous submissions in a row ---------------------------------------------------------------


class AmbiguityBreaker:
    """Stops a batch after five ambiguous submissions in a row, and never lets more than five become a row.

    A row is counted in the order of sending, because an ambiguous submission is known to be one only after it
    was reconciled, when later submissions may have been answered long ago. So a submission is permitted while
    fewer than five are ambiguous or unanswered since the last one that the server answered. This is also what
    limits how many POSTs of a batch are on the wire at once.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._unanswered: set[int] = set()
        self._last_answered = -1
        self._row: dict[int, AmbiguousSubmissionError] = {}

    @property
    def unanswered(self) -> int:
        """How many submissions were sent and have no answer yet."""
        return len(self._unanswered)

    def permits(self, number: int = 1) -> bool:
        """Tell whether so many more may be sent now, should all of them end ambiguous."""
        since = [sent for sent in self._unanswered if sent > self._last_answered]
        return len(self._row) + len(since) + number <= MAX_AMBIGUOUS

    def sent(self) -> int:
        """Count a submission that is sent now; return its number in the order of sending."""
        number = next(self._numbers)
        self._unanswered.add(number)
        return number

    def not_sent(self, number: int) -> None:
        """Forget a submission that provably was not sent, or whose end says nothing of the server."""
        self._unanswered.discard(number)

    def answered(self, number: int) -> None:
        """Note that the server accepted or refused a submission: no row reaches back beyond it."""
        self._unanswered.discard(number)
        self._last_answered = max(self._last_answered, number)
        self._row = {sent: error for sent, error in self._row.items() if sent > self._last_answered}

    def ambiguous(self, number: int, error: AmbiguousSubmissionError) -> AmbiguityLimitError | None:
        """Note that a submission ended ambiguous; return the reason to stop if it is the fifth in a row."""
        self._unanswered.discard(number)
        if number > self._last_answered:
            self._row[number] = error
        if len(self._row) < MAX_AMBIGUOUS:
            return None
        return AmbiguityLimitError(
            f"{len(self._row)} submissions in a row are ambiguous: they may or may not have been paid for.",
            errors=tuple(self._row.values()),
        )


# --- outages ------------------------------------------------------------------------------------


class OutagePause:
    """Pauses a batch while the server is unreachable; one request at a time tries whether it still is.

    Args:
        retry: Gives the delays before each try; they begin anew with each outage.

    """

    def __init__(self, retry: RetryPolicy) -> None:
        self._retry = retry
        self._delays: Iterator[float] | None = None
        self._probe = asyncio.Lock()

    @property
    def active(self) -> bool:
        """Whether the server was unreachable for the last request that tried."""
        return self._delays is not None

    def begin(self, error: TransportError) -> None:
        """Note that a request provably did not reach the server."""
        if self._delays is None:
            self._delays = self._retry.delays()
            reason = error.message.removesuffix(".")
            _log.warning("The server is unreachable: %s. The batch pauses and continues by itself.", reason)

    def end(self) -> None:
        """Note that a request reached the server."""
        if self._delays is not None:
            self._delays = None
            _log.info("The server is reachable again; the batch continues.")

    async def wait(self) -> bool:
        """Wait until the outage has ended, or until it is the caller's turn to try.

        Returns:
            True if the caller is the one request that tries. It must call `probed` afterwards.

        """
        if not self.active:
            return False
        await self._probe.acquire()
        try:
            if self._delays is not None:
                await asyncio.sleep(next(self._delays))
                return True
        except BaseException:
            self._probe.release()
            raise
        self._probe.release()
        return False

    def probed(self) -> None:
        """Let the next request try, or all requests if the outage has ended."""
        self._probe.release()


# --- fatal errors -------------------------------------------------------------------------------


def is_fatal(error: Exception, *, submitting: bool = False, polling: bool = False) -> bool:
    """Tell whether every other request of a batch would meet the same error.

    Args:
        error: What one request met.
        submitting: Whether it was met while the request was claimed or sent.
        polling: Whether it was met while the job was awaited. A batch whose jobs can't be polled must not
            pay for more of them.

    """
    if polling and isinstance(error, QameraError) and is_permanent(error):
        return True
    if isinstance(error, AuthenticationError | PermissionDeniedError | InsufficientCreditsError):
        return not error.foreign
    if isinstance(error, ApiError):
        return error.status == _PROXY_AUTHENTICATION_REQUIRED
    if isinstance(error, TransportError):
        return error.permanent
    if isinstance(error, LedgerError):
        return submitting and not isinstance(error, RefConflictError)
    return isinstance(error, BatchStoppedError | SessionClosedError)
