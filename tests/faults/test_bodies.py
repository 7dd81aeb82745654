"""Unreadable response bodies: a POST is ambiguous, a list raises a typed error, and a poll is repeated."""

import asyncio
import gzip

import pytest
from faults import (
    CALLS,
    FREQUENT_POLLS,
    GOOD,
    HEAD,
    LIST,
    RECEIPT,
    FaultServer,
    ambiguous_error,
    answers,
    assert_nothing_left,
    http,
)

import qamera_async as q

pytestmark = [
    pytest.mark.usefixtures("no_lost_exceptions"),
    pytest.mark.every_loop,
    pytest.mark.case(104),
]

GZIP = b"Content-Encoding: gzip\r\n"
DEEP = b"[" * 100_000
LONG = b"9" * 10_000
ONE = b'{"id":"vid_1","status":"DONE","videoUrl":"https://cdn.example.com/a.mp4"}'


def both(answer):
    return answer, answer


def receipt_with(value):
    return http(b'{"createdRecordIds":["vid_1"],"creditsReserved":%s}' % value)


def list_with(count):
    return http(b'{"videos":[%s],"count":%s}' % (ONE, count))


# Case number, name, response to a POST, response to a GET, status of both.
TROUBLE = [
    (36, "empty 200", *both(http(b"")), 200),
    (36, "empty 200 without a length", *both(HEAD + b"Connection: close\r\n\r\n"), 200),
    (36, "204", *both(b"HTTP/1.1 204 No Content\r\n\r\n"), 204),
    (37, "HTML", *both(http(b"<html>Down for maintenance</html>", content_type=b"text/html")), 200),
    (37, "HTML that says JSON", *both(http(b"<html>Down for maintenance</html>")), 200),
    (37, "an odd charset", *both(http(b"{", content_type=b"application/json; charset=odd")), 200),
    (38, "null", *both(http(b"null")), 200),
    (38, "a list", *both(http(b"[]")), 200),
    (38, "a number", *both(http(b"3")), 200),
    (38, "a text", *both(http(b'"vid_1"')), 200),
    (38, "an empty object", *both(http(b"{}")), 200),
    (38, "null for the records", http(b'{"createdRecordIds":null}'), http(b'{"videos":null}'), 200),
    (38, "text for the records", http(b'{"createdRecordIds":"vid_1"}'), http(b'{"videos":"vid_1"}'), 200),
    (38, "an object for the records", http(b'{"createdRecordIds":{"vid_1":1}}'), http(b'{"videos":{}}'), 200),
    (
        39,
        "truncated gzip",
        http(gzip.compress(RECEIPT)[:-12], headers=GZIP),
        http(gzip.compress(LIST)[:-12], headers=GZIP),
        200,
    ),
    (
        39,
        "truncated gzip that ends with the connection",
        HEAD + GZIP + b"Connection: close\r\n\r\n" + gzip.compress(RECEIPT)[:-12],
        HEAD + GZIP + b"Connection: close\r\n\r\n" + gzip.compress(LIST)[:-12],
        200,
    ),
    (
        41,
        "invalid UTF-8",
        http(RECEIPT.replace(b"vid_1", b"vid_\xff")),
        http(LIST.replace(b'"videos"', b'"vid\xffos"')),
        200,
    ),
    (41, "a BOM", http(b"\xef\xbb\xbf" + RECEIPT), http(b"\xef\xbb\xbf" + LIST), 200),
    (
        41,
        "UTF-16",
        http(RECEIPT.decode().encode("utf-16")),
        http(LIST.decode().encode("utf-16")),
        200,
    ),
    (42, "100,000 open brackets", *both(http(DEEP)), 200),
    (
        42,
        "100,000 nested brackets in another field",
        receipt_with(DEEP + b"]" * 100_000),
        list_with(DEEP + b"]" * 100_000),
        200,
    ),
    (43, "10,000 digits", *both(http(LONG)), 200),
    (43, "10,000 digits in another field", receipt_with(LONG), list_with(LONG), 200),
    (44, "NaN", receipt_with(b"NaN"), list_with(b"NaN"), 200),
    (44, "Infinity", receipt_with(b"Infinity"), list_with(b"-Infinity"), 200),
    (49, "an unsolicited 304", *both(b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n"), 304),
]


def each(*columns):
    """Return a pytest parameter for each row of TROUBLE, with the values of the given columns."""
    return [
        pytest.param(*(row[column] for column in columns), id=row[1], marks=pytest.mark.case(row[0]))
        for row in TROUBLE
    ]


@pytest.mark.parametrize(("answer", "status"), each(2, 4))
async def test_post_with_unreadable_response_is_ambiguous_and_sent_once(answer, status, quick):
    """P3: the error states the status, and that a receipt was expected."""
    async with FaultServer(answers(answer, "fin"), GOOD) as server:
        error = await ambiguous_error(server, quick)

    assert type(error.cause) is q.InvalidResponseError
    assert error.cause.status == status
    assert ("createdRecordIds" in error.cause.expected) is (status < 300)
    assert len(error.cause.excerpt) <= 203
    assert error.record_ids == ()


@pytest.mark.parametrize(("answer", "status"), each(3, 4))
async def test_unreadable_list_raises_invalid_response_error(answer, status, quick):
    """P7: there is no retry, since the server has answered."""
    async with FaultServer(answers(answer, "fin"), GOOD) as server:
        async with server.session(**quick) as session:
            with pytest.raises(q.InvalidResponseError) as unreadable:
                await session.list_videos()
            assert session.rate_limiter.used == 1
    assert_nothing_left(session)

    assert unreadable.value.status == status
    assert len(unreadable.value.excerpt) <= 203
    assert server.methods == ["GET"]


@pytest.mark.parametrize(("answer", "status"), each(3, 4))
async def test_poll_with_an_unreadable_answer_is_repeated(answer, status, quick):
    """P7: an unreadable body and an unsolicited 304 count as an outage."""
    async with FaultServer(answers(answer, "fin"), GOOD) as server:
        async with server.session(**quick | {"polling": FREQUENT_POLLS}) as session:
            assert (await session.job("vid_1")).status == "DONE"
    assert_nothing_left(session)

    assert server.methods == ["GET"] * 2


@pytest.mark.parametrize(
    "item",
    [
        pytest.param(b'{"id":"vid_2","name":"\xff"}', id="invalid UTF-8", marks=pytest.mark.case(41)),
        pytest.param(b'{"id":"vid_2","new":%s}' % LONG, id="10,000 digits", marks=pytest.mark.case(43)),
        pytest.param(b'{"id":%s}' % LONG, id="10,000 digits for an id", marks=pytest.mark.case(43)),
    ],
)
async def test_unreadable_item_does_not_hide_other_items(item, quick):
    """The other records are listed, and a job waits for one of them."""
    body = b'{"videos":[%s,%s],"count":2}' % (item, ONE)
    async with FaultServer(answers(http(body))) as server:
        async with server.session(**quick) as session:
            videos = await session.list_videos()
            video = await session.job("vid_1").wait(5.0)
    assert_nothing_left(session)

    assert "vid_1" in [video.id for video in videos]
    assert video.status == "DONE"


def stored(body):
    """Return gzip data without compression, so that each removed byte is a known byte of the body."""
    return gzip.compress(body, 0)


CHECKSUM = 8  # bytes at the end of gzip data: CRC and length


@pytest.mark.case(39)
@pytest.mark.parametrize("ends", ["length", "connection"])
@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize("cut", range(CHECKSUM + 5))
async def test_gzip_without_its_checksum_is_accepted_and_shorter_gzip_is_not(cut, method, ends, quick):
    """The JSON is complete while at most eight bytes are missing. The ninth byte is its closing bracket."""
    packed = stored(RECEIPT if method == "POST" else LIST)
    body = packed[: len(packed) - cut]
    answer = HEAD + GZIP + b"Connection: close\r\n\r\n" + body
    if ends == "length":
        answer = http(body, headers=GZIP)
    limits = q.Timeouts(reconcile=0.0)
    async with FaultServer(answers(answer, "fin"), GOOD) as server:
        async with server.session(**quick | {"timeouts": limits}) as session:
            (ended,) = await asyncio.gather(CALLS[method](session), return_exceptions=True)
    assert_nothing_left(session)

    whole = {"POST": q.Job, "GET": tuple}
    broken = {"POST": q.AmbiguousSubmissionError, "GET": q.InvalidResponseError}
    assert type(ended) is (whole if cut <= CHECKSUM else broken)[method]
    if cut <= CHECKSUM:
        ids = ended.record_ids if method == "POST" else tuple(video.id for video in ended)
        assert ids == ("vid_1",)
    assert server.methods == [method]
