"""Jobs and the one poll that they share, held against a model that says what each who waits must get.

The transport is the test's: it hands out each list when the test says so. So is the clock.
"""

import asyncio
import json
import logging
import math

import pytest
from fake_loop import FakeLoop
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import qamera_async as q
from qamera_async import _protocol as protocol
from qamera_async._jobs import Job, JobContext
from qamera_async._polling import Poller
from qamera_async.events import Failed, Finished
from qamera_async.ledger.places import NoLedger

INTERVAL, LONGEST, GONE, GRACE = 4.0, 16.0, 32.0, 60.0  # seconds
IDS = ("a", "b")
WORDS = ("QUEUED", "RUNNING", "DONE", "FAILED")
PASSING = {
    "500": lambda: q.ServerError("x", status=500),
    "a firewall": lambda: q.PermissionDeniedError("x", status=403, foreign=True),
    "no answer": lambda: q.RequestTimeoutError("x", sent=True),
    "no network": lambda: q.ConnectionFailedError("x"),
    "no list": lambda: protocol.Answer(200, {}, b"<html>"),
}
LASTING = {
    "no such key": lambda: q.AuthenticationError("x", status=401),
    "elsewhere": lambda: q.InvalidResponseError("x", status=307),
    "no certificate": lambda: q.ConnectionFailedError("x", permanent=True),
}
picks = st.integers(0, 2**16)


@pytest.fixture(autouse=True)
def quiet(caplog):
    """Thousands of bugs on purpose are nobody's news."""
    caplog.set_level(logging.CRITICAL, "qamera_async")


class Wire:
    """What the poller takes for its transport: each GET is answered by hand."""

    def __init__(self, loop):
        self.loop = loop
        self.open = None
        self.sent_at = self.ended_at = -math.inf
        self.sent = 0

    async def get(self, path, _, flight, sending, condition):
        assert path == protocol.VIDEOS_PATH
        assert self.open is None, "two polls at once"
        assert self.loop.now - self.ended_at >= 0.9 * INTERVAL, "a poll too soon"
        await sending()
        flight.on_the_wire = True
        self.sent += 1
        self.sent_at = self.loop.now
        self.open = self.loop.create_future()
        try:
            return await self.open
        finally:
            flight.on_the_wire = False
            self.open, self.ended_at = None, self.loop.now


class RecordModel:
    """What a job has been told of one of its records."""

    def __init__(self):
        self.known = None
        self.settled = False
        self.without_url_since = None
        self.begin(math.inf)

    def begin(self, now):
        self.joined, self.absent_since, self.absences = now, None, 0

    def present(self, entry, now):
        word, url = self.known = entry
        self.absent_since, self.absences = None, 0
        if word != "DONE" or url:
            self.without_url_since = None
            self.settled = word in ("DONE", "FAILED")
        else:
            if self.without_url_since is None:
                self.without_url_since = now
            self.settled = now - self.without_url_since >= GRACE

    def lost(self, sent_at, now, appear, born):
        """Note that it is missing; whether it is given up."""
        if self.joined > sent_at:
            return False
        if self.absent_since is None:
            self.absent_since = sent_at
        self.absences += 1
        if self.known is None:
            return appear is not None and now - (self.joined if born is None else born) >= appear
        return self.absences >= 3 and now - self.absent_since >= GONE


class JobModel:
    """A job, its records, and those who wait for it: the task, its deadline, and what ends it."""

    def __init__(self, job, born, due):
        self.job = job
        self.born = born
        self.due = due
        self.records = {record_id: RecordModel() for record_id in job.record_ids}
        self.waiters = []

    @property
    def settled(self):
        return all(record.settled for record in self.records.values())

    @property
    def verdict(self):
        failed = any(record.known[0] == "FAILED" for record in self.records.values())
        return q.JobFailedError if failed else None


