"""Signals, closed sessions, second event loops and forks."""

import asyncio
import gc
import json
import signal
import sys
import warnings
from pathlib import Path

import pytest
from children import start
from command import QUICK
from command import started as command_started
from faults import GOOD, LIST, FaultServer, assert_nothing_left, http

import qamera_async as q
from qamera_async.ledger.file import LedgerFile
from qamera_async.sandbox import Sandbox

PROGRAMS = Path(__file__).with_name("lifetime_programs.py")


async def started(name, **asked):
    """Start a program of lifetime_programs.py; the caller reads its output."""
    return await start(
        sys.executable, "-Wignore::DeprecationWarning", PROGRAMS, name, json.dumps(asked),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def entries(ledger):
    async with LedgerFile(ledger) as file:
        return [entry async for entry in file.entries()]


# --- Ctrl-C -------------------------------------------------------------------------------------


async def interrupted(sandbox, ledger):
    """Send SIGINT to a program whose POST is on the wire; return after the program has received it."""
    process = await started("register", url=sandbox.url, key=sandbox.api_key, ledger=str(ledger))
    while not sandbox.orders:
        await asyncio.sleep(0.005)
    process.send_signal(signal.SIGINT)
    assert await process.stdout.readline() == b"cancelled\n"
    return process


@pytest.mark.case(54)
async def test_ctrl_c_waits_for_the_receipt_on_the_wire(tmp_path):
    """`asyncio.run` raises KeyboardInterrupt, and the receipt is in the log and in the ledger."""
    async with Sandbox(quota=None) as sandbox:
        sandbox.trouble("slow", seconds=0.3)
        process = await interrupted(sandbox, tmp_path / "jobs.db")
        on_the_wire = sent(sandbox, answered=False)
        out, err = await process.communicate()
        (order,) = sandbox.orders
        (entry,) = await entries(tmp_path / "jobs.db")

    assert b"KeyboardInterrupt" in err
    assert on_the_wire == {entry.id} == {order.idempotency_key}
    assert order.record_ids[0].encode() in out
    assert (entry.state.value, list(entry.record_ids)) == ("submitted", list(order.record_ids))


@pytest.mark.case(54)
async def test_second_ctrl_c_leaves_an_ambiguous_intent(tmp_path, quick):
    """The program exits immediately. The next session raises AmbiguousSubmissionError and sends nothing."""
    async with Sandbox(quota=None) as sandbox:
        sandbox.trouble("hang")
        process = await interrupted(sandbox, tmp_path / "jobs.db")
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
        (entry,) = await entries(tmp_path / "jobs.db")
        async with sandbox.session(**quick, ledger=tmp_path / "jobs.db") as session:
            with pytest.raises(q.AmbiguousSubmissionError) as raised:
                await session.register_video(image_id="img_1", ref="sku-1")

        assert [request.method for request in sandbox.requests] == ["POST"]
    assert b"KeyboardInterrupt" in err
    assert (entry.state.value, entry.busy) == ("ambiguous", False)
    assert raised.value.intent.id == entry.id == sandbox.orders[0].idempotency_key


def sent(sandbox, *, answered=None):
    """Return the idempotency keys of the POSTs that have arrived.

    Args:
        sandbox: The sandbox.
        answered: Whether to return answered or unanswered POSTs; None returns both.
    """
    return {
        request.headers["Idempotency-Key"]
        for request in sandbox.requests
        if request.method == "POST" and answered in {None, request.status is not None}
    }


async def batch_with_signal(sandbox, folder, number):
    """Send a signal to a batch command with several POSTs on the wire; return its process and their keys."""
    rows = "".join(f"img_{n},sku-{n}\n" for n in range(300))
    (folder / "catalogue.csv").write_text(f"image_id,ref\n{rows}")
    process = await command_started(
        "batch", "catalogue.csv", "--to", "clips", "--ledger", "jobs.db", *QUICK, sandbox=sandbox, cwd=folder
    )
    while len(sent(sandbox, answered=False)) < 3:
        await asyncio.sleep(0.002)
    process.send_signal(number)
    return process, sent(sandbox, answered=False)


SIGNALS = pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGINT, marks=pytest.mark.case(54)),
        pytest.param(signal.SIGTERM, marks=pytest.mark.case(55)),
    ],
)


@SIGNALS
async def test_signal_loses_no_receipt_of_a_post_on_the_wire(tmp_path, number):
    """The ledger has the receipts of all orders, including the POSTs that were unanswered at the signal."""
    async with Sandbox(quota=None, credits=10**6) as sandbox:
        sandbox.trouble("slow", seconds=0.3, times=1000)
        process, on_the_wire = await batch_with_signal(sandbox, tmp_path, number)
        _, err = await process.communicate()
        kept = {entry.id: entry for entry in await entries(tmp_path / "jobs.db")}

    assert process.returncode == 130, err.decode()
    assert len(on_the_wire) >= 3
    assert {kept[key].state.value for key in on_the_wire} == {"submitted"}
    assert {key: entry.record_ids for key, entry in kept.items()} == {
        order.idempotency_key: order.record_ids for order in sandbox.orders
    }
    assert kept.keys() == sent(sandbox) == sent(sandbox, answered=True)
    assert len(kept) < 300


MOST_ON_THE_WIRE = 5


