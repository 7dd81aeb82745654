"""The request budget, whatever happens in whatever order, held against what the server could count.

The clock is the test's, and the loop goes by it, so that the budget's own timers ring.
"""

import asyncio
import math

import pytest
from fake_loop import FakeLoop
from hypothesis import note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import qamera_async as q
from qamera_async._ratelimit.window import Priority

SUBMISSION, POLL = Priority.SUBMISSION, Priority.POLL
WINDOW = 8.0  # seconds; it and all others are binary fractions, so that sums are exact
POLICY = q.RetryPolicy(base=0.5, max_delay=4.0)
OWNERS = ("one", "two")
ENDS = ("answered", "unsent", 0.0, 10.0)  # a number: cut off, and counted so many seconds later at most
picks = st.integers(0, 2**16)
AT_REST = 8
turns = st.sampled_from([0, 1, 2, AT_REST])
"""So many turns of the loop follow a step: with none the next step meets what is half done."""


class Sent:
    """A request that has its slot: what the server may count, from then to its end."""

    def __init__(self, slot, now):
        self.slot = slot
        self.at = now
        self.end = math.inf
        self.seen = False  # in the count of its own window


class BudgetMachine(RuleBasedStateMachine):
    """Sessions that ask for slots, a server that answers or doesn't, and a clock that jumps."""

    def __init__(self):
        super().__init__()
        self.loop = FakeLoop()
        self.waiting = {}  # owner and priority of each task that asks, in the order in which they came
        self.sent = []  # all that the server may have seen
        self.open = []  # those of them that are not settled
        self.reserves = set()
        self.hold_until = self.began = -math.inf
        self.run_since = None  # of 429s and nothing else
        self.given_up = False
        self.evicted = set()
        self.faults = []

    @initialize(limit=st.integers(1, 5))
    def begin(self, limit):
        self.budget = q.RateLimiter(limit, WINDOW, clock=self.loop.time)

    # --- what the machine does ------------------------------------------------------------------

    def turn(self, times):
        async def idle():
            for _ in range(times):
                await asyncio.sleep(0)

        if times:
            self.loop.run_until_complete(idle())
        for error in self.faults:
            raise error
        if times == AT_REST:
            self.look_when_at_rest()

    def start(self, priority, owner):
        async def ask():
            slot = await self.budget.acquire(priority, owner=owner)
            sent = Sent(slot, self.loop.time())
            assert slot.priority is priority
            self.sent.append(sent)
            self.open.append(sent)
            self.look_at_hold(sent)
            self.look_at_turn(asyncio.current_task(), priority)

        task = self.loop.create_task(ask())
        self.waiting[task] = owner, priority
        task.add_done_callback(self.ended)

    def ended(self, task):
        owner, _ = self.waiting.pop(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not (isinstance(error, q.SessionClosedError) and owner in self.evicted):
            self.faults.append(error)  # raised here it would be the loop's

    def look_at_hold(self, sent):
        """Nothing is granted while all are held, and until one got through only one at a time."""
        granted = sent.slot.granted_at
        assert granted >= self.hold_until or granted < self.began
        if self.run_since is not None and granted >= self.began:
            assert self.open == [sent]

    def look_at_turn(self, served, priority):
        """Among equals the first to come is the first to be served."""
        for task, (_, theirs) in self.waiting.items():
            if task is served:
                return
            served_too = task.done() or task._fut_waiter is None or task._fut_waiter.done()
            assert theirs is not priority or served_too or task.cancelling()

    def end(self, sent):
        sent.end = self.loop.time()
        sent.slot.answered()
        if sent.slot.granted_at >= self.began:
            self.run_since = None

    @rule(
        priority=st.sampled_from([SUBMISSION, POLL]),
        owner=st.sampled_from(OWNERS),
        many=st.integers(1, 4),
        turns=turns,
    )
    def ask(self, priority, owner, many, turns):
        for _ in range(many):
            self.start(priority, owner)
        self.turn(turns)

    @precondition(lambda self: self.waiting)
    @rule(pick=picks, turns=turns)
    def cancel(self, pick, turns):
        self.cancel_one(pick)
        self.turn(turns)

    def cancel_one(self, pick):
        if self.waiting:
            list(self.waiting)[pick % len(self.waiting)].cancel()

    @precondition(lambda self: self.open)
    @rule(pick=picks, how=st.sampled_from(ENDS), first_cancelled=st.booleans(), turns=turns)
    def settle(self, pick, how, first_cancelled, turns):
        """A request ends; who would get its slot may be cancelled in that very moment."""
        sent = self.open.pop(pick % len(self.open))
        if how == "answered":
            self.end(sent)
        elif how == "unsent":
            self.sent.remove(sent)
            sent.slot.unsent()
        else:
            sent.end = self.loop.time() + how
            sent.slot.cut_off(how)
        if pick % 2:
            sent.slot.unsent()  # what is settled stays so
        if first_cancelled:
            self.cancel_one(0)
        self.turn(turns)

    @precondition(lambda self: self.open)
    @rule(
        pick=picks, stated=st.sampled_from([None, 0.0, 1.0, 2.0, 100.0]), then=st.integers(0, 2), turns=turns
    )
    def too_many(self, pick, stated, then, turns):
        """A 429, and others who ask during the hold."""
        sent = self.open.pop(pick % len(self.open))
        self.loop.now += 2**-10  # else nobody could tell what was granted before
        now = sent.end = self.loop.time()
        seconds = sent.slot.rejected(stated, POLICY)
        news = self.run_since is None or sent.slot.granted_at >= self.began
        if self.run_since is None or now - self.hold_until > WINDOW:
            news, self.run_since = True, now
        if seconds is None:
            self.given_up = True
            assert now - self.run_since >= 5 * WINDOW
        else:
            assert not news or 0 <= seconds <= POLICY.max_delay
            assert not news or stated is None or seconds == min(stated, POLICY.max_delay)
            if news:
                self.began = now
            else:
                assert now + seconds <= max(self.hold_until, now)
            self.hold_until = max(self.hold_until, now + seconds)
            assert self.budget.cooldown >= seconds
        for _ in range(then):
            self.start(POLL, OWNERS[0])
        self.turn(turns)

    @rule(
        owner=st.sampled_from(OWNERS),
        stale_after=st.sampled_from([None, 2.0, 4.0, 16.0]),
        many=st.integers(0, 5),
        turns=turns,
    )
    def reserve(self, owner, stale_after, many, turns):
        """None: released. So many submissions come just then."""
        if stale_after is None:
            self.budget.release(owner)
            self.reserves.discard(owner)
        else:
            self.budget.reserve(owner, stale_after)
            self.reserves.add(owner)
        for _ in range(many):
            self.start(SUBMISSION, owner)
        self.turn(turns)

    @rule(owner=st.sampled_from(OWNERS), turns=turns)
    def evict(self, owner, turns):
        """Who starts later is not meant."""
        self.turn(1)
        here = [task for task, (whose, _) in self.waiting.items() if whose == owner]
        self.evicted.add(owner)
        self.loop.call_soon(self.budget.evict, owner, q.SessionClosedError("closed"))
        self.turn(4)
        assert all(task.done() for task in here)
        self.evicted.discard(owner)
        self.turn(turns)

    @rule(seconds=st.sampled_from([0.0, 0.25, 1.0, 2.0, 4.0, 7.75, 8.0, 30.0]), turns=turns)
    def pass_time(self, seconds, turns):
        self.loop.now += seconds
        self.turn(turns)

    # --- what always holds ----------------------------------------------------------------------

    @invariant()
    def the_server_never_counts_one_more(self):
        """P2: a request counts at some moment between its grant and its end, in any window of all time."""
        # Once for each: later its window holds no more, since what has ended may only drop out of it.
        for last in [one for one in self.sent if not one.seen]:
            last.seen = True
            in_its_window = [one for one in self.sent if one.at <= last.at and one.end > last.at - WINDOW]
            assert len(in_its_window) <= self.budget.limit

    def look_when_at_rest(self):
        """No slot is leaked, none is forgotten, and what is free is given to who may have it."""
        used, limit, queues = self.budget.used, self.budget.limit, self.budget._queues
        assert used == len([one for one in self.sent if one.end + WINDOW > self.loop.time()])
        assert self.budget.waiting == len(self.waiting)
        held = self.loop.time() < self.hold_until or (self.run_since is not None and self.open)
        if used < limit and not held:
            assert not queues[POLL] or queues[SUBMISSION]
            assert not self.waiting or self.reserves

    @rule(stale_after=st.sampled_from([2.0, 4.0]))
    def both_make_progress(self, stale_after):
        """With submissions that never end and a poll that always waits, some of each come through."""
        if self.budget.limit == 1:
            return  # the one slot can't be shared
        self.end_of_trouble()
        self.reserve("poller", stale_after, 0, 1)
        begin = len(self.sent)
        step = WINDOW / 8
        for _ in range(3 * 8):
            while len(self.budget._queues[SUBMISSION]) < self.budget.limit:
                self.start(SUBMISSION, "traffic")
                self.turn(2)
            if not self.budget._queues[POLL]:
                self.start(POLL, "traffic")
            self.loop.now += step
            self.turn(AT_REST)
            self.answer_all()
        self.reserve("poller", None, 0, AT_REST)
        priorities = [one.slot.priority for one in self.sent[begin:]]
        note(f"{len(priorities)} requests in three windows")
        assert priorities.count(POLL) >= 2
        assert priorities.count(SUBMISSION) >= 2
        for task in [task for task, (owner, _) in self.waiting.items() if owner == "traffic"]:
            task.cancel()
        self.turn(AT_REST)

    def answer_all(self):
        while self.open:
            self.end(self.open.pop())
        self.turn(AT_REST)

    def end_of_trouble(self):
        """All is answered, and what was held or taken is free."""
        self.turn(AT_REST)
        self.answer_all()
        for _ in range(4):
            self.loop.now += WINDOW + 10.0
            self.turn(AT_REST)
            self.answer_all()

    def teardown(self):
        try:
            if hasattr(self, "budget"):
                self.all_are_served_and_all_is_free()
        finally:
            for task in list(self.waiting):
                task.cancel()
            self.turn(AT_REST)
            self.loop.close()

    def all_are_served_and_all_is_free(self):
        """Where time passes and answers come, each window lets through what it holds."""
        self.turn(AT_REST)
        steps = 6 * (len(self.waiting) // self.budget.limit + 4)
        for _ in range(steps):
            self.answer_all()
            self.loop.now += WINDOW / 2
            self.turn(AT_REST)
            self.the_server_never_counts_one_more()
        assert not self.waiting
        self.answer_all()
        self.loop.now += WINDOW + 10.0
        self.turn(AT_REST)
        assert (self.budget.used, self.budget.waiting) == (0, 0)
        for owner in OWNERS:
            self.reserve(owner, None, 0, AT_REST)
        self.start(POLL, "last")  # after a hold that nobody has tried since, one goes first
        self.turn(AT_REST)
        self.answer_all()
        self.loop.now += WINDOW
        for _ in range(self.budget.limit):
            self.start(POLL, "last")
        self.turn(AT_REST)
        assert not self.waiting, "a slot is missing"


class TestBudget(BudgetMachine.TestCase):
    """P2: never one too many, none leaked, nobody starved."""

    settings = settings.get_profile("budget")


@pytest.fixture
def machine():
    """A machine to be led along a path that chance seldom takes."""
    machine = BudgetMachine()
    machine.begin(4)
    yield machine
    machine.teardown()


def test_who_waits_for_what_was_reserved_gets_it_when_it_is_released(machine):
    """At once, not when the next slot is free."""
    machine.reserve("one", 4.0, 4, AT_REST)
    assert len(machine.waiting) == 2

    machine.reserve("one", None, 0, AT_REST)

    assert not machine.waiting


def test_a_run_of_429_is_given_up_after_five_windows_and_no_sooner(machine):
    """Whatever was stated each time."""
    begun = machine.loop.now
    while machine.loop.now < begun + 6 * WINDOW:
        machine.ask(SUBMISSION, "one", 1, AT_REST)
        machine.too_many(0, 2.0, 0, AT_REST)
        machine.pass_time(2.0, AT_REST)

    assert machine.given_up
