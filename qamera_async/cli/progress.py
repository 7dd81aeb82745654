"""How far a batch has come, as numbers: built on the library's public events alone."""

from __future__ import annotations

import time
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING

import attrs

from .. import (
    AmbiguousSubmissionError,
    ApiError,
    DownloadError,
    JobFailedError,
    JobLostError,
    JobState,
    JobTimeoutError,
    ReelRequest,
    TransportError,
)
from ..events import (
    Ambiguous,
    Downloading,
    Failed,
    Finished,
    Polled,
    RateLimitWait,
    Retrying,
    Submitted,
    Updated,
)
from .estimate import Estimate
from .snapshot import JobKind, JobLine, Snapshot, Wait

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .. import Outcome, Video
    from ..events import Event

_SHOWN = 6  # jobs
_LATELY = 60.0  # seconds that a failure is worth seeing
_SILENT = 150.0  # seconds; a download that says nothing for longer has come to an end
_WORDS: dict[type[Exception], str] = {
    AmbiguousSubmissionError: "ambiguous",
    JobTimeoutError: "timed out",
    JobLostError: "lost",
    DownloadError: "not downloaded",
}


@attrs.define(eq=False)
class _Job:
    record_ids: tuple[str, ...]
    name: str
    what: str
    since: float
    credits: int = 0
    status: str = ""
    ours: bool = True  # submitted since the start; of others it isn't known when


@attrs.define
class _Download:
    since: float
    heard: float
    done: int
    size: int | None


@attrs.frozen
class _Trouble:
    kind: JobKind
    name: str
    what: str
    status: str
    at: float


