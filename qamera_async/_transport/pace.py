"""How slowly a body may come."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import TracebackType

LEAST: Final = 64 * 1024  # bytes


class Pace:
    """A context for each wait for bytes; ``TimeoutError`` where fewer than 64 KiB came in so many seconds.

    Only what is spent in it counts: whoever takes his time between two reads blames nobody.

    Args:
        seconds: how long is waited for each 64 KiB.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._left = seconds
        self._bytes = 0
        self._began = 0.0
        self._limit = asyncio.timeout(None)

    async def __aenter__(self) -> None:
        self._began = asyncio.get_running_loop().time()
        self._limit = asyncio.timeout(self._left)
        await self._limit.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._limit.__aexit__(kind, error, trace)
        self._left -= asyncio.get_running_loop().time() - self._began
        if self._bytes >= LEAST:
            self._bytes, self._left = 0, self._seconds

    def come(self, size: int) -> None:
        """Count bytes that came in the present wait."""
        self._bytes += size
