"""A program that runs catalogues in forks of itself and kills each at its instant.

Starting an interpreter takes longer than a catalogue, and a fork has everything imported already. Each line
of its input is what a catalogue takes, as JSON, with the seconds that it has to live as "life". Each is
answered with a line: the lines that it said, its exit code, and whether it was killed.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import sys
import time
import traceback

import catalogue


def run(asked: dict) -> dict:
    """Run a catalogue until its end or the end of its life."""
    reading, writing = os.pipe()
    until = time.monotonic() + asked["life"]
    child = os.fork()
    if not child:
        _be_the_catalogue(asked, writing)
    os.close(writing)
    said = b""
    killed = False
    while True:
        left = None if killed else max(until - time.monotonic(), 0)
        if not select.select([reading], [], [], left)[0]:
            os.kill(child, signal.SIGKILL)
            killed = True
        elif piece := os.read(reading, 65_536):
            said += piece
        else:
            break
    os.close(reading)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {"lines": said.decode().splitlines(), "code": code, "killed": code == -signal.SIGKILL}


def _be_the_catalogue(asked: dict, writing: int) -> None:
    os.dup2(writing, 1)
    try:
        asyncio.run(catalogue.main(asked))
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
