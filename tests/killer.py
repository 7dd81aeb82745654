"""A program that runs catalogue.py in forks of itself and kills each fork after a given time.

A fork starts faster than an interpreter, because all modules are imported already. The program reads one JSON
object per line: the arguments of catalogue.py, "life" (the seconds until the kill), "after" (the number of
printed lines from which "life" counts; 0 for the start) and optionally "fault" (a key of FAULTS).

It prints one JSON object per run: the printed and logged lines, the exit code, and whether it was killed.
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


class PrintingSession(QameraSession):
    """A session that prints its errors in full, so that the test can search them for the key."""

    async def batch(self, *args, **options):
        """Yield the outcomes, and print their errors."""
        async for outcome in super().batch(*args, **options):
            if outcome.error is not None:
                print(*map(repr, (outcome.error, outcome.error.args, vars(outcome.error))), outcome.error)
            yield outcome


def forget_receipts(asked: dict) -> None:
    """Store no receipt."""

    async def submitted(self, intent, receipt):
        pass

    Ledger.submitted = submitted


def mix_receipts_up(asked: dict) -> None:
    """Store the record ids of the previous receipt with each receipt."""
    submitted, before = Ledger.submitted, []

    async def mixed_up(self, intent, receipt):
        before.append(receipt.record_ids)
        await submitted(self, intent, attrs.evolve(receipt, record_ids=before[-2:][0]))

    Ledger.submitted = mixed_up


def leak_the_key(asked: dict) -> None:
    """Store and log the key."""
    submitted = Ledger.submitted

    async def leaking(self, intent, receipt):
        await submitted(self, intent, attrs.evolve(receipt, batch_id=asked["key"]))
        logging.getLogger("leak").debug("sent with %s", asked["key"])

    Ledger.submitted = leaking


FAULTS = {"forgets": forget_receipts, "mixes up": mix_receipts_up, "leaks": leak_the_key}


def run(asked: dict) -> dict:
    """Run catalogue.py in a fork until it ends or is killed; return its result."""
    reading, writing = os.pipe()
    until = time.monotonic() + asked["life"] if not asked["after"] else None
    child = os.fork()
    if not child:
        _run_in_child(asked, writing)
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


def _run_in_child(asked: dict, writing: int) -> None:
    os.dup2(writing, 1)
    os.dup2(writing, 2)
    try:
        logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
        catalogue.QameraSession = PrintingSession
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
