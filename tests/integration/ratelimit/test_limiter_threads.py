"""Sessions in several threads, each with a loop of its own."""

import asyncio

import pytest

import qamera_async as q
from qamera_async.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")


async def test_sessions_in_several_threads_keep_one_quota():
    """P2: three loops in three threads share a budget; the server sees no request too many."""
    async with Sandbox(quota=(20, 0.5), job_seconds=0.05, credits=10**6) as sandbox:
        budget = q.RateLimiter(20, 0.5)

        async def some():
            polling = q.PollPolicy(interval=0.05, stale_after=0.2)
            async with q.QameraSession(
                sandbox.api_key, base_url=sandbox.url, rate_limiter=budget, polling=polling
            ) as session:
                jobs = await asyncio.gather(*(session.register_video(image_id="i") for _ in range(12)))
                return len(await asyncio.gather(*jobs))

        done = await asyncio.gather(*(asyncio.to_thread(asyncio.run, some()) for _ in range(3)))

    assert done == [12, 12, 12]
    assert {request.status for request in sandbox.requests} == {200}
