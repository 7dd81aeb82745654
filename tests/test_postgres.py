"""P5 in PostgreSQL: a database that goes away and comes back neither doubles an order nor loses one."""

import asyncio
import contextlib
import json
import pickle
import subprocess
import sys
import threading
from collections import Counter
from datetime import UTC, datetime

import attrs
import postgres
import psycopg
import pytest

import qamera_async as q
from qamera_async._ratelimit.window import Priority
from qamera_async.ledger import LedgerFile, shared
from qamera_async.ledger.ledger import Ledger
from qamera_async.ledger.places import checked_place, ledger_at
from qamera_async.ledger.postgres import PostgresStorage, opening, schema, worker
from qamera_async.ledger.postgres.session import Session
from qamera_async.ledger.postgres.worker import Alone
from qamera_async.ledger.rows import LedgerState, Row
from qamera_async.sandbox import Sandbox

pytestmark = [pytest.mark.usefixtures("no_lost_exceptions"), pytest.mark.slow]

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WORD = "sw0rdf1sh"
CANARY = "sw0rdf1sh-c@nary"
BY_ITSELF = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
OTHERS = BY_ITSELF + "AND pid <> pg_backend_pid()"


@pytest.fixture
async def sandbox():
    async with Sandbox(job_seconds=0.05, quota=None) as sandbox:
        yield sandbox


@pytest.fixture
def path():
    """Where a ledger is to be: a database that has none yet."""
    return postgres.server().database()


@pytest.fixture
async def storage(path):
    storage = PostgresStorage.of(checked_place(path))
    await storage.open()
    yield storage
    await storage.aclose()


def apart(path):
    """Give another address of the same database: it gets a connection of its own, as another process does."""
    return f"{path}?application_name=apart"


def order(session, ref="sku-1", image="img_1", **options):
    return session.register(q.VideoRequest(image, ref=ref), **options)


def posts(sandbox):
    return sum(request.method == "POST" for request in sandbox.requests)


def states(path):
    return dict(postgres.execute(path, postgres.ROWS))


def row(ref="r", number=1):
    return Row(f"int_{number}", "http://127.0.0.1:1", q.VideoRequest("i", ref=ref))


def sending(row):
    return attrs.evolve(row, state=LedgerState.SENDING)


# --- a connection that is lost ------------------------------------------------------------------


async def test_what_was_not_committed_is_done_again_on_a_new_connection(storage, path):
    """Once, whatever was done of it before the connection was lost."""
    runs = []

    def operation(session):
        session.execute("INSERT INTO meta VALUES ('mine', 1)").rowcount  # noqa: B018 - sends it
        runs.append(session)
        if len(runs) == 1:
            postgres.execute(path, OTHERS)
        return session.execute("SELECT value FROM meta WHERE name = 'mine'").fetchone()

    assert await storage._worker.run("try", operation) == (1,)
    assert len(runs) == 2
    assert postgres.execute(path, "SELECT count(*) FROM qamera.meta WHERE name = 'mine'") == [(1,)]


@pytest.mark.parametrize("kept", [True, False])
async def test_a_commit_whose_answer_was_lost_is_looked_up(storage, path, monkeypatch, kept):
    """What is kept is not done again, what isn't is: never on a guess."""
    commit, runs, commits = Session.commit, [], []

    def cut(session):
        commits.append(session)
        if len(commits) == 1:
            if kept:
                commit(session)
            session._connection.close()
            raise psycopg.OperationalError("the connection was lost")
        commit(session)

    def operation(session):
        runs.append(session)
        session.execute("INSERT INTO records VALUES ('o', 'vid', ?)", (f"run {len(runs)}",))

    monkeypatch.setattr(Session, "commit", cut)
    await storage._worker.run("try", operation)

    assert len(runs) == (1 if kept else 2)
    assert postgres.execute(path, "SELECT intent FROM qamera.records") == [(f"run {len(runs)}",)]


