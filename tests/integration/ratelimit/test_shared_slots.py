"""One quota for several processes: the slot log that they share, raced for and never overrun."""

import asyncio
import threading
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_budget import POLICY, POLL, SUBMISSION, Clock, settle

from qamera_async import RateLimiter, SessionClosedError
from qamera_async._ratelimit.shared import Elsewhere
from qamera_async._ratelimit.window import Window

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")

LENGTH = 20.0  # seconds of a window; then a look is due every second


class Shared:
    """What would be the table: each slot with its log, its priority and when it is free again."""

    def __init__(self, clock):
        self.clock = clock
        self.slots = {}
        self.reserves = {}

    def taken(self):
        self.slots = {t: s for t, s in self.slots.items() if s[2] is None or s[2] > self.clock.now}
        return len(self.slots)

    def elsewhere(self, log):
        self.taken()
        others = [slot[1:] for slot in self.slots.values() if slot[0] is not log]

        def until(priority):
            return tuple(sorted(u for p, u in others if p is priority and u is not None))

        def under_way(priority):
            return sum(p is priority and u is None for p, u in others)

        reserve = sum(r for other, r in self.reserves.items() if other is not log)
        return Elsewhere(
            until(SUBMISSION), until(POLL), under_way(SUBMISSION), under_way(POLL), float(reserve)
        )


class Log:
    """One process's end of it. A test may close its gates, before and after a slot is written down."""

    def __init__(self, shared):
        self.shared = shared
        self.calls = []
        self.before, self.after = asyncio.Event(), asyncio.Event()
        self.before.set()
        self.after.set()
        self.turns = 0
        self.error = None
        self.full = False
        self.told = None  # instead of the truth
        self.tell = None  # what look() was to tell, where answers are held back
        self.holding_back = False

    async def take(self, priority, limit, window, reserve):
        self.calls.append("take")
        for _ in range(self.turns):
            await asyncio.sleep(0)
        await self.before.wait()
        if self.error is not None:
            raise self.error
        self.shared.reserves[self] = reserve
        if self.full or self.shared.taken() >= limit:
            return None, self.look_now()
        ticket = object()
        self.shared.slots[ticket] = (self, priority, None)
        try:
            await self.after.wait()
            for _ in range(self.turns):
                await asyncio.sleep(0)
        except BaseException:
            del self.shared.slots[ticket]
            raise
        return ticket, self.look_now()

    def look_now(self):
        return self.told or self.shared.elsewhere(self)

    def settle(self, ticket, until):
        self.calls.append(("settle", until))
        log, priority, settled = self.shared.slots.pop(ticket)
        assert (log, settled) == (self, None)
        if until is not None:
            self.shared.slots[ticket] = (self, priority, until)

    def look(self, tell):
        self.calls.append("look")
        if self.holding_back:
            self.tell = tell
        else:
            tell(self.look_now())


class World:
    """Some processes with one table, and the time they have in common."""

    def __init__(self, limit, processes=2):
        self.clock = Clock()
        self.shared = Shared(self.clock)
        self.budgets, self.logs = [], []
        for _ in range(processes):
            self.budgets.append(RateLimiter(limit, LENGTH, clock=self.clock))
            self.logs.append(Log(self.shared))
            self.budgets[-1].attach(self.logs[-1])

    async def pass_time(self, seconds):
        self.clock.now += seconds
        for budget in self.budgets:
            budget._timers.ring(asyncio.get_running_loop())
        await settle()
        await settle()


async def asks(budget, priority=SUBMISSION, **options):
    task = asyncio.ensure_future(budget.acquire(priority, **options))
    await settle()
    return task


async def drop(*tasks):
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


# --- taking a slot ------------------------------------------------------------------------------


async def test_without_a_log_none_is_asked(no_lost_exceptions):
    """A budget that has none, or has one no longer, calls nothing of it."""
    world = World(2)
    (a, log), shared = (world.budgets[0], world.logs[0]), world.shared
    a.attach(log)
    a.detach(log)
    (await a.acquire(SUBMISSION)).unsent()
    assert log.calls.count("take") == 1
    a.detach(log)
    a.detach(log)
    log.calls.clear()
    slot = await a.acquire(SUBMISSION)
    waiting = await asks(a, POLL)
    slot.answered()

    assert (await waiting).tickets == ()
    assert log.calls == []
    assert shared.slots == {}


