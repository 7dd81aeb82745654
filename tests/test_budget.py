"""The request budget: an exact window, two priorities, nothing leaked."""

import asyncio
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qamera_async import ConfigurationError, RateLimiter, RetryPolicy
from qamera_async._ratelimit.accounts import join
from qamera_async._ratelimit.window import Priority, Window

SUBMISSION, POLL = Priority.SUBMISSION, Priority.POLL
POLICY = RetryPolicy(base=1.0, max_delay=60.0)


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def budget_of(clock, limit=60, window=60.0):
    return RateLimiter(limit, window, clock=clock)


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


async def pass_time(clock, budget, seconds):
    clock.now += seconds
    budget._timers.ring(asyncio.get_running_loop())
    await settle()


@pytest.mark.parametrize(
    "options", [{"limit": 0}, {"limit": 1.5}, {"limit": True}, {"window": 0}, {"window": "6"}]
)
def test_a_bad_quota_fails_where_it_is_made(options):
    """ConfigurationError names the field."""
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        RateLimiter(**options)


async def test_a_slot_is_free_one_window_after_its_answer(clock):
    """P2: not after its request, since the server may count that late."""
    budget = budget_of(clock, limit=1)
    slot = await budget.acquire(SUBMISSION)
    clock.now += 30
    slot.answered()
    waiting = asyncio.ensure_future(budget.acquire(SUBMISSION))
    await pass_time(clock, budget, 59.9)
    assert not waiting.done()
    await pass_time(clock, budget, 0.2)

    assert waiting.done()


async def test_what_was_cut_off_keeps_its_slot_for_longer(clock):
    """P2: a window and the extra time, since the server may still come to read it."""
    budget = budget_of(clock, limit=1)
    (await budget.acquire(SUBMISSION)).cut_off(10.0)
    clock.now += 69
    assert budget.used == 1
    clock.now += 2

    assert budget.used == 0


async def test_what_is_unsent_gives_its_slot_back(clock):
    """A request that never left costs nothing, however often it is settled."""
    budget = budget_of(clock)
    slot = await budget.acquire(POLL)
    slot.unsent()
    slot.answered()

    assert budget.used == 0


async def test_submissions_go_first(clock):
    """Of those who wait, submissions get the next slot."""
    budget = budget_of(clock, limit=2)
    first = [await budget.acquire(SUBMISSION) for _ in range(2)]
    poll = asyncio.ensure_future(budget.acquire(POLL))
    await settle()
    submission = asyncio.ensure_future(budget.acquire(SUBMISSION))
    await settle()
    first[0].unsent()
    await settle()

    assert submission.done()
    assert not poll.done()
    poll.cancel()


async def test_a_burst_leaves_slots_to_the_polls(clock):
    """With stale_after a quarter of the window, four slots of sixty are left."""
    budget = budget_of(clock)
    budget.reserve("session", 15.0)
    waiting = [asyncio.ensure_future(budget.acquire(SUBMISSION)) for _ in range(100)]
    await settle()

    assert sum(w.done() for w in waiting) == 56
    for _ in range(4):
        await asyncio.wait_for(budget.acquire(POLL), 1)
    assert budget.used == 60
    for w in waiting:
        w.cancel()
    await settle()
    assert budget.waiting == 0


async def test_reserves_add_up_to_half_the_limit_at_most(clock):
    """Many sessions can't leave submissions without slots."""
    budget = budget_of(clock)
    for owner in range(20):
        budget.reserve(owner, 15.0)
    waiting = [asyncio.ensure_future(budget.acquire(SUBMISSION)) for _ in range(60)]
    await settle()

    assert sum(w.done() for w in waiting) == 30
    for owner in range(20):
        budget.release(owner)
    await settle()
    assert sum(w.done() for w in waiting) == 60


async def test_a_burst_after_steady_polls_does_not_blind_them(clock):
    """The polls of before don't count as those to come: a poll is due every stale_after seconds."""
    budget = budget_of(clock)
    budget.reserve("session", 15.0)
    for _ in range(20):
        (await budget.acquire(POLL)).answered()
        clock.now += 1.0
    waiting = [asyncio.ensure_future(budget.acquire(SUBMISSION)) for _ in range(100)]
    for _ in range(4):
        await pass_time(clock, budget, 15.0)
        poll = asyncio.ensure_future(budget.acquire(POLL))
        await settle()
        assert poll.done()
        poll.result().answered()
    for w in waiting:
        w.cancel()


async def test_a_cancelled_waiter_leaks_no_slot(clock):
    """Neither while it queues nor in the moment in which it is granted."""
    budget = budget_of(clock, limit=1)
    slot = await budget.acquire(SUBMISSION)
    queued = asyncio.ensure_future(budget.acquire(SUBMISSION))
    await settle()
    slot.unsent()
    queued.cancel()
    await asyncio.wait([queued])

    assert (budget.used, budget.waiting) == (0, 0)
    assert queued.cancelled()


