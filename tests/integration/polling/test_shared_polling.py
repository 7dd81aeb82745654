"""Pollers that share a ledger: the lease holder polls, the followers read its results.

Each poller has its own ledger object, as if it were in another process. The last test starts processes.
"""

import asyncio
import json
import math
import os
import signal
import sqlite3
import sys
from contextlib import closing

import postgres
import pytest
from canary import KEY
from fake_api import FakeServer, Polling, ServedApi, error_response, item

import qamera_async as q
from qamera_async._polling import lease
from qamera_async.errors import LedgerUnavailableError
from qamera_async.events import Updated
from qamera_async.ledger.places import checked_place, ledger_at
from qamera_async.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")

INTERVAL = 0.1
ORIGIN = "https://api.example.com"
on_postgres = pytest.mark.parametrize("path", ["postgres"], indirect=True)


@pytest.fixture(params=["sqlite", "postgres"])
def path(request, tmp_path):
    """Return the file or URL of the ledger."""
    return str(tmp_path / "jobs.db") if request.param == "sqlite" else postgres.server().database()


@pytest.fixture
def server():
    server = FakeServer()
    server.add(*[item(record_id) for record_id in "abcdefgh"])
    return server


@pytest.fixture
async def pollings(server, path):
    """Return a function that makes pollers with the same ledger."""
    opened = []

    async def make(number, **options):
        made = []
        for _ in range(number):
            ledger = ledger_at(checked_place(path), ORIGIN)
            await ledger.open()
            options = {"interval": INTERVAL, "max_interval": 4 * INTERVAL, "missing": 0.5} | options
            polling = Polling(api=ServedApi(server), board=ledger.board("account"), **options)
            made.append(polling)
            opened.append((polling, ledger))
        return made

    yield make
    for polling, ledger in opened:
        await polling.poller.aclose()
        await ledger.aclose()


def waiting(polling, record_id):
    return asyncio.ensure_future(polling.job(record_id).wait())


def holder_and_follower(first, second):
    """Return the poller that holds the lease, and the other poller."""
    return (first, second) if second.poller._shared.handover_delay else (second, first)


async def settled_roles(pollings):
    """Wait until one poller holds the lease and the others follow it."""
    async with asyncio.timeout(10):
        while sum(each.poller._shared.handover_delay == 0.0 for each in pollings) != 1:
            await asyncio.sleep(INTERVAL / 10)


def select(path, statement):
    """Return rows of the ledger."""
    if path.startswith("postgres"):
        return postgres.execute(path, "SET search_path TO qamera", statement)
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement).fetchall()


async def execute(path, statement):
    """Execute a statement in the ledger while other connections may write to it."""
    if path.startswith("postgres"):
        postgres.execute(path, "SET search_path TO qamera", statement)
        return

    def run():
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(statement)

    await asyncio.to_thread(run)


async def until_nothing_is_watched(path):
    """Wait until the ledger has no watched records."""
    async with asyncio.timeout(10):
        while select(path, "SELECT * FROM waiting"):
            await asyncio.sleep(INTERVAL / 10)


# --- number of polls --------------------------------------------------------------------------------


async def test_four_processes_cost_the_polls_of_one(server, pollings):
    loop = asyncio.get_running_loop()
    ids = [f"vid_{n}" for n in range(100)]
    server.add(*map(item, ids))
    tasks = [
        waiting(polling, record_id)
        for number, polling in enumerate(await pollings(4))
        for record_id in ids[number::4]
    ]
    began, before = loop.time(), len(server.times)
    await server.has_answered(12)
    intervals, polls = (loop.time() - began) / INTERVAL, len(server.times) - before
    server.finish(*ids)
    videos = await asyncio.gather(*tasks)

    assert {video.id for video in videos} == set(ids)
    assert polls <= intervals / 0.9 + 4  # each process may begin with its own poll


