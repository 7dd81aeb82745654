"""Which errors end a batch."""

from __future__ import annotations

from ..errors import (
    ApiError,
    AuthenticationError,
    BatchStoppedError,
    InsufficientCreditsError,
    LedgerError,
    PermissionDeniedError,
    QameraError,
    RefConflictError,
    SessionClosedError,
    TransportError,
    is_permanent,
)

_PROXY_REFUSES = 407


def ends_a_batch(error: Exception, *, registering: bool = False, polling: bool = False) -> bool:
    """Tell whether every other request would meet the same.

    Args:
        error: What one request met.
        registering: Whether it met that while it was registered.
        polling: Whether it met that while it waited for its job: without the list nobody learns what becomes
            of what is paid for.

    """
    if polling and isinstance(error, QameraError) and is_permanent(error):
        return True
    if isinstance(error, AuthenticationError | PermissionDeniedError | InsufficientCreditsError):
        return not error.foreign
    if isinstance(error, ApiError):
        return error.status == _PROXY_REFUSES
    if isinstance(error, TransportError):
        return error.permanent
    if isinstance(error, LedgerError):
        return registering and not isinstance(error, RefConflictError)
    return isinstance(error, BatchStoppedError | SessionClosedError)
