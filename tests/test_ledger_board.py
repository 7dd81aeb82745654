"""The board of a shared poll: whose turn it is, who waits for what, and what of a list is kept for whom."""

import asyncio
import sqlite3
import sys
from contextlib import closing

import postgres
import pytest

from qamera_async.ledger.places import checked_place, ledger_at

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")

LONG = 1000.0  # seconds
ODD = ["it's", 'a "b"', "what?", "100 % %s", "back\\slash", "nul\0", "zażółć ☃", "; DROP TABLE shown; --"]


@pytest.fixture(params=["sqlite", "postgres"])
def path(request, tmp_path):
    """Where the ledger is to be."""
    return str(tmp_path / "jobs.db") if request.param == "sqlite" else postgres.server().database()


@pytest.fixture
async def board(path):
    """Give a function that makes a poller's board."""
    ledger = ledger_at(checked_place(path), "https://api.example")
    await ledger.open()
    yield lambda account="account": Poller(ledger.board(account))
    await ledger.aclose()


class Poller:
    """One that remembers nothing between its calls."""

    def __init__(self, board):
        self.board = board

    async def begin(self, known=0, come=(), gone=(), fresh=0.0, lease=LONG):
        return await self.board.begin(known, come, gone, fresh=fresh, lease=lease)

    async def look(self, known=0, come=(), gone=()):
        return await self.board.look(known, come, gone)

    async def publish(self, items=None, sent=0.0, **options):
        return await self.board.publish(sent, items or {}, **{"complete": True} | options)


def run(path, *statements):
    """Run statements in a ledger's database; give what the last gives."""
    if path.startswith("postgres"):
        return postgres.execute(path, "SET search_path TO qamera", *statements)
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements:
            rows = connection.execute(statement).fetchall()
        return rows


# --- whose turn it is -----------------------------------------------------------------------------


async def test_one_at_a_time_has_the_turn(board):
    """Until it says what came of it; asking again, it has it still."""
    first, second = board(), board()
    assert (await first.begin()).turn
    assert not (await second.begin()).turn
    assert (await first.begin()).turn
    await first.publish()

    assert (await second.begin(known=1)).turn


@pytest.mark.parametrize(("known", "fresh", "turn"), [(0, LONG, False), (1, LONG, True), (0, 0.0, True)])
async def test_a_fresh_poll_of_another_is_taken_in_place_of_a_turn(board, known, fresh, turn):
    """One that isn't known yet, and no older than what is asked for."""
    first, second = board(), board()
    await first.begin()
    await first.publish()
    look = await second.begin(known=known, fresh=fresh)

    assert (look.turn, look.number, look.ours) == (turn, 1, False)


async def test_the_turn_of_who_takes_too_long_passes_on(board):
    """Then what the first one brings is not kept, since the other's is newer."""
    first, second, third = board(), board(), board()
    await third.look(come=["a"])
    await first.begin()
    look = await second.begin(lease=0.0)
    await second.publish({"a": "newer"})
    await second.begin(known=1)
    kept = await first.publish({"a": "older"})
    seen = await third.look()

    assert look.turn
    assert kept is None
    assert (seen.number, seen.items) == (1, {"a": "newer"})
    assert (await second.look()).turn


async def test_who_has_lost_the_turn_and_was_last_before_knows_that_it_was_not_kept(board):
    """The number of its earlier poll is none of this one."""
    first, second = board(), board()
    await first.begin()
    await first.publish()
    await first.begin(known=1)
    await second.begin(known=1, lease=0.0)
    await second.publish()

    assert await first.publish() is None


async def test_a_turn_can_be_given_up(board):
    """By who has it, and nobody else."""
    first, second, third = board(), board(), board()
    await first.begin()
    second.board.give_up()
    assert not (await third.begin()).turn
    first.board.give_up()

    assert (await third.begin()).turn


async def test_the_dead_have_no_turn_and_wait_for_nothing(board, path):
    """By the lock of their process, not by a clock."""
    first, second = board(), board()
    await first.begin(come=["a"])
    run(path, "UPDATE polls SET owner = 987654", "UPDATE waiting SET owner = 987654")
    look = await second.begin()

    assert look.turn
    assert look.others == frozenset()
    assert run(path, "SELECT * FROM waiting") == []


