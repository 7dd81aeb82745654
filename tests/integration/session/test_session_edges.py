"""What a server can do to the evidence: dates, lists that come and go, refused polls, echoed secrets."""

import asyncio
import pickle
import ssl
import traceback

import aiohttp
import pytest
from aiohttp import web

import qamera_async as q
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


async def test_a_cancelled_list_shows_no_key():
    """Neither a traceback with locals, nor a context, leads into the HTTP client's frames."""
    async with Sandbox(quota=None, api_key=KEY) as sandbox, sandbox.session() as other:
        sandbox.trouble("hang", on="GET")
        with pytest.raises(TimeoutError) as timed_out:
            async with asyncio.timeout(0.1):
                await other.list_videos()
        lines = traceback.TracebackException.from_exception(timed_out.value, capture_locals=True).format()

    assert "SECRETCANARY" not in "".join(line for line in lines if "test_session_edges" not in line)
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

    assert "password" not in repr(session._settings)
    assert "SECRETCANARY" not in repr(session._settings)
    with pytest.raises(TypeError):
        pickle.dumps(session._settings)
