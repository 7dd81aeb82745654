"""The unfinished file beside its target.

Everything here blocks, and is called in a thread. One open ``Part`` is the one writer of its target.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from typing import TYPE_CHECKING

from .._boot import boot_id
from .note import SAFELY, Note, read_note, write_note

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

# Without O_NONBLOCK a pipe of that name would keep a thread waiting for ever.
_OPEN = os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0) | SAFELY
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})


class UnusableError(Exception):
    """The place can't be used for a download; the message says why."""


class Part:
    """An unfinished file, open and locked.

    Attributes:
        size: its bytes so far.
        note: what they are the beginning of; None: of nothing that can be resumed.
    """

    def __init__(self, target: Path, descriptor: int, lock: int) -> None:
        self.target = target
        self.path = target.with_name(f"{target.name}.part")
        self._note_path = target.with_name(f"{target.name}.part.json")
        self._descriptor: int | None = descriptor
        self._lock = lock
        self._ours = False
        self.size = os.fstat(descriptor).st_size
        self.note: Note | None = None

    @classmethod
    def open(cls, target: Path, record: str, *, overwrite: bool) -> Part:
        """Open what there is of a target, or begin it.

        Args:
            target: the final name.
            record: as ``Note.record``; what belongs to another one is not resumed.
            overwrite: whether there may be a file at the target already.

        Raises:
            FileExistsError: there is one, and there may not be.
            UnusableError: a link, a folder or another writer is in the way, or the folder is missing.
            OSError: what the system said.
        """
        if not target.name:
            raise UnusableError("the path has no file name")
        if not target.parent.is_dir():
            raise UnusableError("its folder doesn't exist")
        _check_target(target, overwrite=overwrite)
        while True:
            part = cls._opened(target)
            if part is not None:
                break
        try:
            # Once more, as the last writer may have finished it since.
            _check_target(target, overwrite=overwrite)
            part.recall(record)
        except BaseException:
            part.close()
            raise
        return part

    @classmethod
    def _opened(cls, target: Path) -> Part | None:
        path = target.with_name(f"{target.name}.part")
        try:
            descriptor = os.open(path, _OPEN, 0o666)
        except OSError as error:
            if error.errno in {errno.ELOOP, errno.EMLINK, errno.EISDIR, errno.ENXIO}:
                raise UnusableError(f"{path.name} is a link, a folder or a device") from None
            raise
        lock = -1
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise UnusableError(f"{path.name} is no regular file")
            if not _locked(descriptor):
                raise UnusableError("another download is writing it")
            # Since it was opened, another one may have finished it and given it its final name.
            if not _is_at(descriptor, path):
                return None
            if os.fstat(descriptor).st_nlink != 1:
                # Its bytes are somebody else's as well.
                path.unlink()
                return None
            lock = os.dup(descriptor)
            part = cls(target, descriptor, lock)
            descriptor = lock = -1
            return part
        finally:
            for number in (descriptor, lock):
                if number >= 0:
                    os.close(number)

    # --- the bytes --------------------------------------------------------------------------------

    def begin(self, note: Note | None) -> None:
        """Start anew; what there was is gone. ``note`` None: it can't be resumed."""
        descriptor = self._writable()
        # In this order, so that no note ever speaks of bytes that were another file's.
        self._note_path.unlink(missing_ok=True)
        os.ftruncate(descriptor, 0)
        self.size, self.note, self._ours = 0, note, True
        if note is not None:
            write_note(self._note_path, note)

    def write(self, pieces: Sequence[bytes]) -> None:
        """Append pieces, all of them."""
        descriptor = self._writable()
        left = [memoryview(piece) for piece in pieces]
        while left:
            # As they are: to join them first would cost as much as to write them.
            done = _written(descriptor, left, self.size)
            self.size += done
            while left and done >= len(left[0]):
                done -= len(left.pop(0))
            if left:
                left[0] = left[0][done:]

    def sync(self) -> None:
        """Wait until what was written is on the disk.

        Raises:
            OSError: not all of it is; it won't be resumed.
        """
        self._or_lost(_sync)

    def finish(self) -> None:
        """Put it on the disk and close it; nobody else can write it before ``close``.

        Raises:
            OSError: not all of it is there; it won't be resumed.
        """
        self.sync()
        self._or_lost(os.close)
        self._descriptor = None

    def _or_lost(self, call: Callable[[int], None]) -> None:
        descriptor = self._writable()
        try:
            call(descriptor)
        except OSError:
            # What the system has lost it may still show: nothing here can be relied on.
            self.note, self._ours = None, True
            if call is os.close:
                self._descriptor = None
            raise

    def rename(self, *, overwrite: bool) -> None:
        """Give it its final name.

        Raises:
            FileExistsError: meanwhile there is a file, and it may not be overwritten.
            UnusableError: meanwhile something else is in the way.
        """
        if not _is_at(self._lock, self.path):
            raise UnusableError(f"{self.path.name} was replaced by somebody meanwhile")
        if overwrite:
            _check_target(self.target, overwrite=True)
            self.path.replace(self.target)
        else:
            self._link()
        self._note_path.unlink(missing_ok=True)
        _sync_folder(self.target.parent)

    def _link(self) -> None:
        try:
            # Unlike a rename it fails where anything has appeared at the target.
            os.link(self.path, self.target, follow_symlinks=False)
        except FileExistsError:
            raise
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            _check_target(self.target, overwrite=False)
            self.path.rename(self.target)
        else:
            self.path.unlink()

    def close(self) -> None:
        """Let go of it; what can't be resumed is removed."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            try:
                os.close(descriptor)
            except OSError:
                self.note, self._ours = None, True
        try:
            useless = (self._ours and self.note is None) or os.fstat(self._lock).st_size == 0
            if useless and _is_at(self._lock, self.path):
                self._note_path.unlink(missing_ok=True)
                self.path.unlink()
        except OSError:
            pass  # it is in nobody's way: without its note it will be started anew
        finally:
            with contextlib.suppress(OSError):
                os.close(self._lock)

    def _writable(self) -> int:
        if self._descriptor is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._descriptor

    def recall(self, record: str) -> None:
        """Read what the bytes are the beginning of, if it can be relied on."""
        note = read_note(self._note_path)
        if note is None or note.record != record or not note.boot or note.boot != boot_id():
            return
        if self.size > 0 and (note.total is None or self.size <= note.total):
            self.note = note


def _check_target(target: Path, *, overwrite: bool) -> None:
    try:
        found = target.lstat()
    except FileNotFoundError:
        return
    if not overwrite:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    if not stat.S_ISREG(found.st_mode):
        raise UnusableError("what is there is no regular file, and is not overwritten")


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _locked(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            os.lseek(descriptor, 0, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _written(descriptor: int, pieces: list[memoryview], at: int) -> int:
    if hasattr(os, "pwritev"):
        return os.pwritev(descriptor, pieces, at)
    os.lseek(descriptor, at, os.SEEK_SET)
    return os.write(descriptor, pieces[0])


def _sync(descriptor: int) -> None:
    getattr(os, "fdatasync", os.fsync)(descriptor)


def _sync_folder(folder: Path) -> None:
    # Whole it is already; a system that can't do this for a folder loses the name at most.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
