"""The tasks of a batch: one reads the requests, and each request has one until it has an outcome."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import logging
import os
import tempfile
import unicodedata
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, Protocol, cast

import attrs

from .._jobs import Job
from .._models import Receipt, Record, Request
from .._submission import Claim
from ..errors import (
    AmbiguousSubmissionError,
    ConfigurationError,
    InvalidRequestError,
    JobFailedError,
    LedgerUnavailableError,
    TargetExistsError,
)
from .limits import CreditLimit, PriceClass, SubmissionLimit, is_fatal, is_unreachable

_log = logging.getLogger("qamera_async")

CLAIM_WAIT = 1.0
"""How long the batch waits for one claim before it reads the next request, in seconds.

A claim that takes longer waits for another process. Two processes that run the same catalogue thus don't
block each other.
"""

_END: Final = object()
_OUTCOMES_PER_LINE: Final = 20


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


@attrs.define(eq=False)
class Runner:
    """Reads, submits, awaits and downloads the requests of one batch.

    One task owns all others: one that reads, and one for each request that was read and has no outcome.
    """

    access: BatchAccess
    requests: Iterable[Request] | AsyncIterable[Request]
    credits: CreditLimit
    limit: SubmissionLimit
    max_in_flight: int
    retry_failed: bool
    folder: Path | None
    overwrite: bool
    allow_private: bool
    downloads: asyncio.Semaphore
    targets: set[str] = attrs.field(factory=set[str])  # the keys of the files that are reserved
    main: asyncio.Task[None] | None = None
    reader: asyncio.Task[None] | None = None
    items: dict[_Item, asyncio.Task[None]] = attrs.field(factory=dict[_Item, asyncio.Task[None]])
    waiting: int = 0  # items that are claimed and not yet sent
    ready: deque[Outcome] = attrs.field(factory=deque[Outcome])
    abandoned: list[Outcome] = attrs.field(factory=list[Outcome])
    changed: asyncio.Event = attrs.field(factory=asyncio.Event)  # something that a task waits for
    leaving: bool = False
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
        if self.main is None and self.folder is not None and not self.leaving:
            await _prepare_directory(self.folder)
        if self.main is None and not self.leaving:
            self.main = asyncio.create_task(self._run(), name="qamera-batch")
            self.main.add_done_callback(lambda _: self.changed.set())
        while True:
            if self.leaving or self.main is None:
                raise RuntimeError(
                    "The batch was left early, before its last outcome. Make another one to go on."
                )
            if self.ready:
                self.changed.set()
                return self.ready.popleft()
            if self.main.done():
                return None
            await self._wait_for_change()

    async def leave(self) -> None:
        """Read and submit nothing more, and wait until all tasks have ended. Idempotent.

        Raises:
            CancelledError: The caller was cancelled meanwhile; raised after all tasks have ended.

        """
        if not self._ended:
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
        if self._ended:
            return
        self.leaving = True
        if self.main is not None:
            # A loop that is closed has ended all its tasks.
            with contextlib.suppress(RuntimeError):
                self.main.get_loop().call_soon_threadsafe(self._cancel)

    @property
    def _ended(self) -> bool:
        return self.main is not None and self.main.done() and not self.ready

    def _cancel(self) -> None:
        if self.main is not None and not self.main.done():
            self.main.cancel()
        else:
            self._log_abandoned()

    def _log_abandoned(self) -> None:
        """Log what is paid for, or may be, and that no consumer will get."""
        if self.leaving:
            self.abandoned += self.ready
            self.ready.clear()
        log_abandoned(self.abandoned, has_ledger=self.access.has_ledger)
        self.abandoned.clear()

    async def _wait_for_change(self, seconds: float | None = None) -> None:
        self.changed.clear()
        await _wait(self.changed, seconds)

    # --- reading --------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                self.reader = group.create_task(self._read(group), name="qamera-batch-reader")
        except BaseException as error:
            self._stop(error)  # no effect if the batch is being left
        finally:
            self._log_abandoned()

    async def _read(self, group: asyncio.TaskGroup) -> None:
        """Start a task for each request, until the iterable ends or the batch stops."""
        requests = _read_all(self.requests)
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
                self.items[item] = group.create_task(self._process(item), name=f"qamera-batch-{index}")
                await _wait(item.claimed, CLAIM_WAIT)
        except GeneratorExit as error:
            self._stop(RuntimeError(f"The iterable of a batch's requests raised {error!r}."))
        except (Exception, asyncio.CancelledError) as error:
            self._stop(error)  # no effect if the batch itself cancelled this task
        finally:
            await requests.aclose()

    def _may_read(self) -> bool:
        """Tell whether one more request could be sent at once."""
        if self._ending or len(self.items) + len(self.ready) >= self.max_in_flight:
            return False
        if self.limit.outage:
            return not any(item.job is None for item in self.items)
        return self.limit.permits(self.waiting + 1)

    # --- one request ----------------------------------------------------------------------------

    async def _process(self, item: _Item) -> None:
        """Submit a request, wait for its job and download the result."""
        try:
            job = await self._submit(item)
            result = await job
            item.record = cast("Record", result[0] if isinstance(result, tuple) else result)
            path = None if self.folder is None else await self._download(item, job, item.record, self.folder)
        except asyncio.CancelledError as error:
            self.abandoned.append(item.outcome())
            self._stop(error)  # no effect if the batch itself cancelled this task
            raise
        except Exception as error:
            self._fail(item, error)
        else:
            self._finish(item.outcome(path))
        finally:
            self.items.pop(item, None)
            item.claimed.set()
            self.changed.set()

    def _fail(self, item: _Item, error: Exception) -> None:
        submitting = item.job is None
        unpaid = submitting and unsaved_receipt(error) is None
        fatal = is_fatal(error, submitting=submitting, polling=not submitting and item.record is None)
        if fatal:
            self._stop(error)
        if item.sent is not None and item.job is not None and isinstance(error, JobFailedError):
            receipt = item.job.receipt
            self.refunded += max((receipt and receipt.credits_reserved) or 0, 0)
        if unpaid and item.target is not None and not isinstance(error, AmbiguousSubmissionError):
            self.targets.discard(item.target)
        if not (fatal and unpaid):
            self._finish(item.outcome(error=error))

    def _finish(self, outcome: Outcome) -> None:
        self.finished += 1
        self.ready.append(outcome)

    async def _submit(self, item: _Item) -> Job[Any]:
        """Return the job of a request; submit it again as often as it provably did not reach the server."""
        while item.job is None:
            claimed = await self.access.claim(item.request, retry_failed=self.retry_failed)
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
        self.waiting += 1
        try:
            await self._reserve_target(item)
            while price_class is None:
                if self._ending:
                    raise asyncio.CancelledError
                if self.limit.permits():
                    price_class = self.credits.reserve(item.request)
                if price_class is None:
                    await self._wait_for_change(self.limit.seconds_to_probe)
            return price_class
        finally:
            self.waiting -= 1
            if price_class is None:
                self.access.withdraw(claim)

    async def _send(self, item: _Item, claim: Claim, price_class: PriceClass) -> None:
        """Send a request. It has no job afterwards if it provably did not reach the server."""
        number = self.limit.sent()
        item.sent = claim
        error: BaseException | None = None
        receipt: Receipt | None = None
        try:
            item.job = await self.access.send(claim)
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
            self.credits.spend(price_class, None if receipt is None else receipt.credits_reserved)
            error = None
        elif isinstance(error, AmbiguousSubmissionError):
            self.credits.spend(price_class, None, error)
        else:
            self.credits.release(price_class)
        if (limit := self.limit.ended(number, error)) is not None:
            self._stop(limit)
        self.changed.set()

    # --- files ----------------------------------------------------------------------------------

    async def _reserve_target(self, item: _Item) -> None:
        """Reserve the file of an item. Unless it has a job, check that its result can get the file.

        Raises:
            InvalidRequestError: Another request of the batch has the same target file.
            TargetExistsError: The file exists, and ``overwrite`` is false.

        """
        if self.folder is None or item.target is not None:
            return
        path = self.access.target(item.request, item.job, self.folder)
        if path is None:
            return
        # File systems may take names for the same one that differ in case or in normalisation.
        key = unicodedata.normalize("NFC", path.name).casefold()
        if item.job is None and key in self.targets:
            raise InvalidRequestError(
                f"Another request of this batch has the same target file, {path}, so this one was not "
                "submitted. Give each request its own ref."
            )
        self.targets.add(key)
        item.target = key
        if item.job is None and not self.overwrite and await asyncio.to_thread(os.path.lexists, path):
            raise TargetExistsError(
                "The target file exists, so nothing was submitted: move the file away, or give the request "
                "another ref.",
                path=str(path),
            )

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
            if item.sent is not None:
                self.access.withdraw(item.sent)  # no effect on what may have reached the server
            elif item.job is None and task is not current:
                task.cancel()


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


def unsaved_receipt(error: BaseException) -> Receipt | None:
    """Return the receipt that the ledger could not keep; None if the error has none."""
    return error.receipt if isinstance(error, LedgerUnavailableError) else None


def log_abandoned(outcomes: Iterable[Outcome], *, has_ledger: bool) -> None:
    """Log what is paid for, or may be, and that no consumer will get.

    Args:
        outcomes: What was not handed out.
        has_ledger: Whether a rerun finds the jobs of requests with a ref again.

    """
    lost: list[str] = []
    resumable = 0
    for outcome in outcomes:
        receipt = None if outcome.error is None else unsaved_receipt(outcome.error)
        if (paid := outcome.job or receipt) is not None:
            what = f"records {', '.join(paid.record_ids)}"
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
    for start in range(0, len(lost), _OUTCOMES_PER_LINE):
        line = "; ".join(lost[start : start + _OUTCOMES_PER_LINE])
        _log.warning("A batch was left early. Paid for, or possibly, and not handed out: %s", line)
