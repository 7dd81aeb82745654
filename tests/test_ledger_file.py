"""A ledger can be looked into, and its doubts settled, without a key and while others work with it."""

import asyncio
import json
import sqlite3
import sys
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import postgres
import pytest

import qamera_async as q
from qamera_async.ledger import LedgerEntry, LedgerFile, LedgerState
from qamera_async.ledger.intents import digest_of
from qamera_async.ledger.places import checked_place, ledger_at
from qamera_async.ledger.rows import Row
from qamera_async.ledger.sqlite import SqliteStorage
from qamera_async.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")

in_a_file = pytest.mark.parametrize("path", ["sqlite"], indirect=True)


@pytest.fixture(params=["sqlite", "postgres"])
def path(request, tmp_path):
    """Where a ledger is to be: a file, or a database that has none yet."""
    return tmp_path / "jobs.db" if request.param == "sqlite" else postgres.server().database()


MOMENTS = ("claimed_at", "sent_at", "submitted_at", "settled_at", "downloaded_at")
ELSEWHERE = """
import asyncio, sys
from qamera_async import PollPolicy, QameraSession
async def main():
    url, key, ledger, *refs = sys.argv[1:]
    polling = PollPolicy(interval=0.05)
    async with QameraSession(key, base_url=url, ledger=ledger, polling=polling) as qamera:
        jobs = await asyncio.gather(*(qamera.register_video(image_id="img_1", ref=ref) for ref in refs))
        await asyncio.gather(*jobs)
asyncio.run(main())
"""


@pytest.fixture
async def sandbox():
    async with Sandbox(job_seconds=0.05, quota=None) as sandbox:
        yield sandbox


def order(session, ref="sku-1", image="img_1", **options):
    return session.register(q.VideoRequest(image, ref=ref), **options)


async def doubtful(session, ref="sku-1"):
    """Order what nobody can be sure of; give the error that says so."""
    with pytest.raises(q.AmbiguousSubmissionError) as ambiguous:
        await order(session, ref)
    return ambiguous.value


async def entries(path):
    async with LedgerFile(path) as ledger:
        return [entry async for entry in ledger.entries()]


async def elsewhere(sandbox, path, *refs):
    """Start another process that orders; it ends when its jobs are done."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", ELSEWHERE, sandbox.url, sandbox.api_key, str(path), *refs
    )


def moments(entry):
    return [getattr(entry, name) for name in MOMENTS]


# --- what it shows ------------------------------------------------------------------------------


async def test_each_request_is_shown_as_far_as_it_has_come(session, sandbox, path):
    """The oldest first; whatever is known of it is there."""
    async with session() as qamera:
        done = await order(qamera, "done")
        video = await done
        sandbox.trouble("fail_job")
        failed = await order(qamera, "failed")
        with suppress(q.JobFailedError):
            await failed
        sandbox.trouble("error", status=400)
        with pytest.raises(q.BadRequestError):
            await order(qamera, "refused")
        sandbox.trouble("reset_after")
        adopted = await doubtful(qamera, "adopted")
        await qamera.adopt(adopted, adopted.candidates[0].id)
        sandbox.trouble("reset_before")
        await qamera.abandon(await doubtful(qamera, "abandoned"))
        sandbox.trouble("reset_after")
        ambiguous = await doubtful(qamera, "ambiguous")
        submitted = await order(qamera, "submitted")
        found = await entries(path)

    assert [entry.request.ref for entry in found] == [
        *("done", "failed", "refused", "adopted", "abandoned", "ambiguous", "submitted")
    ]
    by_ref = {entry.request.ref: entry for entry in found}
    assert all(entry.state.value == ref for ref, entry in by_ref.items())
    assert {entry.origin for entry in found} == {sandbox.url}
    assert all(entry.current and not entry.busy for entry in found)
    assert by_ref["done"].receipt == done.receipt
    assert by_ref["done"].record_ids == done.record_ids
    assert by_ref["done"].videos == (video,)
    assert by_ref["failed"].videos == failed.records
    assert "400" in by_ref["refused"].reason
    assert by_ref["adopted"].record_ids == (adopted.candidates[0].id,)
    assert by_ref["adopted"].receipt is None
    assert [video.id for video in by_ref["ambiguous"].candidates] == [
        video.id for video in ambiguous.candidates
    ]
    assert by_ref["ambiguous"].id == ambiguous.intent.id
    assert by_ref["ambiguous"].reason
    assert by_ref["submitted"].receipt == submitted.receipt
    assert by_ref["submitted"].videos == ()


async def test_the_moments_of_a_request_are_in_their_order(session, tmp_path, monkeypatch):
    """From the claim to the download, and the file is named so that it is found from anywhere."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kept").mkdir()
    before = datetime.now(UTC)
    async with session(ledger="kept/jobs.db") as qamera:
        result = await qamera.batch([q.VideoRequest("img_1", ref="sku-1")], download_to="clips")
    after = datetime.now(UTC)
    monkeypatch.chdir("/")

    (entry,) = await entries(tmp_path / "kept" / "jobs.db")

    there = moments(entry)
    assert [before, *there, after] == sorted({before, *there, after})
    assert all(moment.utcoffset() == timedelta(0) for moment in there)
    (clip,) = result.outcomes
    assert clip.path is not None
    whole = tmp_path / "clips" / "sku-1.mp4"
    assert entry.files == {whole: whole.stat().st_size}


