"""Runs programs that can make their own system calls fail and shift their own wall clock."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

SOURCE = Path(__file__).with_suffix(".c")
PROGRAMS = Path(__file__).with_name("os_programs.py")


@attrs.frozen
class Result:
    """The JSON that a program printed to stdout, and its log on stderr."""

    told: dict
    log: str


class Faults:
    """A shared library that replaces system calls in the programs of os_programs.py.

    Args:
        folder: The folder for the compiled library.
    """

    def __init__(self, folder):
        self._library = folder / "os_faults.so"
        compiler = shutil.which("cc")
        if compiler is None or not sys.platform.startswith("linux"):
            pytest.skip("needs Linux and a C compiler")
        subprocess.run([compiler, "-shared", "-fPIC", "-o", self._library, SOURCE, "-ldl"], check=True)

    async def run(self, program, sandbox, **asked):
        """Run a program until it exits or kills itself; return its result.

        Args:
            program: The name of a function in os_programs.py.
            sandbox: The sandbox that the program sends its requests to.
            asked: The arguments of the program.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            PROGRAMS,
            program,
            json.dumps({"url": sandbox.url, "key": sandbox.api_key} | asked, default=str),
            env=os.environ | {"LD_PRELOAD": str(self._library)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            out, err = await asyncio.wait_for(process.communicate(), 60)
        except TimeoutError:
            process.kill()
            await process.wait()
            raise
        assert process.returncode in {0, -9}, err.decode()
        return Result(json.loads(out), err.decode())
