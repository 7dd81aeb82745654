"""A pipeline that continues after kill -9: DBOS restarts lost work, the ledger prevents double submissions.

python examples/durable_pipeline.py                    60 videos, one worker, SQLite, on the sandbox
python examples/durable_pipeline.py --kill             the same; the worker is killed and started again
python examples/durable_pipeline.py --workers 3 --database postgresql://USER@HOST/DATABASE --kill

Without QAMERA_API_KEY the program starts a sandbox, and nothing is paid for. With a key it uses the real API
for the images on the command line, and SPENDS CREDITS. QAMERA_LEDGER can hold the database's URL, so that no
list of processes shows its password. `--worker NAME` runs one worker, as a container does: start it again
under the same name.

QAMERA_API_KEY=... python examples/durable_pipeline.py --worker videos-0 --run 1 IMAGE_ID...
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

from dbos import DBOS, DBOSConfig, SetWorkflowID, WorkflowHandleAsync

from qamera_async import PollPolicy, QameraError, QameraSession, RateLimiter, TargetExistsError, VideoRequest
from qamera_async.download import safe_name
from qamera_async.sandbox import Sandbox

NAMES = ("anna", "ben", "cleo", "dan", "eve")
LIMIT = 60  # requests in a window
SANDBOX_WINDOW = 6.0  # seconds; the sandbox here allows 60 requests in 6 s instead of 60 s

# --- the recipe: three steps, each of which DBOS may run again after a crash ----------------------

qamera: QameraSession  # set by `run_worker`


@DBOS.step()
async def register(image_id: str) -> list[str]:
    """Submit the video once; if the step runs again, the ledger returns the same record ids."""
    job = await qamera.register(VideoRequest(image_id, ref=image_id))
    return list(job.record_ids)


@DBOS.step()
async def wait(record_ids: list[str]) -> None:
    """Wait until the video is done; running this again costs nothing."""
    await qamera.job(*record_ids).wait(timeout=None)


@DBOS.step()
async def download(record_ids: list[str], path: str) -> None:
    """Download the video; a file that exists is complete."""
    with suppress(TargetExistsError):
        await qamera.download(qamera.job(*record_ids), path)


@DBOS.workflow()
async def make_video(image_id: str, path: str) -> None:
    """Make one video from one image."""
    record_ids = await register(image_id)
    await wait(record_ids)
    await download(record_ids, path)


async def run_worker(
    session: QameraSession, database: str, name: str, run: str, videos: dict[str, str]
) -> int:
    """Work on the videos together with all workers that use the database; return how many failed."""
    global qamera  # a step gets only its arguments from DBOS, so the session is global
    DBOS(config=dbos_config(database, name))
    async with session as qamera:
        try:
            DBOS.launch()  # also continues the workflows that a worker of this name left unfinished
            await DBOS.register_queue_async("videos", worker_concurrency=20, polling_interval_sec=0.25)
            workflows = {}
            for image_id, path in videos.items():
                with SetWorkflowID(f"{run}/{image_id}"):  # a workflow id that exists starts nothing
                    workflows[image_id] = await DBOS.enqueue_workflow_async(
                        "videos", make_video, image_id, path
                    )
            return sum([await has_failed(image_id, workflow) for image_id, workflow in workflows.items()])
        finally:
            DBOS.destroy()  # before the session closes, so that an interrupted workflow stays unfinished


async def has_failed(image_id: str, workflow: WorkflowHandleAsync[None]) -> bool:
    """Wait for a workflow, wherever it runs; print its error."""
    try:
        await workflow.get_result(polling_interval_sec=0.25)
    except QameraError as error:
        print(f"{image_id}: {type(error).__name__}: {error}", file=sys.stderr)
        return True
    return False


# --- settings -------------------------------------------------------------------------------------


class Connection(sqlite3.Connection):
    """A connection with ``unixepoch('subsec')``, which DBOS needs and SQLite has only since 3.42."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - the arguments of sqlite3
        super().__init__(*args, **options)
        if sqlite3.sqlite_version_info < (3, 42):
            self.create_function("unixepoch", 1, lambda _: time.time())


def dbos_config(database: str, name: str) -> DBOSConfig:
    """Return the settings of one worker; its name must be the same when it is started again."""
    config = DBOSConfig(
        name="videos",
        system_database_url=database,
        executor_id=name,
        application_version="1",  # change it with the steps: other versions don't continue each other's work
        log_level="CRITICAL",  # the program prints the errors of its workflows itself
    )
    if database.startswith("sqlite:"):
        config["db_engine_kwargs"] = {"connect_args": {"factory": Connection}}
    return config


def dbos_database(ledger: str) -> str:
    """Return the URL of DBOS's own tables: the ledger's PostgreSQL, or a file beside the ledger's file."""
    return ledger if ledger.startswith("postgres") else f"sqlite:///{Path(ledger).with_suffix('.dbos.db')}"


def session_settings(window: float) -> dict[str, Any]:
    """Return the settings of a session for 60 requests per window; with 60 s, the defaults."""
    polling = PollPolicy(interval=window / 20, stale_after=window / 4)
    return {"rate_limiter": RateLimiter(LIMIT, window), "polling": polling}


async def worker(asked: argparse.Namespace, ledger: str, clips: Path) -> int:
    """Be one worker, with the key and the server of the environment; return the exit status."""
    session = QameraSession(ledger=ledger, **session_settings(asked.window))
    videos = {image_id: str(path) for image_id, path in paths(asked, clips).items()}
    return 4 if await run_worker(session, dbos_database(ledger), asked.worker, asked.run, videos) else 0