async def test_a_commit_that_nobody_can_look_up_is_no_claim(storage, path, monkeypatch):
    """It fails, and stands in nobody's way when the database is back: the same ref can be claimed."""
    commit, enter = Session.commit, opening.entered

    def cut(session):
        commit(session)
        session._connection.close()
        raise psycopg.OperationalError("the connection was lost")

    def away(*_):
        raise q.LedgerUnavailableError("away")

    monkeypatch.setattr(worker, "_PATIENCE", 0.0)
    monkeypatch.setattr(worker, "entered", away)
    monkeypatch.setattr(Session, "commit", cut)
    with pytest.raises(q.LedgerUnavailableError):
        await storage.claim(row(), retry_failed=False)
    monkeypatch.setattr(worker, "entered", enter)
    monkeypatch.setattr(Session, "commit", commit)

    assert await storage.claim(row(number=2), retry_failed=False) is None
    assert postgres.execute(path, "SELECT id FROM qamera.intents") == [("int_2",)]


async def test_a_database_that_is_away_means_no_post(session, sandbox, monkeypatch):
    """What isn't surely kept isn't sent; what is back is worked with."""
    enter = opening.entered

    def away(*_):
        raise q.LedgerUnavailableError("away")

    async with session() as first:
        await order(first, "first")
        monkeypatch.setattr(worker, "_PATIENCE", 0.0)
        monkeypatch.setattr(worker, "entered", away)
        first._ledger.storage._worker._entered.session.close()
        with pytest.raises(q.LedgerUnavailableError):
            await order(first)
        sent = posts(sandbox)
        monkeypatch.setattr(worker, "entered", enter)

        assert (await order(first)).record_ids
    assert (sent, posts(sandbox)) == (1, 2)


@pytest.mark.parametrize("how", ["fast", "immediate"])
async def test_a_restart_of_the_database_neither_doubles_nor_loses(session, sandbox, path, how):
    """In the middle of a batch, which goes on."""
    server, number = postgres.server(), 60
    # A database that crashed takes as long as it takes on a busy machine.
    async with session(timeouts=q.Timeouts(job=60.0, reconcile=0.3)) as qamera:

        async def run():
            return await qamera.batch(
                [q.VideoRequest(f"img_{n}", ref=f"sku-{n}") for n in range(number)], max_in_flight=10
            )

        running = asyncio.ensure_future(run())
        while len(sandbox.orders) < number // 3:
            await asyncio.sleep(0.001)
        await asyncio.to_thread(server.stop, how)
        before = len(sandbox.orders)
        await asyncio.sleep(0.05)
        meanwhile = len(sandbox.orders) - before
        await asyncio.to_thread(server.start)
        result = await running
    images = [json.loads(request.body)["imageId"] for request in sandbox.requests if request.method == "POST"]

    assert [outcome.error for outcome in result.outcomes] == [None] * number
    assert Counter(Counter(images).values()) == {1: number}
    assert meanwhile == 0
    assert states(path) == {f"sku-{n}": "done" for n in range(number)}


async def test_the_intent_is_on_the_disk_whatever_the_database_is_set_to(storage, path):
    """Where commits are asynchronous by default, ours are not; who asks for more than that keeps it."""
    name = path.rpartition("/")[2]

    async def setting(value, address):
        postgres.execute(path, f"ALTER DATABASE {name} SET synchronous_commit = '{value}'")
        other = PostgresStorage.of(checked_place(address))
        found = await other._worker.run("look", lambda s: s.execute("SHOW synchronous_commit").fetchone())
        await other.aclose()
        return found

    assert await setting("off", apart(path)) == ("on",)
    assert await setting("remote_apply", apart(path)) == ("remote_apply",)


# --- who is alive -------------------------------------------------------------------------------


async def test_an_owner_lives_as_long_as_its_connection(storage, path):
    """And again from the moment it has come back."""
    await storage.claim(row(), retry_failed=False)
    other = PostgresStorage.of(checked_place(apart(path)))
    await other.open()
    busy = [(await other.find("int_1")).busy]
    storage._worker._entered.session.close()
    while (await other.find("int_1")).busy:
        await asyncio.sleep(0.005)
    await storage.of_record("o", "r")
    busy.append((await other.find("int_1")).busy)
    await other.aclose()

    assert busy == [True, True]


