"""Whole systems in trouble: a server, a network, a firewall, a clock, and whoever watches."""

import asyncio
import contextlib
from typing import ClassVar

import aiohttp
import pytest
from batch_helpers import Counted, consume, posts, videos
from os_faults import Faults

import qamera_async as q
from qamera_async.events import Retrying
from qamera_async.ledger import LedgerFile, LedgerState
from qamera_async.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")


@pytest.fixture
async def sandbox():
    async with Sandbox(job_seconds=0.05, quota=None, credits=1_000_000) as sandbox:
        yield sandbox


def polls(sandbox):
    return [request for request in sandbox.requests if request.method == "GET" and request.origin == "api"]


# --- a server and a network ---------------------------------------------------------------------


@pytest.mark.case(82)
@pytest.mark.parametrize("lookup", [0.0, 0.1])
async def test_a_server_in_trouble_costs_five_posts(sandbox, quick, lookup):
    """Every POST of 1,000 is answered 500: five POSTs, five outcomes, the rest unread; the same once more."""
    sandbox.trouble("error", status=500, times=1000)
    source = Counted(videos(1000))
    async with sandbox.session(**quick | {"timeouts": q.Timeouts(reconcile=lookup)}) as session:
        outcomes, error = await consume(session.batch(source))
        again = await session.batch(videos(1000))

    assert type(error) is q.AmbiguityLimitError
    assert [type(outcome.error) for outcome in outcomes] == [q.AmbiguousSubmissionError] * 5
    assert set(error.errors) == {outcome.error for outcome in outcomes}
    assert source.read == 5
    assert (len(again.failures), type(again.stopped)) == (5, q.AmbiguityLimitError)
    assert len(posts(sandbox)) == 10


class Network:
    """A way to a sandbox that can be taken away: nobody can connect, and polls under way are cut.

    A POST under way is let through: were it cut, nobody could know what became of it.
    """

    def __init__(self, sandbox):
        self._there = int(sandbox.url.rpartition(":")[2])
        self._port = 0
        self._tasks = set()
        self._writers = set()
        self._polling = set()

    async def __aenter__(self):
        await self.come_back()
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*self._tasks)

    @property
    def url(self):
        return f"http://127.0.0.1:{self._port}"

    def go_away(self):
        self._server.close()
        for writer in self._polling:
            writer.transport.abort()

    async def come_back(self):
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def _accept(self, reader, writer):
        self._tasks.add(asyncio.current_task())
        answers, there = await asyncio.open_connection("127.0.0.1", self._there)
        self._writers |= {writer, there}
        with contextlib.suppress(OSError):
            first = await reader.read(4)
            if first == b"GET ":
                self._polling |= {writer, there}
            there.write(first)
            await asyncio.gather(_carry(reader, there), _carry(answers, writer))


async def _carry(reader, writer):
    with contextlib.suppress(OSError):
        while piece := await reader.read(2**16):
            writer.write(piece)
            await writer.drain()
    writer.close()


class Noted(q.RetryPolicy):
    """A policy that notes what it has given, one list for each run of waits."""

    runs: ClassVar[list[list[float]]] = []

    def delays(self):
        given = []
        self.runs.append(given)
        for delay in super().delays():
            given.append(delay)
            yield delay


def doubles(delays, policy, attempt=1):
    """Whether they are the base times 1, 2, 4, ..., with half a base of jitter at most, up to the longest."""
    bounds = [policy.base * 2 ** (attempt - 1 + number) for number in range(len(delays))]
    return all(
        min(bound, policy.max_delay) <= delay <= min(bound + policy.base / 2, policy.max_delay)
        for bound, delay in zip(bounds, delays, strict=True)
    )


