"""The rate limit in a ledger: reboots, clock changes, crashes and suspensions free no slot too early."""

import asyncio
import signal
import sys
import threading

import postgres
import psycopg
import pytest

from qamera_async._ratelimit import Priority
from qamera_async.ledger.places import checked_place
from qamera_async.ledger.postgres import PostgresStorage
from qamera_async.ledger.postgres.schema import LOCKS
from qamera_async.ledger.postgres.slots import PostgresSlots
from qamera_async.ledger.sqlite import SqliteStorage
from qamera_async.ledger.sqlite.slots import SqliteSlots

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")

in_a_file = pytest.mark.parametrize("machine", ["sqlite"], indirect=True)
in_postgres = pytest.mark.parametrize("machine", ["postgres"], indirect=True)

LIMIT, WINDOW, GRACE = 3, 60.0, 70.0
OWNERS = {"one": 101, "two": 102, "observer": 103}


class Machine:
    """Processes that share a ledger. The test moves their clock and kills them."""

    def __init__(self, worker, database=None):
        self.now = 1000.0
        self.boot = "first"
        self._worker = worker
        self._living = set(OWNERS)
        # In PostgreSQL an owner is alive while its connection holds the advisory lock of its number.
        self._connections = {name: psycopg.connect(database) for name in OWNERS if database}
        for name, connection in self._connections.items():
            connection.execute("SELECT pg_advisory_lock(%s, %s)", (LOCKS, OWNERS[name]))
        self._slots = {name: self.slots("account", name) for name in OWNERS}

    def slots(self, account, name):
        """Return the slots of an account, as one process sees them."""
        if self._connections:
            slots = PostgresSlots(
                self._worker,
                account,
                GRACE,
                lambda: OWNERS[name],
                clock=lambda: self.now,
                now=lambda: f"{self.now}::float8",
            )
        else:
            slots = SqliteSlots(
                self._worker,
                account,
                GRACE,
                lambda: OWNERS[name],
                lambda owner: owner in {OWNERS[living] for living in self._living},
                clock=lambda: self.now,
                boot=lambda: self.boot,
            )
        slots._name = lambda: name
        return slots

    def kill(self, name):
        """End a process."""
        self._living.discard(name)
        if name in self._connections:
            connection = self._connections.pop(name)
            connection.execute("SELECT pg_advisory_unlock_all()")
            connection.close()

    def close(self):
        """End all processes."""
        for name in OWNERS:
            self.kill(name)

    async def take(self, process="one", priority=Priority.SUBMISSION, reserve=0.0):
        return await self._slots[process].take(priority, LIMIT, WINDOW, reserve)

    async def fill(self):
        slot_ids = [(await self.take())[0] for _ in range(LIMIT)]
        assert None not in slot_ids
        return slot_ids

    async def settle(self, slot_id, until, process="one"):
        self._slots[process].settle(slot_id, until)
        await asyncio.sleep(0)

    async def usage(self, process="observer"):
        """Return the usage of the other processes, as one process reads it."""
        usages = asyncio.Queue()
        loop = asyncio.get_running_loop()
        self._slots[process].fetch_usage(lambda usage: loop.call_soon_threadsafe(usages.put_nowait, usage))
        return await asyncio.wait_for(usages.get(), 10)

    async def is_full(self):
        slot_id, _ = await self.take("observer")
        if slot_id is not None:
            await self.settle(slot_id, None, "observer")
        return slot_id is None


@pytest.fixture(params=["sqlite", "postgres"])
async def machine(request, tmp_path):
    database = None
    if request.param == "sqlite":
        storage = SqliteStorage.of(str(tmp_path / "jobs.db"))
    else:
        database = postgres.server().database()
        storage = PostgresStorage.of(checked_place(database))
    await storage.open()
    machine = Machine(storage._worker, database)
    yield machine
    machine.close()
    await storage.aclose()


async def test_slot_is_free_at_the_time_it_was_settled_with(machine):
    for slot_id in await machine.fill():
        await machine.settle(slot_id, machine.now + WINDOW)
    machine.now += WINDOW - 0.1
    assert await machine.is_full()
    machine.now += 0.2

    assert not await machine.is_full()


async def test_slot_of_an_unsent_request_is_free_immediately(machine):
    slot_ids = await machine.fill()
    await machine.settle(slot_ids[0], None)

    assert not await machine.is_full()


async def test_killed_process_keeps_its_slots_as_long_as_they_may_count(machine):
    """A request in flight counts for the longest time that its response may take, and for one window."""
    await machine.fill()
    machine.kill("one")
    machine.now += GRACE + WINDOW - 0.1
    assert await machine.is_full()
    machine.now += 0.2

    assert not await machine.is_full()


async def test_suspended_process_keeps_its_slots_in_flight(machine):
    """P2: the process may send its requests when it is resumed.

    Its slots end with the process, or a window after a response.
    """
    slot_ids = await machine.fill()
    machine.now += 10 * (GRACE + WINDOW)
    assert await machine.is_full()
    assert (await machine.usage()).submissions_in_flight == LIMIT
    await machine.settle(slot_ids[0], machine.now + WINDOW)
    machine.now += WINDOW - 0.1
    assert await machine.is_full()
    machine.now += 0.2
    assert not await machine.is_full()
    assert (await machine.usage()).submissions_in_flight == LIMIT - 1
    machine.kill("one")
    assert (await machine.usage()).submissions_in_flight == 0

    assert len([one for one in [await machine.take("two") for _ in range(LIMIT)] if one[0]]) == LIMIT


