"""Any response gives what the server meant, or a QameraError."""

import copy
import json
import pickle
import tracemalloc
from datetime import UTC, datetime

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import (
    BULKS,
    bodies,
    encoded,
    errors,
    good_items,
    good_receipts,
    headers,
    listings,
    receipts,
    whole,
)

import qamera_async as q
from qamera_async._protocol import (
    VIDEOS,
    RecordList,
    Response,
    is_definite_rejection,
    parse_error,
    parse_list,
    parse_receipt,
)

RULES = q.StatusRules()
FUZZ = settings.get_profile("values")
LONGEST_EXCERPT = 203  # characters, with the dots at the end
LONGEST_MESSAGE = 2_000  # characters
statuses = st.one_of(
    st.sampled_from([200, 400, 401, 402, 403, 404, 407, 409, 429, 500, 503]), st.integers(0, 999)
)


def response(body, status=200, sent_headers=None):
    return Response(status, sent_headers or {}, body)


def parse(body):
    return parse_list(response(body), VIDEOS, RULES)


def checked_list(records):
    """Check that all ways to read a list agree, also after it went to another process."""
    videos = list(records)
    assert [video.id for video in videos] == list(records.entries)
    assert all(video.id.strip() for video in videos)
    assert len(records.entries) == len(videos)
    for video in videos:
        assert records.get(video.id) == video
        assert records.status(video.id) == video.status
        assert len(video.status) <= 100
        assert video.created_at is None or video.created_at.utcoffset().seconds == 0
        assert video.video_url != ""
    items = records.encode_items([*records.entries, " not listed"])
    assert items.pop(" not listed") is None
    again = RecordList.from_items(items.values(), VIDEOS, RULES, complete=records.complete)
    assert (list(again), again.broken) == (videos, 0)


def checked_error(error):
    """Check that an error has a text, is of bounded length where it shows a body, and can be pickled."""
    assert isinstance(error, q.QameraError)
    assert len(getattr(error, "excerpt", "")) <= LONGEST_EXCERPT
    assert len(error.message) <= LONGEST_MESSAGE
    assert len(error.correlation_id or "") <= LONGEST_EXCERPT
    assert str(error)
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301 - made here
        assert (type(again), str(again), again.__dict__) == (type(error), str(error), error.__dict__)


@FUZZ
@given(st.one_of(bodies, listings.map(encoded)))
@example(b'{"videos":[{"id":"a","status":"DONE","name":"cut \\ud83d"},{"id":"b","status":"DONE"}]}')
@example(b'{"videos":[{"id":"a","status":"DONE","name":"\xff"}]}')
@example(b'{"videos":[{"id":"a","createdAt":"0001-01-01T00:00:00+01:00"}]}')
@example(b'{"videos":[{"id":"a","status":"DONE","new":"\xff"},3],"new":"\\ude00"}')
@example(b'{"videos":[{"id":"a"},{"id":"a","status":"DONE"}],"count":"x"}')
@example(b'{"videos":[{"id":""},{"id":""}]}')
def test_any_list_is_read_or_refused(body):
    """P7: all ways to read a list agree; any other body is an InvalidResponseError."""
    try:
        records = parse(body)
    except q.InvalidResponseError as error:
        checked_error(error)
    else:
        checked_list(records)


def refused(constant):
    raise ValueError(f"{constant} is not JSON")


def named(body):
    """Return the ids of a receipt by Python's own decoder, once each, and whether every one can be read.

    An id that can be read is a text that isn't blank and has no replaced character.
    """
    try:
        stated = json.loads(body.decode("utf-8", "replace"), strict=False, parse_constant=refused)
    except (ValueError, RecursionError):
        return (), False
    listed = stated.get("createdRecordIds") if isinstance(stated, dict) else None
    if not isinstance(listed, list):
        return (), False
    whole_ones = [
        one
        for one in listed
        if isinstance(one, str) and one.strip() and "\ufffd" not in one and one == whole(one)
    ]
    return tuple(dict.fromkeys(whole_ones)), len(whole_ones) == len(listed) > 0


