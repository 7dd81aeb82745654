"""Before a connection stands, nothing is sent: it is tried again a bounded number of times, or raised."""

import asyncio
import socket
from contextlib import asynccontextmanager

import aiohttp
import pytest
from faults import ASK, GOOD, FaultServer, http, nothing_left

import qamera_async as q
from qamera_async.events import Retrying

pytestmark = [
    pytest.mark.usefixtures("no_lost_exceptions"),
    pytest.mark.every_loop,
    pytest.mark.case(104),
]


EITHER = {"createdRecordIds": ["vid_1"], "videos": []}


class Unreachable:
    """A server that can't be reached until it is relieved."""

    def __init__(self, listening):
        self.server = FaultServer(GOOD)
        self.listening = listening
        port = listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._listener = None

    def relieve(self):
        """Listen from now on: the kernel at once, the server in the loop's next turn."""
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
    """A port that is bound, and listens only later."""
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    unreachable = Unreachable(bound)
    try:
        yield unreachable
    finally:
        await unreachable.aclose()


@asynccontextmanager
async def unknown_name(monkeypatch):
    """A name that the resolver doesn't know until later."""
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
        listen = unreachable.relieve

        def relieve():
            nonlocal known
            known = True
            listen()

        unreachable.relieve = relieve
        yield unreachable


@asynccontextmanager
async def no_answer(_):
    """A listener whose queue is full: what knocks is not answered until there is room again."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=0)
    before = [socket.socket() for _ in range(3)]
    for waiting in before:
        waiting.setblocking(False)
        waiting.connect_ex(listening.getsockname())
    unreachable = Unreachable(listening)
    try:
        yield unreachable
    finally:
        await unreachable.aclose()
        for waiting in before:
            waiting.close()


TROUBLE = [
    pytest.param(refused, "", q.ConnectionFailedError, id="refused", marks=pytest.mark.case(1)),
    pytest.param(unknown_name, "", q.ConnectionFailedError, id="unknown name", marks=pytest.mark.case(2)),
    pytest.param(no_answer, "connect", q.ConnectionFailedError, id="connect", marks=pytest.mark.case(3)),
    pytest.param(no_answer, "request", q.RequestTimeoutError, id="total", marks=pytest.mark.case(4)),
]


def watching(quick, events, limit="", seconds=0.0):
    """Give options with one short limit, if any, that note what happens."""
    limits = {"connect": 5.0, "request": 5.0, "reconcile": 0.0} | ({limit: seconds} if limit else {})
    retry = q.RetryPolicy(attempts=3, base=0.001)
    return quick | {"timeouts": q.Timeouts(**limits), "retry": retry, "on_event": events.append}


@pytest.mark.parametrize("method", ASK)
@pytest.mark.parametrize(("trouble", "limit", "kind"), TROUBLE)
async def test_who_is_never_reached_is_typed(trouble, limit, kind, method, quick, monkeypatch):
    """Each attempt is told of, there are as many as RetryPolicy says, and a POST keeps no slot."""
    events = []
    async with trouble(monkeypatch) as unreachable:
        options = watching(quick, events, limit, 0.08)
        async with unreachable.server.session(base_url=unreachable.url, **options) as session:
            with pytest.raises(kind) as failed:
                await ASK[method](session)
            used = session.rate_limiter.used
    nothing_left(session)

    assert type(failed.value) is kind
    assert [(event.attempt, type(event.error)) for event in events if isinstance(event, Retrying)] == [
        (1, kind),
        (2, kind),
    ]
    # Of a GET that ran out of time nobody knows whether it was sent, so it counts.
    assert used == (3 if (method, kind) == ("GET", q.RequestTimeoutError) else 0)
    assert failed.value.sent is (used != 0)
    assert unreachable.server.requests == []


@pytest.mark.parametrize("method", ASK)
@pytest.mark.parametrize(("trouble", "limit", "kind"), TROUBLE)
async def test_who_can_be_reached_again_gets_one_request(trouble, limit, kind, method, quick, monkeypatch):
    """What never left is sent again, and processed exactly once."""
    events = []
    async with trouble(monkeypatch) as unreachable:

        def relieve(event):
            events.append(event)
            if isinstance(event, Retrying):
                unreachable.relieve()

        options = watching(quick, events, limit, 0.3) | {"on_event": relieve}
        async with unreachable.server.session(base_url=unreachable.url, **options) as session:
            await ASK[method](session)
    nothing_left(session)

    assert unreachable.server.methods == [method]
    assert {type(event.error) for event in events if isinstance(event, Retrying)} == {kind}


@pytest.mark.case(5)
@pytest.mark.parametrize("method", ASK)
async def test_no_request_waits_for_a_connection_of_a_pool(method, quick):
    """However many are under way at once, each has its own connection at once."""
    number = 130  # more than the HTTP client's pool has by itself
    all_here = asyncio.Event()

    async def together(connection):
        await connection.request()
        if len(server.requests) == number:
            all_here.set()
        await all_here.wait()
        await connection.send(http(EITHER))

    options = quick | {
        "rate_limiter": q.RateLimiter(1_000),
        "timeouts": q.Timeouts(connect=3.0, request=15.0),
    }
    async with FaultServer(together) as server:
        async with server.session(**options) as session:
            await asyncio.gather(*(ASK[method](session) for _ in range(number)))
    nothing_left(session)

    assert server.methods == [method] * number


@pytest.mark.case(5)
@pytest.mark.parametrize("method", ASK)
@pytest.mark.parametrize("room_again", [True, False])
async def test_a_pool_without_room_is_no_connection(method, room_again, quick, monkeypatch):
    """Were there a limit: who waits for a connection in vain tries again, and nothing was sent."""
    gate = asyncio.Event()
    events = []

    async def slow(connection):
        await connection.request()
        await gate.wait()
        await connection.send(http(EITHER))

    def watch(event):
        events.append(event)
        if room_again and isinstance(event, Retrying):
            gate.set()

    whole = aiohttp.TCPConnector
    monkeypatch.setattr(aiohttp, "TCPConnector", lambda **options: whole(**options | {"limit": 1}))
    async with FaultServer(slow) as server:
        options = watching(quick, events, "connect", 0.1) | {"on_event": watch}
        async with server.session(**options) as session:
            first = asyncio.ensure_future(ASK[method](session))
            while not server.requests:
                await asyncio.sleep(0.001)
            second = asyncio.ensure_future(ASK[method](session))
            await asyncio.wait([second])
            used = session.rate_limiter.used
            gate.set()
            await first
    nothing_left(session)

    assert {type(event.error) for event in events if isinstance(event, Retrying)} == {q.ConnectionFailedError}
    assert isinstance(second.exception(), q.ConnectionFailedError | None)
    assert (second.exception() is None) is room_again
    assert server.methods == [method] * (2 if room_again else 1)
    assert used == len(server.methods)
