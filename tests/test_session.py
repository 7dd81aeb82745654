"""A session end to end, on the sandbox."""

import asyncio
import logging

import pytest

import qamera_async as q
from qamera_async.events import Submitted
from qamera_async.sandbox import Sandbox

pytestmark = [pytest.mark.usefixtures("no_lost_exceptions"), pytest.mark.every_loop]


@pytest.fixture
async def sandbox():
    async with Sandbox(job_seconds=0.05, quota=None) as sandbox:
        yield sandbox


@pytest.fixture
async def session(sandbox, quick):
    async with sandbox.session(**quick) as session:
        yield session


def polls(sandbox):
    return [r for r in sandbox.requests if r.method == "GET"]


def posts(sandbox):
    return [r for r in sandbox.requests if r.method == "POST"]


async def test_a_video_is_registered_and_awaited(session, sandbox):
    """register_video sends what was asked, and the job gives the finished video."""
    job = await session.register_video(image_id="img_1", suggestion="Slow zoom", ref="sku-1")
    video = await job

    assert job.record_ids == (video.id,)
    assert video.status == "DONE"
    assert video.video_url.startswith(sandbox.cdn_url)
    assert sandbox.orders[0].body == {"imageId": "img_1", "suggestion": "Slow zoom"}
    assert job.receipt.credits_reserved == 10


async def test_a_reel_is_registered_with_the_wires_spelling(session, sandbox):
    """The field is imagesIds."""
    await (await session.register_reel(["a", "b"]))

    assert sandbox.orders[0].body == {"imagesIds": ["a", "b"]}







async def test_each_post_has_a_fresh_connection_and_polls_share_one(session, sandbox):
    """An idle connection that the server closes at that instant would make a paid POST ambiguous."""
    for _ in range(2):
        await (await session.register_video(image_id="i"))

    assert [r.headers.get("Connection") for r in posts(sandbox)] == ["close", "close"]
    assert {r.headers.get("Connection") for r in polls(sandbox)} <= {None, "keep-alive"}









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
    ("error", {"status": 400, "html": True, "taken": True}),
]


@pytest.mark.parametrize(("name", "details"), LOST)
async def test_a_post_whose_answer_is_lost_is_ambiguous_and_never_sent_twice(sandbox, quick, name, details):
    """P3: one POST on the wire; the new record among the candidates, no old one."""
    sandbox.add_records(3)
    options = quick | {"timeouts": q.Timeouts(request=0.2, reconcile=0.5)}
    async with sandbox.session(**options) as session:
        await session.list_videos()
        sandbox.trouble(name, **details)
        with pytest.raises(q.AmbiguousSubmissionError) as ambiguous:
            await session.register_video(image_id="i", ref="sku")

    assert len(posts(sandbox)) == 1
    assert [v.id for v in ambiguous.value.candidates] == [i for o in sandbox.orders for i in o.record_ids]
    assert len(sandbox.orders) == (0 if name == "reset_before" else 1)
    assert ambiguous.value.request.ref == "sku"
    assert not [r for r in sandbox.requests if r.origin == "cdn"]


async def test_concurrent_ambiguous_posts_say_that_they_share(sandbox, quick):
    """Each may be the other's record: both errors say so, and neither hides one."""
    async with sandbox.session(**quick) as session:
        await session.list_videos()
        sandbox.trouble("reset_after", times=2)
        errors = await asyncio.gather(
            *(session.register_video(image_id=f"i{n}") for n in range(2)), return_exceptions=True
        )

    assert [error.may_share_candidates for error in errors] == [True, True]
    assert {v.id for error in errors for v in error.candidates} == set(sandbox.records)


