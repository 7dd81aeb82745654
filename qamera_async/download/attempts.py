"""What is fetched for whom, and how often it is tried."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import DownloadError
from ..events import Retrying
from .guard import host_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from ..events import Emit
    from ..models import Video
    from ..policies import RetryPolicy

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


class Errand:
    """What is fetched: the clip or the thumbnail of a record, and where to.

    Args:
        record_id: the record.
        thumbnail: its thumbnail, and not its clip.
        path: where to; None: to no file.
    """

    def __init__(self, record_id: str, *, thumbnail: bool = False, path: str | None = None) -> None:
        self.record_id = record_id
        self.what = "thumbnail" if thumbnail else "video"
        self.path = path

    @property
    def record(self) -> str:
        """The record and what of it, as a note has it."""
        return f"{self.record_id} {self.what}"

    def url_of(self, video: Video) -> str:
        """Give the URL as the list has it.

        Raises:
            DownloadError: it has none (yet).
        """
        url = video.thumbnail if self.what == "thumbnail" else video.video_url
        if not url:
            raise self.error(f"There is no {self.what} (yet)", None)
        return url

    def error(self, message: str, url: str | None, status: int | None = None) -> DownloadError:
        """Give an error about it; of the URL only the host is told, as the rest may be a secret."""
        host = None if url is None else host_of(url)
        return DownloadError(message, record_id=self.record_id, path=self.path, status=status, host=host)


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
