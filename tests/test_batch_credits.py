"""max_credits of a batch, on the sandbox: what may be spent, to the credit."""

import asyncio
import random

import attrs
import pytest
from test_batch import Stand, make_batch, posts, videos

import qamera_async as q
from qamera_async.errors import AmbiguityLimitError, CreditLimitError
from qamera_async.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")


@pytest.fixture
async def sandbox():
    async with Sandbox(job_seconds=0.02, quota=None, credits=1_000_000) as sandbox:
        yield sandbox


@pytest.fixture
async def session(sandbox, quick):
    async with sandbox.session(**quick | {"timeouts": q.Timeouts(job=5.0, reconcile=0.0)}) as session:
        yield session


def spent(sandbox):
    return sum(order.credits for order in sandbox.orders)


def mixed(number):
    """As many videos (10 credits) as reels (15), in turns."""
    for n in range(number):
        yield q.VideoRequest(f"img_{n}")
        yield q.ReelRequest([f"img_{n}"])


@pytest.mark.parametrize(
    ("limit", "orders"), [(0, 0), (1, 1), (9, 1), (10, 1), (19, 1), (20, 2), (100, 10), (109, 10), (110, 11)]
)
async def test_the_limit_is_kept_to_the_credit(session, sandbox, limit, orders):
    """As many videos as it pays for, and only the first may pass it."""
    result = await make_batch(session, videos(50), max_credits=limit)

    assert len(sandbox.orders) == len(result.records) == orders
    assert result.credits_reserved == spent(sandbox) == orders * 10
    assert isinstance(result.stopped, CreditLimitError)
    assert (result.stopped.max_credits, result.stopped.spent) == (limit, orders * 10)
    assert result.stopped.price == (10 if orders else None)
    assert result.failures == ()


@pytest.mark.parametrize("limit", [1, 10, 11, 25, 26, 34, 35, 40, 49, 50, 75, 100, 105])
async def test_two_kinds_at_once_keep_it_to_the_credit(session, sandbox, limit):
    """Past the first of each kind nothing passes the limit, and what still fits is not refused early."""
    result = await make_batch(session, mixed(50), max_credits=limit)
    paid = spent(sandbox)

    assert isinstance(result.stopped, CreditLimitError)
    assert paid == result.credits_reserved >= result.stopped.spent
    assert paid <= max(limit, 25)
    assert paid > limit - 15


async def test_exactly_the_limit_is_no_reason_to_stop(session, sandbox):
    """Two videos and two reels for 50 credits."""
    result = await make_batch(session, mixed(2), max_credits=50)

    assert result.stopped is None
    assert spent(sandbox) == 50


async def collected(batch):
    return await batch


async def test_the_first_of_each_kind_is_waited_for(session, sandbox):
    """No second of its kind goes out before its receipt; the first of another kind does."""
    sandbox.trouble("slow", seconds=0.3, times=2)
    requests = [*videos(2), q.ReelRequest(["a"]), q.ReelRequest(["a", "b"]), *videos(1), *videos(3)]
    result = await make_batch(session, requests, max_credits=1000)
    firsts = [order for order in sandbox.orders if order.at < sandbox.orders[0].at + 0.3]

    assert sorted(order.kind for order in firsts) == ["reel", "video"]
    assert len(result.records) == 8


async def test_without_a_limit_nothing_is_waited_for(session, sandbox):
    """Five of a kind go out at once."""
    sandbox.trouble("slow", seconds=0.1, times=5)
    running = asyncio.ensure_future(collected(make_batch(session, videos(5))))
    while len(sandbox.orders) < 5:
        await asyncio.sleep(0.001)
        assert [r.status for r in posts(sandbox)] == [None] * len(posts(sandbox))

    assert (await running).credits_reserved == 50


async def test_a_refused_first_is_followed_by_another_first(session, sandbox):
    """A 400 tells no price and costs nothing."""
    sandbox.trouble("error", status=400, times=3)
    result = await make_batch(session, videos(10), max_credits=20)

    assert len(result.failures) == 3
    assert len(result.records) == len(sandbox.orders) == 2


