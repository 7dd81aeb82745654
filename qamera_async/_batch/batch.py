"""`Batch`: many requests at once. One task reads them, and each has a task until it has an outcome."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import tempfile
import unicodedata
import weakref
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Generator, Iterable
from pathlib import Path
from typing import Final, Self, cast

import attrs

from .._config import RetryPolicy
from .._jobs import Job
from .._models import Receipt, Record, Request, Video
from .._registration import Registrar
from .._submission import Claim
from ..errors import (
    AmbiguousSubmissionError,
    BatchStoppedError,
    ConfigurationError,
    InvalidRequestError,
    JobFailedError,
    TargetExistsError,
    is_unsent,
    short_repr,
)
from .limits import CreditLimit, PriceClass, SubmissionLimit, is_fatal
from .results import BatchResult, Outcome, log_abandoned, unsaved_receipt

_log = logging.getLogger("qamera_async")

SLOW_CLAIM_SECONDS: Final = 1.0
"""Seconds that the batch waits for one claim before it reads the next request.

A claim that takes longer waits for another process. So two processes that run the same catalogue don't block
each other.
"""


@attrs.define(eq=False)
class _Item:
    """A request that was read and has no outcome yet.

    Attributes:
        index: The position of the request in the input.
        request: The request as it was read.
        task: The task that processes the item; None while `create_task` runs the start of an eager task.
        claimed: Set once the first claim of the request has ended.
        sent: The claim that is being sent or was sent by this batch; None before.
        receipt: The receipt of that claim; None before.
        job: The job; None before there is one.
        record: The record of the finished job; None before.
        target: The key of the target file that is reserved for the item; empty if there is none.

    """

    index: int
    request: Request
    task: asyncio.Task[None] | None = None
    claimed: asyncio.Event = attrs.field(factory=asyncio.Event)
    sent: Claim | None = None
    receipt: Receipt | None = None
    job: Job[Video] | None = None
    record: Record | None = None
    target: str = ""

    def outcome(self, path: Path | None = None, error: Exception | None = None) -> Outcome:
        return Outcome(self.index, self.request, self.job, self.record, path, error)


class Batch:
    """Many requests, submitted and awaited together. Made by `QameraSession.batch`.

    ``async for`` yields each `Outcome` as soon as the request has one. ``await`` returns all of them as a
    `BatchResult`, in the order of the input. A batch is consumed once, in one of these ways; nothing is read
    or submitted before. Use ``async with`` to leave a loop early: its end waits until no task is left.

    Requests are read only as far as they can be submitted. At most five submissions are on the wire or being
    reconciled at once. This limit bounds the cost of a failing server, since five ambiguous submissions in a
    row stop the batch. Requests that wait for another process with the same ledger are not counted.

    The batch stops on 401, 402 and 403, at ``max_credits``, after five ambiguous submissions in a row, when
    its iterable raises, when jobs can't be polled, and when the ledger or the session can't be used. Then
    nothing more is submitted, the outcomes of everything paid for are handed out, and the reason is raised
    after the last one, or is in `BatchResult.stopped`. While the server is unreachable, the batch pauses, and
    one request at a time probes the server.

    If the consumer leaves early or is cancelled, nothing more is read or submitted. The log names every
    submission that is, or may be, paid for and was not handed out.

    Args:
        registrar: Submits the requests and downloads the results.
        requests: An iterable or async iterable of requests.
        retry: The delays while the server is unreachable.
        max_in_flight: How many requests may be submitted and not handed out.
        max_credits: How many credits the batch may spend; None means no limit. Requests with the same kind,
            provider, number of images and ``extra_body`` form a price class, and are expected to cost the
            same. Only the first request of each class may exceed the limit, since its price is not known
            before its receipt.
        retry_failed: Whether to submit requests again that failed according to the ledger.
        download_to: The folder for the results. It is created if missing, and ``~`` is expanded. None means
            no downloads.
        overwrite: Whether downloads replace existing files. If not, a request whose file exists is refused
            before it is submitted.
        allow_private: Whether downloads from private addresses are allowed.
        max_downloads: How many downloads may run at once.

    Raises:
        ConfigurationError: An argument is invalid.

    Example:
        ::

            async with qamera.batch(requests, download_to="clips", max_credits=500) as batch:
                async for outcome in batch:
                    print(outcome.request.ref, outcome.path or outcome.error)

    """

    def __init__(
        self,
        registrar: Registrar,
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
        methods = ("__aiter__", "__iter__", "__getitem__")
        if isinstance(requests, str | bytes) or not any([hasattr(requests, name) for name in methods]):
            raise ConfigurationError(
                f"requests must be an iterable or async iterable of requests, not {short_repr(requests)}."
            )
        if max_credits is not None:
            _check_whole_number("max_credits", max_credits, 0)
        self._registrar = registrar
        self._requests = requests
        self._credits = CreditLimit(max_credits)
        self._limit = SubmissionLimit(retry)
        self._max_in_flight = _check_whole_number("max_in_flight", max_in_flight, 1)
        self._retry_failed = _check_bool("retry_failed", retry_failed)
        self._folder = _check_folder(download_to)
        self._overwrite = _check_bool("overwrite", overwrite)
        self._allow_private = _check_bool("allow_private", allow_private)
        self._downloads = asyncio.Semaphore(_check_whole_number("max_downloads", max_downloads, 1))
        self._consumed = False
        self._leaving = False
        self._reason_raised = False
        self._main: asyncio.Task[None] | None = None
        self._reader: asyncio.Task[None] | None = None
        self._items: set[_Item] = set()
        self._waiting = 0  # items that are claimed and not yet sent
        self._targets: set[str] = set()  # the keys of the target files that are reserved
        self._ready: deque[Outcome] = deque()
        self._changed = asyncio.Event()  # something that a task waits for
        self._refunded = 0
        self.submitted = 0
        """How many submissions of this batch the server has accepted. Earlier jobs don't count."""
        self.finished = 0
        """How many requests have an outcome, whether it was handed out or not."""
        self.stopped: Exception | None = None
        """Why the batch submits nothing more; None while it goes on, or if it has read all requests."""

    @property
    def credits_reserved(self) -> int:
        """The credits that the receipts of this batch state so far. Earlier jobs don't count."""
        return self._credits.stated

    # --- the consumer ---------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def __aiter__(self) -> AsyncIterator[Outcome]:
        """Iterate over the outcomes as they finish.

        Raises:
            RuntimeError: The batch was consumed before.

        """
        self._consume()
        iteration = _Iteration(self)
        weakref.finalize(iteration, self._leave).atexit = False
        return iteration

    async def __anext__(self) -> Outcome:
        """Return the next outcome as soon as there is one. A call that is cancelled leaves the batch.

        Raises:
            ConfigurationError: The folder can't be created or written. Nothing was read.
            RuntimeError: The batch was left before its last outcome.
            Exception: Why the batch stopped; raised once, after the last outcome.

        """
        try:
            outcome = await self._next()
        except BaseException:
            await self.aclose()
            raise
        if outcome is not None:
            return outcome
        if self.stopped is None or self._reason_raised:
            raise StopAsyncIteration
        self._reason_raised = True
        raise self.stopped

    def __await__(self) -> Generator[object, None, BatchResult]:
        """Return all outcomes, in the order of the input.

        Raises:
            ConfigurationError: The folder can't be created or written. Nothing was read.
            RuntimeError: The batch was consumed before, or was left before its last outcome.

        """
        self._consume()
        return self._collect().__await__()

    async def aclose(self) -> None:
        """Read and submit nothing more, and wait until no task of the batch is left. Idempotent.

        Raises:
            asyncio.CancelledError: The caller was cancelled; raised after all tasks have ended.

        """
        self._leave()
        if self._main is not None:
            try:
                await asyncio.wait([self._main])
            except asyncio.CancelledError:
                await self.aclose()
                raise
        self._log_abandoned()

    def _consume(self) -> None:
        if self._consumed or self._leaving:
            raise RuntimeError("A batch can be consumed once: make another one.")
        self._consumed = True

    async def _collect(self) -> BatchResult:
        outcomes: list[Outcome] = []
        try:
            while (outcome := await self._next()) is not None:
                outcomes.append(outcome)
        except BaseException:
            self._ready.extend(outcomes)  # no consumer gets them, so they are logged
            await self.aclose()
            raise
        outcomes.sort(key=lambda outcome: outcome.index)
        return BatchResult(tuple(outcomes), self.stopped, self.credits_reserved, self._refunded)

    async def _next(self) -> Outcome | None:
        """Return the next outcome; None after the last one. The first call starts the batch."""
        self._consumed = True
        if self._main is None and self._folder is not None and not self._leaving:
            await _prepare_directory(self._folder)
        if self._main is None and not self._leaving:
            self._main = asyncio.create_task(self._run(), name="qamera-batch")
            self._main.add_done_callback(lambda _: self._changed.set())
        while self._main is not None and not self._leaving:
            if self._ready:
                self._changed.set()
                return self._ready.popleft()
            if self._main.done():
                return None
            await self._wait_for_change()
        raise RuntimeError("The batch was left early, before its last outcome. Make another one to go on.")

    def _leave(self) -> None:
        """Read and submit nothing more. Any thread may call this. Idempotent."""
        if self._leaving or (self._main is not None and self._main.done() and not self._ready):
            return
        self._leaving = True
        if self._main is not None:
            try:
                self._main.get_loop().call_soon_threadsafe(self._cancel, self._main)
            except RuntimeError:
                self._log_abandoned()  # the loop is closed, so its tasks have ended

    def _cancel(self, main: asyncio.Task[None]) -> None:
        if not main.cancel():
            self._log_abandoned()

    def _log_abandoned(self) -> None:
        """Log the outcomes that no consumer gets, as far as they are, or may be, paid for."""
        log_abandoned(self._ready, has_ledger=self._registrar.has_ledger)
        self._ready.clear()

    async def _wait_for_change(self, seconds: float | None = None) -> None:
        self._changed.clear()
        await _wait(self._changed, seconds)

    # --- reading --------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read(group), name="qamera-batch-reader")
        except asyncio.CancelledError as error:
            # The consumer has left, or the event loop is being closed.
            self._stop(error)
            self._log_abandoned()
        except BaseException as error:
            self._stop(error)

    async def _read(self, group: asyncio.TaskGroup) -> None:
        """Start a task for each request, until the iterable ends or the batch stops."""
        self._reader = asyncio.current_task()
        index = 0
        try:
            async with contextlib.aclosing(_read_all(self._requests)) as requests:
                async for request in requests:
                    if not self._ending:
                        item = _Item(index, cast("Request", request))
                        index += 1
                        self._items.add(item)
                        item.task = group.create_task(self._process(item), name=f"qamera-batch-{item.index}")
                        await _wait(item.claimed, SLOW_CLAIM_SECONDS)
                    # Wait here for the cancellation while the consumer leaves. A later cancellation would
                    # interrupt `requests.aclose()`.
                    while not self._may_read():
                        await self._wait_for_change()
        except (Exception, asyncio.CancelledError, GeneratorExit) as error:
            self._stop(error)  # no effect if the batch itself cancelled this task

    def _may_read(self) -> bool:
        """Tell whether to read a request.

        A request is read if it can be sent at once. In an outage, a request is read only if no other request
        can probe the server.
        """
        if self._ending or len(self._items) + len(self._ready) >= self._max_in_flight:
            return False
        if self._limit.outage:
            return not any(item.job is None for item in self._items)
        return self._limit.permits(self._waiting + 1)

    # --- one request ----------------------------------------------------------------------------

    async def _process(self, item: _Item) -> None:
        """Submit a request, wait for its job and download the result."""
        try:
            job = await self._submit(item)
            item.record = await job
            path = await self._download(item, job, item.record)
        except asyncio.CancelledError as error:
            self._stop(error)  # no effect if the batch itself cancelled this task
            if item.job is not None:
                self._finish(item.outcome(error=self.stopped))
            raise
        except Exception as error:
            self._fail(item, error)
        else:
            self._finish(item.outcome(path))
        finally:
            self._items.discard(item)
            item.claimed.set()
            self._changed.set()

    def _fail(self, item: _Item, error: Exception) -> None:
        """Count an error, and hand it out unless it stops the batch and nothing was paid for."""
        submitting = item.job is None
        unpaid = submitting and item.receipt is None
        fatal = is_fatal(error, submitting=submitting, polling=not submitting and item.record is None)
        if fatal:
            self._stop(error)
        if item.receipt is not None and isinstance(error, JobFailedError):
            self._refunded += item.receipt.credits_reserved or 0
        if unpaid and not isinstance(error, AmbiguousSubmissionError):
            self._targets.discard(item.target)
        if not (fatal and unpaid):
            self._finish(item.outcome(error=error))

    def _finish(self, outcome: Outcome) -> None:
        self.finished += 1
        self._ready.append(outcome)

    async def _submit(self, item: _Item) -> Job[Video]:
        """Return the job of a request; submit it again as often as it provably did not reach the server."""
        while item.job is None:
            claimed = await self._registrar.claim(item.request, retry_failed=self._retry_failed)
            item.claimed.set()
            if isinstance(claimed, Job):
                item.job = claimed
                await self._reserve_target(item)
            else:
                price_class = await self._wait_to_send(item, claimed)
                await self._send(item, claimed, price_class)
        return item.job

    async def _wait_to_send(self, item: _Item, claim: Claim) -> PriceClass:
        """Wait until all limits permit a claimed request; release the claim if it can't be sent."""
        self._waiting += 1
        try:
            await self._reserve_target(item)
            while (price_class := self._reserve_submission(item)) is None:
                await self._wait_for_change(self._limit.seconds_to_probe)
        except BaseException:
            self._registrar.withdraw(claim)
            raise
        else:
            return price_class
        finally:
            self._waiting -= 1

    def _reserve_submission(self, item: _Item) -> PriceClass | None:
        """Reserve the price of a request if all limits permit sending it now; otherwise return None.

        Raises:
            CreditLimitError: The request would exceed ``max_credits``.
            asyncio.CancelledError: Nothing more is submitted.

        """
        if self._ending:
            raise asyncio.CancelledError
        return self._credits.reserve(item.request) if self._limit.permits() else None

    async def _send(self, item: _Item, claim: Claim, price_class: PriceClass) -> None:
        """Send a request. It has no job afterwards if it provably did not reach the server."""
        number = self._limit.sent()
        item.sent = claim
        try:
            item.receipt = await self._registrar.send(claim)
        except BaseException as error:
            item.receipt = unsaved_receipt(error)
            self._report_submission(number, price_class, item.receipt or error)
            if not is_unsent(error):
                raise
            item.sent = None
        else:
            self._report_submission(number, price_class, item.receipt)
            item.job = self._registrar.new_job(claim, item.receipt)

    def _report_submission(
        self, number: int, price_class: PriceClass, result: Receipt | BaseException
    ) -> None:
        """Report the result of a submission to the limits."""
        if isinstance(result, Receipt):
            self.submitted += 1
        self._credits.ended(price_class, result)
        if (limit := self._limit.ended(number, result)) is not None:
            self._stop(limit)
        self._changed.set()

    # --- files ----------------------------------------------------------------------------------

    async def _reserve_target(self, item: _Item) -> None:
        """Reserve the target file of an item. Without a job, check first that the file is still available.

        Raises:
            InvalidRequestError: Another request of the batch has the same target file.
            TargetExistsError: The file exists, and ``overwrite`` is false.

        """
        if self._folder is None or item.target:
            return
        path = self._registrar.target(item.request, item.job, self._folder)
        if path is None:
            return
        # Some file systems treat names as equal that differ only in case or in Unicode normalisation.
        key = unicodedata.normalize("NFC", path.name).casefold()
        if item.job is None and key in self._targets:
            raise InvalidRequestError(
                f"Another request of this batch has the same target file, {path}, so this one was not "
                "submitted. Give each request its own ref."
            )
        self._targets.add(key)
        item.target = key
        if item.job is None and not self._overwrite and await asyncio.to_thread(os.path.lexists, path):
            raise TargetExistsError(
                "The target file exists, so nothing was submitted: move the file away, or give the request "
                "another ref.",
                path=str(path),
            )

    async def _download(self, item: _Item, job: Job[Video], record: Record) -> Path | None:
        """Download the result of an item; return None if the batch has no folder."""
        if self._folder is None:
            return None
        async with self._downloads:
            path = self._registrar.target(item.request, job, self._folder)
            assert path is not None  # noqa: S101 - a job has record ids, so its result has a name
            return await self._registrar.download(
                job, record, path, overwrite=self._overwrite, allow_private=self._allow_private
            )

    # --- the end --------------------------------------------------------------------------------

    @property
    def _ending(self) -> bool:
        return self._leaving or self.stopped is not None

    def _stop(self, reason: BaseException) -> None:
        """Read and submit nothing more. Submissions on the wire and jobs continue."""
        if self._ending:
            return
        if not isinstance(reason, Exception):
            # Raised as it is, it would look like a cancellation of the consumer.
            reason = BatchStoppedError(
                f"{reason!r} interrupted the batch: its iterable raised that, or a task of the batch was "
                "cancelled. Run the remaining requests again."
            )
        self.stopped = reason
        current = asyncio.current_task()
        if self._reader is not None and self._reader is not current:
            self._reader.cancel()
        for item in self._items:
            if item.sent is not None:
                self._registrar.withdraw(item.sent)  # no effect on what may have reached the server
            elif item.job is None and item.task is not None and item.task is not current:
                item.task.cancel()


