"""The screen: on terminals, pipes and files, with readers that are slow, stopped or gone."""

import asyncio
import fcntl
import io
import os
import struct
import subprocess
import sys
import termios
import threading
import time
from contextlib import contextmanager, suppress

import attrs
import pyte
import pytest
from rich.panel import Panel

from qamera_async.cli import screen as screen_module
from qamera_async.cli.display import PlainDisplay
from qamera_async.cli.screen import Screen
from qamera_async.cli.snapshot import JobKind, JobLine, Snapshot
from qamera_async.cli.writer import Stream

ESC = "\x1b"
HOSTILE = "evil\x1b[2J\nnext"
SNAPSHOT = Snapshot(
    total=10,
    done=4,
    failed=1,
    ambiguous=0,
    submitted=7,
    in_flight=2,
    reserved=70,
    refunded=10,
    used=7,
    limit=60,
    cooldown=0.0,
    wait=None,
    elapsed=12.0,
    remaining=30.0,
    jobs=(JobLine(JobKind.RUNNING, "sku-1", "video", "RENDERING", 3.0),),
)


def snapshots():
    """Give snapshots of which each one is a little further."""
    numbers = iter(range(1, 10**6))
    return lambda: attrs.evolve(SNAPSHOT, done=next(numbers), total=10**6)


class Terminal:
    """A pseudo-terminal, read by a thread into what a person would see."""

    def __init__(self, columns=80, lines=24, *, reads=True):
        self.master, self.slave = os.openpty()
        self.resize(columns, lines)
        self.file = os.fdopen(self.slave, "w", encoding="utf-8")
        self.seen = pyte.Screen(columns or 80, lines or 24)
        self.raw = b""
        self._stream = pyte.ByteStream(self.seen)
        self._reader = threading.Thread(target=self._read, daemon=True)
        if reads:
            self._reader.start()

    def resize(self, columns, lines):
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def _read(self):
        with suppress(OSError):
            while data := os.read(self.master, 65536):
                self.raw += data
                self._stream.feed(data)

    def close(self):
        """Hang up, once everything was read."""
        self.file.close()
        if self._reader.ident is not None:
            self._reader.join(5)
        os.close(self.master)

    @property
    def lines(self):
        return [line.rstrip() for line in self.seen.display if line.strip()]

    def shows(self, text):
        return any(text in line for line in self.seen.display)


@contextmanager
def terminal(*arguments, **options):
    there = Terminal(*arguments, **options)
    try:
        yield there
    finally:
        if not there.file.closed:
            there.close()


@pytest.fixture(autouse=True)
def brisk(monkeypatch):
    """A display that looks often, on a terminal that can do what they all can."""
    monkeypatch.setattr(screen_module, "EVERY", 0.01)
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


# --- lines ----------------------------------------------------------------------------------------


def test_results_go_to_stdout_and_the_rest_to_stderr():
    """In order, each a line, all written at the end of the block."""
    out, err = io.StringIO(), io.StringIO()
    with Screen(stdout=out, stderr=err) as screen:
        for number in range(100):
            screen.out(f"result {number}")
        screen.note("note")
        screen.error("error")

    assert out.getvalue().splitlines() == [f"result {number}" for number in range(100)]
    assert err.getvalue() == "note\nerror\n"


def test_quiet_leaves_out_notes_and_display_but_no_error():
    """Results and errors are always there."""
    out, err, taken = io.StringIO(), io.StringIO(), []

    async def main(screen):
        screen.live(lambda: taken.append(1) or SNAPSHOT)
        await asyncio.sleep(0.03)
        screen.live(None)

    with Screen(quiet=True, stdout=out, stderr=err) as screen:
        asyncio.run(main(screen))
        screen.out("result")
        screen.note("note")
        screen.error("error")

    assert out.getvalue() == "result\n"
    assert err.getvalue() == "error\n"
    assert taken == []


