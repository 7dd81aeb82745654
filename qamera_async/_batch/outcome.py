"""What became of each request, and of a whole batch."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import attrs

from ..errors import AmbiguousSubmissionError, LedgerUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from .._jobs import Job
    from .._models import Receipt, Request, Video

_log = logging.getLogger("qamera_async")
_A_LINE = 20


@attrs.frozen
class Outcome:
    """What became of one request.

    Args:
        index: Its place in the order given, from 0.
        request: What was read, as it came: where it is no request at all, `error` says so.
        job: Its job; None where it was not accepted, or nobody knows.
        record: Its video; None where it has none.
        path: The file it was downloaded to; None where it wasn't.
        error: What went wrong; None where nothing did.

    """

    index: int
    request: Request
    job: Job | None = None
    record: Video | None = None
    path: Path | None = None
    error: Exception | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing went wrong."""
        return self.error is None

    def unwrap(self) -> Video:
        """Give the video.

        Raises:
            Exception: `error`, where something went wrong.

        """
        if self.error is not None:
            raise self.error
        assert self.record is not None  # noqa: S101 - without an error there is one
        return self.record


@attrs.frozen
class BatchResult:
    """What became of a batch.

    Args:
        outcomes: One for each request that was submitted or can't be, in the order given.
        stopped: Why it stopped; None: all requests were read.
        credits_reserved: What its new orders reserved, in credits, as far as their receipts tell.
        credits_refunded: What of it came back, in credits: that of jobs that failed.

    """

    outcomes: tuple[Outcome, ...]
    stopped: BaseException | None = None
    credits_reserved: int = 0
    credits_refunded: int = 0

    @property
    def records(self) -> tuple[Video, ...]:
        """The videos of all that went well, in the order given."""
        return tuple(outcome.unwrap() for outcome in self.outcomes if outcome.ok)

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """The outcomes with an error, in the order given."""
        return tuple(outcome for outcome in self.outcomes if not outcome.ok)

    def summary(self) -> str:
        """Give it in a few words: how many were done and failed, the credits, and why it stopped."""
        failures = self.failures
        ambiguous = sum(isinstance(outcome.error, AmbiguousSubmissionError) for outcome in failures)
        counts = f"{len(self.outcomes) - len(failures)} done, {len(failures) - ambiguous} failed"
        credit = f"{self.credits_reserved} credits reserved, {self.credits_refunded} of them refunded"
        text = f"{counts}, {ambiguous} ambiguous; {credit}."
        if self.stopped is None:
            return text
        return f"{text} Stopped by {type(self.stopped).__name__}: {self.stopped}"


def receipt_of(error: Exception | None) -> Receipt | None:
    """Give the receipt in an error: it is paid for, and could not be written down."""
    return error.receipt if isinstance(error, LedgerUnavailableError) else None


def log_left(outcomes: Iterable[Outcome], *, kept: bool) -> None:
    """Leave a trace of what was submitted, or may have been, and that nobody will be told of.

    Args:
        outcomes: What was left.
        kept: Whether a ledger has it too.

    """
    left: list[str] = []
    resumable = 0
    for outcome in outcomes:
        if outcome.job is not None:
            what = ", ".join(outcome.job.record_ids)
        elif (receipt := receipt_of(outcome.error)) is not None:
            what = ", ".join(receipt.record_ids)
        elif isinstance(outcome.error, AmbiguousSubmissionError):
            what = "one that is ambiguous"
        else:
            continue
        # A ledger finds again what has a ref; without one, the same request would be a new order.
        if kept and receipt_of(outcome.error) is None and outcome.request.ref is not None:
            resumable += 1
        else:
            left.append(what if outcome.request.ref is None else f"{what} (ref {outcome.request.ref!r})")
    if resumable:
        _log.info(
            "a batch was left before all was handed out; the ledger has the %d that are, or may be, paid "
            "for: run it again to go on",
            resumable,
        )
    for start in range(0, len(left), _A_LINE):
        line = "; ".join(left[start : start + _A_LINE])
        _log.warning("a batch was left before all was handed out; its records: %s", line)
