"""Batches that are left early or cancelled: no further submission, no running task, no lost receipt."""

import asyncio
import gc
import logging
import threading

import pytest
from batch_helpers import Counted, batch_tasks, collect, until, videos
from fake_registrar import Answer, FakeJob, FakeRegistrar, ambiguous, make_batch, refused, script, until_idle

import qamera_async as q
from qamera_async import LedgerUnavailableError

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")


def warnings(caplog):
    return "\n".join(r.getMessage() for r in caplog.records if r.levelno == logging.WARNING)


def log_lines(caplog):
    lines = [record for record in caplog.records if record.getMessage().startswith("A batch was left early")]
    return [(record.levelname, record.getMessage()) for record in lines]


def assert_nothing_lost(registrar, caplog, handed_out):
    told = {record_id for outcome in handed_out for record_id in outcome.job.record_ids}
    for job in registrar.jobs:
        assert job.record_ids[0] in told or job.record_ids[0] in warnings(caplog)


class Generator:
    """Endless requests that record when their generator is closed."""

    def __init__(self):
        self.closed = self.read = 0

    def sync(self):
        try:
            for request in videos(1000):
                self.read += 1
                yield request
        finally:
            self.closed += 1

    async def asynchronous(self):
        try:
            for request in videos(1000):
                self.read += 1
                yield request
        finally:
            await asyncio.sleep(0)
            self.closed += 1


async def leave_when_all_but_one_are_ready(registrar, requests):
    batch = make_batch(registrar, requests)
    async with batch:
        async for outcome in batch:
            await until(lambda: batch.finished == len(requests) and not registrar.on_wire)
            return outcome
    raise AssertionError("no outcome")


# --- leaving ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sync", "asynchronous"])
@pytest.mark.parametrize("after", [1, 7])
async def test_leaving_the_loop_submits_nothing_more_and_leaves_no_task(caplog, after, kind):
    source, registrar, given = Generator(), FakeRegistrar(), []
    async for outcome in make_batch(registrar, getattr(source, kind)(), max_in_flight=20):
        given.append(outcome)
        if len(given) == after:
            break
    read, posts = source.read, len(registrar.posts)
    await until_idle()

    assert source.closed == 1
    assert source.read == read
    assert len(registrar.posts) == posts
    assert_nothing_lost(registrar, caplog, given)


@pytest.mark.parametrize("kind", ["sync", "asynchronous"])
async def test_leaving_the_context_waits_until_no_task_is_left(caplog, kind):
    source, registrar, given = Generator(), FakeRegistrar(), []
    async with make_batch(registrar, getattr(source, kind)(), max_in_flight=20) as batch:
        async for outcome in batch:
            given.append(outcome)
            if len(given) == 7:
                break

    assert batch_tasks() == []
    assert source.closed == 1
    await until_idle()
    assert_nothing_lost(registrar, caplog, given)


async def test_exception_in_the_context_leaves_the_batch():
    source, registrar = Generator(), FakeRegistrar()
    with pytest.raises(KeyError):
        async with make_batch(registrar, source.sync()) as batch:
            async for _ in batch:
                raise KeyError

    assert batch_tasks() == []
    assert source.closed == 1


async def test_batch_can_not_be_consumed_after_its_context():
    async with make_batch(FakeRegistrar(), videos(3)) as batch:
        pass
    with pytest.raises(RuntimeError):
        await batch
    with pytest.raises(RuntimeError):
        aiter(batch)


@pytest.mark.parametrize("form", ["await", "for"])
async def test_batch_that_was_consumed_is_left_without_a_log_line(caplog, form):
    async with make_batch(FakeRegistrar(), videos(5)) as batch:
        if form == "await":
            await batch
        else:
            async for _ in batch:
                pass

    assert batch_tasks() == []
    assert caplog.text == ""


async def test_outcome_that_was_handed_out_last_is_not_logged(caplog):
    outcomes = aiter(make_batch(FakeRegistrar(), videos(1)))
    given = await anext(outcomes)
    await outcomes.aclose()

    assert given.ok
    assert warnings(caplog) == ""