def test_quiet_draws_nothing_on_a_terminal():
    """Not a byte."""

    async def main(screen):
        screen.live(lambda: SNAPSHOT)
        await asyncio.sleep(0.03)
        screen.live(None)

    with terminal() as there:
        with Screen(quiet=True, stdout=there.file, stderr=there.file) as screen:
            asyncio.run(main(screen))
        there.close()

    assert there.raw == b""


def test_json_goes_out_as_it_is_and_other_text_harmless():
    """An object escapes what could do harm itself; a line that isn't one is cleaned."""
    out, err, plain = io.StringIO(), io.StringIO(), io.StringIO()
    with Screen(as_json=True, stdout=out, stderr=err) as screen:
        screen.out('{"ref": "a\u00a0\\u001b"}')
        screen.error(HOSTILE)
    with Screen(stdout=plain, stderr=io.StringIO()) as screen:
        screen.out(HOSTILE)

    assert out.getvalue() == '{"ref": "a\u00a0\\u001b"}\n'
    assert err.getvalue() == "evil�[2J next\n"
    assert plain.getvalue() == "evil�[2J next\n"


def test_with_json_there_is_nothing_but_json_on_stdout():
    """A table or a picture is for people."""
    out = io.StringIO()
    with Screen(as_json=True, stdout=out, stderr=io.StringIO()) as screen:
        screen.table(("a",), [("b",)])
        screen.show_rich(Panel("c"))
        screen.out("{}")

    assert out.getvalue() == "{}\n"


def test_what_the_encoding_lacks_is_replaced():
    """A terminal that can do ASCII alone gets ASCII, and no exception ends the thread."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    read, write = os.pipe()
    pipe = os.fdopen(write, "w", encoding="ascii")
    for file in (out, pipe):
        with Screen(stdout=file, stderr=io.StringIO()) as screen:
            screen.out("帽子 \ud800 a")
            screen.out("b")
    pipe.close()

    assert out.buffer.getvalue() == b"?? ? a\nb\n"
    assert os.read(read, 100) == b"?? ? a\nb\n"
    os.close(read)


def test_lines_may_come_from_any_thread():
    """A log handler is called wherever something is logged."""
    err = io.StringIO()
    with Screen(stdout=io.StringIO(), stderr=err) as screen:
        thread = threading.Thread(target=screen.error, args=("elsewhere",))
        thread.start()
        thread.join()

    assert err.getvalue() == "elsewhere\n"


def test_a_table_is_aligned_on_a_terminal_and_has_tabs_elsewhere():
    """Wide characters too; what cells hold is neither markup nor control."""
    rows = [("done", "[red]1[/red]"), ("帽子", HOSTILE)]
    out = io.StringIO()
    with Screen(stdout=out, stderr=io.StringIO()) as screen:
        screen.table(("state", "n"), rows)
    with terminal() as there:
        with Screen(stdout=there.file, stderr=there.file) as screen:
            screen.table(("state", "n"), rows)
        there.close()

    assert out.getvalue() == "state\tn\ndone\t[red]1[/red]\n帽子\tevil�[2J next\n"
    assert there.lines[:2] == ["state  n", "done   [red]1[/red]"]
    assert there.lines[2] == "帽子   evil�[2J next"


def test_what_rich_draws_is_plain_where_there_is_no_terminal(monkeypatch):
    """No control codes, whatever the environment asks rich for."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    out = io.StringIO()
    with Screen(stdout=out, stderr=io.StringIO()) as screen:
        screen.show_rich(Panel("[bold red]text[/]"))

    assert "text" in out.getvalue()
    assert ESC not in out.getvalue()


# --- the display on a terminal --------------------------------------------------------------------


