"""The ledger that a database keeps, for one origin of the API."""

from __future__ import annotations

import asyncio
import logging
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import attrs

from .._models import JobState
from ..errors import (
    AmbiguousSubmissionError,
    InvalidRequestError,
    LedgerError,
    LedgerUnavailableError,
    short_repr,
)
from .places import NoLedger
from .rows import OPEN_TO_ADOPTION, UNDER_WAY, UNFINISHED, LedgerState, Row

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from .._models import Intent, Receipt, Video
    from .._ratelimit import SharedSlots
    from ..errors import QameraError
    from .board import Board
    from .storage import Found, Storage

_log = logging.getLogger("qamera_async")

_BEFORE_A_RECEIPT = frozenset({*UNDER_WAY, LedgerState.AMBIGUOUS, LedgerState.ABANDONED})
_PAUSE = 1.0  # seconds between attempts to write down what couldn't be
_FIRST_LOOK, _LONGEST_LOOK = 0.02, 0.5  # seconds between looks at what another process has under way


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
        # What could not be written down when it was known (None: that a claim is withdrawn). Others may wait
        # for it, so it is tried again by itself.
        self._unkept: dict[str, Callable[[Row], Row] | None] = {}
        self._catching_up: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """See to it that it can be worked with.

        Raises:
            LedgerError: it can't.
        """
        await self.storage.open()

    def release(self) -> None:
        """Let go of what was never opened, or of what nobody has closed."""
        self.storage.release()

    def slots(self, account: str, grace: float) -> SharedSlots | None:
        """Give the log of the slots that all processes with this ledger and account take."""
        return self.storage.slots(account, grace)

    def board(self, account: str) -> Board[Any] | None:
        """Give the board by which all processes with this ledger and account share one poll."""
        return self.storage.board(account)

    async def aclose(self) -> None:
        """Keep what couldn't be kept before, if that goes now, and let go of the database."""
        if self._catching_up is not None:
            self._catching_up.cancel()
            await asyncio.wait([self._catching_up])
        if self._unkept:
            await self._catch_up()
        await self.storage.aclose()

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
                Row(intent.id, self._origin, intent.request, claimed_at=intent.sent_at),
                retry_failed=retry_failed,
            )
            if found is None:
                return None
            row = found.row
            if row.state is LedgerState.AMBIGUOUS:
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
            return attrs.evolve(row, state=LedgerState.SENDING, sent_at=intent.sent_at)

        if await self.storage.change(intent.id, UNDER_WAY, change) is None:
            raise LedgerUnavailableError(
                "The claim of the request is gone from the ledger.",
                path=self.storage.path,
                intent=intent,
                fix="See who else works with it",
            )

    def unsent(self, intent: Intent) -> None:
        """Keep that provably nothing of it was sent, and that it will be tried again."""
        _log_failure(
            self.storage.change(
                intent.id, UNDER_WAY, lambda row: attrs.evolve(row, state=LedgerState.CLAIMED)
            )
        )

    def withdraw(self, intent: Intent) -> None:
        """Forget it: provably nothing of it was sent, and nothing will be."""

        def done(future: asyncio.Future[None]) -> None:
            if not future.cancelled() and future.exception() is not None:
                self._later(intent.id, None)

        asyncio.ensure_future(self.storage.withdraw(intent.id)).add_done_callback(done)

    def let_go(self, intent: Intent) -> None:
        """Say that nobody works on it any more."""
        self.storage.let_go(intent.id)

    async def refused(self, intent: Intent, error: QameraError) -> None:
        """Keep that the server said no; a failure is logged, since nothing was paid for."""
        change = _to(LedgerState.REFUSED, str(error))
        try:
            await self.storage.change(intent.id, UNDER_WAY, change)
        except LedgerError as failure:
            self._later(intent.id, change)
            _log.warning("the ledger could not keep that a request was refused: %s", failure)

    async def submitted(self, intent: Intent, receipt: Receipt) -> None:
        """Keep the receipt.

        Raises:
            LedgerUnavailableError: it could not be kept, and is in the error.
        """
        now = datetime.now(UTC)

        def change(row: Row) -> Row:
            return attrs.evolve(
                row,
                state=LedgerState.SUBMITTED,
                record_ids=receipt.record_ids,
                receipt=receipt,
                submitted_at=now,
            )

        try:
            # It is a fact, whatever somebody has thought of it meanwhile.
            if await self.storage.change(intent.id, _BEFORE_A_RECEIPT, change) is not None:
                return
            why, fix = "its intent has no place for it in the ledger", None
        except LedgerError as failure:
            why = failure.message.removesuffix(".")
            fix = failure.fix if isinstance(failure, LedgerUnavailableError) else None
            self._later(intent.id, change)
        raise LedgerUnavailableError(
            f"The receipt could not be kept: {why}.",
            path=self.storage.path,
            intent=intent,
            receipt=receipt,
            fix=fix,
        )

    async def ambiguous(self, intent: Intent, reason: str) -> None:
        """Keep that nobody knows, and what has been seen of it; a failure is logged."""

        def change(row: Row) -> Row:
            # None seen is not "not made": then it is looked for again.
            seen = intent.candidates or None
            return attrs.evolve(row, state=LedgerState.AMBIGUOUS, reason=reason, candidates=seen)

        try:
            await self.storage.change(intent.id, UNDER_WAY, change)
        except LedgerError as failure:
            self._later(intent.id, change)
            _log.warning("the ledger could not keep that a request is ambiguous: %s", failure)

    async def alone(self, intent: Intent) -> bool:
        """Tell whether no other process has a POST under way that may still bring a receipt."""
        rows = await self._rows({LedgerState.SENDING})
        return all(row.id == intent.id for row in rows)

    async def unclaimed(self, record_ids: Collection[str]) -> set[str]:
        """Give those of the records that no receipt in the ledger has."""
        if not record_ids:
            return set()
        return set(record_ids) - await self.storage.claimed(self._origin, record_ids)

    # --- what became of it ----------------------------------------------------------------------

    def settled(self, record_ids: tuple[str, ...], videos: tuple[Video, ...]) -> None:
        """Keep the final state of a job's records, where they are all of a row's."""
        failed, now = any(video.state is JobState.FAILED for video in videos), datetime.now(UTC)

        def change(row: Row) -> Row:
            if set(row.record_ids) != set(record_ids):
                return row
            by_id = {video.id: video for video in videos}
            return attrs.evolve(
                row,
                state=LedgerState.FAILED if failed else LedgerState.DONE,
                settled_at=now,
                videos=tuple([by_id[i] for i in row.record_ids if i in by_id]),
            )

        _log_failure(self.storage.change_of_record(self._origin, record_ids[0], UNFINISHED, change))

    async def has_file(self, record_id: str, path: str, size: int) -> bool:
        """Tell whether a file of this size is what was downloaded of a record."""
        row = await self.storage.of_record(self._origin, record_id)
        return row is not None and row.files.get(self._relative(path)) == size

    async def keep_file(self, record_id: str, path: str, size: int) -> None:
        """Keep, before it has its final name, that a file is a record's result."""

        def change(row: Row) -> Row:
            return attrs.evolve(
                row, files={**row.files, self._relative(path): size}, downloaded_at=datetime.now(UTC)
            )

        await self.storage.change_of_record(self._origin, record_id, frozenset(LedgerState), change)

    def _relative(self, path: str) -> str:
        """A path as it is kept, whole or as seen from the ledger; one that isn't UTF-8 in escapes."""
        kept, folder = os.path.realpath(path), self.storage.folder
        if folder is not None:
            kept = os.path.relpath(kept, folder)
        return os.fsencode(kept).decode("utf-8", "backslashreplace")

    async def unfinished(self) -> list[Row]:
        """Give what is paid for and not seen finished."""
        await self._catch_up()
        return await self._rows(UNFINISHED)

    async def doubtful(self) -> list[Row]:
        """Give what is ambiguous, without the candidates that receipts have claimed since."""
        await self._catch_up()
        rows = await self._rows({LedgerState.AMBIGUOUS})
        seen = {video.id for row in rows for video in row.candidates or ()}
        left = await self.unclaimed(seen)
        return [row.with_those(left) for row in rows]

    async def _rows(self, states: Collection[LedgerState]) -> list[Row]:
        return [found.row async for found in self.storage.rows(self._origin, states)]

    async def looked_into(self, intent_id: str, candidates: tuple[Video, ...]) -> None:
        """Keep what was found later of an ambiguous request."""
        await self.storage.change(
            intent_id, {LedgerState.AMBIGUOUS}, lambda row: attrs.evolve(row, candidates=candidates)
        )

    async def adopt(self, intent_id: str, record_ids: tuple[str, ...]) -> Row:
        """Settle an ambiguous request: these records were made of it.

        Raises:
            LedgerError: there is none, or it is settled otherwise.
            InvalidRequestError: a record belongs to another request.
        """
        await self._catch_up()
        adopted = await self.storage.adopt(intent_id, record_ids)
        if isinstance(adopted, set):
            raise InvalidRequestError(
                f"record_ids: {', '.join(sorted(adopted))} belongs to another request of this ledger"
            )
        if adopted is not None:
            return adopted
        found = await self.storage.find(intent_id)
        if found is not None and set(found.row.record_ids) == set(record_ids):
            return found.row
        raise self._nothing_to_settle(intent_id, found)

    async def abandon(self, intent_id: str) -> None:
        """Settle an ambiguous request: nothing was made of it.

        Raises:
            LedgerError: there is none, or it is settled otherwise.
        """
        change = _to(LedgerState.ABANDONED, "abandoned by hand")
        if await self.storage.change(intent_id, {*OPEN_TO_ADOPTION, LedgerState.ABANDONED}, change) is None:
            raise self._nothing_to_settle(intent_id, await self.storage.find(intent_id))

    def _nothing_to_settle(self, intent_id: str, found: Found | None) -> LedgerError:
        state = "not in the ledger" if found is None else f"{found.row.state.value} in the ledger"
        return LedgerError(
            f"The intent {short_repr(intent_id)} is {state}, so there is nothing to settle.",
            path=self.storage.path,
        )

    async def _in_doubt(self, row: Row) -> AmbiguousSubmissionError:
        seen = {video.id for video in row.candidates or ()}
        row = row.with_those(await self.unclaimed(seen))
        return AmbiguousSubmissionError(
            f"It was sent at {_when(row.sent_at)}, and whether it was accepted is not known. "
            "Nothing was sent now.",
            intent=row.intent,
            candidates=row.candidates or (),
            looked_up=row.candidates is not None,
        )

    def _later(self, intent_id: str, change: Callable[[Row], Row] | None) -> None:
        self._unkept[intent_id] = change
        if self._catching_up is None or self._catching_up.done():
            self._catching_up = asyncio.get_running_loop().create_task(
                self._until_kept(), name="qamera-ledger"
            )

    async def _until_kept(self) -> None:
        while self._unkept:
            await asyncio.sleep(_PAUSE)
            await self._catch_up()

    async def _catch_up(self) -> None:
        for intent_id, change in list(self._unkept.items()):
            try:
                if change is None:
                    await self.storage.withdraw(intent_id)
                else:
                    await self.storage.change(intent_id, _BEFORE_A_RECEIPT, change)
            except LedgerError:
                return
            self._unkept.pop(intent_id, None)


def _to(state: LedgerState, reason: str) -> Callable[[Row], Row]:
    return lambda row: attrs.evolve(row, state=state, reason=reason)


def _when(moment: datetime | None) -> str:
    return "a time that is not known" if moment is None else moment.isoformat(timespec="seconds")


def _log_failure(written: Awaitable[object]) -> None:
    """Nobody waits for this: what fails is for the log."""

    def done(future: asyncio.Future[object]) -> None:
        if not future.cancelled() and (error := future.exception()) is not None:
            _log.warning("the ledger is behind: %s", error)

    asyncio.ensure_future(written).add_done_callback(done)