async def test_an_owner_that_is_idle_lives(path):
    """Also where the database ends connections that are."""
    postgres.execute(path, f"ALTER DATABASE {path.rpartition('/')[2]} SET idle_session_timeout = '20ms'")
    storage = PostgresStorage.of(checked_place(path))
    await storage.open()
    there = storage._worker._entered
    await asyncio.sleep(0.1)
    await storage.find("int_1")
    after = storage._worker._entered
    await storage.aclose()

    assert after is there


async def test_a_claim_that_was_taken_over_meanwhile_is_not_sent(storage, path):
    """Who comes back finds that its claim is another's."""
    ledger, other = Ledger(storage, row().origin), PostgresStorage.of(checked_place(apart(path)))
    intent = q.Intent("int_1", row().request, NOW)
    await ledger.claim(intent, retry_failed=False)
    storage._worker._entered.session.close()
    while await other.claim(row(number=2), retry_failed=False) is not None:
        await asyncio.sleep(0.005)
    with pytest.raises(q.LedgerUnavailableError, match="claim of the request is gone"):
        await ledger.sending(intent)
    await other.aclose()

    assert postgres.execute(path, "SELECT id, state FROM qamera.intents") == [("int_2", "claimed")]


async def test_what_a_lost_connection_left_on_the_servers_side_is_ended(storage, path):
    """The server may not know yet that it is lost; what it was about is decided before anything goes on."""
    there = storage._worker._entered
    storage._worker._entered = None
    await storage.claim(row(), retry_failed=False)
    alive = {pid for (pid,) in postgres.execute(path, "SELECT pid FROM pg_stat_activity")}
    there.session.close()

    assert there.backend not in alive
    assert (await storage.find("int_1")).busy


async def test_a_pool_of_connections_is_refused(storage):
    """Where each transaction may have another connection, nobody can tell that we live."""
    storage._worker._entered = attrs.evolve(storage._worker._entered, backend=1)
    with pytest.raises(q.LedgerUnavailableError, match="pool"):
        await storage.claim(row(), retry_failed=False)


async def test_a_ledger_that_was_removed_or_replaced_is_not_begun_anew(storage, path, monkeypatch):
    """What nobody will find again is no place for an intent."""
    postgres.execute(path, "DROP SCHEMA qamera CASCADE")
    with pytest.raises(q.LedgerUnavailableError, match="while it was in use"):
        await storage.claim(row(), retry_failed=False)
    other = PostgresStorage.of(checked_place(apart(path)))
    await other.open()
    monkeypatch.setattr(worker, "_PATIENCE", 0.0)
    storage._worker._entered.session.close()
    with pytest.raises(q.LedgerUnavailableError, match="replaced"):
        await storage.claim(row(), retry_failed=False)
    await other.aclose()


async def test_two_that_claim_one_ref_at_once_make_one_claim(storage, path):
    """The other one gets it, and sees who is at work."""
    other = PostgresStorage.of(checked_place(apart(path)))
    await other.open()
    found = []
    for n in range(20):
        found += await asyncio.gather(
            storage.claim(row(f"r{n}", 2 * n), retry_failed=False),
            other.claim(row(f"r{n}", 2 * n + 1), retry_failed=False),
        )
    await other.aclose()

    assert sum(one is None for one in found) == 20
    assert all(one.busy for one in found if one is not None)


async def test_a_claim_waits_for_one_that_is_not_committed_yet(storage, path):
    """Whose ref it will be is decided by then."""
    other = PostgresStorage.of(checked_place(apart(path)))
    await other.open()
    asked, committing = threading.Event(), threading.Event()

    def slowly(session):
        other._intents.insert(session, attrs.evolve(row("r", 1), owner=other._owner))
        other._at_work.add("int_1")
        session.send()
        asked.set()
        committing.wait(10)

    first = other._worker.run("claim slowly", slowly)
    await asyncio.to_thread(asked.wait, 10)
    second = asyncio.ensure_future(storage.claim(row("r", 2), retry_failed=False))
    await until_somebody_waits(path, second)
    committing.set()
    await first
    found = await second
    await other.aclose()

    assert (found.row.id, found.busy) == ("int_1", True)


async def until_somebody_waits(path, task):
    while not task.done() and not postgres.execute(path, "SELECT 1 FROM pg_locks WHERE NOT granted"):
        await asyncio.sleep(0.005)


