"""Work on files in threads: always awaited to its end, so that nothing is closed under it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from .parts import Part

_T = TypeVar("_T")


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
    """Writes some pieces while the next ones are being read."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self._writing: asyncio.Future[None] | None = None

    async def put(self, pieces: list[bytes]) -> None:
        """Begin to write pieces once those before are written.

        Raises:
            OSError: those before could not be.
        """
        await self.settle()
        if not pieces:
            return
        self._writing = asyncio.get_running_loop().run_in_executor(None, self._part.write, pieces)

    async def settle(self) -> None:
        """Wait until all is written.

        Raises:
            OSError: it could not be.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            await _ended(writing)