@FUZZ
@given(st.one_of(bodies, receipts.map(encoded)), headers)
@example(b'{"createdRecordIds":["a"],"orderId":"cut \\ud83d"}', {})
@example(b'{"createdRecordIds":["a","cut \\ud83d"]}', {})
@example(b'{"createdRecordIds":["b",null,"a"," ","b"]}', {})
def test_any_receipt_has_its_ids_or_is_refused_with_the_readable_ones(body, sent_headers):
    """P4, P7: no receipt is without an id, and no id that the server named is lost."""
    refusal = None
    try:
        receipt = parse_receipt(response(body, 200, sent_headers))
    except q.InvalidResponseError as error:
        refusal = error

    ids, all_are = named(body)
    if refusal is None:
        assert all_are
        assert receipt.record_ids == ids
        assert type(receipt.credits_reserved) in (int, type(None))
    else:
        checked_error(refusal)
        assert not all_are
        assert refusal.record_ids == ids


@FUZZ
@given(st.one_of(bodies, errors.map(encoded)), statuses, headers)
@example(b'{"error":"Required: 999999999999999999, available: 5"}', 402, {})
@example(b'{"error":"no such suggestion: cut \\ud83d"}', 400, {})
def test_any_other_response_is_an_error(body, status, sent_headers):
    """P7: the error has the status and a bounded Retry-After, and only the API's shape is a rejection."""
    error = parse_error(response(body, status, sent_headers))

    checked_error(error)
    assert error.status == status
    rejected = is_definite_rejection(response(body, status, sent_headers))
    if isinstance(error, q.ApiError):
        assert error.retry_after is None or 0 <= error.retry_after <= 3600
        assert rejected is (400 <= status < 500 and status not in (408, 409) and not error.foreign)
    else:
        assert not rejected


@FUZZ
@given(
    st.lists(good_items(), max_size=5, unique_by=lambda pair: pair[0]["id"]), st.integers(0, 9) | st.none()
)
def test_documented_list_is_read_as_meant(pairs, count):
    """Fields may be added and come in any order, and null is the same as absent."""
    items = [written for _, written in pairs]

    records = parse(encoded({"videos": items, "count": count}))

    checked_list(records)
    assert records.broken == 0
    assert records.complete is (count is None or count <= len(pairs))
    for (meant, _), video in zip(pairs, records, strict=True):
        assert (video.id, video.status) == (meant["id"], meant["status"])
        assert (video.name, video.thumbnail, video.voting, video.video_url) == (
            whole(meant["name"]),
            whole(meant["thumbnail"]),
            whole(meant["voting"]),
            whole(meant["videoUrl"]),
        )
        moment = meant["createdAt"] not in (None, "yesterday")
        assert video.created_at == (datetime(2026, 3, 20, 17, tzinfo=UTC) if moment else None)


@FUZZ
@given(st.lists(good_items().map(lambda pair: pair[1]), max_size=5))
def test_lenient_decoder_reads_the_same_as_the_fast_one(items):
    """A broken item makes the whole list go through the lenient decoder."""
    fast = parse(encoded({"videos": items}))
    lenient = parse(encoded({"videos": [*items, 7]}))

    assert list(lenient) == list(fast)
    assert lenient.broken == fast.broken + 1


@FUZZ
@given(good_receipts)
def test_documented_receipt_is_read_as_meant(pair):
    """Fields may be added and come in any order; each id is named once, in the server's order."""
    meant, written = pair

    receipt = parse_receipt(response(encoded(written)))

    assert receipt == q.Receipt(
        tuple(dict.fromkeys(meant["createdRecordIds"])),
        whole(meant["batchId"]),
        whole(meant["orderId"]),
        whole(meant["reservationId"]),
        meant["creditsReserved"],
    )


@FUZZ
@given(good_items(), st.lists(st.binary(max_size=20), max_size=3))
def test_good_item_among_broken_ones_is_read(pair, broken):
    """Case 50: a broken item hides no other, as long as the list is JSON."""
    meant, written = pair
    body = encoded({"videos": [*(noise.hex() for noise in broken), written, *(len(n) for n in broken)]})

    records = parse(body)

    assert (records.broken, list(records.entries)) == (2 * len(broken), [meant["id"]])
    assert records.get(meant["id"]).video_url == whole(meant["videoUrl"])


@pytest.mark.parametrize("bulk", BULKS)
def test_memory_is_a_multiple_of_the_body(bulk):
    """P7: the limit of the body limits the memory, up to the size of Python's smallest objects."""
    head, unit, tail = BULKS[bulk]
    body = head + unit * (60_000 // len(unit)) + tail
    peaks = []
    for parse_body in (
        lambda: parse_receipt(response(body)),
        lambda: parse(body),
        lambda: parse_error(response(body, 400)),
    ):
        tracemalloc.start()
        try:
            parse_body()
        except q.InvalidResponseError:
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    assert max(peaks) <= 40 * len(body) + 100_000