async def test_a_row_that_another_is_changing_is_waited_for(storage, path):
    """What it may become is decided by what it is by then."""
    other = PostgresStorage.of(checked_place(apart(path)))
    await storage.claim(row(), retry_failed=False)
    changed, committing = threading.Event(), threading.Event()

    def slowly(session):
        other._intents.update(session, attrs.evolve(row(), state=LedgerState.SUBMITTED))
        session.send()
        changed.set()
        committing.wait(10)

    first = other._worker.run("change slowly", slowly)
    await asyncio.to_thread(changed.wait, 10)
    second = asyncio.ensure_future(storage.change("int_1", {LedgerState.CLAIMED}, sending))
    await until_somebody_waits(path, second)
    committing.set()
    await first
    found = await second
    await other.aclose()

    assert found is None
    assert states(path) == {"r": "submitted"}


async def test_two_that_wait_for_each_other_are_both_done(path):
    """What is done together has several rows in it, in whichever order: neither fails for that."""
    postgres.execute(path, f"ALTER DATABASE {path.rpartition('/')[2]} SET deadlock_timeout = '20ms'")
    both = [PostgresStorage.of(checked_place(address)) for address in (path, apart(path))]
    refs, busy, begun = ["a", "b"], threading.Event(), threading.Barrier(2)
    for number, ref in enumerate(refs):
        await both[0].claim(row(ref, number), retry_failed=False)
    await both[1].open()

    def met(session):
        session.send()
        with contextlib.suppress(threading.BrokenBarrierError):
            begun.wait(0.5)

    changing = []
    for storage, numbers in zip(both, ((0, 1), (1, 0)), strict=True):
        storage._worker.post("wait", Alone(lambda _: busy.wait(10)))
        for what in (numbers[0], None, numbers[1]):
            if what is None:
                changing.append(storage._worker.run("meet", met))
            else:
                again = lambda row: attrs.evolve(row, reason=f"{row.reason}+")  # noqa: E731
                changing.append(storage.change(f"int_{what}", set(LedgerState), again))
    busy.set()
    await asyncio.gather(*changing)
    found = [(await both[0].find(f"int_{n}")).row.reason for n in range(2)]
    for storage in both:
        await storage.aclose()

    assert found == ["++", "++"]


async def test_two_that_adopt_one_record_at_once_are_told_apart(storage, path):
    """A record is one request's."""
    other = PostgresStorage.of(checked_place(apart(path)))
    await other.open()
    settled = []
    for n in range(10):
        for number in (2 * n, 2 * n + 1):
            await storage.claim(row(f"r{number}", number), retry_failed=False)
            ambiguous = lambda row: attrs.evolve(row, state=LedgerState.AMBIGUOUS)  # noqa: E731
            await storage.change(f"int_{number}", {LedgerState.CLAIMED}, ambiguous)
        settled += await asyncio.gather(
            storage.adopt(f"int_{2 * n}", (f"vid_{n}",)), other.adopt(f"int_{2 * n + 1}", (f"vid_{n}",))
        )
    await other.aclose()

    assert Counter(type(one).__name__ for one in settled) == {"Row": 10, "set": 10}


# --- the quota ----------------------------------------------------------------------------------


async def test_a_race_for_slots_gives_no_more_than_there_are(storage, path):
    """Who waited for another's taking counts what that took."""
    other = PostgresStorage.of(checked_place(apart(path)))
    logs = [one.slots("account", 60.0) for one in (storage, other)]
    taken = await asyncio.gather(
        *(log.take(Priority.SUBMISSION, 10, 60.0, 0.0) for _ in range(20) for log in logs)
    )
    await other.aclose()

    assert sum(ticket is not None for ticket, _ in taken) == 10


