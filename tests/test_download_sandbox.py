"""The sandbox's CDN in trouble, seen by a plain HTTP client."""

import asyncio
import json
import time

import aiohttp
import pytest

from qamera_async.sandbox import Sandbox
from qamera_async.sandbox.files import Clip

SIZE = 300_000
LOST = (aiohttp.ClientError, TimeoutError)
CLIP = Clip(SIZE).read(0, SIZE)


@pytest.fixture
async def sandbox():
    async with Sandbox(quota=None, clip_bytes=SIZE) as sandbox:
        sandbox.add_records(1)
        yield sandbox


@pytest.fixture
async def get(sandbox):
    """Ask the CDN for a clip; gives status, headers and body."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=0.5)) as http:

        async def get(url=f"{sandbox.cdn_url}/videos/old_000001.mp4", method="GET", **headers):
            headers = {name.replace("_", "-"): text for name, text in headers.items()}
            async with http.request(method, url, headers=headers, allow_redirects=False) as response:
                return response.status, response.headers, await response.read()

        get.http = http
        yield get


async def test_a_clip_is_as_long_as_wanted(get):
    """And still an MP4: what was added is a box that players skip."""
    status, headers, body = await get()

    assert (status, len(body), body) == (200, SIZE, CLIP)
    assert headers["Content-Length"] == str(SIZE)
    assert body[4:8] == b"ftyp"
    assert (await get(method="HEAD"))[1]["Content-Length"] == str(SIZE)


@pytest.mark.parametrize("size", [0, 100, Clip(None).size + 15])
def test_a_clip_can_be_too_short(size):
    """What leaves no room for it, or for the box's head, is refused."""
    with pytest.raises(ValueError, match="clip_bytes"):
        Sandbox(clip_bytes=size)


def test_a_long_clip_is_made_when_it_is_asked_for():
    """Ten GiB of it cost nothing; any part is what it is in the whole."""
    clip = Clip(10 * 2**30)

    assert len(clip.read(2**33, 2**33 + 100_000)) == 100_000
    assert clip.read(2**33, 2**33 + 100)[50:] == clip.read(2**33 + 50, 2**33 + 100)


async def test_an_expired_url_is_replaced_in_the_list(sandbox, get):
    """403 once; from then on the list has another one."""
    sandbox.cdn_trouble("expired")
    api = f"{sandbox.url}/api/external/videos"
    before = json.loads((await get(api, X_Api_Key=sandbox.api_key))[2])["videos"][0]["videoUrl"]
    assert (await get(before))[0] == 403
    after = json.loads((await get(api, X_Api_Key=sandbox.api_key))[2])["videos"][0]["videoUrl"]

    assert after != before
    assert (await get(after))[2] == CLIP


@pytest.mark.parametrize(
    ("name", "details", "status", "header"),
    [
        ("html", {}, 200, ("Content-Type", "text/html; charset=utf-8")),
        ("html", {"content_type": "video/mp4"}, 200, ("Content-Type", "video/mp4")),
        ("error", {}, 500, ("Content-Length", "0")),
        ("error", {"status": 429, "retry_after": 7}, 429, ("Retry-After", "7")),
        ("redirect", {"location": "/x"}, 302, ("Location", "/x")),
        ("no_etag", {}, 200, ("ETag", None)),
        ("weak_etag", {}, 200, ("ETag", f"W/{Clip(SIZE).etag}")),
        ("other_etag", {}, 200, ("ETag", '"another-file"')),
        ("chunked", {}, 200, ("Transfer-Encoding", "chunked")),
        ("no_length", {}, 200, ("Content-Length", None)),
    ],
)
async def test_trouble_by_name(sandbox, get, name, details, status, header):
    """One request meets it; the next one doesn't."""
    sandbox.cdn_trouble(name, **details)
    met = await get()
    after = await get()

    assert met[0] == status
    assert met[1].get(header[0]) == header[1]
    assert (after[0], after[1]["ETag"], after[2]) == (200, Clip(SIZE).etag, CLIP)