class _Iteration:
    """The iterator of one ``async for``. It is finalized at the end of the loop; a batch may live longer."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Outcome:
        return await anext(self._batch)

    async def aclose(self) -> None:
        """Leave the batch, as `Batch.aclose` does."""
        await self._batch.aclose()


async def _read_all(requests: Iterable[object] | AsyncIterable[object]) -> AsyncGenerator[object]:
    """Yield the items of an iterable. At the end, close its iterator if that is a generator."""
    iterator = aiter(requests) if isinstance(requests, AsyncIterable) else iter(requests)
    try:
        if isinstance(iterator, AsyncIterator):
            async for request in iterator:
                yield request
        else:
            for request in iterator:
                yield request
    finally:
        try:
            if inspect.isasyncgen(iterator):
                await iterator.aclose()
            elif inspect.isgenerator(iterator):
                iterator.close()
        except Exception:
            _log.exception("The iterable of a batch's requests raised an exception when it was closed.")


async def _wait(event: asyncio.Event, seconds: float | None) -> None:
    """Wait for an event, at most so many seconds; None means no limit."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


async def _prepare_directory(folder: Path) -> None:
    """Create a folder if it is missing, and check that files can be created in it.

    Raises:
        ConfigurationError: The folder can't be created or written.

    """

    def create_and_remove_file() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # Permissions alone don't show that a disk is mounted read-only.
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".qamera-"):
            pass

    try:
        await asyncio.to_thread(create_and_remove_file)
    except OSError as error:
        raise ConfigurationError(
            f"download_to: can't create or write the folder {folder} ({error.strerror or error})."
        ) from error


def _check_whole_number(name: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigurationError(
            f"{name} must be a whole number of at least {least}, not {short_repr(value)}."
        )
    return value


def _check_bool(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name} must be True or False, not {short_repr(value)}.")
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
