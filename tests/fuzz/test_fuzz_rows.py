"""A catalogue of any bytes gives requests that can be ordered, or a CatalogueError that names the lines."""

import csv
import io
import json
import tracemalloc

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import TOKENS, anything, texts

import qamera_async as q
from qamera_async._protocol import encode_request
from qamera_async.cli.rows import CatalogueError, read_rows

FUZZ = settings.get_profile("values")
COLUMNS = ("image_id", "generated_image_id", "image_ids", "suggestion", "provider", "ref")
names = st.sampled_from(["a.csv", "a.tsv", "a.jsonl", "a.NDJSON", "-", "", "a", "a.csv/..", "."])

_fields = st.one_of(
    texts, st.sampled_from(["", "img_1", "img_1 img_2;img_3", '"', '"a', "a\nb", "\ufeff", "=1+1"])
)
_headers = st.lists(st.one_of(st.sampled_from(COLUMNS), texts), min_size=1, max_size=6)
_tables = st.builds(
    lambda separator, end, rows: end.join(separator.join(row) for row in rows),
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from(["\n", "\r\n", "\r", "\n\n"]),
    st.builds(
        lambda header, rows: [header, *rows], _headers, st.lists(st.lists(_fields, max_size=6), max_size=5)
    ),
)
_objects = st.dictionaries(st.one_of(st.sampled_from(COLUMNS), texts), st.one_of(texts, anything), max_size=4)
_lines = st.lists(st.one_of(_objects, anything).map(json.dumps), max_size=5).map("\n".join)
_codings = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1"])
_written = st.builds(
    lambda text, coding: text.encode(coding, "replace"), st.one_of(_tables, _lines), _codings
)
_spoilt = st.builds(
    lambda content, at, put: content[:at] + put + content[at:],
    _written,
    st.integers(0, 60),
    st.one_of(st.sampled_from(TOKENS), st.binary(max_size=4)),
)
contents = st.one_of(_written, _spoilt, st.binary(max_size=60))


def tried(name, content):
    """Give the catalogue, or the error that it is refused with."""
    try:
        return read_rows(name, content)
    except CatalogueError as error:
        return error


def peak(name, content):
    """Give the most memory that reading it takes, in bytes; what is made once, by the first time, aside."""
    tried(name, content)
    tracemalloc.start()
    try:
        tried(name, content)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def bound(content):
    """Give what may be taken: each line takes a row or a problem, and a line may be two bytes."""
    return 130 * len(content) + 50_000


@FUZZ
@given(names, contents)
@example("a.jsonl", b'{"image_id":"a","ref":"\\ud800"}')
@example("a.jsonl", b"[" * 100_000)
@example("a.jsonl", b'{"image_id":' + b"9" * 10_000 + b"}")
@example("a.jsonl", b'{"image_id":1e999,"image_id":NaN}')
@example("a.csv", b'image_id\n"' + b"a" * 200_000)
@example("a.csv", b"image_id\n\x00\n\xff\n")
@example("a.csv", b"image_id\na\na\n")
@example("a.jsonl", b'{"image_id":"a"}\n{"image_id":"a"}')
@example("-", b"\xef\xbb\xbf{}")
@example("a.csv", b"image_id\r\ra\rb")
def test_any_bytes_are_requests_or_a_catalogue_error(name, content):
    """What is given can be ordered at once: each has a ref of its own, and its body can be made."""
    catalogue = tried(name, content)

    assert peak(name, content) <= bound(content)
    if not isinstance(catalogue, CatalogueError):
        refs = [request.ref for request in catalogue.requests]
        assert None not in refs
        assert len(set(refs)) == len(refs) == len(catalogue.lines) > 0
        assert list(catalogue.lines) == sorted(catalogue.lines)
        for request in catalogue.requests:
            json.loads(encode_request(request, "key").body)
    else:
        lines = [problem.line for problem in catalogue.problems]
        assert lines == sorted(lines)
        assert 1 <= min(lines) <= max(lines) <= content.count(b"\n") + content.count(b"\r") + 1
        # A terminal is what shows it.
        assert all(character.isprintable() or character == "\n" for character in str(catalogue))
        assert all(len(problem.reason) < 1_000 for problem in catalogue.problems)


SIZE = 40_000
BULKS = {
    "short rows": ("a.csv", "image_id\n" + "\n".join(f"{n:x}" for n in range(SIZE // 5))),
    "the same row": ("a.csv", "image_id\n" + "a\n" * (SIZE // 2)),
    "separators": ("a.csv", "image_id\n" + "," * SIZE),
    "columns": ("a.csv", ",".join(f"c{n}" for n in range(SIZE // 6)) + "\na"),
    "columns and rows": ("a.csv", ",".join(f"c{n}" for n in range(1_000)) + "\n" + "a\n" * (SIZE // 2)),
    "empty lines": ("a.csv", "image_id\n" + "\n" * SIZE),
    "one long text": ("a.csv", "image_id\n" + "a " * (SIZE // 2)),
    "objects": ("a.jsonl", "\n".join(f'{{"image_id":"{n:x}"}}' for n in range(SIZE // 20))),
    "empty objects": ("a.jsonl", "{}\n" * (SIZE // 3)),
    "numbers": ("a.jsonl", "0\n" * (SIZE // 2)),
    "ids": ("a.jsonl", '{"image_ids":[' + '"a",' * (SIZE // 4) + '"a"]}'),
    "objects in an object": ("a.jsonl", '{"image_id":"a","extra":{"a":[' + "{}," * (SIZE // 3) + "0]}}"),
}


@pytest.mark.parametrize("bulk", BULKS)
def test_a_large_catalogue_takes_a_multiple_of_its_size(bulk):
    """Whatever it is made of, and whether it is good or not."""
    name, text = BULKS[bulk]
    content = text.encode()

    assert peak(name, content) <= bound(content)


_cells = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Zs", "Zl", "Zp", "Cf")), min_size=1, max_size=8
)
_videos = st.fixed_dictionaries(
    {"ref": _cells, "image_id": _cells}, optional={"suggestion": _cells, "provider": _cells}
)
_catalogues = st.lists(_videos, min_size=1, max_size=4, unique_by=lambda row: row["ref"])


@FUZZ
@given(_catalogues, st.sampled_from([",", ";", "\t"]), st.sampled_from(["\n", "\r\n"]))
def test_a_table_that_python_writes_is_what_was_meant(rows, delimiter, end):
    """Whatever the separator, and whatever has to be quoted."""
    table = io.StringIO()
    columns = ["ref", "image_id", "suggestion", "provider"]
    writer = csv.DictWriter(table, columns, delimiter=delimiter, lineterminator=end)
    writer.writeheader()
    writer.writerows(rows)

    catalogue = read_rows("a.csv", table.getvalue().encode())

    assert list(catalogue.requests) == [q.VideoRequest(**row) for row in rows]


@FUZZ
@given(_catalogues)
def test_lines_that_python_writes_are_what_was_meant(rows):
    """In JSON, with or without escapes."""
    for ascii_only in (True, False):
        content = "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows).encode()

        assert list(read_rows("a.jsonl", content).requests) == [q.VideoRequest(**row) for row in rows]
