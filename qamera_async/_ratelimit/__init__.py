"""The rate limit of the API: one exact sliding window that all requests of a key share."""

from __future__ import annotations

from .engine import Slot
from .limiter import RateLimiter, SessionLimiter, session_limiter
from .shared import ExternalUsage, SharedSlots
from .window import Priority

__all__ = [
    "ExternalUsage",
    "Priority",
    "RateLimiter",
    "SessionLimiter",
    "SharedSlots",
    "Slot",
    "session_limiter",
]
