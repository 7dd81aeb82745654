"""The web apps run as processes, as a user runs them; both hold to the same."""

import asyncio
import json
import os
import re
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from children import start
from command import environment

from qamera_async.sandbox import Sandbox

EXAMPLES = Path(__file__).parents[1] / "examples"
APPS = ["web_app.py", "web_app_fastapi.py"]

WITHOUT_WAITING = """
from qamera_async import PollPolicy, QameraSession, RateLimiter

QameraSession.__init__.__kwdefaults__["polling"] = PollPolicy(0.05, 0.2, 0.2)
QameraSession.__init__.__kwdefaults__["rate_limiter"] = RateLimiter(limit=10**6, window=0.001)
"""
"""Keeps an app of a test from waiting for polls and for the quota: Python runs it first."""

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]


class App:
    """A web app that runs, and a browser's part of talking to it."""

    def __init__(self, process, url, client):
        self.process = process
        self.url = url
        self.client = client

    async def post(self, path, body, **headers):
        """Give the status and what came, which is JSON, of what the page posts."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Origin": self.url} | headers
        async with self.client.post(self.url + path, data=data, headers=headers) as answer:
            return answer.status, await answer.json(content_type=None)

    async def order(self, form, image, **fields):
        return await self.post("/jobs", {"id": form, "kind": "video", "images": [image], **fields})

    async def messages(self, since=""):
        """Give the events of a page, until the app ends it."""
        timeout = aiohttp.ClientTimeout(total=30)
        async with self.client.get(f"{self.url}/events", params={"since": since}, timeout=timeout) as answer:
            assert answer.content_type == "text/event-stream"
            fields = {}
            async for line in answer.content:
                name, _, value = line.decode().rstrip("\r\n").partition(": ")
                if name:
                    fields[name] = value
                elif fields.get("data"):
                    yield fields["event"], fields["id"], json.loads(fields["data"])
                    fields = {}

    async def until(self, form, state):
        """Give the card of a job once it is in a state."""
        async for event, _, data in self.messages():
            for card in data["jobs"] if event == "jobs" else [data]:
                if card["id"] == form and card["state"] == state:
                    return card
        raise AssertionError(f"{form} never was {state}")

    async def stop(self):
        """Send SIGTERM; give the exit status and what it has written."""
        self.process.send_signal(signal.SIGTERM)
        out, err = await asyncio.wait_for(self.process.communicate(), 30)
        return self.process.returncode, (out + err).decode()


@asynccontextmanager
async def running(name, folder, sandbox=None, port=0):
    """Run an app on a sandbox, or on its own."""
    first = folder / "first"
    first.mkdir(exist_ok=True)
    (first / "sitecustomize.py").write_text(WITHOUT_WAITING)
    process = await start(
        sys.executable,
        EXAMPLES / name,
        *("--port", str(port), "--folder", str(folder)),
        env=environment(
            sandbox,
            PYTHONPATH=os.pathsep.join([str(first), str(EXAMPLES.parent)]),
            PYTHONUNBUFFERED="1",
            PYTHONDONTWRITEBYTECODE="1",
        ),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        shown = process.stderr if "fastapi" in name else process.stdout
        url = None
        while url is None:
            line = (await asyncio.wait_for(shown.readline(), 60)).decode()
            assert line, (await process.communicate())[1].decode()
            url = re.search(r"unning on (http://127\.0\.0\.1:\d+)", line)
        async with aiohttp.ClientSession() as client:
            yield App(process, url[1], client)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox():
    async with Sandbox(job_seconds=0.3, quota=None, credits=10**6) as sandbox:
        yield sandbox


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=APPS)
async def app(request, sandbox, tmp_path_factory):
    """Give an app that several tests use: each has jobs of its own."""
    async with running(request.param, tmp_path_factory.mktemp("app"), sandbox) as app:
        yield app


async def test_an_order_is_followed_to_its_clip(app, sandbox):
    """201 at once, each status without asking, and then the clip and its still, also in parts."""
    status, told = await app.order("form-clip", "img_clip", suggestion="Slow zoom in")
    seen = []
    async for event, _, data in app.messages():
        cards = data["jobs"] if event == "jobs" else [data]
        seen += [card for card in cards if card["id"] == "form-clip"]
        if seen[-1]["state"] == "done":
            break

    assert (status, told["state"]) == (201, "pending")
    assert seen[-1]["images"] == ["img_clip"]
    assert seen[-1]["suggestion"] == "Slow zoom in"
    assert {"PROCESSING", "DONE"} <= {card["status"] for card in seen}
    assert seen[-1]["clips"] == [{"place": 0, "still": True}]
    async with app.client.get(f"{app.url}/clips/form-clip/0.mp4", headers={"Range": "bytes=4-7"}) as part:
        assert (part.status, part.content_type, await part.read()) == (206, "video/mp4", b"ftyp")
    async with app.client.get(f"{app.url}/clips/form-clip/0.jpg") as still:
        assert (still.status, still.content_type) == (200, "image/jpeg")
    assert sandbox.orders[-1].body == {"imageId": "img_clip", "suggestion": "Slow zoom in"}


async def test_a_double_click_is_one_order(app, sandbox):
    """Both get the same job, at once or later; another request under that id is refused."""
    before = len(sandbox.orders)
    answers = await asyncio.gather(*[app.order("form-double", "img_1") for _ in range(5)])
    later = await app.order("form-double", "img_1")
    other = await app.order("form-double", "img_2")

    assert {status for status, _ in [*answers, later]} == {201}
    assert len(sandbox.orders) == before + 1
    assert other[0] == 409
    assert "another request" in other[1]["error"]
    assert "/" not in other[1]["error"]  # no path of the server's
    assert (await app.until("form-double", "done"))["images"] == ["img_1"]


async def test_a_page_that_comes_back_gets_what_it_has_missed(app):
    """All jobs first; with the id of the last event only what has changed since."""
    await app.order("form-first", "img_1")
    await app.until("form-first", "done")
    stream = app.messages()
    event, last, data = await anext(stream)
    await stream.aclose()
    await app.order("form-second", "img_1")
    await app.until("form-second", "done")
    missed = app.messages(last)
    kinds = [(event, data["id"]) async for event, _, data in until_done(missed, "form-second")]
    foreign = await anext(app.messages("0000abcd.3"))

    assert event == "jobs"
    assert "form-first" in {job["id"] for job in data["jobs"]}
    assert {*kinds} == {("job", "form-second")}
    assert foreign[0] == "jobs"


async def until_done(messages, form):
    async for event, number, data in messages:
        yield event, number, data
        if event == "job" and (data["id"], data["state"]) == (form, "done"):
            await messages.aclose()
            return


VIDEO = {"id": "form-12345678", "kind": "video", "images": ["img_1"]}


async def test_what_makes_no_order_is_refused(app, sandbox):
    """With 400 and the reason; nothing reaches the API."""
    before = len(sandbox.requests)
    forms = {
        b"{": "no JSON",
        b"\xff": "no JSON",
        b"[" * 10_000: "no JSON",
        b"[]": "id",
        b'"text"': "id",
    }
    fields = {
        "id": [None, 1, "", "short", "x" * 65, "../../etc/passwd"],
        "images": [None, [], "img_1", [1], [""], [" "], ["x" * 201], ["a", "b"]],
        "kind": [None, "film", "reel!"],
        "suggestion": [None, 1, "x" * 2001],
    }
    answers = {body: await app.post("/jobs", body) for body in forms}
    for name, values in fields.items():
        for value in values:
            status, told = await app.post("/jobs", VIDEO | {name: value})
            assert status == 400, (name, value)
            assert told["error"], (name, value)
    reel = await app.post("/jobs", {**VIDEO, "kind": "reel", "images": ["a"] * 11})

    assert {body: answer[0] for body, answer in answers.items()} == dict.fromkeys(forms, 400)
    assert all(forms[body] in answer[1]["error"] for body, answer in answers.items())
    assert (reel[0], "10" in reel[1]["error"]) == (400, True)
    assert [request for request in sandbox.requests[before:] if request.method == "POST"] == []


async def test_a_body_without_end_is_cut_off(app):
    """With 413; the app doesn't keep it."""
    data = json.dumps(VIDEO | {"suggestion": "x" * 100_000}).encode()
    async with app.client.post(
        f"{app.url}/jobs", data=data, headers={"Content-Type": "application/json"}
    ) as answer:
        assert answer.status == 413


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Host": "evil.example"},
        {"Host": ""},
        {"Host": "["},
    ],
)
async def test_only_its_own_page_can_order(app, sandbox, headers):
    """What another site makes a browser send is refused, and nothing is paid for."""
    before = len(sandbox.orders)
    status, told = await app.post("/jobs", VIDEO, **headers)

    assert status == 403
    assert told["error"]
    assert len(sandbox.orders) == before


