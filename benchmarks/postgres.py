"""A ledger in PostgreSQL: what a look, an order and a slot cost, and what a restart and four processes do.

``python benchmarks/postgres.py [--quick]``, by itself, since it takes a database: that of the tests.
"""

import asyncio
import json
import math
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psycopg

from qamera_async import PollPolicy, QameraSession, RateLimiter, VideoRequest
from qamera_async._ratelimit.window import Priority
from qamera_async.ledger.places import checked_place, ledger_at
from qamera_async.ledger.postgres import session as of_postgres
from qamera_async.sandbox import Sandbox

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import postgres as database

KEY = "mk_live_sandbox.secret"
ROWS = 1_000_000
ORIGIN = "https://api.example"
FILL = """
INSERT INTO qamera.intents (id, origin, ref, state, owner, current, body, digest)
SELECT 'old_' || n, 'URL', 'ref_' || n, CASE n % 50 WHEN 0 THEN 'refused' ELSE 'done' END, 7, 1,
convert_to(repeat('x', 900), 'UTF8'), 0 FROM generate_series(1, ROWS) AS n
"""
PROGRAM = """
import asyncio, itertools, json, sys
from qamera_async import PollPolicy, QameraSession, RateLimiter, VideoRequest
async def main():
    name, url, key, ledger, seconds = json.loads(sys.argv[1])
    async with QameraSession(
        key, base_url=url, ledger=ledger, rate_limiter=RateLimiter(60, 6.0),
        polling=PollPolicy(interval=0.3, stale_after=1.5),
    ) as qamera:
        await qamera.unfinished()
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        requests = (VideoRequest(f"{name}-{n}", ref=f"{name}-{n}") for n in itertools.count())
        async def run():
            async for outcome in qamera.batch(requests, max_in_flight=60):
                outcome.unwrap()
        try:
            await asyncio.wait_for(run(), seconds)
        except TimeoutError:
            pass
asyncio.run(main())
"""

WAITS = """
import asyncio, json, sys, time
from qamera_async import PollPolicy, QameraSession, RateLimiter
from qamera_async.events import Polled
def told(event):
    if isinstance(event, Polled):
        print("polled", time.monotonic(), flush=True)
async def main():
    url, key, ledger, ids, interval = json.loads(sys.argv[1])
    options = {"rate_limiter": RateLimiter(10**6, 0.001), "polling": PollPolicy(interval=interval)}
    async with QameraSession(key, base_url=url, ledger=ledger, on_event=told, **options) as qamera:
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        async def wait(record_id):
            await qamera.job(record_id)
            print("done", time.monotonic(), flush=True)
        await asyncio.gather(*map(wait, ids))
asyncio.run(main())
"""


class Spent:
    """How long a session's statements take, all of them together."""

    def __init__(self):
        self.seconds = 0.0
        self._kept = {name: getattr(of_postgres.Session, name) for name in ("send", "roll_back")}

    def __enter__(self):
        for name, method in self._kept.items():
            setattr(of_postgres.Session, name, self._timed(method))
        return self

    def __exit__(self, *_):
        for name, method in self._kept.items():
            setattr(of_postgres.Session, name, method)

    def _timed(self, method):
        def timed(*arguments):
            start = time.perf_counter()
            try:
                return method(*arguments)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


def row(what, measured, target, met):
    """Print one line of the table."""
    print(f"| {what} | {measured} | {target} | {'ok' if met else 'MISSED'} |", flush=True)


def session(url, ledger, **options):
    """Give a session that polls quickly."""
    return QameraSession(
        KEY,
        base_url=url,
        ledger=ledger,
        rate_limiter=RateLimiter(10**6, 0.001),
        polling=PollPolicy(interval=0.1, stale_after=0.5),
        **options,
    )


