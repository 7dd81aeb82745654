"""What is measured in a process of its own: ``_child.py WHAT OPTIONS``; prints one line of JSON."""

import asyncio
import gc
import itertools
import json
import statistics
import sys
import time
import tracemalloc
from collections import Counter

from clients import CLIENTS

SAMPLES = 9
NONE = (10**6, 0.001)  # as good as no quota


def hurry(speed):
    """Let each sleep take so many times less. Timeouts stay: neither CPU nor network is faster."""
    sleep = asyncio.sleep

    async def shorter(delay, result=None):
        return await sleep(delay / speed, result)

    asyncio.sleep = asyncio.tasks.sleep = shorter


def failures(tasks):
    """Count what went wrong, by kind."""
    errors = [task.exception() for task in tasks if task.done() and not task.cancelled()]
    return Counter(type(error).__name__ for error in errors if error is not None)


async def end(tasks):
    """Cancel what still runs."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def ours(speed=1.0, *, quota=(60, 60.0), **policy):
    """Give the options of our session: defaults but for the quota, where time goes ``speed`` times faster."""
    from qamera_async import PollPolicy, RateLimiter, RetryPolicy  # noqa: PLC0415

    default = PollPolicy()
    policy = {
        "interval": default.interval / speed,
        "stale_after": default.stale_after / speed,
        "max_interval": default.max_interval / speed,
    } | policy
    return {
        "polling": PollPolicy(**policy),
        "rate_limiter": RateLimiter(*quota),
        "retry": RetryPolicy(base=1.0 / speed, max_delay=60.0 / speed),
    }


async def jobs(url, client, number, retries, speed, quota, limit):
    """Run so many jobs at once, at most for ``limit`` seconds; when each was had, by its id."""
    had, mine = {}, client == "qamera-async"
    async with CLIENTS[client](url, retries, **(ours(speed, quota=quota) if mine else {})) as open_client:

        async def one(index):
            name = await open_client.run(index)
            had[name] = time.monotonic()

        start, cpu = time.monotonic(), time.process_time()
        tasks = [asyncio.ensure_future(one(index)) for index in range(number)]
        _, pending = await asyncio.wait(tasks, timeout=limit)
        seconds, cpu = time.monotonic() - start, time.process_time() - cpu
        failed = failures(tasks)
        await end(pending)
    return {
        "start": start,
        "had": had,
        "cut": len(pending),
        "failed": failed,
        "seconds": seconds,
        "cpu": cpu,
    }


async def waiting(url, client, number, settle, pause, slices, *, traced):
    """Let so many jobs wait with default settings; give shares of a core, or bytes for each."""
    async with CLIENTS[client](url) as open_client:
        first = asyncio.ensure_future(open_client.wait(0))
        await asyncio.sleep(settle / 2)  # with what is made only once: a connection, a list
        gc.collect()
        if traced:
            tracemalloc.start()
        tasks = [asyncio.ensure_future(open_client.wait(index)) for index in range(1, number)]
        await asyncio.sleep(settle)
        samples = []
        while traced and len(samples) < SAMPLES:
            gc.collect()
            samples.append(tracemalloc.get_traced_memory()[0])
            await asyncio.sleep(pause / SAMPLES)
        shares = []
        while not traced and len(shares) < slices:
            start, cpu = time.monotonic(), time.process_time()
            await asyncio.sleep(2 * pause)
            shares.append((time.process_time() - cpu) / (time.monotonic() - start))
        failed = failures([first, *tasks])
        await end([first, *tasks])
    grown = statistics.median(samples) if traced else 0
    return {"bytes": grown / (number - 1), "shares": shares, "failed": failed}


class Pulse:
    """Looks each millisecond how late the loop is.

    Late by no more than the CPU that this process spent since the last look: the rest is what other programs
    took. ``worst`` is a list of which the last item is the worst so far.
    """

    def __init__(self):
        self.worst = [0.0]
        self._loop = asyncio.get_running_loop()
        self._cpu = time.process_time()
        self._look(time.perf_counter())

    def _look(self, due):
        now, cpu = time.perf_counter(), time.process_time()
        self.worst[-1] = max(self.worst[-1], min(now - due, cpu - self._cpu))
        self._cpu = cpu
        self._loop.call_later(0.001, self._look, now + 0.001)


async def stalls(url, polls, interval, number):
    """Give the worst stall of each poll."""
    from qamera_async import QameraSession  # noqa: PLC0415
    from qamera_async.events import Polled  # noqa: PLC0415

    loop, pulse = asyncio.get_running_loop(), Pulse()

    def told(event):
        # Later, when what the poll caused has been seen.
        if isinstance(event, Polled):
            loop.call_later(interval / 2, pulse.worst.append, 0.0)

    options = ours(quota=NONE, interval=interval, stale_after=interval * 5)
    async with QameraSession("mk_live_a.bcdefgh", base_url=url, on_event=told, **options) as session:
        tasks = [asyncio.ensure_future(session.job(f"vid_{n:06d}").wait()) for n in range(number)]
        while len(pulse.worst) < polls + 4:
            await asyncio.sleep(interval)
        await end(tasks)
    # The first polls make what is made once, and the last may not be over.
    return pulse.worst[3 : polls + 3]


async def naive_stalls(url, polls, interval):
    """Give the worst stall of each poll of a bare aiohttp loop with .json()."""
    import aiohttp  # noqa: PLC0415

    pulse = Pulse()
    async with aiohttp.ClientSession() as http:
        for _ in range(polls + 1):
            async with http.get(url + "/api/external/videos") as response:
                await response.json()
            await asyncio.sleep(interval / 2)
            pulse.worst.append(0.0)
    return pulse.worst[1:-1]


async def polls(url, jobs, polls, interval):
    """Let some wait; give the CPU seconds of each poll."""
    from qamera_async.events import Polled  # noqa: PLC0415

    seen = []

    def told(event):
        if isinstance(event, Polled):
            seen.append(None)
            loop.call_later(interval / 2, lambda: seen.append(time.process_time()))

    loop = asyncio.get_running_loop()
    options = ours(quota=NONE, interval=interval, stale_after=interval * 5)
    async with CLIENTS["qamera-async"](url, on_event=told, **options) as client:
        tasks = [asyncio.ensure_future(client.wait(number)) for number in range(jobs)]
        while len(seen) < 2 * (polls + 3):
            await asyncio.sleep(interval / 4)
        await end(tasks)
    marks = [cpu for cpu in seen if cpu is not None]
    # The first polls make what is made once.
    return [after - before for before, after in itertools.pairwise(marks[1:])]


async def gets(url, polls, interval):
    """Give the CPU seconds of each GET of the list by a bare aiohttp loop with .json()."""
    spent = []
    async with CLIENTS["aiohttp, a loop for each job"](url) as client:
        for _ in range(polls + 1):
            await asyncio.sleep(interval)
            start = time.process_time()
            await client.get()
            spent.append(time.process_time() - start)
    return spent[1:]


async def whole(url, jobs):
    """Wait for so many jobs from their beginning to their end; give the CPU seconds of all of it."""
    from qamera_async.events import Polled  # noqa: PLC0415

    polled = asyncio.Event()

    def told(event):
        if isinstance(event, Polled) and event.changed:
            polled.set()

    options = ours(quota=NONE, interval=0.5, stale_after=2.5)
    async with CLIENTS["qamera-async"](url, on_event=told, **options) as client:
        await client.get()  # with the first connection, and whatever is made only once
        start = time.process_time()
        tasks = [asyncio.ensure_future(client.wait(number)) for number in range(jobs)]
        await polled.wait()
        async with CLIENTS["aiohttp, a loop for each job"](url) as other:
            await other.finish()
        await asyncio.gather(*tasks)
        return time.process_time() - start


def main():
    """Measure what is asked for."""
    what, options = sys.argv[1], json.loads(sys.argv[2])
    if options.get("client") != "qamera-async":  # which has settings for it
        hurry(options.get("speed", 1.0))
    print(json.dumps(asyncio.run(globals()[what](**options))))


if __name__ == "__main__":
    main()