async def test_a_name_that_leads_here_is_not_enough_to_read(app):
    """A page whose own name was pointed at this machine reads nothing."""
    for path in ("/", "/events", "/clips/form-clip/0.mp4"):
        async with app.client.get(app.url + path, headers={"Host": "evil.example"}) as answer:
            assert answer.status == 403


@pytest.mark.parametrize("path", ["/", "/page/page.js", "/events", "/nowhere", "/clips/no-such-job/0.mp4"])
async def test_every_answer_has_the_headers(app, path):
    """The page may load nothing from elsewhere, run nothing inline, and be framed by nobody."""
    async with app.client.get(app.url + path) as answer:
        policy = answer.headers["Content-Security-Policy"]

        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    ["/page/board.py", "/page/..%2Fweb_app.py", "/clips/no-such-job/0.mp4", "/clips/..%2F..%2Fjobs/0.mp4"],
)
async def test_no_other_file_is_given(app, path):
    """Neither the program, nor what lies beside the clips."""
    async with app.client.get(app.url + path) as answer:
        assert answer.status == 404


@pytest.mark.parametrize(
    ("trouble", "status", "words"),
    [
        ({"status": 402, "body": None}, 402, "credits"),
        ({"status": 400, "body": None}, 400, "400"),
        ({"status": 401, "body": None}, 502, "401"),
        ({"status": 403, "body": None}, 502, "scope"),
        ({"status": 404, "body": None}, 404, "404"),
    ],
)
async def test_what_the_api_refuses_is_told(app, sandbox, trouble, status, words):
    """By a status that says whose fault it is, in the API's words; the same form may come again."""
    form = f"form-refused-{trouble['status']}"
    sandbox.trouble("error", **trouble)
    refused = await app.order(form, "img_1")
    card = await app.until(form, "refused")
    again = await app.order(form, "img_1")

    assert refused[0] == status
    assert words in refused[1]["error"]
    assert card["why"] == refused[1]["error"]
    assert again[0] == 201
    assert (await app.until(form, "done"))["why"] == ""


