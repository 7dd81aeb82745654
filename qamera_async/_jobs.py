"""The awaitable handle for the records of one receipt."""

import asyncio
import contextvars
import copy
import enum
import os
import weakref
from collections.abc import AsyncIterator, Callable, Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from ._models import JobState, Receipt, Record, Request
from ._polling import Poller, TrackedRecord
from .errors import (
    ConfigurationError,
    JobFailedError,
    JobLostError,
    JobTimeoutError,
    QameraError,
    short_repr,
)
from .events import Failed, Finished

if TYPE_CHECKING:
    from ._config import PollPolicy, Timeouts
    from ._protocol import Kind
    from .download import Downloader
    from .events import Emit
    from .ledger.places import NoLedger

T = TypeVar("T")
"""The result of a job."""

_MAX_TIMEOUT = 1e9  # seconds; a longer timeout is no limit
_LATE = 1.0  # seconds; a busy loop delays its timers less


class DefaultTimeout(enum.Enum):
    """Stands for a timeout from the session's settings."""

    JOB = "Timeouts.job"


class JobRecords:
    """The records of one job and the tasks that wait for them: the part of a `Job` that the poller calls."""

    __slots__ = (
        "__weakref__",
        "handle",
        "poller",
        "receipt",
        "record_ids",
        "registry",
        "request",
        "settled",
        "since",
        "single",
        "tracked",
        "waiters",
    )

    def __init__(
        self, registry: "JobRegistry", poller: Poller, record_ids: tuple[str, ...], *, single: bool
    ) -> None:
        self.registry = registry
        self.poller = poller
        self.record_ids = record_ids
        self.single = single  # whether the job's result is its first record; else it is a tuple of all
        self.request: Request | None = None
        self.receipt: Receipt | None = None
        self.tracked: tuple[TrackedRecord, ...] = ()
        self.settled = False  # whether the end was written to the ledger
        self.handle: weakref.ref[Job[Any]] | None = None
        self.since = 0.0  # when the first of the present waiters came, in the loop's time
        # The value says whether the waiter wants each change. A waiter's result is None after a change, or
        # else how late the timer of its deadline fired, in seconds.
        self.waiters: dict[asyncio.Future[float | None], bool] = {}

    @property
    def records(self) -> tuple[Record, ...]:
        """The records that were seen."""
        return tuple([record for each in self.tracked if (record := each.record) is not None])

    @property
    def done(self) -> bool:
        """Whether all records are final."""
        return all([each.final for each in self.tracked])

    def failure(self) -> JobFailedError | None:
        """Return why the job failed; None where no record has."""
        failed = [each for each in self.records if each.state is JobState.FAILED]
        if not failed:
            return None
        return JobFailedError(
            f"The job failed: {', '.join(f'{record.id} is {record.status}' for record in failed)}.",
            record_ids=self.record_ids,
            records=self.records,
        )

    def settle(self) -> None:
        """Write the end of the job to the ledger and emit its event, once.

        Jobs with some of the same records emit no event that names only records of earlier events.
        """
        if self.settled:
            return
        self.settled = True
        self.registry.ledger.settled(self.record_ids, self.records)
        if all([each.reported for each in self.tracked]):
            return
        for each in self.tracked:
            each.reported = True
        failure = self.failure()
        end = Finished(self.records[0]) if failure is None else Failed(self.record_ids, failure)
        self.registry.emit(end)

    def add_waiter(self, waiter: asyncio.Future[float | None], *, each_change: bool) -> None:
        """Let the poller watch the records for a waiter."""
        first = not self.waiters
        self.waiters[waiter] = each_change
        if first:
            self.since = asyncio.get_running_loop().time()
            for each in self.tracked:
                if not each.final:
                    self.poller.watch(each, self)

    def remove_waiter(self, waiter: asyncio.Future[float | None]) -> None:
        """Remove a waiter; without any left, the poller stops watching for this job."""
        self.waiters.pop(waiter, None)
        if not self.waiters:
            for each in self.tracked:
                self.poller.unwatch(each, self)
        if waiter.done() and not waiter.cancelled():
            waiter.exception()  # nobody may have read it, if the waiting task was cancelled meanwhile

    # --- called by the poller -------------------------------------------------------------------

    def record_changed(self) -> None:
        """Wake the waiters that want this change of a record."""
        done = self.done
        if done:
            self.settle()
        for waiter, each_change in self.waiters.items():
            if (done or each_change) and not waiter.done():
                waiter.set_result(None)

    def record_missing(self, record: TrackedRecord, absent_for: float) -> None:
        """Fail the waiters: a record has been missing for too long."""
        self.polling_failed(
            JobLostError(
                f"Record {record.record_id} has been missing from the list for {absent_for:.1f} s.",
                record_ids=self.record_ids,
                record=record.record,
                absent_for=absent_for,
            )
        )

    def polling_failed(self, error: QameraError) -> None:
        """Fail the waiters, each with an error of its own: raising adds to an error's traceback."""
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_exception(copy.copy(error))