async def test_two_processes_keep_one_quota():
    """What one has taken the other knows, and it is woken when that is free again."""
    world = World(2)
    a, b = world.budgets
    first, _ = await a.acquire(SUBMISSION), await a.acquire(POLL)
    waiting = await asks(b)
    assert (b.used, b.waiting, waiting.done()) == (2, 1, False)
    first.answered()
    await world.pass_time(1.0)
    assert not waiting.done()
    await world.pass_time(LENGTH - 1.1)
    assert not waiting.done()
    await world.pass_time(0.2)

    assert waiting.done()
    assert len(world.shared.slots) == 2


async def test_attaching_tells_what_others_have_taken():
    """Before the first request, so that a burst leaves the others what is theirs."""
    world = World(60)
    world.shared.slots[object()] = (world.logs[0], POLL, world.clock.now + 5)
    late = RateLimiter(60, LENGTH, clock=world.clock)
    late.attach(Log(world.shared))

    assert late.used == 1
    world.clock.now += 6
    assert late.used == 0


async def test_what_two_logs_show_is_added_up():
    """Each takes its slot in each log, and forgets a log's when it is detached."""
    world = World(3)
    a, other = world.budgets[0], Log(Shared(world.clock))
    other.told = Elsewhere(polling=1)
    world.logs[0].told = Elsewhere(submitting=1)
    a.attach(other)
    slot = await a.acquire(SUBMISSION)
    assert a.used == 3
    assert [log for log, _ in slot.tickets] == [world.logs[0], other]
    a.detach(other)

    assert a.used == 2
    slot.unsent()
    assert other.shared.slots == world.shared.slots == {}


async def test_who_queues_when_a_log_is_attached_takes_its_slot_there_too():
    """A slot that only one of two knows would be one too many."""
    world = World(1, processes=1)
    a, log = world.budgets[0], world.logs[0]
    a.detach(log)
    slot = await a.acquire(SUBMISSION)
    waiting = await asks(a)
    a.attach(log)
    slot.unsent()

    assert len((await waiting).tickets) == 1


@pytest.mark.parametrize(
    ("end", "until"),
    [
        (lambda slot: slot.answered(), LENGTH),
        (lambda slot: slot.cut_off(7.0), LENGTH + 7),
        (lambda slot: slot.unsent(), None),
        (lambda slot: slot.rejected(1.0, POLICY), LENGTH),
    ],
)
async def test_a_slot_ends_in_the_log_as_it_ends_here(end, until):
    """Free one window after its answer; later where it was cut off; at once where it is unsent."""
    world = World(2)
    slot = await world.budgets[0].acquire(SUBMISSION)
    world.clock.now += 3
    end(slot)
    slot.answered()

    settled = [call for call in world.logs[0].calls if call[0] == "settle"]
    assert settled == [("settle", None if until is None else world.clock.now + until)]
    assert world.budgets[0].used == len(world.shared.slots) == (until is not None)


# --- races ----------------------------------------------------------------------------------------


async def lost_race(world, priority=SUBMISSION, *then):
    """Let the first process lose the last slot to the second, with others queueing behind."""
    a, b = world.budgets
    world.logs[0].before.clear()
    early = await asks(a, priority)
    later = [await asks(a, p) for p in then]
    winner = await b.acquire(SUBMISSION)
    world.logs[0].before.set()
    await settle()
    assert not early.done()
    return early, later, winner


async def test_the_loser_of_a_race_keeps_its_place():
    """It came first, so it goes first when there is a slot again."""
    world = World(1)
    early, (late, latest), winner = await lost_race(world, SUBMISSION, SUBMISSION, SUBMISSION)
    assert world.budgets[0].waiting == 3
    winner.unsent()
    await world.pass_time(1.0)
    assert [early.done(), late.done(), latest.done()] == [True, False, False]
    early.result().unsent()
    await settle()
    assert [late.done(), latest.done()] == [True, False]

    late.result().unsent()
    (await latest).unsent()
    assert world.shared.slots == {}


