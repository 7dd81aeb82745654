"""The command at a terminal: a real pseudo-terminal, and what its screen shows."""

import asyncio
import fcntl
import os
import pty
import signal
import struct
import termios
import time

import attrs
import children
import pyte
import pytest
from command import QUICK, SCRIPT, environment

from qamera_async.sandbox import Sandbox

COLUMNS, LINES = 100, 30


@attrs.define
class Terminal:
    """A terminal in which one command runs."""

    process: asyncio.subprocess.Process
    descriptor: int
    screen: pyte.HistoryScreen
    stream: pyte.ByteStream
    raw: bytearray = attrs.field(factory=bytearray)

    @property
    def text(self):
        """What can be seen, and what has scrolled away above it."""
        above = ["".join(line[x].data for x in range(COLUMNS)) for line in self.screen.history.top]
        return "\n".join(line.rstrip() for line in [*above, *self.screen.display]).rstrip()

    async def shows(self, text, within=30.0):
        """Wait until a text can be seen."""
        until = time.monotonic() + within
        while text not in self.text:
            assert time.monotonic() < until, f"{text!r} never came; there is:\n{self.text}"
            await asyncio.sleep(0.01)

    def types(self, text):
        """Press keys."""
        os.write(self.descriptor, text.encode())

    async def ended(self):
        """Wait for the end; give the exit code."""
        return await asyncio.wait_for(self.process.wait(), 60)

    def read(self):
        """Take what was written."""
        try:
            data = os.read(self.descriptor, 65536)
        except OSError:  # the other side is closed
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self.descriptor)
        self.raw += data
        self.stream.feed(data)


