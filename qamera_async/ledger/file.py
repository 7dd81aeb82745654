"""A ledger's file for who looks into it: what it has, and what settles a doubt, without a key."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeAlias

import attrs

from .._models import Intent, Receipt, Request, Video, check_record_ids
from ..errors import (
    AmbiguousSubmissionError,
    InvalidRequestError,
    LedgerError,
    LedgerUnavailableError,
    SessionClosedError,
    short_repr,
)
from .places import checked_place, ledger_at, ledger_is_there, shown_place
from .rows import LedgerState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

    from .ledger import Ledger
    from .pruning import Pruned
    from .storage import Found

_AN_HOUR = 3600  # what a POST of now may be mistaken for is younger


@attrs.frozen
class LedgerEntry:
    """One paid request, as the ledger has it.

    Its moments are aware datetimes in UTC by the clock of the machine, which may have been set between them.

    Args:
        id: The intent's id.
        origin: The API's origin that it was meant for, such as ``https://app.qamera.ai``.
        request: What was meant.
        state: How far it has come.
        current: Whether it is the one that counts for its ref; False for one that was ordered anew since.
        busy: Whether a process that lives is at work on it.
        record_ids: The records that were made of it; empty where that isn't known.
        receipt: The server's answer; None before, and where somebody adopted records.
        videos: The final state of its records; empty before.
        candidates: The videos that may have come of it, where that isn't known.
        reason: Why it was refused or is ambiguous, in words; empty elsewhere.
        files: What was downloaded of it: the sizes in bytes by path, whether they are still there or not.
        claimed_at: When it was claimed; None where that isn't known.
        sent_at: When sending began; None before.
        submitted_at: When the receipt was there; None before.
        settled_at: When it was seen done or failed; None before.
        downloaded_at: When its result was downloaded last; None before.

    """

    id: str
    origin: str
    request: Request
    state: LedgerState
    current: bool = True
    busy: bool = False
    record_ids: tuple[str, ...] = ()
    receipt: Receipt | None = None
    videos: tuple[Video, ...] = ()
    candidates: tuple[Video, ...] = ()
    reason: str = ""
    files: Mapping[Path, int] = attrs.field(factory=dict[Path, int])
    claimed_at: datetime | None = None
    sent_at: datetime | None = None
    submitted_at: datetime | None = None
    settled_at: datetime | None = None
    downloaded_at: datetime | None = None


Settled: TypeAlias = Intent | LedgerEntry | AmbiguousSubmissionError | LedgerUnavailableError | str
"""How an ambiguous request may be named: by its intent or entry, the error that carries it, or its id."""


class LedgerFile:
    """A ledger to look into, while others work with it or not; an async context manager.

    It needs neither a key nor the network, and shows what was meant for every origin.

    Args:
        path: The file, or the address of the database, that a session was given as its ``ledger``; it must be
            there.

    Raises:
        ConfigurationError: It is neither.

    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._place = checked_place(path)
        self._path = shown_place(self._place)
        self._ledger: Ledger | None = None

    def __repr__(self) -> str:
        return f"<LedgerFile {self._path!r}>"

    async def __aenter__(self) -> Self:
        """Open it.

        Raises:
            LedgerError: There is none, or it can't be used, or this has it open already.

        """
        if self._ledger is not None:
            raise LedgerError("It is open already: make another LedgerFile for it.", path=self._path)
        # Not made where a name was mistyped, or a link leads nowhere; what is there is looked at more closely
        # when it is opened.
        if not await self.exists():
            raise LedgerError("There is no such ledger.", path=self._path)
        ledger = ledger_at(self._place, "")
        try:
            await ledger.storage.open()
        except BaseException:
            await ledger.aclose()
            raise
        self._ledger = ledger
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        ledger, self._ledger = self._there(), None
        await ledger.aclose()

    async def exists(self) -> bool:
        """Tell whether there is a ledger, or something else in its place; it need not be open.

        Raises:
            LedgerError: The database of an address can't be asked.

        """
        return await asyncio.to_thread(ledger_is_there, self._place)

    async def entries(self) -> AsyncIterator[LedgerEntry]:
        """Give all that it has, the oldest first, as ``async for``; read as it goes on.

        Raises:
            LedgerError: it can't be used.

        """
        ledger = self._there()
        async for found in ledger.storage.rows(None, set(LedgerState)):
            row = found.row
            if row.candidates:
                claimed = await ledger.storage.claimed(row.origin, {video.id for video in row.candidates})
                row = row.with_those({video.id for video in row.candidates} - claimed)
            yield self._entry(attrs.evolve(found, row=row))

    async def adopt(self, intent: Settled, *record_ids: str) -> None:
        """Settle an ambiguous request: these records are what was made of it.

        Args:
            intent: The entry, or what an error names, or the intent's id.
            record_ids: The records, as the Qamera app or the candidates have them.

        Raises:
            InvalidRequestError: No id, or one of a record that belongs to another request.
            LedgerError: It can't be used, or has nothing to settle there.

        """
        ids = check_record_ids(record_ids)
        await self._there().adopt(intent_id(intent), ids)

    async def abandon(self, intent: Settled) -> None:
        """Settle an ambiguous request: nothing was made of it, so it may be ordered anew.

        Args:
            intent: As for ``adopt``.

        Raises:
            LedgerError: It can't be used, or has nothing to settle there.

        """
        await self._there().abandon(intent_id(intent))

    async def prune(self, older_than: float, *, dry_run: bool = False) -> Pruned:
        """Remove what is long settled: the done, the failed, the refused and the abandoned.

        What is under way, unfinished or ambiguous stays, however old, and so does what was made since an hour
        before the oldest ambiguous one was sent, since it tells which records can't be of that. Sessions may
        use the ledger meanwhile. A file gets smaller where nobody else has it open.

        **What is removed is forgotten**: its ``ref`` is ordered again, and paid for, when it is asked for
        again; what was done or failed would have cost nothing.

        Args:
            older_than: How long ago its last moment has to be, in seconds by this machine's clock; an hour
                at least.
            dry_run: Whether to say only what it would remove.

        Returns:
            What was removed, or would be.

        Raises:
            InvalidRequestError: ``older_than`` is no such number.
            LedgerError: It can't be used.

        """
        before = _before(older_than)
        return await self._there().storage.prune(before, remove=not dry_run)

    def _there(self) -> Ledger:
        if self._ledger is None:
            raise SessionClosedError("The ledger is not open: use async with LedgerFile(PATH).")
        return self._ledger

    def _entry(self, found: Found) -> LedgerEntry:
        row = found.row
        folder = Path(self._there().storage.folder or "/")
        return LedgerEntry(
            row.id,
            row.origin,
            row.request,
            row.state,
            current=found.current,
            busy=found.busy,
            record_ids=row.record_ids,
            receipt=row.receipt,
            videos=row.videos,
            candidates=row.candidates or (),
            reason=row.reason,
            files={Path(os.path.normpath(folder / path)): size for path, size in row.files.items()},
            claimed_at=row.claimed_at,
            sent_at=row.sent_at,
            submitted_at=row.submitted_at,
            settled_at=row.settled_at,
            downloaded_at=row.downloaded_at,
        )


def _before(older_than: float) -> datetime:
    """Give the moment so many seconds ago."""
    try:
        if older_than >= _AN_HOUR:
            return datetime.now(UTC) - timedelta(seconds=older_than)
    except (TypeError, ValueError, OverflowError):
        pass
    raise InvalidRequestError(
        f"older_than must be a number of seconds from {_AN_HOUR} (an hour), not {short_repr(older_than)}."
    )


def intent_id(intent: object) -> str:
    """Give the id of what was named to be settled.

    Raises:
        InvalidRequestError: it names none.

    """
    named = getattr(intent, "intent", intent)  # an error that carries one
    if isinstance(named, Intent | LedgerEntry):
        return named.id
    if isinstance(named, str):
        return named
    raise InvalidRequestError(
        f"intent: got {short_repr(intent)}, allowed are an Intent and an error that has one"
    )
