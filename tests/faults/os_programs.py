"""Programs that run with failing system calls. Each prints its outcome as JSON.

python os_programs.py NAME '{"url": ..., "key": ..., ...}'
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import json
import os
import sys
import time
from pathlib import Path

import qamera_async as q
from qamera_async.events import Event, Submitted
from qamera_async.ledger import LedgerFile

SYSTEM = ctypes.CDLL(None)
PATIENT = q.Timeouts(connect=20.0, request=20.0, job=20.0, reconcile=0.3, close=20.0)


def let_fail(call: str, pattern: str, error: int) -> None:
    """Make a system call fail from now on for files whose path matches a pattern."""
    SYSTEM.let_fail(call.encode(), pattern.encode(), error)


def repair() -> None:
    """Let all system calls succeed again."""
    let_fail("", "", 0)


def session(asked: dict, **options: object) -> q.QameraSession:
    """Return a session that polls often."""
    settings = {
        "base_url": asked["url"],
        "rate_limiter": q.RateLimiter(10**6, 0.001),
        "polling": q.PollPolicy(interval=0.02, stale_after=0.1, max_interval=0.1),
        "retry": q.RetryPolicy(attempts=3, base=0.001, max_delay=0.01),
        "timeouts": PATIENT,
        "ledger": asked.get("ledger"),
    }
    return q.QameraSession(asked["key"], **settings | options)


async def failure(awaitable: object) -> dict:
    """Await something; return the type, text and record ids of the error it raises, as JSON values."""
    try:
        await awaitable
    except q.QameraError as error:
        receipt = getattr(error, "receipt", None)
        return {
            "type": type(error).__name__,
            "text": str(error),
            "ids": None if receipt is None else list(receipt.record_ids),
        }
    return {"type": None}


def names_in_folder_of(target: str) -> list[str]:
    """Return the names of all files in the folder of a file."""
    return sorted(path.name for path in Path(target).parent.iterdir())


async def ledger(asked: dict) -> dict:
    """Submit twice; the ledger's disk, or one file on it, fails from a step of the second submission on."""

    def break_disk() -> None:
        let_fail(asked["call"], f"{asked['ledger']}{asked.get('file', '*')}", asked["error"])

    async def submit(ref: str) -> q.Job:
        return await qamera.register_video(image_id="img", ref=ref)

    async with session(asked) as qamera:
        await submit("first")
        if asked["step"] == "claim":
            break_disk()
        else:
            original = getattr(qamera._ledger, asked["step"])

            async def broken_step(*arguments: object) -> None:
                break_disk()
                await original(*arguments)

            setattr(qamera._ledger, asked["step"], broken_step)
        told = {"error": await failure(submit("sku-1")), "failed": SYSTEM.times_failed()}
        if asked["then"] == "killed":
            print(json.dumps(told), flush=True)
            os.kill(os.getpid(), 9)
        if asked["then"] != "closed while failing":
            repair()
        if asked["then"] == "submitted again":
            if asked["step"] != "claim":
                setattr(qamera._ledger, asked["step"], original)
            told["again"] = list((await submit("sku-1")).record_ids)
    return told | {"failed in all": SYSTEM.times_failed()}


async def read_only(asked: dict) -> dict:
    """Use a ledger on a file system that is mounted read-only."""
    let_fail("open", f"{asked['ledger']}*", errno.EROFS)
    qamera = session(asked)
    told = await failure(qamera.register_video(image_id="img", ref="sku-1"))
    await qamera.aclose()
    return told | {"failed": SYSTEM.times_failed()}


async def download(asked: dict) -> dict:
    """Download a clip while its disk is full, and again when the disk has free space."""
    async with session(asked) as qamera:
        (video,) = await qamera.list_videos()
        let_fail(asked["call"], f"*{asked['file']}", asked["error"])
        told = {"error": await failure(qamera.download(video, asked["target"]))}
        told["failed"] = SYSTEM.times_failed()
        repair()
        told["left"] = names_in_folder_of(asked["target"])
        told["again"] = await failure(qamera.download(video, asked["target"]))
    return told


async def clock(asked: dict) -> dict:
    """Submit a batch, and shift the wall clock after half of its submissions."""
    events: list[Event] = []

    def shift_clock(event: Event) -> None:
        events.append(event)
        if sum(isinstance(event, Submitted) for event in events) == asked["number"] // 2:
            SYSTEM.shift_clock(asked["shift"])

    refs = [f"{asked['name']}-{number}" for number in range(asked["number"])]
    requests = [q.VideoRequest("img", ref=ref) for ref in refs]
    limiter, before = q.RateLimiter(*asked["quota"]), time.time()
    async with session(asked, rate_limiter=limiter, on_event=shift_clock) as qamera:
        first = await qamera.batch(requests)
        shifted = time.time() - before
        async with session(asked, rate_limiter=limiter) as other:
            again = await other.batch(requests)
            started = time.monotonic()
            error = await failure(other.job("vid_nowhere").wait(0.2))
            waited = time.monotonic() - started
    async with LedgerFile(asked["ledger"]) as file:
        entries = [entry async for entry in file.entries() if entry.request.ref in refs]
    return {
        "shifted": shifted,
        "done": [len(first.records), len(again.records)],
        "same": [job.record_ids for job in _jobs(first)] == [job.record_ids for job in _jobs(again)],
        "error": error["type"],
        "waited": waited,
        "in submission order": [entry.request.ref for entry in entries] == refs,
        "states": [entry.state.value for entry in entries],
    }


def _jobs(result: q.BatchResult) -> list[q.Job]:
    return [outcome.job for outcome in result.outcomes if outcome.job is not None]


if __name__ == "__main__":
    program = {f.__name__: f for f in (ledger, read_only, download, clock)}[sys.argv[1]]
    print(json.dumps(asyncio.run(program(json.loads(sys.argv[2])))))