def take_the_terminal():
    """Make the terminal the one whose Ctrl-C reaches the command."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
async def terminal(tmp_path):
    """Start commands in a terminal of their own, in an empty folder."""
    started = []

    async def start(*arguments, sandbox=None, program=SCRIPT, **more):
        ours, theirs = pty.openpty()
        os.set_blocking(ours, False)
        screen = pyte.HistoryScreen(COLUMNS, LINES, history=1000)
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        process = await children.start(
            program,
            *map(str, arguments),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=tmp_path,
            env=environment(sandbox, **more),
            start_new_session=True,
            preexec_fn=take_the_terminal,
        )
        os.close(theirs)
        running = Terminal(process, ours, screen, pyte.ByteStream(screen))
        asyncio.get_running_loop().add_reader(ours, running.read)
        started.append(running)
        return running

    yield start
    for running in started:
        if running.process.returncode is None:
            running.process.kill()
            await running.process.wait()
        asyncio.get_running_loop().remove_reader(running.descriptor)
        os.close(running.descriptor)


@pytest.fixture
async def sandbox():
    """A sandbox without a quota, whose jobs take a moment."""
    async with Sandbox(0.6, credits=100_000, quota=None) as running:
        yield running


def catalogue(tmp_path, number):
    """Write a catalogue of so many rows."""
    path = tmp_path / "catalogue.csv"
    path.write_text("image_id,ref\n" + "".join(f"img_{n},sku-{n}\n" for n in range(number)))
    return path


def batch(tmp_path, number, *more):
    """Give the arguments of a batch."""
    return ("batch", catalogue(tmp_path, number), "--to", "clips", "--ledger", "jobs.db", *QUICK, *more)


async def test_what_spends_is_asked_first(terminal, sandbox, tmp_path):
    """It says how many credits, and nothing is sent before somebody says yes."""
    running = await terminal(*batch(tmp_path, 3), sandbox=sandbox)
    await running.shows("[y/N]")
    before = list(sandbox.requests)
    asked = running.text
    running.types("y\r")
    code = await running.ended()

    assert "3 videos, about 30 credits" in asked
    assert before == []
    assert code == 0
    assert len(sandbox.orders) == 3


@pytest.mark.parametrize("answer", ["n\r", "\r", "\x04", "\x03"])
async def test_anything_but_yes_orders_nothing(terminal, sandbox, tmp_path, answer):
    """No, nothing, end of file, Ctrl-C: exit code 130, nothing sent, no traceback."""
    running = await terminal(*batch(tmp_path, 3), sandbox=sandbox)
    await running.shows("[y/N]")
    running.types(answer)
    code = await running.ended()

    assert code == 130
    assert sandbox.requests == []
    assert "Traceback" not in running.text


@pytest.mark.parametrize("redirection", ["2>notes.txt", "| cat", "--quiet", "< catalogue.csv"])
async def test_it_is_asked_whatever_is_redirected(terminal, sandbox, tmp_path, redirection):
    """Who sits at a terminal is asked there, with the number and the credits."""
    catalogue(tmp_path, 3)
    file = "-" if redirection.startswith("<") else "catalogue.csv"
    line = f"{SCRIPT} batch {file} --to clips --ledger jobs.db {' '.join(QUICK)} {redirection}"
    running = await terminal("-c", line, sandbox=sandbox, program="bash")
    await running.shows("3 orders, for about 30 credits? [y/N]")
    before = list(sandbox.requests)
    running.types("n\r")
    await running.ended()

    assert before == sandbox.requests == []


async def test_yes_is_not_asked(terminal, sandbox):
    """With ``--yes`` it goes on at once."""
    running = await terminal("video", "img_1", "--yes", *QUICK, sandbox=sandbox)
    code = await running.ended()

    assert code == 0
    assert "[y/N]" not in running.text


async def test_the_progress_is_drawn_and_taken_away(terminal, sandbox, tmp_path):
    """While it runs there are the bar, credits, quota and jobs; at its end only the summary."""
    running = await terminal(*batch(tmp_path, 5, "--yes"), sandbox=sandbox)
    await running.shows("0/5")
    await running.shows("sku-0")
    await running.shows("50 credits reserved")
    code = await running.ended()

    assert code == 0
    assert "0/5" not in running.text
    assert "5 done, 0 failed, 0 ambiguous, of 5; 50 credits reserved" in running.text
    assert "Report: clips/report.html" in running.text
    assert running.screen.cursor.hidden is False
    assert running.screen.cursor.x == 0


async def test_ctrl_c_says_how_to_go_on_and_gives_the_terminal_back(terminal, sandbox, tmp_path):
    """Exit code 130, no traceback, a visible cursor; run again, it goes on and orders nothing twice."""
    sandbox.trouble("slow", seconds=0.3, times=100)
    running = await terminal(*batch(tmp_path, 40, "--yes"), sandbox=sandbox)
    await running.shows("sku-")
    running.types("\x03")
    code = await running.ended()
    again = await terminal(*batch(tmp_path, 40, "--yes"), sandbox=sandbox)

    assert code == 130
    assert "goes on where it stopped" in running.text
    assert "Traceback" not in running.text
    assert running.screen.cursor.hidden is False
    assert await again.ended() == 0
    assert len(sandbox.orders) == 40


async def test_ctrl_c_twice_leaves_at_once(terminal, sandbox, tmp_path):
    """Though nothing answers; the cursor is visible again."""
    sandbox.trouble("hang", times=100)
    running = await terminal(*batch(tmp_path, 40, "--yes"), sandbox=sandbox)
    while len(sandbox.orders) < 3:
        await asyncio.sleep(0.01)
    running.types("\x03")
    await running.shows("Once more leaves at once")
    running.types("\x03")
    code = await running.ended()

    assert code == 130
    assert running.screen.cursor.hidden is False


async def test_a_terminal_that_is_stopped_stops_no_batch(terminal, sandbox, tmp_path):
    """Ctrl-S holds up what is drawn, and not a single order; Ctrl-Q shows the rest."""
    running = await terminal(*batch(tmp_path, 30, "--yes"), sandbox=sandbox)
    await running.shows("0/30")
    running.types("\x13")
    while len(list((tmp_path / "clips").glob("*.mp4"))) < 30:
        await asyncio.sleep(0.02)
    running.types("\x11")
    code = await running.ended()

    assert code == 0
    assert len(sandbox.orders) == 30


async def test_a_hung_up_terminal_is_like_any_end(terminal, sandbox, tmp_path):
    """What is on the wire when the window is closed is waited for: it is in the ledger, and in no doubt."""
    sandbox.trouble("slow", seconds=0.3, times=100)
    running = await terminal(*batch(tmp_path, 40, "--yes"), sandbox=sandbox)
    while len(sandbox.orders) < 3:
        await asyncio.sleep(0.01)
    os.kill(running.process.pid, signal.SIGHUP)
    code = await running.ended()
    again = await terminal(*batch(tmp_path, 40, "--yes"), sandbox=sandbox)

    assert code == 130
    assert await again.ended() == 0
    assert len(sandbox.orders) == 40


async def test_videos_are_a_table(terminal, sandbox):
    """Aligned, with a heading, and no ragged lines."""
    sandbox.add_records(3)
    running = await terminal("videos", *QUICK, sandbox=sandbox)
    code = await running.ended()

    assert code == 0
    assert running.text.splitlines()[0].split()[:2] == ["id", "status"]
    assert [line.split()[1] for line in running.text.splitlines()[1:4]] == ["DONE"] * 3


@pytest.mark.slow
async def test_the_demo_shows_what_it_does(terminal, tmp_path):
    """11 clips or more, the report, exit code 0, without a key."""
    running = await terminal("demo")
    code = await running.ended()

    clips = list((tmp_path / "qamera-demo").glob("*.mp4"))
    assert code == 0
    assert len(clips) >= 11
    assert (tmp_path / "qamera-demo" / "report.html").is_file()
    assert "Report: qamera-demo/report.html" in running.text
