"""Responses that are lost after the body left: a POST is ambiguous and sent once, a GET is retried."""

import asyncio

import pytest
from aiohttp.http_parser import HttpResponseParserPy
from faults import (
    CALLS,
    FREQUENT_POLLS,
    GOOD,
    HEAD,
    LIST,
    RECEIPT,
    FaultServer,
    ambiguous_error,
    answers,
    assert_nothing_left,
)

import qamera_async as q

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")

CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n"


def body_of(method):
    """Return the body of a good response."""
    return RECEIPT if method == "POST" else LIST


def sends(answer, end="fin"):
    """Return a function that makes the fault of a method.

    Args:
        answer: The bytes to send; BODY, LENGTH and HEX stand for the good body and its length.
        end: How the connection ends, as for `answers`.
    """

    def make(method):
        body = body_of(method)
        filled = answer.replace(b"BODY", body).replace(b"HEX", b"%x" % len(body))
        return answers(filled.replace(b"LENGTH", b"%d" % len(body)), end)

    return make


def shut_at_once(_):
    """Send a FIN at once, and read the request."""
    return lambda connection: connection.close_after_fin()


def reset_at_once(_):
    """Send an RST at once; the request is not read."""

    async def fault(connection):
        connection.rst()

    return fault


def drips(_):
    """Send one header after the other until the client closes."""

    async def fault(connection):
        await connection.request()
        await connection.send(HEAD)
        while True:
            await connection.send(b"X-More: 1\r\n")
            await asyncio.sleep(0.02)

    return fault


def continues(_):
    """Send "100 Continue" again and again."""

    async def fault(connection):
        await connection.request()
        while True:
            await connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            await asyncio.sleep(0)

    return fault


LOST, NO_HTTP, LATE = q.TransportError, q.InvalidResponseError, q.RequestTimeoutError
TROUBLE = [
    (10, "FIN after accept", shut_at_once, LOST),
    (11, "RST after accept", reset_at_once, LOST),
    (12, "FIN before the response", sends(b"", "fin"), LOST),
    (13, "RST before the response", sends(b"", "rst"), LOST),
    (14, "FIN in the status line", sends(b"HTTP/1.1 20"), LOST),
    (15, "FIN in the headers", sends(HEAD), LOST),
    (16, "FIN in the body", sends(HEAD + b"Content-Length: 500\r\n\r\nBODY"), LOST),
    (17, "chunked body cut between chunks", sends(CHUNKED + b"\r\nHEX\r\nBODY\r\n"), LOST),
    (17, "chunked body cut in a chunk", sends(CHUNKED + b"\r\nfff\r\nBODY"), LOST),
    (18, "chunk size of letters", sends(CHUNKED + b"\r\nzz\r\nBODY\r\n0\r\n\r\n"), NO_HTTP),
    (18, "negative chunk size", sends(CHUNKED + b"\r\n-HEX\r\nBODY\r\n0\r\n\r\n"), NO_HTTP),
    (19, "garbage status line", sends(b"garbage garbage\r\n\r\nBODY"), NO_HTTP),
    (20, "Content-Length of letters", sends(HEAD + b"Content-Length: many\r\n\r\nBODY"), NO_HTTP),
    (20, "negative Content-Length", sends(HEAD + b"Content-Length: -1\r\n\r\nBODY"), NO_HTTP),
    (
        20,
        "two Content-Lengths",
        sends(HEAD + b"Content-Length: LENGTH\r\nContent-Length: 9LENGTH\r\n\r\nBODY"),
        NO_HTTP,
    ),
    (
        20,
        "two equal Content-Lengths",
        sends(HEAD + b"Content-Length: LENGTH\r\nContent-Length: LENGTH\r\n\r\nBODY"),
        NO_HTTP,
    ),
    (
        20,
        "one Content-Length that states its number twice",
        sends(HEAD + b"Content-Length: LENGTH, LENGTH\r\n\r\nBODY"),
        NO_HTTP,
    ),
    (
        21,
        "Content-Length and Transfer-Encoding",
        sends(CHUNKED + b"Content-Length: LENGTH\r\n\r\nHEX\r\nBODY\r\n0\r\n\r\n"),
        NO_HTTP,
    ),
    (
        22,
        "a 20 kB header",
        sends(HEAD + b"X-Long: " + b"a" * 20_000 + b"\r\nContent-Length: LENGTH\r\n\r\nBODY"),
        NO_HTTP,
    ),
    (
        23,
        "500 headers",
        sends(
            HEAD + b"".join(b"X-%d: 1\r\n" % n for n in range(500)) + b"Content-Length: LENGTH\r\n\r\nBODY"
        ),
        NO_HTTP,
    ),
    (24, "headers that drip", drips, LATE),
    (25, "a body that stalls", sends(HEAD + b"Content-Length: 500\r\n\r\nBODY", "hang"), LATE),
    (26, "endless 100-continue", continues, LATE),
]
EACH = pytest.mark.parametrize(
    ("fault", "kind"),
    [pytest.param(fault, kind, id=name, marks=pytest.mark.case(case)) for case, name, fault, kind in TROUBLE],
)