async def test_a_siblings_receipt_is_no_candidate(sandbox, quick):
    """What another POST's receipt claims is taken off the candidates."""
    async with sandbox.session(**quick) as session:
        await session.list_videos()
        sandbox.trouble("reset_before")
        sandbox.trouble("slow", seconds=0.1)
        results = await asyncio.gather(
            *(session.register_video(image_id=f"i{n}") for n in range(2)), return_exceptions=True
        )
    errors = [r for r in results if isinstance(r, q.AmbiguousSubmissionError)]

    assert len(errors) == 1
    assert errors[0].candidates == ()


@pytest.mark.parametrize(
    ("trouble", "error"),
    [
        ({"status": 400, "body": "No image."}, q.BadRequestError),
        ({"status": 401}, q.AuthenticationError),
        ({"status": 403, "body": "Missing required scope: 'content.register'."}, q.PermissionDeniedError),
        ({"status": 404}, q.NotFoundError),
        ({"status": 418}, q.ApiError),
        ({"status": 407}, q.ApiError),
    ],
)
async def test_a_refusal_raises_its_class(session, sandbox, trouble, error):
    """A refused POST was not processed: typed, and sent once."""
    sandbox.trouble("error", **trouble)
    with pytest.raises(error) as refused:
        await session.register_video(image_id="i")

    assert refused.value.status == trouble["status"]
    assert len(posts(sandbox)) == 1


async def test_too_few_credits(quick):
    """The 402's text tells what was required and what is available."""
    async with Sandbox(credits=2) as sandbox, sandbox.session(**quick) as session:
        with pytest.raises(q.InsufficientCreditsError) as refused:
            await session.register_video(image_id="i")

    assert (refused.value.required, refused.value.available) == (10, 2)


@pytest.mark.parametrize("after", [None, "0", "-1", "nan", "1e9", "5", "٣", "Wed, 21 Oct 2026 07:28:00 GMT"])
async def test_a_429_is_waited_out(session, sandbox, after):
    """Whatever Retry-After says, the wait is bounded and the POST is sent again."""
    details = {} if after is None else {"retry_after": after}
    if after is not None and not after.isascii():
        details = {}
    sandbox.trouble("too_many", **details)
    await session.register_video(image_id="i")

    assert [r.status for r in posts(sandbox)] == [429, 200]
    assert len(sandbox.orders) == 1


async def test_refused_connections_are_tried_again(sandbox, quick):
    """What is provably unsent is retried, and its slot given back."""
    retry = q.RetryPolicy(attempts=8, base=0.05, max_delay=0.1)
    async with sandbox.session(**quick | {"retry": retry}) as session:
        await sandbox.refuse(0.12)
        await session.register_video(image_id="i")

    assert len(sandbox.orders) == 1


async def test_an_unreachable_server_is_typed_and_costs_no_slot(unused_tcp_port, quick):
    """Bounded attempts, then ConnectionFailedError; nothing is counted."""
    session = q.QameraSession("mk_live_a.bcdefgh", base_url=f"http://127.0.0.1:{unused_tcp_port}", **quick)
    async with session:
        with pytest.raises(q.ConnectionFailedError):
            await session.register_video(image_id="i")
        assert session.rate_limiter.used == 0




async def test_a_cancelled_callers_receipt_is_in_the_log_and_an_event(sandbox, quick, caplog):
    """P4: cancelled after sending began, the POST runs to its answer."""
    events = []
    async with sandbox.session(**quick, on_event=events.append) as session:
        sandbox.trouble("slow", seconds=0.1)
        task = asyncio.ensure_future(session.register_video(image_id="i"))
        while not posts(sandbox):
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    assert [e.receipt.record_ids for e in events if isinstance(e, Submitted)] == [("vid_001",)]
    assert [r for r in caplog.records if r.levelno == logging.WARNING and "vid_001" in r.getMessage()]


