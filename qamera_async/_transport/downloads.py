"""GET requests to other hosts than the API: no key, no cookie, no slot of the rate limit, no redirects."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal, TypeVar

import aiohttp
from yarl import URL

from .._config import Timeouts
from ..errors import ConnectionFailedError, QameraError, SessionClosedError, TransportError, without_traceback
from .api import TimeLimit, map_aiohttp_exceptions
from .settings import ConnectionSettings, close_clients

_T = TypeVar("_T")
_CLOSED = "The session was closed during a download."
_BUFFER = 256 * 1024  # bytes; aiohttp buffers at most twice as many per response
_MIN_BYTES = 64 * 1024  # the minimum throughput: so many bytes in Timeouts.request seconds


class AddressRefusedError(ConnectionFailedError):
    """A host has an IP address that is not allowed; nothing was sent to it."""


class _RefusedAddressError(OSError):
    """The reason of an `AddressRefusedError`, an `OSError` because aiohttp handles only those of a socket."""


class StreamingResponse:
    """A response whose body has not been read yet.

    Attributes:
        status: The HTTP status.
        headers: The headers by their names in lower case; the values of repeated headers are joined by
            commas.
        ends: How the end of the body is known: its announced "length", the last "chunk", or the "connection".

    """

    def __init__(
        self, client: DownloadClient, response: aiohttp.ClientResponse, host: str, seconds: float
    ) -> None:
        self.status = response.status
        self.headers = _lower_case(response.headers.items())
        self._chunked = "chunked" in self.headers.get("transfer-encoding", "").lower()
        self.ends: Literal["length", "chunk", "connection"] = (
            "chunk" if self._chunked else "length" if "content-length" in self.headers else "connection"
        )
        self._client = client
        self._content = response.content
        self._host = host
        self._seconds = seconds
        self._seconds_left = seconds  # for the rest of _MIN_BYTES
        self._received = 0  # bytes of these _MIN_BYTES

    async def read(self) -> bytes:
        """Return the next bytes, b"" at the end of the body.

        Only the time spent in this method counts for the minimum throughput, not the time between two calls.

        Raises:
            TransportError: The connection was lost, or fewer than 64 KiB arrived in ``Timeouts.request``
                seconds.
            InvalidResponseError: The body is not valid HTTP.
            SessionClosedError: The session was closed during the call.

        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        data = await self._client.run(self._next, self._host, self._seconds_left)
        self._seconds_left -= loop.time() - began
        self._received += len(data)
        if self._received >= _MIN_BYTES:
            self._received, self._seconds_left = 0, self._seconds
        return data

    async def _next(self) -> bytes:
        if self._chunked:
            return await self._content.readany()  # joins small chunks
        return (await self._content.readchunk())[0]


