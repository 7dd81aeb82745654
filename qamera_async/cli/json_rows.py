"""Rows of JSON lines, or what is wrong with each: the border at which cattrs' errors end."""

from __future__ import annotations

import io
import json
from collections import Counter
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import attrs
from cattrs import ClassValidationError, Converter, ForbiddenExtraKeysError

from .columns import KNOWN, named, shown

if TYPE_CHECKING:
    from collections.abc import Iterator


@attrs.frozen
class _JsonRow:
    image_id: str | None = None
    generated_image_id: str | None = None
    image_ids: list[str] | None = None
    suggestion: str | None = None
    provider: str | None = None
    ref: str | None = None


def json_rows(content: bytes) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Give each row's line and its values by their keys, or what is wrong with it."""
    for line, text in enumerate(io.BytesIO(content), 1):
        if text.strip():
            yield line, _json_row(text)


def _json_row(text: bytes) -> dict[str, Any] | str:
    try:
        row = _converter().structure(_decoded(text), _JsonRow)
    except ClassValidationError as group:
        return "; ".join(_reasons(group))
    except ValueError as error:
        return str(error)
    return {key: value for key in KNOWN if (value := getattr(row, key)) is not None}


def _decoded(text: bytes) -> dict[str, Any]:
    """Give the object of a line.

    Raises:
        ValueError: There is none.

    """
    try:
        decoded = json.loads(text.decode(), object_pairs_hook=_once_each)
    except UnicodeDecodeError:
        raise ValueError("it is not in UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON: {error.msg} (character {error.pos + 1})") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(decoded, dict):
        example = '{"image_id": "img_1"}'
        raise ValueError(f"each line has to be an object such as {example}, not {shown(decoded)}")  # noqa: TRY004
    return cast("dict[str, Any]", decoded)


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    given = dict(pairs)
    if len(given) != len(pairs):
        doubled = [key for key, times in Counter(key for key, _ in pairs).items() if times > 1]
        raise ValueError(f"the key {named(doubled)} is there more than once")
    return given


@cache
def _converter() -> Converter:
    converter = Converter(forbid_extra_keys=True)
    converter.register_structure_hook(str, _text)
    converter.register_structure_hook_func(lambda kind: kind == list[str], _texts)
    return converter


def _text(value: object, _: object) -> str:
    # Left to itself, cattrs makes a text of anything.
    if not isinstance(value, str):
        raise TypeError(f"must be a text, not {shown(value)}")
    return value


def _texts(value: object, _: object) -> list[str]:
    if not isinstance(value, list):
        raise TypeError(f"must be a list of texts, not {shown(value)}")
    values = cast("list[object]", value)
    return [_text(one, _) for one in values]


def _reasons(group: ClassValidationError) -> Iterator[str]:
    """Give what cattrs found, in our words: the one place where its errors end."""
    of_fields, others = group.group_exceptions()
    for error, note in of_fields:
        yield f"{note.name} {error}"
    for error in others:
        assert isinstance(error, ForbiddenExtraKeysError)  # noqa: S101 - nothing else is about a whole row
        yield f"unknown key {named(sorted(error.extra_fields))}; known are {', '.join(KNOWN)}"
