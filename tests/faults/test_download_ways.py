"""The addresses, request headers and file names of downloads."""

import asyncio
import os
import re
import socket

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from place import CLIP

import qamera_async as q
from qamera_async import DownloadError
from qamera_async.sandbox.files import Clip

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")

CANARY = "mk_live_a.canary-of-the-key"
MP4 = Clip(None).read(0, Clip(None).size)


# --- file names ---------------------------------------------------------------------------------

ODD_NAMES = [
    *("../../evil", "..", ".", "/etc/evil", "C:\\evil", "\\\\host\\evil", "a/../../../evil", "a\0b", "a\nb"),
    *("CON", "nul.mp4", "com1", "x" * 300, "é" * 300, "\u202egpm.exe", " a", ".hidden", "~/evil"),
    # These names equal another name after the characters that a file name can't have are removed.
    *("a", "a_b", "a/b", "a\\b", "x" * 299 + "y", "é" * 299 + "e", "etc/evil", "hidden", "_CON", "con", "a."),
    *("...", "/", "a.mp4", "a.exe", "a_b-c14cddc0", "\u202e", "\U0001f600" * 100),
]
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def odd_refs():
    """Return the distinct names that are valid refs: 1 to 512 bytes of visible text."""
    visible = ["".join(filter(str.isprintable, name)).strip() for name in ODD_NAMES]
    return list(dict.fromkeys(ref for ref in visible if 1 <= len(ref.encode()) <= 512))


def is_usable(name, folder):
    """Return whether a file and its partial file can have this name on all common systems."""
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
    """An API whose record ids equal the image ids, and a CDN that redirects. Both set cookies."""

    def __init__(self):
        self.requests = []
        self.ids = []
        app = web.Application(client_max_size=2**20)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self.server = TestServer(app, host="localhost")

    def session(self, **options):
        return q.QameraSession(CANARY, base_url=str(self.server.make_url("")), **options)

    async def _answer(self, request):
        self.requests.append(request)
        endpoint = request.path.rpartition("/")[2]
        response = await getattr(self, f"_{endpoint.replace('-', '_')}")(request)
        response.set_cookie("canary", CANARY, path="/")
        return response

    async def _register_videos(self, request):
        self.ids.append((await request.json())["imageId"])
        return web.json_response({"createdRecordIds": [self.ids[-1]]})

    async def _videos(self, _):
        url = str(self.server.make_url("/redirects"))
        videos = [{"id": name, "status": "DONE", "videoUrl": url} for name in self.ids]
        return web.json_response({"videos": videos, "count": len(videos)})

    async def _redirects(self, _):
        return web.Response(status=302, headers={"Location": "/clip"})

    async def _clip(self, _):
        return web.Response(body=MP4, content_type="video/mp4")


@pytest.mark.case(68)
@pytest.mark.parametrize("named_by", ["the caller", "the server"])
async def test_clip_with_any_name_is_written_into_its_folder(tmp_path, quick, named_by):
    """Refs and record ids with paths, reserved words or 300 characters give distinct, usable file names."""
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


# --- private addresses --------------------------------------------------------------------------

PUBLIC_API = "https://8.8.8.8"  # an API outside of private networks; nothing is sent to it
PRIVATE_URLS = [
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


# The messages for a URL that is refused by its text, and for a host name with a private address.
REFUSED_BY_URL = r"It is not fetched: its URL (is not http:// or https://|leads to a private address)"
REFUSED_BY_ADDRESS = "It is not fetched: its host is at a private address"


def refusal_of(url):
    """Return the message with which the download guard refuses a URL."""
    return REFUSED_BY_ADDRESS if "inside.example" in url else REFUSED_BY_URL


@pytest.fixture
async def private_server(monkeypatch):
    """Return the port of a server on a private address, and the list of all addresses connected to."""
    connected, getaddrinfo, connect = [], socket.getaddrinfo, socket.socket.connect

    def resolved(name, *rest, **more):
        known = {"inside.example": "127.0.0.1", "cdn.example": "127.0.0.2"}
        return getaddrinfo(known.get(name, name), *rest, **more)

    def connecting(self, address):
        connected.append(address[0])
        return connect(self, address)

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    monkeypatch.setattr(socket.socket, "connect", connecting)
    async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1], connected


