"""The sandbox against the API's documentation, seen by a plain HTTP client."""

import asyncio
import gc
import json
import math
import signal
import sys
import time
import warnings

import aiohttp
import pytest
from children import start

from qamera_async.sandbox import Sandbox

LIST = "/api/external/videos"
VIDEO = "/api/external/video-picker/register-videos"
REEL = "/api/external/reel/register-reel"
LOST = (aiohttp.ClientError, TimeoutError, OSError)


@pytest.fixture
async def sandbox():
    async with Sandbox(job_seconds=0.05, quota=None) as sandbox:
        yield sandbox


@pytest.fixture
async def http():
    timeout = aiohttp.ClientTimeout(total=0.3)
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as http:
        yield http


async def ask(http, sandbox, method, path, **options):
    options.setdefault("headers", {"X-Api-Key": sandbox.api_key})
    async with http.request(method, sandbox.url + path, allow_redirects=False, **options) as response:
        return response.status, await response.read(), response.headers


async def order(http, sandbox, **body):
    status, answer, _ = await ask(http, sandbox, "POST", VIDEO, json=body or {"imageId": "i"})
    return status, json.loads(answer)


async def listed(http, sandbox):
    _, answer, _ = await ask(http, sandbox, "GET", LIST)
    return json.loads(answer)["videos"]


async def test_a_receipt_has_the_documented_shape(http, sandbox):
    """All five fields, and a correlation id in the header."""
    status, body, headers = await ask(http, sandbox, "POST", REEL, json={"imagesIds": ["a", "b"]})

    assert status == 200
    assert json.loads(body) == {
        "createdRecordIds": ["reel_001"],
        "batchId": "batch_001",
        "orderId": "order_001",
        "reservationId": "res_001",
        "creditsReserved": 15,
    }
    assert headers["X-Correlation-Id"]
    assert sandbox.orders[0].order_id == "order_001"
    assert sandbox.credits == 985


async def test_a_record_goes_through_its_states(http, sandbox):
    """PENDING and PROCESSING without URLs, then DONE with them."""
    await order(http, sandbox)
    seen = {}
    while "DONE" not in seen:
        (item,) = await listed(http, sandbox)
        seen.setdefault(item["status"], item)
        await asyncio.sleep(0.005)

    assert list(seen) == ["PENDING", "PROCESSING", "DONE"]
    assert [item["videoUrl"] is None for item in seen.values()] == [True, True, False]
    assert seen["DONE"]["createdAt"].endswith("Z")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        *((VIDEO, body) for body in (b"{", b"[]", b"\xff", b"{}", b'{"imageId": 1}', b'{"imageId": ""}')),
        (VIDEO, b'{"imageId": "a", "generatedImageId": "b"}'),
        (VIDEO, b'{"imageId": "a", "suggestion": 1}'),
        *((REEL, body) for body in (b"{", b"{}", b'{"imagesIds": []}', b'{"imagesIds": [1]}')),
        (REEL, json.dumps({"imagesIds": ["i"] * 11}).encode()),
    ],
)
async def test_an_invalid_body_is_a_400(http, sandbox, path, body):
    """In the API's shape, and nothing is ordered."""
    status, answer, _ = await ask(http, sandbox, "POST", path, data=body)

    assert status == 400
    assert isinstance(json.loads(answer)["error"], str)
    assert sandbox.orders == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"X-Api-Key": "wrong"}, 401),
        ({"Authorization": "Bearer mk_live_sandbox.secret"}, 200),
        ({"Authorization": "Bearer mk_live_sandbox.secret", "X-Api-Key": "wrong"}, 401),
        ({"Authorization": "Bearer wrong", "X-Api-Key": "mk_live_sandbox.secret"}, 200),
    ],
)
async def test_who_may_come_in(http, sandbox, headers, status):
    """Either header; X-Api-Key wins."""
    assert (await ask(http, sandbox, "GET", LIST, headers=headers))[0] == status


async def test_an_unknown_path_is_a_404_and_a_wrong_method_a_405(http, sandbox):
    """In the API's shape."""
    unknown, body, _ = await ask(http, sandbox, "GET", "/api/external/nothing")

    assert (unknown, json.loads(body)) == (404, {"error": "Not found."})
    assert (await ask(http, sandbox, "GET", VIDEO))[0] == 405


async def test_credits_are_reserved_and_refunded(http):
    """402 in the API's words; a failed job's credits are back, once."""
    async with Sandbox(math.inf, credits=12, quota=None) as sandbox:
        await order(http, sandbox)
        refused = await order(http, sandbox)
        sandbox.finish("vid_001", "FAILED")
        sandbox.finish("vid_001", "FAILED")

        assert refused == (402, {"error": "Insufficient credits. Required: 10, available: 2."})
        assert sandbox.credits == 12
        assert (await listed(http, sandbox))[0]["status"] == "FAILED"
        with pytest.raises(KeyError):
            sandbox.finish("vid_999")


