"""Jobs of a session on the sandbox: waiting, polling, updates and failures."""

import asyncio
import math

import pytest
from canary import KEY

import qamera_async as q
from qamera_async.sandbox import Sandbox

pytestmark = [pytest.mark.usefixtures("no_lost_exceptions"), pytest.mark.every_loop]


@pytest.fixture
async def sandbox_without_ends():
    """Yield a sandbox whose jobs end when the test calls `finish`."""
    async with Sandbox(job_seconds=math.inf, quota=None, etag=True, compress=True) as sandbox:
        yield sandbox


def polls(sandbox):
    return [request for request in sandbox.requests if request.method == "GET"]


async def until_polled(sandbox, number):
    async with asyncio.timeout(10):
        while len(polls(sandbox)) < number:
            await asyncio.sleep(0.005)


async def test_many_waiting_jobs_cost_the_polls_of_one():
    """P1: at most 12 polls in an interval of 0.1 s serve 60 jobs of 0.6 s."""
    async with (
        Sandbox(job_seconds=0.6, quota=None) as sandbox,
        sandbox.session(polling=q.PollPolicy(interval=0.1, stale_after=0.5)) as session,
    ):
        jobs = await asyncio.gather(*(session.register_video(image_id=f"i{n}") for n in range(60)))
        videos = await asyncio.gather(*jobs)

    assert {video.id for video in videos} == set(sandbox.records)
    assert len(polls(sandbox)) <= 12


async def test_no_waiter_means_no_request(session, sandbox):
    """P1: a job without a waiter and a finished job cause no poll."""
    job = await session.register_video(image_id="i")
    await asyncio.sleep(0.1)
    assert polls(sandbox) == []

    await job
    before = len(sandbox.requests)
    await job
    await asyncio.sleep(0.1)

    assert len(sandbox.requests) == before


async def test_registered_and_attached_job_are_the_same(session):
    job = await session.register_video(image_id="i")

    assert session.job(*job.record_ids) is job


async def test_job_is_resumed_by_its_record_ids(sandbox, quick):
    async with sandbox.session(**quick) as first:
        made = await first.register_reel(["a"])
    async with sandbox.session(**quick) as second:
        job = second.job(*made.record_ids)
        video = await job

    assert video.id == made.record_ids[0]
    assert job.receipt is None


async def test_job_of_several_records_has_all_of_them(session, sandbox):
    sandbox.trouble("multiple", count=3)
    job = await session.register_video(image_id="i")
    video = await job

    assert video.id == job.record_ids[0]
    assert [record.id for record in job.records] == list(job.record_ids)
    assert len(job.record_ids) == 3


async def test_cancelled_or_late_waiter_affects_no_other_waiter(session):
    """P9: one of three waiters is cancelled and one times out. The third gets the video."""
    job = await session.register_video(image_id="i")
    first, second, third = (asyncio.ensure_future(job.wait(t)) for t in (None, 0.001, None))
    await asyncio.sleep(0)
    first.cancel()

    assert (await third).status == "DONE"
    with pytest.raises(q.JobTimeoutError):
        await second
    assert first.cancelled() or await asyncio.wait([first])
    assert (await job).status == "DONE"


async def test_failed_job_raises_without_another_request(session, sandbox):
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


async def test_updates_end_with_the_last_state_of_a_failed_job(session, sandbox):
    sandbox.trouble("fail_job")
    job = await session.register_video(image_id="i")
    statuses = [video.status async for video in job.updates()]

    assert statuses[-1] == "FAILED"
    assert statuses == list(dict.fromkeys(statuses))


async def test_job_downloads_its_clip(session, tmp_path):
    job = await session.register_video(image_id="i")

    assert (await job.download(tmp_path / "clip.mp4")).stat().st_size > 0


async def test_refresh_updates_the_state(sandbox_without_ends, quick):
    async with sandbox_without_ends.session(**quick) as session:
        job = await session.register_video(image_id="i")
        before = await job.refresh()
        sandbox_without_ends.finish(job.record_ids[0])
        after = await job.refresh()

    assert (before.state, after.state) == (q.JobState.PENDING, q.JobState.DONE)
    assert job.done()
    assert len(polls(sandbox_without_ends)) == 2


@pytest.mark.parametrize("trouble", [("late", {"seconds": 0.15}), ("no_url", {"seconds": 0.15})])
async def test_record_or_url_that_appears_late_is_waited_for(session, sandbox, trouble):
    name, details = trouble
    sandbox.trouble(name, **details)
    video = await (await session.register_video(image_id="i"))

    assert video.video_url is not None


