"""The outcomes of a batch, their order, and the number of requests in flight."""

import asyncio
import gc
import tracemalloc

import pytest
from batch_helpers import Counted, collect, consume, until, videos
from fake_registrar import Answer, FakeJob, FakeRegistrar, ambiguous, make_batch, script

import qamera_async as q
from qamera_async import BatchResult, Outcome

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")


async def test_awaiting_returns_all_outcomes_in_the_order_of_the_input():
    registrar = FakeRegistrar(job_seconds=None)
    requests = [*videos(6), q.ReelRequest(["a", "b"])]
    running = asyncio.ensure_future(collect(make_batch(registrar, requests)))
    await until(lambda: len(registrar.jobs) == 7)
    registrar.jobs[3].fail()
    for job in reversed(registrar.jobs):
        job.finish()
    result = await running

    assert [outcome.index for outcome in result.outcomes] == list(range(7))
    assert [outcome.request for outcome in result.outcomes] == requests
    assert len(result.records) == 6
    assert [type(outcome.error) for outcome in result.failures] == [q.JobFailedError]
    assert result.stopped is None
    assert (result.credits_reserved, result.credits_refunded) == (70, 10)


async def test_iterating_yields_outcomes_as_they_finish():
    registrar = FakeRegistrar(job_seconds=None)
    outcomes = aiter(make_batch(registrar, videos(3)))
    given = []
    for place in (2, 0, 1):
        asking = asyncio.ensure_future(anext(outcomes))
        await until(lambda: len(registrar.jobs) == 3)
        registrar.jobs[place].finish()
        given.append((await asking).record.id)
    with pytest.raises(StopAsyncIteration):
        await anext(outcomes)

    assert given == ["vid_003", "vid_001", "vid_002"]


@pytest.mark.parametrize("kind", ["list", "iterator", "async", "indexed"])
async def test_accepts_any_iterable(kind):
    async def asynchronous():
        for request in videos(3):
            await asyncio.sleep(0)
            yield request

    class Indexed:
        def __getitem__(self, index):
            return videos(3)[index]

    requests = {"list": videos(3), "iterator": iter(videos(3)), "async": asynchronous(), "indexed": Indexed()}
    result = await make_batch(FakeRegistrar(), requests[kind])

    assert [outcome.request.ref for outcome in result.outcomes] == ["sku-0", "sku-1", "sku-2"]


@pytest.mark.parametrize("requests", [[], iter(())])
async def test_empty_input_has_an_empty_result(requests):
    assert await make_batch(FakeRegistrar(), requests) == BatchResult(())


@pytest.mark.parametrize(
    "options",
    [
        {"requests": 3},
        {"requests": q.VideoRequest("i")},
        {"requests": "img_1"},
        *({"max_in_flight": bad} for bad in (0, -1, True, 1.0, None, "1")),
        *({"max_downloads": bad} for bad in (0, True, 2.5, None)),
        *({"max_credits": bad} for bad in (-1, False, 10.0, "10")),
        *({"retry_failed": bad} for bad in (0, 1, "no", None)),
        *({"overwrite": bad} for bad in (0, 1, "no", None)),
        *({"allow_private": bad} for bad in (0, 1, "no", None)),
        *({"download_to": bad} for bad in (3, "", b"", b"a", "a\0b", "\ud800", "a/\udcff")),
    ],
)
def test_refuses_invalid_settings_when_it_is_built(options):
    with pytest.raises(q.ConfigurationError):
        make_batch(FakeRegistrar.__new__(FakeRegistrar), **{"requests": []} | options)


async def test_invalid_request_is_a_failed_outcome():
    registrar = FakeRegistrar()
    result = await make_batch(registrar, [*videos(1), "img_2", None, *videos(1)])

    assert [type(outcome.error) for outcome in result.failures] == [q.InvalidRequestError] * 2
    assert [outcome.request for outcome in result.failures] == ["img_2", None]
    assert len(registrar.posts) == 2


