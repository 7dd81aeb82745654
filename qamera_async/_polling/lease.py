"""One poll for all processes that share a ledger.

The lease holder polls; the other processes read its results from the ledger.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import LedgerError, QameraError, SessionClosedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._protocol import RecordList
    from ..ledger.board import Board, Look

_log = logging.getLogger("qamera_async")

# All in seconds.
_SYNC_DELAY = 0.05  # changes of the watched records are collected for so long and written together
_RETRY_DELAY = 1.0  # pause after a failed access to the ledger
_MIN_LEASE = 1.0
_CHECK_EVERY = 0.1  # pause between reads of a ledger that sends no notifications
_MIN_CHECK_EVERY = 0.01  # the same, for very short poll intervals


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
        # The records whose last change is not in the ledger yet, and whether they are watched now.
        self._changes: dict[str, bool] = {}
        # Whether the ledger lacked records of this process when it was read last. Polls of other processes
        # don't cover those records, so they don't replace a poll of this process.
        self._registration_lost = False
        self._wake = asyncio.Event()
        self._sync_task: asyncio.Task[None] | None = None
        self._sync_timer: asyncio.TimerHandle | None = None
        self._has_lease = False
        self._requested_ids: frozenset[str] = frozenset()  # the records that other processes watch
        self._poll_duration = 0.0  # of the last poll, in seconds
        self.last_seq: int = 0
        """The sequence number of the last poll that this process knows of."""
        self.ended_at = -math.inf
        """When the last poll of another process ended, in the loop's time."""
        self.handover_delay = 0.0
        """How long to wait beyond the interval, so that the last lease holder goes first, in seconds."""

    # --- which records this process watches -----------------------------------------------------

    def watch(self, record_id: str) -> None:
        """Register a record, so that the lease holder publishes its state."""
        self._watched.add(record_id)
        self._changes[record_id] = True
        self._sync_soon()

    def unwatch(self, record_id: str) -> None:
        """Stop asking for a record."""
        self._watched.discard(record_id)
        self._changes[record_id] = False
        self._sync_soon()

    def _sync_soon(self) -> None:
        loop = asyncio.get_running_loop()
        if self._sync_task is None:
            # The ledger calls this in a thread of its own.
            self._board.listen(partial(_set_from_thread, loop, self._wake))
        if self._sync_task is None or self._sync_task.done():
            self._sync_task = loop.create_task(self._sync_loop(), name="qamera-shared-polling")
        if self._sync_timer is None:
            self._sync_timer = loop.call_later(_SYNC_DELAY, self._sync)

    def _sync(self) -> None:
        self._sync_timer = None
        self._wake.set()

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
        while self._watched or self._changes:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._check_every):
                    await self._wake.wait()
            woken = self._wake.is_set()
            self._wake.clear()
            if not woken and not self._board.may_have_news():
                continue
            try:
                self._on_look(await self._run_with_changes(self._board.look, self.last_seq))
            except LedgerError as error:
                _log.info("Can't read the polls of other processes from the ledger: %s", error)
                await asyncio.sleep(_RETRY_DELAY)
            except Exception:
                _log.exception("A job could not be notified of a poll of another process.")
                await asyncio.sleep(_RETRY_DELAY)

    async def _run_with_changes(
        self, operation: Callable[..., asyncio.Future[Look]], last_seq: int, **options: float
    ) -> Look:
        """Run an operation of the board that also writes the changes of the watched records."""
        changes, self._changes = self._changes, {}
        added = {record_id for record_id, watched in changes.items() if watched}
        watched = len(self._watched)
        try:
            look = await operation(last_seq, added, changes.keys() - added, **options)
        except BaseException:
            # It is unknown what was written; writing the same changes twice is harmless.
            self._changes = changes | self._changes
            raise
        # Another process removes the records of a process that it takes for dead, for example after this
        # one lost its connection.
        self._registration_lost = look.waits < watched
        if self._registration_lost:
            self._changes |= dict.fromkeys(self._watched, True)
            self._sync_soon()
        return look

    def _on_look(self, look: Look) -> None:
        if look.number == self.last_seq:
            return
        self.last_seq = look.number
        self._poll_duration = look.sent - look.ended
        self.handover_delay = 0.0 if look.ours else self._interval / 4
        if not look.ours:
            if not self._registration_lost:
                self.ended_at = asyncio.get_running_loop().time() - look.ended
            self._on_poll(look)

    # --- polling for all processes --------------------------------------------------------------

    async def acquire(self, last_seq: int) -> bool:
        """Take the lease to poll for all processes. `publish` or `release` ends it.

        Args:
            last_seq: The last poll that was known when this poll became due.

        Returns:
            Whether this process may poll. It may not while another process holds the lease, or if that has
            polled within the interval. If the ledger can't be used, no process can hold the lease.
        """
        self._has_lease = False
        # A lease holder that is silent for longer has lost the lease, whether or not its process is alive.
        lease = max(self._interval * 1.5, _MIN_LEASE, self._poll_duration * 3)
        try:
            look = await self._run_with_changes(
                partial(self._board.begin, fresh=self._interval, lease=lease), last_seq
            )
        except LedgerError as error:
            _log.warning("A poll can't be shared and is sent all the same: %s", error)
            return True
        except asyncio.CancelledError:
            # The ledger may still take the lease. This operation is queued behind that one.
            self._board.give_up()
            raise
        if not look.turn:
            self._on_look(look)
            return False
        self._has_lease, self._requested_ids, self.last_seq = True, look.others, look.number
        return True

    async def publish(self, duration: float, records: RecordList | None, trouble: str = "") -> None:
        """Publish the result of a poll to the other processes and end the lease; without a lease, do nothing.

        A failure is only logged: the other processes poll for themselves then.

        Args:
            duration: Seconds since the poll was sent.
            records: The list; None where the poll failed.
            trouble: Why the poll failed; empty where it succeeded.
        """
        if not self._has_lease:
            return
        self._has_lease = False
        items = {} if records is None else records.encode_items(self._requested_ids)
        complete = records is None or records.complete
        try:
            seq = await self._board.publish(duration, items, complete=complete, trouble=trouble)
        except (LedgerError, SessionClosedError) as error:
            _log.info("Can't write the result of a poll to the ledger: %s", error)
            return
        self._poll_duration = duration
        if seq is not None:  # None: the lease had been lost
            self.last_seq, self.handover_delay = seq, 0.0

    async def fail(self, error: BaseException) -> None:
        """Publish why a poll failed; return the lease without a result if the poll was interrupted."""
        if isinstance(error, QameraError):
            await self.publish(0.0, None, str(error))
        else:
            self.release()

    def release(self) -> None:
        """Return the lease without a result; without a lease, do nothing."""
        if self._has_lease:
            self._has_lease = False
            self._board.give_up()


def _set_from_thread(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(event.set)
