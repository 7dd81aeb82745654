"""`register_video` and `register_reel` on the sandbox: the requests they send, and each outcome."""

import asyncio

import pytest
from batch_helpers import posts

import qamera_async as q
from qamera_async.sandbox import Sandbox

pytestmark = [pytest.mark.every_loop, pytest.mark.usefixtures("no_lost_exceptions")]


# --- the request ----------------------------------------------------------------------------------


async def test_reel_is_sent_with_the_field_name_of_the_api(session, sandbox):
    await session.register_reel(["a", "b"])

    assert sandbox.orders[0].body == {"imagesIds": ["a", "b"]}


async def test_each_post_has_a_fresh_connection_and_polls_share_one(session, sandbox):
    """A server that closes an idle connection at that moment would make a paid POST ambiguous."""
    for _ in range(2):
        await (await session.register_video(image_id="i"))

    polls = [request for request in sandbox.requests if request.method == "GET"]
    assert [request.headers.get("Connection") for request in posts(sandbox)] == ["close", "close"]
    assert {request.headers.get("Connection") for request in polls} <= {None, "keep-alive"}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"image_id": "a", "generated_image_id": "b"},
        {"image_id": ""},
        {"image_id": 3},
        *({"image_id": "i", "extra_body": extra} for extra in ([], 0, "")),
    ],
)
async def test_invalid_video_request_sends_nothing(session, sandbox, options):
    with pytest.raises(q.InvalidRequestError):
        await session.register_video(**options)

    assert sandbox.requests == []


@pytest.mark.parametrize("ids", [[], list("abcdefghijk"), "img", [1], {"a": 1}, {"a", "b"}, frozenset("ab")])
async def test_invalid_reel_request_sends_nothing(session, sandbox, ids):
    """A reel needs 1 to 10 image ids in an order."""
    with pytest.raises(q.InvalidRequestError):
        await session.register_reel(ids)

    assert sandbox.requests == []


# --- not processed --------------------------------------------------------------------------------


async def test_refused_connection_is_retried(sandbox, quick):
    retry = q.RetryPolicy(attempts=8, base=0.05, max_delay=0.1)
    async with sandbox.session(**quick | {"retry": retry}) as session:
        await sandbox.refuse(0.12)
        await session.register_video(image_id="i")

    assert len(sandbox.orders) == 1


async def test_unreachable_server_takes_no_slot(unused_tcp_port, quick):
    session = q.QameraSession("mk_live_a.bcdefgh", base_url=f"http://127.0.0.1:{unused_tcp_port}", **quick)
    async with session:
        with pytest.raises(q.ConnectionFailedError):
            await session.register_video(image_id="i")

        assert session.rate_limiter.used == 0


# --- refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trouble", "error"),
    [
        ({"status": 400, "body": "No image."}, q.BadRequestError),
        ({"status": 401}, q.AuthenticationError),
        ({"status": 403, "body": "Missing required scope: 'content.register'."}, q.PermissionDeniedError),
        ({"status": 404}, q.NotFoundError),
        ({"status": 418}, q.ApiError),
    ],
)
async def test_rejection_raises_the_class_of_its_status(session, sandbox, trouble, error):
    sandbox.trouble("error", **trouble)
    with pytest.raises(error) as refused:
        await session.register_video(image_id="i")

    assert refused.value.status == trouble["status"]
    assert len(posts(sandbox)) == 1


async def test_missing_credits_are_in_the_error(quick):
    async with Sandbox(credits=2) as sandbox, sandbox.session(**quick) as session:
        with pytest.raises(q.InsufficientCreditsError) as refused:
            await session.register_video(image_id="i")

    assert (refused.value.required, refused.value.available) == (10, 2)


@pytest.mark.parametrize("after", [None, "0", "-1", "nan", "1e9", "5", "Wed, 21 Oct 2026 07:28:00 GMT"])
async def test_429_is_sent_again_after_a_bounded_wait(session, sandbox, after):
    sandbox.trouble("too_many", **({} if after is None else {"retry_after": after}))
    await session.register_video(image_id="i")

    assert [request.status for request in posts(sandbox)] == [429, 200]
    assert len(sandbox.orders) == 1


# --- ambiguous ------------------------------------------------------------------------------------

LOST = [
    ("reset_before", {}),
    ("reset_after", {}),
    ("close_after", {}),
    ("hang", {}),
    ("stall", {}),
    ("truncate", {}),
    ("garbage", {}),
    ("empty", {}),
    ("redirect", {"status": 303}),
    ("redirect", {"status": 307}),
    ("redirect", {"status": 308}),
    *(("error", {"status": s, "taken": True}) for s in (500, 502, 503, 504, 408, 409)),
    *(("error", {"status": s, "html": True, "taken": True}) for s in (400, 407, 429)),
]


@pytest.mark.parametrize(("name", "details"), LOST)
async def test_post_whose_answer_is_lost_is_ambiguous_and_sent_once(sandbox, quick, name, details):
    """Only the new record is a candidate."""
    sandbox.add_records(3)
    options = quick | {"timeouts": q.Timeouts(request=0.2, reconcile=0.5)}
    async with sandbox.session(**options) as session:
        await session.list_videos()
        sandbox.trouble(name, **details)
        with pytest.raises(q.AmbiguousSubmissionError) as ambiguous:
            await session.register_video(image_id="i", ref="sku")

    made = [record_id for order in sandbox.orders for record_id in order.record_ids]
    assert len(posts(sandbox)) == 1
    assert [record.id for record in ambiguous.value.candidates] == made
    assert len(sandbox.orders) == (0 if name == "reset_before" else 1)
    assert ambiguous.value.request.ref == "sku"
    assert not [request for request in sandbox.requests if request.origin == "cdn"]


async def test_ambiguous_submissions_at_one_time_share_their_candidates(sandbox, quick):
    async with sandbox.session(**quick) as session:
        await session.list_videos()
        sandbox.trouble("reset_after", times=2)
        errors = await asyncio.gather(
            *(session.register_video(image_id=f"i{n}") for n in range(2)), return_exceptions=True
        )

    assert [error.may_share_candidates for error in errors] == [True, True]
    assert {record.id for error in errors for record in error.candidates} == set(sandbox.records)


async def test_record_on_the_receipt_of_another_submission_is_no_candidate(sandbox, quick):
    async with sandbox.session(**quick) as session:
        await session.list_videos()
        sandbox.trouble("reset_before")
        sandbox.trouble("slow", seconds=0.1)
        results = await asyncio.gather(
            *(session.register_video(image_id=f"i{n}") for n in range(2)), return_exceptions=True
        )
    (error,) = [result for result in results if isinstance(result, q.AmbiguousSubmissionError)]

    assert error.candidates == ()