async def test_what_may_still_be_refused_is_waited_for_before_it_stops(session, sandbox):
    """With the limit taken by what is under way, a refusal leaves room for the next one."""
    sandbox.trouble("slow", seconds=0.0)
    sandbox.trouble("error", status=400)
    result = await make_batch(session, videos(3), max_credits=20)

    assert result.stopped is None
    assert [outcome.ok for outcome in result.outcomes].count(True) == 2
    assert spent(sandbox) == 20


async def test_resumed_jobs_dont_count(session, sandbox):
    """What a ledger knows is handed out, whatever the limit."""
    known = {f"sku-{n}": await session.register_video(image_id="i") for n in range(5)}
    result = await make_batch(Stand(session, known), videos(5), max_credits=0)

    assert result.stopped is None
    assert len(result.records) == 5
    assert len(posts(sandbox)) == 5


async def test_refunds_dont_come_back(session, sandbox):
    """A failed job's credits stay spent."""
    sandbox.trouble("fail_job", times=100)
    result = await make_batch(session, videos(10), max_credits=30)

    assert len(sandbox.orders) == 3
    assert isinstance(result.stopped, CreditLimitError)
    assert (result.credits_reserved, result.credits_refunded) == (30, 30)


async def test_an_ambiguous_one_counts_at_its_kinds_price(session, sandbox):
    """Once a receipt has told that, and however many there are."""
    sandbox.trouble("slow", seconds=0.0)
    sandbox.trouble("error", status=500, taken=True, times=2)
    result = await make_batch(session, videos(20), max_credits=50)

    assert len(sandbox.orders) == 5
    assert spent(sandbox) == result.stopped.spent == 50
    assert result.credits_reserved == 30


@pytest.mark.parametrize("limit", [1, 10, 1000])
async def test_an_ambiguous_first_stops_it_at_the_second(session, sandbox, limit):
    """What the first takes nobody knows, so no limit could be kept; a refusal in between tells nothing."""
    sandbox.trouble("error", status=400, times=2)
    sandbox.trouble("error", status=500, taken=True)
    sandbox.trouble("error", status=400)
    result = await make_batch(session, videos(20), max_credits=limit)

    assert (len(posts(sandbox)), len(sandbox.orders)) == (3, 1)
    assert isinstance(result.stopped, CreditLimitError)
    assert (result.stopped.price, result.stopped.max_credits, result.stopped.spent) == (None, limit, 0)
    assert "price" in str(result.stopped)
    assert len(result.failures) == 3


async def test_ambiguous_firsts_dont_lift_the_limit(session, sandbox):
    """Of sixty requests that end ambiguous three times in four, refused in between, one may be paid for."""
    for _ in range(15):
        sandbox.trouble("error", status=500, taken=True, times=3)
        sandbox.trouble("error", status=400)
    result = await make_batch(session, videos(60), max_credits=10)

    assert spent(sandbox) == 10
    assert isinstance(result.stopped, CreditLimitError)


async def test_without_a_limit_ambiguous_firsts_end_in_a_row(session, sandbox):
    """Five of them stop it as ever; no price is asked for."""
    sandbox.trouble("error", status=500, times=100)
    result = await make_batch(session, videos(20))

    assert isinstance(result.stopped, AmbiguityLimitError)
    assert len(posts(sandbox)) == 5


async def test_an_unknown_price_stops_only_its_own_kind(session, sandbox):
    """A kind whose price is known goes on until the other one's next request is read."""
    sandbox.trouble("error", status=500, taken=True)
    requests = [q.ReelRequest(["a"]), *videos(5), q.ReelRequest(["b"]), *videos(5)]
    result = await make_batch(session, requests, max_credits=1000, max_in_flight=1)

    assert [order.kind for order in sandbox.orders] == ["reel", *["video"] * 5]
    assert (result.stopped.price, result.stopped.spent) == (None, 50)


