"""An asyncio client for the Qamera AI API.

    from qamera_async import QameraSession

    async with QameraSession() as qamera:  # the key is in QAMERA_API_KEY
        job = await qamera.register_video(image_id="img_abc123", suggestion="Slow zoom in")
        video = await job  # waits until the video is done
        await qamera.download(video, "clip.mp4")

Events are in `qamera_async.events`, ledger administration is in `qamera_async.ledger`.
"""

from ._batch import Batch, BatchResult, Outcome
from ._config import PollPolicy, RetryPolicy, StatusRules, Timeouts
from ._jobs import Job
from ._models import Intent, JobState, Receipt, ReelRequest, Request, Video, VideoRequest
from ._ratelimit import RateLimiter
from ._session import QameraSession, SessionStatistics
from ._version import __version__
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
    RateLimitError,
    RefConflictError,
    RequestTimeoutError,
    ServerError,
    SessionClosedError,
    TargetExistsError,
    TransportError,
)

__all__ = [
    "AmbiguityLimitError",
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
    "LedgerError",
    "LedgerUnavailableError",
    "LedgerVersionError",
    "NotFoundError",
    "Outcome",
    "PermissionDeniedError",
    "PollPolicy",
    "QameraError",
    "QameraSession",
    "RateLimitError",
    "RateLimiter",
    "Receipt",
    "ReelRequest",
    "RefConflictError",
    "Request",
    "RequestTimeoutError",
    "RetryPolicy",
    "ServerError",
    "SessionClosedError",
    "SessionStatistics",
    "StatusRules",
    "TargetExistsError",
    "Timeouts",
    "TransportError",
    "Video",
    "VideoRequest",
    "__version__",
]
