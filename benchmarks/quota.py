"""Waiting under the quota: how long, how many requests, and no 429. Everything ten times faster."""

import asyncio
import json
import statistics
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path

from report import row

from qamera_async import PollPolicy, QameraSession, RateLimiter

KEY = "mk_live_sandbox.secret"
POLLING = PollPolicy(interval=0.3, stale_after=1.5)


@asynccontextmanager
async def server(**options):
    """Run a sandbox in another process; gives its URL and a dict that is filled at the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        Path(__file__).with_name("_server.py"),
        json.dumps(options),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    counted = {}
    try:
        yield (await process.stdout.readline()).decode().strip(), counted
    finally:
        out, _ = await process.communicate(b"")
        counted.update(json.loads(out))


def session(url, **options):
    """Give a session whose budget matches the server's quota."""
    return QameraSession(KEY, base_url=url, polling=POLLING, **options)


async def burst(number, job_seconds):
    """Register and await so many at once; the seconds of each, and the server's count."""
    async with (
        server(job_seconds=job_seconds, credits=10**6, quota=[60, 6.0]) as (url, counted),
        session(url, rate_limiter=RateLimiter(60, 6.0)) as qamera,
    ):
        start = time.perf_counter()

        async def one(index):
            await (await qamera.register_video(image_id=f"img_{index}"))
            return time.perf_counter() - start

        seconds = await asyncio.gather(*(one(index) for index in range(number)))
    return sorted(seconds), counted


async def bursts(quick):
    """Measure N = 100, 56 and 30."""
    seconds, counted = await burst(100, 3.0)
    requests = counted["GET"] + 100
    met = len(seconds) == 100 and "429" not in counted and requests <= 120 and seconds[-1] <= 9.54
    row(
        "N = 100, jobs of 3 s",
        f"{len(seconds)} of 100, {counted.get('429', 0)} x 429, {requests} requests, {seconds[-1]:.2f} s "
        f"= {seconds[-1] / 9:.3f} x the limit",
        "100 of 100, no 429, 120 requests, 1.06 x 9.0 s",
        met,
    )
    seconds, counted = await burst(56, 1.0)
    median = statistics.median(seconds)
    row("N = 56, jobs of 1 s", f"median result at {median:.2f} s", "3.0 s", median <= 3)
    runs = [await burst(30, 3.0) for _ in range(1 if quick else 5)]
    last = statistics.median(seconds[-1] for seconds, _ in runs)
    most = max(counted["GET"] + 30 for _, counted in runs)
    late = sum(counted.get("429", 0) for _, counted in runs)
    row(
        "N = 30, jobs of 3 s (median of 5)",
        f"{last:.2f} s, at most {most} requests, {late} x 429",
        "3.5 s, 45 requests, no 429",
        last <= 3.5 and most <= 45 and not late,
    )


def no_429_in(counted, what):
    """Print how many of the requests were answered with 429."""
    number = sum(count for status, count in counted.items() if status != "GET")
    row(what, f"{counted.get('429', 0)} x 429 of {number}", "no 429", "429" not in counted)


async def together(number_of_sessions, each, **options):
    """Register and await in several sessions of one key at once; the server's count."""
    async with server(job_seconds=3.0, credits=10**6, quota=[60, 6.0], **options) as (url, counted):
        budget = RateLimiter(60, 6.0)

        async def some():
            async with session(url, rate_limiter=budget) as qamera:
                jobs = await asyncio.gather(*(qamera.register_video(image_id="i") for _ in range(each)))
                await asyncio.gather(*jobs)

        await asyncio.gather(*(some() for _ in range(number_of_sessions)))
    return counted


async def in_a_row(number):
    """Open and close a session so many times, with one request each; the server's count."""
    async with server(quota=[60, 6.0]) as (url, counted):
        for _ in range(number):
            async with session(url, rate_limiter=RateLimiter(60, 6.0)) as qamera:
                await qamera.list_videos()
    return counted


async def no_429(quick):
    """Measure what might provoke a 429: several sessions, short ones, a server that counts late."""
    no_429_in(await together(3, 40), "three sessions of one key, 40 jobs each")
    no_429_in(await in_a_row(70 if quick else 100), "a session opened and closed in a row")
    no_429_in(await together(1, 100, count_delay=0.3), "100 jobs, each request counted up to 0.3 s late")


async def shared_poll():
    """Measure 60 waiting jobs of 0.6 s, polls each 0.1 s, without a quota."""
    async with server(job_seconds=0.6, credits=10**6, quota=None) as (url, counted):
        budget = RateLimiter(10**6, 0.001)
        polling = PollPolicy(interval=0.1, stale_after=0.5)
        async with QameraSession(KEY, base_url=url, rate_limiter=budget, polling=polling) as qamera:
            jobs = await asyncio.gather(*(qamera.register_video(image_id="i") for _ in range(60)))
            await asyncio.gather(*jobs)
    row("60 jobs of 0.6 s, polls each 0.1 s", f"{counted['GET']} polls", "12 polls", counted["GET"] <= 12)


async def main(quick):
    """Run all rows of this table."""
    await bursts(quick)
    await no_429(quick)
    await shared_poll()
