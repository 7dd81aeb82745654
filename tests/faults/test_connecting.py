"""Failures to connect: nothing was sent, so the request is retried, and raised after the last attempt."""

import asyncio
import socket
from contextlib import asynccontextmanager

import aiohttp
import pytest
from faults import CALLS, GOOD, FaultServer, assert_nothing_left, http

import qamera_async as q
from qamera_async.events import Retrying

pytestmark = [
    pytest.mark.usefixtures("no_lost_exceptions"),
    pytest.mark.every_loop,
    pytest.mark.case(104),
]


EITHER = {"createdRecordIds": ["vid_1"], "videos": []}


class Unreachable:
    """A server that can't be reached until `make_reachable` is called."""

    def __init__(self, listening):
        self.server = FaultServer(GOOD)
        self.listening = listening
        port = listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._listener = None

    def make_reachable(self):
        """Listen from now on: the kernel immediately, the server in the next iteration of the loop."""
        if self._listener is None:
            self.listening.listen()
            self._listener = asyncio.ensure_future(self.server.listen(self.listening))

    async def aclose(self):
        if self._listener is not None:
            await self._listener
            await self.server.__aexit__()
        self.listening.close()


@asynccontextmanager
async def refused(_):
    """Yield a server whose port is bound but does not listen, so that connections are refused."""
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    unreachable = Unreachable(bound)
    try:
        yield unreachable
    finally:
        await unreachable.aclose()


@asynccontextmanager
async def unknown_name(monkeypatch):
    """Yield a server whose host name the resolver does not know."""
    known = False
    port = 0

    async def getaddrinfo(host, *_, **__):
        if not known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    async with refused(monkeypatch) as unreachable:
        port = unreachable.listening.getsockname()[1]
        unreachable.url = f"http://api.localhost:{port}"
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
        listen = unreachable.make_reachable

        def make_reachable():
            nonlocal known
            known = True
            listen()

        unreachable.make_reachable = make_reachable
        yield unreachable


@asynccontextmanager
async def no_answer(_):
    """Yield a server whose backlog is full, so that the kernel does not answer new connections."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=0)
    fillers = [socket.socket() for _ in range(3)]
    for filler in fillers:
        filler.setblocking(False)
        filler.connect_ex(listening.getsockname())
    unreachable = Unreachable(listening)
    try:
        yield unreachable
    finally:
        await unreachable.aclose()
        for filler in fillers:
            filler.close()


TROUBLE = [
    pytest.param(refused, "", q.ConnectionFailedError, id="refused", marks=pytest.mark.case(1)),
    pytest.param(unknown_name, "", q.ConnectionFailedError, id="unknown name", marks=pytest.mark.case(2)),
    pytest.param(no_answer, "connect", q.ConnectionFailedError, id="connect", marks=pytest.mark.case(3)),
    pytest.param(no_answer, "request", q.RequestTimeoutError, id="total", marks=pytest.mark.case(4)),
]


def recording_options(quick, events, limit="", seconds=0.0):
    """Return session options that append events to a list, with one short time limit if a name is given."""
    limits = {"connect": 5.0, "request": 5.0, "reconcile": 0.0} | ({limit: seconds} if limit else {})
    retry = q.RetryPolicy(attempts=3, base=0.001)
    return quick | {"timeouts": q.Timeouts(**limits), "retry": retry, "on_event": events.append}


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize(("trouble", "limit", "kind"), TROUBLE)
async def test_unreachable_server_raises_after_the_last_attempt(
    trouble, limit, kind, method, quick, monkeypatch
):
    """Each retry is an event, RetryPolicy limits the attempts, and a POST keeps no slot."""
    events = []
    async with trouble(monkeypatch) as unreachable:
        options = recording_options(quick, events, limit, 0.08)
        async with unreachable.server.session(base_url=unreachable.url, **options) as session:
            with pytest.raises(kind) as failed:
                await CALLS[method](session)
            used = session.rate_limiter.used
    assert_nothing_left(session)

    assert type(failed.value) is kind
    assert [(event.attempt, type(event.error)) for event in events if isinstance(event, Retrying)] == [
        (1, kind),
        (2, kind),
    ]
    # A GET that timed out may have been sent, so its slot counts.
    assert used == (3 if (method, kind) == ("GET", q.RequestTimeoutError) else 0)
    assert failed.value.sent is (used != 0)
    assert unreachable.server.requests == []


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize(("trouble", "limit", "kind"), TROUBLE)
async def test_server_that_becomes_reachable_gets_one_request(
    trouble, limit, kind, method, quick, monkeypatch
):
    """The request that was not sent is retried, and the server processes it exactly once."""
    events = []
    async with trouble(monkeypatch) as unreachable:

        def on_event(event):
            events.append(event)
            if isinstance(event, Retrying):
                unreachable.make_reachable()

        options = recording_options(quick, events, limit, 0.3) | {"on_event": on_event}
        async with unreachable.server.session(base_url=unreachable.url, **options) as session:
            await CALLS[method](session)
    assert_nothing_left(session)

    assert unreachable.server.methods == [method]
    assert {type(event.error) for event in events if isinstance(event, Retrying)} == {kind}


@pytest.mark.case(5)
@pytest.mark.parametrize("method", CALLS)
async def test_requests_do_not_wait_for_a_pooled_connection(method, quick):
    """Each concurrent request opens its own connection immediately."""
    number = 130  # more than the default pool size of the HTTP client
    all_arrived = asyncio.Event()

    async def answer_when_all_arrived(connection):
        await connection.request()
        if len(server.requests) == number:
            all_arrived.set()
        await all_arrived.wait()
        await connection.send(http(EITHER))

    options = quick | {
        "rate_limiter": q.RateLimiter(1_000),
        "timeouts": q.Timeouts(connect=3.0, request=15.0),
    }
    async with FaultServer(answer_when_all_arrived) as server:
        async with server.session(**options) as session:
            await asyncio.gather(*(CALLS[method](session) for _ in range(number)))
    assert_nothing_left(session)

    assert server.methods == [method] * number


@pytest.mark.case(5)
@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize("pool_freed", [True, False])
async def test_full_connection_pool_is_a_failure_to_connect(method, pool_freed, quick, monkeypatch):
    """A request that gets no pooled connection was not sent, and is retried.

    The session itself sets no limit, so the test adds one.
    """
    resume = asyncio.Event()
    events = []

    async def slow(connection):
        await connection.request()
        await resume.wait()
        await connection.send(http(EITHER))

    def on_event(event):
        events.append(event)
        if pool_freed and isinstance(event, Retrying):
            resume.set()

    connector = aiohttp.TCPConnector
    monkeypatch.setattr(aiohttp, "TCPConnector", lambda **options: connector(**options | {"limit": 1}))
    async with FaultServer(slow) as server:
        options = recording_options(quick, events, "connect", 0.1) | {"on_event": on_event}
        async with server.session(**options) as session:
            first = asyncio.ensure_future(CALLS[method](session))
            while not server.requests:
                await asyncio.sleep(0.001)
            second = asyncio.ensure_future(CALLS[method](session))
            await asyncio.wait([second])
            used = session.rate_limiter.used
            resume.set()
            await first
    assert_nothing_left(session)

    assert {type(event.error) for event in events if isinstance(event, Retrying)} == {q.ConnectionFailedError}
    assert isinstance(second.exception(), q.ConnectionFailedError | None)
    assert (second.exception() is None) is pool_freed
    assert server.methods == [method] * (2 if pool_freed else 1)
    assert used == len(server.methods)
