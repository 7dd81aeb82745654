"""TLS before anything is sent: a handshake that hangs may pass, a certificate that is wrong doesn't."""

import pytest
from faults import ASK, GOOD, FaultServer, http, nothing_left

import qamera_async as q
from qamera_async.events import Retrying

pytestmark = [
    pytest.mark.usefixtures("no_lost_exceptions"),
    pytest.mark.every_loop,
    pytest.mark.case(104),
]

WAIT = {"WAIT": lambda session: session.job("vid_1").wait()}


def over_tls(serving):
    async def fault(connection):
        await connection.speak_tls(serving)
        await GOOD(connection)

    return fault


async def hanging(connection):
    await connection.hang()


async def test_a_certificate_that_is_trusted_is_used(contexts, quick):
    """ssl_context is for the API's certificate."""
    serving, trusting = contexts
    async with FaultServer(over_tls(serving)) as server:
        url = f"https://127.0.0.1:{server.port}"
        async with server.session(base_url=url, ssl_context=trusting, **quick) as session:
            await session.register_video(image_id="i")
            await session.list_videos()

    assert server.methods == ["POST", "GET"]


@pytest.mark.case(6)
@pytest.mark.parametrize("method", ASK)
async def test_a_handshake_that_hangs_is_tried_again(contexts, method, quick):
    """Within Timeouts.connect; what comes through then is processed once."""
    serving, trusting = contexts
    async with FaultServer(hanging, over_tls(serving)) as server:
        options = quick | {"timeouts": q.Timeouts(connect=0.4), "ssl_context": trusting}
        async with server.session(base_url=f"https://127.0.0.1:{server.port}", **options) as session:
            await ASK[method](session)
            assert session.rate_limiter.used == 1
    nothing_left(session)

    assert server.methods == [method]
    assert server.connections == 2


@pytest.mark.case(6)
@pytest.mark.parametrize("method", ASK)
async def test_a_handshake_that_always_hangs_is_typed(method, quick):
    """After a bounded number of attempts, and no slot is kept."""
    async with FaultServer(hanging) as server:
        options = quick | {"timeouts": q.Timeouts(connect=0.1, reconcile=0.0)}
        async with server.session(base_url=f"https://127.0.0.1:{server.port}", **options) as session:
            with pytest.raises(q.ConnectionFailedError) as failed:
                await ASK[method](session)
            assert session.rate_limiter.used == 0
    nothing_left(session)

    assert not failed.value.permanent
    assert not failed.value.sent
    assert server.connections == quick["retry"].attempts


async def refused_at_once(server, host, ask, options):
    """Ask, and see that it is refused for good with nothing sent."""
    events = []
    url = f"https://{host}:{server.port}"
    async with server.session(base_url=url, on_event=events.append, **options) as session:
        with pytest.raises(q.ConnectionFailedError) as failed:
            await ask(session)
        assert session.rate_limiter.used == 0
    nothing_left(session)

    assert failed.value.permanent
    assert not failed.value.sent
    assert server.requests == []
    assert not [event for event in events if isinstance(event, Retrying)]


@pytest.mark.parametrize("ask", [*ASK, *WAIT])
@pytest.mark.parametrize(
    ("host", "trusted"),
    [
        pytest.param("127.0.0.1", False, id="unknown authority", marks=pytest.mark.case(7)),
        pytest.param("localhost", True, id="another name", marks=pytest.mark.case(8)),
    ],
)
async def test_an_untrusted_certificate_is_raised_at_once(contexts, host, trusted, ask, quick):
    """An unknown authority and a name that doesn't match: nothing sent, no retry, waiters fail."""
    serving, trusting = contexts
    options = quick | ({"ssl_context": trusting} if trusted else {})
    async with FaultServer(over_tls(serving)) as server:
        await refused_at_once(server, host, (ASK | WAIT)[ask], options)

        assert server.connections == 1


@pytest.mark.case(9)
@pytest.mark.parametrize("ask", [*ASK, *WAIT])
async def test_https_to_a_plain_port_is_raised_at_once(ask, quick):
    """The handshake can't succeed later either; neither key nor request is in what was said."""
    heard = []

    async def plain(connection):
        heard.append(await connection.some())
        await connection.send(http(b"<h1>400</h1>", "400 Bad Request"))
        connection.fin()

    async with FaultServer(plain) as server:
        await refused_at_once(server, "127.0.0.1", (ASK | WAIT)[ask], quick)

    assert len(heard) == 1
    assert server.key.encode() not in heard[0]
    assert b"/api/external" not in heard[0]