async def test_a_caller_cancelled_while_queueing_withdraws(quick):
    """P4: before sending began nothing is sent, and the slot is given back."""
    async with Sandbox(quota=(1, 60.0)) as sandbox, sandbox.session(**quick) as session:
        await session.list_videos()
        task = asyncio.ensure_future(session.register_video(image_id="i"))
        await asyncio.sleep(0.01)
        assert session.rate_limiter.waiting == 1
        task.cancel()
        await asyncio.wait([task])

        assert session.rate_limiter.waiting == 0
        assert posts(sandbox) == []


async def test_closing_drains_what_is_under_way_and_ends_what_waits(sandbox, quick):
    """POSTs on the wire get their answer, queued ones and waiters SessionClosedError."""
    session = sandbox.session(**quick)
    waiting = asyncio.ensure_future(session.job("vid_nowhere").wait())
    sandbox.trouble("slow", seconds=0.1)
    sending = asyncio.ensure_future(session.register_video(image_id="i"))
    while not posts(sandbox):
        await asyncio.sleep(0.001)
    await asyncio.gather(session.aclose(), session.aclose())

    assert (await sending).receipt.order_id == "order_001"
    with pytest.raises(q.SessionClosedError):
        await waiting
    with pytest.raises(q.SessionClosedError):
        await session.list_videos()
    assert [t for t in asyncio.all_tasks() if t.get_name().startswith("qamera")] == []


async def test_closing_cuts_what_hangs_and_says_so(sandbox, quick, caplog):
    """A POST that isn't answered in time is ambiguous, for its caller too."""
    session = sandbox.session(**quick | {"timeouts": q.Timeouts(close=0.05)})
    sandbox.trouble("hang")
    sending = asyncio.ensure_future(session.register_video(image_id="i"))
    while not posts(sandbox):
        await asyncio.sleep(0.001)
    await session.aclose()

    with pytest.raises(q.AmbiguousSubmissionError):
        await sending
    assert "ended with" in caplog.text


async def test_a_second_loop_is_refused(sandbox, quick):
    """A session belongs to the loop it was first used on."""
    async with sandbox.session(**quick) as session:
        await session.list_videos()

        def elsewhere():
            asyncio.run(session.list_videos())

        with pytest.raises(q.SessionClosedError, match="another event loop"):
            await asyncio.to_thread(elsewhere)



async def test_use_after_a_fork_is_refused(sandbox, quick, monkeypatch):
    """A clear error, in place of two processes on one connection."""
    async with sandbox.session(**quick) as session:
        with monkeypatch.context() as forked:
            forked.setattr("os.getpid", lambda: 0)
            with pytest.raises(q.SessionClosedError, match="fork"):
                await session.list_videos()


@pytest.mark.parametrize(
    "options",
    [
        {"api_key": ""},
        {"api_key": "a b"},
        {"api_key": "a\n"},
        {"api_key": "ключ"},
        {"base_url": "http://example.com"},
        {"base_url": "ftp://example.com"},
        {"base_url": "example.com"},
        {"base_url": "https://u:p@example.com"},
        {"polling": 3},
    ],
)
def test_a_bad_setting_fails_when_the_session_is_built(options):
    """ConfigurationError, which is a ValueError too."""
    with pytest.raises(q.ConfigurationError):
        q.QameraSession(**{"api_key": "mk_live_a.b", "base_url": "https://example.com"} | options)


@pytest.mark.parametrize(
    "options", [{}, {"image_id": "a", "generated_image_id": "b"}, {"image_id": ""}, {"image_id": 3}]
)
async def test_a_bad_video_request_sends_nothing(session, sandbox, options):
    """InvalidRequestError, and no request."""
    with pytest.raises(q.InvalidRequestError):
        await session.register_video(**options)
    assert sandbox.requests == []


@pytest.mark.parametrize("ids", [[], list("abcdefghijk"), "img", [1]])
async def test_a_bad_reel_request_sends_nothing(session, sandbox, ids):
    """InvalidRequestError, and no request."""
    with pytest.raises(q.InvalidRequestError):
        await session.register_reel(ids)
    assert sandbox.requests == []