async def looks(quick):
    """Measure a look at a long ledger, and registrations in it."""
    rows = ROWS // 10 if quick else ROWS
    address = database.server().database()
    async with Sandbox(job_seconds=10**6, quota=None, credits=10**9) as sandbox:
        async with session(sandbox.url, address):
            pass
        database.execute(address, FILL.replace("URL", sandbox.url).replace("ROWS", str(rows)))
        # What filling it leaves to be written is no ledger's work.
        database.execute(address, "VACUUM ANALYZE qamera.intents", "CHECKPOINT")
        async with session(sandbox.url, address) as qamera:
            await asyncio.gather(
                *(qamera.register(VideoRequest(f"img_{n}", ref=f"new_{n}")) for n in range(100))
            )
            seconds = []
            for _ in range(21):
                start = time.perf_counter()
                found = await qamera.unfinished()
                seconds.append(time.perf_counter() - start)
            look = statistics.median(seconds) * 1000
            row(
                f"a ledger of {rows:,} rows, unfinished() that gives {len(found)}",
                f"{look:.1f} ms (the longest of 21: {max(seconds) * 1000:.1f} ms)",
                "50 ms",
                look < 50 and len(found) == 100,
            )
            spent = []
            for n in range(50):
                with Spent() as database_time:
                    await qamera.register(VideoRequest(f"img_{n}", ref=f"timed_{n}"))
                spent.append(database_time.seconds * 1000)
            cost = statistics.median(spent)
            row(
                "one registration in it, time of the database, with its slot",
                f"{cost:.2f} ms (the longest of 50: {max(spent):.2f} ms)",
                "5 ms",
                cost < 5,
            )


def commit(address):
    """Give the seconds of one row's commit, so that it is seen what the disk takes of the rest."""
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute("CREATE TABLE plain (a TEXT)")
        seconds = []
        for _ in range(100):
            start = time.perf_counter()
            connection.execute("INSERT INTO plain VALUES ('a')")
            seconds.append(time.perf_counter() - start)
            time.sleep(0.002)
    return statistics.median(seconds)


async def slots(quick):
    """Measure how long taking a slot takes, with those of others there."""
    address = database.server().database()
    ledger = ledger_at(checked_place(address), ORIGIN)
    await ledger.open()
    log, seconds = ledger.slots("account", 70.0), []
    for _ in range(100 if quick else 500):
        start = time.perf_counter()
        ticket, _ = await log.take(Priority.SUBMISSION, 60, 60.0, 4.0)
        seconds.append(time.perf_counter() - start)
        log.settle(ticket, time.monotonic() + 0.05)
        await asyncio.sleep(0.002)
    await ledger.aclose()
    median, alone = statistics.median(seconds) * 1000, commit(address) * 1000
    late = statistics.quantiles(seconds, n=100)[98] * 1000
    row(
        "a slot of a shared quota, from the database on loopback",
        f"{median:.2f} ms (the 99th of a hundred: {late:.2f} ms; one INSERT by itself: {alone:.2f} ms)",
        "3 ms",
        median < 3,
    )


async def restarts(quick):
    """Stop and start the database in the middle of batches, gently and not."""
    server = database.server()
    number = 200 if quick else 500
    for how in ("fast", "immediate"):
        address = server.database()
        async with Sandbox(job_seconds=0.3, quota=None, credits=10**9) as sandbox:
            async with session(sandbox.url, address) as qamera:
                requests = [VideoRequest(f"img_{n}", ref=f"sku-{n}") for n in range(number)]

                async def run(qamera=qamera, requests=requests):
                    return await qamera.batch(requests, max_in_flight=40)

                running = asyncio.ensure_future(run())
                while len(sandbox.orders) < number // 3:
                    await asyncio.sleep(0.001)
                await asyncio.to_thread(server.stop, how)
                before = len(sandbox.orders)
                await asyncio.sleep(1.0)
                still = len(sandbox.orders) - before
                await asyncio.to_thread(server.start)
                result = await running
            ordered = Counter(json.loads(request.body)["imageId"] for request in _posts(sandbox))
        doubled = sum(count > 1 for count in ordered.values())
        kept = dict(database.execute(address, "SELECT state, count(*) FROM qamera.intents GROUP BY state"))
        row(
            f"PostgreSQL stopped ({how}) for a second in a batch of {number}",
            f"{len(result.records)} videos, {doubled} doubled, {number - len(ordered)} not ordered, "
            f"{still} POSTs meanwhile; in the ledger {kept}",
            "all, once",
            len(result.records) == len(ordered) == number and not doubled and kept == {"done": number},
        )


def _posts(sandbox):
    return [request for request in sandbox.requests if request.method == "POST"]


