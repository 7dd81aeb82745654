"""Where registrations go through: few until one is answered, fewer in doubt, one where none is reached."""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import TYPE_CHECKING

from ..errors import AmbiguityLimitError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .._config import RetryPolicy
    from ..errors import AmbiguousSubmissionError, TransportError

_log = logging.getLogger("qamera_async")

MOST_IN_DOUBT = 5
"""How many registrations of a batch may at most end ambiguous in a row."""


class Gate:
    """Knows what is under way, so that a row of ambiguous answers can't become longer than it may.

    What is in a row is told by the order of sending, not by when the ends are known: one in doubt is looked
    into for long, and what was sent after it is answered before.

    Args:
        retry: How long to wait while the server can't be reached.

    """

    def __init__(self, retry: RetryPolicy) -> None:
        self._retry = retry
        self._preparing = 0  # inside, and not yet sent
        self._sent: set[int] = set()
        self._numbers = itertools.count()
        self._last_answered = -1
        self._row: dict[int, AmbiguousSubmissionError] = {}  # all sent after the last that was answered
        self._delays: Iterator[float] | None = None  # not None: the server can't be reached
        self._probe = asyncio.Lock()

    @property
    def is_open(self) -> bool:
        """Whether one more may come in.

        All that is not known to have been sent before the last answer may end in doubt. In a pause the first
        that is inside goes ahead.
        """
        if self._pausing:
            return not (self._preparing or self._sent)
        since = {number for number in self._sent if number > self._last_answered}
        return self._preparing + len(self._row.keys() | since) < MOST_IN_DOUBT

    def enter(self) -> None:
        """A request is inside, from before it is read until its registration has ended."""
        self._preparing += 1

    def send(self, number: int | None) -> int:
        """Give the number of an order that goes out now; ``number`` is that of its last attempt, if any."""
        self.leave(number)
        number = next(self._numbers)
        self._sent.add(number)
        return number

    def leave(self, number: int | None) -> None:
        """Its registration has ended, or there is no such request; None where it was never sent."""
        if number is None:
            self._preparing -= 1
        else:
            self._sent.discard(number)

    # --- the pause ------------------------------------------------------------------------------

    @property
    def _pausing(self) -> bool:
        return self._delays is not None

    async def wait_for_turn(self) -> bool:
        """Wait out a pause; whether the caller is the one that tries what the others wait for."""
        if not self._pausing:
            return False
        await self._probe.acquire()
        try:
            delays = self._delays
            if delays is not None:
                await asyncio.sleep(next(delays))
                return True
        except BaseException:
            self._probe.release()
            raise
        self._probe.release()  # whoever tried before has found the server again
        return False

    def probed(self) -> None:
        """The one that tried has ended, one way or the other."""
        self._probe.release()

    def not_reached(self, error: TransportError) -> None:
        """The server couldn't be reached: pause."""
        if self._delays is None:
            self._delays = self._retry.delays()
            reason = error.message.removesuffix(".")
            _log.warning("the server can't be reached: %s; the batch waits and goes on by itself", reason)

    def _reached(self) -> None:
        if self._delays is not None:
            self._delays = None
            _log.info("the server can be reached again; the batch goes on")

    # --- the row --------------------------------------------------------------------------------

    def answered(self, number: int) -> None:
        """A new order was accepted or refused."""
        self._reached()
        self._last_answered = max(self._last_answered, number)
        self._row = {n: error for n, error in self._row.items() if n > self._last_answered}

    def in_doubt(self, number: int, error: AmbiguousSubmissionError) -> AmbiguityLimitError | None:
        """A new order ended ambiguous; give the reason to stop where it is one too many."""
        self._reached()
        if number > self._last_answered:
            self._row[number] = error
        if len(self._row) < MOST_IN_DOUBT:
            return None
        return AmbiguityLimitError(
            f"{len(self._row)} registrations in a row may or may not have been paid for.",
            errors=tuple(self._row.values()),
        )
