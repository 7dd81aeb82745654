"""An account's slots in a ledger's database, whichever that is."""

from __future__ import annotations

import logging
import os
import secrets
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .._ratelimit.shared import Elsewhere
from .._ratelimit.window import Priority
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


class Slots(ABC, Generic[_C]):
    """An account's slots in a ledger.

    Args:
        worker: runs what is asked of the database.
        account: whose quota it is.
        grace: how long a request may be under way, in seconds.
    """

    def __init__(self, worker: Worker[_C], account: str, grace: float) -> None:
        self._worker = worker
        self._account = account
        self._grace = grace
        self._window = _USUAL_WINDOW  # the longest that was asked for
        self._process = process_name
        self._seen = Elsewhere()  # what others had taken at the last look

    @abstractmethod
    def _taking(
        self, ticket: str, priority: Priority, limit: int, window: float, reserve: float
    ) -> Callable[[_C], tuple[bool, Elsewhere]]:
        """Give what takes a slot under this ticket, and tells whether there was one; it may be run again."""

    @abstractmethod
    def _settling(self, ticket: object, until: float | None) -> Callable[[_C], None]:
        """Give what notes when a slot is free again, None: at once; it may be run again."""

    @abstractmethod
    def _looking(self) -> Callable[[_C], Elsewhere]:
        """Give what looks at what others have taken."""

    async def take(
        self, priority: Priority, limit: int, window: float, reserve: float
    ) -> tuple[object | None, Elsewhere]:
        """Take a slot if fewer than ``limit`` are taken in all."""
        self._window = max(self._window, window)
        ticket = secrets.token_hex(12)
        try:
            taken, elsewhere = await self._worker.run(
                "take a slot", self._taking(ticket, priority, limit, window, reserve)
            )
        except LedgerUnavailableError as error:
            if priority is not Priority.POLL:
                raise
            # Without its ledger nothing may be ordered, but what is paid for shall be seen to its end.
            _log.warning("a poll could not take its slot in the ledger, and is sent all the same: %s", error)
            return ticket, self._seen
        except BaseException:
            # Queued behind the taking, so that it finds what that has left.
            self.settle(ticket, None)
            raise
        self._seen = elsewhere
        return ticket if taken else None, elsewhere

    def settle(self, ticket: object, until: float | None) -> None:
        """Note when a slot is free again; None: at once."""
        self._worker.post("settle a slot", self._settling(ticket, until))

    def look(self, tell: Callable[[Elsewhere], None]) -> None:
        """Tell soon, from another thread, what others have taken."""
        looking = self._looking()

        def operation(connection: _C) -> None:
            self._seen = looking(connection)
            tell(self._seen)

        self._worker.post("look at the slots", operation)


def elsewhere_of(rows: Iterable[tuple[Any, ...]]) -> Elsewhere:
    """Give what others have taken.

    Args:
        rows: priority, whether it is settled, when it is free again, its process's reserve, its process;
            those that are free first come first.
    """
    settled: dict[str, list[float]] = {priority.value: [] for priority in Priority}
    under_way = dict.fromkeys(settled, 0)
    reserves: dict[str, float] = {}
    for priority, is_settled, until, reserve, process in rows:
        if is_settled:
            settled[priority].append(until)
        else:
            under_way[priority] += 1
        reserves[process] = max(reserves.get(process, 0.0), reserve)
    submission, poll = Priority.SUBMISSION.value, Priority.POLL.value
    return Elsewhere(
        submissions=tuple(settled[submission]),
        polls=tuple(settled[poll]),
        submitting=under_way[submission],
        polling=under_way[poll],
        reserve=max(reserves.values(), default=0.0),
    )
