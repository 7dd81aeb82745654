"""A ledger can be copied into another: wholly or not at all, and nobody orders with both."""

import asyncio
import contextlib
import os
import random
import shutil
import signal
import sys
import threading
from datetime import UTC, datetime

import attrs
import postgres
import psycopg
import pytest
from test_ledger_prune import OLD, ask, filled, row

import qamera_async as q
from qamera_async.ledger import LedgerFile, LedgerState, copy_ledger
from qamera_async.ledger.copying import _Copying
from qamera_async.ledger.intents import Intents
from qamera_async.ledger.postgres.session import Session
from qamera_async.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")

WORD = "sw0rdf1sh"
KINDS = ("sqlite", "postgres")
KILLS = 20 if os.environ.get("QAMERA_SWEEPS") == "full" else 3
SEED = int(os.environ.get("QAMERA_SEED") or random.SystemRandom().randrange(2**32))
COPYING = """
import asyncio, sys
from qamera_async.ledger import copy_ledger
print("begins", flush=True)
print(asyncio.run(copy_ledger(*sys.argv[1:])), flush=True)
"""
LOOKING = """
import asyncio, sys
from qamera_async.ledger import LedgerFile
async def main():
    async with LedgerFile(sys.argv[1]):
        print("in", flush=True)
        sys.stdin.read()
asyncio.run(main())
"""

to_a_database = pytest.mark.parametrize(("path", "target"), [("sqlite", "postgres")], indirect=True)
from_a_database = pytest.mark.parametrize(("path", "target"), [("postgres", "sqlite")], indirect=True)


def a_place(kind, folder):
    return folder / "jobs.db" if kind == "sqlite" else postgres.server().database()


@pytest.fixture(params=KINDS)
def path(request, tmp_path):
    """Where the source is to be: a file, or a database that has none yet."""
    return a_place(request.param, tmp_path)


