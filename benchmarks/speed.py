"""What the client itself costs: import, one request, one poll, one waiting job."""

import asyncio
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import tracemalloc
from functools import partial

import aiohttp
import msgspec
from quota import KEY, row, server

from qamera_async import PollPolicy, QameraSession, RequestBudget, StatusRules, Timeouts, protocol
from qamera_async.poller import Poller
from qamera_async.poller.records import Record

HELP = "import sys; sys.argv = ['qamera', '--help']; from qamera_async.cli.main import main; main()"
SUFFIX = "import qamera_async; [getattr(qamera_async, name) for name in qamera_async.__all__]"


def _import_seconds(code):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    # With bytecode written for all, as an installation has it.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    command = [sys.executable, "-c", code]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)  # noqa: S603 - our own code
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def imports(quick):
    """Measure the import of the package, and of all its names, against aiohttp's."""
    codes = {
        "nothing": "pass",
        "aiohttp": "import aiohttp",
        "package": "import qamera_async",
        "names": SUFFIX,
        "libraries": "import aiohttp, cyclopts, rich",
        "help": HELP,
    }
    seconds = {name: [] for name in codes}
    for _ in range(3 if quick else 11):
        for name, code in codes.items():
            seconds[name].append(_import_seconds(code))
    median = {name: statistics.median(values) for name, values in seconds.items()}
    base = median["aiohttp"] - median["nothing"]
    for name, what in (("package", "import qamera_async"), ("names", "the same, and every public name used")):
        ratio = (median[name] - median["nothing"]) / base
        row(f"{what}, CPU over import aiohttp", f"{ratio:.2f} x", "1.25 x", ratio <= 1.25)
    ratio = median["help"] / median["libraries"]
    row("qamera --help, CPU over import aiohttp, cyclopts, rich", f"{ratio:.2f} x", "1.5 x", ratio <= 1.5)


async def one_request(quick):
    """Measure list_videos of a small list against a raw aiohttp GET with .json()."""
    rounds, each = (3, 50) if quick else (15, 200)
    async with server(quota=None, records=10) as (url, _):
        unlimited = RequestBudget(10**6, 0.001)
        async with (
            QameraSession(KEY, base_url=url, budget=unlimited) as qamera,
            aiohttp.ClientSession(headers={"X-Api-Key": KEY}) as raw,
        ):

            async def ours():
                await qamera.list_videos()

            async def theirs():
                async with raw.get(url + protocol.VIDEOS_PATH) as response:
                    await response.json()

            ratios = []
            for _ in range(rounds):
                spent = []
                for call in (ours, theirs):
                    start = time.process_time()
                    for _ in range(each):
                        await call()
                    spent.append(time.process_time() - start)
                ratios.append(spent[0] / spent[1])
    ratio = statistics.median(ratios)
    row("list_videos() of 10, CPU over raw aiohttp", f"{ratio:.2f} x", "1.20 x", ratio <= 1.2)


class _Nobody:
    """A listener whom nothing interests."""

    def _changed(self, _):
        """Take it."""

    def _failed(self, _):
        """Take it."""


class _Item(msgspec.Struct):
    id: str
    name: str | None
    thumbnail: str | None
    videoUrl: str | None  # noqa: N815 - the wire's name
    status: str
    voting: str | None
    createdAt: str  # noqa: N815 - the wire's name


class _List(msgspec.Struct):
    videos: list[_Item]
    count: int


def _body(changed):
    return json.dumps(
        {
            "videos": [
                {
                    "id": f"vid_{n:06d}",
                    "name": f"Product Showcase - White T-Shirt {n}",
                    "thumbnail": f"https://cdn.example.com/videos/thumb_{n:06d}.jpg",
                    "videoUrl": f"https://cdn.example.com/videos/vid_{n:06d}.mp4",
                    "status": "DONE" if n in changed else "PENDING",
                    "voting": "APPROVED",
                    "createdAt": "2026-03-20T17:00:00.000Z",
                }
                for n in range(10_000)
            ],
            "count": 10_000,
        }
    ).encode()


