"""One poll for all who wait with one ledger: whoever polls, the others take what it brings."""

import asyncio
import json
import math
import os
import signal
import sqlite3
import sys
from contextlib import AsyncExitStack, closing

import postgres
import pytest
from canary import KEY

import qamera_async as q
from qamera_async._polling import others
from qamera_async.errors import LedgerUnavailableError
from qamera_async.events import Updated
from qamera_async.ledger.board import Look
from qamera_async.ledger.places import checked_place, ledger_at
from qamera_async.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")

INTERVAL = 0.1
POLLING = q.PollPolicy(interval=INTERVAL, stale_after=1.0, max_interval=0.4)
TIMEOUTS = q.Timeouts(connect=1.0, request=1.0, job=10.0, missing=0.5, reconcile=0.3, close=1.0)
on_postgres = pytest.mark.parametrize("path", ["postgres"], indirect=True)


@pytest.fixture(params=["sqlite", "postgres"])
def path(request, tmp_path):
    """Where the ledger is to be."""
    return str(tmp_path / "jobs.db") if request.param == "sqlite" else postgres.server().database()


@pytest.fixture
async def sandbox():
    async with Sandbox(job_seconds=math.inf, quota=None, api_key=KEY) as sandbox:
        yield sandbox


@pytest.fixture
async def sessions(sandbox, path):
    """Give a function that opens sessions with the ledger, each as good as a process of its own."""
    async with AsyncExitStack() as stack:

        async def opened(number, **options):
            options = {"ledger": path, "polling": POLLING, "timeouts": TIMEOUTS} | options
            return [await stack.enter_async_context(sandbox.session(**options)) for _ in range(number)]

        yield opened


def select(path, statement):
    """Give what a ledger has."""
    if path.startswith("postgres"):
        return postgres.execute(path, "SET search_path TO qamera", statement)
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement).fetchall()


async def execute(path, statement):
    """Run a statement in a ledger, which others may be writing to."""
    if path.startswith("postgres"):
        postgres.execute(path, "SET search_path TO qamera", statement)
        return

    def run():
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(statement)

    await asyncio.to_thread(run)


def polls(sandbox):
    return sum(request.method == "GET" for request in sandbox.requests)


async def has_polled(sandbox, more=1):
    """Wait until so many more polls have come."""
    enough = polls(sandbox) + more
    async with asyncio.timeout(10):
        while polls(sandbox) < enough:
            await asyncio.sleep(INTERVAL / 10)


async def ordered(sandbox, number):
    """Give the records of orders that nobody here waits for."""
    async with sandbox.session() as elsewhere:
        jobs = [await elsewhere.register_video(image_id=f"img_{n}") for n in range(number)]
    return [job.record_ids[0] for job in jobs]


async def settled(path):
    """Wait until the board says that nobody waits."""
    async with asyncio.timeout(10):
        while select(path, "SELECT * FROM waiting"):
            await asyncio.sleep(INTERVAL / 10)


# --- what it costs --------------------------------------------------------------------------------


async def test_four_sessions_that_wait_cost_the_polls_of_one(sandbox, sessions):
    """All see their results, and there is one poll in each interval."""
    loop = asyncio.get_running_loop()
    ids = await ordered(sandbox, 100)
    waiting = [
        asyncio.ensure_future(qamera.job(record_id).wait())
        for number, qamera in enumerate(await sessions(4))
        for record_id in ids[number::4]
    ]
    began, before = loop.time(), polls(sandbox)
    await has_polled(sandbox, 12)
    intervals = (loop.time() - began) / INTERVAL
    made = polls(sandbox) - before
    for record_id in ids:
        sandbox.finish(record_id)
    videos = await asyncio.gather(*waiting)

    assert {video.id for video in videos} == set(ids)
    assert made <= intervals / 0.9 + 4  # each may begin with one


async def test_who_polled_last_goes_first(sandbox, sessions):
    """So that it stays one, and the turn needn't be fought for each time."""
    order = await sessions(3)
    ids = await ordered(sandbox, 3)
    waiting = [
        asyncio.ensure_future(qamera.job(record_id).wait())
        for qamera, record_id in zip(order, ids, strict=True)
    ]
    async with asyncio.timeout(10):
        while sorted(qamera._poller._others.handicap for qamera in order) != [0.0, *[INTERVAL / 4] * 2]:
            await asyncio.sleep(INTERVAL / 10)
    for record_id in ids:
        sandbox.finish(record_id)
    await asyncio.gather(*waiting)


