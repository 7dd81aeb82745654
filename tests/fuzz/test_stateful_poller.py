"""Jobs and the poll that they share, compared with a model of what each waiter must get.

The API client is the test's: it answers each request when the test says so. The clock is the test's, too.
"""

import asyncio
import json
import logging
import math

import pytest
from fake_api import FakeApi, FakeLedger, FakeLimiter
from fake_loop import FakeLoop
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import qamera_async as q
from qamera_async._jobs import JobRegistry
from qamera_async._polling import Poller
from qamera_async._protocol import KINDS, VIDEOS, Response
from qamera_async.events import Failed, Finished, Updated

INTERVAL, LONGEST, GONE, GRACE = 4.0, 16.0, 32.0, 60.0  # seconds
STEP = 0.9  # seconds; a timer that fires later notices a standstill
IDS = ("a", "b")
STATUSES = ("QUEUED", "RUNNING", "DONE", "FAILED")
TRANSIENT = {
    "500": lambda: Response(500, {}, b'{"error": "x"}'),
    "a firewall": lambda: Response(403, {"content-type": "text/html"}, b"<html>"),
    "no response": lambda: q.RequestTimeoutError("x", sent=True),
    "no network": lambda: q.ConnectionFailedError("x"),
    "no list": lambda: Response(200, {}, b"<html>"),
}
PERMANENT = {
    "unknown key": (q.AuthenticationError, lambda: Response(401, {}, b'{"error": "x"}')),
    "redirect": (q.InvalidResponseError, lambda: Response(307, {}, b"")),
    "certificate": (q.ConnectionFailedError, lambda: q.ConnectionFailedError("x", permanent=True)),
}
picks = st.integers(0, 2**16)


@pytest.fixture(autouse=True)
def quiet(caplog):
    """Hide thousands of intended failures."""
    caplog.set_level(logging.CRITICAL, "qamera_async")


class Api(FakeApi):
    """An API client that checks the pauses between requests."""

    def __init__(self, loop):
        super().__init__()
        self.loop = loop
        self.sent_at = self.ended_at = -math.inf

    async def send(self, request, slot, **options):
        assert self.loop.now - self.ended_at >= 0.9 * INTERVAL, "a poll too soon"
        self.sent_at = self.loop.now
        try:
            return await super().send(request, slot, **options)
        finally:
            self.ended_at = self.loop.now


class RecordModel:
    """A record as the lists have shown it while it was watched."""

    def __init__(self):
        self.known = None
        self.final = False
        self.created_at = None
        self.without_url_since = None
        self.updates = 0
        self.forget_absence()

    def forget_absence(self):
        self.absent_since, self.absences = None, 0

    def present(self, entry, now):
        had_no_url = self.without_url_since is not None
        status_changed = self.known is None or self.known[0] != entry[0]
        status, url = self.known = entry
        self.forget_absence()
        if status != "DONE" or url:
            self.without_url_since = None
            self.final = status in ("DONE", "FAILED")
            self.updates += status_changed or had_no_url
        else:
            if self.without_url_since is None:
                self.without_url_since = now
            self.final = now - self.without_url_since >= GRACE
            self.updates += status_changed

    def count_absence(self, sent_at):
        if self.absent_since is None:
            self.absent_since = sent_at
        self.absences += 1

    def is_lost(self, since, now, appear):
        """Return whether a task that began to wait at ``since`` gives the record up."""
        if self.known is None:
            return appear is not None and now - (self.created_at or since) >= appear
        return self.absences >= 3 and now - self.absent_since >= GONE


class JobModel:
    """A job, its records, and its waiters: each task, its deadline (None for ``updates``), and its begin."""

    def __init__(self, job, records):
        self.job = job
        self.records = records
        self.waiters = []
        self.ended = False  # whether a waiter has seen its end

    @property
    def final(self):
        return all(record.final for record in self.records.values())

    @property
    def verdict(self):
        failed = any(record.known[0] == "FAILED" for record in self.records.values())
        return q.JobFailedError if failed else None


