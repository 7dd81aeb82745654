"""P5 in PostgreSQL: whatever instant a process is killed at, nothing is ordered twice or forgotten."""

import os
import random

import postgres
import pytest
from canary import KEY
from test_kill import (
    HANGS,
    NUMBER,
    Taken,
    a_killer,
    called_ambiguous,
    complaints,
    complaints_at_the_end,
    drawn,
    kept,
    on_the_wire,
)

from qamera_async.sandbox import Sandbox

pytestmark = [pytest.mark.usefixtures("no_lost_exceptions"), pytest.mark.slow]

KILLS = 100 if os.environ.get("QAMERA_SWEEPS") == "full" else 8
SEED = int(os.environ.get("QAMERA_SEED") or random.SystemRandom().randrange(2**32))
ROWS = "SELECT id, ref, state, body FROM qamera.intents"


def rows(address):
    """Give all rows as they are now."""
    made = postgres.execute(address, "SELECT 1 FROM pg_tables WHERE schemaname = 'qamera'")
    return [kept(*columns) for columns in postgres.execute(address, ROWS)] if made else []


async def killed_again_and_again(run, chance, enough, **asked):
    """Run a catalogue, and again after each kill, until its end; give the kills and the complaints."""
    address, blamed, said, kills, killed = postgres.server().database(), set(), [], 0, True
    async with Sandbox(job_seconds=0.1, quota=None, credits=10**9, api_key=KEY) as sandbox:
        sandbox.trouble("slow", times=10 * NUMBER, seconds=0.02)
        asked = {"url": sandbox.url, "key": KEY, "ledger": address, "number": NUMBER} | asked
        while killed:
            instant = drawn(chance) if kills < enough else {"after": 0, "life": HANGS}
            ended = await run(**instant, **asked)
            killed = ended["killed"]
            kills += killed
            if killed:
                blamed |= on_the_wire(ended["lines"])
            else:
                assert ended["code"] == 0, ended["lines"][-50:]
            found = rows(address)
            taken = [
                Taken(order.body["imageId"], order.idempotency_key, order.record_ids)
                for order in sandbox.orders
            ]
            said += complaints(taken, found, blamed)
        said += complaints_at_the_end(found, called_ambiguous(ended["lines"]))
    return kills, said


async def sweep(enough, **asked):
    """Kill so often, in as many catalogues as that takes."""
    print(f"QAMERA_SEED={SEED}")
    chance, kills, said = random.Random(SEED), 0, []  # noqa: S311 - picks instants
    async with a_killer() as run:
        while True:
            more, complained = await killed_again_and_again(run, chance, enough - kills, **asked)
            kills += more
            said += complained
            if kills >= enough:
                return kills, said


async def test_killed_at_any_instant_nothing_is_doubled_or_forgotten():
    """Run again after each kill until the end; each order is a receipt then or in doubt."""
    kills, said = await sweep(KILLS)

    assert kills == KILLS
    assert said == []


async def test_a_build_without_the_receipt_is_found():
    """The test above can fail: where a receipt isn't written."""
    _, said = await sweep(0, fault="forgets")

    assert sum("sending, and no kill is to blame" in one for one in said) >= NUMBER / 2
