"""Exceptions of this package.

    QameraError
    ├── ConfigurationError           invalid key, URL or setting       (also ValueError)
    ├── InvalidRequestError          refused before anything was sent  (also ValueError)
    ├── SessionClosedError                                             (also RuntimeError)
    ├── TransportError               no response
    │   ├── ConnectionFailedError    the server was not reached
    │   └── RequestTimeoutError                                        (also TimeoutError)
    ├── ApiError                     the server answered with an error status
    │   ├── BadRequestError          400
    │   ├── AuthenticationError      401
    │   ├── InsufficientCreditsError 402
    │   ├── PermissionDeniedError    403
    │   ├── NotFoundError            404
    │   ├── RateLimitError           429
    │   └── ServerError              5xx
    ├── InvalidResponseError         the response could not be decoded
    ├── AmbiguousSubmissionError     the server may or may not have accepted the submission
    ├── JobError
    │   ├── JobFailedError
    │   ├── JobTimeoutError                                            (also TimeoutError)
    │   └── JobLostError
    ├── BatchStoppedError
    │   ├── CreditLimitError
    │   └── AmbiguityLimitError
    ├── DownloadError
    │   └── TargetExistsError                                          (also FileExistsError)
    └── LedgerError
        ├── LedgerCorruptError
        ├── LedgerVersionError
        ├── LedgerUnavailableError
        └── RefConflictError

`TimeoutError` and `FileExistsError` are subclasses of `OSError`, so `except OSError` catches those errors
too.

Each error carries its evidence as attributes, can be pickled and copied, and holds no secret. Its text says
what happened and what to do.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from typing import Any, ClassVar, TypeGuard, TypeVar, dataclass_transform

import attrs

from ._models import Intent, Receipt, Record, Request

_E = TypeVar("_E", bound=BaseException)
_C = TypeVar("_C", bound="QameraError")

_REPR_LENGTH = 60
_MAX_IDS = 100
_MAX_ID_LENGTH = 200
_PROXY_AUTHENTICATION_REQUIRED = 407


def short_repr(value: object) -> str:
    """Return the repr of a value for a message, cut to 60 characters.

    Args:
        value: Any value. If its repr raises, the result names the type of the value.

    """
    if isinstance(value, str | bytes) and len(value) > _REPR_LENGTH:
        value = value[: _REPR_LENGTH + 1]  # avoids the repr of a long text
    try:
        text = repr(value)
    except Exception:
        return f"a {type(value).__name__}"
    return text if len(text) <= _REPR_LENGTH else f"{text[: _REPR_LENGTH - 3]}..."


def join_ids(ids: Iterable[str]) -> str:
    """Return ids as one text for a message: the first 100, and the number of the others.

    Args:
        ids: Record ids, the most important first. An id is cut after 200 characters.

    """
    all_ids = list(ids)
    shown = [i if len(i) <= _MAX_ID_LENGTH else f"{i[:_MAX_ID_LENGTH]}..." for i in all_ids[:_MAX_IDS]]
    return ", ".join(shown) + (f" and {len(all_ids) - _MAX_IDS} more" if len(all_ids) > _MAX_IDS else "")


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is an int or a float, except bool, NaN, and ints beyond the range of float."""
    if isinstance(value, float):
        return not math.isnan(value)
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def without_traceback(error: _E) -> _E:
    """Remove the traceback, cause and context of an error, and return the error.

    The frames of tracebacks and causes can have the API key in their local variables. Assign the result in
    the except clause and raise it after the clause, because raising it inside the clause sets its context.

    Args:
        error: The error to raise later.

    """
    error.__traceback__ = error.__cause__ = error.__context__ = None
    return error


def is_permanent(error: QameraError) -> bool:
    """Return whether the same request would get the same error again.

    Args:
        error: The error of a request.

    """
    if isinstance(error, ApiError):
        proxy_refused = error.status == _PROXY_AUTHENTICATION_REQUIRED
        return proxy_refused or (error.status in {400, 401, 403, 404} and not error.foreign)
    if isinstance(error, InvalidResponseError):
        is_redirect = error.status is not None and 300 <= error.status < 400  # noqa: PLR2004
        return is_redirect and error.status != 304  # noqa: PLR2004 - a broken cache, which may recover
    return isinstance(error, SessionClosedError) or (isinstance(error, TransportError) and error.permanent)


