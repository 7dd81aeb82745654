"""Jobs: results, errors, timeouts and updates, also with several handles for the same records."""

import asyncio
import contextvars
import gc
import math
import time
import typing
import weakref

import attrs
import pytest
from fake_api import Polling, done, error_response, item, response

import qamera_async as q
from qamera_async._protocol import KINDS, RecordList
from qamera_async.events import Failed, Finished, Updated

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")

VIDEO = q.Video("vid_1", "DONE", q.JobState.DONE, video_url="https://cdn.example.com/vid_1.mp4")
FAILED = attrs.evolve(VIDEO, status="FAILED", state=q.JobState.FAILED, video_url=None)


# --- one job per tuple of record ids ----------------------------------------------------------------


async def test_same_record_ids_give_the_same_job(polling):
    job = polling.job("a", "b")

    assert polling.job("a", "b", kind="reel") is job
    assert polling.job("b", "a") is not job
    assert polling.job("a") is not job


async def test_job_is_forgotten_when_it_is_not_held(polling):
    """A process may run for weeks, so watched records must not keep their jobs alive."""
    job = polling.job("a")
    seen = weakref.ref(job)
    task = await polling.waiting(job)
    del job
    await polling.api.respond(response([done("a")]))
    await task
    del task
    gc.collect()

    assert seen() is None
    assert len(polling.poller._tracked) == len(polling.registry._jobs) == 0


async def test_later_request_and_receipt_are_filled_in(polling):
    request, receipt = q.VideoRequest("img"), q.Receipt(("a",))
    job = polling.job("a")
    assert (job.request, job.receipt) == (None, None)
    polling.job("a", request=request, receipt=receipt)
    polling.job("a", request=q.VideoRequest("other"))

    assert (job.request, job.receipt) == (request, receipt)


async def test_each_change_is_reported_once_however_many_handles_exist(polling):
    jobs = [polling.job("a") for _ in range(21)] + [polling.job("a", f"b{n}") for n in range(3)]
    tasks = await polling.waiting(*jobs)
    others = [done(f"b{n}") for n in range(3)]
    for status in ("QUEUED", "RUNNING"):
        await polling.api.respond(response([item("a", status), *others]))
    await polling.api.respond(response([item("a", "FAILED"), *others]))
    await asyncio.wait(tasks)
    for task in tasks:
        assert isinstance(task.exception(), q.JobFailedError)

    updates = [event.record for event in polling.of(Updated)]
    assert [record.status for record in updates if record.id == "a"] == ["QUEUED", "RUNNING", "FAILED"]
    assert [event.record_ids for event in polling.of(Failed)] == [("a",)]
    assert sorted(event.record.id for event in polling.of(Finished)) == ["b0", "b1", "b2"]
    assert sorted(ids for ids, _ in polling.ledger.ends) == [("a",), *[("a", f"b{n}") for n in range(3)]]


async def test_each_finished_record_of_a_job_is_reported_once(polling):
    tasks = await polling.waiting(polling.job("a"), polling.job("a", "b"))
    await polling.api.respond(response([done("a"), item("b")]))
    await polling.api.respond(response([done("a"), done("b")]))
    await asyncio.gather(*tasks)

    assert [event.record.id for event in polling.of(Finished)] == ["a", "b"]


async def test_end_is_recorded_although_the_waiter_is_cancelled_with_the_last_poll():
    def cancel(event):
        if isinstance(event, Finished):
            task.cancel()

    polling = Polling(emit=cancel)
    job = polling.job("a")
    task = await polling.waiting(job)
    await polling.api.respond(response([done("a")]))
    await asyncio.wait([task])
    await polling.poller.aclose()

    assert task.cancelled()
    assert job.done()
    assert polling.ledger.ends == [(("a",), ("DONE",))]


async def test_new_receipt_with_a_known_record_id_makes_a_new_job(polling):
    """A server that was restarted may give the same id again."""
    old = polling.job("a", receipt=q.Receipt(("a",), order_id="order 1"))
    task = await polling.waiting(old)
    await polling.api.respond(response([done("a")]))
    await task
    now = asyncio.get_running_loop().time()
    new = polling.job("a", receipt=q.Receipt(("a",), order_id="order 2"), created_at=now)

    assert new is not old
    assert (new.receipt.order_id, new.done(), old.receipt.order_id) == ("order 2", False, "order 1")
    task = await polling.waiting(new)
    assert not new.done()
    await polling.api.respond(response([item("a", "RUNNING")]))
    assert new.status == "RUNNING"
    assert old.status == "DONE"
    task.cancel()


