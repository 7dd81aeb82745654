"""The rate limiter: the exact window, two priorities, the cooldown, and cancellation without leaks."""

import asyncio
import gc
import threading
import time

import pytest
import uvloop
from limiters import POLICY, POLL, SUBMISSION, Clock, Limited, drop, run_ready

from qamera_async import ConfigurationError, RateLimiter, SessionClosedError
from qamera_async._ratelimit import session_limiter

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")


@pytest.mark.parametrize(
    "options",
    [
        {"limit": 0},
        {"limit": 1.5},
        {"limit": True},
        {"window": 0},
        {"window": "6"},
        {"window": float("nan")},
        {"window": float("inf")},
        {"window": 10**400},
        {"window": True},
    ],
)
def test_invalid_numbers_are_refused(options):
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        RateLimiter(**options)


def test_public_attributes_are_the_documented_ones():
    public = {name for name in dir(RateLimiter) if not name.startswith("_")}

    assert public == {"limit", "window", "used", "waiting", "cooldown"}


# --- the window -----------------------------------------------------------------------------------


async def test_slot_is_free_one_window_after_its_response():
    """P2: the server may count a request as late as it sends the response."""
    limited = Limited(limit=1)
    slot = await limited.acquire()
    limited.clock.now += 30
    slot.on_response()
    waiting = await limited.waiting()
    await limited.pass_time(59.9)
    assert not waiting.done()
    await limited.pass_time(0.2)

    assert waiting.done()


async def test_lost_request_keeps_its_slot_for_the_grace():
    """P2: the slot is kept for a window and the grace, since the server may still receive the request."""
    limited = Limited(limit=1)
    (await limited.acquire()).on_lost(10.0)
    limited.clock.now += 69
    assert limited.rate_limiter.used == 1
    limited.clock.now += 2

    assert limited.rate_limiter.used == 0


@pytest.mark.parametrize("settle", [lambda slot: slot.on_response(), lambda slot: slot.on_lost(10.0)])
async def test_suspended_process_keeps_its_slots_in_flight(settle):
    """P2: a request that is sent after a suspension of an hour counts for one window from then on."""
    limited = Limited(limit=2)
    slot = await limited.acquire()
    await limited.pass_time(3600)
    assert limited.counts == (1, 0)
    other = await limited.acquire()
    waiting = await limited.waiting()
    settle(slot)
    await limited.pass_time(59)

    assert not waiting.done()
    other.give_back()
    await drop(waiting)


async def test_unsent_request_gives_its_slot_back():
    """Settling the slot again changes nothing."""
    limited = Limited()
    slot = await limited.acquire(POLL)
    slot.give_back()
    slot.on_response()
    slot.on_429(5.0, POLICY)

    assert limited.counts == (0, 0)
    assert limited.session.cooldown == 0


# --- priorities and polls -------------------------------------------------------------------------


async def test_submissions_go_first():
    limited = Limited(limit=2)
    first = [await limited.acquire() for _ in range(2)]
    poll = await limited.waiting(POLL)
    submission = await limited.waiting()
    first[0].give_back()
    await run_ready()

    assert submission.done()
    assert not poll.done()
    await drop(poll)


async def test_burst_of_submissions_leaves_slots_for_polls():
    """If stale_after is a quarter of the window, four of sixty slots are left."""
    limited = Limited()
    limited.session.reserve_polls(15.0)
    limited.session.reserve_polls(15.0)
    waiting = [asyncio.ensure_future(limited.acquire()) for _ in range(100)]
    await run_ready()

    assert sum(task.done() for task in waiting) == 56
    for _ in range(4):
        await asyncio.wait_for(limited.acquire(POLL), 1)
    assert limited.rate_limiter.used == 60
    await drop(*waiting)
    assert limited.rate_limiter.waiting == 0