@pytest.mark.parametrize("also", [None, "chunked"])
async def test_a_cut(sandbox, get, also):
    """The connection is lost after so many bytes of the body."""
    sandbox.cdn_trouble("cut", after=100_000)
    if also:
        sandbox.cdn_trouble(also)
    async with get.http.get(f"{sandbox.cdn_url}/videos/a.mp4") as response:
        body = b""
        with pytest.raises(LOST):
            async for piece in response.content.iter_any():
                body += piece

    assert body == CLIP[:100_000]


async def test_a_cut_without_length_looks_like_an_end(sandbox, get):
    """Nothing in the answer tells that it is cut."""
    sandbox.cdn_trouble("cut", after=100_000)
    sandbox.cdn_trouble("no_length")

    assert (await get())[2] == CLIP[:100_000]


async def test_a_stall(sandbox, get):
    """So many bytes come, and then nothing."""
    sandbox.cdn_trouble("stall", after=10)
    with pytest.raises(LOST):
        await get()


async def test_slow(sandbox, get):
    """So many bytes a second."""
    sandbox.cdn_trouble("slow", rate=2_000_000)
    start = time.monotonic()
    await get()

    assert 0.1 < time.monotonic() - start < 0.5


@pytest.mark.parametrize(
    ("name", "details", "status", "content_range"),
    [
        (None, {}, 206, f"bytes 100-{SIZE - 1}/{SIZE}"),
        ("ignore_range", {}, 200, None),
        ("other_etag", {}, 200, None),
        ("wrong_range", {}, 206, f"bytes 101-{SIZE - 1}/{SIZE}"),
        ("wrong_range", {"shift": 0, "total": 5}, 206, f"bytes 100-{SIZE - 1}/5"),
    ],
)
async def test_trouble_with_ranges(sandbox, get, name, details, status, content_range):
    """All of it instead of the part asked for, or another part."""
    if name:
        sandbox.cdn_trouble(name, **details)
    met = await get(Range="bytes=100-", If_Range=Clip(SIZE).etag)

    assert (met[0], met[1].get("Content-Range")) == (status, content_range)
    assert met[2] == (CLIP if status == 200 else CLIP[int(content_range[6:9]) :])


async def test_troubles_combine_and_what_comes_instead_comes_alone(sandbox, get):
    """A request meets the first of each name; an error leaves the others for the next request."""
    sandbox.cdn_trouble("no_etag")
    sandbox.cdn_trouble("chunked")
    sandbox.cdn_trouble("error", status=503)

    assert (await get())[0] == 503
    _, headers, body = await get()
    assert "ETag" not in headers
    assert headers["Transfer-Encoding"] == "chunked"
    assert body == CLIP


async def test_trouble_for_the_cdn_is_not_for_the_api(sandbox, get):
    """Though two of the names are the same; and what is no trouble is refused."""
    sandbox.cdn_trouble("error", status=503)
    sandbox.trouble("error", status=502, on="GET")

    assert (await get(f"{sandbox.url}/api/external/videos", X_Api_Key=sandbox.api_key))[0] == 502
    assert (await get())[0] == 503
    for name, details in (("hang", {}), ("cut", {}), ("no_etag", {"after": 1})):
        with pytest.raises(ValueError, match="trouble"):
            sandbox.cdn_trouble(name, **details)


async def test_a_client_that_leaves_ends_a_body_without_length(sandbox):
    """Nothing goes on for nobody."""
    sandbox.cdn_trouble("no_length")
    sandbox.cdn_trouble("slow", rate=100_000)
    host, _, port = sandbox.cdn_url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /videos/a.mp4 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert await reader.read(10)
    writer.close()
    async with asyncio.timeout(1):
        while sandbox._cdn._runner.server.connections:
            await asyncio.sleep(0.005)