async def test_nobody_waiting_costs_no_request(sandbox, sessions, path):
    """Who has got what he waited for is waited for by nobody."""
    first, second = await sessions(2)
    (record_id,) = await ordered(sandbox, 1)
    waiting = [asyncio.ensure_future(each.job(record_id).wait()) for each in (first, second)]
    await has_polled(sandbox, 2)
    sandbox.finish(record_id)
    await asyncio.gather(*waiting)
    await settled(path)
    before = polls(sandbox)
    await asyncio.sleep(3 * INTERVAL)

    assert polls(sandbox) == before


async def test_only_what_somebody_waits_for_is_stored(sandbox, sessions, path):
    """Not the list; and nothing of it once nobody waits for it any more."""
    sandbox.add_records(50)
    first, second = await sessions(2)
    mine, theirs, both = await ordered(sandbox, 3)
    waiting = [
        asyncio.ensure_future(qamera.job(record_id).wait())
        for qamera, record_ids in ((first, [mine, both]), (second, [theirs, both]))
        for record_id in record_ids
    ]
    await has_polled(sandbox, 4)
    stored = dict(select(path, "SELECT record_id, item FROM shown"))
    sandbox.finish(theirs)
    sandbox.finish(both)
    await asyncio.gather(*waiting[1:])
    await has_polled(sandbox, 3)
    left = select(path, "SELECT record_id FROM shown")
    waiting[0].cancel()

    assert stored.keys() in ({mine, both}, {theirs, both})
    assert all(json.loads(item)["id"] == record_id for record_id, item in stored.items())
    assert {record_id for (record_id,) in left} <= {mine}


# --- what others are told -------------------------------------------------------------------------


@pytest.mark.parametrize("follower", [0, 1])
async def test_each_change_reaches_who_does_not_poll(sandbox, sessions, follower):
    """The same snapshots as if it had polled, with the same events."""
    events = []
    order = [*await sessions(1), *await sessions(1, on_event=events.append)]
    if follower == 0:
        order.reverse()
    record_id, other = await ordered(sandbox, 2)
    elsewhere = asyncio.ensure_future(order[0].job(other).wait())
    await has_polled(sandbox)
    job = order[1].job(record_id)
    waiting = asyncio.ensure_future(job.wait())
    await has_polled(sandbox, 3)
    before = job.status
    sandbox.finish(record_id)
    video = await waiting
    elsewhere.cancel()

    assert before not in (None, "DONE")
    assert video.state is q.JobState.DONE
    assert video.video_url.startswith(sandbox.cdn_url)
    if follower == 1:
        assert [event.record.status for event in events if isinstance(event, Updated)] == [before, "DONE"]


async def test_what_was_seen_long_ago_is_no_answer_to_who_comes_now(sandbox, sessions, path):
    """Not even where a poll has to wait for a slot: an address on the board may be none by then."""
    order = await sessions(2)
    (record_id,) = await ordered(sandbox, 1)
    waiting = [asyncio.ensure_future(each.job(record_id).wait()) for each in order[:2]]
    await has_polled(sandbox, 3)
    sandbox.finish(record_id)
    await asyncio.gather(*waiting)
    await settled(path)
    kept = select(path, "SELECT record_id FROM shown")
    await asyncio.sleep(2 * INTERVAL)
    for each in order:
        await each.aclose()
    (late,) = await sessions(1, rate_limiter=q.RateLimiter(1, 5 * INTERVAL))
    await late.list_videos()
    before = polls(sandbox)
    await late.job(record_id)

    assert kept == [(record_id,)]
    assert polls(sandbox) == before + 1


