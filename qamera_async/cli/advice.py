"""What to do about an error, in the words of a shell: the library's own advice speaks of Python."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from .. import (
    AmbiguousSubmissionError,
    ConfigurationError,
    DownloadError,
    InvalidRequestError,
    JobFailedError,
    JobLostError,
    JobTimeoutError,
    LedgerUnavailableError,
    QameraError,
    RefConflictError,
)
from .settling import ledger_command

if TYPE_CHECKING:
    from collections.abc import Callable


def said(error: BaseException) -> str:
    """Give an error as one text: what happened, and what to do about it at the command line."""
    if not isinstance(error, QameraError) or isinstance(error, ConfigurationError | InvalidRequestError):
        return str(error) or type(error).__name__
    if (advice := _advice(error)) is None:
        return str(error)
    happened = error.summary
    return f"{happened}{'' if happened.endswith(('.', '!', '?')) else '.'} {advice}"


def _advice(error: QameraError) -> str | None:
    """Give what to do; None where the library's own words will do."""
    return next((advice(error) for kind, advice in _ADVICE if isinstance(error, kind)), None)


def _later(error: Any) -> str:  # noqa: ANN401 - a JobError, as the table says
    return f"Look again later: qamera wait {shlex.join(error.record_ids)}"


def _fetch(error: Any) -> str:  # noqa: ANN401 - a DownloadError
    record = "RECORD_ID" if error.record_id is None else shlex.quote(error.record_id)
    return f"Fetch it again, which orders nothing: qamera download {record} --to DIR"


def _keep(error: Any) -> str:  # noqa: ANN401 - a LedgerUnavailableError
    if error.receipt is None:
        return str(error.hint)
    intent = "INTENT" if error.intent is None else error.intent.id
    settle = ledger_command("LEDGER", "adopt", intent, *error.receipt.record_ids)
    return f"It is paid for. Once the ledger can be written: {settle}"


def _text(text: str) -> Callable[[Any], str]:
    return lambda _: text


# The first that fits counts.
_ADVICE: tuple[tuple[type[Exception], Callable[[Any], str]], ...] = (
    (
        AmbiguousSubmissionError,
        _text("It was sent once and not again: look into the Qamera app before you order the same again."),
    ),
    (
        JobFailedError,
        _text("Its credits are refunded; order it again to try once more (in a batch: --retry-failed)."),
    ),
    (JobTimeoutError, _later),
    (JobLostError, _later),
    (FileExistsError, _text("Move it away or give another name; --overwrite, where there is that option.")),
    (DownloadError, _fetch),
    (LedgerUnavailableError, _keep),
    (RefConflictError, _text("Give the row a ref of its own, or the same content as before.")),
)
