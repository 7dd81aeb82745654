"""A durable record of what was meant, sent, received and seen: what makes a paid request once-only.

The intent is on disk before the POST, the receipt before the caller has it. So after any crash it is known
which requests were paid for, and which ones nobody can be sure of.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING

import attrs

from ..errors import (
    AmbiguousSubmissionError,
    ConfigurationError,
    InvalidRequestError,
    LedgerError,
    LedgerUnavailableError,
    shown,
)
from ..models import JobState
from .rows import UNDER_WAY, UNFINISHED, Row, State

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable
    from datetime import datetime

    from ..errors import QameraError
    from ..models import Intent, Receipt, Video
    from .storage import Storage

_log = logging.getLogger("qamera_async")

_FIRST_LOOK, _LONGEST_LOOK = 0.02, 0.5  # seconds between looks at what another process has under way


class NoLedger:
    """What a session without a ledger keeps: nothing."""

    kept = False

    async def claim(self, intent: Intent, *, retry_failed: bool) -> Row | None:  # noqa: ARG002
        """Claim a request; give the row of an earlier one that stands for it."""
        return None

    async def sending(self, intent: Intent) -> None:
        """Keep, before the first byte leaves, that it is sent now."""

    def unsent(self, intent: Intent) -> None:
        """Keep that provably nothing of it was sent, and that it will be tried again."""

    def withdraw(self, intent: Intent) -> None:
        """Forget it: provably nothing of it was sent, and nothing will be."""

    def let_go(self, intent: Intent) -> None:
        """Say that nobody works on it any more."""

    async def refused(self, intent: Intent, error: QameraError) -> None:
        """Keep that the server said no."""

    async def submitted(self, intent: Intent, receipt: Receipt) -> None:
        """Keep the receipt."""

    async def ambiguous(self, intent: Intent, reason: str) -> None:
        """Keep that nobody knows, and what has been seen of it."""

    async def unclaimed(self, record_ids: Collection[str]) -> set[str]:
        """Give those of the records that no earlier receipt has."""
        return set(record_ids)

    def settled(self, record_ids: tuple[str, ...], videos: tuple[Video, ...]) -> None:
        """Keep the final state of a job's records."""