class PollerMachine(RuleBasedStateMachine):
    """A server whose records come, change and go, and tasks that wait, time out and are cancelled."""

    def __init__(self):
        super().__init__()
        self.loop = FakeLoop()
        self.api = Api(self.loop)
        self.listed = {}  # status and URL by id, as the server has them
        self.records = {record_id: RecordModel() for record_id in IDS}
        self.jobs = []
        self.events = []
        self.last = None  # the last good list
        self.good_at = -math.inf
        self.outage = False
        self.idle_since = self.loop.now  # since when nothing is fetched though someone waits

    @initialize(appear=st.sampled_from([None, 8.0, 48.0]))
    def begin(self, appear):
        self.appear = appear
        timeouts = q.Timeouts(job=math.inf, appear=appear, missing=GONE)
        polling = q.PollPolicy(interval=INTERVAL, max_interval=LONGEST)
        self.limiter, self.ledger, emit = FakeLimiter(), FakeLedger(), self.events.append
        self.poller = Poller(
            VIDEOS, self.api, self.limiter, polling, timeouts, q.RetryPolicy(), q.StatusRules(), emit, None
        )
        self.registry = JobRegistry({VIDEOS.path: self.poller}, lambda: None, timeouts, self.ledger, None)

    # --- helpers --------------------------------------------------------------------------------

    def run_ready(self):
        """Run the loop until nothing is left to do at this time."""

        async def idle():
            for _ in range(16):
                await asyncio.sleep(0)

        self.loop.run_until_complete(idle())
        if self.on_the_wire or not self.waited_for:
            self.idle_since = self.loop.now

    @property
    def on_the_wire(self):
        return self.api.pending is not None

    @property
    def waited_for(self):
        return any(job.waiters for job in self.jobs)

    def watching(self, record_id):
        """Return the jobs that have waiters and this record, unless it is final."""
        if self.records[record_id].final:
            return []
        return [job for job in self.jobs if job.waiters and record_id in job.records]

    def end(self, job, expected, waiters=None):
        """All waiters of a job, or some, get this now: an error's type, or None for the result."""
        waiters = job.waiters if waiters is None else waiters
        job.waiters = [one for one in job.waiters if one not in waiters]
        self.run_ready()
        for task, _, _ in waiters:
            self.check(task, expected)

    def check(self, task, expected):
        assert task.done(), f"still waits, though it should get {expected}"
        error = None if task.cancelled() else task.exception()
        assert type(error) is (expected or type(None)), error

    def end_final(self):
        for job in self.jobs:
            if job.final and job.waiters:
                job.ended = True
                followers = [task for task, end, _ in job.waiters if end is None]
                job.waiters = [one for one in job.waiters if one[1] is not None]
                self.end(job, job.verdict)
                for task in followers:
                    self.check(task, None)
                    assert [video.status for video in task.result()][-1] == job.job.status

    # --- the server -----------------------------------------------------------------------------

    @rule(
        record_id=st.sampled_from(IDS),
        status=st.sampled_from([None, None, *STATUSES, "DONE"]),
        url=st.booleans(),
    )
    def becomes(self, record_id, status, url):
        """Change a record; None removes it from the list."""
        if status is None:
            self.listed.pop(record_id, None)
        else:
            self.listed[record_id] = status, url

    @precondition(lambda self: self.on_the_wire)
    @rule(cut=st.booleans())
    def responds(self, cut):
        now, sent_at = self.loop.now, self.api.sent_at
        items = [
            {"id": i, "status": status, "videoUrl": f"https://cdn/{i}" if url else None}
            for i, (status, url) in self.listed.items()
        ]
        body = json.dumps({"videos": items, "count": len(items) + cut}).encode()
        self.last, self.good_at, self.outage = dict(self.listed), sent_at, False
        watching = {record_id: self.watching(record_id) for record_id in IDS}
        self.api.answer(Response(200, {}, body))
        self.run_ready()
        lost = []
        for record_id, jobs in watching.items():
            record = self.records[record_id]
            if not jobs:
                continue
            if record_id in self.last:
                record.present(self.last[record_id], now)
                continue
            earlier = [(job, one) for job in jobs for one in job.waiters if one[2] <= sent_at]
            if earlier and not cut:
                record.count_absence(sent_at)
                lost += [(job, one) for job, one in earlier if record.is_lost(one[2], now, self.appear)]
        self.end_final()
        for job in self.jobs:
            self.end(job, q.JobLostError, [one for other, one in lost if other is job])
        self.reset_unwatched()

    @precondition(lambda self: self.on_the_wire)
    @rule(kind=st.sampled_from([*TRANSIENT, *PERMANENT, "a bug"]))
    def fails(self, kind):
        """A transient failure fails no waiter, any other fails all of them at once."""
        error = RuntimeError("a bug") if kind == "a bug" else None
        if kind in TRANSIENT:
            error = TRANSIENT[kind]()
        elif kind in PERMANENT:
            error = PERMANENT[kind][1]()
        self.api.answer(error)
        self.run_ready()
        if kind in TRANSIENT:
            self.outage = True
            return
        for job in self.jobs:
            self.end(job, q.QameraError if kind == "a bug" else PERMANENT[kind][0])
        if kind == "a bug":
            self.api.ended_at = self.loop.now
        self.reset_unwatched()

    @rule(times=st.integers(2, 6), seconds=st.sampled_from([4.5, 18.0]), cut=st.booleans())
    def goes_on(self, times, seconds, cut):
        """Several polls in a row have the same list."""
        for _ in range(times):
            self.pass_time(seconds)
            if self.on_the_wire:
                self.responds(cut)
                self.all_jobs_equal_their_models()

    @precondition(lambda self: self.on_the_wire)
    @rule()
    def limits_the_rate(self):
        """A 429 fails no waiter. The poll is repeated only if someone waits."""
        self.api.answer(Response(429, {}, b'{"error": "x"}'))
        self.run_ready()

    # --- the waiters ----------------------------------------------------------------------------

    @precondition(lambda self: len(self.jobs) < 4)
    @rule(ids=st.lists(st.sampled_from(IDS), min_size=1, max_size=2, unique=True), new=st.booleans())
    def make(self, ids, new):
        # A record that is created again is another record; unit tests have that case.
        new = new and not any(record_id in job.records for job in self.jobs for record_id in ids)
        created_at = self.loop.now if new else None
        job = self.registry.job(tuple(ids), KINDS["video"], created_at=created_at)
        known = [other for other in self.jobs if other.job.record_ids == tuple(ids)]
        assert [other.job for other in known] == [job] * len(known)
        if not known:
            self.jobs.append(JobModel(job, {record_id: self.records[record_id] for record_id in ids}))
            for record_id in ids:
                record = self.records[record_id]
                record.created_at = record.created_at or created_at

    @precondition(lambda self: self.jobs)
    @rule(pick=picks, timeout=st.sampled_from([1.0, 8.0, 100.0, math.inf, None]), slowly=st.booleans())
    def wait(self, pick, timeout, slowly):
        """Where ``slowly``, the poll on the wire is answered much later."""
        job = self.jobs[pick % len(self.jobs)]
        end = math.inf if timeout is None else self.loop.now + timeout
        self.join(job, job.job.wait(timeout), end)
        if slowly and self.on_the_wire:
            self.pass_time(18.0)
            if self.on_the_wire:
                self.responds(cut=False)

    @precondition(lambda self: self.jobs)
    @rule(pick=picks)
    def follow(self, pick):
        """A job of one record, so that waiting for the next change begins nothing anew."""
        job = self.jobs[pick % len(self.jobs)]
        if len(job.records) == 1:

            async def all_updates():
                return [video async for video in job.job.updates()]

            self.join(job, all_updates(), None)

    def join(self, job, waiting, end):
        now = self.loop.now
        fresh = not self.outage and now - self.good_at <= INTERVAL
        for record_id, record in job.records.items():
            if record.final:
                continue
            if not self.watching(record_id):
                record.forget_absence()
            if fresh and record_id in self.last and self.good_at >= (record.created_at or -math.inf):
                record.present(self.last[record_id], now)
        task = self.loop.create_task(waiting)
        job.waiters.append((task, end, now))
        due = max([(record.created_at or -math.inf) + INTERVAL for record in job.records.values()])
        at_once = not self.outage and now - self.api.ended_at > 1.1 * INTERVAL and due <= now
        self.run_ready()
        self.end_final()
        assert self.on_the_wire or not job.waiters or not at_once, "there should be a poll at once"

    @precondition(lambda self: self.waited_for)
    @rule(pick=picks)
    def cancel(self, pick):
        waiters = [(job, waiter) for job in self.jobs for waiter in job.waiters]
        job, waiter = waiters[pick % len(waiters)]
        job.waiters.remove(waiter)
        waiter[0].cancel()
        self.run_ready()
        assert waiter[0].cancelled()
        self.reset_unwatched()

    @rule(seconds=st.sampled_from([0.5, 3.75, 4.5, 18.0, 61.0]))
    def pass_time(self, seconds):
        """Time passes in steps that no timer notices as a standstill."""
        for _ in range(int(seconds / STEP)):
            self.step(STEP)
        self.step(seconds % STEP)

    def step(self, seconds):
        sent, idle = len(self.api.requests), not self.waited_for
        self.loop.now += seconds
        for job in self.jobs:
            late = [one for one in job.waiters if one[1] is not None and one[1] <= self.loop.now]
            job.waiters = [one for one in job.waiters if one not in late]
            self.run_ready()
            for task, _, _ in late:
                self.check(task, q.JobTimeoutError)
        self.run_ready()
        self.reset_unwatched()
        assert not idle or len(self.api.requests) == sent, "polled without a waiter"
        # After a bug or for a new record, one more interval may pass.
        longest = 1.1 * (LONGEST if self.outage else INTERVAL) + INTERVAL
        assert self.loop.now - self.idle_since <= longest or self.on_the_wire, "nothing is fetched"

    def reset_unwatched(self):
        """A wait that begins later counts absences anew."""
        for record_id, record in self.records.items():
            if not self.watching(record_id):
                record.forget_absence()

    # --- what always holds ----------------------------------------------------------------------

    @invariant()
    def all_jobs_equal_their_models(self):
        """P9: who should wait still waits, and each job is what its model is."""
        for job in self.jobs:
            assert not any(task.done() for task, _, _ in job.waiters)
            assert job.job.done() is job.final
            seen = [record for record in job.records.values() if record.known is not None]
            assert [video.status for video in job.job.records] == [record.known[0] for record in seen]

    @invariant()
    def each_change_is_reported_once(self):
        """Whatever the number of jobs and waiters."""
        for record_id, record in self.records.items():
            updates = [e for e in self.events if isinstance(e, Updated) and e.record.id == record_id]
            assert len(updates) == record.updates
        ends = [event.record.id for event in self.events if isinstance(event, Finished)]
        ends += [event.record_ids[0] for event in self.events if isinstance(event, Failed)]
        assert sorted(ends) == sorted(record_id for record_id in IDS if self.records[record_id].final)
        ended = [job.job.record_ids for job in self.jobs if job.ended]
        assert sorted(ids for ids, _ in self.ledger.ends) == sorted(ended)

    def teardown(self):
        if hasattr(self, "poller"):
            waiters = [task for job in self.jobs for task, _, _ in job.waiters]
            self.loop.run_until_complete(self.poller.aclose())
            self.run_ready()
            for task in waiters:
                assert isinstance(task.exception(), q.SessionClosedError)
            assert asyncio.all_tasks(self.loop) == set()
        self.loop.close()


