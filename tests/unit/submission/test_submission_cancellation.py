"""Callers that are cancelled, claims that are withdrawn and sessions that close during a submission."""

import asyncio
import logging
from itertools import count

import pytest
from submission_parts import (
    LONG,
    VIDEO,
    Parts,
    Pause,
    accepts,
    connection_lost,
    fails,
    loses,
    refuses,
    run_iterations,
    until,
)

import qamera_async as q
from qamera_async.events import Ambiguous, Submitted
from qamera_async.ledger.ledger import Ledger
from qamera_async.ledger.sqlite import SqliteStorage

pytestmark = [pytest.mark.every_loop, pytest.mark.usefixtures("no_lost_exceptions")]

MAX_ITERATIONS = 500  # more loop iterations than a submission takes
PAUSE = 0.0002  # seconds; shorter than a commit of SQLite
UNREACHED = q.ConnectionFailedError("No connection.")
NOT_PROCESSED = pytest.mark.parametrize(
    ("stage", "then"),
    [("sent", refuses(429)), ("connecting", fails(UNREACHED))],
    ids=["429", "connection failed"],
)


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


# --- a cancelled caller ---------------------------------------------------------------------------

SCRIPTS = {
    "accepted": lambda: [accepts("vid_7")],
    "accepted after a 429": lambda: [refuses(429), accepts("vid_7")],
    "accepted after a failed connection": lambda: [fails(UNREACHED), accepts("vid_7")],
    "refused": lambda: [refuses(400)],
    "lost": lambda: [loses(connection_lost(sent=True))],
}


@pytest.mark.parametrize("times", [1, 2, 1_000], ids=["once", "twice", "again and again"])
@pytest.mark.parametrize("scripts", SCRIPTS.values(), ids=SCRIPTS)
async def test_cancelled_at_every_loop_iteration(scripts, times, caplog):
    """Either the claim is released and nothing was sent, or ledger, log and an event have the outcome."""
    outcomes = set()
    for iteration in range(MAX_ITERATIONS):
        caplog.clear()
        parts = Parts(*scripts(), lists=[("candidate",)], reconcile=LONG)
        parts.poller.show([])
        task = asyncio.ensure_future(parts.register())
        await run_iterations(iteration)
        over = task.done()
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0)
            if task.done():
                break
        await asyncio.wait([task])
        await parts.settle()

        parts.assert_nothing_left()
        assert len(parts.api.requests) <= 2
        assert parts.states in ([], ["submitted"], ["refused"], ["ambiguous"])
        assert sum(isinstance(event, Submitted) for event in parts.events) == parts.states.count("submitted")
        assert sum(isinstance(event, Ambiguous) for event in parts.events) == parts.states.count("ambiguous")
        if task.cancelled():
            assert len(warnings(caplog)) == len(parts.states)
            assert ("vid_7" in caplog.text) == (parts.states == ["submitted"])
        outcomes.add((task.cancelled(), *parts.states))
        if over:
            break
    else:
        pytest.fail("the submission never ended by itself")

    assert (True,) in outcomes  # cancelled before the body was sent
    assert len(outcomes) == 3  # cancelled after the body was sent, and not cancelled


async def test_cancelled_with_a_real_ledger(path):
    """The same request is submitted once in all, whenever its first caller is cancelled."""
    ledger = Ledger(SqliteStorage.of(str(path)), "https://example.com")
    for iteration in count(step=2):
        request, record_id = q.VideoRequest(image_id="img_1", ref=f"sku-{iteration}"), f"vid_{iteration}"
        parts = Parts(accepts(record_id), ledger=ledger)
        task = asyncio.ensure_future(parts.register(request))
        for _ in range(iteration):
            await asyncio.sleep(PAUSE)
        over = task.done()
        task.cancel()
        await asyncio.wait([task])
        await parts.settle()

        async with asyncio.timeout(LONG):
            again = await parts.submitter.claim(request)
        if again.earlier is None:
            assert parts.api.requests == []
            await parts.submitter.send(again)
        else:
            assert again.earlier.record_ids == (record_id,)
        assert len(parts.api.requests) == 1
        await parts.submitter.aclose()
        if over:
            break
    await ledger.aclose()


