"""A submission from its claim to its receipt, and each row of the table of outcomes."""

import asyncio
import logging

import pytest
from submission_parts import (
    REQUESTS,
    VIDEO,
    Parts,
    accepts,
    answers,
    connection_lost,
    fails,
    kinds,
    loses,
    receipt_body,
    refuses,
)

import qamera_async as q
from qamera_async._protocol import IDEMPOTENCY_HEADER
from qamera_async.events import Ambiguous, RateLimitWait, Retrying, Submitted
from qamera_async.ledger.rows import Row

pytestmark = [pytest.mark.every_loop, pytest.mark.usefixtures("no_lost_exceptions")]

HTML = b"<html>Please wait.</html>"
UNREACHED = q.ConnectionFailedError("No connection.")


# --- success --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", kinds())
async def test_submission_takes_its_steps_in_order(kind):
    parts = Parts()
    receipt = await parts.register(REQUESTS[kind])

    assert parts.log == ["claim", "slot", "sending", "POST", "receipt", "Submitted"]
    assert receipt.record_ids == ("vid_1",)
    assert parts.events == [Submitted("sku-1", REQUESTS[kind], receipt)]
    assert parts.limiter.settled == ["response"]
    assert parts.states == ["submitted"]
    assert parts.submitter.submissions == 1
    parts.assert_nothing_left()


async def test_post_carries_the_intent_as_its_idempotency_key():
    parts = Parts()
    claim = await parts.submitter.claim(VIDEO)
    await parts.submitter.send(claim)

    assert parts.api.requests[0].headers[IDEMPOTENCY_HEADER] == claim.intent.id


async def test_unsendable_request_is_refused_before_it_is_claimed():
    parts = Parts()
    with pytest.raises(q.InvalidRequestError):
        await parts.submitter.claim("not a request")

    assert parts.log == []
    parts.assert_nothing_left()


async def test_earlier_submission_is_returned_instead_of_a_claim():
    parts = Parts()
    parts.ledger.earlier = Row("intent", "https://example.com", VIDEO, record_ids=("vid_1",))
    claim = await parts.submitter.claim(VIDEO)

    assert claim.earlier is parts.ledger.earlier
    assert parts.log == ["claim"]
    parts.assert_nothing_left()


@pytest.mark.parametrize("concurrently", [False, True])
async def test_claim_is_sent_only_once(concurrently):
    parts = Parts()
    claim = await parts.submitter.claim(VIDEO)
    first = asyncio.ensure_future(parts.submitter.send(claim))
    if not concurrently:
        await first
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="once"):
        await parts.submitter.send(claim)

    assert (await first).record_ids == ("vid_1",)
    assert len(parts.api.requests) == 1


async def test_wait_for_the_rate_limit_is_an_event():
    parts = Parts()
    parts.limiter.open.clear()
    sending = asyncio.ensure_future(parts.register())
    while not parts.events:
        await asyncio.sleep(0)
    parts.limiter.open.set()
    await sending

    assert parts.events[0] == RateLimitWait(1.5)


# --- not processed: retried, then raised ----------------------------------------------------------

NOT_SENT = [
    UNREACHED,
    q.RequestTimeoutError("No connection in time.", sent=False),
    connection_lost(sent=False),
]


@pytest.mark.parametrize("error", NOT_SENT, ids=lambda error: type(error).__name__)
async def test_unsent_post_is_retried_until_it_is_sent(error):
    parts = Parts(fails(error), fails(error), accepts())
    await parts.register()

    assert len(parts.api.requests) == 1
    assert [event.attempt for event in parts.events if isinstance(event, Retrying)] == [1, 2]
    assert parts.limiter.settled == ["given back", "given back", "response"]
    assert parts.log.count("sending") == 3
    assert parts.states == ["submitted"]


@pytest.mark.parametrize("error", NOT_SENT, ids=lambda error: type(error).__name__)
async def test_unsent_post_is_raised_after_the_last_attempt(error):
    parts = Parts(fails(error))
    with pytest.raises(type(error)):
        await parts.register()

    assert parts.log.count("slot") == parts.retry.attempts
    assert parts.api.requests == []
    assert parts.states == []
    parts.assert_nothing_left()


