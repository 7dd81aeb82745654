"""Writing while reading: pieces are gathered, written in a thread, and put on the disk now and then."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Self

from .threads import awaited, begun

if TYPE_CHECKING:
    from types import TracebackType

    from .writer import Writer

_log = logging.getLogger("qamera_async")
BUFFER = 2 * 1024 * 1024  # bytes; half of it costs a tenth of the speed
_PATIENCE = 1.0  # seconds: so much of a slow download a kill may cost
_MOST_PIECES = 512  # half of what the system takes at once
_SYNC_EACH = 16 * 1024 * 1024  # bytes; with none of it a fast disk costs a fifth of the speed


class Ahead:
    """Takes pieces, and has them written while the next ones are being read.

    A context: when it is left, however it is left, what came is written and nothing is under way.

    Args:
        writer: writes them.
    """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._clock = asyncio.get_running_loop().time
        self._held: list[bytes] = []
        self._bytes = 0
        self._begun_at = self._clock()
        self._synced = writer.size
        # One of each at most.
        self._writes: list[asyncio.Future[None]] = []
        self._syncs: list[asyncio.Future[None]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            try:
                await self._write()
            finally:
                await self._settle()
        except Exception:
            if kind is None:
                raise
            # What ended it goes first; the writer remembers this one.
            _log.debug("the last bytes of a download that ended early could not be kept", exc_info=True)

    async def put(self, piece: bytes) -> bool:
        """Take a piece.

        Returns:
            Whether all that came so far is now being written.

        Raises:
            OSError: something that came before could not be.
        """
        self._held.append(piece)
        self._bytes += len(piece)
        if (
            self._bytes < BUFFER
            and len(self._held) < _MOST_PIECES
            and self._clock() < self._begun_at + _PATIENCE
        ):
            return False
        await self._write()
        return True

    async def _write(self) -> None:
        await _ended(self._writes)
        if self._syncs and self._syncs[0].done():
            await _ended(self._syncs)
        # From here on nothing is awaited, so that a cancellation can't come between.
        pieces, self._held, self._bytes = self._held, [], 0
        self._begun_at = self._clock()
        if not pieces:
            return
        if not self._syncs and self._writer.size >= self._synced + _SYNC_EACH:
            # Begun early, so that at the end there is less to wait for.
            self._synced = self._writer.size
            self._syncs.append(begun(self._writer.sync))
        self._writes.append(begun(lambda: self._writer.write(pieces)))

    async def _settle(self) -> None:
        try:
            await _ended(self._writes)
        finally:
            await _ended(self._syncs)


async def _ended(work: list[asyncio.Future[None]]) -> None:
    while work:
        await awaited(work.pop())