async def test_batch_is_consumed_once():
    registrar = FakeRegistrar()
    first, second = make_batch(registrar, videos(1)), make_batch(registrar, videos(1))
    await first
    assert [outcome.ok async for outcome in second] == [True]
    for batch in (first, second):
        with pytest.raises(RuntimeError, match="once"):
            await batch
        with pytest.raises(RuntimeError, match="once"):
            aiter(batch)

    assert len(registrar.posts) == 2


async def test_nothing_is_read_before_the_batch_is_consumed():
    source, registrar = Counted(videos(3)), FakeRegistrar()
    async with make_batch(registrar, source):
        await asyncio.sleep(0.02)

    assert source.read == 0
    assert registrar.claims == []


async def test_keeps_no_more_than_max_in_flight():
    source, registrar = Counted(videos(300)), FakeRegistrar(job_seconds=0.005)
    handed, ahead = 0, []
    async for outcome in make_batch(registrar, source, max_in_flight=10):
        assert outcome.ok
        handed += 1
        ahead.append(source.read - handed + 1)

    assert handed == len(registrar.posts) == 300
    assert max(ahead) == 10


async def test_slow_consumer_limits_the_submissions():
    source, registrar = Counted(videos(20)), FakeRegistrar()
    handed = 0
    async for _ in make_batch(registrar, source, max_in_flight=4):
        handed += 1
        await until(lambda: len(registrar.posts) == min(handed + 4, 20))  # noqa: B023 - awaited here
        await asyncio.sleep(0.005)
        assert source.read == len(registrar.posts)

    assert handed == 20


async def test_sends_at_most_five_posts_at_once():
    registrar = FakeRegistrar(lambda _: Answer(seconds=0.002))
    result = await make_batch(registrar, videos(40))

    assert len(result.records) == 40
    assert registrar.most_on_wire == 5


async def test_reads_only_requests_that_it_can_send():
    source, registrar = Counted(videos(100)), FakeRegistrar()
    registrar.rate_limit.clear()
    async with make_batch(registrar, source) as batch:
        running = asyncio.ensure_future(collect(batch))
        await until(lambda: registrar.waiting == 5)
        await asyncio.sleep(0.01)

        assert source.read == 5
        registrar.rate_limit.set()
        assert len((await running).records) == 100


async def test_counters_change_while_the_batch_runs():
    registrar = FakeRegistrar(job_seconds=None, known={"sku-0": (earlier := FakeJob("vid_0"))})
    earlier.finish()
    batch = make_batch(registrar, videos(4))
    assert (batch.submitted, batch.finished, batch.credits_reserved, batch.stopped) == (0, 0, 0, None)
    outcomes = aiter(batch)
    assert (await anext(outcomes)).job is earlier
    await until(lambda: batch.submitted == 3)

    assert (batch.finished, batch.credits_reserved, batch.stopped) == (1, 30, None)
    registrar.jobs[0].finish()
    await anext(outcomes)
    assert batch.finished == 2
    await outcomes.aclose()


async def test_stopped_is_known_before_the_last_outcome():
    registrar = FakeRegistrar(
        script(Answer(), then=Answer(q.AuthenticationError("revoked", status=401))), job_seconds=None
    )
    batch = make_batch(registrar, videos(9))
    running = asyncio.ensure_future(consume(batch))
    await until(lambda: batch.stopped)

    assert isinstance(batch.stopped, q.AuthenticationError)
    assert not running.done()
    registrar.jobs[0].finish()
    outcomes, reason = await running
    assert (len(outcomes), reason) == (1, batch.stopped)


async def test_iterating_keeps_only_the_requests_in_flight():
    async def peak(rows):
        gc.collect()
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        job = FakeJob("vid_1")
        job.finish()
        registrar = FakeRegistrar(known=type("Everything", (), {"get": lambda _, ref: job})())
        requests = (q.VideoRequest("i", ref=str(n)) for n in range(rows))
        async for outcome in make_batch(registrar, requests, max_in_flight=20):
            assert outcome.ok
        return tracemalloc.get_traced_memory()[1] - before

    tracemalloc.start()
    try:
        await peak(100)
        few, many = await peak(300), await peak(3000)
    finally:
        tracemalloc.stop()

    assert many < few + 100_000


