"""The thread behind the ledger, and the locks that tell the living from the dead."""

import asyncio
import logging
import sqlite3
import threading

import pytest

import qamera_async as q
from qamera_async.ledger.sqlite import owners
from qamera_async.ledger.sqlite.owners import Owners
from qamera_async.ledger.sqlite.worker import Worker

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "any.db"


@pytest.fixture
async def worker(path):
    def connect():
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        connection.execute("CREATE TABLE IF NOT EXISTS words (word TEXT UNIQUE)")
        return connection

    worker = Worker(str(path), connect, lambda connection: connection.close())
    yield worker
    thread = worker.end()
    if thread is not None:
        await asyncio.to_thread(thread.join)


def saying(word):
    return lambda connection: connection.execute("INSERT INTO words VALUES (?)", (word,)).rowcount


def words(path):
    connection = sqlite3.connect(path)
    found = [word for (word,) in connection.execute("SELECT word FROM words ORDER BY rowid")]
    connection.close()
    return found


async def test_what_is_queued_together_fails_one_by_one(worker, path):
    """One that can't be done takes none of the others with it, and their order stays."""
    busy = threading.Event()
    worker.post("be busy", lambda _: busy.wait(5))
    futures = [worker.run("say", saying(word)) for word in ("a", "b", "a", "c")]
    busy.set()
    results = await asyncio.gather(*futures, return_exceptions=True)

    assert [type(result) for result in results] == [int, int, q.LedgerUnavailableError, int]
    assert words(path) == ["a", "b", "c"]


async def test_what_is_queued_together_is_one_commit(worker, path):
    """A hundred that wait for the disk wait for it once."""
    busy = threading.Event()
    worker.post("be busy", lambda _: busy.wait(5))
    begun = []
    await asyncio.sleep(0.05)
    futures = [
        worker.run(
            "say", lambda connection, n=n: begun.append(connection.in_transaction) or saying(n)(connection)
        )
        for n in map(str, range(100))
    ]
    statements = []
    worker.run("watch", lambda connection: connection.set_trace_callback(statements.append))
    busy.set()
    await asyncio.gather(*futures)

    assert begun == [True] * 100
    assert statements.count("BEGIN IMMEDIATE") == 0
    assert statements.count("COMMIT") == 1
    assert len(words(path)) == 100


async def test_cancelling_the_wait_cancels_nothing(worker, path):
    """What was said is done, since a receipt may be what is written."""
    busy = threading.Event()
    worker.post("be busy", lambda _: busy.wait(5))
    waiting = worker.run("say", saying("a"))
    waiting.cancel()
    busy.set()
    await worker.run("say", saying("b"))

    assert words(path) == ["a", "b"]


async def test_what_nobody_expected_is_ours_and_in_the_log(worker, caplog):
    """A mistake in an operation ends neither the thread nor in silence."""
    with pytest.raises(q.LedgerError, match="ZeroDivisionError"):
        await worker.run("count", lambda _: 1 // 0)

    assert await worker.run("say", saying("a")) == 1
    assert "ZeroDivisionError" in caplog.text


async def test_the_failure_of_what_nobody_waits_for_is_logged(worker, caplog):
    """It says what could not be done."""
    caplog.set_level(logging.WARNING)
    worker.post("say it twice", lambda connection: (saying("a")(connection), saying("a")(connection)))
    await worker.run("say", saying("b"))
    await worker.run("say", saying("c"))  # by now the thread is through with what it did before

    assert "could not say it twice" in caplog.text


async def test_nothing_is_taken_after_the_end(worker, path):
    """What was queued before is done; what comes later is refused, or dropped where nobody waits."""
    done = worker.run("say", saying("a"))
    thread = worker.end()
    with pytest.raises(q.SessionClosedError):
        await worker.run("say", saying("b"))
    worker.post("say", saying("c"))
    await asyncio.to_thread(thread.join)

    assert await done == 1
    assert words(path) == ["a"]


async def test_a_file_that_can_not_be_opened_now_may_be_opened_later(tmp_path):
    """Each operation tries, and says why it can't."""
    found = []

    def connect():
        if not found:
            raise PermissionError(13, "Permission denied")
        return sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)

    worker = Worker("any", connect, lambda connection: connection.close())
    with pytest.raises(q.LedgerUnavailableError, match="Permission denied"):
        await worker.run("be opened", lambda _: None)
    found.append(True)

    assert await worker.run("be opened", lambda _: 7) == 7
    await asyncio.to_thread(worker.end().join)


def test_a_lock_belongs_to_a_living_owner(tmp_path):
    """One's own is alive, one that nobody holds is not."""
    mine = Owners(str(tmp_path / "o"))
    mine.become(3)

    assert mine.alive(3)
    assert not mine.alive(4)


def test_a_file_of_locks_that_was_replaced_decides_nothing(tmp_path):
    """Whoever deletes it must not make the living look dead."""
    path = tmp_path / "o"
    mine = Owners(str(path))
    path.unlink()
    path.touch()
    with pytest.raises(q.LedgerUnavailableError, match="replaced"):
        mine.alive(4)
    path.unlink()
    with pytest.raises(q.LedgerUnavailableError, match="replaced"):
        mine.alive(4)


def test_a_system_without_such_locks_has_no_ledger(tmp_path, monkeypatch):
    """Better none than one that takes the living for dead."""
    monkeypatch.setattr(owners, "fcntl", None)
    with pytest.raises(q.ConfigurationError, match="POSIX"):
        Owners(str(tmp_path / "o"))
