"""One batch on the event loops of asyncio and uvloop."""

import asyncio

import pytest
import uvloop
from fake_registrar import check_outage_stop_and_early_exit


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_outage_stop_and_early_exit_work_on_each_event_loop(loop_factory, tmp_path):
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(check_outage_stop_and_early_exit(tmp_path))
