"""Faults of the ledger: full and failing disks, invalid files, other processes."""

import asyncio
import errno
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from test_kill import orders_by_image, started
from test_ledger import made, order, posts

import qamera_async as q
from qamera_async.ledger.rows import Row
from qamera_async.ledger.sqlite import SqliteStorage
from qamera_async.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")

DISK_FULL = {"call": "write", "error": errno.ENOSPC}
SYNC_FAILS = {"call": "sync", "error": errno.EIO}


@pytest.fixture
async def sandbox():
    async with Sandbox(job_seconds=0.05, quota=None) as sandbox:
        yield sandbox


def later_orders(sandbox):
    """Return the record ids of all orders but the first, which is submitted before the disk fails."""
    return [list(order.record_ids) for order in sandbox.orders[1:]]


def states(path):
    """Return the state of each ref, read without changing the ledger.

    A writable connection would merge the -wal file into the database when it is closed.
    """
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
    found = dict(connection.execute("SELECT ref, state FROM intents WHERE current = 1"))
    connection.close()
    return found


# --- another process ----------------------------------------------------------------------------


@pytest.mark.case(60)
async def test_two_processes_submit_each_ref_once(tmp_path):
    """Both processes get all 40 results, and together they stay within one rate limit."""
    async with Sandbox(job_seconds=0.1, quota=(20, 0.5), credits=10**9, count_delay=0.02) as sandbox:
        # The processes start at opposite ends, so that each of them submits some of the refs.
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


# --- full and failing disks ---------------------------------------------------------------------


@pytest.mark.case(61)
@pytest.mark.parametrize("step", ["claim", "sending"])
async def test_full_disk_at_the_intent_prevents_the_post(faults, sandbox, path, step):
    """The same ref is submitted once after space is freed."""
    ran = await faults.run("ledger", sandbox, ledger=path, step=step, then="submitted again", **DISK_FULL)

    assert ran.told["error"]["type"] == "LedgerUnavailableError"
    assert "full" in ran.told["error"]["text"]
    assert ran.told["failed"] > 0
    assert later_orders(sandbox) == [ran.told["again"]]
    assert posts(sandbox) == 2
    assert states(path)["sku-1"] == "submitted"


@pytest.mark.case(61)
@pytest.mark.parametrize("step", ["claim", "sending"])
async def test_kill_after_a_full_disk_at_the_intent_leaves_the_ref_free(faults, sandbox, session, path, step):
    """The killed process sent nothing, and the next process submits the ref once."""
    ran = await faults.run("ledger", sandbox, ledger=path, step=step, then="killed", **DISK_FULL)

    assert ran.told["error"]["type"] == "LedgerUnavailableError"
    assert posts(sandbox) == 1
    async with session() as rerun:
        assert list((await order(rerun, image="img")).record_ids) == later_orders(sandbox)[0]
    assert posts(sandbox) == 2


@pytest.mark.case(62)
async def test_receipt_that_meets_a_full_disk_is_in_the_error(faults, sandbox, session, path):
    """The error and the log have its ids. The intent stays open, so no later process submits it again."""
    ran = await faults.run("ledger", sandbox, ledger=path, step="submitted", then="killed", **DISK_FULL)
    (ids,) = later_orders(sandbox)

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
@pytest.mark.parametrize("then", ["submitted again", "closed"])
async def test_receipt_is_stored_after_space_is_freed(faults, sandbox, path, then):
    """The next submission of the ref stores it and gets the job, or closing the session stores it."""
    ran = await faults.run("ledger", sandbox, ledger=path, step="submitted", then=then, **DISK_FULL)

    assert [ran.told["error"]["ids"]] == later_orders(sandbox)
    assert ran.told.get("again", ran.told["error"]["ids"]) == ran.told["error"]["ids"]
    assert states(path)["sku-1"] == "submitted"
    assert posts(sandbox) == 2


# The step at which a sync of the -wal file fails, the end of the process, and the states that the row may
# have then. A write may be in the file although it was not synced. So may the write that was to undo it.
FAILED_SYNCS = [
    ("claim", "killed", {"claimed", None}),
    ("claim", "closed while failing", {"claimed", None}),
    ("claim", "closed", {None}),
    ("claim", "submitted again", {"submitted"}),
    ("sending", "killed", {"sending", "claimed", None}),
    ("sending", "closed while failing", {"claimed", None}),
    ("sending", "closed", {None}),
    ("sending", "submitted again", {"submitted"}),
    ("submitted", "killed", {"submitted", "sending"}),
    ("submitted", "closed while failing", {"submitted", "sending"}),
    ("submitted", "closed", {"submitted"}),
    ("submitted", "submitted again", {"submitted"}),
]


async def next_run(session):
    """Submit the second request in a later session; return its record ids, or "ambiguous"."""
    async with session() as rerun:
        try:
            return list((await order(rerun, image="img")).record_ids)
        except q.AmbiguousSubmissionError:
            return "ambiguous"