@pytest.mark.parametrize("column", ["begun", "ended"])
async def test_a_moment_that_is_still_to_come_keeps_nobody(board, path, column):
    """It is of another boot, or of before a clock was set back."""
    first, second = board(), board()
    await first.begin()
    if column == "ended":
        await first.publish()
    run(path, f"UPDATE polls SET {column} = {column} + 1e6")  # noqa: S608 - a name from above

    assert (await second.begin(fresh=LONG)).turn


async def test_accounts_have_polls_of_their_own(board):
    """Another key has another list."""
    one, other = board(), board("other")
    await one.begin(come=["a"])
    look = await other.begin()
    await other.publish({"a": "{}"})

    assert look.turn
    assert look.others == frozenset()
    assert (await one.look()).items == {}


# --- what is kept ---------------------------------------------------------------------------------


async def test_what_others_wait_for_is_kept_for_them(board):
    """As it stands in the list; None for what was looked for and isn't there. Each gets his own."""
    first, second, third = board(), board(), board()
    await second.look(come=["a", "b", "x"])
    await third.look(come=["b", "y"])
    look = await first.begin(come=["mine"])
    await first.publish(
        {"a": '{"id": "a"}', "b": '{"id": "b"}', "x": None, "y": None}, sent=5.0, complete=False
    )
    seen, also = await second.look(), await third.look()

    assert look.others == {"a", "b", "x", "y"}
    assert seen.items == {"a": '{"id": "a"}', "b": '{"id": "b"}', "x": None}
    assert also.items == {"b": '{"id": "b"}', "y": None}
    assert (seen.number, seen.ours, seen.complete, seen.trouble) == (1, False, False, "")
    assert 5.0 <= seen.sent < 6.0
    assert 0.0 <= seen.ended < 1.0


async def test_what_is_known_is_not_told_again(board):
    """Nor to who has brought it."""
    first, second = board(), board()
    await second.look(come=["a"])
    await first.begin(come=["a"])
    number = await first.publish({"a": "{}"})

    assert number == 1
    assert (await second.look(known=0)).items == {"a": "{}"}
    assert (await second.look(known=1)).items == {}
    assert (await first.look(known=0)).items == {}
    assert (await first.look(known=0)).ours


async def test_each_poll_takes_the_place_of_the_one_before(board):
    """What has changed, what is gone, and what has come."""
    first, second = board(), board()
    await second.look(come=["a", "b", "c"])
    for items in ({"a": "1", "b": "1", "c": None}, {"a": "1", "b": None, "c": "1"}):
        await first.begin()
        await first.publish(items)

    assert (await second.look()).items == {"a": "1", "b": None, "c": "1"}


async def test_what_nobody_else_waits_for_is_forgotten(board, path):
    """Who has got it, waits no more; what only the poller waits for, it has itself."""
    first, second = board(), board()
    await second.look(come=["a", "b"])
    await first.begin(come=["b"])
    await first.publish({"a": "1", "b": "1"})
    await second.look(gone=["a"])
    await first.begin()
    await first.publish({"b": "1"})
    kept = run(path, "SELECT record_id FROM shown")
    await second.begin(known=2)
    await second.publish({"b": "2"})
    await second.begin(gone=["b"], known=3)
    await second.publish({"b": "2"})
    second.board.leave()
    await first.begin(known=4)
    await first.publish()

    assert kept == [("b",)]
    assert run(path, "SELECT record_id FROM shown") == []


async def test_trouble_is_told_and_changes_nothing_that_was_seen(board):
    """Why a poll brought nothing."""
    first, second = board(), board()
    await second.look(come=["a"])
    await first.begin()
    await first.publish({"a": "1"})
    await first.begin(known=1)
    await first.publish(trouble="status 500")
    look = await second.look(known=1)

    assert (look.number, look.trouble) == (2, "status 500")
    assert look.items == {"a": "1"}


async def test_any_id_and_as_many_as_there_are(board):
    """Thousands in pieces, and what SQL would take for its own."""
    first, second = board(), board()
    names = [*ODD, *(f"vid_{n}" for n in range(1000))]
    items = {name: None if name.endswith("7") else f'{{"id": "{name}"}}' for name in names}
    await second.look(come=names)
    look = await first.begin()
    await first.publish(items)
    seen = (await second.look()).items
    await second.look(gone=names[1:])
    await first.begin(known=1)
    await first.publish({names[0]: "1"})

    assert look.others == set(names)
    assert seen == items
    assert (await second.look(known=1)).items == {names[0]: "1"}


