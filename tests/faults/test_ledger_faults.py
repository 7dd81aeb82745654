"""The ledger in trouble: a disk that is full or fails, a file that is no good, another process."""

import asyncio
import errno
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from os_faults import Faults
from test_kill import orders_by_image, started
from test_ledger import made, order, posts

import qamera_async as q
from qamera_async.ledger.rows import Row
from qamera_async.ledger.sqlite import SqliteStorage
from qamera_async.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")

NO_ROOM = {"call": "write", "error": errno.ENOSPC}
NO_SYNC = {"call": "sync", "error": errno.EIO}


@pytest.fixture
async def sandbox():
    async with Sandbox(job_seconds=0.05, quota=None) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    return Faults(tmp_path_factory.mktemp("faults"))


def ordered(sandbox):
    """Give the records of what was ordered as the second: the first is ordered while all is well."""
    return [list(order.record_ids) for order in sandbox.orders[1:]]


def states(path):
    """Read without a trace: who may write takes the -wal in when it closes."""
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
    found = dict(connection.execute("SELECT ref, state FROM intents WHERE current = 1"))
    connection.close()
    return found


# --- another process ----------------------------------------------------------------------------


@pytest.mark.case(60)
async def test_two_processes_make_one_order_of_each_ref(tmp_path):
    """Both finish with the same 40 results, and keep one quota together."""
    async with Sandbox(job_seconds=0.1, quota=(20, 0.5), credits=10**9, count_delay=0.02) as sandbox:
        # From both ends, so that each has something to order that the other hasn't come to yet.
        processes = [
            await started(sandbox, tmp_path / "jobs.db", number=40, quota=(20, 0.5), backwards=backwards)
            for backwards in (False, True)
        ]
        outputs = [await process.communicate() for process in processes]

        assert [process.returncode for process in processes] == [0, 0], outputs
        assert len(sandbox.orders) == len(orders_by_image(sandbox, 0)) == 40
        for out, _ in outputs:
            assert out.decode().count("ok\n") == 40
        assert {request.status for request in sandbox.requests} == {200}


# --- a disk that is full or fails ---------------------------------------------------------------


@pytest.mark.case(61)
@pytest.mark.parametrize("step", ["claim", "sending"])
async def test_a_full_disk_at_the_intent_means_no_post(faults, sandbox, path, step):
    """What isn't surely kept isn't sent; with room again the same ref is ordered, once."""
    ran = await faults.run("ledger", sandbox, ledger=path, step=step, then="ordered again", **NO_ROOM)

    assert ran.told["error"]["type"] == "LedgerUnavailableError"
    assert "full" in ran.told["error"]["text"]
    assert ran.told["failed"] > 0
    assert ordered(sandbox) == [ran.told["again"]]
    assert posts(sandbox) == 2
    assert states(path)["sku-1"] == "submitted"


@pytest.mark.case(61)
@pytest.mark.parametrize("step", ["claim", "sending"])
async def test_a_full_disk_at_the_intent_sends_nothing_at_all(faults, sandbox, session, path, step):
    """Killed while there is no room: nothing was sent, and the next run orders it, once."""
    ran = await faults.run("ledger", sandbox, ledger=path, step=step, then="killed", **NO_ROOM)

    assert ran.told["error"]["type"] == "LedgerUnavailableError"
    assert posts(sandbox) == 1
    async with session() as rerun:
        assert list((await order(rerun, image="img")).record_ids) == ordered(sandbox)[0]
    assert posts(sandbox) == 2