async def test_lease_stays_with_the_last_lease_holder(server, pollings):
    """The other processes leave the next poll to it."""
    three = await pollings(3)
    tasks = [waiting(polling, record_id) for polling, record_id in zip(three, "abc", strict=True)]
    await settled_roles(three)
    before = [len(polling.api.requests) for polling in three]
    await server.has_answered(5)
    polls = [len(polling.api.requests) - count for polling, count in zip(three, before, strict=True)]
    server.finish(*"abc")
    await asyncio.gather(*tasks)

    assert max(polls) >= 4


async def test_no_waiter_in_any_process_means_no_request(server, pollings, path):
    tasks = [waiting(polling, "a") for polling in await pollings(2)]
    await server.has_answered(2)
    server.finish("a")
    await asyncio.gather(*tasks)
    await until_nothing_is_watched(path)
    before = len(server.times)
    await asyncio.sleep(3 * INTERVAL)

    assert len(server.times) == before


async def test_only_watched_records_are_stored(server, pollings, path):
    """The ledger has no other records of a list, and forgets records that are no longer watched."""
    server.add(*[item(f"vid_{n}") for n in range(50)])
    first, second = await pollings(2)
    tasks = [waiting(first, "a"), waiting(first, "c"), waiting(second, "b"), waiting(second, "c")]
    await server.has_answered(4)
    stored = dict(select(path, "SELECT record_id, item FROM shown"))
    server.finish("b", "c")
    await asyncio.gather(*tasks[1:])
    await server.has_answered(3)
    left = {record_id for (record_id,) in select(path, "SELECT record_id FROM shown")}
    tasks[0].cancel()

    assert stored.keys() in ({"a", "c"}, {"b", "c"})
    assert all(json.loads(text)["id"] == record_id for record_id, text in stored.items())
    assert left <= {"a"}


# --- results for followers --------------------------------------------------------------------------


async def test_each_change_reaches_a_follower(server, pollings):
    """Its states and events are the same as if it had polled."""
    pair = await pollings(2)
    tasks = [waiting(polling, "a") for polling in pair]
    await settled_roles(pair)
    _, follower = holder_and_follower(*pair)
    job = follower.job("a")
    while job.status is None:
        await asyncio.sleep(INTERVAL / 10)
    server.add(item("a", "RUNNING"))
    while job.status != "RUNNING":
        await asyncio.sleep(INTERVAL / 10)
    server.finish("a")
    videos = await asyncio.gather(*tasks)

    assert [video.video_url for video in videos] == [videos[0].video_url] * 2
    assert [event.record.status for event in follower.of(Updated)] == ["PENDING", "RUNNING", "DONE"]


async def test_old_result_does_not_answer_a_new_waiter(server, pollings, path):
    """A URL in the ledger may have expired, so the waiter waits for a new poll."""
    pair = await pollings(2)
    tasks = [waiting(polling, "a") for polling in pair]
    await server.has_answered(3)
    server.finish("a")
    await asyncio.gather(*tasks)
    await until_nothing_is_watched(path)
    stored = select(path, "SELECT record_id FROM shown")
    await asyncio.sleep(2 * INTERVAL)
    for polling in pair:
        await polling.poller.aclose()
    (late,) = await pollings(1)
    late.limiter.blocked = True
    task = waiting(late, "a")
    await asyncio.sleep(3 * INTERVAL)
    done_without_poll = task.done()
    task.cancel()

    assert stored == [("a",)]
    assert not done_without_poll


async def test_follower_forgets_finished_records(server, pollings, path):
    """A follower may run for weeks, so it must not keep finished records."""
    pair = await pollings(2)
    stay = [waiting(polling, "a") for polling in pair]
    await settled_roles(pair)
    _, follower = holder_and_follower(*pair)
    ids = [f"vid_{n}" for n in range(20)]
    server.add(*map(item, ids))
    tasks = []
    for record_id in ids:
        tasks.append(waiting(follower, record_id))
        await asyncio.sleep(INTERVAL / 10)
        server.finish(record_id)
    await asyncio.gather(*tasks)
    async with asyncio.timeout(10):
        while {record_id for (record_id,) in select(path, "SELECT record_id FROM waiting")} != {"a"}:
            await asyncio.sleep(INTERVAL / 10)
    watched = follower.poller.watched
    server.finish("a")
    await asyncio.gather(*stay)

    assert watched == 1
    assert follower.poller.watched == 0


