"""Pytest fixtures for code that uses qamera-async: `qamera_sandbox` and `qamera`.

pytest imports this module in every run, so only the fixtures import the package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from qamera_async import QameraSession
    from qamera_async.sandbox import Sandbox


def _async_fixture(function: Callable[..., Any]) -> Any:  # noqa: ANN401 - the types of pytest-asyncio
    try:
        import pytest_asyncio  # noqa: PLC0415 - optional
    except ImportError:

        def missing() -> None:
            pytest.fail("The fixtures of qamera-async need pytest-asyncio: install it.")

        return pytest.fixture(name=function.__name__)(missing)
    return pytest_asyncio.fixture(function)


@_async_fixture
async def qamera_sandbox() -> AsyncIterator[Sandbox]:
    """Run a sandbox without a rate limit, whose jobs take 50 ms."""
    from qamera_async.sandbox import Sandbox  # noqa: PLC0415 - expensive

    async with Sandbox(job_seconds=0.05, quota=None) as sandbox:
        yield sandbox


@_async_fixture
async def qamera(qamera_sandbox: Sandbox) -> AsyncIterator[QameraSession]:
    """Open a session on `qamera_sandbox`."""
    from qamera_async import PollPolicy  # noqa: PLC0415 - expensive

    polling = PollPolicy(interval=0.02, stale_after=0.1, max_interval=0.1)
    async with qamera_sandbox.session(polling=polling) as session:
        yield session
