"""P5: what the ledger says of a ref decides whether a POST is sent."""

import asyncio
import enum
import logging
import math
import os
import re
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing

import postgres
import pytest

import qamera_async as q
from qamera_async._ratelimit import limiter
from qamera_async.ledger import ledger
from qamera_async.ledger.rows import LedgerState, Row, decoded
from qamera_async.ledger.sqlite import SqliteStorage, opening, schema
from qamera_async.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")

in_a_file = pytest.mark.parametrize("path", ["sqlite"], indirect=True)


@pytest.fixture(params=["sqlite", "postgres"])
def path(request, tmp_path):
    """Where a ledger is to be: a file, or a database that has none yet."""
    return tmp_path / "jobs.db" if request.param == "sqlite" else postgres.server().database()


@pytest.fixture
async def sandbox():
    async with Sandbox(job_seconds=0.05, quota=None) as sandbox:
        yield sandbox


def order(session, ref="sku-1", image="img_1", **options):
    return session.register(q.VideoRequest(image, ref=ref), **options)


def posts(sandbox):
    return sum(request.method == "POST" for request in sandbox.requests)


def states(path):
    if isinstance(path, str):
        return dict(postgres.execute(path, postgres.ROWS))
    connection = sqlite3.connect(path)
    found = dict(connection.execute("SELECT ref, state FROM intents WHERE current = 1"))
    connection.close()
    return found


# --- the table: what an earlier row with the same ref means -------------------------------------


async def test_no_earlier_row_means_a_new_post(session, sandbox, path):
    """A new ref is ordered, and its job finishes; that is in the ledger."""
    async with session() as first:
        video = await (await order(first))

    assert posts(sandbox) == 1
    assert video.state is q.JobState.DONE
    assert states(path) == {"sku-1": "done"}


async def test_a_submitted_ref_gives_its_job_without_a_post(session, sandbox):
    """The same ref again, in this run or in another: the same records, and the receipt."""
    async with session() as first:
        job = await order(first)
        assert await order(first) is job
    async with session() as second:
        again = await order(second)

        assert again.record_ids == job.record_ids
        assert again.receipt == job.receipt
        assert again.request == job.request
        assert (await again).id == job.record_ids[0]
    assert posts(sandbox) == 1


async def test_a_done_ref_gives_the_final_video_without_a_request(session, sandbox):
    """Awaiting what was seen finished costs nothing."""
    async with session() as first:
        video = await (await order(first))
    before = len(sandbox.requests)
    async with session() as second:
        job = await order(second)

        assert job.done()
        assert await job == video
    assert len(sandbox.requests) == before


async def test_a_failed_ref_gives_its_failed_job(session, sandbox):
    """It fails as it did, without a request; with retry_failed it is ordered anew."""
    sandbox.trouble("fail_job")
    async with session() as first:
        with pytest.raises(q.JobFailedError) as failed:
            await (await order(first))
    before = len(sandbox.requests)
    async with session() as second:
        job = await order(second)
        with pytest.raises(q.JobFailedError) as again:
            await job
        assert again.value.records == failed.value.records
        assert len(sandbox.requests) == before

        assert (await (await order(second, retry_failed=True))).state is q.JobState.DONE
    assert posts(sandbox) == 2


async def test_a_refused_ref_is_ordered_anew(session, sandbox, path):
    """The server said no, so nothing was made, whatever is asked for now."""
    sandbox.trouble("error", status=400)
    async with session() as first:
        with pytest.raises(q.BadRequestError):
            await order(first)
        assert states(path) == {"sku-1": "refused"}

        assert (await order(first, image="img_2")).record_ids
    assert posts(sandbox) == 2


async def test_an_ambiguous_ref_is_never_sent_again(session, sandbox, path):
    """Neither in this run nor in another, until somebody settles it."""
    sandbox.trouble("reset_after")
    async with session() as first:
        for _ in range(2):
            with pytest.raises(q.AmbiguousSubmissionError) as ambiguous:
                await order(first)
    async with session() as second:
        with pytest.raises(q.AmbiguousSubmissionError) as again:
            await order(second)
        intents = await second.ambiguous()

    assert posts(sandbox) == 1
    assert states(path) == {"sku-1": "ambiguous"}
    assert again.value.intent.id == ambiguous.value.intent.id == intents[0].id
    assert [video.id for video in again.value.candidates] == list(sandbox.orders[0].record_ids)


