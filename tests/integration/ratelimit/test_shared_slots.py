"""One rate limit for several processes, which take their slots in a shared store."""

import asyncio
import threading
from itertools import pairwise

import pytest
import uvloop
from fake_loop import FakeLoop
from hypothesis import given, settings
from hypothesis import strategies as st
from limiters import POLICY, POLL, SUBMISSION, Clock, Limited, drop, run_ready

from qamera_async import RateLimiter, SessionClosedError
from qamera_async._ratelimit import ExternalUsage, session_limiter

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")

LENGTH = 20.0  # seconds of a window; the usage is read every twentieth of it


class Table:
    """A table of slots in memory. Each has its store, its priority and the time at which it becomes free."""

    def __init__(self, clock):
        self.clock = clock
        self.slots = {}
        self.reserves = {}

    def taken(self):
        self.slots = {t: s for t, s in self.slots.items() if s[2] is None or s[2] > self.clock.now}
        return len(self.slots)

    def usage(self, store):
        self.taken()
        others = [slot[1:] for slot in self.slots.values() if slot[0] is not store]

        def until(priority):
            return tuple(sorted(u for p, u in others if p is priority and u is not None))

        def in_flight(priority):
            return sum(p is priority and u is None for p, u in others)

        reserve = sum(r for other, r in self.reserves.items() if other is not store)
        return ExternalUsage(
            until(SUBMISSION), until(POLL), in_flight(SUBMISSION), in_flight(POLL), float(reserve)
        )


class Store:
    """The access of one process to a table. A test can block it before or after a slot is recorded."""

    def __init__(self, table):
        self.table = table
        self.calls = []
        self.before, self.after = asyncio.Event(), asyncio.Event()
        self.before.set()
        self.after.set()
        self.steps = 0  # loop iterations before and after a slot is recorded
        self.error = None
        self.full = False
        self.shown = None  # the usage to return instead of the table's
        self.on_usage = None  # the callback of the last read, if `holding_back` is set
        self.holding_back = False

    async def take(self, priority, limit, window, reserve):
        self.calls.append("take")
        for _ in range(self.steps):
            await asyncio.sleep(0)
        await self.before.wait()
        if self.error is not None:
            raise self.error
        self.table.reserves[self] = reserve
        if self.full or self.table.taken() >= limit:
            return None, self.usage()
        slot_id = object()
        self.table.slots[slot_id] = (self, priority, None)
        try:
            await self.after.wait()
            for _ in range(self.steps):
                await asyncio.sleep(0)
        except BaseException:
            del self.table.slots[slot_id]
            raise
        return slot_id, self.usage()

    def usage(self):
        return self.shown or self.table.usage(self)

    def settle(self, slot_id, until):
        self.calls.append(("settle", until))
        store, priority, settled = self.table.slots.pop(slot_id)
        assert (store, settled) == (self, None)
        if until is not None:
            self.table.slots[slot_id] = (self, priority, until)

    def fetch_usage(self, on_usage):
        self.calls.append("read")
        if self.holding_back:
            self.on_usage = on_usage
        else:
            on_usage(self.usage())


class Process(Limited):
    """A process whose only session shares the rate limit through a store."""

    def __init__(self, limit, clock, store):
        super().__init__(limit, LENGTH, clock)
        self.store = store
        self.session.attach(store)


class Cluster:
    """Some processes that share a table and a clock."""

    def __init__(self, limit, processes=2):
        self.clock = Clock()
        self.table = Table(self.clock)
        self.processes = [Process(limit, self.clock, Store(self.table)) for _ in range(processes)]

    async def pass_time(self, seconds):
        self.clock.now += seconds
        for process in self.processes:
            await process.pass_time(0)


# --- taking a slot ------------------------------------------------------------------------------