async def test_a_slot_that_is_not_committed_yet_is_waited_for(storage, path):
    """The last one is one process's, whichever comes first."""
    other = PostgresStorage.of(checked_place(apart(path)))
    log = storage.slots("account", 60.0)
    taken, committing = threading.Event(), threading.Event()

    def slowly(session):
        session.execute("SELECT pg_advisory_xact_lock(?)", (log._lock,))
        session.execute("INSERT INTO slots VALUES ('theirs', 'account', 'p', 'poll', false, 1e12, 0)")
        session.send()
        taken.set()
        committing.wait(10)

    first = other._worker.run("take slowly", slowly)
    await asyncio.to_thread(taken.wait, 10)
    second = asyncio.ensure_future(log.take(Priority.SUBMISSION, 1, 60.0, 0.0))
    await until_somebody_waits(path, second)
    committing.set()
    await first
    ticket, elsewhere = await second
    await other.aclose()

    assert ticket is None
    assert elsewhere.polls_in_flight == 1


@pytest.mark.parametrize("limit", [1, 2])
async def test_a_slot_whose_answer_was_lost_is_taken_once(storage, path, monkeypatch, limit):
    """The same ticket again is the same slot, also where it was the last one."""
    send, sent = Session.send, []

    def cut(session):
        send(session)
        sent.append(session)
        if len(sent) == 1:
            session._connection.close()
            raise psycopg.OperationalError("the connection was lost")

    monkeypatch.setattr(Session, "send", cut)
    ticket, _ = await storage.slots("account", 60.0).take(Priority.SUBMISSION, limit, 60.0, 0.0)

    assert ticket is not None
    assert postgres.execute(path, "SELECT id FROM qamera.slots") == [(ticket,)]


async def test_the_database_knows_the_key_by_a_hash_only(session, sandbox, path):
    """P6: no table holds it, nor its secret half."""
    async with session() as qamera:
        await order(qamera)
    content = "".join(str(postgres.execute(path, f"TABLE qamera.{table}")) for table in schema.TABLES)

    assert "sku-1" in content
    assert sandbox.api_key not in content
    assert sandbox.api_key.partition(".")[2] not in content


# --- addresses and databases that are no good ----------------------------------------------------


def secret_role():
    """Make a role that needs a password; give its database without the ledger."""
    server = postgres.server()
    address = server.database()
    name = address.rpartition("/")[2]
    server.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{CANARY}'")
    rules = server.folder / "pg_hba.conf"
    line = f"host all {name} 127.0.0.1/32 scram-sha-256\n"
    if line not in (known := rules.read_text()):
        rules.write_text(line + known)
        server.reload()
    return name


def shown_of(error):
    """Give all that a log or a report could show of an error."""
    chain = [error]
    while (error := error.__cause__ or error.__context__) is not None:
        chain.append(error)
    return " ".join(f"{e!s} {e!r} {e.args} {vars(e)} {pickle.dumps(e)}" for e in chain)


@pytest.mark.parametrize(
    ("user", "password", "database", "port", "text"),
    [
        (None, "wrong-" + CANARY, None, None, "password authentication failed"),
        (None, CANARY, "nowhere", None, 'database "nowhere" does not exist'),
        (None, CANARY, None, 1, "refused"),
        (WORD, WORD, None, None, "would show the password"),
    ],
)
async def test_a_wrong_address_is_told_without_its_password(
    sandbox, quick, user, password, database, port, text
):
    """When the session opens, by a typed error; its path is the address without user and password."""
    name = secret_role()
    quoted = password.replace("@", "%40")
    where = f"127.0.0.1:{port or postgres.server().port}/{database or name}"
    session = sandbox.session(**quick, ledger=f"postgresql://{user or name}:{quoted}@{where}")
    with pytest.raises(q.LedgerUnavailableError, match=text) as refused:
        await session.__aenter__()

    assert WORD not in shown_of(refused.value)
    assert refused.value.path == f"postgresql://{where}"
    assert posts(sandbox) == 0


@pytest.mark.parametrize(
    "address",
    [
        f"mysql://u:{CANARY}@h/db",
        f"postgresql+psycopg://u:{CANARY}@h/db",
        f"postgresql://u:{CANARY} x@h/db",
        f"postgresql://u:{CANARY}@h/db",
        f"postgresql://u:{WORD}/{WORD}@h/db",
        f"postgresql://u:{WORD}/db",
        f"postgresql://u:{CANARY}@[::1/db",
        f"postgresql://u:{CANARY}@h/db?nonsense=1",
    ],
)
def test_what_is_no_address_is_refused_when_the_session_is_built(address):
    """By an error that shows nothing of it."""
    for make in (lambda: q.QameraSession("mk_live_a.b", ledger=address), lambda: LedgerFile(address)):
        with pytest.raises(q.ConfigurationError, match="allowed is") as refused:
            make()

        assert WORD not in shown_of(refused.value)


