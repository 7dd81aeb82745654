"""What the live display costs: ``python benchmarks/display.py [--quick]``.

A batch of 10,000 jobs, all in flight at once, with a line for each outcome, on a pseudo-terminal of
100 x 30 that a process of its own reads; in turn with the same without display. Counted are the thread
that writes, and on the event loop the time in `Progress` and in queueing the lines.
"""

import asyncio
import fcntl
import os
import statistics
import struct
import subprocess
import sys
import termios
import time
from contextlib import contextmanager

from quota import KEY, server
from report import row

from qamera_async import PollPolicy, QameraSession, RateLimiter, VideoRequest
from qamera_async.cli.progress import Progress
from qamera_async.cli.screen import Screen

JOBS = 10_000
READER = "import os\nwhile os.read(0, 65536): pass"


@contextmanager
def terminal():
    """Give a file that is a terminal, whose other end is read elsewhere."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    reader = subprocess.Popen([sys.executable, "-c", READER], stdin=master, stderr=subprocess.DEVNULL)  # noqa: S603
    os.close(master)
    try:
        with os.fdopen(slave, "w", encoding="utf-8") as file:
            yield file
    finally:
        reader.wait()


class Timed:
    """Adds up the CPU seconds in calls on the loop, less what looking at the clock takes."""

    def __init__(self):
        self.spent = 0.0
        start = time.thread_time()
        for _ in range(10_000):
            time.thread_time()
        self.look = (time.thread_time() - start) / 10_000

    def __call__(self, function):
        """Give the function, watched."""

        def watched(*arguments):
            start = time.thread_time()
            try:
                return function(*arguments)
            finally:
                self.spent += time.thread_time() - start - self.look

        return watched


async def batch(screen, *, shown):
    """Run the batch; give seconds, the CPU seconds of the process, and those of the display."""
    timed, progress, drawn = Timed(), Progress(JOBS, 10**6, 0.001), []
    outcome, out = timed(progress.outcome), timed(screen.out)
    async with (
        server(job_seconds=5.0, quota=None, credits=10**9) as (url, _),
        QameraSession(
            KEY,
            base_url=url,
            rate_limiter=RateLimiter(10**6, 0.001),
            polling=PollPolicy(interval=1.0, stale_after=2.0),
            on_event=timed(progress.on_event) if shown else None,
        ) as qamera,
    ):
        start, cpu = time.perf_counter(), time.process_time()
        if shown:
            screen.live(
                timed(lambda: progress.snapshot(qamera.rate_limiter.used, qamera.rate_limiter.cooldown))
            )
        requests = (VideoRequest(f"img_{number}", ref=f"sku-{number}") for number in range(JOBS))
        async for done in qamera.batch(requests, max_in_flight=JOBS):
            done.unwrap()
            if shown:
                outcome(done)
                out(f"{done.request.ref}: {done.record.id} is done")
        screen.live(None)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    if shown:
        screen._writers[1].put(lambda: drawn.append(time.thread_time()))
        while not drawn:
            await asyncio.sleep(0.01)
    return seconds, cpu, timed.spent, sum(drawn)


async def main(quick):
    """Run it with and without in turn, and print the median."""
    shares, others = [], []
    for _ in range(1 if quick else 5):
        with terminal() as file, Screen(stdout=file, stderr=file) as screen:
            seconds, cpu, on_loop, in_thread = await batch(screen, shown=True)
        shares.append((on_loop + in_thread) / seconds)
        with terminal() as file, Screen(stdout=file, stderr=file) as screen:
            seconds_without, cpu_without, _, _ = await batch(screen, shown=False)
        others.append(cpu - cpu_without)
        print(
            f"{seconds:.1f} s: {on_loop:.3f} s on the loop, {in_thread:.3f} s in the thread; the process "
            f"took {cpu:.2f} s, without display {cpu_without:.2f} s in {seconds_without:.1f} s",
            file=sys.stderr,
        )
    share = 100 * statistics.median(shares)
    row(
        f"the display of a batch of {JOBS:,} jobs, a line for each among it",
        f"{share:.1f} % of a core (the CPU of the process differs by {statistics.median(others):+.2f} s)",
        "5 %",
        share <= 5,
    )


if __name__ == "__main__":
    asyncio.run(main("--quick" in sys.argv))