async def test_a_moment_that_has_not_come_is_none(session, sandbox, path):
    """What is submitted is not settled, and what is refused never is."""
    sandbox.trouble("error", status=400)
    async with session() as qamera:
        with pytest.raises(q.BadRequestError):
            await order(qamera, "refused")
        await order(qamera, "submitted")
        refused, submitted = await entries(path)

    assert [moment is not None for moment in moments(refused)] == [True, True, False, False, False]
    assert [moment is not None for moment in moments(submitted)] == [True, True, True, False, False]
    assert (submitted.files, submitted.candidates, submitted.reason) == ({}, (), "")


async def test_what_was_ordered_anew_counts_no_more(session, sandbox, path):
    """The failed one stays to be looked at; the one that counts for its ref is the new one."""
    sandbox.trouble("fail_job")
    async with session() as qamera:
        with pytest.raises(q.JobFailedError):
            await (await order(qamera))
        await (await order(qamera, retry_failed=True))

    found = await entries(path)

    assert [(entry.request.ref, entry.state, entry.current) for entry in found] == [
        ("sku-1", LedgerState.FAILED, False),
        ("sku-1", LedgerState.DONE, True),
    ]


async def test_all_origins_are_shown(sandbox, quick, path):
    """Each entry tells its own, also where two have the same ref."""
    async with Sandbox(quota=None) as other:
        for one in (sandbox, other):
            async with one.session(**quick, ledger=path) as qamera:
                await order(qamera)
        found = await entries(path)

        assert [entry.origin for entry in found] == [sandbox.url, other.url]
        assert all(entry.current for entry in found)


@in_a_file
async def test_a_row_of_an_earlier_version_has_no_moments(path, sandbox):
    """It is shown all the same."""
    storage = SqliteStorage.of(str(path))
    await storage.claim(Row("int_1", sandbox.url, q.VideoRequest("i", ref="r")), retry_failed=False)
    await storage.aclose()
    connection = sqlite3.connect(path)
    *searched, body = connection.execute("SELECT id, origin, ref, state, owner, body FROM intents").fetchone()
    older = json.loads(body)
    for name in (*MOMENTS, "files", "reason"):
        del older[name]
    body = json.dumps(older).encode()
    connection.execute("UPDATE intents SET body = ?, digest = ?", (body, digest_of(*searched, body)))
    connection.commit()
    connection.close()

    (entry,) = await entries(path)

    assert (entry.id, entry.request.ref, entry.state) == ("int_1", "r", LedgerState.CLAIMED)
    assert moments(entry) == [None] * 5


async def test_all_of_a_long_ledger_is_shown_in_its_order(path, sandbox):
    """Also where it is more than is read at a time, and grows meanwhile."""
    storage = ledger_at(checked_place(path), "").storage

    async def claim(numbers):
        rows = [Row(f"int_{n}", sandbox.url, q.VideoRequest("i", ref=f"r{n}")) for n in numbers]
        await asyncio.gather(*(storage.claim(row, retry_failed=False) for row in rows))

    await claim(range(450))
    found = []
    async with LedgerFile(path) as ledger:
        async for entry in ledger.entries():
            if not found:
                await claim(range(450, 460))
            found.append(entry.id)
    await storage.aclose()

    assert found == [f"int_{n}" for n in range(460)]


# --- who is at work -----------------------------------------------------------------------------


