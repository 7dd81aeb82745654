"""A batch with eager tasks, which run inside `create_task` up to their first wait and may end there."""

import asyncio
import sys

import pytest
from batch_helpers import collect, consume, videos
from fake_registrar import FakeRegistrar, check_outage_stop_and_early_exit, make_batch

import qamera_async as q

pytestmark = pytest.mark.skipif(
    sys.version_info < (3, 12), reason="asyncio.eager_task_factory is new in Python 3.12"
)


@pytest.fixture(autouse=True)
async def _eager_tasks():
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)


async def finished(awaitable):
    return await asyncio.wait_for(awaitable, 5)


@pytest.mark.parametrize("requests", [["bad", *videos(1)], ["bad"] * 20, videos(20)])
async def test_requests_that_end_inside_create_task_permit_more_requests(requests):
    registrar = FakeRegistrar()
    result = await finished(collect(make_batch(registrar, requests, max_in_flight=1)))

    assert [outcome.request for outcome in result.outcomes] == requests
    assert len(result.records) == len(registrar.posts) == len(requests) - requests.count("bad")
    assert result.stopped is None


@pytest.mark.parametrize("number", [1, 20])
async def test_fatal_error_of_the_first_claim_stops_the_batch(number):
    class SpecialRegistrar(FakeRegistrar):
        async def claim(self, request, *, retry_failed):
            raise q.SessionClosedError("The session is closed.")

    outcomes, reason = await finished(consume(make_batch(SpecialRegistrar(), videos(number))))

    assert outcomes == []
    assert isinstance(reason, q.SessionClosedError)


async def test_iterable_that_raises_at_once_stops_the_batch():
    def source():
        raise ValueError("row 1")
        yield

    assert isinstance((await finished(collect(make_batch(FakeRegistrar(), source())))).stopped, ValueError)


async def test_empty_input_has_an_empty_result():
    assert await finished(collect(make_batch(FakeRegistrar(), []))) == q.BatchResult(())


async def test_outage_stop_and_early_exit_work(tmp_path):
    await finished(check_outage_stop_and_early_exit(tmp_path))