async def test_caller_cancelled_in_the_queue_withdraws():
    parts = Parts()
    parts.limiter.open.clear()
    task = asyncio.ensure_future(parts.register())
    await until(lambda: parts.limiter.waiting)
    task.cancel()
    await asyncio.wait([task])
    await parts.settle()

    assert parts.api.requests == []
    assert parts.states == []
    parts.assert_nothing_left()


async def test_caller_cancelled_while_connecting_withdraws():
    pause = Pause("connecting")
    parts = Parts(pause)
    task = asyncio.ensure_future(parts.register())
    await pause.reached.wait()
    task.cancel()
    await asyncio.wait([task])
    await parts.settle()

    assert parts.api.requests == []
    assert parts.limiter.settled == ["given back"]
    parts.assert_nothing_left()


@pytest.mark.parametrize("times", [1, 2])
async def test_sent_submission_outlives_its_caller(times, caplog):
    pause = Pause("sent", accepts("vid_7"))
    parts = Parts(pause)
    task = asyncio.ensure_future(parts.register())
    await pause.reached.wait()
    for _ in range(times):
        task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    pause.resume.set()
    await parts.settle()

    assert [event.receipt.record_ids for event in parts.events] == [("vid_7",)]
    assert parts.states == ["submitted"]
    (warning,) = warnings(caplog)
    assert "vid_7" in warning
    assert "order_1" in warning
    assert "sku-1" in warning
    parts.assert_nothing_left()


@NOT_PROCESSED
async def test_submission_without_a_caller_is_not_sent_again(stage, then):
    pause = Pause(stage, then)
    parts = Parts(pause, accepts())
    task = asyncio.ensure_future(parts.register())
    await pause.reached.wait()
    task.cancel()
    await asyncio.wait([task])
    pause.resume.set()
    await parts.settle()

    assert parts.log.count("slot") == 1
    assert parts.states == []
    parts.assert_nothing_left()


async def test_caller_cancelled_between_two_attempts_withdraws():
    parts = Parts(fails(UNREACHED), retry=q.RetryPolicy(attempts=2, base=LONG, max_delay=LONG))
    task = asyncio.ensure_future(parts.register())
    await until(lambda: parts.events)
    task.cancel()
    await asyncio.wait([task])
    await parts.settle()

    assert parts.states == []
    parts.assert_nothing_left()


async def test_caller_cancelled_while_claiming_releases_the_claim():
    parts = Parts()
    parts.ledger.delays["claim"] = asyncio.Event()
    task = asyncio.ensure_future(parts.submitter.claim(VIDEO))
    await until(lambda: parts.ledger.at_work)
    task.cancel()
    await asyncio.wait([task])
    await parts.settle()

    assert parts.states == []
    parts.assert_nothing_left()


async def test_failure_without_a_caller_is_logged_once(caplog):
    pause = Pause("sent", loses(connection_lost(sent=True)))
    parts = Parts(pause)
    task = asyncio.ensure_future(parts.register())
    await pause.reached.wait()
    task.cancel()
    await asyncio.wait([task])
    pause.resume.set()
    await parts.settle()

    assert len(warnings(caplog)) == 1
    assert "sku-1" in caplog.text


async def test_disabled_logger_loses_no_event(monkeypatch):
    """`logging.config.dictConfig` disables existing loggers by default."""
    monkeypatch.setattr(logging.getLogger("qamera_async"), "disabled", True)
    pause = Pause("sent", accepts("vid_7"))
    parts = Parts(pause)
    task = asyncio.ensure_future(parts.register())
    await pause.reached.wait()
    task.cancel()
    pause.resume.set()
    await asyncio.wait([task])
    await parts.settle()

    assert [event.receipt.record_ids for event in parts.events] == [("vid_7",)]


async def test_receipt_is_logged_if_on_event_ends_the_program(caplog):
    """KeyboardInterrupt and SystemExit pass the guard of `on_event`."""

    class EndError(BaseException):
        pass

    def end(event):
        raise EndError

    parts = Parts(accepts("vid_7"), emit=end)
    with pytest.raises(EndError):
        await parts.register()

    assert "vid_7" in caplog.text


# --- withdraw -------------------------------------------------------------------------------------


async def test_withdrawn_claim_is_released_and_cannot_be_sent():
    parts = Parts()
    claim = await parts.submitter.claim(VIDEO)
    parts.submitter.withdraw(claim)
    parts.submitter.withdraw(claim)
    with pytest.raises(asyncio.CancelledError):
        await parts.submitter.send(claim)

    assert parts.api.requests == []
    assert parts.log == ["claim", "withdraw"]
    parts.assert_nothing_left()