async def test_the_display_is_drawn_in_place_and_gone_at_the_end():
    """It moves on where it stands, and leaves the terminal as it was."""
    with terminal() as there:
        with Screen(stdout=there.file, stderr=there.file) as screen:
            screen.live(snapshots())
            await until(lambda: there.shows("5 done"))
            during = there.lines
            screen.live(None)
            await asyncio.sleep(0.05)
            screen.note("over")
        there.close()

    assert len(during) == 4
    assert "sku-1" in during[3]
    assert there.lines == ["over"]
    assert not there.seen.cursor.hidden
    assert (there.seen.cursor.x, there.seen.cursor.y) == (0, 1)


async def test_lines_stand_above_the_display():
    """Results, notes and errors, in order and whole, while the display stays below."""
    with terminal(60, 12) as there:
        with Screen(stdout=there.file, stderr=there.file) as screen:
            screen.live(snapshots())
            await until(lambda: there.shows("in flight"))
            for number in range(30):
                screen.out(f"result {number}")
                screen.error(f"error {number}")
                if number % 10 == 0:
                    await asyncio.sleep(0.02)
            await until(lambda: there.shows("error 29") and there.shows("in flight"))
            during = there.lines
            screen.live(None)
        there.close()

    assert during[5:7] == ["result 29", "error 29"]
    assert "in flight" in during[8]
    assert len(during) == 11
    assert there.lines[-1] == "error 29"


async def test_the_display_comes_back_after_a_line_by_itself():
    """Not only with the next snapshot."""
    with terminal() as there:
        with Screen(stdout=there.file, stderr=there.file) as screen:
            screen.live(snapshots())
            await until(lambda: there.shows("in flight"))
            screen._task.cancel()
            await asyncio.sleep(0.05)
            screen.out("result")
            await until(lambda: there.shows("result") and there.shows("in flight"))
            await until(lambda: there.seen.cursor.y == 5)
        there.close()

    assert there.lines == ["result"]


async def test_a_display_that_has_less_to_say_leaves_nothing_behind():
    """Lines of jobs come and go."""
    now = [SNAPSHOT]
    with terminal() as there:
        with Screen(stdout=there.file, stderr=there.file) as screen:
            screen.live(lambda: now[0])
            await until(lambda: there.shows("sku-1"))
            now[0] = attrs.evolve(SNAPSHOT, jobs=())
            await until(lambda: not there.shows("sku-1"))
            during = there.lines
        there.close()

    assert len(during) == 3


async def test_results_in_a_file_don_t_touch_the_display():
    """Nor does the display get into the file."""
    out = io.StringIO()
    with terminal() as there:
        with Screen(stdout=out, stderr=there.file) as screen:
            screen.live(snapshots())
            await until(lambda: there.shows("in flight"))
            screen.out("result")
        there.close()

    assert out.getvalue() == "result\n"
    assert b"result" not in there.raw
    assert there.lines == []


async def test_an_exception_leaves_the_terminal_as_it_was():
    """Cursor visible, no colour left on, nothing of the display."""

    async def broken():
        with Screen(stdout=there.file, stderr=there.file) as screen:
            screen.live(snapshots())
            await until(lambda: there.shows("in flight"))
            raise ValueError("no")

    with terminal() as there:
        with pytest.raises(ValueError, match="no"):
            await broken()
        there.close()

    assert there.lines == []
    assert not there.seen.cursor.hidden
    assert there.seen.cursor.x == 0
    assert there.seen.cursor.attrs.fg == "default"


async def test_after_any_frame_the_cursor_stands_below_it():
    """So that a process that is killed leaves no half line and no hidden cursor."""
    with terminal() as there:
        with Screen(stdout=there.file, stderr=there.file) as screen:
            screen.live(snapshots())
            await until(lambda: there.shows("3 done"))
            screen._task.cancel()
            await asyncio.sleep(0.05)
            screen.restore()
            cursor = there.seen.cursor
            state = cursor.x, cursor.y, cursor.hidden
            screen.live(None)

    assert state == (0, 4, False)
    assert b"\x1b[?25l" not in there.raw


