"""The outcomes of a batch. Outcomes that no consumer gets are logged if they are, or may be, paid for."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import attrs

from .._jobs import Job
from .._models import Receipt, Record, Request
from ..errors import AmbiguousSubmissionError, LedgerUnavailableError

_log = logging.getLogger("qamera_async")


@attrs.frozen
class Outcome:
    """The result of one request of a batch.

    Args:
        index: The position of the request in the input, from 0.
        request: The request as it was read. If the input was not a request, `error` is an
            `InvalidRequestError`.
        job: The job; None if the request was not accepted, or if it is ambiguous.
        record: The record of the finished job; None if there is none.
        path: The downloaded file; None if there is none.
        error: Why the request has no result; None if it has one.

    """

    index: int
    request: Request
    job: Job[Any] | None = None
    record: Record | None = None
    path: Path | None = None
    error: Exception | None = None

    @property
    def ok(self) -> bool:
        """Whether the request has a result."""
        return self.error is None

    def unwrap(self) -> Record:
        """Return the record.

        Raises:
            Exception: `error`, if there is one.

        """
        if self.error is not None:
            raise self.error
        assert self.record is not None  # noqa: S101 - an outcome without an error has a record
        return self.record


@attrs.frozen
class BatchResult:
    """All outcomes of a batch.

    Args:
        outcomes: One for each request that was submitted or refused, in the order of the input.
        stopped: Why the batch stopped before the end of its input; None if it read all requests.
        credits_reserved: The credits that the receipts of this batch state. Earlier jobs don't count.
        credits_refunded: The credits that the receipts of the failed jobs of this batch state.

    """

    outcomes: tuple[Outcome, ...]
    stopped: Exception | None = None
    credits_reserved: int = 0
    credits_refunded: int = 0

    @property
    def records(self) -> tuple[Record, ...]:
        """The records of all requests that have a result, in the order of the input."""
        return tuple(outcome.unwrap() for outcome in self.outcomes if outcome.ok)

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """The outcomes with an error, in the order of the input."""
        return tuple(outcome for outcome in self.outcomes if not outcome.ok)

    def summary(self) -> str:
        """Return a line with the numbers of outcomes, the credits, and why the batch stopped."""
        failures = self.failures
        ambiguous = sum(isinstance(outcome.error, AmbiguousSubmissionError) for outcome in failures)
        counts = f"{len(self.outcomes) - len(failures)} done, {len(failures) - ambiguous} failed"
        credit = f"{self.credits_reserved} credits reserved, {self.credits_refunded} of them refunded"
        text = f"{counts}, {ambiguous} ambiguous; {credit}."
        if self.stopped is None:
            return text
        return f"{text} Stopped by {type(self.stopped).__name__}: {self.stopped}"


def unsaved_receipt(error: BaseException | None) -> Receipt | None:
    """Return the receipt that the ledger could not keep; None if the error has none."""
    return error.receipt if isinstance(error, LedgerUnavailableError) else None


def log_abandoned(outcomes: Iterable[Outcome], *, has_ledger: bool) -> None:
    """Log the outcomes that are, or may be, paid for and that no consumer gets.

    Args:
        outcomes: The outcomes that were not handed out.
        has_ledger: Whether a rerun finds the jobs of requests with a ref again.

    """
    resumable = 0
    for outcome in outcomes:
        receipt = unsaved_receipt(outcome.error)
        if (paid := outcome.job or receipt) is not None:
            what = f"records {', '.join(paid.record_ids)}"
        elif isinstance(outcome.error, AmbiguousSubmissionError):
            what = "an ambiguous submission"
        else:
            continue
        # A rerun submits a request without a ref as a new request.
        if has_ledger and receipt is None and outcome.request.ref is not None:
            resumable += 1
        else:
            _log.warning(
                "A batch was left early. This was not handed out and is, or may be, paid for: %s (ref %r)",
                what,
                outcome.request.ref,
            )
    if resumable:
        _log.info(
            "A batch was left early. The ledger has the %d submissions that are, or may be, paid for and "
            "were not handed out: run the batch again to continue.",
            resumable,
        )
