"""P5: whatever instant a process is killed at, nothing is ordered twice and nothing is forgotten.

QAMERA_SWEEPS=full kills 500 times, QAMERA_KILLS=10000 as often as it says; without them it is 25. What came
of it is printed, with the seed of the instants; QAMERA_SEED draws the same ones again:

    QAMERA_KILLS=10000 pytest -m slow tests/test_kill.py -k killed_at_any_instant -rP
"""

import asyncio
import json
import os
import random
import sqlite3
import sys
import time
from collections import Counter
from contextlib import asynccontextmanager, closing
from itertools import count
from pathlib import Path

import attrs
import pytest
from canary import KEY, Search

from qamera_async.sandbox import Sandbox

pytestmark = [pytest.mark.usefixtures("no_lost_exceptions"), pytest.mark.slow]

PROGRAM = Path(__file__).with_name("catalogue.py")
KILLER = Path(__file__).with_name("killer.py")
FULL = os.environ.get("QAMERA_SWEEPS") == "full"
KILLS = int(os.environ.get("QAMERA_KILLS", "500" if FULL else "25"))
SEED = int(os.environ.get("QAMERA_SEED") or random.SystemRandom().randrange(2**32))
NUMBER = 120
LONGEST_LIFE = 0.5  # seconds; a catalogue that nobody kills takes about that long on a machine at rest
MOST_LINES = 240  # of what it says; so that kills come late in it on a busy machine, too
LAST_BREATH = 0.02  # seconds after such a line
HANGS = 120.0  # seconds
LANES = 4  # they wait more than they work


# --- what has to add up ---------------------------------------------------------------------------


@attrs.frozen
class Taken:
    """An order of the server: its image, the key that it went out with, and its records."""

    image: str
    key: str
    records: tuple[str, ...]


@attrs.frozen
class Kept:
    """A row of the ledger; ``receipt`` are the records of its receipt, None where it has none."""

    id: str
    ref: str
    image: str
    state: str
    records: tuple[str, ...] = ()
    receipt: tuple[str, ...] | None = None


def complaints(taken, rows, blamed):
    """Say what the server has and the ledger hasn't, or the other way round, in words.

    Args:
        taken: the orders.
        rows: all rows.
        blamed: the ids of the intents that were on the wire at a kill: only they may be in doubt.
    """
    by_id = {row.id: row for row in rows}
    by_key = {order.key: order for order in taken}
    times = Counter(order.image for order in taken)
    found = [f"{image}: ordered {n} times" for image, n in times.items() if n > 1]
    for order in taken:
        row = by_id.get(order.key)
        if row is None or row.image != order.image:
            found.append(f"{order.image}: forgotten, {order.key} is in no row of it")
        elif row.state not in ("submitted", "done", "sending", "ambiguous"):
            found.append(f"{order.image}: ordered, and the ledger has it as {row.state}")
    for row in rows:
        if row.ref != row.image.replace("img_", "sku-"):
            found.append(f"{row.image}: kept as {row.ref}")
        if row.state in ("submitted", "done"):
            records = by_key[row.id].records if row.id in by_key else "none"
            if not records == row.records == row.receipt:
                found.append(f"{row.image}: {row.records} and {row.receipt} are kept, ordered were {records}")
        elif row.state in ("sending", "ambiguous") and row.id not in blamed:
            found.append(f"{row.image}: {row.state}, and no kill is to blame")
    return found


def complaints_at_the_end(rows, told):
    """Say what a run that nobody killed has left undone or untold; ``told``: the refs it called ambiguous."""
    refs = Counter(row.ref for row in rows)
    expected = {f"sku-{n}" for n in range(NUMBER)}
    found = [f"{ref}: in {refs[ref]} rows" for ref in refs.keys() | expected if refs[ref] != 1]
    found += [f"{row.image}: left as {row.state}" for row in rows if row.state not in ("done", "ambiguous")]
    in_doubt = {row.ref for row in rows if row.state == "ambiguous"}
    return found + [f"{ref}: ambiguous in the ledger or for its caller, not both" for ref in in_doubt ^ told]