async def test_the_terminal_may_be_resized():
    """The next frame fits; a terminal of few lines gets few."""
    with terminal(120, 24) as there:
        with Screen(stdout=there.file, stderr=there.file) as screen:
            screen.live(snapshots())
            await until(lambda: there.shows("in flight"))
            there.resize(60, 3)
            before = len(there.raw)
            await until(lambda: len(there.raw) > before + 3000)
            frame = there.raw[before:].decode(errors="replace").split("\x1b[2A\r")[-2]
        there.close()

    screen_ = pyte.Screen(200, 24)
    pyte.Stream(screen_).feed(frame)
    lines = [line.rstrip() for line in screen_.display if line.strip()]
    assert len(lines) == 2
    assert max(map(len, lines)) < 60


async def test_a_progress_that_fails_does_no_harm(caplog):
    """It is logged, and the display stays away; the batch goes on."""

    def take():
        raise ValueError("no")

    with Screen(stdout=io.StringIO(), stderr=io.StringIO()) as screen:
        screen.live(take)
        await asyncio.sleep(0.03)
        screen.live(None)

    assert "the progress can't be shown" in caplog.text


async def test_a_display_that_fails_takes_no_line_with_it(monkeypatch):
    """It says so once, and the lines go on."""

    def broken(*_):
        raise ValueError("no")

    with terminal() as there:
        with Screen(stdout=there.file, stderr=there.file) as screen:
            monkeypatch.setattr(screen._display, "_drawn", broken)
            screen.live(snapshots())
            await asyncio.sleep(0.05)
            screen.out("result")
        there.close()

    assert there.lines == ["error: the progress can't be shown: ValueError('no')", "result"]


async def test_another_display_takes_the_place_of_the_one_before():
    """One at a time."""
    with terminal() as there:
        with Screen(stdout=there.file, stderr=there.file) as screen:
            screen.live(snapshots())
            await until(lambda: there.shows("in flight"))
            screen.live(lambda: attrs.evolve(SNAPSHOT, in_flight=77))
            await until(lambda: there.shows("77 in flight"))
            during = there.lines
        there.close()

    assert len(during) == 4
    assert there.lines == []


def test_a_loop_that_has_ended_takes_the_display_along():
    """Where nobody has stopped it, the end of the block does."""

    async def main(screen):
        screen.live(lambda: SNAPSHOT)
        await asyncio.sleep(0.03)

    err = io.StringIO()
    with terminal() as there:
        for file in (there.file, err):
            with Screen(stdout=file, stderr=file) as screen:
                asyncio.run(main(screen))
        there.close()

    assert there.lines == []
    assert err.getvalue().startswith("4 of 10 done")


def test_what_was_written_is_there_after_a_flush():
    """So that a question may be asked below it; a terminal that is stuck isn't waited for without end."""
    out = io.StringIO()
    with Screen(stdout=out, stderr=io.StringIO()) as screen:
        for number in range(1000):
            screen.out(f"result {number}")
        screen.flush()
        written = out.getvalue().count("\n")
    with terminal(reads=False) as there:
        with Screen(stdout=there.file, stderr=there.file, patience=0.05) as screen:
            screen.out("x" * 100_000)
            start = time.perf_counter()
            screen.flush()
            seconds = time.perf_counter() - start
        there._reader.start()
        screen._writers[0]._thread.join(5)

    assert written == 1000
    assert seconds < 0.5


def test_a_terminal_without_a_size_is_one_of_80_x_24():
    """As on a serial line; and so is what is none."""
    with terminal(0, 0) as there:
        size = Stream(there.file, lambda _: None).size()

    assert size == (80, 24)
    assert Stream(io.StringIO(), lambda _: None).size() == (80, 24)


# --- no terminal ----------------------------------------------------------------------------------


