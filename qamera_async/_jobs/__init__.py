"""The awaitable handle of one registration's records."""

from __future__ import annotations

import asyncio
import copy
import math
from typing import TYPE_CHECKING

import attrs

from .._models import JobState
from .._polling.records import Record
from ..errors import ConfigurationError, JobFailedError, JobTimeoutError
from ..events import Failed, Finished
from .deadlines import Deadlines, TimeIsUp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator

    from .._models import Receipt, Request, Video
    from .._polling import Poller
    from ..errors import QameraError
    from ..events import Emit
    from ..ledger.places import NoLedger

_LONGEST = 1e9  # seconds; more than a timer can take is no limit at all


@attrs.frozen(eq=False, repr=False)
class JobContext:
    """What all jobs of a session share: one object, so that a job is small.

    ``check`` refuses a session that can't be used; ``timeout`` is ``Timeouts.job`` in seconds; ``ledger``
    keeps how it ended; ``deadlines`` are those of all who wait.
    """

    poller: Poller
    emit: Emit
    check: Callable[[], None]
    timeout: float
    ledger: NoLedger
    deadlines: Deadlines = attrs.field(factory=Deadlines)


class _Within:
    """Awaits a job's end for so many seconds."""

    __slots__ = ("_job", "_timeout")

    def __init__(self, job: Job, timeout: float) -> None:
        self._job = job
        self._timeout = timeout

    def __await__(self) -> Generator[object, None, Video]:
        return self._job._settled(self._timeout)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


