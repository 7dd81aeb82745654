"""Where a download may lead, what its files are called, and what is taken for a whole file."""

import asyncio
import contextlib
import re
import socket
import ssl
import traceback
import unicodedata
from contextlib import asynccontextmanager

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from qamera_async import JobState, RetryPolicy, Timeouts, Video
from qamera_async._transport import ConnectionSettings, DownloadClient, Secret
from qamera_async.download import Downloader, safe_name
from qamera_async.download.guard import is_public, why_not
from qamera_async.download.media import HEAD as LOOKED_AT
from qamera_async.download.media import is_media
from qamera_async.download.whole import Proof
from qamera_async.errors import DownloadError, InvalidResponseError, RequestTimeoutError
from qamera_async.sandbox.files import Clip, Still

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")

ELSEWHERE = "https://8.8.8.8"  # an API that is not inside a private network; nothing is sent to it
CLIP, STILL = Clip(None), Still()
MP4, JPEG = CLIP.read(0, CLIP.size), STILL.read(0, STILL.size)
PNG = b"\x89PNG\r\n\x1a\n" + b"\x00" * 30 + b"\x00\x00\x00\x00IEND\xaeB`\x82"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%s\r\n"


@pytest.fixture
def no_lost_exceptions(request):
    """Give the watch over lost exceptions to what runs on a loop; tables need none."""
    if asyncio.iscoroutinefunction(request.function):
        return request.getfixturevalue("watched")
    return None


@pytest.fixture
async def watched():
    lost = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: lost.append(context))
    yield
    await asyncio.sleep(0)
    assert lost == []


@pytest.fixture
async def raw():
    """A server that sends what it is told, and keeps what it was asked."""
    asked = []

    async def answer(reader, writer):
        while (head := await reader.readuntil(b"\r\n\r\n")) is not None:
            asked.append(head.decode())
            reply = answer.replies.get(head.split()[1], answer.reply)
            writer.write(reply)
            if not answer.keeps:
                break
        await writer.drain()
        writer.close()

    async def handle(reader, writer):
        try:
            await answer(reader, writer)
        except (asyncio.IncompleteReadError, OSError):
            writer.close()

    answer.reply, answer.replies, answer.keeps = HEAD % (len(MP4), b"") + MP4, {}, False
    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    answer.port = server.sockets[0].getsockname()[1]
    answer.asked = asked
    async with server:
        yield answer


@asynccontextmanager
async def serving(send):
    """Serve what a function sends; gives the URL, and at its end waits until nobody sends any more."""
    sending = []

    async def handle(reader, writer):
        sending.append(writer)
        with contextlib.suppress(OSError):
            await reader.readuntil(b"\r\n\r\n")
            await send(reader, writer)
        writer.close()
        sending.remove(writer)

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        while sending:
            await asyncio.sleep(0.005)


@asynccontextmanager
async def downloading(quick, **options):
    """Give a function that downloads a URL."""
    retry, timeouts = options.pop("retry", quick["retry"]), options.pop("timeouts", quick["timeouts"])
    proxy = Secret(options.pop("proxy", None))
    settings = {"api_key": Secret("mk_live_a.bcdefgh"), "base_url": ELSEWHERE, "proxy": proxy} | options
    client = DownloadClient(ConnectionSettings(**settings), timeouts)

    async def nobody(_):
        return None

    downloader = Downloader(client, retry, timeouts, lambda event: None, nobody)

    async def get(url, path, **choices):
        return await downloader.file(Video("vid_1", "DONE", JobState.DONE, video_url=url), path, **choices)

    get.downloader = downloader
    try:
        yield get
    finally:
        await client.aclose()