class DownloadClient:
    """Send GET requests without the API key to any host.

    Args:
        settings: The proxy and certificates, which are the same as for the API.
        timeouts: ``connect`` limits one connection. ``request`` limits the time until the response begins,
            and then the time for each 64 KiB of its body. Both in seconds.

    """

    def __init__(self, settings: ConnectionSettings, timeouts: Timeouts) -> None:
        self._settings = settings
        self._timeouts = timeouts
        self._clients: dict[Callable[[str], bool] | None, aiohttp.ClientSession] = {}
        self._limits: set[TimeLimit] = set()
        self._closed = False

    @asynccontextmanager
    async def fetch(
        self, url: str, headers: Mapping[str, str], allowed: Callable[[str], bool] | None
    ) -> AsyncGenerator[StreamingResponse, None]:
        """Send one GET; leaving the context closes the connection unless the body was read to its end.

        Args:
            url: An http or https URL.
            headers: The headers, except ``User-Agent`` and ``Accept-Encoding``.
            allowed: Called with each IP address before it is connected to; False refuses the address. None
                allows every address. Not called behind a proxy, since the proxy makes the connection.

        Raises:
            AddressRefusedError: ``allowed`` returned False.
            TransportError: No response.
            SessionClosedError: The session is closed, or was closed during the call.

        """
        target = parse_url(url)
        host = target.host or "the server"
        seconds = self._timeouts.request

        async def send() -> aiohttp.ClientResponse:
            proxy = await self._settings.proxy_for(target)
            client = self._client(allowed if proxy is None else None)
            return await client.get(target, headers=headers, allow_redirects=False, proxy=proxy)

        response = await self.run(send, host, seconds)
        try:
            yield StreamingResponse(self, response, host, seconds)
        finally:
            response.close()

    async def api_addresses(self) -> tuple[str, list[str]]:
        """Return the host of the API and its IP addresses; no addresses if a proxy resolves the host."""
        url = URL(self._settings.base_url)
        host = url.host or ""

        async def resolve() -> list[str]:
            if await self._settings.proxy_for(url) is not None:
                return []
            found = await asyncio.get_running_loop().getaddrinfo(host, url.port, type=socket.SOCK_STREAM)
            return [str(info[4][0]) for info in found]

        try:
            return host, await self.run(resolve, host, self._timeouts.request)
        except TransportError:
            return host, []

    async def pause(self, seconds: float) -> None:
        """Sleep between two attempts.

        Raises:
            SessionClosedError: The session is closed, or was closed during the call.

        """
        await self.run(lambda: asyncio.sleep(seconds), "the server", None)

    async def aclose(self) -> None:
        """Cancel all downloads and close all connections; idempotent."""
        self._closed = True
        for limit in self._limits:
            limit.cancel()
        await close_clients(self._clients)

    async def run(self, step: Callable[[], Awaitable[_T]], host: str, seconds: float | None) -> _T:
        """Run one step of a download with a time limit.

        Args:
            step: The coroutine function of the step.
            host: The host, for messages.
            seconds: The limit in seconds; None means no limit.

        Raises:
            TransportError: The step failed, or exceeded the limit.
            InvalidResponseError: The response is not valid HTTP.
            SessionClosedError: The session is closed, or was closed during the call.

        """
        limit = TimeLimit(seconds)
        try:
            async with limit:
                self._limits.add(limit)
                if self._closed:
                    limit.cancel()
                result = await step()
        except Exception as exc:
            error: BaseException = self._translate(exc, host)
        except BaseException as exc:
            error = without_traceback(exc)
        else:
            # If a body ends with its connection, closing the session looks like the end of the body.
            if result or not self._closed:
                return result
            error = SessionClosedError(_CLOSED)
        finally:
            self._limits.discard(limit)
        try:
            raise error
        finally:
            del error  # breaks the reference cycle of the error and this frame

    def _translate(self, error: Exception, host: str) -> QameraError:
        if self._closed:
            return SessionClosedError(_CLOSED)
        if isinstance(getattr(error, "os_error", None), _RefusedAddressError):
            return AddressRefusedError(f"{host} has an IP address that is not allowed.", permanent=True)
        return map_aiohttp_exceptions(error, host, self._settings.redact, sent=True)

    def _client(self, allowed: Callable[[str], bool] | None) -> aiohttp.ClientSession:
        if self._closed:
            raise SessionClosedError(_CLOSED)
        client = self._clients.get(allowed)
        if client is None:
            client = self._clients[allowed] = self._settings.new_client(
                self._timeouts,
                socket_factory=None if allowed is None else _guarded_sockets(allowed),
                headers={"Accept-Encoding": "identity"},
                auto_decompress=False,
                read_bufsize=_BUFFER,
            )
        return client


def parse_url(text: str) -> URL:
    """Return the URL of a text, without encoding a text that is already encoded.

    Raises:
        ValueError: The text is not a URL.

    """
    # Changing the encoding of a signed URL would invalidate its signature.
    return URL(text, encoded=all("!" <= char <= "~" for char in text))


def _lower_case(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    joined: dict[str, str] = {}
    for written, value in headers:
        name = written.lower()
        joined[name] = f"{joined[name]}, {value}" if name in joined else value
    return joined


def _guarded_sockets(allowed: Callable[[str], bool]) -> Callable[[Any], socket.socket]:
    # aiohttp calls this with the resolved address of each connection. So neither DNS rebinding nor an
    # unusual notation of an address circumvents the check.
    def make(info: Any) -> socket.socket:  # noqa: ANN401 - an item of getaddrinfo
        family, kind, protocol, _, address = info
        if not allowed(str(address[0])):
            raise _RefusedAddressError("The address is not allowed.")
        return socket.socket(family, kind, protocol)

    return make
