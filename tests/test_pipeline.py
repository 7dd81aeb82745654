"""A batch with a ledger and downloads: run again, it pays for nothing twice and fetches what is missing."""

import asyncio
import json
import random
import sys
from pathlib import Path

import pytest

import qamera_async as q
from qamera_async.events import Downloading, Finished
from qamera_async.sandbox import Sandbox

pytestmark = [pytest.mark.usefixtures("no_lost_exceptions"), pytest.mark.slow]

PROGRAM = Path(__file__).with_name("catalogue.py")


@pytest.fixture
async def sandbox():
    async with Sandbox(job_seconds=0.05, quota=None, credits=10**6) as sandbox:
        yield sandbox


@pytest.fixture
def clips(tmp_path):
    return tmp_path / "clips"


def requests(number):
    return [q.VideoRequest(f"img_{n}", ref=f"sku-{n}") for n in range(number)]


def count(sandbox, what, since=0):
    arrived = sandbox.requests[since:]
    return sum(r.origin == "cdn" if what == "cdn" else r.method == what for r in arrived)


async def test_run_again_it_asks_for_nothing(session, sandbox, clips):
    """What is done and there costs no request at all, and the outcomes are the same."""
    async with session() as first:
        done = await first.batch(requests(6), download_to=clips)
    before = len(sandbox.requests)
    async with session() as second:
        again = await second.batch(requests(6), download_to=clips)

    assert [outcome.path.name for outcome in done.outcomes] == [f"sku-{n}.mp4" for n in range(6)]
    assert [o.path for o in again.outcomes] == [o.path for o in done.outcomes]
    assert again.records == done.records
    assert len(sandbox.requests) == before
    assert (done.credits_reserved, again.credits_reserved) == (60, 0)


async def test_a_rerun_fetches_only_what_is_missing(session, sandbox, clips):
    """A clip that was deleted, or is not what was fetched, is fetched anew or left alone; no POST."""
    async with session() as first:
        await first.batch(requests(4), download_to=clips)
    (clips / "sku-1.mp4").unlink()
    (clips / "sku-2.mp4").write_bytes(b"mine")
    before = len(sandbox.requests)
    async with session() as second:
        again = await second.batch(requests(4), download_to=clips)

    assert count(sandbox, "cdn", before) == 1
    assert count(sandbox, "POST") == 4
    assert [type(outcome.error) for outcome in again.failures] == [q.errors.TargetExistsError]
    assert (clips / "sku-2.mp4").read_bytes() == b"mine"


async def test_ledger_and_clips_may_move_together(sandbox, quick, tmp_path):
    """What is there is known by its place beside the ledger."""
    (tmp_path / "old").mkdir()
    for place in ("old", "new"):
        folder = tmp_path / place
        async with sandbox.session(**quick, ledger=folder / "jobs.db") as session:
            result = await session.batch(requests(3), download_to=folder / "clips")
            assert result.failures == ()
        if place == "old":
            before = len(sandbox.requests)
            folder.rename(tmp_path / "new")

    assert len(sandbox.requests) == before


async def test_the_same_ref_twice_in_a_batch_is_one_job_and_one_file(session, sandbox, clips):
    """Both outcomes have it, whoever was quicker."""
    async with session() as first:
        result = await first.batch([*requests(1), *requests(1), *requests(2)], download_to=clips)

    assert result.failures == ()
    assert len({outcome.path for outcome in result.outcomes}) == 2
    assert count(sandbox, "POST") == 2


async def test_a_file_in_the_way_is_found_before_anything_is_paid(session, sandbox, clips):
    """The name is known from the ref, so nothing is ordered for it."""
    clips.mkdir()
    (clips / "sku-1.mp4").write_bytes(b"mine")
    async with session() as first:
        result = await first.batch(requests(3), download_to=clips)

    assert count(sandbox, "POST") == 2
    assert isinstance(result.failures[0].error, FileExistsError)
    assert (clips / "sku-1.mp4").read_bytes() == b"mine"


async def test_a_failed_download_never_orders_again(session, sandbox, clips):
    """It is its own error, with the video; the rerun fetches it and pays nothing."""
    sandbox.cdn_trouble("error", status=418)
    async with session() as first:
        result = await first.batch(requests(3), download_to=clips)
        (failed,) = result.failures
        assert isinstance(failed.error, q.DownloadError)
        assert failed.record is not None
    async with session() as second:
        again = await second.batch(requests(3), download_to=clips)

    assert again.failures == ()
    assert count(sandbox, "POST") == 3


async def test_what_is_submitted_is_not_ordered_again(session, sandbox):
    """A run that was left in the middle goes on with the jobs it has."""
    async with session() as first:
        async for _ in first.batch(requests(8), max_in_flight=3):
            break
    async with session() as second:
        again = await second.batch(requests(8))

    assert again.failures == ()
    assert count(sandbox, "POST") == 8