async def test_detached_store_is_not_called():
    """If two sessions attached the store, both of them must detach it."""
    cluster = Cluster(2)
    (a, store), table = (cluster.processes[0], cluster.processes[0].store), cluster.table
    second = a.another_session()
    second.attach(store)
    a.session.detach()
    a.session.detach()
    (await a.acquire()).give_back()
    assert store.calls.count("take") == 1
    second.leave()
    store.calls.clear()
    slot = await a.acquire()
    waiting = await a.waiting(POLL)
    slot.on_response()

    assert not (await waiting).shared
    assert store.calls == []
    assert table.slots == {}


async def test_two_processes_share_one_rate_limit():
    """A request of one process waits for slots of the other process."""
    cluster = Cluster(2)
    a, b = cluster.processes
    first, _ = await a.acquire(), await a.acquire(POLL)
    waiting = await b.waiting()
    assert (b.counts, waiting.done()) == ((2, 1), False)
    first.on_response()
    await cluster.pass_time(1.0)
    assert not waiting.done()
    await cluster.pass_time(LENGTH - 1.1)
    assert not waiting.done()
    await cluster.pass_time(0.2)

    assert waiting.done()
    assert len(cluster.table.slots) == 2


async def test_attaching_reads_the_usage():
    """The usage is known before the first request, so a burst does not take the slots of other processes."""
    cluster = Cluster(60)
    cluster.table.slots[object()] = (cluster.processes[0].store, POLL, cluster.clock.now + 5)
    late = Process(60, cluster.clock, Store(cluster.table))

    assert late.rate_limiter.used == 1
    cluster.clock.now += 6
    assert late.rate_limiter.used == 0


async def test_usage_of_two_stores_is_added_up():
    """Each slot is taken in each store; detaching a store forgets its usage."""
    cluster = Cluster(3)
    a, other = cluster.processes[0], Store(Table(cluster.clock))
    other.shown = ExternalUsage(polls_in_flight=1)
    a.store.shown = ExternalUsage(submissions_in_flight=1)
    second = a.another_session()
    second.attach(other)
    slot = await a.acquire()
    assert a.rate_limiter.used == 3
    assert [store.slots for store in slot.shared] == [a.store, other]
    second.detach()

    assert a.rate_limiter.used == 2
    slot.give_back()
    assert other.table.slots == cluster.table.slots == {}


async def test_waiter_takes_its_slot_in_a_store_attached_meanwhile():
    """Other processes would not count a slot that is missing in the store."""
    cluster = Cluster(1, processes=1)
    a = cluster.processes[0]
    a.session.detach()
    slot = await a.acquire()
    waiting = await a.waiting()
    a.session.attach(a.store)
    slot.give_back()

    assert len((await waiting).shared) == 1


@pytest.mark.parametrize(
    ("end", "until"),
    [
        (lambda slot: slot.on_response(), LENGTH),
        (lambda slot: slot.on_lost(7.0), LENGTH + 7),
        (lambda slot: slot.give_back(), None),
        (lambda slot: slot.on_429(1.0, POLICY), LENGTH),
    ],
)
async def test_slot_becomes_free_in_the_store_and_in_the_process_at_the_same_time(end, until):
    """A slot is free a window after its response, later if that is lost, at once if nothing was sent."""
    cluster = Cluster(2)
    a = cluster.processes[0]
    slot = await a.acquire()
    cluster.clock.now += 3
    end(slot)
    slot.on_response()

    settled = [call for call in a.store.calls if call[0] == "settle"]
    assert settled == [("settle", None if until is None else cluster.clock.now + until)]
    assert a.rate_limiter.used == len(cluster.table.slots) == (until is not None)


# --- races ----------------------------------------------------------------------------------------


async def lost_race(cluster, priority=SUBMISSION, *then):
    """Let the first process lose the last slot to the second process, while further requests wait."""
    a, b = cluster.processes
    a.store.before.clear()
    early = await a.waiting(priority)
    later = [await a.waiting(p) for p in then]
    winner = await b.acquire()
    a.store.before.set()
    await run_ready()
    assert not early.done()
    return early, later, winner


