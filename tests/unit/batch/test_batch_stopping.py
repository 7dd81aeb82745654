"""Reasons that stop a batch. It still hands out all jobs that it has submitted."""

import asyncio

import attrs
import pytest
from batch_helpers import Counted, collect, consume, until, videos
from fake_registrar import Answer, FakeJob, FakeRegistrar, ambiguous, make_batch, refused, script

import qamera_async as q
from qamera_async import AmbiguityLimitError, LedgerUnavailableError, RefConflictError

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")


# --- ambiguous submissions in a row ---------------------------------------------------------------


async def test_five_ambiguous_submissions_in_a_row_stop_the_batch():
    registrar = FakeRegistrar(lambda _: ambiguous())
    source = Counted(videos(1000))
    outcomes, reason = await consume(make_batch(registrar, source))

    assert isinstance(reason, AmbiguityLimitError)
    assert [outcome.error for outcome in outcomes] == list(reason.errors)
    assert len(registrar.posts) == source.read == 5


async def test_submissions_that_are_being_reconciled_count_as_ambiguous():
    registrar = FakeRegistrar(lambda _: ambiguous(reconcile=1000.0))
    async with make_batch(registrar, videos(100)) as batch:
        running = asyncio.ensure_future(collect(batch))
        await until(lambda: len(registrar.posts) == 5)
        await asyncio.sleep(0.02)

        assert len(registrar.posts) == 5
        running.cancel()
        await asyncio.wait([running])


@pytest.mark.parametrize("between", [Answer(), refused()])
async def test_answer_resets_the_count_of_ambiguous_submissions(between):
    registrar = FakeRegistrar(script(*[*[ambiguous()] * 4, between] * 3, Answer()))
    result = await make_batch(registrar, videos(16), max_in_flight=1)

    assert result.stopped is None
    assert sum(isinstance(outcome.error, q.AmbiguousSubmissionError) for outcome in result.failures) == 12
    assert len(registrar.posts) == 16


async def test_ambiguous_submissions_with_answers_between_them_do_not_stop_the_batch():
    registrar = FakeRegistrar(script(*[Answer(), ambiguous(reconcile=0.2)] * 10))
    result = await make_batch(registrar, videos(20))

    assert result.stopped is None
    assert sum(isinstance(outcome.error, q.AmbiguousSubmissionError) for outcome in result.failures) == 10
    assert len(registrar.posts) == 20


async def test_ambiguous_intents_in_the_ledger_are_not_counted():
    known = {f"sku-{n}": ambiguous().error for n in range(20)}
    registrar = FakeRegistrar(lambda _: ambiguous(), known=known)
    result = await make_batch(registrar, [*videos(20), *[q.VideoRequest("i")] * 3, *videos(20)])
    other = await make_batch(registrar, [*[q.VideoRequest("i")] * 4, *videos(20), *[q.VideoRequest("i")] * 9])

    assert result.stopped is None
    assert len(result.failures) == 43
    assert isinstance(other.stopped, AmbiguityLimitError)
    assert len(registrar.posts) == 8


async def test_requests_that_waited_for_a_price_count_from_their_submission_on():
    registrar = FakeRegistrar(
        script(Answer(), Answer(seconds=0.05), Answer(), Answer(), Answer(), ambiguous())
    )
    requests = [q.VideoRequest(f"img_{n}", provider="ab"[n % 2]) for n in range(120)]
    result = await make_batch(registrar, requests, max_credits=10**6, max_in_flight=200)

    assert isinstance(result.stopped, AmbiguityLimitError)
    assert len(registrar.posts) == 5 + 5


# --- errors that all further requests would get -----------------------------------------------------

FATAL = [
    (refused(401), q.AuthenticationError),
    (refused(403), q.PermissionDeniedError),
    (refused(402), q.InsufficientCreditsError),
    (refused(407, foreign=True), q.ApiError),
    (Answer(q.ConnectionFailedError("certificate", permanent=True)), q.ConnectionFailedError),
    (Answer(q.SessionClosedError("closed")), q.SessionClosedError),
    (Answer(q.LedgerUnavailableError("disk full")), q.LedgerUnavailableError),
]


