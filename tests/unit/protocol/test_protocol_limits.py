"""Bodies that would take much memory or time.

The tests measure no time. They check the size of the data that is decoded and redacted.
"""

import json
import tracemalloc

import pytest
from responses import response

import qamera_async as q
from qamera_async import _protocol as protocol
from qamera_async._protocol import VIDEOS, parse_error, parse_list, parse_receipt

RULES = q.StatusRules()
MIB = 1024 * 1024
MANY = 150_001


def parse(body, **options):
    return parse_list(response(body, **options), VIDEOS, RULES)


def filled(head, unit, tail, size):
    """Return a body of about the given size: a head, a repeated unit and a tail."""
    return head + unit * ((size - len(head) - len(tail)) // len(unit)) + tail


@pytest.mark.parametrize(
    "body",
    [
        b'{"videos":[' + b'{"id":"a","name":"abcdefghijkl"},' * MANY + b'{"id":"b"}]}',
        b'{"videos":[{"id":"b"}],"more":[' + b'{"more":"abcdefghijklmnopqrstuv"},' * MANY + b"1]}",
        b'{"videos":[1,' + b"{}," * MANY + b'{"id":"b"}]}',
        b'{"videos":[' + b"1," * 300_000 + b'{"id":"b"}]}',
        b'{"videos":[{"id":"b"}],"count":[' + b"1," * 300_000 + b"1]}",
        b'{"videos":[1' + b',{"id":"a","x":[]}' * 100_000 + b"]}",
        filled(b'{"videos":[{"id":"a","name":"', b"\\ud800", b'"}]}', 42 * MIB),
        filled(b'{"videos":[{"id":"a","name":"', b"\\ud800", b'"}]}', 10 * MIB),
        filled(b'{"videos":[{"id":"a","name":"\\ud800', b"a", b'"}]}', 13 * MIB),
    ],
    ids=[
        "records",
        "objects in another field",
        "broken records",
        "numbers",
        "numbers for a count",
        "nested values",
        "surrogates",
        "fewer surrogates",
        "one long text",
    ],
)
def test_list_beyond_the_limits_is_refused_before_it_is_decoded(body):
    tracemalloc.start()
    try:
        with pytest.raises(q.InvalidResponseError):
            parse(body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < MIB


def test_long_list_as_documented_is_read():
    fields = b'"name":"a","thumbnail":"b","videoUrl":"c","status":"DONE","voting":"d","createdAt":""'
    items = b",".join(b'{"id":"v%06d",%s}' % (number, fields) for number in range(110_000))

    records = parse(b'{"videos":[%s],"count":110000}' % items)

    assert (len(records.entries), records.broken, records.complete) == (110_000, 0, True)


def test_long_list_with_a_broken_item_is_read():
    fields = b'"name":"a","thumbnail":"b","videoUrl":"c","status":"DONE","voting":"d","createdAt":""'
    items = b",".join(b'{"id":"v%06d",%s}' % (number, fields) for number in range(30_000))

    records = parse(b'{"videos":[%s,7],"count":30001}' % items)

    assert (len(records.entries), records.broken, records.complete) == (30_000, 1, True)


@pytest.mark.parametrize("digits", [1_001, 10_000, MIB])
def test_long_integer_is_never_converted(digits, monkeypatch):
    """Converting takes quadratic time, and Python's limit can be turned off."""
    converted = []
    monkeypatch.setattr(protocol, "int", lambda text: converted.append(text) or 0, raising=False)
    number = b"9" * digits

    assert parse(b'{"videos":[{"id":"a","name":%s}]}' % number).get("a").name is None
    with pytest.raises(q.InvalidResponseError):
        parse_receipt(response(b'{"createdRecordIds":["a"],"creditsReserved":%s}' % number))
    assert converted == []


@pytest.fixture
def redacted():
    """Return a list of the lengths of all redacted texts."""
    return []


@pytest.fixture
def redact(redacted):
    return lambda text: redacted.append(len(text)) or text


def test_only_the_beginning_of_a_long_text_is_redacted(redact, redacted):
    long_text = "x" * MIB

    parse_error(response({"error": long_text}, 400, redact, x_correlation_id=long_text))
    parse_error(response(long_text.encode(), 400, redact))
    with pytest.raises(q.InvalidResponseError):
        parse_receipt(response(long_text.encode(), 200, redact))
    with pytest.raises(q.InvalidResponseError):
        parse(long_text.encode(), redact=redact)

    assert max(redacted) <= 16 * 1024


def test_long_status_is_not_redacted_and_counts_as_absent(redact, redacted):
    statuses = ["x" * 100, "x" * 101, "x" * MIB, " " * MIB + "DONE"]
    items = [{"id": str(number), "status": status} for number, status in enumerate(statuses)]

    records = parse({"videos": items}, redact=redact)

    assert [record.status for record in records] == ["x" * 100, "", "", ""]
    assert redacted == [100]


@pytest.mark.parametrize("text", ["x" * MIB, {"code": "x" * MIB}])
def test_error_message_is_bounded(text):
    assert len(parse_error(response({"error": text}, 400)).message) == 2_000


def test_receipt_of_many_ids_keeps_them_all():
    ids = [f"vid_{number}" for number in range(70_000)]

    assert parse_receipt(response({"createdRecordIds": ids})).record_ids == tuple(ids)


def test_readable_ids_are_redacted_together(redact, redacted):
    """One call for each of 100,000 ids would take too long."""
    ids = [f"vid_{number}" for number in range(50_000)]
    with pytest.raises(q.InvalidResponseError) as unreadable:
        parse_receipt(response(json.dumps({"createdRecordIds": [*ids, None]}).encode(), 200, redact))

    assert unreadable.value.record_ids == tuple(ids)
    assert len(redacted) < 5
