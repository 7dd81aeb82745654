"""A catalogue, CSV or JSON lines, to requests: all of it is checked before the first is paid for."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import attrs

from .. import ReelRequest, VideoRequest
from .columns import shown
from .csv_rows import csv_rows
from .json_rows import json_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .. import Request

_NO_REEL = ("image_id", "generated_image_id", "suggestion", "provider")
_SUFFIXES = {".csv": False, ".tsv": False, ".jsonl": True, ".ndjson": True}  # whether it holds JSON
_UTF8_BOM, _UTF16_BOMS = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")


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
    for line, given in json_rows(content) if holds_json else csv_rows(content):
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
        raise ValueError(f"its ref {shown(ref)} is that of line {earlier} too: give each a ref of its own")