async def test_waiter_of_a_replaced_record_is_told(polling):
    old = polling.job("a")
    task = await polling.waiting(old)
    new = polling.job("a", created_at=asyncio.get_running_loop().time())
    with pytest.raises(q.JobLostError, match="newer"):
        await task
    with pytest.raises(q.JobLostError, match="newer"):
        await old

    assert not new.done()


async def test_job_of_many_records_ends_with_its_last_record(polling):
    """A receipt within the body limit may name 100,000 records, so notifying must not be quadratic."""
    ids = [f"r{number}" for number in range(20_000)]
    job = polling.job(*ids)
    task = await polling.waiting(job)
    await polling.api.respond(response([*map(done, ids[1:]), item("r0")]))
    assert not job.done()
    await polling.api.respond(response([*map(done, ids)]))
    await task

    assert len(job.records) == 20_000
    assert len(str(repr(job))) < 2_000


async def test_attaching_to_a_finished_record_reports_and_sends_nothing(polling):
    job = polling.job("a")
    task = await polling.waiting(job)
    await polling.api.respond(response([done("a")]))
    await task
    before = list(polling.events)

    assert (await polling.job("a")).id == "a"
    assert (await polling.job("a").wait(0)).id == "a"
    assert polling.events == before
    assert len(polling.api.requests) == 1
    assert polling.ledger.ends == [(("a",), ("DONE",))]


async def test_jobs_that_share_a_record_are_each_settled_in_the_ledger(polling):
    """A job is settled even if its records became final through another job."""
    single, pair = polling.job("a"), polling.job("a", "b")
    tasks = await polling.waiting(single, polling.job("b"))
    await polling.api.respond(response([done("a"), done("b")]))
    await asyncio.gather(*tasks)
    assert pair.done()
    assert (await pair).id == "a"
    await pair

    assert sorted(ids for ids, _ in polling.ledger.ends) == [("a",), ("a", "b"), ("b",)]
    assert polling.of(Finished) == [Finished(single.records[0]), Finished(pair.records[1])]
    assert len(polling.api.requests) == 1


async def test_job_that_ended_according_to_the_ledger_is_done_at_once(polling):
    job = polling.job("vid_1", records=(VIDEO,))

    assert job.done()
    assert await job == VIDEO
    assert (polling.events, polling.ledger.ends, polling.api.requests) == ([], [], [])


async def test_job_that_failed_according_to_the_ledger_raises(polling):
    with pytest.raises(q.JobFailedError):
        await polling.job("vid_1", records=(FAILED,))
    assert polling.events == []


def test_job_is_made_without_an_event_loop():
    job = Polling().job("a", "b")

    assert job.record_ids == ("a", "b")
    assert (job.state, job.status, job.records, job.done()) == (q.JobState.PENDING, None, (), False)
    assert "a, b" in repr(job)


# --- results ----------------------------------------------------------------------------------------


async def test_result_is_the_first_record_or_all_of_them(polling):
    job = polling.job("a", "b")
    every = polling.registry.job(("a", "b"), attrs.evolve(KINDS["video"], single=False))
    tasks = await polling.waiting(job, every)
    await polling.api.respond(response([done("b"), done("a")]))

    assert every is not job
    assert (await tasks[0]).id == "a"
    assert [video.id for video in await tasks[1]] == ["a", "b"]


async def test_job_of_several_records_ends_with_the_last(polling):
    job = polling.job("a", "b")
    task = await polling.waiting(job)
    await polling.api.respond(response([done("a"), item("b")]))
    assert (job.state, task.done()) == (q.JobState.PENDING, False)
    await polling.api.respond(response([done("a"), item("b", "FAILED")]))

    with pytest.raises(q.JobFailedError) as failed:
        await task
    assert [record.status for record in failed.value.records] == ["DONE", "FAILED"]
    assert failed.value.record_ids == ("a", "b")
    assert job.state is q.JobState.FAILED


async def test_each_waiter_raises_its_own_error(polling):
    job = polling.job("a")
    tasks = await polling.waiting(job, job)
    await polling.api.respond(response([item("a", "FAILED")]))

    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert errors[0] is not errors[1]
    assert [type(error) for error in errors] == [q.JobFailedError] * 2


async def test_records_are_those_seen_so_far_in_the_order_of_the_ids(polling):
    job = polling.job("a", "b", "c")
    task = await polling.waiting(job)
    await polling.api.respond(response([item("c"), item("a", name="Take 1")]))

    assert [record.id for record in job.records] == ["a", "c"]
    await polling.api.respond(response([item("c"), item("a", name="Take 2")]))
    assert job.records[0].name == "Take 2"
    assert len(polling.of(Updated)) == 2
    task.cancel()