async def test_what_waits_for_the_quota_is_claimed_and_busy(session, path):
    """As long as somebody waits with it; nothing of it was sent."""
    async with session(rate_limiter=q.RateLimiter(1, 60.0)) as qamera:
        await order(qamera, "first")
        waiting = asyncio.ensure_future(order(qamera, "second"))
        while len(found := await entries(path)) < 2:
            await asyncio.sleep(0.001)
        waiting.cancel()
        await asyncio.wait([waiting])

        first, second = found
        assert (first.state, first.busy) == (LedgerState.SUBMITTED, False)
        assert (second.state, second.busy) == (LedgerState.CLAIMED, True)
        assert [moment is not None for moment in moments(second)] == [True, False, False, False, False]
        assert [entry.request.ref for entry in await entries(path)] == ["first"]


async def test_what_another_process_sends_is_busy_until_that_ends(sandbox, path):
    """Then nobody knows, and the entry says why."""
    sandbox.trouble("slow", seconds=60)
    process = await elsewhere(sandbox, path, "sku-1")
    while not sandbox.requests:
        await asyncio.sleep(0.005)
    (alive,) = await entries(path)
    process.kill()
    await process.wait()
    (dead,) = await entries(path)

    assert (alive.state, alive.busy, alive.reason) == (LedgerState.SENDING, True, "")
    assert (dead.state, dead.busy) == (LedgerState.AMBIGUOUS, False)
    assert dead.reason == "The process that sent it ended before the answer was kept."
    assert (dead.id, dead.sent_at) == (alive.id, alive.sent_at)