class Priced(Stand):
    """Gives receipts with the credits that a list says, in turn."""

    def __init__(self, session, prices):
        super().__init__(session)
        self.prices = iter(prices)

    async def _order(self, request, **options):
        job = await super()._order(request, **options)
        job._receipt = attrs.evolve(job.receipt, credits_reserved=next(self.prices))
        return job


async def test_the_highest_price_seen_counts(session, sandbox):
    """10, then 20: another one needs 20, though 10 more would fit."""
    stand = Priced(session, [10, 20, 10, 10, 10])
    result = await make_batch(stand, videos(20), max_credits=59, max_in_flight=1)

    assert len(sandbox.orders) == 3
    assert (result.stopped.spent, result.stopped.price) == (40, 20)


async def test_a_lower_price_under_way_is_waited_for(session, sandbox):
    """What is set aside at the highest price and takes less leaves room for more."""
    stand = Priced(session, [20, 5, 5, 5, 5, 5])
    result = await make_batch(stand, videos(4), max_credits=50)

    assert result.stopped is None
    assert len(sandbox.orders) == 4


@pytest.mark.parametrize("untold", [None, -50])
async def test_a_receipt_without_credits_counts_at_the_known_price(session, sandbox, untold):
    """So does one whose credits can't be: where a price is known, it counts."""
    prices = [10, untold, untold, untold, 10]
    result = await make_batch(Priced(session, prices), videos(20), max_credits=50)

    assert len(sandbox.orders) == 5
    assert (result.stopped.spent, result.credits_reserved) == (50, 20)


@pytest.mark.parametrize("untold", [None, -50])
async def test_a_first_receipt_without_credits_stops_it_at_the_second(session, sandbox, untold):
    """A limit that can't be kept isn't passed in silence; without one nothing changes."""
    limited = await make_batch(Priced(session, [untold] * 20), videos(20), max_credits=10_000)
    before = len(sandbox.orders)
    free = await make_batch(Priced(session, [untold] * 20), videos(20))

    assert (before, len(limited.records)) == (1, 1)
    assert isinstance(limited.stopped, CreditLimitError)
    assert (limited.stopped.price, limited.stopped.spent, limited.credits_reserved) == (None, 0, 0)
    assert "not known" in str(limited.stopped)
    assert (free.stopped, len(free.records), free.credits_reserved) == (None, 20, 0)


async def test_a_free_kind_has_a_price(session, sandbox):
    """0 credits are a price like any other."""
    result = await make_batch(Priced(session, [0] * 20), videos(20), max_credits=1)

    assert (result.stopped, len(result.records)) == (None, 20)


async def test_a_failed_job_refunds_only_what_its_receipt_can_have_reserved(session, sandbox):
    """A negative number is none."""
    sandbox.trouble("fail_job", times=2)
    result = await make_batch(Priced(session, [-50, 10]), videos(2), max_in_flight=1)

    assert (result.credits_reserved, result.credits_refunded) == (10, 10)


async def test_providers_and_lengths_are_price_classes_of_their_own(session, sandbox):
    """The first request of a class is estimated at the highest price of its kind."""
    requests = [
        q.VideoRequest("i"),
        q.VideoRequest("i", provider="x"),
        q.ReelRequest(["a"]),
        q.ReelRequest(["a", "b"]),
    ]
    result = await make_batch(session, requests, max_credits=49, max_in_flight=1)
    other = await make_batch(session, requests[:3], max_credits=15, max_in_flight=1)

    assert [order.credits for order in sandbox.orders] == [10, 10, 15, 10]
    assert (result.stopped.spent, result.stopped.price) == (35, 15)
    assert (other.stopped.spent, other.stopped.price) == (10, 10)


class PricedByExtra(Stand):
    """A session whose receipts state the credits that the request's ``extra_body`` asks for, else 10."""

    async def _order(self, request, **options):
        job = await super()._order(request, **options)
        job._receipt = attrs.evolve(job.receipt, credits_reserved=request.extra_body.get("costs", 10))
        return job


