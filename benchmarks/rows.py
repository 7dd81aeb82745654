"""A million rows from a generator: memory grows with the server's list at most, never with the rows."""

import gc
import os
import time
from pathlib import Path

from quota import KEY, server
from report import row

from qamera_async import PollPolicy, QameraSession, RateLimiter, VideoRequest

ROWS = 1_000_000
MIB = 1024 * 1024


def resident():
    """Give the memory of this process in MiB."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


async def one(seconds, *, forgets):
    """Run the beginning of the batch; give rows, growth in MiB since a quarter of it, MiB of the list."""
    async with (
        server(job_seconds=0.05, quota=None, credits=10**12, forget_finished=forgets) as (url, _),
        QameraSession(
            KEY,
            base_url=url,
            rate_limiter=RateLimiter(10**6, 0.001),
            polling=PollPolicy(interval=0.1, stale_after=1.0),
        ) as qamera,
    ):
        requests = (VideoRequest(f"img_{number}") for number in range(ROWS))
        start, done, early = time.perf_counter(), 0, None
        async for outcome in qamera.batch(requests, max_in_flight=60):
            outcome.unwrap()
            done += 1
            passed = time.perf_counter() - start
            if early is None and passed > seconds / 4:
                early = resident()
            if passed > seconds:
                break
        (poller,) = qamera._pollers.values()
        listed = len(poller._latest.response.body) / MIB if poller._latest is not None else 0.0
        return done, resident() - early, listed


async def main(quick):
    """Run all rows of this table."""
    seconds = 4 if quick else 60
    for forgets in (True, False):
        done, grown, listed = await one(seconds, forgets=forgets)
        allowed = 4.0 if forgets else 4.0 + 4 * listed
        row(
            f"the first {seconds} s of a batch of 1,000,000 rows, 60 in flight, a server that "
            f"{'forgets' if forgets else 'keeps'} what is finished",
            f"{done:,} rows; {grown:+.1f} MiB since second {seconds // 4}, the list {listed:.1f} MiB",
            "4 MiB" if forgets else "4 MiB and 4 times the list's size",
            grown <= allowed,
        )
