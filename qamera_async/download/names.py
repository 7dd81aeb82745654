"""Names of files: which can be one, and one for any text that stays inside its folder."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import unicodedata
from pathlib import Path

from ..errors import InvalidRequestError, short_repr

_LONGEST = 200  # bytes of UTF-8; what is added to a name while it is downloaded has room beside it
_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)
_FORBIDDEN = frozenset('/\\<>:"|?*')
_HASH_DIGITS = 8
_LOOKS_CHANGED = re.compile(r".*-[0-9a-f]{8}")


def as_path(path: str | os.PathLike[str]) -> Path:
    """Give a path as one.

    Raises:
        InvalidRequestError: no system could take it.
    """
    text: object = None
    with contextlib.suppress(TypeError, ValueError):
        if b"\0" not in os.fsencode(path):
            text = os.fspath(path)
    if not isinstance(text, str):
        raise InvalidRequestError(f"path: got {short_repr(path)}, allowed is the path of a file, as text")
    return Path(text)


def safe_name(text: str, suffix: str) -> str:
    """Give a file's name for a text: no path, no reserved or hidden name, 200 bytes at most.

    Two texts give two names: where a text can't be its own name, a hash of it is added. (A file system that
    takes letter case or accents for one may still see one name in two.)

    Args:
        text: whatever the file is called after.
        suffix: comes last, ``.mp4`` say; taken as it is.

    Returns:
        ``text`` and ``suffix``, or what can be kept of the text, ``-``, eight hexadecimal digits, ``suffix``.
    """
    room = _LONGEST - len(suffix.encode())
    kept = "".join("_" if _is_bad(char) else char for char in text).lstrip(" .").rstrip(" .")
    kept = unicodedata.normalize("NFC", kept)
    # A text that looks like a changed one must change too, or the two could meet.
    changed = kept != text or not kept or len(kept.encode()) > room
    if not changed and not _RESERVED.fullmatch(kept) and not _LOOKS_CHANGED.fullmatch(kept):
        return kept + suffix
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH_DIGITS]
    if _RESERVED.fullmatch(kept):
        kept = f"_{kept}"
    room -= _HASH_DIGITS + 1
    kept = kept.encode()[:room].decode("utf-8", "ignore").rstrip(" .")
    return f"{kept or 'video'}-{digest}{suffix}"


def _is_bad(char: str) -> bool:
    # Cc, Cf, Cs, Co, Cn: control and invisible characters, halves of pairs, nobody's; Zl, Zp: line ends.
    category = unicodedata.category(char)
    return char in _FORBIDDEN or category.startswith("C") or category in {"Zl", "Zp"}