@pytest.fixture(params=KINDS)
def target(request, tmp_path):
    """Where the copy is to be; a file is in another folder than the source."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return a_place(request.param, folder)


@pytest.fixture
async def sandbox():
    async with Sandbox(job_seconds=0.05, quota=None) as sandbox:
        yield sandbox


async def entries(path):
    async with LedgerFile(path) as ledger:
        return [entry async for entry in ledger.entries()]


async def ids(path):
    return [entry.id.removeprefix("int_") for entry in await entries(path)]


async def is_marked(path):
    """Whether it says that it was moved."""
    try:
        await entries(path)
    except q.LedgerUnavailableError as error:
        return "was moved" in str(error)
    return False


async def refused(path, text):
    """See a ledger be refused; give the error."""
    with pytest.raises(q.LedgerUnavailableError, match=text) as found:
        await entries(path)
    return found.value


@contextlib.contextmanager
def stopped_at_a_piece(monkeypatch):
    """Let a copy stop before its first rows are written: give what tells so, and what lets it go on."""
    put, here, on = Intents.put, threading.Event(), threading.Event()

    def waits(self, connection, rows):
        here.set()
        assert on.wait(20)
        return put(self, connection, rows)

    monkeypatch.setattr(Intents, "put", waits)
    try:
        yield here, on
    finally:
        on.set()
        monkeypatch.setattr(Intents, "put", put)


# --- what is copied -----------------------------------------------------------------------------


async def test_each_request_is_as_it_was(path, target):
    """In its order, with all that is known of it, whichever kind of ledger it goes to."""
    states = [state for state in LedgerState if state not in {LedgerState.CLAIMED, LedgerState.SENDING}]
    receipt = q.Receipt(("vid_all",), "b", "o", "r", 10, "c")
    video = q.Video("vid_all", "DONE", q.JobState.DONE, "n", None, "https://x/v", None, OLD)
    await filled(path, *[row(f"ordered anew {state.value}", state) for state in states], current=False)
    rows = [row(state.value, state) for state in states]
    rows += [row("all", receipt=receipt, videos=(video,), reason="why", downloaded_at=datetime.now(UTC))]
    rows += [
        row("no ref", ref=None),
        row("strange", ref="a\\b\\0\0'é%s?; --"),
        row("other", origin="http://h"),
    ]
    await filled(path, *rows)
    before = await entries(path)
    copied = await copy_ledger(path, target)
    after = await entries(target)

    assert after == before
    assert copied == len(after) == 2 * len(states) + 4


async def test_what_was_cut_off_is_ambiguous_and_a_claim_is_left_out(path, target):
    """Of what a dead process was sending nobody knows; of what it had claimed nothing was sent."""
    rows = [
        row("sent", LedgerState.SENDING, owner=7),
        row("claimed", LedgerState.CLAIMED, owner=7),
        row("done"),
    ]
    await filled(path, *rows)
    copied = await copy_ledger(path, target)
    found = {entry.id: entry for entry in await entries(target)}

    assert copied == 2
    assert {name: entry.state for name, entry in found.items()} == {
        "int_sent": LedgerState.AMBIGUOUS,
        "int_done": LedgerState.DONE,
    }
    assert "ended before the answer" in found["int_sent"].reason


async def test_a_long_ledger_is_copied_piece_by_piece(path, target, monkeypatch):
    """It need not fit into memory."""
    await filled(path, *[row(str(number)) for number in range(450)])
    put, sizes = Intents.put, []

    def counted(self, connection, rows):
        sizes.append(len(rows))
        return put(self, connection, rows)

    monkeypatch.setattr(Intents, "put", counted)
    assert await copy_ledger(path, target) == 450
    monkeypatch.undo()

    assert sizes == [200, 200, 50]
    assert await ids(target) == [str(number) for number in range(450)]


async def test_what_was_downloaded_is_found_from_the_copy(path, target, session, sandbox, tmp_path):
    """The clips stay where they are, and aren't fetched again."""
    request = q.VideoRequest("img_1", ref="sku-1")
    async with session() as qamera:
        (first,) = (await qamera.batch([request], download_to=tmp_path / "clips")).outcomes
    before = (await entries(path))[0].files
    await copy_ledger(path, target)
    after = (await entries(target))[0].files
    asked = len(sandbox.requests)
    async with session(ledger=target) as qamera:
        (again,) = (await qamera.batch([request], download_to=tmp_path / "clips")).outcomes

    assert list(before) == [first.path]
    assert after == before
    assert again.path == first.path
    assert len(sandbox.requests) == asked


async def test_a_rerun_with_the_copy_orders_nothing_again(path, target, session, sandbox):
    """What was done costs nothing, what is unfinished is waited for, a record belongs to its request."""
    async with session() as qamera:
        done = await qamera.register_video(image_id="i", ref="done")
        await done
        unfinished = await qamera.register_video(image_id="i", ref="unfinished")
        sandbox.trouble("reset_after")
        with pytest.raises(q.AmbiguousSubmissionError):
            await qamera.register_video(image_id="i", ref="ambiguous")
    await copy_ledger(path, target)
    async with session(ledger=target) as qamera:
        again = [await qamera.register_video(image_id="i", ref=ref) for ref in ("done", "unfinished")]
        await asyncio.gather(*again)
        (doubt,) = await qamera.ambiguous()
        with pytest.raises(q.InvalidRequestError, match="belongs to another"):
            await qamera.adopt(doubt, *done.record_ids)

    assert [job.record_ids for job in again] == [done.record_ids, unfinished.record_ids]
    assert len(sandbox.orders) == 3


# --- nobody orders with both --------------------------------------------------------------------


async def test_what_was_moved_can_not_be_opened(path, target, session, sandbox):
    """A session with it orders nothing, and the error says where it is; the password is in neither."""
    await filled(path, row("done"))
    address = str(target).replace("postgres@", f"postgres:{WORD}@")
    await copy_ledger(path, address)
    error = await refused(path, "was moved to ")
    with pytest.raises(q.LedgerUnavailableError, match="was moved"):
        async with session() as qamera:
            await qamera.register_video(image_id="i", ref="new")
    again = await refused(path, "was moved to ")

    assert sandbox.requests == []
    assert str(target).replace("postgres@", "") in str(error)
    assert "Give " in str(error)
    assert str(again) == str(error)
    assert WORD not in f"{error} {error!r} {vars(error)}"
    with pytest.raises(q.LedgerUnavailableError, match="was moved"):
        await copy_ledger(path, target)


