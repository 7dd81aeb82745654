"""A session end to end, on the sandbox."""

import asyncio
import gc

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