async def test_iterator_of_a_batch_that_was_left_early_raises():
    """A time limit or `aclose` must not look like the end of the batch."""
    registrar = FakeRegistrar(job_seconds=None)
    late, closed, unused = (aiter(make_batch(registrar, videos(3))) for _ in range(3))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(late), 0.02)
    asking = asyncio.ensure_future(anext(closed))
    await asyncio.sleep(0)
    await closed.aclose()
    await unused.aclose()
    await unused.aclose()

    with pytest.raises(RuntimeError, match="left early"):
        await asking
    for outcomes in (late, closed, unused):
        for _ in range(2):
            with pytest.raises(RuntimeError, match="left early"):
                await anext(outcomes)


async def test_batch_that_is_left_while_its_folder_is_created_submits_nothing(tmp_path):
    registrar = FakeRegistrar()
    outcomes = aiter(make_batch(registrar, videos(3), download_to=tmp_path / "clips"))
    asking = asyncio.ensure_future(anext(outcomes))
    await asyncio.sleep(0)
    await outcomes.aclose()

    with pytest.raises(RuntimeError, match="left early"):
        await asking
    assert batch_tasks() == registrar.claims == []


async def test_exhausted_iterator_stays_exhausted():
    whole = aiter(make_batch(FakeRegistrar(), videos(3)))
    assert len([outcome async for outcome in whole]) == 3
    stopped = aiter(make_batch(FakeRegistrar(lambda _: refused(401)), videos(3)))
    with pytest.raises(q.AuthenticationError):
        await anext(stopped)

    for outcomes in (whole, stopped):
        await outcomes.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(outcomes)
        assert aiter(outcomes) is outcomes


async def test_iteration_can_be_continued_with_the_same_iterator():
    outcomes = aiter(make_batch(FakeRegistrar(), videos(5)))
    async for _ in outcomes:
        break

    assert len([outcome async for outcome in outcomes]) == 4


async def test_garbage_collected_iterator_stops_the_batch(caplog):
    source, registrar = Generator(), FakeRegistrar()
    outcomes = aiter(make_batch(registrar, source.sync(), max_in_flight=10))
    given = [await anext(outcomes)]
    cycle = [outcomes]
    cycle.append(cycle)
    del outcomes, cycle
    gc.collect()
    await until_idle()

    assert source.closed == 1
    assert source.read <= 11
    assert_nothing_lost(registrar, caplog, given)


async def test_iterator_collected_in_another_thread_stops_the_batch(caplog):
    source, registrar = Generator(), FakeRegistrar(job_seconds=None)
    kept = [aiter(make_batch(registrar, source.sync(), max_in_flight=10))]
    asking = asyncio.ensure_future(anext(kept[0]))
    await until(lambda: len(registrar.jobs) == 10)
    registrar.jobs[0].finish()
    given = [await asking]
    del asking
    await asyncio.sleep(0)
    thread = threading.Thread(target=kept.clear)
    thread.start()
    thread.join()
    await until_idle()

    assert source.closed == 1
    assert_nothing_lost(registrar, caplog, given)


async def test_only_generators_are_closed_on_leaving():
    source = Counted(videos(100))
    async with make_batch(FakeRegistrar(), source, max_in_flight=1) as batch:
        async for _ in batch:
            break

    assert 0 < source.read < 100


# --- cancellation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["await", "for", "context"])
async def test_batch_cancelled_at_any_point_loses_no_receipt(caplog, form):
    for iteration in range(80):
        caplog.clear()
        registrar, given, source = FakeRegistrar(job_seconds=0.001), [], Generator()
        batch = make_batch(registrar, source.sync(), max_in_flight=6)

        async def consume(batch=batch, given=given):
            if form == "await":
                await batch
            elif form == "for":
                async for outcome in batch:
                    given.append(outcome)
                    await asyncio.sleep(0)
            else:
                async with batch:
                    async for outcome in batch:
                        given.append(outcome)
                        await asyncio.sleep(0)

        task = asyncio.ensure_future(consume())
        for _ in range(iteration):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        if form != "for":
            assert batch_tasks() == []
        del task
        await until_idle()
        assert source.closed == (1 if source.read else 0)
        assert_nothing_lost(registrar, caplog, given)


