"""The thread that owns the connection: one that is lost is made anew where nothing was decided."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Generic, TypeVar

import psycopg

from ...errors import LedgerCorruptError, LedgerUnavailableError, QameraError
from ..worker import Job
from ..worker import Worker as AnyWorker
from .listening import Listening
from .opening import entered, fix_for
from .session import Session

if TYPE_CHECKING:
    from collections.abc import Callable

    from .opening import Entered
    from .place import Place

_T = TypeVar("_T")

_PATIENCE = 30.0  # seconds that a database may be away; a restart takes less
_PAUSE = 0.1  # seconds between attempts to reach it
_MOST_LOSSES = 5  # of the connection, by one transaction
_DAMAGED = {"XX001", "XX002"}
_REMOVED = {"3F000", "42P01"}
_DIVIDED_BY_ZERO = "22012"  # only where the connection is another one


class Alone(Generic[_T]):
    """An operation that is one message and a transaction of its own; it may be run again once it was run."""

    def __init__(self, operation: Callable[[Session], _T]) -> None:
        self._operation = operation

    def __call__(self, session: Session) -> _T:
        """Run it."""
        result = self._operation(session)
        session.send()
        return result


def is_alone(job: Job[Session]) -> bool:
    """Whether it is to be run apart from what is queued with it."""
    operation: object = job.operation
    return isinstance(operation, Alone)


class Worker(AnyWorker[Session]):
    """Runs operations on a connection that no other thread touches.

    Args:
        place: where the database is.
    """

    def __init__(self, place: Place) -> None:
        super().__init__(place.shown)
        self._place = place
        self.owner = secrets.randbelow(2**31 - 1) + 1
        self._entered: Entered | None = None
        self._ledger: int | None = None
        self._lost_at: float | None = None
        self._serial = 0  # of the last transaction that wrote
        self._asked: int | None = None  # of one whose commit was asked for, and may not be answered
        self._listening = Listening()
        self._listens = False  # whether this connection does

    def listen(self, who: object, account: str, tell: Callable[[], None]) -> None:
        """From now on tell, from the thread, when there may be news of an account's polls."""
        self._listening.add(who, account, tell)
        self.post("listen", Alone(lambda _: None))  # with a connection that does

    def stop_listening(self, who: object) -> None:
        """Tell no more."""
        self._listening.remove(who)

    def _rouse(self) -> None:
        self._listening.rouse()

    def _idle(self) -> None:
        if not self._listening or self._entered is None:
            return
        session = self._entered.session
        try:
            if not self._listens:
                self._listening.begin(session)
                self._listens = True
            self._listening.tell_heard(session)
            self._listening.wait(session, self._queue.empty)
        except Exception:
            if not session.lost:
                raise
            # Made anew with the next operation, which is when patience begins.
            self._lose()
            self._lost_at = None

    def _work(self, jobs: list[Job[Session]]) -> None:
        together: list[Job[Session]] = []
        for job in jobs:
            if not is_alone(job):
                together.append(job)
                continue
            if together:
                self._together(together)
                together = []
            self._together([job])
        if together:
            self._together(together)

    def _leave(self) -> None:
        self._listening.close()
        if self._entered is not None:
            session, self._entered = self._entered.session, None
            try:
                session.execute("DELETE FROM owners WHERE id = ?", (self.owner,))
                session.send()
            finally:
                session.close()

    def _transact(self, jobs: list[Job[Session]]) -> None:
        self._asked = None
        if self._entered is None and self._ledger is not None and self._lost_at is None:
            self._lost_at = time.monotonic()
        for _ in range(_MOST_LOSSES):
            try:
                there = self._there()
            except BaseException as error:
                self.fail(jobs, error)
                return
            if self._asked is not None and there.serial == self._asked:
                self._forgive(jobs)  # only the answer was lost
                return
            try:
                self._attempt(there, jobs)
            except BaseException as error:
                if not there.session.lost:
                    there.session.roll_back()
                if not there.session.lost:
                    raise
                self._lose()
                self.fail(jobs, error)
            else:
                self._forgive(jobs)
                return

    @staticmethod
    def _forgive(jobs: list[Job[Session]]) -> None:
        for job in jobs:
            job.error = None

    def _attempt(self, there: Entered, jobs: list[Job[Session]]) -> None:
        self._asked = None
        session = there.session
        if is_alone(jobs[0]):
            jobs[0].result = jobs[0].operation(session)
            return
        session.begin()
        for job in jobs:
            job.result = job.operation(session)
        if session.wrote:
            self._asked = self._sign(there)
        session.commit()

    def _sign(self, there: Entered) -> int:
        """Write down which transaction this is, so that a later look tells whether it was kept."""
        self._serial += 1
        # Behind a pool that gives each transaction another connection, nobody could tell that we live.
        there.session.execute("SELECT 1 / (pg_backend_pid() = ?)::int", (there.backend,))
        there.session.execute(
            "INSERT INTO owners VALUES (?, ?, clock_timestamp()) "
            "ON CONFLICT (id) DO UPDATE SET serial = EXCLUDED.serial, seen = EXCLUDED.seen",
            (self.owner, self._serial),
        )
        return self._serial

    def _there(self) -> Entered:
        """Give the session; one that was lost is made anew, which is tried for a while.

        Raises:
            LedgerError: the ledger can't be used.
            psycopg.Error: the connection was lost again.
        """
        while self._entered is None:
            try:
                self._entered = entered(self._place, self.owner, self._ledger)
            except (LedgerUnavailableError, psycopg.Error):
                if self._lost_at is None or time.monotonic() > self._lost_at + _PATIENCE:
                    raise
                time.sleep(_PAUSE)
            else:
                self._ledger, self._lost_at = self._entered.ledger, None
        return self._entered

    def _lose(self) -> None:
        self._listens = False
        if self._entered is not None:
            self._entered.session.close()
            self._entered = None
        if self._lost_at is None:
            self._lost_at = time.monotonic()

    def translated(self, error: BaseException) -> BaseException:
        """Give our error for one of the database's."""
        if isinstance(error, QameraError):
            return error
        if isinstance(error, psycopg.Error):
            if error.sqlstate in _REMOVED:
                return LedgerUnavailableError(
                    "The ledger was replaced or removed while it was in use.",
                    path=self._path,
                    fix="Open it anew",
                )
            if error.sqlstate == _DIVIDED_BY_ZERO:
                return LedgerUnavailableError(
                    "The address leads to a pool that gives each transaction another connection; a ledger "
                    "needs one of its own.",
                    path=self._path,
                    fix="Give the address of the database itself, or of a pool for whole sessions",
                )
            text = f"The ledger can't be used: {self._place.reason(error)}."
            if error.sqlstate in _DAMAGED:
                return LedgerCorruptError(text, path=self._path)
            return LedgerUnavailableError(text, path=self._path, fix=fix_for(error))
        return self.unexpected(error)
