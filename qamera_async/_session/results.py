"""From a job or a video to its clip: what is asked of the list, of the ledger, and of the downloads."""

from __future__ import annotations

import asyncio
import os
from functools import cached_property
from typing import TYPE_CHECKING, cast

from .. import _protocol as protocol
from .._jobs import Job
from .._models import Request, Video
from ..errors import InvalidRequestError, TargetExistsError, short_repr

if TYPE_CHECKING:
    from pathlib import Path

    from .._config import RetryPolicy, StatusRules, Timeouts
    from .._polling import Poller
    from .._transport import Transport
    from ..download import Downloader
    from ..events import Emit
    from ..ledger.ledger import Ledger
    from ..ledger.places import NoLedger


class Results:
    """A session's downloads."""

    def __init__(
        self,
        transport: Transport,
        poller: Poller,
        retry: RetryPolicy,
        timeouts: Timeouts,
        rules: StatusRules,
        emit: Emit,
        ledger: NoLedger,
    ) -> None:
        self._transport = transport
        self._poller = poller
        self._retry = retry
        self._timeouts = timeouts
        self._rules = rules
        self._emit = emit
        self._ledger = ledger

    @cached_property
    def downloader(self) -> Downloader:
        """Who fetches files; imported with the first, since many sessions fetch none."""
        from ..download import Downloader  # noqa: PLC0415

        return Downloader(self._transport, self._retry, self._timeouts, self._emit, self._looked_up)

    def prepare(self) -> None:
        """Have at hand what downloads: what is imported in the middle of a batch might fail there."""
        _ = self.downloader

    async def video_of(self, video_or_job: Video | Job) -> Video:
        """Give the video; a job is waited for.

        Raises:
            InvalidRequestError: it is neither.
            QameraError: as ``Job.wait``.
        """
        if isinstance(video_or_job, Job):
            return await video_or_job
        if isinstance(video_or_job, Video):  # pyright: ignore[reportUnnecessaryIsInstance]
            return video_or_job
        raise InvalidRequestError(
            f"video_or_job: got {short_repr(video_or_job)}, allowed are a Video and a Job"
        )

    async def fetch(self, job: Job, video: Video, path: Path) -> Path:
        """Fetch a batch's clip, unless the ledger says that the file is it.

        Raises:
            DownloadError: it can't be had; a file that is something else is left as it is.
        """
        if not self._ledger.kept:
            return await self.downloader.file(video, path, wait=True)
        record_id, ledger = job.record_ids[0], cast("Ledger", self._ledger)
        if await self._is_there(ledger, record_id, path):
            return path

        async def keep(size: int) -> None:
            await ledger.keep_file(record_id, os.fspath(path), size)

        try:
            return await self.downloader.file(video, path, wait=True, before_final=keep)
        except TargetExistsError:
            # Another process, or another request of the same name, may have been quicker.
            if await self._is_there(ledger, record_id, path):
                return path
            raise

    @staticmethod
    def target(request: Request, job: Job | None, folder: Path) -> Path | None:
        """Where a batch's clip goes; None while neither ref nor record is known."""
        from ..download.names import safe_name  # noqa: PLC0415 - as for who fetches them

        name = request.ref if request.ref is not None else None if job is None else job.record_ids[0]
        return None if name is None else folder / safe_name(name, ".mp4")

    @staticmethod
    async def _is_there(ledger: Ledger, record_id: str, path: Path) -> bool:
        size = await asyncio.to_thread(_size, path)
        return size is not None and await ledger.has_file(record_id, os.fspath(path), size)

    async def _looked_up(self, record_id: str) -> Video | None:
        """A record as the list has it now."""
        answer, listing = await self._poller.ask()
        return protocol.read_some(answer, [record_id], listing, self._rules).get(record_id)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None
