"""Receipts."""

import pytest
from responses import response

import qamera_async as q
from qamera_async._protocol import parse_receipt

DOCUMENTED = {
    "createdRecordIds": ["vid_1", "vid_2"],
    "batchId": "batch_1",
    "orderId": "order_1",
    "reservationId": "res_1",
    "creditsReserved": 10,
}


def test_documented_receipt_is_read():
    receipt = parse_receipt(response(DOCUMENTED, x_correlation_id="c-1"))

    assert receipt == q.Receipt(("vid_1", "vid_2"), "batch_1", "order_1", "res_1", 10, "c-1")


@pytest.mark.parametrize("field", ["batchId", "orderId", "reservationId", "creditsReserved"])
@pytest.mark.parametrize("value", ["absent", None, [], {}, True, -1, 1.5, 2**63])
def test_all_fields_but_the_ids_may_be_missing_or_invalid(field, value):
    body = DOCUMENTED | {field: value}
    if value == "absent":
        del body[field]

    receipt = parse_receipt(response(body))

    assert receipt.record_ids == ("vid_1", "vid_2")
    kept = (receipt.batch_id, receipt.order_id, receipt.reservation_id, receipt.credits_reserved)
    expected = [None if name == field else DOCUMENTED[name] for name in list(DOCUMENTED)[1:]]
    assert list(kept) == expected


def test_bytes_that_are_not_utf8_outside_the_ids_are_replaced():
    receipt = parse_receipt(response(b'{"createdRecordIds":["a"],"orderId":"caf\xe9"}'))

    assert receipt == q.Receipt(("a",), order_id="caf\ufffd")


def test_repeated_id_appears_once():
    assert parse_receipt(response({"createdRecordIds": ["a", "b", "a"]})).record_ids == ("a", "b")


def test_lone_surrogate_outside_the_ids_is_replaced():
    receipt = parse_receipt(response(b'{"createdRecordIds":["a"],"orderId":"cut \\ud83d"}'))

    assert receipt == q.Receipt(("a",), order_id="cut \ufffd")


@pytest.mark.parametrize(
    ("ids", "readable"),
    [
        ("[]", ()),
        ("null", ()),
        ('"vid_1"', ()),
        ('{"vid_1":1}', ()),
        ('["a",5,"b"]', ("a", "b")),
        ('["a",null]', ("a",)),
        ('["a",""," "]', ("a",)),
        ('["b",["c"],"a","b"]', ("b", "a")),
        ('["a","cut \\ud83d"]', ("a",)),
        ('["a","\\ufffd"]', ("a",)),
        ('["a","b\udcff"]', ("a",)),
    ],
)
def test_receipt_with_an_unreadable_id_is_an_error_with_the_readable_ones(ids, readable):
    with pytest.raises(q.InvalidResponseError) as unreadable:
        parse_receipt(
            response(f'{{"createdRecordIds":{ids},"orderId":"order_1"}}'.encode(errors="surrogateescape"))
        )

    assert unreadable.value.record_ids == readable
    assert unreadable.value.status == 200
    assert "createdRecordIds" in unreadable.value.expected
    assert "order_1" in unreadable.value.excerpt


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"3",
        b"{}",
        b"<html></html>",
        b'\xef\xbb\xbf{"createdRecordIds":["a"]}',
        '{"createdRecordIds":["a"]}'.encode("utf-16"),
        b'{"createdRecordIds":["a\xff"]}',
        b'{"createdRecordIds":["a"]',
        b'{"createdRecordIds":["a"]}{}',
        b"[" * 100_000,
        b'{"createdRecordIds":' + b"[" * 100_000,
        b'{"createdRecordIds":["a"],"creditsReserved":' + b"9" * 10_000 + b"}",
        b'{"createdRecordIds":["a"],"creditsReserved":NaN}',
        b'{"createdRecordIds":["a"],"creditsReserved":-Infinity}',
    ],
    ids=lambda body: repr(body[:40]),
)
def test_body_that_is_not_json_is_an_error(body):
    with pytest.raises(q.InvalidResponseError) as unreadable:
        parse_receipt(response(body))

    assert unreadable.value.record_ids == ()
    assert len(unreadable.value.excerpt) <= 203
