"""Statuses other than 200: whether a POST is refused or ambiguous, and whether a GET is repeated."""

import asyncio

import pytest
from faults import (
    CALLS,
    GOOD,
    LIST,
    RECEIPT,
    FaultServer,
    ambiguous_error,
    answers,
    assert_nothing_left,
    http,
)

import qamera_async as q
from qamera_async.events import RateLimitWait

pytestmark = [
    pytest.mark.usefixtures("no_lost_exceptions"),
    pytest.mark.every_loop,
    pytest.mark.case(104),
]

PAGE = b"<html><h1>Sorry</h1></html>"
HTML, JSON = b"text/html; charset=utf-8", b"application/json"


@pytest.mark.case(28)
@pytest.mark.parametrize("page", [True, False])
@pytest.mark.parametrize("status", [500, 502, 503, 504])
async def test_server_error_makes_a_post_ambiguous(status, page, quick):
    """P3: the POST is sent once. Even a 5xx in the API's shape does not prove that nothing was done."""
    body = PAGE if page else {"error": "Internal error."}
    answer = http(body, f"{status} Trouble", b"X-Correlation-Id: c-1\r\n")
    async with FaultServer(answers(answer), GOOD) as server:
        error = await ambiguous_error(server, quick)

    assert type(error.cause) is q.ServerError
    assert (error.cause.status, error.cause.correlation_id, error.cause.foreign) == (status, "c-1", page)


MAX_DELAY = 0.06  # seconds; RetryPolicy.max_delay here
BASE = 0.004  # seconds
RETRY_AFTER = [
    ("five seconds", b"5", MAX_DELAY, MAX_DELAY),
    ("none", b"0", 0.0, 0.0),
    ("more than the base and less than the longest", b"0.02", 0.02, 0.02),
    ("negative", b"-1", BASE, BASE * 1.5),
    ("nan", b"nan", BASE, BASE * 1.5),
    ("an exponent", b"1e9", BASE, BASE * 1.5),
    ("a billion", b"1000000000", MAX_DELAY, MAX_DELAY),
    ("an HTTP date", b"Wed, 21 Oct 2099 07:28:00 GMT", BASE, BASE * 1.5),
    ("Arabic digits", "\u0663\u0660".encode(), BASE, BASE * 1.5),
]


@pytest.mark.case(29)
@pytest.mark.parametrize(("method", "page"), [("POST", False), ("GET", False), ("GET", True)])
@pytest.mark.parametrize(
    ("value", "least", "most"), [pytest.param(*row, id=name) for name, *row in RETRY_AFTER]
)
async def test_request_is_repeated_after_the_pause_of_a_429(value, least, most, method, page, quick):
    """The pause is Retry-After up to RetryPolicy.max_delay, or RetryPolicy.base if Retry-After is no number.

    A POST is sent again only after a 429 in the API's shape, a GET after any 429.
    """
    waits = []

    def watch(event):
        if isinstance(event, RateLimitWait):
            waits.append(event.seconds)

    body = PAGE if page else {"error": "Too many requests. Please retry after a short delay."}
    refusal = http(body, "429 Too Many Requests", b"Retry-After: %s\r\n" % value, HTML if page else JSON)
    retry = q.RetryPolicy(attempts=1, base=BASE, max_delay=MAX_DELAY)
    async with FaultServer(answers(refusal), GOOD) as server:
        async with server.session(**quick | {"retry": retry, "on_event": watch}) as session:
            began = asyncio.get_running_loop().time()
            await asyncio.wait_for(CALLS[method](session), 10)
            took = asyncio.get_running_loop().time() - began
    assert_nothing_left(session)

    assert server.methods == [method] * 2
    # The event has the rest of the cooldown. There is no event if the cooldown is over.
    waited = waits[0] if waits else 0.0
    assert least * 0.9 <= waited <= most
    assert took >= least


