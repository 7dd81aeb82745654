"""A batch that is left early, on the sandbox: nothing more is ordered, no task stays, no receipt is lost."""

import asyncio
import gc
import logging

import pytest
from test_batch import Counted, Stand, make_batch, posts, videos

import qamera_async as q
from qamera_async.errors import LedgerUnavailableError
from qamera_async.sandbox import Sandbox

pytestmark = [pytest.mark.usefixtures("no_lost_exceptions"), pytest.mark.every_loop]


@pytest.fixture
async def sandbox():
    async with Sandbox(job_seconds=0.02, quota=None, credits=1_000_000) as sandbox:
        yield sandbox


@pytest.fixture
async def session(sandbox, quick):
    async with sandbox.session(**quick) as session:
        yield session


async def settled(sandbox):
    """Wait until nothing runs of a batch, nor of what the session finishes for it."""
    for _ in range(2000):
        names = [task.get_name() for task in asyncio.all_tasks()]
        if not [name for name in names if name.startswith(("qamera-batch", "qamera-order"))]:
            break
        await asyncio.sleep(0.001)
    else:
        raise AssertionError(names)
    before = len(posts(sandbox))
    await asyncio.sleep(0.03)
    assert len(posts(sandbox)) == before


def warned(caplog):
    return "\n".join(r.getMessage() for r in caplog.records if r.levelno == logging.WARNING)


def assert_nothing_lost(sandbox, caplog, handed_out):
    told = {i for outcome in handed_out for i in outcome.job.record_ids}
    made = {i for order in sandbox.orders for i in order.record_ids}
    for record_id in made - told:
        assert record_id in warned(caplog)


class Generator:
    """Requests without an end, that say when they are closed."""

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


@pytest.mark.parametrize("kind", ["sync", "asynchronous"])
@pytest.mark.parametrize("after", [1, 7])
async def test_break_is_safe(session, sandbox, caplog, after, kind):
    """Nothing ordered after it, no task left, the source closed, each receipt handed out or in the log."""
    before, source, given = asyncio.all_tasks(), Generator(), []
    async for outcome in make_batch(session, getattr(source, kind)(), max_in_flight=20):
        given.append(outcome)
        if len(given) == after:
            break
    read = source.read
    await settled(sandbox)
    left = asyncio.all_tasks() - before

    assert [task for task in left if "RequestHandler" not in repr(task)] == []  # the sandbox's own
    assert source.closed == 1
    assert source.read == read
    assert {order.body["imageId"] for order in sandbox.orders} <= {r.image_id for r in videos(read)}
    assert_nothing_lost(sandbox, caplog, given)


async def test_break_with_everything_ready_is_in_the_log(session, sandbox, caplog):
    """What is done, and what still runs, is logged with its record ids and refs; what was given isn't."""
    async for outcome in make_batch(session, videos(5)):
        given = outcome
        while sum(record.complete(1e18) for record in sandbox.records.values()) < 5:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.1)
        break
    await settled(sandbox)
    (line,) = [r for r in caplog.records if r.getMessage().startswith("a batch was left")]

    assert line.name == "qamera_async"
    assert line.levelno == logging.WARNING
    assert given.job.record_ids[0] not in line.getMessage()
    assert line.getMessage().count("vid_00") == 4
    assert line.getMessage().count("ref 'sku-") == 4


async def test_a_batch_that_ends_by_itself_leaves_nothing(session, caplog):
    """No task, and nothing in the log."""
    before = asyncio.all_tasks()
    await make_batch(session, videos(5))
    async for _ in make_batch(session, videos(5)):
        pass

    assert {t for t in asyncio.all_tasks() - before if t.get_name().startswith("qamera-batch")} == set()
    assert warned(caplog) == ""


async def test_what_was_given_a_moment_ago_is_not_in_the_log(session, caplog):
    """Closed in the same turn of the loop in which the only outcome came."""
    outcomes = aiter(make_batch(session, videos(1)))
    given = await anext(outcomes)
    await outcomes.aclose()

    assert given.ok
    assert warned(caplog) == ""


async def test_an_iterator_that_was_ended_early_says_so(session, sandbox):
    """What looks like the end of the batch is none: after a time that ran out, and after aclose()."""
    sandbox.trouble("late", seconds=100.0, times=1000)
    late = aiter(make_batch(session, videos(3)))
    closed = aiter(make_batch(session, videos(3)))
    unused = aiter(make_batch(session, videos(3)))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(late), 0.05)
    await closed.aclose()
    await unused.aclose()
    await unused.aclose()

    for outcomes in (late, closed, unused):
        for _ in range(2):
            with pytest.raises(RuntimeError, match="left early"):
                await anext(outcomes)