async def test_failure_reaches_a_follower(server, pollings):
    tasks = [waiting(polling, "a") for polling in await pollings(2)]
    await server.has_answered(3)
    server.add(item("a", "FAILED"))

    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(error) for error in errors] == [q.JobFailedError] * 2


async def test_missing_record_is_lost_to_all(server, pollings):
    first, second = await pollings(2)
    tasks = [waiting(first, "a"), waiting(second, "a")]
    other = waiting(second, "b")
    await server.has_answered(3)
    del server.items["a"]
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    server.finish("b")
    await other

    assert [type(error) for error in errors] == [q.JobLostError] * 2


async def test_all_processes_share_one_outage(server, pollings):
    """Followers do not poll during the outage, know its error, and continue after it."""
    loop = asyncio.get_running_loop()
    four = await pollings(4)
    tasks = [waiting(polling, record_id) for polling, record_id in zip(four, "abcd", strict=True)]
    await server.has_answered(2)
    server.failures = [error_response(500, text="overloaded")] * 100
    began, before = loop.time(), len(server.times)
    await server.has_answered(6)
    intervals, polls = (loop.time() - began) / INTERVAL, len(server.times) - before
    errors = [polling.poller.last_error for polling in four]
    server.failures.clear()
    server.finish(*"abcd")
    await asyncio.gather(*tasks)

    assert polls <= intervals / 0.9 + 1
    assert all("overloaded" in str(error) for error in errors)


async def test_outage_slows_all_processes_down(server, pollings):
    """Each failed poll doubles the pause of every process, so three more polls take 14 intervals."""
    loop = asyncio.get_running_loop()
    six = await pollings(6, max_interval=1000.0)
    tasks = [waiting(polling, record_id) for polling, record_id in zip(six, "abcdef", strict=True)]
    await server.has_answered(2)
    server.failures = [error_response(500)] * 100
    await server.has_answered(1)
    began = loop.time()
    await server.has_answered(3)
    intervals = (loop.time() - began) / INTERVAL
    for task in tasks:
        task.cancel()

    assert intervals >= 0.9 * 14 - 1


async def test_end_of_an_outage_ends_the_pauses_of_all_processes(server, pollings):
    """The lease holder stops after the outage. The follower then polls without the long pause."""
    loop = asyncio.get_running_loop()
    pair = await pollings(2, max_interval=1000.0)
    tasks = {id(polling): waiting(polling, "a") for polling in pair}
    await settled_roles(pair)
    server.failures = [error_response(500)] * 4
    await server.has_answered(5)
    holder, follower = holder_and_follower(*pair)
    async with asyncio.timeout(5):
        while follower.poller.last_error is not None or holder.poller.last_error is not None:
            await asyncio.sleep(INTERVAL / 10)
    server.finish("a")
    await holder.poller.aclose()
    began = loop.time()
    async with asyncio.timeout(10):
        await tasks[id(follower)]
    await asyncio.gather(*tasks.values(), return_exceptions=True)

    assert loop.time() - began <= 16 * INTERVAL


async def test_refusal_fails_every_process(server, pollings):
    """The lease holder fail first. The other processes then poll and get the same error."""
    tasks = [waiting(polling, "a") for polling in await pollings(3)]
    await server.has_answered(2)
    server.failures = [error_response(401)] * 1000

    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(error) for error in errors] == [q.AuthenticationError] * 3


async def test_follower_that_needs_the_whole_list_fetches_it(server, pollings):
    """The lists that it fetched before it followed do not show which records are new."""
    pair = await pollings(2)
    for polling in pair:
        await polling.poller.fetch_list()
    tasks = [waiting(polling, "a") for polling in pair]
    await settled_roles(pair)
    await server.has_answered(2)
    _, follower = holder_and_follower(*pair)
    number, before = follower.poller.list_number, len(follower.api.requests)
    async with asyncio.timeout(5):
        records = await follower.poller.next_list()
    for task in tasks:
        task.cancel()

    assert number == 0
    assert len(records.entries) == len(server.items)
    assert len(follower.api.requests) == before + 1