async def test_a_claim_of_a_dead_process_is_not_busy(path, sandbox):
    """Nothing was sent, and nobody will."""
    code = (
        "import asyncio, os, sys\n"
        "from qamera_async import VideoRequest\n"
        "from qamera_async.ledger.places import checked_place, ledger_at\n"
        "from qamera_async.ledger.rows import Row\n"
        "async def main():\n"
        "    row = Row('int_1', sys.argv[2], VideoRequest('img_1', ref='sku-1'))\n"
        "    await ledger_at(checked_place(sys.argv[1]), '').storage.claim(row, retry_failed=False)\n"
        "    os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, str(path), sandbox.url)
    assert await process.wait() == -9

    (entry,) = await entries(path)

    assert (entry.state, entry.busy) == (LedgerState.CLAIMED, False)


async def test_others_work_with_it_meanwhile(sandbox, path):
    """A process that orders is neither stopped nor disturbed by who looks."""
    refs = [f"sku-{number}" for number in range(20)]
    async with Sandbox(job_seconds=0.05, quota=None) as other, other.session(ledger=path):
        pass  # so that the file is there
    process = await elsewhere(sandbox, path, *refs)
    looks = 0
    async with LedgerFile(path) as ledger:
        while process.returncode is None:
            states = [entry.state async for entry in ledger.entries()]
            looks += LedgerState.DONE not in states
            await asyncio.sleep(0)
        found = [entry async for entry in ledger.entries()]

    assert process.returncode == 0
    assert looks
    assert {entry.request.ref: entry.state for entry in found} == dict.fromkeys(refs, LedgerState.DONE)


# --- what settles a doubt -----------------------------------------------------------------------


async def named(how, error, path):
    """Give what names an ambiguous request."""
    (entry,) = [entry for entry in await entries(path) if entry.id == error.intent.id]
    return {"entry": entry, "error": error, "intent": error.intent, "id": error.intent.id}[how]


@pytest.mark.parametrize("how", ["entry", "error", "intent", "id"])
async def test_a_doubt_is_settled_without_a_key(session, sandbox, path, monkeypatch, how):
    """Adopted or abandoned: what a session of the next run makes of it."""
    monkeypatch.delenv("QAMERA_API_KEY", raising=False)
    sandbox.trouble("reset_after", times=2)
    async with session() as first:
        made, unmade = await doubtful(first, "made"), await doubtful(first, "unmade")
    async with LedgerFile(path) as ledger:
        await ledger.adopt(await named(how, made, path), *sandbox.orders[0].record_ids)
        await ledger.abandon(await named(how, unmade, path))
    before = len(sandbox.orders)

    assert [entry.state for entry in await entries(path)] == [LedgerState.ADOPTED, LedgerState.ABANDONED]
    async with session() as second:
        assert (await order(second, "made")).record_ids == sandbox.orders[0].record_ids
        assert len(sandbox.orders) == before
        await order(second, "unmade")
        assert len(sandbox.orders) == before + 1


async def test_what_is_no_doubt_can_not_be_settled(session, sandbox, path):
    """Nor with no record, or with another request's."""
    async with session() as qamera:
        job = await order(qamera, "paid")
        sandbox.trouble("reset_after")
        error = await doubtful(qamera)
    async with LedgerFile(path) as ledger:
        paid = next(entry for entry in await entries(path) if entry.request.ref == "paid")
        with pytest.raises(q.LedgerError, match="submitted in the ledger"):
            await ledger.abandon(paid)
        with pytest.raises(q.LedgerError, match="not in the ledger"):
            await ledger.adopt("no such intent", "vid_9")
        with pytest.raises(q.InvalidRequestError, match=job.record_ids[0]):
            await ledger.adopt(error, *job.record_ids)
        with pytest.raises(q.InvalidRequestError, match="at least one"):
            await ledger.adopt(error)
        with pytest.raises(q.InvalidRequestError, match="allowed are"):
            await ledger.abandon(q.LedgerUnavailableError("no intent", path="x"))

    assert [entry.state for entry in await entries(path)] == [LedgerState.SUBMITTED, LedgerState.AMBIGUOUS]


async def test_a_candidate_that_is_claimed_since_is_none_any_more(session, sandbox, path):
    """It is another request's, so it isn't offered."""
    sandbox.trouble("reset_after", times=2)
    async with session() as qamera:
        errors = await asyncio.gather(order(qamera, "a"), order(qamera, "b"), return_exceptions=True)
        both = await entries(path)
        seen = {video.id for video in errors[1].candidates}
        (mine,) = sandbox.orders[0].record_ids
        await qamera.adopt(errors[0], mine)
        _, left = await entries(path)

    assert mine in seen
    assert {video.id for video in both[1].candidates} == seen
    assert {video.id for video in left.candidates} == seen - {mine}


# --- the file -----------------------------------------------------------------------------------


@in_a_file
@pytest.mark.parametrize("there", ["nothing", "a link to nothing"])
async def test_a_ledger_that_is_not_there_is_not_made(path, there):
    """A name that was mistyped leaves no file behind."""
    if there == "a link to nothing":
        path.symlink_to(path.with_name("nowhere.db"))
    before = list(path.parent.iterdir())

    with pytest.raises(q.LedgerError, match="no such ledger") as error:
        async with LedgerFile(path):
            pass
    assert list(path.parent.iterdir()) == before
    assert error.value.path == str(path)


@in_a_file
async def test_what_is_no_ledger_is_left_as_it_is(path):
    """Another program's file; no thread stays with it."""
    path.write_bytes(b"no ledger at all" * 100)

    with pytest.raises(q.LedgerError):
        async with LedgerFile(path):
            pass
    assert path.read_bytes() == b"no ledger at all" * 100
    assert "qamera-ledger" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("name", [":memory:", "", 7])
def test_what_names_no_file_is_refused_at_once(name):
    """Where it is made, as other settings are."""
    with pytest.raises(q.ConfigurationError):
        LedgerFile(name)


@in_a_file
async def test_it_is_used_inside_of_async_with(session, path):
    """Before and after, it says so; it can be opened again."""
    async with session() as qamera:
        await order(qamera)
    ledger = LedgerFile(path)
    uses = (lambda: anext(ledger.entries()), lambda: ledger.adopt("i", "v"), lambda: ledger.abandon("i"))
    for _ in range(2):
        for use in uses:
            with pytest.raises(q.SessionClosedError, match="async with"):
                await use()
        async with ledger:
            assert isinstance(await anext(ledger.entries()), LedgerEntry)

    assert repr(ledger) == f"<LedgerFile {str(path)!r}>"


@in_a_file
async def test_looking_leaves_nothing_behind(session, path):
    """The file is closed, and nothing but the ledger and its locks is beside it."""
    async with session() as qamera:
        await order(qamera)
    before = {item.name for item in path.parent.iterdir()}

    await entries(path)

    assert {item.name for item in path.parent.iterdir()} == before


async def test_one_that_is_open_is_not_opened_again(quick, tmp_path):
    """A second entry says so, and the first goes on."""
    async with Sandbox(quota=None) as sandbox, sandbox.session(ledger=tmp_path / "jobs.db", **quick):
        pass
    ledger = LedgerFile(tmp_path / "jobs.db")
    async with ledger:
        with pytest.raises(q.LedgerError, match="open already"):
            await ledger.__aenter__()

        assert [entry async for entry in ledger.entries()] == []