async def test_reserves_add_up_to_half_the_limit_at_most():
    """Submissions keep half of the slots, whatever the number of sessions."""
    limited = Limited()
    sessions = [limited.another_session() for _ in range(20)]
    for session in sessions:
        session.reserve_polls(15.0)
    waiting = [asyncio.ensure_future(limited.acquire()) for _ in range(60)]
    await run_ready()

    assert sum(task.done() for task in waiting) == 30
    for session in sessions:
        session.leave()
    await run_ready()
    assert sum(task.done() for task in waiting) == 60


async def test_burst_after_steady_polls_does_not_stop_them():
    """The reserve is for the polls to come, so earlier polls do not use it up."""
    limited = Limited()
    limited.session.reserve_polls(15.0)
    for _ in range(20):
        (await limited.acquire(POLL)).on_response()
        limited.clock.now += 1.0
    waiting = [asyncio.ensure_future(limited.acquire()) for _ in range(100)]
    for _ in range(4):
        await limited.pass_time(15.0)
        poll = await limited.waiting(POLL)
        assert poll.done()
        poll.result().on_response()
    await drop(*waiting)


async def test_polls_spread_over_the_slots_left():
    """The delay is the interval if enough slots are free, else longer."""
    limited = Limited()
    assert limited.session.poll_delay(3.0, 15.0) == 3.0
    for _ in range(56):
        (await limited.acquire()).on_response()

    assert limited.session.poll_delay(3.0, 20.0) == pytest.approx(15.0)
    assert limited.session.poll_delay(3.0, 12.0) == 12.0


async def test_poll_delay_is_stale_after_while_submissions_wait():
    limited = Limited(limit=1)
    await limited.acquire()
    waiting = await limited.waiting()

    assert limited.session.poll_delay(3.0, 15.0) == 15.0
    await drop(waiting)


# --- waiting --------------------------------------------------------------------------------------


async def test_on_wait_gets_a_lower_bound_of_the_wait():
    limited = Limited(limit=1)
    waits = []
    (await limited.acquire(on_wait=waits.append)).on_response()
    limited.clock.now += 20
    waiting = await limited.waiting(on_wait=waits.append)
    behind = await limited.waiting(on_wait=waits.append)

    assert waits == [40.0, 40.0]
    await drop(waiting, behind)


async def test_cancelled_waiter_leaks_no_slot():
    """It is cancelled while it waits, or when it has just been granted its slot."""
    limited = Limited(limit=1)
    slot = await limited.acquire()
    waiting, behind = await limited.waiting(), await limited.waiting()
    slot.give_back()
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    (await behind).give_back()

    assert limited.counts == (0, 0)


async def test_stop_ends_waiters_and_later_calls():
    """Each waiter gets its own exception, other sessions continue, and no slot is lost."""
    limited = Limited(limit=1)
    slot = await limited.acquire()
    granted, waiting = await limited.waiting(), await limited.waiting(POLL)
    other = asyncio.ensure_future(limited.another_session().acquire(SUBMISSION))
    await run_ready()
    error = SessionClosedError("closed")
    slot.give_back()  # this grants the slot to the first waiter
    await limited.session.stop(error)
    await limited.session.stop(error)
    await run_ready()
    raised = [task.exception() for task in (granted, waiting)]
    with pytest.raises(SessionClosedError):
        await limited.acquire()

    assert [type(one) for one in raised] == [SessionClosedError] * 2
    assert len({id(one) for one in [error, *raised]}) == 3
    (await asyncio.wait_for(other, 1)).give_back()
    assert limited.counts == (0, 0)


async def test_waiter_of_a_closed_loop_takes_no_slot():
    limited = Limited(limit=1)
    slot = await limited.acquire()
    loop = asyncio.new_event_loop()

    async def wait():
        await limited.another_session().acquire(SUBMISSION)

    task = loop.create_task(wait())
    loop.call_soon(loop.stop)
    await asyncio.to_thread(loop.run_forever)
    loop.close()
    task._log_destroy_pending = False
    assert limited.rate_limiter.waiting == 1
    behind = await limited.waiting()
    slot.give_back()

    (await asyncio.wait_for(behind, 5)).give_back()
    assert limited.counts == (0, 0)
    del task, loop
    gc.collect()  # ends the request that never got its slot
    assert limited.counts == (0, 0)