def is_read(fault):
    """Return whether a fault reads the request; None if the client may close before it sends the request."""
    return {reset_at_once: False, shut_at_once: None}.get(fault, True)


def methods_read(fault, number):
    """Return the methods that a server has read of so many GETs, the first of which met the fault."""
    return ["GET"] * (number - (fault is reset_at_once))


@pytest.mark.case(104)
@pytest.mark.every_loop
@EACH
async def test_post_is_ambiguous_and_sent_once(fault, kind, quick):
    """The cause is the error that a GET would raise."""
    limit = {"request": 0.3} if kind is LATE else {}
    async with FaultServer(fault("POST"), GOOD) as server:
        error = await ambiguous_error(server, quick, read=is_read(fault), **limit)

    assert type(error.cause) is kind
    assert getattr(error.cause, "status", None) is None
    assert error.record_ids == ()


@pytest.mark.case(104)
@pytest.mark.every_loop
@EACH
async def test_get_is_retried(fault, kind, quick):
    """Each attempt takes a slot."""
    limit = q.Timeouts(request=0.5 if kind is LATE else 5.0)
    async with FaultServer(fault("GET"), GOOD) as server:
        async with server.session(**quick | {"timeouts": limit}) as session:
            videos = await session.list_videos()
            assert session.rate_limiter.used == server.connections == 2
    assert_nothing_left(session)

    assert [video.id for video in videos] == ["vid_1"]
    assert server.methods == methods_read(fault, 2)


@pytest.mark.case(104)
@pytest.mark.every_loop
@EACH
async def test_get_raises_its_error_after_the_last_attempt(fault, kind, quick):
    retry = q.RetryPolicy(attempts=2, base=0.001)
    limit = q.Timeouts(request=0.1 if kind is LATE else 5.0)
    async with FaultServer(fault("GET")) as server:
        async with server.session(**quick | {"timeouts": limit, "retry": retry}) as session:
            with pytest.raises(q.QameraError) as failed:
                await asyncio.wait_for(session.list_videos(), 30)
            assert session.rate_limiter.used == 2
    assert_nothing_left(session)

    assert type(failed.value) is kind
    assert server.connections == 2
    assert server.methods == ["GET"] * (0 if fault is reset_at_once else 2)


@pytest.mark.case(104)
@pytest.mark.every_loop
@EACH
async def test_poll_is_repeated(fault, kind, quick):
    limit = q.Timeouts(request=0.5 if kind is LATE else 5.0, job=20.0)
    async with FaultServer(fault("GET"), GOOD) as server:
        async with server.session(**quick | {"timeouts": limit, "polling": FREQUENT_POLLS}) as session:
            video = await session.job("vid_1")
            assert session.rate_limiter.used == server.connections == 2
    assert_nothing_left(session)

    assert video.status == "DONE"
    assert server.methods == methods_read(fault, 2)


ENDS = [
    pytest.param(
        shut_at_once, "ServerDisconnectedError", id="FIN before the request", marks=pytest.mark.case(10)
    ),
    pytest.param(reset_at_once, "ClientOSError", id="RST before the request", marks=pytest.mark.case(11)),
    pytest.param(
        sends(b"", "fin"), "ServerDisconnectedError", id="FIN after the request", marks=pytest.mark.case(12)
    ),
    pytest.param(sends(b"", "rst"), "ClientOSError", id="RST after the request", marks=pytest.mark.case(13)),
]


@pytest.mark.parametrize(("fault", "how"), ENDS)
async def test_cause_of_an_ambiguous_post_says_how_the_connection_ended(fault, how, quick):
    """A server that closes connections differs from a firewall that resets them."""
    async with FaultServer(fault("POST"), GOOD) as server:
        error = await ambiguous_error(server, quick, read=is_read(fault))

    assert f"was lost ({how})" in error.cause.message
    assert error.cause.sent


@pytest.mark.parametrize(("fault", "how"), ENDS)
async def test_error_of_a_get_says_how_the_connection_ended(fault, how, quick):
    """The connection was used before. The HTTP client must not repeat the GET."""
    once = quick | {"retry": q.RetryPolicy(attempts=1)}
    async with FaultServer(GOOD, fault("GET")) as server:
        async with server.session(**once) as session:
            await session.list_videos()
            with pytest.raises(q.TransportError) as lost:
                await session.list_videos()
    assert_nothing_left(session)

    assert f"was lost ({how})" in lost.value.message


@pytest.mark.case(20)
@pytest.mark.parametrize("method", CALLS)
async def test_parser_in_python_accepts_two_equal_lengths(method, quick, monkeypatch):
    """The HTTP client uses that parser where its parser in C is not available."""
    monkeypatch.setattr("aiohttp.client_proto.HttpResponseParser", HttpResponseParserPy)
    equal = sends(HEAD + b"Content-Length: LENGTH\r\nContent-Length: LENGTH\r\n\r\nBODY")
    async with FaultServer(equal(method), GOOD) as server:
        async with server.session(**quick) as session:
            answered = await CALLS[method](session)
    assert_nothing_left(session)

    ids = answered.record_ids if method == "POST" else tuple(video.id for video in answered)
    assert ids == ("vid_1",)
    assert server.methods == [method]
