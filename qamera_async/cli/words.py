"""Text for a terminal: what others wrote made harmless, and numbers as people read them."""

from __future__ import annotations

import textwrap
import unicodedata

_UNPRINTABLE = "\N{REPLACEMENT CHARACTER}"


def clean(text: str) -> str:
    """Give a text as one line that can do nothing to a terminal.

    Blanks of all kinds, line breaks too, become spaces; control characters, bidirectional overrides and
    whatever else can't be seen become a replacement character.

    Args:
        text: Whatever it is, perhaps from a server.

    """
    if text.isprintable():  # the common case, at the speed of one look
        return text
    return "".join([character if character.isprintable() else _harmless(character) for character in text])


def wrapped(text: str, columns: int) -> str:
    """Give a text in lines that end between words; a word that is longer than a line stays whole.

    Args:
        text: One line.
        columns: How many there are on the terminal.

    """
    return "\n".join(
        textwrap.wrap(text, max(columns - 1, 20), break_long_words=False, break_on_hyphens=False)
    )


def _harmless(character: str) -> str:
    if character.isspace() or unicodedata.category(character) in {"Zs", "Zl", "Zp"}:
        return " "
    return _UNPRINTABLE


def clock(seconds: float) -> str:
    """Give a time that has passed, like a stopwatch: ``3:20``, ``1:03:20``.

    Args:
        seconds: How long, in seconds.

    """
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def roughly(seconds: float) -> str:
    """Give a time to come, no more exact than it is known: ``8 s``, ``12 min``, ``2 h 5 min``, ``3 days``.

    Args:
        seconds: How long, in seconds.

    """
    whole = round(seconds)
    if whole < 20:  # noqa: PLR2004
        return f"{whole} s"
    if whole < 90:  # noqa: PLR2004
        return f"{5 * round(seconds / 5)} s"
    minutes = round(seconds / 60)
    if minutes < 90:  # noqa: PLR2004
        return f"{minutes} min"
    if minutes < 48 * 60:
        hours, rest = divmod(5 * round(minutes / 5), 60)
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    return f"{round(minutes / 60 / 24)} days"


def size(count: int, unit_of: int | None = None) -> str:
    """Give a number of bytes: ``812 B``, ``3.2 MB``.

    Args:
        count: How many.
        unit_of: Use the unit that fits this many, and leave it out; None: the one that fits ``count``.

    """
    value = count if unit_of is None else unit_of
    divisor, unit = 1, "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000 * divisor:
            break
        divisor, unit = divisor * 1000, larger
    shown = f"{count / divisor:.1f}" if divisor > 1 else str(count)
    return shown if unit_of is not None else f"{shown} {unit}"
