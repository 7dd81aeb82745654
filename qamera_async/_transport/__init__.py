"""The only room that imports the HTTP client: one exchange, a slot of the quota for each attempt.

What aiohttp raises ends here. Whether a byte of a body may have left is known for each POST.
"""

from __future__ import annotations

import asyncio
from functools import cached_property
from typing import TYPE_CHECKING

import aiohttp
from yarl import URL

from .. import _protocol as protocol
from .._ratelimit.window import Priority
from ..errors import (
    ApiError,
    ConnectionFailedError,
    InvalidResponseError,
    QameraError,
    SessionClosedError,
)
from ..events import RateLimitWait, Retrying
from .border import translated
from .tracing import Flight, flight_trace, guarded_trace
from .wire import USER_AGENT, Wire, concealing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from .._config import RetryPolicy, Timeouts
    from .._ratelimit import RateLimiter, Slot
    from ..events import Emit
    from .fetch import Fetcher

_SMALL = 64 * 1024  # bytes
# Bytes, after decompression. A list of 100,000 videos has room in it; with a decompressor's window of 16 MiB
# beside it, and what is under way, a compressed bomb takes less than 64 MiB.
BODY_LIMIT = 42 * 1024 * 1024
_SHORT_LIMIT = 1024 * 1024  # of what is no list
# How many times its size on the wire a body may become that is longer than these bytes. Videos with an id of
# their own and six kilobytes that all share become some 270 times what was sent; bombs a thousand times.
_MOST_EXPANSION, _EXPANDED = 500, 16 * 1024 * 1024
_OK = 200
_HEADERS_KEPT = ("date", "etag", "retry-after", "x-correlation-id")


