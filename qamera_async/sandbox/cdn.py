"""The CDN: the clip and its thumbnail on another origin, with what resuming a download needs."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
from aiohttp import web

if TYPE_CHECKING:
    from .arrivals import Log

_HERE = Path(__file__).parent
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


@attrs.frozen
class _File:
    content_type: str
    body: bytes
    etag: str

    @classmethod
    def read(cls, name: str, content_type: str) -> _File:
        body = (_HERE / name).read_bytes()
        return cls(content_type, body, f'"{hashlib.sha256(body).hexdigest()[:16]}"')


class Cdn:
    """Serves ``/videos/ID.mp4`` and ``/videos/ID.jpg``, whatever the id; it asks for no key."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._files = {
            ".mp4": _File.read("clip.mp4", "video/mp4"),
            ".jpg": _File.read("thumbnail.jpg", "image/jpeg"),
        }

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer any request."""
        arrival = self._log.add("cdn", request)
        arrival.has_body(await request.read())
        response = self._answer(request)
        arrival.is_answered(response.status)
        return response

    def _answer(self, request: web.Request) -> web.Response:
        path = Path(request.path)
        file = self._files.get(path.suffix)
        if file is None or str(path.parent) != "/videos":
            return web.Response(status=404, text="Not found.")
        if request.method not in {"GET", "HEAD"}:
            return web.Response(status=405, text="Method not allowed.", headers={"Allow": "GET, HEAD"})
        size = len(file.body)
        headers = {"ETag": file.etag, "Accept-Ranges": "bytes", "Content-Type": file.content_type}
        if request.headers.get("If-None-Match") == file.etag:
            return web.Response(status=304, headers=headers)
        asked = _RANGE.fullmatch(request.headers.get("Range", "").replace(" ", ""))
        # If-Range is compared as it stands: a date, or another file's tag, gives the whole file.
        if (
            asked is None
            or asked.group() == "bytes=-"
            or request.headers.get("If-Range", file.etag) != file.etag
        ):
            return web.Response(body=file.body, headers=headers)
        first, last = asked.groups()
        start = int(first) if first else max(0, size - int(last))
        stop = min(size, int(last) + 1) if first and last else size
        if start >= stop:
            return web.Response(status=416, headers=headers | {"Content-Range": f"bytes */{size}"})
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        return web.Response(status=206, body=file.body[start:stop], headers=headers)