@pytest.mark.case(29)
@pytest.mark.parametrize("method", CALLS)
async def test_cooldown_is_exactly_retry_after_within_the_limits(method, quick):
    """Retry-After is used as it is if it lies between RetryPolicy.base and RetryPolicy.max_delay."""
    waits, waiting = [], asyncio.Event()

    def watch(event):
        if isinstance(event, RateLimitWait):
            waits.append(event.seconds)
            waiting.set()

    refusal = http({"error": "Too many requests."}, "429 Too Many Requests", b"Retry-After: 7\r\n")
    retry = q.RetryPolicy(base=1.0, max_delay=60.0)
    async with FaultServer(answers(refusal), GOOD) as server:
        async with server.session(**quick | {"retry": retry, "on_event": watch}) as session:
            asking = asyncio.ensure_future(CALLS[method](session))
            await waiting.wait()
            left = session.rate_limiter.cooldown
            asking.cancel()
            await asyncio.wait([asking])
    assert_nothing_left(session)

    assert 6.0 < waits[0] <= 7.0
    assert 0 < left <= 7.0
    assert server.methods == [method]


FOREIGN = {
    "page": http(PAGE, "%s", content_type=HTML),
    "empty body": http(b"", "%s"),
    "other object": http({"message": "Too many requests"}, "%s"),
    "error is a number": http({"error": 429}, "%s"),
    "JSON array": http(["error"], "%s"),
    "JSON cut off": http(b'{"error": "Too man', "%s"),
}


@pytest.mark.case(29)
@pytest.mark.parametrize("body", FOREIGN)
@pytest.mark.parametrize("status", [b"429 Too Many Requests", b"407 Proxy Authentication Required"])
async def test_429_or_407_in_a_foreign_shape_makes_a_post_ambiguous(status, body, quick):
    """P3: a gateway may send this answer after it forwarded the POST to the API."""
    answer = FOREIGN[body].replace(b"%s", status + b"\r\nRetry-After: 0", 1)
    async with FaultServer(answers(answer), GOOD) as server:
        error = await ambiguous_error(server, quick)

    assert isinstance(error.cause, q.ApiError)
    assert error.cause.status == int(status[:3])
    assert error.cause.foreign


@pytest.mark.case(29)
async def test_gateway_that_answers_429_to_every_post_gets_one_post(quick):
    """P3: the gateway forwards the POST each time it receives the POST, and answers 429 each time."""
    async with FaultServer(answers(FOREIGN["page"].replace(b"%s", b"429 Too Many Requests", 1))) as server:
        async with server.session(**quick | {"rate_limiter": q.RateLimiter(100, 0.05)}) as session:
            with pytest.raises(q.AmbiguousSubmissionError):
                await session.register_video(image_id="i")

    assert server.methods.count("POST") == 1


@pytest.mark.case(29)
async def test_429_in_a_foreign_shape_to_a_post_begins_a_cooldown(quick):
    """The gateway refuses other requests too, so all requests wait for Retry-After."""
    answer = FOREIGN["page"].replace(b"%s", b"429 Too Many Requests\r\nRetry-After: 7", 1)
    options = quick | {"retry": q.RetryPolicy(max_delay=60.0), "timeouts": q.Timeouts(reconcile=0.0)}
    async with FaultServer(answers(answer), GOOD) as server:
        async with server.session(**options) as session:
            with pytest.raises(q.AmbiguousSubmissionError):
                await session.register_video(image_id="i")
            cooldown = session.rate_limiter.cooldown

    assert 0 < cooldown <= 7.0


@pytest.mark.case(29)
async def test_407_in_the_api_shape_is_a_refusal(quick):
    """A 407 follows the rule of every other 4xx in the API's shape."""
    async with FaultServer(answers(http({"error": "No."}, "407 Proxy Authentication Required"))) as server:
        async with server.session(**quick) as session:
            with pytest.raises(q.ApiError) as refused:
                await session.register_video(image_id="i")

    assert (refused.value.status, refused.value.foreign) == (407, False)
    assert server.methods == ["POST"]


@pytest.mark.case(30)
async def test_400_of_a_proxy_makes_a_post_ambiguous(quick):
    """P3: the proxy may have answered after it forwarded the POST to the API."""
    async with FaultServer(answers(http(PAGE, "400 Bad Request", content_type=HTML)), GOOD) as server:
        error = await ambiguous_error(server, quick)

    assert type(error.cause) is q.BadRequestError
    assert error.cause.foreign


