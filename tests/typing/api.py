"""Typed usage of the public names: checked by mypy and pyright, never run."""

import math
from pathlib import Path

from qamera_async import (
    AmbiguityLimitError,
    AmbiguousSubmissionError,
    ApiError,
    AuthenticationError,
    BadRequestError,
    Batch,
    BatchResult,
    BatchStoppedError,
    ConfigurationError,
    ConnectionFailedError,
    CreditLimitError,
    DownloadError,
    InsufficientCreditsError,
    Intent,
    InvalidRequestError,
    InvalidResponseError,
    Job,
    JobError,
    JobFailedError,
    JobLostError,
    JobState,
    JobTimeoutError,
    LedgerCorruptError,
    LedgerError,
    LedgerUnavailableError,
    LedgerVersionError,
    NotFoundError,
    Outcome,
    PermissionDeniedError,
    PollPolicy,
    QameraError,
    QameraSession,
    RateLimiter,
    RateLimitError,
    Receipt,
    ReelRequest,
    RefConflictError,
    Request,
    RequestTimeoutError,
    RetryPolicy,
    ServerError,
    SessionClosedError,
    SessionStatistics,
    StatusRules,
    TargetExistsError,
    Timeouts,
    TransportError,
    Video,
    VideoRequest,
)
from qamera_async.download import safe_name
from qamera_async.events import (
    Ambiguous,
    Downloading,
    Event,
    Failed,
    Finished,
    Polled,
    RateLimitWait,
    Retrying,
    Submitted,
    Updated,
)
from qamera_async.ledger import LedgerEntry, LedgerFile, LedgerState, Pruned, copy_ledger
from qamera_async.report import write_report


def watch(event: Event) -> None:
    """Take an event."""
    if isinstance(event, Submitted):
        receipt: Receipt = event.receipt
        print(receipt.record_ids)


async def use() -> None:
    """Use each public name once."""
    async with QameraSession(
        "mk_live_a.b",
        base_url="https://example.com",
        rate_limiter=RateLimiter(60, 60.0),
        polling=PollPolicy(interval=1.0),
        retry=RetryPolicy(attempts=2),
        timeouts=Timeouts(job=math.inf, appear=None),
        statuses=StatusRules(done=["DONE"], failed=["FAILED"]),
        on_event=watch,
        headers={"X-Team": "shop"},
    ) as qamera:
        request: Request = VideoRequest(image_id="a", extra_body={"quality": 3})
        job: Job[Video] = await qamera.register(request)
        job = await qamera.register(ReelRequest(["a", "b"]))
        job = await qamera.register_reel(("a", "b"), ref="r")
        video: Video = await job
        video = await job.wait(timeout=3)
        video = await job.wait(timeout=None)
        video = await qamera.create_video(image_id="a", ref="v")
        video = await qamera.create_reel(["a"])
        videos: tuple[Video, ...] = job.records
        now: Video | None = await job.refresh()
        state: JobState = job.state
        async for snapshot in job.updates():
            print(snapshot.status, state, video, videos, now)
        statistics: SessionStatistics = qamera.statistics()
        print(statistics.waiters + statistics.submissions, qamera.closed, qamera.rate_limiter.cooldown + 1)
        try:
            await qamera.job("vid_1")
        except JobFailedError as error:
            print(error.records)
        except AmbiguousSubmissionError as error:
            intent: Intent = error.intent
            print(intent.id)


def progress(done: int, total: int | None) -> None:
    """Take the bytes of a download."""
    print(done, total)


async def use_a_ledger() -> None:
    """Use what a ledger, a batch and downloads are for."""
    async with QameraSession("mk_live_a.b", ledger=Path("jobs.db")) as qamera:
        requests: list[Request] = [VideoRequest("a", ref="r"), ReelRequest(["a"])]
        batch: Batch = qamera.batch(requests, max_in_flight=3, max_credits=100, download_to="clips")
        async with batch as outcomes:
            async for outcome in outcomes:
                one: Outcome = outcome
                path: Path | None = one.path
                video: Video = one.unwrap()
                print(path, video.id, one.index + 1, one.ok, one.job, one.record, one.error)
            print(batch.submitted + batch.finished + batch.credits_reserved, batch.stopped)
        result: BatchResult = await qamera.batch(iter(requests), retry_failed=True)
        print(
            result.summary().upper(),
            len(result.records),
            result.stopped,
            result.credits_reserved - result.credits_refunded,
        )
        jobs: list[Job[Video]] = await qamera.unfinished()
        file: Path = await qamera.download(jobs[0], "a.mp4", on_progress=progress)
        file = await jobs[0].download("b.mp4", overwrite=True)
        file = await qamera.download_thumbnail(await jobs[0], file.with_suffix(".jpg"), overwrite=True)
        async with qamera.stream(jobs[0]) as pieces:
            async for piece in pieces:
                print(piece.hex())
        for intent in await qamera.ambiguous():
            job: Job[Video] = await qamera.adopt(intent, *(video.id for video in intent.candidates))
            print(job.record_ids)
            await qamera.abandon(intent.id)
        await qamera.abandon("r")


