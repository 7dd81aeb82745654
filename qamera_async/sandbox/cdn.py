"""The CDN: the clip and its thumbnail on another origin, with what resuming a download needs."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import web

from .files import Clip, Still

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from .arrivals import Log
    from .files import File
    from .trouble import Script
    from .world import World

    Troubles = Mapping[str, Mapping[str, Any]]

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_OTHER_ETAG = '"another-file"'
_PIECE = 256 * 1024  # bytes
_TICKS = 100  # per second, of a slow answer
_PAGE = "<!DOCTYPE html><html><head><title>Sorry</title></head><body><h1>Sorry</h1></body></html>"


class Cdn:
    """Serves ``/videos/ID.mp4`` and ``/videos/ID.jpg``, whatever the id; it asks for no key.

    Args:
        world: whose list has its URLs.
        script: the trouble to come.
        log: where arriving requests are noted.
        clip_bytes: how long a clip is, in bytes; None means as short as they come.

    Raises:
        ValueError: no clip is as short as that.
    """

    def __init__(self, world: World, script: Script, log: Log, clip_bytes: int | None) -> None:
        self._world = world
        self._script = script
        self._log = log
        self._files: dict[str, File] = {".mp4": Clip(clip_bytes), ".jpg": Still()}

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer any request."""
        arrival = self._log.add("cdn", request)
        arrival.has_body(await request.read())
        troubles = self._script.for_file()
        response = self._instead(request, troubles) or self._refusal(request)
        if response is None:
            file = self._files[Path(request.path).suffix]
            answer = _Answer(file, request, troubles)
            arrival.is_answered(answer.status)
            return await answer.send()
        arrival.is_answered(response.status)
        return response

    def _instead(self, request: web.Request, troubles: Troubles) -> web.Response | None:
        for name, details in troubles.items():
            match name:
                case "expired":
                    self._world.expire(Path(request.path).stem)
                    return web.Response(status=403, text="Request has expired.")
                case "html":
                    headers = {"Content-Type": details["content_type"]}
                    return web.Response(body=_PAGE.encode(), headers=headers)
                case "error":
                    after = details["retry_after"]
                    headers = {} if after is None else {"Retry-After": str(after)}
                    return web.Response(status=details["status"], headers=headers)
                case "redirect":
                    return web.Response(status=details["status"], headers={"Location": details["location"]})
                case _:
                    pass
        return None

    def _refusal(self, request: web.Request) -> web.Response | None:
        path = Path(request.path)
        if path.suffix not in self._files or str(path.parent) != "/videos":
            return web.Response(status=404, text="Not found.")
        if request.method not in {"GET", "HEAD"}:
            return web.Response(status=405, text="Method not allowed.", headers={"Allow": "GET, HEAD"})
        return None


class _Answer:
    """A file or a part of it, as asked for and as the trouble wants it."""

    def __init__(self, file: File, request: web.Request, troubles: Troubles) -> None:
        self._file = file
        self._request = request
        self._troubles = troubles
        etag = _OTHER_ETAG if "other_etag" in troubles else file.etag
        self.status = 200
        self._headers = {"Accept-Ranges": "bytes", "Content-Type": file.content_type}
        if "no_etag" not in troubles:
            self._headers["ETag"] = f"W/{etag}" if "weak_etag" in troubles else etag
        self._first, self._stop = 0, file.size
        if request.headers.get("If-None-Match") == etag:
            self.status, self._stop = 304, 0
        elif "ignore_range" not in troubles:
            self._choose(request.headers, etag)

    def _choose(self, asked: Mapping[str, str], etag: str) -> None:
        size = self._file.size
        found = _RANGE.fullmatch(asked.get("Range", "").replace(" ", ""))
        wrong = self._troubles.get("wrong_range")
        # If-Range is compared as it stands: a date, or another file's tag, gives the whole file.
        same = asked.get("If-Range", etag) == etag or wrong is not None
        if found is None or found.group() == "bytes=-" or not same:
            return
        first, last = found.groups()
        start = int(first) if first else max(0, size - int(last))
        stop = min(size, int(last) + 1) if first and last else size
        total = size
        if wrong is not None:
            start += wrong["shift"]
            total = wrong["total"] or size
        if start >= stop:
            self.status, self._stop = 416, 0
            self._headers["Content-Range"] = f"bytes */{size}"
            return
        self.status, self._first, self._stop = 206, start, stop
        self._headers["Content-Range"] = f"bytes {start}-{stop - 1}/{total}"

    async def send(self) -> web.StreamResponse:
        """Send it; what the trouble leaves of it."""
        if self.status in {304, 416}:
            return web.Response(status=self.status, headers=self._headers)
        if self._request.method == "HEAD":
            empty = web.StreamResponse(status=self.status, headers=self._headers)
            empty.content_length = self._stop - self._first
            await empty.prepare(self._request)
            return empty
        if "no_length" in self._troubles:
            return await self._without_length()
        response = web.StreamResponse(status=self.status, headers=self._headers)
        if "chunked" in self._troubles:
            response.enable_chunked_encoding()
        else:
            response.content_length = self._stop - self._first
        await response.prepare(self._request)
        if await self._write(response.write):
            await response.write_eof()
        elif self._request.transport is not None:
            self._request.transport.close()
        return response

    async def _without_length(self) -> web.StreamResponse:
        # Past aiohttp, which would send chunks.
        transport = self._request.transport
        if transport is not None:
            lines = [
                f"HTTP/1.1 {self.status} OK",
                *(f"{name}: {text}" for name, text in self._headers.items()),
            ]
            transport.write("\r\n".join([*lines, "Connection: close", "", ""]).encode())

            async def write(piece: bytes) -> None:
                transport.write(piece)
                while transport.get_write_buffer_size() > _PIECE and not transport.is_closing():  # noqa: ASYNC110
                    await asyncio.sleep(0.001)  # a transport tells only its protocol when it has room

            await self._write(write)
            transport.close()
        return web.Response()

    async def _write(self, write: Callable[[bytes], Awaitable[None]]) -> bool:
        """Send the body, or as much as the trouble leaves of it; say whether that was all."""
        left = self._stop - self._first
        limits = [self._troubles[name]["after"] for name in ("cut", "stall") if name in self._troubles]
        most = min([left, *limits])
        for piece in self._pieces(self._first + most):
            await write(piece)
            if "slow" in self._troubles:
                await asyncio.sleep(1 / _TICKS)
        if "stall" in self._troubles:
            await asyncio.Event().wait()
        return most == left and "cut" not in self._troubles

    def _pieces(self, stop: int) -> Iterator[bytes]:
        step = max(1, self._troubles["slow"]["rate"] // _TICKS) if "slow" in self._troubles else _PIECE
        for start in range(self._first, stop, step):
            yield self._file.read(start, min(stop, start + step))
