"""The rate limiter, whatever happens in whatever order, compared with what the server could count.

The event loop goes by the clock of the test, so that the timers of the limiter fire when the test says so.
"""

import asyncio
import itertools
import math

import pytest
from fake_loop import FakeLoop
from hypothesis import note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import qamera_async as q
from qamera_async._ratelimit import Priority, session_limiter

SUBMISSION, POLL = Priority.SUBMISSION, Priority.POLL
WINDOW = 8.0  # seconds; it and all others are binary fractions, so that sums are exact
POLICY = q.RetryPolicy(base=0.5, max_delay=4.0)
OWNERS = ("one", "two")
ENDS = ("on_response", "give_back", 0.0, 10.0)  # a number: lost, and counted so many seconds later at most
picks = st.integers(0, 2**16)
numbers = itertools.count()
AT_REST = 8
passes = st.sampled_from([0, 1, 2, AT_REST])
"""So many passes of the loop follow a step: with none the next step meets what is half done."""


class Sent:
    """A request with a slot: the server may count it from then to its end."""

    def __init__(self, slot, now):
        self.slot = slot
        self.at = now
        self.end = math.inf
        self.seen = False  # in the count of its own window


class LimiterMachine(RuleBasedStateMachine):
    """Sessions that acquire slots, a server that answers or doesn't, and a clock that jumps."""

    def __init__(self):
        super().__init__()
        self.loop = FakeLoop()
        self.waiting = {}  # owner and priority of each task that asks, in the order in which they came
        self.sent = []  # all that the server may have seen
        self.open = []  # those of them that are not settled
        self.reserves = set()
        self.cooldown_until = self.last_429 = -math.inf
        self.run_since = None  # of 429s and nothing else
        self.rejections = 0
        self.exhausted = False
        self.stopped = set()
        self.faults = []

    @initialize(limit=st.integers(1, 5))
    def begin(self, limit):
        self.limiter = q.RateLimiter(limit, WINDOW)
        self.account = f"machine {next(numbers)}"
        self.sessions = {}
        for owner in (*OWNERS, "poller", "traffic", "last"):
            self.sessions[owner] = self.join()

    def join(self):
        return session_limiter(self.account, self.limiter, self.loop.time)

    def leave(self, name):
        session = self.sessions.pop(name, None)
        if session is not None:
            session.leave()

    # --- what the machine does ------------------------------------------------------------------

    def run_passes(self, times):
        async def idle():
            for _ in range(times):
                await asyncio.sleep(0)

        if times:
            self.loop.run_until_complete(idle())
        for error in self.faults:
            raise error
        if times == AT_REST:
            self.check_at_rest()

    def start(self, priority, owner):
        async def ask():
            slot = await self.sessions[owner].acquire(priority)
            sent = Sent(slot, self.loop.time())
            assert slot.priority is priority
            self.sent.append(sent)
            self.open.append(sent)
            self.check_cooldown(sent)
            # Later, since a request that was granted before is woken by the next pass of the loop.
            self.loop.call_soon(self.check_order, self.earlier(asyncio.current_task(), priority))

        task = self.loop.create_task(ask())
        self.waiting[task] = owner, priority
        task.add_done_callback(self.ended)

    def ended(self, task):
        owner, _ = self.waiting.pop(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not (isinstance(error, q.SessionClosedError) and owner in self.stopped):
            self.faults.append(error)  # raised here it would be the loop's

    def check_cooldown(self, sent):
        """No slot is granted during a cooldown, and until one request succeeds only one at a time."""
        granted = sent.slot.granted_at
        assert granted >= self.cooldown_until or granted < self.last_429
        if self.run_since is not None and granted >= self.last_429:
            assert self.open == [sent]

    def earlier(self, served, priority):
        """Return the tasks of one priority that asked before another task."""
        asked_before = itertools.takewhile(lambda item: item[0] is not served, self.waiting.items())
        return [task for task, (_, theirs) in asked_before if theirs is priority]

    def check_order(self, earlier):
        """Of one priority the first to arrive is the first to get a slot."""
        for task in earlier:
            served_too = task.done() or task._fut_waiter is None or task._fut_waiter.done()
            if not served_too and not task.cancelling():
                self.faults.append(AssertionError(f"{task} asked earlier and has no slot"))

    def end(self, sent):
        sent.end = self.loop.time()
        sent.slot.on_response()
        if sent.slot.granted_at >= self.last_429:
            self.run_since = None

    @rule(
        priority=st.sampled_from([SUBMISSION, POLL]),
        owner=st.sampled_from(OWNERS),
        many=st.integers(1, 4),
        passes=passes,
    )
    def ask(self, priority, owner, many, passes):
        for _ in range(many):
            self.start(priority, owner)
        self.run_passes(passes)

    @precondition(lambda self: self.waiting)
    @rule(pick=picks, passes=passes)
    def cancel(self, pick, passes):
        self.cancel_one(pick)
        self.run_passes(passes)

    def cancel_one(self, pick):
        if self.waiting:
            list(self.waiting)[pick % len(self.waiting)].cancel()

    @precondition(lambda self: self.open)
    @rule(pick=picks, how=st.sampled_from(ENDS), first_cancelled=st.booleans(), passes=passes)
    def settle(self, pick, how, first_cancelled, passes):
        """A request ends; the waiter that would get its slot may be cancelled in that very moment."""
        sent = self.open.pop(pick % len(self.open))
        if how == "on_response":
            self.end(sent)
        elif how == "give_back":
            self.sent.remove(sent)
            sent.slot.give_back()
        else:
            sent.end = self.loop.time() + how
            sent.slot.on_lost(how)
        if pick % 2:
            sent.slot.give_back()  # the first one counts
        if first_cancelled:
            self.cancel_one(0)
        self.run_passes(passes)

    @precondition(lambda self: self.open)
    @rule(
        pick=picks,
        stated=st.sampled_from([None, 0.0, 1.0, 2.0, 100.0]),
        then=st.integers(0, 2),
        passes=passes,
    )
    def too_many(self, pick, stated, then, passes):
        """A 429, and requests that arrive during the cooldown."""
        sent = self.open.pop(pick % len(self.open))
        self.loop.now += 2**-10  # otherwise nothing tells what was granted before
        now = sent.end = self.loop.time()
        before, granted = self.cooldown_until, sent.slot.granted_at
        sent.slot.on_429(stated, POLICY)
        if self.run_since is None or granted - before > WINDOW:
            new, self.run_since, self.rejections = True, now, 0
        else:
            new = granted >= self.last_429
        if new:
            self.last_429 = now
            seconds = POLICY.base if self.rejections and stated is not None else 0.0
            self.rejections += 1
            least = min(max(stated or POLICY.base, seconds), POLICY.max_delay) if stated != 0.0 else seconds
            self.cooldown_until = now + max(self.limiter.cooldown, 0.0)
            assert self.limiter.cooldown >= least
            assert self.limiter.cooldown <= max(POLICY.max_delay, before - now)
        else:
            assert self.limiter.cooldown == max(before - now, 0.0)
        self.exhausted = now - self.run_since >= 5 * WINDOW
        assert not new or sent.slot.exhausted == self.exhausted
        for _ in range(then):
            self.start(POLL, OWNERS[0])
        self.run_passes(passes)

    @rule(
        owner=st.sampled_from(OWNERS),
        stale_after=st.sampled_from([None, 2.0, 4.0, 16.0]),
        many=st.integers(0, 5),
        passes=passes,
    )
    def reserve(self, owner, stale_after, many, passes):
        """A session of the owner keeps slots for polls, or leaves (None); submissions arrive just then."""
        if stale_after is None:
            self.leave(f"{owner} polls")
            self.reserves.discard(owner)
        else:
            name = f"{owner} polls"
            self.sessions[name] = self.sessions.get(name) or self.join()
            self.sessions[name].reserve_polls(stale_after)
            self.reserves.add(owner)
        for _ in range(many):
            self.start(SUBMISSION, owner)
        self.run_passes(passes)

    @rule(owner=st.sampled_from(OWNERS), passes=passes)
    def stop(self, owner, passes):
        """A session ends while its requests wait; requests of the next session go on."""
        self.run_passes(1)
        here = [task for task, (whose, _) in self.waiting.items() if whose == owner]
        self.stopped.add(owner)
        self.loop.create_task(self.sessions[owner].stop(q.SessionClosedError("closed")))
        self.run_passes(6)
        assert all(task.done() for task in here)
        self.stopped.discard(owner)
        self.leave(owner)
        self.sessions[owner] = self.join()
        self.run_passes(passes)

    @rule(seconds=st.sampled_from([0.0, 0.25, 1.0, 2.0, 4.0, 7.75, 8.0, 30.0]), passes=passes)
    def pass_time(self, seconds, passes):
        self.loop.now += seconds
        self.run_passes(passes)

    # --- what always holds ----------------------------------------------------------------------

    @invariant()
    def the_server_never_counts_one_more(self):
        """P2: a request counts at some moment between its grant and its end, in any window."""
        # Once for each request: later its window holds no more, since ended requests only drop out of it.
        for last in [one for one in self.sent if not one.seen]:
            last.seen = True
            in_its_window = [one for one in self.sent if one.at <= last.at and one.end > last.at - WINDOW]
            assert len(in_its_window) <= self.limiter.limit

    def check_at_rest(self):
        """No slot is leaked or forgotten, and a free slot is granted to a request that may have it."""
        used, limit = self.limiter.used, self.limiter.limit
        assert used == len([one for one in self.sent if one.end + WINDOW > self.loop.time()])
        assert self.limiter.waiting == len(self.waiting)
        paused = self.loop.time() < self.cooldown_until or (self.run_since is not None and self.open)
        if used < limit and not paused:
            assert not self.number_waiting(POLL)
            assert not self.waiting or self.reserves

    def number_waiting(self, priority):
        return sum(theirs is priority for _, theirs in self.waiting.values())

    @rule(stale_after=st.sampled_from([2.0, 4.0]))
    def both_make_progress(self, stale_after):
        """With endless submissions and a poll that always waits, some of each get slots."""
        if self.limiter.limit == 1:
            return  # the one slot can't be shared
        self.calm_down()
        self.reserve("poller", stale_after, 0, 1)
        begin = len(self.sent)
        step = WINDOW / 8
        for _ in range(3 * 8):
            while self.number_waiting(SUBMISSION) < self.limiter.limit:
                self.start(SUBMISSION, "traffic")
                self.run_passes(2)
            if not self.number_waiting(POLL):
                self.start(POLL, "traffic")
            self.loop.now += step
            self.run_passes(AT_REST)
            self.answer_all()
        self.reserve("poller", None, 0, AT_REST)
        priorities = [one.slot.priority for one in self.sent[begin:]]
        note(f"{len(priorities)} requests in three windows")
        assert priorities.count(POLL) >= 2
        assert priorities.count(SUBMISSION) >= 2
        for task in [task for task, (owner, _) in self.waiting.items() if owner == "traffic"]:
            task.cancel()
        self.run_passes(AT_REST)

    def answer_all(self):
        while self.open:
            self.end(self.open.pop())
        self.run_passes(AT_REST)

    def calm_down(self):
        """Answer everything, and let the cooldown and all slots end."""
        self.run_passes(AT_REST)
        self.answer_all()
        for _ in range(4):
            self.loop.now += WINDOW + 10.0
            self.run_passes(AT_REST)
            self.answer_all()

    def teardown(self):
        try:
            if hasattr(self, "limiter"):
                self.all_get_slots_and_all_are_freed()
        finally:
            for task in list(self.waiting):
                task.cancel()
            self.run_passes(AT_REST)
            for session in getattr(self, "sessions", {}).values():
                session.leave()
            self.loop.close()

    def all_get_slots_and_all_are_freed(self):
        """While time passes and responses come, each window lets its limit of requests through."""
        self.run_passes(AT_REST)
        steps = 6 * (len(self.waiting) // self.limiter.limit + 4)
        for _ in range(steps):
            self.answer_all()
            self.loop.now += WINDOW / 2
            self.run_passes(AT_REST)
            self.the_server_never_counts_one_more()
        assert not self.waiting
        self.answer_all()
        self.loop.now += WINDOW + 10.0
        self.run_passes(AT_REST)
        assert (self.limiter.used, self.limiter.waiting) == (0, 0)
        for owner in OWNERS:
            self.reserve(owner, None, 0, AT_REST)
        self.start(POLL, "last")  # after a cooldown with no request since, one goes first
        self.run_passes(AT_REST)
        self.answer_all()
        self.loop.now += WINDOW
        for _ in range(self.limiter.limit):
            self.start(POLL, "last")
        self.run_passes(AT_REST)
        assert not self.waiting, "a slot is missing"


class TestLimiter(LimiterMachine.TestCase):
    """P2: never one request too many, no slot leaked, no request starved."""

    settings = settings.get_profile("limiter")


@pytest.fixture
def machine():
    """A machine for a path that chance seldom takes."""
    machine = LimiterMachine()
    machine.begin(4)
    yield machine
    machine.teardown()


def test_waiter_gets_a_reserved_slot_when_it_is_released(machine):
    """At once, not when the next slot becomes free."""
    machine.reserve("one", 4.0, 4, AT_REST)
    assert len(machine.waiting) == 2

    machine.reserve("one", None, 0, AT_REST)

    assert not machine.waiting


def test_exhausted_after_five_windows_of_429_and_not_before(machine):
    """Whatever the server asked for each time."""
    begun = machine.loop.now
    while machine.loop.now < begun + 6 * WINDOW:
        machine.ask(SUBMISSION, "one", 1, AT_REST)
        machine.too_many(0, 2.0, 0, AT_REST)
        machine.pass_time(2.0, AT_REST)

    assert machine.exhausted
