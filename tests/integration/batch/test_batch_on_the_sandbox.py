"""A batch on the sandbox: results, files, the rate limit, and a second run with a ledger."""

import asyncio
import itertools

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from batch_helpers import collect, posts, until, videos

import qamera_async as q
from qamera_async.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")


async def test_awaiting_returns_all_outcomes_in_the_order_of_the_input(new_session, sandbox):
    sandbox.trouble("fail_job")
    requests = [*videos(6), q.ReelRequest(["a", "b"])]
    async with new_session(ledger=None) as qamera:
        result = await qamera.batch(requests)

    assert [outcome.request for outcome in result.outcomes] == requests
    assert len(result.records) == 6
    assert [type(outcome.error) for outcome in result.failures] == [q.JobFailedError]
    assert result.stopped is None
    assert (result.credits_reserved, result.credits_refunded) == (75, 10)


async def test_empty_batch_sends_no_request(new_session, sandbox):
    async with new_session() as qamera:
        await qamera.batch([])

    assert sandbox.requests == []


async def test_yields_outcomes_while_submissions_wait_for_the_rate_limit(quick):
    async with Sandbox(job_seconds=0.01, quota=(12, 0.3), credits=10_000) as sandbox:
        async with sandbox.session(**quick) as qamera, qamera.batch(videos(30)) as batch:
            seen = [len(sandbox.orders) async for outcome in batch if outcome.ok]

    assert len(seen) == 30
    assert seen[0] < 30
    assert {request.status for request in sandbox.requests} == {200}


async def test_downloads_into_a_new_folder(new_session, tmp_path):
    folder = tmp_path / "a" / "b"
    async with new_session() as qamera:
        result = await qamera.batch([*videos(2), q.VideoRequest("i")], download_to=folder)

    names = ["sku-0.mp4", "sku-1.mp4", f"{result.outcomes[2].job.record_ids[0]}.mp4"]
    assert [outcome.path.name for outcome in result.outcomes] == names
    assert {path.name for path in folder.iterdir()} == set(names)


@pytest.mark.parametrize("overwrite", [True, False])
async def test_existing_files_are_overwritten_only_if_asked(new_session, sandbox, tmp_path, overwrite):
    (tmp_path / "sku-0.mp4").write_text("mine")
    async with new_session(ledger=None) as qamera:
        result = await qamera.batch(videos(2), download_to=tmp_path, overwrite=overwrite)

    assert [outcome.ok for outcome in result.outcomes] == [overwrite, True]
    assert ((tmp_path / "sku-0.mp4").read_bytes() == b"mine") != overwrite
    assert len(posts(sandbox)) == 1 + overwrite


@pytest.mark.parametrize("ledger", [True, False])
async def test_requests_with_the_same_ref_are_paid_once_if_they_share_a_file(
    new_session, sandbox, path, tmp_path, ledger
):
    folder = tmp_path / "clips"
    async with new_session(ledger=path if ledger else None) as qamera:
        result = await qamera.batch([*videos(2), *videos(2)], download_to=folder)

    assert len(posts(sandbox)) == len(list(folder.iterdir())) == 2
    if ledger:
        assert result.failures == ()
    else:
        assert [type(outcome.error) for outcome in result.failures] == [q.InvalidRequestError] * 2


async def test_second_run_with_a_ledger_submits_only_what_is_new(new_session, sandbox, tmp_path):
    async with new_session() as qamera:
        await qamera.batch(videos(3), download_to=tmp_path / "clips")
    async with new_session() as qamera:
        again = await qamera.batch(videos(5), download_to=tmp_path / "clips")

    assert len(again.records) == 5
    assert len(posts(sandbox)) == 5
    assert again.credits_reserved == 20
    assert len(list((tmp_path / "clips").iterdir())) == 5


async def test_retry_failed_submits_failed_jobs_again(new_session, sandbox):
    sandbox.trouble("fail_job")
    async with new_session() as qamera:
        first = await qamera.batch(videos(2))
        second = await qamera.batch(videos(2))
        third = await qamera.batch(videos(2), retry_failed=True)

    assert (len(first.records), len(second.records), len(third.records)) == (1, 1, 2)
    assert len(posts(sandbox)) == 3


async def test_two_sessions_with_one_ledger_share_the_requests(new_session, sandbox):
    async with new_session() as one, new_session() as other:
        first, second = await asyncio.gather(collect(one.batch(videos(40))), collect(other.batch(videos(40))))

    assert len(first.records) == len(second.records) == 40
    assert len(posts(sandbox)) == 40


async def test_counters_change_while_the_batch_runs(new_session, sandbox):
    sandbox.trouble("late", seconds=100.0, times=3)
    async with new_session() as qamera, qamera.batch(videos(4)) as batch:
        outcome = await anext(aiter(batch))
        assert outcome.ok
        await until(lambda: batch.submitted == 4)
        assert (batch.finished, batch.credits_reserved, batch.stopped) == (1, 40, None)


async def test_session_of_another_event_loop_sends_nothing(new_session, sandbox):
    async with new_session(ledger=None) as qamera:
        result = await asyncio.to_thread(lambda: asyncio.run(collect(qamera.batch(videos(3)))))

    assert isinstance(result.stopped, q.SessionClosedError)
    assert result.outcomes == ()
    assert posts(sandbox) == []


async def test_batch_binds_its_session_to_the_event_loop(new_session, sandbox):
    qamera = new_session(ledger=None)
    await qamera.batch(videos(1))

    with pytest.raises(q.SessionClosedError):
        await asyncio.to_thread(lambda: asyncio.run(qamera.list_videos()))
    await qamera.aclose()
    assert len(posts(sandbox)) == 1


async def test_receipts_count_in_the_statistics_after_their_callers_were_cancelled(new_session, sandbox):
    sandbox.trouble("slow", seconds=0.1, times=3)
    async with new_session(ledger=None) as qamera:
        running = asyncio.ensure_future(collect(qamera.batch(videos(3))))
        await until(lambda: len(posts(sandbox)) == 3)
        running.cancel()
        await until(lambda: qamera.statistics().submissions == 3)

        assert qamera.statistics().credits_reserved == 30


async def test_price_is_that_of_the_new_receipt_if_the_server_repeats_a_record_id(quick):
    """The job is then the earlier job, which has the earlier receipt."""
    credits_reserved = itertools.chain([10], itertools.repeat(30))

    async def register(request):
        await request.read()
        receipt = {"createdRecordIds": ["vid_1"], "creditsReserved": next(credits_reserved)}
        return web.json_response(receipt)

    async def list_videos(request):
        return web.json_response({"videos": [{"id": "vid_1", "status": "FAILED"}], "count": 1})

    application = web.Application()
    application.router.add_post("/{path:.*}", register)
    application.router.add_get("/{path:.*}", list_videos)
    async with (
        TestServer(application) as server,
        q.QameraSession("mk_live_a.b", base_url=str(server.make_url("/")), **quick) as qamera,
    ):
        held = await qamera.register_video(image_id="i")
        result = await qamera.batch(videos(3), max_credits=50, max_in_flight=1)

    assert held.receipt.credits_reserved == 10
    assert (result.credits_reserved, result.credits_refunded) == (30, 30)
    assert isinstance(result.stopped, q.CreditLimitError)
