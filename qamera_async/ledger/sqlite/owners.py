"""Who is alive: each process holds a lock of the operating system on a byte of its own.

Such a lock ends with its process, whatever it died of; a stopped clock or a paused machine ends none.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import ConfigurationError, LedgerUnavailableError

if TYPE_CHECKING:
    from collections.abc import Generator

try:
    import fcntl
except ImportError:  # a system without such locks
    fcntl = None  # type: ignore[assignment]

_DOOR = 0  # the byte that is locked while a ledger is opened or closed; owners count from 1
_PATIENCE = 10.0  # seconds
_CLOSING = b"closing"


class Owners:
    """The file of locks beside a ledger.

    One for each file and process, and never closed while somebody may need it: closing one descriptor of a
    file gives up all locks of the process on it.

    Args:
        path: where the file is; it is made where there is none.

    Raises:
        ConfigurationError: the system has no such locks.
        OSError: the file can't be opened.
    """

    def __init__(self, path: str) -> None:
        if fcntl is None:
            raise ConfigurationError("ledger: this system has no file locks of the POSIX kind")
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._mine: set[int] = set()
        self._threads = threading.Lock()  # such locks don't keep the threads of a process apart

    def let_go_if_replaced(self) -> bool:
        """Close a file whose name another one has by now; whether it is closed.

        Raises:
            LedgerUnavailableError: somebody in this process needs it.
        """
        if self._in_place():
            return False
        if self._mine:
            raise self._replaced()
        os.close(self._file)
        return True

    @property
    def closing(self) -> bool:
        """Whether a process has died while it closed the ledger."""
        return os.pread(self._file, len(_CLOSING), 0) == _CLOSING

    def mark_closing(self, *, closing: bool) -> None:
        """Say on the disk that the ledger is being closed, or isn't any more; inside of the door."""
        if closing:
            os.pwrite(self._file, _CLOSING, 0)
        else:
            os.ftruncate(self._file, 0)
        os.fsync(self._file)

    @contextlib.contextmanager
    def door(self) -> Generator[None]:
        """Keep others from opening or closing the ledger meanwhile.

        Raises:
            LedgerUnavailableError: another process holds it for too long.
        """
        with self._threads:
            self._wait_for(_DOOR)
            try:
                yield
            finally:
                self._unlock(_DOOR)

    def become(self, owner: int) -> None:
        """Be this owner from now on, until the process ends or this is closed."""
        self._wait_for(owner)  # somebody may look at this moment whether it is alive
        self._mine.add(owner)

    def leave(self, owner: int) -> None:
        """Be this owner no more."""
        self._mine.discard(owner)
        self._unlock(owner)

    def alive(self, owner: int) -> bool:
        """Tell whether an owner's process lives.

        Raises:
            LedgerUnavailableError: the file is another one by now, so that nobody can tell.
        """
        if owner in self._mine:
            return True
        if not self._in_place():
            raise self._replaced()
        if not self._lock(owner):
            return True
        self._unlock(owner)
        return False

    def _wait_for(self, byte: int) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not self._lock(byte):
            if time.monotonic() > deadline:
                raise LedgerUnavailableError(
                    "Another process is opening or closing the ledger, and doesn't end.",
                    fix="Wait for it, or end it",
                )
            time.sleep(0.002)

    def _replaced(self) -> LedgerUnavailableError:
        return LedgerUnavailableError(
            f"{self._path} was replaced or removed while it was in use.", fix="Open the ledger anew"
        )

    def _in_place(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file), Path(self._path).stat())
        except FileNotFoundError:
            return False

    def _lock(self, byte: int) -> bool:
        assert fcntl is not None  # noqa: S101 - else this couldn't be made
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _unlock(self, byte: int) -> None:
        assert fcntl is not None  # noqa: S101 - else this couldn't be made
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, byte)


_files: dict[tuple[int, str], Owners] = {}
_files_lock = threading.Lock()


def owners_at(path: str) -> Owners:
    """Give this process's file of locks at a path.

    Raises:
        LedgerUnavailableError: it was replaced while others of this process use it.
        ConfigurationError, OSError: as ``Owners``.
    """
    key = os.getpid(), path
    with _files_lock:
        owners = _files.get(key)
        if owners is not None and owners.let_go_if_replaced():
            owners = None
        if owners is None:
            owners = _files[key] = Owners(path)
        return owners