@pytest.mark.parametrize(
    "error",
    [
        q.ConnectionFailedError("The certificate is not trusted.", permanent=True),
        q.ApiError("The proxy requires authentication.", status=407, foreign=True),
        q.SessionClosedError("The session is closed."),
        RuntimeError("A defect."),
    ],
    ids=["certificate", "407 to a CONNECT", "closed", "unexpected"],
)
async def test_permanent_failure_to_connect_is_raised_at_once(error):
    parts = Parts(fails(error))
    with pytest.raises(type(error)):
        await parts.register()

    assert parts.log.count("slot") == 1
    assert parts.api.requests == []
    assert parts.states == []
    parts.assert_nothing_left()


# --- refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, q.BadRequestError),
        (401, q.AuthenticationError),
        (402, q.InsufficientCreditsError),
        (403, q.PermissionDeniedError),
        (404, q.NotFoundError),
        (407, q.ApiError),
        (418, q.ApiError),
    ],
)
async def test_rejection_in_the_shape_of_the_api_is_raised(status, error):
    parts = Parts(refuses(status))
    with pytest.raises(error) as refused:
        await parts.register()

    assert refused.value.status == status
    assert len(parts.api.requests) == 1
    assert parts.states == ["refused"]
    assert parts.events == []
    parts.assert_nothing_left()


async def test_429_in_the_shape_of_the_api_is_sent_again_with_a_new_slot():
    parts = Parts(refuses(429), refuses(429), accepts())
    await parts.register()

    assert parts.limiter.settled == ["429", "429", "response"]
    again = ["unsent", "slot", "sending", "POST"]
    assert parts.log == ["claim", *again[1:], *again, *again, "receipt", "Submitted"]
    parts.assert_nothing_left()


async def test_repeated_429_raises_rate_limit_error():
    parts = Parts(refuses(429))
    parts.limiter.exhausted = True
    with pytest.raises(q.RateLimitError):
        await parts.register()

    assert len(parts.api.requests) == 1
    assert parts.states == []
    parts.assert_nothing_left()


async def test_lost_answer_after_a_429_is_ambiguous():
    """The 429 to the first POST proves nothing about the second POST."""
    parts = Parts(refuses(429), loses(connection_lost(sent=True)))
    with pytest.raises(q.AmbiguousSubmissionError):
        await parts.register()

    assert parts.states == ["ambiguous"]


async def test_failure_to_connect_after_a_429_is_not_ambiguous():
    parts = Parts(refuses(429), fails(UNREACHED))
    with pytest.raises(q.ConnectionFailedError):
        await parts.register()

    assert parts.states == []


# --- ambiguous ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize(
    ("status", "body"),
    [
        *((status, {"error": "No."}) for status in (500, 502, 503, 504, 408, 409, 301, 303, 307, 308, 101)),
        *((status, HTML) for status in (400, 401, 402, 403, 404, 407, 418, 429, 500)),
        (429, b""),
        (429, {"message": "Slow down."}),
        (200, {}),
        (200, {"createdRecordIds": []}),
        (200, HTML),
        (204, b""),
    ],
)
async def test_inconclusive_response_is_ambiguous(kind, status, body):
    parts = Parts(answers(status, body))
    with pytest.raises(q.AmbiguousSubmissionError) as ambiguous:
        await parts.register(REQUESTS[kind])

    assert len(parts.api.requests) == 1
    assert ambiguous.value.request == REQUESTS[kind]
    assert ambiguous.value.cause.status == status
    assert parts.states == ["ambiguous"]
    assert parts.events == [Ambiguous(ambiguous.value.intent)]
    assert parts.log[-2:] == ["ambiguous", "Ambiguous"]
    assert "withdraw" not in parts.log
    parts.assert_nothing_left()


