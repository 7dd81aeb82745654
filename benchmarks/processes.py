"""The processes of a comparison: one server, and one client at a time."""

import asyncio
import json
import os
import sys
from contextlib import asynccontextmanager
from pathlib import Path

HERE = Path(__file__).parent
LINE = 64 * 2**20  # bytes that one line of JSON may take


class Server:
    """The fake server, as its parent has it."""

    def __init__(self, process, url):
        self._process = process
        self.url = url

    async def count(self):
        """Give what it has counted."""
        self._process.stdin.write(b"\n")
        return json.loads(await self._process.stdout.readline())


@asynccontextmanager
async def fake(**options):
    """Run the fake server in another process."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        HERE / "_fake.py",
        json.dumps(options),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=LINE,
    )
    try:
        port = int(await process.stdout.readline())
        yield Server(process, f"http://127.0.0.1:{port}")
    finally:
        process.kill()
        await process.wait()


async def child(what, *, within=None, **options):
    """Measure something in a process of its own; None where it isn't at an end within so many seconds."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        HERE / "_child.py",
        what,
        json.dumps(options),
        stdout=asyncio.subprocess.PIPE,
        limit=LINE,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    try:
        out, _ = await asyncio.wait_for(process.communicate(), within)
    except TimeoutError:
        return None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise RuntimeError(f"{what} of {options} ended with {process.returncode}")
    return json.loads(out)
