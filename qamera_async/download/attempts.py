"""How often something is tried, and how long is waited in between."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..events import Retrying

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from .._config import RetryPolicy
    from ..errors import DownloadError
    from ..events import Emit

_PROGRESS = 1024 * 1024  # bytes, after which attempts are counted anew


class Interrupted(Exception):  # noqa: N818 - it ends an attempt, not the download
    """An attempt ended early in a way that may pass.

    Args:
        error: what the caller gets where there is no further attempt.
        after: how long the host wants to be left alone, in seconds; None: it doesn't say.
    """

    def __init__(self, error: DownloadError, after: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.after = after


class Attempts:
    """Counts what is tried again, and waits between one attempt and the next.

    Args:
        retry: how often, and how long to wait.
        emit: told of each.
        pause: waits so many seconds.
        what: is being tried, for the event.
        size: bytes there are already.
    """

    def __init__(
        self,
        retry: RetryPolicy,
        emit: Emit,
        pause: Callable[[float], Awaitable[None]],
        what: str,
        size: int = 0,
    ) -> None:
        self._retry = retry
        self._emit = emit
        self._pause = pause
        self._what = what
        self._best = size
        self._failed = 0
        self._delays: Iterator[float] | None = None

    async def again(self, stop: Interrupted, size: int) -> None:
        """Wait for the next attempt.

        Args:
            stop: what ended the last one.
            size: how many bytes there are. More than ever by a MiB: attempts are counted anew.

        Raises:
            DownloadError: it was the last one.
        """
        if size >= self._best + _PROGRESS:
            self._best, self._failed, self._delays = size, 0, None
        self._failed += 1
        if self._failed >= self._retry.attempts:
            raise stop.error from stop.error.__cause__
        self._delays = self._delays or self._retry.delays()
        delay = max(next(self._delays), min(stop.after or 0.0, self._retry.max_delay))
        self._emit(Retrying(self._what, self._failed, delay, stop.error))
        await self._pause(delay)