def test_a_session_that_could_not_be_built_holds_nothing(tmp_path):
    """Neither the quota of its key nor its ledger: the next session has both for itself."""
    key, path = "mk_live_built.not", tmp_path / "jobs.db"
    with pytest.raises(q.ConfigurationError):
        q.QameraSession(key, ledger="postgresql://h/db?nonsense=1")
    held = q.QameraSession(key, rate_limiter=q.RateLimiter(5, 1.0))
    with pytest.raises(q.ConfigurationError, match="other numbers"):
        q.QameraSession(key, rate_limiter=q.RateLimiter(7, 1.0), ledger=path)

    assert held.rate_limiter.limit == 5
    assert str(path) not in [name for _, _, name in shared._storages]


async def test_a_role_without_rights_is_told_what_to_run(sandbox, quick):
    """At each step that is missing; with the statement run, it goes on."""
    name = secret_role()
    mine = postgres.server().address(name, name, CANARY.replace("@", "%40"))
    owners = postgres.server().address(name)
    told = []
    while True:
        session = sandbox.session(**quick, ledger=mine)
        try:
            async with session:
                job = await order(session)
            break
        except q.LedgerUnavailableError as error:
            told.append(error.message.partition(" run: ")[2])
            postgres.execute(owners, told[-1])
    postgres.execute(owners, "DROP SCHEMA qamera CASCADE", "CREATE SCHEMA qamera")
    with pytest.raises(q.LedgerUnavailableError, match=f"GRANT USAGE, CREATE ON SCHEMA qamera TO {name};"):
        await sandbox.session(**quick, ledger=mine).__aenter__()
    postgres.execute(owners, f"GRANT USAGE ON SCHEMA qamera TO {name}")
    with pytest.raises(q.LedgerUnavailableError, match=f"GRANT USAGE, CREATE ON SCHEMA qamera TO {name};"):
        await sandbox.session(**quick, ledger=mine).__aenter__()
    async with sandbox.session(**quick, ledger=owners):
        pass
    with pytest.raises(q.LedgerUnavailableError, match="GRANT SELECT, INSERT, UPDATE, DELETE"):
        await sandbox.session(**quick, ledger=mine).__aenter__()

    assert told == [f"CREATE SCHEMA qamera AUTHORIZATION {name};"]
    assert job.record_ids


async def refused(address, error, match):
    storage = PostgresStorage.of(checked_place(address))
    try:
        with pytest.raises(error, match=match) as found:
            await storage.open()
    finally:
        await storage.aclose()
    return found.value


async def test_a_newer_ledger_is_refused_and_left_as_it_is(path):
    """The numbers tell which version of this package is wanted."""
    await made(path)
    postgres.execute(path, "UPDATE qamera.meta SET value = 99 WHERE name = 'version'")
    error = await refused(path, q.LedgerVersionError, "version 99")

    assert (error.found, error.supported) == (99, len(schema.MIGRATIONS))
    assert postgres.execute(path, "SELECT id FROM qamera.intents") == [("int_1",)]
    assert postgres.execute(path, "SELECT count(*) FROM qamera.owners") == [(0,)]


async def made(path):
    storage = PostgresStorage.of(checked_place(path))
    await storage.claim(row(), retry_failed=False)
    await storage.aclose()


async def test_an_older_ledger_is_brought_up_to_date_or_left_as_it_is(path, monkeypatch):
    """A step that fails leaves the old version whole; one that passes keeps every row."""
    await made(path)

    def step(session):
        session.execute("ALTER TABLE intents ADD COLUMN note TEXT")

    def fails(session):
        step(session)
        session.send()
        session.execute("SELECT 1 / 0").fetchall()

    columns = "SELECT count(*) FROM information_schema.columns WHERE table_name = 'intents'"
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, fails))
    await refused(path, q.LedgerError, "division")
    before = postgres.execute(path, columns)
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS[:-1], step))
    await made(path)

    assert [*before, *postgres.execute(path, columns)] == [(9,), (10,)]
    assert postgres.execute(path, "SELECT value FROM qamera.meta WHERE name = 'version'") == [
        (len(schema.MIGRATIONS),)
    ]
    assert postgres.execute(path, "SELECT id, note FROM qamera.intents") == [("int_1", None)]