async def test_slot_granted_in_a_closed_loop_is_given_back():
    """The loop is closed after the grant, and the garbage collector ends the waiter."""
    limited = Limited(limit=1)
    slot = await limited.acquire()
    loop = asyncio.new_event_loop()
    task = loop.create_task(limited.another_session().acquire(SUBMISSION))
    loop.call_soon(loop.stop)
    await asyncio.to_thread(loop.run_forever)
    slot.give_back()
    behind = await limited.waiting()
    assert not behind.done()
    loop.close()
    task._log_destroy_pending = False
    del task, loop
    gc.collect()

    (await asyncio.wait_for(behind, 5)).give_back()
    assert limited.counts == (0, 0)


async def test_slot_freed_in_another_thread_wakes_the_waiter():
    limited = Limited(limit=1)
    slot = await limited.acquire()
    waiting = await limited.waiting()
    thread = threading.Thread(target=slot.give_back)
    thread.start()

    assert await asyncio.wait_for(waiting, 5)
    thread.join()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_timers_wake_waiters_in_several_loops(run):
    """The timer handles of uvloop have no public due time."""

    def one_loop():
        async def acquire_all():
            session = session_limiter("timers", RateLimiter(3, 0.2))
            for _ in range(4):
                (await asyncio.wait_for(session.acquire(SUBMISSION), 30)).on_response()
                await asyncio.sleep(0)
            session.leave()

        run(acquire_all())

    threads = [threading.Thread(target=one_loop) for _ in range(3)]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    # Twelve requests, three in a window: the last ones begin after three windows.
    assert time.monotonic() - begun >= 0.6


@pytest.mark.parametrize("end", ["cancel", "stop"])
async def test_many_waiters_cost_little_each(end):
    """The time grows linearly with the number of waiters, not quadratically."""
    # CPU time is measured, because the wall-clock time depends on the load of the machine.
    seconds = {}
    for number in (1_000, 10_000):
        limited = Limited(limit=60)
        limited.session.reserve_polls(15.0)
        begun = time.thread_time()
        tasks = [asyncio.ensure_future(limited.acquire()) for _ in range(number)]
        await run_ready()
        assert limited.rate_limiter.waiting == number - 56
        if end == "stop":
            await limited.session.stop(SessionClosedError("closed"))
        else:
            for task in tasks:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        seconds[number] = time.thread_time() - begun
        assert limited.rate_limiter.waiting == 0

    assert seconds[10_000] < 90 * seconds[1_000]  # a hundred times would be quadratic


# --- cooldown -------------------------------------------------------------------------------------


async def test_429_stops_all_requests_until_one_probe_succeeds():
    limited = Limited()
    (await limited.acquire()).on_429(5.0, POLICY)
    waiting = [await limited.waiting() for _ in range(3)]
    assert limited.session.cooldown == limited.rate_limiter.cooldown == 5.0
    assert not any(task.done() for task in waiting)
    await limited.pass_time(5.1)
    assert [task.done() for task in waiting] == [True, False, False]
    waiting[0].result().on_response()
    await run_ready()

    assert all(task.done() for task in waiting)


async def test_requests_in_flight_that_all_get_a_429_begin_one_cooldown():
    limited = Limited()
    slots = [await limited.acquire() for _ in range(10)]
    limited.clock.now += 0.1
    for slot in slots:
        slot.on_429(None, POLICY)

    assert limited.session.cooldown <= 1.5


async def test_server_that_always_sends_retry_after_zero_gets_few_requests():
    """The first retry is immediate. Later retries are RetryPolicy.base seconds apart."""
    limited, sent = Limited(), 0
    for _ in range(40):
        task = await limited.waiting()
        if task.done():
            sent += 1
            task.result().on_429(0.0, POLICY)
        else:
            await drop(task)
        await limited.pass_time(0.25)

    assert sent <= 12