async def test_request_that_lost_a_race_keeps_its_place_in_the_queue():
    cluster = Cluster(1)
    early, (late, latest), winner = await lost_race(cluster, SUBMISSION, SUBMISSION, SUBMISSION)
    assert cluster.processes[0].rate_limiter.waiting == 3
    winner.give_back()
    await cluster.pass_time(1.0)
    assert [early.done(), late.done(), latest.done()] == [True, False, False]
    early.result().give_back()
    await run_ready()
    assert [late.done(), latest.done()] == [True, False]

    late.result().give_back()
    (await latest).give_back()
    assert cluster.table.slots == {}


async def test_requests_that_lost_a_race_keep_their_order():
    """The order does not depend on which request the store refuses first."""
    cluster = Cluster(2)
    a, b = cluster.processes
    a.store.before.clear()
    first, second = await a.waiting(), await a.waiting()
    third = await a.waiting()
    winners = [await b.acquire() for _ in range(2)]
    a.store.before.set()
    await run_ready()
    winners[0].give_back()
    await cluster.pass_time(1.0)

    assert [first.done(), second.done(), third.done()] == [True, False, False]
    await drop(second, third)


async def test_submission_goes_before_a_poll_that_lost_a_race():
    cluster = Cluster(1)
    poll, (submission,), winner = await lost_race(cluster, POLL, SUBMISSION)
    winner.give_back()
    await cluster.pass_time(1.0)

    assert (submission.done(), poll.done()) == (True, False)
    await drop(poll)


async def test_request_that_lost_a_race_calls_on_wait():
    """The call has the expected wait, and comes when the request begins to wait."""
    cluster = Cluster(1)
    a, b = cluster.processes
    waits = []
    a.store.before.clear()
    early = await a.waiting(on_wait=waits.append)
    (await b.acquire()).on_response()
    assert waits == []
    a.store.before.set()
    await run_ready()

    assert waits == [pytest.approx(LENGTH)]
    await drop(early)


async def test_request_that_lost_a_race_gives_back_its_slots_in_other_stores():
    cluster = Cluster(2)
    a, other = cluster.processes[0], Store(Table(cluster.clock))
    a.another_session().attach(other)
    other.full = True
    waiting = await a.waiting()
    assert a.store.calls.count("take") == 1
    assert cluster.table.slots == {}
    assert a.rate_limiter.waiting == 1
    other.full = False
    await cluster.pass_time(1.0)

    assert len(waiting.result().shared) == 2


async def test_full_store_is_asked_once_per_reading():
    """The usage may not explain why the store is full."""
    cluster = Cluster(5)
    a, store = cluster.processes[0], cluster.processes[0].store
    store.full, store.shown = True, ExternalUsage()
    waiting, later = await a.waiting(), await a.waiting()
    store.holding_back = True
    await cluster.pass_time(0.5)
    assert store.calls.count("take") == 1
    store.full = False
    await cluster.pass_time(0.6)

    assert waiting.done()
    assert later.done()


async def test_no_request_overtakes_one_that_lost_a_race():
    """The usage may show a free slot that the store refuses."""
    cluster = Cluster(2)
    a, store = cluster.processes[0], cluster.processes[0].store
    store.shown = ExternalUsage(submissions_in_flight=1)
    await cluster.pass_time(1.0)
    store.before.clear()
    early, late = await a.waiting(), await a.waiting()
    store.full, store.shown = True, ExternalUsage()
    store.before.set()
    await run_ready()

    assert store.calls.count("take") <= 2
    assert not late.done()
    await drop(early, late)


async def test_granted_slot_is_used_even_if_the_usage_shows_a_full_store():
    cluster = Cluster(1)
    a = cluster.processes[0]
    a.store.shown = ExternalUsage(polls_in_flight=1)

    assert (await a.acquire()).shared


