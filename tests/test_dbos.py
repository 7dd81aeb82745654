"""Durable pipelines: what is asked for is done once, whichever process dies on the way."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import postgres
import pytest
from canary import KEY
from dbos import DBOS, DBOSConfig

import qamera_async as q
from qamera_async.dbos import Pipeline
from qamera_async.ledger.sqlite.subsec import Connection
from qamera_async.sandbox import Sandbox

pytestmark = pytest.mark.slow

NUMBER = 200
PROGRAM = """
import asyncio, json, logging, sys
from qamera_async import QameraSession, PollPolicy, RateLimiter, Timeouts, VideoRequest
from qamera_async.dbos import Pipeline
from qamera_async.ledger.sqlite.subsec import Connection
async def main():
    asked = json.loads(sys.argv[1])
    logging.basicConfig(level="WARNING", stream=sys.stdout, format="%(message)s", force=True)
    session = QameraSession(
        asked["key"], base_url=asked["url"], ledger=asked["ledger"], rate_limiter=RateLimiter(10**6, 0.001),
        polling=PollPolicy(interval=0.2, stale_after=0.5), timeouts=Timeouts(reconcile=0.5, close=1.0),
    )
    async with session, Pipeline(
        session, executor_id=asked["name"], download_to=asked["clips"], sweep_every=1.0, concurrency=40
    ) as pipeline:
        print("ready", flush=True)
        if not asked["number"]:
            await asyncio.Event().wait()
        requests = [VideoRequest(f"img_{n}", ref=f"sku-{n}") for n in range(asked["number"])]
        for result in await pipeline.run_batch(requests):
            print(json.dumps([result.ref, result.kind, result.path and str(result.path)]), flush=True)
        print("end", flush=True)
