"""What stops or pauses a batch: credits, ambiguous submissions in a row, outages, and fatal errors."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from typing import Final, cast

import attrs

from .._config import RetryPolicy
from .._models import Receipt, Request
from ..errors import (
    AmbiguityLimitError,
    AmbiguousSubmissionError,
    ApiError,
    BatchStoppedError,
    CreditLimitError,
    InsufficientCreditsError,
    LedgerError,
    QameraError,
    RefConflictError,
    TransportError,
    is_permanent,
    is_unsent,
)

_log = logging.getLogger("qamera_async")

MAX_UNDECIDED: Final = 5
"""The most submissions that are undecided at once. As many ambiguous submissions in a row stop a batch."""

_CAUSED_BY_ONE_REQUEST: Final = frozenset({400, 404})  # unless the status answers a poll
_WITHOUT_EFFECT_ON_PRICE: Final = frozenset({"ref", "suggestion", "image_id", "generated_image_id"})


# --- credits ------------------------------------------------------------------------------------


@attrs.define(eq=False)
class PriceClass:
    """Requests of one type that are expected to have the same price.

    Attributes:
        request_type: The type of the requests.
        price: The highest price that a receipt has stated for the class, in credits; None before the first.
        reservations: Number of requests of the class that are being submitted.
        unstated: Number of accepted or ambiguous requests without a stated price.
        cause: The last ambiguous submission among these; None if there was none.

    """

    request_type: type
    price: int | None = None
    reservations: int = 0
    unstated: int = 0
    cause: AmbiguousSubmissionError | None = None


class CreditLimit:
    """Grants a reservation to each new request of a batch while ``max_credits`` permits it.

    The API states a price only in a receipt. Requests that agree in everything that a price may depend on
    form a price class. The price of a class is the highest price that a receipt has stated for it.

    A class without a price is reserved at the highest known price of its type. The true price may be higher,
    so three rules limit what such a request can cost:

    1. While a request without a known price is being submitted, no other request of its type is. Otherwise
       several such requests could exceed the limit at the same time. If every request has another
       ``extra_body``, for example a seed, the requests are therefore submitted one at a time.
    2. All other requests fit into the limit together with everything spent and reserved. So the total exceeds
       the limit by no more than the difference between that one request's price and its estimate.
    3. A receipt above the estimate raises the price of the class and the highest price of the type. Once the
       credits spent exceed the limit, every further reservation is refused.

    An ambiguous submission, or a receipt without credits, leaves a price unknown. If the class has no price
    then, that request may already have exceeded the limit by any amount. So no further request without a
    known price is permitted in the type. Requests of classes with a known price are still permitted.

    The rules assume that the price of a class does not rise while requests of the class are being submitted.

    Args:
        max_credits: The limit, in credits; None means no limit.

    """

    def __init__(self, max_credits: int | None) -> None:
        self._limit = max_credits
        self._classes: dict[tuple[type, str], PriceClass] = {}
        self._highest: dict[type, int] = {}
        self.stated = 0
        """The sum of the credits that the receipts have stated."""

    def reserve(self, request: Request) -> PriceClass | None:
        """Reserve the price of a new request.

        Returns:
            The price class of the request, for `ended`. None if the response to a request that is being
            submitted has to be awaited first.

        Raises:
            CreditLimitError: The request would exceed the limit even if all requests that are being submitted
                were refused; or its price is unknown and so is the price of an earlier request of its type.

        """
        price_class = PriceClass(type(request))
        if self._limit is not None:
            price_class = self._classes.setdefault((type(request), _price_factors(request)), price_class)
            if not self._fits(price_class, self._limit):
                return None
        price_class.reservations += 1
        return price_class

    def ended(self, price_class: PriceClass, result: Receipt | BaseException) -> None:
        """End the reservation of a request, and count what the request costs.

        Args:
            price_class: The class of the request.
            result: The receipt, or why there is none. An ambiguous submission, or a receipt without credits,
                counts at the estimate of the class. Any other error means that the request costs nothing.

        """
        price_class.reservations -= 1
        if isinstance(result, Receipt) and result.credits_reserved is not None:
            request_type, price = price_class.request_type, result.credits_reserved
            self.stated += price
            price_class.price = max(price_class.price or 0, price)
            self._highest[request_type] = max(self._highest.get(request_type, 0), price)
        elif isinstance(result, Receipt | AmbiguousSubmissionError):
            price_class.unstated += 1
            if not isinstance(result, Receipt):
                price_class.cause = result

    def _estimate(self, price_class: PriceClass) -> int:
        """Return the credits to reserve: the price of the class, or the highest price of its type, or 0."""
        return (
            self._highest.get(price_class.request_type, 0) if price_class.price is None else price_class.price
        )

    def _fits(self, price_class: PriceClass, limit: int) -> bool:
        classes, request_type = self._classes.values(), price_class.request_type
        unpriced = [other for other in classes if other.request_type is request_type and other.price is None]
        if any([other.reservations for other in unpriced]):
            return False
        spent = self.stated + sum(other.unstated * self._estimate(other) for other in classes)
        if price_class.price is None and (unstated := [other for other in unpriced if other.unstated]):
            causes = [other.cause for other in unstated if other.cause is not None]
            reason = "its submission is ambiguous" if causes else "its receipt states no credits"
            raise CreditLimitError(
                f"max_credits={limit} can't be kept: the price of the next {request_type.__name__} is not "
                f"known, and an earlier one has no known price either, since {reason}.",
                max_credits=limit,
                spent=spent,
                cause=causes[-1] if causes else None,
            )
        # A request with an unknown price costs something.
        needed = max(self._estimate(price_class), 1) if price_class.price is None else price_class.price
        if spent + needed > limit:
            price = self._highest.get(request_type) if price_class.price is None else price_class.price
            raise CreditLimitError(
                f"The next {request_type.__name__} would exceed max_credits={limit}: {spent} credits are "
                f"spent, and its price is {'not known' if price is None else f'estimated at {price}'}.",
                max_credits=limit,
                spent=spent,
                price=price,
            )
        reserved = sum(other.reservations * self._estimate(other) for other in classes)
        return spent + reserved + needed <= limit


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


# --- submissions ----------------------------------------------------------------------------------


class SubmissionLimit:
    """Limits what a failing server can cost a batch.

    At most five submissions are on the wire, being reconciled, or ambiguous in a row. So a failing server
    makes at most five submissions ambiguous. The fifth ambiguous submission in a row is the reason to stop
    the batch. Submissions follow each other in the order of sending, because a submission is known to be
    ambiguous only after it was reconciled, when the responses to later submissions may have arrived long ago.

    An outage begins with a submission that provably did not reach the server. Until it ends, one submission
    at a time probes the server, after a delay that grows with each failure. A probe that reaches the server
    ends the outage.

    Args:
        retry: Gives the delays before the probes. Each outage begins with the first delay.

    """

    def __init__(self, retry: RetryPolicy) -> None:
        self._retry = retry
        self._sent = 0
        self._undecided = 0  # on the wire or being reconciled
        self._last_answered = 0
        self._consecutive_ambiguous: dict[int, AmbiguousSubmissionError] = {}
        self._delays: Iterator[float] | None = None  # set during an outage
        self._probe: int | None = None
        self._next_probe_at = 0.0

    @property
    def outage(self) -> bool:
        """Whether the server is unreachable, as far as this batch knows."""
        return self._delays is not None

    @property
    def seconds_to_probe(self) -> float | None:
        """Seconds until the next probe may be sent; None unless the batch only has to wait for that time."""
        seconds = self._next_probe_at - time.monotonic()
        return seconds if self.outage and self._probe is None and seconds > 0 else None

    def permits(self, number: int = 1) -> bool:
        """Tell whether this number of further submissions may be sent, even if all of them are ambiguous."""
        if self.outage and (self._probe is not None or time.monotonic() < self._next_probe_at):
            return False
        return len(self._consecutive_ambiguous) + self._undecided + number <= MAX_UNDECIDED

    def sent(self) -> int:
        """Count a submission that is sent now; return its number in the order of sending."""
        self._sent += 1
        self._undecided += 1
        if self.outage:
            self._probe = self._sent
        return self._sent

    def ended(self, number: int, result: Receipt | BaseException) -> AmbiguityLimitError | None:
        """Count the result of a submission.

        Args:
            number: The number of the submission.
            result: The receipt, or why there is none.

        Returns:
            The reason to stop, if this is the fifth ambiguous submission in a row.

        """
        self._undecided -= 1
        probed = number == self._probe
        if probed:
            self._probe = None
        if isinstance(result, AmbiguousSubmissionError):
            self._consecutive_ambiguous[number] = result
        elif isinstance(result, Receipt | ApiError):
            self._last_answered = max(self._last_answered, number)
        else:
            if is_unsent(result) and (probed or not self.outage):
                self._pause(result)
            return None
        self._consecutive_ambiguous = {
            sent: error for sent, error in self._consecutive_ambiguous.items() if sent > self._last_answered
        }
        if probed:
            self._delays = None
            _log.info("The server is reachable again; the batch continues.")
        if len(self._consecutive_ambiguous) < MAX_UNDECIDED:
            return None
        return AmbiguityLimitError(
            f"{MAX_UNDECIDED} submissions in a row are ambiguous: they may or may not have been paid for.",
            errors=tuple(self._consecutive_ambiguous.values()),
        )

    def _pause(self, error: TransportError) -> None:
        """Begin an outage, or prolong it after a failed probe."""
        if self._delays is None:
            self._delays = self._retry.delays()
            reason = error.message.removesuffix(".")
            _log.warning("The server is unreachable: %s. The batch pauses and continues by itself.", reason)
        self._next_probe_at = time.monotonic() + next(self._delays)


# --- errors ---------------------------------------------------------------------------------------


def is_fatal(error: Exception, *, submitting: bool = False, polling: bool = False) -> bool:
    """Tell whether every other request of a batch would meet the same error.

    Args:
        error: The error of one request.
        submitting: Whether it was raised while the request was claimed or sent.
        polling: Whether it was raised while the job was awaited. A batch whose jobs can't be polled must not
            pay for more of them.

    """
    if isinstance(error, LedgerError):
        return submitting and not isinstance(error, RefConflictError)
    if isinstance(error, InsufficientCreditsError):
        return not error.foreign
    if isinstance(error, ApiError) and error.status in _CAUSED_BY_ONE_REQUEST and not polling:
        return False
    return isinstance(error, BatchStoppedError) or (isinstance(error, QameraError) and is_permanent(error))
