"""QameraSession: wires the rooms and owns their lifetimes."""

from __future__ import annotations

import asyncio
import logging
import os
import warnings
from typing import TYPE_CHECKING, Self, TypeVar

from yarl import URL

from . import protocol
from .budget import RequestBudget
from .budget.accounts import join
from .budget.window import Priority
from .errors import (
    ConfigurationError,
    InvalidRequestError,
    InvalidResponseError,
    QameraError,
    ServerError,
    SessionClosedError,
    TransportError,
)
from .events import guarded
from .job import Job, JobContext, checked_ids
from .models import ReelRequest, Request, Video, VideoRequest
from .policies import PollPolicy, RetryPolicy, StatusRules, Timeouts
from .poller import Poller
from .submission import Submitter
from .transport import Transport
from .transport.wire import Key, Wire, checked_url, key_problem

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
    from types import TracebackType

    import aiohttp

    from .events import Event

DEFAULT_BASE_URL = "https://app.qamera.ai"

_T = TypeVar("_T")
_log = logging.getLogger("qamera_async")


class QameraSession:
    """A client of the Qamera AI video API, for one event loop.

    Args:
        api_key: the key; None means the environment variable ``QAMERA_API_KEY``.
        base_url: where the API is; None means ``QAMERA_BASE_URL``, then ``https://app.qamera.ai``.
        allow_http: allow plain ``http://`` for a host that is not this machine.
        budget: the quota; None means the one that the sessions of this key and origin share.
        polling: how often to poll; None means ``PollPolicy()``.
        retry: for what is safe to send again; None means ``RetryPolicy()``.
        timeouts: all limits of time; None means ``Timeouts()``.
        statuses: what status words mean; None means ``StatusRules()``.
        on_event: called on the loop with each event; what it raises is logged.
        proxy: the URL of a proxy for all requests; None means none, but see ``trust_env``.
        trust_env: take proxies from the environment.
        ssl_context: for the API's certificate; None means the system's certificates.
        trace_configs: aiohttp's trace hooks, for instrumentation.

    Raises:
        ConfigurationError: a key, URL or setting that can't be used.
    """

    def __init__(
        self,
        api_key: str | None = None,
        *,
        base_url: str | None = None,
        allow_http: bool = False,
        budget: RequestBudget | None = None,
        polling: PollPolicy | None = None,
        retry: RetryPolicy | None = None,
        timeouts: Timeouts | None = None,
        statuses: StatusRules | None = None,
        on_event: Callable[[Event], object] | None = None,
        proxy: str | None = None,
        trust_env: bool = False,
        ssl_context: ssl.SSLContext | None = None,
        trace_configs: Sequence[aiohttp.TraceConfig] = (),
    ) -> None:
        self._state, self._origin = "new", "not set up"
        key = os.environ.get("QAMERA_API_KEY") if api_key is None else api_key
        problem = key_problem(key)
        # From here on a traceback with locals, whichever setting it is about, must not show it.
        hidden, key, api_key = Key(key or ""), None, None
        if problem is not None:
            raise ConfigurationError(problem)
        self._origin = checked_url(
            base_url or os.environ.get("QAMERA_BASE_URL") or DEFAULT_BASE_URL, allow_http
        )
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
        if budget is not None and not isinstance(budget, RequestBudget):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(
                f"budget: got {type(budget).__name__}, allowed is a RequestBudget or None"
            )
        self._emit = guarded(on_event)
        self._budget, self._leave_budget = join(
            str(URL(self._origin).origin()), self._wire.api_key.text, budget
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = os.getpid()
        self._transport = Transport(self._wire, self._budget, self._timeouts, self._retry, self._emit)
        self._poller = Poller(
            self._transport, self._budget, self._polling, self._timeouts, self._rules, self._emit
        )
        self._submitter = Submitter(self._transport, self._poller, self._timeouts, self._rules, self._emit)
        self._job_context = JobContext(self._poller, self._emit, self._check, self._timeouts.job)
        self._reserved = False
        self._close_task: asyncio.Task[None] | None = None
        self._state = "open"

    def __repr__(self) -> str:
        return f"<QameraSession {self._origin} {self._state}>"

    def __del__(self) -> None:
        # A session that was never used holds nothing but its place in the budget.
        if getattr(self, "_state", "new") == "open":
            self._leave_budget()
            self._budget.release(id(self))
            if self._loop is not None:
                warnings.warn(
                    f"unclosed {self!r}; use async with, or await aclose()", ResourceWarning, stacklevel=1
                )

    async def __aenter__(self) -> Self:
        self._check()
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
            if self._loop is None:
                self._closed()
                return
            self._check()
            self._state = "closing"
            # A task of its own, so that a cancelled caller doesn't leave half of it open.
            self._close_task = asyncio.get_running_loop().create_task(self._close(), name="qamera-close")
        await asyncio.shield(self._close_task)

    async def _close(self) -> None:
        try:
            self._transport.stop_queueing()
            for close in (self._submitter.aclose, self._poller.aclose, self._transport.aclose):
                try:
                    await close()
                except Exception:
                    _log.exception("closing a part of the session failed; the rest is closed all the same")
        finally:
            self._closed()

    def _closed(self) -> None:
        if self._state != "closed":
            self._state = "closed"
            self._budget.release(id(self))
            self._leave_budget()

    @property
    def budget(self) -> RequestBudget:
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
        extra: Mapping[str, object] | None = None,
    ) -> Job:
        """Order one video from one image; this spends credits.

        Source: the API's section "POST /api/external/video-picker/register-videos".

        Args:
            image_id: the source image; exactly one of the two ids.
            generated_image_id: a generated image as the source.
            suggestion: creative direction, motion; None leaves it to the server.
            provider: the generation provider; None means the server's default.
            ref: the caller's own name for this work; never sent.
            extra: further fields for the body.

        Raises:
            InvalidRequestError: nothing was sent.
            AmbiguousSubmissionError: it may or may not have been paid for; it is not sent again.
            QameraError: it was not accepted.
        """
        return await self.register(
            VideoRequest(image_id, generated_image_id, suggestion, provider, ref, extra)
        )

    async def register_reel(
        self, image_ids: Iterable[str], *, ref: str | None = None, extra: Mapping[str, object] | None = None
    ) -> Job:
        """Order one reel from 1 to 10 images; this spends credits.

        Source: the API's section "POST /api/external/reel/register-reel".

        Raises:
            QameraError: as ``register_video``.
        """
        return await self.register(ReelRequest(image_ids, ref, extra))  # pyright: ignore[reportArgumentType]

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
        self, request: Request, *, retry_failed: bool, approve: Callable[[], Awaitable[None]] | None = None
    ) -> Job:
        """Register; ``approve`` is awaited before what would be a new order, and may raise to prevent it."""
        if not isinstance(request, VideoRequest | ReelRequest):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidRequestError(
                f"request: got {type(request).__name__}, allowed are VideoRequest and ReelRequest"
            )
        self._check()
        if not self._reserved:
            self._reserved = True
            self._budget.reserve(id(self), self._polling.stale_after)
        receipt = await self._submitter.submit(request, approve)
        now = asyncio.get_running_loop().time()
        return Job(
            self._job_context,
            receipt.record_ids,
            request=request,
            receipt=receipt,
            born=now,
            due=now + self._polling.interval,
        )

    def job(self, *record_ids: str) -> Job:
        """Attach to records made earlier or elsewhere; costs no request until it is awaited.

        Raises:
            InvalidRequestError: no id, or one that is none.
            SessionClosedError: the session is closed.
        """
        ids = checked_ids(record_ids)
        self._check_open()
        return Job(self._job_context, ids)

    async def list_videos(self) -> tuple[Video, ...]:
        """Give all videos and reels of the account, in the server's order; one request.

        Source: the API's section "GET /api/external/videos".

        Raises:
            QameraError: the list can't be had or read.
        """
        self._check()
        answer = await self._transport.retried(
            "list_videos",
            lambda: self._transport.get(protocol.VIDEOS_PATH, Priority.SUBMISSION),
            _may_pass,
        )
        videos = protocol.read_videos(answer, self._rules)
        self._poller.notice(videos)
        return videos

    # --- misuse ---------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._state != "open":
            raise SessionClosedError("The session is closed.")
        if self._pid != os.getpid():
            raise SessionClosedError("The session was made before a fork. Make one in each process.")

    def _check(self) -> None:
        """Bind to the running loop; refuse another one, a fork, and use after closing.

        Raises:
            SessionClosedError: it can't be used here or any more.
        """
        self._check_open()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            if self._loop is None:
                raise SessionClosedError("The session is used without a running event loop.") from None
            raise SessionClosedError("The session is used outside of its event loop.") from None
        if self._loop is not loop:
            if self._loop is not None:
                raise SessionClosedError(
                    "The session belongs to another event loop. Make one session for each loop."
                )
            self._loop = loop


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