async def test_cancelled_await_logs_the_collected_outcomes(caplog):
    registrar = FakeRegistrar()

    async def source():
        for request in videos(3):
            yield request
        await asyncio.sleep(1e6)

    batch = make_batch(registrar, source())
    task = asyncio.ensure_future(collect(batch))
    await until(lambda: batch.finished == 3)
    task.cancel()
    await asyncio.wait([task])

    assert_nothing_lost(registrar, caplog, [])
    assert "sku-2" in warnings(caplog)


async def test_repeatedly_cancelled_batch_ends_its_tasks():
    closed, registrar = [], FakeRegistrar()

    async def source():
        try:
            yield videos(1)[0]
            await asyncio.sleep(1e6)
        finally:
            await asyncio.sleep(0.05)
            closed.append(True)

    task = asyncio.ensure_future(collect(make_batch(registrar, source())))
    await until(lambda: registrar.posts)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0.005)
    with pytest.raises(asyncio.CancelledError):
        await task

    assert closed == [True]
    assert batch_tasks() == []


async def test_cancelled_exit_of_the_context_ends_all_tasks():
    closed, leaving = [], asyncio.Event()

    async def source():
        try:
            yield videos(1)[0]
            await asyncio.sleep(1e6)
        finally:
            leaving.set()
            await asyncio.sleep(0.02)
            closed.append(True)

    async def leave():
        async with make_batch(FakeRegistrar(), source()) as batch:
            async for _ in batch:
                break

    task = asyncio.ensure_future(leave())
    await leaving.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert closed == [True]
    assert batch_tasks() == []


@pytest.mark.parametrize("victim", ["qamera-batch", "qamera-batch-reader", "qamera-batch-1"])
async def test_batch_stops_if_other_code_cancels_its_tasks(caplog, victim):
    registrar = FakeRegistrar(job_seconds=0.05)
    running = asyncio.ensure_future(collect(make_batch(registrar, videos(3), max_in_flight=2)))
    await until(lambda: len(registrar.jobs) == 2)
    for task in asyncio.all_tasks():
        if task.get_name() == victim:
            task.cancel()
    result = await running

    assert type(result.stopped) is q.BatchStoppedError
    assert "CancelledError" in str(result.stopped)
    assert len(registrar.posts) == 2
    assert not [outcome for outcome in result.outcomes if outcome.ok and outcome.record is None]
    assert_nothing_lost(registrar, caplog, result.outcomes)


def test_results_are_logged_if_the_event_loop_ends_before_the_iteration(caplog):
    kept = []

    async def main():
        registrar = FakeRegistrar(job_seconds=None)
        batch = make_batch(registrar, videos(3))
        kept.append(aiter(batch))
        asking = asyncio.ensure_future(anext(kept[0]))
        await until(lambda: len(registrar.jobs) == 3)
        registrar.jobs[0].finish()
        await asking
        registrar.jobs[1].finish()
        await until(lambda: batch.finished == 2)

    asyncio.run(main())

    assert len(log_lines(caplog)) == 2
    assert "vid_002" in warnings(caplog)
    assert "vid_003" in warnings(caplog)


def test_results_are_logged_if_the_iterator_is_forgotten_after_the_event_loop_ended(caplog):
    kept = []

    async def main():
        batch = make_batch(FakeRegistrar(), videos(2))
        kept.append(aiter(batch))
        await anext(kept[0])
        await until(lambda: batch.finished == 2 and not batch_tasks())

    asyncio.run(main())
    kept.clear()
    gc.collect()

    assert len(log_lines(caplog)) == 1


# --- the log ----------------------------------------------------------------------------------------