async def processes(quick):
    """Let four processes share one key under pressure; count at the server."""
    seconds, address = 12.0 if quick else 30.0, database.server().database()
    async with Sandbox(job_seconds=4.0, quota=None, credits=10**9) as sandbox:
        running = [
            await asyncio.create_subprocess_exec(
                sys.executable, "-c", PROGRAM, json.dumps([name, sandbox.url, KEY, address, seconds + 1]),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            )
            for name in "abcd"
        ]  # fmt: skip
        for process in running:
            await process.stdout.readline()
        for process in running:
            process.stdin.write(b"go\n")
        await asyncio.gather(*(process.communicate() for process in running))
        requests = [request for request in sandbox.requests if request.origin == "api"]
    first = requests[0].at
    at = [request.at for request in requests]
    most = max(sum(moment <= other < moment + 6.0 for other in at) for moment in at)
    made = [request for request in requests if request.at < first + seconds]
    share = len(made) / (60 * seconds / 6.0)
    orders = Counter(json.loads(request.body)["imageId"][0] for request in made if request.method == "POST")
    fair = min(orders[name] for name in "abcd") / (orders.total() / 4)
    row(
        f"four processes, one key, 60 requests in 6 s, {seconds:.0f} s of pressure",
        f"at most {most} in any 6 s; {len(made)} requests, {share:.3f} of what the quota allows; orders "
        f"{dict(sorted(orders.items()))}, the least {fair:.2f} of its share",
        "60; 0.95; 0.5",
        most <= 60 and share >= 0.95 and fair >= 0.5,
    )


class Waiting:
    """A process that waits for some records, and says when it polls and when it has a result."""

    async def start(self, *asked):
        """Start it; it waits when it is told to."""
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", WAITS, json.dumps(asked),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        await self.process.stdout.readline()
        self.polls, self.results = [], []
        self._reading = asyncio.create_task(self._read())
        return self

    async def _read(self):
        async for line in self.process.stdout:
            kind, moment = line.split()
            (self.polls if kind == b"polled" else self.results).append(float(moment))

    async def ended(self):
        """Wait for its end."""
        await asyncio.gather(self.process.wait(), self._reading)


async def polls(quick):
    """Let four processes wait for 25 jobs each, then kill the one that polls."""
    interval, deaths = (0.5 if quick else 3.0), (1 if quick else 5)
    for kind in ("PostgreSQL", "SQLite"):
        late, made, intervals = [], 0, 0.0
        for _ in range(deaths):
            with tempfile.TemporaryDirectory() as folder:
                address = database.server().database() if kind == "PostgreSQL" else f"{folder}/jobs.db"
                async with Sandbox(job_seconds=math.inf, quota=None, credits=10**9, api_key=KEY) as sandbox:
                    async with sandbox.session() as elsewhere:
                        jobs = [await elsewhere.register_video(image_id=f"img_{n}") for n in range(100)]
                    ids = [job.record_ids[0] for job in jobs]
                    waiting = [
                        await Waiting().start(sandbox.url, KEY, address, ids[n::4], interval)
                        for n in range(4)
                    ]
                    start, before = time.monotonic(), len(sandbox.requests)
                    for each in waiting:
                        each.process.stdin.write(b"go\n")
                    while max(len(each.polls) for each in waiting) < 4:
                        await asyncio.sleep(0.01)
                    made += len(sandbox.requests) - before
                    intervals += (time.monotonic() - start) / interval
                    poller = max(waiting, key=lambda each: each.polls[-1:])
                    poller.process.kill()
                    for record_id in ids:
                        sandbox.finish(record_id)
                    done = time.monotonic()
                    await asyncio.gather(*(each.ended() for each in waiting))
                    late.append(
                        max(at for each in waiting if each is not poller for at in each.results) - done
                    )
        row(
            f"four processes that wait for 25 jobs each, {kind}, polls every {interval:g} s",
            f"{made} polls in {intervals:.1f} intervals",
            "those of one",
            made <= intervals / 0.9 + 4 * deaths,
        )
        row(
            f"the one that polls killed just after a poll, {kind}, {deaths} times",
            f"results {statistics.median(late) / interval:.2f} intervals late, at most "
            f"{max(late) / interval:.2f}",
            "1.5",
            max(late) <= 1.5 * interval,
        )


async def main(quick):
    """Run all rows of this table."""
    only = [word for word in sys.argv[1:] if not word.startswith("--")]
    for part in (looks, slots, restarts, processes, polls):
        if not only or part.__name__ in only:
            await part(quick)


if __name__ == "__main__":
    asyncio.run(main("--quick" in sys.argv))
