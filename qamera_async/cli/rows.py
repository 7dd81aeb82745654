"""A catalogue, CSV or JSON lines, to requests: all of it is checked before the first is paid for."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from functools import cache
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, cast

import attrs
from cattrs import ClassValidationError, Converter, ForbiddenExtraKeysError

from .. import ReelRequest, VideoRequest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .. import Request

_SOURCES = ("image_id", "generated_image_id", "image_ids")
_KNOWN = (*_SOURCES, "suggestion", "provider", "ref")
_NO_REEL = ("image_id", "generated_image_id", "suggestion", "provider")
_SUFFIXES = {".csv": False, ".tsv": False, ".jsonl": True, ".ndjson": True}  # whether it holds JSON
_DELIMITERS = (",", ";", "\t")
_BETWEEN_IDS = re.compile(r"[\s,;]+")
_NO_TEXT = re.compile("[\\0\udc80-\udcff]")  # a NUL, and what surrogateescape makes of what isn't UTF-8
_UTF8_BOM, _UTF16_BOMS = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")
_SHOWN_CHARACTERS, _SHOWN_NAMES = 60, 5


@attrs.frozen
class Problem:
    """What is wrong with a row.

    Args:
        line: The line of the file, from 1, where the row starts.
        reason: What is wrong with it and what is allowed, in words.

    """

    line: int
    reason: str


class CatalogueError(ValueError):
    """A catalogue that can't be ordered as it is.

    Args:
        name: What the file is called; ``-`` for the standard input.
        problems: All that is wrong with it, in the order of its lines.

    """

    def __init__(self, name: str, problems: tuple[Problem, ...]) -> None:
        super().__init__(name, problems)
        self.name = name
        self.problems = problems

    def __str__(self) -> str:
        name = "standard input" if self.name == "-" else self.name
        return "\n".join(f"{name}, line {problem.line}: {problem.reason}" for problem in self.problems)


@attrs.frozen
class Catalogue:
    """The requests of a catalogue, each with a ``ref`` of its own.

    Args:
        requests: One for each row, in the order of the rows.
        lines: The line of the file, from 1, where each one's row starts.

    """

    requests: tuple[Request, ...]
    lines: tuple[int, ...]


@attrs.frozen
class _JsonRow:
    image_id: str | None = None
    generated_image_id: str | None = None
    image_ids: list[str] | None = None
    suggestion: str | None = None
    provider: str | None = None
    ref: str | None = None


def read_rows(name: str, content: bytes) -> Catalogue:
    """Give the requests of a catalogue.

    A row with ``image_ids`` is a reel, any other a video. One without a ``ref`` is called after its image, a
    reel after its images with ``+`` between them.

    Args:
        name: What the file is called: its suffix tells CSV (``.csv``, ``.tsv``) from JSON lines (``.jsonl``,
            ``.ndjson``). Any other name, such as ``-``, leaves it to the first byte that is no blank: ``{``
            begins JSON.
        content: What is in it, in UTF-8.

    Raises:
        CatalogueError: Something is wrong with it, or there is no row in it.

    """
    if content.startswith(_UTF16_BOMS):
        raise CatalogueError(name, (Problem(1, "it is in UTF-16: save it in UTF-8"),))
    content = content.removeprefix(_UTF8_BOM)
    holds_json = _SUFFIXES.get(PurePath(name).suffix.lower())
    if holds_json is None:
        holds_json = content.lstrip().startswith(b"{")
    requests: list[Request] = []
    lines: list[int] = []
    problems: list[Problem] = []
    refs: dict[str | None, int] = {}
    for line, given in _json_rows(content) if holds_json else _csv_rows(content):
        try:
            request = _request(given)
            _take(refs, request.ref, line)
        except ValueError as error:
            problems.append(Problem(line, str(error)))
        else:
            requests.append(request)
            lines.append(line)
    if not requests and not problems:
        problems.append(Problem(1, "there is no row in it"))
    if problems:
        raise CatalogueError(name, tuple(problems))
    return Catalogue(tuple(requests), tuple(lines))


def _request(given: Mapping[str, Any] | str) -> Request:
    """Give the request of a row's values; a text is what is wrong with the row.

    Raises:
        ValueError: They make none.

    """
    if isinstance(given, str):
        raise ValueError(given)  # noqa: TRY004 - no bug, but what the row's reader found
    image_ids = given.get("image_ids")
    if image_ids is None:
        request: Request = VideoRequest(**given)
        name = given.get("image_id") or given.get("generated_image_id")
    else:
        if others := [column for column in _NO_REEL if column in given]:
            raise ValueError(f"a row with image_ids is a reel, and a reel takes no {', '.join(others)}")
        request = ReelRequest(image_ids, ref=given.get("ref"))
        name = "+".join(request.image_ids)
    # What makes a row once-only is its ref; an image that is there once is a name as good as any.
    return request if request.ref is not None else attrs.evolve(request, ref=name)


def _take(refs: dict[str | None, int], ref: str | None, line: int) -> None:
    """Note the ref of a line.

    Raises:
        ValueError: An earlier line has it.

    """
    earlier = refs.setdefault(ref, line)
    if earlier != line:
        raise ValueError(f"its ref {_shown(ref)} is that of line {earlier} too: give each a ref of its own")


def _csv_rows(content: bytes) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Give each row's line and its fields by their columns, or what is wrong with it."""

    def known(delimiter: str) -> int:
        _, header = next(_split(content, delimiter), (1, ""))
        return len({*header} & {*_KNOWN})

    rows = _split(content, max(_DELIMITERS, key=known))
    line, header = next(rows, (1, _KNOWN))
    if reason := header if isinstance(header, str) else _header_trouble(header):
        yield line, reason
        return
    for line, row in rows:
        if isinstance(row, str):
            yield line, row
        elif len(row) != len(header):
            yield line, f"number of fields: {len(row)}, and the header has {len(header)}"
        else:
            given: dict[str, Any] = {name: field for name, field in zip(header, row, strict=True) if field}
            if "image_ids" in given:
                given["image_ids"] = [one for one in _BETWEEN_IDS.split(given["image_ids"]) if one]
            yield line, given


def _split(content: bytes, delimiter: str) -> Iterator[tuple[int, list[str] | str]]:
    """Give each row's line and its fields, or what is wrong with it; rows of blanks are left out."""
    text = io.TextIOWrapper(io.BytesIO(content), "utf-8", "surrogateescape", newline="")
    reader = csv.reader(text, delimiter=delimiter, strict=True, skipinitialspace=True)
    while True:
        line = reader.line_num + 1
        try:
            row = [field.strip() for field in next(reader)]
        except StopIteration:
            return
        except csv.Error as error:
            yield line, f"it is no CSV ({error}): look at its quotes"
            if "limit" in str(error):
                return  # inside of quotes that nobody closed, what follows are no rows
            continue
        if found := _NO_TEXT.search("".join(row)):
            yield line, "there is a NUL in it" if found[0] == "\0" else "it is not in UTF-8"
        elif any(row):
            yield line, row


def _header_trouble(header: Sequence[str]) -> str:
    """Give what is wrong with a header, or nothing."""
    if not {*header} & {*_KNOWN}:
        return f"the first line has to name the columns ({', '.join(_KNOWN)}), and is {_names(header)}"
    if unknown := [name for name in header if name not in _KNOWN]:
        return f"unknown column {_names(unknown)}; known are {', '.join(_KNOWN)}"
    if doubled := [name for name, times in Counter(header).items() if times > 1]:
        return f"the column {_names(doubled)} is there more than once"
    if not {*header} & {*_SOURCES}:
        return f"there is no column of images: one of {', '.join(_SOURCES)}"
    return ""


def _json_rows(content: bytes) -> Iterator[tuple[int, dict[str, Any] | str]]:
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
    return {key: value for key in _KNOWN if (value := getattr(row, key)) is not None}


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
        raise ValueError(f"each line has to be an object such as {example}, not {_shown(decoded)}")  # noqa: TRY004
    return cast("dict[str, Any]", decoded)


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    given = dict(pairs)
    if len(given) != len(pairs):
        doubled = [key for key, times in Counter(key for key, _ in pairs).items() if times > 1]
        raise ValueError(f"the key {_names(doubled)} is there more than once")
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
        raise TypeError(f"must be a text, not {_shown(value)}")
    return value


def _texts(value: object, _: object) -> list[str]:
    if not isinstance(value, list):
        raise TypeError(f"must be a list of texts, not {_shown(value)}")
    values = cast("list[object]", value)
    return [_text(one, _) for one in values]


def _reasons(group: ClassValidationError) -> Iterator[str]:
    """Give what cattrs found, in our words: the one place where its errors end."""
    of_fields, others = group.group_exceptions()
    for error, note in of_fields:
        yield f"{note.name} {error}"
    for error in others:
        assert isinstance(error, ForbiddenExtraKeysError)  # noqa: S101 - nothing else is about a whole row
        yield f"unknown key {_names(sorted(error.extra_fields))}; known are {', '.join(_KNOWN)}"


def _names(names: Sequence[str]) -> str:
    """Give a few names for a message."""
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return ", ".join(map(_shown, names[:_SHOWN_NAMES])) + more


def _shown(value: object) -> str:
    """Give a value for a message, not too long, and nothing in it that a terminal would obey."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text = repr(value[: _SHOWN_CHARACTERS + 1] if isinstance(value, str) else value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."
