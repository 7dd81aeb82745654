"""What the systems do each in its own way: a lock, a write at a place, a sync, whose name it is."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Final

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

if TYPE_CHECKING:
    from pathlib import Path

SAFELY: Final[int] = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
# Without it a pipe would keep a thread waiting for ever.
AT_ONCE: Final[int] = getattr(os, "O_NONBLOCK", 0)


def lock(descriptor: int) -> bool:
    """Lock a file until all its descriptors are closed; False where another one has the lock."""
    try:
        if sys.platform == "win32":
            os.lseek(descriptor, 0, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def write_at(descriptor: int, pieces: list[memoryview], at: int) -> int:
    """Write pieces, or a part of them; gives how many bytes."""
    if hasattr(os, "pwritev"):
        return os.pwritev(descriptor, pieces, at)
    os.lseek(descriptor, at, os.SEEK_SET)
    return os.write(descriptor, pieces[0])


def sync(descriptor: int) -> None:
    """Wait until the bytes of a file are on the disk."""
    getattr(os, "fdatasync", os.fsync)(descriptor)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where the system can do that."""
    # What has the name is whole already: where this fails, the name is lost at most.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def is_at(descriptor: int, path: Path) -> bool:
    """Say whether an open file is still the one at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False