@pytest.mark.parametrize(
    "error",
    [
        connection_lost(sent=True),
        q.RequestTimeoutError("No answer in time.", sent=True),
        q.InvalidResponseError("The answer is not HTTP.", expected="HTTP"),
        OSError(24, "Too many open files"),
        RecursionError("A defect."),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_answer_lost_after_the_body_was_sent_is_ambiguous(error):
    parts = Parts(loses(error))
    with pytest.raises(q.AmbiguousSubmissionError) as ambiguous:
        await parts.register()

    assert len(parts.api.requests) == 1
    assert ambiguous.value.cause is error or type(error).__name__ in str(ambiguous.value.cause)
    assert parts.limiter.settled == ["lost"]
    assert parts.states == ["ambiguous"]
    assert "withdraw" not in parts.log
    parts.assert_nothing_left()


async def test_readable_ids_of_a_broken_receipt_are_in_the_error():
    parts = Parts(answers(200, receipt_body("vid_1", 5, "vid_3")))
    with pytest.raises(q.AmbiguousSubmissionError) as ambiguous:
        await parts.register()

    assert ambiguous.value.record_ids == ("vid_1", "vid_3")


@pytest.mark.parametrize("function", ["parse_receipt", "parse_error"])
async def test_response_that_cannot_be_parsed_is_ambiguous(monkeypatch, function):
    """A defect in the parser must not hide that credits may have been spent."""

    def fail(_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(f"qamera_async._submission.submit.{function}", fail)
    parts = Parts(accepts() if function == "parse_receipt" else answers(500, {}))
    with pytest.raises(q.AmbiguousSubmissionError) as ambiguous:
        await parts.register()

    assert "OSError" in ambiguous.value.cause.message
    assert parts.states == ["ambiguous"]


async def test_ambiguous_error_keeps_no_frames():
    """Frames may hold the API key."""
    parts = Parts(loses(connection_lost(sent=True)))
    with pytest.raises(q.AmbiguousSubmissionError) as ambiguous:
        await parts.register()

    assert ambiguous.value.cause.__traceback__ is None
    assert ambiguous.value.__context__ is None


# --- the ledger fails -----------------------------------------------------------------------------

FULL = q.LedgerUnavailableError("The disk is full.", path="jobs.db")


async def test_failed_claim_sends_nothing():
    parts = Parts()
    parts.ledger.failures["claim"] = FULL
    with pytest.raises(q.LedgerUnavailableError):
        await parts.register()

    assert parts.log == ["withdraw"]
    parts.assert_nothing_left()


async def test_ambiguous_claim_is_raised_and_released():
    parts = Parts()
    intent = q.Intent("intent", VIDEO, None)
    parts.ledger.failures["claim"] = q.AmbiguousSubmissionError("It was sent before.", intent=intent)
    with pytest.raises(q.AmbiguousSubmissionError):
        await parts.register()

    assert parts.api.requests == []
    parts.assert_nothing_left()


async def test_failed_commit_of_sending_sends_nothing():
    parts = Parts()
    parts.ledger.failures["sending"] = FULL
    with pytest.raises(q.LedgerUnavailableError):
        await parts.register()

    assert parts.api.requests == []
    assert parts.limiter.settled == ["given back"]
    assert parts.states == []
    parts.assert_nothing_left()


async def test_refusal_is_raised_after_it_was_stored():
    parts = Parts(refuses(400))
    with pytest.raises(q.BadRequestError):
        await parts.register()

    assert parts.log[-1] == "refused"


@pytest.mark.parametrize(
    "error", [FULL, q.SessionClosedError("The ledger is closed."), RuntimeError("A defect.")]
)
async def test_receipt_that_cannot_be_stored_is_emitted_logged_and_never_withdrawn(error, caplog):
    parts = Parts(accepts("vid_7"))
    parts.ledger.failures["receipt"] = error
    with pytest.raises(type(error)):
        await parts.register()

    assert [event.receipt.record_ids for event in parts.events] == [("vid_7",)]
    assert [
        record
        for record in caplog.records
        if record.levelno == logging.ERROR and "vid_7" in record.getMessage()
    ]
    assert "withdraw" not in parts.log
    assert len(parts.api.requests) == 1
    parts.assert_nothing_left()


# --- callbacks and logs ---------------------------------------------------------------------------


@pytest.mark.case(103)
@pytest.mark.parametrize("error", [asyncio.CancelledError, LookupError])
@pytest.mark.parametrize(
    ("scripts", "outcome"),
    [
        ([accepts()], q.Receipt),
        ([fails(UNREACHED), accepts()], q.Receipt),
        ([refuses(429), accepts()], q.Receipt),
        ([answers(500, {})], q.AmbiguousSubmissionError),
    ],
)
async def test_callback_that_raises_does_not_end_the_submission(error, scripts, outcome):
    def on_event(_):
        raise error

    parts = Parts(*scripts, on_event=on_event)
    parts.limiter.open.clear()
    sending = asyncio.ensure_future(parts.register())
    while not parts.events:
        await asyncio.sleep(0)
    parts.limiter.open.set()
    (result,) = await asyncio.gather(sending, return_exceptions=True)

    assert isinstance(result, outcome)
    assert isinstance(parts.events[-1], Submitted | Ambiguous)
