"""A session end to end, on the sandbox."""

import asyncio
import math

import pytest

import qamera_async as q
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


async def test_a_video_is_registered_and_awaited(session, sandbox):
    """register_video sends what was asked, and the job gives the finished video."""
    job = await session.register_video(image_id="img_1", suggestion="Slow zoom", ref="sku-1")
    video = await job

    assert job.record_ids == (video.id,)
    assert video.status == "DONE"
    assert video.video_url.startswith(sandbox.cdn_url)
    assert sandbox.orders[0].body == {"imageId": "img_1", "suggestion": "Slow zoom"}
    assert job.receipt.credits_reserved == 10


async def test_many_waiting_jobs_cost_the_polls_of_one():
    """P1: 60 jobs of 0.6 s at an interval of 0.1 s are served by at most 12 polls."""
    async with (
        Sandbox(job_seconds=0.6, quota=None) as sandbox,
        sandbox.session(polling=q.PollPolicy(interval=0.1, stale_after=0.5)) as session,
    ):
        jobs = await asyncio.gather(*(session.register_video(image_id=f"i{n}") for n in range(60)))
        videos = await asyncio.gather(*jobs)

    assert {video.id for video in videos} == set(sandbox.records)
    assert len(polls(sandbox)) <= 12


async def test_nobody_waiting_means_no_request(session, sandbox):
    """P1: a registered job that nobody awaits, and a finished one, cost no poll."""
    job = await session.register_video(image_id="i")
    await asyncio.sleep(0.1)
    assert polls(sandbox) == []

    await job
    before = len(sandbox.requests)
    await job
    await asyncio.sleep(0.1)

    assert len(sandbox.requests) == before


async def test_a_list_fetched_beside_the_polls_hides_nothing_from_them(quick):
    """A change that list_videos saw first still reaches the waiter, though the next poll is the same."""
    async with Sandbox(job_seconds=math.inf, quota=None) as sandbox, sandbox.session(**quick) as session:
        job = await session.register_video(image_id="i")
        waiting = asyncio.ensure_future(job.wait())
        while job.status is None:
            await asyncio.sleep(0.001)
        sandbox.finish(job.record_ids[0])
        await session.list_videos()

        assert (await asyncio.wait_for(waiting, 2)).status == "DONE"


async def test_a_newcomer_outlives_an_unreadable_poll(quick):
    """Who began to wait before an unreadable poll is told by the next, though the list is the same."""
    async with Sandbox(job_seconds=math.inf, quota=None) as sandbox, sandbox.session(**quick) as session:
        sandbox.add_records(2)
        old, other = sandbox.records
        unfinished = asyncio.ensure_future(session.job("vid_nowhere").wait())
        while not polls(sandbox):
            await asyncio.sleep(0.001)
        await session.job(old)
        await asyncio.sleep(0.05)
        sandbox.trouble("garbage", on="GET")
        job = session.job(other)
        session._poller._good_at = -math.inf

        assert (await asyncio.wait_for(job.wait(), 2)).status == "DONE"
        unfinished.cancel()


async def test_the_last_waiter_takes_the_poll_along(session, sandbox):
    """P1: who gives up before the poll is sent leaves none behind."""
    job = await session.register_video(image_id="i")
    with pytest.raises(q.JobTimeoutError):
        await job.wait(0.001)
    await asyncio.sleep(0.1)

    assert polls(sandbox) == []


async def test_one_cancelled_waiter_leaves_the_others(session):
    """P9: of three waiters one is cancelled and one times out; the third gets the video."""
    job = await session.register_video(image_id="i")
    first, second, third = (asyncio.ensure_future(job.wait(t)) for t in (None, 0.001, None))
    await asyncio.sleep(0)
    first.cancel()

    assert (await third).status == "DONE"
    with pytest.raises(q.JobTimeoutError) as timed_out:
        await second
    assert isinstance(timed_out.value, TimeoutError)
    assert first.cancelled() or await asyncio.wait([first])
    assert (await job).status == "DONE"


async def test_a_failed_job_raises_and_refunds(session, sandbox):
    """JobFailedError holds the videos; the credits come back; waiting again costs nothing."""
    sandbox.trouble("fail_job")
    job = await session.register_video(image_id="i")
    with pytest.raises(q.JobFailedError) as failed:
        await job
    before = len(sandbox.requests)
    with pytest.raises(q.JobFailedError):
        await job

    assert failed.value.records[0].status == "FAILED"
    assert job.state is q.JobState.FAILED
    assert sandbox.credits == 1000
    assert len(sandbox.requests) == before


