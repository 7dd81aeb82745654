"""What the ledger costs: time of the event loop for each job, and how long it holds the loop up."""

import asyncio
import statistics
import tempfile
import time
from pathlib import Path

from quota import KEY, server
from report import row

from qamera_async import PollPolicy, QameraSession, RateLimiter, VideoRequest


class Watch:
    """Looks every millisecond how late the loop is."""

    def __init__(self):
        self.stalls = []
        self._task = None

    async def __aenter__(self):
        self._task = asyncio.create_task(self._look())
        return self

    async def __aexit__(self, *_):
        self._task.cancel()

    async def _look(self):
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            self.stalls.append(time.perf_counter() - before - 0.001)

    @property
    def p99(self):
        """The stall that one look in a hundred exceeds, in milliseconds."""
        return statistics.quantiles(self.stalls, n=100)[98] * 1000


async def jobs(number, ledger):
    """Run a batch of so many; give CPU milliseconds of the loop's thread for each, and the p99 stall."""
    async with (
        server(job_seconds=0.2, quota=None, credits=10**9) as (url, _),
        QameraSession(
            KEY,
            base_url=url,
            ledger=ledger,
            rate_limiter=RateLimiter(10**6, 0.001),
            polling=PollPolicy(interval=0.3, stale_after=1.5),
        ) as qamera,
    ):
        requests = [VideoRequest(f"img_{index}", ref=f"sku-{index}") for index in range(number)]
        async with Watch() as watch:
            start = time.thread_time()
            result = await qamera.batch(requests)
            spent = time.thread_time() - start
        if len(result.records) != number:
            raise RuntimeError(result.summary())
    return spent / number * 1000, watch.p99


async def main(quick):
    """Run all rows of this table."""
    number, rounds = (100, 1) if quick else (500, 5)
    extra, without, stalls, plain_stalls = [], [], [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            plain, base = await jobs(number, None)
            kept, stall = await jobs(number, Path(folder) / "jobs.db")
        extra.append(kept - plain)
        without.append(plain)
        stalls.append(stall)
        plain_stalls.append(base)
    cost, worst = statistics.median(extra), statistics.median(stalls)
    row(
        "the ledger, event-loop time for each job",
        f"{cost:.2f} ms more (without it: {statistics.median(without):.2f} ms)",
        "1 ms",
        cost <= 1,
    )
    row(
        "the ledger, p99 stall of the event loop in a batch without a quota",
        f"{worst:.2f} ms (without it: {statistics.median(plain_stalls):.2f} ms)",
        "10 ms",
        worst <= 10,
    )
