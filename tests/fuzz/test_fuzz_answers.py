"""Whatever a server answers, the readers give what was meant or a QameraError."""

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
from qamera_async import _protocol as protocol
from qamera_async._protocol import Answer

RULES = q.StatusRules()
FUZZ = settings.get_profile("values")
LONGEST_EXCERPT = 203  # characters, its dots among them
statuses = st.one_of(
    st.sampled_from([200, 400, 401, 402, 403, 404, 407, 409, 429, 500, 503]), st.integers(0, 999)
)


def answer(body, status=200, sent_headers=None):
    return Answer(status, sent_headers or {}, body)


def listed(body):
    """All that is read of a list, as the poller and a user's program read it."""
    listing = protocol.read_listing(answer(body))
    some = protocol.read_some(answer(body), [*listing.statuses, "nobody's"], listing, RULES)
    return listing, some, protocol.read_videos(answer(body), RULES)


def held_together(listing, some, videos):
    """The two ways to read one list say the same; of doubled ids the last one counts."""
    assert set(some) == set(listing.statuses) == {video.id for video in videos}
    assert some == {video.id: video for video in videos}
    for record_id, status in listing.statuses.items():
        assert some[record_id].status == (status if RULES.knows(status) else status[:100])
    assert all(video.created_at is None or video.created_at.utcoffset().seconds == 0 for video in videos)
    assert all(video.video_url != "" for video in videos)


def checked_error(error):
    """It is ours, says something, is of bounded length where it shows what came, and pickles."""
    assert isinstance(error, q.QameraError)
    assert len(getattr(error, "excerpt", "")) <= LONGEST_EXCERPT
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
def test_any_list_is_read_the_same_both_ways_or_refused(body):
    """P7: ids and statuses, the videos asked for, and all videos agree; else InvalidResponseError."""
    try:
        read = listed(body)
    except q.InvalidResponseError as error:
        checked_error(error)
        with pytest.raises(q.InvalidResponseError):
            protocol.read_videos(answer(body), RULES)
    else:
        held_together(*read)


def refused(constant):
    raise ValueError(f"{constant} is no JSON")


def named(body):
    """Give the ids of a receipt by Python's own reader, once each; whether all of the list are ids.

    An id is a text that isn't blank and has no character that could not be read.
    """
    try:
        stated = json.loads(body.decode(), parse_constant=refused)
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
def test_any_receipt_has_its_ids_or_is_refused_with_those_that_are_readable(body, sent_headers):
    """P4, P7: no receipt without an id, and no id that the server named is forgotten."""
    refusal = None
    try:
        receipt = protocol.read_receipt(answer(body, 200, sent_headers))
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
def test_any_answer_that_says_no_is_an_error_of_ours(body, status, sent_headers):
    """P7: with its status, a bounded wait, and no number that wasn't there."""
    error = protocol.error_of(answer(body, status, sent_headers))

    checked_error(error)
    assert error.status == status
    if isinstance(error, q.ApiError):
        assert error.retry_after is None or 0 <= error.retry_after <= 3600
        refusal = protocol.is_refusal(answer(body, status, sent_headers))
        assert not refusal or (400 <= status < 500 and not error.foreign)
    else:
        assert not protocol.is_refusal(answer(body, status, sent_headers))


@FUZZ
@given(
    st.lists(good_items(), max_size=5, unique_by=lambda pair: pair[0]["id"]), st.integers(0, 9) | st.none()
)
def test_a_documented_list_is_what_was_meant(pairs, count):
    """Whatever fields are added, in whatever order; null is the same as absent."""
    body = encoded({"videos": [written for _, written in pairs], "count": count})

    listing, some, videos = listed(body)

    held_together(listing, some, videos)
    assert listing.broken == 0
    assert listing.complete is (count is None or count <= len(pairs))
    for (meant, _), video in zip(pairs, videos, strict=True):
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
@given(good_receipts)
def test_a_documented_receipt_is_what_was_meant(pair):
    """Whatever fields are added, in whatever order; each id once, in the server's order."""
    meant, written = pair

    receipt = protocol.read_receipt(answer(encoded(written)))

    assert receipt == q.Receipt(
        tuple(dict.fromkeys(meant["createdRecordIds"])),
        whole(meant["batchId"]),
        whole(meant["orderId"]),
        whole(meant["reservationId"]),
        meant["creditsReserved"],
    )


@FUZZ
@given(good_items(), st.lists(st.binary(max_size=20), max_size=3))
def test_a_good_video_among_broken_ones_is_served(pair, broken):
    """Case 50: what else is in the list hides nothing, as long as it is JSON."""
    meant, written = pair
    body = encoded({"videos": [*(noise.hex() for noise in broken), written, *(len(n) for n in broken)]})

    listing, some, _ = listed(body)

    assert (listing.broken, list(some)) == (2 * len(broken), [meant["id"]])
    assert some[meant["id"]].video_url == whole(meant["videoUrl"])


@pytest.mark.parametrize("bulk", BULKS)
def test_no_reader_takes_more_than_a_multiple_of_the_body(bulk):
    """P7: the limit of the body is one of the memory, up to what Python's smallest objects take."""
    head, unit, tail = BULKS[bulk]
    raw = answer(head + unit * (60_000 // len(unit)) + tail)
    peaks = []
    for read in (
        protocol.read_receipt,
        protocol.read_listing,
        lambda a: protocol.read_videos(a, RULES),
        protocol.error_of,
    ):
        tracemalloc.start()
        try:
            read(raw)
        except q.InvalidResponseError:
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    assert max(peaks) <= 40 * len(raw.body) + 100_000