async def test_one_that_is_kept_is_as_it_was(path, target):
    """For who wants to try the copy first."""
    await filled(path, row("done"))
    before = await entries(path)
    await copy_ledger(path, target, keep=True)

    assert await entries(path) == before == await entries(target)


async def test_the_source_is_refused_while_somebody_has_it_open(path, target, session, sandbox):
    """What he orders meanwhile would be missing."""
    async with session() as qamera:
        await qamera.register_video(image_id="i", ref="new")
        with pytest.raises(q.LedgerError, match="open: end that first"):
            await copy_ledger(path, target)
        await qamera.register_video(image_id="i", ref="newer")

    assert await ids(target) == []
    assert await copy_ledger(path, target) == 2


async def test_the_source_is_refused_while_another_process_has_it_open(path, target):
    """Whatever it does with it."""
    await filled(path, row("done"))
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", LOOKING, str(path), stdin=pipe, stdout=pipe
    )
    await process.stdout.readline()
    with pytest.raises(q.LedgerError, match="open: end that first"):
        await copy_ledger(path, target)
    process.kill()
    await process.wait()

    assert await copy_ledger(path, target) == 1


async def test_who_comes_meanwhile_finds_it_moved(path, target, monkeypatch):
    """Whoever is not seen as an owner sees where it was moved to."""
    await filled(path, row("done"))
    with stopped_at_a_piece(monkeypatch) as (here, on):
        copying = asyncio.create_task(copy_ledger(path, target))
        await asyncio.to_thread(here.wait, 20)
        coming = asyncio.create_task(refused(path, "was moved to"))
        await asyncio.sleep(0.3)
        waits = not coming.done()
        on.set()
        await coming

    assert waits
    assert await copying == 1


@pytest.mark.parametrize(("path", "target"), [(kind, "sqlite") for kind in KINDS], indirect=True)
async def test_a_file_is_no_target_while_somebody_has_it_open(path, target, session):
    """He could not write so long, and what he has paid for would be lost."""
    await filled(path, row("done"))
    async with session(ledger=target) as qamera:
        await qamera.unfinished()
        with pytest.raises(q.LedgerError, match="open: end that first"):
            await copy_ledger(path, target)

    assert await ids(path) == ["done"]
    assert await copy_ledger(path, target) == 1


@to_a_database
async def test_a_database_is_a_target_while_others_use_it(path, target, session, sandbox):
    """So that one machine after the other can move into it."""
    await filled(path, row("done"))
    async with session(ledger=target) as qamera:
        await qamera.register_video(image_id="i", ref="mine")
        copied = await copy_ledger(path, target)
        await qamera.register_video(image_id="i", ref="mine, too")

    assert copied == 1
    assert len(sandbox.orders) == 2
    assert [entry.request.ref for entry in await entries(target)] == ["mine", "done", "mine, too"]


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "text"),
    [
        (row("other", ref="sku"), "the ref 'sku'"),
        (row("same", LedgerState.FAILED, ref=None), "the id 'int_same'"),
        (row("other", record_ids=("vid_same",)), "the record 'vid_same'"),
    ],
)
async def test_what_the_target_has_otherwise_is_refused(path, target, there, text):
    """The same ref, id or record for another request: nothing is copied, and nothing moved."""
    rows = [row("first"), row("sku"), row("same", ref=None)]
    await filled(path, *rows)
    await filled(target, there)
    before = await entries(target)
    with pytest.raises(q.LedgerError, match=f"another request of {text} already"):
        await copy_ledger(path, target)

    assert await entries(target) == before
    assert await ids(path) == ["first", "sku", "same"]