# --- the lease --------------------------------------------------------------------------------------


async def test_lease_of_a_hanging_holder_expires(server, pollings, path, monkeypatch):
    """A suspended lease holder delays the other processes by an interval and a half."""
    monkeypatch.setattr(lease, "_MIN_LEASE", 0.0)
    (polling,) = await pollings(1)
    ledger = ledger_at(checked_place(path), ORIGIN)
    hanging = ledger.board("account")
    assert (await hanging.begin(0, [], [], fresh=0.0, lease=0.0)).turn
    task = waiting(polling, "a")
    await server.has_answered(2)
    server.finish("a")
    await task
    published = await hanging.publish(0.0, {"a": "{}"}, complete=True)
    await ledger.aclose()

    assert published is None


async def test_slow_list_is_fetched_by_one_process(server, pollings, monkeypatch):
    """The lease lasts longer after polls that took long."""
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(lease, "_MIN_LEASE", 3 * INTERVAL)
    three = await pollings(3)
    tasks = [waiting(polling, record_id) for polling, record_id in zip(three, "abc", strict=True)]
    await server.has_answered(3)
    server.delay = 5 * INTERVAL
    await server.has_answered(6)
    began = loop.time()
    await server.has_answered(3)
    intervals = (loop.time() - began) / INTERVAL
    server.finish(*"abc")
    await asyncio.gather(*tasks)

    assert intervals >= 2 * 5


@pytest.mark.parametrize("when", ["during the acquisition", "after the acquisition"])
async def test_lease_that_ends_without_a_poll_is_released(server, pollings, monkeypatch, when):
    """The last waiter is cancelled at that point, and another process can poll."""
    monkeypatch.setattr(lease, "_MIN_LEASE", math.inf)
    first, second = await pollings(2)
    board = first.poller._shared._board
    begin = board.begin

    async def begins(*args, **options):
        taking = begin(*args, **options)
        if when == "after the acquisition":
            await taking
        leaving.cancel()
        await asyncio.sleep(0)  # the poller is cancelled
        return await taking

    board.begin = begins
    leaving = waiting(first, "a")
    await asyncio.wait([leaving])
    server.finish("a")
    async with asyncio.timeout(5):
        video = await second.job("a")

    assert leaving.cancelled()
    assert video.id == "a"
    assert len(server.times) == 1


async def test_429_without_waiters_releases_the_lease(server, pollings, monkeypatch):
    monkeypatch.setattr(lease, "_MIN_LEASE", math.inf)
    first, second = await pollings(2)
    server.failures, server.delay = [error_response(429)], INTERVAL
    leaving = waiting(first, "a")
    await server.has_answered()
    leaving.cancel()
    await asyncio.sleep(2 * INTERVAL)
    server.finish("a")
    async with asyncio.timeout(5):
        video = await second.job("a")

    assert video.id == "a"
    assert len(first.api.requests) == 1


async def test_unusable_ledger_keeps_no_process_waiting(server, pollings, monkeypatch):
    """Each process then polls without the ledger."""
    pair = await pollings(2)

    async def fail(*_args, **_options):
        raise LedgerUnavailableError("The disk is full.")

    for polling in pair:
        for name in ("begin", "look", "publish"):
            monkeypatch.setattr(polling.poller._shared._board, name, fail)
    tasks = [waiting(polling, "a") for polling in pair]
    await server.has_answered(2)
    server.finish("a")

    assert [(await task).id for task in tasks] == ["a"] * 2


async def test_closing_ends_the_watch_and_the_lease(server, pollings, path):
    first, second = await pollings(2)
    task = waiting(first, "a")
    await server.has_answered(2)
    await first.poller.aclose()
    with pytest.raises(q.SessionClosedError):
        await task
    await until_nothing_is_watched(path)
    after = waiting(second, "a")
    await server.has_answered()
    server.finish("a")

    assert (await after).id == "a"


