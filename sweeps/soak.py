"""Ten thousand jobs through a server in trouble: ``python sweeps/soak.py [--jobs N] [--seed N] [--ledger]``.

5 % of all requests meet a fault, 2 % of the jobs fail, a row of answers is lost at a quarter of the way, and
the server restarts halfway. Ends with 1 unless all adds up: outcomes, orders, credits, memory, tasks,
descriptors, what is logged, and that the key is in nothing that is written.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import logging
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
from _soak_account import Told, faults, image

import qamera_async as q

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from canary import KEY, Search

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVER: Final = Path(__file__).with_name("_soak_server.py")
MAY_GROW: Final = 12.0  # MiB from a quarter of the way to the end
# What is surely there, so that a search that sees nothing is not taken for one that found nothing.
KNOWN: Final = {
    "error": "Error(",
    "event": "Submitted(",
    "log": "qamera_async: ",
    "note": '"index"',
    "output": "seed",
}
BURST: Final = 12
DOWN: Final = 0.5  # seconds
QUICK: Final[dict[str, Any]] = {
    "polling": q.PollPolicy(interval=0.05, stale_after=0.5, max_interval=0.5),
    "timeouts": q.Timeouts(connect=2.0, request=1.0, job=60.0, reconcile=0.25, close=10.0),
    "retry": q.RetryPolicy(attempts=4, base=0.02, max_delay=0.2),
}


class Log(logging.Handler):
    """Searches all that is logged; keeps the errors, exceptions that reached nobody among them."""

    def __init__(self, search: Search) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        self._search = search
        self.errors: list[str] = []
        self._level = logging.getLogger().level
        logging.getLogger().addHandler(self)
        logging.getLogger().setLevel(logging.DEBUG)

    def close(self) -> None:
        """Search no more."""
        logging.getLogger().removeHandler(self)
        logging.getLogger().setLevel(self._level)
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        """Search one."""
        text = self.format(record)
        self._search.look("log", text)
        if record.levelno >= logging.ERROR:
            self.errors.append(text)


class Server:
    """The sandbox in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._one_at_a_time = asyncio.Lock()

    @classmethod
    async def start(cls, seed: int, start: int) -> tuple[Server, dict[str, str]]:
        """Give it, and where it is."""
        pipe = asyncio.subprocess.PIPE
        arguments = (sys.executable, str(SERVER), str(seed), str(start), KEY)
        self = cls(await asyncio.create_subprocess_exec(*arguments, stdin=pipe, stdout=pipe))
        return self, json.loads(await self._line())

    async def tell(self, command: str) -> None:
        """Let it obey a command, and wait until it has."""
        assert self._process.stdin is not None  # noqa: S101 - it is a pipe
        async with self._one_at_a_time:
            self._process.stdin.write(f"{command}\n".encode())
            await self._line()

    async def _line(self) -> bytes:
        assert self._process.stdout is not None  # noqa: S101 - it is a pipe
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError("the server has ended")
        return line

    async def end(self) -> None:
        """End it and wait for that."""
        assert self._process.stdin is not None  # noqa: S101 - it is a pipe
        self._process.stdin.close()
        await self._process.wait()


class Soak:
    """One run: what was told goes to a file, so that the memory of this process is the client's."""

    def __init__(self, jobs: int, server: Server, notes: Path, search: Search) -> None:
        self._jobs = jobs
        self._search = search
        self._server = server
        self._notes = notes.open("w")
        self._told = bytearray(jobs)
        self._count = 0
        self._side: list[asyncio.Task[None]] = []
        self.batches = 0
        self.at_a_quarter = 0.0

    async def run(self, session: q.QameraSession) -> None:
        """Order everything, as a user would: after a row of lost answers, what was not ordered yet."""
        with self._notes:
            while self._count < self._jobs:
                self.batches += 1
                before = self._count
                try:
                    async for outcome in session.batch(self._rest(), max_in_flight=100):
                        self._note(outcome)
                except q.AmbiguityLimitError:
                    continue
                if self._count == before:
                    raise RuntimeError(f"a batch has ended with {self._jobs - before} requests left")
            await asyncio.gather(*self._side)

    def _rest(self) -> Iterator[q.VideoRequest]:
        for index in range(self._jobs):
            if not self._told[index]:
                yield q.VideoRequest(image_id=image(index), ref=f"{index}")

    def _note(self, outcome: q.Outcome) -> None:
        self._search.look_at("error", outcome.error)
        index = int(outcome.request.ref or "")
        self._told[index] = 1
        self._count += 1
        self._notes.write(json.dumps(attrs.asdict(told(index, outcome))) + "\n")
        if self._count == self._jobs // 4:
            self.at_a_quarter = memory()
            self._side.append(asyncio.create_task(self._server.tell(f"burst {BURST}")))
        elif self._count == self._jobs // 2:
            self._side.append(asyncio.create_task(self._server.tell(f"restart {DOWN}")))


def told(index: int, outcome: q.Outcome) -> Told:
    """Give what an outcome tells."""
    error = outcome.error
    if isinstance(error, q.AmbiguousSubmissionError):
        candidates = tuple(video.id for video in error.candidates)
        return Told(index, "ambiguous", intent=error.intent.id, records=candidates)
    if outcome.job is None or outcome.job.receipt is None:
        refused = isinstance(error, q.ApiError | q.TransportError)
        return Told(index, "refused" if refused else type(error).__name__)
    end = {type(None): "done", q.JobFailedError: "failed"}.get(type(error), type(error).__name__)
    receipt = outcome.job.receipt
    return Told(
        index,
        end,
        order=receipt.order_id,
        records=receipt.record_ids,
        reserved=receipt.credits_reserved or 0,
    )