@pytest.mark.parametrize(("answer", "error"), FATAL)
async def test_fatal_error_stops_the_batch_and_submitted_jobs_are_handed_out(answer, error):
    registrar = FakeRegistrar(script(Answer(), Answer(), Answer(), answer))
    source = Counted(videos(100))
    outcomes, reason = await consume(make_batch(registrar, source))

    assert type(reason) is error
    assert [outcome.ok for outcome in outcomes] == [True] * 3
    assert len(registrar.posts) <= 3 + 5
    assert source.read <= 3 + 5


@pytest.mark.parametrize(("answer", "error"), FATAL)
async def test_result_has_the_reason_to_stop(answer, error):
    registrar = FakeRegistrar(script(Answer(), Answer(), Answer(), answer))
    result = await make_batch(registrar, videos(100))

    assert type(result.stopped) is error
    assert len(result.records) == len(result.outcomes) == 3
    assert result.credits_reserved == 30


@pytest.mark.parametrize("status", [400, 404, 418])
async def test_other_refusal_is_an_outcome(status):
    result = await make_batch(FakeRegistrar(script(refused(status), Answer())), videos(4))

    assert [outcome.error.status for outcome in result.failures] == [status]
    assert len(result.records) == 3
    assert result.stopped is None


async def test_submission_on_the_wire_gets_its_answer_after_a_stop():
    answered = asyncio.Event()
    registrar = FakeRegistrar(script(Answer(until=answered), refused(401)))
    batch = make_batch(registrar, videos(10), max_in_flight=2)
    running = asyncio.ensure_future(consume(batch))
    await until(lambda: batch.stopped)
    answered.set()
    outcomes, reason = await running

    assert isinstance(reason, q.AuthenticationError)
    assert [outcome.record.id for outcome in outcomes] == ["vid_001"]


async def test_submitted_jobs_are_downloaded_after_a_stop(tmp_path):
    class SpecialRegistrar(FakeRegistrar):
        async def download(self, *arguments, **options):
            await asyncio.sleep(0.01)
            return await super().download(*arguments, **options)

    registrar = SpecialRegistrar(script(Answer(), Answer(), refused(402)))
    outcomes, reason = await consume(make_batch(registrar, videos(10), download_to=tmp_path, max_downloads=1))

    assert isinstance(reason, q.InsufficientCreditsError)
    assert [outcome.path.exists() for outcome in outcomes] == [True, True]


async def test_submissions_that_queue_for_the_rate_limit_are_withdrawn():
    old = FakeJob("vid_old")
    registrar = FakeRegistrar(known={"old": old})
    registrar.rate_limit.clear()
    running = asyncio.ensure_future(
        consume(make_batch(registrar, [q.VideoRequest("i", ref="old"), *videos(9)]))
    )
    await until(lambda: registrar.waiting == 5)
    old.fail(q.AuthenticationError("revoked", status=401))
    outcomes, reason = await asyncio.wait_for(running, 5)

    assert isinstance(reason, q.AuthenticationError)
    assert [outcome.job for outcome in outcomes] == [old]
    assert (registrar.waiting, registrar.posts) == (0, [])


async def test_claimed_requests_are_released_after_a_stop():
    answered = asyncio.Event()
    registrar = FakeRegistrar(script(Answer(until=answered)))
    old = registrar.known["old"] = FakeJob("vid_old")
    requests = [q.VideoRequest("i", ref="old"), *videos(9)]
    running = asyncio.ensure_future(consume(make_batch(registrar, requests, max_credits=1000)))
    await until(lambda: len(registrar.claims) == 5)
    old.fail(q.AuthenticationError("revoked", status=401))
    answered.set()
    outcomes, _ = await running

    assert len(outcomes) == 2
    assert [claim.released for claim in registrar.claims] == [False, True, True, True, True]