async def test_exhausted_after_an_unbroken_run_of_429():
    limited = Limited(window=10.0)
    begun = limited.clock.now
    exhausted = False
    while not exhausted:
        slot = await limited.acquire()
        slot.on_429(2.0, POLICY)
        exhausted = slot.exhausted
        limited.clock.now += 2.0
    assert limited.clock.now - begun >= 50
    slot = await limited.acquire()
    slot.on_response()

    assert not slot.exhausted


async def test_refusals_of_one_kind_exhaust_it_although_others_succeed():
    limited = Limited(window=10.0)
    begun = limited.clock.now
    exhausted = False
    while not exhausted:
        slot = await limited.acquire(kind="register")
        slot.on_429(2.0, POLICY)
        exhausted = slot.exhausted
        limited.clock.now += 2.0
        other = await limited.acquire(kind="videos")
        other.on_response()
        assert not other.exhausted

    assert limited.clock.now - begun >= 50


async def test_success_of_a_kind_ends_its_refusals():
    limited = Limited(window=10.0)
    for number in range(100):
        slot = await limited.acquire(kind="register")
        if number % 20 == 19:
            slot.on_response()
        else:
            slot.on_429(2.0, POLICY)
        assert not slot.exhausted
        limited.clock.now += 2.0


async def test_polls_and_submissions_probe_in_turn():
    """A submission that is refused each time doesn't stop the polls."""
    limited = Limited()
    submission, poll = await limited.waiting(), await limited.waiting(POLL)
    submission.result().on_429(1.0, POLICY)
    poll.result().on_429(1.0, POLICY)
    served = []
    submission, poll = await limited.waiting(), await limited.waiting(POLL)
    for _ in range(6):
        await limited.pass_time(1.1)
        priority = POLL if poll.done() else SUBMISSION
        served.append(priority)
        if priority is POLL:
            poll.result().on_429(1.0, POLICY)
            poll = await limited.waiting(POLL)
        else:
            submission.result().on_429(1.0, POLICY)
            submission = await limited.waiting()
    await drop(submission, poll)

    assert served == [SUBMISSION, POLL] * 3


# --- which sessions share a rate limiter ----------------------------------------------------------


async def test_sessions_of_one_key_and_origin_share():
    one = session_limiter("shared", None)
    two = session_limiter("shared", None)
    other = session_limiter("shared other", None)
    await one.acquire(POLL)

    assert two.rate_limiter.used == one.rate_limiter.used == 1
    assert other.rate_limiter.used == 0
    for session in (one, two, other):
        session.leave()


async def test_equal_rate_limiters_share_their_state():
    """The second RateLimiter object shows the shared state."""
    first, second = RateLimiter(30, 60.0), RateLimiter(30, 60)
    one = session_limiter("equal", first)
    two = session_limiter("equal", second)
    slot = await two.acquire(POLL)

    assert two.rate_limiter is second
    assert first.used == second.used == one.rate_limiter.used == 1
    slot.give_back()
    assert first.used == second.used == 0
    one.leave()
    two.leave()


def test_different_numbers_are_refused_while_a_session_is_open():
    session = session_limiter("open", RateLimiter(30, 60.0))
    with pytest.raises(ConfigurationError, match="rate_limiter"):
        session_limiter("open", RateLimiter(31, 60.0))
    session.leave()
    session.leave()

    session_limiter("open", RateLimiter(31, 60.0)).leave()


async def test_one_rate_limiter_may_serve_several_keys():
    """Each key has a window of its own; the rate limiter shows the sums and the longest cooldown."""
    limiter = RateLimiter(2, 60.0)
    one = session_limiter("several", limiter)
    two = session_limiter("several other", limiter)
    slots = [await session.acquire(POLL) for session in (one, one, two, two)]
    waiting = [asyncio.ensure_future(session.acquire(POLL)) for session in (one, two)]
    await run_ready()
    assert (limiter.used, limiter.waiting) == (4, 2)
    slots[0].on_429(10.0, POLICY)
    slots[2].on_429(20.0, POLICY)
    await drop(*waiting)

    assert 19 < limiter.cooldown <= 20
    assert one.cooldown <= 10
    for session in (one, two):
        session.leave()


