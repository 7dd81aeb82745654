"""One thread that owns the connection: what is queued together is committed together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import sqlite3
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from ...errors import LedgerCorruptError, LedgerError, LedgerUnavailableError, QameraError, SessionClosedError

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")
_log = logging.getLogger("qamera_async")

_MOST_AT_ONCE = 256
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


class _Job:
    __slots__ = ("error", "future", "loop", "operation", "result", "what")

    def __init__(self, operation: Callable[[sqlite3.Connection], Any], what: str) -> None:
        self.operation = operation
        self.what = what
        self.loop: asyncio.AbstractEventLoop | None = None
        self.future: asyncio.Future[Any] | None = None
        self.result: Any = None
        self.error: BaseException | None = None


class Worker:
    """Runs operations on a connection that no other thread touches.

    Args:
        path: what to call the database in messages.
        connect: opens it; called in the thread, with the first operation.
        disconnect: closes it; called in the thread.
        check: raises where it can't be relied on any more; called before each transaction.
    """

    def __init__(
        self,
        path: str,
        connect: Callable[[], sqlite3.Connection],
        disconnect: Callable[[sqlite3.Connection], None],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._path = path
        self._connect = connect
        self._disconnect = disconnect
        self._check = check
        self._pid = os.getpid()
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()  # nothing may be queued behind the end
        self._ended = False

    def run(self, what: str, operation: Callable[[sqlite3.Connection], _T]) -> asyncio.Future[_T]:
        """Queue an operation of its own transaction; what comes of it is durable when it is there.

        It may be run a second time where committing it together with others failed.
        """
        job = _Job(operation, what)
        job.loop = asyncio.get_running_loop()
        job.future = job.loop.create_future()
        self._put(job)
        return job.future

    def post(self, what: str, operation: Callable[[sqlite3.Connection], Any]) -> None:
        """Queue an operation that nobody waits for, from any thread; its failure is logged."""
        self._put(_Job(operation, what))

    def end(self) -> threading.Thread | None:
        """Queue the end: what was queued before is done, then the connection is closed; gives its thread."""
        with self._lock:
            self._ended = True
            if self._thread is not None:
                self._queue.put(None)
            return self._thread

    def _put(self, job: _Job) -> None:
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
                    self._refuse(job, LedgerUnavailableError(f"No thread for it: {error}.", path=self._path))
                    return
                self._thread = thread
            self._queue.put(job)

    @staticmethod
    def _refuse(job: _Job, error: QameraError) -> None:
        if job.future is not None:
            job.future.set_exception(error)

    # --- in the thread --------------------------------------------------------------------------

    def _serve(self) -> None:
        connection: sqlite3.Connection | None = None
        while True:
            jobs = self._next_jobs()
            ended = jobs[-1] is None
            waiting = [job for job in jobs if job is not None]
            try:
                if connection is None and waiting:
                    connection = self._connected(waiting)
                if connection is not None and waiting:
                    self._together(connection, waiting)
            except BaseException as error:
                for job in waiting:
                    job.error = job.error or LedgerError(f"The ledger failed ({type(error).__name__}).")
            with contextlib.suppress(Exception):  # what a handler of the log raises
                self._tell(waiting)
            if ended:
                if connection is not None:
                    try:
                        self._disconnect(connection)
                    except Exception:
                        _log.exception("closing the ledger %s failed; what was written stays", self._path)
                return

    def _next_jobs(self) -> list[_Job | None]:
        jobs = [self._queue.get()]
        while jobs[-1] is not None and len(jobs) < _MOST_AT_ONCE:
            try:
                jobs.append(self._queue.get_nowait())
            except queue.Empty:
                break
        return jobs

    def _connected(self, waiting: list[_Job]) -> sqlite3.Connection | None:
        try:
            return self._connect()
        except BaseException as error:
            for job in waiting:
                job.error = self.translated(error)
            return None

    def _together(self, connection: sqlite3.Connection, jobs: list[_Job]) -> None:
        try:
            self._check()
            connection.execute("BEGIN IMMEDIATE")
        except (sqlite3.Error, OSError, QameraError) as error:
            for job in jobs:
                job.error = self.translated(error)
            return
        try:
            for job in jobs:
                job.result = job.operation(connection)
            connection.execute("COMMIT")
        except BaseException as error:
            _roll_back(connection)
            if len(jobs) == 1:
                jobs[0].error = self.translated(error)
                return
            # Nothing of it is done. One by one, so that none fails for another's fault.
            for job in jobs:
                self._together(connection, [job])

    def _tell(self, jobs: list[_Job]) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[_Job]] = {}
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

    def translated(self, error: BaseException) -> BaseException:
        """Give our error for one of SQLite's."""
        if isinstance(error, QameraError):
            return error
        if isinstance(error, sqlite3.DatabaseError):
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            kind = LedgerCorruptError if code in _DAMAGED else LedgerUnavailableError
            return kind(f"The ledger can't be used: {error}.", path=self._path)
        if isinstance(error, UnicodeDecodeError):
            return LedgerCorruptError("The ledger is damaged: a text in it is none.", path=self._path)
        if isinstance(error, OSError):
            return LedgerUnavailableError(f"The ledger can't be used: {error.strerror}.", path=self._path)
        _log.error("the ledger %s failed unexpectedly", self._path, exc_info=error)
        return LedgerError(f"The ledger failed unexpectedly ({type(error).__name__}).", path=self._path)


def _roll_back(connection: sqlite3.Connection) -> None:
    # A full disk has rolled back by itself; doing it again would hide why.
    if connection.in_transaction:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")


def _resolve(jobs: list[_Job]) -> None:
    for job in jobs:
        future = job.future
        if future is None or future.done():
            continue
        if job.error is None:
            future.set_result(job.result)
        else:
            future.set_exception(job.error)
