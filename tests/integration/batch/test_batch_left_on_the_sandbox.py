"""A batch of a session that is left early or cancelled: each receipt is handed out or logged."""

import asyncio
import logging

import pytest
from batch_helpers import batch_tasks, posts, until, videos

import qamera_async as q
from qamera_async.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")


@pytest.fixture
async def sandbox():
    async with Sandbox(job_seconds=0.02, quota=None, credits=1_000_000) as sandbox:
        yield sandbox


def assert_nothing_lost(sandbox, caplog, handed_out):
    logged = "\n".join(r.getMessage() for r in caplog.records if r.levelno == logging.WARNING)
    handed_out_ids = {record_id for outcome in handed_out for record_id in outcome.job.record_ids}
    for order in sandbox.orders:
        assert set(order.record_ids) <= handed_out_ids or order.record_ids[0] in logged


@pytest.mark.parametrize("form", ["for", "context"])
@pytest.mark.parametrize("after", [1, 7])
async def test_leaving_early_submits_nothing_more(new_session, sandbox, caplog, after, form):
    outcomes = []
    async with new_session(ledger=None) as qamera:
        batch = qamera.batch(videos(1000), max_in_flight=20)
        if form == "for":
            async for outcome in batch:
                outcomes.append(outcome)
                if len(outcomes) == after:
                    break
        else:
            async with batch:
                async for outcome in batch:
                    outcomes.append(outcome)
                    if len(outcomes) == after:
                        break
        await asyncio.sleep(0.05)
        before = len(posts(sandbox))
        await asyncio.sleep(0.05)

        assert len(posts(sandbox)) == before <= after + 20
    assert_nothing_lost(sandbox, caplog, outcomes)


@pytest.mark.parametrize("form", ["await", "for"])
async def test_batch_cancelled_at_any_point_loses_no_receipt(quick, caplog, form):
    for point in range(40):
        async with (
            Sandbox(job_seconds=0.004, quota=None) as sandbox,
            sandbox.session(**quick | {"polling": q.PollPolicy(interval=0.003)}) as qamera,
        ):
            caplog.clear()
            outcomes = []
            batch = qamera.batch(videos(1000), max_in_flight=6)

            async def consume(batch=batch, outcomes=outcomes):
                if form == "await":
                    await batch
                async for outcome in batch:
                    outcomes.append(outcome)
                    await asyncio.sleep(0)

            task = asyncio.ensure_future(consume())
            if point < 20:
                for _ in range(point):
                    await asyncio.sleep(0)
            else:
                await asyncio.sleep((point - 20) * 0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            del task
            await until(lambda: not batch_tasks())
            await qamera.aclose()
            assert_nothing_lost(sandbox, caplog, outcomes)


async def test_rerun_with_the_ledger_continues_after_a_cancellation(new_session, sandbox):
    async with new_session() as qamera:
        batch = qamera.batch(videos(20), max_in_flight=6)
        async with batch:
            async for _ in batch:
                break
    async with new_session() as qamera:
        result = await qamera.batch(videos(20))

    assert len(result.records) == 20
    assert len(sandbox.orders) == 20


async def test_requests_that_queue_for_the_rate_limit_are_not_sent_after_leaving(quick):
    async with Sandbox(quota=(3, 1e6)) as sandbox, sandbox.session(**quick) as qamera:
        async with qamera.batch(videos(20)) as batch:
            running = asyncio.ensure_future(anext(aiter(batch)))
            await until(lambda: qamera.rate_limiter.waiting)
            running.cancel()
            await asyncio.wait([running])

        assert qamera.rate_limiter.waiting == 0