@SIGNALS
async def test_second_signal_leaves_each_post_on_the_wire_ambiguous(tmp_path, number):
    """The command exits immediately, and the ledger has each unanswered POST as ambiguous.

    A submission that was committed as "sending" but not yet sent may be ambiguous too.
    """
    async with Sandbox(quota=None, credits=10**6) as sandbox:
        sandbox.trouble("hang", times=1000)
        process, on_the_wire = await batch_with_signal(sandbox, tmp_path, number)
        while b"Stopping" not in await process.stderr.readline():
            pass
        process.send_signal(number)
        await process.communicate()
        kept = {entry.id: entry for entry in await entries(tmp_path / "jobs.db")}

    assert process.returncode == 130
    assert len(on_the_wire) >= 3
    assert on_the_wire <= kept.keys()
    ambiguous = {key for key, entry in kept.items() if entry.state.value == "ambiguous"}
    assert sent(sandbox) <= ambiguous
    assert len(ambiguous) <= MOST_ON_THE_WIRE
    assert {order.idempotency_key for order in sandbox.orders} <= kept.keys()


# --- closed sessions ----------------------------------------------------------------------------


async def updated(job):
    return [video async for video in job.updates()]


WAITS = {
    "await": lambda session, job, path: job.wait(),
    "updates": lambda session, job, path: updated(job),
    "download": lambda session, job, path: session.download(job, path),
    "download of the job": lambda session, job, path: job.download(path),
}


@pytest.mark.case(56)
@pytest.mark.parametrize("poll", ["on the wire", "between two polls"])
async def test_closing_during_polling_fails_all_waiters(quick, caplog, tmp_path, poll):
    """Each waiter gets SessionClosedError, and no warning, task or connection is left."""
    polled = asyncio.Event()
    pending = http(LIST.replace(b"DONE", b"PENDING"))

    async def lists(connection):
        await connection.request()
        if poll == "on the wire":
            polled.set()
            await connection.hang()
        else:
            await connection.send(pending)

    # With this interval, the event of the first poll is surely emitted between two polls.
    polling = quick["polling"] if poll == "on the wire" else q.PollPolicy(60.0, 60.0, 60.0)
    options = quick | {"polling": polling, "on_event": lambda event: polled.set()}
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        async with FaultServer(lists) as server:
            before = asyncio.all_tasks()
            session = server.session(**options)
            jobs = [session.job("vid_1"), session.job("vid_1", "vid_2")]
            waiting = {
                f"{way} {n}": asyncio.ensure_future(wait(session, job, tmp_path / "clip.mp4"))
                for n, job in enumerate(jobs)
                for way, wait in WAITS.items()
            }
            await polled.wait()
            await session.aclose()
            await asyncio.wait(waiting.values())
            ends = {way: type(waiter.exception()) for way, waiter in waiting.items()}
            assert_nothing_left(session)
            while server._tasks:
                await asyncio.wait(server._tasks)
            left = asyncio.all_tasks() - before
        del session, jobs, waiting
        gc.collect()

    assert ends == dict.fromkeys(ends, q.SessionClosedError)
    assert left == set()
    assert [str(warning.message) for warning in warned] == []
    assert caplog.messages == []
    assert set(server.methods) == {"GET"}
    assert list(tmp_path.iterdir()) == []


# --- second event loops and forks ---------------------------------------------------------------

USES = {
    "list_videos": lambda session: session.list_videos(),
    "register_video": lambda session: session.register_video(image_id="i"),
    "wait": lambda session: session.job("vid_1").wait(),
    "download": lambda session: session.download(session.job("vid_1"), "clip.mp4"),
    "unfinished": lambda session: session.unfinished(),
    "aclose": lambda session: session.aclose(),
}


def refusals(session):
    """Return the error text of each method of a session, each called in a new event loop."""

    async def refused(use):
        with pytest.raises(q.SessionClosedError) as error:
            await use(session)
        return str(error.value)

    return {name: asyncio.run(refused(use)) for name, use in USES.items()}


@pytest.mark.case(58)
async def test_second_event_loop_is_refused(quick, tmp_path):
    """Each method raises an error in the loop of another thread. The first loop can still use the session."""
    async with FaultServer(GOOD) as server:
        async with server.session(**quick, ledger=tmp_path / "jobs.db") as session:
            await session.list_videos()
            told = await asyncio.to_thread(refusals, session)
            assert server.methods == ["GET"]
            assert (await session.register_video(image_id="i")).record_ids == ("vid_1",)
        assert_nothing_left(session)

    assert {"another event loop" in text for text in told.values()} == {True}


@pytest.mark.case(58)
def test_event_loop_is_refused_after_the_first_one_has_ended(quick, tmp_path):
    """Each method raises an error instead of waiting for ever."""
    session = q.QameraSession(
        "mk_live_a.bcdefgh", base_url="http://127.0.0.1:9", ledger=tmp_path / "jobs.db", **quick
    )

    async def first_use():
        with pytest.raises(q.ConnectionFailedError):
            await session.list_videos()

    with asyncio.Runner() as first:
        first.run(first_use())
        told = refusals(session)
        first.run(session.aclose())

    assert {"another event loop" in text for text in told.values()} == {True}


@pytest.mark.case(58)
@pytest.mark.parametrize("ledger", [False, True])
async def test_use_after_a_fork_is_refused(tmp_path, ledger):
    """Each method raises an error in the child and sends nothing. The parent can still use the session."""
    async with Sandbox(job_seconds=0.05, quota=None) as sandbox:
        asked = {"url": sandbox.url, "key": sandbox.api_key}
        process = await started("fork", **asked, ledger=str(tmp_path / "jobs.db") if ledger else None)
        out, err = await process.communicate()

    told = json.loads(out)
    assert (process.returncode, err) == (0, b"")
    assert told.pop("parent") == "DONE"
    assert len(told) > 10
    assert {"before a fork" in text for text in told.values()} == {True}
    assert [r.method for r in sandbox.requests if r.origin == "api" and r.method == "POST"] == ["POST"]
