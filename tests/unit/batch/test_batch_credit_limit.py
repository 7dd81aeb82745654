"""The credit limit of a batch: only the first request of a price class may exceed the limit."""

import asyncio
import json
import random

import pytest
from batch_helpers import collect, until, videos
from fake_registrar import Answer, FakeJob, FakeRegistrar, ambiguous, make_batch, refused, script

import qamera_async as q
from qamera_async import AmbiguityLimitError, CreditLimitError

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")


def usual_price(request):
    """Return a receipt of 10 credits for a video, 15 for a reel, or the credits in ``extra_body``."""
    usual = 10 if isinstance(request, q.VideoRequest) else 15
    return Answer(price=request.extra_body.get("costs", usual))


def mixed(number):
    """Return as many videos as reels, alternating."""
    for n in range(number):
        yield q.VideoRequest(f"img_{n}")
        yield q.ReelRequest([f"img_{n}"])


def costing(*prices):
    """Return one video request for each price, with the same image, provider and suggestion."""
    return [q.VideoRequest("img", extra_body={"costs": price}) for price in prices]


def prices(*values):
    """Return an answer function whose receipts have these prices in turn, and then always the last price."""
    return script(*(Answer(price=value) for value in values))


@pytest.mark.parametrize(
    ("limit", "submitted"),
    [(0, 0), (1, 1), (9, 1), (10, 1), (19, 1), (20, 2), (100, 10), (109, 10), (110, 11)],
)
async def test_submits_as_many_as_the_limit_pays_for(limit, submitted):
    registrar = FakeRegistrar(usual_price)
    result = await make_batch(registrar, videos(50), max_credits=limit)

    assert len(registrar.posts) == len(result.records) == submitted
    assert result.credits_reserved == registrar.paid == submitted * 10
    assert isinstance(result.stopped, CreditLimitError)
    assert (result.stopped.max_credits, result.stopped.spent) == (limit, submitted * 10)
    assert result.stopped.price == (10 if submitted else None)
    assert result.failures == ()


@pytest.mark.parametrize("limit", [1, 10, 11, 25, 26, 34, 35, 40, 49, 50, 75, 100, 105])
async def test_two_kinds_at_once_exceed_the_limit_by_their_first_requests_only(limit):
    registrar = FakeRegistrar(usual_price)
    result = await make_batch(registrar, mixed(50), max_credits=limit)

    assert isinstance(result.stopped, CreditLimitError)
    assert registrar.paid == result.credits_reserved >= result.stopped.spent
    assert limit - 15 < registrar.paid < limit + 10 + 15


async def test_batch_does_not_stop_if_it_spends_exactly_the_limit():
    registrar = FakeRegistrar(usual_price)
    result = await make_batch(registrar, mixed(2), max_credits=50)

    assert result.stopped is None
    assert registrar.paid == 50


async def test_first_request_of_a_kind_is_sent_alone_and_other_kinds_continue():
    answered = asyncio.Event()
    registrar = FakeRegistrar(lambda request: Answer(until=answered))
    requests = [*videos(2), q.ReelRequest(["a"]), q.ReelRequest(["a", "b"]), *videos(4)]
    running = asyncio.ensure_future(collect(make_batch(registrar, requests, max_credits=1000)))
    await until(lambda: len(registrar.posts) == 2)
    await asyncio.sleep(0.02)

    assert [type(request) for request in registrar.posts] == [q.VideoRequest, q.ReelRequest]
    answered.set()
    assert len((await running).records) == 8


async def test_without_a_limit_five_of_a_kind_are_sent_at_once():
    registrar = FakeRegistrar(lambda _: Answer(seconds=0.01))
    result = await make_batch(registrar, videos(5))

    assert registrar.most_on_wire == 5
    assert result.credits_reserved == 50


