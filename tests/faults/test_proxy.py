"""Requests through a proxy, and settings from the environment."""

import asyncio
import ssl
import traceback
from base64 import b64encode
from contextlib import asynccontextmanager

import pytest
import trustme
from faults import CALLS, GOOD, LIST, RECEIPT, FaultServer, assert_nothing_left, http

import qamera_async as q

pytestmark = [
    pytest.mark.usefixtures("no_lost_exceptions", "no_environment"),
    pytest.mark.every_loop,
    pytest.mark.case(81, 104),
]

API, CDN = "api.example", "cdn.example"
MP4 = b"\0\0\0\x18ftypisom" + b"\0" * 64
CLIP = q.Video("vid_1", "DONE", q.JobState.DONE, video_url=f"https://{CDN}/clip.mp4")


class ConnectProxy:
    """An HTTP proxy that opens a tunnel for each CONNECT, always to the same port of this machine.

    Args:
        port: The port that every tunnel leads to, whatever host the CONNECT names.
        refusal: The bytes that are sent instead of opening a tunnel; None opens it.

    Attributes:
        connects: The heads of all requests that the proxy received.
        tunneled: The bytes that clients sent into tunnels, as the proxy sees them.

    """

    def __init__(self, port, refusal=None):
        self._port = port
        self._refusal = refusal
        self._tasks = set()
        self.connects = []
        self.tunneled = b""

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        self.url = f"http://{self.address}"
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def _accept(self, reader, writer):
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader, writer):
        try:
            self.connects.append(await reader.readuntil(b"\r\n\r\n"))
            if self._refusal is not None:
                writer.write(self._refusal)
                await writer.drain()
                return
            target_reader, target_writer = await asyncio.open_connection("127.0.0.1", self._port)
            try:
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                await asyncio.gather(
                    self._copy(reader, target_writer, record=True),
                    self._copy(target_reader, writer, record=False),
                )
            finally:
                target_writer.transport.abort()
        except (OSError, asyncio.IncompleteReadError):
            pass  # one side closed the connection
        finally:
            writer.close()

    async def _copy(self, reader, writer, *, record):
        while piece := await reader.read(65_536):
            if record:
                self.tunneled += piece
            writer.write(piece)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


@pytest.fixture
def no_environment(monkeypatch):
    """Remove the proxy settings of the machine that runs the tests."""
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(scope="module")
def named_contexts():
    """Return TLS contexts of a server for both hosts and of a client that trusts it."""
    authority = trustme.CA()
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(API, CDN).configure_cert(serving)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    return serving, trusting


@pytest.fixture
def proxied(named_contexts, quick, monkeypatch):
    """Return a function that opens a server, a proxy in front of it and a session that uses the proxy."""
    serving, trusting = named_contexts

    @asynccontextmanager
    async def opened(way, credentials="", refusal=None, **more):
        async def answer(connection):
            await connection.speak_tls(serving)
            method = await connection.request()
            head, _ = server.requests[-1]
            if head.startswith(b"GET /clip.mp4"):
                await connection.send(http(MP4, content_type=b"video/mp4"))
            else:
                await connection.send(http(RECEIPT if method == "POST" else LIST))

        async with FaultServer(answer) as server, ConnectProxy(server.port, refusal) as proxy:
            url = f"http://{credentials}{proxy.address}"
            if way == "environment":
                monkeypatch.setenv("HTTPS_PROXY", url)
            options = {"proxy": url} if way == "setting" else {"trust_env": True}
            options |= more | quick | {"base_url": f"https://{API}", "ssl_context": trusting}
            async with server.session(**options) as session:
                yield server, proxy, session
        assert_nothing_left(session)

    return opened


WAYS = pytest.mark.parametrize("way", ["setting", "environment"])


@pytest.mark.case(101)
@WAYS
@pytest.mark.parametrize("method", CALLS)
async def test_key_is_sent_only_inside_the_tunnel(proxied, way, method):
    """P6: the CONNECT request is not encrypted, so the proxy can read its headers."""
    async with proxied(way) as (server, proxy, session):
        await CALLS[method](session)

    (connect,) = proxy.connects
    assert connect.startswith(f"CONNECT {API}:443 HTTP/1.1\r\n".encode())
    assert b"x-api-key" not in connect.lower()
    assert server.key.encode() not in connect + proxy.tunneled
    assert server.methods == [method]
    assert f"X-Api-Key: {server.key}\r\n".encode() in server.requests[0][0]


