"""A batch on the sandbox: what it gives, in which order, and how little it takes."""

import asyncio
import gc
import threading
import tracemalloc
from pathlib import Path

import pytest

import qamera_async as q
from qamera_async._batch import Batch, BatchResult, Outcome
from qamera_async.errors import TargetExistsError
from qamera_async.sandbox import Sandbox

pytestmark = [pytest.mark.usefixtures("no_lost_exceptions"), pytest.mark.every_loop]


class Stand:
    """Stands in for what a session's ledger and downloads do: ``known`` is what was ordered earlier."""

    def __init__(self, session, known=None, fetch=None):
        self.session = session
        self.known = known or {}
        self.fetch = fetch

    async def _order(self, request, *, retry_failed, approve, withdrawn):
        earlier = self.known.get(getattr(request, "ref", None))
        if isinstance(earlier, Exception):
            raise earlier
        if earlier is not None:
            return earlier
        task = None

        async def approving():
            nonlocal task
            task = asyncio.current_task()
            order = next(order for order in self.session._submitter._orders if order.task is task)
            withdrawn.add_done_callback(lambda _: None if order.flight.connected else task.cancel())
            await approve()

        return await self.session._order(request, retry_failed=retry_failed, approve=approving)

    async def _fetch(self, job, video, path):
        if self.fetch is not None:
            await self.fetch(job, video, path)
        path.write_bytes(b"clip")
        return path

    def _target(self, request, job, folder):
        name = request.ref or (None if job is None else job.record_ids[0])
        return None if name is None else folder / f"{name}.mp4"


def make_batch(seller, requests, **options):
    """Give a batch of a session, or of a stand-in around one."""
    stand = seller if isinstance(seller, Stand) else Stand(seller)
    return Batch(stand, requests, retry=stand.session._retry, **options)


def videos(number, **fields):
    return [q.VideoRequest(f"img_{n}", ref=f"sku-{n}", **fields) for n in range(number)]


class Counted:
    """An iterable that counts what was read of it."""

    def __init__(self, requests):
        self.requests = iter(requests)
        self.read = 0

    def __iter__(self):
        return self

    def __next__(self):
        request = next(self.requests)
        self.read += 1
        return request


def posts(sandbox):
    return [r for r in sandbox.requests if r.method == "POST"]


@pytest.fixture
async def sandbox():
    async with Sandbox(job_seconds=0.05, quota=None, credits=1_000_000) as sandbox:
        yield sandbox


@pytest.fixture
async def session(sandbox, quick):
    async with sandbox.session(**quick) as session:
        yield session


async def test_await_gives_all_in_the_order_given(session, sandbox):
    """A failed job in between is one failure, and the order of the end doesn't matter."""
    sandbox.trouble("fail_job")
    requests = [*videos(6), q.ReelRequest(["a", "b"])]
    result = await make_batch(session, requests)

    assert [outcome.index for outcome in result.outcomes] == list(range(7))
    assert [outcome.request for outcome in result.outcomes] == requests
    assert len(result.records) == 6
    assert [type(outcome.error) for outcome in result.failures] == [q.JobFailedError]
    assert result.stopped is None
    assert (result.credits_reserved, result.credits_refunded) == (75, 10)


async def test_outcomes_come_as_they_finish(quick):
    """What is finished first is handed out first, while the others go on."""
    async with Sandbox(job_seconds=1e6, quota=None) as sandbox, sandbox.session(**quick) as session:
        outcomes = aiter(make_batch(session, videos(3)))
        given = []
        for _ in range(3):
            asking = asyncio.ensure_future(anext(outcomes))
            while len(sandbox.records) < 3:
                await asyncio.sleep(0.001)
            last = max(set(sandbox.records) - set(given))
            sandbox.finish(last)
            given.append((await asking).job.record_ids[0])
        with pytest.raises(StopAsyncIteration):
            await anext(outcomes)

    assert given == ["vid_003", "vid_002", "vid_001"]


@pytest.mark.parametrize("kind", ["list", "iterator", "async", "indexed"])
async def test_any_iterable_will_do(session, kind):
    """Lists, generators, asynchronous ones, and what can only be indexed."""

    async def asynchronous():
        for request in videos(3):
            await asyncio.sleep(0)
            yield request

    class Indexed:
        def __getitem__(self, index):
            return videos(3)[index]

    requests = {"list": videos(3), "iterator": iter(videos(3)), "async": asynchronous(), "indexed": Indexed()}
    result = await make_batch(session, requests[kind])

    assert [outcome.request.ref for outcome in result.outcomes] == ["sku-0", "sku-1", "sku-2"]


