"""`Batch`: many requests at once. One task reads them, and each has a task until it has an outcome."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import logging
import os
import tempfile
import unicodedata
import weakref
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
)
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self, cast

import attrs

from .._config import RetryPolicy
from .._jobs import Job
from .._models import Receipt, Record, Request
from .._submission import Claim
from ..errors import (
    AmbiguousSubmissionError,
    ConfigurationError,
    InvalidRequestError,
    JobFailedError,
    TargetExistsError,
    short_repr,
)
from .limits import CreditLimit, PriceClass, SubmissionLimit, is_fatal, is_unreachable
from .results import BatchResult, Outcome, log_abandoned, unsaved_receipt

_log = logging.getLogger("qamera_async")

CLAIM_WAIT = 1.0
"""How long the batch waits for one claim before it reads the next request, in seconds.

A claim that takes longer waits for another process. Two processes that run the same catalogue thus don't
block each other.
"""

_END: Final = object()


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


@attrs.define(eq=False)
class _Item:
    """A request that was read and has no outcome yet.

    Attributes:
        index: The position of the request in the input.
        request: What was read.
        claimed: Set once the first claim of the request has ended.
        sent: The claim that is being sent or was sent by this batch; None before.
        job: The job; None before there is one.
        record: The record of the finished job; None before.
        target: The key of the file that is reserved for the item; None if there is none.

    """

    index: int
    request: Request
    claimed: asyncio.Event = attrs.field(factory=asyncio.Event)
    sent: Claim | None = None
    job: Job[Any] | None = None
    record: Record | None = None
    target: str | None = None

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
        kinds = ("__aiter__", "__iter__", "__getitem__")
        if isinstance(requests, str | bytes) or not any([hasattr(requests, name) for name in kinds]):
            raise ConfigurationError(
                f"requests must be an iterable or async iterable of requests, not {short_repr(requests)}."
            )
        if max_credits is not None:
            _check_whole_number("max_credits", max_credits, 0)
        self._access = access
        self._requests = requests
        self._credits = CreditLimit(max_credits)
        self._limit = SubmissionLimit(retry)
        self._max_in_flight = _check_whole_number("max_in_flight", max_in_flight, 1)
        self._retry_failed = retry_failed
        self._folder = _check_folder(download_to)
        self._overwrite = overwrite
        self._allow_private = allow_private
        self._downloads = asyncio.Semaphore(_check_whole_number("max_downloads", max_downloads, 1))
        self._consumed = False
        self._leaving = False
        self._main: asyncio.Task[None] | None = None
        self._reader: asyncio.Task[None] | None = None
        self._items: dict[_Item, asyncio.Task[None]] = {}
        self._waiting = 0  # items that are claimed and not yet sent
        self._targets: set[str] = set()  # the keys of the files that are reserved
        self._ready: deque[Outcome] = deque()
        self._abandoned: list[Outcome] = []
        self._changed = asyncio.Event()  # something that a task waits for
        self._refunded = 0
        self.submitted = 0
        """How many submissions of this batch the server has accepted. Earlier jobs don't count."""
        self.finished = 0
        """How many requests have an outcome, handed out or not."""
        self.stopped: BaseException | None = None
        """Why the batch submits nothing more; None while it goes on, or if it has read all requests."""

    @property
    def credits_reserved(self) -> int:
        """The credits that the receipts of this batch state so far. Earlier jobs don't count."""
        return self._credits.stated

    # --- the consumer ---------------------------------------------------------------------------

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
        await self._leave()

    def __aiter__(self) -> AsyncIterator[Outcome]:
        """Iterate over the outcomes as they finish.

        Raises:
            RuntimeError: The batch was consumed before, or an iteration that was left early is continued.
            BaseException: Why the batch stopped; raised after the last outcome.

        """
        self._consume()
        return _Outcomes(self, self._next, self._leave, self._leave_soon)

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
        outcomes: list[Outcome] = []
        try:
            while (outcome := await self._next()) is not None:
                outcomes.append(outcome)
        except BaseException:
            self._ready.extend(outcomes)  # no consumer gets them, so they are logged
            await self._leave()
            raise
        outcomes.sort(key=lambda outcome: outcome.index)
        return BatchResult(tuple(outcomes), self.stopped, self.credits_reserved, self._refunded)

    async def _next(self) -> Outcome | None:
        """Return the next outcome; None after the last one. The first call starts the batch.

        Raises:
            ConfigurationError: The folder can't be created or written. Nothing was read.
            RuntimeError: The batch was left before its last outcome.

        """
        if self._main is None and self._folder is not None and not self._leaving:
            await _prepare_directory(self._folder)
        if self._main is None and not self._leaving:
            self._main = asyncio.create_task(self._run(), name="qamera-batch")
            self._main.add_done_callback(lambda _: self._changed.set())
        while True:
            if self._leaving or self._main is None:
                raise RuntimeError(
                    "The batch was left early, before its last outcome. Make another one to go on."
                )
            if self._ready:
                self._changed.set()
                return self._ready.popleft()
            if self._main.done():
                return None
            await self._wait_for_change()

    async def _leave(self) -> None:
        """Read and submit nothing more, and wait until all tasks have ended. Idempotent.

        Raises:
            CancelledError: The caller was cancelled meanwhile; raised after all tasks have ended.

        """
        if not self._ended:
            self._leaving = True
            self._cancel()
        cancelled: asyncio.CancelledError | None = None
        while self._main is not None and not self._main.done():
            try:
                await asyncio.wait([self._main])
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled

    def _leave_soon(self) -> None:
        """Read and submit nothing more. Any thread may call this."""
        if self._ended:
            return
        self._leaving = True
        if self._main is not None:
            # A loop that is closed has ended all its tasks.
            with contextlib.suppress(RuntimeError):
                self._main.get_loop().call_soon_threadsafe(self._cancel)

    @property
    def _ended(self) -> bool:
        return self._main is not None and self._main.done() and not self._ready

    def _cancel(self) -> None:
        if self._main is not None and not self._main.done():
            self._main.cancel()
        else:
            self._log_abandoned()

    def _log_abandoned(self) -> None:
        """Log what is paid for, or may be, and that no consumer will get."""
        if self._leaving:
            self._abandoned += self._ready
            self._ready.clear()
        log_abandoned(self._abandoned, has_ledger=self._access.has_ledger)
        self._abandoned.clear()

    async def _wait_for_change(self, seconds: float | None = None) -> None:
        self._changed.clear()
        await _wait(self._changed, seconds)

    # --- reading --------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                self._reader = group.create_task(self._read(group), name="qamera-batch-reader")
        except BaseException as error:
            self._stop(error)  # no effect if the batch is being left
        finally:
            self._log_abandoned()

    async def _read(self, group: asyncio.TaskGroup) -> None:
        """Start a task for each request, until the iterable ends or the batch stops."""
        requests = _read_all(self._requests)
        try:
            for index in itertools.count():
                # While the batch is being left, this task waits to be cancelled: a cancellation that came
                # after the loop would interrupt the closing of the iterable.
                while not self._may_read():
                    await self._wait_for_change()
                request = await anext(requests, _END)
                if request is _END:
                    return
                if self._ending:
                    continue
                item = _Item(index, cast("Request", request))
                self._items[item] = group.create_task(self._process(item), name=f"qamera-batch-{index}")
                await _wait(item.claimed, CLAIM_WAIT)
        except GeneratorExit as error:
            self._stop(RuntimeError(f"The iterable of a batch's requests raised {error!r}."))
        except (Exception, asyncio.CancelledError) as error:
            self._stop(error)  # no effect if the batch itself cancelled this task
        finally:
            await requests.aclose()

    def _may_read(self) -> bool:
        """Tell whether one more request could be sent at once; in an outage, whether no other one can."""
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
            result = await job
            item.record = cast("Record", result[0] if isinstance(result, tuple) else result)
            path = (
                None if self._folder is None else await self._download(item, job, item.record, self._folder)
            )
        except asyncio.CancelledError as error:
            self._abandoned.append(item.outcome())
            self._stop(error)  # no effect if the batch itself cancelled this task
            raise
        except Exception as error:
            self._fail(item, error)
        else:
            self._finish(item.outcome(path))
        finally:
            self._items.pop(item, None)
            item.claimed.set()
            self._changed.set()

    def _fail(self, item: _Item, error: Exception) -> None:
        """Note an error; it is no outcome if it stops the batch and nothing was paid for."""
        submitting = item.job is None
        unpaid = submitting and unsaved_receipt(error) is None
        fatal = is_fatal(error, submitting=submitting, polling=not submitting and item.record is None)
        if fatal:
            self._stop(error)
        if item.sent is not None and item.job is not None and isinstance(error, JobFailedError):
            receipt = item.job.receipt
            self._refunded += max((receipt and receipt.credits_reserved) or 0, 0)
        if unpaid and item.target is not None and not isinstance(error, AmbiguousSubmissionError):
            self._targets.discard(item.target)
        if not (fatal and unpaid):
            self._finish(item.outcome(error=error))

    def _finish(self, outcome: Outcome) -> None:
        self.finished += 1
        self._ready.append(outcome)

    async def _submit(self, item: _Item) -> Job[Any]:
        """Return the job of a request; submit it again as often as it provably did not reach the server."""
        while item.job is None:
            claimed = await self._access.claim(item.request, retry_failed=self._retry_failed)
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
        price_class: PriceClass | None = None
        self._waiting += 1
        try:
            await self._reserve_target(item)
            while price_class is None:
                if self._ending:
                    raise asyncio.CancelledError
                if self._limit.permits():
                    price_class = self._credits.reserve(item.request)
                if price_class is None:
                    await self._wait_for_change(self._limit.seconds_to_probe)
            return price_class
        finally:
            self._waiting -= 1
            if price_class is None:
                self._access.withdraw(claim)

    async def _send(self, item: _Item, claim: Claim, price_class: PriceClass) -> None:
        """Send a request. It has no job afterwards if it provably did not reach the server."""
        number = self._limit.sent()
        item.sent = claim
        error: BaseException | None = None
        receipt: Receipt | None = None
        try:
            item.job = await self._access.send(claim)
            receipt = item.job.receipt
        except BaseException as caught:
            error, receipt = caught, unsaved_receipt(caught)
            if not is_unreachable(caught):
                raise
            item.sent = None
        finally:
            self._settle(number, price_class, receipt, error)

    def _settle(
        self, number: int, price_class: PriceClass, receipt: Receipt | None, error: BaseException | None
    ) -> None:
        """Tell the limits how a submission ended."""
        if receipt is not None or error is None:
            self.submitted += 1
            self._credits.spend(price_class, None if receipt is None else receipt.credits_reserved)
            error = None
        elif isinstance(error, AmbiguousSubmissionError):
            self._credits.spend(price_class, None, error)
        else:
            self._credits.release(price_class)
        if (limit := self._limit.ended(number, error)) is not None:
            self._stop(limit)
        self._changed.set()

    # --- files ----------------------------------------------------------------------------------

    async def _reserve_target(self, item: _Item) -> None:
        """Reserve the file of an item. Unless it has a job, check that its result can get the file.

        Raises:
            InvalidRequestError: Another request of the batch has the same target file.
            TargetExistsError: The file exists, and ``overwrite`` is false.

        """
        if self._folder is None or item.target is not None:
            return
        path = self._access.target(item.request, item.job, self._folder)
        if path is None:
            return
        # File systems may take names for the same one that differ in case or in normalisation.
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

    async def _download(self, item: _Item, job: Job[Any], record: Record, folder: Path) -> Path:
        async with self._downloads:
            path = self._access.target(item.request, job, folder)
            assert path is not None  # noqa: S101 - a job has record ids, so its result has a name
            return await self._access.download(
                job, record, path, overwrite=self._overwrite, allow_private=self._allow_private
            )

    # --- the end --------------------------------------------------------------------------------

    @property
    def _ending(self) -> bool:
        return self._leaving or self.stopped is not None

    def _stop(self, reason: BaseException) -> None:
        """Read and submit nothing more; what is on the wire or paid for goes on."""
        if self._ending:
            return
        self.stopped = reason
        current = asyncio.current_task()
        if self._reader is not None and self._reader is not current:
            self._reader.cancel()
        for item, task in list(self._items.items()):
            if item.sent is not None:
                self._access.withdraw(item.sent)  # no effect on what may have reached the server
            elif item.job is None and task is not current:
                task.cancel()


