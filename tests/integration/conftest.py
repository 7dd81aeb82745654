"""Fixtures of the integration tests."""

import pytest

from qamera_async.sandbox import Sandbox


@pytest.fixture
async def sandbox():
    """Yield a sandbox without a rate limit, whose jobs take 50 ms."""
    async with Sandbox(job_seconds=0.05, quota=None) as sandbox:
        yield sandbox


@pytest.fixture
async def session(sandbox, quick):
    """Yield a session on the sandbox."""
    async with sandbox.session(**quick) as session:
        yield session
