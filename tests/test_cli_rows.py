"""A catalogue becomes requests, or all that is wrong with it is said."""

import csv
import io
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qamera_async import ReelRequest, VideoRequest
from qamera_async.cli.rows import CatalogueError, Problem, read_rows

FILLED = '{"image_id": "a"}\n'


def problems(content, name="rows.csv"):
    """Give the lines and reasons of what is wrong."""
    with pytest.raises(CatalogueError) as error:
        read_rows(name, content.encode() if isinstance(content, str) else content)
    return [(problem.line, problem.reason) for problem in error.value.problems]


def test_a_row_of_csv_becomes_the_request_it_describes():
    """A reel where there are image_ids, else a video; blanks around are gone, what is empty is absent."""
    content = (
        "image_id, generated_image_id ,image_ids,suggestion,provider,ref\n"
        ' img_1 ,,, "Slow, zoom\nin",pollo,sku-1\n'
        "\n"
        ",gen_1,,,,\n"
        ',,"a b,c ;  d",,, reel \n'
    )

    catalogue = read_rows("rows.csv", content.encode())

    assert catalogue.requests == (
        VideoRequest("img_1", suggestion="Slow, zoom\nin", provider="pollo", ref="sku-1"),
        VideoRequest(generated_image_id="gen_1", ref="gen_1"),
        ReelRequest(("a", "b", "c", "d"), ref="reel"),
    )
    assert catalogue.lines == (2, 5, 6)


def test_a_line_of_json_becomes_the_request_it_describes():
    """Each key is a field of the request; null is absent."""
    rows = [
        {"image_id": "img_1", "suggestion": "Näher\n", "provider": "pollo", "ref": "sku-1"},
        {"generated_image_id": "gen_1", "image_ids": None},
        {"image_ids": ["a", "b"], "ref": "reel"},
    ]

    catalogue = read_rows("rows.jsonl", "\r\n\n".join(map(json.dumps, rows)).encode())

    assert catalogue.requests == (
        VideoRequest("img_1", suggestion="Näher\n", provider="pollo", ref="sku-1"),
        VideoRequest(generated_image_id="gen_1", ref="gen_1"),
        ReelRequest(("a", "b"), ref="reel"),
    )
    assert catalogue.lines == (1, 3, 5)