@WAYS
async def test_key_is_not_sent_with_a_download_through_a_proxy(proxied, way, tmp_path):
    """P6: neither the proxy nor the CDN behind the tunnel receives it."""
    async with proxied(way) as (server, proxy, session):
        await session.download(CLIP, tmp_path / "clip.mp4")

    (connect,) = proxy.connects
    (request,) = server.requests
    sent = b"".join([connect, proxy.tunneled, *request])
    assert (tmp_path / "clip.mp4").read_bytes() == MP4
    assert connect.startswith(f"CONNECT {CDN}:443 HTTP/1.1\r\n".encode())
    assert request[0].startswith(b"GET /clip.mp4 HTTP/1.1\r\n")
    assert b"x-api-key" not in sent.lower()
    assert server.key.encode() not in sent


@WAYS
async def test_password_in_a_proxy_url_is_sent_to_the_proxy_only(proxied, way):
    """The API's server doesn't receive the proxy's credentials."""
    async with proxied(way, credentials="me:secret@") as (server, proxy, session):
        await session.list_videos()

    basic = b"Proxy-Authorization: Basic " + b64encode(b"me:secret")
    assert basic in proxy.connects[0]
    assert b"authorization" not in server.requests[0][0].lower()


@WAYS
@pytest.mark.parametrize("method", CALLS)
async def test_traceback_with_locals_shows_neither_the_key_nor_the_proxy_password(proxied, way, method):
    """P6: a crash reporter may send the local variables of every frame to another company."""
    refusal = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"
    async with proxied(way, "me:secret@", refusal) as (server, _, session):
        with pytest.raises(q.ConnectionFailedError) as failed:
            await CALLS[method](session)
    lines = traceback.TracebackException.from_exception(failed.value, capture_locals=True).format()
    ours = "".join(line for line in lines if "qamera_async/" in line)

    assert "request = " in ours
    assert server.key not in ours
    assert "secret" not in ours


@WAYS
async def test_407_to_a_connect_proves_that_nothing_was_sent(proxied, way):
    """The tunnel was not opened: the POST raises at once, is not ambiguous and keeps no slot."""
    refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
    async with proxied(way, refusal=refusal) as (server, proxy, session):
        with pytest.raises(q.ApiError) as refused:
            await session.register_video(image_id="i")
        assert session.rate_limiter.used == 0

    assert refused.value.status == 407
    assert len(proxy.connects) == 1
    assert server.connections == 0


async def test_407_to_a_connect_leaves_the_ref_free(proxied, tmp_path):
    """The ledger forgets a submission that was not sent, so the same ref can be submitted again."""
    refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
    async with proxied("setting", refusal=refusal, ledger=tmp_path / "jobs.db") as (_, proxy, session):
        for _ in range(2):
            with pytest.raises(q.ApiError):
                await session.register_video(image_id="i", ref="sku-1")
        ambiguous = await session.ambiguous()

    assert len(proxy.connects) == 2
    assert ambiguous == []


@pytest.fixture
def netrc(tmp_path, monkeypatch):
    """Let the environment name a .netrc file with credentials for every host."""
    file = tmp_path / "netrc"
    file.write_text("default login me password secret\n", "utf-8")
    monkeypatch.setenv("NETRC", str(file))


@pytest.mark.case(95)
@pytest.mark.usefixtures("netrc")
@pytest.mark.parametrize("method", CALLS)
async def test_trust_env_sends_no_netrc_credentials_to_the_api(method, quick):
    """trust_env=True reads proxies from the environment and nothing else."""
    async with FaultServer(GOOD) as server:
        async with server.session(**quick, trust_env=True) as session:
            await CALLS[method](session)

    assert server.methods == [method]
    assert b"authorization" not in server.requests[0][0].lower()


@pytest.mark.case(95)
@pytest.mark.usefixtures("netrc")
async def test_trust_env_sends_no_netrc_credentials_through_a_proxy(proxied):
    """Neither the proxy nor the API behind the tunnel receives the credentials."""
    async with proxied("environment") as (server, proxy, session):
        await session.register_video(image_id="i")

    assert b"authorization" not in proxy.connects[0].lower()
    assert b"authorization" not in server.requests[0][0].lower()


async def test_no_proxy_exempts_the_api_from_the_proxy(quick, monkeypatch):
    """A host that NO_PROXY names is reached directly."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    async with FaultServer(GOOD) as server:
        async with server.session(**quick, trust_env=True) as session:
            await session.list_videos()

    assert server.methods == ["GET"]