async def look_into_a_ledger() -> None:
    """Use what needs no key."""
    page: Path = await write_report("jobs.db", Path("report.html"), title="Clips")
    print(page.name)
    there: bool = await LedgerFile("postgresql://db.example/shop").exists()
    copied: int = await copy_ledger(Path("jobs.db"), "postgresql://db.example/shop", keep=not there)
    print(copied + 1)
    async with LedgerFile(Path("jobs.db")) as ledger:
        pruned: Pruned = await ledger.prune(90 * 86_400.0, dry_run=True)
        print(
            pruned.before.isoformat(), pruned.requests + pruned.refs, pruned.counts.get(LedgerState.DONE, 0)
        )
        async for entry in ledger.entries():
            one: LedgerEntry = entry
            state: LedgerState = one.state
            ref: str = one.request.ref or one.id
            print(
                state.value.upper(), safe_name(ref, ".mp4").upper(), one.origin.upper(), one.current, one.busy
            )
            print(one.receipt and one.receipt.credits_reserved, one.reason.upper(), len(one.videos))
            for path, size in one.files.items():
                print(path.name, size + 1)
            moments = one.claimed_at, one.sent_at, one.submitted_at, one.settled_at, one.downloaded_at
            print([moment.isoformat() for moment in moments if moment is not None])
            if state is LedgerState.AMBIGUOUS and one.candidates:
                await ledger.adopt(one, one.candidates[0].id, *one.record_ids)
            elif state is LedgerState.AMBIGUOUS:
                await ledger.abandon(one.id)


def tell(event: Event) -> str:  # noqa: PLR0911 - one for each event
    """Tell the events apart: each field has its type."""
    match event:
        case Submitted(ref, request, receipt):
            return f"{ref or ''} {request.extra_body} {receipt.record_ids[0].upper()}"
        case Updated(video) | Finished(video):
            return video.id.upper()
        case Failed(record_ids, error):
            return f"{record_ids[0].upper()} {error}"
        case Ambiguous(intent):
            return intent.id.upper()
        case RateLimitWait(seconds):
            return f"{seconds:.1f}"
        case Retrying(what, attempt, delay, error):
            return f"{what.upper()} {attempt + 1} {delay:.1f} {error}"
        case Polled(videos, changed, waiting):
            return f"{videos + changed + waiting}"
        case Downloading(record_id, done, total):
            return f"{record_id.upper()} {done + (total or 0)}"


def explain(error: QameraError) -> str:  # noqa: PLR0911 - one for each error
    """Tell the errors apart: each attribute has its type."""
    match error:
        case InsufficientCreditsError():
            return f"{error.required} {error.available} {error.status + 1}"
        case (
            BadRequestError()
            | AuthenticationError()
            | PermissionDeniedError()
            | NotFoundError()
            | RateLimitError()
            | ServerError()
            | ApiError()
        ):
            return f"{error.message.upper()} {error.correlation_id} {error.retry_after}"
        case InvalidResponseError():
            return error.expected.upper() + error.excerpt.upper()
        case ConnectionFailedError() | RequestTimeoutError() | TransportError():
            return f"{error.sent}"
        case JobTimeoutError():
            return f"{error.timeout:.1f} {error.status} {error.last_error} {error.list_age}"
        case JobLostError():
            return f"{error.absent_for:.1f} {error.record}"
        case JobError():
            return error.record_ids[0].upper()
        case ConfigurationError() | InvalidRequestError() | SessionClosedError():
            return str(error)
        case _:
            return explain_more(error)


def explain_more(error: QameraError) -> str:  # noqa: PLR0911 - one for each error
    """Tell apart the errors of batches, downloads and ledgers."""
    match error:
        case CreditLimitError():
            return f"{error.max_credits - error.spent} {error.price}"
        case AmbiguityLimitError():
            return error.errors[0].intent.id.upper()
        case TargetExistsError():
            return error.path or ""
        case DownloadError():
            return f"{error.record_id} {error.path} {error.status} {error.host}"
        case LedgerVersionError():
            return f"{error.found - error.supported}"
        case LedgerUnavailableError():
            return f"{error.intent} {error.receipt and error.receipt.record_ids}"
        case RefConflictError():
            return f"{error.request.ref} {error.earlier.ref}"
        case LedgerCorruptError() | LedgerError():
            return f"{error.path}"
        case BatchStoppedError():
            return error.message.upper()
        case _:
            return ""