@pytest.mark.parametrize("requests", [[], iter(())])
async def test_nothing_to_do_is_no_request(session, sandbox, requests):
    """An empty batch ends at once."""
    result = await make_batch(session, requests)

    assert result == BatchResult(())
    assert sandbox.requests == []


@pytest.mark.parametrize(
    "options",
    [
        {"requests": 3},
        {"requests": q.VideoRequest("i")},
        {"requests": "img_1"},
        *({"max_in_flight": bad} for bad in (0, -1, True, 1.0, None, "1")),
        *({"max_downloads": bad} for bad in (0, True, 2.5, None)),
        *({"max_credits": bad} for bad in (-1, False, 10.0, "10")),
        *({"download_to": bad} for bad in (3, "", b"", b"a", "a\0b", "\ud800", "a/\udcff")),
    ],
)
def test_what_cant_be_worked_with_is_refused_when_it_is_made(options):
    """ConfigurationError, before anything is awaited."""
    session = q.QameraSession("mk_live_a.bcdefgh", base_url="https://example.com")
    with pytest.raises(q.ConfigurationError):
        make_batch(session, **{"requests": []} | options)


async def test_what_is_no_request_is_one_outcome(session, sandbox):
    """InvalidRequestError, and the others are done."""
    result = await make_batch(session, [*videos(1), "img_2", None, *videos(1)])

    assert [type(outcome.error) for outcome in result.failures] == [q.InvalidRequestError] * 2
    assert [outcome.request for outcome in result.failures] == ["img_2", None]
    assert len(posts(sandbox)) == 2


async def test_it_is_consumed_once(session, sandbox):
    """A second loop or await is a mistake, whichever came first."""
    first, second = make_batch(session, videos(1)), make_batch(session, videos(1))
    await first
    assert [outcome.ok async for outcome in second] == [True]
    for batch in (first, second):
        with pytest.raises(RuntimeError, match="once"):
            await batch
        with pytest.raises(RuntimeError, match="once"):
            aiter(batch)

    assert len(posts(sandbox)) == 2


async def test_nothing_is_read_before_it_is_consumed(session, sandbox):
    """To make a batch costs nothing."""
    source = Counted(videos(3))
    make_batch(session, source)
    await asyncio.sleep(0.02)

    assert source.read == 0
    assert sandbox.requests == []


async def test_no_more_than_max_in_flight_are_out(quick):
    """Of 1,000 rows never more than 10 are accepted and not handed out, nor read ahead."""
    source = Counted(videos(1000))
    peaks, ahead, handed = [], [], 0
    often = {"polling": q.PollPolicy(interval=0.002, stale_after=0.1)}
    async with (
        Sandbox(job_seconds=0.0, quota=None, credits=10_000) as sandbox,
        sandbox.session(**quick | often) as session,
    ):
        async for outcome in make_batch(session, source, max_in_flight=10):
            assert outcome.ok
            handed += 1
            peaks.append(len(sandbox.orders) - handed + 1)
            ahead.append(source.read - handed + 1)

    assert handed == len(sandbox.orders) == 1000
    assert max(ahead) == 10
    assert max(peaks) <= 10


async def test_a_slow_consumer_slows_it_down_and_each_place_is_refilled(session, sandbox):
    """While the consumer is busy as many as there are places go on, and one more for each handed out."""
    source = Counted(videos(20))
    handed = 0
    async for _ in make_batch(session, source, max_in_flight=4):
        handed += 1
        while len(sandbox.orders) < min(handed + 4, 20):
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.005)
        assert source.read == len(sandbox.orders) == min(handed + 4, 20)

    assert handed == 20


async def test_the_quota_is_kept_and_results_come_meanwhile(quick):
    """P2 in a batch: more requests than a window takes, no 429, and results before the last POST."""
    async with Sandbox(job_seconds=0.01, quota=(12, 0.3), credits=10_000) as sandbox:
        async with sandbox.session(**quick) as session:
            seen = [len(sandbox.orders) async for outcome in make_batch(session, videos(30)) if outcome.ok]

    assert len(seen) == 30
    assert seen[0] < 30
    assert {r.status for r in sandbox.requests} == {200}


async def test_a_loop_takes_the_memory_of_those_in_flight(session):
    """Ten times the rows take no more memory."""

    async def peak(rows):
        gc.collect()
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        requests = (q.VideoRequest("i", ref=str(n)) for n in range(rows))
        known = await session.register_video(image_id="i")
        await known
        stand = Stand(session)
        stand.known = Everything(known)
        async for outcome in make_batch(stand, requests, max_in_flight=20):
            assert outcome.ok
        return tracemalloc.get_traced_memory()[1] - before

    class Everything:
        def __init__(self, job):
            self.job = job

        def get(self, ref):
            return self.job

    tracemalloc.start()
    try:
        await peak(100)
        few, many = await peak(300), await peak(3000)
    finally:
        tracemalloc.stop()

    assert many < few + 100_000