async def test_the_quota_is_one_window_over_get_and_post(http):
    """The excess is rejected and doesn't count; the window slides."""
    async with Sandbox(quota=(2, 0.3), retry_after=7) as sandbox:
        await order(http, sandbox)
        await listed(http, sandbox)
        status, body, headers = await ask(http, sandbox, "GET", LIST)
        await asyncio.sleep(0.3)
        again, _, _ = await ask(http, sandbox, "GET", LIST)

    assert (status, again, headers["Retry-After"]) == (429, 200, "7")
    assert json.loads(body) == {"error": "Too many requests. Please retry after a short delay."}
    assert [r.counted_at is None for r in sandbox.requests] == [False, False, True, False]


async def test_a_request_is_counted_late_but_before_its_answer(http):
    """counted_at lies within count_delay after the arrival."""
    async with Sandbox(count_delay=0.05) as sandbox:
        await asyncio.gather(*(listed(http, sandbox) for _ in range(10)))
    delays = [r.counted_at - r.at for r in sandbox.requests]

    assert 0 <= min(delays) < max(delays) < 0.2


async def test_ten_thousand_records_are_listed_fast_and_the_same(http, sandbox):
    """An unchanged state gives the same bytes, and isn't encoded again."""
    sandbox.add_records(10_000)
    _, first, _ = await ask(http, sandbox, "GET", LIST, timeout=aiohttp.ClientTimeout(10))
    start = time.perf_counter()
    second = sandbox._world.listing()
    took = time.perf_counter() - start

    assert first is not second
    assert first == second
    assert json.loads(first)["count"] == 10_000
    assert took < 0.01


@pytest.mark.parametrize("name", ["reset_before", "reset_after", "close_after", "hang", "stall", "truncate"])
async def test_a_lost_answer(http, sandbox, name):
    """The client gets none; only reset_before takes no order, and the next request is well."""
    sandbox.trouble(name)
    with pytest.raises(LOST):
        await order(http, sandbox)

    assert len(sandbox.orders) == (name != "reset_before")
    assert sandbox.requests[0].status == (200 if name in {"stall", "truncate"} else None)
    assert (await order(http, sandbox))[0] == 200


@pytest.mark.parametrize(
    ("name", "details", "status", "content", "taken"),
    [
        ("error", {}, 500, b'{"error": "Internal server error."}', 0),
        ("error", {"status": 403}, 403, b'{"error": "Missing required scope: \'content.register\'."}', 0),
        ("error", {"status": 502, "html": True, "taken": True}, 502, b"<!DOCTYPE html>", 1),
        ("too_many", {"retry_after": 3}, 429, b'{"error": "Too many requests.', 0),
        ("garbage", {}, 200, b"<!DOCTYPE html>", 1),
        ("empty", {}, 200, b"", 1),
        ("redirect", {}, 307, b"", 1),
        ("slow", {"seconds": 0.01}, 200, b'{"createdRecordIds"', 1),
    ],
)
async def test_a_wrong_answer(http, sandbox, name, details, status, content, taken):
    """Its status and body, and whether the order was taken."""
    sandbox.trouble(name, **details)
    found, body, headers = await ask(http, sandbox, "POST", VIDEO, json={"imageId": "i"})

    assert found == status
    assert body.startswith(content)
    assert len(sandbox.orders) == taken
    assert headers.get("Location") == (f"{sandbox.cdn_url}/elsewhere" if name == "redirect" else None)
    assert headers.get("Retry-After") == ("3" if name == "too_many" else None)


async def test_trouble_meets_matching_requests_in_order(http, sandbox):
    """First in, first out; a POST's trouble waits for a POST."""
    sandbox.trouble("error", status=503, times=2)
    sandbox.trouble("error", status=504, on="ANY")
    statuses = [(await ask(http, sandbox, "GET", LIST))[0] for _ in range(2)]

    assert statuses == [504, 200]
    assert [(await order(http, sandbox))[0] for _ in range(3)] == [503, 503, 200]


async def test_trouble_of_jobs(http, sandbox):
    """Each order meets one of a name: times counts orders."""
    sandbox.trouble("fail_job", times=2)
    sandbox.trouble("multiple", count=3)
    receipts = [(await order(http, sandbox))[1]["createdRecordIds"] for _ in range(3)]
    await asyncio.sleep(0.06)
    statuses = [item["status"] for item in await listed(http, sandbox)]

    assert [len(ids) for ids in receipts] == [3, 1, 1]
    assert statuses == ["FAILED"] * 4 + ["DONE"]
    assert sandbox.credits == 990


async def test_records_that_come_late_vanish_or_lack_a_url(http, sandbox):
    """Seen from outside at three moments."""
    sandbox.trouble("late", seconds=0.2)
    await order(http, sandbox)
    sandbox.trouble("vanish", after=0.2)
    await order(http, sandbox)
    sandbox.trouble("no_url", seconds=0.15)
    await order(http, sandbox)
    await asyncio.sleep(0.1)
    early = {item["id"]: item for item in await listed(http, sandbox)}
    await asyncio.sleep(0.2)
    later = {item["id"]: item for item in await listed(http, sandbox)}

    assert list(early) == ["vid_002", "vid_003"]
    assert list(later) == ["vid_001", "vid_003"]
    assert (early["vid_003"]["status"], early["vid_003"]["videoUrl"]) == ("DONE", None)
    assert later["vid_003"]["videoUrl"]