@pytest.mark.parametrize(
    ("row", "ref"),
    [
        ({"image_id": "a"}, "a"),
        ({"generated_image_id": "g"}, "g"),
        ({"image_ids": ["a", "b", "c"]}, "a+b+c"),
        ({"image_ids": ["a", "b"], "ref": "mine"}, "mine"),
    ],
)
def test_a_row_without_a_ref_is_called_after_its_images(row, ref):
    """So that running it again goes on, whoever forgot to name the rows."""
    assert read_rows("-", json.dumps(row).encode()).requests[0].ref == ref


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.CSV", "image_id\na\n"),
        ("x.tsv", "image_id\tref\na\ta\n"),
        ("x.txt", "image_id;ref\na;a\n"),
        ("-", "\n\n image_id\na"),
        ("x.ndjson", FILLED),
        ("x.JSONL", FILLED),
        ("-", f"\r\n {FILLED}"),
        ("x.txt", f"\ufeff{FILLED}"),
        ("x.csv", "\ufeffimage_id\r\na\r\n\r\n,\r\n".replace(",", "")),
        ("x.csv", "image_id,suggestion\ra,\r ,\r"),
        ("x.csv", "image_id,ref\na,a\n,\n"),
        ("x.csv", '"image_id";"image_ids";"ref"\na;;a\n;;\n'),
        ("x.csv", 'image_id\t"suggestion"\na\t'),
    ],
)
def test_the_format_is_told_by_the_suffix_or_else_by_the_first_byte(name, content):
    """Excel's delimiters, a BOM, the ends of lines of any system and rows of blanks are all the same."""
    assert read_rows(name, content.encode()).requests == (VideoRequest("a", ref="a"),)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [("x.CSV", FILLED, "the first line has to name"), ("x.JSONL", "image_id\na", "it is no JSON")],
)
def test_a_suffix_is_believed(name, content, reason):
    """So that a file's first byte isn't taken for what the file isn't."""
    assert reason in problems(content, name)[0][1]


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        ("", 1, "there is no row in it"),
        ("\n \n", 1, "there is no row in it"),
        ("image_id\n\n", 1, "there is no row in it"),
        ("\nimg_1\nimg_2\n", 2, "the first line has to name the columns"),
        ("image_id,sugestion,x\n", 1, "unknown column 'sugestion', 'x'; known are image_id,"),
        ("image_id,\n", 1, "unknown column ''"),
        ("image_id,ref,ref\n", 1, "the column 'ref' is there more than once"),
        ("ref,provider\nx,y\n", 1, "there is no column of images"),
        ("image_id,ref\na\n", 2, "number of fields: 1, and the header has 2"),
        ("image_id,ref\na,b,c\n", 2, "number of fields: 3, and the header has 2"),
        ("image_id,ref\n,b\n", 2, "exactly one of image_id and generated_image_id"),
        ("image_id,generated_image_id\na,b\n", 2, "exactly one of image_id and generated_image_id"),
        ("image_id,image_ids\na,b\n", 2, "a reel takes no image_id"),
        ("image_ids,suggestion,provider\na,b,c\n", 2, "a reel takes no suggestion, provider"),
        ("image_ids\n;\n", 2, "1 to 10 image ids"),
        (f"image_ids\n{'a ' * 11}\n", 2, "1 to 10 image ids"),
        ('image_id\n"a"b\n', 2, "it is no CSV (',' expected after '\"'): look at its quotes"),
        ('image_id\n"a\n\n', 2, "it is no CSV (unexpected end of data): look at its quotes"),
        ('image_id\n"a\n' + "b\n" * 70_000, 2, "it is no CSV (field larger than field limit (131072))"),
        (f"image_id\n{'a' * 140_000}\n", 2, "it is no CSV (field larger than field limit (131072))"),
        ("image_id\n\na\0b\n", 3, "there is a NUL in it"),
        ("image_id\0\na\n", 1, "there is a NUL in it"),
        (b"image_id,suggestion\na,n\xe4her\n", 2, "it is not in UTF-8"),
        (b"image_id\xe4\na\n", 1, "it is not in UTF-8"),
        ("image_id\na\n".encode("utf-16"), 1, "it is in UTF-16: save it in UTF-8"),
    ],
)
def test_what_is_wrong_with_csv_is_said_with_its_line(content, line, reason):
    """In words that tell what is allowed."""
    ((found_line, found),) = problems(content)

    assert found_line == line
    assert reason in found


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "it is no JSON: Expecting property name enclosed in double quotes (character"),
        ("nonsense", "it is no JSON: Expecting value (character 1)"),
        ('{"image_id": "a"} {}', "it is no JSON: Extra data (character 19)"),
        ("[1]", 'each line has to be an object such as {"image_id": "img_1"}, not a list'),
        ("NaN", "each line has to be an object such as"),
        ('{"image_id": 7}', "image_id must be a text, not 7"),
        ('{"image_id": NaN}', "image_id must be a text, not nan"),
        ('{"image_id": {"a": 1}}', "image_id must be a text, not an object"),
        ('{"image_id": 1, "ref": 2}', "image_id must be a text, not 1; ref must be a text, not 2"),
        ('{"image_ids": "abc"}', "image_ids must be a list of texts, not 'abc'"),
        ('{"image_ids": ["a", null]}', "image_ids must be a text, not None"),
        ('{"image_ids": []}', "1 to 10 image ids"),
        ('{"image_id": "a", "imageId": "b"}', "unknown key 'imageId'; known are image_id, gener"),
        ('{"image_id": "a", "\\u001b[2J": 1}', "unknown key '\\x1b[2J'; known"),
        ('{"image_id": "a", "image_id": "b"}', "the key 'image_id' is there more than once"),
        ('{"image_id": ""}', "image_id must be a non-empty str"),
        ('{"image_id": "\\ud800"}', "lone surrogates"),
        ('{"image_id": ' + "[" * 100_000, "it is nested too deeply"),
        ('{"image_id": ' + "7" * 5000 + "}", "Exceeds the limit"),
        (b'{"image_id": "\xe4"}', "it is not in UTF-8"),
        ("\ufeff{}", "it is no JSON: Unexpected UTF-8 BOM"),
    ],
)
def test_what_is_wrong_with_json_is_said_with_its_line(text, reason):
    """In words that tell what is allowed."""
    content = text if isinstance(text, bytes) else text.encode()

    ((line, found),) = problems(FILLED.encode() + b"\n" + content, "rows.jsonl")

    assert line == 3
    assert reason in found


def test_many_unknown_keys_do_not_fill_the_screen():
    """A few are named, the others are counted."""
    ((_, reason),) = problems(json.dumps({f"k{n:03}": "x" * 500 for n in range(300)}), "rows.jsonl")

    assert reason.startswith("unknown key 'k000', 'k001', 'k002', 'k003', 'k004' and 295 more; known are")
    ((_, reason),) = problems(json.dumps({"ref": "a", "x" * 500: 1}), "rows.jsonl")
    assert len(reason) < 200


