"""An asyncio client for the Qamera AI video API.

The table of contents: each name below is public, and is read from its room when it is first used. So
the pytest plugin, which every pytest run of an environment imports, costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._version import __version__
    from .batch import Batch, BatchResult, Outcome
    from .budget import RequestBudget
    from .cli.report import write_report
    from .download import safe_name
    from .errors import (
        AmbiguityLimitError,
        AmbiguousSubmissionError,
        ApiError,
        AuthenticationError,
        BadRequestError,
        BatchStoppedError,
        ConfigurationError,
        ConnectionFailedError,
        CreditLimitError,
        DownloadError,
        InsufficientCreditsError,
        InvalidRequestError,
        InvalidResponseError,
        JobError,
        JobFailedError,
        JobLostError,
        JobTimeoutError,
        LedgerCorruptError,
        LedgerError,
        LedgerUnavailableError,
        LedgerVersionError,
        NotFoundError,
        PermissionDeniedError,
        QameraError,
        QuotaExceededError,
        RefConflictError,
        RequestTimeoutError,
        ServerError,
        SessionClosedError,
        TransportError,
    )
    from .events import (
        Ambiguous,
        Downloading,
        Event,
        Failed,
        Finished,
        Polled,
        QuotaWait,
        Retrying,
        Submitted,
        Updated,
    )
    from .job import Job
    from .ledger.copying import copy_ledger
    from .ledger.file import LedgerEntry, LedgerFile
    from .ledger.pruning import Pruned
    from .ledger.rows import LedgerState
    from .models import Intent, JobState, Receipt, ReelRequest, Request, Video, VideoRequest
    from .policies import PollPolicy, RetryPolicy, StatusRules, Timeouts
    from .session import QameraSession, api_origin

_ROOMS = {
    "_version": "__version__",
    "batch": "Batch BatchResult Outcome",
    "budget": "RequestBudget",
    "cli.report": "write_report",
    "download": "safe_name",
    "errors": (
        "AmbiguityLimitError AmbiguousSubmissionError ApiError AuthenticationError BadRequestError "
        "BatchStoppedError ConfigurationError ConnectionFailedError CreditLimitError DownloadError "
        "InsufficientCreditsError InvalidRequestError InvalidResponseError JobError JobFailedError "
        "JobLostError JobTimeoutError LedgerCorruptError LedgerError LedgerUnavailableError "
        "LedgerVersionError NotFoundError PermissionDeniedError QameraError QuotaExceededError "
        "RefConflictError RequestTimeoutError ServerError SessionClosedError TransportError"
    ),
    "events": "Ambiguous Downloading Event Failed Finished Polled QuotaWait Retrying Submitted Updated",
    "job": "Job",
    "ledger.copying": "copy_ledger",
    "ledger.file": "LedgerEntry LedgerFile",
    "ledger.pruning": "Pruned",
    "ledger.rows": "LedgerState",
    "models": "Intent JobState Receipt ReelRequest Request Video VideoRequest",
    "policies": "PollPolicy RetryPolicy StatusRules Timeouts",
    "session": "QameraSession api_origin",
}
_HOMES = {name: room for room, names in _ROOMS.items() for name in names.split()}

__all__ = [
    "AmbiguityLimitError",
    "Ambiguous",
    "AmbiguousSubmissionError",
    "ApiError",
    "AuthenticationError",
    "BadRequestError",
    "Batch",
    "BatchResult",
    "BatchStoppedError",
    "ConfigurationError",
    "ConnectionFailedError",
    "CreditLimitError",
    "DownloadError",
    "Downloading",
    "Event",
    "Failed",
    "Finished",
    "InsufficientCreditsError",
    "Intent",
    "InvalidRequestError",
    "InvalidResponseError",
    "Job",
    "JobError",
    "JobFailedError",
    "JobLostError",
    "JobState",
    "JobTimeoutError",
    "LedgerCorruptError",
    "LedgerEntry",
    "LedgerError",
    "LedgerFile",
    "LedgerState",
    "LedgerUnavailableError",
    "LedgerVersionError",
    "NotFoundError",
    "Outcome",
    "PermissionDeniedError",
    "PollPolicy",
    "Polled",
    "Pruned",
    "QameraError",
    "QameraSession",
    "QuotaExceededError",
    "QuotaWait",
    "Receipt",
    "ReelRequest",
    "RefConflictError",
    "Request",
    "RequestBudget",
    "RequestTimeoutError",
    "RetryPolicy",
    "Retrying",
    "ServerError",
    "SessionClosedError",
    "StatusRules",
    "Submitted",
    "Timeouts",
    "TransportError",
    "Updated",
    "Video",
    "VideoRequest",
    "__version__",
    "api_origin",
    "copy_ledger",
    "safe_name",
    "write_report",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