async def test_a_list_of_finished_records_that_are_then_forgotten(http):
    """show="finished" hides the others; forget_finished shows each finished record once."""
    async with Sandbox(math.inf, quota=None, show="finished", forget_finished=True) as sandbox:
        await order(http, sandbox)
        hidden = await listed(http, sandbox)
        sandbox.finish("vid_001")
        counts = [len(await listed(http, sandbox)) for _ in range(2)]

    assert hidden == []
    assert counts == [1, 0]


async def test_refused_connections_come_back_on_the_same_port(http, sandbox):
    """Refused at once, and answered again after that."""
    sandbox.trouble("refuse_connections", seconds=0.1)
    with pytest.raises(aiohttp.ClientConnectorError):
        await listed(http, sandbox)
    with pytest.raises(RuntimeError):
        sandbox.trouble("refuse_connections", seconds=0.1)
    await asyncio.sleep(0.15)

    assert await listed(http, sandbox) == []


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("nothing", {}),
        ("slow", {}),
        ("hang", {"seconds": 1}),
        ("hang", {"on": "PUT"}),
        ("hang", {"times": 0}),
    ],
)
def test_wrong_trouble_is_refused_where_it_is_scripted(name, options):
    """Unknown names are told the known ones."""
    with pytest.raises(ValueError, match=r"reset_before, reset_after|needs|has no|on=|times="):
        Sandbox().trouble(name, **options)


@pytest.mark.parametrize("options", [{"show": "never"}, {"job_seconds": -1}, {"records_per_order": 0}])
def test_a_wrong_setting_is_refused_where_it_is_made(options):
    """A ValueError names it."""
    with pytest.raises(ValueError, match="must be"):
        Sandbox(**options)


@pytest.mark.parametrize(
    ("headers", "status", "part"),
    [
        ({}, 200, slice(None)),
        ({"Range": "bytes=0-9"}, 206, slice(10)),
        ({"Range": "bytes=100-"}, 206, slice(100, None)),
        ({"Range": "bytes=-7"}, 206, slice(-7, None)),
        ({"Range": "bytes=9999999-"}, 416, slice(0)),
        ({"Range": "bytes=5-", "If-Range": '"another"'}, 200, slice(None)),
    ],
)
async def test_the_cdn_serves_parts(http, sandbox, headers, status, part):
    """Range and If-Range as RFC 9110 has them, without a key."""
    async with http.get(f"{sandbox.cdn_url}/videos/vid_001.mp4") as response:
        whole, etag = await response.read(), response.headers["ETag"]
    async with http.get(f"{sandbox.cdn_url}/videos/vid_001.mp4", headers=headers) as response:
        body = await response.read()

    assert (response.status, body, response.headers["ETag"]) == (status, whole[part], etag)
    assert int(response.headers["Content-Length"]) == len(body)
    assert whole[4:8] == b"ftyp"


@pytest.mark.parametrize("name", ["hang", "stall"])
async def test_closing_never_hangs_and_leaves_nothing(name):
    """With a client that still waits: quickly, without a task or an open socket."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = asyncio.all_tasks()
        sandbox = Sandbox()
        async with sandbox:
            sandbox.trouble(name)
            port = int(sandbox.url.rpartition(":")[2])
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            head = f"POST {VIDEO} HTTP/1.1\r\nHost: a\r\nX-Api-Key: {sandbox.api_key}\r\n"
            head += "Content-Length: 15\r\n\r\n"
            writer.write(head.encode() + b'{"imageId":"a"}')
            while not sandbox.orders:
                await asyncio.sleep(0.005)
            sandbox.trouble("refuse_connections", seconds=math.inf)
            start = time.monotonic()
        took = time.monotonic() - start
        await sandbox.aclose()
        writer.close()
        await asyncio.sleep(0.01)
        gc.collect()

    assert took < 1
    assert asyncio.all_tasks() == before
    assert [str(w.message) for w in caught if w.category is ResourceWarning] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_command_says_how_to_use_it_and_ends_well(http, number):
    """Two lines and a hint, a server that answers, exit 0."""
    process = await start(
        *(sys.executable, "-m", "qamera_async.sandbox", "--port", "0", "--no-quota", "--records", "3"),
        stdout=asyncio.subprocess.PIPE,
    )
    lines = [(await process.stdout.readline()).decode().strip() for _ in range(3)]
    url, key = (line.partition(": ")[2] for line in lines[:2])
    async with http.get(url + LIST, headers={"X-Api-Key": key}) as response:
        count = (await response.json())["count"]
    process.send_signal(number)

    assert await process.wait() == 0
    assert count == 3
    assert lines[2] == f"export QAMERA_BASE_URL={url} QAMERA_API_KEY={key}"