class Progress:
    """Counts what it is told of; costs next to nothing for each event and each look, however many jobs run.

    Args:
        total: How many outcomes there will be; None where nobody knows.
        limit: How many requests the quota allows in a window.
        window: The length of the window in seconds.
        clock: A monotonic clock in seconds; replaceable in tests.

    """

    def __init__(
        self,
        total: int | None,
        limit: int = 60,
        window: float = 60.0,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total = total
        self._limit = limit
        self._clock = clock
        self._started = clock()
        self._done = self._failed = self._ambiguous = 0
        self._submitted = self._reserved = self._refunded = 0
        self._records: dict[str, _Job] = {}  # each job by each of its ids, until its outcome
        self._running: dict[str, _Job] = {}  # by their first ids, the oldest first
        self._finished: dict[str, _Job] = {}  # the same, and they wait for their outcome
        self._downloads: dict[str, _Download] = {}  # the oldest first
        self._troubles: deque[_Trouble] = deque(maxlen=_SHOWN)
        self._retrying: tuple[str, float] | None = None
        self._queueing: float | None = None
        self._estimate = Estimate(limit, window)

    # --- what it is told ------------------------------------------------------------------------

    def on_event(self, event: Event) -> None:
        """Take an event; for ``QameraSession(on_event=...)``."""
        match event:
            case Downloading():
                self._downloading(event)
            case Updated():
                self._updated(event.record)
            case Submitted():
                self._accepted(event)
            case Finished():
                self._settle((event.record.id,), failed=False)
            case Failed():
                self._settle(event.record_ids, failed=isinstance(event.error, JobFailedError))
            case Retrying():
                self._again(event)
            case RateLimitWait():
                self._queueing = self._clock() + event.seconds
            case Polled():
                self._retrying = None
            case Ambiguous():
                pass  # its outcome says the same

    def outcome(self, outcome: Outcome) -> None:
        """Take an outcome of the batch."""
        error = outcome.error
        record_ids = () if outcome.job is None else outcome.job.record_ids
        self._settle(record_ids, failed=isinstance(error, JobFailedError))
        now = self._clock()
        for record_id in record_ids:
            if (job := self._records.get(record_id)) is not None:
                self._forget(job)
            self._downloads.pop(record_id, None)
        if error is None:
            self._done += 1
            return
        kind = JobKind.FAILED
        if isinstance(error, AmbiguousSubmissionError):
            self._ambiguous += 1
            kind = JobKind.AMBIGUOUS
        else:
            self._failed += 1
        ref = getattr(outcome.request, "ref", None)  # what came may be no request at all
        name = ref or (record_ids[0] if record_ids else f"row {outcome.index + 1}")
        self._troubles.append(_Trouble(kind, name, _what(outcome.request), _word(error), now))

    def _accepted(self, event: Submitted) -> None:
        now = self._clock()
        receipt = event.receipt
        for record_id in receipt.record_ids:
            if (before := self._records.get(record_id)) is not None:
                self._forget(before)
        job = _Job(
            receipt.record_ids,
            event.ref or receipt.record_ids[0],
            _what(event.request),
            now,
            max(receipt.credits_reserved or 0, 0),
        )
        self._submitted += 1
        self._reserved += job.credits
        self._remember(job)
        self._estimate.submitted(now)
        self._retrying = None

    def _remember(self, job: _Job) -> None:
        self._records.update(dict.fromkeys(job.record_ids, job))
        self._running[job.record_ids[0]] = job

    def _updated(self, video: Video) -> None:
        job = self._records.get(video.id)
        if job is not None:
            job.status = video.status
            if not job.ours and video.state is not JobState.PENDING:
                self._forget(job)  # of several records, no event would tell of the others
        elif video.state is JobState.PENDING:
            # Somebody waits for a job that was submitted earlier, or elsewhere.
            self._remember(_Job((video.id,), video.id, "", self._clock(), status=video.status, ours=False))

    def _settle(self, record_ids: Iterable[str], *, failed: bool) -> None:
        for record_id in record_ids:
            job = self._records.get(record_id)
            if job is None or self._running.pop(job.record_ids[0], None) is None:
                continue
            if failed:
                self._refunded += job.credits
                self._forget(job)
                continue
            self._finished[job.record_ids[0]] = job
            if job.ours:
                self._estimate.finished(self._clock() - job.since)

    def _forget(self, job: _Job) -> None:
        self._running.pop(job.record_ids[0], None)
        self._finished.pop(job.record_ids[0], None)
        for record_id in job.record_ids:
            self._records.pop(record_id, None)

    def _downloading(self, event: Downloading) -> None:
        now = self._clock()
        download = self._downloads.get(event.record_id)
        if event.total is not None and event.done >= event.total:
            # At its end, and not at its outcome: a thumbnail, which has no outcome, comes later still.
            self._downloads.pop(event.record_id, None)
            if download is not None and event.record_id in self._records:
                self._estimate.downloaded(now - download.since)
        elif download is None:
            self._downloads[event.record_id] = _Download(now, now, event.done, event.total)
        else:
            download.heard, download.done, download.size = now, event.done, event.total

    def _again(self, event: Retrying) -> None:
        # A download that is tried again is one job's trouble.
        if isinstance(event.error, TransportError):
            self._retrying = "the network is away", self._clock() + event.delay
        elif isinstance(event.error, ApiError):
            self._retrying = f"the server answers {event.error.status}", self._clock() + event.delay

    # --- what it tells --------------------------------------------------------------------------

    def snapshot(self, used: int, cooldown: float = 0.0) -> Snapshot:
        """Give how far it has come.

        Args:
            used: How many requests of the quota are used up: ``RateLimiter.used``.
            cooldown: For how many seconds it holds all requests: ``RateLimiter.cooldown``.

        """
        now = self._clock()
        jobs = tuple(islice(self._worth_seeing(now), _SHOWN))
        return Snapshot(
            total=self._total,
            done=self._done,
            failed=self._failed,
            ambiguous=self._ambiguous,
            submitted=self._submitted,
            in_flight=len(self._running),
            reserved=self._reserved,
            refunded=self._refunded,
            used=used,
            limit=self._limit,
            cooldown=cooldown,
            wait=self._wait(now),
            elapsed=now - self._started,
            remaining=self._remaining(now, cooldown),
            jobs=jobs,
        )

    def _wait(self, now: float) -> Wait | None:
        if self._retrying is not None and now < self._retrying[1]:
            return Wait(self._retrying[0], self._retrying[1] - now, trouble=True)
        if self._queueing is not None and now < self._queueing:
            return Wait("next slot", self._queueing - now, trouble=False)
        return None

    def _remaining(self, now: float, cooldown: float) -> float | None:
        if self._total is None:
            return None
        unsettled = self._total - (self._done + self._failed + self._ambiguous)
        if unsettled <= 0:
            return 0.0
        youngest = next(reversed(self._running.values()), None)
        return self._estimate.remaining(
            now,
            to_submit=unsettled - len(self._running) - len(self._finished),
            youngest=None if youngest is None else now - youngest.since,
            to_download=len(self._finished),
            unsettled=unsettled,
            held=cooldown,
        )

    def _worth_seeing(self, now: float) -> Iterator[JobLine]:
        for record_id, download in list(islice(self._downloads.items(), _SHOWN)):
            if now - download.heard > _SILENT:
                del self._downloads[record_id]  # it went wrong where there is no outcome to say so
            else:
                job = self._records.get(record_id)
                name, what = (record_id, "") if job is None else (job.name, job.what)
                age, done = now - download.since, download.done
                yield JobLine(JobKind.DOWNLOADING, name, what, "downloading", age, done, download.size)
        for trouble in reversed(self._troubles):
            if now - trouble.at <= _LATELY:
                yield JobLine(trouble.kind, trouble.name, trouble.what, trouble.status, now - trouble.at)
        for job in self._running.values():
            yield JobLine(JobKind.RUNNING, job.name, job.what, job.status or "submitted", now - job.since)


def _what(request: object) -> str:
    if isinstance(request, ReelRequest):
        return f"reel of {len(request.image_ids)}"
    return "video"


def _word(error: Exception) -> str:
    if isinstance(error, JobFailedError):
        return next((video.status for video in error.records if video.state is JobState.FAILED), "failed")
    if isinstance(error, ApiError):
        return f"refused, {error.status}"
    return next((word for kind, word in _WORDS.items() if isinstance(error, kind)), "failed")