async def test_what_the_ledger_has_as_ambiguous_does_not_stop_a_batch(session, sandbox):
    """Each is an outcome and doesn't count; the rest goes on."""
    sandbox.trouble("error", status=500, times=20)
    async with session() as first:
        result = await first.batch(requests(20))
        assert isinstance(result.stopped, q.AmbiguityLimitError)
        again = await first.batch(requests(20))
        assert isinstance(again.stopped, q.AmbiguityLimitError)
        assert count(sandbox, "POST") == 10
    sandbox.trouble("error", status=500, times=1)
    async with session() as second:
        while count(sandbox, "POST") < 20:
            await second.batch(requests(20))
        left = await second.batch(requests(20))

    assert left.stopped is None
    assert {type(outcome.error) for outcome in left.failures} == {q.AmbiguousSubmissionError}


async def test_resumed_jobs_do_not_count_against_the_credits(session, sandbox):
    """A second run with the same limit goes on with as much as the first."""
    async with session() as first:
        result = await first.batch(requests(9), max_credits=30)
        assert isinstance(result.stopped, q.CreditLimitError)
        assert len(result.records) == 3
    async with session() as second:
        again = await second.batch(requests(9), max_credits=30)

    assert len(again.records) == 6
    assert len(sandbox.orders) == 6


async def test_a_full_ledger_stops_the_batch(session, sandbox, monkeypatch):
    """Where nothing can be kept nothing is ordered, and reading on makes no sense."""
    read = []

    def counted():
        for request in requests(50):
            read.append(request)
            yield request

    async def full_disk(*_, **__):
        raise q.LedgerUnavailableError("The ledger can't be used: database or disk is full.", path="jobs.db")

    async with session() as first:
        monkeypatch.setattr(first._ledger.storage, "claim", full_disk)
        result = await first.batch(counted())

    assert isinstance(result.stopped, q.LedgerUnavailableError)
    assert len(read) <= 5
    assert sandbox.requests == []


async def test_downloads_run_beside_the_jobs_and_are_told(session, sandbox, clips):
    """A clip is fetched while later jobs are still made; its bytes are events."""
    events = []
    async with session(on_event=events.append) as first:
        sandbox.trouble("late", seconds=0.6)
        result = await first.batch(requests(2), download_to=clips)
    kinds = [type(event) for event in events]

    assert result.failures == ()
    assert kinds.index(Downloading) < len(kinds) - 1 - kinds[::-1].index(Finished)
    assert {event.record_id for event in events if isinstance(event, Downloading)} == set(sandbox.records)


async def test_a_job_and_a_video_can_be_downloaded(session, sandbox, tmp_path):
    """The session's own downloads: clip, thumbnail, stream."""
    async with session() as first:
        job = await first.register_video(image_id="img_1")
        clip = await first.download(job, tmp_path / "a.mp4")
        picture = await first.download_thumbnail(await job, tmp_path / "a.jpg")
        async with first.stream(job) as pieces:
            streamed = b"".join([piece async for piece in pieces])
        with pytest.raises(FileExistsError):
            await first.download(job, clip)
        await first.download(job, clip, overwrite=True)
        with pytest.raises(q.InvalidRequestError):
            await first.download("vid_1", tmp_path / "b.mp4")

    assert clip.read_bytes() == streamed
    assert picture.read_bytes()[:2] == b"\xff\xd8"


async def test_an_expired_address_is_looked_up_anew(session, sandbox, clips):
    """The list has another one by then, and the clip is fetched."""
    sandbox.cdn_trouble("expired")
    async with session() as first:
        result = await first.batch(requests(3), download_to=clips)

    assert result.failures == ()
    assert [r.status for r in sandbox.requests if r.origin == "cdn"].count(403) == 1


async def started(asked):
    return await asyncio.create_subprocess_exec(
        sys.executable, PROGRAM, json.dumps(asked), stdout=asyncio.subprocess.PIPE
    )


async def test_killed_in_the_middle_of_downloads_no_file_is_half(tmp_path, clips):
    """P8: whatever instant it dies at, what has its final name is whole, and the rest is resumed."""
    chance = random.Random()  # noqa: S311 - picks instants
    size = 5_000_000
    async with Sandbox(job_seconds=0.05, quota=None, credits=10**6, clip_bytes=size) as sandbox:
        sandbox.cdn_trouble("slow", times=500, rate=8_000_000)
        asked = {
            "url": sandbox.url,
            "key": sandbox.api_key,
            "ledger": str(tmp_path / "jobs.db"),
            "number": 12,
            "folder": str(clips),
        }
        # Ordered beforehand, so that no kill finds a POST on the wire.
        process = await started(asked | {"folder": None})
        await process.communicate()
        killed = 0
        while not any("Range" in r.headers for r in sandbox.requests):
            process = await started(asked)
            before = len(sandbox.requests)
            while count(sandbox, "cdn", before) == 0:
                await asyncio.sleep(0.005)
            await asyncio.sleep(chance.uniform(0, 0.6))
            process.kill()
            await process.communicate()
            killed += 1
            assert {clip.stat().st_size for clip in clips.glob("*.mp4")} <= {size}
            assert killed < 40
        process = await started(asked)
        out, _ = await process.communicate()

        assert out.decode().count(" ok\n") == 12
        assert len(sandbox.orders) == 12
        assert {clip.name for clip in clips.iterdir()} == {f"sku-{n}.mp4" for n in range(12)}
