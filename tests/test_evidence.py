"""What a server can do to the evidence: dates, lists that come and go, refused polls, echoed secrets."""

import asyncio
import math
import pickle
import ssl
import traceback

import aiohttp
import pytest
from aiohttp import web

import qamera_async as q
from qamera_async import _polling as poller
from qamera_async import _protocol as protocol
from qamera_async._jobs.deadlines import TimeIsUp
from qamera_async._polling.seen import Seen
from qamera_async._protocol import Answer
from qamera_async.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")

KEY = "mk_live_canary.SECRETCANARY"


def video(record_id, **fields):
    return {"id": record_id, "status": "DONE", "videoUrl": "https://cdn.example.com/a.mp4"} | fields


class Scripted:
    """A server whose lists are scripted; each POST ends with status 500."""

    def __init__(self):
        self.lists = []
        self.seen = []
        self.headers = {}
        self.post = (500, {"error": "boom"})

    async def answer(self, request):
        self.seen.append(request.method)
        if request.method == "POST":
            status, body = self.post
            return web.json_response(body, status=status, headers=self.headers)
        listed = self.lists.pop(0) if len(self.lists) > 1 else self.lists[0]
        if isinstance(listed, int):
            return web.json_response({"error": "x"}, status=listed, headers={"Retry-After": "0"})
        return web.json_response({"videos": listed, "count": len(listed)}, headers=self.headers)


@pytest.fixture
async def server():
    scripted = Scripted()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", scripted.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    scripted.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield scripted
    await runner.cleanup()


@pytest.fixture
async def session(server, quick):
    async with q.QameraSession(KEY, base_url=server.url, **quick) as session:
        yield session


def test_what_has_been_seen_is_forgotten_when_long_gone():
    """It stays as long as the list, not as long as all there ever was."""
    seen = Seen()
    for number in range(100):
        seen.add({f"v{number}": 0, "always": 0}.keys(), now=number * 100.0)

    assert "always" in seen
    assert "v0" not in seen
    assert len(seen._first) < 20
    assert seen.new_since(["always", "v99", "other"], 50) == {"v99", "other"}


def test_what_a_forgetful_server_has_shown_takes_no_more_than_a_list():
    """A whole list may be missing once and come back; beyond that the oldest are forgotten."""
    seen = Seen()
    for number in range(5_000):
        seen.add({f"vid_{number}": 0}.keys(), now=0.0)

    assert len(seen._first) <= 1_001
    assert seen.new_since(["vid_4990"], 4_999) == set()

    old = {f"old_{number}": 0 for number in range(3_000)}.keys()
    seen.add(old, now=0.0)
    seen.add({}.keys(), now=1.0)
    seen.add(old, now=2.0)

    assert seen.new_since(old, seen.lists - 1) == set()


def test_what_is_back_in_the_list_has_been_seen_since():
    """Also in a list of the same ids as the one before it; how long it was away doesn't add up."""
    seen, both = Seen(), {"away": 0, "always": 0}.keys()
    seen.add(both, now=0.0)
    seen.add({"always": 0}.keys(), now=1.0)
    seen.add(both, now=2.0, again=True)
    seen.add(both, now=3.0, again=True)
    assert seen.lists == 4

    seen.add({"always": 0}.keys(), now=2_000.0)
    assert "away" in seen


async def test_a_cancelled_list_shows_no_key():
    """Neither a traceback with locals, nor a context, leads into the HTTP client's frames."""
    async with Sandbox(quota=None, api_key=KEY) as sandbox, sandbox.session() as other:
        sandbox.trouble("hang", on="GET")
        with pytest.raises(TimeoutError) as timed_out:
            async with asyncio.timeout(0.1):
                await other.list_videos()
        lines = traceback.TracebackException.from_exception(timed_out.value, capture_locals=True).format()

    assert "SECRETCANARY" not in "".join(line for line in lines if "test_evidence" not in line)
    assert "aiohttp" not in "".join(line for line in lines if line.lstrip().startswith("File"))


async def test_no_error_leads_into_the_http_client(quick):
    """Walking causes and contexts meets none of its exceptions, which hold the request's headers."""
    async with Sandbox(quota=None) as sandbox, sandbox.session(**quick) as session:
        for name in ("reset_after", "truncate", "garbage"):
            sandbox.trouble(name)
            with pytest.raises(q.QameraError) as caught:
                await session.register_video(image_id="i")
            error = caught.value
            while error is not None:
                assert not type(error).__module__.startswith("aiohttp")
                error = error.__cause__ or error.__context__


async def test_nobody_waiting_in_a_hold_means_no_request(server, session):
    """P1: who gives up while a 429 holds everybody leaves no poll behind; and is told of the 429."""
    server.lists = [429]
    with pytest.raises(q.JobTimeoutError) as waited:
        await session.job("vid_1").wait(0.1)
    await asyncio.sleep(0.02)
    before = len(server.seen)
    await asyncio.sleep(0.1)

    assert before > 0
    assert len(server.seen) == before
    assert isinstance(waited.value.last_error, q.RateLimitError)


async def test_closing_ends_what_queues_for_a_slot_at_once(quick):
    """list_videos too gets SessionClosedError without waiting for a slot."""
    async with Sandbox(quota=(1, 60.0)) as sandbox:
        session = sandbox.session(**quick)
        await session.list_videos()
        queued = asyncio.ensure_future(session.list_videos())
        ordering = asyncio.ensure_future(session.register_video(image_id="i"))
        await asyncio.sleep(0.01)
        await asyncio.wait_for(session.aclose(), 2)
        results = await asyncio.wait_for(asyncio.gather(queued, ordering, return_exceptions=True), 2)

    assert [type(result) for result in results] == [q.SessionClosedError] * 2
    assert session.rate_limiter.waiting == 0