async def test_burst_of_two_processes_leaves_slots_to_the_shared_poll():
    """Both processes may grant requests before they know of each other's requests."""
    cluster = Cluster(20)
    for process in cluster.processes:
        process.session.reserve_polls(LENGTH / 4)
    for process in [*cluster.processes] * 2:
        (await process.acquire()).give_back()  # now each process knows the poll reserve of the other process
    for process in cluster.processes:
        process.store.before.clear()
    waiting = [await process.waiting() for _ in range(30) for process in cluster.processes]
    assert [process.rate_limiter.used for process in cluster.processes] == [16, 16]
    for process in cluster.processes:
        process.store.before.set()
    await run_ready()
    await cluster.pass_time(1.0)

    assert len(cluster.table.slots) == sum(task.done() for task in waiting) == 16
    await drop(*waiting)


async def test_cooldown_stops_a_request_that_is_taking_its_slot():
    """After a 429 no request is sent, not even one that was granted but has no slot in the store yet."""
    cluster = Cluster(5)
    a, store = cluster.processes[0], cluster.processes[0].store
    slot = await a.acquire()
    store.before.clear()
    waiting = await a.waiting()
    slot.on_429(5.0, POLICY)
    store.before.set()
    await run_ready()
    assert not waiting.done()
    assert len(cluster.table.slots) == 1
    await cluster.pass_time(5.1)

    waiting.result().on_response()
    assert (await a.acquire()).granted_at == cluster.clock.now


async def test_request_that_gets_its_slot_after_a_cooldown_is_the_probe():
    """A request counts as granted at the time at which the store gave it the slot."""
    cluster = Cluster(5)
    a, store = cluster.processes[0], cluster.processes[0].store
    slot = await a.acquire()
    store.before.clear()
    waiting = await a.waiting()
    cluster.clock.now += 1
    slot.on_429(5.0, POLICY)
    cluster.clock.now += 6
    store.before.set()
    (await waiting).on_response()
    both = [await a.waiting() for _ in range(2)]

    assert all(task.done() for task in both)


# --- cancellation and errors ------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after"])
async def test_cancelling_while_the_store_is_asked_leaks_no_slot(when):
    """The next waiter gets the slot, whether or not the store had recorded it."""
    cluster = Cluster(1)
    a = cluster.processes[0]
    getattr(a.store, when).clear()
    taking, behind = await a.waiting(), await a.waiting()
    assert a.rate_limiter.waiting == 2
    taking.cancel()
    getattr(a.store, when).set()
    await run_ready()
    assert taking.cancelled()

    behind.result().give_back()
    assert (a.counts, cluster.table.slots) == ((0, 0), {})


async def test_cancelling_between_two_stores_gives_back_the_first():
    cluster = Cluster(1)
    a, other = cluster.processes[0], Store(Table(cluster.clock))
    a.another_session().attach(other)
    other.before.clear()
    taking = await a.waiting()
    assert len(cluster.table.slots) == 1
    await drop(taking)

    assert (a.counts, cluster.table.slots) == ((0, 0), {})


async def test_cancelled_loser_leaves_the_queue():
    cluster = Cluster(1)
    early, (late,), winner = await lost_race(cluster, SUBMISSION, SUBMISSION)
    await drop(early)
    winner.give_back()
    await cluster.pass_time(1.0)

    late.result().give_back()
    assert (cluster.processes[0].counts, cluster.table.slots) == ((0, 0), {})


@pytest.mark.parametrize("error", [OSError("disk full"), TimeoutError("locked")])
async def test_error_of_a_store_is_raised_and_leaks_no_slot(error):
    cluster = Cluster(1)
    a, other = cluster.processes[0], Store(Table(cluster.clock))
    a.another_session().attach(other)
    other.error = error
    with pytest.raises(type(error)) as raised:
        await a.acquire()

    assert raised.value is error
    assert (a.counts, cluster.table.slots) == ((0, 0), {})


async def test_store_detached_meanwhile_fails_no_request():
    """One session's store may be closed while another session's request takes a slot in it."""
    cluster = Cluster(1)
    a, store = cluster.processes[0], cluster.processes[0].store
    store.before.clear()
    taking = asyncio.ensure_future(a.another_session().acquire(SUBMISSION))
    await run_ready()
    a.session.detach()
    store.error = RuntimeError("closed")
    store.before.set()

    assert not (await taking).shared