class Transport:
    """Sends requests to the API's origin, one slot of the budget for each attempt."""

    def __init__(
        self, wire: Wire, budget: RateLimiter, timeouts: Timeouts, retry: RetryPolicy, emit: Emit
    ) -> None:
        self._wire = wire
        self._budget = budget
        self._timeouts = timeouts
        self._retry = retry
        self._emit = emit
        self._clients: dict[str, aiohttp.ClientSession] = {}
        self._urls: dict[str, URL] = {}
        self._closing = False
        self._closed = False
        self._timeout = aiohttp.ClientTimeout(total=timeouts.request, connect=timeouts.connect)
        self._conceal = concealing(wire.api_key.text)
        common = {protocol.KEY_HEADER: wire.api_key.text, "Accept": "application/json"}
        self._headers = {"GET": common, "POST": common | {"Content-Type": "application/json"}}

    @cached_property
    def elsewhere(self) -> Fetcher:
        """Fetches what is not the API's: without its key, and without a slot of its quota."""
        from .fetch import Fetcher  # noqa: PLC0415 - many sessions fetch nothing

        if self._closed:
            raise SessionClosedError("The session is closed.")
        return Fetcher(self._wire, self._timeouts, self._conceal)

    # --- what the other rooms call ------------------------------------------------------------

    async def get(
        self,
        path: str,
        priority: Priority,
        flight: Flight | None = None,
        before_send: Callable[[], Awaitable[None]] | None = None,
        condition: Mapping[str, str] | None = None,
    ) -> protocol.Answer:
        """One GET; a second attempt only where the server said 429.

        Args:
            path: below the base URL.
            priority: whose slot it takes.
            flight: tells how far it has come; None where nobody asks.
            before_send: awaited before each attempt, with the slot in hand.
            condition: headers that let the server answer 304, that nothing has changed.

        Raises:
            QameraError: no answer, or one with a status other than 200, or than 304 where that was asked for.
        """
        answer = await self._through_quota(
            "GET", path, None, condition, priority, flight or Flight(), before_send
        )
        if answer.status == _OK or (condition and answer.status == protocol.NOT_MODIFIED):
            return answer
        raise protocol.error_of(answer)

    async def post(
        self,
        path: str,
        body: bytes,
        headers: dict[str, str],
        flight: Flight,
        before_send: Callable[[], Awaitable[None]],
        refused: Callable[[], None],
    ) -> protocol.Answer:
        """One POST on a fresh connection; sent again only after a 429 in the API's shape.

        Args:
            path: below the base URL.
            body: JSON.
            headers: beside those of every request.
            flight: tells how far it has come, also when this raises.
            before_send: awaited with the slot in hand, before anything is sent.
            refused: called after a 429 in the API's shape, before the POST waits to be sent again.
        """
        return await self._through_quota(
            "POST", path, body, headers, Priority.SUBMISSION, flight, before_send, refused
        )

    async def retried(
        self,
        what: str,
        attempt: Callable[[], Awaitable[protocol.Answer]],
        again: Callable[[QameraError], bool],
    ) -> protocol.Answer:
        """Attempt what is safe to send again, ``RetryPolicy.attempts`` times at most."""
        delays = None
        number = 1
        while True:
            try:
                return await attempt()
            except QameraError as error:
                if number >= self._retry.attempts or not again(error):
                    raise
                delays = delays or self._retry.delays()
                delay = next(delays)
                self._emit(Retrying(what, number, delay, error))
            await asyncio.sleep(delay)
            number += 1

    def stop_queueing(self) -> None:
        """Let nothing more take a slot; what queues for one gets ``SessionClosedError``."""
        self._closing = True
        self._budget.evict(self, SessionClosedError("The session was closed before the request was sent."))

    async def aclose(self) -> None:
        """Close all connections; idempotent."""
        self.stop_queueing()
        self._closed = True
        clients = list(self._clients.values())
        self._clients.clear()
        if "elsewhere" in vars(self):
            await self.elsewhere.aclose()
        for client in clients:
            await client.close()

    # --- the quota ------------------------------------------------------------------------------

    async def _through_quota(
        self,
        method: str,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str] | None,
        priority: Priority,
        flight: Flight,
        before_send: Callable[[], Awaitable[None]] | None,
        refused: Callable[[], None] | None = None,
    ) -> protocol.Answer:
        while True:
            if self._closing:
                raise SessionClosedError("The session is closed.")
            slot = await self._budget.acquire(priority, self._waits, self)
            if before_send is not None:
                try:
                    await before_send()
                except BaseException:
                    slot.unsent()
                    raise
            flight.on_the_wire = True
            try:
                answer = await self._exchange(method, path, body, headers, flight, slot)
            finally:
                flight.on_the_wire = False
            if answer.status != 429:  # noqa: PLR2004
                slot.answered()
                flight.refusal = None
                return answer
            error = protocol.error_of(answer)
            stated = error.retry_after if isinstance(error, ApiError) else None
            held = slot.rejected(stated, self._retry)
            if method == "POST" and not protocol.is_refusal(answer):
                # The POST may have been processed, so it is not sent again. Other requests still wait.
                return answer
            flight.refusal = error
            if held is None:
                raise error
            self._emit(RateLimitWait(held))
            # The API refused the POST, so no byte of the next attempt's body has left yet.
            flight.body_left = flight.connected = False
            if refused is not None:
                refused()

    def _waits(self, seconds: float) -> None:
        self._emit(RateLimitWait(seconds))

    # --- one exchange ---------------------------------------------------------------------------

    async def _exchange(
        self,
        method: str,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str] | None,
        flight: Flight,
        slot: Slot,
    ) -> protocol.Answer:
        failure: BaseException
        url = self._url(path)
        try:
            async with self._client(method).request(
                method,
                url,
                data=body,
                # The key is a header of the request, not of the client: aiohttp sends a client's default
                # headers to the proxy too, in the CONNECT, in clear. Neither these headers nor the proxy's
                # URL, which may hold a password, is a local variable: tracebacks may show those.
                headers=self._headers[method] | dict(headers or {}),
                allow_redirects=False,
                proxy=await self._wire.proxy_for(url, self._timeouts.request),
                trace_request_ctx=flight if method == "POST" else None,
                middlewares=(_only_once(),),
            ) as response:
                return protocol.Answer(
                    response.status,
                    {name: response.headers[name] for name in _HEADERS_KEPT if name in response.headers},
                    await _read(response),
                    self._conceal,
                )
        except Exception as error:
            sent = method == "GET" or flight.body_left
            failure = translated(error, self._wire.base_url, self._conceal, sent=sent)
            unreached = isinstance(failure, ConnectionFailedError | SessionClosedError)
            self._end(slot, reached=flight.connected or (method == "GET" and not unreached))
        except BaseException as error:
            # Cancelled, or the process is going down.
            failure = (
                asyncio.CancelledError(*error.args) if isinstance(error, asyncio.CancelledError) else error
            )
            self._end(slot, reached=method == "GET" or flight.connected)
        # Raised out here, so that neither its context nor its traceback leads into the HTTP client, whose
        # frames hold the request's headers and with them the key.
        try:
            raise failure
        finally:
            del failure  # else it and this frame would keep each other until the next garbage collection

    def _end(self, slot: Slot, *, reached: bool) -> None:
        if reached:
            # The server may read what is on its way for as long as a connection may take.
            slot.cut_off(self._timeouts.connect)
        else:
            slot.unsent()

    def _url(self, path: str) -> URL:
        url = self._urls.get(path)
        if url is None:
            url = self._urls[path] = URL(self._wire.base_url + path)
        return url

    def _client(self, method: str) -> aiohttp.ClientSession:
        if self._closed:
            raise SessionClosedError("The session is closed.")
        client = self._clients.get(method)
        if client is None:
            wire = self._wire
            traces = [guarded_trace(config) for config in wire.trace_configs]
            if method == "POST":
                traces.append(flight_trace())
            client = self._clients[method] = aiohttp.ClientSession(
                # A POST on a kept connection that the server closes at that instant is ambiguous.
                connector=aiohttp.TCPConnector(
                    limit=0, force_close=method == "POST", ssl=wire.ssl_context or True
                ),
                headers={"User-Agent": USER_AGENT},  # a proxy receives these headers too
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=self._timeout,
                trace_configs=traces,
            )
        return client


def _only_once() -> aiohttp.ClientMiddlewareType:
    """Keep the HTTP client from sending a GET again by itself: that is a second request of the quota."""
    lost: Exception | None = None

    async def middleware(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        nonlocal lost
        if lost is not None:
            raise lost
        try:
            return await handler(request)
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
            lost = error
            raise

    return middleware


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """Read the body in pieces, so that a small compressed one can't become all of the memory."""
    # A receipt and an error are short: of what is made of a long one, little is worth its memory.
    limit = BODY_LIMIT if response.method == "GET" and response.status == _OK else _SHORT_LIMIT
    if (response.content_length or limit) < _SMALL and "Content-Encoding" not in response.headers:
        return await response.read()  # it says itself that it is small, and is read no further
    pieces: list[bytes] = []
    size = 0
    async for piece in response.content.iter_any():
        size += len(piece)
        too_much = None
        if size > limit:
            too_much = f"longer than {limit} bytes"
        elif size > _EXPANDED and size > _MOST_EXPANSION * response.content.total_raw_bytes:
            too_much = f"more than {_MOST_EXPANSION} times as long as what was sent of it"
        if too_much is not None:
            response.close()
            raise InvalidResponseError(
                f"The server's answer is {too_much}.",
                status=response.status,
                expected=f"at most {limit} bytes",
            )
        pieces.append(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