@pytest.mark.case(30)
async def test_400_of_a_proxy_fails_a_list_call_but_no_waiter(quick):
    """`list_videos` raises it; for a poll it is an outage, and the next poll notifies the waiter."""
    refusal = answers(http(PAGE, "400 Bad Request", content_type=HTML))
    async with FaultServer(refusal, refusal, GOOD) as server:
        async with server.session(**quick) as session:
            with pytest.raises(q.BadRequestError) as refused:
                await session.list_videos()
            requests_before = len(server.requests)
            video = await session.job("vid_1")
    assert_nothing_left(session)

    assert refused.value.foreign
    assert requests_before == 1
    assert video.status == "DONE"
    assert server.methods == ["GET"] * 3


@pytest.mark.case(31)
async def test_402_has_the_required_and_available_credits(quick):
    """The error has the numbers of the API's text, and the POST is not sent again."""
    body = {"error": "Insufficient credits. Required: 5, available: 2."}
    async with FaultServer(answers(http(body, "402 Payment Required"))) as server:
        async with server.session(**quick) as session:
            with pytest.raises(q.InsufficientCreditsError) as refused:
                await session.register_video(image_id="i")
    assert_nothing_left(session)

    assert (refused.value.required, refused.value.available) == (5, 2)
    assert server.methods == ["POST"]


def redirect(status, location):
    return answers(http(b"", f"{status} Elsewhere", b"Location: %s\r\n" % location.encode()))


@pytest.mark.parametrize("same_origin", [True, False])
@pytest.mark.parametrize(
    "status",
    [
        pytest.param(307, marks=pytest.mark.case(32)),
        pytest.param(308, marks=pytest.mark.case(32)),
        pytest.param(303, marks=pytest.mark.case(34)),
    ],
)
async def test_redirected_post_is_ambiguous_and_not_followed(status, same_origin, quick):
    """P3 and P6: this holds for every target."""
    async with FaultServer(GOOD) as target:
        location = "/elsewhere" if same_origin else f"{target.url}/elsewhere"
        async with FaultServer(redirect(status, location), GOOD) as server:
            error = await ambiguous_error(server, quick)

    assert type(error.cause) is q.InvalidResponseError
    assert error.cause.status == status
    assert target.connections == 0


@pytest.mark.case(33)
@pytest.mark.parametrize(
    "ask", [CALLS["GET"], lambda session: session.job("vid_1").wait()], ids=["list", "poll"]
)
async def test_redirected_get_raises_and_is_not_followed(ask, quick):
    """P6: the redirect is permanent, so there is no retry. The target receives nothing."""
    async with FaultServer(GOOD) as target:
        async with FaultServer(redirect(301, f"{target.url}/api/external/videos"), GOOD) as server:
            async with server.session(**quick) as session:
                with pytest.raises(q.InvalidResponseError) as refused:
                    await ask(session)
            assert_nothing_left(session)

    assert refused.value.status == 301
    assert server.methods == ["GET"]
    assert target.connections == 0


INVALID_STATUSES = pytest.mark.parametrize(
    ("status", "headers"),
    [
        (0, b""),
        (101, b""),
        (101, b"Connection: upgrade\r\nUpgrade: websocket\r\n"),
        (999, b""),
    ],
)


def response_with_status(status, headers, body):
    return answers(b"HTTP/1.1 %03d Odd\r\n%s\r\n" % (status, headers) + body, "fin")


@pytest.mark.case(35)
@INVALID_STATUSES
async def test_invalid_status_makes_a_post_ambiguous(status, headers, quick):
    """P3: a receipt in the body of such a response does not count."""
    async with FaultServer(response_with_status(status, headers, RECEIPT), GOOD) as server:
        error = await ambiguous_error(server, quick)

    assert type(error.cause) is q.InvalidResponseError
    assert error.cause.status == status


@pytest.mark.case(35)
@INVALID_STATUSES
async def test_invalid_status_fails_a_list_call_but_no_waiter(status, headers, quick):
    """`list_videos` raises it; for a poll it is an outage, and the next poll notifies the waiter."""
    fault = response_with_status(status, headers, LIST)
    async with FaultServer(fault, fault, GOOD) as server:
        async with server.session(**quick) as session:
            with pytest.raises(q.InvalidResponseError) as refused:
                await session.list_videos()
            requests_before = len(server.requests)
            video = await session.job("vid_1")
    assert_nothing_left(session)

    assert refused.value.status == status
    assert requests_before == 1
    assert video.status == "DONE"
    assert server.methods == ["GET"] * 3