@pytest.mark.parametrize(
    "mine", ["TABLE qamera.owners (a INT)", "TABLE qamera.meta (a INT)", "VIEW qamera.meta AS SELECT 1 AS a"]
)
async def test_tables_of_somebody_else_are_left_alone(path, mine):
    """A schema of our name that holds something else is no ledger."""
    postgres.execute(path, "CREATE SCHEMA qamera", f"CREATE {mine}")
    await refused(path, q.LedgerCorruptError, "no ledger of this package")

    assert (
        len(postgres.execute(path, "SELECT 1 FROM pg_class WHERE relnamespace = 'qamera'::regnamespace")) == 1
    )


async def test_a_ledger_that_lacks_a_row_of_its_own_is_damaged(path):
    """Nobody could tell whether it is the same one later on."""
    await made(path)
    postgres.execute(path, "DELETE FROM qamera.meta WHERE name = 'ledger'")
    await refused(path, q.LedgerCorruptError, "missing")


@pytest.mark.parametrize("asked", ["open", "exists"])
async def test_a_database_that_fails_while_it_is_entered_is_told(path, monkeypatch, asked):
    """By a typed error, whatever it is that fails."""

    def fails(*_):
        raise psycopg.OperationalError("out of everything")

    monkeypatch.setattr(opening, "has_tables", fails)
    if asked == "open":
        await refused(path, q.LedgerUnavailableError, "out of everything")
    else:
        with pytest.raises(q.LedgerUnavailableError, match="out of everything"):
            await LedgerFile(path).exists()
    monkeypatch.setattr(opening, "_SETTINGS", "SELECT 1 / 0")
    await refused(path, q.LedgerUnavailableError, "division")


async def test_a_lock_that_nobody_gives_back_is_told(storage, path, monkeypatch):
    """A server that can't end what a lost connection left is of no use."""
    monkeypatch.setattr(opening, "_PATIENCE", -1.0)
    monkeypatch.setattr(worker, "_PATIENCE", -1.0)
    there, storage._worker._lost_at = storage._worker._entered, 0.0
    storage._worker._entered = None
    with pytest.raises(q.LedgerUnavailableError, match="keeps the lock"):
        await storage.claim(row(), retry_failed=False)
    there.session.close()


async def test_a_database_that_syncs_nothing_is_warned_of(path, caplog):
    """A crash of its machine would lose what was said to be kept."""
    postgres.execute(path, "ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")
    try:
        while postgres.execute(path, "SHOW fsync") == [("on",)]:
            await asyncio.sleep(0.01)
        await made(path)
    finally:
        postgres.execute(path, "ALTER SYSTEM RESET fsync", "SELECT pg_reload_conf()")
        while postgres.execute(path, "SHOW fsync") == [("off",)]:
            await asyncio.sleep(0.01)

    assert "fsync off" in caplog.text