async def test_resumed_jobs_cost_nothing_and_dont_count(session, sandbox):
    """What a ledger knows is an outcome like any other; its credits are not this batch's."""
    job = await session.register_video(image_id="i")
    sandbox.trouble("fail_job")
    failed = await session.register_video(image_id="i")
    with pytest.raises(q.JobFailedError):
        await failed
    stand = Stand(session, {"sku-0": job, "sku-1": failed})
    result = await make_batch(stand, videos(3))

    assert [outcome.ok for outcome in result.outcomes] == [True, False, True]
    assert len(posts(sandbox)) == 3
    assert (result.credits_reserved, result.credits_refunded) == (10, 0)


def test_an_outcome_gives_its_video_or_raises():
    """unwrap() and ok."""
    video = q.Video("vid_1", "DONE", q.JobState.DONE)
    error = q.BadRequestError("no", status=400)
    request = q.VideoRequest("i")
    good, bad = Outcome(0, request, record=video), Outcome(1, request, error=error)

    assert (good.ok, bad.ok) == (True, False)
    assert good.unwrap() is video
    with pytest.raises(q.BadRequestError):
        bad.unwrap()


def test_a_summary_counts_and_says_why_it_stopped():
    """One readable text."""
    request = q.VideoRequest("i")
    intent = q.Intent("1", request, None)
    outcomes = (
        Outcome(0, request, record=q.Video("vid_1", "DONE", q.JobState.DONE)),
        Outcome(1, request, error=q.BadRequestError("no", status=400)),
        Outcome(2, request, error=q.AmbiguousSubmissionError("lost", intent=intent)),
    )
    text = BatchResult(outcomes, q.AuthenticationError("revoked", status=401), 20, 10).summary()

    assert text.startswith("1 done, 1 failed, 1 ambiguous; 20 credits reserved, 10 of them refunded.")
    assert "Stopped by AuthenticationError: HTTP 401: revoked" in text
    assert (
        BatchResult(()).summary() == "0 done, 0 failed, 0 ambiguous; 0 credits reserved, 0 of them refunded."
    )


# --- downloads ----------------------------------------------------------------------------------


async def test_results_are_downloaded_into_the_folder(session, tmp_path):
    """The folder is made, parents too, and outcome.path is the file, named after the ref or the record."""
    folder = tmp_path / "a" / "b"
    requests = [*videos(2), q.VideoRequest("i")]
    result = await make_batch(session, requests, download_to=str(folder))

    names = ["sku-0.mp4", "sku-1.mp4", f"{result.outcomes[2].job.record_ids[0]}.mp4"]

    assert [outcome.path for outcome in result.outcomes] == [folder / name for name in names]
    assert {path.name for path in folder.iterdir()} == set(names)


async def test_a_download_doesnt_wait_for_the_other_jobs(quick, tmp_path):
    """The first result is a file while the last job still runs."""
    async with Sandbox(job_seconds=1e6, quota=None) as sandbox, sandbox.session(**quick) as session:
        outcomes = aiter(make_batch(session, videos(2), download_to=tmp_path))
        asking = asyncio.ensure_future(anext(outcomes))
        while len(sandbox.records) < 2:
            await asyncio.sleep(0.001)
        sandbox.finish("vid_002")

        assert (await asking).path.read_bytes() == b"clip"
        await outcomes.aclose()


async def test_no_more_than_max_downloads_at_a_time(session, tmp_path):
    """Of 12 that are done at once 3 are downloaded at a time."""
    now, peaks = 0, []

    async def fetch(*_):
        nonlocal now
        now += 1
        peaks.append(now)
        await asyncio.sleep(0.005)
        now -= 1

    result = await make_batch(Stand(session, fetch=fetch), videos(12), download_to=tmp_path, max_downloads=3)

    assert max(peaks) == 3
    assert result.failures == ()


async def test_a_failed_download_is_one_outcome_and_orders_nothing(session, sandbox, tmp_path):
    """Video and job are there, the error says what happened, and there is one POST each."""

    async def fetch(job, _, path):
        if path.name == "sku-1.mp4":
            raise q.DownloadError("no", record_id=job.record_ids[0], path=str(path))

    result = await make_batch(Stand(session, fetch=fetch), videos(3), download_to=tmp_path)
    (failure,) = result.failures

    assert isinstance(failure.error, q.DownloadError)
    assert (failure.path, failure.record.status, failure.job.done()) == (None, "DONE", True)
    assert len(posts(sandbox)) == 3
    assert result.credits_refunded == 0