async def test_a_doubt_is_told_without_candidates_where_no_list_comes_in_time(session, sandbox, caplog):
    """What is in the ledger is given all the same, and the log says why there is no more."""
    sandbox.trouble("error", status=500)
    async with session(timeouts=q.Timeouts(reconcile=0.0)) as first:
        with pytest.raises(q.AmbiguousSubmissionError):
            await order(first)
    sandbox.trouble("hang", on="GET")
    async with session(timeouts=q.Timeouts(reconcile=0.05, close=0.1)) as second:
        with caplog.at_level(logging.INFO, "qamera_async"):
            intents = await second.ambiguous()

    assert [intent.request.ref for intent in intents] == ["sku-1"]
    assert "timeout" in caplog.text


@pytest.mark.parametrize("how", ["intent", "error", "id"])
async def test_an_adopted_one_is_a_job_like_others(session, sandbox, how):
    """The intent, its error or its id names it; its job can be awaited, and is what the ref stands for."""
    sandbox.trouble("reset_after")
    async with session() as first:
        with pytest.raises(q.AmbiguousSubmissionError) as ambiguous:
            await order(first)
        error = ambiguous.value
        named = {"intent": error.intent, "error": error, "id": error.intent.id}[how]
        job = await first.adopt(named, error.candidates[0].id)

        assert (await job).state is q.JobState.DONE
        assert (await order(first)) is job
        assert await first.adopt(named, error.candidates[0].id) is job
        assert await first.ambiguous() == []
        with pytest.raises(q.LedgerError, match="nothing to settle"):
            await first.abandon(named)
    assert posts(sandbox) == 1


async def test_a_mistaken_adoption_can_be_taken_back(session, sandbox):
    """As long as nobody has seen it finished: other records, or none."""
    sandbox.trouble("reset_after", times=2)
    async with session() as first:
        intents = []
        for ref in ("sku-1", "sku-2"):
            with pytest.raises(q.AmbiguousSubmissionError) as ambiguous:
                await order(first, ref=ref)
            intents.append(ambiguous.value.intent)
        await first.adopt(intents[0], "vid_typo")
        job = await first.adopt(intents[0], *sandbox.orders[0].record_ids)
        await first.adopt(intents[1], "vid_typo")
        await first.abandon(intents[1])

        assert (await job).state is q.JobState.DONE
        assert await first.unfinished() == []
        assert (await order(first, ref="sku-2")).record_ids


async def test_two_can_not_adopt_one_record(session, sandbox):
    """Also not at the same moment."""
    sandbox.trouble("reset_after", times=2)
    async with session() as first:
        errors = await asyncio.gather(order(first), order(first, ref="sku-2"), return_exceptions=True)
        settled = await asyncio.gather(
            *(first.adopt(error, "vid_001") for error in errors), return_exceptions=True
        )

    assert sorted(type(one).__name__ for one in settled) == ["InvalidRequestError", "Job"]


async def test_an_abandoned_one_is_ordered_anew(session, sandbox):
    """Who says that nothing was made gets a new POST."""
    sandbox.trouble("reset_before")
    async with session() as first:
        with pytest.raises(q.AmbiguousSubmissionError) as ambiguous:
            await order(first)
        await first.abandon(ambiguous.value)
        await first.abandon(ambiguous.value)

        assert (await order(first)).record_ids
        with pytest.raises(q.LedgerError, match="abandoned"):
            await first.adopt(ambiguous.value, "vid_9")
    assert posts(sandbox) == 2


async def test_a_record_of_another_request_can_not_be_adopted(session, sandbox):
    """What a receipt claims is no other request's."""
    async with session() as first:
        taken = await order(first, ref="taken")
        sandbox.trouble("reset_after")
        with pytest.raises(q.AmbiguousSubmissionError) as ambiguous:
            await order(first)

        with pytest.raises(q.InvalidRequestError, match=taken.record_ids[0]):
            await first.adopt(ambiguous.value, taken.record_ids[0])
        with pytest.raises(q.InvalidRequestError):
            await first.adopt(ambiguous.value)
        with pytest.raises(q.LedgerError, match="not in the ledger"):
            await first.adopt("no such intent", "vid_9")


@pytest.mark.parametrize("before", ["done", "failed", "submitted", "ambiguous"])
async def test_the_same_ref_for_another_request_is_a_conflict(session, sandbox, before):
    """Both requests are in the error, and nothing is sent."""
    if before == "failed":
        sandbox.trouble("fail_job")
    if before == "ambiguous":
        sandbox.trouble("reset_after")
    async with session() as first:
        try:
            job = await order(first)
            if before != "submitted":
                await job
        except (q.JobFailedError, q.AmbiguousSubmissionError):
            pass
        with pytest.raises(q.RefConflictError) as conflict:
            await order(first, image="img_2", retry_failed=True)

    assert posts(sandbox) == 1
    assert conflict.value.request.image_id == "img_2"
    assert conflict.value.earlier.image_id == "img_1"


