"""SharedPolling: registering watched records, the lease, and the results of other processes."""

import asyncio

import pytest

from qamera_async import StatusRules
from qamera_async._polling import lease
from qamera_async._polling.lease import SharedPolling
from qamera_async._protocol import VIDEOS, RecordList
from qamera_async.errors import LedgerUnavailableError
from qamera_async.ledger.board import Look

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")

INTERVAL = 10.0
LIST = RecordList(VIDEOS, StatusRules(), {}, complete=True, broken=0, response=None)


def look(number, **fields):
    known = {"ours": False, "sent": 0.0, "ended": 0.0, "complete": True, "trouble": "", "items": {}}
    return Look(number, **known | fields)


class FakeBoard:
    """A board whose operations the test answers."""

    tells = True

    def __init__(self):
        self.operations = []
        self.registered = set()
        self.answers = asyncio.Queue()
        self.released = 0
        self.leases = []
        self.published = []

    def listen(self, notify):
        self.notify = notify

    async def look(self, known, come, gone):
        self.operations.append((known, set(come), set(gone)))
        answer = await self.answers.get()
        if isinstance(answer, Exception):
            raise answer
        self.registered |= set(come)
        self.registered -= set(gone)
        return answer

    async def begin(self, known, come, gone, *, fresh, lease):
        self.leases.append(lease)
        return await self.look(known, come, gone)

    async def publish(self, sent, items, *, complete, trouble=""):
        self.published.append((items, trouble))
        answer = await self.answers.get()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def give_up(self):
        self.released += 1

    def leave(self):
        self.registered = None

    async def operation(self, number):
        async with asyncio.timeout(5):
            while len(self.operations) < number:
                await asyncio.sleep(0.001)


@pytest.fixture
def polls():
    return []


@pytest.fixture
async def shared(monkeypatch, polls):
    monkeypatch.setattr(lease, "_SYNC_DELAY", 0.001)
    monkeypatch.setattr(lease, "_RETRY_DELAY", 0.001)
    shared = SharedPolling(FakeBoard(), INTERVAL, polls.append)
    shared.board = shared._board
    yield shared
    await shared.aclose()


async def test_watched_records_are_registered_together(shared):
    for record_id in "abc":
        shared.watch(record_id)
    shared.unwatch("b")
    shared.board.answers.put_nowait(look(0, waits=2))
    await shared.board.operation(1)

    assert shared.board.operations == [(0, {"a", "c"}, {"b"})]


async def test_failed_registration_is_repeated_with_the_current_records(shared):
    shared.watch("a")
    shared.watch("b")
    await shared.board.operation(1)
    shared.unwatch("b")
    shared.board.answers.put_nowait(LedgerUnavailableError("The disk is full."))
    await shared.board.operation(2)

    assert shared.board.operations[1] == (0, {"a"}, {"b"})


async def test_poll_of_another_process_is_reported_once(shared, polls):
    shared.watch("a")
    found = look(3, items={"a": "{}"}, waits=1)
    shared.board.answers.put_nowait(found)
    await shared.board.operation(1)
    await asyncio.sleep(0.005)
    shared.board.answers.put_nowait(found)
    await asyncio.get_running_loop().run_in_executor(None, shared.board.notify)
    await shared.board.operation(2)
    await asyncio.sleep(0.005)

    assert polls == [found]
    assert shared.last_seq == 3
    assert shared.handover_delay == INTERVAL / 4
    assert asyncio.get_running_loop().time() - shared.ended_at < 5


async def test_poll_without_the_records_of_this_process_is_ignored(shared):
    """The process registers its records again."""
    shared.watch("a")
    shared.board.answers.put_nowait(look(3, waits=0))
    await shared.board.operation(2)

    assert shared.ended_at < 0
    assert shared.board.operations[1] == (3, {"a"}, set())


async def test_listener_that_raises_is_logged_and_called_again(shared, polls, caplog):
    shared.watch("a")
    shared._on_poll = lambda _: 1 / 0
    shared.board.answers.put_nowait(look(1, waits=1))
    await shared.board.operation(1)
    await asyncio.sleep(0.01)
    shared._on_poll = polls.append
    shared.board.answers.put_nowait(look(2, waits=1))
    shared.watch("b")
    await shared.board.operation(2)
    await asyncio.sleep(0.005)

    assert "ZeroDivisionError" in caplog.text
    assert [each.number for each in polls] == [2]


async def test_lease_is_denied_while_another_process_holds_it(shared, polls):
    shared.board.answers.put_nowait(look(5))

    assert not await shared.acquire(0)
    assert [each.number for each in polls] == [5]


async def test_published_lease_is_not_released_again(shared):
    shared.board.answers.put_nowait(look(5, turn=True, others=frozenset("b")))
    assert await shared.acquire(0)
    shared.board.answers.put_nowait(6)
    await shared.publish(0.1, LIST)
    shared.release()

    assert shared.board.published == [({"b": None}, "")]
    assert shared.board.released == 0
    assert (shared.last_seq, shared.handover_delay) == (6, 0.0)


async def test_failed_publication_is_logged_only(shared, caplog):
    caplog.set_level("INFO", "qamera_async")
    shared.board.answers.put_nowait(look(5, turn=True))
    assert await shared.acquire(0)
    shared.board.answers.put_nowait(LedgerUnavailableError("The disk is full."))
    await shared.publish(0.1, LIST)

    assert "disk is full" in caplog.text
    assert shared.last_seq == 5


async def test_released_lease_is_free(shared):
    shared.board.answers.put_nowait(look(5, turn=True))
    assert await shared.acquire(0)
    shared.release()
    shared.release()

    assert shared.board.released == 1


async def test_process_polls_without_a_lease_if_the_ledger_is_unusable(shared):
    shared.board.answers.put_nowait(LedgerUnavailableError("The disk is full."))

    assert await shared.acquire(0)
    await shared.publish(0.1, LIST)
    shared.release()
    assert (shared.board.published, shared.board.released) == ([], 0)


async def test_cancelled_acquisition_releases_the_lease(shared):
    taking = asyncio.ensure_future(shared.acquire(0))
    await shared.board.operation(1)
    taking.cancel()
    await asyncio.wait([taking])

    assert shared.board.released == 1


async def test_lease_lasts_for_three_slow_polls(shared):
    shared.board.answers.put_nowait(look(1, sent=30.0, ended=2.0))
    assert not await shared.acquire(0)
    shared.board.answers.put_nowait(look(1, turn=True))
    assert await shared.acquire(1)

    assert shared.board.leases == [1.5 * INTERVAL, 3 * 28.0]