async def test_claim_that_is_granted_after_a_stop_is_not_sent():
    """The registrar ignores the cancellation of the claim."""

    class SpecialRegistrar(FakeRegistrar):
        async def claim(self, request, *, retry_failed):
            try:
                return await super().claim(request, retry_failed=retry_failed)
            except asyncio.CancelledError:
                return await super().claim(attrs.evolve(request, ref=None), retry_failed=retry_failed)

    old = FakeJob("vid_old")
    registrar = SpecialRegistrar(known={"old": old})
    registrar.claimed_elsewhere = {"sku-0": asyncio.Event()}
    running = asyncio.ensure_future(
        consume(make_batch(registrar, [q.VideoRequest("i", ref="old"), *videos(1)]))
    )
    await asyncio.sleep(0.01)
    old.fail(q.AuthenticationError("revoked", status=401))
    outcomes, _ = await running

    assert [outcome.job for outcome in outcomes] == [old]
    assert registrar.posts == []
    assert [claim.released for claim in registrar.claims] == [True]


@pytest.mark.parametrize(
    "error",
    [
        *(q.ApiError("no", status=status) for status in (400, 404)),
        q.AuthenticationError("no", status=401),
        q.PermissionDeniedError("no", status=403),
        q.ApiError("no", status=407, foreign=True),
        q.InvalidResponseError("redirect", status=301),
        q.ConnectionFailedError("certificate", permanent=True),
    ],
)
async def test_list_that_can_not_be_polled_stops_the_batch(error):
    registrar = FakeRegistrar(job_seconds=None)
    source = Counted(videos(200))
    running = asyncio.ensure_future(consume(make_batch(registrar, source, max_in_flight=10)))
    await until(lambda: len(registrar.jobs) == 10)
    for job in registrar.jobs:
        job.fail(error)
    outcomes, reason = await running

    assert reason is error
    assert {outcome.job for outcome in outcomes} == {*registrar.jobs}
    assert source.read == 10


@pytest.mark.parametrize(
    "error",
    [
        q.JobLostError("lost", record_ids=("vid_001",), absent_for=1.0),
        q.JobTimeoutError("late", record_ids=("vid_001",), timeout=1.0),
        q.JobFailedError("failed", record_ids=("vid_001",)),
        q.AuthenticationError("a proxy", status=401, foreign=True),
    ],
)
async def test_error_of_a_job_is_an_outcome(error):
    registrar = FakeRegistrar(job_seconds=None)
    running = asyncio.ensure_future(collect(make_batch(registrar, videos(2))))
    await until(lambda: len(registrar.jobs) == 2)
    registrar.jobs[0].fail(error)
    registrar.jobs[1].finish()
    result = await running

    assert [outcome.error for outcome in result.failures] == [error]
    assert result.stopped is None


async def test_ref_conflict_is_an_outcome_and_a_failing_ledger_stops_the_batch():
    conflict = RefConflictError("other", request=videos(1)[0], earlier=videos(1)[0])
    full = LedgerUnavailableError("disk full")
    paid = LedgerUnavailableError("disk full", receipt=q.Receipt(("vid_x",)))
    result = await make_batch(FakeRegistrar(known={"sku-1": conflict}), videos(3))
    stopped = await make_batch(FakeRegistrar(known={"sku-2": full}), videos(50), max_in_flight=1)
    registrar = FakeRegistrar(script(Answer(), Answer(), Answer(paid)))
    unsaved = await make_batch(registrar, videos(50), max_in_flight=1)

    assert [outcome.error for outcome in result.failures] == [conflict]
    assert result.stopped is None
    assert (stopped.stopped, len(stopped.outcomes)) == (full, 2)
    assert (unsaved.stopped, len(unsaved.outcomes)) == (paid, 3)
    assert unsaved.failures[0].error is paid


async def test_credits_of_a_receipt_that_was_not_stored_count():
    receipt = q.Receipt(("vid_x",), credits_reserved=10)
    registrar = FakeRegistrar(lambda _: Answer(LedgerUnavailableError("disk full", receipt=receipt)))
    result = await make_batch(registrar, videos(3), max_in_flight=1)

    assert result.credits_reserved == 10


async def test_first_reason_to_stop_is_kept():
    registrar = FakeRegistrar(script(refused(402), refused(401)))
    result = await make_batch(registrar, videos(10))

    assert isinstance(result.stopped, q.InsufficientCreditsError)


