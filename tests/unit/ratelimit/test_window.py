"""The arithmetic of the rate limit: the exact window, slots kept for polls, the cooldown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from limiters import POLICY, POLL, SUBMISSION

from qamera_async import RetryPolicy
from qamera_async._ratelimit import ExternalUsage
from qamera_async._ratelimit.window import Cooldown, Window

LENGTH = 20.0  # seconds


@given(
    st.lists(
        st.tuples(
            st.sampled_from([SUBMISSION, POLL]),
            # Multiples of an eighth, so that sums of floats are exact.
            st.sampled_from([0.0, 0.5, 2.375, 4.75]),  # pause before the request
            st.sampled_from([0.0, 1.0, 8.0]),  # time from the grant to the response
            st.sampled_from([0.0, 0.5, 1.0]),  # fraction of that time at which the server counted it
        ),
        max_size=60,
    ),
    st.integers(1, 3),
    st.sampled_from([0, 1.0, 2.5]),
)
def test_server_never_counts_more_than_limit(requests, limit, stale_after):
    """P2: the server may count a request at any time between its grant and its response."""
    length = 5.0
    window = Window(limit, length)
    if stale_after:
        window.reserve("session", stale_after)
    now, responses, counted = 0.0, [], []
    for priority, pause, takes, at in requests:
        now += pause
        for response in sorted(responses, key=lambda r: r[0]):
            if response[0] <= now:
                responses.remove(response)
                window.settle(response[1], response[0])
        if window.free(now) > 0 and (priority is POLL or window.may_submit(now)):
            window.take(priority, now)
            responses.append((now + takes, priority))
            counted.append(now + takes * at)
    counted.sort()

    assert all(later - earlier >= length for earlier, later in zip(counted, counted[limit:], strict=False))
    assert window.free(now) >= 0


def test_next_free_time_of_a_submission_is_known_without_polls():
    """While no session polls, the reserve for polls shrinks at known times."""
    window = Window(60, 6.0)
    window.reserve("session", 1.5)
    for _ in range(10):
        window.take(POLL, 0.0)
        window.settle(POLL, 0.0)
    granted = 0
    while window.free(3.0) and window.may_submit(3.0):
        window.take(SUBMISSION, 3.0)
        window.settle(SUBMISSION, 3.0)
        granted += 1
    now = 3.0
    while not window.may_submit(now):
        assert window.next_submission(now) > now
        now = window.next_submission(now)

    assert granted >= 44
    assert now < window.next_free


# --- slots of other processes ---------------------------------------------------------------------


def test_external_slots_are_counted_until_they_expire():
    """The used and free slots and the next free time include them. A new reading replaces the old one."""
    window = Window(10, LENGTH)
    window.set_external([ExternalUsage((5.0,), (3.0, 9.0), 1, 2), ExternalUsage((4.0,))])
    assert (window.free(0.0), window.next_free, window.in_flight) == (3, 3.0, 0)
    assert (window.free(4.0), window.next_free) == (5, 5.0)
    window.set_external([])

    assert window.free(4.0) == 10


@pytest.mark.parametrize(("external", "reserved"), [(2.2, 3), (4.2, 5)])
def test_larger_reserve_counts(external, reserved):
    """Processes share one poll, so the larger reserve is enough. It is at most half of the limit."""
    window = Window(20, LENGTH)
    window.reserve("session", LENGTH / 2.5)
    window.set_external([ExternalUsage(reserve=external), ExternalUsage(reserve=1.0)])
    granted = 0
    while window.may_submit(0.0):
        window.take(SUBMISSION, 0.0)
        granted += 1
    assert granted == 20 - reserved
    assert window.own_reserve == 2.5
    window.set_external([ExternalUsage(reserve=99.0)])
    while window.in_flight > 10:
        window.settle(SUBMISSION, None)

    assert not window.may_submit(0.0)


def test_external_submissions_do_not_use_up_the_reserve_for_polls():
    window = Window(4, LENGTH)
    window.reserve("session", LENGTH)
    window.set_external([ExternalUsage(submissions_in_flight=1, submissions=(1.0, 2.0))])

    assert not window.may_submit(0.0)


def test_only_an_answered_external_poll_uses_up_the_reserve():
    """Otherwise a process without polls could wait for ever while another process polls without a pause."""
    window = Window(2, LENGTH)
    window.set_external([ExternalUsage(polls=(15.0,), reserve=1.0)])
    assert window.may_submit(0.0)
    window.set_external([ExternalUsage(polls=(25.0,), reserve=1.0)])  # lost, so it counts for longer
    assert not window.may_submit(0.0)
    window.set_external([ExternalUsage(polls_in_flight=1, reserve=1.0)])
    assert not window.may_submit(0.0)
    window.set_external([ExternalUsage(submissions=(15.0,), reserve=1.0)])
    assert not window.may_submit(0.0)

    assert window.next_submission(0.0) == 15.0


# --- cooldown -------------------------------------------------------------------------------------


def test_cooldowns_double_up_to_max_delay():
    """The cooldowns are 1, 2, 4, ... seconds, with jitter of at most half a second."""
    cooldown, now, pauses = Cooldown(60.0), 0.0, []
    for _ in range(10):
        cooldown.on_429(now, now, None, POLICY)
        pauses.append(cooldown.until - now)
        now = cooldown.until

    for number, pause in enumerate(pauses[:6]):
        assert 2.0**number <= pause <= 2.0**number + 0.5
    assert max(pauses) == pytest.approx(60.0)


def test_retry_after_is_bounded_by_max_delay():
    cooldown = Cooldown(60.0)
    cooldown.on_429(0.0, 0.0, 1e9, RetryPolicy(max_delay=2.0))

    assert cooldown.until == 2.0


def test_repeated_retry_after_of_zero_waits_base():
    """The first 429 may ask for no pause; from the second 429 on there is a pause."""
    cooldown = Cooldown(60.0)
    cooldown.on_429(0.0, 0.0, 0.0, POLICY)
    assert cooldown.until == 0.0
    pauses, now = [], 0.0
    for _ in range(5):
        cooldown.on_429(now, now, 0.0, POLICY)
        pauses.append(cooldown.until - now)
        now = cooldown.until
    cooldown.on_success(now)
    cooldown.on_429(now, now, 0.0, POLICY)

    assert pauses == [1.0] * 5
    assert cooldown.until == now


def test_exhausted_after_five_windows_of_429():
    """Retry-After does not change the number of windows, and a success ends the run."""
    cooldown, now = Cooldown(10.0), 100.0
    while not cooldown.exhausted():
        cooldown.on_429(now, now, 2.0, POLICY)
        last, now = now, cooldown.until
    assert last == 150.0
    assert cooldown.until > last  # the cooldowns continue
    cooldown.on_success(now)

    assert not cooldown.exhausted()


def test_run_of_429_ends_after_a_window_without_requests():
    cooldown = Cooldown(10.0)
    for now in (0.0, 60.0):
        cooldown.on_429(now, now, 2.0, POLICY)

    assert not cooldown.exhausted()


def test_late_429_of_an_earlier_request_does_not_lengthen_the_cooldown():
    cooldown = Cooldown(60.0)
    for _ in range(10):
        cooldown.on_429(0.0, 0.1, None, POLICY)

    assert cooldown.until <= 1.6