async def test_submissions_go_before_a_poll_that_lost():
    """The place is kept among those of its priority."""
    world = World(1)
    poll, (submission,), winner = await lost_race(world, POLL, SUBMISSION)
    winner.unsent()
    await world.pass_time(1.0)

    assert (submission.done(), poll.done()) == (True, False)
    await drop(poll)


async def test_the_loser_says_how_long_it_will_wait():
    """``on_wait`` is told when it queues, which may be after it lost."""
    world = World(1)
    waits = []
    world.logs[0].before.clear()
    early = await asks(world.budgets[0], on_wait=waits.append)
    (await world.budgets[1].acquire(SUBMISSION)).answered()
    assert waits == []
    world.logs[0].before.set()
    await settle()

    assert waits == [pytest.approx(LENGTH)]
    await drop(early)


async def test_a_loser_gives_back_what_it_took_in_other_logs():
    """All or nothing."""
    world = World(2)
    a, other = world.budgets[0], Log(Shared(world.clock))
    a.attach(other)
    other.full = True
    waiting = await asks(a)
    assert world.logs[0].calls.count("take") == 1
    assert world.shared.slots == {}
    assert a.waiting == 1
    other.full = False
    await world.pass_time(1.0)

    assert len(waiting.result().tickets) == 2


async def test_a_log_that_is_full_of_what_nobody_knows_is_not_asked_at_once_again():
    """It says there is no slot, and that nobody has one: once a look, not all the time."""
    world = World(5)
    log = world.logs[0]
    log.full, log.told = True, Elsewhere()
    waiting = await asks(world.budgets[0])
    later = await asks(world.budgets[0])
    log.holding_back = True
    await world.pass_time(0.5)
    assert log.calls.count("take") == 1
    log.full = False
    await world.pass_time(0.6)

    assert waiting.done()
    assert later.done()


async def test_what_a_loser_learns_lets_nobody_pass_it():
    """Also where the log shows slots that it doesn't give."""
    world = World(2)
    a, log = world.budgets[0], world.logs[0]
    log.told = Elsewhere(submitting=1)
    a.attach(log)
    log.before.clear()
    early, late = await asks(a), await asks(a)
    log.full, log.told = True, Elsewhere()
    log.before.set()
    await settle()

    assert log.calls.count("take") == 1
    await drop(early, late)


async def test_a_slot_that_the_log_gave_is_good():
    """Where nothing is reserved, whatever else it says."""
    world = World(1)
    world.logs[0].told = Elsewhere(polling=1)

    assert (await world.budgets[0].acquire(SUBMISSION)).tickets


async def test_a_burst_of_two_leaves_the_poll_that_they_share_its_slots():
    """Also where neither knew of the other's requests when its own were granted."""
    world = World(20)
    for budget in world.budgets:
        budget.reserve("session", LENGTH / 4)
    for budget in [*world.budgets] * 2:
        (await budget.acquire(SUBMISSION)).unsent()  # now each knows what the other reserves
    for log in world.logs:
        log.before.clear()
    waiting = [await asks(budget) for _ in range(30) for budget in world.budgets]
    assert [b._taken.under_way for b in world.budgets] == [16, 16]
    for log in world.logs:
        log.before.set()
    await settle()
    await world.pass_time(1.0)

    assert len(world.shared.slots) == sum(task.done() for task in waiting) == 16
    await drop(*waiting)


async def test_a_hold_that_begins_meanwhile_holds_it_too():
    """After a 429 nothing is sent, also what was just about to get its slot."""
    world = World(5)
    a, log = world.budgets[0], world.logs[0]
    slot = await a.acquire(SUBMISSION)
    log.before.clear()
    waiting = await asks(a)
    slot.rejected(5.0, POLICY)
    log.before.set()
    await settle()
    assert not waiting.done()
    assert len(world.shared.slots) == 1
    await world.pass_time(5.1)

    waiting.result().answered()
    assert (await a.acquire(SUBMISSION)).granted_at == world.clock.now