async def test_requests_without_a_ref_are_kept_and_never_merged(session, sandbox):
    """Each is an order of its own, and unfinished until it is seen."""
    async with session() as first:
        jobs = [await order(first, ref=None) for _ in range(2)]
        unfinished = await first.unfinished()
        assert {job.record_ids for job in unfinished} == {job.record_ids for job in jobs}
        await asyncio.gather(*unfinished)

        assert await first.unfinished() == []
    assert posts(sandbox) == 2


async def test_what_is_attached_by_its_records_is_seen_finished_too(session):
    """The outcome is kept whichever handle sees it."""
    async with session() as first:
        job = await order(first)
    async with session() as second:
        await second.job(*job.record_ids)
        assert await second.unfinished() == []


async def test_rows_belong_to_an_origin(sandbox, quick, path):
    """Another server's jobs are none of this one's business; the same ref is another piece of work."""
    async with Sandbox(quota=None) as other:
        async with sandbox.session(**quick, ledger=path) as first:
            await order(first)
        async with other.session(**quick, ledger=path) as second:
            await order(second)

            assert len(await second.unfinished()) == 1
    assert posts(sandbox) == posts(other) == 1


async def test_all_kinds_of_requests_come_back_as_they_were(session, sandbox):
    """Nothing is lost on the way through the file."""
    requests = [
        q.VideoRequest(
            "i", suggestion="näher", provider="pollo", ref="a", extra_body={"deep": [1, {"b": None}]}
        ),
        q.VideoRequest(generated_image_id="g", ref="b"),
        q.ReelRequest(["x", "y"], ref="c", extra_body={"z": 1.5}),
    ]
    async with session() as first:
        for request in requests:
            await first.register(request)
    async with session() as second:
        assert [job.request for job in await second.unfinished()] == requests


# --- who is alive ---------------------------------------------------------------------------------


async def test_a_ref_under_way_is_waited_for(session, sandbox):
    """Two at once, in one session and in another: one POST, the same records."""
    sandbox.trouble("slow", seconds=0.15)
    async with session() as first, session() as second:
        jobs = await asyncio.gather(order(first), order(first), order(second))

    assert posts(sandbox) == 1
    assert len({job.record_ids for job in jobs}) == 1


