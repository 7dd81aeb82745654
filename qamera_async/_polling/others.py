"""The poll that is shared by all with the same ledger: one of them polls, the rest take what it brings."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import LedgerError, SessionClosedError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..ledger.board import Board, Look

_log = logging.getLogger("qamera_async")

_SOON = 0.05  # seconds within which what is waited for is said together
_AGAIN = 1.0  # seconds until a ledger that couldn't be asked is asked again
_LEAST_LEASE = 1.0  # seconds
_RENEW = 0.3  # seconds after which a poll that takes long is said to go on
_LONG = 3  # times what the last one took, for which that is said: more, and something is wrong here
_LOOK = 0.1  # seconds between looks at a board that tells nobody of its news
_SHORTEST_LOOK = 0.01  # seconds, where polls follow each other fast


class Others:
    """Who else waits, and polls.

    Args:
        board: where they meet.
        interval: the pause between polls, in seconds.
        told: called with what another's poll has brought.
    """

    def __init__(self, board: Board[Any], interval: float, told: Callable[[Look], None]) -> None:
        self._board = board
        self._interval = interval
        self._told = told
        self._look_every = None if board.tells else max(min(_LOOK, interval / 10), _SHORTEST_LOOK)
        self._awaited: set[str] = set()
        # What the board hasn't been told yet.
        self._come: set[str] = set()
        self._gone: set[str] = set()
        self._forgotten = False  # whether the last poll was not made for what is waited for here
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._turn: Turn | None = None
        self._took = 0.0  # how long the last poll that was made here took, in seconds
        self.known: int = 0
        """The number of the last poll that is known here."""
        self.ended = -math.inf
        """When the last poll of another ended, in the loop's time."""
        self.handicap = 0.0
        """For how long to leave the next poll to who made the last one, in seconds."""

    # --- who waits here -------------------------------------------------------------------------

    def watch(self, record_id: str) -> None:
        """From now on wait for a record."""
        self._awaited.add(record_id)
        self._gone.discard(record_id)
        self._come.add(record_id)
        self._say_soon()

    def unwatch(self, record_id: str) -> None:
        """Wait for it no more."""
        self._awaited.discard(record_id)
        self._come.discard(record_id)
        self._gone.add(record_id)
        self._say_soon()

    def _say_soon(self) -> None:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._board.listen(self._heard)
        if self._task is None or self._task.done():
            self._task = self._loop.create_task(self._follow(), name="qamera-follower")
        if self._timer is None:
            self._timer = self._loop.call_later(_SOON, self._say)

    def _say(self) -> None:
        self._timer = None
        self._news.set()

    def _heard(self) -> None:
        """Take note, in another thread, that something was said."""
        assert self._loop is not None  # noqa: S101 - set before anybody listens
        with contextlib.suppress(RuntimeError):  # it is closed
            self._loop.call_soon_threadsafe(self._news.set)

    async def aclose(self) -> None:
        """Wait for nothing more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._board.leave()

    # --- what others have seen ------------------------------------------------------------------

    async def _follow(self) -> None:
        while self._awaited or self._come or self._gone:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._look_every):
                    await self._news.wait()
            told = self._news.is_set()
            self._news.clear()
            if not told and not self._board.may_have_news():
                continue
            try:
                self._take(await self._ask(self._board.look, self.known))
            except LedgerError as error:
                _log.info("the ledger could not be asked for the polls of others: %s", error)
                await asyncio.sleep(_AGAIN)

    async def _ask(self, question: Callable[..., asyncio.Future[Look]], known: int, **options: float) -> Look:
        come, self._come = self._come, set()
        gone, self._gone = self._gone, set()
        awaited = len(self._awaited)
        try:
            look = await question(known, come, gone, **options)
        except BaseException:
            # Said again: nobody knows how far it went, and twice does no harm.
            self._come |= come & self._awaited
            self._gone |= gone - self._awaited
            raise
        # Whose connection was lost, or whose lock, was taken for dead meanwhile.
        self._forgotten = look.waits < awaited
        if self._forgotten:
            self._come |= self._awaited
            self._say_soon()
        return look

    def _take(self, look: Look) -> None:
        if look.number == self.known:
            return
        self.known = look.number
        self.handicap = 0.0 if look.ours else self._interval / 4
        if not look.ours:
            if not self._forgotten:
                self.ended = asyncio.get_running_loop().time() - look.ended
            self._told(look)

    # --- polling for all ------------------------------------------------------------------------

    async def turn(self, known: int) -> Turn | None:
        """Take the turn to poll; None where another has it, or has just had it.

        Args:
            known: the last poll that was known when this one fell due.

        Raises:
            LedgerError: nobody can say whose turn it is.
        """
        if self._turn is not None:
            self._turn.over()  # the server has refused to be asked, and it is asked again
        # Who has said nothing for longer than that is no poller any more, dead or not.
        lease = max(self._interval * 1.5, _LEAST_LEASE)
        try:
            look = await self._ask(partial(self._board.begin, fresh=self._interval, lease=lease), known)
        except asyncio.CancelledError:
            self._board.give_up()  # queued behind the taking, so that it finds what that has left
            raise
        if look.turn:
            self.known = look.number
            self._turn = Turn(self._board, look, self._ended, self._took * _LONG)
            return self._turn
        self._take(look)
        return None

    def _ended(self, took: float, number: int | None) -> None:
        self._took = took
        if number is not None:
            self.known = number
            self.handicap = 0.0


class Turn:
    """One's turn to poll, from taking it to saying what came of it.

    Args:
        board: where it was taken.
        look: what that has shown.
        ended: called with how long the poll took, and its number; None where the turn was lost.
        keep: for how long to say that it goes on, in seconds.
    """

    def __init__(
        self, board: Board[Any], look: Look, ended: Callable[[float, int | None], None], keep: float
    ) -> None:
        self._board = board
        self._ended = ended
        self._given_up = False
        self._kept_until = asyncio.get_running_loop().time() + keep
        self._renewal: asyncio.TimerHandle | None = None
        self._renew_later()
        self.others = look.others
        """The records that others wait for."""

    async def brought(
        self, sent_ago: float, items: Mapping[str, str | None], *, complete: bool, trouble: str = ""
    ) -> None:
        """Say what the poll brought; a failure is logged, since others will poll for themselves then."""
        self.over()
        try:
            number = await self._board.publish(sent_ago, items, complete=complete, trouble=trouble)
        except (LedgerError, SessionClosedError) as error:
            _log.info("what a poll brought could not be told to others: %s", error)
        else:
            self._ended(sent_ago, number)

    def give_up(self) -> None:
        """Let another have it, unless something was said already."""
        if not self._given_up:
            self.over()
            self._board.give_up()

    def over(self) -> None:
        """Say no more that it goes on."""
        self._given_up = True
        if self._renewal is not None:
            self._renewal.cancel()

    # Lists may take longer than others wait for who says nothing.

    def _renew_later(self) -> None:
        loop = asyncio.get_running_loop()
        if not self._given_up and loop.time() + _RENEW <= self._kept_until:
            self._renewal = loop.call_later(_RENEW, self._renew)

    def _renew(self) -> None:
        self._board.renew().add_done_callback(self._renewed)

    def _renewed(self, renewing: asyncio.Future[None]) -> None:
        if not renewing.cancelled():
            renewing.exception()  # a ledger that can't be asked gives the turn to nobody else
        self._renew_later()
