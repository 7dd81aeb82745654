"""Runs the ``qamera`` command as a process, as a shell would."""

import asyncio
import json
import os
import sys
from pathlib import Path

import attrs
from children import start, start_ignoring_signals

SCRIPT = Path(sys.executable).with_name("qamera")
QUICK = ("--quota", "1000/1", "--interval", "0.05")
"""What a command on a sandbox is given, so that no test waits for polls."""


@attrs.frozen
class Ended:
    """How a command ended: its exit code, and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def objects(self):
        """The JSON objects on stdout; all of it has to be such lines."""
        return [json.loads(line) for line in self.out.splitlines()]


def environment(sandbox=None, **more):
    """Give an environment in which only a sandbox, if any, is known."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("QAMERA_")}
    known = {} if sandbox is None else {"QAMERA_BASE_URL": sandbox.url, "QAMERA_API_KEY": sandbox.api_key}
    return {**inherited, "TERM": "xterm-256color", **known, **more}


async def started(*arguments, sandbox=None, cwd=None, pipes=True, nohup=False, **more):
    """Start the command.

    Args:
        arguments: The command line.
        sandbox: The sandbox that the environment names; None means no sandbox.
        cwd: The working directory; None means that of the tests.
        pipes: Whether stdin, stdout and stderr are pipes.
        nohup: Whether the command is started with SIGINT and SIGHUP ignored.
        more: Further variables of the environment.

    """
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), asyncio.subprocess.PIPE) if pipes else {}
    return await (start_ignoring_signals if nohup else start)(
        SCRIPT,
        *map(str, arguments),
        env=environment(sandbox, **more),
        cwd=cwd,
        start_new_session=True,  # away from the terminal of whoever runs the tests, where it would ask
        **streams,
    )


async def qamera(*arguments, sandbox=None, stdin=b"", cwd=None, **more):
    """Run the command to its end."""
    process = await started(*arguments, sandbox=sandbox, cwd=cwd, **more)
    try:
        out, err = await asyncio.wait_for(process.communicate(stdin), 60)
    except BaseException:
        process.kill()
        await process.wait()
        raise
    return Ended(process.returncode, out.decode(), err.decode())
