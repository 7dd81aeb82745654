"""Responses and errors."""

from datetime import UTC, datetime

import pytest
from responses import response

import qamera_async as q
from qamera_async._protocol import Response, is_definite_rejection, parse_error, retry_after


@pytest.mark.parametrize(
    ("status", "error_type"),
    [
        (400, q.BadRequestError),
        (401, q.AuthenticationError),
        (402, q.InsufficientCreditsError),
        (403, q.PermissionDeniedError),
        (404, q.NotFoundError),
        (407, q.ApiError),
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
def test_each_status_has_its_error(status, error_type):
    error = parse_error(response({"error": "Why."}, status, x_correlation_id="c-1"))

    assert type(error) is error_type
    assert error.status == status
    assert error.correlation_id == "c-1"


@pytest.mark.parametrize(
    ("body", "message", "foreign"),
    [
        ({"error": "Plain."}, "Plain.", False),
        ({"error": ""}, "", False),
        ({"error": {"code": "no", "message_i18n": {"en": "Nested."}}}, "Nested.", False),
        ({"error": {"code": "no", "message_i18n": "Text."}}, "Text.", False),
        ({"error": {"code": "no_credit", "message": ""}}, "no_credit", False),
        (b'{"error":"caf\xe9"}', "caf\ufffd", False),
        (b'{"error":"cut \\ud83d"}', "cut \ufffd", False),
        (b"<html>403</html>", "<html>403</html>", True),
        (b"\xff\xfe", "\ufffd\ufffd", True),
        ([1], "[1]", True),
        ({"error": None}, '{"error": null}', True),
        ({"error": {}}, '{"error": {}}', True),
        ({"error": {"status": 403}}, '{"error": {"status": 403}}', True),
    ],
)
def test_error_text_is_read_in_both_shapes_of_the_api(body, message, foreign):
    error = parse_error(response(body, 403))

    assert (error.message, error.foreign) == (message, foreign)


def test_numbers_of_a_402_are_read():
    error = parse_error(response({"error": "Insufficient credits. Required: 5, available: 2."}, 402))
    other = parse_error(response({"error": "No."}, 402))

    assert (error.required, error.available) == (5, 2)
    assert (other.required, other.available) == (None, None)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("5", 5.0),
        (" 5 ", 5.0),
        ("0", 0.0),
        ("1.5", 1.5),
        ("1000000000", 3600.0),
        *(
            (bad, None)
            for bad in ("", "-1", "nan", "inf", "1e9", "0x10", "٣", "5\n5", "Wed, 21 Oct 2026 07:28:00 GMT")
        ),
    ],
)
def test_retry_after_is_a_bounded_number_of_seconds_or_none(value, seconds):
    assert retry_after({"retry-after": value}) == seconds
    assert parse_error(response({"error": "x"}, 429, retry_after=value)).retry_after == seconds


@pytest.mark.parametrize(
    ("status", "body", "rejected"),
    [
        (400, {"error": "x"}, True),
        (402, {"error": "x"}, True),
        (407, {"error": "x"}, True),
        (418, {"error": {"code": "x"}}, True),
        (429, {"error": "x"}, True),
        (400, b"<html>", False),
        (400, {"error": {}}, False),
        (400, {"message": "x"}, False),
        (407, b"<html>", False),
        (429, b"<html>", False),
        (429, b"", False),
        (408, {"error": "x"}, False),
        (409, {"error": "x"}, False),
        (200, {"error": "x"}, False),
        (307, {"error": "x"}, False),
        (500, {"error": "x"}, False),
    ],
)
def test_only_a_4xx_in_the_shape_of_the_api_is_a_definite_rejection(status, body, rejected):
    assert is_definite_rejection(response(body, status)) is rejected


@pytest.mark.parametrize(
    ("date", "moment"),
    [
        ("Tue, 24 Nov 2026 10:00:00 GMT", datetime(2026, 11, 24, 10, tzinfo=UTC)),
        ("Tue, 24 Nov 2026 10:00:00 +0100", datetime(2026, 11, 24, 9, tzinfo=UTC)),
        ("Fri, 31 Dec 9999 23:59:59 -0100", None),
        ("Wed, 21 Oct 2020 07:28:00 +9999999999999", None),
        ("Wed, 99999999999999999999 Jan 2020 07:28:00 GMT", None),
        ("soon", None),
        (None, None),
    ],
)
def test_date_is_aware_and_in_utc_or_none(date, moment):
    assert Response(200, {} if date is None else {"date": date}, b"").date == moment


@pytest.mark.parametrize(
    ("value", "expected"), [("c-1", "c-1"), (" ", None), ("é\udcff", "??"), (None, None)]
)
def test_correlation_id_is_printable_or_none(value, expected):
    headers = {} if value is None else {"x-correlation-id": value}

    assert Response(200, headers, b"").correlation_id == expected


def test_correlation_id_is_short():
    assert len(Response(200, {"x-correlation-id": "x" * 8_000}, b"").correlation_id) == 200


@pytest.mark.parametrize(
    ("body", "excerpt"),
    [(b"", ""), (b"x" * 200, "x" * 200), (b"x" * 201, "x" * 200 + "..."), (b"x" * 50_000, "x" * 200 + "...")],
)
def test_excerpt_is_the_beginning_of_the_body(body, excerpt):
    assert Response(200, {}, body).excerpt() == excerpt
