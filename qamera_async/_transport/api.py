"""One attempt to send a request to the API, and what is known of it afterwards.

The exceptions of aiohttp end here. Of each POST it is known whether a byte may have left.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Self, TypeVar

import aiohttp
from yarl import URL

from .._config import RetryPolicy, Timeouts
from .._protocol import KEY_HEADER, ApiRequest, Response, retry_after
from .._ratelimit import Slot
from ..errors import (
    ApiError,
    ConnectionFailedError,
    InvalidResponseError,
    QameraError,
    RequestTimeoutError,
    ServerError,
    SessionClosedError,
    TransportError,
    without_traceback,
)
from ..events import Emit, Retrying
from .settings import USER_AGENT, ConnectionSettings

_T = TypeVar("_T")
_log = logging.getLogger("qamera_async")

_MIB = 1024 * 1024
# The longest body in bytes, after decompression: of a list (100,000 records fit), and of any other response.
_MAX_LIST_BODY, _MAX_BODY = 42 * _MIB, _MIB
# A body above 16 MiB may be at most 500 times as long as its compressed form. Lists whose records differ only
# in their ids reach 270 times, compression bombs 1000 times.
_ANY_EXPANSION, _MAX_EXPANSION = 16 * _MIB, 500
_RESPONSE_HEADERS = ("date", "etag", "retry-after", "x-correlation-id")
# How often the event loop may still read from its sockets before a time limit cancels; a pass reads 64 KiB.
_LAST_PASSES = 100


class Attempt:
    """The live state of one POST.

    Attributes:
        in_flight: Whether `ApiClient.send` is running.
        connected: Whether the POST has a connection.
        body_sent: Whether a byte of the POST may have left. Its headers leave together with its body.

    """

    __slots__ = ("body_sent", "connected", "in_flight")

    def __init__(self) -> None:
        self.in_flight = self.connected = self.body_sent = False


class ApiClient:
    """Send single requests to the API.

    Args:
        settings: How to connect to the API.
        timeouts: ``connect`` limits one connection and ``request`` one exchange, in seconds.
        retry: How long all requests wait after a 429 without ``Retry-After``.

    """

    def __init__(self, settings: ConnectionSettings, timeouts: Timeouts, retry: RetryPolicy) -> None:
        self._settings = settings
        self._timeouts = timeouts
        self._retry = retry
        self._clients: dict[str, aiohttp.ClientSession] = {}
        self._closed = False
        # The key is a header of each request. aiohttp sends the default headers of a client to a proxy too,
        # in the CONNECT request, which is not encrypted.
        self._headers = settings.headers | {
            KEY_HEADER: settings.api_key.value,
            "Accept": "application/json",
        }

    async def send(
        self,
        request: ApiRequest,
        slot: Slot,
        *,
        attempt: Attempt | None = None,
        before_body: Callable[[], Awaitable[None]] | None = None,
    ) -> Response:
        """Send a request once, and settle its slot in every case.

        Args:
            request: A GET, or a POST with a body.
            slot: The slot that the request takes. A request that provably did not leave gives it back.
            attempt: Tells the state of a POST, during the call and afterwards; None where it is not needed.
            before_body: Awaited right before the first byte of a POST leaves; None means nothing is awaited.

        Returns:
            The response, whatever its status is.

        Raises:
            TransportError: No response. ``sent`` tells whether the server may have received the request.
            ApiError: The proxy refused the connection with status 407.
            InvalidResponseError: The response is not valid HTTP, or too long.
            SessionClosedError: The client is closed, and no byte of a POST has left.
            BaseException: What ``before_body`` raised. Nothing was sent.

        """
        is_get = request.method == "GET"
        if not is_get and not request.body:
            raise ValueError("A POST needs a body: without one aiohttp sends the headers at once.")
        attempt = attempt or Attempt()
        attempt.in_flight, attempt.connected, attempt.body_sent = True, False, False
        exchange = _Exchange(attempt, before_body)
        token = _exchange.set(exchange)
        try:
            response = await self._send(request, attempt)
        except BaseException as exc:
            error = self._translate(exc, exchange, is_get=is_get)
        else:
            if response.status == 429:  # noqa: PLR2004
                slot.on_429(retry_after(response.headers), self._retry)
            else:
                slot.on_response()
            return response
        finally:
            _exchange.reset(token)
            exchange.end()
        unsent = isinstance(error, ConnectionFailedError | SessionClosedError | ApiError)
        if attempt.body_sent or (is_get and not unsent):
            # The server may still read what has left, for as long as a connection may take.
            slot.on_lost(self._timeouts.connect)
        else:
            slot.give_back()
        if self._closed and isinstance(error, TransportError) and not attempt.body_sent:
            error = SessionClosedError("The session was closed before the response arrived.")
        try:
            raise error
        finally:
            del error  # else the error and this frame keep each other alive until the next garbage collection

    async def aclose(self) -> None:
        """Close all connections; idempotent."""
        self._closed = True
        clients = list(self._clients.values())
        self._clients.clear()
        for client in clients:
            await client.close()

    async def _send(self, request: ApiRequest, attempt: Attempt) -> Response:
        # Errors lose their traceback before they are raised to the caller, so that these local variables,
        # which hold the key and the password of the proxy, are in no traceback.
        settings = self._settings
        url = URL(settings.base_url + request.path)
        headers = self._headers | dict(request.headers)
        if request.body is not None:
            headers["Content-Type"] = "application/json"
        async with TimeLimit(self._timeouts.request):
            proxy = await settings.proxy_for(url)
            async with self._client(request.method).request(
                request.method, url, data=request.body, headers=headers, allow_redirects=False, proxy=proxy
            ) as response:
                body = await _read(response)
                if request.body is not None and not attempt.body_sent:
                    raise TransportError("The server answered before the request was sent.", sent=False)
                received = response.headers
                kept = {name: received[name] for name in _RESPONSE_HEADERS if name in received}
                return Response(response.status, kept, body, settings.redact)

    def _translate(self, error: BaseException, exchange: _Exchange, *, is_get: bool) -> BaseException:
        if not isinstance(error, Exception):
            return without_traceback(error)
        if exchange.error is not None:
            return exchange.error  # aiohttp reports only that the request could not be written
        return map_aiohttp_exceptions(
            error,
            self._settings.base_url,
            self._settings.redact,
            sent=is_get or exchange.attempt.body_sent,
        )

    def _client(self, method: str) -> aiohttp.ClientSession:
        if self._closed:
            raise SessionClosedError("The session is closed.")
        client = self._clients.get(method)
        if client is None:
            is_get = method == "GET"
            traces = [_guarded(config) for config in self._settings.trace_configs]
            if not is_get:
                # The last one, so that nothing is awaited between its hook and the first byte. A GET goes
                # without, since trace hooks make it 10 % slower.
                traces.append(_post_trace())
            client = self._clients[method] = aiohttp.ClientSession(
                # A POST on a kept connection that the server closes at that moment would be ambiguous.
                connector=aiohttp.TCPConnector(
                    limit=0, force_close=not is_get, ssl=self._settings.ssl_context or True
                ),
                headers={"User-Agent": USER_AGENT},  # a proxy receives this header too
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, connect=self._timeouts.connect),
                trace_configs=traces,
                middlewares=(_send_once,),
            )
        return client


async def retry(
    what: str,
    attempt: Callable[[], Awaitable[_T]],
    policy: RetryPolicy,
    emit: Emit,
    again: Callable[[QameraError], bool],
) -> _T:
    """Await attempts until one succeeds, with pauses between them.

    Args:
        what: What is attempted, for the `Retrying` event.
        attempt: Makes one attempt.
        policy: How many attempts, and the pauses between them.
        emit: Gets a `Retrying` event before each pause.
        again: Returns whether another attempt is allowed after an error.

    Returns:
        What the successful attempt returned.

    Raises:
        QameraError: The error of the last attempt.

    """
    delays = policy.delays()
    number = 1
    while True:
        try:
            return await attempt()
        except QameraError as error:
            if number >= policy.attempts or not again(error):
                raise
            delay = next(delays)
            emit(Retrying(what, number, delay, error))
        await asyncio.sleep(delay)
        number += 1


def is_transient(error: QameraError) -> bool:
    """Return whether a GET may be repeated after an error."""
    if isinstance(error, TransportError):
        return not error.permanent
    return isinstance(error, ServerError) or (
        isinstance(error, InvalidResponseError) and error.status is None
    )


def map_aiohttp_exceptions(
    error: Exception, where: str, redact: Callable[[str], str], *, sent: bool
) -> QameraError:
    """Return the error of this package for an exception of aiohttp, without a traceback.

    Args:
        error: What aiohttp raised. An error of this package is returned as it is.
        where: The server, for the message.
        redact: Removes the API key from a text.
        sent: Whether the server may have received the request.

    """
    return without_traceback(_map(error, where, redact, sent=sent))


def _map(  # noqa: PLR0911 - a table, the most specific exception first
    error: Exception, where: str, redact: Callable[[str], str], *, sent: bool
) -> QameraError:
    name = type(error).__name__
    match error:
        case QameraError():
            return error
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientConnectorSSLError():
            return ConnectionFailedError(
                f"No trusted TLS connection to {where} ({redact(str(error))}).", permanent=True
            )
        case aiohttp.ClientHttpProxyError(status=407):
            return ApiError("The proxy requires authentication.", status=407, foreign=True)
        case aiohttp.ClientHttpProxyError():
            return ConnectionFailedError(
                f"No connection to {where}: the proxy answered with status {error.status}."
            )
        case aiohttp.ClientConnectorError() | aiohttp.ConnectionTimeoutError():
            return ConnectionFailedError(f"No connection to {where} ({name}).")
        case aiohttp.InvalidURL():
            return ConnectionFailedError(f"No connection to {where} ({name}).", permanent=True)
        case TimeoutError():
            return RequestTimeoutError(f"No response from {where} within the timeout.", sent=sent)
        case aiohttp.ClientResponseError():
            # Neither the message nor the cause is shown: they quote a part of the response, which may hold a
            # part of the key.
            return InvalidResponseError(
                f"The response from {where} is not valid HTTP ({type(error.__cause__ or error).__name__}).",
                expected="an HTTP response",
            )
        case _:
            return TransportError(f"The connection to {where} was lost ({name}).", sent=sent)


class TimeLimit:
    """Like `asyncio.timeout`, but what has already arrived is read before the task is cancelled.

    A timer fires together with the arrival of data after the process was suspended or the event loop was
    blocked.

    Args:
        seconds: The limit in seconds; None means no limit.

    Raises:
        TimeoutError: On exit, where the limit was exceeded.

    """

    __slots__ = ("_handle", "_scope", "_seconds")

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._scope = asyncio.timeout(None)
        self._handle: asyncio.Handle | None = None

    async def __aenter__(self) -> Self:
        await self._scope.__aenter__()
        if self._seconds is not None:
            self._handle = asyncio.get_running_loop().call_later(self._seconds, self._expire, _LAST_PASSES)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._handle is not None:
            self._handle.cancel()
        await self._scope.__aexit__(kind, error, traceback)

    def cancel(self) -> None:
        """Let the limit be exceeded now."""
        if not self._scope.expired():
            self._scope.reschedule(0.0)

    def _expire(self, passes: int) -> None:
        if passes:
            self._handle = asyncio.get_running_loop().call_soon(self._expire, passes - 1)
        else:
            self.cancel()


class _Exchange:
    """What our hooks know of one request; aiohttp's own context object belongs to the user's hooks."""

    __slots__ = ("attempt", "before_body", "ended", "error", "lost")

    def __init__(self, attempt: Attempt, before_body: Callable[[], Awaitable[None]] | None) -> None:
        self.attempt = attempt
        self.before_body = before_body
        self.error: BaseException | None = None  # what before_body raised
        self.lost: Exception | None = None  # how the connection was lost
        self.ended = False

    def end(self) -> None:
        self.ended = True
        self.lost = None  # its traceback holds the key
        self.attempt.in_flight = False


_exchange: ContextVar[_Exchange] = ContextVar("qamera_async exchange")


def _post_trace() -> aiohttp.TraceConfig:
    """Return the hooks that keep the `Attempt` of a POST up to date."""

    async def connected(*_: object) -> None:
        _exchange.get().attempt.connected = True

    async def before_write(*_: object) -> None:
        # Awaited before each part of a body is written. aiohttp writes the headers together with the first
        # part.
        exchange = _exchange.get()
        if exchange.before_body is not None and not exchange.attempt.body_sent:
            try:
                await exchange.before_body()
            except BaseException as error:
                if not _is_being_cancelled():
                    exchange.error = error
                raise ConnectionAbortedError from None
        if exchange.ended:
            raise ConnectionAbortedError
        exchange.attempt.body_sent = True

    trace = aiohttp.TraceConfig()
    trace.on_connection_create_end.append(connected)
    trace.on_request_chunk_sent.append(before_write)
    return trace


def _guarded(config: aiohttp.TraceConfig) -> aiohttp.TraceConfig:
    """Return a copy of a user's trace hooks whose exceptions are logged, so that none costs a receipt."""

    def guard(hook: Callable[..., Awaitable[None]]) -> Any:  # noqa: ANN401 - each signal has its type
        async def guarded(*args: object) -> None:
            try:
                await hook(*args)
            except (Exception, asyncio.CancelledError) as error:
                if isinstance(error, asyncio.CancelledError) and _is_being_cancelled():
                    raise
                # Without a traceback, which would show the headers of the request.
                name = getattr(hook, "__qualname__", type(hook).__name__)
                _log.error("The trace hook %s raised %s; it is ignored.", name, type(error).__name__)

        return guarded

    factory: Any = config.trace_config_ctx  # aiohttp declares a class, and calls whatever it gets
    copy = aiohttp.TraceConfig(trace_config_ctx_factory=factory)
    for signal in [name for name in dir(copy) if name.startswith("on_")]:
        getattr(copy, signal).extend(map(guard, getattr(config, signal)))
    return copy


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _send_once(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Keep aiohttp from sending a GET again by itself, which would take no slot of the rate limit."""
    exchange = _exchange.get()
    if exchange.lost is not None:
        raise exchange.lost
    try:
        return await handler(request)
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        exchange.lost = error
        raise


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """Read a body in parts, so that a small compressed one can't fill the memory."""
    is_list = response.method == "GET" and response.status == 200  # noqa: PLR2004
    limit = _MAX_LIST_BODY if is_list else _MAX_BODY
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        allowed = min(limit, max(_ANY_EXPANSION, _MAX_EXPANSION * response.content.total_raw_bytes))
        if size > allowed:
            raise InvalidResponseError(
                f"The response is longer than {allowed} bytes.",
                status=response.status,
                expected=f"at most {allowed} bytes",
            )
    return b"".join(parts)