def _milliseconds(call):
    start = time.process_time()
    call()
    return (time.process_time() - start) * 1000


async def one_poll(quick):
    """Measure what a poll of 10,000 costs once its body is read, 100 records waited for."""
    decode = msgspec.json.Decoder(_List).decode
    plain, elsewhere, some = _body(()), _body((9_000,)), _body(range(10))
    full, unchanged, changed, finished = [], [], [], []
    for _ in range(3 if quick else 21):
        poller = Poller(
            None, RequestBudget(), PollPolicy(), Timeouts(), StatusRules(), lambda _: None
        )  # nothing is sent, so it needs no transport
        poller._needed = lambda _: None
        for n in range(100):
            poller.watch(Record(f"vid_{n:06d}", _Nobody(), 0.0), 0.0)
        now = asyncio.get_running_loop().time()

        def take(answer, now, poller=poller):
            answer, listing, another = poller._latest.take(answer, now)
            poller._tell(answer, listing, now, another=another)

        take(protocol.Answer(200, {}, plain), now)
        copies = [bytes(bytearray(body)) for body in (plain, elsewhere, some)]
        full.append(_milliseconds(lambda: decode(plain)))
        for body, into in zip(copies, (unchanged, changed, finished), strict=True):
            answer = protocol.Answer(200, {}, body)
            into.append(_milliseconds(partial(take, answer, now)))
    full_, unchanged_, changed_, finished_ = map(statistics.median, (full, unchanged, changed, finished))
    reference = f"(msgspec's full typed decode: {full_:.2f} ms)"
    row("a poll of 10,000, unchanged", f"{unchanged_:.2f} ms", "1.5 ms", unchanged_ <= 1.5)
    row("changed elsewhere", f"{changed_:.2f} ms {reference}", "1.0 x + 1 ms", changed_ <= full_ + 1)
    row("some finished", f"{finished_:.2f} ms = {finished_ / full_:.2f} x", "2.0 x", finished_ <= 2 * full_)


async def one_waiter(quick):
    """Measure the memory of a waiting job, with the caller's task: attached, and registered and listed."""
    number = 1_000 if quick else 10_000
    async with server(quota=None, job_seconds=600.0, credits=10**9) as (url, _):
        unlimited = RequestBudget(10**6, 0.001)
        async with QameraSession(
            KEY, base_url=url, budget=unlimited, polling=PollPolicy(interval=1.0)
        ) as qamera:

            async def attached(index):
                return await qamera.job(f"vid_{index:06d}")

            async def registered(index):
                async with at_once:
                    job = await qamera.register_video(image_id=f"img_{index}")
                return await job

            at_once = asyncio.Semaphore(50)
            await _waiting("attached", attached, number, qamera, listed=False)
            await _waiting("registered and listed", registered, number, qamera, listed=True)


async def _waiting(what, caller, number, qamera, *, listed):
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    tasks = [asyncio.create_task(caller(n)) for n in range(number)]
    records = qamera._poller._watched
    while len(records) < number or (listed and any(r.video is None for rs in records.values() for r in rs)):
        await asyncio.sleep(0.2)
    gc.collect()
    after = tracemalloc.get_traced_memory()[0]
    # The list itself is the server's, and is there once, however many wait.
    answer, listing = qamera._poller._latest.known or (None, None)
    shared = 0 if answer is None else sys.getsizeof(answer.body) + sys.getsizeof(listing.statuses)
    tracemalloc.stop()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    each = (after - before - shared) / number
    row(
        f"{number} waiting jobs, {what}, with the callers' tasks",
        f"{each:.0f} bytes each",
        "2,500 bytes",
        each <= 2500,
    )


async def main(quick):
    """Run all rows of this table."""
    imports(quick)
    await one_request(quick)
    await one_poll(quick)
    await one_waiter(quick)