async def test_who_leaves_waits_for_nothing_and_has_no_turn(board):
    """As if it had never come."""
    first, second = board(), board()
    await first.begin(come=["a"])
    first.board.leave()
    look = await second.begin()

    assert look.turn
    assert look.others == frozenset()


async def test_saying_it_twice_does_no_harm(board):
    """Nobody knows how far a call went that was cancelled."""
    first, second = board(), board()
    for _ in range(2):
        await second.look(come=["a", "b"], gone=["c"])
    look = await first.begin()

    assert look.others == {"a", "b"}


# --- being told -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["postgres"], indirect=True)
async def test_a_database_tells_its_listeners_of_each_poll(path):
    """Those of the account, and no longer than they listen."""
    loop, told = asyncio.get_running_loop(), asyncio.Queue()
    ledgers = [ledger_at(checked_place(path), "https://api.example") for _ in range(2)]
    boards = {name: ledgers[0].board(name) for name in ("account", "other", "left")}
    for name, each in boards.items():
        each.listen(lambda name=name: loop.call_soon_threadsafe(told.put_nowait, name))
    boards["left"].stop_listening()
    await asyncio.wait_for(told.get(), 5)  # that it listens from now on
    await boards["account"].look(0, [], [])
    while not told.empty():
        told.get_nowait()
    for name in ("left", "account"):
        poller = Poller(ledgers[1].board(name))
        await poller.begin()
        await poller.publish()
    heard = await asyncio.wait_for(told.get(), 5)
    for ledger in ledgers:
        await ledger.aclose()

    assert heard == "account"
    assert told.empty()


@pytest.mark.parametrize("path", ["postgres"], indirect=True)
async def test_a_connection_that_was_lost_listens_again(path, board):
    """What may have been said meanwhile is for everybody to look up, and what comes later is told."""
    loop, told = asyncio.get_running_loop(), asyncio.Queue()
    poller = board()
    poller.board.listen(lambda: loop.call_soon_threadsafe(told.put_nowait, "news"))
    await asyncio.wait_for(told.get(), 5)
    postgres.execute(
        path,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    await poller.look()
    await asyncio.wait_for(told.get(), 5)
    await poller.begin()
    await poller.publish()

    assert await asyncio.wait_for(told.get(), 5) == "news"


# --- names of executors ---------------------------------------------------------------------------


@pytest.fixture
async def storage(path):
    """A ledger's storage."""
    ledger = ledger_at(checked_place(path), "https://api.example")
    await ledger.open()
    yield ledger.storage
    await ledger.aclose()


async def test_an_executor_lives_as_long_as_its_owner(storage, path):
    """Whom nobody has ever been is dead as well."""
    assert await storage.become("one")
    assert await storage.dead({"one", "never"}) == {"never"}
    run(path, "UPDATE executors SET owner = 987654")

    assert await storage.dead({"one"}) == {"one"}


async def test_the_name_of_the_dead_can_be_taken(storage, path):
    """And one's own taken again."""
    await storage.become("one")
    run(path, "UPDATE executors SET owner = 987654")
    assert await storage.become("one")
    assert await storage.become("one")

    assert await storage.dead({"one"}) == set()


async def test_a_name_that_is_given_up_is_free(storage, path):
    """But not by who doesn't have it."""
    await storage.become("one")
    run(path, "UPDATE executors SET owner = 987654")
    await storage.leave("one")
    assert run(path, "SELECT count(*) FROM executors") == [(1,)]
    await storage.become("one")
    await storage.leave("one")

    assert run(path, "SELECT count(*) FROM executors") == [(0,)]


BECOMES = """
import asyncio, sys
from qamera_async.ledger.places import checked_place, ledger_at
async def main():
    ledger = ledger_at(checked_place(sys.argv[1]), "https://api.example")
    print(await ledger.storage.become("one"), await ledger.storage.dead({"one"}))
    await ledger.aclose()
asyncio.run(main())
"""


async def test_the_name_of_a_process_that_lives_is_not_to_be_had(storage, path):
    """By another process."""
    await storage.become("one")
    other = await asyncio.create_subprocess_exec(
        sys.executable, "-c", BECOMES, path, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await other.communicate()

    assert said.decode().strip() == "False set()"