class PollerMachine(RuleBasedStateMachine):
    """A server whose records come, change and go, and tasks that wait, time out and are cancelled."""

    def __init__(self):
        super().__init__()
        self.loop = FakeLoop()
        self.wire = Wire(self.loop)
        self.listed = {}  # word and URL by id, as the server has it
        self.jobs = []
        self.told = []  # the events
        self.last = None  # the last good list
        self.good_at = -math.inf
        self.outage = False
        self.idle_since = self.loop.now  # when it began that nothing is fetched though somebody waits

    @initialize(appear=st.sampled_from([None, 8.0, 48.0]))
    def begin(self, appear):
        self.appear = appear
        self.poller = Poller(
            self.wire,
            q.RateLimiter(clock=self.loop.time),
            q.PollPolicy(interval=INTERVAL, max_interval=LONGEST),
            q.Timeouts(appear=appear, missing=GONE),
            q.StatusRules(),
            self.told.append,
        )
        self.context = JobContext(self.poller, self.told.append, lambda: None, math.inf, NoLedger())

    # --- helpers --------------------------------------------------------------------------------

    def turn(self):
        async def idle():
            for _ in range(16):
                await asyncio.sleep(0)

        self.loop.run_until_complete(idle())
        if self.wire.open is not None or not self.waited_for:
            self.idle_since = self.loop.now

    @property
    def waited_for(self):
        return any(job.waiters for job in self.jobs)

    def end(self, job, expected):
        """Those who wait for a job get this now: an error's type, or None for the result."""
        waiters, job.waiters = job.waiters, []
        self.turn()
        for task, _ in waiters:
            self.check(task, expected)

    def check(self, task, expected):
        assert task.done(), f"still waits, though it should get {expected}"
        error = None if task.cancelled() else task.exception()
        assert type(error) is (expected or type(None)), error

    def end_settled(self):
        for job in self.jobs:
            if job.settled and job.waiters:
                followers = [(task, end) for task, end in job.waiters if end is None]
                job.waiters = [one for one in job.waiters if one[1] is not None]
                self.end(job, job.verdict)
                for task, _ in followers:
                    self.check(task, None)
                    assert [video.status for video in task.result()][-1] == job.job.status

    # --- the server -----------------------------------------------------------------------------

    @rule(
        record_id=st.sampled_from(IDS), word=st.sampled_from([None, None, *WORDS, "DONE"]), url=st.booleans()
    )
    def becomes(self, record_id, word, url):
        """None: it is in no list from now on."""
        if word is None:
            self.listed.pop(record_id, None)
        else:
            self.listed[record_id] = word, url

    @precondition(lambda self: self.wire.open is not None)
    @rule(cut=st.booleans())
    def answers(self, cut):
        now, sent_at = self.loop.now, self.wire.sent_at
        items = [
            {"id": i, "status": word, "videoUrl": f"https://cdn/{i}" if url else None}
            for i, (word, url) in self.listed.items()
        ]
        body = json.dumps({"videos": items, "count": len(items) + cut}).encode()
        self.last, self.good_at, self.outage = dict(self.listed), sent_at, False
        self.wire.open.set_result(protocol.Answer(200, {}, body))
        self.turn()
        lost = []
        for job in (job for job in self.jobs if job.waiters):
            for record_id, record in job.records.items():
                if record.settled:
                    continue
                if record_id in self.last:
                    record.present(self.last[record_id], now)
            missing = [r for i, r in job.records.items() if i not in self.last and not r.settled]
            if not cut and any([r.lost(sent_at, now, self.appear, job.born) for r in missing]):
                lost.append(job)
        self.end_settled()
        for job in lost:
            self.end(job, q.JobLostError)

    @precondition(lambda self: self.wire.open is not None)
    @rule(kind=st.sampled_from([*PASSING, *LASTING, "a bug"]))
    def fails(self, kind):
        """Trouble that may pass fails nobody, any other everybody at once."""
        what = RuntimeError("a bug") if kind == "a bug" else (PASSING | LASTING)[kind]()
        if isinstance(what, Exception):
            self.wire.open.set_exception(what)
        else:
            self.wire.open.set_result(what)
        self.turn()
        if kind in PASSING:
            self.outage = True
        else:
            for job in self.jobs:
                self.end(job, q.QameraError if kind == "a bug" else type(what))

    @rule(times=st.integers(2, 6), seconds=st.sampled_from([4.5, 18.0]), cut=st.booleans())
    def goes_on(self, times, seconds, cut):
        """Several polls in a row, all with the same list."""
        for _ in range(times):
            self.pass_time(seconds)
            if self.wire.open is not None:
                self.answers(cut)
                self.nobody_got_what_was_another_s()

    # --- who waits ------------------------------------------------------------------------------

    @precondition(lambda self: len(self.jobs) < 4)
    @rule(ids=st.lists(st.sampled_from(IDS), min_size=1, max_size=2, unique=True), new=st.booleans())
    def make(self, ids, new):
        born = self.loop.now if new else None
        due = self.loop.now + INTERVAL if new else -math.inf
        self.jobs.append(JobModel(Job(self.context, tuple(ids), born=born, due=due), born, due))

    @precondition(lambda self: self.jobs)
    @rule(pick=picks, timeout=st.sampled_from([1.0, 8.0, 100.0, math.inf, math.inf]), slowly=st.booleans())
    def wait(self, pick, timeout, slowly):
        """If slowly, the poll that is under way by then is answered much later."""
        job = self.jobs[pick % len(self.jobs)]
        self.join(job, job.job.wait(timeout), self.loop.now + timeout)
        if slowly and self.wire.open is not None:
            self.pass_time(18.0)
            self.answers(cut=False)

    @precondition(lambda self: self.jobs)
    @rule(pick=picks)
    def follow(self, pick):
        """With one record, so that coming back for the next change begins nothing anew."""
        job = self.jobs[pick % len(self.jobs)]
        if len(job.records) == 1:

            async def all_updates():
                return [video async for video in job.job.updates()]

            self.join(job, all_updates(), None)

    def join(self, job, waiting, end):
        first = not job.waiters and not job.settled
        task = self.loop.create_task(waiting)
        job.waiters.append((task, end))
        now = self.loop.now
        fresh = not self.outage and now - self.good_at <= INTERVAL
        if first:
            for record_id, record in job.records.items():
                if not record.settled:
                    record.begin(now)
                    if fresh and record_id in self.last:
                        record.present(self.last[record_id], now)
        at_once = not self.outage and now - self.wire.ended_at > 1.1 * INTERVAL and job.due <= now
        self.turn()
        self.end_settled()
        assert self.wire.open is not None or not job.waiters or not at_once, "it should be polled for at once"

    @precondition(lambda self: self.waited_for)
    @rule(pick=picks)
    def cancel(self, pick):
        everybody = [(job, waiter) for job in self.jobs for waiter in job.waiters]
        job, waiter = everybody[pick % len(everybody)]
        job.waiters.remove(waiter)
        waiter[0].cancel()
        self.turn()
        assert waiter[0].cancelled()

    @rule(seconds=st.sampled_from([0.5, 3.75, 4.5, 18.0, 61.0]))
    def pass_time(self, seconds):
        sent, nobody = self.wire.sent, not self.waited_for
        self.loop.now += seconds
        for job in self.jobs:
            late = [one for one in job.waiters if one[1] is not None and one[1] <= self.loop.now]
            job.waiters = [one for one in job.waiters if one not in late]
            self.turn()
            for task, _ in late:
                self.check(task, q.JobTimeoutError)
        self.turn()
        assert not nobody or self.wire.sent == sent, "polled for nobody"
        # With a bug or a new record one more interval may pass.
        longest = 1.1 * (LONGEST if self.outage else INTERVAL) + INTERVAL
        assert self.loop.now - self.idle_since <= longest or self.wire.open is not None, "nothing is fetched"

    # --- what always holds ----------------------------------------------------------------------

    @invariant()
    def nobody_got_what_was_another_s(self):
        """P9: who should wait still waits, and each job is what its model is."""
        for job in self.jobs:
            assert not any(task.done() for task, _ in job.waiters)
            assert job.job.done() is job.settled
            for record in job.job._records:
                known = job.records[record.record_id].known
                video = job.job._context.poller.video(record)
                assert (known is None) is (video is None)
                assert known is None or video.status == known[0]
        ends = [event for event in self.told if isinstance(event, Finished | Failed)]
        assert len(ends) == sum(job.settled for job in self.jobs)

    def teardown(self):
        if hasattr(self, "poller"):
            waiters = [task for job in self.jobs for task, _ in job.waiters]
            self.loop.run_until_complete(self.poller.aclose())
            self.turn()
            for task in waiters:
                assert isinstance(task.exception(), q.SessionClosedError)
            assert asyncio.all_tasks(self.loop) == set()
        self.loop.close()


