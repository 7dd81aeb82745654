"""A server that closes idle connections whenever it likes."""

import asyncio
import random

import pytest
from faults import RECEIPT, FaultServer, http, nothing_left

import qamera_async as q

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")

POSTS = 1_500
AT_A_TIME = 5


@pytest.mark.slow
@pytest.mark.case(27)
async def test_a_server_that_closes_idle_connections_makes_no_post_ambiguous(quick):
    """Of 1,500 POSTs none meets a connection that is just being closed: each has its own."""
    moments = random.Random(27)  # noqa: S311 - the same moments in each run

    async def fickle(connection):
        await connection.request()
        await connection.send(http(RECEIPT))
        asyncio.get_running_loop().call_later(moments.uniform(0, 0.002), connection.fin)

    async def some(number):
        for _ in range(number):
            await session.register_video(image_id="i")

    async with FaultServer(fickle) as server:
        options = quick | {"rate_limiter": q.RateLimiter(10 * POSTS), "timeouts": q.Timeouts(reconcile=0.0)}
        async with server.session(**options) as session:
            await asyncio.gather(*(some(POSTS // AT_A_TIME) for _ in range(AT_A_TIME)))
    nothing_left(session)

    assert server.methods == ["POST"] * POSTS
    assert server.connections == POSTS
