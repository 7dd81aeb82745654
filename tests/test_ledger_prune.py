"""What is long settled can be removed from a ledger, and nothing that somebody may still need."""

import asyncio
import contextlib
import sqlite3
import time
from datetime import UTC, datetime, timedelta

import postgres
import pytest

import qamera_async as q
from qamera_async._ratelimit.window import Priority
from qamera_async.ledger import LedgerFile, LedgerState
from qamera_async.ledger.intents import Numbered
from qamera_async.ledger.places import checked_place, storage_apart
from qamera_async.ledger.rows import Row
from qamera_async.ledger.sqlite import SqliteStorage, opening
from qamera_async.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")

DAY = 86_400.0
ORIGIN = "https://app.qamera.ai"
OLD = datetime.now(UTC) - timedelta(days=100)
SETTLED = {LedgerState.DONE, LedgerState.FAILED, LedgerState.REFUSED, LedgerState.ABANDONED}

in_a_file = pytest.mark.parametrize("path", ["sqlite"], indirect=True)
in_a_database = pytest.mark.parametrize("path", ["postgres"], indirect=True)


@pytest.fixture(params=["sqlite", "postgres"])
def path(request, tmp_path):
    """Where a ledger is to be: a file, or a database that has none yet."""
    return tmp_path / "jobs.db" if request.param == "sqlite" else postgres.server().database()


@pytest.fixture
async def sandbox():
    async with Sandbox(job_seconds=0.05, quota=None) as sandbox:
        yield sandbox


def row(name, state=LedgerState.DONE, moment=OLD, **more):
    """Give what was settled then; its record has its name."""
    paid = state in {LedgerState.DONE, LedgerState.FAILED, LedgerState.SUBMITTED, LedgerState.ADOPTED}
    known = {
        "claimed_at": moment,
        "sent_at": moment,
        "settled_at": moment if state in SETTLED else None,
        "record_ids": (f"vid_{name}",) if paid else (),
    }
    request = q.VideoRequest("img_1", ref=more.pop("ref", name))
    return Row(f"int_{name}", more.pop("origin", ORIGIN), request, state, **known | more)


async def filled(path, *rows, current=True):
    """Let a ledger have these rows, each as the one that counts."""
    storage = storage_apart(checked_place(path))
    numbered = [Numbered(0, current, 0, row) for row in rows]
    await storage.run_alone("fill", lambda connection: storage.intents.put(connection, numbered))
    await storage.run_alone("fill", lambda connection: storage.intents.strangers(connection, rows))
    await storage.aclose()


async def ask(path, sql):
    """Give what a statement says of a ledger."""
    storage = storage_apart(checked_place(path))
    try:
        return await storage.run_alone("be asked", lambda c: [tuple(r) for r in c.execute(sql).fetchall()])
    finally:
        await storage.aclose()


async def pruned(path, older_than=90 * DAY, **options):
    async with LedgerFile(path) as ledger:
        return await ledger.prune(older_than, **options)


async def left(path):
    async with LedgerFile(path) as ledger:
        return [entry.id.removeprefix("int_") async for entry in ledger.entries()]


async def test_what_is_settled_and_old_goes_and_nothing_else(path):
    """Whatever state it settled in; what is unfinished or in doubt stays, however old."""
    await filled(path, *[row(state.value, state) for state in LedgerState])
    # Else nothing that is older than the doubt would go.
    await ask(path, "DELETE FROM intents WHERE state IN ('ambiguous', 'sending') RETURNING 1")
    found = await pruned(path)

    assert found.counts == dict.fromkeys(SETTLED, 1)
    assert found.requests == 4
    assert await left(path) == ["claimed", "submitted", "adopted"]


@pytest.mark.parametrize("name", ["claimed_at", "sent_at", "submitted_at", "settled_at", "downloaded_at"])
async def test_the_last_moment_counts(path, name):
    """What was touched lately stays, whatever is old of it."""
    await filled(path, row("touched", **{name: datetime.now(UTC) - timedelta(days=80)}), row("old"))
    found = await pruned(path)

    assert found.requests == 1
    assert await left(path) == ["touched"]


async def test_what_has_no_moment_stays(path):
    """Nobody knows how old it is."""
    await filled(path, row("unknown", moment=None))

    assert (await pruned(path)).requests == 0
    assert await left(path) == ["unknown"]


