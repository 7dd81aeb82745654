"""Finds the snippets of Markdown pages, and runs them as a reader would."""

import ast
import asyncio
import contextlib
import inspect
import io
import os
import re
import signal
import socket
import sys
from pathlib import Path

import attrs
import pytest
from command import environment

from qamera_async import AmbiguousSubmissionError, QameraSession, Timeouts

ROOT = Path(__file__).parents[1]
QUICK = Path(__file__).with_name("quick")
FENCE = re.compile(
    r"^(?P<fence>`{3,}|:{3,})(?P<kind>\S*)[^\n]*\n(?P<text>.*?)^(?P=fence)$", re.DOTALL | re.MULTILINE
)
COMMANDS = [
    "python3 -m venv .venv && .venv/bin/pip install -e '.[cli]' && .venv/bin/qamera demo",
    "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/pytest",
]
"""Those of the README, which CI runs."""

SERVERS = ("qamera sandbox --port", "python -m qamera_async.sandbox --port")
PORT = "8700"  # that of the pages; whoever runs them has one of their own
FILE = re.compile(r"# (\w+\.py)\n")


@attrs.frozen
class Block:
    """What stands between two fences: its language, or the directive in braces, and its lines."""

    page: str
    line: int
    kind: str
    text: str

    def __str__(self):
        return f"{self.page}, line {self.line}"

    @property
    def is_server(self):
        """Whether it is to go on while the others run."""
        return self.kind == "bash" and self.text.startswith(SERVERS)


def blocks(path):
    """Give the fenced blocks of a page, in order."""
    text = path.read_text("utf-8")
    return [
        Block(path.name, text.count("\n", 0, found.start()) + 2, found["kind"], found["text"])
        for found in FENCE.finditer(text)
    ]


async def execute(code, name="snippet", names=None):
    """Run Python with ``await`` at its top level; say whether it had any."""
    compiled = compile(code, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(compiled, {"__name__": "snippet"} if names is None else names)  # noqa: S307 - our own pages
    if not inspect.iscoroutine(result):
        return False
    await result
    return True


async def leave_something_to_look_into(sandbox, ledger="jobs.db"):
    """Leave what a run that was killed leaves: an unfinished job, and two that are ambiguous."""
    async with QameraSession(ledger=ledger, timeouts=Timeouts(reconcile=0.1)) as qamera:
        await qamera.register_video(image_id="img_1", ref="sku-1")
        for name in ("reset_after", "reset_before"):
            sandbox.trouble(name)
            with pytest.raises(AmbiguousSubmissionError):
                await qamera.register_video(image_id="img_1", ref=name)


def looks_like(shown, output):
    """Say whether an output is what a page shows; ``...`` stands for anything."""
    lines = [line.rstrip() for line in output.strip().splitlines()]
    pattern = "\n".join(line.rstrip() for line in shown.strip().splitlines())
    return re.fullmatch(re.escape(pattern).replace(r"\.\.\.", ".*"), "\n".join(lines), re.DOTALL) is not None


class Reader:
    """Works through a page: in a folder, on a sandbox, with what its earlier snippets have left there."""

    def __init__(self, folder, sandbox):
        self.folder = folder
        self.sandbox = sandbox
        self.ran = 0
        self._servers = []
        self._has_server = False
        self._found = {}  # what the line of a server for the other terminal sets there
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = str(probe.getsockname()[1])

    async def read(self, page):
        """Run the snippets of a page in order, and hold each output against the one that is shown."""
        output, found = "", blocks(page)
        self._has_server = any(block.is_server for block in found)
        try:
            for block in found:
                if block.text.strip() in COMMANDS:
                    continue
                if block.kind == "text":
                    shown = self._here(block.text)
                    assert looks_like(shown, output), f"{block} shows\n{shown}\nand this came:\n{output}"
                elif block.kind in {"python", "bash"}:
                    output = await self._run(block)
                    self.ran += 1
        finally:
            for server in self._servers:
                os.killpg(server.pid, signal.SIGTERM)
                await server.wait()

    def _here(self, text):
        return text.replace(PORT, self._port) if self._has_server else text

    async def _run(self, block):
        text = self._here(block.text)
        named = FILE.match(text) if block.kind == "python" else None
        if block.is_server:
            return await self._serve(re.sub(r"--job-seconds \S+", "--job-seconds 0.2", text))
        if block.kind == "bash":
            return await self._shell(block, text)
        if named is not None:
            (self.folder / named[1]).write_text(text, "utf-8")
            if named[1].startswith("test_"):
                command = f"python -m pytest -q -p no:cacheprovider {named[1]}"
            else:
                command = f"python -m py_compile {named[1]}"
            return await self._shell(block, command)
        with contextlib.redirect_stdout(io.StringIO()) as out:
            await execute(text, str(block))
        return out.getvalue()

    def _environment(self):
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        here = {
            "PATH": path,
            "PYTHONPATH": os.pathsep.join([str(QUICK), str(QUICK.parents[1])]),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        return environment(self.sandbox, **{"COLUMNS": "80", **here, **self._found})

    async def _start(self, text):
        return await asyncio.create_subprocess_exec(
            "bash",
            "-euo",
            "pipefail",
            "-c",
            text,
            cwd=self.folder,
            env=self._environment(),
            start_new_session=True,  # nobody is asked anything, and a server ends with what it has started
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def _shell(self, block, text):
        process = await self._start(text)
        try:
            out, err = await asyncio.wait_for(process.communicate(), 60)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            raise
        said = (out + err).decode()
        assert process.returncode == 0, f"{block} ended with {process.returncode}:\n{said}"
        return out.decode()

    async def _serve(self, text):
        server = await self._start(text)
        self._servers.append(server)
        lines = [(await asyncio.wait_for(server.stdout.readline(), 60)).decode() for _ in range(3)]
        assert lines[2].startswith("export "), lines
        self._found = dict(setting.split("=", 1) for setting in lines[2].split()[1:])
        return "".join(lines)
