"""DownloadClient: requests without the key, refused addresses, minimum throughput, closing."""

import asyncio
import time

import pytest
from faults import HEAD, FaultServer, answers, http

import qamera_async as q
from qamera_async._transport import AddressRefusedError, ConnectionSettings, DownloadClient, Secret, parse_url

pytestmark = [pytest.mark.every_loop, pytest.mark.usefixtures("no_lost_exceptions")]
KEY = "mk_live_a.bcdefgh"
LIMIT = q.Timeouts(connect=5.0, request=0.3)


@pytest.fixture
async def downloads():
    """Return a function that makes download clients, and close the clients after the test."""
    clients = []

    def make(base_url="https://api.example", timeouts=LIMIT, **options):
        settings = ConnectionSettings(api_key=Secret(KEY), base_url=base_url, **options)
        clients.append(DownloadClient(settings, timeouts))
        return clients[-1]

    yield make
    for client in clients:
        await client.aclose()


async def body_of(response):
    parts = []
    while part := await response.read():
        parts.append(part)
    return b"".join(parts)


async def test_fetch_sends_neither_key_nor_cookie_nor_headers_of_the_session(downloads):
    answer = http(b"data", headers=b"Set-Cookie: a=b\r\n")
    async with FaultServer(answers(answer)) as server:
        client = downloads(headers={"X-Gateway": "t0ken"})
        for _ in range(2):
            async with client.fetch(server.url, {"Range": "bytes=3-"}, None) as response:
                body = await body_of(response)

    assert body == b"data"
    for head, _ in server.requests:
        assert b"Range: bytes=3-\r\n" in head
        assert b"Accept-Encoding: identity\r\n" in head
        for hidden in (KEY.encode(), b"cookie", b"x-api-key", b"t0ken"):
            assert hidden not in head.lower()


ENDS = {
    "length": http(b"data"),
    "chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nda\r\n2\r\nta\r\n0\r\n\r\n",
    "connection": HEAD + b"\r\ndata",
}


@pytest.mark.parametrize("ends", ENDS)
async def test_response_states_how_its_body_ends(downloads, ends):
    async with FaultServer(answers(ENDS[ends], "fin")) as server:
        async with downloads().fetch(server.url, {}, None) as response:
            body = await body_of(response)

    assert (response.status, response.ends, body) == (200, ends, b"data")
    assert response.headers["content-type"] == "application/json"


async def test_repeated_headers_are_joined(downloads):
    async with FaultServer(answers(http(b"", headers=b"X-A: 1\r\nx-a: 2\r\n"))) as server:
        async with downloads().fetch(server.url, {}, None) as response:
            assert response.headers["x-a"] == "1, 2"


async def test_redirect_is_returned(downloads):
    async with FaultServer(answers(http(b"", "302 Found", b"Location: /x\r\n"))) as server:
        async with downloads().fetch(server.url, {}, None) as response:
            assert response.status == 302

    assert len(server.requests) == 1


async def test_refused_address_is_not_connected_to(downloads):
    addresses = []

    def refuse(address):
        addresses.append(address)
        return False

    async with FaultServer(answers(http(b"data"))) as server:
        with pytest.raises(AddressRefusedError) as refused:
            async with downloads().fetch(f"http://localhost:{server.port}", {}, refuse):
                pass

        assert server.connections == 0
    assert refused.value.permanent
    assert "127.0.0.1" in addresses


async def test_allowed_address_is_connected_to(downloads):
    async with FaultServer(answers(http(b"data"))) as server:
        async with downloads().fetch(server.url, {}, lambda _: True) as response:
            assert await body_of(response) == b"data"


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"garbage\r\n\r\n", q.InvalidResponseError),
        (b"", q.TransportError),
        (http(b"data")[:-1], q.TransportError),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", q.InvalidResponseError),
    ],
)
async def test_broken_response_raises_an_error_of_this_package(downloads, answer, kind):
    async with FaultServer(answers(answer, "fin")) as server:
        with pytest.raises(kind) as failed:
            async with downloads().fetch(server.url, {}, None) as response:
                await body_of(response)

    assert type(failed.value) is kind


async def test_unreachable_host_raises_connection_failed_error(downloads, unused_tcp_port):
    with pytest.raises(q.ConnectionFailedError):
        async with downloads().fetch(f"http://127.0.0.1:{unused_tcp_port}", {}, None):
            pass


# --- throughput ---------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [b"", HEAD + b"Content-Length: 500\r\n\r\ndata"])
async def test_response_that_stalls_times_out(downloads, answer):
    async with FaultServer(answers(answer, "hang")) as server:
        with pytest.raises(q.RequestTimeoutError):
            async with downloads().fetch(server.url, {}, None) as response:
                await body_of(response)


