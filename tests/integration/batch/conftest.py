"""Fixtures of the batch tests."""

import pytest

from qamera_async.sandbox import Sandbox


@pytest.fixture
async def sandbox():
    """Yield a sandbox without a rate limit and with a million credits, whose jobs take 50 ms."""
    async with Sandbox(job_seconds=0.05, quota=None, credits=1_000_000) as sandbox:
        yield sandbox


@pytest.fixture
def new_session(sandbox, quick, path):
    """Return a function that makes a session with a ledger; each call is another run of a program."""
    return lambda **options: sandbox.session(**quick | {"ledger": path} | options)
