"""The error tree: everything this package raises on purpose.

    QameraError
    ├── ConfigurationError          a bad key, URL or setting          (also ValueError)
    ├── InvalidRequestError         refused before any request          (also ValueError)
    ├── SessionClosedError                                              (also RuntimeError)
    ├── TransportError              no answer
    │   ├── ConnectionFailedError   never reached the server
    │   └── RequestTimeoutError                                         (also TimeoutError)
    ├── ApiError                    the server said no: status, message, correlation_id, retry_after
    │   ├── BadRequestError 400 · AuthenticationError 401 · InsufficientCreditsError 402 (required,
    │   │   available) · PermissionDeniedError 403 · NotFoundError 404 · RateLimitError 429
    │   └── ServerError 5xx
    ├── InvalidResponseError        an answer nobody can read: what was expected, a short excerpt
    ├── AmbiguousSubmissionError    may or may not have been paid for: intent, request, candidates, cause
    ├── JobError: JobFailedError · JobTimeoutError (also TimeoutError) · JobLostError
    ├── BatchStoppedError: CreditLimitError (`max_credits`) · AmbiguityLimitError (five in a row)
    ├── DownloadError: TargetExistsError (also FileExistsError)
    └── LedgerError: LedgerCorruptError · LedgerVersionError · LedgerUnavailableError · RefConflictError

Each carries its evidence as attributes, survives pickling and copying with it, says in its text what
happened and what to do, and holds no secret: only plain values and other errors of this tree.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from ._models import Intent, Receipt, Request, Video

_SHOWN_CHARACTERS = 60


def shown(value: object) -> str:
    """Give a value's repr for a message, cut to about 60 characters.

    Args:
        value: Whatever the caller passed; its repr may be long or broken.

    """
    if isinstance(value, str | bytes) and len(value) > _SHOWN_CHARACTERS:
        # The repr of a whole file handed in by mistake isn't worth making.
        value = value[: _SHOWN_CHARACTERS + 1]
    try:
        text = repr(value)
    except Exception:
        return f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."


def _rebuilt(cls: type[QameraError], args: tuple[Any, ...]) -> QameraError:
    # Not cls(*args): required keywords are attributes, and come back with the state.
    error = cls.__new__(cls)
    error.args = args
    return error


class QameraError(Exception):
    """The base of every error of this package.

    Args:
        message: What happened.

    """

    advice: ClassVar[str] = ""
    """What to do about it, where the class alone can tell."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return _sentences(self._what_happened(), self._what_to_do())

    @property
    def what_happened(self) -> str:
        """The text without what to do about it, for who has an advice of their own."""
        return self._what_happened()

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (type(self), self.args), self.__dict__.copy()

    def _what_happened(self) -> str:
        return self.message

    def _what_to_do(self) -> str:
        return self.advice

    @staticmethod
    def _brief(error: QameraError) -> str:
        # Inside another error's text: what happened, without what to do about it alone.
        return f"{type(error).__name__}: {error._what_happened()}"


class ConfigurationError(QameraError, ValueError):
    """A key, URL or setting that can't be worked with. The message says what is allowed."""


class InvalidRequestError(QameraError, ValueError):
    """A request that was refused before anything was sent. The message says what is allowed."""


class SessionClosedError(QameraError, RuntimeError):
    """The session is closed, or was closed while this waited."""

    advice = "Open a new QameraSession; a job's record ids are all it takes to resume it there."


class TransportError(QameraError):
    """No answer came.

    Args:
        message: What happened.
        sent: False where provably no byte of the request's body left; True where it may have.

    """

    advice = "Check the network and the address of the server, then try again."
    permanent: bool = False
    """Whether trying again can't help."""

    def __init__(self, message: str, *, sent: bool = True) -> None:
        super().__init__(message)
        self.sent = sent


class ConnectionFailedError(TransportError):
    """The server was never reached, so nothing was sent.

    Args:
        message: What happened.
        permanent: True where trying again can't help: a certificate, TLS, a proxy that refuses.

    """

    def __init__(self, message: str, *, permanent: bool = False) -> None:
        super().__init__(message, sent=False)
        self.permanent = permanent

    def _what_to_do(self) -> str:
        if self.permanent:
            return "Trying again cannot help: check the certificate, the proxy and the address of the server."
        return "Nothing was sent, so it is safe to try again."


class RequestTimeoutError(TransportError, TimeoutError):
    """An exchange took longer than `Timeouts` allows. Args are those of `TransportError`."""

    advice = "Try again later, or allow more time with Timeouts(connect=..., request=...)."


