"""A session on the sandbox: a video from its registration to its URL, and misuse of the session."""

import asyncio
import gc

import pytest

import qamera_async as q

pytestmark = [pytest.mark.usefixtures("no_lost_exceptions"), pytest.mark.every_loop]


async def test_video_is_registered_and_awaited(session, sandbox):
    """`register_video` sends its arguments, and the job returns the finished video."""
    job = await session.register_video(image_id="img_1", suggestion="Slow zoom", ref="sku-1")
    video = await job

    assert job.record_ids == (video.id,)
    assert video.status == "DONE"
    assert video.video_url.startswith(sandbox.cdn_url)
    assert sandbox.orders[0].body == {"imageId": "img_1", "suggestion": "Slow zoom"}
    assert job.receipt.credits_reserved == 10


async def test_second_event_loop_is_refused(sandbox, quick):
    """A session belongs to the first event loop that uses it."""
    async with sandbox.session(**quick) as session:
        await session.list_videos()

        def list_in_another_loop():
            asyncio.run(session.list_videos())

        with pytest.raises(q.SessionClosedError, match="another event loop"):
            await asyncio.to_thread(list_in_another_loop)


async def test_use_after_a_fork_is_refused(sandbox, quick, monkeypatch):
    """Two processes must not use one connection."""
    async with sandbox.session(**quick) as session:
        with monkeypatch.context() as forked:
            forked.setattr("os.getpid", lambda: 0)
            with pytest.raises(q.SessionClosedError, match="fork"):
                await session.list_videos()


@pytest.mark.parametrize("download", ["session.download", "session.download_thumbnail", "job.download"])
async def test_coroutine_function_for_progress_is_refused(sandbox, quick, tmp_path, download):
    async def on_progress(done, total):
        pass

    async with sandbox.session(**quick) as session:
        job = session.job("vid_1")
        target = tmp_path / "clip.mp4"
        with pytest.raises(q.ConfigurationError, match="on_progress"):
            if download == "job.download":
                await job.download(target, on_progress=on_progress)
            else:
                await getattr(session, download.partition(".")[2])(job, target, on_progress=on_progress)

    assert sandbox.requests == []


async def test_statistics_may_be_read_from_another_thread(session):
    await (await session.register_video(image_id="img_1"))

    assert (await asyncio.to_thread(session.statistics)).seconds_since_poll >= 0


async def test_invalid_arguments_leave_no_broken_session(recwarn):
    """Its finalizer must work, too."""

    class Broken(q.QameraSession):
        def __init__(self):
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        Broken()
    with pytest.raises(TypeError, match="timeout"):
        q.QameraSession("mk_live_a.bcdefgh", timeout=3)
    gc.collect()

    assert not list(recwarn)


@pytest.mark.parametrize("kind", ["photo", [], None])
async def test_unknown_kind_is_refused(session, kind):
    with pytest.raises(q.InvalidRequestError, match="kind"):
        session.job("vid_1", kind=kind)


async def test_ledger_has_time_to_close_although_submissions_have_none(sandbox, quick, tmp_path, caplog):
    options = quick | {"timeouts": q.Timeouts(close=0), "ledger": tmp_path / "jobs.db"}
    async with sandbox.session(**options) as session:
        await session.register_video(image_id="img_1", ref="sku-1")

    assert caplog.text == ""
    assert not list(tmp_path.glob("*-wal"))
