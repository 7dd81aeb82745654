"""Failures that stop or pause a batch on the sandbox, and the POSTs they cost."""

import asyncio

import pytest
from batch_helpers import Counted, consume, posts, until, videos

import qamera_async as q
from qamera_async import AmbiguityLimitError, CreditLimitError
from qamera_async.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")


@pytest.fixture
async def session(sandbox, quick):
    async with sandbox.session(**quick | {"timeouts": q.Timeouts(job=5.0, reconcile=0.05)}) as session:
        yield session


# --- ambiguous submissions --------------------------------------------------------------------------


async def test_five_ambiguous_submissions_in_a_row_stop_the_batch(session, sandbox):
    sandbox.trouble("error", status=500, times=1000)
    source = Counted(videos(1000))
    outcomes, reason = await consume(session.batch(source))

    assert isinstance(reason, AmbiguityLimitError)
    assert len(posts(sandbox)) == len(outcomes) == source.read == 5


async def test_submissions_that_are_being_reconciled_count_as_ambiguous(sandbox, quick):
    sandbox.trouble("error", status=500, times=1000)
    async with sandbox.session(**quick | {"timeouts": q.Timeouts(reconcile=30.0)}) as session:
        async with session.batch(videos(100)) as batch:
            running = asyncio.ensure_future(anext(aiter(batch)))
            await until(lambda: len(posts(sandbox)) == 5)
            await asyncio.sleep(0.1)

            assert len(posts(sandbox)) == 5
            running.cancel()
            await asyncio.wait([running])


async def test_ambiguous_submissions_with_receipts_between_them_do_not_stop_the_batch(sandbox, quick):
    for _ in range(10):
        sandbox.trouble("slow", seconds=0.0)
        sandbox.trouble("error", status=500)
    async with sandbox.session(**quick | {"timeouts": q.Timeouts(reconcile=1.0)}) as session:
        result = await session.batch(videos(20))

    assert result.stopped is None
    assert sum(isinstance(outcome.error, q.AmbiguousSubmissionError) for outcome in result.failures) == 10
    assert len(posts(sandbox)) == 20


# --- errors that stop a batch -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, q.AuthenticationError), (403, q.PermissionDeniedError), (402, q.InsufficientCreditsError)],
)
async def test_fatal_refusal_stops_the_batch_and_submitted_jobs_are_handed_out(
    sandbox, session, status, error
):
    sandbox.trouble("slow", seconds=0.0, times=3)
    sandbox.trouble("error", times=1000, status=status)
    source = Counted(videos(100))
    outcomes, reason = await consume(session.batch(source))

    assert type(reason) is error
    assert [outcome.ok for outcome in outcomes] == [True] * 3
    assert len(posts(sandbox)) <= 3 + 5
    assert source.read <= 3 + 5


async def test_refusal_in_a_foreign_shape_is_ambiguous(sandbox, session):
    sandbox.trouble("error", status=403, html=True)
    result = await session.batch(videos(4))

    assert result.stopped is None
    assert [type(outcome.error) for outcome in result.failures] == [q.AmbiguousSubmissionError]
    assert len(posts(sandbox)) == 4


async def test_jobs_that_can_not_be_polled_stop_the_batch(quick):
    async with Sandbox(job_seconds=1e6, quota=None) as sandbox, sandbox.session(**quick) as session:
        running = asyncio.ensure_future(consume(session.batch(videos(20), max_in_flight=4)))
        await until(lambda: len(sandbox.orders) == 4)
        sandbox.trouble("error", on="GET", status=401, times=1000)
        outcomes, reason = await running

    assert isinstance(reason, q.AuthenticationError)
    assert [type(outcome.error) for outcome in outcomes] == [q.AuthenticationError] * 4
    assert all(outcome.job is not None for outcome in outcomes)
    assert len(posts(sandbox)) == 4