@pytest.mark.case(83)
async def test_the_network_away_pauses_a_batch_and_uses_up_no_item(sandbox, quick, caplog):
    """It tries ever more seldom, up to the longest wait; it goes on, and each item is ordered once."""
    second, events = 0.02, []
    Noted.runs = []
    retry = Noted(base=second, max_delay=5 * second)
    options = quick | {
        "retry": retry,
        "polling": q.PollPolicy(interval=second, stale_after=5 * second, max_interval=20 * second),
        "timeouts": q.Timeouts(connect=10.0, request=10.0, reconcile=0.3),
        "on_event": events.append,
    }
    source, outcomes = Counted(videos(40)), []
    async with (
        asyncio.timeout(60),
        Network(sandbox) as network,
        sandbox.session(**options, base_url=network.url) as session,
    ):

        async def outage():
            network.go_away()
            while "The batch pauses" not in caplog.text:
                await asyncio.sleep(second)
            read, ordered, handed_out = source.read, len(sandbox.orders), len(outcomes)
            # Until the one that tries has waited as long as it may, three times.
            while not any(len(run) > 5 for run in Noted.runs):
                await asyncio.sleep(second)
            assert source.read == read
            await network.come_back()
            return read, ordered, handed_out

        async for outcome in session.batch(source, max_in_flight=5):
            outcomes.append(outcome)
            if len(outcomes) == 10:
                away = asyncio.create_task(outage())
        read, ordered, handed_out = await away

    (pauses,) = [run for run in Noted.runs if len(run) > 5]
    assert doubles(pauses, retry)
    assert pauses[0] < pauses[1] < pauses[2] < pauses[3] == pauses[4] == pauses[5] == retry.max_delay
    tried = [event for event in events if isinstance(event, Retrying) and event.what == "register"]
    assert {event.attempt for event in tried} == {1, 2, 3}
    assert all(doubles([event.delay], retry, event.attempt) for event in tried)
    assert {type(event.error) for event in tried} == {q.ConnectionFailedError}
    assert [outcome.error for outcome in outcomes] == [None] * 40
    assert sorted(order.body["imageId"] for order in sandbox.orders) == sorted(r.image_id for r in videos(40))
    assert len(posts(sandbox)) == 40
    assert ordered <= read <= handed_out + 5
    assert caplog.text.count("The batch pauses") == 1


# --- a firewall, and a list that shows little ---------------------------------------------------


@pytest.mark.case(84)
async def test_a_firewalls_403_is_an_outage(sandbox, quick):
    """An HTML page on polls fails nobody: all waiters get their videos when it is over."""
    async with sandbox.session(**quick) as session:
        jobs = [await session.register_video(image_id="i") for _ in range(3)]
        sandbox.trouble("error", on="GET", status=403, html=True, times=5)
        done = await asyncio.gather(*jobs, jobs[0].wait())

    assert [video.id for video in done] == [*(job.record_ids[0] for job in jobs), *jobs[0].record_ids]
    assert [poll.status for poll in polls(sandbox)][:5] == [403] * 5
    assert len(posts(sandbox)) == 3


@pytest.mark.case(84)
async def test_the_apis_403_fails_all_waiters(sandbox, quick):
    """One poll is enough for them all; the jobs can be awaited again."""
    async with sandbox.session(**quick) as session:
        jobs = [await session.register_video(image_id="i") for _ in range(3)]
        sandbox.trouble("error", on="GET", status=403)
        waiting = [*jobs, jobs[0].wait(), session.job("vid_nowhere").wait()]
        results = await asyncio.gather(*waiting, return_exceptions=True)
        refused = len(polls(sandbox))
        done = await asyncio.gather(*jobs)

    assert [type(result) for result in results] == [q.PermissionDeniedError] * 5
    assert {result.status for result in results} == {403}
    assert refused == 1
    assert [video.state for video in done] == [q.JobState.DONE] * 3


@pytest.mark.case(85)
async def test_all_works_where_only_finished_records_are_listed(quick, tmp_path):
    """Waiting, updates, failures, a lost answer's candidate, a batch with clips, and its rerun."""
    async with Sandbox(job_seconds=0.1, quota=None, show="finished") as sandbox:
        options = quick | {"ledger": tmp_path / "jobs.db"}
        async with sandbox.session(**options) as session:
            job = await session.register_video(image_id="i")
            snapshots = [video async for video in job.updates()]
            sandbox.trouble("fail_job")
            with pytest.raises(q.JobFailedError):
                await (await session.register_video(image_id="i"))
            sandbox.trouble("reset_after")
            with pytest.raises(q.AmbiguousSubmissionError) as ambiguous:
                await session.register_video(image_id="i")
            result = await session.batch(videos(5), download_to=tmp_path / "clips")
        before = len(sandbox.requests)
        async with sandbox.session(**options) as session:
            again = await session.batch(videos(5), download_to=tmp_path / "clips")

        assert (await job).video_url == snapshots[-1].video_url
        assert [video.state for video in snapshots] == [q.JobState.DONE]
        assert [video.id for video in ambiguous.value.candidates] == list(sandbox.orders[2].record_ids)
        assert [outcome.path.stat().st_size > 0 for outcome in result.outcomes] == [True] * 5
        assert again.records == result.records
        assert len(posts(sandbox)) == len(sandbox.orders) == 8
        assert len(sandbox.requests) == before


# --- sessions one after the other ---------------------------------------------------------------