async def test_what_nobody_expected_is_ours_and_in_the_log(storage, caplog):
    """A mistake in an operation ends neither the thread nor in silence."""
    with pytest.raises(q.LedgerError, match="ZeroDivisionError"):
        await storage._worker.run("count", lambda _: 1 // 0)

    assert await storage.find("int_1") is None
    assert "ZeroDivisionError" in caplog.text


async def test_a_row_that_is_damaged_is_found(storage, path):
    """What a row says is not believed where its digest differs."""
    await storage.claim(row(), retry_failed=False)
    postgres.execute(path, "UPDATE qamera.intents SET state = 'done'")
    with pytest.raises(q.LedgerCorruptError, match="digest"):
        await storage.claim(row(number=2), retry_failed=False)


async def test_a_database_that_is_not_in_utf8_is_refused(path):
    """It could not hold each ref."""
    name = path.rpartition("/")[2] + "_ascii"
    postgres.execute(path, f"CREATE DATABASE {name} ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0")
    await refused(postgres.server().address(name), q.LedgerUnavailableError, "SQL_ASCII")


@pytest.mark.parametrize("ref", ["a\\0b", "\\\\0\\", "%s ?", "näh; '\"", ";"])
async def test_any_ref_comes_back_as_it_was(storage, ref):
    await storage.claim(row(ref), retry_failed=False)
    found = await storage.claim(row(ref, 2), retry_failed=False)

    assert found.row.request.ref == ref


async def test_what_was_downloaded_is_kept_by_its_whole_path(session, path, tmp_path, monkeypatch):
    """A database has no folder that a path could be relative to."""
    monkeypatch.chdir(tmp_path)
    async with session() as qamera:
        await qamera.batch([q.VideoRequest("img_1", ref="sku-1")], download_to="clips")
    monkeypatch.chdir("/")
    async with LedgerFile(path) as ledger:
        (entry,) = [entry async for entry in ledger.entries()]

    whole = tmp_path / "clips" / "sku-1.mp4"
    assert entry.files == {whole: whole.stat().st_size}


async def test_looking_makes_no_ledger(path):
    """A name that was mistyped leaves nothing behind."""
    assert not await LedgerFile(path).exists()
    with pytest.raises(q.LedgerError, match="no such ledger"):
        async with LedgerFile(path):
            pass

    assert postgres.execute(path, "SELECT 1 FROM pg_namespace WHERE nspname = 'qamera'") == []
    assert "qamera-ledger" not in {thread.name for thread in threading.enumerate()}


async def test_a_look_at_a_long_ledger_reads_the_rows_in_play_only(storage, path):
    """The index of those is used, however many are finished."""
    states = [state.value for state in (LedgerState.ADOPTED, LedgerState.SENDING, LedgerState.SUBMITTED)]
    postgres.execute(
        path,
        "INSERT INTO qamera.intents (id, origin, ref, state, owner, current, body, digest) "
        "SELECT 'old_' || n, 'o', NULL, 'done', 7, 1, '', 0 FROM generate_series(1, 5000) AS n",
    )
    sent, send = [], Session.send

    def watched(session):
        sent.extend(text for text, _ in session._waiting)
        send(session)

    Session.send, before = watched, send
    try:
        assert [found async for found in storage.rows("o", {LedgerState(state) for state in states})] == []
    finally:
        Session.send = before
    (query,) = [text for text in sent if "ORDER BY number" in text]
    plan = postgres.execute(path, "SET search_path = qamera", f"EXPLAIN {query}")

    assert "open_states" in str(plan)


# --- what it takes ------------------------------------------------------------------------------


def run(code):
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return ran.stdout.strip(), ran.stderr


def test_psycopg_is_imported_for_an_address_only(tmp_path):
    """Who keeps a file, or nothing, waits for no import of a database that it doesn't use."""
    out, err = run(
        "import sys, qamera_async as q\n"
        f"q.QameraSession('mk_live_a.bbbb', ledger={str(tmp_path / 'jobs.db')!r})\n"
        "before = 'psycopg' in sys.modules\n"
        "q.QameraSession('mk_live_a.bbbb', ledger='postgresql://h/db')\n"
        "print(before, 'psycopg' in sys.modules)\n"
    )

    assert out == "False True", err


def test_without_psycopg_the_error_says_what_to_install():
    """When the session is built, not at the first order."""
    out, err = run(
        "import sys; sys.modules['psycopg'] = None\n"
        "import qamera_async as q\n"
        "try:\n"
        "    q.QameraSession('mk_live_a.bbbb', ledger='postgresql://h/db')\n"
        "except q.ConfigurationError as error:\n"
        "    print(error)\n"
    )

    assert "pip install 'qamera-async[postgres]'" in out, err


async def test_a_session_shows_no_password(path):
    """Neither what it is called nor what holds its address."""
    address = checked_place(path.replace("postgres@", f"postgres:{CANARY.replace('@', '%40')}@"))
    ledger = ledger_at(address, "http://h")
    shown = f"{address!r} {ledger.storage!r} {ledger.storage.path} {ledger.storage._worker._place!r}"
    ledger.release()

    assert "nary" not in shown
    assert f"/{path.rpartition('/')[2]}" in shown