class Ledger(NoLedger):
    """The record in a database, for one API origin.

    Args:
        storage: the database.
        origin: rows of other origins are none of its business.
    """

    kept = True

    def __init__(self, storage: Storage, origin: str) -> None:
        self.storage = storage
        self._origin = origin
        # What could not be written down when it was known: tried again before anything else.
        self._unkept: dict[str, Callable[[Row], Row]] = {}

    # --- a registration -------------------------------------------------------------------------

    async def claim(self, intent: Intent, *, retry_failed: bool) -> Row | None:
        """Claim a request; give the row of an earlier one that stands for it.

        Waits for one that somebody alive is at work on.

        Raises:
            AmbiguousSubmissionError: it was sent before, and nobody knows what became of it.
            RefConflictError: its ref stands for another request.
            LedgerError: the ledger can't be used.
        """
        pause = _FIRST_LOOK
        while True:
            await self._catch_up()
            found = await self.storage.claim(
                Row(intent.id, self._origin, intent.request), retry_failed=retry_failed
            )
            if found is None:
                return None
            row = found.row
            if row.state is State.AMBIGUOUS:
                raise await self._in_doubt(row)
            if not found.busy:
                return row
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_LOOK)

    async def sending(self, intent: Intent) -> None:
        """Keep, before the first byte leaves, that it is sent now.

        Raises:
            LedgerError: it is not surely kept, so nothing may be sent.
        """

        def change(row: Row) -> Row:
            return attrs.evolve(row, state=State.SENDING, sent_at=intent.sent_at)

        if await self.storage.change(intent.id, UNDER_WAY, change) is None:
            raise LedgerUnavailableError(
                "The claim of the request is gone from the ledger.", path=self.storage.path, intent=intent
            )

    def unsent(self, intent: Intent) -> None:
        """Keep that provably nothing of it was sent, and that it will be tried again."""
        _log_failure(
            self.storage.change(intent.id, UNDER_WAY, lambda row: attrs.evolve(row, state=State.CLAIMED))
        )

    def withdraw(self, intent: Intent) -> None:
        """Forget it: provably nothing of it was sent, and nothing will be."""
        _log_failure(self.storage.withdraw(intent.id))

    def let_go(self, intent: Intent) -> None:
        """Say that nobody works on it any more."""
        self.storage.let_go(intent.id)

    async def refused(self, intent: Intent, error: QameraError) -> None:
        """Keep that the server said no; a failure is logged, since nothing was paid for."""
        change = _to(State.REFUSED, str(error))
        try:
            await self.storage.change(intent.id, UNDER_WAY, change)
        except LedgerError as failure:
            self._unkept[intent.id] = change
            _log.warning("the ledger could not keep that a request was refused: %s", failure)

    async def submitted(self, intent: Intent, receipt: Receipt) -> None:
        """Keep the receipt.

        Raises:
            LedgerUnavailableError: it could not be kept, and is in the error.
        """

        def change(row: Row) -> Row:
            return attrs.evolve(row, state=State.SUBMITTED, record_ids=receipt.record_ids, receipt=receipt)

        try:
            if await self.storage.change(intent.id, UNDER_WAY, change) is not None:
                return
            why = "its intent is gone from the ledger"
        except LedgerError as failure:
            why = failure.message.removesuffix(".")
            self._unkept[intent.id] = change
        raise LedgerUnavailableError(
            f"The receipt could not be kept: {why}.", path=self.storage.path, intent=intent, receipt=receipt
        )

    async def ambiguous(self, intent: Intent, reason: str) -> None:
        """Keep that nobody knows, and what has been seen of it; a failure is logged."""

        def change(row: Row) -> Row:
            return attrs.evolve(row, state=State.AMBIGUOUS, reason=reason, candidates=intent.candidates)

        try:
            await self.storage.change(intent.id, UNDER_WAY, change)
        except LedgerError as failure:
            self._unkept[intent.id] = change
            _log.warning("the ledger could not keep that a request is ambiguous: %s", failure)

    async def unclaimed(self, record_ids: Collection[str]) -> set[str]:
        """Give those of the records that no receipt in the ledger has."""
        return set(record_ids) - await self.storage.claimed(self._origin, record_ids)

    # --- what became of it ----------------------------------------------------------------------

    def settled(self, record_ids: tuple[str, ...], videos: tuple[Video, ...]) -> None:
        """Keep the final state of a job's records, where they are all of a row's."""
        failed = any(video.state is JobState.FAILED for video in videos)

        def change(row: Row) -> Row:
            if set(row.record_ids) != set(record_ids):
                return row
            by_id = {video.id: video for video in videos}
            return attrs.evolve(
                row,
                state=State.FAILED if failed else State.DONE,
                videos=tuple([by_id[i] for i in row.record_ids if i in by_id]),
            )

        _log_failure(self.storage.change_of_record(self._origin, record_ids[0], UNFINISHED, change))

    async def has_file(self, record_id: str, path: str, size: int) -> bool:
        """Tell whether a file of this size is what was downloaded of a record."""
        row = await self.storage.of_record(self._origin, record_id)
        return row is not None and row.files.get(path) == size

    async def keep_file(self, record_id: str, path: str, size: int) -> None:
        """Keep, before it has its final name, that a file is a record's result."""

        def change(row: Row) -> Row:
            return attrs.evolve(row, files={**row.files, path: size})

        await self.storage.change_of_record(self._origin, record_id, frozenset(State), change)

    async def unfinished(self) -> list[Row]:
        """Give what is paid for and not seen finished."""
        await self._catch_up()
        return await self.storage.rows(self._origin, UNFINISHED)

    async def doubtful(self) -> list[Row]:
        """Give what is ambiguous, without the candidates that receipts have claimed since."""
        await self._catch_up()
        rows = await self.storage.rows(self._origin, {State.AMBIGUOUS})
        seen = {video.id for row in rows for video in row.candidates or ()}
        left = await self.unclaimed(seen) if seen else seen
        return [self._with(row, row.candidates, left) for row in rows]

    async def looked_into(self, intent_id: str, candidates: Iterable[Video]) -> None:
        """Keep what was found later of an ambiguous request."""
        found = tuple(candidates)
        await self.storage.change(
            intent_id, {State.AMBIGUOUS}, lambda row: attrs.evolve(row, candidates=found)
        )

    async def adopt(self, intent_id: str, record_ids: tuple[str, ...]) -> Row:
        """Settle an ambiguous request: these records were made of it.

        Raises:
            LedgerError: there is none, or it is settled otherwise.
            InvalidRequestError: a record belongs to another request.
        """

        def change(row: Row) -> Row:
            return attrs.evolve(row, state=State.ADOPTED, record_ids=record_ids)

        found = await self.storage.find(intent_id)
        if found is not None and found.row.record_ids == record_ids:
            return found.row
        if found is not None and found.row.state is State.AMBIGUOUS:
            taken = set(record_ids) - await self.unclaimed(record_ids)
            if taken:
                raise InvalidRequestError(
                    f"record_ids: {', '.join(sorted(taken))} belongs to another request of this ledger"
                )
        return await self._settle(intent_id, change)

    async def abandon(self, intent_id: str) -> None:
        """Settle an ambiguous request: nothing was made of it.

        Raises:
            LedgerError: there is none, or it is settled otherwise.
        """
        found = await self.storage.find(intent_id)
        if found is None or found.row.state is not State.ABANDONED:
            await self._settle(intent_id, _to(State.ABANDONED, "abandoned by hand"))

    async def _settle(self, intent_id: str, change: Callable[[Row], Row]) -> Row:
        row = await self.storage.change(intent_id, {State.AMBIGUOUS}, change)
        if row is not None:
            return row
        found = await self.storage.find(intent_id)
        state = "not in the ledger" if found is None else f"{found.row.state.value} in the ledger"
        raise LedgerError(
            f"The intent {shown(intent_id)} is {state}, so there is nothing to settle.",
            path=self.storage.path,
        )

    async def _in_doubt(self, row: Row) -> AmbiguousSubmissionError:
        seen = {video.id for video in row.candidates or ()}
        row = self._with(row, row.candidates, await self.unclaimed(seen) if seen else seen)
        return AmbiguousSubmissionError(
            f"It was sent at {_when(row.sent_at)}, and whether it was accepted is not known. "
            "Nothing was sent now.",
            intent=row.intent,
            candidates=row.candidates or (),
        )

    def _with(self, row: Row, candidates: tuple[Video, ...] | None, left: set[str]) -> Row:
        if candidates is None:
            return row
        return attrs.evolve(row, candidates=tuple([video for video in candidates if video.id in left]))

    async def _catch_up(self) -> None:
        for intent_id, change in list(self._unkept.items()):
            try:
                await self.storage.change(intent_id, {*UNDER_WAY, State.AMBIGUOUS}, change)
            except LedgerError:
                return
            self._unkept.pop(intent_id, None)