def dripping(size, pause):
    async def drip(connection):
        await connection.request()
        await connection.send(HEAD + b"Content-Length: 1000000\r\n\r\n")
        for _ in range(1_000_000 // size):
            await connection.send(b"x" * size)
            await asyncio.sleep(pause)

    return drip


async def test_slow_body_times_out(downloads):
    """The minimum throughput is 64 KiB in Timeouts.request seconds."""
    async with FaultServer(dripping(1, 0.01)) as server:
        with pytest.raises(q.RequestTimeoutError):
            async with downloads().fetch(server.url, {}, None) as response:
                await asyncio.wait_for(body_of(response), 10)


async def test_whole_body_may_take_longer_than_the_timeout(downloads):
    async with FaultServer(dripping(100_000, 0.1)) as server:
        async with downloads(timeouts=q.Timeouts(request=0.5)).fetch(server.url, {}, None) as response:
            assert len(await body_of(response)) == 1_000_000


async def test_time_between_two_reads_does_not_count(downloads):
    async with FaultServer(dripping(1000, 0.0)) as server:
        async with downloads(timeouts=q.Timeouts(request=0.2)).fetch(server.url, {}, None) as response:
            received = len(await response.read())
            await asyncio.sleep(0.4)
            received += len(await body_of(response))

    assert received == 1_000_000


@pytest.mark.case(90)
async def test_bytes_that_arrived_while_the_loop_was_blocked_are_read(downloads):
    received_all = asyncio.Event()

    async def late(connection):
        await connection.request()
        await connection.send(HEAD + b"Content-Length: 8\r\n\r\ndata")
        await received_all.wait()
        await connection.send(b"more")
        asyncio.get_running_loop().call_soon(time.sleep, LIMIT.request * 1.5)
        await connection.hang()

    async with FaultServer(late) as server:
        async with downloads().fetch(server.url, {}, None) as response:
            first = await response.read()
            received_all.set()
            rest = await body_of(response)

    assert first + rest == b"datamore"


# --- closing ------------------------------------------------------------------------------------


async def test_closed_client_fetches_nothing(downloads):
    async with FaultServer(answers(http(b"data"))) as server:
        client = downloads()
        await client.aclose()
        await client.aclose()
        with pytest.raises(q.SessionClosedError):
            async with client.fetch(server.url, {}, None):
                pass
        with pytest.raises(q.SessionClosedError):
            await client.pause(60)

        assert server.connections == 0


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"", id="before the response"),
        pytest.param(HEAD + b"Content-Length: 500\r\n\r\ndata", id="in a body"),
        pytest.param(HEAD + b"\r\ndata", id="in a body that ends with its connection"),
    ],
)
async def test_closing_ends_a_fetch(downloads, answer):
    async with FaultServer(answers(answer, "hang")) as server:
        client = downloads(timeouts=q.Timeouts(request=60.0))

        async def fetch():
            async with client.fetch(server.url, {}, None) as response:
                return await body_of(response)

        fetching = asyncio.ensure_future(fetch())
        while not server.requests:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.02)
        await client.aclose()
        with pytest.raises(q.SessionClosedError):
            await asyncio.wait_for(fetching, 5)


async def test_read_after_closing_raises_instead_of_ending_the_body(downloads):
    async with FaultServer(answers(HEAD + b"\r\ndata", "hang")) as server:
        client = downloads()
        async with client.fetch(server.url, {}, None) as response:
            first = await response.read()
            await client.aclose()
            for _ in range(3):
                with pytest.raises(q.SessionClosedError):
                    await response.read()
                await asyncio.sleep(0.01)

    assert first == b"data"


async def test_closing_ends_a_pause(downloads):
    client = downloads()
    pausing = asyncio.ensure_future(client.pause(60))
    await asyncio.sleep(0.01)
    await client.aclose()
    with pytest.raises(q.SessionClosedError):
        await asyncio.wait_for(pausing, 5)


async def test_pause_sleeps(downloads):
    began = time.monotonic()
    await downloads().pause(0.02)

    assert time.monotonic() - began >= 0.02


# --- the host of the API ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base_url", "host", "address"),
    [("http://127.0.0.1:1", "127.0.0.1", "127.0.0.1"), ("http://localhost:1", "localhost", "127.0.0.1")],
)
async def test_api_addresses(downloads, base_url, host, address):
    found, addresses = await downloads(base_url).api_addresses()

    assert found == host
    assert address in addresses


@pytest.mark.parametrize("proxy", ["http://proxy.example:1", "http://["])
async def test_api_addresses_are_unknown_behind_a_proxy(downloads, monkeypatch, proxy):
    monkeypatch.setenv("HTTPS_PROXY", proxy)

    assert await downloads("https://api.example", trust_env=True).api_addresses() == ("api.example", [])


async def test_host_that_can_not_be_resolved_has_no_address(downloads):
    assert await downloads("https://a..b").api_addresses() == ("a..b", [])


@pytest.mark.parametrize("url", ["https://h/a%7Eb?s=%2F", "https://h/a~b", "https://h/?a=b+c"])
def test_encoded_url_stays_as_it_is(url):
    assert str(parse_url(url)) == url


def test_url_with_other_characters_is_encoded():
    assert str(parse_url("https://h/\u00e4 b")) == "https://h/%C3%A4%20b"