async def test_process_forgets_a_slot_that_could_not_be_settled(machine):
    """A failed write, for example on a full disk, must not keep the slot until the process ends."""
    slot_ids = await machine.fill()
    settling = machine._slots["one"]._settling
    machine._slots["one"]._settling = lambda *_: lambda _: None
    for slot_id in slot_ids:
        await machine.settle(slot_id, machine.now + WINDOW)
    machine._slots["one"]._settling = settling
    machine.now += GRACE + WINDOW + 0.1

    assert (await machine.take("one"))[0] is not None


@in_a_file
@pytest.mark.parametrize("uptime", [0.5, 5_000.0])
async def test_reboot_frees_no_slot_early_and_none_late(machine, uptime):
    """A reboot restarts the monotonic clock. Slots taken before the reboot count for one more window."""
    for slot_id in await machine.fill():
        await machine.settle(slot_id, machine.now + WINDOW)
    machine.boot, machine.now = "second", uptime
    assert await machine.is_full()
    machine.now += WINDOW - 0.1
    assert await machine.is_full()
    machine.now += 0.2

    assert not await machine.is_full()


@in_a_file
async def test_reboot_is_detected_by_the_clock_if_the_boot_has_no_id(machine):
    """A slot with a time that this boot has not reached was taken in an earlier boot."""
    machine.boot = ""
    machine.now = 1e6
    for slot_id in await machine.fill():
        await machine.settle(slot_id, machine.now + WINDOW)
    machine.now = 10.0
    assert await machine.is_full()
    machine.now += WINDOW + 0.1

    assert not await machine.is_full()


@in_postgres
async def test_database_clock_set_back_keeps_slots_for_one_window(machine):
    for slot_id in await machine.fill():
        await machine.settle(slot_id, machine.now + WINDOW)
    machine.now -= 500.0
    assert await machine.is_full()
    machine.now += WINDOW - 0.1
    assert await machine.is_full()
    machine.now += 0.2

    assert not await machine.is_full()


async def test_each_process_reads_the_usage_of_the_others_only(machine):
    """The usage has settled slots and slots in flight by priority, and the reserve for polls."""
    first, _ = await machine.take("one", reserve=4.0)
    await machine.take("one", Priority.POLL, reserve=4.0)
    await machine.settle(first, machine.now + WINDOW)
    _, seen_by_two = await machine.take("two", reserve=2.0)
    _, seen_by_one = await machine.take("one")

    assert seen_by_two.submissions == (machine.now + WINDOW,)
    assert (seen_by_two.submissions_in_flight, seen_by_two.polls, seen_by_two.polls_in_flight) == (0, (), 1)
    assert seen_by_two.reserve == 4.0
    assert (seen_by_one.submissions, seen_by_one.submissions_in_flight) == ((), 1)
    assert seen_by_one.reserve == 2.0


async def test_cancelled_take_leaves_no_slot(machine):
    """The slot is written after the cancellation, and then removed."""
    unblock = threading.Event()
    machine._slots["one"]._worker.post("block", lambda _: unblock.wait(5))
    taking = asyncio.ensure_future(machine.take())
    await asyncio.sleep(0)
    taking.cancel()
    await asyncio.wait([taking])
    unblock.set()
    await machine.fill()

    assert taking.cancelled()


async def test_accounts_do_not_share_slots(machine):
    """Each key and origin has its own rate limit."""
    await machine.fill()
    other = machine.slots("other", "one")

    assert (await other.take(Priority.POLL, LIMIT, WINDOW, 0.0))[0] is not None


CHILD = """
import asyncio, sys, time
from qamera_async._ratelimit import Priority
from qamera_async.ledger.places import checked_place
{module}

async def main():
    storage = {storage}.of({place})
    await storage.open()
    slot_id, _ = await storage.slots("account", 0.1).take(Priority.SUBMISSION, 1, 0.1, 0.0)
    print(slot_id, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="this system can't suspend a process")
@pytest.mark.parametrize("backend", ["sqlite", "postgres"])
async def test_slot_in_flight_ends_when_its_process_ends_and_not_while_it_is_suspended(backend, tmp_path):
    """P2: time passes while the process is suspended, but the other processes see that it is alive."""
    if backend == "sqlite":
        location = str(tmp_path / "jobs.db")
        storage = SqliteStorage.of(location)
        names = {
            "module": "from qamera_async.ledger.sqlite import SqliteStorage",
            "storage": "SqliteStorage",
            "place": repr(location),
        }
    else:
        location = postgres.server().database()
        storage = PostgresStorage.of(checked_place(location))
        names = {
            "module": "from qamera_async.ledger.postgres import PostgresStorage",
            "storage": "PostgresStorage",
            "place": f"checked_place({location!r})",
        }
    await storage.open()
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD.format(**names), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert (await asyncio.wait_for(child.stdout.readline(), 60)).strip() not in {b"", b"None"}
        child.send_signal(signal.SIGSTOP)
        slots = storage.slots("account", 0.1)
        for _ in range(5):
            assert (await slots.take(Priority.SUBMISSION, 1, 0.1, 0.0))[0] is None
            await asyncio.sleep(0.1)
        child.kill()
        await child.wait()
        async with asyncio.timeout(30):
            while (await slots.take(Priority.SUBMISSION, 1, 0.1, 0.0))[0] is None:
                await asyncio.sleep(0.02)
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
        await storage.aclose()