async def test_records_outlive_the_list_that_showed_them(polling):
    def lists():
        gc.collect()
        return sum(isinstance(each, RecordList) for each in gc.get_objects())

    left, missed, before = polling.job("a"), polling.job("b"), lists()
    tasks = await polling.waiting(left, missed)
    await polling.api.respond(response([item("a", "QUEUED"), item("b", "RUNNING")]))
    tasks[0].cancel()
    await asyncio.wait(tasks[:1])
    await polling.api.respond(response([item("c")]))

    kept = lists() - before
    assert [job.records[0].status for job in (left, missed)] == ["QUEUED", "RUNNING"]
    assert kept == 1
    tasks[1].cancel()


async def test_wait_is_a_coroutine_and_the_job_is_not(polling):
    job = polling.job("vid_1", records=(VIDEO,))
    with pytest.raises(TypeError):
        asyncio.create_task(job)  # noqa: RUF006 - the call raises

    async with asyncio.TaskGroup() as group:
        task = group.create_task(job.wait())
    assert task.result() == VIDEO


# --- timeouts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [-1, -0.001, math.nan, True, "1", 1j], ids=repr)
async def test_bad_timeout_is_refused(polling, limit):
    with pytest.raises(q.ConfigurationError):
        await polling.job("vid_1", records=(VIDEO,)).wait(limit)


@pytest.mark.parametrize("limit", [None, math.inf, 10**400, 1e300], ids=["None", "inf", "int", "float"])
async def test_timeout_without_a_limit(limit):
    polling = Polling(job=0.01)
    task = await polling.waiting(polling.job("a"), timeout=limit)
    await polling.api.respond(response([item("a")]))
    await asyncio.sleep(0.03)
    await polling.api.respond(response([done("a")]))

    assert (await task).id == "a"
    await polling.poller.aclose()


async def test_default_timeout_is_that_of_the_session():
    polling = Polling(job=0.02)
    job = polling.job("a")
    for waiting in (job.wait(), asyncio.wait_for(job, 5)):
        task = asyncio.ensure_future(waiting)
        if polling.api.pending is None:
            await polling.api.sent.wait()
        with pytest.raises(q.JobTimeoutError) as late:
            await task
        assert late.value.timeout == 0.02
    polling.api.answer(response([]))
    await polling.poller.aclose()


async def test_timeout_error_has_the_last_status_and_leaves_the_job_awaitable(polling):
    job = polling.job("a")
    task = await polling.waiting(job, timeout=0.1)
    await polling.api.respond(response([item("a", "RUNNING")]))
    await polling.api.respond(error_response(500))
    with pytest.raises(TimeoutError) as late:
        await task
    error = late.value
    if polling.api.pending is not None:
        polling.api.answer(error_response(500))

    assert isinstance(error, q.JobTimeoutError)
    assert (error.status, error.timeout, error.record_ids) == ("RUNNING", 0.1, ("a",))
    assert isinstance(error.last_error, q.ServerError)
    assert error.list_age >= 0
    task = await polling.waiting(job)
    await polling.api.respond(response([done("a")]))
    assert (await task).id == "a"


async def test_one_timeout_affects_no_other_waiter(polling):
    job = polling.job("a")
    short, long = await polling.waiting(job, timeout=0), await polling.waiting(job)
    with pytest.raises(q.JobTimeoutError):
        await short
    await polling.api.respond(response([done("a")]))

    assert (await long).id == "a"


async def test_result_that_arrives_with_the_deadline_is_returned(polling):
    job = polling.job("a")
    task = await polling.waiting(job, timeout=0.02)
    await polling.api.sent.wait()
    polling.api.answer(response([done("a")]))
    time.sleep(0.05)  # noqa: ASYNC251 - the deadline passes before the loop reads the response

    assert (await task).id == "a"


async def test_waiting_leaves_no_timer_and_no_reference_to_its_context(polling):
    variable = contextvars.ContextVar("variable")

    class Value:
        pass

    value = Value()
    seen = weakref.ref(value)
    job = polling.job("a")

    async def wait(value):
        variable.set(value)
        await job.wait(60.0)

    tasks = [asyncio.ensure_future(wait(value)) for _ in range(3)]
    del value
    await polling.api.respond(response([done("a")]))
    await asyncio.gather(*tasks)
    del tasks
    await asyncio.sleep(0)
    gc.collect()

    timers = [timer for timer in asyncio.get_running_loop()._scheduled if not timer.cancelled()]
    assert [timer for timer in timers if timer.when() > asyncio.get_running_loop().time() + 30] == []
    assert seen() is None