async def storage_of_a_dead_process(path, state):
    """Leave a row in a state, as a process does that is killed."""
    code = (
        "import asyncio, os, sys\n"
        "from datetime import UTC, datetime\n"
        "import attrs\n"
        "from qamera_async import VideoRequest\n"
        "from qamera_async.ledger.places import checked_place, ledger_at\n"
        "from qamera_async.ledger.rows import Row, LedgerState\n"
        "async def main():\n"
        "    storage = ledger_at(checked_place(sys.argv[1]), '').storage\n"
        "    row = Row('int_1', sys.argv[2], VideoRequest('img_1', ref='sku-1'))\n"
        "    await storage.claim(row, retry_failed=False)\n"
        "    state = LedgerState(sys.argv[3])\n"
        "    change = lambda row: attrs.evolve(row, state=state, sent_at=datetime.now(UTC))\n"
        "    await storage.change('int_1', frozenset(LedgerState), change)\n"
        "    os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, str(path), state[0], state[1])
    assert await process.wait() == -9


async def test_a_claim_of_a_dead_process_is_taken_over(session, sandbox, path):
    """Nothing was sent, so it is ordered."""
    await storage_of_a_dead_process(path, (sandbox.url, "claimed"))
    async with session() as first:
        assert (await order(first)).record_ids

    assert posts(sandbox) == 1


async def test_what_a_dead_process_was_sending_is_ambiguous(session, sandbox, path):
    """Nobody knows, so nothing is sent; what was made in that minute is a candidate."""
    await storage_of_a_dead_process(path, (sandbox.url, "sending"))
    async with sandbox.session(polling=q.PollPolicy(interval=0.02)) as elsewhere:
        made = await elsewhere.register_video(image_id="img_1")
    async with session() as first:
        claimed = await order(first, ref="other")
        with pytest.raises(q.AmbiguousSubmissionError):
            await order(first)
        sent = posts(sandbox)
        (intent,) = await first.ambiguous()

        assert [video.id for video in intent.candidates] == list(made.record_ids)
        assert claimed.record_ids[0] not in {video.id for video in intent.candidates}
        (again,) = await first.ambiguous()
        assert [video.id for video in again.candidates] == list(made.record_ids)
    assert sent == posts(sandbox) == 2


async def test_all_that_a_dead_process_was_sending_is_told(sandbox, quick, path):
    """Also where it is more than is read at a time."""
    code = (
        "import asyncio, os, sys\n"
        "import attrs\n"
        "from qamera_async import VideoRequest\n"
        "from qamera_async.ledger.places import checked_place, ledger_at\n"
        "from qamera_async.ledger.rows import Row, LedgerState\n"
        "async def main():\n"
        "    storage = ledger_at(checked_place(sys.argv[1]), '').storage\n"
        "    sending = lambda row: attrs.evolve(row, state=LedgerState.SENDING)\n"
        "    rows = [Row(f'int_{n}', sys.argv[2], VideoRequest('i', ref=f'r{n}')) for n in range(450)]\n"
        "    await asyncio.gather(*(storage.claim(row, retry_failed=False) for row in rows))\n"
        "    states = frozenset(LedgerState)\n"
        "    await asyncio.gather(*(storage.change(row.id, states, sending) for row in rows))\n"
        "    os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    dying = await asyncio.create_subprocess_exec(sys.executable, "-c", code, str(path), sandbox.url)
    assert await dying.wait() == -9
    async with sandbox.session(**quick, ledger=path) as first:
        intents = await first.ambiguous()

    assert {intent.id for intent in intents} == {f"int_{n}" for n in range(450)}


async def test_a_record_that_is_listed_late_is_a_candidate_then(quick, path):
    """None seen is not "not made", so it is looked for each time."""
    async with Sandbox(job_seconds=math.inf, quota=None, show="finished") as sandbox:
        async with sandbox.session(**quick, ledger=path) as first:
            sandbox.trouble("reset_after")
            with pytest.raises(q.AmbiguousSubmissionError):
                await order(first)
            assert [intent.candidates for intent in await first.ambiguous()] == [()]
            (record_id,) = sandbox.orders[0].record_ids
            sandbox.finish(record_id)
            (intent,) = await first.ambiguous()

    assert [video.id for video in intent.candidates] == [record_id]


async def test_a_post_of_another_session_is_waited_for_before_its_record_is_a_candidate(session, sandbox):
    """Its receipt may be on its way, and then the record is nobody else's."""
    async with session() as first, session() as second:
        sandbox.trouble("slow", seconds=0.15)
        ordering = asyncio.ensure_future(order(second, ref="other"))
        while not sandbox.orders:
            await asyncio.sleep(0.001)
        sandbox.trouble("reset_before")
        with pytest.raises(q.AmbiguousSubmissionError) as ambiguous:
            await order(first)

        assert (await ordering).record_ids == sandbox.orders[0].record_ids
    assert ambiguous.value.candidates == ()


async def test_a_receipt_that_comes_late_settles_what_was_taken_for_ambiguous(session, sandbox):
    """It is a fact, whatever another process has concluded meanwhile."""
    async with session() as first:
        submitted = first._ledger.submitted

        async def late(intent, receipt):
            await first._ledger.ambiguous(intent, "taken for dead")
            await submitted(intent, receipt)

        first._ledger.submitted = late
        job = await order(first)

        assert await first.ambiguous() == []
        assert (await order(first)) is job


async def test_candidates_that_a_receipt_has_claimed_since_are_no_candidates(session, sandbox):
    """A later receipt tells whose record it is."""
    sandbox.trouble("reset_after")
    async with session() as first:
        with pytest.raises(q.AmbiguousSubmissionError) as ambiguous:
            await order(first)
        assert ambiguous.value.candidates
        sandbox.trouble("reset_before")
        with pytest.raises(q.AmbiguousSubmissionError) as other:
            await order(first, ref="sku-2")
        await first.adopt(other.value, ambiguous.value.candidates[0].id)
        (left,) = await first.ambiguous()

    assert left.candidates == ()


async def test_a_cancelled_caller_leaves_no_claim_behind(sandbox, quick, path):
    """Cancelled while it waits for the quota: nothing is sent, and the ref is free."""
    async with Sandbox(quota=(1, 60.0)) as strict:
        async with strict.session(**quick, ledger=path) as first:
            await order(first, ref="first")
            waiting = asyncio.ensure_future(order(first))
            while first.rate_limiter.waiting == 0:
                await asyncio.sleep(0.001)
            assert states(path)["sku-1"] == "claimed"
            waiting.cancel()
            await asyncio.wait([waiting])
        assert "sku-1" not in states(path)
        assert posts(strict) == 1


async def test_a_429_leaves_nothing_in_doubt_while_it_is_waited_out(session, sandbox, path):
    """A crash in the hold would find a claim, not a sending."""
    sandbox.trouble("too_many", retry_after=0.2)
    async with session(retry=q.RetryPolicy(max_delay=0.2)) as first:
        ordering = asyncio.ensure_future(order(first))
        while first.rate_limiter.cooldown == 0:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        meanwhile = states(path)
        await ordering

    assert meanwhile == {"sku-1": "claimed"}


async def test_an_unreachable_server_leaves_nothing_in_doubt(session, sandbox, path):
    """What is provably unsent is no claim any more once it is given up."""
    await sandbox.refuse(30.0)
    async with session() as first:
        with pytest.raises(q.ConnectionFailedError):
            await order(first)

    assert states(path) == {}


# --- files that are no good ledger ----------------------------------------------------------------


def made(path):
    """Make a good ledger with rows in it."""

    async def fill():
        storage = SqliteStorage.of(str(path))
        for number in range(200):
            row = Row(f"int_{number}", "http://127.0.0.1:1", q.VideoRequest("i" * 500, ref=f"r{number}"))
            await storage.claim(row, retry_failed=False)
        await storage.aclose()

    asyncio.run(fill())


def test_a_body_that_is_no_row_is_no_row():
    """Whatever the bytes are, it is one kind of error."""
    for body in (b"", b"{}", b"[1]", b'{"id": 3}', b"\xff"):
        with pytest.raises(ValueError, match="no row"):
            decoded(body)


async def test_a_folder_that_is_not_there_is_refused(sandbox, quick, tmp_path):
    """It is not made, since a mistyped path would begin a new ledger."""
    with pytest.raises(q.LedgerUnavailableError):
        async with sandbox.session(**quick, ledger=tmp_path / "nowhere" / "jobs.db"):
            pass


@pytest.mark.parametrize("ledger", ["", " ", ":memory:", "mysql://u:canary@h/db", b"x", 3, True, "a\0b"])
def test_what_is_no_path_is_refused_when_the_session_is_built(ledger):
    """It is a bad setting, and not shown: an address may hold a password."""
    with pytest.raises(q.ConfigurationError) as refused:
        q.QameraSession("mk_live_a.b", ledger=ledger)

    assert "canary" not in str(refused.value)


async def test_without_a_ledger_there_is_nothing_to_ask(sandbox, quick):
    """The error says how to get one."""
    async with sandbox.session(**quick) as plain:
        for asked in (
            plain.unfinished(),
            plain.ambiguous(),
            plain.adopt("x", "vid_1"),
            plain.abandon("x"),
        ):
            with pytest.raises(q.ConfigurationError, match="ledger=PATH"):
                await asked


@in_a_file
async def test_the_file_is_its_owners_alone_and_holds_no_key(session, sandbox, path, tmp_path):
    """P6: mode 0600 for all of its files, and no byte of the key in any."""
    async with session() as first:
        await order(first)
        modes = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}
        content = b"".join(file.read_bytes() for file in tmp_path.iterdir())

    assert set(modes) >= {"jobs.db", "jobs.db-wal"}
    assert set(modes.values()) == {0o600}
    assert sandbox.api_key.encode() not in content
    assert sandbox.api_key.partition(".")[2].encode() not in content


# --- a disk that is full --------------------------------------------------------------------------


def full(session, sizes=0):
    """Let the database be as large as it is and no larger."""
    worker = session._ledger.storage._worker

    def operation(connection):
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + sizes}")

    return worker.run("be full", operation)