async def test_without_a_terminal_progress_is_a_plain_line_now_and_then():
    """At its end at least, and without any control code."""
    err = io.StringIO()
    with Screen(stdout=io.StringIO(), stderr=err) as screen:
        screen.live(lambda: SNAPSHOT)
        await asyncio.sleep(0.05)
        screen.live(None)

    assert err.getvalue().splitlines() == [
        "4 of 10 done, 1 failed, 2 in flight, 70 credits reserved, 10 refunded, 0:12 passed, about 30 s left"
    ]


async def test_the_last_line_is_about_the_end():
    """What has come since the last look is in it."""
    err, now = io.StringIO(), [SNAPSHOT]
    with Screen(stdout=io.StringIO(), stderr=err) as screen:
        screen.live(lambda: now[0])
        await asyncio.sleep(0.05)
        now[0] = attrs.evolve(SNAPSHOT, done=9)
        screen.live(None)

    assert err.getvalue().startswith("9 of 10 done")


async def test_a_dumb_terminal_gets_plain_lines(monkeypatch):
    """TERM=dumb can't move its cursor."""
    monkeypatch.setenv("TERM", "dumb")
    with terminal(200) as there:
        with Screen(stdout=there.file, stderr=there.file) as screen:
            screen.live(lambda: SNAPSHOT)
            await asyncio.sleep(0.05)
            screen.table(("a", "b"), [("c", "d")])
        there.close()

    assert ESC.encode() not in there.raw
    assert any(line.startswith("4 of 10 done") for line in there.lines)


def test_plain_lines_come_seconds_apart_and_say_something_new():
    """Nothing before some seconds are over, nothing twice, and a last one."""
    err, now = io.StringIO(), [0.0]
    display = PlainDisplay(Stream(err, lambda _: None), 5.0, clock=lambda: now[0])
    for second, done in ((1, 1), (6, 2), (7, 3), (12, 3), (18, 3), (19, 4)):
        now[0] = second
        display.show(attrs.evolve(SNAPSHOT, done=done))
    display.end()
    display.end()

    assert [line.split()[0] for line in err.getvalue().splitlines()] == ["2", "3", "4"]


# --- readers that don't read ----------------------------------------------------------------------


async def test_a_terminal_that_is_stuck_holds_up_neither_the_loop_nor_the_end():
    """The loop goes on while nothing is read, and leaving takes no longer than the patience."""
    with terminal(reads=False) as there:
        latest = time.perf_counter()
        worst = 0.0
        with Screen(stdout=there.file, stderr=there.file, patience=0.2) as screen:
            screen.live(snapshots())
            for number in range(100):
                for _ in range(20):
                    screen.out(f"result {number} " + "x" * 60)
                await asyncio.sleep(0.005)
                worst, latest = max(worst, time.perf_counter() - latest), time.perf_counter()
            thread = screen._writers[0]._thread
            start = time.perf_counter()
        left = time.perf_counter() - start
        stuck = thread.is_alive()
        there._reader.start()
        thread.join(5)

    assert stuck
    assert worst < 0.25
    assert 0.2 <= left < 1.0
    assert not thread.is_alive()


async def test_snapshots_don_t_pile_up_before_a_terminal_that_is_stuck():
    """Of those that it didn't take, the last one counts."""
    with terminal(reads=False) as there:
        with Screen(stdout=there.file, stderr=there.file, patience=0.05) as screen:
            screen.out("x" * 100_000)
            screen.live(snapshots())
            await asyncio.sleep(0.1)
            waiting = screen._writers[1]._errands.qsize()
        there._reader.start()
        screen._writers[0]._thread.join(5)

    assert waiting == 1


