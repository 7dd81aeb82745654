"""The replicas of a web app: processes that share one key, and with a ledger one quota and one poll.

    python examples/replicas.py                          # 4 replicas for 15 s, on SQLite, on the sandbox
    python examples/replicas.py --kill                   # the one that polls dies in the middle
    python examples/replicas.py --database postgresql://USER@HOST/DATABASE

On the sandbox a minute takes six seconds, so that there is something to see. The database's address may come
from QAMERA_LEDGER as well, where no list of processes shows its password.

One replica by hand, in as many terminals as you like: `qamera sandbox` prints what QAMERA_BASE_URL and
QAMERA_API_KEY are to be, and QAMERA_LEDGER is the database's address, or the path of a file for all of them.

    python examples/replicas.py --replica anna --window 60
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
from bisect import bisect_right
from collections import Counter
from pathlib import Path

from qamera_async import PollPolicy, QameraError, QameraSession, RateLimiter
from qamera_async.events import Polled
from qamera_async.sandbox import Sandbox

LIMIT = 60  # requests in a window
VISITORS = 2.5  # new ones in a second, of each replica: more than the quota has room for
NAMES = ("anna", "ben", "cleo", "dan", "eve", "finn", "gita", "hugo")
TOO_MANY_REQUESTS = 429


async def replica(name: str, ledger: str, window: float, seconds: float) -> int:
    """Order for visitors who come at random moments, as a web app does, and wait with each for the video."""
    count = Counter(ordered=0, seen=0, polls=0)
    loop = asyncio.get_running_loop()

    def report() -> None:
        print(json.dumps({"name": name, **count}), flush=True)

    async def visit(qamera: QameraSession, number: int) -> None:
        try:
            job = await qamera.register_video(image_id=f"img_{number}", ref=f"{name}-{number}")
            count["ordered"] += 1
            await job
            count["seen"] += 1
        except QameraError as error:
            print(f"{name}, visitor {number}: {error}", file=sys.stderr)
        report()

    async with (
        QameraSession(
            ledger=ledger,
            rate_limiter=RateLimiter(LIMIT, window),
            polling=PollPolicy(interval=window / 20, stale_after=window / 4),
            on_event=lambda event: count.update(polls=int(isinstance(event, Polled))),
        ) as qamera,
        asyncio.TaskGroup() as visits,
    ):
        end, number = loop.time() + seconds, 0
        while loop.time() < end:
            number += 1
            visits.create_task(visit(qamera, number))
            await asyncio.sleep(random.expovariate(VISITORS))
    report()
    return 0


class Running:
    """A replica in a process of its own, and what it said last."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.said = {"ordered": 0, "seen": 0, "polls": 0}

    async def start(self, window: float, seconds: float, environment: dict[str, str]) -> None:
        """Start it."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, __file__,
            "--replica", self.name, "--window", str(window), "--seconds", str(seconds),
            env={**os.environ, **environment}, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        self._listening = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 - it is a pipe
        async for line in self._process.stdout:
            self.said = json.loads(line)

    def kill(self) -> None:
        """End it as a machine ends that loses its power."""
        print(f"kill -9 {self.name}, who has polled for all")
        self._process.send_signal(signal.SIGKILL)

    async def ended(self) -> None:
        """Wait for its end, and say how far it has come."""
        await asyncio.gather(self._process.wait(), self._listening)
        counts = ", ".join(f"{self.said[what]:3} {what}" for what in ("ordered", "seen", "polls"))
        print(f"{self.name:>6}: {counts}")


async def several(ledger: str, number: int, window: float, seconds: float, *, kill: bool) -> int:
    """Run replicas on the sandbox, and say what the server saw of them."""
    async with Sandbox(job_seconds=window / 3, credits=10**6, quota=(LIMIT, window)) as sandbox:
        settings = {
            "QAMERA_BASE_URL": sandbox.url,
            "QAMERA_API_KEY": sandbox.api_key,
            "QAMERA_LEDGER": ledger,
        }
        replicas = [Running(name) for name in NAMES[:number]]
        for each in replicas:
            await each.start(window, seconds, settings)
        if kill:
            await asyncio.sleep(seconds / 2)
            max(replicas, key=lambda each: each.said["polls"]).kill()
        for each in replicas:
            await each.ended()

        requests = [request for request in sandbox.requests if request.origin == "api"]
        at = sorted(request.at for request in requests)
        most = max(bisect_right(at, moment) - bisect_right(at, moment - window) for moment in at)
        refused = sum(request.status == TOO_MANY_REQUESTS for request in requests)
        print(f"server: {len(at)} requests, at most {most} in {window:g} s (of {LIMIT}), {refused} refused")
        async with sandbox.session(ledger=ledger) as qamera:
            left, in_doubt = await qamera.unfinished(), await qamera.ambiguous()
            await asyncio.gather(*(job.wait() for job in left))
        orders = len(sandbox.orders)
        print(f"orders: {orders}; of who died, {len(left)} are awaited now and {len(in_doubt)} are in doubt")
        known = sum(each.said["seen"] for each in replicas) + len(left) + len(in_doubt)
        return 1 if refused or known < orders else 0


def main() -> int:
    """Run one replica, or several of them; give the exit status."""
    parser = argparse.ArgumentParser(description="The replicas of a web app, which share one key.")
    parser.add_argument("--replicas", type=int, default=4, choices=range(1, len(NAMES) + 1), metavar="1-8")
    parser.add_argument("--database", default=os.environ.get("QAMERA_LEDGER"), help="a postgresql:// address")
    parser.add_argument("--seconds", type=float, default=15.0, help="for how long visitors come")
    parser.add_argument("--window", type=float, default=6.0, help="how many seconds a minute takes")
    parser.add_argument("--kill", action="store_true", help="kill one of them in the middle")
    parser.add_argument("--replica", metavar="NAME", help="be one replica, by the environment's settings")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ledger = asked.database or str(Path(folder) / "jobs.db")
        if asked.replica:
            running = replica(asked.replica, ledger, asked.window, asked.seconds)
        else:
            running = several(ledger, asked.replicas, asked.window, asked.seconds, kill=asked.kill)
        try:
            return asyncio.run(running)
        except QameraError as error:
            print(error, file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            return 130


if __name__ == "__main__":
    sys.exit(main())