async def test_who_only_follows_keeps_nothing_of_what_is_over(sandbox, sessions):
    """A replica may follow for weeks."""
    first, second = await sessions(2)
    stays, *ids = await ordered(sandbox, 20)
    waiting = [asyncio.ensure_future(each.job(stays).wait()) for each in (first, second)]
    await has_polled(sandbox, 2)
    follower = first if first._poller._others.handicap else second
    jobs = [follower.job(record_id) for record_id in ids]
    for job in jobs:
        waiting.append(asyncio.ensure_future(job.wait()))
        await asyncio.sleep(INTERVAL / 10)
        sandbox.finish(job.record_ids[0])
    await asyncio.gather(*waiting[2:])
    own, shared = follower._poller, follower._poller._others
    async with asyncio.timeout(10):
        while own._newcomers or shared._come or shared._gone:
            await asyncio.sleep(INTERVAL / 10)
    sandbox.finish(stays)
    await asyncio.gather(*waiting)

    assert (len(own._watched), shared._awaited) == (0, set())


async def test_a_list_that_is_the_same_as_long_ago_is_told_after_polls_of_others(sandbox, sessions):
    """What has come to be waited for meanwhile has not been told of it."""
    (qamera,) = await sessions(1)
    first, second = await ordered(sandbox, 2)
    waiting = [asyncio.ensure_future(qamera.job(first).wait())]
    await has_polled(sandbox, 2)
    qamera._poller._latest_at = -math.inf  # long ago
    job = qamera.job(second)
    waiting.append(asyncio.ensure_future(job.wait()))
    await asyncio.sleep(0)
    qamera._poller._told(Look(10**6, ours=False, sent=0.0, ended=0.0, complete=True, trouble="", items={}))
    assert job.status is None
    await has_polled(sandbox, 2)
    status = job.status
    for record_id in (first, second):
        sandbox.finish(record_id)
    await asyncio.gather(*waiting)

    assert status is not None


async def test_a_failure_reaches_who_does_not_poll(sandbox, sessions):
    """Both get it, each as its own error."""
    first, second = await sessions(2)
    (record_id,) = await ordered(sandbox, 1)
    waiting = [asyncio.ensure_future(each.job(record_id).wait()) for each in (first, second)]
    await has_polled(sandbox, 3)
    sandbox.finish(record_id, "FAILED")

    for error in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(error, q.JobFailedError)


async def test_a_record_that_is_gone_is_lost_to_all(sandbox, sessions):
    """An absence counts for who didn't poll, too; one that was never looked for doesn't."""
    first, second = await sessions(2)
    sandbox.trouble("vanish", after=INTERVAL * 4)
    vanishing, stays = await ordered(sandbox, 2)
    waiting = [asyncio.ensure_future(each.job(vanishing).wait()) for each in (first, second)]
    other = asyncio.ensure_future(second.job(stays).wait())
    errors = await asyncio.gather(*waiting, return_exceptions=True)
    sandbox.finish(stays)
    await other

    assert [type(error) for error in errors] == [q.JobLostError] * 2


async def test_an_outage_is_one_for_all(sandbox, sessions):
    """Who doesn't poll doesn't try for himself at once, says why nothing comes, and goes on after it."""
    order = await sessions(4)
    ids = await ordered(sandbox, 4)
    waiting = [
        asyncio.ensure_future(qamera.job(record_id).wait())
        for qamera, record_id in zip(order, ids, strict=True)
    ]
    await has_polled(sandbox, 2)
    loop = asyncio.get_running_loop()
    sandbox.trouble("error", status=500, times=6, on="GET")
    began, before = loop.time(), polls(sandbox)
    await has_polled(sandbox, 6)
    intervals, made = (loop.time() - began) / INTERVAL, polls(sandbox) - before
    told = [qamera._poller.last_error for qamera in order]
    for record_id in ids:
        sandbox.finish(record_id)
    await asyncio.gather(*waiting)

    assert made <= intervals / 0.9 + 1
    assert all("500" in str(error) for error in told)


async def test_an_outage_makes_all_slower_together(sandbox, sessions):
    """As it does one: each poll that fails doubles the pause of everybody, so three take 14 intervals."""
    loop = asyncio.get_running_loop()
    order = await sessions(6, polling=q.PollPolicy(interval=INTERVAL, stale_after=1.0, max_interval=1000.0))
    ids = await ordered(sandbox, 6)
    waiting = [
        asyncio.ensure_future(qamera.job(record_id).wait())
        for qamera, record_id in zip(order, ids, strict=True)
    ]
    await has_polled(sandbox, 2)
    sandbox.trouble("error", status=500, times=100, on="GET")
    await has_polled(sandbox)
    began = loop.time()
    await has_polled(sandbox, 3)
    intervals = (loop.time() - began) / INTERVAL
    for each in waiting:
        each.cancel()

    assert intervals >= 0.9 * 14 - 1


