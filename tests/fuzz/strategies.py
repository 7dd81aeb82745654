"""Answers of a server: as documented, nearly so, and not at all."""

import json

from hypothesis import strategies as st

MOMENT = "2026-03-20T17:00:00.000Z"
WORDS = ("DONE", "done", "FAILED", "PROCESSING", "in_progress", "", "SOMETHING NEW")

# Characters that are awkward in JSON, halves of one that takes two among them.
_awkward = st.text(st.sampled_from('a\\"u/\0\ud83d\ude00\ufffd'), max_size=6)
texts = st.one_of(st.text(max_size=12), _awkward)
# U+FFFD is what stands for a character that could not be read, and an id that has it is none.
ids = st.text(st.characters(codec="utf-8", exclude_characters="\ufffd"), min_size=1, max_size=8).filter(
    str.strip
)
numbers = st.one_of(st.integers(), st.integers(-(2**80), 2**80), st.floats())


def _nested(leaves):
    return st.recursive(
        leaves,
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
        max_leaves=6,
    )


scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
anything = _nested(scalars)
"""Any value that Python writes, NaN among them, which is no JSON."""
sound = _nested(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(-1e99, 1e99), texts))
"""Any value of JSON."""


def encoded(value):
    """A body of it; what UTF-8 doesn't have is escaped, as JavaScript does it."""
    return json.dumps(value).encode()


def whole(text):
    """A text as it comes through a body: two halves are one character, and one half is none."""
    return (
        text
        if text is None
        else json.loads(json.dumps(text)).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    )


def with_strangers(known, *, reserved=()):
    """The fields that are known, in any order, and some that nobody knows."""
    names = {*known, *reserved}
    strangers = st.dictionaries(texts.filter(lambda name: name not in names), sound, max_size=3)
    return st.builds(lambda more: {**known, **more}, strangers).flatmap(_in_any_order)


def _in_any_order(fields):
    return st.permutations(list(fields.items())).map(dict)


@st.composite
def good_items(draw):
    """What is meant by a video, and how a server may write it: what is absent may be null."""
    meant = {
        "id": draw(ids),
        "status": draw(st.sampled_from(WORDS)),
        "name": draw(st.none() | texts),
        "thumbnail": draw(st.none() | texts),
        "videoUrl": draw(st.none() | texts.filter(bool)),
        "voting": draw(st.none() | texts),
        "createdAt": draw(st.sampled_from([None, MOMENT, "2026-03-20T18:00:00+01:00", "yesterday"])),
    }
    written = {name: value for name, value in meant.items() if value is not None or draw(st.booleans())}
    return meant, draw(with_strangers(written, reserved=meant))


def _damaged(good):
    """A video or a receipt with something else in place of one of its values, or without it."""

    def damage(fields, name, value):
        return {**fields, name: value} if value is not ... else {k: v for k, v in fields.items() if k != name}

    return good.flatmap(
        lambda fields: st.builds(
            damage, st.just(fields), st.sampled_from(sorted(fields)), st.just(...) | anything
        )
    )


documented_items = good_items().map(lambda pair: pair[1])
items = st.one_of(documented_items, _damaged(documented_items), anything)
counts = st.one_of(st.integers(-1, 9), anything)
listings = st.builds(
    lambda videos, count, more: {**more, "videos": videos, "count": count},
    st.one_of(st.lists(items, max_size=5), anything),
    counts,
    st.dictionaries(texts, anything, max_size=2),
)

_RECEIPT = {
    "createdRecordIds": st.lists(ids, min_size=1, max_size=3),
    "batchId": st.none() | texts,
    "orderId": st.none() | texts,
    "reservationId": st.none() | texts,
    "creditsReserved": st.none() | st.integers(0, 10**9),
}
good_receipts = st.fixed_dictionaries(_RECEIPT).flatmap(
    lambda meant: st.tuples(st.just(meant), with_strangers(meant))
)
receipts = st.one_of(
    good_receipts.map(lambda pair: pair[1]),
    _damaged(good_receipts.map(lambda pair: pair[1])),
    st.fixed_dictionaries({"createdRecordIds": st.lists(st.one_of(ids, scalars), max_size=4)}),
)

_CREDITS = st.builds("Insufficient credits. Required: {}, available: {}.".format, numbers, numbers | texts)
_shapes = st.dictionaries(
    st.sampled_from(["code", "message", "message_i18n", "retryable"]), anything, max_size=4
)
errors = st.builds(
    lambda error, more: {**more, "error": error},
    st.one_of(texts, _CREDITS, _shapes, anything),
    st.dictionaries(texts, anything, max_size=2),
)

_documents = st.one_of(listings, receipts, errors, anything).map(encoded)


@st.composite
def _spoilt(draw):
    """A document with bytes cut off, put in, taken out or turned over."""
    body = bytearray(draw(_documents))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(body)))
        match draw(st.sampled_from(["cut", "put", "take", "turn"])):
            case "cut":
                del body[at:]
            case "put":
                body[at:at] = draw(st.binary(max_size=4) | st.sampled_from(TOKENS))
            case "take":
                del body[at : at + draw(st.integers(1, 8))]
            case _ if at < len(body):
                body[at] ^= 1 << draw(st.integers(0, 7))
            case _:
                pass
    return bytes(body)


TOKENS = [
    b"[" * 2_000,
    b'{"a":' * 2_000,
    b"9" * 6_000,
    b"1e999999",
    b"-0",
    b"NaN",
    b"Infinity",
    b"\\ud800",
    b'"\\u0000"',
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\x00",
    b"null",
    b",",
    b'"videos":',
    b'"createdRecordIds":',
    b'"error":',
]

bodies = st.one_of(_documents, _spoilt(), st.binary(max_size=60))
"""What may come as a body."""

_latin = st.text(st.characters(max_codepoint=255), max_size=30)
_dates = st.one_of(
    _latin,
    st.datetimes().map(lambda moment: moment.strftime("%a, %d %b %Y %H:%M:%S GMT")),
    st.builds(
        "{}, {} {} {} {}:{}:{} {}".format,
        st.sampled_from(["Wed", "Xyz", ""]),
        *([numbers] * 1),
        st.sampled_from(["Jan", "Dec", "Foo"]),
        *([numbers] * 4),
        st.one_of(st.just("GMT"), st.integers(-99999, 99999).map("{:+05d}".format), texts),
    ),
)
header_values = st.one_of(_latin, texts, numbers.map(str), _dates)
headers = st.fixed_dictionaries(
    {},
    optional={
        "date": st.one_of(_dates, header_values),
        "retry-after": header_values,
        "x-correlation-id": header_values,
    },
)
"""The headers that are read, with whatever came as their values."""

# Bodies of any length whose parts take many times their bytes: the beginning, what is repeated, the end.
BULKS = {
    "numbers in a list": (b'{"videos":[', b"0,", b"0]}"),
    "objects in a list": (b'{"videos":[', b"{},", b"{}]}"),
    "short videos": (b'{"videos":[', b'{"id":"a"},', b'{"id":"b"}]}'),
    "ids": (b'{"createdRecordIds":[', b'"a",', b'"b"]}'),
    "lists in a receipt": (b'{"createdRecordIds":["a"],"more":[', b"[],", b"[]]}"),
    "lists in an error": (b'{"error":"no","more":[', b"[],", b"[]]}"),
    "an endless text": (b'{"error":"', b"abc", b'"}'),
    "no JSON at all": (b"<html>", b"<br>", b"</html>"),
}