def test_a_slow_terminal_gets_everything():
    """It is waited for as long as it takes something."""
    with terminal(reads=False) as there:
        got = b""

        def slowly():
            nonlocal got
            while not got.endswith(b"last\r\n"):
                time.sleep(0.02)
                got += os.read(there.master, 2000)

        reader = threading.Thread(target=slowly)
        with Screen(stdout=there.file, stderr=there.file, patience=0.5) as screen:
            for _ in range(1200):
                screen.out("x" * 99)
            screen.out("last")
            reader.start()
            start = time.perf_counter()
        seconds = time.perf_counter() - start
        waited_for = not screen._writers[0]._thread.is_alive()
        reader.join()

    assert waited_for
    assert seconds > 0.5
    assert got.count(b"\n") == 1201


async def test_a_stuck_terminal_keeps_no_results_from_a_file():
    """A display that is stopped, and standard output in a file: the file gets all of it."""
    out = io.StringIO()
    with terminal(reads=False) as there:
        with Screen(stdout=out, stderr=there.file, patience=0.05) as screen:
            screen.error("x" * 100_000)
            await asyncio.sleep(0.02)
            screen.out("result")
        written = out.getvalue()
        there._reader.start()
        screen._writers[1]._thread.join(5)

    assert written == "result\n"


def test_a_pipe_is_waited_for_unless_an_exception_ends_it():
    """Results are for the reader, however slow; but Ctrl-C isn't held up by it."""

    def written(*, interrupted):
        read, write = os.pipe()
        got = []

        def later():
            time.sleep(0.3)
            while data := os.read(read, 65536):
                got.append(data)

        reader = threading.Thread(target=later)
        reader.start()
        start = time.perf_counter()
        with (
            os.fdopen(write, "w") as pipe,
            suppress(KeyboardInterrupt),
            Screen(stdout=pipe, stderr=io.StringIO(), patience=0.05) as screen,
        ):
            screen.out("x" * 200_000)
            if interrupted:
                raise KeyboardInterrupt
        seconds = time.perf_counter() - start
        screen._writers[0]._thread.join(5)
        reader.join()
        os.close(read)
        return sum(map(len, got)), seconds

    size, seconds = written(interrupted=False)
    _, seconds_interrupted = written(interrupted=True)

    assert size == 200_001
    assert seconds >= 0.25
    assert seconds_interrupted < 0.25