class Job(Generic[T]):
    """A job at the server. ``await job`` returns its result once all of its records are final.

    The result is a `Video` for videos and reels. Any number of tasks may await a job, repeatedly. The status
    is read from the list (the API's section "GET /api/external/videos"), which all waiting jobs of a session
    share.

    A session makes jobs: ``register_video``, ``register_reel`` and ``register`` for new ones, ``job`` for
    records that exist already. While a job is held, asking for the same record ids returns the same object.

    A job is not a coroutine: pass ``job.wait()`` to ``asyncio.create_task`` and ``TaskGroup.create_task``.

    Example:
        ::

            job = await qamera.register_video(image_id="img_1")
            async with asyncio.TaskGroup() as group:
                waiting = group.create_task(job.wait(timeout=600))
            video = waiting.result()
    """

    __slots__ = ("__weakref__", "_records")

    def __init__(self, records: JobRecords) -> None:
        self._records = records

    def __repr__(self) -> str:
        return f"<Job {', '.join(self.record_ids)} {self.state.name} {self.status or 'not seen yet'!r}>"

    @property
    def record_ids(self) -> tuple[str, ...]:
        """The ids of the records. ``session.job(*record_ids)`` attaches to them later or elsewhere."""
        return self._records.record_ids

    @property
    def request(self) -> Request | None:
        """The request; None for a job that was attached to by its record ids."""
        return self._records.request

    @property
    def receipt(self) -> Receipt | None:
        """The receipt; None for a job that was attached to by its record ids."""
        return self._records.receipt

    @property
    def status(self) -> str | None:
        """The server's status of the first record, as it was seen last; None before that."""
        return self._records.tracked[0].status

    @property
    def state(self) -> JobState:
        """The meaning of all statuses: PENDING until all records are final, FAILED if any has failed."""
        if not self.done():
            return JobState.PENDING
        failed = any([each.state is JobState.FAILED for each in self._records.tracked])
        return JobState.FAILED if failed else JobState.DONE

    @property
    def records(self) -> tuple[Record, ...]:
        """The records as they were seen last, in the order of their ids; without those not seen yet."""
        return self._records.records

    def done(self) -> bool:
        """Return whether all records are final, as far as this session knows.

        This sends no request. The state changes only while a task waits for the job, so ``while not
        job.done()`` never ends without one. Use ``await job`` or ``await job.refresh()``.
        """
        return self._records.done

    def __await__(self) -> Generator[Any, None, T]:
        return self.wait().__await__()

    async def wait(self, timeout: float | DefaultTimeout | None = DefaultTimeout.JOB) -> T:  # noqa: ASYNC109
        """Wait until all records are final.

        Args:
            timeout: Seconds from now; None means no limit. The default is ``Timeouts.job``.

        Returns:
            The result, as of ``await job``. A finished job returns it without a request.

        Raises:
            ConfigurationError: The timeout is negative or not a number.
            JobFailedError: A record has failed; ``records`` has all records.
            JobTimeoutError: The job did not end in time. It can be awaited again.
            JobLostError: A record is missing from the list. The job can be awaited again.
            SessionClosedError: The session is closed, or closes meanwhile.
            QameraError: The list can't be fetched, for a reason that waiting can't cure.
        """
        job = self._records
        limit = _checked_timeout(job.registry.timeouts.job if timeout is DefaultTimeout.JOB else timeout)
        if not job.done:
            job.registry.check()
            loop = asyncio.get_running_loop()
            waiter: asyncio.Future[float | None] = loop.create_future()
            timer: asyncio.TimerHandle | None = None
            if limit is not None:
                deadline = loop.time() + limit
                timer = loop.call_at(
                    deadline, _on_deadline, loop, waiter, deadline, context=job.registry.timer_context
                )
            try:
                job.add_waiter(waiter, each_change=False)
                late = await waiter
                if late is not None and late > max(_LATE, job.registry.polling.interval) and not job.done:
                    await self._poll_once_more()
            finally:
                if timer is not None:
                    timer.cancel()
                job.remove_waiter(waiter)
            if not job.done:
                raise JobTimeoutError(
                    f"The job did not end within {limit:g} s.",
                    record_ids=job.record_ids,
                    timeout=cast("float", limit),
                    status=self.status,
                    last_error=job.poller.last_error,
                    list_age=job.poller.list_age,
                )
        job.settle()
        failure = job.failure()
        if failure is not None:
            raise failure
        return cast("T", job.records[0] if job.single else job.records)

    async def download(
        self,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        allow_private: bool = False,
        on_progress: Callable[[int, int | None], object] | None = None,
    ) -> Path:
        """Wait for the job and download the clip of its first record.

        Args:
            path: The name of the file. Its folder must exist.
            overwrite: Whether to replace an existing file.
            allow_private: Whether to accept a host inside the private network, where the API itself is not.
            on_progress: Called with the bytes so far and the total; the total is None if it is unknown.

        Returns:
            The path of the file, which is complete.

        Raises:
            DownloadError: The clip can't be downloaded. An existing file is a ``FileExistsError``, too.
            QameraError: As of ``wait``.

        Example:
            ::

                job = await qamera.register_video(image_id="img_1")
                await job.download("clip.mp4")
        """
        await self
        return await self._records.registry.downloader.file(
            self.records[0],
            path,
            overwrite=overwrite,
            allow_private=allow_private,
            on_progress=on_progress,
        )

    async def refresh(self) -> Record | None:
        """Fetch the list once and return the first record as it is listed now.

        Everyone who waits for a list at this time shares the one request.

        Returns:
            The record; None if it is not listed.

        Raises:
            SessionClosedError: The session is closed, or closes meanwhile.
            QameraError: The request failed.
        """
        job = self._records
        job.registry.check()
        # The job takes part in the poll like one that is waited for, so that its state is current afterwards.
        waiter: asyncio.Future[float | None] = asyncio.get_running_loop().create_future()
        try:
            job.add_waiter(waiter, each_change=False)
            records = await job.poller.next_list(once=True)
        finally:
            job.remove_waiter(waiter)
        return records.get(job.record_ids[0])

    async def updates(self) -> AsyncIterator[Record]:
        """Iterate over the states of the records: the current one first, then each change.

        The iteration ends with the last state, without raising, also where the job fails. Changes between two
        steps of a slow consumer may be merged. The consumer counts as waiting only while it waits for the
        next state.

        Raises:
            JobLostError: A record is missing from the list.
            SessionClosedError: The session is closed, or closes meanwhile.
            QameraError: The list can't be fetched, for a reason that waiting can't cure.

        Example:
            ::

                job = await qamera.register_video(image_id="img_1")
                async for video in job.updates():
                    print(video.status)
        """
        job = self._records
        # Fields that may differ in each list, such as the name, are no change.
        yielded: dict[str, tuple[str, str | None]] = {}
        while True:
            done = job.done
            changed = [
                record
                for record in job.records
                if yielded.get(record.id) != (record.status, record.video_url)
            ]
            for record in changed:
                yielded[record.id] = record.status, record.video_url
                yield record
            if done:
                job.settle()
                return
            if changed:
                continue  # the job may have changed while the consumer was busy
            job.registry.check()
            waiter: asyncio.Future[float | None] = asyncio.get_running_loop().create_future()
            try:
                job.add_waiter(waiter, each_change=True)
                await waiter
            finally:
                job.remove_waiter(waiter)

    async def _poll_once_more(self) -> None:
        """Wait for one more poll, after the process stood still beyond the deadline of a waiter.

        The wait ends earlier where the job does. A poll that fails or takes too long leaves the job as it is.

        Raises:
            JobLostError: A record is missing from the list.
            QameraError: No further poll can succeed.
        """
        job = self._records
        timeouts = job.registry.timeouts
        ended: asyncio.Future[float | None] = asyncio.get_running_loop().create_future()
        polled = job.poller.request_list(once=True)
        try:
            job.add_waiter(ended, each_change=False)
            either: list[asyncio.Future[Any]] = [ended, polled]
            limit = timeouts.connect + timeouts.request
            await asyncio.wait(either, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                ended.result()
        finally:
            job.remove_waiter(ended)
            if not polled.cancel():
                polled.exception()  # a failed poll


class JobRegistry:
    """Makes the jobs of a session: one object per tuple of record ids, as long as it is held.

    Args:
        pollers: The poller of each list, by the list's path.
        emit: Receives `Finished` and `Failed`.
        check: Raises `SessionClosedError` where the session can't be used.
        timeouts: ``job`` is the default of ``Job.wait``.
        polling: How often the list is fetched.
        ledger: Keeps how each job ended.
        downloader: For ``Job.download``.
    """

    def __init__(
        self,
        pollers: "Mapping[str, Poller]",
        emit: "Emit",
        check: Callable[[], None],
        timeouts: "Timeouts",
        polling: "PollPolicy",
        ledger: "NoLedger",
        downloader: "Downloader",
    ) -> None:
        self._pollers = pollers
        self.emit = emit
        self.check = check
        self.timeouts = timeouts
        self.polling = polling
        self.ledger = ledger
        self.downloader = downloader
        # A timer that is cancelled keeps its context until it would have fired. An empty one keeps nothing.
        self.timer_context = contextvars.Context()
        self._jobs: weakref.WeakValueDictionary[tuple[str, bool, tuple[str, ...]], JobRecords] = (
            weakref.WeakValueDictionary()
        )

    def job(
        self,
        record_ids: tuple[str, ...],
        kind: "Kind",
        *,
        request: Request | None = None,
        receipt: Receipt | None = None,
        created_at: float | None = None,
        records: tuple[Record, ...] = (),
    ) -> Job[Any]:
        """Return the job of these records.

        Args:
            record_ids: One or more different ids.
            kind: Which list has the records, and whether the result is one record or a tuple.
            request: The request; None if it is unknown.
            receipt: The receipt; None if it is unknown.
            created_at: When the records were created, in the loop's time; None if it is unknown.
            records: Their last states, as a ledger has them.
        """
        key = (kind.records.path, kind.single, record_ids)
        job = self._jobs.get(key)
        handle = None if job is None or job.handle is None else job.handle()
        if job is None or handle is None:
            poller = self._pollers[kind.records.path]
            job = self._jobs[key] = JobRecords(self, poller, record_ids, single=kind.single)
            by_id = {record.id: record for record in records}
            job.tracked = tuple(
                [
                    poller.track(record_id, created_at=created_at, record=by_id.get(record_id))
                    for record_id in record_ids
                ]
            )
            job.settled = bool(records) and job.done  # the ledger knows it
            handle = Job[Any](job)
            job.handle = weakref.ref(handle)
        if job.request is None:
            job.request = request
        if job.receipt is None:
            job.receipt = receipt
        return handle


def _checked_timeout(timeout: object) -> float | None:
    """Return a timeout in seconds, None for no limit.

    Raises:
        ConfigurationError: It is negative or not a number.
    """
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout >= 0:
        raise ConfigurationError(
            f"timeout must be a number of seconds from 0 up, or None, not {short_repr(timeout)}."
        )
    return timeout if timeout <= _MAX_TIMEOUT else None


def _on_deadline(
    loop: asyncio.AbstractEventLoop, waiter: "asyncio.Future[float | None]", deadline: float
) -> None:
    if not waiter.done():
        waiter.set_result(max(loop.time() - deadline, 0.0))