async def test_a_dry_run_tells_and_leaves_all(path):
    """What it says is what would be removed."""
    rows = [row("a"), row("b", LedgerState.FAILED), row("c", LedgerState.REFUSED), row("d", ref=None)]
    await filled(path, *rows)
    would = await pruned(path, dry_run=True)
    there = await left(path)
    found = await pruned(path)

    assert there == ["a", "b", "c", "d"]
    assert (would.counts, would.refs) == (found.counts, found.refs)
    assert await left(path) == []


async def test_the_refs_that_would_be_paid_for_again_are_counted(path):
    """Those that are done or failed and count; no other costs more than before."""
    rows = [row("a"), row("b", LedgerState.FAILED), row("c", LedgerState.REFUSED), row("d", ref=None)]
    await filled(path, *rows)
    await filled(path, row("e", LedgerState.FAILED), current=False)
    found = await pruned(path)

    assert (found.requests, found.refs) == (5, 2)


async def test_what_is_pruned_is_ordered_again_and_what_is_not_costs_nothing(session, sandbox, path):
    """The ref is forgotten: a rerun pays for it, and for no other."""
    await filled(path, row("old", origin=sandbox.url))
    async with session() as qamera:
        before = await qamera.register(q.VideoRequest("img_1", ref="old"))
        await (await qamera.register(q.VideoRequest("img_1", ref="new")))
        orders = len(sandbox.orders)
        await pruned(path)
        again = [await qamera.register(q.VideoRequest("img_1", ref=ref)) for ref in ("old", "new")]

    assert (orders, len(sandbox.orders)) == (1, 2)
    assert before.record_ids == ("vid_old",)
    assert again[0].record_ids == sandbox.orders[1].record_ids
    assert again[1].record_ids == sandbox.orders[0].record_ids


@pytest.mark.parametrize("state", [LedgerState.AMBIGUOUS, LedgerState.SENDING])
async def test_what_may_help_to_settle_a_doubt_stays(path, state):
    """A record that another request has is no candidate; a ledger without that one would offer it."""
    doubt = row("doubt", state, candidates=(q.Video("vid_near", "DONE", q.JobState.DONE),), owner=7)
    near = OLD - timedelta(minutes=59)
    rows = [row("before", moment=OLD - timedelta(minutes=61)), doubt, row("near", moment=near), row("after")]
    await filled(path, *rows)
    found = await pruned(path)

    assert found.before == OLD - timedelta(hours=1)
    assert await left(path) == ["doubt", "near", "after"]
    async with LedgerFile(path) as ledger:
        assert [entry.candidates async for entry in ledger.entries()] == [(), (), ()]


async def test_a_doubt_of_an_unknown_moment_keeps_all(path):
    """It may be about any record."""
    await filled(path, row("doubt", LedgerState.AMBIGUOUS, moment=None), row("old"))

    assert (await pruned(path)).requests == 0


async def test_the_records_go_with_their_request(path):
    """Another request may have them then, and nothing is left of it."""
    await filled(path, row("old"), row("new", moment=datetime.now(UTC)))
    await pruned(path)

    assert await ask(path, "SELECT record_id FROM records") == [("vid_new",)]


async def test_a_row_that_is_changed_meanwhile_stays(path, monkeypatch):
    """What was read of it is not what it is by now."""
    await filled(path, row("old"))
    storage = storage_apart(checked_place(path))
    found = await storage.run_alone("read", lambda c: storage.intents.some(c, None, SETTLED, 0)[0])

    def touch(connection):
        storage.intents.update(connection, row("old", downloaded_at=datetime.now(UTC)))

    await storage.run_alone("touch", touch)
    removed = await storage.run_alone("remove", lambda c: storage.intents.remove(c, found))
    await storage.aclose()

    assert removed is False
    assert await left(path) == ["old"]
    assert await ask(path, "SELECT record_id FROM records") == [("vid_old",)]


async def test_a_long_ledger_is_pruned_piece_by_piece(path, monkeypatch):
    """No transaction is longer than a page, so that a registration is never far behind."""
    await filled(path, *[row(str(number)) for number in range(450)])
    sizes = []
    remove = q.ledger.intents.Intents.remove

    def counted(self, connection, found):
        sizes[-1] += 1
        return remove(self, connection, found)

    def page(intents, *args, **options):
        sizes.append(0)
        return prune_page(intents, *args, **options)

    prune_page = q.ledger.sql.prune_page
    monkeypatch.setattr(q.ledger.intents.Intents, "remove", counted)
    monkeypatch.setattr(q.ledger.sql, "prune_page", page)
    found = await pruned(path)

    assert (found.requests, sizes) == (450, [200, 200, 50, 0])
    assert await left(path) == []


