"""The final name: what may be there, and how a whole file comes to have it. Everything here blocks."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})


class UnusableError(Exception):
    """The place can't be used for a download; the message says why."""


def check_target(target: Path, *, overwrite: bool) -> None:
    """Look at what is there.

    Args:
        target: the final name.
        overwrite: whether there may be a file.

    Raises:
        FileExistsError: there is something, and there may not be.
        UnusableError: what is there is no file.
    """
    try:
        found = target.lstat()
    except FileNotFoundError:
        return
    if not overwrite:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    if not stat.S_ISREG(found.st_mode):
        raise UnusableError("what is there is no regular file, and is not overwritten")


def give_name(path: Path, target: Path, *, overwrite: bool) -> None:
    """Give a file its final name.

    Args:
        path: its name so far.
        target: the final one.
        overwrite: whether a file that is there is replaced.

    Raises:
        FileExistsError: there is something, and it may not be replaced.
        UnusableError: what is there is no file.
        OSError: what the system said.
    """
    if overwrite:
        check_target(target, overwrite=True)
        path.replace(target)
        return
    try:
        # Unlike a rename it fails where anything has appeared at the target.
        os.link(path, target, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        check_target(target, overwrite=False)
        path.rename(target)
    else:
        path.unlink()
