"""Fixtures for tests of code that uses the library: ``qamera_sandbox`` and ``qamera``.

Every pytest run of an environment imports this room, so it imports nothing that costs time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from qamera_async import QameraSession
    from qamera_async.sandbox import Sandbox


def _async_fixture(function: Callable[..., Any]) -> Any:  # noqa: ANN401 - a decorator of fixtures
    try:
        import pytest_asyncio  # noqa: PLC0415 - it may be missing
    except ImportError:

        def missing() -> None:
            pytest.fail("the fixtures of qamera-async need pytest-asyncio")

        return pytest.fixture(name=function.__name__)(missing)
    return pytest_asyncio.fixture(function)


@_async_fixture
async def qamera_sandbox() -> AsyncIterator[Sandbox]:
    """Run the API on loopback, without a quota, with jobs of 50 ms."""
    from qamera_async.sandbox import Sandbox  # noqa: PLC0415 - see above

    async with Sandbox(job_seconds=0.05, quota=None) as sandbox:
        yield sandbox


@_async_fixture
async def qamera(qamera_sandbox: Sandbox) -> AsyncIterator[QameraSession]:
    """Give an open session on ``qamera_sandbox``."""
    from qamera_async import PollPolicy  # noqa: PLC0415 - see above

    polling = PollPolicy(interval=0.02, stale_after=0.1, max_interval=0.1)
    async with qamera_sandbox.session(polling=polling) as session:
        yield session
