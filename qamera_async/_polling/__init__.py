"""One GET for everybody who waits: the list of videos, fetched only while somebody does.

The list is the only way to learn what became of a record (the API's section "GET
/api/external/videos").
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import random
from typing import TYPE_CHECKING, Any

from .. import _protocol as protocol
from .._models import JobState
from .._ratelimit.window import Priority
from .._transport.tracing import Flight
from ..errors import (
    JobLostError,
    LedgerError,
    QameraError,
    SessionClosedError,
    TransportError,
    is_permanent,
)
from ..events import Polled, Updated
from .latest import Coming, Latest
from .others import Others
from .records import GONE_POLLS, URL_GRACE, Record
from .seen import Seen
from .watched import Watched

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .._config import PollPolicy, StatusRules, Timeouts
    from .._models import Video
    from .._ratelimit import RateLimiter
    from .._transport import Transport
    from ..events import Emit
    from ..ledger.board import Board, Look
    from .others import Turn

_log = logging.getLogger("qamera_async")
_WARNINGS = 100
_LONG = 64 * 1024  # bytes


class Poller:
    """Polls the list of videos while there are records to watch or questions to answer."""

    def __init__(
        self,
        transport: Transport,
        budget: RateLimiter,
        policy: PollPolicy,
        timeouts: Timeouts,
        rules: StatusRules,
        emit: Emit,
        board: Board[Any] | None = None,
    ) -> None:
        self._transport = transport
        self._budget = budget
        self._policy = policy
        self._timeouts = timeouts
        self._rules = rules
        self._emit = emit
        self._watched = Watched()
        # Those whom time alone may settle, though the list stay as it is.
        self._restless: set[Record] = set()
        self._newcomers: list[Record] = []
        self._questions: list[asyncio.Future[tuple[protocol.Answer, protocol.Listing]]] = []
        self._asked: list[asyncio.Future[tuple[protocol.Answer, protocol.Listing]]] = []
        self._due = math.inf
        self._ended = -math.inf  # when the last poll ended, for better or worse
        self._not_before = -math.inf  # while another polls
        self._latest = Latest(rules)
        self._latest_at = -math.inf  # when that was sent
        self.seen = Seen()
        self._whole = True  # whether nobody else has polled since the last list that was seen here
        self._good_at = -math.inf  # when the last good poll was sent
        self._outage: Iterator[float] | None = None
        self._backoff = 0.0  # the least pause in an outage, in seconds
        self._last_error: QameraError | None = None
        self._task: asyncio.Task[None] | None = None
        self._flight = Flight()
        self._wake = asyncio.Event()
        self._closed = False
        self._warned: set[str] = set()
        self._others = None if board is None else Others(board, policy.interval, self._told)

    @property
    def lists_seen(self) -> int:
        """How many lists were seen; 0 where the last of them is no news, since others poll by now."""
        return self.seen.lists if self._whole else 0

    @property
    def last_error(self) -> QameraError | None:
        """Why the last poll brought nothing; None where it did."""
        return self._flight.refusal or self._last_error

    @property
    def list_age(self) -> float | None:
        """Seconds since the last good poll was sent; None before the first."""
        return None if math.isinf(self._good_at) else asyncio.get_running_loop().time() - self._good_at

    def video(self, record: Record) -> Video | None:
        """Give the last snapshot of a record; None before it was seen."""
        if record.kept is None and record.status is not None:
            return self._latest.video(record.record_id)
        return record.kept

    def _hold(self, record: Record) -> None:
        """Keep its video of the latest list; not one that settles it, of which it wasn't told."""
        video = self.video(record)
        if record.kept is None and video is not None and video.state is JobState.PENDING:
            record.kept = video

    # --- who waits ------------------------------------------------------------------------------

    def watch(self, record: Record, due: float) -> None:
        """From now on tell the record's listener what becomes of it.

        Args:
            record: not yet watched.
            due: when a poll can tell something for the first time, in the loop's time.
        """
        if self._closed:
            raise SessionClosedError("The session is closed.")
        now = asyncio.get_running_loop().time()
        record.joined, record.absences, record.absent_since = now, 0, None
        self._watched.add(record)
        if self._outage is None and now - self._latest_at <= self._policy.interval:
            self._tell_from_last(record)
        if not record.settled:
            if self._others is not None:
                self._others.watch(record.record_id)
            self._newcomers.append(record)
            self._needed(max(due, now))

    def unwatch(self, record: Record) -> None:
        """Tell its listener nothing more."""
        self._hold(record)  # of lists to come it won't be told
        if self._watched.discard(record) and self._others is not None:
            self._others.unwatch(record.record_id)
        self._restless.discard(record)
        self._rest()

    async def ask(self) -> tuple[protocol.Answer, protocol.Listing]:
        """Give the first list that is fetched from now on, as it came and as it was read."""
        if self._closed:
            raise SessionClosedError("The session is closed.")
        question: asyncio.Future[tuple[protocol.Answer, protocol.Listing]] = (
            asyncio.get_running_loop().create_future()
        )
        self._questions.append(question)
        self._needed(asyncio.get_running_loop().time())
        try:
            return await question
        finally:
            for questions in (self._questions, self._asked):
                with contextlib.suppress(ValueError):
                    questions.remove(question)
            self._rest()

    def notice(self, videos: tuple[Video, ...]) -> None:
        """Remember a list that was fetched outside of the polls: what is in it is not new any more."""
        ids = {video.id: None for video in videos}.keys()
        self.seen.add(ids, asyncio.get_running_loop().time())

    async def aclose(self) -> None:
        """Stop polling; who waits gets ``SessionClosedError``. Idempotent."""
        self._closed = True
        self._fail_all(SessionClosedError("The session was closed while this was waited for."))
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._others is not None:
            await self._others.aclose()

    # --- when to poll ---------------------------------------------------------------------------

    def _waited_for(self) -> bool:
        return bool(self._watched or self._questions or self._asked)

    def _needed(self, due: float) -> None:
        if due < self._due:
            self._due = due
            self._wake.set()
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run(), name="qamera-poller")

    def _rest(self) -> None:
        # A request that is on the wire is let go: cutting it off would cost its slot for longer.
        if not self._waited_for():
            self._latest.rest()
            self._due = math.inf
            self._newcomers.clear()
            if self._task is not None and not self._flight.on_the_wire:
                self._task.cancel()
                self._task = None

    async def _run(self) -> None:
        while self._waited_for():
            try:
                await self._until_due()
                await self._poll()
            except Exception as error:
                _log.exception("the poller failed; everybody who waits is told")
                self._fail_all(QameraError(f"The poller failed unexpectedly ({type(error).__name__})."))
                await asyncio.sleep(self._policy.interval)

    async def _until_due(self) -> None:
        loop = asyncio.get_running_loop()
        jitter = random.uniform(0.9, 1.1)  # noqa: S311 - spreads load, guards nothing
        while True:
            self._wake.clear()
            pause = self._budget.pace(self._policy.interval * jitter, self._policy.stale_after)
            pause = max(pause, self._backoff * jitter)
            ended = self._ended
            if self._others is not None and not self._questions:
                ended = max(ended, self._others.ended + self._others.handicap)
            until = max(ended + pause, self._due, self._not_before)
            if until <= loop.time():
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await self._wake.wait()

    # --- one poll -------------------------------------------------------------------------------

    async def _poll(self) -> None:
        loop = asyncio.get_running_loop()
        sent_at: float | None = None
        turn: Turn | None = None
        flight = self._flight = Flight()
        # What others bring while this waits for a slot is as good as what it would bring.
        known = 0 if self._others is None else self._others.known

        async def sending() -> None:
            nonlocal sent_at, turn
            if self._others is not None:
                turn = await self._turn(self._others, known)
            sent_at = loop.time()
            self._asked += self._questions
            self._questions = []

        try:
            condition = self._latest.condition(loop.time())
            answer = await self._transport.get(
                protocol.VIDEOS_PATH, Priority.POLL, flight, sending, condition
            )
            assert sent_at is not None  # noqa: S101 - there is no answer to what wasn't sent
            # A long list is joined, read and told of in a turn of the loop each: others have work, too.
            await _pause_after(answer)
            coming = self._latest.read(answer, loop.time())
            self._note(coming.listing)
            await _pause_after(coming.answer)
            self._tell(coming, sent_at)
            if turn is not None:
                await self._share(turn, loop.time() - sent_at)
        except _NotNeeded:
            self._not_before = loop.time() + self._policy.interval / 4
        except QameraError as error:
            # Also of one that was never sent, or the next would follow at once.
            self._ended = loop.time()
            self._trouble(error)
            if turn is not None:
                await turn.brought(0.0, {}, complete=True, trouble=str(error))
        finally:
            if turn is not None:
                turn.give_up()
            # To read it again costs a little of the next poll; not to would cost memory for each who waits,
            # where they are the most of the list.
            if not self._restless and len(self._watched) > self._latest.length / 2:
                self._latest.rest()
            # A poll withdrawn before it was sent has changed nothing, and may have a successor by now.
            if sent_at is not None and self._flight is flight:
                self._ended = loop.time()
                self._due = -math.inf
                self._questions += [question for question in self._asked if not question.done()]
                self._asked = []

    async def _turn(self, others: Others, known: int) -> Turn | None:
        """Give the turn to poll for all; None where this poll is for nobody else.

        Raises:
            _NotNeeded: another polls.
        """
        try:
            turn = await others.turn(known)
        except LedgerError as error:
            # What is paid for shall be seen to its end.
            _log.warning("a poll could not be shared, and is sent all the same: %s", error)
            return None
        if turn is None:
            raise _NotNeeded
        return turn

    async def _share(self, turn: Turn, took: float) -> None:
        """Give others what the list has of theirs."""
        latest, items = self._latest, {}
        if latest.answer is not None and turn.others:
            items = protocol.items_of(latest.answer, turn.others, latest.listing)
        await turn.brought(took, items, complete=latest.complete)

    def _told(self, look: Look) -> None:
        """Take what another's poll has brought."""
        now = asyncio.get_running_loop().time()
        if look.trouble:
            self._trouble(TransportError(f"Another process's poll failed: {look.trouble}"))
            return
        if self._outage is not None:
            self._wake.set()  # the pause of an outage may be a long one
        self._well(now - look.sent)
        # From now on the next list that is seen here is news to everybody, and nobody a newcomer.
        self._whole = False
        self._newcomers.clear()
        answer = protocol.list_of([item for item in look.items.values() if item is not None])
        listing = protocol.read_listing(answer)
        # Who has come since is told of what is fresh, as with a list of one's own.
        since = math.inf if look.sent <= self._policy.interval else now - look.sent
        records = [
            record for name in look.items for record in self._watched.of(name) if record.joined <= since
        ]
        self._tell_some(records, answer, listing, now - look.sent, complete=look.complete)

    def _trouble(self, error: QameraError) -> None:
        if is_permanent(error):
            self._fail_all(error)
            return
        self._last_error = error
        if self._outage is None:
            self._outage = self._policy.outage_delays()
        self._backoff = next(self._outage)
        _log.info("a poll failed and will be repeated: %s", error)

    def _well(self, sent_at: float) -> None:
        """Note that a poll was good."""
        self._good_at = sent_at
        self._outage = self._last_error = None
        self._backoff = 0.0

    def _note(self, listing: protocol.Listing | None) -> None:
        """Remember what another list shows, whether or not anybody is left to be told of it."""
        if listing is None:
            return
        again = self._latest.has_same_ids(listing)
        self.seen.add(listing.statuses.keys(), asyncio.get_running_loop().time(), again=again)
        if listing.broken:
            self._warn_once("broken", "%d items of the list of videos can't be read", listing.broken)

    def _tell(self, coming: Coming, sent_at: float) -> None:
        """Tell everybody of a list; where it is the same as the last, those whom that tells something."""
        if coming.listing is not None:
            for record_id in itertools.filterfalse(coming.listing.statuses.__contains__, self._watched.ids):
                for record in self._watched.of(record_id):
                    self._hold(record)
        # Only now, and all are told in the same turn of the loop: a record and its video are of one list.
        self._latest.become(coming)
        newcomers, self._newcomers = self._newcomers, []
        # What others have told since is not in the list that this one is the same as.
        another, self._whole = coming.listing is not None or not self._whole, True
        self._latest_at = sent_at
        self._well(sent_at)
        if another:
            looked_at = list(self._watched)
        else:
            looked_at = [record for record in self._restless.union(newcomers) if record in self._watched]
        told, latest = 0, self._latest
        if latest.answer is not None and (looked_at or self._asked):
            answer, listing = latest.answer, latest.listing
            told = self._tell_some(looked_at, answer, listing, sent_at, complete=listing.complete)
            for question in self._asked:
                if not question.done():
                    question.set_result((answer, listing))
        self._emit(Polled(latest.length, told, len(self._watched)))

    def _tell_some(
        self,
        looked_at: list[Record],
        answer: protocol.Answer,
        listing: protocol.Listing,
        sent_at: float,
        *,
        complete: bool,
    ) -> int:
        """Tell of some records what a list says of them; gives how many of them have changed."""
        statuses = listing.statuses
        changed = [record for record in looked_at if self._has_news(record, statuses)]
        videos = protocol.read_some(answer, {r.record_id for r in changed}, listing, self._rules)
        latest = answer is self._latest.answer
        told = sum(
            self._present(record, videos[record.record_id], latest=latest)
            for record in changed
            if record.record_id in videos
        )
        for record in looked_at:
            if record.record_id not in statuses and record in self._watched:
                self._absent(record, sent_at, complete=complete)
        return told

    def _has_news(self, record: Record, statuses: Mapping[str, str]) -> bool:
        status = statuses.get(record.record_id)
        if status is None:
            return False
        if record.absent_since is not None:
            record.absent_since, record.absences = None, 0
            self._restless.discard(record)
        return record.status != status or record.done_since is not None

    def _tell_from_last(self, record: Record) -> None:
        if self._has_news(record, self._latest.listing.statuses):
            video = self._latest.video(record.record_id)
            if video is not None:
                self._present(record, video, latest=True)

    def _present(self, record: Record, video: Video, *, latest: bool) -> bool:
        """Tell of a record that is in a list, the latest or another's; whether there was anything to tell."""
        now = asyncio.get_running_loop().time()
        known, waited = record.kept, record.done_since
        if not self._rules.knows(video.status):
            self._warn_once(video.status, "status %r is not known; it counts as pending", video.status)
        record.done_since = None
        if video.state is JobState.DONE and video.video_url is None:
            since = now if waited is None else waited
            if now - since < URL_GRACE:
                record.done_since = since
        if record.done_since is None:
            self._restless.discard(record)
        elif record in self._watched:
            self._restless.add(record)
        same = video.status == record.status if known is None else video == known
        if same and (waited is None) == (record.done_since is None):
            return False
        record.keep(video)
        if latest and video.state is JobState.PENDING:
            record.kept = None
        if not same:
            self._emit(Updated(video))
        record.listener._changed(record)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        return True

    def _absent(self, record: Record, sent_at: float, *, complete: bool) -> None:
        """Tell of a record that is not in a list which was fetched while it was waited for."""
        self._restless.add(record)
        if record.joined > sent_at or not complete:
            return
        now = asyncio.get_running_loop().time()
        if record.absent_since is None:
            record.absent_since = sent_at
        record.absences += 1
        if record.status is None:
            absent_for = now - (record.joined if record.born is None else record.born)
            limit = self._timeouts.appear
            lost = limit is not None and absent_for >= limit
        else:
            absent_for = now - record.absent_since
            lost = absent_for >= self._timeouts.missing and record.absences >= GONE_POLLS
        if lost:
            record.listener._failed(  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
                JobLostError(
                    f"Record {record.record_id} has been missing from the list for {absent_for:.1f} s.",
                    record_ids=(record.record_id,),
                    record=self.video(record),
                    absent_for=absent_for,
                )
            )

    def _fail_all(self, error: QameraError) -> None:
        for record in list(self._watched):
            record.listener._failed(error)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        for question in (*self._questions, *self._asked):
            if not question.done():
                question.set_exception(error)

    def _warn_once(self, key: str, message: str, *args: object) -> None:
        # Bounded, since the server may think of a new word each time.
        if key not in self._warned and len(self._warned) < _WARNINGS:
            self._warned.add(key)
            _log.warning(message, *args)


class _NotNeeded(Exception):  # noqa: N818 - no error: another polls
    """A poll that was about to be sent isn't needed."""


async def _pause_after(answer: protocol.Answer) -> None:
    if len(answer.body) > _LONG:
        await asyncio.sleep(0)
