"""The clips of finished jobs: fetched into a folder, so that pages get them from the app itself."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from web.feed import Clip

from qamera_async import DownloadError, QameraSession, Video
from qamera_async.download import safe_name

if TYPE_CHECKING:
    from pathlib import Path

AT_A_TIME = 4


class Clips:
    """A folder of clips, each with its still.

    Args:
        qamera: The session that fetches them.
        folder: Where they are; it must be there.

    """

    def __init__(self, qamera: QameraSession, folder: Path) -> None:
        self._qamera = qamera
        self._folder = folder
        self._turns = asyncio.Semaphore(AT_A_TIME)

    async def fetch(self, card_id: str, videos: tuple[Video, ...]) -> None:
        """Fetch what isn't there yet of a job.

        Raises:
            QameraError: It can't be had now.

        """
        async with self._turns:
            for place, video in enumerate(videos):
                with suppress(FileExistsError):
                    await self._qamera.download(video, self.path(card_id, place, ".mp4"))
                with suppress(DownloadError):  # it will do without a still
                    await self._qamera.download_thumbnail(video, self.path(card_id, place, ".jpg"))

    def of(self, card_id: str, number: int) -> tuple[Clip, ...]:
        """Give those of the first ``number`` clips of a job that are there."""
        places = [place for place in range(number) if self.path(card_id, place, ".mp4").exists()]
        return tuple([Clip(place, still=self.path(card_id, place, ".jpg").exists()) for place in places])

    def path(self, card_id: str, place: int, suffix: str) -> Path:
        """Give the path of a clip (``.mp4``), or of its still (``.jpg``)."""
        return self._folder / safe_name(f"{card_id}-{place + 1}", suffix)