class TestPoller(PollerMachine.TestCase):
    """P1, P9: one poll for all, and each who waits gets what is true of the record."""

    settings = settings.get_profile("poller")


@pytest.fixture
def machine(monkeypatch):
    """A machine to be led along a path that chance seldom takes; its pauses are as short as may be."""
    monkeypatch.setattr("random.uniform", lambda low, _: low)
    machine = PollerMachine()
    machine.begin(None)
    yield machine
    machine.nobody_got_what_was_another_s()
    machine.teardown()


def wait_for(machine, record_id):
    machine.make([record_id], new=False)
    machine.wait(len(machine.jobs) - 1, math.inf, slowly=False)


def poll(machine, *seconds):
    """Let a poll begin, let time pass until it is answered."""
    for passing in seconds:
        machine.pass_time(passing)
    machine.answers(cut=False)


def test_one_list_without_a_record_is_no_loss_however_long_it_took(machine):
    """Three are needed, whatever the time between them."""
    wait_for(machine, "a")
    machine.becomes("a", "RUNNING", url=False)
    poll(machine)
    machine.becomes("a", None, url=False)

    poll(machine, 4.5, 61.0)

    assert machine.waited_for


def test_a_record_that_came_back_begins_anew_when_it_is_missing_again(machine):
    """What was missed before counts no more."""
    wait_for(machine, "a")
    machine.becomes("a", "RUNNING", url=False)
    poll(machine)
    machine.becomes("a", None, url=False)
    poll(machine, 4.5)
    poll(machine, 4.5)
    machine.becomes("a", "RUNNING", url=False)
    poll(machine, 4.5)
    machine.becomes("a", None, url=False)

    poll(machine, 4.5, 61.0)

    assert machine.waited_for


def test_the_last_list_answers_nobody_in_an_outage(machine):
    """However fresh it is."""
    machine.becomes("a", "DONE", url=True)
    wait_for(machine, "b")
    poll(machine)
    machine.pass_time(3.75)
    machine.fails("500")

    wait_for(machine, "a")

    assert machine.jobs[-1].waiters
