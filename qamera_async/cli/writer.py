"""Writing that holds nobody up: streams, and a thread that writes to them."""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import select
import signal
import threading
import time
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable

_LOOK_EVERY = 0.05  # seconds

# For the main thread alone. Those that stop a job in the background (SIGTTOU) are for this one too.
_OTHERS = {
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGWINCH", "SIGALRM", "SIGCHLD", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
}


class Stream:
    """Where text goes: a terminal, a pipe, a file. What fails once is left alone from then on.

    Args:
        file: Its text is written past the buffer of this, so that no exit of the interpreter waits for it.
        on_gone: Called once, with why, when nothing can be written any more; in the thread that writes.

    """

    def __init__(self, file: TextIO, on_gone: Callable[[OSError], object]) -> None:
        self.file = file
        self.gone = False
        self.written = 0
        """How many bytes were written."""
        self._on_gone = on_gone
        self._encoding: str = getattr(file, "encoding", None) or "utf-8"
        try:
            file.flush()
            self._descriptor: int | None = file.fileno()
            self.is_terminal = os.isatty(self._descriptor)
        except (OSError, ValueError, AttributeError):  # it stands for a file, or is closed
            self._descriptor, self.is_terminal = None, False

    def size(self) -> tuple[int, int]:
        """Give the columns and lines of the terminal; of any other, as if it were one of 80 x 24."""
        with contextlib.suppress(OSError):
            if self._descriptor is not None:
                columns, lines = os.get_terminal_size(self._descriptor)
                return columns or 80, lines or 24
        return 80, 24

    def write(self, text: str) -> None:
        """Write all of it; blocks for as long as nobody reads."""
        if self.gone or not text:
            return
        data = text.encode(self._encoding, "replace")
        try:
            if self._descriptor is None:
                self.file.write(data.decode(self._encoding))
                self.file.flush()
                self.written += len(data)
            else:
                self._write(self._descriptor, data)
        except ValueError:  # closed meanwhile
            self._leave(OSError(errno.EBADF, os.strerror(errno.EBADF)))
        except OSError as error:
            self._leave(error)

    def _write(self, descriptor: int, data: bytes) -> None:
        left = memoryview(data)
        while left:
            try:
                count = os.write(descriptor, left)
            except BlockingIOError:  # somebody who shares it has set it so
                select.select([], [descriptor], [])
                continue
            self.written += count
            left = left[count:]

    def write_if_it_can(self, text: str) -> None:
        """Write a few characters unless that would block; for a signal handler."""
        if self.gone or self._descriptor is None:
            return
        with contextlib.suppress(OSError, ValueError):
            if select.select([], [self._descriptor], [], 0)[1]:
                os.write(self._descriptor, text.encode("ascii"))

    def _leave(self, error: OSError) -> None:
        self.gone = True
        if self._descriptor is not None:
            # Whatever else writes to it, the interpreter at its exit too, is spared the same error.
            with contextlib.suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._descriptor)
                os.close(nowhere)
        self._on_gone(error)


class Writer:
    """A thread that runs errands in order; what they write may block for as long as it likes.

    Args:
        streams: What the errands write to.
        idle: Run in the thread whenever it has run all errands; None: nothing is.

    """

    def __init__(self, streams: tuple[Stream, ...], idle: Callable[[], None] | None = None) -> None:
        self._streams = streams
        self.at_terminal = any(stream.is_terminal for stream in streams)
        """Whether a terminal is among them."""
        self._idle = idle
        self._errands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        # A thread that is stuck in a write must not keep the interpreter from its exit.
        self._thread = threading.Thread(target=self._run, name="qamera-screen", daemon=True)
        self._thread.start()

    def put(self, errand: Callable[[], None]) -> None:
        """Let the thread run this after all the others."""
        self._errands.put(errand)

    def flush(self, patience: float | None) -> None:
        """Wait until all errands so far are run.

        Args:
            patience: For how long it waits while nothing can be written, in seconds; None: without limit.

        """
        done = threading.Event()
        self._errands.put(done.set)
        self._wait(done.wait, patience)

    def close(self, patience: float | None) -> None:
        """Wait until all errands are run, and end the thread.

        Args:
            patience: As for `flush`.

        """
        self._errands.put(None)
        self._wait(self._ended, patience)

    def _ended(self, seconds: float) -> bool:
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _wait(self, over: Callable[[float], bool], patience: float | None) -> None:
        written, since = self._written(), time.monotonic()
        while not over(_LOOK_EVERY):
            if (now_written := self._written()) != written:
                written, since = now_written, time.monotonic()
            if patience is not None and time.monotonic() - since >= patience:
                return

    def _written(self) -> int:
        return sum(stream.written for stream in self._streams)

    def _run(self) -> None:
        if hasattr(signal, "pthread_sigmask"):  # a signal that cuts a write short would tear a line
            signal.pthread_sigmask(signal.SIG_BLOCK, _OTHERS)
        while (errand := self._errands.get()) is not None:
            errand()
            if self._idle is not None and self._errands.empty():
                self._idle()
