"""The columns of a catalogue, and how its readers speak of what they find."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

SOURCES = ("image_id", "generated_image_id", "image_ids")
KNOWN = (*SOURCES, "suggestion", "provider", "ref")

_SHOWN_CHARACTERS, _SHOWN_NAMES = 60, 5


def named(names: Sequence[str]) -> str:
    """Give a few names for a message."""
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return ", ".join(map(shown, names[:_SHOWN_NAMES])) + more


def shown(value: object) -> str:
    """Give a value for a message, not too long, and nothing in it that a terminal would obey."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text = repr(value[: _SHOWN_CHARACTERS + 1] if isinstance(value, str) else value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."
