"""P5: whatever instant a process is killed at, nothing is ordered twice and nothing is forgotten.

QAMERA_SWEEPS=full kills 500 times, QAMERA_KILLS=10000 as often as it says; without them it is 25. What came
of it is printed:

    QAMERA_KILLS=10000 pytest tests/test_kill.py -k killed_at_any_instant -rP
"""

import asyncio
import json
import os
import random
import shutil
import sqlite3
import sys
import time
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from qamera_async.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")

PROGRAM = Path(__file__).with_name("catalogue.py")
KILLER = Path(__file__).with_name("killer.py")
FULL = os.environ.get("QAMERA_SWEEPS") == "full"
KILLS = int(os.environ.get("QAMERA_KILLS", "500" if FULL else "25"))
NUMBER = 120
LONGEST_LIFE = 0.5  # seconds; a catalogue that nobody kills takes about that long
HANGS = 120.0  # seconds
LANES = min(os.cpu_count() or 1, 4)


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
        sys.executable, KILLER, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=2**20
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
    """Count the requests of which an intent was being written or had been, and no end was known."""
    under_way = set()
    for line in lines:
        what, _, about = line.partition(" ")
        if what == "sending":
            under_way.add(about)
        elif what == "over":
            under_way.discard(about)
    return len(under_way)


def rows(ledger):
    connection = sqlite3.connect(ledger)
    found = connection.execute("SELECT ref, state FROM intents WHERE current = 1").fetchall()
    connection.close()
    return dict(found)


def orders_by_image(sandbox, since):
    return Counter(order.body["imageId"] for order in sandbox.orders[since:])


async def killed_again_and_again(run, ledger, kills, enough, **asked):
    """Run one catalogue, and again after each kill, until its end; count what came of it in ``kills``."""
    chance = random.Random()  # noqa: S311 - picks instants
    doubtful = 0
    async with Sandbox(job_seconds=0.1, quota=None, credits=10**9) as sandbox:
        # On the wire for a while, so that kills find requests there.
        sandbox.trouble("slow", times=10 * NUMBER, seconds=0.02)
        asked |= {"url": sandbox.url, "key": sandbox.api_key, "ledger": str(ledger), "number": NUMBER}
        while True:
            life = chance.uniform(0, LONGEST_LIFE) if kills["kills"] < enough else HANGS
            ended = await run(life=life, **asked)
            if not ended["killed"]:
                break
            assert life < HANGS
            kills["kills"] += 1
            doubtful += on_the_wire(ended["lines"])
        assert ended["code"] == 0
        ordered = orders_by_image(sandbox, 0)
    states = rows(ledger)
    ambiguous = sum(state == "ambiguous" for state in states.values())
    kills["catalogues"] += 1
    kills["orders"] += ordered.total()
    kills["doubles"] += ordered.total() - len(ordered)
    kills["ambiguous"] += ambiguous
    kills["ambiguous without a kill to blame"] += max(ambiguous - doubtful, 0)
    kills["forgotten"] += sum(
        states.get(f"sku-{n}") != "ambiguous"
        and (states.get(f"sku-{n}") != "done" or not ordered[f"img_{n}"])
        for n in range(NUMBER)
    )


async def sweep(folder, enough, **asked):
    """Kill so often, on as many lanes as there are processors; give what came of it, as numbers."""
    kills = Counter()

    async def lane(number):
        async with a_killer() as run:
            while kills["kills"] < enough:
                ledger = folder / f"jobs-{number}-{kills['catalogues']}.db"
                await killed_again_and_again(run, ledger, kills, enough, **asked)

    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number in range(LANES):
            group.create_task(lane(number))
    print(dict(kills), f"in {time.monotonic() - began:.0f} s")
    return kills


@pytest.mark.sweep
@pytest.mark.case(59)
async def test_killed_at_any_instant_nothing_is_doubled_or_forgotten(tmp_path):
    """Run again after each kill until the end, with new catalogues until there were enough kills."""
    kills = await sweep(tmp_path, KILLS)

    assert kills["kills"] >= KILLS
    assert kills["orders"] > 0
    assert (kills["doubles"], kills["forgotten"], kills["ambiguous without a kill to blame"]) == (0, 0, 0)


@pytest.mark.sweep
@pytest.mark.case(59)
async def test_without_the_intent_before_the_post_kills_do_double(tmp_path):
    """The test above can fail: it does where the intent is written after the POST."""
    kills = await sweep(tmp_path, 25, intent_after_the_post=True)

    assert kills["doubles"] > 0


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


# --- on the disk before on the wire ---------------------------------------------------------------

SYSTEM_CALLS = "trace=fdatasync,fsync,pwrite64,sendto,write,writev,sendmsg"


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
async def test_each_intent_is_synced_before_the_first_byte_of_its_post(tmp_path):
    """What the operating system saw: the intent written, the disk told to keep it, then the POST."""
    trace = tmp_path / "trace"
    async with Sandbox(job_seconds=0.05, quota=None) as sandbox:
        asked = {
            "url": sandbox.url,
            "key": sandbox.api_key,
            "ledger": str(tmp_path / "jobs.db"),
            "number": 12,
        }
        process = await asyncio.create_subprocess_exec(
            "strace", "-f", "-s", "9000", "-e", SYSTEM_CALLS, "-o", trace,
            sys.executable, PROGRAM, json.dumps(asked),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        _, err = await process.communicate()
        if process.returncode and b"ptrace" in err:
            pytest.skip("strace may not run here")
        assert process.returncode == 0, err.decode()
        keys = [order.idempotency_key for order in sandbox.orders]

    assert len(keys) == 12
    # Completed calls, in the order of their beginnings; one that is cut in two counts where it began.
    lines = trace.read_text("utf-8", "replace").splitlines()
    for key in keys:
        written = next(
            place
            for place, line in enumerate(lines)
            if "pwrite64" in line and key in line and r"\"sending\"" in line
        )
        sent = next(place for place, line in enumerate(lines) if "POST /api" in line and key in line)
        synced = [
            place
            for place, line in enumerate(lines)
            if written < place < sent and "sync" in line and "= 0" in line
        ]
        assert synced, key
