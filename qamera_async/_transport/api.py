"""One attempt to send a request to the API.

The exceptions of aiohttp are mapped to those of this package. For each POST, `Attempt` tells whether a byte
of it may have been sent.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Self, TypeVar

import aiohttp
import attrs
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
from .settings import ConnectionSettings, Secret, close_clients

_T = TypeVar("_T")
_log = logging.getLogger("qamera_async")

_MIB = 1024 * 1024
# The longest body in bytes, after decompression: of a list (100,000 records fit), and of any other response.
_MAX_LIST_BODY, _MAX_BODY = 42 * _MIB, _MIB
# A body above 16 MiB may be at most 500 times as long as its compressed form. Lists whose records differ only
# in their ids reach 270 times, compression bombs 1000 times.
_ANY_EXPANSION, _MAX_EXPANSION = 16 * _MIB, 500
_RESPONSE_HEADERS = ("date", "etag", "retry-after", "x-correlation-id")
# How many more iterations the event loop gets to read from its sockets before a time limit cancels. In each
# iteration it reads up to 64 KiB.
_LAST_ITERATIONS = 100


@attrs.define(eq=False)
class Attempt:
    """The live state of one POST. Use each for one call of `ApiClient.send`.

    Attributes:
        before_body: Awaited right before the first byte of the POST is sent; None means nothing is awaited.
        in_flight: Whether `ApiClient.send` is running.
        body_sent: Whether a byte of the POST may have been sent. Its headers are sent with the body.
        withdrawn: Set it to keep the first byte from being sent.

    """

    before_body: Callable[[], Awaitable[None]] | None = None
    in_flight: bool = attrs.field(default=False, init=False)
    body_sent: bool = attrs.field(default=False, init=False)
    withdrawn: bool = attrs.field(default=False, init=False)
    error: BaseException | None = attrs.field(default=None, init=False)  # the exception of before_body
    lost: Exception | None = attrs.field(default=None, init=False)  # the exception of a lost connection


# The attempt of the running request, for our hooks; aiohttp's own context object belongs to the user's hooks.
_attempt: ContextVar[Attempt] = ContextVar("qamera_async attempt")


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
        # The key is a header of each request, not of the client: aiohttp also sends the headers of a client
        # to a proxy, in the unencrypted CONNECT request.
        self._headers = Secret(
            {**settings.headers, KEY_HEADER: settings.api_key.value, "Accept": "application/json"}
        )

    async def send(
        self,
        request: ApiRequest,
        slot: Slot,
        attempt: Attempt | None = None,
    ) -> Response:
        """Send a request once, and settle its slot in every case.

        Args:
            request: A GET, or a POST with a body.
            slot: The slot of the request. It is given back if the request provably was not sent.
            attempt: Updated with the state of the POST during the call; None if the caller does not need it.

        Returns:
            The response, with any status.

        Raises:
            TransportError: No response. Its ``sent`` tells whether the server may have received the request.
            ApiError: The proxy refused the connection with status 407.
            InvalidResponseError: The response is not valid HTTP, or too long.
            SessionClosedError: The client is closed, and no byte of a POST was sent.
            BaseException: The exception of ``Attempt.before_body``. Nothing was sent.

        """
        is_get = request.method == "GET"
        if not is_get and not request.body:
            raise ValueError("A POST needs a body: without one aiohttp sends the headers at once.")
        attempt = attempt or Attempt()
        attempt.in_flight = True
        token = _attempt.set(attempt)
        try:
            response = await self._send(request, attempt)
        except Exception as exc:
            # An error of before_body reaches aiohttp only as a failed write.
            error: BaseException = attempt.error or map_aiohttp_exceptions(
                exc,
                self._settings.base_url,
                self._settings.redact,
                sent=is_get or attempt.body_sent,
            )
        except BaseException as exc:
            error = without_traceback(exc)
        else:
            if response.status == 429:  # noqa: PLR2004
                slot.on_429(retry_after(response.headers), self._retry)
            else:
                slot.on_response()
            return response
        finally:
            _attempt.reset(token)
            attempt.in_flight = False
            attempt.error = attempt.lost = None  # their tracebacks contain the API key
        unsent = isinstance(error, ConnectionFailedError | SessionClosedError | ApiError)
        if attempt.body_sent or (is_get and not unsent):
            # The server may still receive bytes that were sent, for as long as a connection may take.
            slot.on_lost(self._timeouts.connect)
        else:
            slot.give_back()
        if self._closed and isinstance(error, TransportError) and not attempt.body_sent:
            error = SessionClosedError("The session was closed before the response arrived.")
        try:
            raise error
        finally:
            del error  # breaks the reference cycle of the error and this frame

    async def aclose(self) -> None:
        """Close all connections; idempotent."""
        self._closed = True
        await close_clients(self._clients)

    async def _send(self, request: ApiRequest, attempt: Attempt) -> Response:
        # These local variables contain the API key and the password of the proxy. No traceback shows them,
        # because `send` removes the traceback of each error.
        settings = self._settings
        url = URL(settings.base_url + request.path)
        headers = {**self._headers.value, **request.headers}
        async with TimeLimit(self._timeouts.request):
            proxy = await settings.proxy_for(url)
            async with self._client(request.method).request(
                request.method, url, data=request.body, headers=headers, allow_redirects=False, proxy=proxy
            ) as response:
                body = await _read_body(response)
                if request.body is not None and not attempt.body_sent:
                    raise TransportError("The server answered before the request was sent.", sent=False)
                received = response.headers
                kept = {name: received[name] for name in _RESPONSE_HEADERS if name in received}
                return Response(response.status, kept, body, settings.redact)

    def _client(self, method: str) -> aiohttp.ClientSession:
        if self._closed:
            raise SessionClosedError("The session is closed.")
        client = self._clients.get(method)
        if client is None:
            is_post = method == "POST"
            traces = [_guarded(config) for config in self._settings.trace_configs]
            if is_post:
                # The last trace, so that nothing is awaited between its hook and the first byte. GETs have no
                # such trace, because trace hooks make them 10 % slower.
                traces.append(aiohttp.TraceConfig())
                traces[-1].on_request_chunk_sent.append(_before_write)
            # A POST on a kept connection would be ambiguous if the server closes the connection meanwhile.
            client = self._clients[method] = self._settings.new_client(
                self._timeouts, force_close=is_post, trace_configs=traces, middlewares=(_send_once,)
            )
        return client


async def retry(
    what: str,
    operation: Callable[[], Awaitable[_T]],
    policy: RetryPolicy,
    emit: Emit,
    again: Callable[[QameraError], bool],
) -> _T:
    """Await attempts until one succeeds, with pauses between them.

    Args:
        what: The name of the operation, for the `Retrying` event.
        operation: Makes one attempt.
        policy: The number of attempts and the pauses between them.
        emit: Called with a `Retrying` event before each pause.
        again: Returns whether another attempt is allowed after an error.

    Returns:
        The result of the successful attempt.

    Raises:
        QameraError: The error of the last attempt.

    """
    delays: Iterator[float] | None = None
    number = 1
    while True:
        try:
            return await operation()
        except QameraError as error:
            if number >= policy.attempts or not again(error):
                raise
            delays = delays or policy.delays()
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
    """Map an exception of aiohttp to an error of this package, without a traceback.

    Args:
        error: The exception of aiohttp. An error of this package is returned as it is.
        where: The URL or host of the server, for the message.
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
            # The texts of the exception and its cause quote the response, which may contain a part of the API
            # key. So only the type is shown.
            return InvalidResponseError(
                f"The response from {where} is not valid HTTP ({type(error.__cause__ or error).__name__}).",
                expected="an HTTP response",
            )
        case _:
            return TransportError(f"The connection to {where} was lost ({name}).", sent=sent)