async def test_what_gets_its_slot_after_a_hold_probes():
    """The moment of its grant is the last one before it is sent."""
    world = World(5)
    a, log = world.budgets[0], world.logs[0]
    slot = await a.acquire(SUBMISSION)
    log.before.clear()
    waiting = await asks(a)
    world.clock.now += 1
    slot.rejected(5.0, POLICY)
    world.clock.now += 6
    log.before.set()
    (await waiting).answered()

    assert not a._hold.probing


# --- nothing leaks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("gate", ["before", "after"])
async def test_cancelled_while_it_takes_leaks_no_slot(gate):
    """Neither before the log wrote it down nor after; and who queues behind gets it."""
    world = World(1)
    a, log = world.budgets[0], world.logs[0]
    getattr(log, gate).clear()
    taking, queued = await asks(a), await asks(a)
    assert a.waiting == 2
    taking.cancel()
    getattr(log, gate).set()
    await settle()
    assert taking.cancelled()
    await settle()

    queued.result().unsent()
    assert (a.used, a.waiting, world.shared.slots) == (0, 0, {})


async def test_cancelled_between_two_logs_gives_back_the_first():
    """The ticket of a log is the request's from the moment it has it."""
    world = World(1)
    a, other = world.budgets[0], Log(Shared(world.clock))
    a.attach(other)
    other.before.clear()
    taking = await asks(a)
    assert len(world.shared.slots) == 1
    await drop(taking)

    assert (a.used, a.waiting, world.shared.slots) == (0, 0, {})


async def test_cancelled_after_it_lost_leaves_the_queue():
    """As any that queues."""
    world = World(1)
    early, (late,), winner = await lost_race(world, SUBMISSION, SUBMISSION)
    await drop(early)
    winner.unsent()
    await world.pass_time(1.0)

    late.result().unsent()
    assert (world.budgets[0].used, world.budgets[0].waiting, world.shared.slots) == (0, 0, {})


@pytest.mark.parametrize("error", [OSError("disk full"), TimeoutError("locked")])
async def test_a_log_that_raises_gives_the_slot_back(error):
    """The request fails with the log's error, and what another log gave is given back."""
    world = World(1)
    a, other = world.budgets[0], Log(Shared(world.clock))
    a.attach(other)
    other.error = error
    with pytest.raises(type(error)) as raised:
        await a.acquire(SUBMISSION)

    assert raised.value is error
    assert (a.used, a.waiting, world.shared.slots) == (0, 0, {})


async def test_a_log_that_is_detached_meanwhile_fails_nobody():
    """One session's log may be closed while another's request is in it."""
    world = World(1)
    a, log = world.budgets[0], world.logs[0]
    log.before.clear()
    taking = await asks(a)
    a.detach(log)
    log.error = RuntimeError("closed")
    log.before.set()

    assert (await taking).tickets == ()


@pytest.mark.parametrize("times", [1, 2])
async def test_evicting_ends_what_takes_its_slot_at_once(times):
    """However long the log takes; those of others go on."""
    world = World(5)
    a, log = world.budgets[0], world.logs[0]
    log.after.clear()
    mine, other = await asks(a, owner="me"), await asks(a, owner="you")
    for _ in range(times):
        a.evict("me", SessionClosedError("closed"))
        await asyncio.sleep(0)  # the second comes while it is on its way out
    await settle()
    with pytest.raises(SessionClosedError):
        mine.result()
    assert (a.used, len(world.shared.slots)) == (1, 1)
    log.after.set()
    await settle()

    other.result().unsent()
    assert (a.used, a.waiting, world.shared.slots) == (0, 0, {})


async def test_evicting_ends_what_was_granted_and_has_not_come_to_the_log():
    """Else it would lose there, queue again and stay for ever."""
    world = World(1)
    a = world.budgets[0]
    slot = await a.acquire(SUBMISSION)
    mine = await asks(a, owner="me")
    slot.unsent()
    a.evict("me", SessionClosedError("closed"))
    await settle()

    with pytest.raises(SessionClosedError):
        mine.result()
    assert (a.used, a.waiting, world.shared.slots) == (0, 0, {})


