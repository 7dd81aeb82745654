"""Fixtures of the unit tests."""

import pytest
from fake_api import Polling


@pytest.fixture
async def polling():
    """Yield a poller and a job registry with a fake API."""
    polling = Polling()
    yield polling
    await polling.poller.aclose()
