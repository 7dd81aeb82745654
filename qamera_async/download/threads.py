"""Work on files in threads: always awaited to its end, so that nothing is closed under it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from .parts import Part

_T = TypeVar("_T")
_SYNC_EACH = 16 * 1024 * 1024  # bytes; with none of it a fast disk costs a fifth of the speed


async def in_thread(work: Callable[[], _T], undo: Callable[[_T], object] | None = None) -> _T:
    """Call something in a thread, and wait for it even if cancelled meanwhile.

    Args:
        work: what is called.
        undo: called in a thread with what it gave, where a cancelled caller can't take it. None: nothing is.
    """
    future = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await _ended(future)
    except asyncio.CancelledError:
        if undo is not None and not future.cancelled() and future.exception() is None:
            await in_thread(lambda: undo(future.result()))
        raise


async def _ended(future: asyncio.Future[_T]) -> _T:
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is None:
        return future.result()
    if not future.cancelled():
        future.exception()  # looked at; to be cancelled goes first
    raise cancelled


class Ahead:
    """Writes some pieces while the next ones are being read, and syncs now and then meanwhile."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self._writing: asyncio.Future[None] | None = None
        self._syncing: asyncio.Future[None] | None = None
        self._synced = part.size

    async def put(self, pieces: list[bytes]) -> None:
        """Begin to write pieces once those before are written.

        Raises:
            OSError: those before could not be.
        """
        await self._written()
        if not pieces:
            return
        loop = asyncio.get_running_loop()
        self._writing = loop.run_in_executor(None, self._part.write, pieces)
        # Begun early, so that at the end there is less to wait for.
        if self._part.size >= self._synced + _SYNC_EACH and (self._syncing is None or self._syncing.done()):
            await self._on_disk()
            self._synced = self._part.size
            self._syncing = loop.run_in_executor(None, self._part.sync)

    async def settle(self) -> None:
        """Wait until all is written and nothing is under way.

        Raises:
            OSError: it could not be.
        """
        try:
            await self._written()
        finally:
            await self._on_disk()

    async def _written(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            await _ended(writing)

    async def _on_disk(self) -> None:
        syncing, self._syncing = self._syncing, None
        if syncing is not None:
            await _ended(syncing)