async def test_the_end_of_an_outage_ends_the_pauses_of_all(sandbox, sessions):
    """Whoever polled dies, and another goes on within an interval and a half."""
    patient = q.PollPolicy(interval=INTERVAL, stale_after=1.0, max_interval=1000.0)
    order = await sessions(2, polling=patient)
    ids = await ordered(sandbox, 2)
    waiting = [
        asyncio.ensure_future(qamera.job(record_id).wait())
        for qamera, record_id in zip(order, ids, strict=True)
    ]
    async with asyncio.timeout(10):
        while sorted(qamera._poller._others.handicap for qamera in order) != [0.0, INTERVAL / 4]:
            await asyncio.sleep(INTERVAL / 10)
    follower = max(order, key=lambda qamera: qamera._poller._others.handicap)
    for _ in range(10):
        follower._poller._trouble(q.TransportError("as if told of an outage"))
    follower._poller._wake.set()
    await asyncio.sleep(0)  # a turn, for its pause to begin
    async with asyncio.timeout(5):
        while follower._poller.last_error is not None:
            await asyncio.sleep(INTERVAL / 10)
    poller = order[follower is order[0]]
    for record_id in ids:
        sandbox.finish(record_id)
    await poller.aclose()
    async with asyncio.timeout(5):
        await waiting[order.index(follower)]
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_refusal_is_told_to_each(sandbox, sessions):
    """What can't pass by itself fails who polls; the others find it out for themselves."""
    order = await sessions(3)
    (record_id,) = await ordered(sandbox, 1)
    waiting = [asyncio.ensure_future(qamera.job(record_id).wait()) for qamera in order]
    await has_polled(sandbox, 2)
    sandbox.trouble("error", status=401, times=1000, on="GET")

    for error in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(error, q.AuthenticationError)


async def test_who_needs_the_whole_list_gets_it_himself(sandbox, sessions):
    """An ambiguous order is looked into while another polls; what it had seen earlier is no measure then."""
    first, second = await sessions(2)
    (record_id,) = await ordered(sandbox, 1)
    for qamera in (first, second):
        await qamera.list_videos()  # what was new to it then, is none now
    waiting = asyncio.ensure_future(first.job(record_id).wait())
    own = asyncio.ensure_future(second.job(record_id).wait())
    await has_polled(sandbox, 4)
    seen = [each._poller.lists_seen for each in (first, second)]
    sandbox.trouble("reset_after")
    with pytest.raises(q.AmbiguousSubmissionError) as caught:
        await second.register_video(image_id="img_lost")
    waiting.cancel()
    own.cancel()

    assert min(seen) == 0
    assert sandbox.orders[-1].record_ids[0] in {video.id for video in caught.value.candidates}


# --- whose turn it is -----------------------------------------------------------------------------


async def test_the_turn_of_who_hangs_passes_on(sandbox, sessions, path, monkeypatch):
    """A paused machine keeps nobody waiting for longer than an interval and a half."""
    monkeypatch.setattr(others, "_LEAST_LEASE", 0.0)
    (qamera,) = await sessions(1)
    (record_id,) = await ordered(sandbox, 1)
    ledger = ledger_at(checked_place(path), qamera._ledger._origin)
    hanging = ledger.board(qamera._poller._others._board._account)
    look = await hanging.begin(0, [], [], fresh=0.0, lease=0.0)
    assert look.turn
    waiting = asyncio.ensure_future(qamera.job(record_id).wait())
    await has_polled(sandbox, 2)
    sandbox.finish(record_id)
    await waiting
    kept = await hanging.publish(0.0, {record_id: "{}"}, complete=True)
    await ledger.aclose()

    assert kept is None