async def test_withdrawn_before_the_first_step_of_the_task_is_released():
    """A task that is cancelled before it runs executes none of its code."""
    parts = Parts()
    claim = await parts.submitter.claim(VIDEO)
    loop = asyncio.get_running_loop()
    loop.call_soon(lambda: None)
    task = asyncio.ensure_future(parts.submitter.send(claim))
    loop.call_soon(parts.submitter.withdraw, claim)  # after `send` has begun, before its task has
    await asyncio.wait([task])
    await parts.settle()

    assert task.cancelled()
    assert parts.limiter.slots == []
    parts.assert_nothing_left()


@pytest.mark.parametrize("stage", ["connecting", "sent"])
async def test_withdraw_ends_a_submission_that_was_not_sent(stage):
    pause = Pause(stage)
    parts = Parts(pause)
    claim = await parts.submitter.claim(VIDEO)
    task = asyncio.ensure_future(parts.submitter.send(claim))
    await pause.reached.wait()
    parts.submitter.withdraw(claim)
    pause.resume.set()
    await asyncio.wait([task])

    assert task.cancelled() == (stage == "connecting")
    assert len(parts.api.requests) == (0 if stage == "connecting" else 1)
    parts.assert_nothing_left()


@NOT_PROCESSED
async def test_withdrawn_submission_is_not_sent_again(stage, then):
    pause = Pause(stage, then)
    parts = Parts(pause, accepts())
    claim = await parts.submitter.claim(VIDEO)
    task = asyncio.ensure_future(parts.submitter.send(claim))
    await pause.reached.wait()
    parts.submitter.withdraw(claim)
    pause.resume.set()
    await asyncio.wait([task])

    assert task.cancelled()
    assert parts.log.count("slot") == 1
    parts.assert_nothing_left()


# --- closing --------------------------------------------------------------------------------------


async def test_closed_submitter_refuses_claims():
    parts = Parts()
    await parts.submitter.aclose()
    await parts.submitter.aclose()
    with pytest.raises(q.SessionClosedError):
        await parts.submitter.claim(VIDEO)

    assert parts.log == []


async def test_closing_releases_claims_that_were_never_sent():
    parts = Parts()
    claim = await parts.submitter.claim(VIDEO)
    await parts.submitter.aclose()
    with pytest.raises(q.SessionClosedError):
        await parts.submitter.send(claim)

    assert parts.states == []
    parts.assert_nothing_left()


async def test_closing_ends_a_claim_that_waits_for_the_ledger():
    parts = Parts()
    parts.ledger.delays["claim"] = asyncio.Event()
    task = asyncio.ensure_future(parts.submitter.claim(VIDEO))
    await until(lambda: parts.ledger.at_work)
    await parts.submitter.aclose()
    with pytest.raises(q.SessionClosedError):
        await task

    parts.assert_nothing_left()


@pytest.mark.parametrize("stage", ["queue", "connecting"])
async def test_closing_withdraws_submissions_that_were_not_sent(stage):
    pause = Pause("connecting")
    parts = Parts(pause)
    if stage == "queue":
        parts.limiter.open.clear()
    task = asyncio.ensure_future(parts.register())
    await until(lambda: parts.limiter.waiting if stage == "queue" else pause.reached.is_set())
    await parts.submitter.aclose()
    with pytest.raises(q.SessionClosedError):
        await task

    assert parts.api.requests == []
    parts.assert_nothing_left()


async def test_closing_waits_for_the_answer(caplog):
    pause = Pause("sent", accepts("vid_7"))
    parts = Parts(pause)
    task = asyncio.ensure_future(parts.register())
    await pause.reached.wait()
    closing = [asyncio.ensure_future(parts.submitter.aclose()) for _ in range(2)]
    await run_iterations(5)
    assert not any(each.done() for each in closing)
    pause.resume.set()
    await asyncio.gather(*closing)

    assert (await task).record_ids == ("vid_7",)
    assert warnings(caplog) == []
    parts.assert_nothing_left()