async def test_next_request_of_a_kind_is_sent_alone_after_a_refusal():
    registrar = FakeRegistrar(script(refused(), refused(), refused(), Answer()))
    result = await make_batch(registrar, videos(10), max_credits=20)

    assert len(result.failures) == 3
    assert len(result.records) == len(registrar.jobs) == 2


async def test_waits_for_submissions_that_may_still_be_refused_before_it_stops():
    registrar = FakeRegistrar(script(Answer(), refused(), Answer()))
    result = await make_batch(registrar, videos(3), max_credits=20)

    assert result.stopped is None
    assert registrar.paid == 20


async def test_earlier_jobs_do_not_count():
    known = {f"sku-{n}": FakeJob(f"vid_{n}") for n in range(5)}
    for job in known.values():
        job.finish()
    registrar = FakeRegistrar(known=known)
    result = await make_batch(registrar, videos(5), max_credits=0)

    assert result.stopped is None
    assert len(result.records) == 5
    assert registrar.posts == []


async def test_refunds_do_not_raise_the_limit():
    registrar = FakeRegistrar(job_seconds=None)
    running = asyncio.ensure_future(collect(make_batch(registrar, videos(10), max_credits=30)))
    while not running.done():
        for job in registrar.jobs:
            job.fail()
        await asyncio.sleep(0)

    result = await running
    assert len(registrar.posts) == 3
    assert (result.credits_reserved, result.credits_refunded) == (30, 30)


# --- price classes --------------------------------------------------------------------------------


async def test_extra_body_belongs_to_the_price_class():
    registrar = FakeRegistrar(usual_price)
    requests = [*videos(1), *costing(*[300] * 20)]
    result = await make_batch(registrar, requests, max_credits=200)

    assert (registrar.paid, len(registrar.posts)) == (310, 2)
    assert isinstance(result.stopped, CreditLimitError)
    assert (result.stopped.spent, result.stopped.price) == (310, 300)


async def test_values_that_are_equal_only_in_python_are_different_price_classes():
    registrar = FakeRegistrar(
        lambda request: Answer(price=3000 if "true" in json.dumps(dict(request.extra_body)) else 10)
    )
    requests = [q.VideoRequest("i", extra_body={"hd": value}) for value in (1, *[True] * 20)]
    await make_batch(registrar, requests, max_credits=200)

    assert len(registrar.posts) == 2


async def test_provider_and_number_of_images_belong_to_the_price_class():
    registrar = FakeRegistrar(usual_price)
    requests = [
        q.VideoRequest("i"),
        q.VideoRequest("i", provider="x"),
        q.ReelRequest(["a"]),
        q.ReelRequest(["a", "b"]),
    ]
    result = await make_batch(registrar, requests, max_credits=49, max_in_flight=1)
    other = await make_batch(FakeRegistrar(usual_price), requests[:3], max_credits=15, max_in_flight=1)

    assert registrar.paid == 35
    assert (result.stopped.spent, result.stopped.price) == (35, 15)
    assert (other.stopped.spent, other.stopped.price) == (10, 10)


@pytest.mark.parametrize("limit", [20, 30])
async def test_ref_image_and_suggestion_do_not_change_the_price(limit):
    registrar = FakeRegistrar(lambda _: Answer(seconds=0.002))
    requests = [
        q.VideoRequest("a", ref="1", extra_body={"x": 1, "y": [2]}),
        q.VideoRequest("b", suggestion="slow", extra_body={"y": [2], "x": 1}),
        q.VideoRequest(generated_image_id="c", ref="2", extra_body={"x": 1, "y": [2]}),
    ]
    result = await make_batch(registrar, requests, max_credits=limit)

    assert len(registrar.posts) == limit / 10
    assert registrar.most_on_wire == limit / 10 - 1
    assert (result.stopped is None) == (limit == 30)


