"""The API key is in no error and in no local variable of its traceback, even if the server echoes the key."""

import json
import traceback

import pytest
from responses import response

import qamera_async as q
from qamera_async._protocol import VIDEOS, Response, parse_error, parse_list, parse_receipt

SECRET = "S3CRETcanary0123456789"  # noqa: S105 - a canary
KEY = f"mk_live_canary.{SECRET}"
RULES = q.StatusRules()
HEADERS = {"x_correlation_id": f"{'x' * 190} {KEY}", "retry_after": KEY, "date": KEY, "etag": f'"{KEY}"'}


def redact(text):
    return text.replace(KEY, "***").replace(SECRET, "***")


def echo(body, status=200):
    return response(body, status, redact, **HEADERS)


def raised(read, *args):
    with pytest.raises(q.QameraError) as caught:
        read(*args)
    return caught.value


def visible(error):
    """Return the text, the attributes and all local variables of an error."""
    shown = [str(error), repr(error), repr(error.args), repr(vars(error))]
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if "qamera_async" in frame.f_code.co_filename:
            shown += [f"{name}={value!r}" for name, value in frame.f_locals.items()]
    return "\n".join(shown)


def receipt_error(body):
    return raised(parse_receipt, echo(body))


def list_error(body):
    return raised(parse_list, echo(body), VIDEOS, RULES)


UNREADABLE = [
    f"<html>{KEY}</html>".encode(),
    json.dumps({"createdRecordIds": [KEY, "vid_1", 5], "orderId": KEY, "videos": KEY}).encode(),
    json.dumps({KEY: [KEY], "videos": {KEY: KEY}}).encode(),
    f'{{"videos":[{{"id":"{KEY}"'.encode(),
    f'{{"{KEY}":[{"[" * 100_000}'.encode(),
    f'{{"videos":[],"count":{"9" * 10_000},"a":"{KEY}"}}'.encode(),
    b'{"videos":["\xff",NaN,"' + KEY.encode() + b'"]}',
]


@pytest.mark.parametrize("read", [receipt_error, list_error])
@pytest.mark.parametrize("body", UNREADABLE, ids=lambda body: repr(body[:30]))
def test_unreadable_body_is_in_no_local_variable(read, body):
    error = read(body)

    assert SECRET not in visible(error)
    assert (error.__cause__, error.__context__) == (None, None)


def test_known_list_is_in_no_local_variable():
    known = parse_list(echo({"videos": [{"id": KEY, "status": KEY, "name": KEY}]}), VIDEOS, RULES)

    error = raised(parse_list, echo(b"<html>"), VIDEOS, RULES, known)

    assert SECRET not in visible(error) + repr(known)


def test_readable_ids_of_a_receipt_are_without_the_key():
    error = raised(parse_receipt, echo({"createdRecordIds": ["vid_1", KEY, f"a{SECRET}b", 5]}))

    assert error.record_ids == ("vid_1",)


@pytest.mark.parametrize("status", [204, 302, 400, 402, 403, 429, 500])
@pytest.mark.parametrize(
    "body",
    [{"error": f"No {KEY}."}, {"error": {"code": KEY, "message_i18n": {KEY: KEY}}}, KEY.encode(), {KEY: KEY}],
    ids=lambda body: type(body).__name__,
)
def test_error_that_echoes_the_key_is_without_it(body, status):
    assert SECRET not in visible(parse_error(echo(body, status)))


@pytest.mark.parametrize("length", range(1_960, 2_001))
def test_no_part_of_the_key_is_left_where_a_message_is_cut(length):
    error = parse_error(echo({"error": f"{'x' * length}{KEY}{KEY}"}, 400))

    assert SECRET[:3] not in error.message
    assert "mk_live" not in error.message


@pytest.mark.parametrize("length", range(160, 201))
def test_no_part_of_the_key_is_left_where_an_excerpt_or_a_header_is_cut(length):
    text = f"{'x' * length}{KEY}{KEY}"
    shown = Response(200, {"x-correlation-id": text}, text.encode(), redact)

    for cut in (shown.excerpt(), shown.correlation_id):
        assert SECRET[:3] not in cut
        assert "mk_live" not in cut


@pytest.mark.parametrize("key", ["k" * 30, "k" * 1_000, "k" * 8_000], ids=["30", "1000", "8000"])
@pytest.mark.parametrize("before", ["", "é", "😀" * 50], ids=["1 byte", "2 bytes", "4 bytes"])
def test_no_part_of_the_key_is_left_of_a_body_that_repeats_it(key, before):
    """Replacing the key shortens the text, so later parts of the body move into the excerpt."""
    body = (before + f"{key}-" * (200_000 // len(key))).encode()

    shown = Response(200, {}, body, lambda text: text.replace(key, "***"))

    assert "k" not in shown.excerpt()
    assert (
        "k"
        not in parse_error(
            Response(400, {}, json.dumps({"error": body.decode()}).encode(), shown.redact)
        ).message
    )


def test_status_that_echoes_the_key_is_redacted_everywhere():
    records = parse_list(echo({"videos": [{"id": "a", "status": KEY}]}), VIDEOS, RULES)

    assert records.status("a") == "***"
    assert records.get("a").status == "***"
    assert SECRET not in records.encode_items(["a"])["a"]


def test_response_shows_neither_headers_nor_body():
    assert repr(echo(KEY.encode())) == "Response(status=200)"
