"""A process that is suspended between the commit of "sending" and the first byte, with a real ledger file."""

import asyncio
import time

import attrs
import pytest
from submission_parts import LONG, VIDEO, FakeLedger, Parts, accepts, run_iterations, until

import qamera_async as q
from qamera_async.ledger.ledger import Ledger
from qamera_async.ledger.rows import LedgerState
from qamera_async.ledger.sqlite import SqliteStorage

pytestmark = [pytest.mark.every_loop, pytest.mark.usefixtures("no_lost_exceptions")]

LEASE = 0.4  # seconds
FROZEN = LEASE / 2 + 0.05


class CountingLedger(Ledger):
    """Counts the commits of "sending"."""

    commits = 0

    async def sending(self, intent):
        await super().sending(intent)
        self.commits += 1


@pytest.fixture
async def ledger(path):
    ledger = CountingLedger(SqliteStorage.of(str(path)), "https://example.com")
    yield ledger
    await ledger.aclose()


@pytest.fixture
async def resolve(path, ledger):
    """Return a function that resolves an intent through another connection to the file."""
    storage = SqliteStorage.apart(str(path))

    async def abandon(intent_id):
        def change(row):
            return attrs.evolve(row, state=LedgerState.ABANDONED)

        assert await storage.change(intent_id, frozenset(LedgerState), change) is not None

    yield abandon
    await storage.aclose()


def freezes(point, then, meanwhile=None):
    """Return a script that blocks the process before the first byte, then follows another script."""

    async def script(exchange):
        if point == "before the first byte":
            await run_iterations()
        if meanwhile is not None:
            await meanwhile(exchange.request.headers["Idempotency-Key"])
        time.sleep(FROZEN)  # noqa: ASYNC251 - the process is suspended
        return await then(exchange)

    return script


POINTS = pytest.mark.parametrize("point", ["before api.send", "before the first byte"])


@pytest.mark.case(102)
@POINTS
async def test_frozen_submission_whose_intent_was_abandoned_is_not_sent(point, ledger, resolve):
    parts = Parts(freezes(point, accepts(), resolve), ledger=ledger, lease=LEASE)
    with pytest.raises(q.LedgerUnavailableError):
        await parts.register()

    assert parts.api.requests == []
    assert parts.limiter.settled == ["given back"]
    assert parts.events == []
    again = await parts.submitter.claim(VIDEO)
    assert again.earlier is None
    parts.submitter.withdraw(again)


@POINTS
async def test_frozen_submission_is_committed_again_and_sent_once(point, ledger):
    parts = Parts(freezes(point, accepts()), ledger=ledger, lease=LEASE)
    await parts.register()

    assert ledger.commits >= 2
    assert len(parts.api.requests) == 1


async def test_submission_that_was_not_frozen_is_committed_once(ledger):
    parts = Parts(ledger=ledger, lease=LONG)
    await parts.register()

    assert ledger.commits == 1


async def test_slow_commit_is_repeated():
    """The age of a commit counts from its beginning: another process may have read the intent since then."""

    class SlowLedger(FakeLedger):
        commits = 0

        async def sending(self, intent):
            self.commits += 1
            if self.commits < 3:
                time.sleep(FROZEN)  # noqa: ASYNC251
            await super().sending(intent)

    ledger = SlowLedger([])
    parts = Parts(ledger=ledger, lease=LEASE)
    await parts.register()

    assert ledger.commits >= 3
    assert len(parts.api.requests) == 1


async def test_caller_cancelled_in_the_fence_withdraws():
    parts = Parts(freezes("before the first byte", accepts()), lease=LEASE)
    task = asyncio.ensure_future(parts.register())
    await until(lambda: parts.log.count("sending") == 1)
    commit = parts.ledger.delays["sending"] = asyncio.Event()
    await until(lambda: parts.ledger.waiting == "sending")
    task.cancel()
    await asyncio.wait([task])
    commit.set()
    await parts.settle()

    assert parts.states == []
    assert parts.api.requests == []
    assert parts.events == []
    parts.assert_nothing_left()