class _Outcomes:
    """The iterator of one ``async for``; once it is forgotten, the batch reads and submits nothing more."""

    def __init__(
        self,
        batch: Batch,
        next_outcome: Callable[[], Awaitable[Outcome | None]],
        leave: Callable[[], Awaitable[None]],
        leave_soon: Callable[[], None],
    ) -> None:
        self._batch = batch
        self._next_outcome = next_outcome
        self._leave = leave
        self._reason_raised = False
        weakref.finalize(self, leave_soon).atexit = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Outcome:
        try:
            outcome = await self._next_outcome()
        except BaseException:
            await self._leave()
            raise
        if outcome is not None:
            return outcome
        if self._batch.stopped is None or self._reason_raised:
            raise StopAsyncIteration
        self._reason_raised = True
        raise self._batch.stopped

    async def aclose(self) -> None:
        """Read and submit nothing more, and wait until no task of the batch is left. Idempotent."""
        await self._leave()


async def _read_all(requests: Iterable[object] | AsyncIterable[object]) -> AsyncGenerator[object]:
    """Yield the items of an iterable; at the end, close it if it is a generator."""
    iterator: Iterator[object] | AsyncIterator[object] | None = None
    try:
        if isinstance(requests, AsyncIterable):
            iterator = aiter(requests)
            async for request in iterator:
                yield request
        else:
            iterator = iter(requests)
            for request in iterator:
                yield request
    finally:
        try:
            if inspect.isasyncgen(iterator):
                await iterator.aclose()
            elif inspect.isgenerator(iterator):
                iterator.close()
        except Exception:
            _log.exception("The iterable of a batch's requests raised when it was closed.")


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
            f"download_to: {folder} is no folder that can be created or written ({error.strerror or error})."
        ) from error


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