async def test_a_failed_job_says_why(app, sandbox):
    """In the server's own word."""
    sandbox.trouble("fail_job", status="EXPIRED")
    await app.order("form-failed", "img_1")
    card = await app.until("form-failed", "failed")

    assert "EXPIRED" in card["why"]
    assert card["clips"] == []


async def in_doubt(app, sandbox, form):
    sandbox.trouble("reset_after")
    status, told = await app.order(form, "img_lost")
    assert (status, "lost" in told["error"]) == (409, True)
    return await app.until(form, "ambiguous")


async def test_a_doubt_is_settled_by_adopting(app, sandbox):
    """The record is watched like any other; twice is as once, and nothing is ordered again."""
    card = await in_doubt(app, sandbox, "form-adopted")
    before = len(sandbox.orders)
    record = sandbox.orders[-1].record_ids[0]
    again = await app.order("form-adopted", "img_lost")
    path, body = "/jobs/form-adopted/adopt", {"record": record}
    answers = await asyncio.gather(*[app.post(path, body) for _ in range(3)])
    too_late = await app.post("/jobs/form-adopted/abandon", {})

    assert record in [candidate["id"] for candidate in card["candidates"]]
    assert again[0] == 409
    assert [status for status, _ in answers] == [200] * 3
    assert too_late[0] == 409
    assert len((await app.until("form-adopted", "done"))["clips"]) == 1
    assert len(sandbox.orders) == before


async def test_a_doubt_is_settled_by_abandoning(app, sandbox):
    """Twice is as once; then the same form orders anew."""
    await in_doubt(app, sandbox, "form-abandoned")
    before = len(sandbox.orders)
    path = "/jobs/form-abandoned/abandon"
    answers = await asyncio.gather(*[app.post(path, {}) for _ in range(3)])
    record = {"record": sandbox.orders[-1].record_ids[0]}
    too_late = await app.post("/jobs/form-abandoned/adopt", record)
    again = await app.order("form-abandoned", "img_lost")

    assert [status for status, _ in answers] == [200] * 3
    assert too_late[0] == 409
    assert again[0] == 201
    assert len(sandbox.orders) == before + 1


