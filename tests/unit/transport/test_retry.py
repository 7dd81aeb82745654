"""retry and is_transient: what is attempted again, how often, and who is notified."""

import pytest

from qamera_async import RetryPolicy
from qamera_async._transport import is_transient, retry
from qamera_async.errors import (
    ApiError,
    BadRequestError,
    ConnectionFailedError,
    InvalidResponseError,
    RequestTimeoutError,
    ServerError,
    SessionClosedError,
    TransportError,
)
from qamera_async.events import Retrying

AT_ONCE = RetryPolicy(attempts=3, base=0.0)
LOST = TransportError("lost")


def failing(*outcomes):
    left = list(outcomes)

    async def attempt():
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return attempt


async def test_returns_the_first_success_and_emits_each_retry():
    events = []
    result = await retry("list", failing(LOST, LOST, 7), AT_ONCE, events.append, is_transient)

    assert result == 7
    assert events == [Retrying("list", 1, 0.0, LOST), Retrying("list", 2, 0.0, LOST)]


async def test_raises_the_last_error_after_the_last_attempt():
    events = []
    last = TransportError("last")
    with pytest.raises(TransportError) as failed:
        await retry("list", failing(LOST, LOST, last, 7), AT_ONCE, events.append, is_transient)

    assert failed.value is last
    assert len(events) == 2


async def test_error_that_may_not_be_repeated_is_raised_at_once():
    events = []
    with pytest.raises(BadRequestError):
        await retry(
            "list", failing(BadRequestError("no", status=400), 7), AT_ONCE, events.append, is_transient
        )

    assert events == []


@pytest.mark.parametrize("error", [ValueError("bug"), KeyError("bug")])
async def test_other_exceptions_pass(error):
    with pytest.raises(type(error)):
        await retry("list", failing(error, 7), AT_ONCE, [].append, lambda _: True)


async def test_pauses_follow_the_policy():
    events = []
    policy = RetryPolicy(attempts=4, base=0.001, max_delay=0.002)
    await retry("list", failing(LOST, LOST, LOST, 7), policy, events.append, is_transient)

    assert [0.001 <= event.delay <= 0.002 for event in events] == [True] * 3


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (TransportError("x"), True),
        (RequestTimeoutError("x"), True),
        (ConnectionFailedError("x"), True),
        (ConnectionFailedError("x", permanent=True), False),
        (ServerError("x", status=503), True),
        (BadRequestError("x", status=400), False),
        (ApiError("x", status=407), False),
        (InvalidResponseError("x", expected="HTTP"), True),
        (InvalidResponseError("x", expected="a list", status=200), False),
        (SessionClosedError("x"), False),
    ],
)
def test_transient_errors(error, transient):
    assert is_transient(error) is transient