@pytest.mark.parametrize(
    ("trouble", "error"),
    [
        *((("error", {"status": status}), q.ApiError) for status in (400, 401, 403, 404)),
        (("redirect", {"status": 301}), q.InvalidResponseError),
    ],
)
async def test_list_that_is_refused_stops_the_batch(quick, trouble, error):
    name, options = trouble
    async with Sandbox(job_seconds=1e6, quota=None, credits=10**6) as sandbox:
        sandbox.trouble(name, on="GET", times=1000, **options)
        async with sandbox.session(**quick) as session:
            outcomes, reason = await consume(session.batch(videos(200), max_in_flight=10))

    assert isinstance(reason, error)
    assert reason.status == options["status"]
    assert len(outcomes) == len(sandbox.orders) < 50
    assert all(type(outcome.error) is type(reason) and outcome.job is not None for outcome in outcomes)


@pytest.mark.parametrize("status", [400, 404])
async def test_list_that_a_proxy_refuses_is_polled_again(session, sandbox, status):
    sandbox.trouble("error", on="GET", times=2, status=status, html=True)
    result = await session.batch(videos(5))

    assert (result.stopped, len(result.records)) == (None, 5)


async def test_permanent_failure_to_connect_stops_the_batch(sandbox, quick):
    source = Counted(videos(9))
    url = sandbox.url.replace("http", "https")
    async with q.QameraSession(sandbox.api_key, base_url=url, **quick) as session:
        result = await session.batch(source)

    assert isinstance(result.stopped, q.ConnectionFailedError)
    assert result.stopped.permanent
    assert result.outcomes == ()
    assert source.read <= 5


async def test_closed_session_stops_the_batch(sandbox, quick):
    session = sandbox.session(**quick)
    sandbox.trouble("late", seconds=100.0, times=1000)
    running = asyncio.ensure_future(consume(session.batch(videos(20), max_in_flight=3)))
    await until(lambda: len(sandbox.orders) == 3)
    await session.aclose()
    outcomes, reason = await running

    assert isinstance(reason, q.SessionClosedError)
    assert [type(outcome.error) for outcome in outcomes] == [q.SessionClosedError] * 3
    assert len(posts(sandbox)) == 3


async def test_jobs_that_are_lost_or_late_are_outcomes(sandbox, quick):
    limits = q.Timeouts(job=0.15, appear=0.05)
    async with sandbox.session(**quick | {"timeouts": limits}) as session:
        sandbox.trouble("late", seconds=100.0)
        lost = await session.batch(videos(2))
    async with sandbox.session(**quick | {"timeouts": q.Timeouts(job=0.15)}) as session:
        sandbox.trouble("late", seconds=100.0)
        late = await session.batch(videos(2))

    assert [type(outcome.error) for outcome in lost.failures] == [q.JobLostError]
    assert [type(outcome.error) for outcome in late.failures] == [q.JobTimeoutError]
    assert late.credits_refunded == 0


# --- credits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "submitted"), [(0, 0), (1, 1), (20, 2), (109, 10)])
async def test_submits_as_many_as_the_credit_limit_pays_for(session, sandbox, limit, submitted):
    result = await session.batch(videos(50), max_credits=limit)

    assert len(sandbox.orders) == len(result.records) == submitted
    assert result.credits_reserved == sum(order.credits for order in sandbox.orders)
    assert isinstance(result.stopped, CreditLimitError)


async def test_ambiguous_first_submission_is_the_cause_of_an_unknown_price(session, sandbox):
    sandbox.trouble("error", status=500, taken=True)
    result = await session.batch(videos(20), max_credits=1000)

    assert len(sandbox.orders) == 1
    assert isinstance(result.stopped, CreditLimitError)
    assert result.stopped.cause is result.failures[0].error
    assert "does not help" in str(result.stopped)


# --- outages ----------------------------------------------------------------------------------------


async def test_batch_pauses_while_its_server_refuses_connections(sandbox, session, caplog):
    sandbox.trouble("slow", seconds=0.0, times=3)
    running = asyncio.ensure_future(consume(session.batch(Counted(videos(20)))))
    await until(lambda: len(sandbox.orders) >= 3)
    sandbox.trouble("refuse_connections", seconds=0.3)
    outcomes, reason = await running

    assert reason is None
    assert [outcome.ok for outcome in outcomes] == [True] * 20
    assert len(sandbox.orders) == 20