async def settle(session: q.QameraSession, saw: dict[str, Any], notes: list[Told]) -> list[str]:
    """Settle what the ledger holds as ambiguous by the server's orders; say what is wrong with it."""
    taken = {order["key"]: order["records"] for order in saw["orders"]}
    intents = await session.ambiguous()
    wrong: list[str] = []
    if {intent.id for intent in intents} != {one.intent for one in notes if one.intent is not None}:
        wrong.append(f"ledger: {len(intents)} ambiguous, not those that were told")
    for intent in intents:
        if intent.id in taken:
            await session.adopt(intent, *taken[intent.id])
        else:
            await session.abandon(intent)
    if await session.ambiguous():
        wrong.append("ledger: some are ambiguous after all were settled")
    adopted = {record for job in await session.unfinished() for record in job.record_ids}
    expected = {record for intent in intents for record in taken.get(intent.id, ())}
    if adopted != expected:
        wrong.append(f"ledger: {len(adopted)} records unfinished, {len(expected)} adopted")
    return wrong


def descriptors() -> Counter[str]:
    """Give what this process has open, sockets and pipes by their numbers."""
    found: Counter[str] = Counter()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the look itself
            found[str(descriptor.readlink())] += 1
    return found


def memory() -> float:
    """Give what this process holds, in MiB."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


async def soak(options: argparse.Namespace, folder: Path) -> list[str]:
    """Run it, print the figures, and give what does not add up."""
    start, notes, keeping = 10 * options.jobs + 1000, folder / "told", folder / "ledger"
    keeping.mkdir()
    search = Search(KNOWN | ({"ledger": image(0)} if options.ledger else {}))
    log = Log(search)
    server, where = await Server.start(options.seed, start)
    before = descriptors()
    # Stays open on purpose: closing it would let go of the locks of others in this process.
    before[str(keeping / "jobs.db-owners")] = 1
    began = time.monotonic()
    try:
        run = Soak(options.jobs, server, notes, search)
        session = q.QameraSession(
            KEY,
            base_url=where["url"],
            rate_limiter=q.RateLimiter(10_000, 1.0),
            ledger=keeping / "jobs.db" if options.ledger else None,
            on_event=lambda event: search.look("event", repr(event)),
            **QUICK,
        )
        async with session:
            await run.run(session)
            seconds, at_the_end = time.monotonic() - began, memory()
            await server.tell(f"report {folder / 'report'}")
            saw = json.loads((folder / "report").read_text())
            ended = [Told(**line | {"records": tuple(line["records"])}) for line in lines(notes)]
            wrong = faults(options.jobs, ended, saw, start)
            if options.ledger:
                wrong += await settle(session, saw, ended)
                search.look_into("ledger", keeping)
        await asyncio.sleep(0.1)  # what was closed is gone after a turn of the loop or two
        gc.collect()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        wrong += [f"a task is left: {task}" for task in left]
        after = descriptors()
        wrong += [f"a descriptor is left: {name}" for name in after - before]
    finally:
        await server.end()
        log.close()
    if options.ledger:
        search.look_into("ledger", keeping)
    search.look("note", notes.read_bytes())
    wrong += [f"logged: {message}" for message in log.errors]
    if at_the_end - run.at_a_quarter > MAY_GROW:
        wrong.append(f"memory: {run.at_a_quarter:.1f} MiB at a quarter, {at_the_end:.1f} MiB at the end")
    ends = Counter(one.end for one in ended)
    ambiguous = {one.intent: one for one in ended if one.end == "ambiguous"}
    taken = [order for order in saw["orders"] if order["key"] in ambiguous]
    shown = sum(set(order["records"]) <= set(ambiguous[order["key"]].records) for order in taken)
    figures = (
        f"seed {options.seed}{', with a ledger' if options.ledger else ''}\n"
        f"jobs            {options.jobs}: {', '.join(f'{n} {end}' for end, n in sorted(ends.items()))}\n"
        f"requests        {sum(saw['requests'].values())}: {saw['requests']}\n"
        f"faults          {sum(saw['faults'].values())}: {dict(sorted(saw['faults'].items()))}\n"
        f"orders          {len(saw['orders'])}: {len(saw['orders']) - len(taken)} with receipts, "
        f"{len(taken)} ambiguous and taken, {shown} of them among their candidates\n"
        f"credits         {start} at the start, {saw['credits']} left\n"
        f"batches         {run.batches}\n"
        f"time            {seconds:.1f} s, {options.jobs / seconds:.0f} jobs a second\n"
        f"memory          {run.at_a_quarter:.1f} MiB at a quarter, {at_the_end:.1f} MiB at the end"
    )
    print(figures)
    search.look("output", "\n".join([figures, *wrong]))
    wrong += [f"the key: it is in the {place}" for place in sorted(search.found)]
    wrong += [f"the key: nothing was seen in the {place}" for place in sorted(search.blind)]
    return wrong


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """Give what was noted, line by line."""
    with path.open() as notes:
        yield from map(json.loads, notes)


def main() -> int:
    """Give the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--ledger", action="store_true", help="keep a ledger, and settle what is ambiguous in it"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wrong = asyncio.run(soak(options, Path(folder).resolve()))
    for one in wrong[:20]:
        print("WRONG:", one)
    print(f"{len(wrong)} things do not add up" if wrong else "all adds up")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