@pytest.mark.parametrize("paid", [(10, 15, 3000), (3000, 10, 15), (15, 3000, 10), (10, 10, 15, 15, 3000)])
async def test_nothing_is_sent_after_a_price_that_exceeds_the_limit(paid):
    registrar = FakeRegistrar(usual_price)
    result = await make_batch(registrar, costing(*paid * 10), max_credits=200)
    expected = paid[: paid.index(3000) + 1]

    assert registrar.paid == result.credits_reserved == result.stopped.spent == sum(expected)
    assert len(registrar.posts) == len(expected)


@pytest.mark.parametrize("seed", range(10))
async def test_at_most_one_request_of_a_kind_exceeds_the_limit(seed):
    chance = random.Random(seed)  # noqa: S311 - the same prices in each run
    registrar = FakeRegistrar(usual_price)
    requests = costing(*[chance.choice([0, 5, 10, 15, 40, 150, 3000]) for _ in range(60)])
    result = await make_batch(registrar, requests, max_credits=200)
    paid = [request.extra_body["costs"] for request in registrar.posts]

    assert sum(paid) == result.credits_reserved
    assert sum(paid) - max(paid) <= 200
    assert sum(paid) <= 200 or paid.count(max(paid)) == 1  # the first request of its price class
    assert isinstance(result.stopped, CreditLimitError)


@pytest.mark.parametrize(("limit", "submitted"), [(1, 1), (10, 1), (95, 9), (100, 10)])
async def test_requests_that_differ_in_a_seed_do_not_exceed_the_limit(limit, submitted):
    registrar = FakeRegistrar()
    requests = [q.VideoRequest("img", extra_body={"seed": n}) for n in range(30)]
    result = await make_batch(registrar, requests, max_credits=limit)

    assert len(registrar.posts) == submitted
    assert registrar.most_on_wire == 1
    assert (result.stopped.spent, result.stopped.price) == (submitted * 10, 10)


async def test_unknown_price_is_estimated_at_the_highest_price_of_its_kind():
    registrar = FakeRegistrar(usual_price)
    result = await make_batch(registrar, costing(80, 10, 20), max_credits=165)

    assert registrar.paid == 90
    assert (result.stopped.spent, result.stopped.price) == (90, 80)


async def test_no_other_request_of_a_kind_is_sent_while_a_price_is_unknown():
    answered = asyncio.Event()
    registrar = FakeRegistrar(
        lambda request: Answer(until=answered if "costs" in request.extra_body else None, price=10)
    )
    requests = [*videos(1), *costing(20), q.ReelRequest(["a"]), *videos(2), *costing(30)]
    running = asyncio.ensure_future(collect(make_batch(registrar, requests, max_credits=1000)))
    await until(lambda: len(registrar.posts) == 3)
    await asyncio.sleep(0.02)

    assert registrar.posts[0].ref == "sku-0"
    assert sorted(request.extra_body.get("costs", 0) for request in registrar.posts[1:]) == [0, 20]
    answered.set()
    assert len((await running).records) == 6


async def test_highest_price_that_was_seen_counts():
    registrar = FakeRegistrar(prices(10, 20, 10))
    result = await make_batch(registrar, videos(20), max_credits=59, max_in_flight=1)

    assert len(registrar.posts) == 3
    assert (result.stopped.spent, result.stopped.price) == (40, 20)


async def test_receipt_below_the_reserved_price_permits_more_submissions():
    registrar = FakeRegistrar(prices(20, 5))
    result = await make_batch(registrar, videos(4), max_credits=50)

    assert result.stopped is None
    assert len(registrar.posts) == 4


async def test_price_of_zero_is_a_price():
    result = await make_batch(FakeRegistrar(prices(0)), videos(20), max_credits=1)

    assert (result.stopped, len(result.records)) == (None, 20)


# --- prices that stay unknown ---------------------------------------------------------------------


async def test_receipt_without_credits_counts_at_the_known_price():
    registrar = FakeRegistrar(prices(10, None, None, None, 10))
    result = await make_batch(registrar, videos(20), max_credits=50)

    assert len(registrar.posts) == 5
    assert (result.stopped.spent, result.credits_reserved) == (50, 20)