async def test_updates_end_with_the_last_snapshot(session, sandbox):
    """updates() gives each status and ends without raising, also for a failed job."""
    sandbox.trouble("fail_job")
    job = await session.register_video(image_id="i")
    statuses = [video.status async for video in job.updates()]

    assert statuses[-1] == "FAILED"
    assert statuses == list(dict.fromkeys(statuses))


async def test_a_job_is_resumed_by_its_record_ids(sandbox, quick):
    """job(*ids) attaches to records that another session made."""
    async with sandbox.session(**quick) as first:
        made = await first.register_reel(["a"])
    async with sandbox.session(**quick) as second:
        job = second.job(*made.record_ids)
        video = await job

    assert video.id == made.record_ids[0]
    assert job.receipt is None


async def test_several_records_of_one_job(session, sandbox):
    """A job of several records is done when all are; all_videos() gives them."""
    sandbox.trouble("multiple", count=3)
    job = await session.register_video(image_id="i")

    assert [video.id for video in await job.all_videos()] == list(job.record_ids)
    assert len(job.record_ids) == 3


@pytest.mark.parametrize("trouble", [("late", {"seconds": 0.15}), ("no_url", {"seconds": 0.15})])
async def test_a_record_that_takes_its_time_is_waited_for(session, sandbox, trouble):
    """Late records and DONE without a URL are waited for."""
    name, details = trouble
    sandbox.trouble(name, **details)
    video = await (await session.register_video(image_id="i"))

    assert video.video_url is not None


async def test_a_vanished_record_is_lost(quick):
    """A record that was seen and is gone raises JobLostError, which is not final."""
    async with Sandbox(job_seconds=math.inf, quota=None) as sandbox:
        timeouts = q.Timeouts(missing=0.05)
        async with sandbox.session(**quick | {"timeouts": timeouts}) as session:
            sandbox.trouble("vanish", after=0.06)
            job = await session.register_video(image_id="i")
            with pytest.raises(q.JobLostError) as lost:
                await job

    assert lost.value.record.status in ("PENDING", "PROCESSING")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_never_followed(session, sandbox, status):
    """P6: a redirected GET fails every waiter, and the target sees nothing."""
    sandbox.trouble("redirect", on="GET", times=3, status=status)
    with pytest.raises(q.InvalidResponseError) as refused:
        await session.job("vid_1")
    with pytest.raises(q.InvalidResponseError):
        await session.list_videos()

    assert refused.value.status == status
    assert {r.origin for r in sandbox.requests} == {"api"}


@pytest.mark.parametrize("name", ["reset_after", "truncate", "garbage", "hang"])
async def test_an_outage_fails_nobody(sandbox, quick, name):
    """A poll that fails is repeated; the waiter gets its video."""
    options = quick | {"timeouts": q.Timeouts(request=0.1)}
    async with sandbox.session(**options) as session:
        job = await session.register_video(image_id="i")
        sandbox.trouble(name, on="GET", times=2)

        assert (await job).status == "DONE"


async def test_session_that_is_not_closed_warns(sandbox, quick):
    """A session that was never used does not warn."""
    unused = sandbox.session(**quick)
    del unused
    session = sandbox.session(**quick)
    await session.list_videos()
    with pytest.warns(ResourceWarning, match="Unclosed"):
        session.__del__()
    await session.aclose()


async def test_a_second_loop_is_refused(sandbox, quick):
    """A session belongs to the loop it was first used on."""
    async with sandbox.session(**quick) as session:
        await session.list_videos()

        def elsewhere():
            asyncio.run(session.list_videos())

        with pytest.raises(q.SessionClosedError, match="another event loop"):
            await asyncio.to_thread(elsewhere)


def test_a_session_and_an_attached_job_can_be_made_without_a_loop():
    """They bind to the first loop they are used on; a loop is missed only by what needs one."""
    session = q.QameraSession("mk_live_a.bcdefgh", base_url="https://example.com")
    job = session.job("vid_1", "vid_1", "vid_2")

    assert job.record_ids == ("vid_1", "vid_2")
    assert (job.state, job.status, job.video) == (q.JobState.PENDING, None, None)
    with pytest.raises(q.InvalidRequestError):
        session.job()
    with pytest.raises(q.InvalidRequestError):
        session.job("")


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
