"""A batch on uvloop, whose timer handles differ from those of asyncio."""

import asyncio

import pytest

import qamera_async as q
from qamera_async.sandbox import Sandbox

uvloop = pytest.importorskip("uvloop")

JOBS = 60


async def run_batch(failures):
    """Submit more requests than one window of the quota permits, so that submissions wait for slots."""
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    requests = [q.VideoRequest(image_id=f"img_{n}", ref=f"sku-{n}") for n in range(JOBS)]
    polling = q.PollPolicy(interval=0.02, stale_after=0.1, max_interval=0.1)
    async with Sandbox(job_seconds=0.05, quota=(20, 0.25)) as sandbox:
        budget = q.RateLimiter(20, 0.25)
        async with sandbox.session(polling=polling, rate_limiter=budget) as session, asyncio.timeout(60):
            result = await session.batch(requests)
        return result, sandbox.requests


def test_batch_that_waits_for_slots_finishes_on_uvloop():
    failures = []
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result, requests = runner.run(run_batch(failures))

    assert failures == []
    assert result.stopped is None
    assert result.failures == ()
    assert len(result.records) == JOBS
    assert [request.method for request in requests].count("POST") == JOBS