@pytest.mark.parametrize(
    "options",
    [
        {"proxy": 3},
        {"proxy": "garbage"},
        {"proxy": "socks5://x:1"},
        {"ssl_context": "x"},
        {"trace_configs": 5},
        {"trace_configs": [object()]},
        {"trust_env": "no"},
        {"allow_http": "no"},
        {"base_url": "https://h:0"},
        {"base_url": "https://h\r\nx"},
        {"base_url": KEY},
        {"rate_limiter": 3},
        {"on_event": 3},
    ],
)
def test_a_bad_setting_is_refused_and_shows_no_key(options):
    """Where it is made, and with the key neither in the text nor in a traceback with locals."""
    with pytest.raises(q.ConfigurationError) as refused:
        q.QameraSession(KEY, **{"base_url": "https://example.com"} | options)
    lines = traceback.TracebackException.from_exception(refused.value, capture_locals=True).format()
    ours = [line for line in lines if "qamera_async/" in line]

    assert "SECRETCANARY" not in str(refused.value)
    assert options.get("base_url") == KEY or "SECRETCANARY" not in "".join(ours)


def test_good_settings_are_taken():
    """What the last test refuses has a good counterpart."""
    session = q.QameraSession(
        KEY,
        base_url="http://cluster.internal:8080/qamera/",
        allow_http=True,
        proxy="http://user:password@proxy.internal:3128",
        trust_env=True,
        ssl_context=ssl.create_default_context(),
        trace_configs=[aiohttp.TraceConfig()],
    )

    assert "password" not in repr(session._wire)
    assert "SECRETCANARY" not in repr(session._wire)
    with pytest.raises(TypeError):
        pickle.dumps(session._wire)


@pytest.mark.parametrize("limit", [10**400, 1e300, math.inf])
async def test_a_wait_beyond_every_clock_has_no_limit(limit):
    """It isn't an OverflowError."""
    async with Sandbox(job_seconds=0.01, quota=None) as sandbox:
        async with sandbox.session(polling=q.PollPolicy(interval=0.02)) as session:
            assert (await (await session.register_video(image_id="i")).wait(limit)).status == "DONE"


async def test_each_wait_for_an_attached_record_begins_anew(server, quick):
    """Timeouts.appear counts while somebody looks."""
    server.lists = [[]]
    options = quick | {"timeouts": q.Timeouts(appear=0.15)}
    async with q.QameraSession(KEY, base_url=server.url, **options) as session:
        job = session.job("vid_1")
        with pytest.raises(q.JobTimeoutError):
            await job.wait(0.05)
        await asyncio.sleep(0.15)
        with pytest.raises(q.JobTimeoutError):
            await job.wait(0.05)
        with pytest.raises(q.JobLostError):
            await job.wait(1)


async def test_a_status_that_echoes_the_key_is_concealed(server, session, caplog):
    """Neither the error nor the warning shows it."""
    server.lists = [[video("vid_1", status=KEY)]]
    with pytest.raises(q.JobTimeoutError) as waited:
        await session.job("vid_1").wait(0.1)

    assert "SECRETCANARY" not in str(waited.value) + caplog.text
    assert "not known" in caplog.text


@pytest.fixture
async def foreign(server, session):
    """Let the server list what somebody else has made since the first list, in more than 64 KiB."""
    server.lists = [[], [video(f"foreign_{number}") for number in range(3_000)]]
    await session.list_videos()


async def test_a_list_that_nobody_is_told_of_is_remembered(server, session, foreign, monkeypatch):
    """The last waiter leaves between the reading of a long list and the telling."""
    pauses = []

    async def pause(_):
        pauses.append(1)
        if len(pauses) == 2:
            waiting.cancel()
        for _ in range(3):
            await asyncio.sleep(0)

    monkeypatch.setattr(poller, "_pause_after", pause)
    waiting = asyncio.ensure_future(session.job("vid_1").wait())
    await asyncio.wait([waiting])
    with pytest.raises(q.JobTimeoutError):
        await session.job("vid_1").wait(0.2)
    with pytest.raises(q.AmbiguousSubmissionError) as ambiguous:
        await session.register_video(image_id="i")

    assert waiting.cancelled()
    assert ambiguous.value.candidates == ()


@pytest.mark.parametrize(("length", "turns"), [(64 * 1024, 0), (64 * 1024 + 1, 1)])
async def test_a_long_list_leaves_turns_to_others(length, turns):
    """Between its reading and the telling of it the loop does what else there is to do."""
    done = []
    asyncio.get_running_loop().call_soon(done.append, "else")
    await poller._pause_after(Answer(200, {}, bytes(length)))

    assert len(done) == turns


async def test_a_job_that_ends_as_its_time_is_up_has_ended(session):
    """Both in one turn of the loop: what is known counts."""
    job = session.job("vid_1")
    waiting = asyncio.ensure_future(job.wait(60.0))
    await asyncio.sleep(0)
    job._waiters[0].set_exception(TimeIsUp())
    done = q.Video("vid_1", "DONE", q.JobState.DONE, video_url="https://cdn.example.com/a.mp4")
    job._records[0].keep(done)

    assert (await waiting).id == "vid_1"


async def test_a_closed_session_fetches_nothing(session):
    """Neither is what fetches made anew: nobody would close it."""
    await session.aclose()
    with pytest.raises(q.SessionClosedError):
        _ = session._transport.elsewhere
