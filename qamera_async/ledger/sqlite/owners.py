"""Who is alive: each process holds a lock of the operating system on a byte of its own.

Such a lock ends with its process, whatever it died of; a stopped clock or a paused machine ends none.
"""

from __future__ import annotations

import contextlib
import os
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
_PATIENCE = 30.0  # seconds


class Owners:
    """The file of locks beside a ledger.

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
        self._mine: int | None = None

    def close(self) -> None:
        """Let go of all locks."""
        self._mine = None
        os.close(self._file)

    @contextlib.contextmanager
    def door(self) -> Generator[None]:
        """Keep others from opening or closing the ledger meanwhile.

        Raises:
            LedgerUnavailableError: another process holds it for too long.
        """
        deadline = time.monotonic() + _PATIENCE
        while not self._lock(_DOOR):
            if time.monotonic() > deadline:
                raise LedgerUnavailableError("Another process keeps the ledger from being opened.")
            time.sleep(0.01)
        try:
            yield
        finally:
            self._unlock(_DOOR)

    def become(self, owner: int) -> None:
        """Be this owner from now on, until the process ends or this is closed."""
        while not self._lock(owner):  # somebody looks at this moment whether it is alive
            time.sleep(0.001)
        self._mine = owner

    def alive(self, owner: int) -> bool:
        """Tell whether an owner's process lives.

        Raises:
            LedgerUnavailableError: the file is another one by now, so that nobody can tell.
        """
        if owner == self._mine:
            return True
        if not self._in_place():
            raise LedgerUnavailableError(f"{self._path} was replaced while it was in use.")
        if not self._lock(owner):
            return True
        self._unlock(owner)
        return False

    def _in_place(self) -> bool:
        mine = os.fstat(self._file)
        try:
            there = Path(self._path).stat()
        except FileNotFoundError:
            return False
        return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)

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