def is_unsent(error: BaseException) -> TypeGuard[TransportError]:
    """Return whether a submission provably did not reach the server, and may if it is sent again.

    Args:
        error: The error of a submission.

    """
    return isinstance(error, TransportError) and not error.sent and not error.permanent


@dataclass_transform(eq_default=False, kw_only_default=True, field_specifiers=(attrs.field,))
def _error(cls: type[_C]) -> type[_C]:
    # Errors compare by identity. auto_exc=False keeps the attributes out of `args`, and so out of repr().
    return attrs.define(cls, kw_only=True, slots=False, eq=False, repr=False, auto_exc=False)


def _restore(cls: type[QameraError], args: tuple[Any, ...]) -> QameraError:
    # Not cls(*args), because most attributes are keyword-only. Unpickling restores them from the state.
    error = cls.__new__(cls)
    error.args = args
    return error


@_error
class QameraError(Exception):
    """Base class of all errors of this package.

    Args:
        message: What happened.

    """

    _hint: ClassVar[str] = ""

    message: str = attrs.field(kw_only=False)

    def __attrs_post_init__(self) -> None:
        super().__init__(self.message)

    @property
    def summary(self) -> str:
        """What happened, with details and without the hint."""
        details = [detail for detail in self._details() if detail]
        return f"{self.message.removesuffix('.')} ({'; '.join(details)})" if details else self.message

    @property
    def hint(self) -> str:
        """What to do about the error; empty if the message says it."""
        return self._hint

    def __str__(self) -> str:
        return _join_sentences(self.summary, self.hint)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args), self.__dict__.copy()

    def _details(self) -> list[str]:
        # Details for the summary. Empty texts are left out.
        return []


class ConfigurationError(QameraError, ValueError):
    """A key, URL or setting is invalid. The message says what is allowed."""


class InvalidRequestError(QameraError, ValueError):
    """A request was refused before anything was sent. The message says what is allowed."""


class SessionClosedError(QameraError, RuntimeError):
    """The session is closed, or was closed during the call."""

    _hint = "Open a new QameraSession, and attach to existing jobs there with session.job(*record_ids)."


@_error
class TransportError(QameraError):
    """No response arrived.

    Args:
        message: What happened.
        sent: False if provably no byte of the request body was sent; True if a byte may have been sent.

    """

    _hint = "Check the network and the address of the server, then try again."

    sent: bool = True
    permanent: bool = attrs.field(default=False, init=False)
    """Whether another attempt would fail in the same way."""


@_error
class ConnectionFailedError(TransportError):
    """The server was not reached, so nothing was sent.

    Args:
        message: What happened.
        permanent: True if another attempt would fail in the same way, for example an invalid certificate.

    """

    sent: bool = attrs.field(default=False, init=False)
    permanent: bool = False

    @property
    def hint(self) -> str:
        """What to do about the error."""
        if self.permanent:
            return "Another attempt would fail too: check the certificate, the proxy and the base URL."
        return "Nothing was sent, so it is safe to try again."


class RequestTimeoutError(TransportError, TimeoutError):
    """An exchange took longer than `Timeouts` allows. The arguments are those of `TransportError`."""

    _hint = "Try again later, or allow more time with Timeouts(connect=..., request=...)."


@_error
class ApiError(QameraError):
    """The server answered with an error status (the API's section "Every request").

    Args:
        message: The server's text.
        status: The HTTP status.
        correlation_id: The server's id of the exchange, for its support; None if the response has none.
        retry_after: How long the server asks to wait, in seconds; None if the response does not say.
        foreign: True if the body does not have the API's shape, so that a proxy may have answered.

    """

    _hint = "The support of the Qamera app can look up the correlation id."

    status: int
    correlation_id: str | None = None
    retry_after: float | None = None
    foreign: bool = False

    @property
    def summary(self) -> str:
        """The HTTP status, the server's text and the correlation id."""
        return f"HTTP {self.status}: {self.message}{_correlation(self.correlation_id)}"

    @property
    def hint(self) -> str:
        """What to do about the error."""
        proxy = "The body does not have the API's shape: a proxy may have answered." if self.foreign else ""
        return _join_sentences(self._hint, proxy)