def roomy(session):
    return session._ledger.storage._worker.run(
        "have room", lambda connection: connection.execute("PRAGMA max_page_count = 1000000")
    )


BIG = q.VideoRequest("img_1", suggestion="x" * 20_000, ref="sku-1")


@in_a_file
async def test_a_full_disk_at_the_intent_means_no_post(session, sandbox):
    """What isn't surely kept isn't sent; with room again the same ref is ordered."""
    async with session() as first:
        await first._ledger.storage.open()
        await full(first)
        with pytest.raises(q.LedgerUnavailableError, match="full"):
            await first.register(BIG)
        assert posts(sandbox) == 0
        assert first.rate_limiter.used == 0
        await roomy(first)

        assert (await first.register(BIG)).record_ids


async def test_a_full_disk_keeps_nobody_from_what_is_paid_for(session, monkeypatch):
    """Polls go on without a slot in the ledger, and the job is seen to its end."""
    async with session() as first:
        job = await order(first)
        monkeypatch.setattr(first._ledger.storage._worker, "run", lambda *_: full_disk())
        video = await job
        monkeypatch.undo()

    assert video.state is q.JobState.DONE


async def test_a_full_disk_at_sending_means_no_post(session, sandbox, monkeypatch):
    """The claim was kept, but not that it is sent: nothing is, and the ref is free again."""
    async with session() as first:
        storage = first._ledger.storage
        change = storage.change
        monkeypatch.setattr(storage, "change", lambda *_: full_disk())
        with pytest.raises(q.LedgerUnavailableError):
            await order(first)
        assert posts(sandbox) == 0
        monkeypatch.setattr(storage, "change", change)

        assert (await order(first)).record_ids


