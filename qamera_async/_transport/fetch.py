"""What is fetched from elsewhere: no key, no cookie, no slot of the quota, no redirect followed."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import aiohttp
import attrs
from yarl import URL

from ..errors import ConnectionFailedError, InvalidResponseError, QameraError, SessionClosedError
from .border import translated
from .pace import Pace
from .wire import USER_AGENT

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping

    from .._config import Timeouts
    from .wire import Wire

_T = TypeVar("_T")
_CLOSED = "The session was closed during a download."
_BUFFER = 256 * 1024  # bytes; twice as many are held at most


class AddressRefusedError(ConnectionFailedError):
    """A name led to an address that was not to be connected to; nothing was sent there."""


class _RefusedAddressError(OSError):
    """The same, on its way through the HTTP client, which knows only this kind."""


@attrs.frozen(eq=False, repr=False)
class Fetched:
    """An answer whose body is still to be read.

    Attributes:
        status: the HTTP status.
        headers: by their names in lower case; repeated ones are joined by a comma.
        ends: what ends the body: the "length" it announces, the last "chunk", or the "connection".
        read: gives the next bytes, b"" at the end; raises a ``TransportError`` where the body breaks off, or
            where fewer than 64 KiB come while it is waited for them for ``Timeouts.request`` seconds.
    """

    status: int
    headers: Mapping[str, str]
    ends: Literal["length", "chunk", "connection"]
    read: Callable[[], Awaitable[bytes]]


class Fetcher:
    """Clients without a key, for URLs that lead anywhere.

    Args:
        wire: whose proxy, certificates and environment count here as well.
        timeouts: ``connect`` for a connection, ``request`` until there is an answer, and then for each 64 KiB
            of it, both in seconds.
        conceal: takes secrets out of a text.
    """

    def __init__(self, wire: Wire, timeouts: Timeouts, conceal: Callable[[str], str]) -> None:
        self._wire = wire
        self._conceal = conceal
        self._patience = timeouts.request
        self._timeout = aiohttp.ClientTimeout(total=None, connect=timeouts.connect)
        self._clients: dict[Callable[[str], bool] | None, aiohttp.ClientSession] = {}
        self._opening: set[asyncio.Timeout] = set()
        self._open: set[aiohttp.ClientResponse] = set()
        self._closed = False

    @asynccontextmanager
    async def fetch(
        self, url: str, headers: Mapping[str, str], allowed: Callable[[str], bool] | None
    ) -> AsyncGenerator[Fetched, None]:
        """One GET; leaving the context closes the connection unless the body was read to its end.

        Args:
            url: http or https.
            headers: beside ``User-Agent`` and ``Accept-Encoding``.
            allowed: told each address before it is connected to; False refuses it. None: any will do.
                Behind a proxy it isn't asked: the proxy does the connecting.

        Raises:
            TransportError: no answer; an ``AddressRefusedError`` where ``allowed`` said no.
            SessionClosedError: closed, before or meanwhile.
        """
        target = as_url(url)
        where = target.host or "the server"
        response = await self._bordered(self._sent(target, headers, allowed), where, self._patience)
        self._open.add(response)
        try:
            head = _joined(response.headers.items())
            body = response.content
            chunked = "chunked" in head.get("transfer-encoding", "").lower()
            pace = Pace(self._patience)

            async def read() -> bytes:
                try:
                    async with pace:
                        # Chunks may be tiny, so they are taken together; all else is taken as it came.
                        piece = await body.readany() if chunked else (await body.readchunk())[0]
                        pace.come(len(piece))
                except Exception as error:
                    failure = self._failure(error, where)
                else:
                    if piece or not self._closed:
                        return piece
                    # Closing looks like the end of a body that ends with its connection.
                    failure = SessionClosedError(_CLOSED)
                try:
                    raise failure
                finally:
                    del failure

            ends: Literal["length", "chunk", "connection"]
            ends = "chunk" if chunked else "length" if "content-length" in head else "connection"
            yield Fetched(response.status, head, ends, read)
        finally:
            self._open.discard(response)
            response.close()

    async def home(self) -> tuple[str, list[str]]:
        """Give the API's own host and its addresses; none where only a proxy may know them."""
        url = URL(self._wire.base_url)
        host = url.host or ""
        try:
            if await self._wire.proxy_for(url, self._patience) is not None:
                return host, []
            found = await asyncio.get_running_loop().getaddrinfo(host, url.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            return host, []
        return host, [str(info[4][0]) for info in found]

    async def pause(self, seconds: float) -> None:
        """Wait between two attempts.

        Raises:
            SessionClosedError: closed, before or meanwhile.
        """
        await self._bordered(asyncio.sleep(seconds), "the server", None)

    async def aclose(self) -> None:
        """Cut everything off and close all connections; idempotent."""
        self._closed = True
        now = asyncio.get_running_loop().time()
        for scope in self._opening:
            scope.reschedule(now)
        for response in self._open:
            # To close only its client would not wake whoever waits for bytes of it.
            response.close()
        clients = list(self._clients.values())
        self._clients.clear()
        for client in clients:
            await client.close()

    # --- the border -----------------------------------------------------------------------------

    async def _bordered(self, work: Awaitable[_T], where: str, seconds: float | None) -> _T:
        """Await what may be cut by closing, so long at most; nothing of the HTTP client's gets out."""
        failure: QameraError
        scope = asyncio.timeout(seconds)
        try:
            async with scope:
                self._opening.add(scope)
                if self._closed:
                    scope.reschedule(0)
                return await work
        except Exception as error:
            failure = self._failure(error, where)
        finally:
            self._opening.discard(scope)
        # Raised out here, so that neither its context nor its traceback leads into the HTTP client.
        try:
            raise failure
        finally:
            del failure

    def _failure(self, error: Exception, where: str) -> QameraError:
        if self._closed:
            return SessionClosedError(_CLOSED)
        if isinstance(error, aiohttp.ClientConnectorError) and isinstance(
            error.os_error, _RefusedAddressError
        ):
            return AddressRefusedError(f"{where} is at an address that isn't allowed.", permanent=True)
        failure = translated(error, where, self._conceal, sent=True)
        if isinstance(failure, InvalidResponseError):
            # A host that echoes what it was asked for would show a URL that is signed.
            failure.excerpt = ""
        return failure

    async def _sent(
        self, url: URL, headers: Mapping[str, str], allowed: Callable[[str], bool] | None
    ) -> aiohttp.ClientResponse:
        proxy = await self._wire.proxy_for(url, self._patience)
        client = self._client(allowed if proxy is None else None)
        return await client.get(url, headers=headers, allow_redirects=False, proxy=proxy)

    def _client(self, allowed: Callable[[str], bool] | None) -> aiohttp.ClientSession:
        if self._closed:
            raise SessionClosedError("The session is closed.")
        client = self._clients.get(allowed)
        if client is None:
            client = self._clients[allowed] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=0,
                    ssl=self._wire.ssl_context or True,
                    socket_factory=None if allowed is None else _guarded_sockets(allowed),
                ),
                headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=self._timeout,
                auto_decompress=False,
                read_bufsize=_BUFFER,
            )
        return client


def as_url(text: str) -> URL:
    """Give a URL as the HTTP client will use it.

    Raises:
        ValueError: it is none.
    """
    # One that is encoded already stays as it is to the letter: it may be signed.
    return URL(text, encoded=all("!" <= char <= "~" for char in text))


def _joined(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    joined: dict[str, str] = {}
    for written, value in headers:
        name = written.lower()
        joined[name] = f"{joined[name]}, {value}" if name in joined else value
    return joined


def _guarded_sockets(allowed: Callable[[str], bool]) -> Callable[[Any], socket.socket]:
    # The one place that every connection passes with the very address it goes to: a name that means another
    # address the second time, or a number in an odd notation, can't get around it.
    def make(info: Any) -> socket.socket:  # noqa: ANN401 - as getaddrinfo gives it
        family, kind, protocol, _, address = info
        if not allowed(str(address[0])):
            raise _RefusedAddressError("this address isn't allowed")
        return socket.socket(family, kind, protocol)

    return make
