"""Submissions whose caller, session or event loop ends before the answer arrives."""

import asyncio
import logging
import sys

import pytest
from children import run

import qamera_async as q
from qamera_async.events import Submitted
from qamera_async.sandbox import Sandbox

pytestmark = [pytest.mark.every_loop, pytest.mark.usefixtures("no_lost_exceptions")]


async def until_received(sandbox):
    """Wait until the sandbox has until_received a request."""
    while not sandbox.requests:
        await asyncio.sleep(0.001)


async def test_receipt_of_a_cancelled_caller_is_in_the_log_and_an_event(sandbox, quick, caplog):
    events = []
    async with sandbox.session(**quick, on_event=events.append) as session:
        sandbox.trouble("slow", seconds=0.1)
        task = asyncio.ensure_future(session.register_video(image_id="i", ref="sku-1"))
        await until_received(sandbox)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    assert [e.receipt.record_ids for e in events if isinstance(e, Submitted)] == [("vid_001",)]
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "vid_001" in warning
    assert "sku-1" in warning


async def test_caller_cancelled_in_the_queue_sends_nothing(quick):
    async with Sandbox(quota=(1, 60.0)) as sandbox, sandbox.session(**quick) as session:
        await session.list_videos()
        task = asyncio.ensure_future(session.register_video(image_id="i"))
        while not session.rate_limiter.waiting:
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.wait([task])

        assert session.rate_limiter.waiting == 0
        assert [request.method for request in sandbox.requests] == ["GET"]


async def test_closing_waits_for_submissions_on_the_wire_and_ends_waiters(sandbox, quick):
    session = sandbox.session(**quick)
    waiting = asyncio.ensure_future(session.job("vid_nowhere").wait())
    sandbox.trouble("slow", seconds=0.1)
    sending = asyncio.ensure_future(session.register_video(image_id="i"))
    while not sandbox.orders:
        await asyncio.sleep(0.001)
    await asyncio.gather(session.aclose(), session.aclose())

    assert (await sending).receipt.order_id == "order_001"
    with pytest.raises(q.SessionClosedError):
        await waiting
    with pytest.raises(q.SessionClosedError):
        await session.list_videos()
    assert [t for t in asyncio.all_tasks() if t.get_name().startswith("qamera")] == []


async def test_closing_cuts_off_a_submission_without_an_answer(sandbox, quick, caplog):
    session = sandbox.session(**quick | {"timeouts": q.Timeouts(close=0.05)})
    sandbox.trouble("hang")
    sending = asyncio.ensure_future(session.register_video(image_id="i", ref="sku-1"))
    await until_received(sandbox)
    await session.aclose()

    with pytest.raises(q.AmbiguousSubmissionError):
        await sending
    assert "sku-1" in caplog.text


async def test_cancelled_close_still_closes(sandbox, quick):
    """The submission on the wire gets its answer, and the session is closed."""
    session = sandbox.session(**quick)
    sandbox.trouble("slow", seconds=0.1)
    sending = asyncio.ensure_future(session.register_video(image_id="i"))
    await until_received(sandbox)
    closing = asyncio.ensure_future(session.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])

    assert (await sending).record_ids
    await session.aclose()
    assert session.closed


SCRIPT = """
import asyncio, logging, sys
import {loop}
import qamera_async as q
from qamera_async.sandbox import Sandbox

logging.basicConfig(stream=sys.stdout)

async def main():
    async with Sandbox(quota=None) as sandbox:
        sandbox.trouble("hang")
        session = sandbox.session()
        task = asyncio.ensure_future(session.register_video(image_id="i", ref="sku-1"))
        while not sandbox.requests:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        {end}

try:
    with asyncio.Runner(loop_factory={loop}.new_event_loop) as runner:
        runner.run(main())
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("end", ["return", "import signal; signal.raise_signal(signal.SIGINT); await task"])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_submission_cut_off_by_the_end_of_the_loop_is_logged(loop, end):
    """The program ends, or is interrupted, without closing its session."""
    pytest.importorskip(loop)
    result = run(
        [sys.executable, "-c", SCRIPT.format(loop=loop, end=end)],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert "may or may not have accepted it" in result.stdout
    assert "sku-1" in result.stdout


CONFIGURED = """
import asyncio, logging, logging.config, sys
from qamera_async.events import Submitted
from qamera_async.sandbox import Sandbox

logging.basicConfig(stream=sys.stdout)
logging.config.dictConfig({config})

def on_event(event):
    if isinstance(event, Submitted):
        print("event", event.receipt.record_ids)

async def main():
    async with Sandbox(quota=None) as sandbox, sandbox.session(on_event=on_event) as session:
        sandbox.trouble("slow", seconds=0.1)
        task = asyncio.ensure_future(session.register_video(image_id="i"))
        while not sandbox.orders:
            await asyncio.sleep(0.001)
        task.cancel()

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("config", "logged"),
    [
        ({}, False),
        ({"disable_existing_loggers": False}, True),
        ({"loggers": {"qamera_async": {"level": "WARNING"}}}, True),
    ],
)
def test_receipt_without_a_caller_is_emitted_with_any_logging_configuration(config, logged):
    handler = {"class": "logging.StreamHandler", "stream": "ext://sys.stdout"}
    root = {"handlers": ["out"], "level": "WARNING"}
    config = {"version": 1, "handlers": {"out": handler}, "root": root} | config
    result = run(
        [sys.executable, "-c", CONFIGURED.format(config=config)], capture_output=True, text=True, timeout=60
    )

    assert "event ('vid_001',)" in result.stdout
    assert ("records vid_001" in result.stdout) == logged