@pytest.mark.slow
async def test_a_list_that_takes_long_is_fetched_by_one_all_the_same(sandbox, sessions, monkeypatch):
    """Once that is known of it, its poller says that it goes on, and the others wait for what it brings."""
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(others, "_LEAST_LEASE", 3 * INTERVAL)
    monkeypatch.setattr(others, "_RENEW", INTERVAL / 4)
    order = await sessions(3)
    ids = await ordered(sandbox, 3)
    waiting = [
        asyncio.ensure_future(qamera.job(record_id).wait())
        for qamera, record_id in zip(order, ids, strict=True)
    ]
    await has_polled(sandbox, 3)
    sandbox.trouble("slow", seconds=5 * INTERVAL, times=1000, on="GET")
    await has_polled(sandbox, 6)
    began = loop.time()
    await has_polled(sandbox, 3)
    intervals = (loop.time() - began) / INTERVAL
    for record_id in ids:
        sandbox.finish(record_id)
    await asyncio.gather(*waiting)

    assert intervals >= 2 * 5


@pytest.mark.parametrize("when", ["while it is taken", "just after"])
async def test_a_turn_that_ends_without_a_poll_is_given_up(sandbox, sessions, monkeypatch, when):
    """Who stops waiting in that instant doesn't keep the others."""
    monkeypatch.setattr(others, "_LEAST_LEASE", math.inf)
    first, second = await sessions(2)
    (record_id,) = await ordered(sandbox, 1)
    board = first._poller._others._board
    begin = board.begin

    async def begins(*args, **options):
        taking = begin(*args, **options)
        if when == "just after":
            await taking
        leaving.cancel()
        await asyncio.sleep(0)  # a turn, for the poller to be cancelled
        return await taking

    board.begin = begins
    leaving = asyncio.ensure_future(first.job(record_id).wait())
    await asyncio.wait([leaving])
    sandbox.finish(record_id)
    async with asyncio.timeout(5):
        video = await second.job(record_id)

    assert leaving.cancelled()
    assert video.id == record_id
    assert polls(sandbox) == 1


async def test_a_ledger_that_cannot_be_asked_keeps_nobody_waiting(sandbox, sessions, monkeypatch):
    """What is paid for is seen to its end: each polls for himself."""
    first, second = await sessions(2)
    (record_id,) = await ordered(sandbox, 1)

    async def fails(*_args, **_options):
        raise LedgerUnavailableError("The disk is full.")

    for qamera in (first, second):
        for name in ("begin", "look", "publish"):
            monkeypatch.setattr(qamera._poller._others._board, name, fails)
    waiting = [asyncio.ensure_future(each.job(record_id).wait()) for each in (first, second)]
    await has_polled(sandbox, 2)
    sandbox.finish(record_id)

    assert [(await each).id for each in waiting] == [record_id] * 2


async def test_what_could_not_be_said_and_is_over_is_not_said_again(sandbox, sessions, monkeypatch):
    """Else others would keep it for as long as the process lives."""
    (qamera,) = await sessions(1)
    (record_id,) = await ordered(sandbox, 1)
    waiting = asyncio.ensure_future(qamera.job(record_id).wait())
    await has_polled(sandbox)
    shared, looking = qamera._poller._others, asyncio.get_running_loop().create_future()
    monkeypatch.setattr(shared._board, "look", lambda *_args, **_options: looking)
    shared.watch("over")
    async with asyncio.timeout(5):
        while shared._come:
            await asyncio.sleep(INTERVAL / 10)
    shared.unwatch("over")
    async with asyncio.timeout(5):
        while shared._gone:  # until its turn to poll has said so
            await asyncio.sleep(INTERVAL / 10)
    looking.set_exception(LedgerUnavailableError("The disk is full."))
    await asyncio.sleep(INTERVAL / 10)
    waiting.cancel()

    assert "over" not in shared._come


async def test_who_leaves_is_waited_for_no_more(sandbox, sessions, path):
    """Closing forgets what was waited for, and its turn is free."""
    first, second = await sessions(2)
    (record_id,) = await ordered(sandbox, 1)
    waiting = asyncio.ensure_future(first.job(record_id).wait())
    await has_polled(sandbox, 2)
    await first.aclose()
    error = (await asyncio.gather(waiting, return_exceptions=True))[0]
    await settled(path)
    after = asyncio.ensure_future(second.job(record_id).wait())
    await has_polled(sandbox)
    sandbox.finish(record_id)
    await after

    assert isinstance(error, q.SessionClosedError)