@pytest.mark.parametrize("key", ["a", "b"])
async def test_equal_rate_limiters_of_two_keys_may_be_swapped(key):
    """Passing two with equal numbers is the same as passing one, whichever key each was used for before."""
    first, second = RateLimiter(30, 60.0), RateLimiter(30, 60.0)
    sessions = [session_limiter("swap, a", first), session_limiter("swap, b", second)]
    sessions += [session_limiter(f"swap, {key}", limiter) for limiter in (first, second)]
    slot = await sessions[2].acquire(POLL)

    assert sessions[3].rate_limiter.used == 1
    slot.give_back()
    for session in sessions:
        session.leave()


async def test_keys_of_one_rate_limiter_keep_what_they_sent_under_other_numbers():
    """P2: a new limiter for one of two keys counts what that key sent, and nothing of the other."""
    limiter = RateLimiter(30, 60.0)
    for key, number in (("a", 1), ("b", 2)):
        session = session_limiter(f"two keys, {key}", limiter)
        for _ in range(number):
            (await session.acquire(POLL)).on_response()
        session.leave()
    a, b = session_limiter("two keys, a", RateLimiter(5, 60.0)), session_limiter("two keys, b", None)

    assert (a.rate_limiter.used, b.rate_limiter.used) == (1, 2)
    a.leave()
    b.leave()


async def test_slots_count_for_a_longer_window_under_other_numbers():
    """P2: also a request that was in flight when its session was closed."""
    clock = Clock()
    old = session_limiter("longer", RateLimiter(60, 10.0), clock)
    (await old.acquire(SUBMISSION)).on_response()
    late = await old.acquire(SUBMISSION)
    old.leave()
    new = session_limiter("longer", RateLimiter(50, 60.0), clock)
    late.on_response()
    clock.now += 59
    assert new.rate_limiter.used == 2
    clock.now += 2

    assert new.rate_limiter.used == 0
    new.leave()


async def test_log_is_kept_for_one_window_after_its_sessions():
    clock = Clock()
    old = session_limiter("outlive", RateLimiter(60), clock)
    (await old.acquire(SUBMISSION)).on_response()
    old.leave()
    clock.now += 30
    new = RateLimiter(50)
    session_limiter("outlive", new, clock).leave()

    assert (new.limit, new.used) == (50, 1)
    clock.now += 31
    assert new.used == 0


async def test_cooldown_is_kept_after_its_sessions():
    first = session_limiter("held", RateLimiter(50))
    (await first.acquire(POLL)).on_429(20.0, POLICY)
    first.leave()
    second = session_limiter("held", RateLimiter(40))
    second.leave()

    assert 19 < second.cooldown <= 20


async def test_limiters_that_alternate_count_each_slot_once():
    one, other = RateLimiter(50), RateLimiter(40)
    used = []
    for limiter in (one, other, one, other):
        session = session_limiter("alternate", limiter)
        if not used:
            for _ in range(3):
                (await session.acquire(POLL)).on_response()
        used.append(limiter.used)
        session.leave()

    assert used == [3, 3, 3, 3]


def test_numbers_of_a_closed_session_do_not_bind_later_sessions():
    session_limiter("inherit", RateLimiter(5, 60.0)).leave()
    session = session_limiter("inherit", None)
    session.leave()

    assert session.rate_limiter.limit == 60


async def test_reserve_of_a_garbage_collected_session_is_released():
    """Building the next session releases the slots that it kept for polls."""
    limited, released = Limited(limit=4), []
    limited.session.reserve_polls(30.0)
    limited.session.leave_when_next_session_opens(lambda: released.append("session"))
    assert released == []
    session_limiter("whatever", None).leave()

    assert released == ["session"]
    for _ in range(4):
        assert (await limited.waiting()).done()
