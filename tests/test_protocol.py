"""The wire, by table: bytes out, models or errors in."""

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

import qamera_async as q
from qamera_async import _protocol as protocol
from qamera_async._protocol import Answer

RULES = q.StatusRules()


def answer(body, status=200, **headers):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Answer(status, {k.replace("_", "-"): v for k, v in headers.items()}, raw)


@pytest.mark.parametrize(
    ("request_", "path", "body"),
    [
        (
            q.VideoRequest(
                image_id="a", suggestion="s", provider="p", ref="never sent", extra_body={"x": [1]}
            ),
            "/api/external/video-picker/register-videos",
            {"imageId": "a", "suggestion": "s", "provider": "p", "x": [1]},
        ),
        (
            q.VideoRequest(generated_image_id="g"),
            "/api/external/video-picker/register-videos",
            {"generatedImageId": "g"},
        ),
        (q.ReelRequest(["a", "b"]), "/api/external/reel/register-reel", {"imagesIds": ["a", "b"]}),
    ],
)
def test_a_request_becomes_bytes(request_, path, body):
    """Only what is set is sent, under the API's names; ref never."""
    assert protocol.encode(request_)[0] == path
    assert json.loads(protocol.encode(request_)[1]) == body


def test_extra_cannot_replace_a_field():
    """A field that the library sends is not for extra_body."""
    with pytest.raises(q.InvalidRequestError, match="imageId"):
        protocol.encode(q.VideoRequest(image_id="a", extra_body={"imageId": "b"}))


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, q.BadRequestError),
        (401, q.AuthenticationError),
        (402, q.InsufficientCreditsError),
        (403, q.PermissionDeniedError),
        (404, q.NotFoundError),
        (418, q.ApiError),
        (429, q.RateLimitError),
        (500, q.ServerError),
        (503, q.ServerError),
        (0, q.InvalidResponseError),
        (101, q.InvalidResponseError),
        (204, q.InvalidResponseError),
        (304, q.InvalidResponseError),
        (307, q.InvalidResponseError),
        (999, q.InvalidResponseError),
    ],
)
def test_each_status_has_its_error(status, kind):
    """The class, the status, the text, the correlation id."""
    error = protocol.error_of(answer({"error": "Why."}, status, x_correlation_id="c-1"))

    assert type(error) is kind
    assert error.status == status
    assert error.correlation_id == "c-1"


@pytest.mark.parametrize(
    ("body", "text", "foreign"),
    [
        ({"error": "Plain."}, "Plain.", False),
        ({"error": {"code": "no", "message_i18n": {"en": "Nested."}}}, "Nested.", False),
        ({"error": {"code": "no_credit"}}, "no_credit", False),
        (b"<html>403</html>", "<html>403</html>", True),
        (b"\xff\xfe", "��", True),
        ([1], "[1]", True),
        ({"error": None}, '{"error": null}', True),
    ],
)
def test_both_shapes_of_an_error_are_read(body, text, foreign):
    """And what has neither is foreign, with an excerpt."""
    error = protocol.error_of(answer(body, 403))

    assert (error.message, error.foreign) == (text, foreign)


def test_the_numbers_of_a_402_are_read():
    """Required and available; None where the text has none."""
    error = protocol.error_of(answer({"error": "Insufficient credits. Required: 5, available: 2."}, 402))
    other = protocol.error_of(answer({"error": "No."}, 402))

    assert (error.required, error.available) == (5, 2)
    assert (other.required, other.available) == (None, None)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("5", 5.0),
        ("0", 0.0),
        ("1.5", 1.5),
        ("1000000000", 3600.0),
        *(
            (bad, None)
            for bad in ("", "-1", "nan", "inf", "1e9", "0x10", "٣", "Wed, 21 Oct 2026 07:28:00 GMT")
        ),
    ],
)
def test_retry_after_is_bounded_and_garbage_ignored(value, seconds):
    """Seconds in ASCII digits, an hour at most."""
    assert protocol.retry_after({"retry-after": value}) == seconds


@pytest.mark.parametrize(
    ("status", "body", "refused"),
    [
        (400, {"error": "x"}, True),
        (418, {"error": {"code": "x"}}, True),
        (400, b"<html>", False),
        (408, {"error": "x"}, False),
        (409, {"error": "x"}, False),
        *((status, {"error": "x"}, True) for status in (407, 429)),
        *((status, {"error": {"code": "x"}}, True) for status in (407, 429)),
        *(
            (status, body, False)
            for status in (407, 429)
            for body in (b"<html>", b"", {"message": "x"}, {"error": 429}, {"error": None}, ["error"])
        ),
        (500, {"error": "x"}, False),
        (307, {"error": "x"}, False),
    ],
)
def test_what_proves_that_an_order_was_not_taken(status, body, refused):
    """The table "What happens to a POST"."""
    assert protocol.is_refusal(answer(body, status)) is refused


def test_a_receipt_needs_only_its_ids():
    """All else may be missing or of a wrong type; more ids than one are kept."""
    full = {
        "createdRecordIds": ["a", "b"],
        "batchId": "b",
        "orderId": "o",
        "reservationId": "r",
        "creditsReserved": 9,
    }

    assert protocol.read_receipt(answer(full)) == q.Receipt(("a", "b"), "b", "o", "r", 9)
    assert protocol.read_receipt(
        answer({"createdRecordIds": ["a"], "batchId": 3, "creditsReserved": "x"})
    ) == (q.Receipt(("a",)))


