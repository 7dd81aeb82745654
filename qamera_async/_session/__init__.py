"""QameraSession: wires the rooms and owns their lifetimes."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import warnings
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Self, TypeVar

from yarl import URL

from .. import _protocol as protocol
from .._config import PollPolicy, RetryPolicy, StatusRules, Timeouts
from .._jobs import Job, JobContext
from .._models import Intent, ReelRequest, Request, Video, VideoRequest, check_record_ids
from .._polling import Poller
from .._ratelimit import RateLimiter
from .._ratelimit.accounts import join, left_behind
from .._ratelimit.window import Priority
from .._submission import Submitter
from .._transport import Transport
from .._transport.wire import Key, Wire, checked_url, key_problem
from ..errors import (
    ConfigurationError,
    InvalidRequestError,
    InvalidResponseError,
    QameraError,
    ServerError,
    TransportError,
)
from ..events import event_emitter
from ..ledger.places import NoLedger, checked_place, ledger_at
from .binding import Binding
from .kept import Kept
from .results import Results

if TYPE_CHECKING:
    import ssl
    from collections.abc import (
        AsyncGenerator,
        AsyncIterable,
        AsyncIterator,
        Awaitable,
        Callable,
        Iterable,
        Mapping,
        Sequence,
    )
    from pathlib import Path
    from types import TracebackType

    import aiohttp

    from .._batch import Batch
    from .._ratelimit.shared import SlotLog
    from ..events import Event
    from ..ledger.file import Settled

DEFAULT_BASE_URL = "https://app.qamera.ai"
"""Where the API is, unless a session is told otherwise."""

_T = TypeVar("_T")
_log = logging.getLogger("qamera_async")


class QameraSession:
    """A client of the Qamera AI video API, for one event loop.

    Args:
        api_key: the key; None means the environment variable ``QAMERA_API_KEY``.
        base_url: where the API is; None means ``QAMERA_BASE_URL``, then ``https://app.qamera.ai``.
        allow_http: allow plain ``http://`` for a host that is not this machine.
        rate_limiter: the quota; None means the one that the sessions of this key and origin share.
        polling: how often to poll; None means ``PollPolicy()``.
        retry: for what is safe to send again; None means ``RetryPolicy()``.
        timeouts: all limits of time; None means ``Timeouts()``.
        statuses: what status words mean; None means ``StatusRules()``.
        ledger: what keeps what is paid for: the path of a file, or a database's address, ``postgresql://...``
            (which takes the extra ``postgres``); None means that nothing is kept.
        on_event: called on the loop with each event; what it raises is logged.
        proxy: the URL of a proxy for all requests; None means none, but see ``trust_env``.
        trust_env: take proxies from the environment.
        ssl_context: for the certificates of the API and of the hosts that have the results; None means the
            system's certificates.
        trace_configs: aiohttp's trace hooks for requests to the API, for instrumentation.

    Raises:
        ConfigurationError: a key, URL or setting that can't be used.
        LedgerError: when it is entered, and its ledger can't be used.
    """

    def __init__(
        self,
        api_key: str | None = None,
        *,
        base_url: str | None = None,
        allow_http: bool = False,
        rate_limiter: RateLimiter | None = None,
        polling: PollPolicy | None = None,
        retry: RetryPolicy | None = None,
        timeouts: Timeouts | None = None,
        statuses: StatusRules | None = None,
        ledger: str | os.PathLike[str] | None = None,
        on_event: Callable[[Event], object] | None = None,
        proxy: str | None = None,
        trust_env: bool = False,
        ssl_context: ssl.SSLContext | None = None,
        trace_configs: Sequence[aiohttp.TraceConfig] = (),
    ) -> None:
        self._origin = "not set up"
        key = os.environ.get("QAMERA_API_KEY") if api_key is None else api_key
        problem = key_problem(key)
        # From here on a traceback with locals, whichever setting it is about, must not show it.
        hidden, key, api_key = Key(key or ""), None, None
        if problem is not None:
            raise ConfigurationError(problem)
        self._origin = _base_url(base_url, allow_http=allow_http)
        self._wire = Wire(
            self._origin,
            hidden,
            proxy,
            trust_env,
            ssl_context,
            trace_configs,
        )
        self._polling = _setting("polling", polling, PollPolicy)
        self._retry = _setting("retry", retry, RetryPolicy)
        self._timeouts = _setting("timeouts", timeouts, Timeouts)
        self._rules = _setting("statuses", statuses, StatusRules)
        if rate_limiter is not None and not isinstance(rate_limiter, RateLimiter):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(
                f"rate_limiter: got {type(rate_limiter).__name__}, allowed is a RateLimiter or None"
            )
        self._emit = event_emitter(on_event)
        # It may hold a password, which is no local's business from here on.
        self._place, ledger = None if ledger is None else checked_place(ledger), None
        origin = str(URL(self._origin).origin())
        self._ledger = NoLedger() if self._place is None else ledger_at(self._place, origin)
        try:
            self._budget, self._leave_budget = join(origin, self._wire.api_key.text, rate_limiter)
        except ConfigurationError:
            self._ledger.release()
            raise
        self._binding = Binding(self._begin)
        # The key itself is nobody's business who reads the ledger.
        account = hashlib.blake2b(
            f"{origin} {self._wire.api_key.text}".encode(), key=b"qamera-async slots", digest_size=16
        ).hexdigest()
        self._slots = self._ledger.slots(account, self._timeouts.request + self._timeouts.connect)
        board = self._ledger.board(account)
        self._transport = Transport(self._wire, self._budget, self._timeouts, self._retry, self._emit)
        self._poller = Poller(
            self._transport, self._budget, self._polling, self._timeouts, self._rules, self._emit, board
        )
        self._submitter = Submitter(
            self._transport, self._poller, self._timeouts, self._rules, self._emit, self._ledger
        )
        self._results = Results(
            self._transport,
            self._poller,
            self._retry,
            self._timeouts,
            self._rules,
            self._emit,
            self._ledger,
        )
        self._job_context = JobContext(
            self._poller, self._emit, self._binding.check, self._timeouts.job, self._ledger
        )
        self._kept = Kept(self._ledger, self._submitter.candidates, self._timeouts, self._job_context)
        self._reserved = False
        self._close_task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        binding = getattr(self, "_binding", None)
        return f"<QameraSession {self._origin} {'new' if binding is None else binding.state}>"

    def __del__(self) -> None:
        # A session that was never used holds nothing but its place in the budget.
        if getattr(self, "_kept", None) is not None and self._binding.state == "open":
            # Later, by who makes the next session: this may run in the middle of whatever holds a lock.
            left_behind.append(
                partial(
                    _let_go_of,
                    self._budget,
                    id(self),
                    self._slots if self._binding.loop else None,
                    self._ledger,
                    self._leave_budget,
                )
            )
            if self._binding.loop is not None:
                warnings.warn(
                    f"unclosed {self!r}; use async with, or await aclose()", ResourceWarning, stacklevel=1
                )

    async def __aenter__(self) -> Self:
        self._binding.check()
        try:
            await self._ledger.open()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Wait for POSTs under way, then close everything; idempotent.

        What waits for a job or for a slot of the quota gets ``SessionClosedError``. A POST that isn't
        answered within ``Timeouts.close`` seconds is cut off, ambiguous and in the log.
        """
        if self._close_task is None:
            if self._binding.loop is None:
                if self._binding.state != "closed":
                    self._ledger.release()
                self._closed()
                return
            self._binding.check()
            self._binding.state = "closing"
            # A task of its own, so that a cancelled caller doesn't leave half of it open.
            self._close_task = asyncio.get_running_loop().create_task(self._close(), name="qamera-close")
        await asyncio.shield(self._close_task)

    async def _close(self) -> None:
        parts = [
            self._submitter.aclose,
            self._poller.aclose,
            self._transport.aclose,
            self._leave_slots,
            self._leave_ledger,
        ]
        try:
            self._transport.stop_queueing()
            for close in parts:
                try:
                    await close()
                except Exception:
                    _log.exception("closing a part of the session failed; the rest is closed all the same")
        finally:
            self._closed()

    def _closed(self) -> None:
        if self._binding.state != "closed":
            self._binding.state = "closed"
            self._budget.release(id(self))
            self._leave_budget()

    def _begin(self) -> None:
        """Take part in the quota that a ledger shares; from the first use on."""
        if self._slots is not None:
            self._budget.attach(self._slots)

    async def _leave_slots(self) -> None:
        if self._slots is not None and self._binding.loop is not None:
            slots, self._slots = self._slots, None
            self._budget.detach(slots)

    async def _leave_ledger(self) -> None:
        async with asyncio.timeout(self._timeouts.close):
            await self._ledger.aclose()

    @property
    def rate_limiter(self) -> RateLimiter:
        """The quota that this session's requests share."""
        return self._budget

    # --- jobs -----------------------------------------------------------------------------------

    async def register_video(
        self,
        *,
        image_id: str | None = None,
        generated_image_id: str | None = None,
        suggestion: str | None = None,
        provider: str | None = None,
        ref: str | None = None,
        extra_body: Mapping[str, object] | None = None,
    ) -> Job:
        """Order one video from one image; this spends credits.

        Source: the API's section "POST /api/external/video-picker/register-videos".

        Args:
            image_id: the source image; exactly one of the two ids.
            generated_image_id: a generated image as the source.
            suggestion: creative direction, motion; None leaves it to the server.
            provider: the generation provider; None means the server's default.
            ref: the caller's own name for this work; never sent.
            extra_body: further fields for the body.

        Raises:
            InvalidRequestError: nothing was sent.
            AmbiguousSubmissionError: it may or may not have been paid for; it is not sent again.
            ApiError: the server refused it: 400, 401, 402, 403, 404, or 429 for five windows.
            TransportError: the server was not reached; nothing was sent.
            RefConflictError: the ledger has another request under this ``ref``; nothing was sent.
            LedgerError: the ledger can't be written; ``LedgerUnavailableError`` has a receipt that came.
            SessionClosedError: the session is closed, or closed while this waited for the quota.
        """
        return await self.register(
            VideoRequest(image_id, generated_image_id, suggestion, provider, ref, extra_body)
        )

    async def register_reel(
        self,
        image_ids: Iterable[str],
        *,
        ref: str | None = None,
        extra_body: Mapping[str, object] | None = None,
    ) -> Job:
        """Order one reel from 1 to 10 images; this spends credits.

        Source: the API's section "POST /api/external/reel/register-reel".

        Args:
            image_ids: the images, in the order of the reel.
            ref: the caller's own name for this work; never sent.
            extra_body: further fields for the body.

        Raises:
            QameraError: as ``register_video``.
        """
        return await self.register(ReelRequest(image_ids, ref, extra_body))  # pyright: ignore[reportArgumentType]

    async def register(self, request: Request, *, retry_failed: bool = False) -> Job:
        """Order what a request value says; this spends credits.

        Args:
            request: a ``VideoRequest`` or a ``ReelRequest``.
            retry_failed: order again what a ledger says has failed; without a ledger it changes nothing.

        Raises:
            QameraError: as ``register_video``.
        """
        return await self._order(request, retry_failed=retry_failed)

    async def _order(
        self,
        request: Request,
        *,
        retry_failed: bool,
        approve: Callable[[], Awaitable[None]] | None = None,
        withdrawn: asyncio.Future[None] | None = None,
    ) -> Job:
        """Register. ``approve`` and ``withdrawn`` are those of ``Submitter.submit``."""
        if not isinstance(request, VideoRequest | ReelRequest):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidRequestError(
                f"request: got {type(request).__name__}, allowed are VideoRequest and ReelRequest"
            )
        self._binding.check()
        if not self._reserved:
            self._reserved = True
            self._budget.reserve(id(self), self._polling.stale_after)
        accepted = await self._submitter.submit(
            request, retry_failed=retry_failed, approve=approve, withdrawn=withdrawn
        )
        if accepted.earlier is not None:
            return self._kept.job_of(accepted.earlier)
        receipt = accepted.receipt
        assert receipt is not None  # noqa: S101 - a new order has one
        now = asyncio.get_running_loop().time()
        job = Job(
            self._job_context,
            receipt.record_ids,
            request=request,
            receipt=receipt,
            born=now,
            due=now + self._polling.interval,
        )
        self._kept.note(accepted.intent_id, job)
        return job

    def job(self, *record_ids: str) -> Job:
        """Attach to records made earlier or elsewhere; costs no request until it is awaited.

        Args:
            record_ids: one or more, as a receipt or the Qamera app has them; doubles count once.

        Raises:
            InvalidRequestError: no id, or one that is none.
            SessionClosedError: the session is closed.
        """
        ids = check_record_ids(record_ids)
        self._binding.check_open()
        return Job(self._job_context, ids)

    async def list_videos(self) -> tuple[Video, ...]:
        """Give all videos and reels of the account, in the server's order; one request.

        Source: the API's section "GET /api/external/videos".

        Raises:
            ApiError: the server refused it, or is in trouble.
            TransportError: no answer came, after ``RetryPolicy.attempts``.
            InvalidResponseError: the answer is no list.
            SessionClosedError: the session is closed.
        """
        self._binding.check()
        answer = await self._transport.retried(
            "list_videos",
            lambda: self._transport.get(protocol.VIDEOS_PATH, Priority.SUBMISSION),
            _may_pass,
        )
        videos = protocol.read_videos(answer, self._rules)
        self._poller.notice(videos)
        return videos

    # --- many jobs ------------------------------------------------------------------------------

    def batch(
        self,
        requests: Iterable[Request] | AsyncIterable[Request],
        *,
        max_in_flight: int = 300,
        max_credits: int | None = None,
        retry_failed: bool = False,
        download_to: str | os.PathLike[str] | None = None,
        max_downloads: int = 4,
    ) -> Batch:
        """Order many; this spends credits. ``async for`` gives outcomes as they come, ``await`` all in order.

        Args:
            requests: read lazily; any iterable or async iterable of requests.
            max_in_flight: how many may be submitted and not yet handed out.
            max_credits: how many credits it may spend; None means no limit.
            retry_failed: order again what a ledger says has failed.
            download_to: a folder for the clips, named after ``ref`` or record id; None means no downloads.
            max_downloads: how many clips are fetched at a time.

        Raises:
            ConfigurationError: an argument that can't be used.
            SessionClosedError: the session is closed.
        """
        from .._batch import Batch  # noqa: PLC0415 - it stands on the session

        self._binding.check_open()
        if download_to is not None:
            self._results.prepare()
        return Batch(
            self,
            requests,
            retry=self._retry,
            max_in_flight=max_in_flight,
            max_credits=max_credits,
            retry_failed=retry_failed,
            download_to=download_to,
            max_downloads=max_downloads,
        )

    # --- results --------------------------------------------------------------------------------

    async def download(
        self,
        video_or_job: Video | Job,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        allow_private: bool = False,
        on_progress: Callable[[int, int | None], object] | None = None,
    ) -> Path:
        """Fetch a clip into a file; it has its name only when it is whole.

        Args:
            video_or_job: whose clip; a job is waited for.
            path: the file's name; its folder must be there.
            overwrite: replace a file that is there.
            allow_private: allow a host inside the private network, where the API itself is not.
            on_progress: called on the loop with the bytes so far and in all (None: not known).

        Returns:
            The path.

        Raises:
            DownloadError: there is no such file now; nothing is ordered again. A target that is there is a
                ``FileExistsError`` too.
            QameraError: as ``Job.wait``.
        """
        return await self._results.downloader.file(
            await self._video_of(video_or_job),
            path,
            overwrite=overwrite,
            allow_private=allow_private,
            on_progress=on_progress,
        )

    async def download_thumbnail(
        self,
        video_or_job: Video | Job,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        allow_private: bool = False,
        on_progress: Callable[[int, int | None], object] | None = None,
    ) -> Path:
        """Fetch a thumbnail into a file, as ``download`` does a clip.

        Args:
            video_or_job: whose thumbnail; a job is waited for.
            path: as for ``download``.
            overwrite: as for ``download``.
            allow_private: as for ``download``.
            on_progress: as for ``download``.

        Returns:
            The path.

        Raises:
            DownloadError: as for ``download``.
            QameraError: as ``Job.wait``.
        """
        return await self._results.downloader.file(
            await self._video_of(video_or_job),
            path,
            thumbnail=True,
            overwrite=overwrite,
            allow_private=allow_private,
            on_progress=on_progress,
        )

    @asynccontextmanager
    async def stream(
        self, video_or_job: Video | Job, *, allow_private: bool = False
    ) -> AsyncGenerator[AsyncIterator[bytes]]:
        """Hand a clip on without a file: ``async with session.stream(video) as pieces``.

        Args:
            video_or_job: whose clip; a job is waited for.
            allow_private: as for ``download``.

        Raises:
            DownloadError: it can't be had; in the iteration where it ends too early.
            QameraError: as ``Job.wait``.
        """
        video = await self._video_of(video_or_job)
        async with self._results.downloader.stream(video, allow_private=allow_private) as pieces:
            yield pieces

    async def _video_of(self, video_or_job: Video | Job) -> Video:
        self._binding.check()
        return await self._results.video_of(video_or_job)

    # What a batch asks for beside these.

    def _target(self, request: Request, job: Job | None, folder: Path) -> Path | None:
        return self._results.target(request, job, folder)

    async def _fetch(self, job: Job, video: Video, path: Path) -> Path:
        return await self._results.fetch(job, video, path)

    @property
    def _keeps_receipts(self) -> bool:
        return self._ledger.kept

    # --- what the ledger knows ------------------------------------------------------------------

    async def unfinished(self) -> list[Job]:
        """Give the jobs that are paid for and that nobody has seen finished.

        Raises:
            ConfigurationError: the session has no ledger.
            LedgerError: the ledger can't be used.
        """
        self._binding.check()
        return await self._kept.unfinished()

    async def ambiguous(self) -> list[Intent]:
        """Give the requests of which nobody knows whether they were accepted, with their candidates.

        Costs one request, for the list, where there are any. A record that was made near the time of sending,
        and that no receipt claims, is a candidate; of several that were sent together each may have the same
        ones. None seen is not "not made": a server may list a record late.

        Raises:
            ConfigurationError: the session has no ledger.
            LedgerError: the ledger can't be used.
        """
        self._binding.check()
        return await self._kept.ambiguous()

    async def adopt(self, intent: Settled, *record_ids: str) -> Job:
        """Settle an ambiguous request: these records are what was made of it.

        Args:
            intent: from ``ambiguous()``, or the error that it was raised as, or the intent's id.
            record_ids: the records, as the Qamera app or the candidates have them.

        Returns:
            Its job.

        Raises:
            InvalidRequestError: no id, or one of a record that belongs to another request.
            ConfigurationError: the session has no ledger.
            LedgerError: the ledger can't be used, or has nothing to settle there.
        """
        ids = check_record_ids(record_ids)
        self._binding.check()
        return await self._kept.adopt(intent, ids)

    async def abandon(self, intent: Settled) -> None:
        """Settle an ambiguous request: nothing was made of it, so it may be ordered anew.

        Args:
            intent: as for ``adopt``.

        Raises:
            ConfigurationError: the session has no ledger.
            LedgerError: the ledger can't be used, or has nothing to settle there.
        """
        self._binding.check()
        await self._kept.abandon(intent)


