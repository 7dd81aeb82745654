"""Failures of whole systems: servers, networks, firewalls, callbacks and clocks."""

import asyncio
import contextlib
from typing import ClassVar

import aiohttp
import pytest
from batch_helpers import Counted, consume, posts, videos

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


# --- servers and networks -----------------------------------------------------------------------


@pytest.mark.case(82)
@pytest.mark.parametrize("reconcile", [0.0, 0.1])
async def test_failing_server_stops_a_batch_after_five_posts(sandbox, quick, reconcile):
    """The server answers each POST with status 500. A second batch sends five POSTs too."""
    sandbox.trouble("error", status=500, times=1000)
    source = Counted(videos(1000))
    async with sandbox.session(**quick | {"timeouts": q.Timeouts(reconcile=reconcile)}) as session:
        outcomes, error = await consume(session.batch(source))
        again = await session.batch(videos(1000))

    assert type(error) is q.AmbiguityLimitError
    assert [type(outcome.error) for outcome in outcomes] == [q.AmbiguousSubmissionError] * 5
    assert set(error.errors) == {outcome.error for outcome in outcomes}
    assert source.read == 5
    assert (len(again.failures), type(again.stopped)) == (5, q.AmbiguityLimitError)
    assert len(posts(sandbox)) == 10


class Network:
    """A TCP proxy to a sandbox that can be switched off: it then refuses connections and cuts polls.

    The proxy still forwards POSTs on the wire, since cutting them would make them ambiguous.
    """

    def __init__(self, sandbox):
        self._sandbox_port = int(sandbox.url.rpartition(":")[2])
        self._port = 0
        self._tasks = set()
        self._writers = set()
        self._polling = set()

    async def __aenter__(self):
        await self.switch_on()
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*self._tasks)

    @property
    def url(self):
        return f"http://127.0.0.1:{self._port}"

    def switch_off(self):
        self._server.close()
        for writer in self._polling:
            writer.transport.abort()

    async def switch_on(self):
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def _accept(self, reader, writer):
        self._tasks.add(asyncio.current_task())
        answers, to_sandbox = await asyncio.open_connection("127.0.0.1", self._sandbox_port)
        self._writers |= {writer, to_sandbox}
        with contextlib.suppress(OSError):
            first = await reader.read(4)
            if first == b"GET ":
                self._polling |= {writer, to_sandbox}
            to_sandbox.write(first)
            await asyncio.gather(_copy(reader, to_sandbox), _copy(answers, writer))


async def _copy(reader, writer):
    with contextlib.suppress(OSError):
        while piece := await reader.read(2**16):
            writer.write(piece)
            await writer.drain()
    writer.close()


class RecordingRetryPolicy(q.RetryPolicy):
    """A policy that records its delays, with one list for each call of `delays`."""

    runs: ClassVar[list[list[float]]] = []

    def delays(self):
        delays = []
        self.runs.append(delays)
        for delay in super().delays():
            delays.append(delay)
            yield delay


def doubles(delays, policy, attempt=1):
    """Return whether delays are the base times 1, 2, 4, ... with jitter of half a base, up to max_delay."""
    bounds = [policy.base * 2 ** (attempt - 1 + number) for number in range(len(delays))]
    return all(
        min(bound, policy.max_delay) <= delay <= min(bound + policy.base / 2, policy.max_delay)
        for bound, delay in zip(bounds, delays, strict=True)
    )