BAD_BODIES = [
    b"",
    b"null",
    b"[]",
    b"3",
    b"<html></html>",
    b"\xff\xfe{}",
    b"\xef\xbb\xbf{}",
    b"[" * 100_000,
    b'{"createdRecordIds":' + b"[" * 100_000,
    b'{"videos":' + b"[" * 100_000,
    b'{"createdRecordIds":' + b"9" * 10_000 + b"}",
    b'{"videos":NaN}',
    b'{"videos":[',
    b'{"createdRecordIds":[]}',
    b'{"createdRecordIds":[""]}',
    b'{"createdRecordIds":[3]}',
    b'{"createdRecordIds":"a"}',
    b'{"videos":{}}',
    b"{}",
]


@pytest.mark.parametrize("body", BAD_BODIES, ids=lambda b: b[:30].decode("latin-1"))
def test_what_nobody_can_read_is_typed(body):
    """InvalidResponseError with an excerpt, whoever reads it."""
    for read in (
        protocol.read_receipt,
        protocol.read_listing,
        lambda a: protocol.read_videos(a, RULES),
    ):
        with pytest.raises(q.InvalidResponseError) as unreadable:
            read(answer(body))
        assert unreadable.value.status == 200


@given(st.binary(max_size=200), st.integers(0, 999))
def test_nothing_but_our_errors_comes_out(body, status):
    """P7: whatever the server sends."""
    raw = answer(body, status, date=body.decode("latin-1"), retry_after=body.decode("latin-1"))
    assert isinstance(protocol.error_of(raw), q.QameraError)
    assert isinstance(protocol.is_refusal(raw), bool)
    assert raw.date is None or raw.date.tzinfo is not None
    for read in (protocol.read_receipt, protocol.read_listing, lambda a: protocol.read_videos(a, RULES)):
        try:
            read(raw)
        except q.InvalidResponseError:
            pass


ITEM = {"id": "a", "status": "DONE", "videoUrl": "u", "createdAt": "2026-03-20T17:00:00.000Z"}


def test_one_broken_item_hides_no_other():
    """The good ones are served, the broken ones counted."""
    body = {
        "videos": [3, {"id": 5}, ITEM, None, {"id": "b", "status": 7, "name": []}, {"id": " "}],
        "count": 6,
    }
    listing = protocol.read_listing(answer(body))
    videos = protocol.read_videos(answer(body), RULES)

    assert listing == protocol.Listing({"a": "DONE", "b": ""}, True, 4)
    assert [v.id for v in videos] == ["a", "b"]
    assert videos[1].state is q.JobState.PENDING
    assert protocol.read_some(answer(body), ["b", "zz"], listing, RULES) == {"b": videos[1]}


@pytest.mark.parametrize(("count", "complete"), [(1, True), (0, True), (2, False), (None, True), ("x", True)])
def test_a_count_above_what_came_means_incomplete(count, complete):
    """An absence doesn't count in a list that was cut."""
    assert protocol.read_listing(answer({"videos": [ITEM], "count": count})).complete is complete


def test_only_what_is_asked_for_becomes_objects():
    """Ids and statuses of all, videos of some; unknown fields are ignored."""
    body = {"videos": [{"id": f"v{n}", "status": "DONE", "new": {"x": 1}} for n in range(5)], "count": 5}
    listing = protocol.read_listing(answer(body))

    assert len(listing.statuses) == 5
    assert list(protocol.read_some(answer(body), ["v3"], listing, RULES)) == ["v3"]


def test_a_moment_is_aware_and_utc():
    """CreatedAt is a datetime, or None where it is none."""
    (good,) = protocol.read_videos(answer({"videos": [ITEM]}), RULES)
    (bad,) = protocol.read_videos(answer({"videos": [{"id": "a", "createdAt": "yesterday"}]}), RULES)

    assert good.created_at.isoformat() == "2026-03-20T17:00:00+00:00"
    assert bad.created_at is None


MANY = 250_001


@pytest.mark.parametrize(
    "body",
    [
        b'{"videos":[' + b'{"id":"a","b":1.0},' * MANY + b'{"id":"b"}]}',
        b'{"videos":[1,' + b"{}," * 4 * MANY + b'{"id":"b"}]}',
        b'{"videos":[' + b"1," * 4 * MANY + b'{"id":"b"}]}',
        b'{"videos":[{"id":"b"}],"count":[' + b"1," * 4 * MANY + b"1]}",
    ],
    ids=["good", "braces", "numbers", "elsewhere"],
)
def test_a_list_of_more_items_than_memory_is_for_is_not_made_anything_of(body):
    """P7: what a list is made into takes many times its bytes where its items are short."""
    for read in (protocol.read_listing, lambda a: protocol.read_videos(a, RULES)):
        tracemalloc.start()
        try:
            with pytest.raises(q.InvalidResponseError, match="at most 250,000 videos"):
                read(answer(body))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

        assert peak < 1024 * 1024


def test_a_list_of_a_hundred_thousand_with_a_broken_item_is_read():
    """The limits are far above what there will be."""
    fields = b'"name":"a","thumbnail":"b","videoUrl":"c","status":"DONE","voting":"d","createdAt":""'
    items = b",".join(b'{"id":"v%06d",%s}' % (n, fields) for n in range(100_000))
    body = b'{"videos":[%s,7],"count":100001}' % items
    listing = protocol.read_listing(answer(body))

    assert (len(listing.statuses), listing.broken) == (100_000, 1)
