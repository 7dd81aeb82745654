"""Cancelled callers lose no receipt, and cancelled waiters affect no other waiter.

test_sweep_cancellation.py cancels callers at every iteration of the event loop.
"""

import asyncio
import math

import pytest
from faults import LIST, RECEIPT, FaultServer, assert_nothing_left, http

from qamera_async.events import Submitted
from qamera_async.sandbox import Sandbox

pytestmark = [pytest.mark.usefixtures("no_lost_exceptions"), pytest.mark.case(104), pytest.mark.every_loop]


class DelayedReceipt:
    """A server that answers POSTs only once `resume` is set."""

    def __init__(self):
        self.resume = asyncio.Event()
        self.arrived = asyncio.Semaphore(0)

    async def __call__(self, connection):
        if await connection.request() == "POST":
            self.arrived.release()
            await self.resume.wait()
            await connection.send(http(RECEIPT))
        else:
            await connection.send(http(LIST))


async def assert_recorded(session, caplog, record_ids, *, has_ledger):
    """Assert that receipts without a caller are in the log, and in the ledger if the session has one."""
    while [task for task in asyncio.all_tasks() if task.get_name().startswith("qamera-submit")]:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0)
    assert all(record_id in caplog.text for record_id in record_ids)
    if has_ledger:
        assert {job.record_ids for job in await session.unfinished()} == {(i,) for i in record_ids}


@pytest.fixture(params=["no ledger", "ledger"])
def options(quick, request, tmp_path):
    """Return the settings of a session without a ledger, and with one."""
    return quick | ({"ledger": tmp_path / "jobs.db"} if request.param == "ledger" else {})


@pytest.mark.case(52)
async def test_failing_task_group_loses_no_receipt(options, caplog):
    """The group cancels its other tasks while their POSTs are on the wire."""
    async with Sandbox(quota=None) as sandbox, sandbox.session(**options) as session:
        sandbox.trouble("slow", seconds=0.1, times=3)

        async def fail():
            while len(sandbox.orders) < 3:
                await asyncio.sleep(0.001)
            raise LookupError

        with pytest.raises(ExceptionGroup) as raised:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(session.register_video(image_id=f"img_{n}")) for n in range(3)]
                group.create_task(fail())
        await assert_recorded(
            session,
            caplog,
            [order.record_ids[0] for order in sandbox.orders],
            has_ledger="ledger" in options,
        )
    assert_nothing_left(session)

    assert [type(error) for error in raised.value.exceptions] == [LookupError]
    assert all(task.cancelled() for task in tasks)
    assert [request.method for request in sandbox.requests] == ["POST"] * 3


@pytest.mark.case(53)
async def test_caller_cancelled_twice_loses_no_receipt(options, caplog):
    events = []
    delayed = DelayedReceipt()
    async with FaultServer(delayed) as server:
        async with server.session(**options, on_event=events.append) as session:
            task = asyncio.ensure_future(session.register_video(image_id="i", ref="sku-1"))
            await delayed.arrived.acquire()
            task.cancel()
            task.cancel()
            await asyncio.wait([task])
            delayed.resume.set()
            await assert_recorded(session, caplog, ["vid_1"], has_ledger="ledger" in options)
        assert_nothing_left(session)

    assert task.cancelled()
    assert server.methods == ["POST"]
    assert [type(event) for event in events] == [Submitted]


@pytest.mark.case(53)
async def test_caller_cancelled_again_while_the_session_closes_loses_no_receipt(options, caplog):
    delayed = DelayedReceipt()

    async def program():
        async with session:
            await session.register_video(image_id="i", ref="sku-1")

    async with FaultServer(delayed) as server:
        session = server.session(**options)
        task = asyncio.ensure_future(program())
        await delayed.arrived.acquire()
        task.cancel()
        while not session.closed:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        delayed.resume.set()
        await session.aclose()
        assert "vid_1" in caplog.text
        if "ledger" in options:
            async with server.session(**options) as session:
                assert [job.record_ids for job in await session.unfinished()] == [("vid_1",)]
        assert_nothing_left(session)

    assert task.cancelled()
    assert server.methods == ["POST"]


async def await_job(job):
    return await job


async def wait_with_limit(job):
    return await job.wait(timeout=60.0)


async def last_update(job):
    return [video async for video in job.updates()][-1]


WAITS = {"await": await_job, "wait": wait_with_limit, "updates": last_update}


@pytest.mark.case(57)
@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
async def test_cancelled_waiter_affects_no_other_waiter(quick, wait):
    async with Sandbox(job_seconds=math.inf, quota=None) as sandbox, sandbox.session(**quick) as session:
        job = await session.register_video(image_id="i")
        (record_id,) = job.record_ids
        jobs = [job, job, session.job(record_id)]
        waiters = [asyncio.ensure_future(other(one)) for one in jobs for other in WAITS.values()]
        leaving = asyncio.ensure_future(wait(job))
        while len(sandbox.requests) < 3:
            await asyncio.sleep(0.001)
        leaving.cancel()
        await asyncio.wait([leaving])
        sandbox.finish(record_id)

        assert {(await waiter).status for waiter in waiters} == {"DONE"}
        assert leaving.cancelled()
        assert (await wait(job)).status == "DONE"
    assert_nothing_left(session)


@pytest.mark.case(57)
async def test_cancelling_the_last_waiter_ends_the_polls(quick):
    """The job can be awaited again."""
    async with Sandbox(job_seconds=math.inf, quota=None) as sandbox, sandbox.session(**quick) as session:
        job = await session.register_video(image_id="i")
        waiters = [asyncio.ensure_future(wait(job)) for wait in WAITS.values()]
        while len(sandbox.requests) < 3:
            await asyncio.sleep(0.001)
        for waiter in waiters:
            waiter.cancel()
        await asyncio.wait(waiters)
        while sandbox.requests[-1].status is None:
            await asyncio.sleep(0.001)
        asked = len(sandbox.requests)
        await asyncio.sleep(10 * quick["polling"].interval)
        assert len(sandbox.requests) == asked
        sandbox.finish(job.record_ids[0])

        assert (await job).status == "DONE"
    assert_nothing_left(session)
