"""The hold after a 429: how long everybody waits, and that one request probes before the rest."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .._config import RetryPolicy

_WINDOWS = 5  # of nothing but rejections, until a request gives up


class Hold:
    """What a run of 429s means; each moment is the caller's, in seconds."""

    def __init__(self) -> None:
        self.until = -math.inf
        self._began = -math.inf
        self._since: float | None = None  # since when there has been nothing but rejections
        self._rejections = 0

    def absorb(self, other: Hold, shift: float) -> None:
        """Take over another hold where it lasts longer; its clock is ``shift`` seconds behind."""
        if other._since is not None and other.until + shift > self.until:
            self.until, self._began = other.until + shift, other._began + shift
            self._since, self._rejections = other._since + shift, other._rejections

    @property
    def probing(self) -> bool:
        """Whether no request has been let through since the last rejection."""
        return self._since is not None

    def passed(self, granted_at: float) -> None:
        """Note that a request got another answer than a 429."""
        # What was sent before the hold began says nothing of now.
        if granted_at >= self._began:
            self._since = None

    def rejected(
        self, granted_at: float, now: float, window: float, retry_after: float | None, policy: RetryPolicy
    ) -> float | None:
        """Note a 429.

        Args:
            granted_at: when the request got its slot.
            now: when its answer came.
            window: the quota's, in seconds.
            retry_after: the seconds that the server asked for; None where it didn't.
            policy: the base of the doubling waits, and the longest one.

        Returns:
            The seconds that everybody waits; None where this has gone on for five windows.
        """
        # A run that ended in silence, with nobody asking for a window, is over.
        if self._since is None or now - self.until > window:
            self._since = now
            self._rejections = 0
        elif granted_at < self._began:
            return max(self.until - now, 0.0)
        if now - self._since >= _WINDOWS * window:
            return None
        if retry_after is None:
            jitter = random.uniform(0, 0.5)  # noqa: S311 - spreads load, guards nothing
            retry_after = policy.base * (2.0 ** min(self._rejections, 30) + jitter)
        self._rejections += 1
        seconds = min(retry_after, policy.max_delay)
        self._began = now
        self.until = max(self.until, now + seconds)
        return seconds