async def test_a_record_of_two_requests_is_no_conflict(path, target):
    """It was so in the source."""
    rows = [row(str(number)) for number in range(300)]  # so that they are in different pieces
    await filled(path, *[attrs.evolve(row, record_ids=("vid_both",)) for row in rows])

    assert await copy_ledger(path, target) == 300
    assert await ask(target, "SELECT count(*) FROM records") == [(300,)]


async def test_a_row_that_is_damaged_is_not_copied(path, target):
    """Nor are the others."""
    await filled(path, row("done"), row("damaged"))
    await ask(path, "UPDATE intents SET ref = 'else' WHERE id = 'int_damaged' RETURNING 1")
    with pytest.raises(q.LedgerCorruptError, match="int_damaged"):
        await copy_ledger(path, target)

    assert await ids(target) == []
    assert (await ask(path, "SELECT count(*) FROM moved")) == [(0,)]


async def test_what_is_no_ledger_is_told(tmp_path, path):
    """No target is made for it."""
    with pytest.raises(q.LedgerError, match="no such ledger"):
        await copy_ledger(path, tmp_path / "copy.db")
    with pytest.raises(q.ConfigurationError):
        await copy_ledger(path, "mysql://h/db")

    assert list(tmp_path.iterdir()) == []


async def test_a_ledger_is_not_copied_to_itself(path, tmp_path):
    """However it is named."""
    await filled(path, row("done"))
    same = tmp_path / "link.db"
    if isinstance(path, str):
        same = f"{path}?application_name=apart"
    else:
        same.symlink_to(path)
    for name in (path, same):
        with pytest.raises(q.LedgerError, match=r"to itself|open: end that first"):
            await copy_ledger(path, name)

    assert await ids(path) == ["done"]


# --- whatever happens on the way ----------------------------------------------------------------


async def test_a_copy_that_is_cancelled_leaves_the_source_as_it_is(path, target, monkeypatch):
    """And nothing in the target; doing it again is all it takes."""
    await filled(path, *[row(str(number)) for number in range(300)])
    with stopped_at_a_piece(monkeypatch) as (here, on):
        copying = asyncio.create_task(copy_ledger(path, target))
        await asyncio.to_thread(here.wait, 20)
        copying.cancel()
        await asyncio.sleep(0.05)
        copying.cancel()  # no second one leaves a thread behind, either
        await asyncio.sleep(0.05)
        waits = not copying.done()
        on.set()
        with pytest.raises(asyncio.CancelledError):
            await copying
    there = await ids(target), len(await ids(path))
    copied = await copy_ledger(path, target)

    assert waits
    assert there == ([], 300)
    assert copied == 300
    assert [thread for thread in threading.enumerate() if thread.name == "qamera-ledger"] == []


async def test_what_was_copied_already_is_not_copied_twice(path, target, monkeypatch):
    """Where it was interrupted before the source was marked: what came since is added, and it is moved."""
    await filled(path, *[row(str(number)) for number in range(3)])
    await copy_ledger(path, target, keep=True)
    await filled(path, row("new"))
    copied = await copy_ledger(path, target)

    assert copied == 4
    assert await ids(target) == ["0", "1", "2", "new"]
    await refused(path, "was moved")


async def test_what_went_on_in_one_of_both_is_refused(path, target):
    """Nobody can tell which of the two is right."""
    await filled(path, row("sku", LedgerState.SUBMITTED))
    await copy_ledger(path, target, keep=True)
    async with LedgerFile(path) as ledger:
        await ledger._ledger.storage.change(
            "int_sku", set(LedgerState), lambda _: row("sku", settled_at=datetime.now(UTC))
        )
    with pytest.raises(q.LedgerError, match="another request of the ref 'sku'"):
        await copy_ledger(path, target)

    assert [entry.state for entry in await entries(target)] == [LedgerState.SUBMITTED]