def test_all_that_is_wrong_is_said_at_once_in_the_order_of_the_lines():
    """The line is where a row starts, also after one with line ends inside, and after a broken one."""
    content = (
        b'image_id,suggestion,ref\na,,x\nb,"three\nlines\r\nlong",y,z\n\n"c"d,,\ne,n\xe4her,\nf,,x\ng,,\n'
    )

    with pytest.raises(CatalogueError) as error:
        read_rows("-", content)

    assert [problem.line for problem in error.value.problems] == [3, 7, 8, 9]
    assert str(error.value).splitlines() == [
        "standard input, line 3: number of fields: 4, and the header has 3",
        "standard input, line 7: it is no CSV (',' expected after '\"'): look at its quotes",
        "standard input, line 8: it is not in UTF-8",
        "standard input, line 9: its ref 'x' is that of line 2 too: give each a ref of its own",
    ]


@pytest.mark.parametrize(
    ("rows", "ref"),
    [
        ([{"image_id": "a"}, {"image_id": "a", "suggestion": "b"}], "a"),
        ([{"image_id": "a"}, {"image_id": "b", "ref": "a"}], "a"),
        ([{"image_ids": ["a", "b"]}, {"image_id": "a+b"}], "a+b"),
    ],
)
def test_a_ref_that_is_there_twice_is_said_on_the_later_line(rows, ref):
    """Given or not: else one of the two would never be made."""
    found = problems("\n".join(map(json.dumps, rows)), "rows.jsonl")

    assert found == [(2, f"its ref '{ref}' is that of line 1 too: give each a ref of its own")]


def test_the_error_is_a_value_error_that_can_be_sent_on():
    """With its evidence, as the package's own."""
    error = CatalogueError("rows.csv", (Problem(2, "bad"), Problem(4, "worse")))

    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - made right here

    assert isinstance(again, ValueError)
    assert (again.name, again.problems) == (error.name, error.problems)
    assert str(again) == "rows.csv, line 2: bad\nrows.csv, line 4: worse"


pieces = st.lists(
    st.sampled_from(
        [b"image_id", b"ref", b"image_ids", b",", b";", b"\t", b'"', b"\n", b"\r", b" ", b"\0", b"a", b"\xff"]
    )
    | st.sampled_from(
        [b"{", b"}", b"[", b"]", b":", b'{"image_id":', b'"x"', b"1e9", b"NaN", b"null", b"\xef\xbb\xbf"]
    ),
    max_size=30,
).map(b"".join)


@given(name=st.sampled_from(["x.csv", "x.jsonl", "-"]), content=st.binary() | pieces)
def test_any_bytes_are_requests_or_the_one_error(name, content):
    """Nothing else comes out, and the lines are those of the file, in order."""
    last = len(content.splitlines()) + 1
    try:
        found = read_rows(name, content)
    except CatalogueError as error:
        lines = [problem.line for problem in error.problems]
    else:
        assert found.requests
        assert len({request.ref for request in found.requests}) == len(found.requests)
        lines = list(found.lines)

    assert lines == sorted(set(lines))
    assert 1 <= lines[0] <= lines[-1] <= last


words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20).filter(
    lambda text: text == text.strip()
)
ids = words.filter(lambda text: not set(text) & set(",;") and len(text.split()) == 1)
refs = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=20)
videos = st.builds(
    VideoRequest, image_id=words, suggestion=st.none() | words, provider=st.none() | words, ref=refs
)
reels = st.builds(ReelRequest, st.lists(ids, min_size=1, max_size=10), ref=refs)
catalogues = st.lists(videos | reels, min_size=1, max_size=8, unique_by=lambda request: request.ref)
FIELDS = ("image_id", "image_ids", "suggestion", "provider", "ref")


@given(requests=catalogues)
def test_what_was_written_as_json_lines_comes_back(requests):
    """Whatever is in the texts."""
    rows = [{name: getattr(request, name, None) for name in FIELDS} for request in requests]

    content = "\n".join(map(json.dumps, rows)).encode()

    assert read_rows("-", content).requests == tuple(requests)


@given(requests=catalogues, delimiter=st.sampled_from(",;\t"), end=st.sampled_from(["\n", "\r\n"]))
def test_what_was_written_as_csv_comes_back(requests, delimiter, end):
    """Whatever is in the texts, with any delimiter and end of lines."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerow(FIELDS)
    for request in requests:
        row = {name: getattr(request, name, None) for name in FIELDS}
        writer.writerow([" ".join(row[n]) if n == "image_ids" and row[n] else row[n] for n in FIELDS])

    assert read_rows("x.csv", file.getvalue().encode()).requests == tuple(requests)
