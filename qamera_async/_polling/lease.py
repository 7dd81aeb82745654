"""One poll for all processes that share a ledger: the lease holder polls, the others read what it found."""

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

# All in seconds.
_SYNC_DELAY = 0.05  # changes of the watched records are collected for so long and written together
_RETRY_DELAY = 1.0  # pause after a failed access to the ledger
_MIN_LEASE = 1.0
_RENEW_EVERY = 0.3
_CHECK_EVERY = 0.1  # pause between reads of a ledger that sends no notifications
_MIN_CHECK_EVERY = 0.01  # the same, for very short poll intervals

_RENEW_FACTOR = 3  # a lease is renewed for at most so many times the duration of the last poll


class SharedPolling:
    """Coordinates the polls of this process with those of other processes, through the ledger.

    Args:
        board: The table of the ledger that all processes read and write.
        interval: The pause between polls, in seconds.
        on_poll: Called with the result of each poll that another process made.
    """

    def __init__(self, board: Board[Any], interval: float, on_poll: Callable[[Look], None]) -> None:
        self._board = board
        self._interval = interval
        self._on_poll = on_poll
        self._check_every = None if board.tells else max(min(_CHECK_EVERY, interval / 10), _MIN_CHECK_EVERY)
        self._watched: set[str] = set()
        # Changes of `_watched` that are not in the ledger yet.
        self._added: set[str] = set()
        self._removed: set[str] = set()
        # Whether the ledger lacked records of this process when it was read last. Polls of other processes
        # don't cover those records, so they don't replace a poll of this process.
        self._unregistered = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = asyncio.Event()
        self._sync_timer: asyncio.TimerHandle | None = None
        self._sync_task: asyncio.Task[None] | None = None
        self._lease: PollLease | None = None
        self._poll_duration = 0.0  # of the last poll that this process made, in seconds
        self.last_seq: int = 0
        """The sequence number of the last poll that this process knows of."""
        self.ended_at = -math.inf
        """When the last poll of another process ended, in the loop's time."""
        self.yield_for = 0.0
        """How long to wait beyond the interval, so that the last lease holder goes first, in seconds."""

    # --- which records this process watches -----------------------------------------------------

    def watch(self, record_id: str) -> None:
        """Ask the other processes for the state of a record, too."""
        self._watched.add(record_id)
        self._removed.discard(record_id)
        self._added.add(record_id)
        self._schedule_sync()

    def unwatch(self, record_id: str) -> None:
        """Stop asking for a record."""
        self._watched.discard(record_id)
        self._added.discard(record_id)
        self._removed.add(record_id)
        self._schedule_sync()

    def _schedule_sync(self) -> None:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._board.listen(self._on_notify)
        if self._sync_task is None or self._sync_task.done():
            self._sync_task = self._loop.create_task(self._sync_loop(), name="qamera-shared-polling")
        if self._sync_timer is None:
            self._sync_timer = self._loop.call_later(_SYNC_DELAY, self._sync)

    def _sync(self) -> None:
        self._sync_timer = None
        self._wake.set()

    def _on_notify(self) -> None:
        """Wake the sync task; called in a thread of the ledger."""
        assert self._loop is not None  # noqa: S101 - set before the board is listened to
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._wake.set)

    async def aclose(self) -> None:
        """Stop, and remove the records of this process from the ledger."""
        if self._sync_timer is not None:
            self._sync_timer.cancel()
        if self._sync_task is not None:
            self._sync_task.cancel()
            await asyncio.wait([self._sync_task])
            self._board.leave()

    # --- what other processes found -------------------------------------------------------------

    async def _sync_loop(self) -> None:
        """Keep the ledger's list of watched records current, and report the polls of other processes."""
        while self._watched or self._added or self._removed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._check_every):
                    await self._wake.wait()
            notified = self._wake.is_set()
            self._wake.clear()
            if not notified and not self._board.may_have_news():
                continue
            try:
                self._take(await self._access(self._board.look, self.last_seq))
            except LedgerError as error:
                _log.info("could not read the polls of other processes from the ledger: %s", error)
                await asyncio.sleep(_RETRY_DELAY)
            except Exception:
                _log.exception("a job could not be notified of a poll of another process")
                await asyncio.sleep(_RETRY_DELAY)

    async def _access(
        self, operation: Callable[..., asyncio.Future[Look]], last_seq: int, **options: float
    ) -> Look:
        """Run an operation of the board that also writes the changes of the watched records."""
        added, self._added = self._added, set()
        removed, self._removed = self._removed, set()
        watched = len(self._watched)
        try:
            look = await operation(last_seq, added, removed, **options)
        except BaseException:
            # It is unknown what was written; writing the same changes twice is harmless.
            self._added |= added & self._watched
            self._removed |= removed - self._watched
            raise
        # Another process removes the records of a process that it takes for dead, for example after this
        # one lost its connection.
        self._unregistered = look.waits < watched
        if self._unregistered:
            self._added |= self._watched
            self._schedule_sync()
        return look

    def _take(self, look: Look) -> None:
        if look.number == self.last_seq:
            return
        self.last_seq = look.number
        self.yield_for = 0.0 if look.ours else self._interval / 4
        if not look.ours:
            if not self._unregistered:
                self.ended_at = asyncio.get_running_loop().time() - look.ended
            self._on_poll(look)

    # --- polling for all processes --------------------------------------------------------------

    async def acquire(self, last_seq: int) -> PollLease | None:
        """Take the lease to poll for all processes.

        Args:
            last_seq: The last poll that was known when this poll became due.

        Returns:
            The lease; None where another process holds it, or has polled within the interval.

        Raises:
            LedgerError: The ledger can't be used, so nobody can hold the lease.
        """
        if self._lease is not None:
            self._lease.stop_renewal()
        # A lease holder that is silent for longer has lost the lease, whether or not its process is alive.
        lease = max(self._interval * 1.5, _MIN_LEASE)
        try:
            look = await self._access(partial(self._board.begin, fresh=self._interval, lease=lease), last_seq)
        except asyncio.CancelledError:
            # The ledger may still take the lease. This operation is queued behind that one.
            self._board.give_up()
            raise
        if look.turn:
            self.last_seq = look.number
            self._lease = PollLease(
                self._board, look.others, self._poll_duration * _RENEW_FACTOR, self._on_published
            )
            return self._lease
        self._take(look)
        return None

    def _on_published(self, duration: float, seq: int | None) -> None:
        self._poll_duration = duration
        if seq is not None:
            self.last_seq = seq
            self.yield_for = 0.0


