"""Many requests at once: `Batch` and its results."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import inspect
import logging
import os
import unicodedata
import uuid
import weakref
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Generator, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, cast

import attrs

from .._config import RetryPolicy
from .._jobs import Job
from .._models import Receipt, Record, Request
from ..errors import (
    AmbiguousSubmissionError,
    ApiError,
    AuthenticationError,
    BatchStoppedError,
    ConfigurationError,
    InsufficientCreditsError,
    InvalidRequestError,
    JobFailedError,
    LedgerError,
    LedgerUnavailableError,
    PermissionDeniedError,
    QameraError,
    RefConflictError,
    SessionClosedError,
    TargetExistsError,
    TransportError,
    is_permanent,
    short_repr,
)
from .limits import AmbiguityBreaker, CreditLimit, OutagePause, PriceClass

if TYPE_CHECKING:
    from .._submission import Claim

_log = logging.getLogger("qamera_async")

_END: Final = object()
_IDS_PER_LINE = 20
_PROXY_AUTHENTICATION_REQUIRED = 407

CLAIM_PATIENCE = 1.0
"""After how many seconds a claim counts as waiting for another process.

The batch then reads the next request. Two processes that run the same catalogue thus don't block each other.
"""


class BatchAccess(Protocol):
    """What a batch needs of its session."""

    @property
    def has_ledger(self) -> bool:
        """Whether a ledger keeps receipts, so that a rerun finds the jobs again by their refs."""
        ...

    async def claim(self, request: Request, *, retry_failed: bool) -> Claim | Job[Any]:
        """Claim a request, or return the earlier job that stands for it.

        May wait for another process that has claimed the same request. Cancelled, it releases the claim.

        Args:
            request: The request.
            retry_failed: Whether a job that the ledger knows to have failed may be submitted again.

        Raises:
            QameraError: The request can't be submitted. Nothing was sent.

        """
        ...

    async def send(self, claim: Claim) -> Job[Any]:
        """Submit a claimed request, at most once, and return its job.

        Raises:
            AmbiguousSubmissionError: The server may or may not have accepted the request.
            TransportError: The server was not reached. Nothing was sent, and the claim is released.
            QameraError: The server refused the request.
            CancelledError: The claim was withdrawn. Nothing was sent.

        """
        ...

    def withdraw(self, claim: Claim) -> None:
        """Release a claim that was not sent; end its `send` if provably nothing has left this machine."""
        ...

    def target(self, request: Request, job: Job[Any] | None, folder: Path) -> Path | None:
        """Return the file for a result in the folder; None if its name depends on the job, which is None."""
        ...

    async def download(
        self, job: Job[Any], record: Record, path: Path, *, overwrite: bool, allow_private: bool
    ) -> Path:
        """Download the result of a job, unless the ledger says that the file is complete already."""
        ...


# --- results ------------------------------------------------------------------------------------


@attrs.frozen
class Outcome:
    """The result of one request of a batch.

    Args:
        index: The position of the request in the input, from 0.
        request: The request as it was read. An input that is no request has an `InvalidRequestError`.
        job: The job; None if the request was not accepted, or if it is ambiguous.
        record: The record of the finished job, the first one if there are several; None if there is none.
        path: The downloaded file; None if there is none.
        error: Why the request has no result; None if it has one.

    """

    index: int
    request: Request
    job: Job[Any] | None = None
    record: Record | None = None
    path: Path | None = None
    error: Exception | None = None

    @property
    def ok(self) -> bool:
        """Whether the request has a result."""
        return self.error is None

    def unwrap(self) -> Record:
        """Return the record.

        Raises:
            Exception: `error`, if there is one.

        """
        if self.error is not None:
            raise self.error
        assert self.record is not None  # noqa: S101 - an outcome without an error has a record
        return self.record


@attrs.frozen
class BatchResult:
    """All outcomes of a batch.

    Args:
        outcomes: One for each request that was submitted or can't be, in the order of the input.
        stopped: Why the batch stopped before the end of its input; None if it read all requests.
        credits_reserved: The credits that the receipts of this batch state. Earlier jobs don't count.
        credits_refunded: The credits of those jobs of this batch that failed.

    """

    outcomes: tuple[Outcome, ...]
    stopped: BaseException | None = None
    credits_reserved: int = 0
    credits_refunded: int = 0

    @property
    def records(self) -> tuple[Record, ...]:
        """The records of all requests that have a result, in the order of the input."""
        return tuple(outcome.unwrap() for outcome in self.outcomes if outcome.ok)

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """The outcomes with an error, in the order of the input."""
        return tuple(outcome for outcome in self.outcomes if not outcome.ok)

    def summary(self) -> str:
        """Return a line with the numbers of outcomes, the credits, and why the batch stopped."""
        failures = self.failures
        ambiguous = sum(isinstance(outcome.error, AmbiguousSubmissionError) for outcome in failures)
        counts = f"{len(self.outcomes) - len(failures)} done, {len(failures) - ambiguous} failed"
        credit = f"{self.credits_reserved} credits reserved, {self.credits_refunded} of them refunded"
        text = f"{counts}, {ambiguous} ambiguous; {credit}."
        if self.stopped is None:
            return text
        return f"{text} Stopped by {type(self.stopped).__name__}: {self.stopped}"


# --- the batch ----------------------------------------------------------------------------------


class Batch:
    """Many requests, submitted and awaited together. Made by `QameraSession.batch`.

    ``async for`` yields each `Outcome` as soon as the request has one. ``await`` returns all of them as a
    `BatchResult`, in the order of the input. A batch is consumed once, in one of these ways; nothing is read
    or submitted before. Use ``async with`` to leave a loop early: its end waits until no task is left.

    Requests are read only as far as they can be submitted. At most five submissions are on the wire at once.
    This limit bounds the cost of a failing server, since five ambiguous submissions in a row stop the batch.
    A submission that is being reconciled while later ones have been answered is not counted.

    The batch stops on 401, 402 and 403, at ``max_credits``, after five ambiguous submissions in a row, when
    its iterable raises, when jobs can't be polled, and when the ledger or the session can't be used. Then
    nothing more is submitted, the outcomes of everything paid for are handed out, and the reason is raised
    after the last one, or is in `BatchResult.stopped`. While the server is unreachable, the batch pauses and
    one request at a time tries again.

    If the consumer leaves early or is cancelled, nothing more is read or submitted. What is paid for and was
    not handed out is logged.

    Args:
        access: The session, as far as the batch needs it.
        requests: An iterable or async iterable of requests.
        retry: The delays while the server is unreachable.
        max_in_flight: How many requests may be submitted and not handed out.
        max_credits: The most credits that new submissions of the batch may cost; None means no limit. Only a
            request whose price is not known before its receipt can exceed the limit. Requests that differ in
            kind, provider, number of images or ``extra_body`` may differ in price.
        retry_failed: Whether to submit again what the ledger knows to have failed.
        download_to: The folder for the results. It is created if missing, and ``~`` is expanded. None means
            no downloads.
        overwrite: Whether downloads replace existing files. If not, a request whose file exists is refused
            before it is submitted.
        allow_private: Whether downloads from private addresses are allowed.
        max_downloads: How many downloads may run at once.

    Raises:
        ConfigurationError: A setting is invalid, or ``requests`` is no iterable.

    Example:
        ::

            async with qamera.batch(requests, download_to="clips", max_credits=500) as batch:
                async for outcome in batch:
                    print(outcome.request.ref, outcome.path or outcome.error)

    """

    def __init__(
        self,
        access: BatchAccess,
        requests: Iterable[Request] | AsyncIterable[Request],
        *,
        retry: RetryPolicy,
        max_in_flight: int = 300,
        max_credits: int | None = None,
        retry_failed: bool = False,
        download_to: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
        allow_private: bool = False,
        max_downloads: int = 4,
    ) -> None:
        if max_credits is not None:
            _check_whole_number("max_credits", max_credits, 0)
        self._consumed = False
        self._runner = _Runner(
            access=access,
            source=_Source(requests),
            credits=CreditLimit(max_credits),
            outage=OutagePause(retry),
            max_in_flight=_check_whole_number("max_in_flight", max_in_flight, 1),
            retry_failed=retry_failed,
            folder=_check_folder(download_to),
            overwrite=overwrite,
            allow_private=allow_private,
            downloads=asyncio.Semaphore(_check_whole_number("max_downloads", max_downloads, 1)),
        )

    @property
    def submitted(self) -> int:
        """How many submissions of this batch the server has accepted. Earlier jobs don't count."""
        return self._runner.submitted

    @property
    def finished(self) -> int:
        """How many requests have an outcome, handed out or not."""
        return self._runner.finished

    @property
    def credits_reserved(self) -> int:
        """The credits that the receipts of this batch state so far. Earlier jobs don't count."""
        return self._runner.credits.stated

    @property
    def stopped(self) -> BaseException | None:
        """Why the batch submits nothing more; None while it goes on, or if it has read all requests."""
        return self._runner.stopped

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Read and submit nothing more, and wait until no task of the batch is left."""
        self._consumed = True
        await self._runner.leave()

    def __aiter__(self) -> AsyncIterator[Outcome]:
        """Iterate over the outcomes as they finish.

        Raises:
            RuntimeError: The batch was consumed before, or an iteration that was left early is continued.
            BaseException: Why the batch stopped; raised after the last outcome.

        """
        self._consume()
        return _Outcomes(self._runner)

    def __await__(self) -> Generator[object, None, BatchResult]:
        """Return all outcomes, in the order of the input.

        Raises:
            RuntimeError: The batch was consumed before.

        """
        self._consume()
        return self._collect().__await__()

    def _consume(self) -> None:
        if self._consumed:
            raise RuntimeError("A batch can be consumed once: make another one.")
        self._consumed = True

    async def _collect(self) -> BatchResult:
        runner = self._runner
        outcomes: list[Outcome] = []
        try:
            while (outcome := await runner.next()) is not None:
                outcomes.append(outcome)
        except BaseException:
            try:
                await runner.leave()
            finally:
                runner.log_abandoned(outcomes)
            raise
        outcomes.sort(key=lambda outcome: outcome.index)
        return BatchResult(tuple(outcomes), runner.stopped, runner.credits.stated, runner.refunded)


class _Outcomes:
    """The iterator of one ``async for``; once it is forgotten, the batch reads and submits nothing more."""

    def __init__(self, runner: _Runner) -> None:
        self._runner = runner
        self._reason_raised = False
        weakref.finalize(self, runner.leave_soon).atexit = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Outcome:
        runner = self._runner
        try:
            outcome = await runner.next()
        except BaseException:
            await runner.leave()
            raise
        if outcome is not None:
            return outcome
        if runner.stopped is None or self._reason_raised:
            raise StopAsyncIteration
        self._reason_raised = True
        raise runner.stopped

    async def aclose(self) -> None:
        """Read and submit nothing more, and wait until no task of the batch is left. Idempotent."""
        await self._runner.leave()


# --- running it ---------------------------------------------------------------------------------


class _Stage(enum.Enum):
    PREPARING = enum.auto()  # may be cancelled: nothing was sent
    SENDING = enum.auto()  # may be withdrawn: that cancels only what was not sent
    SUBMITTED = enum.auto()  # goes on after a stop


@attrs.define(eq=False)
class _Item:
    """A request that was read and has no outcome yet.

    Attributes:
        index: The position of the request in the input.
        request: What was read.
        stage: What a stop of the batch does to the item.
        claim: The claim that is being sent; None before.
        job: The job; None before there is one.
        new: Whether the job was submitted by this batch.
        target: The key of the file that is reserved for the item; None if there is none.
        waits_elsewhere: Whether the claim waits for another process, so the item is not about to be sent.

    """

    index: int
    request: Request
    stage: _Stage = _Stage.PREPARING
    claim: Claim | None = None
    job: Job[Any] | None = None
    new: bool = False
    target: str | None = None
    waits_elsewhere: bool = False

    def unfinished(self) -> Outcome:
        return Outcome(self.index, self.request, self.job)


@attrs.define(eq=False)
class _Runner:
    """Reads, submits, awaits and downloads the requests of one batch.

    One task owns all others: one that reads, and one for each request that was read and has no outcome.
    """

    access: BatchAccess
    source: _Source
    credits: CreditLimit
    outage: OutagePause
    max_in_flight: int
    retry_failed: bool
    folder: Path | None
    overwrite: bool
    allow_private: bool
    downloads: asyncio.Semaphore
    breaker: AmbiguityBreaker = attrs.field(factory=AmbiguityBreaker)
    targets: set[str] = attrs.field(factory=set[str])  # the keys of the files that are reserved
    loop: asyncio.AbstractEventLoop | None = None
    main: asyncio.Task[None] | None = None
    reader: asyncio.Task[None] | None = None
    items: dict[_Item, asyncio.Task[None]] = attrs.field(factory=dict[_Item, asyncio.Task[None]])
    preparing: int = 0  # items that are about to be sent
    in_flight: int = 0  # items and outcomes that are not handed out
    ready: deque[Outcome] = attrs.field(factory=deque[Outcome])
    abandoned: list[Outcome] = attrs.field(factory=list[Outcome])
    outcome_ready: asyncio.Event = attrs.field(factory=asyncio.Event)
    limits_changed: asyncio.Event = attrs.field(factory=asyncio.Event)
    leaving: bool = False
    ended: bool = False  # and all outcomes are handed out
    stopped: BaseException | None = None
    submitted: int = 0
    finished: int = 0
    refunded: int = 0

    # --- the consumer ---------------------------------------------------------------------------

    async def next(self) -> Outcome | None:
        """Return the next outcome; None after the last one. The first call starts the batch.

        Raises:
            ConfigurationError: The folder can't be created or written. Nothing was read.
            RuntimeError: The batch was left before its last outcome.

        """
        if self.main is None and not self.leaving:
            if self.folder is not None:
                await _prepare_directory(self.folder)
            self.loop = asyncio.get_running_loop()
            self.main = self.loop.create_task(self._run(), name="qamera-batch")
            self.main.add_done_callback(lambda _: self.outcome_ready.set())
        while not self.ended:
            if self.leaving or self.main is None:
                raise RuntimeError(
                    "The batch was left early, before its last outcome. Make another one to go on."
                )
            if self.ready:
                self.in_flight -= 1
                self.limits_changed.set()
                return self.ready.popleft()
            if self.main.done():
                self._end(self.main)
            else:
                self.outcome_ready.clear()
                await self.outcome_ready.wait()
        return None

    def _end(self, main: asyncio.Task[None]) -> None:
        self.ended = True
        error = asyncio.CancelledError() if main.cancelled() else main.exception()
        self.stopped = self.stopped or error

    async def leave(self) -> None:
        """Read and submit nothing more, and wait until all tasks have ended. Idempotent.

        Raises:
            CancelledError: The caller was cancelled meanwhile; raised after all tasks have ended.

        """
        if not self.ended:
            self.leaving = True
            self._cancel()
        cancelled: asyncio.CancelledError | None = None
        while self.main is not None and not self.main.done():
            try:
                await asyncio.wait([self.main])
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled

    def leave_soon(self) -> None:
        """Read and submit nothing more. Any thread may call this."""
        if self.ended:
            return
        self.leaving = True
        if self.loop is not None:
            # A loop that is closed has ended all its tasks.
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if self.main is not None and not self.main.done():
            self.main.cancel()
        else:
            self._log_rest()

    def _log_rest(self) -> None:
        """Log what is paid for and that nobody takes."""
        if self.leaving:
            self.abandoned += self.ready
            self.ready.clear()
        self.log_abandoned(self.abandoned)
        self.abandoned = []

    def log_abandoned(self, outcomes: Iterable[Outcome]) -> None:
        """Log those outcomes that are paid for, or may be."""
        _log_abandoned(outcomes, has_ledger=self.access.has_ledger)

    # --- reading --------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                self.reader = group.create_task(self._read(group), name="qamera-batch-reader")
        finally:
            self._log_rest()

    async def _read(self, group: asyncio.TaskGroup) -> None:
        """Start a task for each request, until the iterable ends or the batch stops."""
        index = 0
        try:
            while self.stopped is None:
                # While the batch is being left, this task waits to be cancelled: a cancellation that came
                # after the loop would interrupt the closing of the iterable.
                if self.leaving or not self._may_read():
                    await self._until_limits_change()
                    continue
                request = await self.source.read()
                if request is _END:
                    return
                if self._ending:
                    continue
                item = _Item(index, cast("Request", request))
                self.in_flight += 1
                self.preparing += 1
                self.items[item] = group.create_task(self._process(item), name=f"qamera-batch-{index}")
                index += 1
        except (Exception, asyncio.CancelledError) as error:
            self._stop(error)  # no effect if the batch itself cancelled this task
        finally:
            await self.source.aclose()

    def _may_read(self) -> bool:
        """Tell whether one more request could be sent at once."""
        if self.in_flight >= self.max_in_flight:
            return False
        if self.outage.active:
            return not self.preparing and not self.breaker.unanswered
        return self.breaker.permits(self.preparing + 1)

    async def _until_limits_change(self) -> None:
        self.limits_changed.clear()
        await self.limits_changed.wait()

    # --- one request ----------------------------------------------------------------------------

    async def _process(self, item: _Item) -> None:
        try:
            job = await self._submit(item)
            await self._follow(item, job)
        except asyncio.CancelledError as error:
            self.abandoned.append(item.unfinished())
            self._stop(error)  # no effect if the batch itself cancelled this task
            raise
        except Exception as error:
            fatal = is_fatal(error, submitting=True)
            if fatal:
                self._stop(error)
            if not fatal or unsaved_receipt(error) is not None:
                self._finish(item, error=error)
        finally:
            self.items.pop(item, None)
            self.outcome_ready.set()

    async def _submit(self, item: _Item) -> Job[Any]:
        """Return the job of a request; submit it again as often as it provably did not reach the server.

        Raises:
            Exception: Why the request has no job.
            CancelledError: The batch has stopped, and nothing was sent.

        """
        try:
            while True:
                claimed = await self._claim(item)
                if isinstance(claimed, Job):
                    self._reserve_target_of_earlier(item, claimed)
                    item.job = claimed
                    return claimed
                try:
                    item.job = await self._submit_claim(item, claimed)
                    return item.job  # noqa: TRY300 - the exception is for the next round
                except TransportError as error:
                    if error.sent or error.permanent or item.claim is None:
                        raise
                    self.outage.begin(error)
                    item.stage, item.claim = _Stage.PREPARING, None
                    self.preparing += 1
        except BaseException as error:
            if not isinstance(error, AmbiguousSubmissionError) and unsaved_receipt(error) is None:
                self._release_target(item)
            raise
        finally:
            if item.stage is _Stage.PREPARING:
                self.preparing -= 1
            item.stage = _Stage.SUBMITTED
            self.limits_changed.set()

    async def _claim(self, item: _Item) -> Claim | Job[Any]:
        """Claim a request. A claim that waits for another process keeps no other request waiting."""
        loop = asyncio.get_running_loop()
        timer = loop.call_later(CLAIM_PATIENCE, lambda: self._set_waiting_elsewhere(item, waits=True))
        try:
            return await self.access.claim(item.request, retry_failed=self.retry_failed)
        finally:
            timer.cancel()
            self._set_waiting_elsewhere(item, waits=False)

    def _set_waiting_elsewhere(self, item: _Item, *, waits: bool) -> None:
        if item.waits_elsewhere is not waits:
            item.waits_elsewhere = waits
            self.preparing += -1 if waits else 1
            self.limits_changed.set()

    async def _submit_claim(self, item: _Item, claim: Claim) -> Job[Any]:
        """Send a claimed request once all limits permit it."""
        probing = False
        try:
            await self._reserve_target(item)
            price_class = self.credits.price_class(item.request)
            while True:
                probing = probing or await self.outage.wait()
                if self._ending:
                    raise asyncio.CancelledError
                if self.breaker.permits() and self.credits.reserve(price_class):
                    break
                await self._until_limits_change()
            return await self._send(item, claim, price_class)
        finally:
            if probing:
                self.outage.probed()
            if item.claim is None:
                self.access.withdraw(claim)

    async def _send(self, item: _Item, claim: Claim, price_class: PriceClass) -> Job[Any]:
        number = self.breaker.sent()
        item.stage, item.claim = _Stage.SENDING, claim
        self.preparing -= 1
        try:
            job = await self.access.send(claim)
        except BaseException as error:
            item.stage = _Stage.SUBMITTED
            self._note_end(number, price_class, error, unsaved_receipt(error))
            raise
        item.stage, item.new = _Stage.SUBMITTED, True
        self._note_end(number, price_class, None, job.receipt)
        return job

    def _note_end(
        self, number: int, price_class: PriceClass, error: BaseException | None, receipt: Receipt | None
    ) -> None:
        """Tell the limits how a submission ended."""
        if receipt is not None or error is None:
            self.submitted += 1
            self.credits.spend(price_class, None if receipt is None else receipt.credits_reserved)
            self.breaker.answered(number)
            self.outage.end()
        elif isinstance(error, AmbiguousSubmissionError):
            self.credits.spend(price_class, None, error)
            self.outage.end()
            if (limit := self.breaker.ambiguous(number, error)) is not None:
                self._stop(limit)
        else:
            self.credits.release(price_class)
            if isinstance(error, ApiError):
                self.breaker.answered(number)
                self.outage.end()
            else:
                self.breaker.not_sent(number)
        self.limits_changed.set()

    async def _follow(self, item: _Item, job: Job[Any]) -> None:
        """Wait for a job and download its result."""
        record: Record | None = None
        try:
            result = await job
            record = cast("Record", result[0] if isinstance(result, tuple) else result)
            path = None if self.folder is None else await self._download(item, job, record, self.folder)
        except Exception as error:
            if isinstance(error, JobFailedError) and item.new and job.receipt is not None:
                self.refunded += max(job.receipt.credits_reserved or 0, 0)
            if is_fatal(error, polling=record is None):
                self._stop(error)
            self._finish(item, record, error=error)
        else:
            self._finish(item, record, path)

    def _finish(
        self,
        item: _Item,
        record: Record | None = None,
        path: Path | None = None,
        error: Exception | None = None,
    ) -> None:
        self.finished += 1
        self.ready.append(Outcome(item.index, item.request, item.job, record, path, error))

    # --- files ----------------------------------------------------------------------------------

    async def _reserve_target(self, item: _Item) -> None:
        """Make sure, before a request is paid for, that its result can get its file.

        Raises:
            InvalidRequestError: Another request of the batch has the same target file.
            TargetExistsError: The file exists, and ``overwrite`` is false.

        """
        if self.folder is None or item.target is not None:
            return
        path = self.access.target(item.request, None, self.folder)
        if path is None:
            return
        key = _file_key(path)
        if key in self.targets:
            raise InvalidRequestError(
                f"Another request of this batch has the same target file, {path}, so this one was not "
                "submitted. Give each request its own ref."
            )
        self.targets.add(key)
        item.target = key
        if not self.overwrite and await asyncio.to_thread(os.path.lexists, path):
            raise TargetExistsError(
                "The target file exists, so nothing was submitted: move the file away, or give the request "
                "another ref.",
                path=str(path),
            )

    def _reserve_target_of_earlier(self, item: _Item, job: Job[Any]) -> None:
        """Reserve the file of an earlier job: no new request with the same target file is submitted."""
        if self.folder is not None and (path := self.access.target(item.request, job, self.folder)):
            self.targets.add(_file_key(path))

    def _release_target(self, item: _Item) -> None:
        if item.target is not None:
            self.targets.discard(item.target)
            item.target = None

    async def _download(self, item: _Item, job: Job[Any], record: Record, folder: Path) -> Path:
        async with self.downloads:
            path = self.access.target(item.request, job, folder)
            assert path is not None  # noqa: S101 - a job has record ids, so its result has a name
            return await self.access.download(
                job, record, path, overwrite=self.overwrite, allow_private=self.allow_private
            )

    # --- the end --------------------------------------------------------------------------------

    @property
    def _ending(self) -> bool:
        return self.leaving or self.stopped is not None

    def _stop(self, reason: BaseException) -> None:
        """Read and submit nothing more; what is on the wire or paid for goes on."""
        if self._ending:
            return
        self.stopped = reason
        current = asyncio.current_task()
        if self.reader is not None and self.reader is not current:
            self.reader.cancel()
        for item, task in list(self.items.items()):
            if item.stage is _Stage.SENDING and item.claim is not None:
                self.access.withdraw(item.claim)
            elif item.stage is _Stage.PREPARING and task is not current:
                task.cancel()


# --- helpers ------------------------------------------------------------------------------------


def is_fatal(error: Exception, *, submitting: bool = False, polling: bool = False) -> bool:
    """Tell whether every other request of a batch would meet the same error.

    Args:
        error: What one request met.
        submitting: Whether it was met while the request was claimed or sent.
        polling: Whether it was met while the job was awaited. A batch whose jobs can't be polled must not
            pay for more of them.

    """
    if polling and isinstance(error, QameraError) and is_permanent(error):
        return True
    if isinstance(error, AuthenticationError | PermissionDeniedError | InsufficientCreditsError):
        return not error.foreign
    if isinstance(error, ApiError):
        return error.status == _PROXY_AUTHENTICATION_REQUIRED
    if isinstance(error, TransportError):
        return error.permanent
    if isinstance(error, LedgerError):
        return submitting and not isinstance(error, RefConflictError)
    return isinstance(error, BatchStoppedError | SessionClosedError)


def unsaved_receipt(error: BaseException | None) -> Receipt | None:
    """Return the receipt that the ledger could not keep; None if the error has none."""
    return error.receipt if isinstance(error, LedgerUnavailableError) else None


def _log_abandoned(outcomes: Iterable[Outcome], *, has_ledger: bool) -> None:
    """Log what is paid for, or may be, and that no consumer will get.

    Args:
        outcomes: What was not handed out.
        has_ledger: Whether a rerun finds the jobs of requests with a ref again.

    """
    lost: list[str] = []
    resumable = 0
    for outcome in outcomes:
        receipt = unsaved_receipt(outcome.error)
        if outcome.job is not None:
            what = f"records {', '.join(outcome.job.record_ids)}"
        elif receipt is not None:
            what = f"records {', '.join(receipt.record_ids)}"
        elif isinstance(outcome.error, AmbiguousSubmissionError):
            what = "an ambiguous submission"
        else:
            continue
        ref = outcome.request.ref
        # Without a ref the ledger takes the same request for a new one.
        if has_ledger and receipt is None and ref is not None:
            resumable += 1
        else:
            lost.append(what if ref is None else f"{what} (ref {ref!r})")
    if resumable:
        _log.info(
            "A batch was left early. The ledger has the %d submissions that are, or may be, paid for and "
            "were not handed out: run the batch again to continue.",
            resumable,
        )
    for start in range(0, len(lost), _IDS_PER_LINE):
        line = "; ".join(lost[start : start + _IDS_PER_LINE])
        _log.warning("A batch was left early. Paid for, or possibly, and not handed out: %s", line)


class _Source:
    """The iterable of a batch, read one request at a time; nothing of it runs before the first `read`.

    Args:
        requests: An iterable or async iterable.

    Raises:
        ConfigurationError: It is no iterable.

    """

    def __init__(self, requests: object) -> None:
        kinds = ("__aiter__", "__iter__", "__getitem__")
        if isinstance(requests, str | bytes) or not any([hasattr(requests, name) for name in kinds]):
            raise ConfigurationError(
                f"requests must be an iterable or async iterable of requests, not {short_repr(requests)}."
            )
        self._requests = requests
        self._iterator: Iterator[object] | AsyncIterator[object] | None = None

    async def read(self) -> object:
        """Return the next request, or `_END`. Raises what the iterable raises.

        Raises:
            RuntimeError: The iterable raised ``StopIteration``, ``StopAsyncIteration`` or ``GeneratorExit``
                where that does not mean its end. Python converts these in generators in the same way.

        """
        try:
            if self._iterator is None:
                self._iterator = self._begin()
            if isinstance(self._iterator, AsyncIterator):
                return await anext(self._iterator, _END)
            return next(self._iterator, _END)
        except (StopIteration, StopAsyncIteration, GeneratorExit) as error:
            raise RuntimeError(f"The iterable of a batch's requests raised {error!r}.") from error

    async def aclose(self) -> None:
        """Close the iterable if it is a generator. Idempotent."""
        source, self._requests, self._iterator = self._iterator or self._requests, (), None
        try:
            if inspect.isasyncgen(source):
                await source.aclose()
            elif inspect.isgenerator(source):
                source.close()
        except Exception:
            _log.exception("The iterable of a batch's requests raised when it was closed.")

    def _begin(self) -> Iterator[object] | AsyncIterator[object]:
        if hasattr(self._requests, "__aiter__"):
            return aiter(cast("AsyncIterable[object]", self._requests))
        return iter(cast("Iterable[object]", self._requests))


def _check_whole_number(name: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigurationError(
            f"{name} must be a whole number of at least {least}, not {short_repr(value)}."
        )
    return value


def _check_folder(path: str | os.PathLike[str] | None) -> Path | None:
    if path is None:
        return None
    try:
        text = os.fspath(path)
        # A lone surrogate can't be part of a file name, nor be written to a ledger or a log.
        if text and "\0" not in text and text.encode():
            return Path(os.path.expanduser(text))  # noqa: PTH111 - Path.expanduser raises if there is no home
    except (AttributeError, TypeError, UnicodeEncodeError):
        pass
    raise ConfigurationError(f"download_to must be the path of a folder or None, not {short_repr(path)}.")


async def _prepare_directory(folder: Path) -> None:
    """Create a folder if it is missing, and check that files can be created in it.

    Raises:
        ConfigurationError: The folder can't be created or written.

    """
    try:
        await asyncio.to_thread(_create_and_remove_file, folder)
    except OSError as error:
        raise ConfigurationError(
            f"download_to: {folder} is no folder that can be created or written ({error.strerror or error})."
        ) from error


def _create_and_remove_file(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # Permissions alone don't show that a disk is mounted read-only.
    file = folder / f".qamera-{uuid.uuid4().hex}"
    file.touch(exist_ok=False)
    file.unlink()


def _file_key(path: Path) -> str:
    """Return what two paths have in common if any file system may take their names for the same one."""
    return unicodedata.normalize("NFC", path.name).casefold()