def finished_video(url):
    return q.Video("vid_1", "DONE", q.JobState.DONE, video_url=url)


@pytest.mark.case(79)
@pytest.mark.parametrize("url", PRIVATE_URLS)
async def test_url_of_a_private_address_is_refused(tmp_path, quick, private_server, url):
    """No connection is opened for a local file, a private address, or a name that resolves to one."""
    port, connected = private_server
    async with q.QameraSession(CANARY, base_url=PUBLIC_API, **quick) as session:
        with pytest.raises(DownloadError, match=refusal_of(url)) as refused:
            await session.download(finished_video(url.format(port=port)), tmp_path / "clip.mp4")

    assert CANARY not in str(refused.value)
    assert connected == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.case(79)
@pytest.mark.parametrize("url", PRIVATE_URLS)
async def test_redirect_to_a_private_address_is_refused(tmp_path, quick, private_server, url, monkeypatch):
    """The first URL is public and requested; the target of its redirect is not."""
    port, connected = private_server
    hops = []

    async def redirect(reader, writer):
        hops.append(await reader.readuntil(b"\r\n\r\n"))
        location = url.format(port=port)
        writer.write(f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode())
        writer.close()

    monkeypatch.setattr("qamera_async.download.route.is_public", lambda address: address == "127.0.0.2")
    async with (
        await asyncio.start_server(redirect, "127.0.0.2", 0) as server,
        q.QameraSession(CANARY, base_url=PUBLIC_API, **quick) as session,
    ):
        first = f"http://cdn.example:{server.sockets[0].getsockname()[1]}/"
        with pytest.raises(DownloadError, match=refusal_of(url)):
            await session.download(finished_video(first), tmp_path / "clip.mp4")

    assert len(hops) == 1
    assert connected == ["127.0.0.2"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.case(79)
async def test_allow_private_permits_private_addresses(tmp_path, quick, private_server):
    """The error is that of a failed connection."""
    port, connected = private_server
    once = quick | {"retry": q.RetryPolicy(attempts=1)}
    async with q.QameraSession(CANARY, base_url=PUBLIC_API, **once) as session:
        with pytest.raises(DownloadError) as failed:
            await session.download(
                finished_video(f"http://inside.example:{port}/a"), tmp_path / "clip.mp4", allow_private=True
            )

    assert "not fetched" not in str(failed.value)
    assert set(connected) == {"127.0.0.1"}


# --- requests to the CDN ------------------------------------------------------------------------


@pytest.mark.case(80)
async def test_no_cookie_is_sent_to_the_cdn(tmp_path, quick):
    """API and CDN share a host here. The CDN gets no cookie of either, and no key after a redirect."""
    api = OddApi()
    async with api.server, api.session(**quick) as session:
        job = await session.register_video(image_id="vid_1")
        for name in ("first", "second"):
            await session.download(job, tmp_path / name)
            await session.list_videos()
    to_the_cdn = [request for request in api.requests if request.path in {"/redirects", "/clip"}]

    assert [request.path for request in to_the_cdn] == ["/redirects", "/clip"] * 2
    for request in to_the_cdn:
        assert {name.lower() for name in request.headers} == {
            "host",
            "user-agent",
            "accept",
            "accept-encoding",
        }
        assert CANARY not in str(request.headers) + str(request.url)
    assert not any("Cookie" in request.headers for request in api.requests)


@pytest.mark.case(80)
async def test_cdn_request_has_only_four_headers(place):
    """The request has no key and no cookie, and asks for the bytes without compression."""
    await place.fetch()
    async with place.downloader.stream(place.video) as pieces:
        assert b"".join([piece async for piece in pieces]) == CLIP

    for request in (r for r in place.sandbox.requests if r.origin == "cdn"):
        names = {name.lower() for name in request.headers}
        assert names == {"host", "user-agent", "accept", "accept-encoding"}
        assert request.headers["Accept-Encoding"] == "identity"
        assert place.sandbox.api_key not in str(request.headers)
