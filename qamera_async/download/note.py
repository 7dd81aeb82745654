"""The note beside an unfinished file: what it is the beginning of, so that it can be resumed."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, cast

import attrs

from .system import AT_ONCE, SAFELY

if TYPE_CHECKING:
    from pathlib import Path

_NOTE_LIMIT = 64 * 1024  # bytes


@attrs.frozen
class Note:
    """What an unfinished file is the beginning of.

    Attributes:
        record: the record's id, and what of it: ``vid_1 video``.
        etag: the server's strong name for these very bytes; "" where it has none, and they can't be resumed.
        total: how many there are in all; None where the server didn't say.
        boot: which run of the machine wrote it. In another one bytes that were written may be missing.
    """

    record: str
    etag: str
    total: int | None
    boot: str


def read_note(path: Path) -> Note | None:
    """Give what a note says; None where there is none by which something can be resumed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | AT_ONCE | SAFELY)
        with os.fdopen(descriptor, "rb") as file:
            found: object = json.loads(file.read(_NOTE_LIMIT))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    fields = cast("dict[str, Any]", found)
    record, etag, total, boot = (fields.get(name) for name in ("record", "etag", "total", "boot"))
    if not all(isinstance(word, str) for word in (record, etag, boot)) or not is_strong(str(etag)):
        return None
    if total is not None and (not isinstance(total, int) or total <= 0):
        return None
    return Note(str(record), str(etag), total, str(boot))


def write_note(path: Path, note: Note) -> None:
    """Write a note so that it is there as a whole or not at all."""
    fresh = new_name(path)
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | SAFELY, 0o666)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(attrs.asdict(note), file)
    fresh.replace(path)


def new_name(path: Path) -> Path:
    """Give the name that a note has while it is written."""
    return path.with_name(f"{path.name}.new")


def is_strong(etag: str) -> bool:
    """Say whether an ETag names the very bytes, so that a part can be resumed by it."""
    quoted = len(etag) > 1 and etag[0] == etag[-1] == '"'
    return quoted and all(char == "!" or "#" <= char <= "~" for char in etag[1:-1])
