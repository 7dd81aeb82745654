"""``video``, ``reel``, ``wait``, ``videos`` and ``download``: a few jobs at a time."""

from __future__ import annotations

import asyncio
import shlex
from typing import TYPE_CHECKING, cast

from .. import Outcome, QameraError
from ..download import safe_name
from ..events import Polled
from . import values
from .asking import agreed, say_first
from .codes import Code, gravest
from .connection import session_of, shown
from .paths import check_file, check_folder
from .progress import Progress
from .running import run

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from pathlib import Path

    from .. import Job, QameraSession, Request, Video
    from ..events import Event
    from .options import Api, Delivery, Manners
    from .plan import Plan
    from .running import Running

_DOWNLOADS = 4  # at a time


def order(make: Callable[[], Request], delivery: Delivery, api: Api, manners: Manners) -> Code:
    """Register one, once it is agreed to, wait for it, and fetch its clip where it is wanted."""
    if delivery.out is not None:
        if delivery.no_wait:
            raise ValueError("--out needs to wait: leave out --no-wait, or see qamera download later.")
        check_file("--out", delivery.out, replace=delivery.overwrite)
    request = make()
    planned: Plan | None = None

    async def prepare(running: Running) -> Code:
        nonlocal planned
        planned = await say_first(running, [request], None, api)
        return Code.DONE

    code = run(manners, prepare)
    if planned is None:
        return code
    if not agreed(planned, yes=delivery.yes):
        return Code.INTERRUPTED
    return run(manners, lambda running: _order(running, request, delivery, api))


async def _order(running: Running, request: Request, delivery: Delivery, api: Api) -> Code:
    progress = Progress(1, *api.limits)
    session = session_of(api, on_event=progress.on_event)
    async with session, shown(running, progress, session):
        job = await session.register(request)
        running.how_to_go_on = f"It is paid for: qamera wait {shlex.join(job.record_ids)}"
        if running.manners.json:
            running.screen.out(values.line("submitted", values.plain(job.receipt)))
        elif delivery.no_wait:
            running.screen.out(" ".join(job.record_ids))
        else:
            running.screen.note(f"registered: {_paid(job)}")
        if delivery.no_wait:
            return Code.DONE
        return await Settling(running, session, progress, overwrite=delivery.overwrite).one(job, delivery.out)


async def wait(running: Running, record_ids: Sequence[str], api: Api) -> Code:
    """Wait for jobs of earlier, and tell of each as it ends."""
    record_ids = tuple(dict.fromkeys(record_ids))
    progress = Progress(len(record_ids), *api.limits)
    running.how_to_go_on = "The jobs go on: run it again to wait for them."
    jobs: list[Job[Video]] = []

    def on_event(event: Event) -> None:
        progress.on_event(event)
        if isinstance(event, Polled) and jobs:
            unseen = [record_id for job in jobs if job.status is None for record_id in job.record_ids]
            jobs.clear()  # said once, after the first list
            if unseen:
                running.screen.note(f"not in the list, so far or for good: {' '.join(unseen)}")

    session = session_of(api, on_event=on_event)
    async with session, shown(running, progress, session):
        settling = Settling(running, session, progress)
        jobs += [session.job(record_id) for record_id in record_ids]
        return await _all([settling.one(job) for job in tuple(jobs)])


async def download(
    running: Running, record_ids: Sequence[str], folder: Path, api: Api, *, overwrite: bool
) -> Code:
    """Fetch the clips of jobs into a folder, each named after its record; wait for those under way."""
    check_folder("--to", folder)
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    record_ids = tuple(dict.fromkeys(record_ids))
    progress = Progress(len(record_ids), *api.limits)
    running.how_to_go_on = "Run it again for those that are missing."
    session = session_of(api, on_event=progress.on_event)
    async with session, shown(running, progress, session):
        settling = Settling(running, session, progress, overwrite=overwrite)
        return await _all(
            [
                settling.one(session.job(record_id), folder / safe_name(record_id, ".mp4"))
                for record_id in record_ids
            ]
        )


async def videos(running: Running, statuses: Sequence[str], api: Api) -> Code:
    """Show the list, or what in it has one of the statuses."""
    wanted = {status.casefold() for status in statuses}
    async with session_of(api) as session:
        listed = await session.list_videos()
    found = [video for video in listed if not wanted or video.status.casefold() in wanted]
    if running.manners.json:
        for video in found:
            running.screen.out(values.line("video", values.plain(video)))
        return Code.DONE
    headings = ("id", "status", "created (UTC)", "name", "clip")
    rows = [
        (
            video.id,
            video.status,
            "" if video.created_at is None else f"{video.created_at:%Y-%m-%d %H:%M}",
            video.name or "",
            video.video_url or "",
        )
        for video in found
    ]
    # A URL would take most of a terminal's line; who wants it pipes this, or has --json.
    shown_columns = 4 if running.screen.out_is_terminal else 5
    running.screen.table(headings[:shown_columns], [row[:shown_columns] for row in rows])
    running.screen.note(f"{len(found)} of {len(listed)} videos" if wanted else f"{len(found)} videos")
    return Code.DONE


class Settling:
    """Waits for jobs, fetches their clips where they are wanted, and tells of each.

    Args:
        running: Where it is told.
        session: Whose jobs they are.
        progress: What counts them.
        overwrite: Whether to replace files that are there.

    """

    def __init__(
        self, running: Running, session: QameraSession, progress: Progress, *, overwrite: bool = False
    ) -> None:
        self._running = running
        self._session = session
        self._progress = progress
        self._overwrite = overwrite
        self._places = asyncio.Semaphore(_DOWNLOADS)

    async def one(self, job: Job[Video], path: Path | None = None) -> Code:
        """See one job through."""
        name = " ".join(job.record_ids)
        try:
            video = await job
            if path is not None:
                async with self._places:
                    await self._fetch(video, path)
        except QameraError as error:
            self._ended(job, error)
            return self._running.report(error, name)
        self._ended(job, None)
        self._running.result(
            f"{name}  {video.status}  {video.video_url or 'no clip'}" if path is None else str(path),
            "video",
            lambda: {**values.plain(video), "path": None if path is None else str(path)},
        )
        return Code.DONE

    async def _fetch(self, video: Video, path: Path) -> None:
        try:
            await self._session.download(video, path, overwrite=self._overwrite)
        except FileExistsError:
            self._running.screen.note(f"{path} is there already and stays as it is; --overwrite replaces it.")

    def _ended(self, job: Job[Video], error: QameraError | None) -> None:
        request = cast("Request", job.request)  # one that was registered elsewhere has none
        self._progress.outcome(Outcome(0, request, job=job, error=error))


async def _all(jobs: Sequence[Coroutine[object, object, Code]]) -> Code:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(job) for job in jobs]
    return gravest([task.result() for task in tasks])


def _paid(job: Job[Video]) -> str:
    credit = None if job.receipt is None else job.receipt.credits_reserved
    ids = " ".join(job.record_ids)
    return ids if credit is None else f"{ids}, {credit} credits reserved"
