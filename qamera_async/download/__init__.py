"""A URL to a whole file: resumed where it can be, and renamed when nothing is missing."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from ..events import Downloading
from .ahead import BUFFER
from .attempts import Attempts, Interrupted
from .errand import Errand
from .filing import filed
from .filling import Filling, check_end
from .guard import is_private_home
from .names import as_path, safe_name
from .parts import BusyError, Part
from .ranges import length
from .route import Route
from .threads import in_thread
from .whole import Proof

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from .._config import RetryPolicy, Timeouts
    from .._models import Video
    from .._transport import DownloadClient, StreamingResponse
    from ..events import Emit

    Progress = Callable[[int, int | None], None]

__all__ = ["Downloader", "safe_name"]

_log = logging.getLogger("qamera_async")
_LOOK_EACH = 0.2  # seconds, at a part that another download is writing


class Downloader:
    """Fetches clips and thumbnails, to files or as streams.

    Args:
        client: Sends the requests, without the key.
        retry: for what breaks off.
        timeouts: those of the transport.
        emit: told of ``Downloading`` and ``Retrying``.
        fresh: looks a record up anew in the list; gives None where it isn't there.
    """

    def __init__(
        self,
        client: DownloadClient,
        retry: RetryPolicy,
        timeouts: Timeouts,
        emit: Emit,
        fresh: Callable[[str], Awaitable[Video | None]],
    ) -> None:
        self._client = client
        self._retry = retry
        self._timeouts = timeouts
        self._emit = emit
        self._fresh = fresh
        self._home_is_private: bool | None = None  # None while nobody knows

    async def file(
        self,
        video: Video,
        path: str | os.PathLike[str],
        *,
        thumbnail: bool = False,
        overwrite: bool = False,
        allow_private: bool = False,
        wait: bool = False,
        on_progress: Callable[[int, int | None], object] | None = None,
        before_final: Callable[[int], Awaitable[None]] | None = None,
    ) -> Path:
        """Fetch a clip to a file, which is there when it is whole and not before.

        Args:
            video: whose clip.
            path: the file; its folder must exist.
            thumbnail: fetch the thumbnail instead.
            overwrite: whether a file may be there already.
            allow_private: whether it may come from inside a private network.
            wait: wait while another download writes to the same path, and see then what is there; False: that
                is an error at once.
            on_progress: called on the loop with the bytes there are and how many there will be, None where
                nobody says; what it raises is logged.
            before_final: awaited with the size when all bytes are on the disk, before the file has its name;
                what it raises is raised, and the bytes are kept.

        Returns:
            The path.

        Raises:
            InvalidRequestError: ``path`` is no path; nothing was asked for.
            TargetExistsError: there is a file already; nothing was asked for.
            DownloadError: there is no file at ``path``, or the one that was there before. What has come is
                kept beside it where it can be resumed.
            SessionClosedError: the session was closed meanwhile.
        """
        target = as_path(path)
        errand = Errand(video.id, thumbnail=thumbnail, path=str(target))
        part = await self._part(errand, target, overwrite=overwrite, wait=wait)
        try:
            route = await self._route(errand, errand.url_of(video), allow_private=allow_private)
            report = self._reporter(video.id, on_progress)
            await self._fill(errand, route, part, report)
            await filed(errand, part.finish)
            report(part.size, part.size)
            if before_final is not None:
                await before_final(part.size)
            await filed(errand, lambda: part.rename(overwrite=overwrite))
        finally:
            await in_thread(part.close)
        return target

    @asynccontextmanager
    async def stream(
        self, video: Video, *, allow_private: bool = False
    ) -> AsyncGenerator[AsyncIterator[bytes], None]:
        """Hand a clip on as it comes, without a file; leaving the context closes the connection.

        Args:
            video: whose clip.
            allow_private: whether it may come from inside a private network.

        Yields:
            An iterator over its bytes. It raises ``DownloadError`` where they end too early; what was handed
            on until then is not fetched again.

        Raises:
            DownloadError: it can't be had.
            SessionClosedError: the session was closed, before or meanwhile.
        """
        errand = Errand(video.id)
        route = await self._route(errand, errand.url_of(video), allow_private=allow_private)
        attempts = self._attempts(errand)
        async with AsyncExitStack() as stack:
            while True:
                try:
                    answer = await stack.enter_async_context(route.answer({}))
                    head = await route.head(answer)
                    break
                except Interrupted as stop:
                    await stack.aclose()
                    await attempts.again(stop, 0)
            pieces = self._pieces(video.id, route, answer, head)
            stack.push_async_callback(pieces.aclose)
            yield pieces

    # --- the way --------------------------------------------------------------------------------

    async def _route(self, errand: Errand, url: str | None, *, allow_private: bool) -> Route:
        private = allow_private or await self._is_home_private()
        return Route(self._client, errand, url, self._fresh, private=private)

    async def _is_home_private(self) -> bool:
        if self._home_is_private is not None:
            return self._home_is_private
        host, addresses = await self._client.api_addresses()
        private = is_private_home(host, addresses)
        if private or addresses:
            self._home_is_private = private
        return private  # where its name leads to nothing now, it is asked for again the next time

    def _attempts(self, errand: Errand, size: int = 0) -> Attempts:
        what = f"download of {errand.record_id}"
        return Attempts(self._retry, self._emit, self._client.pause, what, size)

    def _reporter(self, record_id: str, on_progress: Callable[[int, int | None], object] | None) -> Progress:
        def report(done: int, total: int | None) -> None:
            self._emit(Downloading(record_id, done, total))
            if on_progress is not None:
                try:
                    on_progress(done, total)
                except Exception:
                    _log.exception("on_progress raised while it was told of %s", record_id)

        return report

    # --- a stream -------------------------------------------------------------------------------

    async def _pieces(
        self, record_id: str, route: Route, answer: StreamingResponse, piece: bytes
    ) -> AsyncGenerator[bytes, None]:
        total = length(answer)
        proof = Proof() if answer.ends == "connection" else None
        done = told = 0
        try:
            while piece:
                done += len(piece)
                if proof is not None:
                    proof.feed(piece)
                if done >= told + BUFFER:
                    told = done
                    self._emit(Downloading(record_id, done, total))
                yield piece
                piece = await route.read(answer)
            check_end(route, proof, done, total)
        except Interrupted as stop:
            raise stop.error from stop.error.__cause__
        self._emit(Downloading(record_id, done, done))

    # --- a file ---------------------------------------------------------------------------------

    async def _part(self, errand: Errand, target: Path, *, overwrite: bool, wait: bool) -> Part:
        def opened() -> Part | None:
            try:
                return Part.open(target, errand.record, overwrite=overwrite)
            except BusyError:
                if not wait:
                    raise
                return None

        while (part := await filed(errand, opened, _close)) is None:
            await self._client.pause(_LOOK_EACH)
        return part

    async def _fill(self, errand: Errand, route: Route, part: Part, report: Progress) -> None:
        attempts = self._attempts(errand, part.kept)
        filling = Filling(errand, route, part, report)
        while True:
            try:
                await filling.attempt()
            except Interrupted as stop:
                await attempts.again(stop, part.kept)
            else:
                return


def _close(part: Part | None) -> None:
    if part is not None:
        part.close()