class BadRequestError(ApiError):
    """400: the server can't process the request."""

    _hint = "Correct the request: the server would refuse the same request again."


class AuthenticationError(ApiError):
    """401: the API key is missing, invalid, expired or revoked."""

    _hint = "Check the API key (QAMERA_API_KEY), or create a new one in the Qamera app."


@_error
class InsufficientCreditsError(ApiError):
    """402: the account has fewer credits than the request needs (both POST endpoints).

    Args:
        message: The server's text.
        status: The HTTP status.
        required: The credits that the request needs; None if the text does not say.
        available: The credits that the account has; None if the text does not say.
        correlation_id: See `ApiError`.
        retry_after: See `ApiError`.
        foreign: See `ApiError`.

    """

    _hint = "No credits were reserved: buy credits in the Qamera app, then register the request again."

    required: int | None = None
    available: int | None = None


class PermissionDeniedError(ApiError):
    """403: the API key lacks the scope that the endpoint needs."""

    _hint = "Give the API key the scope that the message names, or use a key that has it."


class NotFoundError(ApiError):
    """404: the resource does not exist, or it belongs to another account."""

    _hint = "Check the ids, the account of the API key, and the base URL."


class RateLimitError(ApiError):
    """429: the rate limit was exceeded, and waiting did not help."""

    _hint = (
        "Another program uses this API key: give each program its own key, "
        "or lower its share of the limit with RateLimiter(limit=...)."
    )


class ServerError(ApiError):
    """5xx: the server, or a proxy before it, failed."""

    _hint = "Try again later. If it fails again, give the correlation id to the support."


@_error
class InvalidResponseError(QameraError):
    """A response could not be decoded.

    Args:
        message: What is wrong with the response.
        status: The HTTP status; None if none could be read.
        expected: What the response should have contained.
        excerpt: The beginning of the body.
        correlation_id: The server's id of the exchange; None if the response has none.
        record_ids: The record ids that could be read from an incomplete receipt.

    """

    _hint = "Check the base URL and whether a proxy answers instead of the API, or update this package."

    status: int | None = None
    expected: str = ""
    excerpt: str = ""
    correlation_id: str | None = None
    record_ids: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """What is wrong, with the status, the expected content, the excerpt and the correlation id."""
        return super().summary + _correlation(self.correlation_id)

    def _details(self) -> list[str]:
        expected, excerpt = self.expected, self.excerpt
        return [
            _detail("HTTP {}", self.status),
            _detail("expected {}", expected),
            _detail("got {!r}", excerpt),
        ]


@_error
class AmbiguousSubmissionError(QameraError):
    """The server may or may not have accepted a submission: its response was lost or could not be decoded.

    Args:
        message: What happened.
        intent: The intent of the submission, with its id, its request and the time of sending.
        candidates: Records that may belong to the submission. An empty tuple proves nothing.
        cause: The error of the exchange; None if unknown.
        may_share_candidates: True if other ambiguous submissions may have the same candidates.
        record_ids: The record ids that could be read from an incomplete receipt.
        looked_up: False if no list was fetched since the submission, so that `candidates` is empty for now.

    """

    _hint = (
        "The submission was sent once and will not be repeated. Look for its record in the Qamera app, even "
        "if no candidate was found, and attach to it with session.job(id). With a ledger, resolve the "
        "submission with session.adopt(error, id) or session.abandon(error)."
    )

    intent: Intent
    candidates: tuple[Record, ...] = ()
    cause: QameraError | None = None
    may_share_candidates: bool = False
    record_ids: tuple[str, ...] = ()
    looked_up: bool = True

    @property
    def request(self) -> Request:
        """The request that was sent."""
        return self.intent.request

    def _details(self) -> list[str]:
        shared = "other ambiguous submissions may have the same candidates"
        return [
            _detail("ref {!r}", self.request.ref),
            _detail("its receipt names {}", join_ids(self.record_ids)),
            self._describe_candidates(),
            shared if self.may_share_candidates and self.candidates else "",
            _detail("cause: {}", self.cause),
        ]

    def _describe_candidates(self) -> str:
        if not self.looked_up and not self.candidates:
            return "candidates were not looked up yet"
        if not self.candidates:
            return "no candidates found; the record may still have been created"
        if len(self.candidates) <= _MAX_IDS:
            return f"candidates: {join_ids(record.id for record in self.candidates)}"
        # The sort is stable: records of the same time, or without a time, keep the order of the list.
        newest = sorted(self.candidates, key=_created, reverse=True)[:_MAX_IDS]
        ids = join_ids(record.id for record in newest)
        return f"{len(self.candidates)} candidates, the newest {_MAX_IDS}: {ids}"


