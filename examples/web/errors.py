"""What can go wrong: the errors of the board itself, and how a page is told of any."""

from __future__ import annotations

from qamera_async import (
    AmbiguousSubmissionError,
    ApiError,
    BadRequestError,
    InsufficientCreditsError,
    InvalidRequestError,
    LedgerCorruptError,
    LedgerError,
    LedgerUnavailableError,
    NotFoundError,
    QameraError,
    RateLimitError,
    TransportError,
)


class BoardError(Exception):
    """What the board itself refuses."""


class BusyError(BoardError):
    """So many orders wait for the quota that no more are taken now."""


class UnknownError(BoardError):
    """There is no such job, or no such clip of it."""


STATUSES: tuple[tuple[type[Exception], int], ...] = (
    (InvalidRequestError, 400),
    (BadRequestError, 400),
    (InsufficientCreditsError, 402),
    (NotFoundError, 404),
    (AmbiguousSubmissionError, 409),
    (LedgerUnavailableError, 503),
    (LedgerCorruptError, 503),
    (LedgerError, 409),  # another request with that id, or a submission that is not ambiguous
    (RateLimitError, 503),
    (BusyError, 503),
    (UnknownError, 404),
    (ApiError, 502),  # what is wrong is between this app and the API: its key, say
    (TransportError, 502),
    (QameraError, 503),
)


def status_of(error: Exception) -> int:
    """Give the HTTP status of an error."""
    return next(status for kind, status in STATUSES if isinstance(error, kind))


def words_of(error: Exception) -> str:
    """Return the text of an error for a page: what happened, without paths and without advice for Python."""
    if isinstance(error, AmbiguousSubmissionError) and error.cause is not None:
        return error.cause.summary
    if isinstance(error, QameraError) and not isinstance(error, LedgerError):
        return error.summary
    return error.message if isinstance(error, LedgerError) else str(error)
