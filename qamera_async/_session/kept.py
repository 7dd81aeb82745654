"""What a ledger knows, as jobs and intents."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, cast
from weakref import WeakValueDictionary

import attrs

from .._jobs import Job, JobContext
from ..errors import ConfigurationError, QameraError

if TYPE_CHECKING:
    from .._config import Timeouts
    from .._models import Intent, Video
    from .._submission.candidates import Candidates
    from ..ledger.file import Settled
    from ..ledger.ledger import Ledger
    from ..ledger.places import NoLedger
    from ..ledger.rows import Row

_log = logging.getLogger("qamera_async")


class Kept:
    """The jobs and the doubts of a session's ledger."""

    def __init__(
        self, ledger: NoLedger, candidates: Candidates, timeouts: Timeouts, context: JobContext
    ) -> None:
        self._ledger = ledger
        self._candidates = candidates
        self._timeouts = timeouts
        self._context = context
        # The jobs of this session that somebody holds: the same request gives the same job.
        self._jobs: WeakValueDictionary[str, Job] = WeakValueDictionary()

    def note(self, intent_id: str, job: Job) -> None:
        """Remember the job of an intent, as long as somebody holds it."""
        if self._ledger.kept:
            self._jobs[intent_id] = job

    def job_of(self, row: Row) -> Job:
        """Give the job of a row, the same one as long as somebody holds it."""
        job = self._jobs.get(row.id)
        if job is None or job.record_ids != row.record_ids:
            job = self._jobs[row.id] = Job(
                self._context, row.record_ids, request=row.request, receipt=row.receipt, videos=row.videos
            )
        return job

    async def unfinished(self) -> list[Job]:
        """Give the jobs that are paid for and that nobody has seen finished."""
        return [self.job_of(row) for row in await self._there().unfinished()]

    async def ambiguous(self) -> list[Intent]:
        """Give the requests of which nobody knows, with the candidates that they have now."""
        ledger = self._there()
        rows = await ledger.doubtful()
        found: dict[str, tuple[Video, ...]] = {}
        if rows:
            try:
                async with asyncio.timeout(self._timeouts.reconcile):
                    found = await self._candidates.look_back(rows, self._timeouts.request)
            except (TimeoutError, QameraError) as error:
                _log.info("ambiguous requests can't be looked into: %s", str(error) or "no answer in time")
        for row in rows:
            # What was seen once stays a candidate. That nothing was seen is not kept: it may show up later.
            if found.get(row.id) and found[row.id] != row.candidates:
                await ledger.looked_into(row.id, found[row.id])
        return [attrs.evolve(row.intent, candidates=found.get(row.id, row.candidates or ())) for row in rows]

    async def adopt(self, intent: Settled, record_ids: tuple[str, ...]) -> Job:
        """Settle an ambiguous request: these records are what was made of it."""
        return self.job_of(await self._there().adopt(_id_of(intent), record_ids))

    async def abandon(self, intent: Settled) -> None:
        """Settle an ambiguous request: nothing was made of it."""
        await self._there().abandon(_id_of(intent))

    def _there(self) -> Ledger:
        if not self._ledger.kept:
            raise ConfigurationError("The session has no ledger: make it with QameraSession(ledger=PATH).")
        return cast("Ledger", self._ledger)


def _id_of(intent: Settled) -> str:
    from ..ledger.file import intent_id  # noqa: PLC0415 - few sessions settle a doubt

    return intent_id(intent)