async def test_process_whose_records_were_deleted_registers_them_again(server, pollings, path):
    """Other processes delete the records of a process whose connection is lost."""
    tasks = [waiting(polling, record_id) for polling, record_id in zip(await pollings(2), "ab", strict=True)]
    await server.has_answered(3)
    await execute(path, "DELETE FROM waiting")
    async with asyncio.timeout(5):
        while set(select(path, "SELECT record_id FROM waiting")) != {("a",), ("b",)}:
            await asyncio.sleep(INTERVAL / 10)
    server.finish("a", "b")
    await asyncio.gather(*tasks)


async def test_process_whose_records_are_always_deleted_polls_itself(server, pollings):
    """The polls of other processes do not include its records."""
    (first,) = await pollings(1)
    (second,) = await pollings(1, interval=4 * INTERVAL)
    board = first.poller._shared._board
    board._forget_dead = lambda connection: connection.execute(
        "DELETE FROM waiting WHERE poller <> ?", (board._name,)
    )
    task = waiting(first, "a")
    await server.has_answered(2)
    own = waiting(second, "b")
    await server.has_answered(4)
    server.finish("b")
    async with asyncio.timeout(5):
        video = await own
    task.cancel()

    assert video.id == "b"


@on_postgres
async def test_listener_reconnects_after_a_lost_connection(server, pollings, path):
    others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    tasks = [waiting(polling, record_id) for polling, record_id in zip(await pollings(2), "ab", strict=True)]
    await server.has_answered(2)
    postgres.execute(path, f"SELECT pg_terminate_backend(pid) {others}")
    await server.has_answered(4)
    connections = postgres.execute(path, f"SELECT count(*) {others}")
    server.finish("a", "b")
    await asyncio.gather(*tasks)

    assert connections[0][0] >= 1


# --- processes --------------------------------------------------------------------------------------

PROGRAM = """
import asyncio, json, sys
from qamera_async import PollPolicy, QameraSession, RateLimiter
from qamera_async.events import Polled
def on_event(event):
    if isinstance(event, Polled):
        print("polled", flush=True)
async def main():
    url, key, ledger, record_id, interval = json.loads(sys.argv[1])
    options = {"rate_limiter": RateLimiter(10**6, 0.001), "polling": PollPolicy(interval=interval)}
    async with QameraSession(key, base_url=url, ledger=ledger, on_event=on_event, **options) as qamera:
        print((await qamera.job(record_id)).status, flush=True)
asyncio.run(main())
"""


class Process:
    """A process that waits for a record and prints a line after each poll."""

    async def start(self, *arguments):
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROGRAM, json.dumps(arguments), stdout=asyncio.subprocess.PIPE
        )
        self.lines = []
        self._reading = asyncio.create_task(self._read())
        return self

    async def _read(self):
        async for line in self.process.stdout:
            self.lines.append(line.decode().strip())

    async def ended(self):
        await asyncio.gather(self.process.wait(), self._reading)
        return self.lines


@pytest.mark.slow
async def test_death_of_the_lease_holder_is_noticed(path):
    """After kill -9 of the lease holder, another process polls within an interval and a half."""
    interval = 1.0
    async with Sandbox(job_seconds=math.inf, quota=None, api_key=KEY) as sandbox:

        def polls():
            return [request for request in sandbox.requests if request.method == "GET"]

        sandbox.add_records(1, "PENDING")
        (record_id,) = sandbox.records
        processes = [await Process().start(sandbox.url, KEY, path, record_id, interval) for _ in range(3)]
        while max(len(each.lines) for each in processes) < 2:
            await asyncio.sleep(interval / 20)
        holder = max(processes, key=lambda each: len(each.lines))
        last = polls()[-1]
        os.kill(holder.process.pid, signal.SIGKILL)
        async with asyncio.timeout(10):
            while polls()[-1] is last:
                await asyncio.sleep(interval / 20)
        next_poll = polls()[-1]
        sandbox.finish(record_id)
        ends = [await each.ended() for each in processes]

    assert next_poll.at - last.at <= 1.5 * interval
    assert sorted(lines[-1] for lines in ends) == ["DONE", "DONE", "polled"]
