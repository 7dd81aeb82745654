"""The tasks of a batch: one reads the requests, and each request has one until it has an outcome."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import inspect
import logging
import os
import unicodedata
import uuid
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import attrs

from .._jobs import Job
from .._models import Receipt, Record, Request
from ..errors import (
    AmbiguousSubmissionError,
    ApiError,
    ConfigurationError,
    InvalidRequestError,
    JobFailedError,
    TargetExistsError,
    TransportError,
    short_repr,
)
from .limits import AmbiguityBreaker, CreditLimit, OutagePause, PriceClass, is_fatal
from .results import Outcome, log_abandoned, unsaved_receipt

if TYPE_CHECKING:
    from .._submission import Claim

_log = logging.getLogger("qamera_async")

CLAIM_PATIENCE = 1.0
"""After how many seconds a claim counts as waiting for another process.

The batch then reads the next request. Two processes that run the same catalogue thus don't block each other.
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
class Runner:
    """Reads, submits, awaits and downloads the requests of one batch.

    One task owns all others: one that reads, and one for each request that was read and has no outcome.
    """

    access: BatchAccess
    source: Source
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
            self._start()
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

    def _start(self) -> None:
        if self.main is None and not self.leaving:
            self.loop = asyncio.get_running_loop()
            self.main = self.loop.create_task(self._run(), name="qamera-batch")
            self.main.add_done_callback(lambda _: self.outcome_ready.set())

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
        log_abandoned(outcomes, has_ledger=self.access.has_ledger)

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


class Source:
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