def paths(asked: argparse.Namespace, clips: Path) -> dict[str, Path]:
    """Return the path of the clip of each image."""
    return {image_id: clips / safe_name(image_id, ".mp4") for image_id in asked.image_ids}


def count_done(asked: argparse.Namespace, clips: Path) -> int:
    """Count the finished jobs by their clips: a file at its final name is complete."""
    return sum(path.exists() for path in paths(asked, clips).values())


# --- several workers, one of which is killed ------------------------------------------------------


async def supervise(asked: argparse.Namespace, ledger: str, clips: Path) -> int:
    """Start the workers, kill one if asked to, and print what was done; return the exit status."""
    settings = {"QAMERA_LEDGER": ledger, "QAMERA_CLIPS": str(clips)}
    async with AsyncExitStack() as stack:
        sandbox = None
        if "QAMERA_API_KEY" not in os.environ:
            sandbox = Sandbox(job_seconds=2.0, credits=10**6, quota=(LIMIT, SANDBOX_WINDOW))
            await stack.enter_async_context(sandbox)
            settings |= {"QAMERA_BASE_URL": sandbox.url, "QAMERA_API_KEY": sandbox.api_key}

        async def start(name: str, run: str = asked.run) -> asyncio.subprocess.Process:
            options = ["--worker", name, "--run", run, "--window", str(asked.window), *asked.image_ids]
            return await asyncio.create_subprocess_exec(
                sys.executable, __file__, *options, env={**os.environ, **settings}
            )

        workers = {name: await start(name) for name in NAMES[: asked.workers]}
        if asked.kill and sandbox is not None:
            name = NAMES[asked.workers - 1]
            third = len(asked.image_ids) // 3
            while workers[name].returncode is None and count_done(asked, clips) < third:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            if workers[name].returncode is None:
                workers[name].kill()
            await workers[name].wait()
            print(f"kill -9 {name} after {len(sandbox.orders)} orders; starting {name} again", flush=True)
            workers[name] = await start(name)
        codes = [await process.wait() for process in workers.values()]
        if sandbox is not None and await resolve(sandbox, ledger, asked.window):
            codes = [await (await start(NAMES[0], f"{asked.run}-resolved")).wait()]

        done = count_done(asked, clips)
        print(f"{done} of {len(asked.image_ids)} jobs done, clips in {clips}")
        once = True
        if sandbox is not None:
            orders = Counter(str(order.body["imageId"]) for order in sandbox.orders)
            doubled = sum(count > 1 for count in orders.values())
            print(f"the server saw {orders.total()} orders for {len(orders)} images, {doubled} of them twice")
            once = orders == Counter(asked.image_ids)
    return 0 if once and done == len(asked.image_ids) and not any(codes) else 1


async def resolve(sandbox: Sandbox, ledger: str, window: float) -> int:
    """Resolve ambiguous submissions by the server's list, as a person does in the Qamera app; count them."""
    made = {order.body["imageId"]: order.record_ids for order in sandbox.orders}
    async with sandbox.session(ledger=ledger, **session_settings(window)) as session:
        intents = await session.ambiguous()
        for intent in intents:
            image_id = intent.request.ref
            if image_id in made:
                await session.adopt(intent, *made[image_id])
            else:
                await session.abandon(intent)
            print(f"{image_id} was ambiguous: {'adopted' if image_id in made else 'abandoned'}")
    return len(intents)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="A pipeline that continues after kill -9.")
    parser.add_argument("image_ids", nargs="*", metavar="IMAGE_ID", help="required with a key")
    parser.add_argument("--workers", type=int, default=1, choices=range(1, len(NAMES) + 1), metavar="1-5")
    parser.add_argument("--database", default=os.environ.get("QAMERA_LEDGER"), help="a postgresql:// URL")
    parser.add_argument("--number", type=int, default=60, help="how many videos on the sandbox (default: 60)")
    parser.add_argument("--kill", action="store_true", help="kill a worker in the middle, on the sandbox")
    parser.add_argument("--window", type=float, help="length of the rate limit's window in seconds")
    parser.add_argument("--run", default="1", help="a new name starts all workflows again (default: 1)")
    parser.add_argument("--worker", metavar="NAME", help="be one worker, with the environment's key")
    asked = parser.parse_args()
    has_key = "QAMERA_API_KEY" in os.environ
    if asked.workers > 1 and not (asked.database or "").startswith("postgres"):
        parser.error("several workers need --database postgresql://...")
    if has_key and not asked.image_ids:
        parser.error("QAMERA_API_KEY is set: pass IMAGE_IDs to make videos of; this SPENDS CREDITS")
    if asked.kill and has_key:
        parser.error("--kill is for the sandbox: unset QAMERA_API_KEY")
    asked.image_ids = [*dict.fromkeys(asked.image_ids)] or [f"img_{n:03}" for n in range(asked.number)]
    asked.window = asked.window or (60.0 if has_key else SANDBOX_WINDOW)
    return asked


def main() -> int:
    """Be one worker, or start several; return the exit status."""
    asked = arguments()
    with tempfile.TemporaryDirectory() as folder:
        # On the sandbox everything is temporary; what was paid for stays in the working directory.
        place = Path() if "QAMERA_API_KEY" in os.environ else Path(folder)
        ledger = asked.database or str(place / "jobs.db")
        clips = Path(os.environ.get("QAMERA_CLIPS", place / "clips"))
        clips.mkdir(exist_ok=True)
        try:
            return asyncio.run((worker if asked.worker else supervise)(asked, ledger, clips))
        except QameraError as error:
            print(error, file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            return 130


if __name__ == "__main__":
    sys.exit(main())
