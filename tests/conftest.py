"""What the tests share: settings that make minutes milliseconds, and a watch over lost exceptions."""

import asyncio

import pytest

from qamera_async import PollPolicy, RetryPolicy, Timeouts

FAST = PollPolicy(interval=0.02, stale_after=0.1, max_interval=0.1)
IMPATIENT = Timeouts(connect=1.0, request=1.0, job=5.0, lookup=0.3, close=1.0)
AT_ONCE = RetryPolicy(attempts=3, base=0.001, max_delay=0.01)


@pytest.fixture
def quick():
    """Settings of a session that doesn't keep a test waiting."""
    return {"polling": FAST, "timeouts": IMPATIENT, "retry": AT_ONCE}


@pytest.fixture
async def no_lost_exceptions():
    """Fail where a task's exception reaches nobody: warnings alone don't show it."""
    lost = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: lost.append(context))
    yield
    await asyncio.sleep(0)
    assert lost == []