def _let_go_of(
    budget: RateLimiter, owner: int, slots: SlotLog | None, ledger: NoLedger, leave: Callable[[], None]
) -> None:
    """Let go of what a session held that nobody closed."""
    budget.release(owner)
    if slots is not None:
        budget.detach(slots)
    ledger.release()
    leave()


def api_origin(base_url: str | None = None, *, allow_http: bool = False) -> str:
    """Give the origin of the API that a session would use, as a ledger keeps it.

    Args:
        base_url: As for `QameraSession`; None means ``QAMERA_BASE_URL``, then ``https://app.qamera.ai``.
        allow_http: As for `QameraSession`.

    Raises:
        ConfigurationError: It is no URL that could be used.

    """
    return str(URL(_base_url(base_url, allow_http=allow_http)).origin())


def _base_url(base_url: str | None, *, allow_http: bool) -> str:
    return checked_url(base_url or os.environ.get("QAMERA_BASE_URL") or DEFAULT_BASE_URL, allow_http)


def _may_pass(error: QameraError) -> bool:
    if isinstance(error, TransportError):
        return not error.permanent
    return isinstance(error, ServerError) or (
        isinstance(error, InvalidResponseError) and error.status is None
    )


def _setting(name: str, value: _T | None, kind: type[_T]) -> _T:
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise ConfigurationError(f"{name}: got {type(value).__name__}, allowed is a {kind.__name__} or None")
    return value
