"""The ends of things: an interrupt, a session that is closed, another loop, a fork."""

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
from faults import GOOD, LIST, FaultServer, http, nothing_left

import qamera_async as q
from qamera_async.ledger.file import LedgerFile
from qamera_async.sandbox import Sandbox

PROGRAMS = Path(__file__).with_name("lifetime_programs.py")


async def started(name, **asked):
    """Start a program; its output is read by the caller."""
    return await start(
        sys.executable, "-Wignore::DeprecationWarning", PROGRAMS, name, json.dumps(asked),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def entries(ledger):
    async with LedgerFile(ledger) as file:
        return [entry async for entry in file.entries()]


# --- Ctrl-C -------------------------------------------------------------------------------------


async def interrupted(sandbox, ledger):
    """Start a registration and press Ctrl-C once it is on the wire; it says so when that has arrived."""
    process = await started("register", url=sandbox.url, key=sandbox.api_key, ledger=str(ledger))
    while not sandbox.orders:
        await asyncio.sleep(0.005)
    process.send_signal(signal.SIGINT)
    assert await process.stdout.readline() == b"cancelled\n"
    return process


@pytest.mark.case(54)
async def test_ctrl_c_drains_what_is_on_the_wire(tmp_path):
    """asyncio.run ends with KeyboardInterrupt, and the receipt is in the log and in the ledger."""
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
async def test_ctrl_c_twice_leaves_the_intent_in_the_ledger(tmp_path, quick):
    """It ends at once; the next run says that it is ambiguous, and sends nothing."""
    async with Sandbox(quota=None) as sandbox:
        sandbox.trouble("hang")
        process = await interrupted(sandbox, tmp_path / "jobs.db")
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
        (entry,) = await entries(tmp_path / "jobs.db")
        async with sandbox.session(**quick, ledger=tmp_path / "jobs.db") as session:
            with pytest.raises(q.AmbiguousSubmissionError) as doubt:
                await session.register_video(image_id="img_1", ref="sku-1")

        assert [request.method for request in sandbox.requests] == ["POST"]
    assert b"KeyboardInterrupt" in err
    assert (entry.state.value, entry.busy) == ("ambiguous", False)
    assert doubt.value.intent.id == entry.id == sandbox.orders[0].idempotency_key


def sent(sandbox, *, answered=None):
    """Give the keys of the POSTs that have arrived; only those with an answer by now, or without."""
    return {
        request.headers["Idempotency-Key"]
        for request in sandbox.requests
        if request.method == "POST" and answered in {None, request.status is not None}
    }


async def signalled(sandbox, folder, number):
    """Send a signal to a batch of the command with several POSTs on the wire; give it, and their keys."""
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
async def test_a_signal_loses_no_receipt_of_what_was_on_the_wire(tmp_path, number):
    """Each POST that was unanswered at the signal has its receipt in the ledger, and so has each order."""
    async with Sandbox(quota=None, credits=10**6) as sandbox:
        sandbox.trouble("slow", seconds=0.3, times=1000)
        process, on_the_wire = await signalled(sandbox, tmp_path, number)
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
async def test_a_second_signal_forgets_nothing_of_what_was_on_the_wire(tmp_path, number):
    """The command exits at once. The ledger has each unanswered POST as ambiguous.

    A submission that was committed as "sending" and had not left yet may be ambiguous too.
    """
    async with Sandbox(quota=None, credits=10**6) as sandbox:
        sandbox.trouble("hang", times=1000)
        process, on_the_wire = await signalled(sandbox, tmp_path, number)
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


# --- closed -------------------------------------------------------------------------------------


async def updated(job):
    return [video async for video in job.updates()]


WAITS = {
    "await": lambda session, job, path: job.wait(),
    "updates": lambda session, job, path: updated(job),
    "download": lambda session, job, path: session.download(job, path),
    "download of the job": lambda session, job, path: job.download(path),
}


@pytest.mark.case(56)
@pytest.mark.parametrize("poll", ["on the wire", "between two"])
async def test_closed_while_polls_run_all_who_wait_are_told(quick, caplog, tmp_path, poll):
    """SessionClosedError for each of them; no warning, no task and no connection is left."""
    asked = asyncio.Event()
    pending = http(LIST.replace(b"DONE", b"PENDING"))

    async def lists(connection):
        await connection.request()
        if poll == "on the wire":
            asked.set()
            await connection.hang()
        else:
            await connection.send(pending)

    # An interval so long that what has told the first list is surely between two of them.
    polling = quick["polling"] if poll == "on the wire" else q.PollPolicy(60.0, 60.0, 60.0)
    options = quick | {"polling": polling, "on_event": lambda event: asked.set()}
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
            await asked.wait()
            await session.aclose()
            await asyncio.wait(waiting.values())
            ends = {way: type(waiter.exception()) for way, waiter in waiting.items()}
            nothing_left(session)
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


# --- in another loop, after a fork --------------------------------------------------------------

USES = {
    "list_videos": lambda session: session.list_videos(),
    "register_video": lambda session: session.register_video(image_id="i"),
    "wait": lambda session: session.job("vid_1").wait(),
    "download": lambda session: session.download(session.job("vid_1"), "clip.mp4"),
    "unfinished": lambda session: session.unfinished(),
    "aclose": lambda session: session.aclose(),
}


def refusals(session):
    """Give what the methods of a session say, each in a loop of its own."""

    async def refused(use):
        with pytest.raises(q.SessionClosedError) as error:
            await use(session)
        return str(error.value)

    return {name: asyncio.run(refused(use)) for name, use in USES.items()}


@pytest.mark.case(58)
async def test_a_second_loop_is_refused(quick, tmp_path):
    """A clear error from each method in another thread's loop, and no request; the first one goes on."""
    async with FaultServer(GOOD) as server:
        async with server.session(**quick, ledger=tmp_path / "jobs.db") as session:
            await session.list_videos()
            told = await asyncio.to_thread(refusals, session)
            assert server.methods == ["GET"]
            assert (await session.register_video(image_id="i")).record_ids == ("vid_1",)
        nothing_left(session)

    assert {"another event loop" in text for text in told.values()} == {True}


@pytest.mark.case(58)
def test_a_loop_after_the_first_is_refused(quick, tmp_path):
    """Also where the first one doesn't run any more: a clear error in place of a wait without end."""
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
    """In the child: a clear error from each method, and no request. The parent goes on and closes."""
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