async def test_an_iterator_that_came_to_its_end_stays_there(session, sandbox):
    """After all of them, and after the reason was raised; closing it then changes nothing."""
    whole = aiter(make_batch(session, videos(3)))
    assert len([outcome async for outcome in whole]) == 3
    sandbox.trouble("error", status=401, times=10)
    stopped = aiter(make_batch(session, videos(3)))
    with pytest.raises(q.AuthenticationError):
        await anext(stopped)

    for outcomes in (whole, stopped):
        await outcomes.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(outcomes)
        assert aiter(outcomes) is outcomes


async def test_a_loop_can_be_taken_up_again(session, sandbox):
    """With the iterator kept, a break is no end."""
    outcomes = aiter(make_batch(session, videos(5)))
    async for _ in outcomes:
        break

    assert len([outcome async for outcome in outcomes]) == 4


async def test_an_iterator_that_is_forgotten_stops_it(session, sandbox, caplog):
    """Even where only the garbage collector finds it, in a cycle."""
    source = Generator()
    outcomes = aiter(make_batch(session, source.sync(), max_in_flight=10))
    given = [await anext(outcomes)]
    cycle = [outcomes]
    cycle.append(cycle)
    del outcomes, cycle
    gc.collect()
    await settled(sandbox)

    assert source.closed == 1
    assert source.read <= 11
    assert_nothing_lost(sandbox, caplog, given)


@pytest.mark.parametrize("form", ["await", "for"])
async def test_cancelled_at_any_moment_it_loses_nothing(quick, caplog, form):
    """At 60 moments from the first turn of the loop on: no task left, no further POST, no receipt lost."""
    for moment in range(60):
        async with (
            Sandbox(job_seconds=0.004, quota=None) as sandbox,
            sandbox.session(**quick | {"polling": q.PollPolicy(interval=0.003)}) as session,
        ):
            caplog.clear()
            given, source = [], Generator()
            batch = make_batch(session, source.sync(), max_in_flight=6)

            async def consume(batch=batch, given=given):
                if form == "await":
                    await batch
                async for outcome in batch:
                    given.append(outcome)
                    await asyncio.sleep(0)

            task = asyncio.ensure_future(consume())
            if moment < 30:
                for _ in range(moment):
                    await asyncio.sleep(0)
            else:
                await asyncio.sleep((moment - 30) * 0.0007)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            if form == "await":
                names = [task.get_name() for task in asyncio.all_tasks()]
                assert [name for name in names if name.startswith("qamera-batch")] == []
            await settled(sandbox)
            assert source.closed == (1 if source.read else 0)
            assert_nothing_lost(sandbox, caplog, given)


async def test_what_await_had_collected_is_in_the_log(session, sandbox, caplog):
    """A cancelled await gives nothing back, so all it had is logged."""

    async def source():
        for request in videos(3):
            yield request
        await asyncio.sleep(1e6)

    async def collect():
        await make_batch(session, source())

    task = asyncio.ensure_future(collect())
    while len(sandbox.orders) < 3:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.15)
    task.cancel()
    await asyncio.wait([task])

    assert_nothing_lost(sandbox, caplog, [])
    assert "sku-2" in warned(caplog)


async def test_cancelled_again_and_again_it_still_ends_its_tasks(session, sandbox):
    """A source that takes its time to be closed is waited for, whoever is impatient."""
    closed = []

    async def source():
        try:
            yield videos(1)[0]
            await asyncio.sleep(1e6)
        finally:
            await asyncio.sleep(0.1)
            closed.append(True)

    async def collect():
        await make_batch(session, source())

    task = asyncio.ensure_future(collect())
    while not sandbox.orders:
        await asyncio.sleep(0.001)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0.005)
    with pytest.raises(asyncio.CancelledError):
        await task

    assert closed == [True]
    assert [t for t in asyncio.all_tasks() if t.get_name().startswith("qamera-batch")] == []


async def test_a_source_that_raises_when_it_is_closed_is_logged(session, sandbox, caplog):
    """It takes the place of nothing."""

    def source():
        try:
            yield from videos(100)
        finally:
            raise ValueError("closing")

    sandbox.trouble("error", status=401)
    result = await make_batch(session, source(), max_in_flight=1)

    assert isinstance(result.stopped, q.AuthenticationError)
    assert "closed" in caplog.text


async def test_only_generators_are_closed(session, sandbox, tmp_path):
    """A file that the requests are read from is its owner's."""

    class Rows(Counted):
        closed = False

        def close(self):
            self.closed = True

    source = Rows(videos(100))
    sandbox.trouble("error", status=401)
    await make_batch(session, source, max_in_flight=1)

    assert not source.closed


async def test_a_batch_whose_tasks_somebody_cancels_says_so(session, sandbox, caplog):
    """It doesn't end as if all had been read."""
    for victim in ("qamera-batch", "qamera-batch-1"):
        caplog.clear()
        sandbox.trouble("late", seconds=0.1, times=3)
        made = len(sandbox.orders)
        batch = make_batch(session, videos(3), max_in_flight=2)

        async def collect(batch=batch):
            return await batch

        running = asyncio.ensure_future(collect())
        while len(sandbox.orders) < made + 2:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        for task in asyncio.all_tasks():
            if task.get_name() == victim:
                task.cancel()
        result = await running

        assert isinstance(result.stopped, asyncio.CancelledError)
        orders = sandbox.orders[made:]
        told = {o.job.record_ids for o in result.outcomes}
        assert all(o.record_ids in told or o.record_ids[0] in warned(caplog) for o in orders)


