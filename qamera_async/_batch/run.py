"""One run through a batch: one task reads, and each request in flight has one of its own."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, cast

from ..errors import JobFailedError
from .final import ends_a_batch
from .folder import make
from .gate import Gate
from .outcome import Outcome, log_left, receipt_of
from .registrar import Item, Registrar
from .source import END, Source

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable
    from pathlib import Path

    from .._config import RetryPolicy
    from .._jobs import Job
    from .._models import Request, Video
    from .purse import Purse
    from .registrar import Seller


class Run:
    """Reads, submits, awaits and downloads; owns the tasks for it.

    Args:
        seller: Takes the orders.
        source: Where the requests come from.
        purse: What may be spent.
        retry: How long to pause while the server can't be reached.
        max_in_flight: How many may be read and not handed out.
        retry_failed: Whether to order again what a ledger says has failed.
        folder: Where results are downloaded to; None: nowhere.
        max_downloads: How many downloads may run at a time.

    """

    def __init__(
        self,
        seller: Seller,
        source: Source,
        purse: Purse,
        *,
        retry: RetryPolicy,
        max_in_flight: int,
        retry_failed: bool,
        folder: Path | None,
        max_downloads: int,
    ) -> None:
        self._seller = seller
        self._room = asyncio.Event()  # for the feeder
        self._source = source
        self._gate = Gate(retry)
        self._registrar = Registrar(
            seller,
            self._gate,
            purse,
            retry_failed=retry_failed,
            folder=folder,
            stop=self._stop,
            left=self._room.set,
        )
        self._max_in_flight = max_in_flight
        self._folder = folder
        self._downloads = asyncio.Semaphore(max_downloads)
        self._in_flight = 0
        self._tasks: dict[Item, asyncio.Task[None]] = {}
        self._feeder: asyncio.Task[None] | None = None
        self._ready: deque[Outcome] = deque()
        self._news = asyncio.Event()  # for who takes outcomes
        self._ending = False
        self._reader: weakref.ref[object] | None = None
        # A stand-in for a session may have none.
        self._kept: bool = getattr(seller, "_keeps_receipts", False)
        self.ended = False  # and all of it was handed out
        self.stopped: BaseException | None = None
        self.refunded = 0

    def given_to(self, reader: object) -> None:
        """Read and submit nothing more once this one is forgotten."""

        def forgotten(_: object) -> None:
            self._ending = True

        # The loop is told of the generator too and closes it, but only a few turns later.
        self._reader = weakref.ref(reader, forgotten)

    async def outcomes(self, *, raising: bool) -> AsyncGenerator[Outcome, None]:
        """Give the outcomes as they come; ended early, it takes everything of it along.

        Args:
            raising: Whether to raise, after the last one, why the batch stopped.

        Raises:
            ConfigurationError: The folder can't be made or written; nothing was read.

        """
        try:
            if self._folder is not None:
                await make(self._folder)
            self._feeder = asyncio.create_task(self._feed(), name="qamera-batch")
            self._feeder.add_done_callback(lambda _: self._news.set())
            while True:
                while self._ready:
                    outcome = self._ready.popleft()
                    self._in_flight -= 1
                    self._room.set()
                    yield outcome
                if self._feeder.done() and not self._tasks:
                    break
                self._news.clear()
                await self._news.wait()
        finally:
            await self._end()
        self.ended = True
        if raising and self.stopped is not None:
            raise self.stopped

    async def _end(self) -> None:
        """Leave no task behind, however often this is cancelled, and no receipt untold."""
        self._ending = True
        tasks = [*self._tasks.values(), *([] if self._feeder is None else [self._feeder])]
        in_flight = list(self._tasks)
        for task in tasks:
            task.cancel()
        try:
            await _ended(tasks)
        finally:
            await self._source.aclose()
            self.log_left([*self._ready, *(item.unfinished() for item in in_flight if not item.told)])

    def log_left(self, outcomes: Iterable[Outcome]) -> None:
        """Leave a trace of what nobody will be told of."""
        log_left(outcomes, kept=self._kept)

    # --- reading --------------------------------------------------------------------------------

    async def _feed(self) -> None:
        """Read what can go on at once; end with the iterable, or where the batch stops."""
        try:
            index = 0
            while self.stopped is None and not self._ending:
                if self._in_flight >= self._max_in_flight or not self._gate.is_open:
                    self._room.clear()
                    await self._room.wait()
                elif await self._read(index):
                    index += 1
                else:
                    return
        except (Exception, asyncio.CancelledError) as error:
            self._stop(error)  # which does nothing where the batch itself has ended this
        finally:
            await self._source.aclose()

    async def _read(self, index: int) -> bool:
        self._gate.enter()
        try:
            request = await self._source.read()
        except BaseException:
            self._gate.leave(None)
            raise
        if request is END or self.stopped is not None or self._ending:
            self._gate.leave(None)
            return False
        loop = asyncio.get_running_loop()
        item = Item(index, cast("Request", request), loop.create_future())
        self._in_flight += 1
        task = self._tasks[item] = loop.create_task(self._serve(item), name=f"qamera-batch-{index}")
        task.add_done_callback(partial(self._served, item))
        return True

    # --- one request ----------------------------------------------------------------------------

    async def _serve(self, item: Item) -> None:
        try:
            job = await self._registrar.register(item)
        except asyncio.CancelledError as error:
            self._stop(error)  # unless it was withdrawn, neither sent nor paid for, since the batch has ended
        except Exception as error:
            final = ends_a_batch(error, registering=True)
            if final:
                self._stop(error)
            if not final or receipt_of(error) is not None:
                self._finish(item, error=error)
        else:
            await self._await(item, job)

    async def _await(self, item: Item, job: Job) -> None:
        video = path = None
        try:
            video = await job
            if self._folder is not None:
                path = await self._download(item.request, job, video, self._folder)
        except Exception as error:
            if isinstance(error, JobFailedError) and item.new and job.receipt is not None:
                self.refunded += max(job.receipt.credits_reserved or 0, 0)
            if ends_a_batch(error, polling=video is None):
                self._stop(error)
            self._finish(item, video, path, error)
        else:
            self._finish(item, video, path)

    def _finish(
        self,
        item: Item,
        video: Video | None = None,
        path: Path | None = None,
        error: Exception | None = None,
    ) -> None:
        item.told = True
        self._ready.append(Outcome(item.index, item.request, item.job, video, path, error))
        self._news.set()

    def _served(self, item: Item, task: asyncio.Task[None]) -> None:
        del self._tasks[item]
        self._news.set()
        if task.cancelled() and not self._ending:
            # Somebody ends all tasks there are: not one of those of the batch may be missed.
            self.log_left([item.unfinished()])
            self._stop(asyncio.CancelledError())

    async def _download(self, request: Request, job: Job, video: Video, folder: Path) -> Path:
        async with self._downloads:
            target = self._seller._target(request, job, folder)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
            assert target is not None  # noqa: S101 - a job has record ids, if no ref
            return await self._seller._fetch(job, video, target)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]

    # --- the end --------------------------------------------------------------------------------

    def _stop(self, reason: BaseException) -> None:
        """Read and submit nothing more; what is on the wire, and what is paid for, goes on."""
        if self.stopped is not None or self._ending:
            return
        self.stopped = reason
        if self._feeder is not None and self._feeder is not asyncio.current_task():
            self._feeder.cancel()
        for item in self._tasks:
            item.withdrawn.set_result(None)


async def _ended(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Wait until all have ended; a cancellation meanwhile is raised only then."""
    cancelled = None
    while pending := [task for task in tasks if not task.done()]:
        try:
            await asyncio.wait(pending)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