class ApiError(QameraError):
    """The server said no (the API's section "Every request"). Its subclasses tell the statuses apart.

    Args:
        message: The server's own text.
        status: The HTTP status.
        correlation_id: The server's name for this exchange, for its support; None if it gave none.
        retry_after: How long the server asks to wait, in seconds; None if it doesn't say.
        foreign: True where the body isn't in the API's shape, so that a proxy may have answered.

    """

    advice = "The server gives no more than this; its support can look the correlation id up."

    def __init__(
        self,
        message: str,
        *,
        status: int,
        correlation_id: str | None = None,
        retry_after: float | None = None,
        foreign: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.correlation_id = correlation_id
        self.retry_after = retry_after
        self.foreign = foreign

    def _what_happened(self) -> str:
        return f"HTTP {self.status}: {self.message}{_traced(self.correlation_id)}"

    def _what_to_do(self) -> str:
        if not self.foreign:
            return self.advice
        return _sentences(self.advice, "The body is not in the API's shape: a proxy may have answered.")


class BadRequestError(ApiError):
    """400: the server can't work with the request."""

    advice = "Correct the request: sent again as it is, it will be refused again."


class AuthenticationError(ApiError):
    """401: the API key is missing, invalid, expired or revoked."""

    advice = "Check the API key (QAMERA_API_KEY), or make a new one in the Qamera app."


class InsufficientCreditsError(ApiError):
    """402: the account's credits don't cover the request (both POST endpoints).

    Args:
        message: The server's own text.
        status: The HTTP status.
        required: The credits the request takes; None where the text doesn't tell.
        available: The credits the account has; None where the text doesn't tell.
        correlation_id: As for `ApiError`.
        retry_after: As for `ApiError`.
        foreign: As for `ApiError`.

    """

    advice = "Buy credits in the Qamera app, then register again: nothing was reserved."

    def __init__(
        self,
        message: str,
        *,
        status: int,
        required: int | None = None,
        available: int | None = None,
        correlation_id: str | None = None,
        retry_after: float | None = None,
        foreign: bool = False,
    ) -> None:
        super().__init__(
            message, status=status, correlation_id=correlation_id, retry_after=retry_after, foreign=foreign
        )
        self.required = required
        self.available = available


class PermissionDeniedError(ApiError):
    """403: the key is good, but lacks the scope that the endpoint asks for."""

    advice = "Give the API key the scope named here, or use a key that has it."


class NotFoundError(ApiError):
    """404: there is no such resource, or it belongs to another account."""

    advice = "Check the ids, the account of the API key, and the base URL."


class RateLimitError(ApiError):
    """429: too many requests in the window, and waiting for room didn't help."""

    advice = (
        "Another program shares this API key: give each its own key, "
        "or leave it room with RateLimiter(limit=...)."
    )


class ServerError(ApiError):
    """5xx: the server, or something before it, is in trouble."""

    advice = "Try again later; if it stays, tell the support the correlation id."


class InvalidResponseError(QameraError):
    """An answer that nobody can read.

    Args:
        message: What is wrong with it.
        status: The HTTP status; None where there was none to read.
        expected: What should have come.
        excerpt: The beginning of what came.
        correlation_id: The server's name for this exchange; None if it gave none.
        record_ids: The ids that could be read of a receipt that as a whole couldn't.

    """

    advice = "Check that the base URL is the API's and no proxy answers for it, or update this package."

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        expected: str = "",
        excerpt: str = "",
        correlation_id: str | None = None,
        record_ids: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.expected = expected
        self.excerpt = excerpt
        self.correlation_id = correlation_id
        self.record_ids = record_ids

    def _what_happened(self) -> str:
        details = [
            "" if self.status is None else f"HTTP {self.status}",
            self.expected and f"expected {self.expected}",
            self.excerpt and f"got {self.excerpt!r}",
        ]
        return f"{_with_details(self.message, details)}{_traced(self.correlation_id)}"


class AmbiguousSubmissionError(QameraError):
    """A paid request whose answer nobody knows: it may or may not have been accepted.

    Args:
        message: What happened.
        intent: What was meant, with its id and the time of sending.
        candidates: Videos that may have come of it. None seen is not "not made".
        cause: The error that the same answer would be on a request that is free; None if unknown.
        shared: True where other ambiguous submissions may have the same candidates.
        record_ids: The ids that could be read of a receipt that as a whole couldn't.

    """

    advice = (
        "The request was sent once and not again. Look at the candidates in the Qamera app: attach to the "
        "right one with session.job(id), or register again if there is none. With a ledger, settle it: "
        "session.adopt(error, id) or session.abandon(error)."
    )

    def __init__(
        self,
        message: str,
        *,
        intent: Intent,
        candidates: tuple[Video, ...] = (),
        cause: QameraError | None = None,
        shared: bool = False,
        record_ids: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.intent = intent
        self.record_ids = record_ids
        self.candidates = candidates
        self.cause = cause
        self.shared = shared

    @property
    def request(self) -> Request:
        """The request that was sent."""
        return self.intent.request

    def _what_happened(self) -> str:
        ids = ", ".join(video.id for video in self.candidates) or "none seen"
        details = [
            "" if self.request.ref is None else f"ref {self.request.ref!r}",
            f"its receipt names {', '.join(self.record_ids)}" if self.record_ids else "",
            f"candidates: {ids}",
            "other ambiguous submissions may share them" if self.shared and self.candidates else "",
            "" if self.cause is None else f"cause: {self._brief(self.cause)}",
        ]
        return _with_details(self.message, details)


class JobError(QameraError):
    """A job that gave no video.

    Args:
        message: What happened.
        record_ids: The job's records: `session.job(*record_ids)` is the same job again.

    """

    def __init__(self, message: str, *, record_ids: tuple[str, ...]) -> None:
        super().__init__(message)
        self.record_ids = record_ids


class JobFailedError(JobError):
    """The server reports that the job failed.

    Args:
        message: What happened.
        record_ids: The job's records.
        records: The last state of all of them, in the order of their ids.

    """

    advice = "Its credits are refunded by the server; register it again to try once more."

    def __init__(self, message: str, *, record_ids: tuple[str, ...], records: tuple[Video, ...] = ()) -> None:
        super().__init__(message, record_ids=record_ids)
        self.records = records


class JobTimeoutError(JobError, TimeoutError):
    """The job wasn't finished in the time given. It goes on at the server.

    Args:
        message: What happened.
        record_ids: The job's records.
        timeout: The limit that passed, in seconds.
        status: The server's word for it, last seen; None if it was never seen.
        last_error: What went wrong with the last poll; None if nothing did.
        list_age: How old the last good list is, in seconds; None if there was none.

    """

    advice = "The job lives on: await it again, or resume it later from its record ids."

    def __init__(
        self,
        message: str,
        *,
        record_ids: tuple[str, ...],
        timeout: float,
        status: str | None = None,
        last_error: QameraError | None = None,
        list_age: float | None = None,
    ) -> None:
        super().__init__(message, record_ids=record_ids)
        self.timeout = timeout
        self.status = status
        self.last_error = last_error
        self.list_age = list_age

    def _what_happened(self) -> str:
        details = [
            "never seen in the list" if self.status is None else f"last status {self.status!r}",
            "no list was received" if self.list_age is None else f"last list {self.list_age:.0f} s old",
            "" if self.last_error is None else f"last error: {self._brief(self.last_error)}",
        ]
        return _with_details(self.message, details)


class JobLostError(JobError):
    """A record of the job is missing from the server's list.

    Args:
        message: What happened.
        record_ids: The job's records.
        record: The last that was seen of it; None if it was never seen.
        absent_for: For how long it has been missing, in seconds.

    """

    advice = (
        "It may have been deleted, or belong to another account: look in the Qamera app. "
        "The job can be awaited again."
    )

    def __init__(
        self, message: str, *, record_ids: tuple[str, ...], record: Video | None = None, absent_for: float
    ) -> None:
        super().__init__(message, record_ids=record_ids)
        self.record = record
        self.absent_for = absent_for


class BatchStoppedError(QameraError):
    """A batch has stopped, since going on makes no sense; what was paid for was handed out before."""


class CreditLimitError(BatchStoppedError):
    """The next request would spend more than `max_credits`.

    Args:
        message: What happened.
        max_credits: The limit, in credits.
        spent: What the batch has spent so far, in credits, jobs that failed later included.
        price: What the next request takes, in credits; None where that isn't known.

    """

    advice = "Nothing of the rest was submitted: run the batch again with a higher max_credits."

    def __init__(self, message: str, *, max_credits: int, spent: int, price: int | None = None) -> None:
        super().__init__(message)
        self.max_credits = max_credits
        self.spent = spent
        self.price = price


class AmbiguityLimitError(BatchStoppedError):
    """Too many registrations in a row may or may not have been paid for: the server is in trouble.

    Args:
        message: What happened.
        errors: Those registrations, as they were raised.

    """

    advice = "Nothing of the rest was submitted: look into these first, and run the batch again later."

    def __init__(self, message: str, *, errors: tuple[AmbiguousSubmissionError, ...]) -> None:
        super().__init__(message)
        self.errors = errors

    def _what_happened(self) -> str:
        last = f"the last: {self._brief(self.errors[-1])}" if self.errors else ""
        return _with_details(self.message, [last])


class DownloadError(QameraError):
    """A result couldn't be fetched; there is no file at its final name.

    Args:
        message: What happened.
        record_id: The record whose result it is; None where nothing was ordered yet.
        path: Where the file was to be; None where it was to be no file.
        status: The HTTP status of the host that has the file; None where there was none, or a good one.
        host: The name of that host; None where there is none yet.

    """

    advice = "Nothing was ordered again: download it once more; what has come so far is kept where it can be."

    def __init__(
        self,
        message: str,
        *,
        record_id: str | None = None,
        path: str | None = None,
        status: int | None = None,
        host: str | None = None,
    ) -> None:
        super().__init__(message)
        self.record_id = record_id
        self.path = path
        self.status = status
        self.host = host

    def _what_happened(self) -> str:
        details = [
            "" if self.record_id is None else f"record {self.record_id}",
            "" if self.path is None else f"to {self.path}",
            "" if self.host is None else f"from {self.host}",
            "" if self.status is None else f"HTTP {self.status}",
        ]
        return _with_details(self.message, details)


class TargetExistsError(DownloadError, FileExistsError):
    """There is a file at the target already, and it is left as it is. Args are those of `DownloadError`."""

    advice = "Choose another name, or allow it with overwrite=True."


class LedgerError(QameraError):
    """Something about the ledger. Without it nothing is submitted.

    Args:
        message: What happened.
        path: Where the ledger is.

    """

    def __init__(self, message: str, *, path: str | None = None) -> None:
        super().__init__(message)
        self.path = path

    def _what_happened(self) -> str:
        return _with_details(self.message, ["" if self.path is None else f"ledger {self.path}"])


class LedgerCorruptError(LedgerError):
    """The ledger is damaged, cut short, or no ledger. It was left as it is."""

    advice = (
        "Restore it from a copy, with its -wal file, or look into the Qamera app before anything is ordered "
        "again; then begin a new ledger under another name."
    )


class LedgerVersionError(LedgerError):
    """The ledger was written by a newer version of this package. It was left as it is.

    Args:
        message: What happened.
        path: Where the ledger is.
        found: The version of its schema.
        supported: The newest version that this package can read.

    """

    advice = "Update this package."

    def __init__(self, message: str, *, path: str | None = None, found: int, supported: int) -> None:
        super().__init__(message, path=path)
        self.found = found
        self.supported = supported


_LOOK = "Look at what keeps it from being read or written"


class LedgerUnavailableError(LedgerError):
    """The ledger can't be read or written now.

    A full disk, a read-only file, another process in its way, a database that is away or gives no right, or a
    ledger that was moved elsewhere.

    Args:
        message: What happened.
        path: Where the ledger is.
        intent: The request that it is about; None where it is about none.
        receipt: A receipt that has come and could not be written down; None where there is none.
        remedy: What mends it, as the beginning of a sentence; None: nobody can tell.

    """

    def __init__(
        self,
        message: str,
        *,
        path: str | None = None,
        intent: Intent | None = None,
        receipt: Receipt | None = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(message, path=path)
        self.intent = intent
        self.receipt = receipt
        self.remedy = remedy

    def _what_happened(self) -> str:
        paid = "" if self.receipt is None else f"paid for: records {', '.join(self.receipt.record_ids)}"
        details = ["" if self.path is None else f"ledger {self.path}", paid]
        return _with_details(self.message, details)

    def _what_to_do(self) -> str:
        if self.receipt is None:
            return f"Nothing was ordered. {self.remedy or _LOOK}, then try again."
        return (
            "Keep the record ids: the ledger will report this request as ambiguous. "
            f"{self.remedy or _LOOK}, then settle it with session.adopt(error, *error.receipt.record_ids)."
        )


class RefConflictError(LedgerError):
    """The ledger has another request under the same ref.

    Args:
        message: What happened.
        path: Where the ledger is.
        request: What was asked for now.
        earlier: What the ledger has.

    """

    advice = "Give it a ref of its own, or ask for the same as before."

    def __init__(self, message: str, *, path: str | None = None, request: Request, earlier: Request) -> None:
        super().__init__(message, path=path)
        self.request = request
        self.earlier = earlier


def _sentences(*parts: str) -> str:
    # Servers end their texts with a full stop or not; read in a row, each needs one.
    present = [part.rstrip() for part in parts if part.strip()]
    ended = [part if part.endswith((".", "!", "?", "]")) else f"{part}." for part in present[:-1]]
    return " ".join([*ended, *present[-1:]])


def _with_details(message: str, details: list[str]) -> str:
    present = [detail for detail in details if detail]
    return f"{message.removesuffix('.')} ({'; '.join(present)})" if present else message


def _traced(correlation_id: str | None) -> str:
    return "" if correlation_id is None else f" [correlation id {correlation_id}]"