@_error
class JobError(QameraError):
    """A job ended without its result.

    Args:
        message: What happened.
        record_ids: All records of the job: `session.job(*record_ids)` attaches to the same job.

    """

    record_ids: tuple[str, ...]


@_error
class JobFailedError(JobError):
    """The server reports that the job failed.

    Args:
        message: What happened.
        record_ids: All records of the job.
        records: The last state of each record, in the order of their ids.

    """

    _hint = "The server refunds the credits of failed records. Register the request again to retry it."

    records: tuple[Record, ...] = ()


@_error
class JobTimeoutError(JobError, TimeoutError):
    """The job was not finished within the timeout. It continues on the server.

    Args:
        message: What happened.
        record_ids: All records of the job.
        timeout: The timeout that passed, in seconds.
        status: The last status that the server listed; None if the record was never listed.
        last_error: The error of the last poll; None if it succeeded.
        list_age: The age of the last good list, in seconds; None if there was none.

    """

    _hint = "The job continues on the server: await it again, or attach to it with session.job(*record_ids)."

    timeout: float
    status: str | None = None
    last_error: QameraError | None = None
    list_age: float | None = None

    def _details(self) -> list[str]:
        return [
            _detail("last status {}", self.status and short_repr(self.status)) or "never listed",
            _detail("last list {:.0f} s old", self.list_age) or "no list was received",
            _detail("last error: {}", self.last_error),
        ]


@_error
class JobLostError(JobError):
    """A record of the job is missing from the server's list.

    Args:
        message: What happened.
        record_ids: All records of the job, the missing one included.
        record: The last state of the missing record; None if it was never listed.
        absent_for: How long the record has been missing, in seconds.

    """

    _hint = (
        "The record may have been deleted, or belong to another account: look in the Qamera app. "
        "The job can be awaited again."
    )

    record: Record | None = None
    absent_for: float


class BatchStoppedError(QameraError):
    """A batch stopped before its last request. The outcomes of all submitted requests were yielded before."""


@_error
class CreditLimitError(BatchStoppedError):
    """The next request might exceed `max_credits`.

    Args:
        message: What happened.
        max_credits: The limit, in credits.
        spent: The credits that the batch has reserved so far, including those of failed jobs.
        price: The price of the next request, in credits; None if unknown.
        cause: The error of the ambiguous submission that made the price unknown; None if there is none.

    """

    max_credits: int
    spent: int
    price: int | None = None
    cause: AmbiguousSubmissionError | None = None

    @property
    def hint(self) -> str:
        """What to do about the error."""
        if self.cause is not None:
            return (
                "A higher max_credits does not help: the price is unknown, because the receipt of an "
                "ambiguous submission was lost. Run the remaining requests again: the rerun learns the price "
                "from its first receipt and goes on. With a ledger, the whole batch can be run again."
            )
        or_without = ", or without it if receipts do not state credits" if self.price is None else ""
        return f"Run the remaining requests again with a higher max_credits{or_without}."

    def _details(self) -> list[str]:
        return [_detail("cause: {}", self.cause)]


@_error
class AmbiguityLimitError(BatchStoppedError):
    """Five submissions in a row were ambiguous, so the server is probably failing.

    Args:
        message: What happened.
        errors: The errors of those submissions.

    """

    _hint = (
        "The remaining requests were not submitted: look for the records of the ambiguous submissions in the "
        "Qamera app first, then run the rest of the batch again."
    )

    errors: tuple[AmbiguousSubmissionError, ...]

    def _details(self) -> list[str]:
        return [_detail("the last: {}", self.errors[-1])] if self.errors else []