# --- the iterable -----------------------------------------------------------------------------------


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("after", [0, 3])
async def test_iterable_that_raises_stops_the_batch(after, asynchronous):
    error = ValueError("row 4")

    def rows():
        yield from videos(after)
        raise error

    async def arows():
        for request in videos(after):
            yield request
        raise error

    source = arows if asynchronous else rows
    outcomes, reason = await consume(make_batch(FakeRegistrar(), source(), max_in_flight=1))
    result = await make_batch(FakeRegistrar(), source(), max_in_flight=1)

    assert reason is error
    assert result.stopped is error
    assert [outcome.ok for outcome in outcomes] == [True] * after
    assert len(result.records) == after


async def test_iterable_whose_iter_raises_or_that_raises_cancelled_error_stops_the_batch():
    error = OSError("no such table")

    class Broken:
        def __iter__(self):
            raise error

    async def cancelled():
        yield videos(1)[0]
        raise asyncio.CancelledError

    result = await make_batch(FakeRegistrar(), Broken())
    other = await make_batch(FakeRegistrar(), cancelled(), max_in_flight=1)

    assert result.stopped is error
    assert type(other.stopped) is q.BatchStoppedError
    assert "CancelledError" in str(other.stopped)
    assert len(other.records) == 1


async def test_iterable_that_cancels_itself_does_not_look_like_a_cancelled_consumer():
    def cancelled():
        yield videos(1)[0]
        raise asyncio.CancelledError

    outcomes, reason = await consume(make_batch(FakeRegistrar(), cancelled(), max_in_flight=1))

    assert [outcome.ok for outcome in outcomes] == [True]
    assert type(reason) is q.BatchStoppedError


@pytest.mark.parametrize("error", [StopIteration, StopAsyncIteration, GeneratorExit])
@pytest.mark.parametrize("kind", ["iterator", "begin", "generator", "async iterator", "async generator"])
async def test_iterable_that_raises_a_control_exception_stops_the_batch(kind, error):  # noqa: C901 - one of each kind
    """The reason is an error that names the exception, unless that means the end of the iterable."""

    class Iterator(Counted):
        def __next__(self):
            if self.read == 1:
                raise error("odd")
            return super().__next__()

    class Begin:
        def __iter__(self):
            raise error("odd")

    def generator():
        yield videos(1)[0]
        raise error("odd")

    class AsyncIterator(Counted):
        def __aiter__(self):
            return self

        async def __anext__(self):
            if self.read == 1:
                raise error("odd")
            return super().__next__()

    async def agenerator():
        yield videos(1)[0]
        raise error("odd")

    def source():
        match kind:
            case "iterator":
                return Iterator(videos(5))
            case "begin":
                return Begin()
            case "generator":
                return generator()
            case "async iterator":
                return AsyncIterator(videos(5))
            case _:
                return agenerator()

    ends = (kind, error) in {("iterator", StopIteration), ("async iterator", StopAsyncIteration)}
    outcomes, reason = await asyncio.wait_for(
        consume(make_batch(FakeRegistrar(), source(), max_in_flight=1)), 5
    )

    assert len(outcomes) == (0 if kind == "begin" else 1)
    if ends:
        assert reason is None
    else:
        # Python itself replaces the first two in a generator.
        assert type(reason) is (q.BatchStoppedError if error is GeneratorExit else RuntimeError)
        assert error.__name__ in str(reason)


async def test_stopped_batch_does_not_wait_for_a_source_that_hangs():
    closed = []

    async def source():
        try:
            yield videos(1)[0]
            await asyncio.sleep(1e6)
        finally:
            closed.append(True)

    result = await asyncio.wait_for(collect(make_batch(FakeRegistrar(lambda _: refused(401)), source())), 5)

    assert isinstance(result.stopped, q.AuthenticationError)
    assert closed == [True]


async def test_source_that_raises_when_it_is_closed_is_logged(caplog):
    def source():
        try:
            yield from videos(100)
        finally:
            raise ValueError("closing")

    result = await make_batch(FakeRegistrar(lambda _: refused(401)), source(), max_in_flight=1)

    assert isinstance(result.stopped, q.AuthenticationError)
    assert "closed" in caplog.text


async def test_only_generators_are_closed():
    class Rows(Counted):
        closed = False

        def close(self):
            self.closed = True

    source = Rows(videos(100))
    await make_batch(FakeRegistrar(lambda _: refused(401)), source, max_in_flight=1)

    assert not source.closed
