"""One poll of a list for all jobs that wait for records of it.

A list is the only source of a job's status (the API's section "GET /api/external/videos").
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import logging
import math
import random
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakValueDictionary

from .._protocol import RecordList, Response, list_request, parse_error, parse_list
from .._ratelimit import Priority
from .._transport.api import is_transient, retry
from ..errors import (
    LedgerError,
    QameraError,
    SessionClosedError,
    TransportError,
    is_permanent,
)
from ..events import Polled, RateLimitWait, Updated
from .lease import SharedPolling
from .records import ListHistory, TrackedRecord

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from .._config import PollPolicy, RetryPolicy, StatusRules, Timeouts
    from .._models import Record
    from .._protocol import RecordListSpec
    from .._ratelimit import SessionLimiter, Slot
    from .._transport.api import ApiClient
    from ..events import Emit
    from ..ledger.board import Board, Look
    from .lease import PollLease
    from .records import RecordListener

_log = logging.getLogger("qamera_async")

_OK, _NOT_MODIFIED, _TOO_MANY_REQUESTS = 200, 304, 429
_MIN_MISSING_POLLS = 3  # a record that was seen is lost only after so many lists without it
# A server that computes ETags wrongly would hide every change, so the whole list is requested again after
# this time, in seconds.
_ETAG_TRUST = 60.0
_LONG_BODY = 64 * 1024  # bytes; longer lists are processed in loop iterations of their own
_MAX_WARNINGS = 100


class _ListWaiter(NamedTuple):
    """Which list a task waits for."""

    after: int  # the list of a poll with a higher number
    once: bool  # or the error of that poll


class Poller:
    """Polls one list while records of it are watched or a task waits for the list.

    Args:
        spec: Which list.
        api: Sends the requests.
        limiter: Permits them.
        polling: How often to poll.
        timeouts: `appear` and `missing` say how long a record may be missing from the list.
        retry: For `fetch_list`.
        rules: Which statuses are final.
        emit: Receives `Updated`, `Polled` and `RateLimitWait`.
        board: Where processes with one ledger share their polls; None: no sharing.
    """

    def __init__(
        self,
        spec: RecordListSpec,
        api: ApiClient,
        limiter: SessionLimiter,
        polling: PollPolicy,
        timeouts: Timeouts,
        retry: RetryPolicy,
        rules: StatusRules,
        emit: Emit,
        board: Board[Any] | None = None,
    ) -> None:
        self._spec = spec
        self._api = api
        self._limiter = limiter
        self._policy = polling
        self._timeouts = timeouts
        self._retry = retry
        self._rules = rules
        self._emit = emit
        self._tracked: WeakValueDictionary[str, TrackedRecord] = WeakValueDictionary()
        self._watched: dict[str, TrackedRecord] = {}
        self._list_waiters: dict[asyncio.Future[RecordList], _ListWaiter] = {}
        self._latest: RecordList | None = None
        self._latest_at = -math.inf  # when the request for it was sent
        self._full_at = -math.inf  # when a list came last that was no 304
        self._history = ListHistory()
        self._history_complete = True  # whether no other process has polled since the last list seen here
        self._good_at = -math.inf  # when the last successful poll was sent
        self._due = math.inf  # no poll is needed earlier
        self._not_before = -math.inf  # another process polls until then
        self._ended_at = -math.inf  # when the last poll ended
        self._outage: Iterator[float] | None = None
        self._backoff = 0.0  # least pause in an outage, in seconds
        self._task: asyncio.Task[None] | None = None
        # The task must not keep the context of whichever waiter came first.
        self._context = contextvars.copy_context()
        self._busy = False  # whether a poll is on the wire or being processed
        self._wake = asyncio.Event()
        self._closed = False
        self._warned: set[str] = set()
        self._shared = None if board is None else SharedPolling(board, polling.interval, self._on_shared_poll)
        self.polls = 0
        """How many polls were sent."""
        self.last_error: QameraError | None = None
        """Why the last poll failed; None after a successful one."""

    @property
    def list_number(self) -> int:
        """How many lists were seen; 0 after another process polled, until the next list is seen here."""
        return self._history.lists if self._history_complete else 0

    @property
    def list_age(self) -> float | None:
        """Seconds since the last successful poll was sent; None before the first."""
        if math.isinf(self._good_at):
            return None
        return asyncio.get_running_loop().time() - self._good_at

    @property
    def watched(self) -> int:
        """How many records are watched."""
        return len(self._watched)

    @property
    def waiters(self) -> int:
        """How many tasks wait for a job."""
        listeners = {id(each): each for record in self._watched.values() for each in record.listeners}
        return sum(len(listener.waiters) for listener in listeners.values())

    def new_since(self, ids: Collection[str], list_number: int) -> set[str]:
        """Return those of `ids` that no list up to `list_number` showed."""
        return self._history.new_since(ids, list_number)

    # --- records and waiters --------------------------------------------------------------------

    def track(
        self, record_id: str, *, created_at: float | None = None, record: Record | None = None
    ) -> TrackedRecord:
        """Return the one object for a record, as long as anyone holds it.

        Args:
            record_id: The record.
            created_at: When it was created, in the loop's time; None: unknown.
            record: Its last state, known from elsewhere; ignored while the record is watched.
        """
        tracked = self._tracked.get(record_id)
        if tracked is None:
            tracked = self._tracked[record_id] = TrackedRecord(record_id)
        if tracked.created_at is None:
            tracked.created_at = created_at
        if record is not None and not tracked.listeners and not tracked.final:
            tracked.update(record)
            tracked.reported = tracked.final
        return tracked

    def watch(self, record: TrackedRecord, listener: RecordListener) -> None:
        """Poll until the record is final, and call the listener when it changes.

        A new record is polled for the first time one interval after it was created.

        Raises:
            SessionClosedError: The session is closed.
        """
        self._check_open()
        now = asyncio.get_running_loop().time()
        if not record.listeners:
            record.missing_since, record.missing_polls = None, 0
            self._watched[record.record_id] = record
            if self._shared is not None:
                self._shared.watch(record.record_id)
        record.listeners = (*record.listeners, listener)
        latest = self._latest
        if (
            latest is not None
            and self._outage is None
            and now - self._latest_at <= self._policy.interval
            and record.record_id in latest
        ):
            self._on_listed(record, latest, now)
        if not record.final:
            due = now if record.created_at is None else record.created_at + self._policy.interval
            self._poll_at(max(due, now))

    def unwatch(self, record: TrackedRecord, listener: RecordListener) -> None:
        """Don't call the listener any more; stop polling where nobody waits."""
        if listener in record.listeners:
            record.listeners = tuple([each for each in record.listeners if each is not listener])
            if not record.listeners:
                self._remove(record)
        self._stop_if_idle()

    async def next_list(self, *, once: bool = False) -> RecordList:
        """Wait for the first list that is requested from now on.

        Args:
            once: Whether to raise the error of the next poll. Otherwise failed polls are repeated.

        Raises:
            SessionClosedError: The session is closed, or closes meanwhile.
            QameraError: No further poll can succeed; with `once`, the next poll failed.
        """
        return await self.request_list(once=once)

    def request_list(self, *, once: bool) -> asyncio.Future[RecordList]:
        """Return a future for the list that `next_list` waits for; cancelling it withdraws the request."""
        self._check_open()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[RecordList] = loop.create_future()
        self._list_waiters[future] = _ListWaiter(self.polls, once)
        future.add_done_callback(self._remove_list_waiter)
        self._poll_at(loop.time())
        return future

    def _remove_list_waiter(self, future: asyncio.Future[RecordList]) -> None:
        self._list_waiters.pop(future, None)
        self._stop_if_idle()

    async def fetch_list(self) -> RecordList:
        """Fetch the list at once, beside the polls. A failure that may pass is retried.

        Raises:
            QameraError: The list can't be fetched.
        """
        return await retry(f"list_{self._spec.key}", self._fetch_list, self._retry, self._emit, is_transient)

    async def _fetch_list(self) -> RecordList:
        while True:
            slot = await self._limiter.acquire(Priority.SUBMISSION, self._on_wait)
            response = await self._api.send(list_request(self._spec), slot)
            if response.status != _TOO_MANY_REQUESTS:
                break
            if self._limiter.exhausted:
                raise parse_error(response)
            self._emit(RateLimitWait(self._limiter.cooldown))
        records = parse_list(response, self._spec, self._rules)
        self._note(records)
        return records

    async def aclose(self) -> None:
        """Stop polling; everyone who waits gets `SessionClosedError`. Idempotent."""
        self._closed = True
        self._fail_all(SessionClosedError("The session was closed while a job was waited for."))
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        if self._shared is not None:
            await self._shared.aclose()

    def _check_open(self) -> None:
        if self._closed:
            raise SessionClosedError("The session is closed.")

    def _remove(self, record: TrackedRecord) -> None:
        """Stop watching a record."""
        record.listeners = ()
        record.release_list()
        if self._watched.pop(record.record_id, None) is not None and self._shared is not None:
            self._shared.unwatch(record.record_id)

    # --- when to poll ---------------------------------------------------------------------------

    @property
    def _needed(self) -> bool:
        return bool(self._watched or self._list_waiters)

    def _poll_at(self, due: float) -> None:
        if due < self._due:
            self._due = due
            self._wake.set()
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(
                self._run(), name=f"qamera-poller-{self._spec.key}", context=self._context
            )
            self._task.add_done_callback(self._on_task_end)

    def _stop_if_idle(self) -> None:
        """Stop the task where nobody waits, but not in the middle of a poll.

        Cancelling a request on the wire would keep its slot of the rate limit for longer.
        """
        if self._needed or self._busy:
            return
        self._due = math.inf
        task, self._task = self._task, None
        if task is not None:
            task.cancel()

    async def _run(self) -> None:
        while self._needed:
            await self._wait_until_due()
            await self._poll()
        self._due = math.inf

    def _on_task_end(self, task: asyncio.Task[None]) -> None:
        """Fail the waiters where the task ended unexpectedly. The next waiter starts a new task."""
        if task is not self._task:
            return
        self._task = None
        error = None if task.cancelled() else task.exception()
        if not self._needed:
            self._due = math.inf
        if error is None and not (task.cancelled() and self._needed):
            return
        self._ended_at = asyncio.get_running_loop().time()
        _log.error("the poller stopped unexpectedly; all waiters are notified", exc_info=error)
        cause = "cancelled" if error is None else type(error).__name__
        self._fail_all(QameraError(f"The poller stopped unexpectedly ({cause})."))

    async def _wait_until_due(self) -> None:
        loop = asyncio.get_running_loop()
        jitter = random.uniform(0.9, 1.1)  # noqa: S311 - spreads the load, no secret depends on it
        while True:
            self._wake.clear()
            pause = self._limiter.poll_delay(self._policy.interval * jitter, self._policy.stale_after)
            pause = max(pause, self._backoff * jitter)
            ended = self._ended_at
            if self._shared is not None and not self._list_waiters:
                ended = max(ended, self._shared.ended_at + self._shared.yield_for)
            until = max(ended + pause, self._due, self._not_before)
            if until <= loop.time():
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await self._wake.wait()

    # --- one poll -------------------------------------------------------------------------------

    async def _poll(self) -> None:
        # A poll of another process that ends while this one waits for its slot replaces this one.
        last_seq = 0 if self._shared is None else self._shared.last_seq
        try:
            slot = await self._limiter.acquire(Priority.POLL, self._on_wait)
            lease: PollLease | None = None
            if self._shared is not None:
                try:
                    lease = await self._shared.acquire(last_seq)
                except LedgerError as error:
                    _log.warning("a poll could not be shared and is sent all the same: %s", error)
                except BaseException:
                    slot.give_back()
                    raise
                else:
                    if lease is None:
                        slot.give_back()
                        self._not_before = asyncio.get_running_loop().time() + self._policy.interval / 4
                        return
            self._busy = True
            try:
                await self._exchange(slot, lease)
            finally:
                self._busy = False
        except QameraError as error:
            self._ended_at = asyncio.get_running_loop().time()
            for future, waiter in self._list_waiters.items():
                if waiter.once and waiter.after < self.polls and not future.done():
                    future.set_exception(copy.copy(error))
            self._on_failure(error)

    async def _exchange(self, slot: Slot, lease: PollLease | None) -> None:
        """Send one poll and notify everyone whom its list concerns."""
        loop = asyncio.get_running_loop()
        sent_at = loop.time()
        self.polls += 1
        number = self.polls
        trusted = sent_at - self._full_at <= _ETAG_TRUST
        request = list_request(self._spec, self._latest if trusted else None)
        try:
            response = await self._api.send(request, slot)
            if response.status == _TOO_MANY_REQUESTS:
                self._on_429(response)
                if lease is not None and self._needed:
                    lease.stop_renewal()  # kept for the next request, until it expires
                return
            records = await self._read(response, conditional="If-None-Match" in request.headers)
            self._on_list(records, sent_at, number)
            if lease is not None:
                items = records.encode_items(lease.others) if lease.others else {}
                await lease.publish(loop.time() - sent_at, items, complete=records.complete)
        except QameraError as error:
            if lease is not None:
                await lease.publish(0.0, {}, complete=True, trouble=str(error))
            raise
        finally:
            if lease is not None:
                lease.release()
            self._ended_at = loop.time()
            self._due = -math.inf

    async def _read(self, response: Response, *, conditional: bool) -> RecordList:
        """Return the list in a response; a long one is processed in several iterations of the loop."""
        if response.status == _NOT_MODIFIED and not conditional:
            raise parse_error(response)
        await _let_others_run(response)
        records = parse_list(response, self._spec, self._rules, self._latest)
        self._note(records)
        if response.status == _OK:
            self._full_at = asyncio.get_running_loop().time()
        await _let_others_run(response)
        return records

    def _on_wait(self, seconds: float) -> None:
        self._emit(RateLimitWait(seconds))

    def _on_429(self, response: Response) -> None:
        """Note a 429. The limiter delays the next poll, which is sent only if someone still waits."""
        self.last_error = parse_error(response)
        if self._limiter.exhausted:
            self._fail_all(self.last_error)
        elif self._needed:
            self._emit(RateLimitWait(self._limiter.cooldown))

    def _on_failure(self, error: QameraError) -> None:
        self.last_error = error
        if is_permanent(error):
            self._fail_all(error)
            return
        if self._outage is None:
            self._outage = self._policy.outage_delays()
        self._backoff = next(self._outage)
        _log.info("a poll failed and will be repeated: %s", error)

    def _on_success(self, sent_at: float) -> None:
        self._good_at = sent_at
        self._outage = self.last_error = None
        self._backoff = 0.0

    def _note(self, records: RecordList) -> None:
        """Remember which records a list shows, whether or not anyone waits."""
        now = asyncio.get_running_loop().time()
        self._history.add(records.ids, now, unchanged=records.unchanged)
        if records.broken:
            self._warn_once(
                "broken", "%d items of the list of %s can't be read", records.broken, self._spec.key
            )

    # --- who is notified ------------------------------------------------------------------------

    def _on_list(self, records: RecordList, sent_at: float, number: int) -> None:
        """Notify everyone of a list that was fetched here."""
        self._latest, self._latest_at = records, sent_at
        self._history_complete = True
        self._on_success(sent_at)
        changed = self._notify(list(self._watched.values()), records, sent_at)
        for future, waiter in list(self._list_waiters.items()):
            if waiter.after < number:
                del self._list_waiters[future]
                if not future.done():
                    future.set_result(records)
        self._emit(Polled(len(records), changed, len(self._watched)))

    def _on_shared_poll(self, look: Look) -> None:
        """Notify the jobs of what a poll of another process found."""
        if look.trouble:
            self._on_failure(TransportError(f"Another process's poll failed: {look.trouble}"))
            return
        sent_at = asyncio.get_running_loop().time() - look.sent
        if self._outage is not None:
            self._wake.set()  # end the long pause of the outage
        self._on_success(sent_at)
        self._history_complete = False
        items = [item for item in look.items.values() if item is not None]
        records = RecordList.from_items(items, self._spec, self._rules, complete=look.complete)
        fresh = look.sent <= self._policy.interval
        watched = [self._watched[record_id] for record_id in look.items if record_id in self._watched]
        self._notify(
            [record for record in watched if fresh or record.watched_since(sent_at)], records, sent_at
        )
        self._stop_if_idle()

    def _notify(self, watched: Iterable[TrackedRecord], records: RecordList, sent_at: float) -> int:
        """Notify the listeners of some records; return how many of the records changed."""
        now = asyncio.get_running_loop().time()
        changed = 0
        for record in watched:
            if not record.listeners:
                continue  # a listener that was just called ended the wait of this one
            if record.record_id in records:
                changed += self._on_listed(record, records, now)
            else:
                self._on_missing(record, sent_at, now, complete=records.complete)
        return changed

    def _on_listed(self, tracked: TrackedRecord, records: RecordList, now: float) -> bool:
        """Update a watched record that is in a list; return whether it changed."""
        tracked.missing_since, tracked.missing_polls = None, 0
        changed = tracked.seen_in(records)
        if not changed and tracked.url_missing_since is None:
            return False
        record = tracked.record
        assert record is not None  # noqa: S101 - the list has it
        if not self._rules.knows(record.status):
            self._warn_once(record.status, "unknown status %r; it counts as pending", record.status)
        tracked.update(record)
        changed |= tracked.url_appeared(record, now)
        if changed:
            self._emit(Updated(record))
        if changed or tracked.final:
            for listener in tracked.listeners:
                listener.record_changed()
        if tracked.final:
            # Only now: if a listener raises, the record is still watched, so that all listeners are failed.
            self._remove(tracked)
        return changed

    def _on_missing(self, record: TrackedRecord, sent_at: float, now: float, *, complete: bool) -> None:
        """Count a list without a watched record, for the jobs that watched it before the poll was sent."""
        record.release_list()
        listeners = [listener for listener in record.listeners if listener.since <= sent_at]
        if not listeners or not complete:
            return
        if record.missing_since is None:
            record.missing_since = sent_at
        record.missing_polls += 1
        for listener in listeners:
            if record.status is None:
                absent_for = now - (listener.since if record.created_at is None else record.created_at)
                limit = self._timeouts.appear
                lost = limit is not None and absent_for >= limit
            else:
                absent_for = now - record.missing_since
                lost = absent_for >= self._timeouts.missing and record.missing_polls >= _MIN_MISSING_POLLS
            if lost:
                listener.record_missing(record, absent_for)

    def _fail_all(self, error: QameraError) -> None:
        listeners = [each for record in self._watched.values() for each in record.listeners]
        for listener in listeners:
            listener.polling_failed(error)
        for future in self._list_waiters:
            if not future.done():
                future.set_exception(copy.copy(error))

    def _warn_once(self, key: str, message: str, *args: object) -> None:
        # Limited, because a server may invent a new status for each record.
        if key not in self._warned and len(self._warned) < _MAX_WARNINGS:
            self._warned.add(key)
            _log.warning(message, *args)


async def _let_others_run(response: Response) -> None:
    """Let the loop run other tasks before the next step of processing a long list."""
    if len(response.body) > _LONG_BODY:
        await asyncio.sleep(0)
