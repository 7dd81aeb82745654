"""Cancelled on the way: what is on the wire comes to its end, and nobody else is touched.

At which moment makes no difference: test_sweep_cancellation.py goes through all of them.
"""

import asyncio
import math

import pytest
from faults import LIST, RECEIPT, FaultServer, http, nothing_left

from qamera_async.events import Submitted
from qamera_async.sandbox import Sandbox

pytestmark = [pytest.mark.usefixtures("no_lost_exceptions"), pytest.mark.every_loop]


class Gate:
    """The fault that keeps each answer to a POST back until it is opened."""

    def __init__(self):
        self.opened = asyncio.Event()
        self.arrived = asyncio.Semaphore(0)

    async def __call__(self, connection):
        if await connection.request() == "POST":
            self.arrived.release()
            await self.opened.wait()
            await connection.send(http(RECEIPT))
        else:
            await connection.send(http(LIST))


async def kept(session, caplog, record_ids):
    """See that receipts whose callers are gone are in the log, and in the ledger where there is one."""
    while session._submitter._orders:
        await asyncio.sleep(0.001)
    assert all(record_id in caplog.text for record_id in record_ids)
    if session._keeps_receipts:
        assert [job.record_ids for job in await session.unfinished()] == [(i,) for i in record_ids]


@pytest.fixture(params=["no ledger", "ledger"])
def options(quick, request, tmp_path):
    """The settings of a session without a ledger, and with one."""
    return quick | ({"ledger": tmp_path / "jobs.db"} if request.param == "ledger" else {})


@pytest.mark.case(52)
async def test_a_siblings_failure_in_a_task_group_keeps_the_receipts(options, caplog):
    """The group cancels the registrations; each was sent once, and its receipt is kept."""
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
        await kept(session, caplog, [order.record_ids[0] for order in sandbox.orders])
    nothing_left(session)

    assert [type(error) for error in raised.value.exceptions] == [LookupError]
    assert all(task.cancelled() for task in tasks)
    assert [request.method for request in sandbox.requests] == ["POST"] * 3


@pytest.mark.case(53)
async def test_cancelled_twice_on_the_wire_the_receipt_is_kept(options, caplog):
    """The second cancellation reaches the POST no more than the first one."""
    events = []
    gate = Gate()
    async with FaultServer(gate) as server:
        async with server.session(**options, on_event=events.append) as session:
            task = asyncio.ensure_future(session.register_video(image_id="i", ref="sku-1"))
            await gate.arrived.acquire()
            task.cancel()
            task.cancel()
            await asyncio.wait([task])
            gate.opened.set()
            await kept(session, caplog, ["vid_1"])
        nothing_left(session)

    assert task.cancelled()
    assert server.methods == ["POST"]
    assert [type(event) for event in events] == [Submitted]


@pytest.mark.case(53)
async def test_cancelled_again_while_it_is_drained_the_receipt_is_kept(options, caplog):
    """Neither the registration nor the closing that waits for it can be made to drop it."""
    gate = Gate()

    async def program():
        async with session:
            await session.register_video(image_id="i", ref="sku-1")

    async with FaultServer(gate) as server:
        session = server.session(**options)
        task = asyncio.ensure_future(program())
        await gate.arrived.acquire()
        task.cancel()
        while "closing" not in repr(session):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        gate.opened.set()
        await session.aclose()
        assert "vid_1" in caplog.text
        if "ledger" in options:
            async with server.session(**options) as session:
                assert [job.record_ids for job in await session.unfinished()] == [("vid_1",)]
        nothing_left(session)

    assert task.cancelled()
    assert server.methods == ["POST"]


async def updated(job):
    return [video async for video in job.updates()][-1]


async def awaited(job):
    return await job


WAYS = {
    "await": awaited,
    "wait": lambda job: job.wait(),
    "wait without a limit": lambda job: job.wait(None),
    "updates": updated,
}


@pytest.mark.case(57)
@pytest.mark.parametrize("way", WAYS)
async def test_one_cancelled_waiter_leaves_the_others(quick, way):
    """Whichever way it waited: the others get the video, of the same job and of another handle."""
    async with Sandbox(job_seconds=math.inf, quota=None) as sandbox, sandbox.session(**quick) as session:
        job = await session.register_video(image_id="i")
        (record_id,) = job.record_ids
        jobs = [job, job, session.job(record_id)]
        waiters = [asyncio.ensure_future(wait(one)) for one in jobs for wait in WAYS.values()]
        leaving = asyncio.ensure_future(WAYS[way](job))
        while len(sandbox.requests) < 3:
            await asyncio.sleep(0.001)
        leaving.cancel()
        await asyncio.wait([leaving])
        sandbox.finish(record_id)

        assert {(await waiter).status for waiter in waiters} == {"DONE"}
        assert leaving.cancelled()
        assert (await WAYS[way](job)).status == "DONE"
    nothing_left(session)


@pytest.mark.case(57)
async def test_the_last_waiter_cancelled_ends_the_polls(quick):
    """Nobody is left who waits, so nothing more is asked; the job can be awaited again."""
    async with Sandbox(job_seconds=math.inf, quota=None) as sandbox, sandbox.session(**quick) as session:
        job = await session.register_video(image_id="i")
        waiters = [asyncio.ensure_future(wait(job)) for wait in WAYS.values()]
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
    nothing_left(session)