async def test_who_was_taken_for_dead_says_again_what_it_waits_for(sandbox, sessions, path):
    """A connection that is lost shows that as little as a process that is."""
    order = await sessions(2)
    ids = await ordered(sandbox, 2)
    waiting = [
        asyncio.ensure_future(each.job(record_id).wait()) for each, record_id in zip(order, ids, strict=True)
    ]
    await has_polled(sandbox, 3)
    await execute(path, "DELETE FROM waiting")
    await has_polled(sandbox, 3)
    async with asyncio.timeout(5):
        while set(select(path, "SELECT record_id FROM waiting")) != {(record_id,) for record_id in ids}:
            await asyncio.sleep(INTERVAL / 10)
    for record_id in ids:
        sandbox.finish(record_id)
    await asyncio.gather(*waiting)


async def test_who_is_taken_for_dead_again_and_again_polls_for_itself(sandbox, sessions):
    """A process may have lost its lock for good, and another's polls are none for it then."""
    (first,) = await sessions(1)
    (second,) = await sessions(1, polling=q.PollPolicy(interval=4 * INTERVAL, stale_after=1.0))
    mine, theirs = await ordered(sandbox, 2)
    board = first._poller._others._board
    board._forget_dead = lambda connection: connection.execute(
        "DELETE FROM waiting WHERE poller <> ?", (board._name,)
    )
    waiting = asyncio.ensure_future(first.job(mine).wait())
    await has_polled(sandbox, 2)
    own = asyncio.ensure_future(second.job(theirs).wait())
    await has_polled(sandbox, 4)
    sandbox.finish(theirs)
    async with asyncio.timeout(5):
        video = await own
    waiting.cancel()

    assert video.id == theirs


@on_postgres
async def test_who_has_lost_the_connection_listens_again(sandbox, sessions, path):
    """News come on the new one as on the old."""
    first, second = await sessions(2)
    ids = await ordered(sandbox, 2)
    waiting = [
        asyncio.ensure_future(each.job(record_id).wait())
        for each, record_id in zip((first, second), ids, strict=True)
    ]
    await has_polled(sandbox, 2)
    postgres.execute(
        path,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    await has_polled(sandbox, 4)
    listening = postgres.execute(
        path,
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    for record_id in ids:
        sandbox.finish(record_id)
    await asyncio.gather(*waiting)

    assert listening == [(1,)]


# --- another process ------------------------------------------------------------------------------

PROGRAM = """
import asyncio, json, sys
from qamera_async import PollPolicy, QameraSession, RateLimiter
from qamera_async.events import Polled
def told(event):
    if isinstance(event, Polled):
        print("polled", flush=True)
async def main():
    url, key, ledger, record_id, interval = json.loads(sys.argv[1])
    options = {"rate_limiter": RateLimiter(10**6, 0.001), "polling": PollPolicy(interval=interval)}
    async with QameraSession(key, base_url=url, ledger=ledger, on_event=told, **options) as qamera:
        print((await qamera.job(record_id)).status, flush=True)
asyncio.run(main())
"""


class Process:
    """One that waits for a record, and says when it polls."""

    async def start(self, *asked):
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROGRAM, json.dumps(asked), stdout=asyncio.subprocess.PIPE
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


async def test_the_death_of_who_polls_is_noticed(sandbox, path):
    """By kill -9: another polls at the latest an interval and a half after the last poll."""
    interval = 1.0
    (record_id,) = await ordered(sandbox, 1)
    processes = [await Process().start(sandbox.url, KEY, path, record_id, interval) for _ in range(3)]
    while max(len(each.lines) for each in processes) < 2:
        await asyncio.sleep(interval / 20)
    poller = max(processes, key=lambda each: len(each.lines))
    last = [request for request in sandbox.requests if request.method == "GET"][-1]
    os.kill(poller.process.pid, signal.SIGKILL)
    await has_polled(sandbox)
    next_one = [request for request in sandbox.requests if request.method == "GET"][-1]
    sandbox.finish(record_id)
    ends = [await each.ended() for each in processes]

    assert next_one.at - last.at <= 1.5 * interval
    assert sorted(lines[-1] for lines in ends) == ["DONE", "DONE", "polled"]
