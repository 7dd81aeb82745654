"""An account's slots in a ledger's database, whichever that is."""

from __future__ import annotations

import logging
import os
import secrets
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .._ratelimit import ExternalUsage, Priority
from ..errors import LedgerUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .worker import Worker

_C = TypeVar("_C")  # what an operation works with
_log = logging.getLogger("qamera_async")

_USUAL_WINDOW = 60.0  # seconds
_tokens: dict[int, str] = {}


def process_name() -> str:
    """Give a name of this process, that no other ever has; a forked child has another."""
    return _tokens.setdefault(os.getpid(), f"{os.getpid()}-{secrets.token_hex(8)}")


def owner_of(process: str) -> int | None:
    """Return the ledger owner that a row of the table names; None if it names none."""
    owner = process.partition(":")[2]
    return int(owner) if owner.isdecimal() else None


class Slots(ABC, Generic[_C]):
    """The slots of an account in a ledger: the ``SharedSlots`` of its rate limiter.

    A slot in flight stays taken while its process lives, even if the process is suspended: it may send the
    request when it goes on. If the process dies, the slot ends ``grace`` and a window after it was taken.
    The column ``process`` has the name of the process and its owner in the ledger, "NAME:OWNER".

    Args:
        worker: runs the statements.
        account: names the rate limit.
        grace: how long a request may take, in seconds.
        owner: returns the owner that this process is in the ledger; called in the worker's thread.
    """

    def __init__(self, worker: Worker[_C], account: str, grace: float, owner: Callable[[], int]) -> None:
        self._worker = worker
        self._account = account
        self._grace = grace
        self._owner = owner
        self._window = _USUAL_WINDOW  # the longest that was asked for
        self._name = process_name
        self._in_flight: set[object] = set()
        self._seen = ExternalUsage()  # the newest reading

    def _process(self) -> str:
        return f"{self._name()}:{self._owner()}"

    def _own_rows(self) -> str:
        """Return the pattern for ``process`` of the rows of this process, whichever ledger owner it was."""
        return f"{self._name()}:%"

    @abstractmethod
    def _taking(
        self, ticket: str, priority: Priority, limit: int, window: float, reserve: float
    ) -> Callable[[_C], tuple[bool, ExternalUsage]]:
        """Return the operation that takes a slot under this ticket; it may be run again.

        It returns whether a slot was left, and what other processes have taken.
        """

    @abstractmethod
    def _settling(self, ticket: object, until: float | None) -> Callable[[_C], None]:
        """Return the operation that records when a slot becomes free; it may be run again."""

    @abstractmethod
    def _reading(self) -> Callable[[_C], ExternalUsage]:
        """Return the operation that reads what other processes have taken."""

    async def take(
        self, priority: Priority, limit: int, window: float, reserve: float
    ) -> tuple[object | None, ExternalUsage]:
        """Take a slot if fewer than ``limit`` are taken in all."""
        self._window = max(self._window, window)
        ticket = secrets.token_hex(12)
        self._in_flight.add(ticket)
        try:
            taken, usage = await self._worker.run(
                "take a slot", self._taking(ticket, priority, limit, window, reserve)
            )
        except LedgerUnavailableError as error:
            if priority is not Priority.POLL:
                self._in_flight.discard(ticket)
                raise
            # Without its ledger nothing may be ordered, but what is paid for shall be seen to its end.
            _log.warning("a poll could not take its slot in the ledger, and is sent all the same: %s", error)
            return ticket, self._seen
        except BaseException:
            # Queued behind the taking, so that it finds what that has left.
            self.settle(ticket, None)
            raise
        self._seen = usage
        if not taken:
            self._in_flight.discard(ticket)
        return ticket if taken else None, usage

    def settle(self, slot_id: object, until: float | None) -> None:
        """Record when a slot becomes free; None means now."""
        self._in_flight.discard(slot_id)
        self._worker.post("settle a slot", self._settling(slot_id, until))

    def fetch_usage(self, on_usage: Callable[[ExternalUsage], None]) -> None:
        """Read what other processes have taken; ``on_usage`` is called in another thread."""
        read = self._reading()

        def operation(connection: _C) -> None:
            self._seen = read(connection)
            on_usage(self._seen)

        self._worker.post("read the slots", operation)


def external_usage(rows: Iterable[tuple[Any, ...]]) -> ExternalUsage:
    """Return what other processes have taken.

    Args:
        rows: priority, whether it is settled, when it becomes free, the reserve of its process, its process;
            sorted by when they become free.
    """
    settled: dict[str, list[float]] = {priority.value: [] for priority in Priority}
    in_flight = dict.fromkeys(settled, 0)
    reserves: dict[str, float] = {}
    for priority, is_settled, until, reserve, process in rows:
        if is_settled:
            settled[priority].append(until)
        else:
            in_flight[priority] += 1
        reserves[process] = max(reserves.get(process, 0.0), reserve)
    submission, poll = Priority.SUBMISSION.value, Priority.POLL.value
    return ExternalUsage(
        submissions=tuple(settled[submission]),
        polls=tuple(settled[poll]),
        submissions_in_flight=in_flight[submission],
        polls_in_flight=in_flight[poll],
        reserve=max(reserves.values(), default=0.0),
    )