async def test_a_file_that_is_there_already_prevents_the_order(session, sandbox, tmp_path):
    """TargetExistsError before anything is paid; what is known already is downloaded all the same."""
    for number in (0, 1):
        (tmp_path / f"sku-{number}.mp4").write_bytes(b"mine")
    known = {"sku-1": await session.register_video(image_id="i")}
    result = await make_batch(Stand(session, known), videos(3), download_to=tmp_path)
    (failure,) = result.failures

    assert isinstance(failure.error, TargetExistsError)
    assert (failure.index, failure.job) == (0, None)
    assert len(posts(sandbox)) == 2
    assert (tmp_path / "sku-0.mp4").read_bytes() == b"mine"


@pytest.mark.parametrize("place", ["file", "file/below"])
async def test_a_folder_that_is_a_file_costs_nothing(session, sandbox, tmp_path, place):
    """ConfigurationError in both forms, with nothing read and nothing sent."""
    (tmp_path / "file").touch()
    source = Counted(videos(2))
    with pytest.raises(q.ConfigurationError, match="download_to"):
        await make_batch(session, source, download_to=tmp_path / place)
    with pytest.raises(q.ConfigurationError, match="download_to"):
        await anext(aiter(make_batch(session, source, download_to=tmp_path / place)))

    assert source.read == 0
    assert sandbox.requests == []


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a folder that nobody can write, even as root")
async def test_a_folder_that_cant_be_written_costs_nothing(session, sandbox):
    """It is found before anything is read, in both forms."""
    source = Counted(videos(2))
    with pytest.raises(q.ConfigurationError, match=r"download_to: .*written"):
        await make_batch(session, source, download_to="/proc/self")
    with pytest.raises(q.ConfigurationError, match=r"download_to: .*written"):
        await anext(aiter(make_batch(session, source, download_to="/proc/self")))

    assert source.read == 0
    assert sandbox.requests == []


async def test_what_the_folder_is_tried_with_is_gone(session, tmp_path, monkeypatch):
    """And the disk is asked in a thread."""
    touched, real = [], Path.touch

    def touch(path, *arguments, **options):
        real(path, *arguments, **options)
        touched.append((path, threading.current_thread() is threading.main_thread()))

    monkeypatch.setattr(Path, "touch", touch)
    await make_batch(session, [], download_to=tmp_path / "clips")

    assert [(path.parent, main) for path, main in touched] == [(tmp_path / "clips", False)]
    assert list((tmp_path / "clips").iterdir()) == []


async def test_the_error_of_a_file_in_the_way_says_what_to_do_about_it(session, tmp_path):
    """What a batch can do: it has no overwrite=True. There is no record yet."""
    (tmp_path / "sku-0.mp4").touch()
    result = await make_batch(session, videos(1), download_to=tmp_path)
    error = result.failures[0].error

    assert (error.record_id, error.path) == (None, str(tmp_path / "sku-0.mp4"))
    assert "move the file away, or give the request another ref" in error.message
    assert "record" not in str(error)


async def test_a_ref_that_comes_twice_is_one_job_and_one_file(sandbox, quick, tmp_path):
    """With a ledger: the same job and path in all outcomes, one order, its credits counted once."""

    class Kept(Stand):
        async def _order(self, request, **options):
            return await self.session._order(request, **options)

        async def _fetch(self, job, video, path):
            await asyncio.sleep(0.01)
            return await super()._fetch(job, video, path)

    requests = [*videos(1) * 7, *videos(3)]
    async with sandbox.session(**quick, ledger=tmp_path / "jobs.db") as session:
        result = await make_batch(Kept(session), requests, download_to=tmp_path / "clips", max_credits=30)
        sandbox.trouble("fail_job")
        failed = await make_batch(Kept(session), [q.VideoRequest("i", ref="f")] * 4, max_credits=10)

    assert (result.failures, result.stopped, result.credits_reserved) == ((), None, 30)
    same = [outcome for outcome in result.outcomes if outcome.request.ref == "sku-0"]
    assert {(id(outcome.job), outcome.path) for outcome in same} == {
        (id(same[0].job), tmp_path / "clips" / "sku-0.mp4")
    }
    assert len(same) == 8
    assert [type(outcome.error) for outcome in failed.outcomes] == [q.JobFailedError] * 4
    assert (failed.credits_reserved, failed.credits_refunded) == (10, 10)
    assert len(posts(sandbox)) == 4


async def test_the_folder_is_there_before_the_first_order(session, sandbox, tmp_path):
    """A result never waits for its folder."""
    folder = Path(tmp_path / "clips")
    there = []

    def requests():
        there.append(folder.is_dir())
        yield from videos(1)

    await make_batch(session, requests(), download_to=folder)

    assert there == [True]