@pytest.mark.case(86)
async def test_a_session_opened_and_closed_100_times_provokes_no_429():
    """Each thinks that it has a window of its own, and none has: one quota counts them all."""
    async with Sandbox(job_seconds=0.01, quota=(30, 0.3), credits=10**6, count_delay=0.01) as sandbox:
        for number in range(100):
            options = {"base_url": sandbox.url, "rate_limiter": q.RateLimiter(30, 0.3)}
            async with q.QameraSession(sandbox.api_key, **options) as session:
                if number % 2:
                    await session.register_video(image_id="i")
                else:
                    await session.list_videos()

        assert [request.status for request in sandbox.requests] == [200] * 100
        assert len(sandbox.orders) == 50


# --- whoever watches ----------------------------------------------------------------------------


def exploding_traces():
    async def explode(*_):
        raise RuntimeError("a trace hook")

    trace = aiohttp.TraceConfig()
    for name in vars(aiohttp.TraceConfig()):
        if name.startswith("_on_"):
            getattr(trace, name.removeprefix("_")).append(explode)
    return [trace]


def explode(_):
    raise RuntimeError("on_event")


@pytest.mark.case(87)
@pytest.mark.parametrize("who", ["on_event", "a trace hook", "both"])
async def test_what_a_watcher_raises_loses_no_receipt(sandbox, quick, tmp_path, who):
    """Each order of a batch is kept, waited for and fetched, whatever is raised at every turn of it."""
    watchers = {
        **({} if who == "a trace hook" else {"on_event": explode}),
        **({} if who == "on_event" else {"trace_configs": exploding_traces()}),
    }
    options = quick | watchers | {"ledger": tmp_path / "jobs.db"}
    async with sandbox.session(**options) as session:
        job = await session.register_video(image_id="i", ref="alone")
        result = await session.batch(videos(10), download_to=tmp_path / "clips")
        assert (await job).status == "DONE"
    async with LedgerFile(tmp_path / "jobs.db") as file:
        kept = [entry async for entry in file.entries()]

    assert [outcome.error for outcome in result.outcomes] == [None] * 10
    assert [outcome.path.stat().st_size > 0 for outcome in result.outcomes] == [True] * 10
    assert {entry.record_ids for entry in kept} == {order.record_ids for order in sandbox.orders}
    assert {entry.state for entry in kept} == {LedgerState.DONE}
    assert len(posts(sandbox)) == 11


@pytest.mark.case(87)
async def test_a_receipt_whose_caller_is_gone_is_kept_though_its_watchers_raise(
    sandbox, quick, tmp_path, caplog
):
    """It is in the ledger and in the log."""
    sandbox.trouble("slow", seconds=0.1)
    options = quick | {"on_event": explode, "trace_configs": exploding_traces()}
    async with sandbox.session(**options, ledger=tmp_path / "jobs.db") as session:
        ordering = asyncio.create_task(session.register_video(image_id="i", ref="sku-1"))
        while not sandbox.orders:
            await asyncio.sleep(0.001)
        ordering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ordering
    async with LedgerFile(tmp_path / "jobs.db") as file:
        (kept,) = [entry async for entry in file.entries()]

    assert kept.record_ids == sandbox.orders[0].record_ids
    assert kept.record_ids[0] in caplog.text
    assert len(posts(sandbox)) == 1


# --- the clock ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    return Faults(tmp_path_factory.mktemp("faults"))


@pytest.mark.case(88)
async def test_a_wall_clock_that_is_set_back_moves_nothing(faults, tmp_path):
    """By an hour, for one of two processes: the quota of both, deadlines and the ledger are as they were."""
    number, quota, ledger = 10, (10, 0.4), tmp_path / "jobs.db"
    async with Sandbox(job_seconds=0.05, quota=quota, credits=10**6, count_delay=0.01) as sandbox:
        both = await asyncio.gather(
            *(
                faults.run(
                    "clock", sandbox, ledger=ledger, number=number, quota=quota, name=name, shift=shift
                )
                for name, shift in {"moved": -3600, "unmoved": 0}.items()
            )
        )

        assert 429 not in {request.status for request in sandbox.requests}
        assert len(posts(sandbox)) == len(sandbox.orders) == 2 * number
    moved, unmoved = (ran.told for ran in both)
    assert -3600 <= moved["shifted"] < -3500
    assert 0 <= unmoved["shifted"] < 100
    for told in (moved, unmoved):
        assert told["done"] == [number, number]
        assert told["same"]
        assert told["in order"]
        assert told["states"] == ["done"] * number
        assert told["ended"] == "JobTimeoutError"
        assert 0.2 <= told["waited"] < 30
