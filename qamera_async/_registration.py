"""Register requests as jobs and download their results: shared by `QameraSession.register` and `Batch`."""

from __future__ import annotations

import asyncio
import os
from functools import partial
from pathlib import Path

import attrs

from ._config import PollPolicy
from ._jobs import Job, JobRegistry
from ._models import Receipt, Record, Request, Video
from ._protocol import kind_of
from ._ratelimit import SessionLimiter
from ._submission import Claim, Submitter
from .download import Downloader, safe_name
from .errors import TargetExistsError
from .ledger.ledger import Ledger
from .ledger.places import NoLedger
from .ledger.rows import Row


@attrs.define(eq=False)
class Registrar:
    """Registers the requests of a session and of its batches, and downloads the results.

    Args:
        submitter: Sends the submissions.
        jobs: Makes the jobs, and checks that the session can be used.
        limiter: The rate limit, which keeps slots for polls from the first submission on.
        polling: Its ``stale_after`` says how many slots are kept.
        ledger: Stores downloads; `NoLedger` stores none.
        downloader: Downloads the results.

    """

    _submitter: Submitter
    _jobs: JobRegistry
    _limiter: SessionLimiter
    _polling: PollPolicy
    _ledger: NoLedger
    _downloader: Downloader

    @property
    def has_ledger(self) -> bool:
        """Whether a ledger stores the receipts, so that a rerun finds the jobs again by their refs."""
        return self._ledger.kept

    async def claim(self, request: Request, *, retry_failed: bool) -> Claim | Job[Video]:
        """Claim a request in the ledger, or return the earlier job of the same request.

        May wait for another process that has claimed the same request. Cancelling the caller releases the
        claim.

        Args:
            request: The request.
            retry_failed: Whether to claim a request again that failed according to the ledger.

        Raises:
            SessionClosedError: The session is closed, or belongs to another loop or process.
            QameraError: The request can't be submitted. Nothing was sent.

        """
        self._jobs.check()
        claim = await self._submitter.claim(request, retry_failed=retry_failed)
        return claim if claim.earlier is None else self.job_of(claim.earlier)

    async def send(self, claim: Claim) -> Receipt:
        """Send a claimed request, at most once, and return its receipt.

        Raises:
            AmbiguousSubmissionError: The server may or may not have accepted the request.
            TransportError: The server was not reached. Nothing was sent, and the claim is released.
            LedgerUnavailableError: The receipt could not be stored, and is in the error.
            QameraError: The server refused the request.
            asyncio.CancelledError: The claim was withdrawn. Nothing was sent.

        """
        self._limiter.reserve_polls(self._polling.stale_after)
        return await self._submitter.send(claim)

    def new_job(self, claim: Claim, receipt: Receipt) -> Job[Video]:
        """Return the job of a receipt that has just arrived."""
        return self._jobs.job(
            receipt.record_ids,
            claim.kind,
            request=claim.request,
            receipt=receipt,
            created_at=asyncio.get_running_loop().time(),
        )

    def withdraw(self, claim: Claim) -> None:
        """Withdraw a claimed request, unless it may have reached the server. Idempotent."""
        self._submitter.withdraw(claim)

    def job_of(self, row: Row) -> Job[Video]:
        """Return the job of a row of the ledger."""
        return self._jobs.job(
            row.record_ids, kind_of(row.request), request=row.request, receipt=row.receipt, records=row.videos
        )

    def target(self, request: Request, job: Job[Video] | None, folder: Path) -> Path | None:
        """Return the target file of a request in a folder.

        Args:
            request: Its `ref` is the name of the file.
            job: Its first record id is the name if the request has no ref; None before there is a job.
            folder: The folder.

        Returns:
            The path; None if the request has neither a ref nor a job.

        """
        name = request.ref if request.ref is not None else None if job is None else job.record_ids[0]
        return None if name is None else folder / safe_name(name, ".mp4")

    async def download(
        self, job: Job[Video], record: Record, path: Path, *, overwrite: bool, allow_private: bool
    ) -> Path:
        """Download the result of a job, unless the ledger has the existing file as this download.

        Raises:
            DownloadError: The result can't be downloaded. An existing file with other content is not changed.

        """
        download = partial(
            self._downloader.file, record, path, wait=True, overwrite=overwrite, allow_private=allow_private
        )
        ledger, record_id = self._ledger, job.record_ids[0]
        if not isinstance(ledger, Ledger):
            return await download()
        if await _is_downloaded(ledger, record_id, path):
            return path
        try:
            return await download(before_final=partial(ledger.keep_file, record_id, os.fspath(path)))
        except TargetExistsError:
            # Another process, or another request with the same target, may have finished first.
            if await _is_downloaded(ledger, record_id, path):
                return path
            raise


async def _is_downloaded(ledger: Ledger, record_id: str, path: Path) -> bool:
    """Return whether the ledger has the file at a path as the download of a record."""
    size = await asyncio.to_thread(_file_size, path)
    return size is not None and await ledger.has_file(record_id, os.fspath(path), size)


def _file_size(path: Path) -> int | None:
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None
