"""QameraSession: wires the parts together and owns their lifetimes."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import ssl
import warnings
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
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar, cast

import aiohttp
import attrs

from ._batch import Batch
from ._config import PollPolicy, RetryPolicy, StatusRules, Timeouts
from ._jobs import Job, JobRegistry
from ._models import Intent, Record, ReelRequest, Request, Video, VideoRequest, check_record_ids
from ._polling import Poller, in_steps
from ._protocol import KINDS, VIDEOS
from ._ratelimit import RateLimiter, session_limiter
from ._registration import Registrar
from ._submission import Submitter
from ._transport import ApiClient, ConnectionSettings, DownloadClient, Secret
from .download import Downloader
from .errors import ConfigurationError, InvalidRequestError, QameraError, SessionClosedError, short_repr
from .events import Event, check_callback, event_emitter
from .ledger.file import Settled, intent_id
from .ledger.ledger import Ledger
from .ledger.places import NoLedger, checked_place, ledger_at

_T = TypeVar("_T")
_log = logging.getLogger("qamera_async")

_LEDGER_CLOSE = 10.0  # seconds that the ledger gets to close at least, however short Timeouts.close is


@attrs.frozen
class SessionStatistics:
    """The numbers of one session at one moment, as `QameraSession.statistics` returns them.

    Args:
        waiters: Tasks that await a job.
        watched_records: Records that are watched: the job of each has a waiter.
        polls: Polls that this session has sent.
        submissions: Submissions that the server has accepted.
        slots_used: Slots of the rate limit that are taken now, by all sessions that share it.
        slots_waiting: Requests that wait for a slot, of all sessions that share the rate limit.
        credits_reserved: Credits that the receipts of this session name.
        seconds_since_poll: Seconds since the last good poll was sent; None before the first.

    """

    waiters: int
    watched_records: int
    polls: int
    submissions: int
    slots_used: int
    slots_waiting: int
    credits_reserved: int
    seconds_since_poll: float | None


class QameraSession:
    """A client of the Qamera AI API for one event loop; an async context manager.

    The session is bound to the first event loop that it runs on. Used on another loop, in a forked process or
    after it was closed, its methods raise `SessionClosedError`.

    Args:
        api_key: The API key; None means the environment variable ``QAMERA_API_KEY``.
        base_url: The address of the API; None means ``QAMERA_BASE_URL``, then ``https://app.qamera.ai``.
        allow_http: Allow ``http://`` to a host other than this machine.
        rate_limiter: The rate limit; None means 60 requests in 60 s, shared by all sessions of this process
            with the same key and origin.
        polling: How often the lists are polled; None means ``PollPolicy()``.
        retry: How requests that are safe to repeat are retried; None means ``RetryPolicy()``.
        timeouts: All time limits; None means ``Timeouts()``.
        statuses: What the status words of the API mean; None means ``StatusRules()``.
        ledger: Ledger file (created if missing) or ``postgresql://`` URL (needs the extra ``postgres``); None
            means no ledger.
        on_event: A plain function that is called on the event loop with each event of `qamera_async.events`.
            Its exceptions are logged and ignored.
        headers: Headers to add to each request to the API. The key, host, content and idempotency headers
            can't be set.
        proxy: The URL of an HTTP proxy for all requests; None means no proxy, unless ``trust_env`` is set.
        trust_env: Take proxies from the environment (``HTTPS_PROXY``, ``NO_PROXY``, ...). ``.netrc`` is never
            read.
        ssl_context: TLS settings for all connections; None means the certificates of the system.
        trace_configs: aiohttp's trace hooks for the requests to the API.

    Raises:
        ConfigurationError: A key, URL or setting is invalid.

    Example:
        ::

            async with QameraSession() as qamera:
                job = await qamera.register_video(image_id="img_abc123")
                video = await job

    """

    _built = False  # whether `__init__` has succeeded

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
        headers: Mapping[str, str] | None = None,
        proxy: str | None = None,
        trust_env: bool = False,
        ssl_context: ssl.SSLContext | None = None,
        trace_configs: Sequence[aiohttp.TraceConfig] = (),
    ) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process_id = os.getpid()
        self._closing = self._closed = False
        self._close_task: asyncio.Task[None] | None = None
        # Tracebacks with local variables must not show secrets, so these arguments are deleted first.
        secret_key, secret_url, secret_headers = Secret(api_key), Secret(base_url), Secret(headers)
        secret_proxy, secret_ledger = Secret(proxy), Secret(ledger)
        del api_key, base_url, headers, proxy, ledger
        self._settings = ConnectionSettings(
            api_key=secret_key,
            base_url=secret_url.value,
            allow_http=allow_http,
            headers=secret_headers.value,
            proxy=secret_proxy,
            trust_env=trust_env,
            ssl_context=ssl_context,
            trace_configs=trace_configs,
        )
        polling = _setting("polling", polling, PollPolicy)
        rules = _setting("statuses", statuses, StatusRules)
        self._retry = retry = _setting("retry", retry, RetryPolicy)
        self._timeouts = timeouts = _setting("timeouts", timeouts, Timeouts)
        if rate_limiter is not None:
            rate_limiter = _setting("rate_limiter", rate_limiter, RateLimiter)
        emit = event_emitter(on_event)
        origin = self._settings.origin
        self._ledger: NoLedger = (
            NoLedger()
            if secret_ledger.value is None
            else ledger_at(checked_place(secret_ledger.value), origin)
        )
        account = _account(self._settings)
        try:
            self._limiter = session_limiter(account, rate_limiter)
        except ConfigurationError:
            self._ledger.release()
            raise
        self._slots = self._ledger.slots(account, timeouts.request + timeouts.connect)
        self._api = ApiClient(self._settings, timeouts, retry)
        board = self._ledger.board(account)
        self._pollers = {
            spec.path: Poller(spec, self._api, self._limiter, polling, timeouts, retry, rules, emit, board)
            for spec in {kind.records for kind in KINDS.values()}
        }
        self._submitter = Submitter(
            self._api, self._limiter, self._pollers, self._ledger, timeouts, retry, emit
        )
        self._download_client = DownloadClient(self._settings, timeouts)
        self._downloader = Downloader(self._download_client, retry, timeouts, emit, self._listed_video)
        self._jobs = JobRegistry(self._pollers, self._bind_to_loop, timeouts, self._ledger, self._downloader)
        self._registrar = Registrar(
            self._submitter, self._jobs, self._limiter, polling, self._ledger, self._downloader
        )
        self._built = True

    def __repr__(self) -> str:
        state = "closed" if self.closed else "new" if self._loop is None else "open"
        settings = getattr(self, "_settings", None)  # missing if the settings were invalid
        return f"<QameraSession {'(invalid)' if settings is None else settings.origin} {state}>"

    def __del__(self) -> None:
        if not self._built or self._closed:
            return
        # Deferred, because a finalizer may run while this thread holds the limiter's lock.
        self._limiter.leave_when_next_session_opens(self._ledger.release)
        if self._loop is not None:
            warnings.warn(
                f"Unclosed {self!r}: use async with, or await aclose().",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )

    # --- lifetime ---------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Bind the session to the running loop and open its ledger.

        Raises:
            LedgerError: The ledger can't be opened.
            SessionClosedError: The session is closed, or belongs to another loop or process.

        """
        self._bind_to_loop()
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
        """Wait for the submissions that are being sent, then close the session; idempotent.

        Tasks that wait for a job or for a slot of the rate limit get `SessionClosedError`. A submission
        without a response after ``Timeouts.close`` seconds is cancelled, logged, and recorded as ambiguous in
        the ledger.

        Raises:
            SessionClosedError: The session belongs to another loop or process.

        """
        if self._close_task is None:
            if self._loop is None:
                if not self._closed:
                    self._ledger.release()
                self._finish_closing()
                return
            self._bind_to_loop()
            self._closing = True
            # A separate task, so that cancelling the caller doesn't leave the session half open.
            self._close_task = asyncio.get_running_loop().create_task(self._close(), name="qamera-close")
        await asyncio.shield(self._close_task)

    @property
    def closed(self) -> bool:
        """Whether the session is closed or being closed."""
        return self._closing or self._closed

    async def _close(self) -> None:
        closed = SessionClosedError("The session was closed before the request was sent.")
        parts: list[Callable[[], Awaitable[None]]] = [
            partial(self._limiter.stop, closed),
            self._submitter.aclose,
            *(poller.aclose for poller in self._pollers.values()),
            self._download_client.aclose,
            self._api.aclose,
            self._close_ledger,
        ]
        try:
            for close in parts:
                try:
                    await close()
                except Exception:
                    _log.exception("A part of the session could not be closed; closing the other parts.")
        finally:
            self._finish_closing()

    async def _close_ledger(self) -> None:
        self._limiter.detach()
        async with asyncio.timeout(max(self._timeouts.close, _LEDGER_CLOSE)):
            await self._ledger.aclose()

    def _finish_closing(self) -> None:
        self._closed = True
        self._limiter.leave()

    def _check_open(self) -> None:
        """Raise `SessionClosedError` if the session is closed, or was made before a fork."""
        if self._process_id != os.getpid():
            raise SessionClosedError(
                "The session was made before a fork: make a QameraSession in each process."
            )
        if self._closing or self._closed:
            raise SessionClosedError("The session is closed.")

    def _bind_to_loop(self) -> None:
        """Bind the session to the running loop, or check that the session belongs to the running loop.

        Raises:
            SessionClosedError: The session is closed, was made before a fork, or belongs to another loop.

        """
        self._check_open()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise SessionClosedError("The session is used without a running event loop.") from None
        if self._loop is loop:
            return
        if self._loop is not None:
            raise SessionClosedError(
                "The session belongs to another event loop: make one QameraSession for each loop."
            )
        self._loop = loop
        if self._slots is not None:
            self._limiter.attach(self._slots)

    # --- state ------------------------------------------------------------------------------------

    @property
    def rate_limiter(self) -> RateLimiter:
        """The rate limit that the requests of this session count against."""
        return self._limiter.rate_limiter

    def statistics(self) -> SessionStatistics:
        """Return the current numbers of waiters, polls, submissions, slots and credits; sends no request."""
        ages = [age for poller in self._pollers.values() if (age := poller.list_age) is not None]
        return SessionStatistics(
            waiters=sum(poller.waiters for poller in self._pollers.values()),
            watched_records=sum(poller.watched for poller in self._pollers.values()),
            polls=sum(poller.polls for poller in self._pollers.values()),
            submissions=self._submitter.submissions,
            slots_used=self.rate_limiter.used,
            slots_waiting=self.rate_limiter.waiting,
            credits_reserved=self._submitter.credits_reserved,
            seconds_since_poll=min(ages, default=None),
        )

    # --- submissions ------------------------------------------------------------------------------

    async def register_video(
        self,
        *,
        image_id: str | None = None,
        generated_image_id: str | None = None,
        suggestion: str | None = None,
        provider: str | None = None,
        ref: str | None = None,
        extra_body: Mapping[str, object] | None = None,
    ) -> Job[Video]:
        """Submit one video from one image; this spends credits.

        Source: the API's section "POST /api/external/video-picker/register-videos".

        Args:
            image_id: The source image. Exactly one of the two ids is needed.
            generated_image_id: A generated image as the source.
            suggestion: Creative direction, such as the motion; None leaves it to the server.
            provider: The generation provider; None means the server's default.
            ref: The caller's name for this piece of work; never sent. With a ledger, the same ref is
                submitted once.
            extra_body: Further fields for the JSON body; None means no further fields.

        Returns:
            The job of the video. Awaiting it returns the `Video`.

        Raises:
            InvalidRequestError: An argument is invalid; nothing was sent.
            AmbiguousSubmissionError: The server may or may not have accepted the submission; it is not sent
                again.
            ApiError: The server refused the submission: 400, 401, 402, 403, 404, or 429 for five windows.
            TransportError: The server was not reached; nothing was sent.
            RefConflictError: The ledger has another request with this ``ref``; nothing was sent.
            LedgerError: The ledger can't be written. If the receipt had arrived,
                `LedgerUnavailableError.receipt` has it.
            SessionClosedError: The session is closed, or was closed before the request was sent.

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
    ) -> Job[Video]:
        """Submit one reel from 1 to 10 images; this spends credits.

        Source: the API's section "POST /api/external/reel/register-reel".

        Args:
            image_ids: The images, in the order of the reel.
            ref: The caller's name for this piece of work, as for `register_video`.
            extra_body: Further fields for the JSON body; None means no further fields.

        Returns:
            The job of the reel. Awaiting it returns the `Video`.

        Raises:
            QameraError: As for `register_video`.

        """
        return await self.register(ReelRequest(image_ids=image_ids, ref=ref, extra_body=extra_body))

    async def create_video(
        self,
        *,
        image_id: str | None = None,
        generated_image_id: str | None = None,
        suggestion: str | None = None,
        provider: str | None = None,
        ref: str | None = None,
        extra_body: Mapping[str, object] | None = None,
    ) -> Video:
        """Submit one video and wait until it is done; this spends credits.

        Args:
            image_id: As for `register_video`, like all arguments.
            generated_image_id: As for `register_video`.
            suggestion: As for `register_video`.
            provider: As for `register_video`.
            ref: As for `register_video`.
            extra_body: As for `register_video`.

        Returns:
            The finished video.

        Raises:
            QameraError: As for `register_video` and `Job.wait`.

        """
        request = VideoRequest(image_id, generated_image_id, suggestion, provider, ref, extra_body)
        return await (await self.register(request))

    async def create_reel(
        self,
        image_ids: Iterable[str],
        *,
        ref: str | None = None,
        extra_body: Mapping[str, object] | None = None,
    ) -> Video:
        """Submit one reel and wait until it is done; this spends credits.

        Args:
            image_ids: As for `register_reel`, like all arguments.
            ref: As for `register_reel`.
            extra_body: As for `register_reel`.

        Returns:
            The finished reel.

        Raises:
            QameraError: As for `register_reel` and `Job.wait`.

        """
        return await (await self.register_reel(image_ids, ref=ref, extra_body=extra_body))

    async def register(self, request: Request, *, retry_failed: bool = False) -> Job[Video]:
        """Submit a request value; this spends credits.

        Args:
            request: A `VideoRequest` or a `ReelRequest`.
            retry_failed: Submit a request again that failed according to the ledger. No effect without a
                ledger.

        Returns:
            The job of the request; the earlier job if the ledger has a submission with the same ``ref``.

        Raises:
            QameraError: As for `register_video`.

        """
        claimed = await self._registrar.claim(request, retry_failed=retry_failed)
        if isinstance(claimed, Job):
            return claimed
        return self._registrar.new_job(claimed, await self._registrar.send(claimed))

    def job(self, *record_ids: str, kind: str = "video") -> Job[Video]:
        """Attach to records made earlier or elsewhere; sends nothing before the job is awaited.

        Args:
            record_ids: One or more record ids of one receipt; duplicates count once.
            kind: The kind of the records: "video" or "reel".

        Returns:
            The job; the same object while a job of the same record ids is held.

        Raises:
            InvalidRequestError: There is no id, an id is not a non-empty str, or the kind is unknown.
            SessionClosedError: The session is closed.

        """
        ids = check_record_ids(record_ids)
        if not isinstance(cast("object", kind), str) or kind not in KINDS:
            raise InvalidRequestError(f"kind must be one of {', '.join(KINDS)}, not {short_repr(kind)}.")
        self._check_open()
        return self._jobs.job(ids, KINDS[kind])

    def batch(
        self,
        requests: Iterable[Request] | AsyncIterable[Request],
        *,
        max_in_flight: int = 300,
        max_credits: int | None = None,
        retry_failed: bool = False,
        download_to: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
        allow_private: bool = False,
        max_downloads: int = 4,
    ) -> Batch:
        """Submit many requests; this spends credits.

        ``async for`` yields each outcome as it finishes; ``await`` returns all of them in input order. At
        most five submissions are sent at a time, which limits the cost of a failing server.

        Args:
            requests: An iterable or async iterable of requests; read only as fast as the requests are
                submitted.
            max_in_flight: How many requests may be submitted without their outcome having been consumed.
            max_credits: How many credits the batch may spend; None means no limit. Requests with the same
                kind, provider, number of images and ``extra_body`` form a price class, and are expected to
                cost the same. Only the first request of each class may exceed the limit, since its price is
                not known before its receipt.
            retry_failed: Submit requests again that failed according to the ledger.
            download_to: A folder for the files, created if missing, with ``~`` expanded; None means no
                downloads. A file is named after the ``ref``, else after the record id.
            overwrite: Replace existing files in that folder.
            allow_private: Allow downloads from private network addresses.
            max_downloads: How many downloads run at a time.

        Returns:
            The batch; nothing is read or submitted before it is iterated or awaited.

        Raises:
            ConfigurationError: An argument is invalid.
            SessionClosedError: The session is closed.

        """
        self._check_open()
        return Batch(
            self._registrar,
            requests,
            retry=self._retry,
            max_in_flight=max_in_flight,
            max_credits=max_credits,
            retry_failed=retry_failed,
            download_to=download_to,
            overwrite=overwrite,
            allow_private=allow_private,
            max_downloads=max_downloads,
        )

    # --- lists and files --------------------------------------------------------------------------

    async def list_videos(self) -> tuple[Video, ...]:
        """Return all videos and reels of the account, in the server's order; one request.

        Source: the API's section "GET /api/external/videos".

        Raises:
            ApiError: The server refused the request, or failed.
            TransportError: No response arrived in ``RetryPolicy.attempts`` attempts.
            InvalidResponseError: The response is not a list of videos.
            SessionClosedError: The session is closed.

        """
        self._bind_to_loop()
        return tuple(await in_steps(await self._pollers[VIDEOS.path].fetch_list()))

    async def download(
        self,
        video_or_job: Video | Job[Video],
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        allow_private: bool = False,
        on_progress: Callable[[int, int | None], object] | None = None,
    ) -> Path:
        """Download a video to a file. The file gets its name only when it is complete.

        Args:
            video_or_job: The video, or a job, which is awaited first.
            path: The target file; its folder must exist.
            overwrite: Replace an existing file.
            allow_private: Allow downloads from private network addresses even if the API's address is public.
            on_progress: A plain function that is called on the event loop with the number of bytes so far and
                the total number (None if the server does not say).

        Returns:
            The path of the file.

        Raises:
            TargetExistsError: The file exists; no request was sent.
            DownloadError: The video can't be downloaded. Calling `download` again costs no credits.
            QameraError: As for `Job.wait`.

        """
        check_callback("on_progress", on_progress)
        return await self._downloader.file(
            await self._video(video_or_job),
            path,
            overwrite=overwrite,
            allow_private=allow_private,
            on_progress=on_progress,
        )

    async def download_thumbnail(
        self,
        video_or_job: Video | Job[Video],
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        allow_private: bool = False,
        on_progress: Callable[[int, int | None], object] | None = None,
    ) -> Path:
        """Download the thumbnail of a video to a file, in the same way as `download`.

        Args:
            video_or_job: The video, or a job, which is awaited first.
            path: As for `download`.
            overwrite: As for `download`.
            allow_private: As for `download`.
            on_progress: As for `download`.

        Returns:
            The path of the file.

        Raises:
            QameraError: As for `download`.

        """
        check_callback("on_progress", on_progress)
        return await self._downloader.file(
            await self._video(video_or_job),
            path,
            thumbnail=True,
            overwrite=overwrite,
            allow_private=allow_private,
            on_progress=on_progress,
        )

    @asynccontextmanager
    async def stream(
        self, video_or_job: Video | Job[Video], *, allow_private: bool = False
    ) -> AsyncGenerator[AsyncIterator[bytes]]:
        """Stream a video without a file: ``async with session.stream(video) as chunks``.

        Args:
            video_or_job: The video, or a job, which is awaited first.
            allow_private: As for `download`.

        Raises:
            DownloadError: The video can't be downloaded. The iteration raises it if the stream ends early.
            QameraError: As for `Job.wait`.

        """
        video = await self._video(video_or_job)
        async with self._downloader.stream(video, allow_private=allow_private) as chunks:
            yield chunks

    async def _video(self, video_or_job: Video | Job[Video]) -> Video:
        self._bind_to_loop()
        if isinstance(video_or_job, Job):
            return await video_or_job
        return _checked_video(video_or_job)

    async def _listed_video(self, record_id: str) -> Video | None:
        return (await self._pollers[VIDEOS.path].next_list()).get(record_id)

    # --- the ledger -------------------------------------------------------------------------------

    async def unfinished(self) -> list[Job[Video]]:
        """Return the jobs of the ledger that are submitted and not finished.

        Raises:
            ConfigurationError: The session has no ledger.
            LedgerError: The ledger can't be read or written.

        """
        return [self._registrar.job_of(row) for row in await self._require_ledger().unfinished()]

    async def ambiguous(self) -> list[Intent]:
        """Return the submissions of the ledger that the server may or may not have accepted.

        If there are any, this waits for one poll. A record is a candidate if it was created near the time of
        sending and no receipt has it. Submissions that were sent together may have the same candidates. An
        empty ``candidates`` proves nothing: a server may list a record late.

        Raises:
            ConfigurationError: The session has no ledger.
            LedgerError: The ledger can't be read or written.

        """
        ledger = self._require_ledger()
        rows = await ledger.doubtful()
        if not rows:
            return []
        found: dict[str, tuple[Record, ...]] = {}
        try:
            async with asyncio.timeout(self._timeouts.reconcile):
                found = await self._submitter.reconciler.find_candidates(rows)
        except (TimeoutError, QameraError) as error:
            _log.info("Could not list the candidates of ambiguous submissions: %s", str(error) or "timeout")
        for row in rows:
            # An empty result is not stored, because a record may be listed later.
            if found.get(row.id) and found[row.id] != row.candidates:
                await ledger.looked_into(row.id, found[row.id])
        return [attrs.evolve(row.intent, candidates=found.get(row.id, row.candidates or ())) for row in rows]

    async def adopt(self, intent_or_ref: Settled, *record_ids: str) -> Job[Video]:
        """Resolve an ambiguous submission: its records are the given ones.

        Args:
            intent_or_ref: The intent from `ambiguous`, the error that was raised, the intent's id, or the
                ref.
            record_ids: One or more record ids, from the Qamera app or from the candidates.

        Returns:
            The job of the records.

        Raises:
            InvalidRequestError: There is no id, or a record belongs to another request.
            ConfigurationError: The session has no ledger.
            LedgerError: The ledger can't be read or written, or has no such ambiguous submission.

        """
        ids = check_record_ids(record_ids)
        ledger = self._require_ledger()
        return self._registrar.job_of(await ledger.adopt(await _find_intent(ledger, intent_or_ref), ids))

    async def abandon(self, intent_or_ref: Settled) -> None:
        """Resolve an ambiguous submission: the server did not accept it, so it may be submitted again.

        Args:
            intent_or_ref: As for `adopt`.

        Raises:
            ConfigurationError: The session has no ledger.
            LedgerError: The ledger can't be read or written, or has no such ambiguous submission.

        """
        ledger = self._require_ledger()
        await ledger.abandon(await _find_intent(ledger, intent_or_ref))

    def _require_ledger(self) -> Ledger:
        self._bind_to_loop()
        if not isinstance(self._ledger, Ledger):
            raise ConfigurationError("The session has no ledger: pass QameraSession(ledger=PATH).")
        return self._ledger


async def _find_intent(ledger: Ledger, intent_or_ref: Settled) -> str:
    """Return the id of the ambiguous intent that a caller passed as a value, an id or a ref."""
    given_id = intent_id(intent_or_ref)
    if not isinstance(intent_or_ref, str):
        return given_id
    rows = await ledger.doubtful()
    by_ref = [row.id for row in rows if row.request.ref == intent_or_ref and row.id != given_id]
    return given_id if not by_ref or any(row.id == given_id for row in rows) else by_ref[-1]


def _account(settings: ConnectionSettings) -> str:
    """Return a digest of the key and the origin, which identifies the account and reveals neither."""
    return hashlib.blake2b(
        f"{settings.origin} {settings.api_key.value}".encode(), key=b"qamera-async slots", digest_size=16
    ).hexdigest()


def _setting(name: str, value: _T | None, kind: type[_T]) -> _T:
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise ConfigurationError(f"{name} must be a {kind.__name__} or None, not {short_repr(value)}.")
    return value


def _checked_video(value: object) -> Video:
    if not isinstance(value, Video):
        raise InvalidRequestError(f"video_or_job must be a Video or a Job, not {short_repr(value)}.")
    return value