async def test_sessions_work_with_it_meanwhile(session, sandbox, path):
    """Each of their orders is made once, and none of it is removed."""
    await filled(path, *[row(str(number)) for number in range(300)])
    async with session() as qamera, asyncio.TaskGroup() as group:
        pruning = group.create_task(pruned(path))
        jobs = [group.create_task(qamera.register_video(image_id="i", ref=f"new-{n}")) for n in range(20)]

    assert pruning.result().requests == 300
    assert len({job.result().record_ids for job in jobs}) == len(sandbox.orders) == 20
    assert len(await left(path)) == 20


@pytest.mark.parametrize("age", [0, -1, 3599.9, float("nan"), float("inf"), 1e300, "90d", None])
async def test_what_is_no_age_is_refused(path, age):
    """An hour at least: what is younger may help to tell what becomes of a POST of now."""
    await filled(path, row("old"))
    with pytest.raises(q.InvalidRequestError, match="older_than"):
        await pruned(path, age)

    assert await left(path) == ["old"]


# --- what it leaves tidy ------------------------------------------------------------------------


async def test_slots_that_are_free_go_and_those_that_are_taken_stay(path):
    """Of accounts that nobody asks for any more, too."""
    storage = storage_apart(checked_place(path))
    for account, window in (("free", 0.0), ("taken", 60.0)):
        slots = storage.slots(account, grace=0.01)
        ticket, _ = await slots.take(Priority.SUBMISSION, 60, window, 0.0)
        assert ticket is not None
        slots.settle(ticket, time.monotonic() + window)
    await asyncio.sleep(0.05)
    await storage.prune(OLD, remove=True)
    await storage.aclose()

    assert await ask(path, "SELECT account FROM slots") == [("taken",)]


@in_a_file
async def test_a_file_gets_smaller_where_nobody_else_has_it_open(path, session):
    """Else whoever writes would have to wait until it is written anew."""
    await filled(path, *[row(str(number), reason="x" * 5000) for number in range(300)])
    sizes = [path.stat().st_size]
    async with session() as qamera:
        await qamera.unfinished()
        await pruned(path)
    sizes.append(path.stat().st_size)
    await filled(path, row("new"))
    await pruned(path)
    sizes.append(path.stat().st_size)

    assert sizes[0] > 1_500_000
    assert sizes[1] >= sizes[0]
    assert sizes[2] < 200_000
    assert await left(path) == []


@in_a_file
async def test_a_file_that_another_process_has_open_is_not_written_anew(path):
    """The room in it is used again by what comes."""
    await filled(path, *[row(str(number), reason="x" * 5000) for number in range(300)])
    other = SqliteStorage(str(path))
    await other.open()
    await pruned(path)
    other.users = 1
    await other.aclose()

    assert path.stat().st_size > 1_500_000


@in_a_file
async def test_a_file_that_cannot_be_written_anew_is_pruned_all_the_same(path, monkeypatch, caplog):
    """What was removed is told, and why the file is as large as before; another program may write, say."""
    await filled(path, row("old"))
    connected = opening._connected

    def hurried(place):
        connection = connected(place)
        connection.execute("PRAGMA busy_timeout = 0")
        return connection

    async def written_meanwhile(storage):
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            monkeypatch.setattr(opening, "_connected", hurried)
            await free_space(storage)
        monkeypatch.undo()

    free_space = SqliteStorage._free_space
    monkeypatch.setattr(SqliteStorage, "_free_space", written_meanwhile)
    found = await pruned(path)

    assert found.requests == 1
    assert caplog.messages == [f"the ledger {path} is as large as before: database is locked"]
    assert await left(path) == []


@in_a_file
async def test_owners_who_are_dead_are_forgotten(path):
    """What a process that was killed has left."""
    await filled(path, row("new"))
    await ask(path, "INSERT INTO owners VALUES (7) RETURNING 1")
    await pruned(path)

    assert len(await ask(path, "SELECT id FROM owners")) == 1  # who asks


@in_a_database
async def test_owners_who_are_long_dead_are_forgotten(path):
    """What a process that was killed has left; one whose commit may yet be asked for stays."""
    await filled(path, row("new"))
    async with LedgerFile(path) as ledger:
        insert = "INSERT INTO qamera.owners VALUES ({}, 1, now() - interval '{} days')"
        postgres.execute(path, insert.format(7, 8), insert.format(8, 6))
        await ledger.prune(90 * DAY)

    assert postgres.execute(path, "SELECT id FROM qamera.owners") == [(8,)]