async def test_a_receipt_that_couldnt_be_kept_nor_handed_out_is_in_the_log(session, caplog):
    """It is paid for, and nothing but its error tells."""
    error = LedgerUnavailableError("disk full", receipt=q.Receipt(("vid_x", "vid_y")))
    known = {f"sku-{n}": error for n in range(2)}
    async for _ in make_batch(Stand(session, known), videos(2)):
        await asyncio.sleep(0.01)
        break
    await asyncio.sleep(0.01)

    assert "vid_x, vid_y (ref 'sku-1')" in warned(caplog)


async def left_with(session, requests, **options):
    """Leave a batch with all but one of its outcomes ready."""
    async for outcome in make_batch(session, requests):
        await asyncio.sleep(0.15)
        return outcome
    raise AssertionError("it gave nothing")


def told(caplog):
    lines = [r for r in caplog.records if r.getMessage().startswith("a batch was left")]
    return [(r.levelname, r.getMessage()) for r in lines]


async def test_with_a_ledger_one_line_says_how_to_go_on(session, sandbox, caplog):
    """It has the receipts, so their ids need no log."""
    caplog.set_level("INFO", "qamera_async")
    sandbox.trouble("error", status=500)
    await left_with(Keeping(session), videos(30))
    await settled(sandbox)
    (line,) = told(caplog)

    assert line[0] == "INFO"
    # One that is just being looked into is neither told of nor left.
    assert any(f"the {number} that are" in line[1] for number in (28, 29))
    assert "run it again to go on" in line[1]
    assert "vid_" not in line[1]


async def test_what_a_ledger_cant_take_up_again_is_in_the_log_all_the_same(session, sandbox, caplog):
    """What has no ref would be ordered anew."""
    caplog.set_level("INFO", "qamera_async")
    keeping = Keeping(session)
    first = await left_with(keeping, [*videos(3), q.VideoRequest("i"), q.VideoRequest("i")])
    await settled(sandbox)
    unnamed = {order.record_ids[0] for order in sandbox.orders if order.body["imageId"] == "i"}
    unnamed -= set(first.job.record_ids)
    lines = told(caplog)

    assert unnamed
    assert sorted(level for level, _ in lines) == ["INFO", "WARNING"]
    assert all(record_id in warned_of(lines) for record_id in unnamed)
    assert "sku-" not in warned_of(lines)


async def test_what_a_ledger_couldnt_keep_is_in_the_log_all_the_same(session, sandbox, caplog):
    """Its receipt is in the error that nobody got, and nowhere else."""
    unkept = LedgerUnavailableError("disk full", receipt=q.Receipt(("vid_x",)))
    await left_with(Keeping(session, {"sku-0": unkept, "sku-1": unkept}), videos(2))
    await settled(sandbox)
    ((level, line),) = told(caplog)

    assert level == "WARNING"
    assert "vid_x (ref 'sku-" in line


def warned_of(lines):
    return "\n".join(text for level, text in lines if level == "WARNING")


async def test_without_a_ledger_many_ids_are_many_lines(session, sandbox, caplog):
    """At most 20 a line, and none is missing."""
    given = await left_with(session, videos(50))
    await settled(sandbox)
    lines = told(caplog)

    assert [line.count("vid_") for _, line in lines] == [20, 20, 9]
    assert {level for level, _ in lines} == {"WARNING"}
    assert_nothing_lost(sandbox, caplog, [given])


async def test_what_await_had_collected_is_in_a_ledger(session, sandbox, caplog):
    """A cancelled await says how to go on too."""
    caplog.set_level("INFO", "qamera_async")

    async def source():
        for request in videos(3):
            yield request
        await asyncio.sleep(1e6)

    async def collect():
        await make_batch(Keeping(session), source())

    task = asyncio.ensure_future(collect())
    while len(sandbox.orders) < 3:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.15)
    task.cancel()
    await asyncio.wait([task])

    assert {level for level, _ in told(caplog)} == {"INFO"}


class Keeping(Stand):
    """Says that there is a ledger."""

    _keeps_receipts = True


async def test_what_was_ambiguous_and_not_handed_out_is_in_the_log(sandbox, quick, caplog):
    """It may have been paid for."""
    async with sandbox.session(**quick | {"timeouts": q.Timeouts(reconcile=0.0)}) as session:
        sandbox.trouble("error", status=500, times=2)
        batch = make_batch(Stand(session), [*videos(4), None])
        async for _ in batch:
            await asyncio.sleep(0.1)
            break
        await settled(sandbox)

    assert "one that is ambiguous (ref 'sku-" in warned(caplog)