asyncio.run(main())
"""


class Worker:
    """A process of the pipeline, and what it has said."""

    async def start(self, **asked):
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROGRAM, json.dumps(asked),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        self.lines, self.adopted_at = [], None
        self._reading = asyncio.create_task(self._read())
        while "ready" not in self.lines:
            assert not self._reading.done(), self.lines
            await asyncio.sleep(0.02)
        return self

    async def _read(self):
        async for line in self.process.stdout:
            self.lines.append(line.decode().strip())
            if "adopted" in self.lines[-1]:
                self.adopted_at = self.adopted_at or time.monotonic()

    async def results(self):
        """Wait for the end of its batch."""
        async with asyncio.timeout(120):
            while "end" not in self.lines:
                assert not self._reading.done(), self.lines
                await asyncio.sleep(0.05)
        return [json.loads(line) for line in self.lines if line.startswith("[")]

    async def kill(self):
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)
        await asyncio.gather(self.process.wait(), self._reading)


@pytest.fixture
async def sandbox():
    async with Sandbox(job_seconds=0.5, quota=None, credits=10**9, api_key=KEY) as sandbox:
        sandbox.trouble("slow", times=10 * NUMBER, seconds=0.02)
        yield sandbox


@pytest.fixture
async def worker(sandbox, tmp_path):
    """Give a function that starts a process of the pipeline; all of them end with the test."""
    workers = []

    async def started(ledger, name, number=0):
        asked = {"url": sandbox.url, "key": KEY, "ledger": ledger, "clips": str(tmp_path / "clips")}
        workers.append(await Worker().start(name=name, number=number, **asked))
        return workers[-1]

    yield started
    for each in workers:
        await each.kill()


def check(sandbox, results, clips):
    """Each ref ordered once at most, and each has a clip but those that are reported ambiguous."""
    ordered = Counter(order.body["imageId"] for order in sandbox.orders)
    kinds = Counter(kind for _, kind, _ in results)
    assert max(ordered.values()) == 1
    assert [ref for ref, _, _ in results] == [f"sku-{n}" for n in range(NUMBER)]
    assert set(kinds) <= {None, "AmbiguousSubmissionError"}
    assert kinds["AmbiguousSubmissionError"] <= 40  # no more than can be on the wire at a time
    assert len(ordered) >= NUMBER - kinds["AmbiguousSubmissionError"]
    assert {path for _, _, path in results if path} == {str(path) for path in clips.glob("*.mp4")}
    assert sum(kind is None for _, kind, _ in results) == sum(path is not None for _, _, path in results)


async def reached(sandbox, number):
    async with asyncio.timeout(60):
        while len(sandbox.orders) < number:
            await asyncio.sleep(0.01)


async def test_a_worker_of_three_is_killed_and_replaced_by_a_new_one(sandbox, worker, tmp_path):
    """Its work is adopted by those that live, within 30 s, and nothing is ordered twice."""
    ledger = postgres.server().database()
    first = await worker(ledger, "first", NUMBER)
    second, third = await worker(ledger, "second"), await worker(ledger, "third")
    await reached(sandbox, NUMBER // 3)
    await second.kill()
    killed = time.monotonic()
    fourth = await worker(ledger, "fourth")
    results = await first.results()
    adopted = [each.adopted_at for each in (first, third, fourth) if each.adopted_at is not None]

    check(sandbox, results, tmp_path / "clips")
    assert min(adopted) - killed < 30.0
    taken = [line for each in (first, third, fourth) for line in each.lines if line.startswith("adopted")]
    assert all("of the executor second," in line for line in taken)


async def test_one_process_is_killed_and_started_again(sandbox, worker, tmp_path):
    """On SQLite, without a server: the same program once more goes on with it."""
    ledger = str(tmp_path / "jobs.db")
    first = await worker(ledger, "only", NUMBER)
    await reached(sandbox, NUMBER // 3)
    await first.kill()
    results = await (await worker(ledger, "only", NUMBER)).results()

    check(sandbox, results, tmp_path / "clips")


# --- one process ----------------------------------------------------------------------------------


@pytest.fixture
async def quick():
    """A sandbox that makes a video at once."""
    async with Sandbox(job_seconds=0.05, quota=None, credits=10**6, api_key=KEY) as sandbox:
        yield sandbox


@pytest.fixture
def session(quick, path):
    """Give a function that makes a session with the ledger."""
    polling, timeouts = q.PollPolicy(interval=0.05), q.Timeouts(reconcile=0.2, close=1.0)
    retry = q.RetryPolicy(attempts=2, base=0.01, max_delay=0.05)
    return lambda **options: quick.session(
        **{"ledger": path, "polling": polling, "timeouts": timeouts, "retry": retry} | options
    )


def request(number=1, image="img"):
    return q.VideoRequest(f"{image}_{number}", ref=f"sku-{number}")


async def test_a_request_is_ordered_awaited_and_fetched(quick, session, tmp_path):
    """The result has all of it; asking again, also in another run of the program, costs nothing."""
    for _ in range(2):
        async with session() as qamera, Pipeline(qamera, download_to=tmp_path / "clips") as pipeline:
            results = [await pipeline.run(request()) for _ in range(2)]

    clip = tmp_path / "clips" / "sku-1.mp4"
    assert clip.stat().st_size > 0
    assert (results[0].ok, results[0].ref, results[0].path) == (True, "sku-1", clip)
    assert results[0].record_ids == quick.orders[0].record_ids
    assert results[0].video_url.startswith(quick.cdn_url)
    assert results[0] == results[1]
    assert len(quick.orders) == 1


async def test_a_batch_has_its_results_in_its_order(quick, session):
    """Without a folder nothing is fetched; what was done before is not done again."""
    async with session() as qamera, Pipeline(qamera) as pipeline:
        await pipeline.run(request(3))
        results = await pipeline.run_batch(request(n) for n in (5, 3, 4))

    assert [result.ref for result in results] == ["sku-5", "sku-3", "sku-4"]
    assert all(result.ok and result.path is None for result in results)
    assert len(quick.orders) == 3


async def test_any_ref_is_found_again(quick, session):
    """One that PostgreSQL can't keep as it is, too."""
    refs = ["sku\\0one", "sku\\0two"]
    asked = [q.VideoRequest("img_1", ref=ref) for ref in refs]
    async with session(ledger=postgres.server().database()) as qamera, Pipeline(qamera) as pipeline:
        first = await pipeline.run_batch(asked)
        again = await pipeline.run_batch(asked)

    assert [result.ref for result in first if result.ok] == refs
    assert again == first
    assert len(quick.orders) == len(refs)


async def test_what_fails_is_a_result_and_can_be_asked_for_again(quick, session):
    """A failed job is not ordered again by itself; one that was refused is."""
    quick.trouble("fail_job")
    quick.trouble("error", status=402)
    async with session() as qamera, Pipeline(qamera) as pipeline:
        refused = await pipeline.run(request(1))
        failed = await pipeline.run(request(2))
        again = await pipeline.run_batch([request(1), request(2)])

    assert (refused.ok, refused.kind) == (False, "InsufficientCreditsError")
    assert (failed.kind, len(failed.record_ids)) == ("JobFailedError", 1)
    assert [result.kind for result in again] == [None, "JobFailedError"]
    assert len(quick.orders) == 2