KEPT = [
    Kept("int_0", "sku-0", "img_0", "done", ("vid_0",), ("vid_0",)),
    Kept("int_1", "sku-1", "img_1", "submitted", ("vid_1",), ("vid_1",)),
    Kept("int_2", "sku-2", "img_2", "ambiguous"),
    Kept("int_3", "sku-3", "img_3", "sending"),
    Kept("int_4", "sku-4", "img_4", "claimed"),
]
TAKEN = [Taken(f"img_{n}", f"int_{n}", (f"vid_{n}",)) for n in range(3)]


def test_what_adds_up_is_not_complained_of():
    """A receipt of each kind, and two in doubt that were on the wire, one taken and one not."""
    assert complaints(TAKEN, KEPT, {"int_2", "int_3"}) == []


def kept_as(number, **other):
    return [*KEPT[:number], attrs.evolve(KEPT[number], **other), *KEPT[number + 1 :]]


@pytest.mark.parametrize(
    ("taken", "rows", "words"),
    [
        ([*TAKEN, Taken("img_0", "int_9", ("vid_9",))], KEPT, "img_0: ordered 2 times"),
        ([*TAKEN, Taken("img_9", "int_9", ("vid_9",))], KEPT, "img_9: forgotten"),
        (TAKEN, KEPT[1:], "img_0: forgotten"),
        ([*TAKEN, Taken("img_9", "int_3", ("vid_9",))], KEPT, "img_9: forgotten, int_3 is in no row of it"),
        (
            [*TAKEN, Taken("img_4", "int_4", ("vid_9",))],
            KEPT,
            "img_4: ordered, and the ledger has it as claimed",
        ),
        (TAKEN, kept_as(1, ref="sku-9"), "img_1: kept as sku-9"),
        (TAKEN, kept_as(1, records=("vid_0",)), "img_1: ('vid_0',) and ('vid_1',) are kept"),
        (TAKEN, kept_as(1, receipt=("vid_1", "vid_9")), "img_1: ('vid_1',) and ('vid_1', 'vid_9') are kept"),
        (TAKEN, kept_as(1, receipt=None), "img_1: ('vid_1',) and None are kept"),
        (TAKEN[1:], KEPT, "img_0: ('vid_0',) and ('vid_0',) are kept, ordered were none"),
        (TAKEN, kept_as(1, id="int_9", state="sending"), "img_1: sending, and no kill is to blame"),
        (TAKEN, kept_as(0, state="ambiguous"), "img_0: ambiguous, and no kill is to blame"),
    ],
)
def test_what_does_not_add_up_is_said(taken, rows, words):
    """Each complaint comes where its cause is."""
    assert [said for said in complaints(taken, rows, {"int_2", "int_3"}) if said.startswith(words)]


def test_what_is_undone_or_untold_at_the_end_is_said():
    """A ref in no row or in two, one neither done nor ambiguous, and one in doubt that nobody told."""
    rows = [Kept(f"int_{n}", f"sku-{n}", f"img_{n}", "done") for n in range(NUMBER)]
    doubtful = [attrs.evolve(rows[0], state="ambiguous"), *rows[1:]]

    assert complaints_at_the_end(rows, set()) == complaints_at_the_end(doubtful, {"sku-0"}) == []
    assert complaints_at_the_end(rows[1:], set()) == ["sku-0: in 0 rows"]
    assert complaints_at_the_end([*rows, rows[0]], set()) == ["sku-0: in 2 rows"]
    assert complaints_at_the_end([attrs.evolve(rows[0], state="submitted"), *rows[1:]], set()) == [
        "img_0: left as submitted"
    ]
    for one, told in ((doubtful, set()), (rows, {"sku-0"})):
        assert complaints_at_the_end(one, told) == [
            "sku-0: ambiguous in the ledger or for its caller, not both"
        ]


# --- killing --------------------------------------------------------------------------------------


