"""One thread that owns the connection to a database: what is queued together is committed together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ..errors import LedgerError, LedgerUnavailableError, QameraError, SessionClosedError

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")
_C = TypeVar("_C")  # what an operation works with
_log = logging.getLogger("qamera_async")

_MOST_AT_ONCE = 256


class Job(Generic[_C]):
    """An operation that is queued, and what came of it."""

    __slots__ = ("error", "future", "loop", "operation", "result", "what")

    def __init__(self, operation: Callable[[_C], Any], what: str) -> None:
        self.operation = operation
        self.what = what
        self.loop: asyncio.AbstractEventLoop | None = None
        self.future: asyncio.Future[Any] | None = None
        self.result: Any = None
        self.error: BaseException | None = None


class Worker(ABC, Generic[_C]):
    """Runs operations on a connection that no other thread touches.

    Args:
        path: what to call the database in messages.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._pid = os.getpid()
        self._queue: queue.SimpleQueue[Job[_C] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()  # nothing may be queued behind the end
        self._ended = False

    def run(self, what: str, operation: Callable[[_C], _T]) -> asyncio.Future[_T]:
        """Queue an operation of its own transaction; what comes of it is durable when it is there.

        It may be run a second time where committing it together with others failed.
        """
        job = Job(operation, what)
        job.loop = asyncio.get_running_loop()
        job.future = job.loop.create_future()
        self._put(job)
        return job.future

    def post(self, what: str, operation: Callable[[_C], Any]) -> None:
        """Queue an operation that nobody waits for, from any thread; its failure is logged."""
        self._put(Job(operation, what))

    def end(self) -> threading.Thread | None:
        """Queue the end: what was queued before is done, then the connection is closed; gives its thread."""
        with self._lock:
            self._ended = True
            thread = self._thread
            if thread is not None:
                self._queue.put(None)
        self._rouse()
        return thread

    def _rouse(self) -> None:
        """Let the thread see that something is queued, where it waits for something else as well."""

    def _put(self, job: Job[_C]) -> None:
        with self._lock:
            if self._ended or self._pid != os.getpid():
                self._refuse(job, SessionClosedError("The session is closed, and its ledger with it."))
                return
            if self._thread is None:
                # Daemonic, since an interpreter that ends must not wait for a session nobody closed; what
                # was promised to be durable is on disk by then.
                thread = threading.Thread(target=self._serve, name="qamera-ledger", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    self._refuse(
                        job,
                        LedgerUnavailableError(
                            f"No thread for it: {error}.", path=self._path, fix="End what else runs"
                        ),
                    )
                    return
                self._thread = thread
            self._queue.put(job)
        self._rouse()

    @staticmethod
    def _refuse(job: Job[_C], error: QameraError) -> None:
        if job.future is not None:
            job.future.set_exception(error)

    # --- in the thread --------------------------------------------------------------------------

    @abstractmethod
    def _work(self, jobs: list[Job[_C]]) -> None:
        """Do them, in their order, and note what came of each."""

    @abstractmethod
    def _leave(self) -> None:
        """Close the connection, if there is one."""

    @abstractmethod
    def _transact(self, jobs: list[Job[_C]]) -> None:
        """Do them in one transaction, wholly or not at all.

        Raises:
            BaseException: an operation's own, after which nothing of it is done.
        """

    @abstractmethod
    def translated(self, error: BaseException) -> BaseException:
        """Give our error for one of the database's."""

    def _serve(self) -> None:
        while True:
            jobs = self._next_jobs()
            waiting = [job for job in jobs if job is not None]
            try:
                if waiting:
                    self._work(waiting)
            except BaseException as error:
                for job in waiting:
                    job.error = job.error or LedgerError(f"The ledger failed ({type(error).__name__}).")
            with contextlib.suppress(Exception):  # what a handler of the log raises
                self._tell(waiting)
            if jobs[-1] is None:
                try:
                    self._leave()
                except Exception:
                    _log.exception("closing the ledger %s failed; what was written stays", self._path)
                return

    def _idle(self) -> None:
        """Wait for something else as well, while nothing is queued."""

    def _next_jobs(self) -> list[Job[_C] | None]:
        with contextlib.suppress(Exception):  # what is queued is not to wait for the end of its trouble
            self._idle()
        jobs = [self._queue.get()]
        while jobs[-1] is not None and len(jobs) < _MOST_AT_ONCE:
            try:
                jobs.append(self._queue.get_nowait())
            except queue.Empty:
                break
        return jobs

    def _together(self, jobs: list[Job[_C]]) -> None:
        try:
            self._transact(jobs)
        except BaseException as error:
            if len(jobs) == 1:
                self.fail(jobs, error)
                return
            # Nothing of it is done. One by one, so that none fails for another's fault.
            for job in jobs:
                self._together([job])

    def fail(self, jobs: list[Job[_C]], error: BaseException) -> None:
        """Note that none of them could be done."""
        for job in jobs:
            job.error = self.translated(error)

    def unexpected(self, error: BaseException) -> LedgerError:
        """Give our error for a mistake in an operation, which is logged."""
        _log.error("the ledger %s failed unexpectedly", self._path, exc_info=error)
        return LedgerError(f"The ledger failed unexpectedly ({type(error).__name__}).", path=self._path)

    def _tell(self, jobs: list[Job[_C]]) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[Job[_C]]] = {}
        unheard = [job for job in jobs if job.loop is None]
        for job in jobs:
            if job.loop is not None:
                by_loop.setdefault(job.loop, []).append(job)
        for loop, told in by_loop.items():
            try:
                loop.call_soon_threadsafe(_resolve, told)
            except RuntimeError:  # its loop is closed, so nobody waits
                unheard += told
        for job in unheard:
            if job.error is not None:
                _log.warning("the ledger could not %s: %s", job.what, job.error)


def _resolve(jobs: list[Job[_C]]) -> None:
    for job in jobs:
        future = job.future
        if future is None or future.done():
            continue
        if job.error is None:
            future.set_result(job.result)
        else:
            future.set_exception(job.error)
