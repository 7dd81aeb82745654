"""The unfinished file beside its target, with its note.

Everything here blocks, and is called in a thread. One open ``Part`` is the one writer of its target.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING

from .._boot import boot_id
from .final import UnusableError, check_target, give_name
from .note import Note, is_strong, new_name, read_note, write_note
from .system import AT_ONCE, SAFELY, is_at, lock, sync_folder
from .writer import Writer

if TYPE_CHECKING:
    from pathlib import Path

_OPEN = os.O_RDWR | os.O_CREAT | AT_ONCE | SAFELY
_NOT_OPENED = frozenset({errno.ELOOP, errno.EMLINK, errno.EISDIR, errno.ENXIO})


class BusyError(UnusableError):
    """Another download is writing it."""


class Part:
    """An unfinished file, open and locked.

    Attributes:
        writer: its bytes.
        note: what they are the beginning of; None: of nothing that can be resumed.

    Args:
        target: the final name.
        record: as ``Note.record``.
        descriptor: the file's.
        lock: another descriptor of it: the lock is held until both are closed.
    """

    def __init__(self, target: Path, record: str, descriptor: int, lock: int) -> None:
        self._target = target
        self._path = target.with_name(f"{target.name}.part")
        self._note_path = target.with_name(f"{target.name}.part.json")
        self._record = record
        self._lock = lock
        self._begun = False
        self.writer = Writer(descriptor)
        self.note: Note | None = None

    @property
    def size(self) -> int:
        """The bytes so far."""
        return self.writer.size

    @property
    def kept(self) -> int:
        """The bytes that need not be fetched again."""
        return 0 if self.note is None else self.size

    @classmethod
    def open(cls, target: Path, record: str, *, overwrite: bool) -> Part:
        """Open what there is of a target, or begin it.

        Args:
            target: the final name.
            record: as ``Note.record``; what belongs to another one is not resumed.
            overwrite: whether there may be a file at the target already.

        Raises:
            FileExistsError: there is one, and there may not be.
            BusyError: another download is writing it.
            UnusableError: a link, a folder or somebody's file is in the way, or the folder is missing.
            OSError: what the system said.
        """
        if not target.name:
            raise UnusableError("the path has no file name")
        if not target.parent.is_dir():
            raise UnusableError("its folder doesn't exist")
        check_target(target, overwrite=overwrite)
        # The longest name that will be needed: one that is too long is told now.
        with contextlib.suppress(FileNotFoundError):
            new_name(target.with_name(f"{target.name}.part.json")).lstat()
        while True:
            part = cls._opened(target, record)
            if part is not None:
                break
        try:
            # Once more, as the last writer may have finished it since.
            check_target(target, overwrite=overwrite)
            part.recall()
        except BaseException:
            part.close()
            raise
        return part

    @classmethod
    def _opened(cls, target: Path, record: str) -> Part | None:
        """Open and lock it; None where it changed meanwhile."""
        path = target.with_name(f"{target.name}.part")
        with contextlib.ExitStack() as stack:
            try:
                descriptor = os.open(path, _OPEN, 0o666)
            except OSError as error:
                if error.errno in _NOT_OPENED:
                    raise UnusableError(f"{path.name} is a link, a folder or a device") from None
                raise
            stack.callback(os.close, descriptor)
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise UnusableError(f"{path.name} is no regular file")
            if not lock(descriptor):
                raise BusyError("another download is writing it")
            # Since it was opened, another one may have finished it and given it its final name.
            if not is_at(descriptor, path):
                return None
            if os.fstat(descriptor).st_nlink != 1:
                # Its bytes are somebody else's as well.
                path.unlink()
                return None
            second = os.dup(descriptor)
            stack.callback(os.close, second)
            part = cls(target, record, descriptor, second)
            stack.pop_all()
            return part

    def recall(self) -> None:
        """Read what the bytes are the beginning of, if it can be relied on.

        Raises:
            UnusableError: they are somebody's, and no download's.
        """
        if self.size == 0:
            return
        if not os.path.lexists(self._note_path):
            raise UnusableError(
                f"{self._path.name} is there, and no note says that a download left it; remove it, or choose "
                "another name"
            )
        note = read_note(self._note_path)
        if note is None or note.record != self._record or not note.boot or note.boot != boot_id():
            return
        if note.total is None or self.size <= note.total:
            self.note = note

    def begin(self, etag: str, total: int | None) -> None:
        """Start anew; what there was is gone.

        Args:
            etag: the server's name for the bytes; unless it is a strong one they can't be resumed.
            total: how many there will be; None where nobody says.
        """
        self.note, self._begun = None, True
        note = Note(self._record, etag if is_strong(etag) else "", total, boot_id())
        if self.size > 0:
            # In this order, so that no note ever speaks of bytes that were another file's, and none without
            # a note is taken for somebody's own.
            write_note(self._note_path, Note(self._record, "", None, ""))
            self.writer.restart()
        write_note(self._note_path, note)
        self.note = note if note.etag else None

    def finish(self) -> None:
        """Put it on the disk and close it; nobody else can write it before ``close``.

        Raises:
            OSError: not all of it is there; it won't be resumed.
        """
        self.writer.sync()
        self.writer.close()

    def rename(self, *, overwrite: bool) -> None:
        """Give it its final name.

        Raises:
            FileExistsError: meanwhile there is a file, and it may not be overwritten.
            UnusableError: meanwhile something else is in the way.
        """
        if not is_at(self._lock, self._path):
            raise UnusableError(f"{self._path.name} was replaced by somebody meanwhile")
        give_name(self._path, self._target, overwrite=overwrite)
        self._note_path.unlink(missing_ok=True)
        sync_folder(self._target.parent)

    def close(self) -> None:
        """Let go of it; what can't be resumed is removed."""
        with contextlib.suppress(OSError):
            self.writer.close()
        useless = self.writer.is_lost or (self._begun and self.note is None)
        with contextlib.suppress(OSError):
            if (useless or os.fstat(self._lock).st_size == 0) and is_at(self._lock, self._path):
                # In this order: without its note it is never resumed.
                self._note_path.unlink(missing_ok=True)
                self._path.unlink()
        with contextlib.suppress(OSError):
            os.close(self._lock)