async def test_what_cannot_be_settled_is_told(app, sandbox):
    """Another job's record, no record, no job: each has its status and its words, and the doubt stays."""
    await in_doubt(app, sandbox, "form-doubt")
    await app.order("form-other", "img_1")
    taken = sandbox.orders[-1].record_ids[0]
    answers = [
        await app.post("/jobs/form-doubt/adopt", {"record": taken}),
        await app.post("/jobs/form-doubt/adopt", {"record": ""}),
        await app.post("/jobs/form-doubt/adopt", []),
        await app.post("/jobs/no-such-job/adopt", {"record": "vid_1"}),
        await app.post("/jobs/no-such-job/abandon", {}),
    ]

    assert [status for status, _ in answers] == [400, 400, 400, 404, 404]
    assert all(told["error"] for _, told in answers)
    assert (await app.until("form-doubt", "ambiguous"))["candidates"]


@pytest.mark.parametrize("name", APPS)
async def test_a_restart_keeps_all(sandbox, tmp_path, name):
    """Stopped with pages open, it ends; then all is there, and what is unfinished is watched again."""
    async with running(name, tmp_path, sandbox) as app:
        await app.order("form-done", "img_1")
        await app.until("form-done", "done")
        await in_doubt(app, sandbox, "form-doubt")
        sandbox.trouble("fail_job")
        await app.order("form-failed", "img_2")
        await app.until("form-failed", "failed")
        pages = [app.messages() for _ in range(5)]
        for page in pages:
            await anext(page)
        await app.order("form-unfinished", "img_3")
        status, written = await app.stop()
        for page in pages:
            async for _ in page:
                pass  # each comes to its end

    assert status in {0, -signal.SIGTERM}
    assert "Traceback" not in written
    assert "ERROR" not in written
    before = len(sandbox.orders)
    async with running(name, tmp_path, sandbox) as app:
        _, _, data = await anext(app.messages())
        states = {job["id"]: job["state"] for job in data["jobs"]}
        unfinished = await app.until("form-unfinished", "done")
        async with app.client.get(f"{app.url}/clips/form-done/0.mp4") as clip:
            assert clip.status == 200
        failed = await app.until("form-failed", "failed")
        settled = await app.post("/jobs/form-doubt/abandon", {})

    assert {name: states[name] for name in ("form-done", "form-doubt", "form-failed")} == {
        "form-done": "done",
        "form-doubt": "ambiguous",
        "form-failed": "failed",
    }
    assert unfinished["images"] == ["img_3"]
    assert "FAILED" in failed["why"]
    assert settled[0] == 200
    assert len(sandbox.orders) == before


async def test_an_order_that_a_kill_cut_off_is_in_doubt(sandbox, tmp_path):
    """After kill -9 the page asks; adopted, it goes to its clip, and nothing is ordered twice."""
    before = len(sandbox.orders)
    sandbox.trouble("hang")
    async with running(APPS[0], tmp_path, sandbox) as app:
        ordering = asyncio.ensure_future(app.order("form-killed", "img_1"))
        while len(sandbox.orders) == before:
            assert not ordering.done(), ordering.result()
            await asyncio.sleep(0.005)
        app.process.kill()
        with pytest.raises(aiohttp.ClientError):
            await ordering
    async with running(APPS[0], tmp_path, sandbox) as app:
        card = await app.until("form-killed", "ambiguous")
        async with asyncio.timeout(20):
            while not card["candidates"]:  # they are looked for by itself
                card = await app.until("form-killed", "ambiguous")
        await app.post("/jobs/form-killed/adopt", {"record": sandbox.orders[-1].record_ids[0]})
        done = await app.until("form-killed", "done")

    assert card["why"]
    assert len(done["clips"]) == 1
    assert len(sandbox.orders) == before + 1


@pytest.mark.parametrize("name", APPS)
async def test_it_runs_by_itself(tmp_path, name):
    """Without a key it has a sandbox of its own, whose finished clips it keeps over a restart."""
    async with running(name, tmp_path) as app:
        async with app.client.get(app.url) as answer:
            page = await answer.text()
        status, _ = await app.order("form-unfinished", "img_1")
        await app.stop()
    async with running(name, tmp_path) as app:
        card = await app.until("form-unfinished", "lost")

    assert (answer.status, "<title>Clips</title>" in page) == (200, True)
    assert status == 201
    assert "It was ordered at http://127.0.0.1" in card["why"]
