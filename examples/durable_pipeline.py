"""A catalogue that is finished whichever process dies: on DBOS, and each order once by the ledger.

python examples/durable_pipeline.py                    60 videos, one process, on SQLite, on the sandbox
python examples/durable_pipeline.py --kill             killed in the middle, and started again
python examples/durable_pipeline.py --workers 3 --database postgresql://USER@HOST/DATABASE --kill

With several workers one is killed for good, and the others take over what it has left. The database's address
may come from QAMERA_LEDGER as well, where no list of processes shows its password.

By hand, in as many terminals as you like: `qamera sandbox` prints what QAMERA_BASE_URL and QAMERA_API_KEY are
to be, and QAMERA_LEDGER is the database's address. Each worker has its own name; one of them gets the work.

python examples/durable_pipeline.py --worker anna
python examples/durable_pipeline.py --worker ben --number 60
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

from qamera_async import PollPolicy, QameraError, QameraSession, RateLimiter, VideoRequest
from qamera_async.dbos import Pipeline
from qamera_async.sandbox import Sandbox

NAMES = ("anna", "ben", "cleo", "dan", "eve")
LIMIT = 60  # requests in a window
QUICK = 6.0  # seconds that a minute takes on the sandbox here, so that there is something to see
IN_DOUBT = "AmbiguousSubmissionError"


async def work(name: str, ledger: str, clips: Path, number: int, window: float) -> int:
    """Be a worker; with a number, ask for so many videos and wait for them."""
    logging.basicConfig(level=logging.WARNING, format=f"{name}: %(message)s")
    session = QameraSession(
        ledger=ledger,
        rate_limiter=RateLimiter(LIMIT, window),
        polling=PollPolicy(interval=window / 20, stale_after=window / 4),
    )
    async with session, Pipeline(session, executor_id=name, download_to=clips, sweep_every=1.0) as pipeline:
        print(f"{name} works", flush=True)
        if not number:
            await asyncio.Event().wait()
        results = await pipeline.run_batch(
            VideoRequest(image_id=f"img_{n:03}", ref=f"sku-{n:03}") for n in range(number)
        )
        for result in results:
            if not result.ok:
                print(
                    f"{result.ref}: {result.kind}, see `qamera ledger`" if result.kind == IN_DOUBT else result
                )
        done = sum(result.ok for result in results)
        print(
            f"{done} of {number} done, {sum(result.path is not None for result in results)} clips in {clips}"
        )
        return 0 if done == number else 4


async def start(name: str, number: int, settings: dict[str, str]) -> asyncio.subprocess.Process:
    """Start a worker in a process of its own."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        __file__,
        "--worker",
        name,
        "--number",
        str(number),
        "--window",
        str(QUICK),
        env={**os.environ, **settings},
    )


async def several(ledger: str, clips: Path, workers: int, number: int, *, kill: bool) -> int:
    """Let workers make videos on the sandbox, and count what was ordered."""
    async with Sandbox(job_seconds=2.0, credits=10**6, quota=(LIMIT, QUICK)) as sandbox:
        settings = {
            "QAMERA_BASE_URL": sandbox.url,
            "QAMERA_API_KEY": sandbox.api_key,
            "QAMERA_LEDGER": ledger,
            "QAMERA_CLIPS": str(clips),
        }
        first = await start(NAMES[0], number, settings)
        others = [await start(name, 0, settings) for name in NAMES[1:workers]]
        if kill:
            while len(sandbox.orders) < number // 3:  # noqa: ASYNC110 - a server tells nobody
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.5)  # what is on the wire at that instant is in doubt, and reported so
            victim = others[0] if others else first
            print("kill -9", NAMES[1] if others else NAMES[0], flush=True)
            victim.send_signal(signal.SIGKILL)
            if victim is first:
                await first.wait()
                first = await start(NAMES[0], number, settings)
        code = await first.wait()
        for other in others:
            if other.returncode is None:
                other.terminate()
            await other.wait()
        ordered = Counter(str(order.body["imageId"]) for order in sandbox.orders)
    doubled = sum(count > 1 for count in ordered.values())
    print(f"the server took {ordered.total()} orders for {len(ordered)} images, {doubled} of them twice")
    return 1 if doubled else code


def main() -> int:
    """Be one worker, or run several; give the exit status."""
    parser = argparse.ArgumentParser(description="A catalogue that is finished whichever process dies.")
    parser.add_argument("--workers", type=int, default=1, choices=range(1, len(NAMES) + 1), metavar="1-5")
    parser.add_argument("--database", default=os.environ.get("QAMERA_LEDGER"), help="a postgresql:// address")
    parser.add_argument("--number", type=int, help="how many videos (default: 60; of a worker: none)")
    parser.add_argument("--kill", action="store_true", help="kill a worker in the middle")
    parser.add_argument("--window", type=float, default=60.0, help="how many seconds a minute takes a worker")
    parser.add_argument("--worker", metavar="NAME", help="be one worker, by the environment's settings")
    asked = parser.parse_args()
    if asked.workers > 1 and not (asked.database or "").startswith("postgres"):
        parser.error("several workers take a --database postgresql://...")
    with tempfile.TemporaryDirectory() as folder:
        ledger = asked.database or str(Path(folder) / "jobs.db")
        clips = Path(os.environ.get("QAMERA_CLIPS", "clips" if asked.worker else str(Path(folder) / "clips")))
        number = (0 if asked.worker else 60) if asked.number is None else asked.number
        if asked.worker:
            running = work(asked.worker, ledger, clips, number, asked.window)
        else:
            running = several(ledger, clips, asked.workers, number, kill=asked.kill)
        try:
            return asyncio.run(running)
        except QameraError as error:
            print(error, file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            return 130


if __name__ == "__main__":
    sys.exit(main())
