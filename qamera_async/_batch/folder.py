"""The folder that a batch downloads to: found unfit before anything is paid."""

from __future__ import annotations

import asyncio
import os
import uuid
from pathlib import Path

from ..errors import ConfigurationError, short_repr


def checked(path: str | os.PathLike[str] | None) -> Path | None:
    """Give ``download_to`` as a path; None: there is none.

    Raises:
        ConfigurationError: It can't be the path of a folder.

    """
    if path is None:
        return None
    try:
        text = os.fspath(path)
        # A half of a pair of surrogates has no place in a file's name, nor in what is written down about it.
        if text and "\0" not in text and text.encode():
            return Path(path)
    except (AttributeError, TypeError, UnicodeEncodeError):
        pass
    raise ConfigurationError(f"download_to must be the path of a folder or None, not {short_repr(path)}.")


async def make(folder: Path) -> None:
    """Make a folder where there is none, and see that files can be made in it.

    Raises:
        ConfigurationError: It can't be made or written.

    """
    try:
        await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"download_to: {folder} is no folder and can't be made one ({error.strerror or error})."
        ) from error
    try:
        await asyncio.to_thread(_try, folder)
    except OSError as error:
        raise ConfigurationError(
            f"download_to: {folder} can't be written ({error.strerror or error})."
        ) from error


def _try(folder: Path) -> None:
    # Only making a file tells: permissions don't know of a disk that is mounted read-only.
    file = folder / f".qamera-{uuid.uuid4().hex}"
    file.touch(exist_ok=False)
    file.unlink()