# --- deadlines that pass during a suspension ---------------------------------------------------------


@pytest.fixture
def suspend(monkeypatch):
    """Lower the threshold of a suspension to 0.2 s; return a function that blocks the loop for so long."""
    monkeypatch.setattr("qamera_async._jobs._MIN_STANDSTILL", 0.1)
    return lambda: time.sleep(0.2)


@pytest.mark.case(90)
async def test_deadline_that_passed_in_a_suspension_gets_one_more_poll(polling, suspend):
    """The process was suspended, or the loop was blocked."""
    task = await polling.waiting(polling.job("a"), timeout=0.05)
    await polling.api.respond(response([item("a")]))
    suspend()
    await polling.api.respond(response([item("a")]))
    assert not task.done()
    await polling.api.respond(response([done("a")]))

    assert (await task).id == "a"


@pytest.mark.case(90)
async def test_deadline_that_passed_in_a_suspension_gets_only_one_more_poll(polling, suspend):
    job = polling.job("a")
    task = await polling.waiting(job, timeout=0.05)
    await polling.api.sent.wait()
    suspend()
    await asyncio.sleep(0)
    await polling.api.respond(response([item("a")]))
    await polling.api.respond(response([item("a")]))

    with pytest.raises(q.JobTimeoutError):
        await asyncio.wait_for(task, 5)


async def test_failed_extra_poll_is_a_timeout(polling, suspend):
    task = await polling.waiting(polling.job("a"), timeout=0.05)
    await polling.api.sent.wait()
    suspend()
    await asyncio.sleep(0)
    await polling.api.respond(response([item("a")]))
    await polling.api.respond(error_response(500))

    with pytest.raises(q.JobTimeoutError) as late:
        await asyncio.wait_for(task, 5)
    assert isinstance(late.value.last_error, q.ServerError)


async def test_refused_extra_poll_raises_its_error(polling, suspend):
    task = await polling.waiting(polling.job("a"), timeout=0.05)
    await polling.api.sent.wait()
    suspend()
    await asyncio.sleep(0)
    await polling.api.respond(response([item("a")]))
    await polling.api.respond(error_response(401))

    with pytest.raises(q.AuthenticationError):
        await asyncio.wait_for(task, 5)


async def test_extra_poll_is_bounded(suspend):
    polling = Polling(connect=0.01, request=0.05)
    task = await polling.waiting(polling.job("a"), timeout=0.05)
    await polling.api.sent.wait()
    suspend()

    with pytest.raises(q.JobTimeoutError):
        await asyncio.wait_for(task, 5)
    polling.api.answer(response([]))
    await polling.poller.aclose()


async def test_deadline_without_a_suspension_gets_no_extra_poll(polling):
    task = await polling.waiting(polling.job("a"), timeout=0.05)
    await polling.api.sent.wait()

    with pytest.raises(q.JobTimeoutError):
        await asyncio.wait_for(task, 5)
    polling.api.answer(response([]))


# --- refresh, download, updates ---------------------------------------------------------------------


async def test_refresh_returns_the_record_as_it_is_listed_now(polling):
    job = polling.job("a")
    refreshing = asyncio.ensure_future(job.refresh())
    await polling.api.respond(response([done("a")]))

    assert (await refreshing).status == "DONE"
    assert job.done()
    assert polling.ledger.ends == [(("a",), ("DONE",))]
    refreshing = asyncio.ensure_future(job.refresh())
    await polling.api.respond(response([item("b")]))
    assert await refreshing is None
    await asyncio.sleep(0.03)
    assert len(polling.api.requests) == 2


async def test_refresh_shares_its_request_with_waiters_and_other_refreshes(polling):
    jobs = [polling.job("a"), polling.job("b")]
    refreshing = [asyncio.ensure_future(job.refresh()) for job in jobs]
    task = await polling.waiting(jobs[0])
    await polling.api.respond(response([done("a"), done("b")]))

    assert [record.id for record in await asyncio.gather(*refreshing)] == ["a", "b"]
    assert (await task).id == "a"
    assert len(polling.api.requests) == 1


async def test_refresh_makes_one_request(polling):
    refreshing = asyncio.ensure_future(polling.job("a").refresh())
    await polling.api.respond(error_response(500))

    with pytest.raises(q.ServerError):
        await refreshing
    await asyncio.sleep(0.1)
    assert len(polling.api.requests) == 1


