"""What is measured in a process of its own: ``_child.py WHAT OPTIONS``; prints one line of JSON."""

import asyncio
import gc
import json
import statistics
import sys
import time
import tracemalloc
from collections import Counter

from clients import CLIENTS

PAUSE, SAMPLES = 3.0, 9  # seconds over which memory is sampled, and how often
SLICE = 6.0  # seconds over which CPU is looked at; two polls of ours by default


class Fast(asyncio.SelectorEventLoop):
    """An event loop whose clock goes ``speed`` times faster: a client's own waits are that much shorter."""

    def __init__(self, speed):
        super().__init__()
        self._speed = speed
        select = self._selector.select
        self._selector.select = lambda timeout=None: select(timeout and timeout / speed)

    def time(self):
        """Give the time, in seconds of life."""
        return time.monotonic() * self._speed


def failures(tasks):
    """Count what went wrong, by kind."""
    errors = [task.exception() for task in tasks if task.done() and not task.cancelled()]
    return Counter(type(error).__name__ for error in errors if error is not None)


async def end(tasks):
    """Cancel what still runs."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def ours(speed=1.0, *, quota=True, **policy):
    """Give the options of our session: all defaults, where time goes ``speed`` times faster."""
    from qamera_async import PollPolicy, RequestBudget, RetryPolicy  # noqa: PLC0415

    default = PollPolicy()
    policy = {
        "interval": default.interval / speed,
        "stale_after": default.stale_after / speed,
        "max_interval": default.max_interval / speed,
    } | policy
    return {
        "polling": PollPolicy(**policy),
        "budget": RequestBudget(60, 60.0 / speed) if quota else RequestBudget(10**6, 0.001),
        "retry": RetryPolicy(base=1.0 / speed, max_delay=60.0 / speed),
    }


async def jobs(url, client, number, retries, speed, limit):
    """Run so many jobs at once, at most for ``limit`` seconds; when each was had, by its id."""
    had, mine = {}, client == "qamera-async"
    async with CLIENTS[client](url, retries, **(ours(speed) if mine else {})) as open_client:

        async def one(index):
            had[await open_client.run(index)] = time.monotonic()

        start, cpu = time.monotonic(), time.process_time()
        tasks = [asyncio.ensure_future(one(index)) for index in range(number)]
        _, pending = await asyncio.wait(tasks, timeout=limit if mine else limit * speed)
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


async def waiting(url, client, number, slices, settle, *, traced):
    """Let so many jobs wait with default settings; give shares of a core, or bytes for each."""
    async with CLIENTS[client](url) as open_client:
        first = asyncio.ensure_future(open_client.wait(0))
        await asyncio.sleep(2.0)  # with the first connection, the first list and whatever is made only once
        gc.collect()
        if traced:
            tracemalloc.start()
        tasks = [asyncio.ensure_future(open_client.wait(index)) for index in range(1, number)]
        await asyncio.sleep(settle)
        samples = []
        while traced and len(samples) < SAMPLES:
            gc.collect()
            samples.append(tracemalloc.get_traced_memory()[0])
            await asyncio.sleep(PAUSE / SAMPLES)
        shares = []
        while not traced and len(shares) < slices:
            start, cpu = time.monotonic(), time.process_time()
            await asyncio.sleep(SLICE)
            shares.append((time.process_time() - cpu) / (time.monotonic() - start))
        failed = failures([first, *tasks])
        await end([first, *tasks])
    grown = statistics.median(samples) if traced else 0
    return {"bytes": grown / (number - 1), "shares": shares, "failed": failed}


async def stalls(url, polls, interval, number):
    """Look each millisecond how late the loop is; give the worst of each poll, and of times without."""
    from qamera_async import Polled, QameraSession  # noqa: PLC0415

    worst, quiet, loop = [0.0], [0.0], asyncio.get_running_loop()
    into = quiet

    def look(due):
        now = time.perf_counter()
        into[-1] = max(into[-1], now - due)
        loop.call_later(0.001, look, now + 0.001)

    def told(event):
        # Later, when what the poll caused has been seen.
        if isinstance(event, Polled):
            loop.call_later(interval / 2, worst.append, 0.0)

    options = ours(quota=False, interval=interval, stale_after=interval * 5)
    look(time.perf_counter())
    for _ in range(polls):
        quiet.append(0.0)
        await asyncio.sleep(interval)
    into = worst
    async with QameraSession("mk_live_a.bcdefgh", base_url=url, on_event=told, **options) as session:
        tasks = [asyncio.ensure_future(session.job(f"vid_{n:06d}").wait()) for n in range(number)]
        while len(worst) < polls + 4:
            await asyncio.sleep(interval)
        await end(tasks)
    # The first polls make what is made once, and the last may not be over.
    return {"worst": worst[3 : polls + 3], "quiet": quiet[1:]}


async def naive_stalls(url, polls, interval):
    """Measure the same of a bare aiohttp loop with .json()."""
    import aiohttp  # noqa: PLC0415

    worst, loop = [0.0], asyncio.get_running_loop()

    def look(due):
        now = time.perf_counter()
        worst[-1] = max(worst[-1], now - due)
        loop.call_later(0.001, look, now + 0.001)

    look(time.perf_counter())
    async with aiohttp.ClientSession() as http:
        for _ in range(polls + 1):
            async with http.get(url + "/api/external/videos") as response:
                await response.json()
            await asyncio.sleep(interval / 2)
            worst.append(0.0)
    return {"worst": worst[1:-1]}


def main():
    """Measure what is asked for."""
    what, options = sys.argv[1], json.loads(sys.argv[2])
    speed = options.get("speed", 1.0)
    work = globals()[what](**options)
    if speed == 1.0 or options.get("client") == "qamera-async":
        result = asyncio.run(work)
    else:
        with asyncio.Runner(loop_factory=lambda: Fast(speed)) as runner:
            result = runner.run(work)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