class PollLease:
    """The right of this process to make one poll for all processes.

    The lease is renewed while a slow poll runs, up to a limit.

    Args:
        board: The board on which the lease was taken.
        others: The ids of the records that other processes watch.
        renew_for: How long the lease is renewed, in seconds from now.
        on_published: Called with the duration of the poll in seconds and its sequence number (None: the
            lease had been lost).
    """

    def __init__(
        self,
        board: Board[Any],
        others: frozenset[str],
        renew_for: float,
        on_published: Callable[[float, int | None], None],
    ) -> None:
        self._board = board
        self._on_published = on_published
        self._ended = False
        self._renew_until = asyncio.get_running_loop().time() + renew_for
        self._renewal: asyncio.TimerHandle | None = None
        self.others = others
        self._schedule_renewal()

    async def publish(
        self, duration: float, items: Mapping[str, str | None], *, complete: bool, trouble: str = ""
    ) -> None:
        """Give the result of the poll to the other processes, and release the lease.

        A failure is only logged: the other processes poll for themselves then.

        Args:
            duration: Seconds since the poll was sent.
            items: The records that other processes watch, as JSON texts; None for one that is not listed.
            complete: Whether the list was complete.
            trouble: Why the poll failed; empty where it succeeded.
        """
        self.stop_renewal()
        try:
            seq = await self._board.publish(duration, items, complete=complete, trouble=trouble)
        except (LedgerError, SessionClosedError) as error:
            _log.info("could not write the result of a poll to the ledger: %s", error)
        else:
            self._on_published(duration, seq)

    def release(self) -> None:
        """Give the lease back without a result; does nothing after `publish`."""
        if not self._ended:
            self.stop_renewal()
            self._board.give_up()

    def stop_renewal(self) -> None:
        """Stop renewing the lease; `release` does nothing afterwards."""
        self._ended = True
        if self._renewal is not None:
            self._renewal.cancel()

    def _schedule_renewal(self) -> None:
        loop = asyncio.get_running_loop()
        if not self._ended and loop.time() + _RENEW_EVERY <= self._renew_until:
            self._renewal = loop.call_later(_RENEW_EVERY, self._renew)

    def _renew(self) -> None:
        self._board.renew().add_done_callback(self._on_renewed)

    def _on_renewed(self, renewing: asyncio.Future[None]) -> None:
        if not renewing.cancelled():
            renewing.exception()  # a ledger that can't be reached gives the lease to nobody else either
        self._schedule_renewal()