def test_a_descriptor_that_doesn_t_block_is_waited_for():
    """Another program that shares the terminal may have set it so."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    got = []

    def reader():
        while data := os.read(read, 65536):
            got.append(data)

    thread = threading.Thread(target=reader)
    with os.fdopen(write, "w") as pipe, Screen(stdout=pipe, stderr=io.StringIO()) as screen:
        screen.out("x" * 500_000)
        thread.start()
    thread.join()
    os.close(read)

    assert sum(map(len, got)) == 500_001


def test_restore_never_waits():
    """It writes where the terminal takes something, and else not at all."""
    with terminal(reads=False) as there:
        with Screen(stdout=there.file, stderr=there.file, patience=0.05) as screen:
            screen.restore()
            first = os.read(there.master, 100)
            screen.out("x" * 100_000)
            time.sleep(0.05)
            start = time.perf_counter()
            screen.restore()
            seconds = time.perf_counter() - start
        there._reader.start()
        screen._writers[0]._thread.join(5)

    with Screen(stdout=io.StringIO(), stderr=io.StringIO()) as plain:
        plain.restore()

    assert first == b"\x1b[0m"
    assert seconds < 0.2
    assert b"\x1b[0m" not in there.raw


# --- readers that are gone ------------------------------------------------------------------------


def closed_pipe():
    read, write = os.pipe()
    os.close(read)
    return os.fdopen(write, "w")


async def test_a_reader_that_has_gone_is_told_of_once_on_the_loop():
    """Nothing more is written there, and nothing is said about it."""
    gone, err = [], io.StringIO()
    with (
        closed_pipe() as pipe,
        Screen(stdout=pipe, stderr=err, on_gone=lambda: gone.append(threading.current_thread())) as screen,
    ):
        for _ in range(10):
            screen.out("result")
        await until(lambda: gone)
        screen.out("result")
        await asyncio.sleep(0.02)

    assert gone == [threading.main_thread()]
    assert err.getvalue() == ""


def test_what_is_closed_is_gone():
    """A file that was closed under it is told of once, like a reader that has gone."""
    gone, closed = [], io.StringIO()
    closed.close()
    with Screen(stdout=closed, stderr=io.StringIO(), on_gone=lambda: gone.append(1)) as screen:
        for _ in range(3):
            screen.out("result")

    assert gone == [1]


def test_a_reader_that_has_gone_is_told_of_where_there_is_no_loop():
    """Directly; also where the loop is closed already."""
    gone = []

    async def nothing(screen, text):
        screen.live(lambda: SNAPSHOT)

    for with_loop in (False, True):
        with (
            closed_pipe() as pipe,
            Screen(stdout=pipe, stderr=io.StringIO(), on_gone=lambda: gone.append(1)) as screen,
        ):
            if with_loop:
                asyncio.run(nothing(screen, ""))
            screen.out("result")

    assert gone == [1, 1]


@pytest.mark.parametrize("at_terminal", [False, True])
def test_a_full_disk_is_an_error_that_is_seen(at_terminal):
    """Results that are lost for another reason than their reader are told of."""
    gone, err = [], io.StringIO()
    with terminal() as there:
        with (
            open("/dev/full", "w", encoding="utf-8") as full,  # noqa: PTH123 - a device
            Screen(
                stdout=full, stderr=there.file if at_terminal else err, on_gone=lambda: gone.append(1)
            ) as screen,
        ):
            screen.out("result")
        there.close()
    said = there.lines if at_terminal else err.getvalue().splitlines()

    assert gone == [1]
    assert said == ["error: standard output can't be written: No space left on device"]


def test_without_anybody_to_tell_a_reader_may_go_as_well():
    """It is enough that nothing is written any more."""
    err = io.StringIO()
    with closed_pipe() as pipe, Screen(stdout=pipe, stderr=err) as screen:
        screen.out("result")
        screen.error("error")

    assert err.getvalue() == "error\n"


def test_a_stderr_that_is_gone_or_closed_ends_nothing():
    """Results go on without it."""
    out, closed = io.StringIO(), io.StringIO()
    closed.close()
    for err in (closed_pipe(), closed):
        with Screen(stdout=out, stderr=err) as screen:
            screen.error("error")
            screen.out("result")
        err.close()

    assert out.getvalue() == "result\nresult\n"


PROGRAM = """
import sys
from qamera_async.cli.screen import Screen
with Screen() as screen:
    for _ in range(20_000):
        screen.out("result")
print("printed")
"""


def test_no_traceback_at_the_exit_of_the_interpreter():
    """Whatever else is printed after the reader has gone."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()

    assert process.wait() == 0
    assert said == ""


def test_a_terminal_that_is_stuck_keeps_no_interpreter_from_its_exit():
    """The thread that can't write is left behind."""
    code = (
        "from qamera_async.cli.screen import Screen\n"
        "with Screen(patience=0.05) as screen:\n"
        "    screen.out('x' * 100_000)\n"
    )
    with terminal(reads=False) as there:
        process = subprocess.Popen([sys.executable, "-c", code], stdout=there.slave, stderr=there.slave)
        try:
            code = process.wait(10)
        finally:
            process.kill()
            process.wait()

    assert code == 0


def test_lines_and_json_need_no_rich():
    """The screen's import, and what isn't for a terminal, cost as little as they can."""
    code = (
        "import sys\n"
        "from qamera_async.cli.screen import Screen\n"
        "assert 'rich' not in sys.modules\n"
        "with Screen() as screen:\n"
        "    screen.out('a')\n"
        "    screen.error('b')\n"
        "    screen.table(('c',), [('d',)])\n"
        "print('rich' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert (result.stdout, result.stderr) == ("a\nc\nd\nFalse\n", "b\n")