async def test_polls_spread_what_is_left(clock):
    """Interval with slots to spare; else the time to the next free slot over the free ones."""
    budget = budget_of(clock)
    assert budget.pace(3.0, 15.0) == 3.0
    for _ in range(56):
        (await budget.acquire(SUBMISSION)).answered()

    assert budget.pace(3.0, 20.0) == pytest.approx(15.0)
    assert budget.pace(3.0, 12.0) == 12.0


async def test_a_429_holds_everybody_and_then_one_probes(clock):
    """After the hold one request goes; the rest when it is answered."""
    budget = budget_of(clock)
    assert (await budget.acquire(SUBMISSION)).rejected(5.0, POLICY) == 5.0
    waiting = [asyncio.ensure_future(budget.acquire(SUBMISSION)) for _ in range(3)]
    await settle()
    assert budget.cooldown == 5.0
    assert not any(w.done() for w in waiting)
    await pass_time(clock, budget, 5.1)
    assert [w.done() for w in waiting] == [True, False, False]
    waiting[0].result().answered()
    await settle()

    assert all(w.done() for w in waiting)


async def test_holds_grow_are_bounded_and_end(clock):
    """1, 2, 4, ... with half a base of jitter; max_delay at most; None after five windows."""
    budget = budget_of(clock, limit=1000)
    held = []
    while (seconds := (await budget.acquire(SUBMISSION)).rejected(None, POLICY)) is not None:
        held.append(seconds)
        clock.now += seconds + 0.001

    for number, seconds in enumerate(held[:6]):
        assert 2.0**number <= seconds <= 2.0**number + 0.5
    assert max(held) == 60.0
    assert sum(held) >= 300
    assert RetryPolicy(max_delay=2.0).max_delay == (await _one(clock)).rejected(
        1e9, RetryPolicy(max_delay=2.0)
    )


async def _one(clock):
    return await budget_of(clock).acquire(SUBMISSION)


async def test_what_was_sent_before_the_hold_does_not_lengthen_it(clock):
    """Sixty requests under way that all get a 429 are one piece of news."""
    budget = budget_of(clock)
    slots = [await budget.acquire(SUBMISSION) for _ in range(10)]
    clock.now += 0.1
    for slot in slots:
        slot.rejected(None, POLICY)

    assert budget.cooldown <= 1.5


def test_sessions_of_one_key_and_origin_share_a_budget():
    """Another key or origin has its own; a second, different budget is refused while one is held."""
    one, leave_one = join("https://a", "key", None)
    two, leave_two = join("https://a", "key", None)
    other, leave_other = join("https://a", "other", None)
    assert one is two
    assert one is not other
    with pytest.raises(ConfigurationError):
        join("https://a", "key", RateLimiter())
    for leave in (leave_one, leave_two, leave_other):
        leave()


async def test_the_slot_log_outlives_its_sessions(clock):
    """A new budget for the same key and origin knows what the last one still counts."""
    old = budget_of(clock)
    _, leave = join("https://b", "key", old)
    (await old.acquire(SUBMISSION)).answered()
    leave()
    clock.now += 30
    new, leave = join("https://b", "key", budget_of(clock))
    leave()

    assert new is not old
    assert new.used == 1
    clock.now += 31
    assert new.used == 0


async def test_a_slot_freed_in_another_thread_wakes_this_loop():
    """Safe across threads; who waits belongs to its loop."""
    budget = RateLimiter(1, 60.0)
    slot = await budget.acquire(SUBMISSION)
    waiting = asyncio.ensure_future(budget.acquire(SUBMISSION))
    await settle()
    thread = threading.Thread(target=slot.unsent)
    thread.start()

    assert await asyncio.wait_for(waiting, 5)
    thread.join()


@given(
    st.lists(
        st.tuples(
            st.sampled_from([SUBMISSION, POLL]),
            # Eighths, which add up exactly.
            st.sampled_from([0.0, 0.5, 2.375, 4.75]),  # the pause before it
            st.sampled_from([0.0, 1.0, 8.0]),  # from its grant to the answer
            st.sampled_from([0.0, 0.5, 1.0]),  # when, of that time, the server counted it
        ),
        max_size=60,
    ),
    st.integers(1, 3),
    st.sampled_from([0, 1.0, 2.5]),
)
def test_no_window_of_the_server_ever_holds_one_more(requests, limit, stale_after):
    """P2: whenever between its grant and its answer the server counts a request."""
    length = 5.0
    window = Window(limit, length)
    if stale_after:
        window.reserve("session", stale_after)
    now, answers, counted = 0.0, [], []
    for priority, pause, takes, at in requests:
        now += pause
        for answer in sorted(answers, key=lambda a: a[0]):
            if answer[0] <= now:
                answers.remove(answer)
                window.settle(answer[1], answer[0])
        window.expire(now)
        if window.free > 0 and (priority is POLL or window.may_submit(now)):
            window.take(priority, now)
            answers.append((now + takes, priority))
            counted.append(now + takes * at)
    counted.sort()

    assert all(later - earlier >= length for earlier, later in zip(counted, counted[limit:], strict=False))
    assert window.used <= limit