async def test_earlier_jobs_cost_nothing_and_are_not_refunded():
    job, failed = FakeJob("vid_a"), FakeJob("vid_b", receipt=q.Receipt(("vid_b",), credits_reserved=10))
    job.finish()
    failed.fail()
    registrar = FakeRegistrar(known={"sku-0": job, "sku-1": failed})
    result = await make_batch(registrar, videos(3))

    assert [outcome.ok for outcome in result.outcomes] == [True, False, True]
    assert len(registrar.posts) == 1
    assert (result.credits_reserved, result.credits_refunded) == (10, 0)


async def test_claim_that_waits_for_another_process_does_not_block_other_requests(monkeypatch):
    monkeypatch.setattr("qamera_async._batch.batch.SLOW_CLAIM_SECONDS", 0.01)
    registrar = FakeRegistrar()
    registrar.claimed_elsewhere = {f"sku-{n}": asyncio.Event() for n in range(20)}
    outcomes = aiter(make_batch(registrar, videos(30)))
    first = [await anext(outcomes) for _ in range(10)]

    assert sorted(outcome.index for outcome in first) == list(range(20, 30))
    for n, event in enumerate(registrar.claimed_elsewhere.values()):
        registrar.known[f"sku-{n}"] = job = FakeJob(f"vid_{n}")
        job.finish()
        event.set()
    assert sorted([outcome.index async for outcome in outcomes]) == list(range(20))
    assert len(registrar.posts) == 10


async def test_claims_that_are_granted_late_still_send_five_at_once(monkeypatch):
    monkeypatch.setattr("qamera_async._batch.batch.SLOW_CLAIM_SECONDS", 0.001)
    registrar = FakeRegistrar(lambda _: Answer(seconds=0.002))
    granted = asyncio.Event()
    registrar.claimed_elsewhere = {f"sku-{n}": granted for n in range(30)}
    batch = make_batch(registrar, source := Counted(videos(90)), max_in_flight=30)
    outcomes = aiter(batch)
    asking = asyncio.ensure_future(anext(outcomes))
    await until(lambda: source.read == 30)
    granted.set()
    await asking
    for _ in range(29):
        await anext(outcomes)
    await until(lambda: len(registrar.posts) == 60)
    registrar.rate_limit.clear()
    for _ in range(30):
        await anext(outcomes)
    await until(lambda: registrar.waiting == 5)
    await asyncio.sleep(0.01)

    assert registrar.most_on_wire == 5
    assert source.read == 65
    await outcomes.aclose()


@pytest.mark.parametrize("retry_failed", [True, False])
async def test_retry_failed_is_passed_to_the_claim(retry_failed):
    class SpecialRegistrar(FakeRegistrar):
        async def claim(self, request, *, retry_failed):
            asked.append(retry_failed)
            return await super().claim(request, retry_failed=retry_failed)

    asked = []
    await make_batch(SpecialRegistrar(), videos(1), retry_failed=retry_failed)

    assert asked == [retry_failed]


def test_unwrap_returns_the_record_or_raises():
    video = q.Video("vid_1", "DONE", q.JobState.DONE)
    request = q.VideoRequest("i")
    good = Outcome(0, request, record=video)
    bad = Outcome(1, request, error=q.BadRequestError("no", status=400))

    assert (good.ok, bad.ok) == (True, False)
    assert good.unwrap() is video
    with pytest.raises(q.BadRequestError):
        bad.unwrap()


def test_summary_has_the_numbers_and_the_reason_to_stop():
    request = q.VideoRequest("i")
    outcomes = (
        Outcome(0, request, record=q.Video("vid_1", "DONE", q.JobState.DONE)),
        Outcome(1, request, error=q.BadRequestError("no", status=400)),
        Outcome(2, request, error=ambiguous().error),
    )
    text = BatchResult(outcomes, q.AuthenticationError("revoked", status=401), 20, 10).summary()

    assert text.startswith("1 done, 1 failed, 1 ambiguous; 20 credits reserved, 10 of them refunded.")
    assert "Stopped by AuthenticationError: HTTP 401: revoked" in text
    assert "Stopped" not in BatchResult(()).summary()