@pytest.mark.case(62)
async def test_a_full_disk_at_the_receipt_leaves_it_in_the_error(faults, sandbox, session, path):
    """The ids are in the error and the log, the intent stays open, and no later run orders it again."""
    ran = await faults.run("ledger", sandbox, ledger=path, step="submitted", then="killed", **NO_ROOM)
    (ids,) = ordered(sandbox)

    assert ran.told["error"]["type"] == "LedgerUnavailableError"
    assert ran.told["error"]["ids"] == ids
    assert ids[0] in ran.told["error"]["text"]
    assert ids[0] in ran.log
    assert states(path)["sku-1"] == "sending"
    async with session() as rerun:
        with pytest.raises(q.AmbiguousSubmissionError) as ambiguous:
            await order(rerun, image="img")
        job = await rerun.adopt(ambiguous.value, *ids)
        assert (await job).id == ids[0]
    assert states(path)["sku-1"] == "done"
    assert posts(sandbox) == 2


@pytest.mark.case(62)
@pytest.mark.parametrize("then", ["ordered again", "closed"])
async def test_a_receipt_is_kept_as_soon_as_there_is_room(faults, sandbox, path, then):
    """By the next order of the same ref, which gets the job and no second POST, or by closing."""
    ran = await faults.run("ledger", sandbox, ledger=path, step="submitted", then=then, **NO_ROOM)

    assert [ran.told["error"]["ids"]] == ordered(sandbox)
    assert ran.told.get("again", ran.told["error"]["ids"]) == ran.told["error"]["ids"]
    assert states(path)["sku-1"] == "submitted"
    assert posts(sandbox) == 2


# Where a sync of the -wal fails, what then, and the states that the row may be left in: what was written may
# be there though it was not synced, and what was meant to undo it may be too.
NOT_SYNCED = [
    ("claim", "killed", {"claimed", None}),
    ("claim", "closed in it", {"claimed", None}),
    ("claim", "closed", {None}),
    ("claim", "ordered again", {"submitted"}),
    ("sending", "killed", {"sending", "claimed", None}),
    ("sending", "closed in it", {"claimed", None}),
    ("sending", "closed", {None}),
    ("sending", "ordered again", {"submitted"}),
    ("submitted", "killed", {"submitted", "sending"}),
    ("submitted", "closed in it", {"submitted", "sending"}),
    ("submitted", "closed", {"submitted"}),
    ("submitted", "ordered again", {"submitted"}),
]


async def next_run(session):
    """Give what a later run does with the second order: it has it, orders it, or is in doubt."""
    async with session() as rerun:
        try:
            return list((await order(rerun, image="img")).record_ids)
        except q.AmbiguousSubmissionError:
            return "is in doubt"


@pytest.mark.case(63)
@pytest.mark.parametrize(
    ("step", "then", "possible"), NOT_SYNCED, ids=[f"{step}, {then}" for step, then, _ in NOT_SYNCED]
)
async def test_an_error_of_a_sync_of_the_wal(faults, sandbox, session, path, step, then, possible):
    """At the intent: no POST. At the receipt: it is in the error. No later run makes a second order."""
    ran = await faults.run("ledger", sandbox, ledger=path, step=step, then=then, file="-wal", **NO_SYNC)
    before = ordered(sandbox)
    state = states(path).get("sku-1")
    did = await next_run(session)
    after = ordered(sandbox)

    assert ran.told["error"]["type"] == "LedgerUnavailableError"
    assert "I/O" in ran.told["error"]["text"]
    assert ran.told["failed"] > 0
    assert len(before) == (step == "submitted" or then == "ordered again")
    assert ran.told["error"]["ids"] == (before[0] if step == "submitted" else None)
    assert state in possible
    match state:
        case "submitted":
            assert before == after == [did]
        case "sending":
            assert (did, after) == ("is in doubt", before)
        case _:
            assert (before, after) == ([], [did])
    assert posts(sandbox) == len(sandbox.orders)


@pytest.mark.case(63)
@pytest.mark.parametrize("then", ["killed", "closed in it"])
@pytest.mark.parametrize("step", ["claim", "sending", "submitted"])
async def test_an_error_of_a_sync_of_the_file_itself_loses_nothing(
    faults, sandbox, session, path, step, then
):
    """What is said to be kept is in the -wal: the order goes through, and closing leaves it there."""
    ran = await faults.run("ledger", sandbox, ledger=path, step=step, then=then, file="", **NO_SYNC)
    before = ordered(sandbox)
    left = states(path)

    assert ran.told["error"]["type"] is None
    assert then == "killed" or ran.told["failed in all"] > 0
    assert left == {"first": "submitted", "sku-1": "submitted"}
    assert [await next_run(session)] == before == ordered(sandbox)
    assert posts(sandbox) == 2


