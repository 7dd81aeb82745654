"""P3: a process that is suspended after the commit of "sending" does not submit an abandoned intent.

QAMERA_FREEZES sets how often the process is stopped; the default is 20.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
from children import default_signals
from freezing_program import LEASE, Program, point_of

from qamera_async.ledger.rows import LedgerState
from qamera_async.ledger.sqlite import SqliteStorage

pytestmark = [pytest.mark.slow, pytest.mark.case(102), pytest.mark.usefixtures("no_lost_exceptions")]

PROGRAM = Path(__file__).with_name("freezing_program.py")
FREEZES = int(os.environ.get("QAMERA_FREEZES", "20"))
PATIENCE = 60.0  # seconds


class Server:
    """Accepts each POST and counts them by their image."""

    def __init__(self):
        self.posts = Counter()

    async def answer(self, reader, writer):
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            image = json.loads(await reader.readexactly(int(length.partition(b":")[2])))["imageId"]
            self.posts[image] += 1
            body = json.dumps({"createdRecordIds": [f"vid_{image}_{self.posts[image]}"]}).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # closed without a request
        finally:
            writer.close()


@asynccontextmanager
async def serve():
    """Run a server on loopback; yield it and its URL."""
    server = Server()
    async with await asyncio.start_server(server.answer, "127.0.0.1", 0) as listening:
        yield server, f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"


def start(command):
    with default_signals():
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


async def stopped(process):
    """Wait until a child has stopped; return False if it has ended."""
    async with asyncio.timeout(PATIENCE):
        _, status = await asyncio.to_thread(os.waitpid, process.pid, os.WUNTRACED)
    return os.WIFSTOPPED(status)


async def abandon(path, ref):
    """Abandon the open intent of a ref, like a user on another machine after the lease has expired."""
    storage = SqliteStorage.apart(path)
    try:
        (row,) = [
            found.row
            async for found in storage.rows(None, {LedgerState.SENDING})
            if found.row.request.ref == ref
        ]
        assert await storage.change(
            row.id, {LedgerState.SENDING}, lambda row: attrs.evolve(row, state=LedgerState.ABANDONED)
        )
    finally:
        await storage.aclose()


@pytest.mark.case(102)
async def test_frozen_submissions_are_not_doubled(path):
    """Half of the intents are abandoned and submitted by another process while the first one is suspended."""
    async with serve() as (server, url), Program(url, str(path)) as elsewhere:
        command = [sys.executable, str(PROGRAM), url, str(path), str(FREEZES)]
        process = start(command)
        try:
            for number in range(FREEZES):
                assert await stopped(process), "the program ended early"
                frozen_at = time.monotonic()
                assert server.posts[f"img_{number}"] == 0, point_of(number)
                if is_abandoned(number):
                    await abandon(str(path), f"sku-{number}")
                    assert await elsewhere.submit(number) == "receipt"
                await asyncio.sleep(frozen_at + LEASE - time.monotonic())
                os.kill(process.pid, signal.SIGCONT)
            output = await asyncio.to_thread(process.communicate, timeout=PATIENCE)
        finally:
            process.kill()
            process.wait()

    assert {image: posts for image, posts in server.posts.items() if posts != 1} == {}
    assert len(server.posts) == FREEZES
    assert output[0].split() == [
        "LedgerUnavailableError" if is_abandoned(number) else "receipt" for number in range(FREEZES)
    ]


def is_abandoned(number):
    """Return whether the test abandons an intent: half of the intents at each point."""
    return number // 2 % 2 == 0
