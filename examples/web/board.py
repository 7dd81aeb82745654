"""The jobs of a web app: each is ordered once, watched once, and kept in the ledger.

The board knows nothing of HTTP. `web_app.py` serves it with aiohttp, `web_app_fastapi.py` with FastAPI.
"""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self, TypeVar

from web.clips import Clips
from web.errors import BusyError, UnknownError, words_of
from web.feed import Candidate, Card, Feed, State

from qamera_async import (
    AmbiguousSubmissionError,
    JobFailedError,
    LedgerError,
    QameraError,
    QameraSession,
    Request,
    SessionClosedError,
    Video,
    VideoRequest,
)
from qamera_async.ledger import LedgerEntry, LedgerFile, LedgerState

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

    from qamera_async import Job

FORM_ID = re.compile(r"[A-Za-z0-9-]{8,64}")
"""What a form calls itself. It is the job's ref, so that the same form sent twice is one order."""

UNORDERED = {State.REFUSED, State.ABANDONED, State.LOST}
"""The states in which the same form is a new order."""

_T = TypeVar("_T")


class Board:
    """The jobs of an app; an async context manager that lives as long as the app.

    Args:
        qamera: The app's one session; it has the ledger.
        ledger: The path of that ledger.
        origin: The API's origin, as the ledger keeps it.
        clips: The folder for the clips; it must be there.
        keep: So many settled jobs are shown; older ones are in the ledger only.
        room: So many orders may wait for the quota at a time.
        patience: An order that takes longer is answered with what is known by then, in seconds.
        pause: How long after trouble with a job it is watched again, in seconds.

    """

    def __init__(
        self,
        qamera: QameraSession,
        *,
        ledger: Path,
        origin: str,
        clips: Path,
        keep: int = 200,
        room: int = 100,
        patience: float = 5.0,
        pause: float = 30.0,
    ) -> None:
        self.feed = Feed(keep)
        self._qamera = qamera
        self._ledger = ledger
        self._origin = origin
        self._clips = Clips(qamera, clips)
        self._room = room
        self._patience = patience
        self._pause = pause
        self._intents: dict[str, str] = {}  # of the ambiguous ones, by the card's id
        self._tasks: set[asyncio.Task[Any]] = set()
        self._settling = asyncio.Lock()

    async def __aenter__(self) -> Self:
        """Take up what the ledger has: unfinished jobs are watched again, doubts are looked into again."""
        async with LedgerFile(self._ledger) as file:
            async for entry in file.entries():
                if entry.current:
                    self._take_up(entry)
        if self._intents:
            self._start(self._look_again())
        return self

    async def __aexit__(self, *_: object) -> None:
        """End the pages and stop watching. The session sees to it that what is being sent gets its answer."""
        self.feed.end()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- orders -------------------------------------------------------------------------------------

    async def order(self, request: Request) -> Card:
        """Order what a form asks for, under its id; the same form again is the same job.

        Returns:
            Its card: as it is once there is a receipt, or after ``patience``.

        Raises:
            BusyError: Too many wait already.
            QameraError: As ``QameraSession.register``.

        """
        if self.feed.count(State.ORDERING) >= self._room:
            raise BusyError(f"{self._room} orders wait for the quota already: try again in a minute.")
        card_id = str(request.ref)
        before = self.feed.get(card_id)
        new = before is None or before.state in UNORDERED
        if new:
            self.feed.put(_card(card_id, request, datetime.now(UTC)))
        # A task of the board's own: when a page is closed, its handler may be cancelled, and nothing else.
        task = self._start(self._order(card_id, request, new=new))
        done, _ = await asyncio.wait({task}, timeout=self._patience)
        if done and (error := task.result()) is not None:
            raise error
        return self.feed[card_id]

    async def _order(self, card_id: str, request: Request, *, new: bool) -> QameraError | None:
        try:
            job = await self._qamera.register(request)
        except AmbiguousSubmissionError as error:
            self._doubt(card_id, error.intent.id, error.candidates, words_of(error))
            return error
        except QameraError as error:
            if new:  # else the card tells of an earlier order under that id, and stays as it is
                self.feed.change(card_id, state=State.REFUSED, why=words_of(error))
            return error
        self._watch(card_id, job)
        return None

    # --- watching -----------------------------------------------------------------------------------

    def _watch(self, card_id: str, job: Job[Video]) -> None:
        if self.feed[card_id].state in {State.PENDING, State.DONE, State.FAILED}:
            return  # it is watched already, or was
        self._intents.pop(card_id, None)
        self.feed.change(card_id, state=State.PENDING, why="", candidates=())
        self._start(self._follow(card_id, job))

    async def _follow(self, card_id: str, job: Job[Video]) -> None:
        while True:
            try:
                async for video in job.updates():
                    self.feed.change(card_id, status=video.status, why="")
                await job
            except JobFailedError as error:
                self.feed.change(card_id, state=State.FAILED, why=words_of(error))
                return
            except SessionClosedError:
                return
            except QameraError as error:
                # A key that was revoked, a record that is gone: somebody may mend it, and then this goes on.
                self.feed.change(card_id, why=words_of(error))
                await asyncio.sleep(self._pause)
            else:
                await self._fetch(card_id, job.records)
                return

    async def _fetch(self, card_id: str, videos: tuple[Video, ...]) -> None:
        # At once: the URLs may expire.
        try:
            await self._clips.fetch(card_id, videos)
        except QameraError as error:
            why = f"The clip can't be fetched. {words_of(error)}"
            self.feed.change(card_id, state=State.DONE, why=why)
        else:
            self.feed.change(card_id, state=State.DONE, clips=self._clips.of(card_id, len(videos)))

    def clip(self, card_id: str, place: int, suffix: str) -> Path:
        """Give the path of a clip (``.mp4``), or of its still (``.jpg``).

        Raises:
            UnknownError: There is no such clip.

        """
        path = self._clips.path(card_id, place, suffix)
        if place not in [clip.place for clip in self._known(card_id).clips] or not path.exists():
            raise UnknownError("There is no such clip.")
        return path

    # --- doubts -------------------------------------------------------------------------------------

    async def adopt(self, card_id: str, record_id: str) -> Card:
        """Settle an ambiguous order: this record is what came of it. Twice is as once.

        Raises:
            UnknownError: There is no such job.
            QameraError: It can't be settled so.

        """
        return await self._uncut(self._adopt(card_id, record_id))

    async def abandon(self, card_id: str) -> Card:
        """Settle an ambiguous order: nothing came of it. Twice is as once; it raises what ``adopt`` does."""
        return await self._uncut(self._abandon(card_id))

    async def look_again(self) -> None:
        """Look for what may have come of the ambiguous orders by now; one request for all of them.

        Raises:
            LedgerError: It can't be read.

        """
        await self._uncut(self._look_again())

    async def _adopt(self, card_id: str, record_id: str) -> Card:
        async with self._settling:
            if self._known(card_id).state is State.AMBIGUOUS:
                self._watch(card_id, await self._qamera.adopt(self._intents[card_id], record_id))
            elif self.feed[card_id].state in UNORDERED:
                raise LedgerError("It was settled already: nothing came of it.")
            return self.feed[card_id]

    async def _abandon(self, card_id: str) -> Card:
        async with self._settling:
            if self._known(card_id).state is State.AMBIGUOUS:
                await self._qamera.abandon(self._intents[card_id])
                del self._intents[card_id]
                self.feed.change(card_id, state=State.ABANDONED, why="", candidates=())
            elif self.feed[card_id].state not in UNORDERED:
                raise LedgerError("There is nothing in doubt: a record came of it.")
            return self.feed[card_id]

    async def _look_again(self) -> None:
        async with self._settling:
            found = {intent.id: intent.candidates for intent in await self._qamera.ambiguous()}
            for card_id, intent_id in self._intents.items():
                if intent_id in found:
                    self._doubt(card_id, intent_id, found[intent_id], self.feed[card_id].why)

    def _doubt(self, card_id: str, intent_id: str, found: tuple[Video, ...], why: str) -> None:
        self._intents[card_id] = intent_id
        choice = tuple([Candidate(video.id, video.name, video.status, video.video_url) for video in found])
        self.feed.change(card_id, state=State.AMBIGUOUS, why=why, candidates=choice)

    def _known(self, card_id: str) -> Card:
        if (card := self.feed.get(card_id)) is None:
            raise UnknownError("There is no such job.")
        return card

    # --- after a restart ----------------------------------------------------------------------------

    def _take_up(self, entry: LedgerEntry) -> None:
        ref, state = entry.request.ref, entry.state
        card_id = ref if ref is not None and FORM_ID.fullmatch(ref) else entry.id
        self.feed.put(_card(card_id, entry.request, entry.claimed_at or datetime.now(UTC)))
        status = entry.videos[0].status if entry.videos else ""
        if state is LedgerState.DONE:
            clips = self._clips.of(card_id, len(entry.videos))
            if len(clips) == len(entry.videos):
                self.feed.change(card_id, state=State.DONE, status=status, clips=clips)
            else:
                self.feed.change(card_id, state=State.PENDING, status=status)
                self._start(self._fetch(card_id, entry.videos))
        elif state is LedgerState.FAILED:
            words = ", ".join([f"{video.id} is {video.status}" for video in entry.videos])
            self.feed.change(card_id, state=State.FAILED, status=status, why=f"The job failed: {words}.")
        elif state is LedgerState.REFUSED:
            self.feed.change(card_id, state=State.REFUSED, why=entry.reason)
        elif state is LedgerState.ABANDONED:
            self.feed.change(card_id, state=State.ABANDONED)
        elif entry.origin != self._origin:
            why = f"It was ordered at {entry.origin}, and this app uses {self._origin} now."
            self.feed.change(card_id, state=State.LOST, why=why)
        elif entry.record_ids:
            self._watch(card_id, self._qamera.job(*entry.record_ids))
        elif entry.busy and ref is not None:
            # The app that was here before is still about to send it: its job is waited for.
            self._start(self._order(card_id, entry.request, new=True))
        elif state is LedgerState.CLAIMED:
            self.feed.change(card_id, state=State.REFUSED, why="The app ended before it was sent.")
        else:
            why = entry.reason or "The app ended before the answer came."
            self._doubt(card_id, entry.id, entry.candidates, why)

    # --- tasks --------------------------------------------------------------------------------------

    def _start(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        # The loop keeps no task alive by itself: whoever starts one has to.
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _uncut(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Do what a page has asked for to its end, though the page be gone."""
        return await asyncio.shield(self._start(work))


def _card(card_id: str, request: Request, at: datetime) -> Card:
    if isinstance(request, VideoRequest):
        images = (str(request.image_id or request.generated_image_id),)
        return Card(card_id, "video", images, request.suggestion or "", at.isoformat())
    return Card(card_id, "reel", request.image_ids, "", at.isoformat())