async def full_disk():
    raise q.LedgerUnavailableError("The ledger can't be used: database or disk is full.", path="jobs.db")


async def test_what_a_full_disk_kept_from_the_ledger_is_kept_by_itself_later(session, monkeypatch, path):
    """Another process may wait for it; and closing tries once more."""
    monkeypatch.setattr(ledger, "_PAUSE", 0.01)
    async with session() as first:
        storage = first._ledger.storage
        change, withdraw = storage.change, storage.withdraw
        monkeypatch.setattr(storage, "change", lambda *_: full_disk())
        monkeypatch.setattr(storage, "withdraw", lambda *_: full_disk())
        with pytest.raises(q.LedgerUnavailableError):
            await order(first)
        assert states(path) == {"sku-1": "claimed"}
        monkeypatch.setattr(storage, "withdraw", withdraw)
        while states(path):
            await asyncio.sleep(0.005)

        monkeypatch.setattr(ledger, "_PAUSE", 60.0)
        monkeypatch.setattr(storage, "change", change)
        claimed = first._ledger.sending

        async def then_full(intent):
            await claimed(intent)
            storage.change = lambda *_: full_disk()

        monkeypatch.setattr(first._ledger, "sending", then_full)
        with pytest.raises(q.LedgerUnavailableError) as unkept:
            await order(first)
        assert unkept.value.receipt is not None
        storage.change = change
    assert states(path) == {"sku-1": "submitted"}


async def test_a_full_disk_at_the_receipt_leaves_the_receipt_in_the_error(session, sandbox, caplog, path):
    """P4: the ids are in the error and the log, the intent stays open; with room it is caught up."""
    async with session() as first:
        storage = first._ledger.storage
        change = storage.change

        def fails_from_the_receipt_on(intent_id, allowed, changing):
            tried = changing(Row("x", "o", BIG))
            return (
                full_disk() if tried.state is LedgerState.SUBMITTED else change(intent_id, allowed, changing)
            )

        storage.change = fails_from_the_receipt_on
        with pytest.raises(q.LedgerUnavailableError) as unkept:
            await order(first)
        ids = sandbox.orders[0].record_ids
        assert unkept.value.receipt.record_ids == ids
        assert ids[0] in caplog.text
        assert states(path) == {"sku-1": "sending"}
        with pytest.raises(q.AmbiguousSubmissionError):
            await order(first)
        job = await first.adopt(unkept.value, *unkept.value.receipt.record_ids)
        assert (await job).id == ids[0]

        with pytest.raises(q.LedgerUnavailableError):
            await order(first, ref="sku-2")
        storage.change = change
        assert (await order(first, ref="sku-2")).receipt is not None
    assert len(sandbox.orders) == 2


async def test_closing_does_not_cut_a_receipt_that_is_being_written(session, sandbox, monkeypatch, caplog):
    """P4: the wait for the disk is cut short, the receipt reaches caller, ledger and log."""
    async with session(timeouts=q.Timeouts(close=0.01)) as first:
        submitted, writing = first._ledger.submitted, asyncio.Event()

        async def slowly(intent, receipt):
            writing.set()
            await asyncio.sleep(30.0)
            await submitted(intent, receipt)

        monkeypatch.setattr(first._ledger, "submitted", slowly)
        ordering = asyncio.ensure_future(order(first))
        await writing.wait()

    assert (await ordering).record_ids == sandbox.orders[0].record_ids
    assert sandbox.orders[0].record_ids[0] in caplog.text


# --- files and processes that come and go ---------------------------------------------------------