async def started(sandbox, ledger, **asked):
    """Start the catalogue; its output is read by the caller."""
    arguments = {"url": sandbox.url, "key": sandbox.api_key, "ledger": str(ledger), "number": NUMBER} | asked
    return await asyncio.create_subprocess_exec(
        sys.executable,
        PROGRAM,
        json.dumps(arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


@asynccontextmanager
async def a_killer():
    """Give a function that runs a catalogue for as long as it is to live."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, KILLER, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=2**24
    )

    async def run(**asked):
        process.stdin.write(json.dumps(asked).encode() + b"\n")
        return json.loads(await process.stdout.readline())

    try:
        yield run
    finally:
        process.stdin.close()
        await process.wait()


def on_the_wire(lines):
    """Give the requests of which an intent was being written or had been, and no end was known."""
    under_way = set()
    for line in lines:
        what, _, about = line.partition(" ")
        if what == "sending":
            under_way.add(about)
        elif what == "over":
            under_way.discard(about)
    return under_way


def called_ambiguous(lines):
    """Give the refs whose outcome was that nobody knows."""
    outcomes = [line.split() for line in lines if line.startswith("outcome ")]
    return {ref for _, ref, end in outcomes if end == "AmbiguousSubmissionError"}


def rows(ledger, scratch):
    """Give all rows, read from a copy as the machine that starts again finds it: to look changes a ledger."""
    for leftover in scratch.iterdir():
        leftover.unlink()
    for name in (ledger.name, f"{ledger.name}-wal"):
        if ledger.with_name(name).exists():
            (scratch / name).write_bytes(ledger.with_name(name).read_bytes())
    if not (scratch / ledger.name).exists():
        return []
    with closing(sqlite3.connect(scratch / ledger.name)) as connection:
        found = connection.execute("SELECT id, ref, state, body FROM intents").fetchall()
    return [kept(*columns) for columns in found]


def kept(row_id, ref, state, body):
    body = json.loads(body)
    receipt = body["receipt"] and tuple(body["receipt"]["record_ids"])
    return Kept(row_id, ref, body["request"]["image_id"], state, tuple(body["record_ids"]), receipt)


def orders_by_image(sandbox, since):
    return Counter(order.body["imageId"] for order in sandbox.orders[since:])


def drawn(chance):
    """Draw an instant: some time after the start, or right after one of the lines that a catalogue says."""
    if chance.random() < 0.5:
        return {"after": 0, "life": chance.uniform(0, LONGEST_LIFE)}
    return {"after": chance.randint(1, MOST_LINES), "life": chance.uniform(0, LAST_BREATH)}


class Killing:
    """Kills on several lanes until it was often enough; what came of it is in the numbers and complaints."""

    def __init__(self, folder, enough, lanes, **asked):
        self._folder = folder
        self._enough = enough
        self._lanes = lanes
        self._asked = asked
        self._catalogues = count(1)
        self.kills = self.orders = self.ambiguous = self.doubled = 0
        self.met = False  # whether anything was left in doubt, or is wrong
        self.complaints = []
        self.search = Search({"ledger": "sku-", "output": "outcome ", "log": "debug:", "error": "Intent("})

    async def run(self):
        """Kill so often; print the numbers."""
        began = time.monotonic()
        print(f"QAMERA_SEED={SEED}")
        async with asyncio.TaskGroup() as group:
            for _ in range(self._lanes):
                group.create_task(self._lane())
        print(
            f"{self.kills} kills, {self.orders} orders, {self.doubled} of them doubles, "
            f"{self.ambiguous} left in doubt, {len(self.complaints)} complaints "
            f"in {time.monotonic() - began:.0f} s"
        )

    @property
    def _goes_on(self):
        return self.kills < self._enough or not self.met

    async def _lane(self):
        async with a_killer() as run:
            while self._goes_on:
                await self._killed_again_and_again(run, next(self._catalogues))

    async def _killed_again_and_again(self, run, number):
        """Run a catalogue, and again after each kill, until its end; compare after each."""
        chance = random.Random(f"{SEED} {number}")  # noqa: S311 - picks instants
        folder, scratch = self._folder / f"{number}", self._folder / f"{number} copied"
        folder.mkdir()
        scratch.mkdir()
        ledger, blamed = folder / "jobs.db", set()
        async with Sandbox(job_seconds=0.1, quota=None, credits=10**9, api_key=KEY) as sandbox:
            # On the wire for a while, so that kills find requests there.
            sandbox.trouble("slow", times=10 * NUMBER, seconds=0.02)
            asked = {"url": sandbox.url, "key": KEY, "ledger": str(ledger), "number": NUMBER} | self._asked
            killed = True
            while killed:
                instant = drawn(chance) if self._goes_on else {"after": 0, "life": HANGS}
                ended = await run(**instant, **asked)
                killed = ended["killed"]
                if killed:
                    assert instant["life"] < HANGS
                    self.kills += 1
                    blamed |= on_the_wire(ended["lines"])
                else:
                    assert ended["code"] == 0, ended["lines"][-50:]
                found, taken = rows(ledger, scratch), self._taken(sandbox)
                wrong = complaints(taken, found, blamed)
                if not killed:
                    wrong += complaints_at_the_end(found, called_ambiguous(ended["lines"]))
                self.complaints += [f"catalogue {number}: {one}" for one in wrong]
                self.met |= bool(wrong) or any(
                    row.id in blamed and row.state in ("sending", "ambiguous") for row in found
                )
                for place in ("output", "log", "error"):
                    self.search.look(place, "\n".join(ended["lines"]))
                self.search.look_into("ledger", folder)
            ordered = orders_by_image(sandbox, 0)
        self.orders += ordered.total()
        self.doubled += ordered.total() - len(ordered)
        self.ambiguous += sum(row.state == "ambiguous" for row in found)

    @staticmethod
    def _taken(sandbox):
        return [
            Taken(order.body["imageId"], order.idempotency_key, order.record_ids) for order in sandbox.orders
        ]


async def sweep(folder, enough, lanes=LANES, **asked):
    killing = Killing(folder, enough, lanes, **asked)
    await killing.run()
    return killing


@pytest.mark.case(59, 81)
async def test_killed_at_any_instant_nothing_is_doubled_or_forgotten(tmp_path):
    """Run again after each kill until the end; each order is a receipt then or in doubt, and no key shows."""
    killing = await sweep(tmp_path, KILLS)

    assert killing.kills >= KILLS
    assert killing.complaints == []
    assert (killing.search.found, killing.search.blind) == (set(), set())


@pytest.mark.case(59)
async def test_a_build_without_the_intent_before_the_post_is_found(tmp_path):
    """The test above can fail: where the intent is written after the POST, kills double."""
    killing = await sweep(tmp_path, 10, intent_after_the_post=True)

    assert any("ordered 2 times" in said for said in killing.complaints)
    assert any("the ledger has it as claimed" in said for said in killing.complaints)


@pytest.mark.case(59)
@pytest.mark.parametrize(
    ("fault", "words"),
    [("forgets", "sending, and no kill is to blame"), ("mixes up", "are kept, ordered were")],
)
async def test_a_build_without_the_receipt_is_found(tmp_path, fault, words):
    """The test above can fail: where a receipt isn't written, or another one is."""
    killing = await sweep(tmp_path, 1, lanes=1, fault=fault)

    assert killing.doubled == 0
    assert sum(words in said for said in killing.complaints) >= NUMBER / 2


@pytest.mark.case(81)
async def test_a_build_that_writes_the_key_is_found(tmp_path):
    """The test above can fail: the key is seen in a ledger and in a log."""
    killing = await sweep(tmp_path, 1, lanes=1, fault="leaks")

    assert killing.search.found == {"ledger", "output", "log", "error"}


async def test_the_quota_is_kept_across_restarts(tmp_path):
    """A process that starts right after another doesn't begin with an empty window."""
    async with Sandbox(job_seconds=0.05, quota=(20, 1.5), credits=10**9) as sandbox:
        for first in range(3):
            process = await started(sandbox, tmp_path / "jobs.db", number=12 * (first + 1), quota=(20, 1.5))
            out, err = await process.communicate()
            assert process.returncode == 0, err
            assert "finished" in out.decode()

        assert {request.status for request in sandbox.requests} == {200}
        assert len(sandbox.orders) == 36