class TimeLimit:
    """Like `asyncio.timeout`, but data that has already arrived is read before the task is cancelled.

    After the process was suspended or the event loop was blocked, the event loop runs an overdue timer before
    it reads data that arrived in time.

    Args:
        seconds: The limit in seconds; None means no limit.

    Raises:
        TimeoutError: On exit, if the limit was exceeded.

    """

    __slots__ = ("_handle", "_scope", "_seconds")

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._scope = asyncio.timeout(None)
        self._handle: asyncio.Handle | None = None

    async def __aenter__(self) -> Self:
        await self._scope.__aenter__()
        if self._seconds is not None:
            self._handle = asyncio.get_running_loop().call_later(
                self._seconds, self._expire, _LAST_ITERATIONS
            )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._handle is not None:
            self._handle.cancel()
        await self._scope.__aexit__(kind, error, traceback)

    def cancel(self) -> None:
        """Cancel the task now, as if the limit was exceeded."""
        if not self._scope.expired():
            self._scope.reschedule(0.0)

    def _expire(self, iterations: int) -> None:
        if iterations:
            self._handle = asyncio.get_running_loop().call_soon(self._expire, iterations - 1)
        else:
            self.cancel()


async def _before_write(*_: object) -> None:
    # aiohttp awaits this hook before it writes each part of a body. The headers are written with the first
    # part.
    attempt = _attempt.get()
    if attempt.before_body is not None and not attempt.body_sent:
        try:
            await attempt.before_body()
        except BaseException as error:
            if not _is_being_cancelled():
                attempt.error = error
            raise ConnectionAbortedError from None
    # aiohttp may run this in a task of its own, while the task of the request is being cancelled.
    if not attempt.body_sent and (attempt.withdrawn or not attempt.in_flight):
        raise ConnectionAbortedError
    attempt.body_sent = True


def _guarded(config: aiohttp.TraceConfig) -> aiohttp.TraceConfig:
    """Return a copy of a user's trace hooks that logs their exceptions, so that no receipt is lost."""

    def guard(hook: Callable[..., Awaitable[None]]) -> Any:  # noqa: ANN401 - each signal has its type
        async def guarded(*args: object) -> None:
            try:
                await hook(*args)
            except (Exception, asyncio.CancelledError) as error:
                if isinstance(error, asyncio.CancelledError) and _is_being_cancelled():
                    raise
                # Without a traceback, which would show the headers of the request.
                name = getattr(hook, "__qualname__", type(hook).__name__)
                _log.error(
                    "The trace hook %s raised %s. The exception is ignored.", name, type(error).__name__
                )

        return guarded

    factory: Any = config.trace_config_ctx  # aiohttp declares a class and accepts any callable
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
    """Prevent aiohttp from retrying a GET by itself, because the retry would take no slot."""
    attempt = _attempt.get()
    if attempt.lost is not None:
        raise attempt.lost
    try:
        return await handler(request)
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        attempt.lost = error
        raise


async def _read_body(response: aiohttp.ClientResponse) -> bytes:
    """Read a body in parts, so that a compression bomb can't fill the memory."""
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