def costing(*prices):
    """Make one video request for each price, with the same image, provider and suggestion."""
    return [q.VideoRequest("img", extra_body={"costs": price}) for price in prices]


async def test_extra_belongs_to_the_price_class(session, sandbox):
    requests = [*videos(1), *costing(*[300] * 20)]
    result = await make_batch(PricedByExtra(session), requests, max_credits=200)

    assert result.credits_reserved == 310
    assert len(sandbox.orders) == 2
    assert isinstance(result.stopped, CreditLimitError)
    assert (result.stopped.spent, result.stopped.price) == (310, 300)


@pytest.mark.parametrize("prices", [(10, 15, 3000), (3000, 10, 15), (15, 3000, 10), (10, 10, 15, 15, 3000)])
async def test_nothing_is_sent_after_a_price_that_exceeds_the_limit(session, sandbox, prices):
    result = await make_batch(PricedByExtra(session), costing(*prices * 10), max_credits=200)
    expected = prices[: prices.index(3000) + 1]

    assert result.credits_reserved == sum(expected)
    assert len(sandbox.orders) == len(expected)
    assert isinstance(result.stopped, CreditLimitError)
    assert result.stopped.spent == sum(expected)


@pytest.mark.parametrize("seed", range(10))
async def test_one_request_of_a_kind_exceeds_the_limit_at_most(session, sandbox, seed):
    chance = random.Random(seed)  # noqa: S311 - the same prices in each run
    prices = [chance.choice([0, 5, 10, 15, 40, 150, 3000]) for _ in range(60)]
    result = await make_batch(PricedByExtra(session), costing(*prices), max_credits=200)
    paid = [order.body["costs"] for order in sandbox.orders]

    assert sum(paid) == result.credits_reserved
    assert sum(paid) - max(paid) <= 200
    assert isinstance(result.stopped, CreditLimitError)


@pytest.mark.parametrize(("limit", "orders"), [(1, 1), (10, 1), (95, 9), (100, 10)])
async def test_requests_that_differ_in_a_seed_keep_the_limit(session, sandbox, limit, orders):
    requests = [q.VideoRequest("img", extra_body={"seed": n}) for n in range(30)]
    result = await make_batch(PricedByExtra(session), requests, max_credits=limit)

    assert len(sandbox.orders) == orders
    assert (result.stopped.spent, result.stopped.price) == (orders * 10, 10)


async def test_an_unknown_price_is_estimated_at_the_highest_of_its_kind(session, sandbox):
    requests = costing(80, 10, 20)
    result = await make_batch(PricedByExtra(session), requests, max_credits=165)

    assert result.credits_reserved == 90
    assert (result.stopped.spent, result.stopped.price) == (90, 80)


async def test_requests_with_an_unknown_price_are_sent_one_at_a_time(session, sandbox):
    """No other request of the kind is sent before the receipt states the price."""
    sandbox.trouble("slow", seconds=0.0)
    sandbox.trouble("slow", seconds=0.3, times=2)
    requests = [*costing(10, 20), q.ReelRequest(["a"]), *costing(10, 30)]
    result = await make_batch(PricedByExtra(session), requests, max_credits=1000)
    meanwhile = [order for order in sandbox.orders[1:] if order.at < sandbox.orders[1].at + 0.3]

    assert sorted(order.kind for order in meanwhile) == ["reel", "video"]
    assert len(result.records) == 5


async def test_an_ambiguous_request_with_an_unknown_price_is_the_last_with_one(session, sandbox):
    sandbox.trouble("slow", seconds=0.0)
    sandbox.trouble("error", status=500, taken=True)
    requests = [*videos(1), *costing(10), *videos(5), *costing(20), *videos(5)]
    result = await make_batch(PricedByExtra(session), requests, max_credits=1000, max_in_flight=1)

    assert len(sandbox.orders) == 7
    assert isinstance(result.stopped, CreditLimitError)
    assert (result.stopped.price, result.stopped.spent) == (None, 70)