@pytest.mark.case(63)
@pytest.mark.parametrize(
    ("step", "then", "possible"), FAILED_SYNCS, ids=[f"{step}, {then}" for step, then, _ in FAILED_SYNCS]
)
async def test_failed_sync_of_the_wal_loses_no_receipt_and_repeats_no_post(
    faults, sandbox, session, path, step, then, possible
):
    """A failure at the intent prevents the POST. After a failure at the receipt, the error has it."""
    ran = await faults.run("ledger", sandbox, ledger=path, step=step, then=then, file="-wal", **SYNC_FAILS)
    before = later_orders(sandbox)
    state = states(path).get("sku-1")
    rerun = await next_run(session)
    after = later_orders(sandbox)

    assert ran.told["error"]["type"] == "LedgerUnavailableError"
    assert "I/O" in ran.told["error"]["text"]
    assert ran.told["failed"] > 0
    assert len(before) == (step == "submitted" or then == "submitted again")
    assert ran.told["error"]["ids"] == (before[0] if step == "submitted" else None)
    assert state in possible
    match state:
        case "submitted":
            assert before == after == [rerun]
        case "sending":
            assert (rerun, after) == ("ambiguous", before)
        case _:
            assert (before, after) == ([], [rerun])
    assert posts(sandbox) == len(sandbox.orders)


@pytest.mark.case(63)
@pytest.mark.parametrize("then", ["killed", "closed while failing"])
@pytest.mark.parametrize("step", ["claim", "sending", "submitted"])
async def test_failed_sync_of_the_database_file_loses_nothing(faults, sandbox, session, path, step, then):
    """The -wal file has all commits: the submission succeeds, and closing keeps the -wal file."""
    ran = await faults.run("ledger", sandbox, ledger=path, step=step, then=then, file="", **SYNC_FAILS)
    before = later_orders(sandbox)
    left = states(path)

    assert ran.told["error"]["type"] is None
    assert then == "killed" or ran.told["failed in all"] > 0
    assert left == {"first": "submitted", "sku-1": "submitted"}
    assert [await next_run(session)] == before == later_orders(sandbox)
    assert posts(sandbox) == 2


# --- invalid ledger files -----------------------------------------------------------------------


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


def write_and_kill(path, code, *arguments):
    """Kill a process after a write, so that its last commit is only in the -wal file."""
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
    write_and_kill(path, CLAIM)
    Path(f"{path}-wal").unlink()


def spoil_emptied_wal(path):
    write_and_kill(path, CLAIM)
    Path(f"{path}-wal").write_bytes(b"")


def spoil_bits_beside_a_wal(path):
    spoil_bits(path)
    write_and_kill(path, EXECUTE, "INSERT INTO owners VALUES (9)")


def spoil_newer_in_its_wal(path):
    made(path)
    write_and_kill(path, EXECUTE, "PRAGMA user_version = 99")


def spoil_lost_file(path):
    """Create only the -wal file, as if the database file was lost."""
    Path(f"{path}-wal").write_bytes(b"the last commits")


CORRUPT, UNAVAILABLE = q.LedgerCorruptError, q.LedgerUnavailableError
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
    pytest.param(spoil_read_only, UNAVAILABLE, "read-only", marks=pytest.mark.case(66)),
    pytest.param(spoil_newer, q.LedgerVersionError, "version 99", marks=pytest.mark.case(67)),
    pytest.param(spoil_newer_in_its_wal, q.LedgerVersionError, "version 99", marks=pytest.mark.case(67)),
    pytest.param(spoil_folder, UNAVAILABLE, "no file"),
]


def content(path):
    """Return the bytes, modification time and mode of each file of a ledger by name.

    The -shm file is left out: SQLite creates it anew whenever a -wal file is opened.
    """
    files = [file for file in path.parent.glob(f"{path.name}*") if not file.name.endswith("-shm")]
    return {
        file.name: (file.is_file() and file.read_bytes(), file.lstat().st_mtime_ns, file.lstat().st_mode)
        for file in files
    }


def untouched(before, path):
    """Return whether the files have not changed; an empty lock file may have been created."""
    after, locks = content(path), f"{path.name}-owners"
    if locks not in before:
        assert after.pop(locks)[0] == b""
    return after == before


@pytest.mark.parametrize("entered", [True, False])
@pytest.mark.parametrize(("spoil", "error", "text"), SPOILT)
def test_invalid_ledger_is_refused_and_not_changed(spoil, error, text, path, quick, entered):
    """The error is raised before any POST, when the session is entered or first used."""
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
def test_damaged_row_is_detected_in_an_intact_database(path):
    """The checksum of the row does not match its content."""
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
async def test_read_only_file_system_prevents_the_post(faults, sandbox, session, path):
    """The mode of the file allows writing. No file of the ledger is changed."""
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
async def test_error_of_a_newer_schema_states_both_versions(sandbox, session, path):
    """The rows are kept for a newer version of this package."""
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
