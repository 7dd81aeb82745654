"""A server that closes idle connections at random times."""

import asyncio
import random

import pytest
from faults import RECEIPT, FaultServer, assert_nothing_left, http

import qamera_async as q

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")

POSTS = 1_500
AT_A_TIME = 5


@pytest.mark.slow
@pytest.mark.case(27)
async def test_closing_idle_connections_makes_no_post_ambiguous(quick):
    """Each of 1,500 POSTs opens a new connection, so none is sent on a connection that is being closed."""
    delays = random.Random(27)  # noqa: S311 - the same times in each run

    async def answer_then_close(connection):
        await connection.request()
        await connection.send(http(RECEIPT))
        asyncio.get_running_loop().call_later(delays.uniform(0, 0.002), connection.fin)

    async def register(number):
        for _ in range(number):
            await session.register_video(image_id="i")

    async with FaultServer(answer_then_close) as server:
        options = quick | {"rate_limiter": q.RateLimiter(10 * POSTS), "timeouts": q.Timeouts(reconcile=0.0)}
        async with server.session(**options) as session:
            await asyncio.gather(*(register(POSTS // AT_A_TIME) for _ in range(AT_A_TIME)))
    assert_nothing_left(session)

    assert server.methods == ["POST"] * POSTS
    assert server.connections == POSTS
