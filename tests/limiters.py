"""Helpers for the tests of the rate limiter: a clock that the test sets, and limiters with this clock."""

import asyncio
from itertools import count

from qamera_async import RateLimiter, RetryPolicy
from qamera_async._ratelimit import Priority, session_limiter

SUBMISSION, POLL = Priority.SUBMISSION, Priority.POLL
POLICY = RetryPolicy(base=1.0, max_delay=60.0)
_numbers = count()


class Clock:
    """A clock that advances only when the test sets it, in seconds."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


async def run_ready():
    """Run the event loop until no task is ready."""
    for _ in range(8):
        await asyncio.sleep(0)


class Limited:
    """The limiter of a session with its own account and a clock that the test sets."""

    def __init__(self, limit=60, window=60.0, clock=None):
        self.clock = clock or Clock()
        self.rate_limiter = RateLimiter(limit, window)
        self.account = f"account {next(_numbers)}"
        self.session = self.another_session()

    def another_session(self):
        """Return the limiter of another session of the same account."""
        return session_limiter(self.account, self.rate_limiter, self.clock)

    async def acquire(self, priority=SUBMISSION, **options):
        """Acquire a slot in the first session."""
        return await self.session.acquire(priority, **options)

    async def waiting(self, priority=SUBMISSION, **options):
        """Start a task that acquires a slot; return it when it is done or waits."""
        task = asyncio.ensure_future(self.session.acquire(priority, **options))
        await run_ready()
        return task

    async def pass_time(self, seconds):
        """Advance the clock, and run the timers that are due."""
        self.clock.now += seconds
        self.session.engine.tick()
        await run_ready()

    @property
    def counts(self):
        """Return the numbers of used slots and waiting requests."""
        return self.rate_limiter.used, self.rate_limiter.waiting


async def drop(*tasks):
    """Cancel tasks and wait for their end."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