@pytest.mark.parametrize("times", [1, 2])
async def test_stop_ends_a_request_that_takes_its_slot(times):
    """`stop` does not wait for the store, and requests of other sessions continue."""
    cluster = Cluster(5)
    a, store = cluster.processes[0], cluster.processes[0].store
    store.after.clear()
    mine = await a.waiting()
    other = asyncio.ensure_future(a.another_session().acquire(SUBMISSION))
    await run_ready()
    for _ in range(times):
        await a.session.stop(SessionClosedError("closed"))
        await asyncio.sleep(0)  # the second `stop` comes while the request is ending
    await run_ready()
    with pytest.raises(SessionClosedError):
        mine.result()
    assert (a.rate_limiter.used, len(cluster.table.slots)) == (1, 1)
    store.after.set()
    await run_ready()

    other.result().give_back()
    assert (a.counts, cluster.table.slots) == ((0, 0), {})


async def test_stop_ends_a_granted_request_before_the_store_is_asked():
    """Otherwise the store could refuse it, and it would wait for ever."""
    cluster = Cluster(1)
    a = cluster.processes[0]
    slot = await a.acquire()
    mine = await a.waiting()
    slot.give_back()
    await a.session.stop(SessionClosedError("closed"))
    await run_ready()

    with pytest.raises(SessionClosedError):
        mine.result()
    assert (a.counts, cluster.table.slots) == ((0, 0), {})


@pytest.mark.parametrize("full", [True, False])
async def test_stop_during_the_answer_of_the_store_ends_the_request(full):
    """The request does not wait again, and gives back the slot if it got one."""
    cluster = Cluster(1)
    a, store = cluster.processes[0], cluster.processes[0].store

    async def take(*_):
        await a.session.stop(SessionClosedError("closed"))
        if full:
            return None, ExternalUsage(submissions_in_flight=1)
        slot_id = object()
        cluster.table.slots[slot_id] = (store, SUBMISSION, None)
        return slot_id, ExternalUsage()

    store.take = take
    with pytest.raises(SessionClosedError):
        await a.acquire()

    store.shown = ExternalUsage()
    await cluster.pass_time(LENGTH)
    assert (a.rate_limiter.waiting, cluster.table.slots) == (0, {})


# --- reading the usage ----------------------------------------------------------------------------


async def test_usage_is_read_every_twentieth_of_a_window_while_a_request_waits():
    """Other processes return slots without a notification; without a waiter nothing is read."""
    cluster = Cluster(1)
    a, b = cluster.processes
    await b.acquire()
    await cluster.pass_time(30)
    assert a.store.calls == ["read"]
    waiting = await a.waiting()
    a.store.calls.clear()
    for _ in range(8):
        await cluster.pass_time(0.25)

    assert a.store.calls == ["read"] * 2
    await drop(waiting)


async def test_slow_store_is_not_read_more_often():
    cluster = Cluster(1)
    a, b = cluster.processes
    await b.acquire()
    waiting = await a.waiting()
    await cluster.pass_time(1.0)
    a.store.holding_back = True
    a.store.calls.clear()
    for _ in range(8):
        await cluster.pass_time(0.25)

    assert a.store.calls == ["read"] * 2
    await drop(waiting)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_timer_reads_the_usage(run):
    """The timer runs even if no slot in use has a known end, also on uvloop."""

    async def main():
        store = Store(Table(Clock()))
        store.shown = ExternalUsage(submissions_in_flight=1)
        store.full = True
        session = session_limiter("readings", RateLimiter(1, 0.4))
        session.attach(store)
        waiting = asyncio.ensure_future(session.acquire(SUBMISSION))
        await run_ready()
        store.full, store.shown = False, ExternalUsage()

        (await asyncio.wait_for(waiting, 5)).give_back()
        session.leave()

    run(main())