@pytest.mark.case(83)
async def test_unreachable_network_pauses_a_batch_and_fails_no_item(sandbox, quick, caplog):
    """The delays between attempts grow up to max_delay. After the outage each item is submitted once."""
    pause, events = 0.02, []
    RecordingRetryPolicy.runs = []
    retry = RecordingRetryPolicy(base=pause, max_delay=5 * pause)
    options = quick | {
        "retry": retry,
        "polling": q.PollPolicy(interval=pause, stale_after=5 * pause, max_interval=20 * pause),
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
            network.switch_off()
            while "The batch pauses" not in caplog.text:
                await asyncio.sleep(pause)
            read, ordered, handed_out = source.read, len(sandbox.orders), len(outcomes)
            # Wait until the request that is retried has waited for max_delay three times.
            while not any(len(run) > 5 for run in RecordingRetryPolicy.runs):
                await asyncio.sleep(pause)
            assert source.read == read
            await network.switch_on()
            return read, ordered, handed_out

        async for outcome in session.batch(source, max_in_flight=5):
            outcomes.append(outcome)
            if len(outcomes) == 10:
                outage_task = asyncio.create_task(outage())
        read, ordered, handed_out = await outage_task

    (pauses,) = [run for run in RecordingRetryPolicy.runs if len(run) > 5]
    assert doubles(pauses, retry)
    assert pauses[0] < pauses[1] < pauses[2] < pauses[3] == pauses[4] == pauses[5] == retry.max_delay
    retries = [event for event in events if isinstance(event, Retrying) and event.what == "register"]
    assert {event.attempt for event in retries} == {1, 2, 3}
    assert all(doubles([event.delay], retry, event.attempt) for event in retries)
    assert {type(event.error) for event in retries} == {q.ConnectionFailedError}
    assert [outcome.error for outcome in outcomes] == [None] * 40
    assert sorted(order.body["imageId"] for order in sandbox.orders) == sorted(r.image_id for r in videos(40))
    assert len(posts(sandbox)) == 40
    assert ordered <= read <= handed_out + 5
    assert caplog.text.count("The batch pauses") == 1


# --- firewalls and incomplete lists -------------------------------------------------------------


@pytest.mark.case(84)
async def test_html_403_of_a_firewall_is_an_outage(sandbox, quick):
    """Polls that get an HTML page fail no waiter, and all waiters get their videos after the outage."""
    async with sandbox.session(**quick) as session:
        jobs = [await session.register_video(image_id="i") for _ in range(3)]
        sandbox.trouble("error", on="GET", status=403, html=True, times=5)
        done = await asyncio.gather(*jobs, jobs[0].wait())

    assert [video.id for video in done] == [*(job.record_ids[0] for job in jobs), *jobs[0].record_ids]
    assert [poll.status for poll in polls(sandbox)][:5] == [403] * 5
    assert len(posts(sandbox)) == 3


@pytest.mark.case(84)
async def test_403_in_the_api_shape_fails_all_waiters(sandbox, quick):
    """One poll fails all of them, and the jobs can be awaited again."""
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
async def test_everything_works_if_only_finished_records_are_listed(quick, tmp_path):
    """The test covers waiting, updates, failures, reconciling, a batch with downloads, and its rerun."""
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


# --- consecutive sessions -----------------------------------------------------------------------


@pytest.mark.case(86)
async def test_100_consecutive_sessions_cause_no_429():
    """Sessions with the same key and origin share one rate limit, although each gets its own RateLimiter."""
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


# --- callbacks that raise -----------------------------------------------------------------------


def raising_trace_configs():
    async def raise_error(*_):
        raise RuntimeError("a trace hook")

    trace = aiohttp.TraceConfig()
    for name in vars(aiohttp.TraceConfig()):
        if name.startswith("_on_"):
            getattr(trace, name.removeprefix("_")).append(raise_error)
    return [trace]


def raise_error(_):
    raise RuntimeError("on_event")


@pytest.mark.case(87)
@pytest.mark.parametrize("raises", ["on_event", "a trace hook", "both"])
async def test_callback_that_raises_loses_no_receipt(sandbox, quick, tmp_path, raises):
    """All items of a batch are submitted, recorded, awaited and downloaded although each callback raises."""
    callbacks = {
        **({} if raises == "a trace hook" else {"on_event": raise_error}),
        **({} if raises == "on_event" else {"trace_configs": raising_trace_configs()}),
    }
    options = quick | callbacks | {"ledger": tmp_path / "jobs.db"}
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
async def test_receipt_of_a_cancelled_caller_is_kept_although_callbacks_raise(
    sandbox, quick, tmp_path, caplog
):
    """The receipt is in the ledger and in the log."""
    sandbox.trouble("slow", seconds=0.1)
    options = quick | {"on_event": raise_error, "trace_configs": raising_trace_configs()}
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


# --- the wall clock -----------------------------------------------------------------------------


@pytest.mark.case(88)
async def test_setting_the_wall_clock_back_changes_nothing(faults, tmp_path):
    """One of two processes goes back an hour; rate limit, deadlines and ledger are not affected."""
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
        assert told["in submission order"]
        assert told["states"] == ["done"] * number
        assert told["error"] == "JobTimeoutError"
        assert 0.2 <= told["waited"] < 30