async def test_first_receipt_without_credits_stops_the_batch_at_the_second_request():
    limited = await make_batch(FakeRegistrar(prices(None)), videos(20), max_credits=10_000)
    free = await make_batch(FakeRegistrar(prices(None)), videos(20))

    assert len(limited.records) == 1
    assert isinstance(limited.stopped, CreditLimitError)
    assert (limited.stopped.price, limited.stopped.spent, limited.stopped.cause) == (None, 0, None)
    assert "not known" in str(limited.stopped)
    assert (free.stopped, len(free.records), free.credits_reserved) == (None, 20, 0)


async def test_ambiguous_submission_counts_at_the_known_price():
    registrar = FakeRegistrar(script(Answer(), *[ambiguous(taken=True)] * 2, Answer()))
    result = await make_batch(registrar, videos(20), max_credits=50)

    assert len(registrar.posts) == 5
    assert registrar.paid == result.stopped.spent == 50
    assert result.credits_reserved == 30


@pytest.mark.parametrize("limit", [1, 10, 1000])
async def test_ambiguous_first_request_stops_the_batch_and_is_the_cause(limit):
    unknown = ambiguous(taken=True)
    registrar = FakeRegistrar(script(refused(), refused(), unknown, refused()))
    result = await make_batch(registrar, videos(20), max_credits=limit)

    assert (len(registrar.posts), registrar.paid) == (3, 10)
    assert isinstance(result.stopped, CreditLimitError)
    assert (result.stopped.price, result.stopped.max_credits, result.stopped.spent) == (None, limit, 0)
    assert result.stopped.cause is unknown.error
    assert "ambiguous" in result.stopped.message
    assert len(result.failures) == 3


async def test_ambiguous_first_requests_between_refusals_do_not_lift_the_limit():
    answers = [ambiguous(taken=True), ambiguous(taken=True), ambiguous(taken=True), refused()] * 15
    registrar = FakeRegistrar(script(*answers))
    result = await make_batch(registrar, videos(60), max_credits=10)

    assert registrar.paid == 10
    assert isinstance(result.stopped, CreditLimitError)


async def test_without_a_limit_five_ambiguous_first_requests_stop_the_batch():
    registrar = FakeRegistrar(lambda _: ambiguous())
    result = await make_batch(registrar, videos(20))

    assert isinstance(result.stopped, AmbiguityLimitError)
    assert len(registrar.posts) == 5


async def test_unknown_price_stops_the_batch_at_the_next_request_of_its_kind():
    registrar = FakeRegistrar(script(ambiguous(taken=True), Answer()))
    requests = [q.ReelRequest(["a"]), *videos(5), q.ReelRequest(["b"]), *videos(5)]
    result = await make_batch(registrar, requests, max_credits=1000, max_in_flight=1)

    assert [type(request) for request in registrar.posts] == [q.ReelRequest, *[q.VideoRequest] * 5]
    assert (result.stopped.price, result.stopped.spent) == (None, 50)


async def test_no_request_with_an_unknown_price_is_sent_after_an_ambiguous_one():
    registrar = FakeRegistrar(script(Answer(), ambiguous(taken=True), Answer()))
    requests = [*videos(1), *costing(10), *videos(5), *costing(20), *videos(5)]
    result = await make_batch(registrar, requests, max_credits=1000, max_in_flight=1)

    assert len(registrar.posts) == 7
    assert isinstance(result.stopped, CreditLimitError)
    assert (result.stopped.price, result.stopped.spent) == (None, 70)


async def test_failed_job_refunds_the_credits_that_its_receipt_states():
    registrar = FakeRegistrar(prices(None, 10), job_seconds=None)
    running = asyncio.ensure_future(collect(make_batch(registrar, videos(2))))
    await until(lambda: len(registrar.jobs) == 2)
    for job in registrar.jobs:
        job.fail()
    result = await running

    assert (result.credits_reserved, result.credits_refunded) == (10, 10)