def test_slow_store_does_not_keep_the_loop_busy():
    """Also when slots become free while the only request takes its slot in the store."""
    loop, calls = FakeLoop(), 0
    store = Store(Table(loop))

    def clock():
        nonlocal calls
        calls += 1
        return loop.now

    async def main():
        nonlocal calls
        session = session_limiter("busy", RateLimiter(5, LENGTH), clock)
        session.attach(store)
        (await session.acquire(SUBMISSION)).on_response()
        store.before.clear()
        taking = asyncio.ensure_future(session.acquire(SUBMISSION))
        await run_ready()
        loop.now += LENGTH + 1
        await run_ready()
        calls = 0
        for _ in range(100):
            await asyncio.sleep(0)
        await drop(taking)
        session.leave()

    loop.run_until_complete(main())
    loop.close()

    assert calls < 20


async def test_reading_in_another_thread_wakes_the_waiter():
    cluster = Cluster(1)
    a, b = cluster.processes
    winner = await b.acquire()
    waiting = await a.waiting()
    a.store.holding_back = True
    await cluster.pass_time(1.0)
    winner.give_back()
    thread = threading.Thread(target=a.store.on_usage, args=(ExternalUsage(),))
    thread.start()

    assert await asyncio.wait_for(waiting, 5)
    thread.join()


async def test_late_reading_does_not_undo_a_newer_one():
    cluster = Cluster(2)
    a, b = cluster.processes
    a.session.detach()
    a.store.holding_back = True
    a.session.attach(a.store)
    await b.acquire()
    await a.acquire()
    a.store.on_usage(ExternalUsage())

    assert a.rate_limiter.used == 2


async def test_store_is_never_called_under_the_lock():
    """A store may have its own lock, and two threads could then wait for each other."""
    cluster = Cluster(1)
    a, store = cluster.processes[0], cluster.processes[0].store
    free = []

    def watched(method):
        def call(*args):
            def probe():
                # `waiting` needs the lock.
                free.append(a.rate_limiter.waiting >= 0)

            thread = threading.Thread(target=probe, daemon=True)
            thread.start()
            thread.join(1)
            free.append(not thread.is_alive())
            return method(*args)

        return call

    store.settle, store.fetch_usage = watched(store.settle), watched(store.fetch_usage)
    a.another_session().attach(store)
    for end in ("on_response", "give_back"):
        getattr(await a.acquire(), end)()
        await cluster.pass_time(LENGTH + 1)
    (await a.acquire()).on_429(0.0, POLICY)
    waiting = await a.waiting()
    await cluster.pass_time(2.0)
    await drop(waiting)
    taking = await a.waiting()
    await drop(taking)
    await cluster.pass_time(LENGTH)
    other = Store(Table(cluster.clock))
    other.full = True
    second = a.another_session()
    second.attach(other)
    waiting = await a.waiting()
    await drop(waiting)
    second.detach()
    assert len(free) >= 12

    assert all(free)


@pytest.mark.parametrize("which", [0, 1])
async def test_polls_go_on_in_time_through_the_bursts_of_two_processes(which):
    """The process that polls for both of them polls about every stale_after seconds."""
    cluster = Cluster(20)
    stale_after, step = 5.0, 0.25
    polls, due, poll, poller = [], 0.0, None, cluster.processes[which]
    for process in cluster.processes:
        process.session.reserve_polls(stale_after)
    submissions = []
    for process in cluster.processes:
        submissions += [await process.waiting() for _ in range(100)]
    sent = 0
    for _ in range(int(6 * LENGTH / step)):
        for slot in [task for task in submissions if task.done()]:
            submissions.remove(slot)
            slot.result().on_response()
            sent += 1
        if poll is not None and poll.done():
            poll.result().on_response()
            poll = None
            polls.append(cluster.clock.now)
            due = cluster.clock.now + poller.session.poll_delay(0.5, stale_after)
        if poll is None and cluster.clock.now >= due:
            poll = await poller.waiting(POLL)
        await cluster.pass_time(step)
    await drop(*submissions, *filter(None, [poll]))

    # In the first window the processes do not know each other, so a poll may get no slot.
    second_window = 1000.0 + LENGTH
    later_polls = [at for at in polls if at >= second_window]
    assert max(b - a for a, b in pairwise(later_polls)) <= stale_after + 2 * step
    assert sent >= 6 * 15


