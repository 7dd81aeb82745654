"""ApiClient.send: the bytes on the wire, the returned response, and the settled slot."""

import asyncio
import gzip

import pytest
from faults import GOOD, HEAD, LIST, RECEIPT, FaultServer, answers, http
from transport_fakes import GET, LOST, POST, REQUESTS, RETRY

import qamera_async as q
from qamera_async._protocol import ApiRequest
from qamera_async._transport import Attempt

pytestmark = pytest.mark.every_loop
METHODS = pytest.mark.parametrize("method", REQUESTS)


def header_lines(server, number=0):
    """Return the headers of a request that a server received, by their names in lower case."""
    head = server.requests[number][0].decode().split("\r\n")[1:]
    return {name.lower(): value for name, _, value in (line.partition(": ") for line in head if line)}


async def test_get_returns_the_response(api, slot):
    headers = b'ETag: "e"\r\nX-Correlation-Id: c-1\r\nX-Other: 1\r\n'
    async with FaultServer(answers(http(LIST, headers=headers))) as server:
        response = await api(server).send(GET, slot)

    assert (response.status, response.body) == (200, LIST)
    assert response.headers["etag"] == '"e"'
    assert response.correlation_id == "c-1"
    assert "x-other" not in response.headers
    assert slot.settled == ["response"]


async def test_post_sends_key_headers_and_body(api, slot):
    async with FaultServer(GOOD) as server:
        response = await api(server, headers={"X-Gateway": "g"}).send(POST, slot)
        sent = header_lines(server)

    assert response.body == RECEIPT
    assert server.requests[0][1] == POST.body
    assert sent["x-api-key"] == server.key
    assert sent["idempotency-key"] == "intent-1"
    assert sent["content-type"] == sent["accept"] == "application/json"
    assert sent["x-gateway"] == "g"
    assert sent["user-agent"].startswith("qamera-async/")
    assert slot.settled == ["response"]


async def test_get_sends_the_headers_of_the_request_and_no_content_type(api, slot):
    async with FaultServer(GOOD) as server:
        await api(server).send(ApiRequest("GET", "/list", headers={"If-None-Match": '"e"'}), slot)
        sent = header_lines(server)

    assert sent["if-none-match"] == '"e"'
    assert sent["x-api-key"] == server.key
    assert "content-type" not in sent


async def test_gets_share_a_connection_and_each_post_has_its_own(api, slot):
    async with FaultServer(GOOD) as server:
        client = api(server)
        await client.send(GET, slot)
        await client.send(GET, slot)
        after_gets = server.connections
        await client.send(POST, slot)
        await client.send(POST, slot)

        assert after_gets == 1
        assert server.connections == 3


async def test_post_without_a_body_is_refused(api, slot):
    """Without a body, aiohttp would send the headers before `before_body` is awaited."""
    async with FaultServer(GOOD) as server:
        with pytest.raises(ValueError, match="body"):
            await api(server).send(ApiRequest("POST", "/register"), slot)

        assert server.connections == 0


@METHODS
@pytest.mark.parametrize("status", ["301 Moved", "307 Elsewhere", "308 Elsewhere", "500 Trouble", "404 None"])
async def test_any_status_is_returned_and_no_redirect_followed(api, slot, method, status):
    async with FaultServer(GOOD) as target:
        answer = http(b"{}", status, b"Location: %s/x\r\n" % target.url.encode())
        async with FaultServer(answers(answer)) as server:
            response = await api(server).send(REQUESTS[method], slot)

        assert response.status == int(status[:3])
        assert server.methods == [method]
        assert target.connections == 0
        assert slot.settled == ["response"]


@METHODS
@pytest.mark.parametrize("body", [b'{"error":"Too many"}', b"<html>"])
@pytest.mark.parametrize(("value", "seconds"), [(b"7", 7.0), (b"soon", None)])
async def test_any_429_starts_the_cooldown(api, slot, method, body, value, seconds):
    answer = http(body, "429 Too Many Requests", b"Retry-After: %s\r\n" % value)
    async with FaultServer(answers(answer)) as server:
        response = await api(server).send(REQUESTS[method], slot)

    assert response.status == 429
    assert slot.settled == [("429", seconds, RETRY)]
    assert server.methods == [method]


@METHODS
async def test_refused_connection_gives_the_slot_back(api, slot, method, unused_tcp_port):
    with pytest.raises(q.ConnectionFailedError) as failed:
        await api(f"http://127.0.0.1:{unused_tcp_port}").send(REQUESTS[method], slot)

    assert not failed.value.sent
    assert not failed.value.permanent
    assert slot.settled == ["given back"]


@METHODS
async def test_lost_connection_keeps_the_slot(api, slot, method):
    async with FaultServer(answers(b"", "fin")) as server:
        with pytest.raises(q.TransportError, match="ServerDisconnectedError") as lost:
            await api(server).send(REQUESTS[method], slot)

    assert lost.value.sent
    assert slot.settled == [LOST]