HOLD_IT = (
    "import asyncio, sys\n"
    "from qamera_async.ledger.sqlite import SqliteStorage\n"
    "async def main():\n"
    "    await SqliteStorage.of(sys.argv[1]).open()\n"
    "    print('open', flush=True)\n"
    "    await asyncio.sleep(60)\n"
    "asyncio.run(main())\n"
)


@in_a_file
async def test_a_process_that_dies_while_another_closes_locks_nobody_out(session, path, monkeypatch):
    """The one that closes takes the -wal away without having known that it is the last."""
    async with session() as first:
        job = await order(first)
        other = await asyncio.create_subprocess_exec(
            sys.executable, "-c", HOLD_IT, str(path), stdout=asyncio.subprocess.PIPE
        )
        await other.stdout.readline()
        close = opening._close

        def killed_first(*arguments):
            os.kill(other.pid, 9)
            time.sleep(0.1)
            close(*arguments)

        monkeypatch.setattr(opening, "_close", killed_first)
    await other.wait()
    assert {file.name for file in path.parent.iterdir()} == {"jobs.db", "jobs.db-owners"}
    async with session() as second:
        assert (await order(second)).record_ids == job.record_ids


DIE_CLOSING = (
    "import asyncio, os, sys\n"
    "from qamera_async.ledger.sqlite import SqliteStorage, opening\n"
    "async def main():\n"
    "    storage = SqliteStorage.of(sys.argv[1])\n"
    "    await storage.open()\n"
    "    opening._SETTLE = 'SELECT 1'\n"  # as where another process was alive a moment ago
    "    opening._connected = lambda _: os.kill(os.getpid(), 9)\n"
    "    await storage.aclose()\n"
    "asyncio.run(main())\n"
)


@in_a_file
async def test_a_process_that_dies_while_it_closes_locks_nobody_out(session, path):
    """The -wal is gone by then, rightly; that it was being closed is on the disk."""
    async with session() as first:
        job = await order(first)
    dying = await asyncio.create_subprocess_exec(sys.executable, "-c", DIE_CLOSING, str(path))
    assert await dying.wait() == -9
    assert {file.name for file in path.parent.iterdir()} == {"jobs.db", "jobs.db-owners"}
    for _ in range(2):
        async with session() as second:
            assert (await order(second)).record_ids == job.record_ids


@in_a_file
async def test_an_opening_that_fails_locks_nobody_out(session, path, monkeypatch, sandbox):
    """After a kill the file needs its -wal; who can't get in must leave it as good."""
    await storage_of_a_dead_process(path, (sandbox.url, "claimed"))
    enter = opening._enter

    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(opening, "_enter", full)
    with pytest.raises(q.LedgerUnavailableError):
        async with session():
            pass
    monkeypatch.setattr(opening, "_enter", enter)
    async with session() as second:
        assert (await order(second)).record_ids


@in_a_file
async def test_a_session_opened_while_another_closes_is_alive(session, path):
    """Closing gives up no lock but its own."""
    first = session()
    await order(first, ref="first")
    closing = asyncio.ensure_future(first.aclose())
    await asyncio.sleep(0)
    async with session() as second:
        await second._ledger.storage.open()
        await closing
        owner = second._ledger.storage._owner
        code = (
            "import sys; from qamera_async.ledger.sqlite.owners import Owners\n"
            "print(Owners(sys.argv[1]).alive(int(sys.argv[2])))"
        )
        looked = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, f"{path}-owners", str(owner), stdout=asyncio.subprocess.PIPE
        )
        said, _ = await looked.communicate()

    assert said.strip() == b"True"


@in_a_file
async def test_a_link_leads_to_the_same_ledger(sandbox, quick, path, tmp_path):
    """Its locks and its -wal are the file's, whichever name was given."""
    link = tmp_path / "link.db"
    link.symlink_to(path)
    sandbox.trouble("slow", seconds=0.1)
    async with (
        sandbox.session(**quick, ledger=link) as first,
        sandbox.session(**quick, ledger=path) as second,
    ):
        jobs = await asyncio.gather(order(first), order(second))

    assert len({job.record_ids for job in jobs}) == 1
    assert posts(sandbox) == 1
    assert not list(tmp_path.glob("link.db-*"))


