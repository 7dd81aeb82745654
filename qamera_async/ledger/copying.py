"""A ledger copied into another, of the other kind too, in one transaction of each.

The source's transaction is open from before the first row is read until the copy is on the disk, and keeps
everybody else out. So whatever the process dies of, either the source is as it was, or the copy is complete;
and doing it again ends what was begun.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs

from ..errors import LedgerError, LedgerUnavailableError
from .moving import mark_moved
from .places import checked_place, ledger_is_there, shown_place, storage_apart
from .rows import LedgerState, Row

if TYPE_CHECKING:
    from collections.abc import Callable

    from .intents import Numbered, Tables
    from .sql import SqlStorage


async def copy_ledger(
    source: str | os.PathLike[str], target: str | os.PathLike[str], *, keep: bool = False
) -> int:
    """Copy all requests of a ledger into another: from a file to a database, say.

    Nobody may use the source meanwhile. It is marked as moved in the end, and can't be opened any more: what
    was ordered with it from then on, the copy would order again. A request whose process died while it sent
    is ambiguous in the copy; a claim of which nothing was sent is left out. Where it was interrupted, do it
    again: nothing is copied twice.

    Args:
        source: The path or the address of the one that is there.
        target: Where to: the path or the address of another; it is made where there is none. What it has of
            others stays, and nobody else may use it meanwhile where it is a file.
        keep: Leave the source as it is. Only one of both may be used from then on: what is ordered with one
            of them, the other orders again.

    Returns:
        How many requests were copied.

    Raises:
        ConfigurationError: One of them is no place for a ledger.
        LedgerError: There is no source, somebody uses it, one of them can't be used, or the target has
            another request of the same ref, id or record. Nothing was copied then.

    """
    places = checked_place(source), checked_place(target)
    if not await asyncio.to_thread(ledger_is_there, places[0]):
        raise LedgerError("There is no such ledger.", path=shown_place(places[0]))
    giving, taking = storage_apart(places[0]), storage_apart(places[1])
    if giving.path == taking.path:
        raise LedgerError("A ledger can't be copied to itself.", path=giving.path)
    try:
        await giving.open()
        await taking.open()
        return await _Copying(giving, taking, keep=keep).run()
    finally:
        await taking.aclose()
        await giving.aclose()


class _Copying:
    """One copying.

    Args:
        giving: the source, which nobody else in this process has.
        taking: the target, likewise.
        keep: whether the source stays as it is.
    """

    def __init__(self, giving: SqlStorage[Any], taking: SqlStorage[Any], *, keep: bool) -> None:
        self._giving = giving
        self._taking = taking
        self._keep = keep
        self._began = False
        self._stopped = threading.Event()
        # Where it has moved to, once the copy is on the disk; None: nowhere.
        self._verdict: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    async def run(self) -> int:
        """Copy; give the number of rows."""
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[Any] = loop.create_future()

        def hold(connection: Tables) -> None:
            if self._began:
                raise LedgerUnavailableError(
                    "The connection was lost while it was copied.",
                    path=self._giving.path,
                    fix="See that the database runs",
                )
            self._began = True
            self._giving.keep_out(connection)
            loop.call_soon_threadsafe(_tell, ready, connection)
            if (place := self._verdict.get()) is not None:
                mark_moved(connection, place)

        held: asyncio.Future[Any] = self._giving.run_alone("be copied", hold)
        try:
            await asyncio.wait((held, ready), return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                await held
            copied = await self._taken(ready.result())
        except BaseException:
            self._verdict.put(None)
            await _ended(held)
            raise
        self._verdict.put(None if self._keep else self._taking.path)
        await _ended(held)
        held.result()
        return copied

    async def _taken(self, giving: Tables) -> int:
        """Take all rows in, by the target's thread; the source's waits meanwhile."""
        taken = self._taking.run_alone("take in a copy", lambda connection: self._take(giving, connection))
        try:
            return await asyncio.shield(taken)
        except BaseException:
            # Its thread reads from the source until it has noticed.
            self._stopped.set()
            await _ended(taken)
            raise

    # --- in the target's thread -----------------------------------------------------------------

    def _take(self, giving: Tables, taking: Tables) -> int:
        if self._taking.one_writes:
            self._taking.keep_out(taking)
        last = copied = 0
        while rows := self._read(partial(self._giving.intents.some, giving, None, set(LedgerState), last)):
            if self._stopped.is_set():
                raise LedgerError("It was stopped.", path=self._taking.path)
            last = rows[-1].number
            # Nothing was sent of a claim, and nobody lives who would.
            kept = [
                attrs.evolve(found, row=self._as_there(found.row))
                for found in rows
                if found.row.state is not LedgerState.CLAIMED
            ]
            self._put(giving, taking, kept)
            copied += len(kept)
        return copied

    def _read(self, read: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever is read
        try:
            return read()
        except Exception as error:
            raise self._giving.translated(error) from None

    def _as_there(self, row: Row) -> Row:
        """Give a row with the paths of its files as the target has them."""
        if not row.files:
            return row
        here, there = self._giving.folder, self._taking.folder
        files = {os.path.normpath(os.path.join(here or "/", path)): size for path, size in row.files.items()}  # noqa: PTH118 - texts
        if there is not None:
            files = {os.path.relpath(path, there): size for path, size in files.items()}
        return attrs.evolve(row, files=files)

    def _put(self, giving: Tables, taking: Tables, rows: list[Numbered]) -> None:
        intents = self._taking.intents
        if others := intents.put(taking, rows):
            ref = others[0].request.ref
            raise self._conflict(f"the id {others[0].id!r}" if ref is None else f"the ref {ref!r}")
        for record_id, intent in intents.strangers(taking, [found.row for found in rows]):
            # One record may be of two of them; else somebody there has it.
            if not self._read(partial(self._giving.intents.has, giving, intent)):
                raise self._conflict(f"the record {record_id!r}")

    def _conflict(self, what: str) -> LedgerError:
        return LedgerError(
            f"The ledger has another request of {what} already, so nothing was copied.",
            path=self._taking.path,
        )


def _tell(ready: asyncio.Future[Any], connection: Tables) -> None:
    if not ready.done():
        ready.set_result(connection)


async def _ended(future: asyncio.Future[Any]) -> None:
    """Wait for the end of what can't be left alone, whoever is cancelled meanwhile."""
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            continue
    if not future.cancelled():
        future.exception()  # who waited for it has another
