"""Files and folders of the command line, looked at before anything is ordered."""

from __future__ import annotations

from pathlib import Path


def check_file(option: str, path: Path, *, replace: bool) -> None:
    """Look whether a file can be made there.

    Args:
        option: What it was given as.
        path: The file.
        replace: Whether one that is there may be replaced.

    Raises:
        ValueError: It can't, for a reason that shows beforehand.

    """
    if path.is_dir():
        raise ValueError(f"{option}: {path} is a folder: give the name of a file.")
    if not path.parent.is_dir():
        raise ValueError(f"{option}: there is no folder {path.parent}: make it first.")
    if path.exists() and not replace:
        raise ValueError(f"{option}: {path} is there already: give another name, or --overwrite.")


def check_folder(option: str, path: Path) -> None:
    """Look whether files can be put into a folder, which is made where there is none.

    Raises:
        ValueError: Its name is that of a file, or of something in one.

    """
    there = next((place for place in (path, *path.parents) if place.exists()), Path())
    if not there.is_dir():
        raise ValueError(f"{option}: {there} is no folder: give another name.")