async def test_download_waits_for_the_job(polling, tmp_path):
    job = polling.job("a")
    downloading = asyncio.ensure_future(job.download(tmp_path / "clip.mp4", overwrite=True))
    await polling.api.respond(response([done("a")]))

    assert await downloading == tmp_path / "clip.mp4"
    video, path, options = polling.downloaded
    assert (video, path) == (job.records[0], tmp_path / "clip.mp4")
    assert options["overwrite"] is True


async def test_updates_begin_with_the_current_state_and_end_with_the_last(polling):
    job = polling.job("a")
    statuses = []

    async def follow():
        async for video in job.updates():
            statuses.append(video.status)  # noqa: PERF401 - both iterations add to the one list

    first = asyncio.ensure_future(follow())
    for status in ("QUEUED", "RUNNING"):
        await polling.api.respond(response([item("a", status)]))
    await polling.api.respond(response([item("a", "RUNNING", name="another name")]))
    second = asyncio.ensure_future(follow())
    await asyncio.sleep(0)
    await polling.api.respond(response([item("a", "FAILED")]))
    await asyncio.gather(first, second)

    assert statuses == ["QUEUED", "RUNNING", "RUNNING", "FAILED", "FAILED"]


async def test_slow_consumer_of_updates_gets_the_last_state(polling):
    job = polling.job("a")
    updates = job.updates()
    waiting = await polling.waiting(job)
    await polling.api.respond(response([item("a", "QUEUED")]))
    first = await anext(updates)
    await polling.api.respond(response([item("a", "RUNNING")]))
    await polling.api.respond(response([done("a")]))
    await waiting

    assert first.status == "QUEUED"
    assert [video.status async for video in updates] == ["DONE"]


async def test_updates_watch_the_job_only_while_they_are_awaited(polling):
    updates = polling.job("a").updates()
    asking = asyncio.ensure_future(anext(updates))
    await polling.api.respond(response([item("a", "QUEUED")]))
    await asking
    await asyncio.sleep(0.05)
    assert len(polling.api.requests) == 1

    await updates.aclose()


async def test_done_sends_nothing(polling):
    job = polling.job("a")
    for _ in range(3):
        assert not job.done()
        await asyncio.sleep(0.02)

    assert polling.api.requests == []


async def test_unusable_session_raises_before_a_waiter_is_added(polling):
    def check():
        raise q.SessionClosedError("The session is closed.")

    polling.registry.check = check
    job = polling.job("a")
    for use in (job.wait, job.refresh, lambda: anext(job.updates())):
        with pytest.raises(q.SessionClosedError):
            await use()
    assert polling.poller.watched == 0


# --- uvloop -----------------------------------------------------------------------------------------


def test_waiting_works_on_uvloop(monkeypatch):
    uvloop = pytest.importorskip("uvloop")
    monkeypatch.setattr("qamera_async._jobs._MIN_STANDSTILL", 0.1)

    async def main():
        polling = Polling()
        job = polling.job("a")
        tasks = [asyncio.ensure_future(job.wait(timeout)) for timeout in (0.02, 60.0, None)]
        await polling.api.respond(response([item("a")]))
        with pytest.raises(q.JobTimeoutError):
            await tasks[0]
        late = asyncio.ensure_future(job.wait(0.05))
        await asyncio.sleep(0)
        time.sleep(0.3)  # noqa: ASYNC251 - the loop is blocked past the deadline
        await asyncio.sleep(0)
        while not late.done():
            await polling.api.respond(response([done("a")]))
        results = await asyncio.gather(*tasks[1:], late)
        await polling.poller.aclose()
        return [video.id for video in results]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(main()) == ["a"] * 3


async def test_result_of_the_poll_on_the_wire_is_returned_at_once(polling, suspend):
    """A poll was on the wire during the suspension, and its response finishes the job."""
    task = await polling.waiting(polling.job("a"), timeout=0.05)
    await polling.api.sent.wait()
    suspend()
    for _ in range(5):
        await asyncio.sleep(0)
    await polling.api.respond(response([done("a")]))

    assert task.done()
    assert task.result().id == "a"
    await asyncio.sleep(0.05)
    assert len(polling.api.requests) == 1


# --- types ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wait", "download", "refresh", "updates", "done", "__await__"])
def test_annotations_can_be_resolved_at_run_time(name):
    assert "return" in typing.get_type_hints(getattr(q.Job, name))