# --- addresses ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "public"),
    [
        *((address, True) for address in ("8.8.8.8", "1.1.1.1", "2606:4700::1", "64:ff9b::808:808")),
        *(
            (address, False)
            for address in (
                *("127.0.0.1", "127.9.9.9", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254"),
                *("100.64.0.1", "0.0.0.0", "0.1.2.3", "255.255.255.255", "224.0.0.1", "240.0.0.1"),  # noqa: S104
                *(
                    "192.0.0.8",
                    "192.88.99.1",
                    "198.18.0.1",
                    "192.0.2.1",
                    "::1",
                    "::",
                    "fe80::1",
                    "fe80::1%eth0",
                ),
                *("fc00::1", "fd00::1", "ff02::1", "ff0e::1", "fec0::1", "2001:db8::1", "3fff::1", "5f00::1"),
                *("::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "2002:7f00:1::", "2002:808:808::"),
                *("64:ff9b::7f00:1", "64:ff9b::a00:1", "64:ff9b:1::808:808", "2001:0:1::1"),
                *("2130706433", "127.1", "0x7f.1", "0177.0.0.1", "localhost", ""),
            )
        ),
    ],
)
def test_which_addresses_are_public(address, public):
    """Whatever is not the internet's is refused, IPv4 in IPv6 among it, and odd notations."""
    assert is_public(address) is public


BAD_URLS = [
    *(
        "file:///etc/passwd",
        "ftp://8.8.8.8/a",
        "data:video/mp4,x",
        "//8.8.8.8/a",
        "/a.mp4",
        "",
        "https://",
        "x",
    ),
    *("http://8.8.8.8:0/", "http://8.8.8.8:99999/", "http://8.8.8.8:x/", "http://[::1", "http://[8.8.8.8]x/"),
    *("https://user@8.8.8.8/", "https://user:hush@8.8.8.8/", "https://:hush@8.8.8.8/", "http://a\\@8.8.8.8/"),
    *("http://8.8.8.8/\r\nX: y", "http://8.8.8.8\t/", "http://8.8.8.8/\0", "http://8.8.8.8/\x7f"),
]
PRIVATE_URLS = [
    *("http://127.0.0.1/", "http://[::1]/", "http://2130706433/", "http://127.1/", "http://0x7f.1/"),
    *(
        "http://0177.0.0.1/",
        "http://127.0.0.1./",
        "http://localhost/",
        "http://LOCALHOST./",
        "http://a.localhost/",
    ),
    *("http://[::ffff:7f00:1]/", "http://[fe80::1%25eth0]/", "http://169.254.169.254/latest/", "http://0/"),
    *("http://[64:ff9b::a00:1]/", "http://[2002:7f00:1::]/", "http://%31%32%37.0.0.1/"),
]


@pytest.mark.parametrize("url", BAD_URLS)
async def test_a_bad_url_is_refused(quick, tmp_path, url):
    """Another scheme, a password, no host, control characters: even where private ones are allowed."""
    async with downloading(quick) as get:
        for allow in (False, True):
            with pytest.raises(DownloadError, match=r"not fetched|There is no video") as caught:
                await get(url, tmp_path / "a", allow_private=allow)
            assert "hush" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", PRIVATE_URLS)
async def test_a_private_address_is_refused(quick, tmp_path, url):
    """In whatever notation."""
    async with downloading(quick) as get:
        with pytest.raises(DownloadError):
            await get(url, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("host", ["{}", "0x7f.1", "2130706433", "127.1", "innocent.example"])
async def test_nothing_is_sent_to_a_private_address(quick, tmp_path, raw, monkeypatch, host):
    """Nor to a name that leads there; with ``allow_private`` it is fetched."""
    real = socket.getaddrinfo

    def leads_home(name, *rest, **more):
        return real("127.0.0.1" if name == "innocent.example" else name, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", leads_home)
    url = f"http://{host.format('127.0.0.1')}:{raw.port}/a.mp4"
    async with downloading(quick) as get:
        with pytest.raises(DownloadError, match="private"):
            await get(url, tmp_path / "a")
        assert raw.asked == []

        await get(
            url.replace("2130706433", "127.0.0.1").replace("127.1", "127.0.0.1"),
            tmp_path / "a",
            allow_private=True,
        )

    assert (tmp_path / "a").read_bytes() == MP4


async def test_a_name_that_changes_its_mind_is_refused(quick, tmp_path, raw, monkeypatch):
    """What was looked up first counts for nothing: each connection's own address is checked."""
    real, answers = socket.getaddrinfo, ["8.8.8.8", "127.0.0.1"]

    def rebinding(name, *rest, **more):
        return real(answers.pop(0) if name == "innocent.example" else name, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    assert socket.getaddrinfo("innocent.example", 80)[0][4][0] == "8.8.8.8"
    async with downloading(quick) as get:
        with pytest.raises(DownloadError, match="private"):
            await get(f"http://innocent.example:{raw.port}/", tmp_path / "a")

    assert raw.asked == []


@pytest.mark.parametrize("base_url", ["http://127.0.0.1:1", "http://localhost:1", "http://home.example:1"])
async def test_where_the_api_is_private_so_may_its_cdn_be(quick, tmp_path, raw, monkeypatch, base_url):
    """By its address or by what its name leads to."""
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda name, *r, **m: real("10.0.0.1" if "home" in name else name, *r, **m)
    )
    async with downloading(quick, base_url=base_url, allow_http=True) as get:
        await get(f"http://127.0.0.1:{raw.port}/a.mp4", tmp_path / "a")

    assert (tmp_path / "a").read_bytes() == MP4


async def test_a_name_that_cant_be_resolved_now_decides_nothing(quick, tmp_path, raw, monkeypatch):
    """The private API's name is asked for again by the next download, and then no more."""
    real, asked = socket.getaddrinfo, []

    def later(name, *rest, **more):
        if name != "home.example":
            return real(name, *rest, **more)
        asked.append(name)
        if len(asked) == 1:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return real("10.0.0.1", *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", later)
    url = f"http://127.0.0.1:{raw.port}/a.mp4"
    async with downloading(quick, base_url="https://home.example") as get:
        with pytest.raises(DownloadError, match="private"):
            await get(url, tmp_path / "a")
        await get(url, tmp_path / "a")
        await get(url, tmp_path / "b")

    assert len(asked) == 2


# --- redirects ----------------------------------------------------------------


def redirect(location):
    return f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()


async def test_redirects_are_followed_by_hand(quick, tmp_path, raw):
    """Five at most; relative ones too."""
    for number in range(1, 6):
        raw.replies[f"/{number}".encode()] = redirect(f"{number - 1}?signed=%7E")
        raw.replies[f"/{number}?signed=%7E".encode()] = redirect(f"/{number - 1}?signed=%7E")
    async with downloading(quick) as get:
        await get(f"http://127.0.0.1:{raw.port}/5", tmp_path / "a", allow_private=True)
        assert (tmp_path / "a").read_bytes() == MP4
        assert len(raw.asked) == 6
        assert "GET /0?signed=%7E HTTP" in raw.asked[-1]

        raw.replies[b"/6"] = redirect("/5")
        with pytest.raises(DownloadError, match="too often") as caught:
            await get(f"http://127.0.0.1:{raw.port}/6", tmp_path / "b", allow_private=True)

    assert caught.value.status == 302


@pytest.mark.parametrize("location", [*BAD_URLS[:5], *BAD_URLS[8:16], "\xff:\xfe"])
async def test_each_hop_is_checked(quick, tmp_path, raw, location):
    """A redirect may lead where a URL may, and nowhere else."""
    raw.replies[b"/"] = redirect(location)
    raw.reply = b"HTTP/1.1 418 No\r\nContent-Length: 0\r\n\r\n"
    async with downloading(quick) as get:
        with pytest.raises(DownloadError):
            await get(f"http://127.0.0.1:{raw.port}/", tmp_path / "a", allow_private=True)

    assert list(tmp_path.iterdir()) == []


async def test_a_redirect_into_the_private_network_is_refused(quick, tmp_path, raw, monkeypatch):
    """The first hop is public, the second is not: nothing is sent to it."""
    raw.replies[b"/"] = redirect(f"http://127.0.0.1:{raw.port}/secret")
    monkeypatch.setattr("qamera_async.download.route.is_public", lambda address: address == "127.0.0.2")
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda name, *r, **m: real("127.0.0.2" if "cdn" in name else name, *r, **m)
    )
    server = await asyncio.start_server(
        lambda _, writer: (writer.write(raw.replies[b"/"]), writer.close()), "127.0.0.2", 0
    )
    async with server, downloading(quick) as get:
        with pytest.raises(DownloadError, match="private"):
            await get(f"http://cdn.example:{server.sockets[0].getsockname()[1]}/", tmp_path / "a")

    assert raw.asked == []


@pytest.mark.parametrize("char", [*map(chr, range(32)), "\x7f"])
def test_no_control_character_is_left_out_silently(char):
    """What remained would be another URL."""
    assert why_not(f"https://8.8.8.8/a{char}b", came_from=None, private=True) is not None


def test_never_from_https_to_http():
    """Not even where everything else is allowed."""
    assert why_not("http://8.8.8.8/", came_from="https://8.8.8.8/", private=True) is not None
    assert why_not("https://8.8.8.8/", came_from="http://8.8.8.8/", private=False) is None
    assert why_not("http://8.8.8.8/", came_from="http://8.8.8.8/", private=False) is None


async def test_an_untrusted_certificate_is_raised_at_once(quick, tmp_path):
    """And the session's own context is used for the CDN as well; from https nothing leads to http."""
    authority, seen = trustme.CA(), []
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(server_side)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)

    async def answer(reader, writer):
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(redirect("http://8.8.8.8/") if b"/away" in seen[-1] else HEAD % (len(MP4), b"") + MP4)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=server_side)
    url = f"https://localhost:{server.sockets[0].getsockname()[1]}"
    async with server:
        async with downloading(quick) as get:
            with pytest.raises(DownloadError, match="TLS"):
                await get(url, tmp_path / "a", allow_private=True)
        assert seen == []
        async with downloading(quick, ssl_context=trusting) as get:
            await get(url, tmp_path / "a", allow_private=True)
            with pytest.raises(DownloadError, match="https:// to http://"):
                await get(f"{url}/away", tmp_path / "b", allow_private=True)

    assert (tmp_path / "a").read_bytes() == MP4


# --- proxies ------------------------------------------------------------------


@pytest.mark.parametrize("way", ["setting", "environment"])
async def test_behind_a_proxy_names_are_its_business(quick, tmp_path, raw, monkeypatch, way):
    """It is asked, though it is at a private address itself; literal addresses are refused all the same."""
    proxy = f"http://127.0.0.1:{raw.port}"
    options = {"proxy": proxy}
    if way == "environment":
        monkeypatch.setenv("http_proxy", proxy)
        netrc = tmp_path / "netrc"
        netrc.write_text("machine cdn.example login me password hush", "utf-8")
        monkeypatch.setenv("NETRC", str(netrc))
        options = {"trust_env": True}
    async with downloading(quick, **options) as get:
        await get("http://cdn.example/a.mp4?signed=%7E", tmp_path / "a")
        with pytest.raises(DownloadError, match="private"):
            await get("http://0x7f.1/a.mp4", tmp_path / "b")

    assert len(raw.asked) == 1
    assert raw.asked[0].startswith("GET http://cdn.example/a.mp4?signed=%7E HTTP/1.1\r\n")
    assert "authorization" not in raw.asked[0].lower()


async def test_no_proxy_is_obeyed(quick, tmp_path, raw, monkeypatch):
    """What the environment exempts is fetched directly, and its address checked."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    async with downloading(quick, trust_env=True) as get:
        with pytest.raises(DownloadError, match="private"):
            await get(f"http://127.0.0.1:{raw.port}/", tmp_path / "a")
        await get(f"http://127.0.0.1:{raw.port}/", tmp_path / "a", allow_private=True)

    assert (tmp_path / "a").read_bytes() == MP4


# --- answers ------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        HEAD % (0, b""),
        HEAD % (5, b"") + b"  \r\n\t",
        HEAD % (len(MP4), b"Content-Encoding: gzip\r\n") + MP4,
        HEAD % (len(MP4), b"Content-Encoding: br\r\n") + MP4,
        HEAD % (len(MP4), b"Content-Encoding: gzip\r\nContent-Encoding: identity\r\n") + MP4,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n" + MP4,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(MP4), MP4),
        HEAD % (2000, b"Content-Type: video/mp4\r\n") + b"\0\0Access denied." + b" " * 1984,
        b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 0-9/10\r\nContent-Length: 10\r\n\r\n0123456789",
        HEAD % (7, b"") + b'{"a":1}',
        HEAD % (8, b"") + b"\xef\xbb\xbf[1,2]",
    ],
)
async def test_what_is_no_file_is_refused(quick, tmp_path, raw, answer):
    """Nothing, blanks, what is encoded, a part that was not asked for, JSON: at once."""
    raw.reply = answer
    async with downloading(quick) as get:
        with pytest.raises(DownloadError):
            await get(f"http://127.0.0.1:{raw.port}/", tmp_path / "a", allow_private=True)

    assert len(raw.asked) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "answer", [b"", b"garbage\r\n\r\n", HEAD % (9, b"Content-Length: 8\r\n"), HEAD % (9, b"")]
)
async def test_what_is_no_http_is_tried_again(quick, tmp_path, raw, answer):
    """And in the end a DownloadError."""
    raw.reply = answer
    async with downloading(quick) as get:
        with pytest.raises(DownloadError):
            await get(f"http://127.0.0.1:{raw.port}/", tmp_path / "a", allow_private=True)

    assert len(raw.asked) >= 3


@pytest.mark.parametrize("way", ["headers", "body", "chunks", "nothing"])
async def test_what_drips_is_a_stall(quick, tmp_path, way):
    """So many seconds for an answer, and then for each 64 KiB of it, however often a byte comes."""
    begun = {
        "headers": b"HTTP/1.1 200 OK\r\nX: ",
        "body": HEAD % (len(MP4) + 10**6, b"") + MP4,
        "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n5;" % (len(MP4), MP4),
        "nothing": b"",
    }
    asked = []

    async def drip(reader, writer):
        asked.append(way)
        writer.write(begun[way])
        while not reader.at_eof():
            writer.write(b"" if way == "nothing" else b"x")
            await writer.drain()
            await asyncio.sleep(0.02)

    async with serving(drip) as url, downloading(quick, timeouts=Timeouts(request=0.2)) as get:
        async with asyncio.timeout(5):
            with pytest.raises(DownloadError, match="within the time") as caught:
                await get(url, tmp_path / "a", allow_private=True)

    assert isinstance(caught.value.__cause__, RequestTimeoutError)
    assert len(asked) == 3
    assert list(tmp_path.iterdir()) == []


async def test_who_reads_slowly_blames_nobody(quick, raw):
    """The time between two reads is the reader's own."""
    async with downloading(quick, timeouts=Timeouts(request=0.1)) as get:
        video = Video("vid_1", "DONE", JobState.DONE, video_url=f"http://127.0.0.1:{raw.port}/")
        async with get.downloader.stream(video, allow_private=True) as pieces:
            await asyncio.sleep(0.3)
            got = b"".join([piece async for piece in pieces])

    assert got == MP4


async def test_a_fair_pace_is_no_stall(quick, tmp_path):
    """64 KiB in time begin a new measure: all of it may take far longer."""
    size = 640 * 1024
    body = MP4[:24] + bytes(size - 24)

    async def slowly(_, writer):
        writer.write(HEAD % (size, b""))
        for at in range(0, size, 64 * 1024):
            writer.write(body[at : at + 64 * 1024])
            await writer.drain()
            await asyncio.sleep(0.1)

    options = {"timeouts": Timeouts(request=0.5), "retry": RetryPolicy(attempts=1)}
    async with serving(slowly) as url, downloading(quick, **options) as get:
        await get(url, tmp_path / "a", allow_private=True)

    assert (tmp_path / "a").read_bytes() == body


@pytest.mark.parametrize("begin", [b"\xff ", b"HTTP/1.1 200 OK\r\n\0"])
async def test_what_a_host_echoes_is_not_shown(quick, tmp_path, raw, begin):
    """A URL may be signed: what can't be read is in no error, not even as a cause."""
    secret = "h" + "ush"
    raw.reply = begin + secret.encode() + b": x\r\n\r\n"
    async with downloading(quick) as get:
        with pytest.raises(DownloadError) as caught:
            await get(f"http://127.0.0.1:{raw.port}/?signed={secret}", tmp_path / "a", allow_private=True)

    assert isinstance(caught.value.__cause__, InvalidResponseError)
    shown = "".join(traceback.format_exception(caught.value)) + str(vars(caught.value.__cause__))
    assert secret not in shown


async def test_a_cookie_is_not_kept(quick, tmp_path, raw):
    """A second request to the same host on the same connection has none."""
    raw.keeps = True
    raw.reply = HEAD % (len(MP4), b"Set-Cookie: a=b\r\n") + MP4
    async with downloading(quick) as get:
        for name in ("a", "b"):
            await get(f"http://127.0.0.1:{raw.port}/", tmp_path / name, allow_private=True)

    assert len(raw.asked) == 2
    assert "cookie" not in raw.asked[1].lower()


# --- what is whole --------------------------------------------------------------


def proves(body, step=7):
    proof = Proof()
    for at in range(0, len(body), step):
        proof.feed(body[at : at + step])
    return proof.is_whole()


def box(name, size=8):
    return size.to_bytes(4, "big") + name + bytes(size - 8)


@pytest.mark.parametrize("body", [MP4, JPEG, PNG, Clip(len(MP4) + 99).read(0, len(MP4) + 99)])
@pytest.mark.parametrize("step", [1, 7, 16, 1 << 20])
def test_a_whole_file_proves_it(body, step):
    """In pieces of whatever size."""
    assert proves(body, step)


@pytest.mark.parametrize("body", [MP4, JPEG, PNG])
def test_no_beginning_of_a_file_proves_anything(body):
    """Wherever it is cut."""
    wrong = [stop for stop in range(len(body)) if proves(body[:stop], 64)]

    assert wrong == []


@pytest.mark.parametrize(
    ("body", "whole"),
    [
        (box(b"ftyp") + box(b"moov") + box(b"mdat", 99), True),
        (box(b"ftyp") + box(b"moov"), False),
        (box(b"ftyp") + box(b"mdat", 99), False),
        (box(b"ftyp") + box(b"moov") + box(b"moof") + box(b"mdat"), False),
        (box(b"ftyp") + box(b"moov") + box(b"moof") + box(b"mdat") + box(b"mfra"), True),
        (box(b"ftyp") + box(b"moov") + b"\0\0\0\0mdat" + bytes(9), False),
        (box(b"ftyp") + box(b"moov") + b"\0\0\0\7mdat" + bytes(9), False),
        (box(b"ftyp") + box(b"moov") + b"\0\0\0\1mdat" + (17).to_bytes(8, "big") + b"x", True),
        (box(b"ftyp") + box(b"moov") + b"\0\0\0\1mdat" + (15).to_bytes(8, "big"), False),
        (b"anything", False),
        (b"", False),
    ],
)
def test_what_an_mp4_needs_to_be_whole(body, whole):
    """Boxes that fill it, the index and the media; of fragments the last one's mark."""
    assert proves(body) is whole


MEDIA = [
    *(MP4, JPEG, PNG, b"GIF89a....", b"OggS\0\2", b"FLV\1\5", b"\x1a\x45\xdf\xa3\x9f", b"\0\0\1\xba\x44"),
    *(b"RIFF\x24\0\0\0AVI LIST", b"RIFF\x24\0\0\0WEBPVP8 ", b"BM\x36\0\0\0\0\0\0\0\x36\0\0\0\x28"),
    *(b"\0\0\0\x20" + name + b"...." for name in (b"styp", b"moov", b"mdat", b"free", b"wide", b"ftypavif")),
    *((b"G" + bytes(187)) * packets for packets in (2, 3)),
    b"{\0\0\0ftyp",
]
TEXTS = [
    *(
        b"<!doctype html>",
        b"\n <HTML>",
        b"<?xml ?>",
        b' {"a":1}',
        b"\xef\xbb\xbf[",
        b"\xff\xfe<\0h\0",
        b"  \r\n",
    ),
    *(b"Access denied", b"\0\0<html>sorry</html>", bytes(LOOKED_AT), b"a\0b\0c\0", "Доступ закрыт".encode()),
    *(
        "Доступ".encode()[:-1],
        b"Acc\xe8s refus\xe9: adressez-vous \xe0 nous",
        b"Get free money",
        b"RIFF raff, and on",
    ),
    *(b"BM is a car that was refused", b"Gateway timed out", b"GIF87 and so on"),
]


@pytest.mark.parametrize("head", MEDIA)
@pytest.mark.parametrize("kind", ["", "video/mp4", "image/jpeg", "application/octet-stream"])
def test_what_begins_like_media_is_media(kind, head):
    """Whatever is said of it."""
    assert is_media(kind, head)


@pytest.mark.parametrize("head", TEXTS)
@pytest.mark.parametrize("kind", ["", "video/mp4", "image/jpeg", "application/octet-stream"])
def test_a_text_is_no_media(kind, head):
    """Whatever is said of it: blanks, markup, NULs, other letters than ASCII, and words of media's own."""
    assert not is_media(kind, head)


@pytest.mark.parametrize(
    ("kind", "head", "media"),
    [
        *((kind, MP4, False) for kind in ("text/html", "TEXT/HTML; x=y", "text/plain", "application/json")),
        *((kind, MP4, False) for kind in ("application/ld+json", "image/svg+xml", "application/xml")),
        ("video/mp4, text/html", MP4, False),
        *((kind, bytes(range(128, 256)), True) for kind in ("video/new", "IMAGE/new; x=y")),
        *((kind, bytes(range(128, 256)), False) for kind in ("", "application/octet-stream", "video/")),
        *(
            ("video/mp4", start + bytes(range(128, 256)), False)
            for start in (b"\x1f\x8b\x08", b"PK\3\4", b"%PDF-")
        ),
    ],
)
def test_what_a_type_decides(kind, head, media):
    """A page's type refuses all; where the bytes say nothing a video's or an image's is believed."""
    assert is_media(kind, head) is media


# --- names ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["vid_1", "White T-Shirt (XL) #3", "größe", "白い", "a.b.c", "con1", "x" * 196]
)
def test_a_good_name_is_kept(text):
    """As it is."""
    assert safe_name(text, ".mp4") == f"{text}.mp4"


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            ".",
            "..",
            "../../etc/passwd",
            "/etc/passwd",
            "C:\\x",
            "\\\\host\\x",
            "a/b",
            "a\\b",
            "a\0b",
            "a:b",
        ),
        *(
            "a\nb",
            "a\x7f",
            "a\u202eb",
            "\ud800",
            "CON",
            "nul",
            "com1",
            "LPT9.txt",
            "aux.",
            " a",
            "a ",
            "a.",
            ".a",
        ),
        *("x" * 197, "x" * 300, "ä" * 150, "e\u0301", "a-0123abcd", "~", "a*b?", "\u2028"),
    ],
)
def test_a_bad_name_is_made_safe(text, tmp_path):
    """It is a name of a file in its folder, at most 200 bytes, and can be written."""
    name = safe_name(text, ".mp4")

    assert len(name.encode()) <= 200
    assert not set(name) & set('/\\\0<>:"|?*')
    assert not any(unicodedata.category(char).startswith("C") for char in name)
    assert re.fullmatch(r".+-[0-9a-f]{8}\.mp4", name) or name == f"{text}.mp4"
    assert name[0] not in " ."
    assert not re.fullmatch(r"(con|nul|aux|com1|lpt9)[-.].*", name, re.IGNORECASE) or "-" in name
    (tmp_path / name).write_bytes(b"")
    assert [path.name for path in tmp_path.iterdir()] == [name]


@given(st.lists(st.text(max_size=12), min_size=2, max_size=8, unique=True))
def test_two_texts_never_share_a_name(texts):
    """Whatever had to be changed in them; nor does a text that looks like a changed one."""
    names = [safe_name(text, ".mp4") for text in texts]
    again = [safe_name(name.removesuffix(".mp4"), ".mp4") for name in names]

    assert len(set(names)) == len(texts)
    assert all(other not in names or other == text + ".mp4" for other, text in zip(again, texts, strict=True))