# --- random interleavings ---------------------------------------------------------------------------


STEPS = st.one_of(
    st.tuples(st.just("ask"), st.sampled_from([SUBMISSION, POLL]), st.integers(0, 3)),
    st.tuples(st.just("ask"), st.sampled_from([SUBMISSION, POLL]), st.integers(0, 3)),
    st.tuples(st.just("end"), st.sampled_from(["on_response", "on_lost", "give_back"]), st.integers(0, 20)),
    st.tuples(st.just("end"), st.just("on_response"), st.integers(0, 20)),
    st.tuples(st.just("cancel"), st.none(), st.integers(0, 20)),
    st.tuples(st.just("steps"), st.none(), st.integers(1, 4)),
    st.tuples(st.just("time"), st.none(), st.sampled_from([0.5, 3.0, 9.0, LENGTH])),
)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), STEPS, st.sampled_from([0.0, 0.5, 1.0])), max_size=60),
    st.integers(1, 4),
    st.lists(st.sampled_from([None, 2.0, LENGTH]), min_size=1, max_size=3),
)
def test_server_never_counts_more_than_the_limit_of_all_processes(steps, limit, reserves):
    """P2: in every interleaving no slot leaks, and every request gets a slot eventually."""
    asyncio.run(run_interleaving(steps, limit, reserves))


class Interleaving:
    """Requests of up to three processes, and the times at which the server counted them."""

    def __init__(self, limit, reserves):
        self.cluster = Cluster(limit, processes=len(reserves))
        for process, stale_after in zip(self.cluster.processes, reserves, strict=True):
            if stale_after is not None:
                process.session.reserve_polls(stale_after)
        self.asking, self.holding, self.counted = [], [], []

    async def request(self, process, priority):
        slot = await process.acquire(priority)
        self.holding.append((slot, self.cluster.clock.now))

    def ask(self, which, priority, steps):
        process = self.cluster.processes[which]
        process.store.steps = steps
        self.asking.append(asyncio.ensure_future(self.request(process, priority)))

    def end(self, how, number, fraction):
        if not self.holding:
            return
        slot, granted = self.holding.pop(number % len(self.holding))
        grace = (3.0,) if how == "on_lost" else ()
        getattr(slot, how)(*grace)
        if how != "give_back":
            last = self.cluster.clock.now + sum(grace)
            self.counted.append(granted + (last - granted) * fraction)

    async def step(self, which, step, what, number, fraction):
        if step == "ask":
            self.ask(which % len(self.cluster.processes), what, number)
        elif step == "end":
            self.end(what, number, fraction)
        elif step == "cancel" and self.asking:
            self.asking.pop(number % len(self.asking)).cancel()
        elif step == "steps":
            for _ in range(number):
                await asyncio.sleep(0)
        elif step == "time":
            await self.cluster.pass_time(number)

    async def answer_all(self):
        for _ in range(25 * (len(self.asking) + 3)):
            while self.holding:
                self.end("on_response", 0, 0.5)
            self.asking = [task for task in self.asking if not task.done()]
            await self.cluster.pass_time(1.0)


async def run_interleaving(steps, limit, reserves):
    run = Interleaving(limit, reserves)
    cluster = run.cluster
    for which, (step, what, number), fraction in steps:
        await run.step(which, step, what, number, fraction)
    await run.answer_all()
    assert run.asking == run.holding == []
    counted = sorted(run.counted)
    assert all(b - a >= LENGTH for a, b in zip(counted, counted[limit:], strict=False))
    await cluster.pass_time(LENGTH + 3)
    assert cluster.table.taken() == 0
    for process in cluster.processes:
        process.session.detach()  # also forgets the usage of the last read
        assert process.counts == (0, 0)
