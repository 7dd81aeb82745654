"""The quota in the ledger: slots that neither a reboot, a changed clock nor a crash makes free too early."""

import asyncio
import threading

import postgres
import pytest

from qamera_async._ratelimit.window import Priority
from qamera_async.ledger.places import checked_place
from qamera_async.ledger.postgres import PostgresStorage
from qamera_async.ledger.postgres.slots import PostgresSlots
from qamera_async.ledger.postgres.worker import Worker as PostgresWorker
from qamera_async.ledger.sqlite import SqliteStorage
from qamera_async.ledger.sqlite.slots import SqliteSlots

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")

in_a_file = pytest.mark.parametrize("machine", ["sqlite"], indirect=True)

LIMIT, WINDOW, GRACE = 3, 60.0, 70.0


class Machine:
    """A process on a machine: its name, its clock and its boot."""

    def __init__(self, worker):
        self.now = 1000.0
        self.boot = "first"
        self._name = "one"
        self._worker = worker
        self._slots = self.slots("account")

    def slots(self, account):
        """Give the log of an account, by this machine's clocks or by those of its database."""
        if isinstance(self._worker, PostgresWorker):
            there = PostgresSlots(
                self._worker, account, GRACE, lambda: self.now, lambda: f"{self.now}::float8"
            )
        else:
            there = SqliteSlots(self._worker, account, GRACE, lambda: self.now, lambda: self.boot)
        there._process = lambda: self._name
        return there

    async def take(self, process="one", priority=Priority.SUBMISSION, reserve=0.0):
        self._name = process
        return await self._slots.take(priority, LIMIT, WINDOW, reserve)

    async def fill(self):
        tickets = [(await self.take())[0] for _ in range(LIMIT)]
        assert None not in tickets
        return tickets

    async def settle(self, ticket, until):
        self._slots.settle(ticket, until)
        await asyncio.sleep(0)

    async def is_full(self):
        ticket, _ = await self.take("looker")
        if ticket is not None:
            await self.settle(ticket, None)
        return ticket is None


@pytest.fixture(params=["sqlite", "postgres"])
async def machine(request, tmp_path):
    if request.param == "sqlite":
        storage = SqliteStorage.of(str(tmp_path / "jobs.db"))
    else:
        storage = PostgresStorage.of(checked_place(postgres.server().database()))
    await storage.open()
    yield Machine(storage._worker)
    await storage.aclose()


async def test_a_slot_is_free_when_it_was_said_to_be(machine):
    """No earlier, and no later."""
    for ticket in await machine.fill():
        await machine.settle(ticket, machine.now + WINDOW)
    machine.now += WINDOW - 0.1
    assert await machine.is_full()
    machine.now += 0.2

    assert not await machine.is_full()


async def test_what_is_unsent_is_free_at_once(machine):
    """It never left, so the server has not counted it."""
    tickets = await machine.fill()
    await machine.settle(tickets[0], None)

    assert not await machine.is_full()


async def test_a_killed_process_keeps_its_slots_for_as_long_as_they_may_count(machine):
    """A request under way counts until its answer could have come, and one window more."""
    await machine.fill()
    machine.now += GRACE + WINDOW - 0.1
    assert await machine.is_full()
    machine.now += 0.2

    assert not await machine.is_full()


@in_a_file
@pytest.mark.parametrize("uptime", [0.5, 5_000.0])
async def test_a_reboot_opens_no_gap_and_locks_nobody_out(machine, uptime):
    """The monotonic clock begins anew: a slot of before counts for one more window."""
    for ticket in await machine.fill():
        await machine.settle(ticket, machine.now + WINDOW)
    machine.boot, machine.now = "second", uptime
    assert await machine.is_full()
    machine.now += WINDOW - 0.1
    assert await machine.is_full()
    machine.now += 0.2

    assert not await machine.is_full()


@in_a_file
async def test_a_machine_whose_boots_have_no_names_locks_nobody_out(machine):
    """A moment that no slot of this boot can have is of another one."""
    machine.boot = ""
    machine.now = 1e6
    for ticket in await machine.fill():
        await machine.settle(ticket, machine.now + WINDOW)
    machine.now = 10.0
    assert await machine.is_full()
    machine.now += WINDOW + 0.1

    assert not await machine.is_full()


@pytest.mark.parametrize("machine", ["postgres"], indirect=True)
async def test_a_clock_of_the_database_that_is_set_back_locks_nobody_out(machine):
    """A moment that no slot can have by it is of before: such a slot counts for one more window."""
    for ticket in await machine.fill():
        await machine.settle(ticket, machine.now + WINDOW)
    machine.now -= 500.0
    assert await machine.is_full()
    machine.now += WINDOW - 0.1
    assert await machine.is_full()
    machine.now += 0.2

    assert not await machine.is_full()


async def test_each_process_is_told_what_the_others_have_and_not_its_own(machine):
    """Settled and under way, by priority, with what the others leave to their polls."""
    first, _ = await machine.take("one", reserve=4.0)
    await machine.take("one", Priority.POLL, reserve=4.0)
    await machine.settle(first, machine.now + WINDOW)
    _, seen_by_other = await machine.take("two", reserve=2.0)
    _, seen_by_one = await machine.take("one")

    assert seen_by_other.submissions == (machine.now + WINDOW,)
    assert (seen_by_other.submitting, seen_by_other.polls, seen_by_other.polling) == (0, (), 1)
    assert seen_by_other.reserve == 4.0
    assert (seen_by_one.submissions, seen_by_one.submitting, seen_by_one.reserve) == ((), 1, 2.0)


async def test_a_cancelled_take_leaves_no_slot(machine):
    """Whether the slot was written before the cancellation or after it."""
    busy = threading.Event()
    machine._slots._worker.post("be busy", lambda _: busy.wait(5))
    taking = asyncio.ensure_future(machine.take())
    await asyncio.sleep(0)
    taking.cancel()
    await asyncio.wait([taking])
    busy.set()
    await machine.fill()

    assert taking.cancelled()


async def test_accounts_do_not_share(machine):
    """Each key and origin has its own quota."""
    await machine.fill()
    other = machine.slots("other")

    assert (await other.take(Priority.POLL, LIMIT, WINDOW, 0.0))[0] is not None
