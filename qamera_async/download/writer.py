"""The bytes of an unfinished file, and everything that is done to them."""

from __future__ import annotations

import errno
import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from . import system

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

_NO_ROOM = frozenset({errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)})


class Writer:
    """Owns an open file. Blocks, and may be called in several threads at once.

    Nothing is closed while it is being used, and after a failure nothing more is written: what was to come
    next would leave a gap.

    Attributes:
        size: the bytes that are written, one after the other.
        is_lost: whether even they can't be relied on.

    Args:
        descriptor: the file's; closed by ``close``.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor
        self._failure: OSError | None = None
        # Two, as a sync may take long, and writing goes on meanwhile.
        self._writing = threading.Lock()
        self._syncing = threading.Lock()
        self.size = os.fstat(descriptor).st_size
        self.is_lost = False

    def write(self, pieces: Sequence[bytes]) -> None:
        """Append pieces, all of them.

        Raises:
            OSError: not all are written, or something failed before.
        """
        with self._writing, self._used() as descriptor:
            left = [memoryview(piece) for piece in pieces]
            while left:
                # As they are: to join them first would cost as much as to write them.
                done = system.write_at(descriptor, left, self.size)
                self.size += done
                while left and done >= len(left[0]):
                    done -= len(left.pop(0))
                if left:
                    left[0] = left[0][done:]

    def sync(self) -> None:
        """Wait until what was written is on the disk.

        Raises:
            OSError: not all of it is, or something failed before.
        """
        with self._syncing, self._used(must=True) as descriptor:
            system.sync(descriptor)

    def restart(self) -> None:
        """Throw away what there is.

        Raises:
            OSError: that can't be done, or something failed before.
        """
        with self._writing, self._syncing, self._used(must=True) as descriptor:
            os.ftruncate(descriptor, 0)
            self.size = 0

    def close(self) -> None:
        """Wait for what is under way, and close the file; idempotent.

        Raises:
            OSError: not all of it is there.
        """
        with self._writing, self._syncing:
            descriptor, self._descriptor = self._descriptor, None
            if descriptor is None:
                return
            try:
                try:
                    if self._failure is not None and not self.is_lost:
                        os.ftruncate(descriptor, self.size)
                finally:
                    os.close(descriptor)
            except OSError:
                self.is_lost = True
                raise

    @contextmanager
    def _used(self, *, must: bool = False) -> Generator[int, None, None]:
        """Give the descriptor; what fails meanwhile is the last that is done to the file.

        Args:
            must: whether a failure leaves nothing to rely on. (What the system has lost it may still show.)
        """
        if self._failure is not None:
            raise OSError(self._failure.errno, self._failure.strerror)
        if self._descriptor is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        try:
            yield self._descriptor
        except BaseException as error:
            failure = error if isinstance(error, OSError) else OSError(errno.EIO, os.strerror(errno.EIO))
            # What was written before a disk was full is good.
            self.is_lost = self.is_lost or must or failure.errno not in _NO_ROOM
            self._failure = failure
            raise