def ledger_at(path: str, origin: str) -> Ledger:
    """Give the ledger of a file; nothing is opened before it is used."""
    from .sqlite import SqliteStorage  # noqa: PLC0415 - many sessions have no ledger

    return Ledger(SqliteStorage.of(path), origin)


def checked_path(ledger: object) -> str:
    """Give a ledger's path as text.

    Raises:
        ConfigurationError: it is none.
    """
    allowed = "allowed is the path of a file, or None"
    if not isinstance(ledger, str | os.PathLike):
        raise ConfigurationError(f"ledger: got {type(ledger).__name__}, {allowed}")
    path = os.fspath(ledger)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    # What came is not shown: an address of a database may hold a password.
    if not isinstance(path, str) or not path.strip() or "\0" in path or "://" in path or path == ":memory:":
        raise ConfigurationError(f"ledger: {allowed}")
    return path


def _to(state: State, reason: str) -> Callable[[Row], Row]:
    return lambda row: attrs.evolve(row, state=state, reason=reason)


def _when(moment: datetime | None) -> str:
    return "a time that is not known" if moment is None else moment.isoformat(timespec="seconds")


def _log_failure(written: Awaitable[object]) -> None:
    """Nobody waits for this: what fails is for the log."""

    def done(future: asyncio.Future[object]) -> None:
        if not future.cancelled() and (error := future.exception()) is not None:
            _log.warning("the ledger is behind: %s", error)

    asyncio.ensure_future(written).add_done_callback(done)