@from_a_database
async def test_a_source_that_is_lost_on_the_way_is_not_marked(path, target, monkeypatch):
    """Others may have come in, so that the copy is not all there is."""
    await filled(path, *[row(str(number)) for number in range(300)])
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
    with stopped_at_a_piece(monkeypatch) as (here, on):
        copying = asyncio.create_task(copy_ledger(path, target))
        await asyncio.to_thread(here.wait, 20)
        postgres.execute(path, end + "AND pid <> pg_backend_pid()")
        on.set()
        with pytest.raises(q.LedgerUnavailableError):
            await copying

    assert await ids(target) == []
    assert len(await ids(path)) == 300
    assert await copy_ledger(path, target) == 300


@from_a_database
async def test_a_source_that_is_lost_before_it_is_marked_is_told(path, target, monkeypatch):
    """The copy is complete, and the source is not: doing it again marks it."""
    await filled(path, row("done"))
    commit = Session.commit

    def cut(session):
        if session.wrote and any("moved" in text for text, _ in session._waiting):
            session._connection.close()
            raise psycopg.OperationalError("the connection was lost")
        commit(session)

    monkeypatch.setattr(Session, "commit", cut)
    with pytest.raises(q.LedgerUnavailableError, match="lost while it was copied"):
        await copy_ledger(path, target)
    monkeypatch.undo()
    there = await ids(target), await ids(path)

    assert there == (["done"], ["done"])
    assert await copy_ledger(path, target) == 1
    await refused(path, "was moved")


@to_a_database
async def test_a_target_that_is_lost_on_the_way_is_begun_anew(path, target, monkeypatch):
    """Nothing is copied twice, and nothing left out."""
    await filled(path, *[row(str(number)) for number in range(300)])
    put, calls = Intents.put, []

    def cut(self, connection, rows):
        calls.append(len(rows))
        if len(calls) == 2:
            connection._connection.close()
        return put(self, connection, rows)

    monkeypatch.setattr(Intents, "put", cut)
    copied = await copy_ledger(path, target)

    assert calls == [200, 100, 200, 100]
    assert copied == len(await ids(target)) == 300


async def test_what_can_not_be_written_leaves_the_source_as_it_is(path, target, monkeypatch):
    """A full disk, say."""
    await filled(path, row("done"))

    def full(*_):
        raise q.LedgerUnavailableError("The disk is full.")

    monkeypatch.setattr(_Copying, "_put", full)
    with pytest.raises(q.LedgerUnavailableError, match="full"):
        await copy_ledger(path, target)

    assert await ids(target) == []
    assert await ids(path) == ["done"]


async def killed_again_and_again(path, target, chance, enough):
    """Copy, and again after each kill, until it is moved; give the kills and what was wrong."""
    await filled(path, *[row(str(number)) for number in range(600)])
    before, kills, wrong = await entries(path), 0, []
    while not await is_marked(path):
        if await entries(path) != before:
            wrong.append("the source has changed")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", COPYING, str(path), str(target), stdout=asyncio.subprocess.PIPE
        )
        await process.stdout.readline()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), chance.uniform(0.1, 1.0) if kills < enough else 60)
        if process.returncode is None:
            process.kill()
        kills += await process.wait() == -signal.SIGKILL
        there = await entries(target) if await LedgerFile(target).exists() else []
        if there not in ([], before):
            wrong.append(f"{len(there)} are there")
    return kills, wrong + ([] if there == before else ["it was moved, and is not there"])


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [(here, there) for here in KINDS for there in KINDS], ids="-".join)
async def test_killed_at_any_instant_nothing_is_lost(kinds, tmp_path):
    """Either the source is as it was, or the copy is complete; done again, it ends well."""
    print(f"QAMERA_SEED={SEED}")
    chance, killed, wrong = random.Random(SEED), 0, []  # noqa: S311 - picks instants
    while killed < KILLS:
        folders = [tmp_path / f"{killed} {name}" for name in ("source", "target")]
        for folder in folders:
            folder.mkdir()
        places = [a_place(kind, folder) for kind, folder in zip(kinds, folders, strict=True)]
        kills, complained = await killed_again_and_again(*places, chance, KILLS - killed)
        killed += kills
        wrong += complained
        for folder in folders:
            shutil.rmtree(folder)

    assert killed == KILLS
    assert wrong == []