# --- files that are no good ledger --------------------------------------------------------------


def spoil_text(path):
    path.write_text("this is no database, but it is long enough to be taken for a header " * 20)


def spoil_other_program(path):
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE mine (a)")
    connection.commit()
    connection.close()


def spoil_empty(path):
    path.touch()


def spoil_emptied(path):
    made(path)
    os.truncate(path, 0)


def spoil_cut(path):
    made(path)
    os.truncate(path, path.stat().st_size // 2)


def spoil_bits(path):
    made(path)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2 // 4096 * 4096
    data[middle : middle + 4096] = bytes(b ^ 0xFF for b in data[middle : middle + 4096])
    path.write_bytes(data)


def spoil_newer(path):
    made(path)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()


def spoil_read_only(path):
    made(path)
    path.chmod(0o444)


def spoil_folder(path):
    path.mkdir()


def killed(path, code, *arguments):
    """Kill a process that has written: it leaves a -wal with what is not yet in the one file."""
    program = [sys.executable, "-c", f"{code}\nimport os; os.kill(os.getpid(), 9)", str(path), *arguments]
    assert subprocess.run(program, check=False).returncode == -9
    assert Path(f"{path}-wal").stat().st_size > 0


CLAIM = """
import asyncio, sys
from qamera_async import VideoRequest
from qamera_async.ledger.rows import Row
from qamera_async.ledger.sqlite import SqliteStorage
async def main():
    row = Row("int_1", "http://127.0.0.1:1", VideoRequest("i", ref="r"))
    await SqliteStorage.of(sys.argv[1]).claim(row, retry_failed=False)
asyncio.run(main())
"""
EXECUTE = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute(sys.argv[2])
"""


def spoil_lost_wal(path):
    killed(path, CLAIM)
    Path(f"{path}-wal").unlink()


def spoil_emptied_wal(path):
    killed(path, CLAIM)
    Path(f"{path}-wal").write_bytes(b"")


def spoil_bits_beside_a_wal(path):
    spoil_bits(path)
    killed(path, EXECUTE, "INSERT INTO owners VALUES (9)")


def spoil_newer_in_its_wal(path):
    made(path)
    killed(path, EXECUTE, "PRAGMA user_version = 99")


def spoil_lost_file(path):
    """Lose the one file, and keep its -wal."""
    Path(f"{path}-wal").write_bytes(b"what was written last")


CORRUPT, AWAY = q.LedgerCorruptError, q.LedgerUnavailableError
SPOILT = [
    pytest.param(spoil_text, CORRUPT, "not a database", marks=pytest.mark.case(64)),
    pytest.param(spoil_other_program, CORRUPT, "no ledger of this package", marks=pytest.mark.case(64)),
    pytest.param(spoil_cut, CORRUPT, "damaged", marks=pytest.mark.case(64)),
    pytest.param(spoil_bits, CORRUPT, "damaged", marks=pytest.mark.case(64)),
    pytest.param(spoil_bits_beside_a_wal, CORRUPT, "damaged", marks=pytest.mark.case(64)),
    pytest.param(spoil_empty, CORRUPT, "empty", marks=pytest.mark.case(65)),
    pytest.param(spoil_emptied, CORRUPT, "empty", marks=pytest.mark.case(65)),
    pytest.param(spoil_lost_wal, CORRUPT, "-wal file is missing", marks=pytest.mark.case(65)),
    pytest.param(spoil_emptied_wal, CORRUPT, "-wal file is missing or empty", marks=pytest.mark.case(65)),
    pytest.param(spoil_lost_file, CORRUPT, "only its -wal", marks=pytest.mark.case(65)),
    pytest.param(spoil_read_only, AWAY, "read-only", marks=pytest.mark.case(66)),
    pytest.param(spoil_newer, q.LedgerVersionError, "version 99", marks=pytest.mark.case(67)),
    pytest.param(spoil_newer_in_its_wal, q.LedgerVersionError, "version 99", marks=pytest.mark.case(67)),
    pytest.param(spoil_folder, AWAY, "no file"),
]


def content(path):
    """Give every file of a ledger by its name, with its bytes and its time; a folder is one without bytes.

    But not the index that SQLite keeps of a -wal: whoever opens that, if only to read, makes it anew.
    """
    files = [file for file in path.parent.glob(f"{path.name}*") if not file.name.endswith("-shm")]
    return {
        file.name: (file.is_file() and file.read_bytes(), file.lstat().st_mtime_ns, file.lstat().st_mode)
        for file in files
    }


def untouched(before, path):
    """Say whether nothing was written since; the empty file for the locks may have come beside it."""
    after, locks = content(path), f"{path.name}-owners"
    if locks not in before:
        assert after.pop(locks)[0] == b""
    return after == before


@pytest.mark.parametrize("entered", [True, False])
@pytest.mark.parametrize(("spoil", "error", "text"), SPOILT)
def test_what_is_no_good_ledger_is_refused_untouched(spoil, error, text, path, quick, entered):
    """A typed error before any POST, when the session is entered or when it is first used."""
    spoil(path)
    before = content(path)

    async def use():
        async with Sandbox(quota=None) as sandbox:
            session = sandbox.session(**quick, ledger=path)
            with pytest.raises(error, match=text) as refused:
                await (session.__aenter__() if entered else order(session))
            await session.aclose()

            assert posts(sandbox) == 0
            assert refused.value.path == str(path)
            assert untouched(before, path)

    asyncio.run(use())


@pytest.mark.case(64)
def test_a_damaged_row_is_found_where_the_database_finds_nothing(path):
    """A flipped bit in what a row says is refused, not believed."""
    made(path)
    connection = sqlite3.connect(path)
    connection.execute("UPDATE intents SET state = 'submitted' WHERE ref = 'r7'")
    connection.commit()
    connection.close()

    async def use():
        storage = SqliteStorage.of(str(path))
        row = Row("new", "http://127.0.0.1:1", q.VideoRequest("i" * 500, ref="r7"))
        with pytest.raises(q.LedgerCorruptError, match="damaged"):
            await storage.claim(row, retry_failed=False)
        await storage.aclose()

    asyncio.run(use())


@pytest.mark.case(66)
async def test_a_file_system_that_is_read_only_means_no_post(faults, sandbox, session, path):
    """Though nothing of the file's own mode says so; all of its files stay as they are."""
    async with session() as earlier:
        await order(earlier, ref="first")
    before = content(path)
    told = (await faults.run("read_only", sandbox, ledger=path)).told

    assert told["type"] == "LedgerUnavailableError"
    assert "Read-only file system" in told["text"]
    assert told["failed"] > 0
    assert len(before) > 1
    assert untouched(before, path)
    assert posts(sandbox) == 1


@pytest.mark.case(67)
async def test_a_newer_schema_is_told_by_its_numbers(sandbox, session, path):
    """So that one knows which version of this package is wanted; the rows stay for that one."""
    async with session() as earlier:
        await order(earlier)
    connection = sqlite3.connect(path)
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    connection.execute(f"PRAGMA user_version = {version + 1}")
    connection.close()
    before = content(path)

    newer = session()
    with pytest.raises(q.LedgerVersionError) as refused:
        await order(newer, ref="sku-2")
    await newer.aclose()

    assert (refused.value.found, refused.value.supported) == (version + 1, version)
    assert untouched(before, path)
    assert states(path) == {"sku-1": "submitted"}
    assert posts(sandbox) == 1
