"""A server that refuses only some requests with 429, and a session that is closed with a long queue."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

import qamera_async as q

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")

KEY = "mk_live_a.refusals"


class Server:
    """A loopback server that refuses each POST and answers each GET; `refuses_lists` reverses that."""

    def __init__(self, *, refuses_lists=False, retry_after="0"):
        self.requests = []
        self.refused = "GET" if refuses_lists else "POST"
        self.retry_after = retry_after

    async def handle(self, request):
        self.requests.append(request.method)
        if request.method == self.refused:
            headers = {"Retry-After": self.retry_after}
            return web.json_response({"error": "Too many requests."}, status=429, headers=headers)
        if request.method == "GET":
            return web.json_response({"videos": [], "count": 0})
        number = len(self.requests)
        receipt = {"createdRecordIds": [f"vid_{number}"], "batchId": "b", "creditsReserved": 1}
        return web.json_response(receipt | {"orderId": f"o{number}", "reservationId": "r"})

    @asynccontextmanager
    async def session(self, **options):
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.handle)
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            async with q.QameraSession(KEY, base_url=url, **options) as session:
                yield session
        finally:
            await runner.cleanup()


async def repeat(call):
    """Call without a pause, until it is cancelled or raises."""
    while True:
        await call()
        await asyncio.sleep(0.001)


async def test_refused_submission_ends_although_lists_succeed():
    server = Server()
    options = {"rate_limiter": q.RateLimiter(60, 0.1), "retry": q.RetryPolicy(base=0.01)}
    async with server.session(**options) as session:
        lists = asyncio.ensure_future(repeat(session.list_videos))
        with pytest.raises(q.RateLimitError):
            await asyncio.wait_for(session.register_video(image_id="i"), 30)
        assert not lists.done()
        lists.cancel()


async def test_refused_list_ends_although_submissions_succeed():
    server = Server(refuses_lists=True)
    options = {"rate_limiter": q.RateLimiter(60, 0.1), "retry": q.RetryPolicy(attempts=1, base=0.01)}
    async with server.session(**options) as session:
        submissions = asyncio.ensure_future(repeat(lambda: session.register_video(image_id="i")))
        with pytest.raises(q.RateLimitError):
            await asyncio.wait_for(session.list_videos(), 30)
        assert not submissions.done()
        submissions.cancel()


async def test_refused_submission_does_not_stop_the_polls():
    """Each cooldown ends with one request, which is a poll if a poll is due."""
    server = Server(retry_after="1")
    options = {
        "rate_limiter": q.RateLimiter(60, 60.0),
        "retry": q.RetryPolicy(base=0.02, max_delay=0.02),
        "polling": q.PollPolicy(interval=0.05, stale_after=0.1),
    }
    async with server.session(**options) as session:
        waiting = asyncio.ensure_future(session.job("vid_1").wait())
        submission = asyncio.ensure_future(session.register_video(image_id="i"))
        async with asyncio.timeout(30):
            while server.requests.count("POST") < 3:
                await asyncio.sleep(0.01)
            polls = server.requests.count("GET")
            while server.requests.count("GET") < polls + 3:
                await asyncio.sleep(0.01)
        for task in (waiting, submission):
            task.cancel()
        await asyncio.wait([waiting, submission])


async def test_closing_with_many_queued_submissions_does_not_block_the_loop():
    """The other tasks of the loop go on while 5,000 submissions get their SessionClosedError."""
    server, steps = Server(), 0

    async def count_steps():
        nonlocal steps
        while True:
            await asyncio.sleep(0)
            steps += 1

    async with server.session(rate_limiter=q.RateLimiter(1, 600.0)) as session:
        await session.list_videos()  # takes the only slot
        queued = [asyncio.ensure_future(session.register_video(image_id="i")) for _ in range(5_000)]
        while session.rate_limiter.waiting < len(queued):
            await asyncio.sleep(0.01)
        counting = asyncio.ensure_future(count_steps())
        await session.aclose()
        counting.cancel()
    results = await asyncio.gather(*queued, return_exceptions=True)

    assert {type(result) for result in results} == {q.SessionClosedError}
    assert steps >= 50  # at most 100 submissions end in one step of the loop