class TestPoller(PollerMachine.TestCase):
    """P1, P9: one poll for all, and each waiter gets the state of the record."""

    settings = settings.get_profile("poller")


@pytest.fixture
def machine(monkeypatch):
    """A machine for paths that chance seldom takes; its pauses have no jitter."""
    monkeypatch.setattr("random.uniform", lambda low, _: low)
    machine = PollerMachine()
    machine.begin(None)
    yield machine
    machine.all_jobs_equal_their_models()
    machine.teardown()


def wait_for(machine, record_id):
    machine.make([record_id], new=False)
    machine.wait(len(machine.jobs) - 1, math.inf, slowly=False)


def poll(machine, *seconds):
    """Wait for a poll, and answer it after some more time."""
    for passing in seconds:
        machine.pass_time(passing)
    machine.responds(cut=False)


def test_one_slow_list_without_a_record_loses_nothing(machine):
    """Three lists are needed, whatever the time between them."""
    wait_for(machine, "a")
    machine.becomes("a", "RUNNING", url=False)
    poll(machine)
    machine.becomes("a", None, url=False)

    poll(machine, 4.5, 61.0)

    assert machine.waited_for


def test_absences_before_a_return_do_not_count(machine):
    """A record that came back is counted anew when it is missing again."""
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


def test_an_earlier_list_is_not_used_in_an_outage(machine):
    """However fresh it is."""
    machine.becomes("a", "DONE", url=True)
    wait_for(machine, "b")
    poll(machine)
    machine.pass_time(3.75)
    machine.fails("500")

    wait_for(machine, "a")

    assert machine.jobs[-1].waiters
