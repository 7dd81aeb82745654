"""P6: no error of the transport shows the key, the proxy password or a header of the session."""

import asyncio
import gzip
import logging
import pickle
import re

import pytest
from canary import FORMS, KEY, SECRET, local_variables
from faults import HEAD, FaultServer, answers, http
from transport_fakes import REQUESTS, FakeSlot

import qamera_async as q
from qamera_async._transport import Attempt, ConnectionSettings, DownloadClient, Secret, api_origin

pytestmark = [pytest.mark.every_loop, pytest.mark.usefixtures("no_lost_exceptions"), pytest.mark.case(81)]

PASSWORD, TOKEN = "pr0xy-passw0rd", "g4teway-t0ken"
HALF = len("mk_live_canary.") + len(SECRET) // 2
LIMIT = q.Timeouts(connect=2.0, request=0.3)
ECHO = KEY.encode()


def long_header(before):
    """Return a response with a header so long that aiohttp quotes only its beginning."""
    return HEAD + b"X-Echo: " + b"e" * before + ECHO + b"e" * 20_000 + b"\r\n\r\n"


RESPONSES = {
    "closed": (b"", "fin"),
    "reset": (b"", "rst"),
    "no response": (b"", "hang"),
    "status line": (b"%s\r\n\r\n" % ECHO, "fin"),
    "status line, cut": (b"HTTP/1.1 %s" % ECHO[:HALF], "fin"),
    "version": (b"HTTP/%s 200 OK\r\n\r\n" % ECHO, "fin"),
    "header": (HEAD + ECHO + b"\0\r\n\r\n", "fin"),
    "header without end": (HEAD + b"X-Echo: " + ECHO, "fin"),
    "content length": (HEAD + b"Content-Length: %s\r\n\r\n" % ECHO, "fin"),
    "two lengths": (HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\nX-Echo: %s\r\n\r\n" % ECHO, "fin"),
    "chunk size": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n%s\r\n" % ECHO, "fin"),
    "body cut": (http(ECHO, headers=b"X-Echo: %s\r\n" % ECHO)[:-3], "fin"),
    "body too long": (http(ECHO + b" " * 43 * 1024 * 1024, headers=b"X-Echo: %s\r\n" % ECHO), "hang"),
    "bad gzip": (http(ECHO, headers=b"Content-Encoding: gzip\r\nX-Echo: %s\r\n" % ECHO), "fin"),
    "bomb": (
        http(gzip.compress(ECHO + b" " * 43 * 1024 * 1024), headers=b"Content-Encoding: gzip\r\n"),
        "fin",
    ),
    **{f"long header {n}": (long_header(n), "fin") for n in (0, 40, 60, 75, 84, 100)},
}
HIDDEN = [*FORMS, SECRET[:8], SECRET[-8:], PASSWORD, TOKEN]


def assert_nothing_is_shown(error):
    """Search the text, attributes, pickle and all local variables of an error for each secret."""
    shown = dict(local_variables(error)) | {"text": f"{error} {error!r} {error.args!r} {vars(error)!r}"}
    if isinstance(error, q.QameraError):
        shown["pickle"] = pickle.dumps(error, 0).decode("latin-1")
    found = {
        place
        for place, text in shown.items()
        for hidden in HIDDEN
        if hidden.lower() in re.sub(r"\\+", r"\\", text).lower()
    }

    assert found == set()


async def error_of(awaitable):
    try:
        await asyncio.wait_for(awaitable, 20)
    except (Exception, asyncio.CancelledError) as error:
        return error
    return None


def options(**more):
    return {"api_key": Secret(KEY), "headers": {"X-Gateway": TOKEN}} | more


@pytest.mark.parametrize("method", REQUESTS)
@pytest.mark.parametrize("name", RESPONSES)
async def test_broken_response_shows_no_secret(api, slot, method, name, caplog):
    caplog.set_level(logging.DEBUG)
    answer, end = RESPONSES[name]
    async with FaultServer(answers(answer, end)) as server:
        error = await error_of(api(server, LIMIT, **options()).send(REQUESTS[method], slot))
        sent = server.requests[0][0]

    assert isinstance(error, q.TransportError | q.InvalidResponseError)
    assert_nothing_is_shown(error)
    assert not [hidden for hidden in HIDDEN if hidden in caplog.text]
    assert ECHO in sent
    assert TOKEN.encode() in sent


def test_search_finds_secrets_in_locals_of_chained_errors():
    """The other tests prove nothing unless the search can find a secret."""

    def fail():
        exec(compile("def f(key):\n raise ValueError\nf(key)", "elsewhere.py", "exec"), {"key": KEY})  # noqa: S102

    try:
        try:
            fail()
        except ValueError:
            raise q.QameraError("x") from None
    except q.QameraError as error:
        with pytest.raises(AssertionError):
            assert_nothing_is_shown(error)


PROXY_ANSWERS = {
    "407": b"HTTP/1.1 407 Proxy Authentication Required\r\nX-Echo: %s\r\nContent-Length: 0\r\n\r\n",
    "502": b"HTTP/1.1 502 Bad Gateway\r\nX-Echo: %s\r\nContent-Length: 0\r\n\r\n",
    "garbage": b"%s\r\n\r\n",
    "closed": b"",
}


def proxy_options(way, proxy, monkeypatch):
    """Return the settings of a client that uses a proxy."""
    if way == "environment":
        monkeypatch.setenv("HTTPS_PROXY", proxy)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        return {"trust_env": True}
    return {"proxy": Secret(proxy)}


@pytest.mark.parametrize("way", ["setting", "environment"])
@pytest.mark.parametrize("name", PROXY_ANSWERS)
@pytest.mark.parametrize("sender", [*REQUESTS, "download"])
async def test_refusing_proxy_shows_no_secret(api, way, name, sender, monkeypatch):
    async def refuse(connection):
        await connection.request()
        await connection.send(PROXY_ANSWERS[name].replace(b"%s", PASSWORD.encode()))
        connection.fin()

    async with FaultServer(refuse) as proxy:
        given = options(**proxy_options(way, f"http://me:{PASSWORD}@127.0.0.1:{proxy.port}", monkeypatch))
        url = "https://h.example"
        if sender == "download":
            error = await error_of(_download(f"{url}/clip.mp4", base_url=url, **given))
        else:
            error = await error_of(api(url, LIMIT, **given).send(REQUESTS[sender], FakeSlot()))
        connects = [head for head, _ in proxy.requests]

    assert isinstance(error, q.TransportError | q.ApiError | q.InvalidResponseError)
    assert_nothing_is_shown(error)
    assert connects
    assert all(connect.startswith(b"CONNECT") for connect in connects)
    assert ECHO not in b"".join(connects)
    assert TOKEN.encode() not in b"".join(connects)


@pytest.mark.parametrize("proxy", ["http://[", f"http://me:{PASSWORD}@h:99999", f"http://me:{PASSWORD}@["])
@pytest.mark.parametrize("sender", [*REQUESTS, "download"])
async def test_malformed_proxy_of_the_environment_raises_connection_failed_error(
    api, slot, proxy, sender, monkeypatch
):
    given = options(**proxy_options("environment", proxy, monkeypatch))
    url = "https://h.example"
    if sender == "download":
        error = await error_of(_download(f"{url}/clip.mp4", base_url=url, **given))
    else:
        error = await error_of(api(url, LIMIT, **given).send(REQUESTS[sender], slot))

    assert isinstance(error, q.ConnectionFailedError)
    assert error.permanent
    assert_nothing_is_shown(error)


async def _download(url, **given):
    client = DownloadClient(ConnectionSettings(**given), LIMIT)
    try:
        async with client.fetch(url, {}, None) as response:
            while await response.read():
                pass
    finally:
        await client.aclose()


@pytest.mark.parametrize("method", REQUESTS)
async def test_untrusted_certificate_shows_no_secret(api, slot, method, contexts):
    serving, _ = contexts

    async def speak(connection):
        await connection.speak_tls(serving)

    async with FaultServer(speak) as server:
        url = f"https://127.0.0.1:{server.port}"
        error = await error_of(api(url, LIMIT, **options()).send(REQUESTS[method], slot))

    assert isinstance(error, q.ConnectionFailedError)
    assert error.permanent
    assert_nothing_is_shown(error)


@pytest.mark.parametrize("method", REQUESTS)
@pytest.mark.parametrize("how", ["cancelled", "closed", "refused", "callback"])
async def test_interrupted_request_shows_no_secret(api, slot, method, how, unused_tcp_port):
    async def fail():
        raise OSError(5, "disk")

    async with FaultServer(answers(b"", "hang")) as server:
        url = f"http://127.0.0.1:{unused_tcp_port}" if how == "refused" else server.url
        client = api(url, LIMIT, **options())
        callback = fail if how == "callback" else None
        sending = asyncio.ensure_future(client.send(REQUESTS[method], slot, Attempt(callback)))
        while not (server.requests or sending.done()):
            await asyncio.sleep(0.001)
        if how == "cancelled":
            sending.cancel()
        elif how == "closed":
            await client.aclose()
        error = await error_of(sending)

    assert error is not None
    assert_nothing_is_shown(error)


INVALID = {
    "key": {"api_key": Secret(f"{KEY} ")},
    "callable key": {"api_key": Secret(lambda: KEY)},
    "base_url is the key": {"base_url": KEY},
    "base_url with the key": {"base_url": f"https://h.example/?key={KEY}"},
    "base_url with a password": {"base_url": f"https://me:{PASSWORD}@h.example"},
    "proxy": {"proxy": Secret(f"socks5://me:{PASSWORD}@h:1")},
    "malformed proxy": {"proxy": Secret(f"http://me:{PASSWORD}@[")},
    "header value": {"headers": {"X-Gateway": f"{TOKEN}\n"}},
    "header of the library": {"headers": {"Authorization": TOKEN}},
    "trust_env": {"trust_env": "no"},
    "ssl_context": {"ssl_context": "x"},
    "trace_configs": {"trace_configs": 3},
    "allow_http": {"allow_http": "no"},
}


@pytest.mark.parametrize("name", INVALID)
def test_invalid_setting_shows_no_secret(name):
    given = options(base_url="https://h.example", proxy=Secret(f"http://me:{PASSWORD}@h:1")) | INVALID[name]
    with pytest.raises(q.ConfigurationError) as refused:
        ConnectionSettings(**given)

    assert_nothing_is_shown(refused.value)


@pytest.mark.parametrize("name", ["base_url is the key", "base_url with the key", "base_url with a password"])
def test_invalid_origin_shows_no_secret(name):
    with pytest.raises(q.ConfigurationError) as refused:
        api_origin(**INVALID[name])

    assert_nothing_is_shown(refused.value)


@pytest.mark.parametrize(
    "address", ["mysql://user:pa55word@host/db", "postgresql://user:pa55word@host/\0"], ids=["scheme", "NUL"]
)
def test_refused_ledger_address_shows_no_password(address):
    with pytest.raises(q.ConfigurationError, match="ledger") as refused:
        q.QameraSession("mk_live_a.bcdefgh", ledger=address)

    assert "pa55word" not in str(refused.value)
    assert not [name for name, value in local_variables(refused.value) if "pa55word" in value]
