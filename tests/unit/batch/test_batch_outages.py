"""A batch while its server is unreachable: it pauses, retries one request, and submits each request once."""

import asyncio

import pytest
from batch_helpers import Counted, consume, until, videos
from fake_registrar import Answer, FakeJob, FakeRegistrar, ambiguous, make_batch, unreachable

import qamera_async as q

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")


class Delays:
    """A retry policy that records its delays."""

    def __init__(self):
        self.given = []

    def delays(self):
        for number in range(1, 10**6):
            self.given.append(number)
            yield 0.001


class Outage:
    """An answer function that fails to connect so many times, then returns receipts."""

    def __init__(self, failures):
        self.left = failures

    def __call__(self, request):
        if not self.left:
            return Answer()
        self.left -= 1
        return unreachable()


async def test_during_an_outage_one_request_is_retried_and_no_request_is_read():
    trying, tries = 0, []

    class SpecialRegistrar(FakeRegistrar):
        async def send(self, claim):
            nonlocal trying
            trying += 1
            tries.append(trying)
            await asyncio.sleep(0.001)
            trying -= 1
            raise q.ConnectionFailedError("refused")

    source = Counted(videos(100))
    async with make_batch(SpecialRegistrar(), source, retry=Delays()) as batch:
        running = asyncio.ensure_future(consume(batch))
        await until(lambda: len(tries) > 50)
        running.cancel()
        await asyncio.wait([running])

    assert tries[:5] == [1, 2, 3, 4, 5]
    assert set(tries[5:]) == {1}
    assert source.read == 5


async def test_each_outage_begins_with_the_first_delay():
    retry, outage = Delays(), Outage(12)
    registrar = FakeRegistrar(outage)
    first, _ = await consume(make_batch(registrar, videos(10), retry=retry))
    given = list(retry.given)
    outage.left = 7
    second, _ = await consume(make_batch(registrar, videos(10), retry=retry))

    assert [outcome.ok for outcome in [*first, *second]] == [True] * 20
    assert given == list(range(1, len(given) + 1))
    assert retry.given[len(given) :] == list(range(1, len(retry.given) - len(given) + 1))
    assert 3 <= len(retry.given) - len(given) < len(given) <= 12
    assert len(registrar.posts) == 20


async def test_request_is_claimed_again_for_each_attempt():
    registrar = FakeRegistrar(Outage(3))
    outcomes, _ = await consume(make_batch(registrar, videos(1)))

    assert [outcome.ok for outcome in outcomes] == [True]
    assert len(registrar.claims) == 4
    assert len(registrar.posts) == 1


async def test_outage_is_logged_when_it_begins_and_when_it_ends(caplog):
    caplog.set_level("INFO", "qamera_async")
    await consume(make_batch(FakeRegistrar(Outage(12)), videos(10)))
    lines = [(record.levelname, record.getMessage()) for record in caplog.records]

    assert [level for level, _ in lines] == ["WARNING", "INFO"]
    assert "unreachable: No connection to example.com." in lines[0][1]


async def test_batch_without_an_outage_logs_none(caplog):
    caplog.set_level("INFO", "qamera_async")
    await consume(make_batch(FakeRegistrar(), videos(3)))

    assert caplog.text == ""


async def test_batch_can_be_stopped_in_an_outage():
    old = FakeJob("vid_old")
    registrar = FakeRegistrar(lambda _: unreachable(), known={"old": old})
    retry = q.RetryPolicy(base=1000.0, max_delay=1000.0)
    requests = [q.VideoRequest("i", ref="old"), *videos(20)]
    running = asyncio.ensure_future(consume(make_batch(registrar, requests, retry=retry)))
    await asyncio.sleep(0.02)
    old.fail(q.AuthenticationError("revoked", status=401))
    outcomes, reason = await asyncio.wait_for(running, 5)

    assert isinstance(reason, q.AuthenticationError)
    assert [outcome.job for outcome in outcomes] == [old]
    assert registrar.posts == []
    assert all(claim.released or claim.task for claim in registrar.claims)


async def test_during_an_outage_a_slow_source_is_not_read(caplog):
    read = []

    async def source():
        for request in videos(10):
            read.append(request)
            yield request
            await asyncio.sleep(0.005)

    outage = Outage(10**6)
    registrar = FakeRegistrar(outage)
    running = asyncio.ensure_future(consume(make_batch(registrar, source())))
    await until(lambda: caplog.text)
    at_first = len(read)
    await asyncio.sleep(0.1)
    at_last = len(read)
    outage.left = 0
    outcomes, reason = await running

    assert at_last <= at_first + 1 < 10  # a read may have begun before the outage
    assert (len(outcomes), reason) == (10, None)
    assert len(registrar.posts) == 10


async def test_next_request_is_retried_if_the_first_one_needs_no_submission():
    """Another process has submitted the request that was retried."""

    class SpecialRegistrar(FakeRegistrar):
        async def send(self, claim):
            if claim.request.ref == "sku-0":
                job = self.known["sku-0"] = FakeJob("vid_elsewhere")
                job.finish()
                raise q.ConnectionFailedError("refused")
            return await super().send(claim)

    registrar = SpecialRegistrar()
    outcomes, reason = await asyncio.wait_for(consume(make_batch(registrar, videos(3), max_in_flight=1)), 5)

    assert [outcome.ok for outcome in outcomes] == [True] * 3
    assert reason is None
    assert len(registrar.posts) == 2


async def test_request_that_may_have_been_sent_is_not_sent_again():
    error = q.RequestTimeoutError("half of it was sent", sent=True)
    registrar = FakeRegistrar(lambda request: Answer(error if request.ref == "sku-1" else None))
    outcomes, _ = await consume(make_batch(registrar, videos(3)))

    assert {outcome.index: outcome.error for outcome in outcomes} == {0: None, 1: error, 2: None}
    assert len(registrar.posts) == 3


async def test_outage_does_not_change_the_credit_limit_and_the_target_files(tmp_path):
    registrar = FakeRegistrar(Outage(12))
    batch = make_batch(registrar, [*videos(3), *videos(3)], max_credits=1000, download_to=tmp_path)
    outcomes, reason = await consume(batch)

    assert reason is None
    assert (
        sum(outcome.ok for outcome in outcomes) == len(registrar.posts) == len(list(tmp_path.iterdir())) == 3
    )
    assert batch.credits_reserved == registrar.paid == 30


async def test_ambiguous_submission_ends_an_outage():
    answers = iter([unreachable(), ambiguous()])
    registrar = FakeRegistrar(lambda _: next(answers, Answer(seconds=0.01)))
    outcomes, reason = await consume(
        make_batch(registrar, videos(4), retry=(retry := Delays()), max_in_flight=1)
    )

    assert reason is None
    assert sum(outcome.ok for outcome in outcomes) == 3
    assert retry.given == [1]
