"""Time limits of a wait for a job, and loops over updates that end early."""

import asyncio
import math

import pytest

import qamera_async as q
from qamera_async.sandbox import Sandbox

pytestmark = [pytest.mark.every_loop, pytest.mark.usefixtures("no_lost_exceptions")]


async def test_wait_of_zero_seconds_returns_a_known_result(quick):
    async with Sandbox(job_seconds=0.05, quota=None) as sandbox, sandbox.session(**quick) as session:
        job = await session.register_video(image_id="i")
        with pytest.raises(q.JobTimeoutError):
            await job.wait(0)

        assert (await job.wait(math.inf)).status == "DONE"
        assert (await job.wait(0)).status == "DONE"


@pytest.mark.parametrize("limit", [-1, math.nan, "3", True])
async def test_invalid_limit_of_a_wait_is_refused(quick, limit):
    async with Sandbox(quota=None) as sandbox, sandbox.session(**quick) as session:
        with pytest.raises(q.ConfigurationError):
            await session.job("vid_1").wait(limit)


async def test_leaving_updates_early_ends_the_polls(quick):
    async with Sandbox(job_seconds=60.0, quota=None) as sandbox, sandbox.session(**quick) as session:
        job = await session.register_video(image_id="i")
        async for _ in job.updates():
            break
        await asyncio.sleep(0.05)
        before = len(sandbox.requests)
        await asyncio.sleep(0.1)

        assert len(sandbox.requests) == before