async def test_what_is_ambiguous_stays_so_until_somebody_says_what_it_is(quick, session):
    """Then asking again goes on with it."""
    quick.trouble("reset_after", times=2)
    async with session() as qamera, Pipeline(qamera) as pipeline:
        kinds = [(await pipeline.run(request(n))).kind for n in (1, 2, 1)]
        one, other = sorted(await qamera.ambiguous(), key=lambda intent: intent.request.ref)
        await qamera.adopt(one, *quick.orders[0].record_ids)
        await qamera.abandon(other)
        results = await pipeline.run_batch([request(1), request(2)])

    assert kinds == ["AmbiguousSubmissionError"] * 3
    assert [result.ok for result in results] == [True, True]
    assert results[0].record_ids == quick.orders[0].record_ids
    assert len(quick.orders) == 3


async def test_another_request_under_a_ref_is_refused(quick, session):
    """As by the ledger anywhere else."""
    async with session() as qamera, Pipeline(qamera) as pipeline:
        await pipeline.run(request(1))
        result = await pipeline.run(request(1, "other"))

    assert result.kind == "RefConflictError"
    assert len(quick.orders) == 1


async def test_a_network_that_is_away_is_waited_for(quick, session, monkeypatch):
    """What is provably unsent is no result; what can't pass by itself is one."""
    away = [q.ConnectionFailedError("refused"), q.LedgerUnavailableError("The disk is full.")]
    async with session() as qamera, Pipeline(qamera) as pipeline:
        register = qamera.register

        async def registers(asked):
            if away:
                raise away.pop(0)
            return await register(asked)

        monkeypatch.setattr(qamera, "register", registers)
        result = await pipeline.run(request())
        monkeypatch.setattr(qamera, "register", refuses)
        other = await pipeline.run(request(2))

    assert result.ok
    assert other.kind == "ConnectionFailedError"
    assert len(quick.orders) == 1


async def refuses(_):
    raise q.ConnectionFailedError("the certificate", permanent=True)


async def test_a_receipt_that_could_not_be_kept_is_not_lost(quick, session, monkeypatch):
    """The step has it, and nothing is ordered a second time."""
    async with session() as qamera, Pipeline(qamera) as pipeline:
        register, lost = qamera.register, []

        async def registers(asked):
            job = await register(asked)
            if not lost:
                lost.append(job)
                raise q.LedgerUnavailableError("The disk is full.", receipt=job.receipt)
            return job

        monkeypatch.setattr(qamera, "register", registers)
        result = await pipeline.run(request())

    assert lost
    assert result.record_ids == quick.orders[0].record_ids
    assert len(quick.orders) == 1


async def test_what_was_under_way_at_the_end_goes_on_with_the_next_start(quick, session):
    """Leaving it is no result: the work stays, for whoever comes next under that name."""
    quick.trouble("late", seconds=0.3)
    async with session() as qamera:
        async with Pipeline(qamera) as pipeline:
            asking = asyncio.ensure_future(pipeline.run(request()))
            while not (quick.orders and pipeline._running.tasks):
                await asyncio.sleep(0.01)
            asking.cancel()
            steps = set(pipeline._running.tasks)
        threads = await asyncio.to_thread(lambda: "they work as before")
    async with session() as qamera, Pipeline(qamera) as pipeline:
        result = await pipeline.run(request())

    assert threads
    assert steps
    assert all(step.done() for step in steps)
    assert result.ok
    assert len(quick.orders) == 1


@pytest.mark.parametrize(
    ("requests", "reason"), [([q.VideoRequest("img_1")], "ref"), ([request(1), request(1)], "two requests")]
)
async def test_a_request_that_cannot_be_found_again_is_refused(quick, session, requests, reason):
    """Before anything of its batch is ordered."""
    async with session() as qamera, Pipeline(qamera) as pipeline:
        with pytest.raises(q.InvalidRequestError, match=reason):
            await pipeline.run_batch([request(5), *requests])

    assert quick.requests == []


@pytest.mark.parametrize(
    "options",
    [{"executor_id": " "}, {"version": ""}, {"concurrency": 0}, {"concurrency": 1.5}, {"sweep_every": 0}],
)
async def test_a_bad_setting_fails_where_it_is_made(session, options):
    """By its name."""
    async with session() as qamera:
        with pytest.raises(q.ConfigurationError, match=next(iter(options))):
            Pipeline(qamera, **options)


async def test_a_session_without_a_ledger_is_refused(session):
    """Nothing would keep a step that is run again from ordering again."""
    async with session(ledger=None) as qamera:
        with pytest.raises(q.ConfigurationError, match="ledger"):
            Pipeline(qamera)