async def test_get_on_a_dropped_keep_alive_connection_is_not_sent_again(api, slot):
    """Aiohttp would otherwise send it again, outside of the rate limit."""
    async with FaultServer(GOOD, answers(b"", "fin"), GOOD) as server:
        client = api(server)
        await client.send(GET, slot)
        with pytest.raises(q.TransportError):
            await client.send(GET, slot)

        assert server.methods == ["GET", "GET"]
        assert slot.settled == ["response", LOST]


@METHODS
async def test_timeout_states_that_the_request_may_have_been_received(api, slot, method):
    limits = q.Timeouts(connect=5.0, request=0.1)
    async with FaultServer(answers(b"", "hang")) as server:
        with pytest.raises(q.RequestTimeoutError) as late:
            await api(server, limits).send(REQUESTS[method], slot)

    assert late.value.sent
    assert slot.settled == [LOST]


@METHODS
async def test_slow_headers_do_not_extend_the_timeout(api, slot, method):
    async def drip(connection):
        await connection.request()
        await connection.send(HEAD)
        while True:
            await connection.send(b"X-More: 1\r\n")
            await asyncio.sleep(0)

    async with FaultServer(drip) as server:
        with pytest.raises((q.RequestTimeoutError, q.InvalidResponseError)):
            await asyncio.wait_for(api(server, q.Timeouts(request=0.1)).send(REQUESTS[method], slot), 10)


async def test_attempt_has_the_state_of_a_post(api, slot):
    states = []

    def state():
        return attempt.in_flight, attempt.body_sent

    async def before_body():
        states.append(state())

    async def answer(connection):
        await connection.request()
        states.append(state())
        await connection.send(http(RECEIPT))

    attempt = Attempt(before_body)
    async with FaultServer(answer) as server:
        await api(server).send(POST, slot, attempt)

    assert states == [(True, False), (True, True)]
    assert state() == (False, True)


@METHODS
async def test_cancelled_request_keeps_the_slot_once_it_was_sent(api, slot, method):
    async with FaultServer(answers(b"", "hang")) as server:
        sending = asyncio.ensure_future(api(server).send(REQUESTS[method], slot))
        while not server.requests:
            await asyncio.sleep(0.001)
        sending.cancel("by the test")
        with pytest.raises(asyncio.CancelledError, match="by the test"):
            await sending

    assert slot.settled == [LOST]


async def test_closed_client_sends_nothing(api, slot):
    async with FaultServer(GOOD) as server:
        client = api(server)
        await client.aclose()
        await client.aclose()
        for request in REQUESTS.values():
            with pytest.raises(q.SessionClosedError):
                await client.send(request, slot)

        assert server.connections == 0
        assert slot.settled == ["given back"] * 2


@pytest.mark.parametrize(("method", "kind"), [("GET", q.SessionClosedError), ("POST", q.TransportError)])
async def test_closing_cuts_requests_and_states_whether_a_post_was_sent(api, slot, method, kind):
    async with FaultServer(answers(b"", "hang")) as server:
        client = api(server)
        sending = asyncio.ensure_future(client.send(REQUESTS[method], slot))
        while not server.requests:
            await asyncio.sleep(0.001)
        await client.aclose()
        with pytest.raises(kind):
            await sending

    assert slot.settled == [LOST]


MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("method", "status", "size", "fits"),
    [
        ("GET", "200 OK", 2 * MIB, True),
        ("GET", "200 OK", 43 * MIB, False),
        ("GET", "500 Trouble", 2 * MIB, False),
        ("POST", "200 OK", MIB, True),
        ("POST", "200 OK", MIB + 1, False),
    ],
)
async def test_body_is_limited(api, slot, method, status, size, fits):
    async with FaultServer(answers(http(b" " * size, status))) as server:
        sending = api(server).send(REQUESTS[method], slot)
        if fits:
            assert len((await sending).body) == size
        else:
            with pytest.raises(q.InvalidResponseError, match="longer than") as refused:
                await sending
            assert refused.value.status == int(status[:3])

    assert slot.settled == (["response"] if fits else [LOST])


@pytest.mark.parametrize("distinct", [True, False])
async def test_compressed_list_may_be_long_unless_it_is_a_bomb(api, slot, distinct):
    item = b'{"id":"vid_%06d","status":"PENDING","videoUrl":"https://cdn.example.com/videos/vid_%06d.mp4"},'
    records = [item % (n, n) for n in range(200_000)] if distinct else [b"1," * (20 * MIB)]
    body = b"".join(records)
    answer = http(gzip.compress(body), headers=b"Content-Encoding: gzip\r\n")
    async with FaultServer(answers(answer)) as server:
        if distinct:
            assert (await api(server).send(GET, slot)).body == body
        else:
            with pytest.raises(q.InvalidResponseError, match="longer than"):
                await api(server).send(GET, slot)
