"""TLS failures before a request is sent: hanging handshakes are retried, wrong certificates are not."""

import pytest
from faults import CALLS, GOOD, FaultServer, assert_nothing_left, http

import qamera_async as q
from qamera_async.events import Retrying

pytestmark = [
    pytest.mark.usefixtures("no_lost_exceptions"),
    pytest.mark.every_loop,
    pytest.mark.case(104),
]

WAITING = {"WAIT": lambda session: session.job("vid_1").wait()}


def over_tls(serving):
    async def fault(connection):
        await connection.speak_tls(serving)
        await GOOD(connection)

    return fault


async def hanging(connection):
    await connection.hang()


async def test_ssl_context_is_used_for_the_api(contexts, quick):
    """A certificate of a private authority is accepted if ssl_context trusts that authority."""
    serving, trusting = contexts
    async with FaultServer(over_tls(serving)) as server:
        url = f"https://127.0.0.1:{server.port}"
        async with server.session(base_url=url, ssl_context=trusting, **quick) as session:
            await session.register_video(image_id="i")
            await session.list_videos()

    assert server.methods == ["POST", "GET"]


@pytest.mark.case(6)
@pytest.mark.parametrize("method", CALLS)
async def test_hanging_handshake_is_retried(contexts, method, quick):
    """Timeouts.connect limits the handshake. The server gets the request once."""
    serving, trusting = contexts
    async with FaultServer(hanging, over_tls(serving)) as server:
        options = quick | {"timeouts": q.Timeouts(connect=0.4), "ssl_context": trusting}
        async with server.session(base_url=f"https://127.0.0.1:{server.port}", **options) as session:
            await CALLS[method](session)
            assert session.rate_limiter.used == 1
    assert_nothing_left(session)

    assert server.methods == [method]
    assert server.connections == 2


@pytest.mark.case(6)
@pytest.mark.parametrize("method", CALLS)
async def test_repeated_hanging_handshakes_raise_after_the_last_attempt(method, quick):
    """The error keeps no slot of the rate limit."""
    async with FaultServer(hanging) as server:
        options = quick | {"timeouts": q.Timeouts(connect=0.1, reconcile=0.0)}
        async with server.session(base_url=f"https://127.0.0.1:{server.port}", **options) as session:
            with pytest.raises(q.ConnectionFailedError) as failed:
                await CALLS[method](session)
            assert session.rate_limiter.used == 0
    assert_nothing_left(session)

    assert not failed.value.permanent
    assert not failed.value.sent
    assert server.connections == quick["retry"].attempts


async def assert_refused_without_retry(server, host, call, options):
    """Assert that a call raises a permanent ConnectionFailedError without a retry, and sends nothing."""
    events = []
    url = f"https://{host}:{server.port}"
    async with server.session(base_url=url, on_event=events.append, **options) as session:
        with pytest.raises(q.ConnectionFailedError) as failed:
            await call(session)
        assert session.rate_limiter.used == 0
    assert_nothing_left(session)

    assert failed.value.permanent
    assert not failed.value.sent
    assert server.requests == []
    assert not [event for event in events if isinstance(event, Retrying)]


@pytest.mark.parametrize("name", [*CALLS, *WAITING])
@pytest.mark.parametrize(
    ("host", "trusted"),
    [
        pytest.param("127.0.0.1", False, id="unknown authority", marks=pytest.mark.case(7)),
        pytest.param("localhost", True, id="another name", marks=pytest.mark.case(8)),
    ],
)
async def test_untrusted_certificate_raises_without_a_retry(contexts, host, trusted, name, quick):
    """The authority is unknown, or the certificate is for another host. Nothing is sent, and waiters fail."""
    serving, trusting = contexts
    options = quick | ({"ssl_context": trusting} if trusted else {})
    async with FaultServer(over_tls(serving)) as server:
        await assert_refused_without_retry(server, host, (CALLS | WAITING)[name], options)

        assert server.connections == 1


@pytest.mark.case(9)
@pytest.mark.parametrize("name", [*CALLS, *WAITING])
async def test_https_to_a_plain_http_port_raises_without_a_retry(name, quick):
    """The handshake cannot succeed later. The server receives neither the key nor the request."""
    received = []

    async def plain(connection):
        received.append(await connection.receive())
        await connection.send(http(b"<h1>400</h1>", "400 Bad Request"))
        connection.fin()

    async with FaultServer(plain) as server:
        await assert_refused_without_retry(server, "127.0.0.1", (CALLS | WAITING)[name], quick)

    assert len(received) == 1
    assert server.key.encode() not in received[0]
    assert b"/api/external" not in received[0]
