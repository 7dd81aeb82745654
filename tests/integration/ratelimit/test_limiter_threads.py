"""The rate limit of sessions in several threads, each with its own event loop."""

import asyncio

import pytest
import uvloop

import qamera_async as q
from qamera_async.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
async def test_sessions_in_several_threads_share_one_rate_limit(run):
    """P2: event loops in three threads have equal rate limiters, and no request gets a 429."""
    async with Sandbox(quota=(20, 0.5), job_seconds=0.05, credits=10**6) as sandbox:

        async def register_and_wait():
            polling = q.PollPolicy(interval=0.05, stale_after=0.2)
            async with q.QameraSession(
                sandbox.api_key,
                base_url=sandbox.url,
                rate_limiter=q.RateLimiter(20, 0.5),
                polling=polling,
            ) as session:
                jobs = await asyncio.gather(*(session.register_video(image_id="i") for _ in range(12)))
                return len(await asyncio.gather(*jobs))

        done = await asyncio.gather(*(asyncio.to_thread(run, register_and_wait()) for _ in range(3)))

    assert done == [12, 12, 12]
    assert {request.status for request in sandbox.requests} == {200}
