"""Where a download may lead, what its host is told, and what its file is called."""

import asyncio
import os
import re
import socket

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from place import CLIP, opened

import qamera_async as q
from qamera_async import DownloadError
from qamera_async.sandbox.files import Clip

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")

CANARY = "mk_live_a.canary-of-the-key"
MP4 = Clip(None).read(0, Clip(None).size)


@pytest.fixture
async def place(tmp_path, quick):
    async with opened(tmp_path, quick) as place:
        yield place


# --- names --------------------------------------------------------------------------------------

ODD_NAMES = [
    *("../../evil", "..", ".", "/etc/evil", "C:\\evil", "\\\\host\\evil", "a/../../../evil", "a\0b", "a\nb"),
    *("CON", "nul.mp4", "com1", "x" * 300, "é" * 300, "\u202egpm.exe", " a", ".hidden", "~/evil"),
    # Those that would meet one of the others once what can't be in a name is gone.
    *("a", "a_b", "a/b", "a\\b", "x" * 299 + "y", "é" * 299 + "e", "etc/evil", "hidden", "_CON", "con", "a."),
    *("...", "/", "a.mp4", "a.exe", "a_b-c14cddc0", "\u202e", "\U0001f600" * 100),
]
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def odd_refs():
    """Return the names that can be a ref: 1 to 512 bytes of visible text, each once."""
    visible = ["".join(filter(str.isprintable, name)).strip() for name in ODD_NAMES]
    return list(dict.fromkeys(ref for ref in visible if 1 <= len(ref.encode()) <= 512))


def is_usable(name, folder):
    """Whether a file can have it, here and on other systems; also those that it has while it comes."""
    stem = name.removesuffix(".mp4")
    return (
        name.endswith(".mp4")
        and stem == stem.strip(" .")
        and any(map(str.isalnum, stem))
        and name.isprintable()
        and not set(name) & set('/\\<>:"|?*')
        and not RESERVED.fullmatch(name)
        and len(f"{name}.part.json".encode()) <= os.pathconf(folder, "PC_NAME_MAX")
    )


class OddApi:
    """An API whose records are called as the images were, and a CDN that sets cookies and leads on."""

    def __init__(self):
        self.asked = []
        self.ids = []
        app = web.Application(client_max_size=2**20)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self.server = TestServer(app, host="localhost")

    def session(self, **options):
        return q.QameraSession(CANARY, base_url=str(self.server.make_url("")), **options)

    async def _answer(self, request):
        self.asked.append(request)
        what = request.path.rpartition("/")[2]
        response = await getattr(self, f"_{what.replace('-', '_')}")(request)
        response.set_cookie("canary", CANARY, path="/")
        return response

    async def _register_videos(self, request):
        self.ids.append((await request.json())["imageId"])
        return web.json_response({"createdRecordIds": [self.ids[-1]]})

    async def _videos(self, _):
        url = str(self.server.make_url("/leads-on"))
        videos = [{"id": name, "status": "DONE", "videoUrl": url} for name in self.ids]
        return web.json_response({"videos": videos, "count": len(videos)})

    async def _leads_on(self, _):
        return web.Response(status=302, headers={"Location": "/clip"})

    async def _clip(self, _):
        return web.Response(body=MP4, content_type="video/mp4")


@pytest.mark.case(68)
@pytest.mark.parametrize("named_by", ["the caller", "the server"])
async def test_whatever_a_clip_is_called_it_stays_inside_the_folder(tmp_path, quick, named_by):
    """Refs and the server's ids with paths, reserved words, 300 characters: a usable name each, inside."""
    folder = tmp_path / "a" / "b" / "clips"
    api = OddApi()
    async with api.server, api.session(**quick, rate_limiter=q.RateLimiter(1_000, 0.1)) as session:
        if named_by == "the caller":
            requests = [q.VideoRequest(f"img_{n}", ref=ref) for n, ref in enumerate(odd_refs())]
        else:
            requests = [q.VideoRequest(name) for name in ODD_NAMES]
        result = await session.batch(requests, download_to=folder)

    paths = [outcome.unwrap() and outcome.path for outcome in result.outcomes]
    assert len(set(paths)) == len(requests)
    assert [path.name for path in paths if not is_usable(path.name, folder)] == []
    assert {path.parent for path in paths} == {folder}
    assert {path.resolve().parent for path in paths} == {folder.resolve()}
    assert all(path.read_bytes() == MP4 for path in paths)
    assert {path for path in tmp_path.rglob("*") if not path.is_dir()} == set(paths)


# --- where it may lead --------------------------------------------------------------------------

ELSEWHERE = "https://8.8.8.8"  # an API that is not inside a private network; nothing is sent to it
INSIDE = [
    *("file:///etc/passwd", "file://localhost/etc/passwd", "ftp://127.0.0.1:{port}/a", "data:video/mp4,x"),
    *("http://127.0.0.1:{port}/a", "http://localhost:{port}/a", "http://[::1]:{port}/a", "http://0:{port}/a"),
    *(
        "http://[::ffff:127.0.0.1]:{port}/a",
        "http://[::ffff:7f00:1]:{port}/a",
        "http://[::127.0.0.1]:{port}/",
    ),
    *("http://[64:ff9b::7f00:1]:{port}/a", "http://[2002:7f00:1::]:{port}/a", "http://2130706433:{port}/a"),
    *("http://10.0.0.1/a", "http://192.168.1.1/a", "http://169.254.169.254/latest/", "http://[fd00::1]/a"),
    "http://inside.example:{port}/a",
]


