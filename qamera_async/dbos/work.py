"""The workflows: what they do is in steps, each of which may be run again because of the ledger."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import attrs
from dbos import DBOS, SetWorkflowID, WorkflowHandleAsync

from ..errors import LedgerUnavailableError, QameraError, SessionClosedError, TransportError
from ..ledger.rows import request_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .._config import RetryPolicy
    from .._models import Request
    from .._session import QameraSession
    from .result import Said

ORDERS, BATCHES = "qamera.orders", "qamera.batches"
"""The queues; a batch waits in one of its own, so that it keeps no place from what it waits for."""
INTERVAL = 0.25
"""Between looks at a queue, and for a result, in seconds."""
ORDER, BATCH = "qamera.order", "qamera.batch"
"""The workflows' names, which what is under way is found again by."""


@attrs.define(eq=False)
class Running:
    """The pipeline that is open in this process: DBOS allows for one.

    Args:
        session: What orders, waits and downloads.
        retry: How long to pause while the server or the ledger can't be reached.
    """

    session: QameraSession
    retry: RetryPolicy
    closing: bool = False
    tasks: set[asyncio.Task[object]] = attrs.field(factory=set[asyncio.Task[object]])

    def stop(self) -> None:
        """Let nothing go on; what is under way stays so, for whoever comes next."""
        self.closing = True
        for task in self.tasks:
            task.cancel()


_running: Running | None = None


def run_with(running: Running | None) -> None:
    """From now on let the steps work with this pipeline; None: with none."""
    global _running  # noqa: PLW0603 - a step has no other way to what is open
    _running = running


def is_running() -> bool:
    """Tell whether a pipeline is open in this process."""
    return _running is not None


async def _step(request: str, act: Callable[[Running, Request], Awaitable[Said]]) -> Said:
    """Do something of a step for a request; what can't be done at all is said, not raised."""
    running = _running
    if running is None or running.closing:
        raise asyncio.CancelledError  # DBOS keeps nothing of it, and it is run again
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - a step is run by one
    running.tasks.add(task)
    delays = running.retry.delays()
    try:
        while True:
            try:
                return await act(running, request_of(request))
            except SessionClosedError:
                raise asyncio.CancelledError from None
            except LedgerUnavailableError as error:
                if error.receipt is not None:
                    return {"record_ids": list(error.receipt.record_ids)}
            except TransportError as error:
                # What may have been sent is ambiguous instead, so this one may be tried again.
                if error.permanent:
                    return _failure(error)
            except QameraError as error:
                return _failure(error)
            await asyncio.sleep(next(delays))
    finally:
        running.tasks.discard(task)


def _failure(error: QameraError) -> Said:
    said: Said = {"kind": type(error).__name__, "error": str(error)}
    if record_ids := getattr(error, "record_ids", ()):
        said["record_ids"] = list(record_ids)
    return said


@DBOS.step(name="qamera.register")
async def _register(request: str) -> Said:
    async def act(running: Running, asked: Request) -> Said:
        job = await running.session.register(asked)
        return {"record_ids": list(job.record_ids)}

    return await _step(request, act)


@DBOS.step(name="qamera.wait")
async def _wait(request: str) -> Said:
    async def act(running: Running, asked: Request) -> Said:
        # The ledger has it, so this sends nothing; and what it has seen finished costs no poll.
        job = await running.session.register(asked)
        video = await job
        return {"record_ids": list(job.record_ids), "video_url": video.video_url}

    return await _step(request, act)


@DBOS.step(name="qamera.download")
async def _download(request: str, folder: str) -> Said:
    async def act(running: Running, asked: Request) -> Said:
        (outcome,) = (await running.session.batch([asked], download_to=folder)).outcomes
        video = outcome.unwrap()
        assert outcome.job is not None  # noqa: S101 - what is done has one
        return {
            "record_ids": list(outcome.job.record_ids),
            "video_url": video.video_url,
            "path": None if outcome.path is None else str(outcome.path),
        }

    return await _step(request, act)


@DBOS.workflow(name=ORDER)
async def order(request: str, folder: str | None) -> Said:
    """Order one request, wait for it, and fetch its clip where there is a folder for it."""
    said = await _register(request)
    if "kind" not in said:
        said = await _wait(request)
    if "kind" not in said and folder is not None:
        said = await _download(request, folder)
    return said


@DBOS.workflow(name=BATCH)
async def batch(requests: dict[str, str], folder: str | None) -> dict[str, Said]:
    """Order many, each as a workflow of its own on the queue.

    Args:
        requests: each by the id of its workflow.
        folder: where the clips go; None: nowhere.
    """
    handles: dict[str, WorkflowHandleAsync[Said]] = {}
    for workflow_id, request in requests.items():
        with SetWorkflowID(workflow_id):
            handles[workflow_id] = await DBOS.enqueue_workflow_async(ORDERS, order, request, folder)
    return {
        workflow_id: await handle.get_result(polling_interval_sec=INTERVAL)
        for workflow_id, handle in handles.items()
    }
