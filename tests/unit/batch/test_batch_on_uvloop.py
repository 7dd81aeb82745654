"""One batch on the event loops of asyncio and uvloop."""

import asyncio

import pytest
import uvloop
from batch_helpers import consume, videos
from fake_registrar import (
    Answer,
    FakeRegistrar,
    ambiguous,
    make_batch,
    refused,
    script,
    unreachable,
    until_idle,
)


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_outage_stop_and_early_exit_work_on_each_event_loop(loop_factory, tmp_path):
    async def run():
        answers = script(unreachable(), ambiguous(), *[Answer(seconds=0.001)] * 8, refused(401))
        registrar = FakeRegistrar(answers)
        outcomes, reason = await consume(
            make_batch(registrar, videos(20), max_in_flight=10, max_credits=None, download_to=tmp_path)
        )
        assert len(outcomes) == 9
        assert reason.status == 401
        async with make_batch(FakeRegistrar(), videos(100), max_in_flight=10) as batch:
            async for _ in batch:
                break
        async for _ in make_batch(FakeRegistrar(), videos(100), max_in_flight=10):
            break
        await until_idle()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(run())