async def test_a_name_that_another_process_has_is_refused(worker, session, path, monkeypatch):
    """Neither could tell its own work from that of the other."""
    monkeypatch.setattr("qamera_async.dbos.executor._PATIENCE", 0.2)
    await worker(str(path), "one")
    async with session() as qamera:
        with pytest.raises(q.ConfigurationError, match="executor_id"):
            async with Pipeline(qamera, executor_id="one"):
                pass
        async with Pipeline(qamera, executor_id="other") as pipeline:
            result = await pipeline.run(request())

    assert result.ok


async def test_who_was_taken_for_dead_has_its_name_again(session):
    """Whoever adopts work takes the name away; one that lives has it back with its next look around."""
    async with session() as qamera, Pipeline(qamera, executor_id="frozen", sweep_every=0.01):
        storage = qamera._ledger.storage
        await storage.leave("frozen")
        taken = await storage.dead({"frozen"})
        async with asyncio.timeout(10):
            while await storage.dead({"frozen"}):
                await asyncio.sleep(0.01)

    assert taken


async def test_a_name_that_went_to_another_process_is_told(worker, session, path, caplog):
    """A twin was started while this one was frozen: the name stays with it, and the log says so."""
    async with session() as qamera, Pipeline(qamera, executor_id="one", sweep_every=3600.0) as pipeline:
        await qamera._ledger.storage.leave("one")
        await worker(str(path), "one")
        await pipeline._executor.adopt()
        has_it = await qamera._ledger.storage.become("one")

    assert not has_it
    assert "has the executor's name one" in caplog.text


async def test_a_process_has_one_pipeline(session):
    """DBOS allows for no more."""
    async with session() as qamera, Pipeline(qamera):
        with pytest.raises(q.ConfigurationError, match="one"):
            async with Pipeline(qamera, executor_id="other"):
                pass


async def test_a_dbos_that_is_there_already_is_left_alone(session, tmp_path):
    """It is the program's own, and goes on."""
    theirs = DBOSConfig(
        name="theirs",
        system_database_url=f"sqlite:///{tmp_path}/theirs",
        log_level="ERROR",
        db_engine_kwargs={"connect_args": {"factory": Connection}},
    )
    try:
        DBOS(config=theirs)
        DBOS.launch()
        async with session() as qamera:
            with pytest.raises(q.ConfigurationError, match="DBOS"):
                async with Pipeline(qamera):
                    pass
            found = await DBOS.list_workflows_async()
    finally:
        await asyncio.to_thread(DBOS.destroy)
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor())

    assert found == []


@pytest.mark.parametrize("database", ["S3cret", "nonsense://me:S3cret@host/name", ""])
async def test_what_is_no_database_is_refused_without_showing_it(session, database):
    """It may hold a password."""
    async with session() as qamera:
        with pytest.raises(q.ConfigurationError, match="database") as caught:
            Pipeline(qamera, database=database)

    assert "S3cret" not in f"{caught.value!r}"


@pytest.mark.parametrize(
    "database",
    [
        "postgresql://me:S3cret@127.0.0.1:1/none",
        "postgresql://me:S3cret?one@127.0.0.1:1/none",
        "postgresql://127.0.0.1:1/none?user=me&password=one@S3cret",
        "sqlite:////no/such/folder/S3cret?S3cret",
    ],
)
async def test_a_database_that_cannot_be_used_is_told_without_its_password(session, database):
    """And the next pipeline can be entered."""
    async with session() as qamera:
        with pytest.raises(q.LedgerUnavailableError) as caught:
            async with Pipeline(qamera, database=database):
                pass
        async with Pipeline(qamera) as pipeline:
            result = await pipeline.run(request())

    assert "S3cret" not in f"{caught.value!r} {caught.value}".replace("folder/S3cret", "")
    assert caught.value.__context__ is None
    assert result.ok


async def test_the_key_is_in_neither_database(session, tmp_path):
    """DBOS keeps texts of the requests and results, and nothing of the session."""
    async with session() as qamera, Pipeline(qamera) as pipeline:
        await pipeline.run(request())

    kept = b"".join(file.read_bytes() for file in tmp_path.iterdir() if file.is_file())
    assert b"sku-1" in kept
    assert KEY.encode() not in kept
    assert KEY.partition(".")[2].encode() not in kept


def test_without_dbos_it_says_what_to_install():
    """Importing the package itself doesn't take it."""
    code = (
        "import sys; sys.modules['dbos'] = None\n"
        "import qamera_async; qamera_async.QameraSession\n"
        "try:\n    import qamera_async.dbos\nexcept ImportError as error:\n    print(error)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "pip install 'qamera-async[dbos]'" in result.stdout