@pytest.mark.parametrize("full", [True, False])
async def test_evicting_in_the_moment_of_the_answer_ends_it_too(full):
    """Whether it has lost or won: it must not queue again, and gives back what it has."""
    world = World(1)
    a, log = world.budgets[0], world.logs[0]

    async def take(*_):
        a.evict("me", SessionClosedError("closed"))
        if full:
            return None, Elsewhere(submitting=1)
        ticket = object()
        world.shared.slots[ticket] = (log, SUBMISSION, None)
        return ticket, Elsewhere()

    log.take = take
    with pytest.raises(SessionClosedError):
        await a.acquire(SUBMISSION, owner="me")

    assert (a.waiting, world.shared.slots, a._taken.under_way) == (0, {}, 0)


# --- looking ----------------------------------------------------------------------------------------


async def test_who_waits_looks_again_every_twentieth_of_a_window():
    """Others give back without telling; nobody looks where nobody waits."""
    world = World(1)
    a, log = world.budgets[0], world.logs[0]
    await world.budgets[1].acquire(SUBMISSION)
    await world.pass_time(30)
    assert log.calls == ["look"]
    waiting = await asks(a)
    log.calls.clear()
    for _ in range(8):
        await world.pass_time(0.25)

    assert log.calls == ["look"] * 2
    await drop(waiting)


async def test_a_look_that_is_not_told_yet_is_not_asked_for_again_at_once():
    """A slow log is not asked all the time."""
    world = World(1)
    a, log = world.budgets[0], world.logs[0]
    await world.budgets[1].acquire(SUBMISSION)
    waiting = await asks(a)
    await world.pass_time(1.0)
    log.holding_back = True
    log.calls.clear()
    for _ in range(8):
        await world.pass_time(0.25)

    assert log.calls == ["look"] * 2
    await drop(waiting)


async def test_the_timer_of_who_waits_comes_for_the_look():
    """By itself, also where no time is known at which a slot is free."""
    shared = Shared(Clock())
    a, log = RateLimiter(1, 0.4), Log(shared)
    log.told = Elsewhere(submitting=1)
    log.full = True
    a.attach(log)
    waiting = await asks(a)
    log.full, log.told = False, Elsewhere()

    async with asyncio.timeout(5):
        await waiting


async def test_a_look_that_is_told_from_another_thread_wakes_who_waits():
    """A log may have a thread of its own."""
    world = World(1)
    a, log = world.budgets[0], world.logs[0]
    winner = await world.budgets[1].acquire(SUBMISSION)
    waiting = await asks(a)
    log.holding_back = True
    await world.pass_time(1.0)
    winner.unsent()
    thread = threading.Thread(target=log.tell, args=(Elsewhere(),))
    thread.start()

    assert await asyncio.wait_for(waiting, 5)
    thread.join()


async def test_a_look_that_is_told_late_does_not_undo_a_newer_one():
    """What a slot was taken with counts, not what a look saw before that."""
    world = World(2)
    a, log = world.budgets[0], world.logs[0]
    log.holding_back = True
    a.attach(log)
    await world.budgets[1].acquire(SUBMISSION)
    await a.acquire(SUBMISSION)
    log.tell(Elsewhere())

    assert a.used == 2


async def test_a_log_may_tell_and_settle_under_a_lock_of_its_own():
    """None of its methods is called under the budget's: two threads would wait for each other."""
    world = World(1)
    a, log = world.budgets[0], world.logs[0]
    free = []

    def watched(method):
        def call(*args):
            def probe():
                got = a._lock.acquire(timeout=1)
                free.append(got)
                if got:
                    a._lock.release()

            thread = threading.Thread(target=probe)
            thread.start()
            thread.join()
            return method(*args)

        return call

    log.settle, log.look = watched(log.settle), watched(log.look)
    a.attach(log)
    for end in ("answered", "unsent"):
        getattr(await a.acquire(SUBMISSION), end)()
        await world.pass_time(LENGTH + 1)
    (await a.acquire(SUBMISSION)).rejected(0.0, POLICY)
    waiting = await asks(a)
    await world.pass_time(2.0)
    await drop(waiting)
    taking = await asks(a)
    await drop(taking)
    await world.pass_time(LENGTH)
    log.after.clear()
    other = Log(Shared(world.clock))
    other.full = True
    log.after.set()
    a.attach(other)
    waiting = await asks(a)
    await drop(waiting)
    a.detach(other)
    assert len(free) >= 6

    assert all(free)


