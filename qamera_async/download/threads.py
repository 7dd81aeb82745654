"""Work in threads that is always awaited to its end, so that nothing goes on for nobody."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")


async def in_thread(work: Callable[[], _T], undo: Callable[[_T], object] | None = None) -> _T:
    """Call something in a thread, and wait for it even if cancelled meanwhile.

    Args:
        work: what is called.
        undo: called in a thread with what it gave, where a cancelled caller can't take it. None: nothing is.
    """
    future = begun(work)
    try:
        return await awaited(future)
    except asyncio.CancelledError:
        if undo is not None and not future.cancelled() and future.exception() is None:
            await in_thread(lambda: undo(future.result()))
        raise


def begun(work: Callable[[], _T]) -> asyncio.Future[_T]:
    """Begin to call something in a thread; whoever does must have it ``awaited``."""
    return asyncio.get_running_loop().run_in_executor(None, work)


async def awaited(future: asyncio.Future[_T]) -> _T:
    """Wait until something has ended; a cancellation meanwhile is raised only then."""
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