# What the guard says of a URL, and of the address that its host's name led to.
SEEN = r"It is not fetched: its URL (is not http:// or https://|leads to a private address)"
LED_TO = "It is not fetched: its host is at a private address"


def words(url):
    """Give the guard's own words: those of a failed connection are others."""
    return LED_TO if "inside.example" in url else SEEN


@pytest.fixture
async def inside(monkeypatch):
    """Give the port of a server inside of the private network, and the addresses that were connected to."""
    dialled, real, connect = [], socket.getaddrinfo, socket.socket.connect

    def resolved(name, *rest, **more):
        known = {"inside.example": "127.0.0.1", "cdn.example": "127.0.0.2"}
        return real(known.get(name, name), *rest, **more)

    def connecting(self, address):
        dialled.append(address[0])
        return connect(self, address)

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    monkeypatch.setattr(socket.socket, "connect", connecting)
    async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1], dialled


def done(url):
    return q.Video("vid_1", "DONE", q.JobState.DONE, video_url=url)


@pytest.mark.case(79)
@pytest.mark.parametrize("url", INSIDE)
async def test_a_url_that_leads_inside_is_refused(tmp_path, quick, inside, url):
    """A local file, a private address in any notation, a name that leads to one: nobody is connected to."""
    port, dialled = inside
    async with q.QameraSession(CANARY, base_url=ELSEWHERE, **quick) as session:
        with pytest.raises(DownloadError, match=words(url)) as refused:
            await session.download(done(url.format(port=port)), tmp_path / "clip.mp4")

    assert CANARY not in str(refused.value)
    assert dialled == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.case(79)
@pytest.mark.parametrize("url", INSIDE)
async def test_a_redirect_that_leads_inside_is_refused(tmp_path, quick, inside, url, monkeypatch):
    """The first hop is public and is asked; what it leads to is not."""
    port, dialled = inside
    hops = []

    async def lead_inside(reader, writer):
        hops.append(await reader.readuntil(b"\r\n\r\n"))
        location = url.format(port=port)
        writer.write(f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode())
        writer.close()

    monkeypatch.setattr("qamera_async.download.route.is_public", lambda address: address == "127.0.0.2")
    async with (
        await asyncio.start_server(lead_inside, "127.0.0.2", 0) as server,
        q.QameraSession(CANARY, base_url=ELSEWHERE, **quick) as session,
    ):
        first = f"http://cdn.example:{server.sockets[0].getsockname()[1]}/"
        with pytest.raises(DownloadError, match=words(url)):
            await session.download(done(first), tmp_path / "clip.mp4")

    assert len(hops) == 1
    assert dialled == ["127.0.0.2"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.case(79)
async def test_what_is_allowed_is_connected_to(tmp_path, quick, inside):
    """With allow_private=True the same URL leads to a connection, whose failure is told in other words."""
    port, dialled = inside
    once = quick | {"retry": q.RetryPolicy(attempts=1)}
    async with q.QameraSession(CANARY, base_url=ELSEWHERE, **once) as session:
        with pytest.raises(DownloadError) as failed:
            await session.download(
                done(f"http://inside.example:{port}/a"), tmp_path / "clip.mp4", allow_private=True
            )

    assert "not fetched" not in str(failed.value)
    assert set(dialled) == {"127.0.0.1"}


# --- what a CDN is told -------------------------------------------------------------------------


@pytest.mark.case(80)
async def test_no_cookie_is_carried_to_the_cdn(tmp_path, quick):
    """Neither the API's nor the CDN's own, though both are on one host; nor is the key, after a redirect."""
    api = OddApi()
    async with api.server, api.session(**quick) as session:
        job = await session.register_video(image_id="vid_1")
        for name in ("first", "second"):
            await session.download(job, tmp_path / name)
            await session.list_videos()
    from_the_cdn = [request for request in api.asked if request.path in {"/leads-on", "/clip"}]

    assert [request.path for request in from_the_cdn] == ["/leads-on", "/clip"] * 2
    for request in from_the_cdn:
        assert {name.lower() for name in request.headers} == {
            "host",
            "user-agent",
            "accept",
            "accept-encoding",
        }
        assert CANARY not in str(request.headers) + str(request.url)
    assert not any("Cookie" in request.headers for request in api.asked)


@pytest.mark.case(80)
async def test_the_cdn_sees_no_key_and_no_cookie(place):
    """Nor does it get to set a cookie; it is told only who asks, and to send the bytes as they are."""
    await place.fetch()
    async with place.downloader.stream(place.video) as pieces:
        assert b"".join([piece async for piece in pieces]) == CLIP

    for request in (r for r in place.sandbox.requests if r.origin == "cdn"):
        names = {name.lower() for name in request.headers}
        assert names == {"host", "user-agent", "accept", "accept-encoding"}
        assert request.headers["Accept-Encoding"] == "identity"
        assert place.sandbox.api_key not in str(request.headers)