async def test_closing_waits_until_the_receipt_is_stored(caplog):
    """The caller must know whether the ledger has the receipt."""
    parts = Parts(accepts("vid_7"))
    stored = parts.ledger.delays["receipt"] = asyncio.Event()
    parts.ledger.failures["receipt"] = q.LedgerUnavailableError("The disk is full.", path="jobs.db")
    task = asyncio.ensure_future(parts.register())
    await until(lambda: parts.ledger.receipts)
    closing = asyncio.ensure_future(parts.submitter.aclose())
    await run_iterations(5)
    stored.set()
    await closing
    with pytest.raises(q.LedgerUnavailableError):
        await task


async def test_closing_ends_the_search_for_candidates():
    parts = Parts(loses(connection_lost(sent=True)), lists=[("old",)], reconcile=LONG)
    task = asyncio.ensure_future(parts.register())
    await parts.poller.exhausted.wait()
    await parts.submitter.aclose()
    with pytest.raises(q.AmbiguousSubmissionError):
        await task

    assert parts.states == ["ambiguous"]
    parts.assert_nothing_left()


async def test_closing_prevents_a_retry():
    pause = Pause("sent", refuses(429))
    parts = Parts(pause, accepts())
    task = asyncio.ensure_future(parts.register())
    await pause.reached.wait()
    closing = asyncio.ensure_future(parts.submitter.aclose())
    await run_iterations()
    pause.resume.set()
    await closing
    with pytest.raises(q.SessionClosedError):
        await task

    assert len(parts.api.requests) == 1
    assert parts.states == []
    parts.assert_nothing_left()


async def test_closing_cuts_off_submissions_without_an_answer(caplog):
    pause = Pause("sent")
    parts = Parts(pause, close=0.01)
    task = asyncio.ensure_future(parts.register())
    await pause.reached.wait()
    await parts.submitter.aclose()
    with pytest.raises(q.AmbiguousSubmissionError) as ambiguous:
        await task

    assert "closed" in ambiguous.value.cause.message
    assert parts.states == ["ambiguous"]
    assert [type(event) for event in parts.events] == [Ambiguous]
    assert len(warnings(caplog)) == 1
    parts.assert_nothing_left()


async def test_closing_ends_even_if_the_ledger_hangs(monkeypatch):
    monkeypatch.setattr("qamera_async._submission.submit._CANCEL_INTERVAL", 0.01)
    parts = Parts(loses(connection_lost(sent=True)), close=0.01)
    parts.ledger.delays["ambiguous"] = asyncio.Event()
    task = asyncio.ensure_future(parts.register())
    await until(lambda: "ambiguous" in parts.states)
    async with asyncio.timeout(LONG):
        await parts.submitter.aclose()
    with pytest.raises(q.AmbiguousSubmissionError):
        await task


@pytest.mark.parametrize("iteration", range(40))
async def test_closed_at_every_loop_iteration(iteration):
    """The caller gets the receipt, or SessionClosedError after the claim was released."""
    parts = Parts(accepts("vid_7"))
    task = asyncio.ensure_future(parts.register())
    await run_iterations(iteration)
    await parts.submitter.aclose()
    (result,) = await asyncio.gather(task, return_exceptions=True)

    if parts.states == ["submitted"]:
        assert result.record_ids == ("vid_7",)
    else:
        assert isinstance(result, q.SessionClosedError)
        assert parts.api.requests == []
    parts.assert_nothing_left()


# --- the event loop ends --------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["connecting", "sent", "storing"])
def test_end_of_the_loop_leaves_an_ambiguous_intent_or_a_receipt(stage, caplog):
    """`asyncio.run` cancels all tasks. Submissions on the wire become ambiguous, and receipts are stored."""
    found = None

    async def main():
        nonlocal found
        pause = Pause("sent" if stage == "storing" else stage, accepts("vid_7"))
        found = Parts(pause)
        if stage == "storing":
            pause.resume.set()
            found.ledger.delays["receipt"] = asyncio.Event()
        task = asyncio.ensure_future(found.register())
        await until(lambda: pause.reached.is_set() and (stage != "storing" or found.ledger.receipts))
        assert not task.done()

    asyncio.run(main())

    expected = {"connecting": [], "sent": ["ambiguous"], "storing": ["submitted"]}[stage]
    assert found.states == expected
    assert found.ledger.at_work == set()
    assert len(warnings(caplog)) == len(expected)
    assert ("sku-1" in caplog.text) == bool(expected)
