"""The awaitable handle for the records of one receipt."""

import asyncio
import contextvars
import enum
import math
import os
import weakref
from collections.abc import AsyncIterator, Callable, Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar, cast

import attrs

from ._models import JobState, Receipt, Record, Request
from ._polling import Poller, TrackedRecord
from .errors import (
    ConfigurationError,
    JobFailedError,
    JobTimeoutError,
    join_ids,
    short_repr,
)
from .events import check_callback

if TYPE_CHECKING:
    from ._config import Timeouts
    from ._protocol import Kind
    from .download import Downloader
    from .ledger.places import NoLedger

T = TypeVar("T")
"""The result of a job."""

_JobKey: TypeAlias = tuple[str, bool, tuple[str, ...]]  # the list, whether it is single, the record ids
_MAX_TIMEOUT = 1e9  # seconds; a longer timeout is no limit
_MIN_STANDSTILL = 1.0  # seconds; a busy loop delays its timers less


class DefaultTimeout(enum.Enum):
    """Stands for a timeout from the session's settings."""

    JOB = "Timeouts.job"


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

    __slots__ = (
        "__weakref__",
        "_outcome_recorded",
        "_poller",
        "_registry",
        "_single",
        "_tracked",
        "receipt",
        "record_ids",
        "request",
    )

    def __init__(
        self,
        registry: "JobRegistry",
        poller: Poller,
        tracked: tuple[TrackedRecord, ...],
        *,
        single: bool,
        recorded: bool,
    ) -> None:
        self._registry = registry
        self._poller = poller
        self._tracked = tracked
        self._single = single  # whether the result is the first record; else it is a tuple of all
        self._outcome_recorded = recorded  # whether the ledger has the outcome
        self.record_ids: tuple[str, ...] = tuple([each.record_id for each in tracked])
        """The ids of the records. ``session.job(*record_ids)`` attaches to them later or elsewhere."""
        self.request: Request | None = None
        """The request; None for a job that was attached to by its record ids."""
        self.receipt: Receipt | None = None
        """The receipt; None for a job that was attached to by its record ids."""

    def __repr__(self) -> str:
        return f"<Job {join_ids(self.record_ids)} {self.state.name} {self.status or 'not seen yet'!r}>"

    @property
    def status(self) -> str | None:
        """The server's status of the first record, as it was seen last; None before that."""
        record = self._tracked[0].record
        return None if record is None else record.status

    @property
    def state(self) -> JobState:
        """The meaning of all statuses: PENDING until all records are final, FAILED if any has failed."""
        states = {tracked.state for tracked in self._tracked}
        return next(state for state in (JobState.PENDING, JobState.FAILED, JobState.DONE) if state in states)

    @property
    def records(self) -> tuple[Record, ...]:
        """The records as they were seen last, in the order of their ids; without those not seen yet."""
        return tuple([tracked.record for tracked in self._tracked if tracked.record is not None])

    def done(self) -> bool:
        """Return whether all records are final, as far as this session knows.

        This sends no request. The state changes only while a task waits for the job, so ``while not
        job.done()`` never ends without one. Use ``await job`` or ``await job.refresh()``.
        """
        return all([tracked.final for tracked in self._tracked])

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
            QameraError: The list can't be fetched, and another poll would fail in the same way.
        """
        is_default = timeout is DefaultTimeout.JOB
        limit = self._registry.timeouts.job if is_default else _checked_timeout(timeout)
        if not self.done():
            self._registry.check()
            loop = asyncio.get_running_loop()
            deadline = loop.time() + limit
            waiter = self._poller.watch(self._tracked)
            timer: asyncio.TimerHandle | None = None
            try:
                if limit < math.inf:
                    # A cancelled timer keeps its context until it would have fired.
                    timer = loop.call_at(deadline, _end_wait, waiter.future, context=contextvars.Context())
                await waiter.future
                stood_still = loop.time() - deadline > _MIN_STANDSTILL
                if stood_still and not self.done():
                    await self._poll_once_more()
            finally:
                if timer is not None:
                    timer.cancel()
                self._poller.unwatch(waiter)
                self._record_outcome()
            if not self.done():
                no_url = any([each.state is JobState.DONE for each in self.records])
                raise JobTimeoutError(
                    f"The job did not end within {limit:g} s"
                    f"{': it is done, but the list has no URL for the result yet' if no_url else ''}.",
                    record_ids=self.record_ids,
                    timeout=limit,
                    status=self.status,
                    last_error=self._poller.last_error,
                    list_age=self._poller.list_age,
                )
        self._record_outcome()
        records = self.records
        failed = [record for record in records if record.state is JobState.FAILED]
        if failed:
            raise JobFailedError(
                f"The job failed: {join_ids([f'{each.id} is {each.status}' for each in failed])}.",
                record_ids=self.record_ids,
                records=records,
            )
        return cast("T", records[0] if self._single else records)

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
            on_progress: A plain function, called with the bytes so far and the total; the total is None if it
                is unknown.

        Returns:
            The path of the file, which is complete.

        Raises:
            ConfigurationError: ``on_progress`` is a coroutine function.
            DownloadError: The clip can't be downloaded. An existing file is a ``FileExistsError``, too.
            QameraError: As for ``wait``.

        Example:
            ::

                job = await qamera.register_video(image_id="img_1")
                await job.download("clip.mp4")
        """
        check_callback("on_progress", on_progress)
        await self
        return await self._registry.downloader.file(
            self.records[0],
            path,
            overwrite=overwrite,
            allow_private=allow_private,
            on_progress=on_progress,
        )

    async def refresh(self) -> Record | None:
        """Fetch the list once and return the first record as it is listed now.

        The request is shared with all waiters of the list.

        Returns:
            The record; None if it is not listed.

        Raises:
            SessionClosedError: The session is closed, or closes meanwhile.
            QameraError: The request failed.
        """
        self._registry.check()
        # The job takes part in the poll like one that is waited for, so that its state is current afterwards.
        waiter = self._poller.watch(self._tracked)
        try:
            records = await self._poller.next_list(raise_on_failure=True)
        finally:
            self._poller.unwatch(waiter)
            self._record_outcome()
        return records.get(self.record_ids[0])

    async def updates(self) -> AsyncIterator[Record]:
        """Iterate over the states of the records: the current one first, then each change.

        The iteration ends with the last state, without raising, also where the job fails. Changes between two
        steps of a slow consumer may be merged. Polls run only while the consumer awaits the next state.

        Raises:
            JobLostError: A record is missing from the list.
            SessionClosedError: The session is closed, or closes meanwhile.
            QameraError: The list can't be fetched, and another poll would fail in the same way.

        Example:
            ::

                job = await qamera.register_video(image_id="img_1")
                async for video in job.updates():
                    print(video.status)
        """
        # Fields that may differ in each list, such as the name, are no change.
        yielded: dict[str, tuple[str, str | None]] = {}
        while True:
            done = self.done()
            self._record_outcome()
            changed = [
                record
                for record in self.records
                if yielded.get(record.id) != (record.status, record.video_url)
            ]
            for record in changed:
                yielded[record.id] = record.status, record.video_url
                yield record
            if done:
                return
            if changed:
                continue  # the job may have changed while the consumer was busy
            self._registry.check()
            waiter = self._poller.watch(self._tracked, each_change=True)
            try:
                await waiter.future
            finally:
                self._poller.unwatch(waiter)
                self._record_outcome()

    async def _poll_once_more(self) -> None:
        """Wait for one more poll, after the process stood still beyond the deadline of a waiter.

        The wait ends earlier if the job does. A poll that fails or takes too long leaves the job as it is.

        Raises:
            JobLostError: A record is missing from the list.
            QameraError: No further poll can succeed.
        """
        timeouts = self._registry.timeouts
        waiter = self._poller.watch(self._tracked)
        poll = asyncio.ensure_future(self._poller.next_list(raise_on_failure=True))
        either: list[asyncio.Future[Any]] = [waiter.future, poll]
        limit = timeouts.connect + timeouts.request
        try:
            await asyncio.wait(either, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if waiter.future.done():
                waiter.future.result()
        finally:
            self._poller.unwatch(waiter)
            poll.cancel()
            await asyncio.gather(poll, return_exceptions=True)

    def _record_outcome(self) -> None:
        """Record in the ledger how the job ended, once; do nothing before its end."""
        if not self._outcome_recorded and self.done():
            self._outcome_recorded = True
            self._registry.ledger.settled(self.record_ids, self.records)


@attrs.define(eq=False)
class JobRegistry:
    """Makes the jobs of a session: one object per tuple of record ids, as long as it is held.

    Args:
        pollers: The poller of each list, by the list's path.
        check: Raises `SessionClosedError` where the session can't be used.
        timeouts: ``job`` is the default of ``Job.wait``.
        ledger: Keeps how each job ended.
        downloader: For ``Job.download``.
    """

    pollers: "Mapping[str, Poller]"
    check: Callable[[], None]
    timeouts: "Timeouts"
    ledger: "NoLedger"
    downloader: "Downloader"
    _jobs: weakref.WeakValueDictionary[_JobKey, Job[Any]] = attrs.field(
        init=False, factory=weakref.WeakValueDictionary[_JobKey, Job[Any]]
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
            created_at: When this session created the records, in the loop's time; None if it did not. Records
                that were created now make a new job, even if an earlier job had the same ids.
            records: Their last states, as a ledger has them.
        """
        key = (kind.records.path, kind.single, record_ids)
        job = self._jobs.get(key)
        if job is None or created_at is not None:
            poller = self.pollers[kind.records.path]
            by_id = {record.id: record for record in records}
            tracked = tuple(
                [
                    poller.track(record_id, created_at=created_at, record=by_id.get(record_id))
                    for record_id in record_ids
                ]
            )
            # The states come from the ledger, so the ledger already has the outcome.
            recorded = bool(records) and all([each.final for each in tracked])
            job = self._jobs[key] = Job(self, poller, tracked, single=kind.single, recorded=recorded)
        job.request = job.request or request
        job.receipt = job.receipt or receipt
        return job


def _checked_timeout(timeout: object) -> float:
    """Return a timeout in seconds, infinity for no limit.

    Raises:
        ConfigurationError: It is negative or not a number.
    """
    if timeout is None:
        return math.inf
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout >= 0:
        raise ConfigurationError(
            f"timeout must be a number of seconds from 0 up, or None, not {short_repr(timeout)}."
        )
    return timeout if timeout <= _MAX_TIMEOUT else math.inf


def _end_wait(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
