"""Rows of a CSV file, with their lines, or what is wrong with each."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from .columns import KNOWN, SOURCES, named

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_DELIMITERS = (",", ";", "\t")
_BETWEEN_IDS = re.compile(r"[\s,;]+")
_NO_TEXT = re.compile("[\\0\udc80-\udcff]")  # a NUL, and what surrogateescape makes of what isn't UTF-8


def csv_rows(content: bytes) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Give each row's line and its fields by their columns, or what is wrong with it."""

    def known(delimiter: str) -> int:
        _, header = next(_split(content, delimiter), (1, ""))
        return len({*header} & {*KNOWN})

    rows = _split(content, max(_DELIMITERS, key=known))
    line, header = next(rows, (1, KNOWN))
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
    if not {*header} & {*KNOWN}:
        return f"the first line has to name the columns ({', '.join(KNOWN)}), and is {named(header)}"
    if unknown := [name for name in header if name not in KNOWN]:
        return f"unknown column {named(unknown)}; known are {', '.join(KNOWN)}"
    if doubled := [name for name, times in Counter(header).items() if times > 1]:
        return f"the column {named(doubled)} is there more than once"
    if not {*header} & {*SOURCES}:
        return f"there is no column of images: one of {', '.join(SOURCES)}"
    return ""