# --- what is counted ------------------------------------------------------------------------------


def test_the_window_counts_what_is_elsewhere():
    """Used, free, the next free moment; settled slots of others expire by themselves."""
    window = Window(10, LENGTH)
    window.count_elsewhere([Elsewhere((5.0,), (3.0, 9.0), 1, 2), Elsewhere((4.0,))])
    window.expire(0.0)
    assert (window.used, window.free, window.next_free, window.under_way) == (7, 3, 3.0, 0)
    window.expire(4.0)
    assert (window.used, window.next_free) == (5, 5.0)
    window.count_elsewhere([])

    assert window.used == 0


@pytest.mark.parametrize(("theirs", "reserved"), [(2.2, 3), (4.2, 5)])
def test_the_larger_reserve_counts(theirs, reserved):
    """Here or of others, who share one poll; at most half the limit. Others are told the part from here."""
    window = Window(20, LENGTH)
    window.reserve("session", LENGTH / 2.5)
    window.count_elsewhere([Elsewhere(reserve=theirs), Elsewhere(reserve=1.0)])
    granted = 0
    while window.may_submit(0.0):
        window.take(SUBMISSION, 0.0)
        granted += 1
    assert granted == 20 - reserved
    assert window.reserved_here == 2.5
    window.count_elsewhere([Elsewhere(reserve=99.0)])
    while window.used > 10:
        window.settle(SUBMISSION, None)

    assert not window.may_submit(0.0)


def test_submissions_of_others_are_no_slots_for_polls():
    """What they have sent leaves the polls no more than what is sent here."""
    window = Window(4, LENGTH)
    window.reserve("session", LENGTH)
    window.count_elsewhere([Elsewhere(submitting=1, submissions=(1.0, 2.0))])

    assert not window.may_submit(0.0)


def test_polls_of_others_are_those_that_are_due():
    """Else who never polls would wait for ever while another polls without a pause."""
    window = Window(2, LENGTH)
    window.count_elsewhere([Elsewhere(polls=(15.0,), reserve=1.0)])
    assert window.may_submit(0.0)
    window.count_elsewhere([Elsewhere(polls=(25.0,), reserve=1.0)])  # cut off, and counted for longer
    assert not window.may_submit(0.0)
    window.count_elsewhere([Elsewhere(polling=1, reserve=1.0)])
    assert not window.may_submit(0.0)
    window.count_elsewhere([Elsewhere(submissions=(15.0,), reserve=1.0)])
    assert not window.may_submit(0.0)

    assert window.next_allowed(0.0) == 15.0


@pytest.mark.parametrize("which", [0, 1])
async def test_two_processes_with_many_jobs_see_them_in_time(which):
    """Whichever polls for both does so about every stale_after seconds, through the bursts of both."""
    world = World(20)
    stale_after, step = 5.0, 0.25
    polls, due, asked, poller = [], 0.0, None, world.budgets[which]
    for budget in world.budgets:
        budget.reserve("session", stale_after)
    submissions = []
    for budget in world.budgets:
        submissions += [await asks(budget) for _ in range(100)]
    sent = 0
    for _ in range(int(6 * LENGTH / step)):
        for slot in [task for task in submissions if task.done()]:
            submissions.remove(slot)
            slot.result().answered()
            sent += 1
        if asked is not None and asked.done():
            asked.result().answered()
            asked = None
            polls.append(world.clock.now)
            due = world.clock.now + poller.pace(0.5, stale_after)
        if asked is None and world.clock.now >= due:
            asked = await asks(poller, POLL)
        await world.pass_time(step)
    await drop(*submissions, *filter(None, [asked]))

    began = 1000.0 + LENGTH  # in the first window neither knows of the other, and polls may run out
    later = [at for at in polls if at >= began]
    assert max(b - a for a, b in pairwise(later)) <= stale_after + 2 * step
    assert sent >= 6 * 15


