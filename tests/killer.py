"""A program that runs catalogues in forks of itself and kills each at its instant.

Starting an interpreter takes longer than a catalogue, and a fork has everything imported already. Each line
of its input is what a catalogue takes, as JSON, with the seconds that it has to live as "life", counted from
its start or from the line that it says "after", and with the fault of a build that is to be found as "fault".
Each is answered with a line: the lines that it said, what it logged and showed of its errors among them, its
exit code, and whether it was killed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import select
import signal
import sys
import time
import traceback

import attrs
import catalogue
from catalogue import Ledger

from qamera_async import QameraSession


class Showing(QameraSession):
    """Shows its errors in full: what a program may print of them is searched for the key."""

    async def batch(self, *args, **options):
        """Give the outcomes."""
        async for outcome in super().batch(*args, **options):
            if outcome.error is not None:
                print(*map(repr, (outcome.error, outcome.error.args, vars(outcome.error))), outcome.error)
            yield outcome


def forget_receipts(asked: dict) -> None:
    """Write no receipt down."""

    async def submitted(self, intent, receipt):
        pass

    Ledger.submitted = submitted


def mix_receipts_up(asked: dict) -> None:
    """Write the records of the receipt before down."""
    submitted, before = Ledger.submitted, []

    async def mixed_up(self, intent, receipt):
        before.append(receipt.record_ids)
        await submitted(self, intent, attrs.evolve(receipt, record_ids=before[-2:][0]))

    Ledger.submitted = mixed_up


def leak_the_key(asked: dict) -> None:
    """Write the key to the ledger, and log it."""
    submitted = Ledger.submitted

    async def leaking(self, intent, receipt):
        await submitted(self, intent, attrs.evolve(receipt, batch_id=asked["key"]))
        logging.getLogger("leak").debug("sent with %s", asked["key"])

    Ledger.submitted = leaking


FAULTS = {"forgets": forget_receipts, "mixes up": mix_receipts_up, "leaks": leak_the_key}


def run(asked: dict) -> dict:
    """Run a catalogue until its end or the end of its life."""
    reading, writing = os.pipe()
    until = time.monotonic() + asked["life"] if not asked["after"] else None
    child = os.fork()
    if not child:
        _be_the_catalogue(asked, writing)
    os.close(writing)
    said = b""
    killed = False
    while True:
        left = None if killed or until is None else max(until - time.monotonic(), 0)
        if not select.select([reading], [], [], left)[0]:
            os.kill(child, signal.SIGKILL)
            killed = True
        elif piece := os.read(reading, 65_536):
            said += piece
            if until is None and said.count(b"\n") >= asked["after"]:
                until = time.monotonic() + asked["life"]
        else:
            break
    os.close(reading)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    lines = said.decode(errors="backslashreplace").splitlines()
    return {"lines": lines, "code": code, "killed": code == -signal.SIGKILL}


def _be_the_catalogue(asked: dict, writing: int) -> None:
    os.dup2(writing, 1)
    os.dup2(writing, 2)
    try:
        logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
        catalogue.QameraSession = Showing
        if "fault" in asked:
            FAULTS[asked["fault"]](asked)
        asyncio.run(catalogue.main(asked))
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