class Job:
    """A video or a reel in the making; ``await job`` gives its ``Video`` once it is DONE.

    What becomes of it is read from the list (the API's section "GET /api/external/videos"). Any number of
    tasks may await it, again and again. Made by a session: by ``register_video``,
    ``register_reel``, ``register``, and by ``job`` from the ids of records made earlier.
    """

    __slots__ = (
        "__weakref__",
        "_context",
        "_due",
        "_failure",
        "_receipt",
        "_records",
        "_request",
        "_waiters",
        "_watchers",
    )

    def __init__(
        self,
        context: JobContext,
        record_ids: tuple[str, ...],
        *,
        request: Request | None = None,
        receipt: Receipt | None = None,
        born: float | None = None,
        due: float = -math.inf,
        videos: tuple[Video, ...] = (),
    ) -> None:
        self._context = context
        self._request = request
        self._receipt = receipt
        self._records = tuple([Record(record_id, self, born) for record_id in record_ids])
        self._due = due
        self._failure: JobFailedError | None = None
        # Each future stands for one task: waiters want the end, watchers each change. Lists, since there
        # are thousands of jobs with one waiter each.
        self._waiters: list[asyncio.Future[None]] = []
        self._watchers: list[asyncio.Future[None]] | None = None
        if videos:
            # How it ended is known already, from a ledger.
            by_id = {video.id: video for video in videos}
            for record in self._records:
                record.keep(by_id.get(record.record_id))
            self._failure = self._judged()

    def __repr__(self) -> str:
        return f"<Job {', '.join(self.record_ids)} {self.state.name} {self.status or 'not seen yet'!r}>"

    @property
    def record_ids(self) -> tuple[str, ...]:
        """The ids of its records: all it takes to resume it with ``session.job(*record_ids)``."""
        return tuple([record.record_id for record in self._records])

    @property
    def request(self) -> Request | None:
        """What was asked for; None for an attached job."""
        return self._request

    @property
    def receipt(self) -> Receipt | None:
        """What the server answered; None for an attached job."""
        return self._receipt

    @property
    def status(self) -> str | None:
        """The server's word for the first record, last seen; None before it was."""
        return self._records[0].status

    @property
    def state(self) -> JobState:
        """What the statuses of all its records mean: PENDING until it is settled."""
        if not self.done():
            return JobState.PENDING
        return JobState.DONE if self._failure is None else JobState.FAILED

    @property
    def video(self) -> Video | None:
        """The last snapshot of the first record; None before it was seen."""
        return self._context.poller.video(self._records[0])

    def done(self) -> bool:
        """Whether all its records are settled, for better or worse."""
        return all([record.settled for record in self._records])

    # --- waiting --------------------------------------------------------------------------------

    def __await__(self) -> Generator[object, None, Video]:
        return self._settled(self._context.timeout)

    async def wait(self, timeout: float | None = None) -> Video:  # noqa: ASYNC109 - the contract's name
        """Wait until it is settled.

        Args:
            timeout: seconds from now; None means ``Timeouts.job``, ``math.inf`` no limit.

        Returns:
            The video; of several records the first id's. Of a finished job without a request.

        Raises:
            JobFailedError: a record failed; its ``videos`` holds all of them.
            JobTimeoutError: not settled in time. The job lives on and can be awaited again.
            JobLostError: a record is missing from the list; not final either.
            SessionClosedError: the session is closed, or closes meanwhile.
            QameraError: the list can't be had, for a reason that waiting can't cure.
        """
        if timeout is None:
            timeout = self._context.timeout
        elif isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout >= 0:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(f"timeout: got {timeout!r}, allowed are seconds from 0 up, or None")
        elif timeout > _LONGEST:
            timeout = math.inf
        return await _Within(self, timeout)

    async def all_videos(self) -> tuple[Video, ...]:
        """Wait like ``await job``; give the videos of all records, in the order of their ids.

        Raises:
            QameraError: as ``wait``.
        """
        await self.wait()
        return self._videos()

    async def updates(self) -> AsyncIterator[Video]:
        """Iterate over its snapshots: the present one first, then each change; changes may coalesce.

        Ends after the last without raising, also where the job failed. Counts as waiting only while it
        is asked for the next one.

        Raises:
            JobLostError: as ``wait``.
            SessionClosedError: as ``wait``.
            QameraError: as ``wait``.
        """
        # What the poller calls news: what is only shown, such as a name, may be another in each list.
        told: list[tuple[str, str | None] | None] = [None] * len(self._records)
        while True:
            finished = self.done()
            present = [self._context.poller.video(record) for record in self._records]
            fresh = [
                (place, video)
                for place, video in enumerate(present)
                if video is not None and (video.status, video.video_url) != told[place]
            ]
            for place, video in fresh:
                told[place] = video.status, video.video_url
                yield video
            if finished:
                return
            if fresh:
                continue  # it may have changed while the caller was busy with these
            self._context.check()
            waiter = asyncio.get_running_loop().create_future()
            if self._watchers is None:
                self._watchers = []
            try:
                self._join(waiter, self._watchers)
                await waiter
            finally:
                self._leave(waiter, self._watchers)

    def _settled(self, timeout: float) -> Generator[object, None, Video]:
        # Itself what `await job` runs: a coroutine in between would be memory for each of thousands.
        if not self.done():
            self._context.check()
            waiter = asyncio.get_running_loop().create_future()
            if timeout != math.inf:
                self._context.deadlines.add(waiter, timeout)
            try:
                self._join(waiter, self._waiters)
                yield from waiter
            except TimeIsUp:
                if not self.done():  # it may have ended in the same moment
                    raise self._timed_out(timeout) from None
            finally:
                self._context.deadlines.discard(waiter, timeout)
                self._leave(waiter, self._waiters)
        return self._result()

    def _result(self) -> Video:
        if self._failure is not None:
            # Each waiter raises its own: a shared one would collect the tracebacks of all.
            raise copy.copy(self._failure)
        video = self._records[0].kept
        assert video is not None  # noqa: S101 - a settled record has one
        return video

    def _join(self, waiter: asyncio.Future[None], waiters: list[asyncio.Future[None]]) -> None:
        first = not self._waiters and not self._watchers
        waiters.append(waiter)
        if first:
            for record in self._records:
                if not record.settled:
                    self._context.poller.watch(record, self._due)

    def _leave(self, waiter: asyncio.Future[None], waiters: list[asyncio.Future[None]]) -> None:
        waiters.remove(waiter)
        if not self._waiters and not self._watchers:
            for record in self._records:
                self._context.poller.unwatch(record)
        if waiter.done() and not waiter.cancelled():
            waiter.exception()  # it may have failed while its waiter was being cancelled

    # --- what the poller tells ------------------------------------------------------------------

    def _changed(self, record: Record) -> None:
        """A record changed; the poller calls this."""
        if record.settled:
            self._context.poller.unwatch(record)
        settled = self.done()
        if settled:
            self._settle()
        for waiter in (*(self._watchers or ()), *(self._waiters if settled else ())):
            if not waiter.done():
                waiter.set_result(None)

    def _failed(self, error: QameraError) -> None:
        """Nobody can wait for this now; the poller calls this."""
        for waiter in (*self._waiters, *(self._watchers or ())):
            if not waiter.done():
                waiter.set_exception(copy.copy(error))

    def _settle(self) -> None:
        self._failure = self._judged()
        self._context.ledger.settled(self.record_ids, self._videos())
        if self._failure is None:
            self._context.emit(Finished(self._videos()[0]))
        else:
            self._context.emit(Failed(self.record_ids, self._failure))

    def _judged(self) -> JobFailedError | None:
        videos = self._videos()
        bad = [video for video in videos if video.state is JobState.FAILED]
        if not bad:
            return None
        return JobFailedError(
            f"The job failed: {', '.join(f'{video.id} is {video.status}' for video in bad)}.",
            record_ids=self.record_ids,
            records=videos,
        )

    def _videos(self) -> tuple[Video, ...]:
        return tuple([record.kept for record in self._records if record.kept is not None])

    def _timed_out(self, timeout: float) -> JobTimeoutError:
        return JobTimeoutError(
            f"The job was not settled within {timeout:g} s.",
            record_ids=self.record_ids,
            timeout=timeout,
            status=self.status,
            last_error=self._context.poller.last_error,
            list_age=self._context.poller.list_age,
        )
