"""What stops or pauses a batch: credits, ambiguous submissions in a row, outages, and fatal errors."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from typing import Final, TypeGuard, cast

import attrs

from .._config import RetryPolicy
from .._models import Request
from ..errors import (
    AmbiguityLimitError,
    AmbiguousSubmissionError,
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

_log = logging.getLogger("qamera_async")

MAX_UNDECIDED: Final = 5
"""How many submissions may be undecided at once, and how many ambiguous ones in a row stop a batch."""

_PROXY_AUTHENTICATION_REQUIRED: Final = 407
_WITHOUT_EFFECT_ON_PRICE: Final = frozenset({"ref", "suggestion", "image_id", "generated_image_id"})


# --- credits ------------------------------------------------------------------------------------


@attrs.define(eq=False)
class PriceClass:
    """Requests of one type that are expected to have the same price.

    Attributes:
        kind: The type of the requests.
        price: The highest price that a receipt has stated for the class, in credits; None before the first.
        reservations: How many requests of the class are being submitted.
        unstated: How many requests of the class are paid for, or may be, although no receipt states their
            credits.
        cause: The last ambiguous submission among these; None if there was none.

    """

    kind: type
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
    known price is permitted in the type, and classes with a known price go on.

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
            The price class of the request, for `spend` or `release`. None if the answer to a request that is
            being submitted has to be awaited first.

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

    def release(self, price_class: PriceClass) -> None:
        """End the reservation of a request that was refused or not sent."""
        price_class.reservations -= 1

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
        price_class.reservations -= 1
        if credits is None or credits < 0:
            price_class.unstated += 1
            price_class.cause = cause
        else:
            self.stated += credits
            price_class.price = max(price_class.price or 0, credits)
            self._highest[price_class.kind] = max(self._highest.get(price_class.kind, 0), credits)

    def _estimate(self, price_class: PriceClass) -> int:
        """Return the credits to reserve: the price of the class, or the highest price of its type, or 0."""
        return self._highest.get(price_class.kind, 0) if price_class.price is None else price_class.price

    def _fits(self, price_class: PriceClass, limit: int) -> bool:
        classes, price, name = self._classes.values(), price_class.price, price_class.kind.__name__
        unpriced = [other for other in classes if other.kind is price_class.kind and other.price is None]
        if any([other.reservations for other in unpriced]):
            return False
        spent = self.stated + sum(other.unstated * self._estimate(other) for other in classes)
        if price is None and (unstated := [other for other in unpriced if other.unstated]):
            causes = [other.cause for other in unstated if other.cause is not None]
            reason = "its submission is ambiguous" if causes else "its receipt states no credits"
            raise CreditLimitError(
                f"max_credits={limit} can't be kept: the price of the next {name} is not known, and an "
                f"earlier {name} has no known price either, since {reason}.",
                max_credits=limit,
                spent=spent,
                cause=causes[-1] if causes else None,
            )
        # A request with an unknown price costs something.
        needed = max(self._estimate(price_class), 1) if price is None else price
        if spent + needed > limit:
            known = self._highest.get(price_class.kind) if price is None else price
            estimate = "" if known is None else f", estimated at {known}"
            cost = f"an unknown number{estimate}" if price is None else price
            raise CreditLimitError(
                f"The next {name} would exceed max_credits={limit}: {spent} credits are spent, "
                f"and the request costs {cost}.",
                max_credits=limit,
                spent=spent,
                price=known,
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

    A submission is undecided while it is on the wire or being reconciled. At most five submissions are
    undecided or ambiguous in a row, so no more than five can become a row. The fifth ambiguous submission in
    a row is the reason to stop the batch. A row is counted in the order of sending: a submission is known to
    be ambiguous only after it was reconciled, when later ones may have been answered long ago.

    An outage begins with a submission that provably did not reach the server. Until it ends, one submission
    at a time probes the server, after a delay that grows with each failure. A probe that reaches the server
    ends the outage.

    Args:
        retry: Gives the delays before the probes; they begin anew with each outage.

    """

    def __init__(self, retry: RetryPolicy) -> None:
        self._retry = retry
        self._sent = 0
        self._undecided = 0
        self._last_answered = 0
        self._row: dict[int, AmbiguousSubmissionError] = {}
        self._delays: Iterator[float] | None = None  # set during an outage
        self._probe: int | None = None
        self._next_probe_at = 0.0

    @property
    def outage(self) -> bool:
        """Whether the server was unreachable for the last submission that tried."""
        return self._delays is not None

    @property
    def seconds_to_probe(self) -> float | None:
        """How long to wait for the next probe, in seconds; None unless only time is missing."""
        seconds = self._next_probe_at - time.monotonic()
        return seconds if self.outage and self._probe is None and seconds > 0 else None

    def permits(self, number: int = 1) -> bool:
        """Tell whether so many more submissions may be sent now, should all of them end ambiguous."""
        if self.outage and (self._probe is not None or time.monotonic() < self._next_probe_at):
            return False
        return len(self._row) + self._undecided + number <= MAX_UNDECIDED

    def sent(self) -> int:
        """Count a submission that is sent now; return its number in the order of sending."""
        self._sent += 1
        self._undecided += 1
        if self.outage:
            self._probe = self._sent
        return self._sent

    def ended(self, number: int, error: BaseException | None) -> AmbiguityLimitError | None:
        """Note how a submission ended.

        Args:
            number: The number of the submission.
            error: Why it has no receipt; None if it has one.

        Returns:
            The reason to stop, if this is the fifth ambiguous submission in a row.

        """
        self._undecided -= 1
        probed = number == self._probe
        if probed:
            self._probe = None
        if isinstance(error, AmbiguousSubmissionError):
            if number > self._last_answered:
                self._row[number] = error
        elif error is None or isinstance(error, ApiError):
            self._last_answered = max(self._last_answered, number)
            self._row = {sent: error for sent, error in self._row.items() if sent > self._last_answered}
        else:
            if is_unreachable(error):
                self._pause(error, probed=probed)
            return None
        if probed:
            self._delays = None
            _log.info("The server is reachable again; the batch continues.")
        if len(self._row) < MAX_UNDECIDED:
            return None
        return AmbiguityLimitError(
            f"{len(self._row)} submissions in a row are ambiguous: they may or may not have been paid for.",
            errors=tuple(self._row.values()),
        )

    def _pause(self, error: TransportError, *, probed: bool) -> None:
        """Begin an outage, or prolong the outage after a failed probe."""
        if self._delays is None:
            self._delays = self._retry.delays()
            reason = error.message.removesuffix(".")
            _log.warning("The server is unreachable: %s. The batch pauses and continues by itself.", reason)
        elif not probed:
            return
        self._next_probe_at = time.monotonic() + next(self._delays)


# --- errors ---------------------------------------------------------------------------------------


def is_unreachable(error: BaseException) -> TypeGuard[TransportError]:
    """Tell whether a submission provably did not reach the server, and may if it is sent again."""
    return isinstance(error, TransportError) and not error.sent and not error.permanent


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