@_error
class DownloadError(QameraError):
    """A result could not be downloaded. There is no incomplete file at its final name.

    Args:
        message: What happened.
        record_id: The record of the result; None if there is no record yet.
        path: The target file; None if the result is streamed.
        status: The HTTP error status of the host of the file; None if there was no error status.
        host: The host of the file; None if unknown.

    """

    _hint = "Download the result again: this costs no credits, and resumes a partial file if possible."

    record_id: str | None = None
    path: str | None = None
    status: int | None = None
    host: str | None = None

    def _details(self) -> list[str]:
        where = [
            _detail("record {}", self.record_id),
            _detail("to {}", self.path),
            _detail("from {}", self.host),
        ]
        return [*where, _detail("HTTP {}", self.status)]


class TargetExistsError(DownloadError, FileExistsError):
    """The target file exists, and was not changed. The arguments are those of `DownloadError`."""

    _hint = "Choose another path, or replace the file with overwrite=True."


@_error
class LedgerError(QameraError):
    """A ledger operation failed. Nothing is submitted without the ledger.

    Args:
        message: What happened.
        path: The file or the redacted URL of the ledger; None if unknown.

    """

    path: str | None = None

    def _details(self) -> list[str]:
        return [_detail("ledger {}", self.path)]


class LedgerCorruptError(LedgerError):
    """The file is damaged, truncated, or not a ledger. It was not changed."""

    _hint = (
        "Restore the file from a backup, with its -wal file. Without a backup, look in the Qamera app for "
        "submitted records, then start a new ledger under another name."
    )


@_error
class LedgerVersionError(LedgerError):
    """A newer version of this package wrote the ledger. It was not changed.

    Args:
        message: What happened.
        path: The file or the redacted URL of the ledger; None if unknown.
        found: The version of the ledger's schema.
        supported: The newest version that this package can read.

    """

    _hint = "Update this package."

    found: int
    supported: int


@_error
class LedgerUnavailableError(LedgerError):
    """The ledger can't be read or written now.

    Possible causes are a full disk, a read-only file, a lock of another process, an unreachable database,
    denied access, or a ledger that was moved.

    Args:
        message: What happened.
        path: The file or the redacted URL of the ledger; None if unknown.
        intent: The intent that could not be stored; None if the error concerns no intent.
        receipt: The receipt that arrived and could not be stored; None if there is none.
        fix: How to fix the cause, an imperative without a full stop; None if unknown.

    """

    intent: Intent | None = None
    receipt: Receipt | None = None
    fix: str | None = None

    @property
    def hint(self) -> str:
        """What to do about the error."""
        fix = self.fix or "Check why the ledger can't be read or written"
        if self.receipt is None:
            return f"Nothing was submitted. {fix}, then try again."
        return (
            f"Note the record ids: the ledger will report this submission as ambiguous. {fix}, "
            "then resolve it with session.adopt(error, *error.receipt.record_ids)."
        )

    def _details(self) -> list[str]:
        record_ids = () if self.receipt is None else self.receipt.record_ids
        return [*super()._details(), _detail("submitted: records {}", join_ids(record_ids))]


@_error
class RefConflictError(LedgerError):
    """The ledger has another request with the same ref.

    Args:
        message: What happened.
        path: The file or the redacted URL of the ledger; None if unknown.
        request: The request that was refused.
        earlier: The request in the ledger.

    """

    _hint = "Give the request another ref, or register the same request as before."

    request: Request
    earlier: Request

    def _details(self) -> list[str]:
        differences = [
            f"{name}: {short_repr(now)} now, {short_repr(before)} in the ledger"
            for name, now in attrs.asdict(self.request, recurse=False).items()
            if now != (before := getattr(self.earlier, name, None))
        ]
        return [*super()._details(), *differences]


def _created(record: Record) -> float:
    return -math.inf if record.created_at is None else record.created_at.timestamp()


def _detail(template: str, value: object) -> str:
    # Returns an empty text for no value. An error is formatted without its hint.
    if isinstance(value, QameraError):
        value = f"{type(value).__name__}: {value.summary}"
    return "" if value in (None, "") else template.format(value)


def _correlation(correlation_id: str | None) -> str:
    return "" if correlation_id is None else f" [correlation id {correlation_id}]"


def _join_sentences(*parts: str) -> str:
    # Only some of the server's texts end with a full stop.
    present = [part.rstrip() for part in parts if part.strip()]
    ended = [part if part.endswith((".", "!", "?", "]")) else f"{part}." for part in present[:-1]]
    return " ".join([*ended, *present[-1:]])
