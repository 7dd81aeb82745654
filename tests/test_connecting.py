"""Before a connection stands: TLS, names, handshakes; and one quota over several threads."""

import asyncio
import ssl

import pytest
import trustme
from aiohttp import web

import qamera_async as q
from qamera_async.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")

KEY = "mk_live_a.bcdefgh"


@pytest.fixture
async def https():
    """A server with a certificate for localhost that only its own authority vouches for."""
    authority = trustme.CA()
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(server_side)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    seen = []

    async def answer(request):
        seen.append(request.method)
        return web.json_response({"videos": [], "count": 0, "createdRecordIds": ["vid_1"]})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=server_side).start()
    yield runner.addresses[0][1], trusting, seen
    await runner.cleanup()


async def test_a_certificate_that_is_trusted_is_used(https, quick):
    """ssl_context is for the API's certificate."""
    port, trusting, seen = https
    url = f"https://localhost:{port}"
    async with q.QameraSession(KEY, base_url=url, ssl_context=trusting, **quick) as session:
        await session.register_video(image_id="i")
        await session.list_videos()

    assert seen == ["POST", "GET"]


@pytest.mark.parametrize(("host", "trusted"), [("localhost", False), ("127.0.0.1", True)])
async def test_an_untrusted_certificate_is_raised_at_once(https, quick, host, trusted):
    """An unknown authority and a name that doesn't match: nothing sent, no retry, all waiters fail."""
    port, trusting, seen = https
    events = []
    context = trusting if trusted else None
    options = quick | {"ssl_context": context, "on_event": events.append}
    async with q.QameraSession(KEY, base_url=f"https://{host}:{port}", **options) as session:
        for attempt in (
            lambda: session.register_video(image_id="i"),
            session.list_videos,
            session.job("vid_1").wait,
        ):
            with pytest.raises(q.ConnectionFailedError) as refused:
                await attempt()
            assert refused.value.permanent
        assert session.budget.used == 0

    assert seen == []
    assert not [event for event in events if isinstance(event, q.Retrying)]


async def test_https_to_a_plain_port_is_raised_at_once(quick):
    """The handshake can't succeed later either."""
    async with Sandbox(quota=None) as sandbox:
        url = sandbox.url.replace("http:", "https:")
        async with q.QameraSession(KEY, base_url=url, **quick) as session:
            with pytest.raises(q.ConnectionFailedError) as refused:
                await session.register_video(image_id="i")

    assert refused.value.permanent


async def test_a_handshake_that_hangs_is_tried_again_and_typed(quick):
    """Within Timeouts.connect, a bounded number of times; no slot is kept."""
    accepted = []

    async def hang(reader, writer):
        accepted.append(writer)
        await reader.read()
        writer.transport.abort()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    options = quick | {"timeouts": q.Timeouts(connect=0.05, lookup=0.0)}
    async with q.QameraSession(KEY, base_url=f"https://127.0.0.1:{port}", **options) as session:
        with pytest.raises(q.ConnectionFailedError):
            await session.register_video(image_id="i")
        assert session.budget.used == 0
    server.close()
    await server.wait_closed()

    assert len(accepted) == quick["retry"].attempts


async def test_a_name_that_does_not_exist_is_typed(quick):
    """DNS failure: never reached the server."""
    async with q.QameraSession(KEY, base_url="https://nowhere.invalid", **quick) as session:
        with pytest.raises(q.ConnectionFailedError) as failed:
            await session.register_video(image_id="i")

    assert not failed.value.permanent
    assert not failed.value.sent


async def test_sessions_in_several_threads_keep_one_quota():
    """P2: three loops in three threads share a budget; the server sees no request too many."""
    async with Sandbox(quota=(20, 0.5), job_seconds=0.05, credits=10**6) as sandbox:
        budget = q.RequestBudget(20, 0.5)

        async def some():
            polling = q.PollPolicy(interval=0.05, stale_after=0.2)
            async with q.QameraSession(
                sandbox.api_key, base_url=sandbox.url, budget=budget, polling=polling
            ) as session:
                jobs = await asyncio.gather(*(session.register_video(image_id="i") for _ in range(12)))
                return len(await asyncio.gather(*jobs))

        done = await asyncio.gather(*(asyncio.to_thread(asyncio.run, some()) for _ in range(3)))

    assert done == [12, 12, 12]
    assert {request.status for request in sandbox.requests} == {200}