async def test_vanished_record_is_lost(quick):
    timeouts = q.Timeouts(missing=0.05)
    async with Sandbox(job_seconds=math.inf, quota=None) as sandbox:
        async with sandbox.session(**quick | {"timeouts": timeouts}) as session:
            sandbox.trouble("vanish", after=0.06)
            job = await session.register_video(image_id="i")
            with pytest.raises(q.JobLostError) as lost:
                await job

    assert lost.value.record.status in ("PENDING", "PROCESSING")
    assert lost.value.record_ids == job.record_ids


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirected_poll_fails_the_waiters(session, sandbox, status):
    """P6: the redirect is not followed."""
    sandbox.trouble("redirect", on="GET", times=2, status=status)
    with pytest.raises(q.InvalidResponseError) as refused:
        await session.job("vid_1")
    with pytest.raises(q.InvalidResponseError):
        await session.list_videos()

    assert refused.value.status == status
    assert {request.origin for request in sandbox.requests} == {"api"}


@pytest.mark.parametrize("name", ["reset_after", "truncate", "garbage", "hang"])
async def test_outage_fails_no_waiter(sandbox, quick, name):
    options = quick | {"timeouts": q.Timeouts(request=0.1)}
    async with sandbox.session(**options) as session:
        job = await session.register_video(image_id="i")
        sandbox.trouble(name, on="GET", times=2)

        assert (await job).status == "DONE"


async def test_no_waiter_in_a_cooldown_means_no_request(sandbox_without_ends, quick):
    """P1: there is no poll after a cooldown if the last waiter left during it."""
    sandbox_without_ends.trouble("error", status=429, times=1000, on="GET")
    async with sandbox_without_ends.session(**quick) as session:
        with pytest.raises(q.JobTimeoutError) as waited:
            await session.job("vid_1").wait(0.1)
        await asyncio.sleep(0.02)
        before = len(sandbox_without_ends.requests)
        await asyncio.sleep(0.1)

        assert before > 0
        assert len(sandbox_without_ends.requests) == before
        assert isinstance(waited.value.last_error, q.RateLimitError)


@pytest.mark.case(103)
async def test_callback_that_raises_cancelled_error_is_logged_and_ignored(sandbox, quick, caplog):
    def on_event(event):
        raise asyncio.CancelledError

    async with sandbox.session(**quick, on_event=on_event) as session:
        video = await (await session.register_video(image_id="i"))

    assert video.status == "DONE"
    assert "on_event" in caplog.text


async def test_unchanged_list_is_not_sent_again(sandbox_without_ends, quick):
    """From the second poll on, requests have the ETag, and responses have status 304."""
    async with sandbox_without_ends.session(**quick) as session:
        job = await session.register_video(image_id="img")
        waiting = asyncio.ensure_future(job.wait())
        await until_polled(sandbox_without_ends, 6)
        assert not waiting.done()
        sandbox_without_ends.finish(job.record_ids[0])
        await waiting

    statuses = [request.status for request in polls(sandbox_without_ends)]
    conditions = [request.headers.get("If-None-Match") for request in polls(sandbox_without_ends)]
    assert conditions[0] is None
    assert None not in conditions[1:]
    assert statuses.count(200) == 2
    assert {*statuses[1:-1]} == {304}


async def test_attached_job_is_answered_by_an_unchanged_list(sandbox_without_ends, quick):
    sandbox_without_ends.add_records(3)
    async with sandbox_without_ends.session(**quick) as session:
        waiting = asyncio.ensure_future((await session.register_video(image_id="img")).wait())
        await until_polled(sandbox_without_ends, 4)
        done = await session.job("old_000002")
        waiting.cancel()
        await asyncio.wait([waiting])

    assert done.state is q.JobState.DONE
    assert [request.status for request in polls(sandbox_without_ends)].count(200) == 1


async def test_status_that_echoes_the_key_is_redacted(quick, caplog):
    async with Sandbox(quota=None, api_key=KEY) as sandbox, sandbox.session(**quick) as session:
        sandbox.add_records(1, KEY)
        with pytest.raises(q.JobTimeoutError) as waited:
            await session.job("old_000001").wait(0.1)

    assert KEY not in str(waited.value) + caplog.text
    assert "Unknown status" in caplog.text


def test_attached_job_is_made_without_an_event_loop():
    session = q.QameraSession("mk_live_a.bcdefgh", base_url="https://example.com")
    job = session.job("vid_1", "vid_1", "vid_2")

    assert job.record_ids == ("vid_1", "vid_2")
    assert (job.state, job.status, job.records) == (q.JobState.PENDING, None, ())
    with pytest.raises(q.InvalidRequestError):
        session.job()
    with pytest.raises(q.InvalidRequestError):
        session.job("")
