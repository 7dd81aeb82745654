"""The way to the bytes: each hop checked, a bad URL looked up anew once, what may pass told apart."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from yarl import URL

from .._transport import AddressRefusedError
from ..errors import InvalidResponseError, QameraError, SessionClosedError, TransportError
from .attempts import Interrupted
from .guard import is_public, why_not
from .media import HEAD, is_media, is_page_type
from .ranges import PARTIAL, UNSATISFIABLE, is_encoded

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

    from .._models import Video
    from .._transport import DownloadClient, StreamingResponse
    from ..errors import DownloadError
    from .errand import Errand

_MOST_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_REFUSED = frozenset({400, 401, 403, 404, 410})  # what an expired URL may be answered with
_BUSY = 429
_SERVER_ERROR = 500
_OK: Final = 200


class Route:
    """Leads to the answer that has the bytes.

    Args:
        client: Sends the requests, without the key.
        errand: what for.
        url: where to begin; None: it has to be looked up.
        fresh: looks the record up anew; gives None where it isn't listed.
        private: whether private addresses are allowed.
    """

    def __init__(
        self,
        client: DownloadClient,
        errand: Errand,
        url: str | None,
        fresh: Callable[[str], Awaitable[Video | None]],
        *,
        private: bool,
    ) -> None:
        self._client = client
        self._errand = errand
        self._first = url
        self._url: str | None = url
        self._fresh = fresh
        self._allowed = None if private else is_public
        self._was_looked_up = False

    def error(self, message: str, status: int | None = None) -> DownloadError:
        """Give an error that names the present host."""
        return self._errand.error(message, self._url, status)

    @asynccontextmanager
    async def answer(self, headers: Mapping[str, str]) -> AsyncGenerator[StreamingResponse, None]:
        """Give the answer at the end of the way, its status 200, or 206 or 416 if ``headers`` has a Range.

        Raises:
            DownloadError: there is none, and trying again can't help.
            Interrupted: there is none now.
            SessionClosedError: the session was closed meanwhile.
        """
        # From the beginning each time: what a redirect leads to may soon expire.
        url = self._first or await self._looked_up(f"There is no {self._errand.what} (yet)", None)
        came_from: str | None = None
        hops = 0
        while True:
            self._url = url
            reason = why_not(url, came_from=came_from, private=self._allowed is None)
            if reason is not None:
                raise self.error(f"It is not fetched: {reason}")
            async with self._fetched(url, headers) as answer:
                if self._is_final(answer, headers):
                    yield answer
                    return
                refused = answer.status in _REFUSED
                location = answer.headers.get("location")
            if refused:
                url = await self._looked_up("The host refuses it", answer.status)
                came_from, hops = None, 0
                continue
            hops += 1
            if hops > _MOST_REDIRECTS or not location:
                raise self.error("It is redirected too often, or to nowhere", answer.status)
            came_from, url = url, _joined(url, location)

    async def read(self, answer: StreamingResponse) -> bytes:
        """Give the next bytes of an answer, b"" at its end.

        Raises:
            Interrupted: it broke off.
        """
        try:
            return await answer.read()
        except (TransportError, InvalidResponseError) as error:
            raise self._interrupted(error) from None

    async def head(self, answer: StreamingResponse) -> bytes:
        """Give the first bytes of an answer, looked at.

        Raises:
            DownloadError: they are no video and no image.
            Interrupted: they broke off.
        """
        head = b""
        while len(head) < HEAD and (piece := await self.read(answer)):
            head += piece
        if not head:
            raise self.error("What came is empty", answer.status)
        if not is_media(answer.headers.get("content-type", ""), head):
            raise self.error("What came is a page of text, or else no video and no image", answer.status)
        return head

    # --- one hop --------------------------------------------------------------------------------

    @asynccontextmanager
    async def _fetched(self, url: str, headers: Mapping[str, str]) -> AsyncGenerator[StreamingResponse, None]:
        context = self._client.fetch(url, headers, self._allowed)
        try:
            answer = await context.__aenter__()
        except SessionClosedError:
            raise
        except AddressRefusedError:
            raise self.error(
                "It is not fetched: its host is at a private address, which takes allow_private=True"
            ) from None
        except QameraError as error:
            raise self._interrupted(error) from None
        try:
            yield answer
        finally:
            await context.__aexit__(None, None, None)

    def _is_final(self, answer: StreamingResponse, headers: Mapping[str, str]) -> bool:
        """Say whether an answer is what was asked for; False: it leads on."""
        status = answer.status
        if status in _REDIRECTS or status in _REFUSED:
            return False
        if status == _BUSY or status >= _SERVER_ERROR:
            raise Interrupted(self.error("The host is in trouble", status), _seconds(answer))
        if status == UNSATISFIABLE and "Range" in headers:
            return True
        if status != _OK and not (status == PARTIAL and "Range" in headers):
            raise self.error("The host refuses it", status)
        if is_encoded(answer):
            raise self.error("What came is encoded, which was not asked for", status)
        if is_page_type(answer.headers.get("content-type", "")):
            raise self.error("What came is a page of text", status)
        return True

    async def _looked_up(self, problem: str, status: int | None) -> str:
        if self._was_looked_up:
            raise self.error(f"{problem}, though it was looked up anew", status)
        self._was_looked_up = True
        video = await self._fresh(self._errand.record_id)
        if video is None:
            raise self.error(f"{problem}, and the record is no longer listed", status)
        url = self._errand.url_of(video)
        if url is None:
            raise self.error(f"There is no {self._errand.what} (yet)", status)
        if url == self._first:
            raise self.error(f"{problem}, and its URL is still the same", status)
        self._first = url
        return url

    def _interrupted(self, error: QameraError) -> Exception:
        ours = self.error(f"It broke off: {error.message}")
        ours.__cause__ = error
        permanent = isinstance(error, TransportError) and error.permanent
        known = isinstance(error, TransportError | InvalidResponseError)
        return ours if permanent or not known else Interrupted(ours)


def _joined(url: str, location: str) -> str:
    try:
        there = URL(location, encoded=True)
        return str(there if there.absolute else URL(url, encoded=True).join(there))
    except ValueError:
        return location  # and is refused as it is


def _seconds(answer: StreamingResponse) -> float | None:
    text = answer.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) < 10 else None  # noqa: PLR2004