@in_a_file
@pytest.mark.parametrize("how", ["removed", "replaced"])
async def test_a_ledger_that_is_taken_away_means_no_post(session, sandbox, path, how, tmp_path):
    """What nobody will find again is no place for an intent."""
    async with session() as first:
        await order(first, ref="first")
        path.unlink() if how == "removed" else path.rename(tmp_path / "old.db")
        if how == "replaced":
            path.write_bytes(b"another one")
        with pytest.raises(q.LedgerUnavailableError, match="while it was in use"):
            await order(first)

    assert posts(sandbox) == 1


FORK = (
    "import asyncio, os, sys\n"
    "from qamera_async import QameraSession\n"
    "url, path = sys.argv[1:]\n"
    "def session():\n"
    "    return QameraSession('mk_live_sandbox.secret', base_url=url, ledger=path)\n"
    "async def parent():\n"
    "    open_one = session()\n"
    "    await open_one.register_video(image_id='i', ref='parent')\n"
    "    return open_one\n"
    "async def child():\n"
    "    async with session() as own:\n"
    "        await own.register_video(image_id='i', ref='child')\n"
    "loop = asyncio.new_event_loop()\n"
    "kept = loop.run_until_complete(parent())\n"
    "pid = os.fork()\n"
    "if not pid:\n"
    "    asyncio.run(asyncio.wait_for(child(), 15))\n"
    "    os._exit(0)\n"
    "assert os.waitpid(pid, 0)[1] == 0\n"
    "loop.run_until_complete(kept.aclose())\n"
)


async def test_a_forked_child_has_sessions_of_its_own(sandbox, path):
    """The threads behind the parent's ledger are not the child's; it waits for none of them."""
    ran = await asyncio.create_subprocess_exec(
        sys.executable, "-c", FORK, sandbox.url, str(path), stderr=asyncio.subprocess.PIPE
    )
    _, err = await ran.communicate()

    assert ran.returncode == 0, err.decode()
    assert len(sandbox.orders) == 2


async def test_a_session_that_is_dropped_waits_for_no_lock(sandbox, quick, path):
    """A finaliser may run in the thread that holds it, in the middle of anything."""
    session = sandbox.session(**quick, ledger=path)

    thread = threading.Thread(target=session.__del__, daemon=True)
    with limiter._registry._lock:
        thread.start()
        await asyncio.to_thread(thread.join, 5)

    assert not thread.is_alive()
    await session.aclose()


class Sku(enum.StrEnum):
    """A ref as people have them."""

    ONE = "sku-1"


async def test_a_ref_of_a_kind_of_its_own_is_text(session, sandbox):
    """A StrEnum names the same piece of work as its text."""
    async with session() as first:
        job = await order(first, ref=Sku.ONE)

        assert await order(first, ref="sku-1") is job
    assert posts(sandbox) == 1


# --- the schema -----------------------------------------------------------------------------------


@in_a_file
def test_an_older_ledger_is_brought_up_to_date_or_left_as_it_is(path, monkeypatch):
    """A step that fails leaves the old version whole; one that passes keeps every row."""
    made(path)

    def step(connection):
        connection.execute("ALTER TABLE intents ADD COLUMN note TEXT")

    def fails(connection):
        step(connection)
        raise sqlite3.OperationalError("no")

    async def opened():
        storage = SqliteStorage.of(str(path))
        try:
            await storage.open()
        finally:
            await storage.aclose()

    for steps, error in (((*schema.MIGRATIONS, fails), q.LedgerError), ((*schema.MIGRATIONS, step), None)):
        monkeypatch.setattr(schema, "MIGRATIONS", steps)
        monkeypatch.setattr(opening, "MIGRATIONS", steps)
        if error is None:
            asyncio.run(opened())
        else:
            with pytest.raises(error):
                asyncio.run(opened())
            with closing(sqlite3.connect(path)) as connection:
                assert len(connection.execute("SELECT * FROM intents").fetchone()) == 9

    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (len(schema.MIGRATIONS),)
    assert connection.execute("SELECT count(*), count(note) FROM intents").fetchone() == (200, 0)
    connection.close()


def test_many_processes_may_open_a_new_ledger_at_once(path):
    """One makes it; none fails."""
    code = (
        "import asyncio, sys\n"
        "from qamera_async.ledger.places import checked_place, ledger_at\n"
        "async def main():\n"
        "    storage = ledger_at(checked_place(sys.argv[1]), '').storage\n"
        "    await storage.open()\n"
        "    await storage.aclose()\n"
        "asyncio.run(main())\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(path)], stderr=subprocess.PIPE) for _ in range(8)
    ]
    errors = [process.communicate()[1].decode() for process in processes]

    assert [process.returncode for process in processes] == [0] * 8, errors
    assert not re.search("Error", "".join(errors))
