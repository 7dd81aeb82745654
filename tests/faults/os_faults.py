"""Runs programs whose system calls fail, and whose wall clock is wrong, when they say so."""

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
class Ran:
    """How a program ended: what it told as JSON, and what it wrote to its log."""

    told: dict
    log: str


class Faults:
    """The library that is loaded before the C library into each program.

    Args:
        folder: where it is compiled to.
    """

    def __init__(self, folder):
        self._library = folder / "os_faults.so"
        compiler = shutil.which("cc")
        if compiler is None or not sys.platform.startswith("linux"):
            pytest.skip("needs Linux and a C compiler")
        subprocess.run([compiler, "-shared", "-fPIC", "-o", self._library, SOURCE, "-ldl"], check=True)

    async def run(self, program, sandbox, **asked):
        """Run one of the programs on a sandbox to its end; one that kills itself has an end too."""
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
        return Ran(json.loads(out), err.decode())
