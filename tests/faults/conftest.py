"""Fixtures of the fault tests."""

import pytest
from os_faults import Faults
from place import opened


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    """Return a `Faults`, which runs programs with failing system calls."""
    return Faults(tmp_path_factory.mktemp("faults"))


@pytest.fixture
async def place(tmp_path, quick):
    """Yield a `Place`: a sandbox with a finished video, and a target in a temporary folder."""
    async with opened(tmp_path, quick) as place:
        yield place