async def test_ready_and_running_jobs_are_logged_and_handed_out_ones_are_not(caplog):
    registrar = FakeRegistrar(job_seconds=None)
    batch = make_batch(registrar, videos(5))
    async with batch:
        outcomes = aiter(batch)
        asking = asyncio.ensure_future(anext(outcomes))
        await until(lambda: len(registrar.jobs) == 5)
        registrar.jobs[0].finish()
        given = await asking
        registrar.jobs[1].finish()
        await until(lambda: batch.finished == 2)
    lines = log_lines(caplog)

    assert {level for level, _ in lines} == {"WARNING"}
    assert len({line for _, line in lines}) == 4
    assert all("vid_00" in line and "ref 'sku-" in line for _, line in lines)
    assert not any(given.job.record_ids[0] in line for _, line in lines)


async def test_without_a_ledger_each_outcome_is_logged(caplog):
    registrar = FakeRegistrar()
    given = await leave_when_all_but_one_are_ready(registrar, videos(50))

    assert [line.count("vid_") for _, line in log_lines(caplog)] == [1] * 49
    assert {level for level, _ in log_lines(caplog)} == {"WARNING"}
    assert_nothing_lost(registrar, caplog, [given])


async def test_with_a_ledger_one_log_line_states_how_to_continue(caplog):
    caplog.set_level("INFO", "qamera_async")
    registrar = FakeRegistrar(script(ambiguous(), Answer()), has_ledger=True)
    await leave_when_all_but_one_are_ready(registrar, videos(30))
    ((level, line),) = log_lines(caplog)

    assert level == "INFO"
    assert "29 submissions" in line
    assert "run the batch again" in line
    assert "vid_" not in line


async def test_requests_without_a_ref_are_logged_even_with_a_ledger(caplog):
    caplog.set_level("INFO", "qamera_async")
    registrar = FakeRegistrar(has_ledger=True)
    requests = [*videos(3), q.VideoRequest("i"), q.VideoRequest("i")]
    first = await leave_when_all_but_one_are_ready(registrar, requests)

    unnamed = {
        job.record_ids[0]
        for job, post in zip(registrar.jobs, registrar.posts, strict=True)
        if post.ref is None
    }
    unnamed -= set(first.job.record_ids)
    assert unnamed
    assert {level for level, _ in log_lines(caplog)} == {"INFO", "WARNING"}
    assert all(record_id in warnings(caplog) for record_id in unnamed)
    assert "sku-" not in warnings(caplog)


@pytest.mark.parametrize("has_ledger", [True, False])
async def test_receipt_that_was_neither_stored_nor_handed_out_is_logged(caplog, has_ledger):
    error = LedgerUnavailableError("disk full", receipt=q.Receipt(("vid_x", "vid_y")))
    registrar = FakeRegistrar(lambda _: Answer(error, seconds=0.005), has_ledger=has_ledger)
    await leave_when_all_but_one_are_ready(registrar, videos(2))

    assert "vid_x, vid_y (ref 'sku-1')" in warnings(caplog)


async def test_ambiguous_submission_that_was_not_handed_out_is_logged(caplog):
    registrar = FakeRegistrar(script(Answer(), ambiguous(), Answer()))
    await leave_when_all_but_one_are_ready(registrar, videos(4))

    assert "ambiguous submission (ref 'sku-1')" in warnings(caplog)


async def test_cancelled_await_with_a_ledger_logs_how_to_continue(caplog):
    caplog.set_level("INFO", "qamera_async")
    registrar = FakeRegistrar(has_ledger=True)

    async def source():
        for request in videos(3):
            yield request
        await asyncio.sleep(1e6)

    batch = make_batch(registrar, source())
    task = asyncio.ensure_future(collect(batch))
    await until(lambda: batch.finished == 3)
    task.cancel()
    await asyncio.wait([task])

    assert {level for level, _ in log_lines(caplog)} == {"INFO"}


async def test_earlier_jobs_that_were_not_handed_out_are_logged(caplog):
    known = {f"sku-{n}": FakeJob(f"vid_{n}") for n in range(3)}
    for job in known.values():
        job.finish()
    given = await leave_when_all_but_one_are_ready(FakeRegistrar(known=known), videos(3))

    assert warnings(caplog).count("vid_") == 2
    assert given.job.record_ids[0] not in warnings(caplog)
