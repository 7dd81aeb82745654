"""The screen of a command: lines and a live display, written by a thread that may be held up alone."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from functools import partial
from typing import TYPE_CHECKING, Self, TextIO

from .display import Display, PlainDisplay, TerminalDisplay, is_dumb
from .words import clean, wrapped
from .writer import Stream, Writer

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType

    from rich.console import RenderableType

    from .snapshot import Snapshot

EVERY = 0.22
"""Between one look at the progress and the next, in seconds."""

PATIENCE = 2.0
"""How long a terminal that takes nothing is waited for at the end, in seconds."""

_PLAIN_COLUMNS = 200  # of what is no terminal: cut nothing that a terminal would have room for
_RESET = "\x1b[0m"

_log = logging.getLogger("qamera_async")


class Screen:
    """Writes lines, tables and a live display; a context manager, at whose end all of it is written.

    No method waits for whoever reads. Lines and tables may come from any thread, the rest from the loop's.
    A terminal that takes nothing (Ctrl-S) is given up at the end after a while; a pipe or a file is waited
    for, as every program does, unless an exception ends this.

    Args:
        quiet: Whether to leave out notes and the display.
        as_json: Whether standard output is for JSON objects alone.
        stdout: Where results go; None: standard output.
        stderr: Where notes, errors and the display go; None: standard error.
        on_gone: Called once when nobody reads results any more: by the loop that is running, or by the thread
            that writes where there is none.
        patience: How long a terminal that takes nothing is waited for at the end, in seconds.

    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        as_json: bool = False,
        stdout: TextIO | None = None,
        stderr: TextIO | None = None,
        on_gone: Callable[[], object] | None = None,
        patience: float = PATIENCE,
    ) -> None:
        self._quiet = quiet
        self._as_json = as_json
        self._on_gone = on_gone
        self._patience = patience
        self._out = Stream(stdout or sys.stdout or io.StringIO(), self._stdout_gone)
        self._err = Stream(stderr or sys.stderr or io.StringIO(), lambda _: None)
        self._writers: tuple[Writer, ...] = ()
        self._display = Display()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._take: Callable[[], Snapshot] | None = None
        self._latest: Snapshot | None = None
        self._to_show = False

    @property
    def out_is_terminal(self) -> bool:
        """Whether somebody sees results as they come."""
        return self._out.is_terminal

    @property
    def err_is_terminal(self) -> bool:
        """Whether somebody sees the display."""
        return self._err.is_terminal

    # --- its life -------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Start writing."""
        if not self._quiet:
            terminal = self._err.is_terminal and not is_dumb()
            self._display = TerminalDisplay(self._err) if terminal else PlainDisplay(self._err)
        if self._out.is_terminal == self._err.is_terminal:
            # One thread for both keeps the order of what may be on one and the same terminal.
            writer = Writer((self._out, self._err), self._idle)
            self._writers = writer, writer
        else:
            # A terminal that is stopped must not keep results from their file.
            self._writers = Writer((self._out,)), Writer((self._err,), self._idle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write all there is, and take the display away."""
        self.live(None)
        for writer in dict.fromkeys(self._writers):
            writer.close(self._patience if kind is not None or writer.at_terminal else None)

    def flush(self) -> None:
        """Wait until all so far is written: before something else writes to the same terminal."""
        for writer in dict.fromkeys(self._writers):
            writer.flush(self._patience if writer.at_terminal else None)

    def restore(self) -> None:
        """Give the terminal back, without waiting: for a signal handler right before ``os._exit``."""
        if isinstance(self._display, TerminalDisplay):
            self._err.write_if_it_can(_RESET)

    # --- lines ----------------------------------------------------------------------------------

    def out(self, text: str) -> None:
        """Write a line of the result to standard output: with ``as_json`` an object, else a text.

        Args:
            text: As one line. What could harm a terminal is replaced, but in JSON, which escapes it itself.

        """
        self._to_out(f"{text if self._as_json else clean(text)}\n")

    def note(self, text: str) -> None:
        """Write a line to standard error, unless it is to be quiet."""
        if not self._quiet:
            self.error(text)

    def error(self, text: str) -> None:
        """Write a line to standard error."""
        line = clean(text)
        if self._err.is_terminal and not line.startswith(" "):  # what is indented is there to be copied
            line = wrapped(line, self._err.size()[0])
        self._writers[1].put(partial(self._line, self._err, f"{line}\n"))

    def table(self, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Write a table to standard output: aligned on a terminal, else its cells with tabs between them.

        Args:
            headings: One for each column.
            rows: The cells of each.

        """
        if self._as_json:
            return
        lines = [tuple(map(clean, row)) for row in (headings, *rows)]
        if not self._out.is_terminal:
            self._to_out("".join(["\t".join(line) + "\n" for line in lines]))
            return
        from rich.table import Table  # noqa: PLC0415 - costs time, and JSON and plain lines don't need it
        from rich.text import Text  # noqa: PLC0415 - the same

        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for heading in lines[0]:
            table.add_column(Text(heading), overflow="fold")
        for line in lines[1:]:
            table.add_row(*map(Text, line))
        self.show_rich(table)

    def show_rich(self, renderable: RenderableType) -> None:
        """Write what rich can draw to standard output: without colours where that is no terminal.

        Nothing with ``as_json``, as for a table: both are for people.
        """
        if self._as_json:
            return
        from rich.console import Console  # noqa: PLC0415 - costs time, and JSON and plain lines don't need it

        terminal = self._out.is_terminal
        console = Console(
            file=self._out.file,
            width=self._out.size()[0] if terminal else _PLAIN_COLUMNS,
            force_terminal=terminal,
            highlight=False,
        )
        with console.capture() as capture:
            console.print(renderable)
        self._to_out(capture.get())

    def _to_out(self, text: str) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop = _running_loop()
        self._writers[0].put(partial(self._line, self._out, text))

    def _line(self, stream: Stream, text: str) -> None:
        if stream.is_terminal:
            self._display.make_room()
        stream.write(text)

    # --- the display ----------------------------------------------------------------------------

    def live(self, take: Callable[[], Snapshot] | None) -> None:
        """Show the progress from now on, or no longer.

        Args:
            take: Gives it; called on the running loop, some times in a second. None: it is over.

        """
        if self._task is not None:
            with contextlib.suppress(RuntimeError):  # its loop is closed, and it has ended with that
                self._task.cancel()
            self._task = None
            self._end()
        if take is not None and not self._quiet:
            self._loop = _running_loop()
            self._take = take
            self._task = self._loop.create_task(self._look(take), name="qamera-screen")

    async def _look(self, take: Callable[[], Snapshot]) -> None:
        import asyncio  # noqa: PLC0415 - costs time, and it is there already where this runs

        while True:
            try:
                self._latest = take()
            except Exception:
                _log.exception("the progress can't be shown")
                return
            if not self._to_show:  # of those that a slow terminal didn't take, the last one counts
                self._to_show = True
                self._writers[1].put(self._show)
            await asyncio.sleep(EVERY)

    def _show(self) -> None:
        self._to_show = False
        if self._latest is None:
            return
        try:
            self._display.show(self._latest)
        except Exception as error:  # the lines are to come all the same
            self._display = Display()
            self._err.write(f"error: the progress can't be shown: {clean(repr(error))}\n")

    def _end(self) -> None:
        with contextlib.suppress(Exception):
            _running_loop()  # else the last one that was taken there has to do
            if self._take is not None:
                self._latest = self._take()
        self._take = None
        self._writers[1].put(self._show_last)

    def _show_last(self) -> None:
        self._show()
        self._display.end()
        self._latest = None

    def _idle(self) -> None:
        self._display.come_back()

    # --- nobody reads ---------------------------------------------------------------------------

    def _stdout_gone(self, error: OSError) -> None:
        """Take note that results can't be written; in the thread that writes."""
        if not isinstance(error, BrokenPipeError):
            line = partial(
                self._line, self._err, f"error: standard output can't be written: {error.strerror}\n"
            )
            if self._writers[0] is self._writers[1]:
                line()  # in its thread, which may be at its last errand
            else:
                self._writers[1].put(line)
        if self._on_gone is None:
            return
        try:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._on_gone)
                return
        except RuntimeError:  # it is closed
            pass
        self._on_gone()


def _running_loop() -> asyncio.AbstractEventLoop:
    """Give the running loop.

    Raises:
        RuntimeError: There is none.

    """
    if "asyncio" not in sys.modules:  # then nothing runs, and the import costs time
        raise RuntimeError("no running event loop")
    from asyncio import get_running_loop  # noqa: PLC0415

    return get_running_loop()
