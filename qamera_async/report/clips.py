"""Where a clip and its thumbnail are, and how a page beside them names them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

import attrs

if TYPE_CHECKING:
    from ..ledger import LedgerEntry


def thumbnail_path(clip: Path) -> Path:
    """Give the place of a clip's thumbnail: in the folder ``thumbnails`` beside it.

    Args:
        clip: The clip's file, whether it is there or not.

    """
    return clip.parent / "thumbnails" / f"{clip.stem}.jpg"


@attrs.frozen
class Clip:
    """A clip that is there, as a page names it.

    Args:
        href: The clip's file, percent-encoded, relative to the page.
        thumbnail: The same of its thumbnail; None where there is none.

    """

    href: str
    thumbnail: str | None


def clip_of(entry: LedgerEntry, folder: Path) -> Clip | None:
    """Give the first of an entry's files that is there; None where none is.

    Args:
        entry: The entry.
        folder: The absolute folder of the page.

    """
    clip = next((path for path in entry.files if os.path.isfile(path)), None)  # noqa: PTH113 - never raises
    if clip is None:
        return None
    thumbnail = thumbnail_path(clip)
    has_one = os.path.isfile(thumbnail)  # noqa: PTH113 - the same
    return Clip(link(clip, folder), link(thumbnail, folder) if has_one else None)


def link(path: Path, folder: Path) -> str:
    """Give the URL of a file as seen from a folder, each part percent-encoded.

    Args:
        path: The absolute path of the file.
        folder: The absolute folder.

    """
    real = folder.resolve()
    # A browser takes ".." by the name that it was given, so links that folder's name may have don't count.
    start = real if path.is_relative_to(real) else folder
    try:
        relative = Path(os.path.relpath(path, start))
    except ValueError:  # another drive
        return path.as_uri()
    return "/".join(quote(os.fsencode(part), safe="") for part in relative.parts)


def web_url(url: str | None) -> str | None:
    """Give a URL if it is one of the web, else None: others could be scripts.

    Args:
        url: What the server said; None where it said nothing.

    """
    if url is None or not url.isprintable() or url != url.strip():
        return None
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    return url if parts.scheme in {"http", "https"} and parts.netloc else None
