"""How texts, durations and commands are worded on the page."""

from __future__ import annotations

import unicodedata

_JOINERS = "\u200c\u200d"  # Persian words and many emoji are spelled with them
_MINUTE, _HOUR, _DAY = 60, 3_600, 86_400


def visible(text: str, limit: int = 500) -> str:
    """Give a text in which nothing is invisible or turns the direction of what follows.

    Args:
        text: Whatever somebody wrote.
        limit: How many characters of it are given at most; then it says how many there are more.

    """
    left = len(text) - limit
    text = text[:limit]
    if not text.isprintable():
        text = "".join([_visible(character) for character in text])
    return text if left <= 0 else f"{text}… ({left:,} more characters)"


def _visible(character: str) -> str:
    if character.isprintable() or character in _JOINERS or unicodedata.category(character) == "Zs":
        return character
    if character == "\n":
        return " ↵ "
    code = ord(character)
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}"  # noqa: PLR2004 - one byte


def duration(seconds: float) -> str:
    """Give a duration for people, such as "3 min 05 s".

    Args:
        seconds: How long it is, in seconds.

    """
    if seconds < 0.995:  # noqa: PLR2004 - what would be rounded to 1.00
        return f"{seconds:.2f} s"
    if seconds < 9.95:  # noqa: PLR2004 - what would be rounded to 10.0
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE:02} s"
    if whole < _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE:02} min"
    return f"{whole // _DAY:,} d {whole % _DAY // _HOUR} h"


def plural(number: int, one: str, many: str = "") -> str:
    """Give a number with its noun.

    Args:
        number: How many there are.
        one: The noun for one.
        many: The noun for more; empty: with an "s".

    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"
