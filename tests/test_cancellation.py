"""What is left of a wait, a session or a loop that somebody has given up."""

import asyncio
import logging
import sys

import pytest
from children import run

import qamera_async as q
from qamera_async.sandbox import Sandbox

pytestmark = [pytest.mark.usefixtures("no_lost_exceptions"), pytest.mark.every_loop]


async def test_a_cancelled_close_closes_all_the_same(quick):
    """The caller of aclose may give up; what is under way gets its answer, and all is closed."""
    async with Sandbox(quota=None) as sandbox:
        session = sandbox.session(**quick)
        sandbox.trouble("slow", seconds=0.1)
        sending = asyncio.ensure_future(session.register_video(image_id="i"))
        while not sandbox.requests:
            await asyncio.sleep(0.001)
        closing = asyncio.ensure_future(session.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait([closing])

        assert (await sending).record_ids
        await session.aclose()
        assert "closed" in repr(session)


SCRIPT = """
import asyncio, logging, sys
import {loop}
import qamera_async as q
from qamera_async.sandbox import Sandbox

logging.basicConfig(stream=sys.stdout)

async def main():
    async with Sandbox(quota=None) as sandbox:
        sandbox.trouble("hang")
        session = sandbox.session()
        task = asyncio.ensure_future(session.register_video(image_id="i", ref="sku-1"))
        while not sandbox.requests:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        {end}

try:
    with asyncio.Runner(loop_factory={loop}.new_event_loop) as runner:
        runner.run(main())
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("end", ["return", "import signal; signal.raise_signal(signal.SIGINT); await task"])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_the_end_of_the_loop_leaves_a_trace(loop, end):
    """asyncio.run's teardown and Ctrl-C cut what nobody drained: it is ambiguous, in the log."""
    pytest.importorskip(loop)
    result = run(
        [sys.executable, "-c", SCRIPT.format(loop=loop, end=end)],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert "whether it was accepted is not known" in result.stdout
    assert "sku-1" in result.stdout


async def test_a_session_that_is_not_closed_warns(quick):
    """Only forgetting to close warns; one that was never used doesn't."""
    async with Sandbox(quota=None) as sandbox:
        unused = sandbox.session(**quick)
        del unused
        session = sandbox.session(**quick)
        await session.list_videos()
        await session._transport.aclose()
        with pytest.warns(ResourceWarning, match="unclosed"):
            session.__del__()
        await session.aclose()


async def test_waiting_for_no_time_and_without_limit(quick):
    """wait(0) tells at once; wait(math.inf) sets no limit; a bad limit is refused."""
    async with Sandbox(job_seconds=0.05, quota=None) as sandbox, sandbox.session(**quick) as session:
        job = await session.register_video(image_id="i")
        with pytest.raises(q.JobTimeoutError):
            await job.wait(0)
        for bad in (-1, float("nan"), "3", True):
            with pytest.raises(q.ConfigurationError):
                await job.wait(bad)

        assert (await job.wait(float("inf"))).status == "DONE"
        assert (await job.wait(0)).status == "DONE"


async def test_break_out_of_updates_leaves_nobody_waiting(quick):
    """updates() counts as waiting only while it is asked."""
    async with Sandbox(job_seconds=60.0, quota=None) as sandbox, sandbox.session(**quick) as session:
        job = await session.register_video(image_id="i")
        async for _ in job.updates():
            break
        await asyncio.sleep(0.05)
        before = len(sandbox.requests)
        await asyncio.sleep(0.1)

        assert len(sandbox.requests) == before


async def test_an_unknown_status_is_pending_with_one_warning(quick, caplog):
    """A word that nobody knows is waited out, and said once."""
    caplog.set_level(logging.WARNING)
    async with Sandbox(job_seconds=float("inf"), quota=None) as sandbox, sandbox.session(**quick) as session:
        job = await session.register_video(image_id="i")
        sandbox.finish(job.record_ids[0], "PONDERING")
        with pytest.raises(q.JobTimeoutError) as waited:
            await job.wait(0.15)
        sandbox.finish(job.record_ids[0], "done")

        assert waited.value.status == "PONDERING"
        assert (await job).state is q.JobState.DONE
    assert caplog.text.count("PONDERING") == 1
