"""Fetches thumbnails beside clips, for the report, while a batch goes on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

from .. import QameraError
from ..report import thumbnail_path

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from .. import QameraSession, Video
    from .screen import Screen

_WORKERS = 2
_MOST_FAILURES = 5


class Thumbnails:
    """Fetches them a few at a time; a failed one is a note, and after some nobody tries any more.

    Each that its server refuses costs a request of the quota, which submissions need.

    Args:
        session: What fetches them.
        screen: Where failures are noted.

    """

    def __init__(self, session: QameraSession, screen: Screen) -> None:
        self._session = session
        self._screen = screen
        self._queue: asyncio.Queue[tuple[Video, Path]] = asyncio.Queue()
        self._workers: list[asyncio.Task[None]] = []
        self._failures = 0

    async def __aenter__(self) -> Self:
        self._workers = [asyncio.create_task(self._work()) for _ in range(_WORKERS)]
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)

    def fetch(self, video: Video, clip: Path) -> None:
        """Queue the thumbnail of a clip."""
        if video.thumbnail is not None and self._failures < _MOST_FAILURES:
            self._queue.put_nowait((video, thumbnail_path(clip)))

    async def finished(self) -> None:
        """Wait until all that were queued are there, or given up."""
        await self._queue.join()

    async def _work(self) -> None:
        while True:
            video, path = await self._queue.get()
            try:
                if self._failures < _MOST_FAILURES and await asyncio.to_thread(_prepared, path):
                    await self._session.download_thumbnail(video, path)
            except (QameraError, OSError) as error:
                self._failures += 1
                self._screen.note(f"no thumbnail of {video.id}: {error}")
            finally:
                self._queue.task_done()


def _prepared(path: Path) -> bool:
    """Whether it is missing; its folder is there then."""
    path.parent.mkdir(exist_ok=True)
    return not path.exists()