# --- all of it at once ------------------------------------------------------------------------------


STEPS = st.one_of(
    st.tuples(st.just("ask"), st.sampled_from([SUBMISSION, POLL]), st.integers(0, 3)),
    st.tuples(st.just("ask"), st.sampled_from([SUBMISSION, POLL]), st.integers(0, 3)),
    st.tuples(st.just("end"), st.sampled_from(["answered", "cut_off", "unsent"]), st.integers(0, 20)),
    st.tuples(st.just("end"), st.just("answered"), st.integers(0, 20)),
    st.tuples(st.just("cancel"), st.none(), st.integers(0, 20)),
    st.tuples(st.just("turns"), st.none(), st.integers(1, 4)),
    st.tuples(st.just("time"), st.none(), st.sampled_from([0.5, 3.0, 9.0, LENGTH])),
)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), STEPS, st.sampled_from([0.0, 0.5, 1.0])), max_size=60),
    st.integers(1, 4),
    st.lists(st.sampled_from([None, 2.0, LENGTH]), min_size=1, max_size=3),
)
def test_no_window_of_the_server_holds_more_than_the_quota_of_all(steps, limit, reserves):
    """P2, whatever the interleaving; no slot leaks, and everybody gets one in the end."""
    asyncio.run(interleaved(steps, limit, reserves))


class Interleaving:
    """Requests of up to three processes, and when the server counted each."""

    def __init__(self, limit, reserves):
        self.world = World(limit, processes=len(reserves))
        for budget, stale_after in zip(self.world.budgets, reserves, strict=True):
            if stale_after is not None:
                budget.reserve("session", stale_after)
        self.asking, self.holding, self.counted = [], [], []

    async def request(self, budget, priority):
        slot = await budget.acquire(priority)
        self.holding.append((slot, self.world.clock.now))

    def ask(self, which, priority, turns):
        self.world.logs[which].turns = turns
        self.asking.append(asyncio.ensure_future(self.request(self.world.budgets[which], priority)))

    def end(self, how, number, fraction):
        if not self.holding:
            return
        slot, granted = self.holding.pop(number % len(self.holding))
        extra = (3.0,) if how == "cut_off" else ()
        getattr(slot, how)(*extra)
        if how != "unsent":
            last = self.world.clock.now + sum(extra)
            self.counted.append(granted + (last - granted) * fraction)

    async def step(self, which, step, what, number, fraction):
        if step == "ask":
            self.ask(which % len(self.world.budgets), what, number)
        elif step == "end":
            self.end(what, number, fraction)
        elif step == "cancel" and self.asking:
            self.asking.pop(number % len(self.asking)).cancel()
        elif step == "turns":
            for _ in range(number):
                await asyncio.sleep(0)
        elif step == "time":
            await self.world.pass_time(number)

    async def answer_all(self):
        for _ in range(25 * (len(self.asking) + 3)):
            while self.holding:
                self.end("answered", 0, 0.5)
            self.asking = [task for task in self.asking if not task.done()]
            await self.world.pass_time(1.0)


async def interleaved(steps, limit, reserves):
    run = Interleaving(limit, reserves)
    world = run.world
    for which, (step, what, number), fraction in steps:
        await run.step(which, step, what, number, fraction)
        assert all(budget._taken.under_way <= limit for budget in world.budgets)
    await run.answer_all()
    assert run.asking == run.holding == []
    counted = sorted(run.counted)
    assert all(b - a >= LENGTH for a, b in zip(counted, counted[limit:], strict=False))
    await world.pass_time(LENGTH + 3)
    assert world.shared.taken() == 0
    for budget in world.budgets:
        assert budget._taken.under_way == budget.waiting == 0
