"""A batch in trouble, on the sandbox: what stops it, what pauses it, and what that costs."""

import asyncio

import attrs
import pytest
from test_batch import Counted, Stand, make_batch, posts, videos

import qamera_async as q
from qamera_async.errors import AmbiguityLimitError, LedgerUnavailableError, RefConflictError
from qamera_async.sandbox import Sandbox

pytestmark = [pytest.mark.usefixtures("no_lost_exceptions"), pytest.mark.every_loop]


@pytest.fixture
async def sandbox():
    async with Sandbox(job_seconds=0.05, quota=None, credits=1_000_000) as sandbox:
        yield sandbox


@pytest.fixture
async def session(sandbox, quick):
    async with sandbox.session(**quick | {"timeouts": q.Timeouts(job=5.0, reconcile=0.05)}) as session:
        yield session


async def handed_out(batch):
    """Give the outcomes of a loop, and what it raised at the end."""
    outcomes = []
    try:
        async for outcome in batch:
            outcomes.append(outcome)  # noqa: PERF401 - what came before the error counts
    except Exception as error:
        return outcomes, error
    return outcomes, None


async def collected(batch):
    return await batch


# --- a row of ambiguous answers -----------------------------------------------------------------


@pytest.mark.parametrize("status", [407, 429])
async def test_foreign_407_and_429_to_submissions_stop_the_batch_after_five(sandbox, session, status):
    """P10: each of the five POSTs may have been processed, and none is sent again."""
    sandbox.trouble("error", status=status, html=True, times=1000)
    result = await make_batch(session, videos(20))

    assert isinstance(result.stopped, AmbiguityLimitError)
    assert [type(outcome.error) for outcome in result.failures[:5]] == [q.AmbiguousSubmissionError] * 5
    assert len(posts(sandbox)) == 5


async def test_what_is_being_looked_into_counts(sandbox, quick):
    """While five are looked into no sixth is sent, though none has ended yet."""
    sandbox.trouble("error", status=500, times=1000)
    async with sandbox.session(**quick | {"timeouts": q.Timeouts(reconcile=30.0)}) as session:
        running = asyncio.ensure_future(anext(aiter(make_batch(session, videos(100)))))
        while len(posts(sandbox)) < 5:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.1)

        assert len(posts(sandbox)) == 5
        running.cancel()
        await asyncio.wait([running])


@pytest.mark.parametrize("between", [None, 400])
async def test_another_end_between_begins_a_new_row(session, sandbox, between):
    """Four ambiguous and then a receipt or a refusal, again and again, stop nothing."""
    for _ in range(3):
        sandbox.trouble("error", status=500, times=4)
        if between is None:
            sandbox.trouble("slow", seconds=0.0)
        else:
            sandbox.trouble("error", status=between)
    result = await make_batch(session, videos(16), max_in_flight=1)

    assert result.stopped is None
    assert sum(isinstance(o.error, q.AmbiguousSubmissionError) for o in result.failures) == 12
    assert len(posts(sandbox)) == 16


async def test_doubts_apart_from_each_other_stop_nothing_however_long_they_are_looked_into(sandbox, quick):
    """Each second order in doubt, and all of the doubts end after the others' receipts: there is no row."""
    for _ in range(10):
        sandbox.trouble("slow", seconds=0.0)
        sandbox.trouble("error", status=500)
    async with sandbox.session(**quick | {"timeouts": q.Timeouts(reconcile=1.0)}) as session:
        result = await make_batch(session, videos(20))

    assert result.stopped is None
    assert sum(isinstance(o.error, q.AmbiguousSubmissionError) for o in result.failures) == 10
    assert len(posts(sandbox)) == 20


async def test_what_a_ledger_holds_as_ambiguous_doesnt_count(session, sandbox):
    """Twenty of them are twenty outcomes, and neither begin a row nor end one."""
    intent = q.Intent("1", videos(1)[0], None)
    known = {f"sku-{n}": q.AmbiguousSubmissionError("earlier", intent=intent) for n in range(20)}
    sandbox.trouble("error", status=500, times=1000)
    result = await make_batch(Stand(session, known), [*videos(20), *[q.VideoRequest("i")] * 3, *videos(20)])
    fourth = await make_batch(
        Stand(session, known), [*[q.VideoRequest("i")] * 4, *videos(20), *[q.VideoRequest("i")] * 9]
    )

    assert result.stopped is None
    assert len(result.failures) == 43
    assert isinstance(fourth.stopped, AmbiguityLimitError)
    assert len(fourth.stopped.errors) == 5
    assert len(posts(sandbox)) == 8


# --- what stops a batch -------------------------------------------------------------------------

STOPS = [
    ({"status": 401}, q.AuthenticationError),
    ({"status": 403}, q.PermissionDeniedError),
    ({"status": 402}, q.InsufficientCreditsError),
    ({"status": 407}, q.ApiError),
]


@pytest.mark.parametrize(("trouble", "error"), STOPS)
async def test_a_refusal_that_meets_all_stops_it_and_the_paid_is_handed_out(sandbox, session, trouble, error):
    """What was refused so is no outcome; what was paid for is one, with its video."""
    sandbox.trouble("slow", seconds=0.0, times=3)
    sandbox.trouble("error", times=1000, **trouble)
    source = Counted(videos(100))
    outcomes, reason = await handed_out(make_batch(session, source))

    assert type(reason) is error
    assert reason.status == trouble["status"]
    assert [outcome.ok for outcome in outcomes] == [True] * 3
    assert len(posts(sandbox)) <= 3 + 5
    assert source.read <= 3 + 5


@pytest.mark.parametrize(("trouble", "error"), STOPS)
async def test_await_gives_the_reason_as_stopped(sandbox, session, trouble, error):
    """A stopped batch that is awaited raises nothing."""
    sandbox.trouble("slow", seconds=0.0, times=3)
    sandbox.trouble("error", times=1000, **trouble)
    result = await make_batch(session, videos(100))

    assert type(result.stopped) is error
    assert len(result.records) == len(result.outcomes) == 3
    assert result.credits_reserved == 30


async def test_what_is_on_the_wire_when_it_stops_runs_to_its_answer(session, sandbox):
    """Its receipt is an outcome, and so is its file."""
    sandbox.trouble("slow", seconds=0.1)
    sandbox.trouble("error", status=401, times=1000)
    outcomes, reason = await handed_out(make_batch(session, videos(10), max_in_flight=2))

    assert isinstance(reason, q.AuthenticationError)
    assert [outcome.record.id for outcome in outcomes] == ["vid_001"]


async def test_what_is_paid_for_is_downloaded_after_it_stopped(session, sandbox, tmp_path):
    """A batch that stops waits for its downloads."""

    async def fetch(*_):
        await asyncio.sleep(0.03)

    sandbox.trouble("slow", seconds=0.0, times=2)
    sandbox.trouble("error", status=402, times=1000)
    outcomes, reason = await handed_out(
        make_batch(Stand(session, fetch=fetch), videos(10), download_to=tmp_path, max_downloads=1)
    )

    assert isinstance(reason, q.InsufficientCreditsError)
    assert [outcome.path.exists() for outcome in outcomes] == [True, True]


async def test_what_queues_for_a_slot_is_withdrawn(quick):
    """It is no outcome and is never sent, and the end doesn't wait for the quota."""
    async with Sandbox(quota=(1, 1e6)) as sandbox, sandbox.session(**quick) as session:
        await session.list_videos()
        old = session.job("vid_nowhere")
        requests = [q.VideoRequest("i", ref="old"), *videos(9)]
        running = asyncio.ensure_future(handed_out(make_batch(Stand(session, {"old": old}), requests)))
        while session.rate_limiter.waiting < 5:
            await asyncio.sleep(0.001)
        old._failed(q.AuthenticationError("revoked", status=401))
        outcomes, reason = await asyncio.wait_for(running, 5)

        assert session.rate_limiter.waiting == 0

    assert isinstance(reason, q.AuthenticationError)
    assert [outcome.job for outcome in outcomes] == [old]
    assert posts(sandbox) == []


async def test_jobs_that_meet_the_same_in_the_poll_are_outcomes(quick):
    """A key revoked while jobs run: each is an outcome with its job, and the first error is the reason."""
    async with Sandbox(job_seconds=1e6, quota=None) as sandbox, sandbox.session(**quick) as session:
        batch = make_batch(session, videos(20), max_in_flight=4)
        running = asyncio.ensure_future(handed_out(batch))
        while len(sandbox.orders) < 4:
            await asyncio.sleep(0.001)
        sandbox.trouble("error", on="GET", status=401, times=1000)
        outcomes, reason = await running

    assert isinstance(reason, q.AuthenticationError)
    assert [type(outcome.error) for outcome in outcomes] == [q.AuthenticationError] * 4
    assert all(outcome.job is not None for outcome in outcomes)
    assert len(posts(sandbox)) == 4


@pytest.mark.parametrize(
    ("trouble", "error"),
    [
        *((("error", {"status": status}), q.ApiError) for status in (400, 401, 403, 404)),
        (("error", {"status": 407, "html": True}), q.ApiError),
        (("redirect", {"status": 301}), q.InvalidResponseError),
    ],
)
async def test_a_list_that_cant_be_had_stops_it(quick, trouble, error):
    """Nobody would learn what becomes of what is paid for, so nothing more is."""
    name, options = trouble
    async with Sandbox(job_seconds=1e6, quota=None, credits=10**6) as sandbox:
        sandbox.trouble(name, on="GET", times=1000, **options)
        async with sandbox.session(**quick) as session:
            outcomes, reason = await handed_out(make_batch(session, videos(200), max_in_flight=10))

    assert isinstance(reason, error)
    assert reason.status == options["status"]
    assert len(outcomes) == len(sandbox.orders) < 50
    assert all(type(outcome.error) is type(reason) and outcome.job is not None for outcome in outcomes)


@pytest.mark.parametrize("status", [400, 404])
async def test_an_answer_that_may_be_a_proxys_is_waited_out(session, sandbox, status):
    """A 404 of something in between says nothing of the list."""
    sandbox.trouble("error", on="GET", times=2, status=status, html=True)
    result = await make_batch(session, videos(5))

    assert (result.stopped, len(result.records)) == (None, 5)


async def test_a_poll_that_can_never_connect_stops_it(session, sandbox):
    """As a registration that can't does."""
    error = q.ConnectionFailedError("certificate", permanent=True)
    old = session.job("vid_nowhere")
    sandbox.trouble("slow", seconds=0.3, times=1000)
    requests = [q.VideoRequest("i", ref="old"), *videos(20)]
    running = asyncio.ensure_future(collected(make_batch(Stand(session, {"old": old}), requests)))
    while not posts(sandbox):
        await asyncio.sleep(0.001)
    old._failed(error)
    result = await running

    assert isinstance(result.stopped, q.ConnectionFailedError)
    assert len(posts(sandbox)) <= 5


async def test_what_a_download_meets_is_its_own(session, sandbox, tmp_path):
    """A 404 there is no list that can't be had."""

    async def fetch(job, video, path):
        raise q.NotFoundError("no such record", status=404)

    result = await make_batch(Stand(session, fetch=fetch), videos(10), download_to=tmp_path)

    assert result.stopped is None
    assert [type(outcome.error) for outcome in result.outcomes] == [q.NotFoundError] * 10


async def test_a_permanent_failure_to_connect_stops_it(sandbox, quick):
    """A certificate that can't be trusted is not waited out."""
    source = Counted(videos(9))
    session = q.QameraSession(sandbox.api_key, base_url=sandbox.url.replace("http", "https"), **quick)
    async with session:
        result = await make_batch(session, source)

    assert isinstance(result.stopped, q.ConnectionFailedError)
    assert result.stopped.permanent
    assert result.outcomes == ()
    assert source.read <= 5


async def test_a_closed_session_stops_it(sandbox, quick):
    """Closing ends it; what was paid for is an outcome that says so."""
    session = sandbox.session(**quick)
    sandbox.trouble("late", seconds=100.0, times=1000)
    running = asyncio.ensure_future(handed_out(make_batch(session, videos(20), max_in_flight=3)))
    while len(sandbox.orders) < 3:
        await asyncio.sleep(0.001)
    await session.aclose()
    outcomes, reason = await running

    assert isinstance(reason, q.SessionClosedError)
    assert [type(outcome.error) for outcome in outcomes] == [q.SessionClosedError] * 3
    assert len(posts(sandbox)) == 3
    assert isinstance((await make_batch(session, videos(3))).stopped, q.SessionClosedError)


async def test_a_ledger_in_trouble_stops_it_but_a_conflict_is_one_outcome(session, sandbox):
    """Nothing is ordered that can't be written down; a receipt that couldn't be is not lost."""
    conflict = RefConflictError("other", request=videos(1)[0], earlier=videos(1)[0])
    full = LedgerUnavailableError("disk full")
    unkept = attrs.evolve(q.Receipt(("vid_x",)))
    paid = LedgerUnavailableError("disk full", receipt=unkept)
    result = await make_batch(Stand(session, {"sku-1": conflict}), videos(3))
    stopped = await make_batch(Stand(session, {"sku-2": full}), videos(50), max_in_flight=1)
    kept = await make_batch(Stand(session, {"sku-2": paid}), videos(50), max_in_flight=1)

    assert [outcome.error for outcome in result.failures] == [conflict]
    assert result.stopped is None
    assert (stopped.stopped, len(stopped.outcomes)) == (full, 2)
    assert (kept.stopped, len(kept.outcomes)) == (paid, 3)
    assert kept.failures[0].error is paid


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("after", [0, 3])
async def test_an_iterable_that_raises_stops_it(session, sandbox, after, asynchronous):
    """Its own exception is the reason, at once or later; what was ordered before is handed out."""
    error = ValueError("row 4")

    def rows():
        yield from videos(after)
        raise error

    async def arows():
        for request in videos(after):
            yield request
        raise error

    source = arows if asynchronous else rows
    outcomes, reason = await handed_out(make_batch(session, source(), max_in_flight=1))
    result = await make_batch(session, source(), max_in_flight=1)

    assert reason is error
    assert result.stopped is error
    assert [outcome.ok for outcome in outcomes] == [True] * after
    assert len(result.records) == after


async def test_an_iterable_that_cant_even_begin_stops_it(session):
    """What __iter__ raises is the reason too, and so is a cancellation of the iterable's own."""
    error = OSError("no such table")

    class Broken:
        def __iter__(self):
            raise error

    async def cancelled():
        yield videos(1)[0]
        raise asyncio.CancelledError

    result = await make_batch(session, Broken())
    own = await make_batch(session, cancelled(), max_in_flight=1)

    assert result.stopped is error
    assert isinstance(own.stopped, asyncio.CancelledError)
    assert len(own.records) == 1


@pytest.mark.parametrize("error", [StopIteration, StopAsyncIteration, GeneratorExit])
@pytest.mark.parametrize("kind", ["iterator", "begin", "generator", "async iterator", "async generator"])
async def test_an_iterable_that_raises_what_ends_loops_stops_it(session, kind, error):  # noqa: C901 - one of each kind
    """Python takes these for an end where they aren't one: the reason names them, and nothing hangs."""

    class Iterator(Counted):
        def __next__(self):
            if self.read == 1:
                raise error("odd")
            return super().__next__()

    class Begin:
        def __iter__(self):
            raise error("odd")

    def generator():
        yield videos(1)[0]
        raise error("odd")

    class AsyncIterator(Counted):
        def __aiter__(self):
            return self

        async def __anext__(self):
            if self.read == 1:
                raise error("odd")
            return super().__next__()

    async def agenerator():
        yield videos(1)[0]
        raise error("odd")

    def source():
        match kind:
            case "iterator":
                return Iterator(videos(5))
            case "begin":
                return Begin()
            case "generator":
                return generator()
            case "async iterator":
                return AsyncIterator(videos(5))
            case _:
                return agenerator()

    ends = (kind, error) in {("iterator", StopIteration), ("async iterator", StopAsyncIteration)}
    outcomes, reason = await asyncio.wait_for(handed_out(make_batch(session, source(), max_in_flight=1)), 5)
    result = await asyncio.wait_for(collected(make_batch(session, source(), max_in_flight=1)), 5)

    assert len(outcomes) == len(result.outcomes) == (0 if kind == "begin" else 1)
    for stopped in (reason, result.stopped):
        if ends:
            assert stopped is None
        else:
            assert type(stopped) is RuntimeError
            assert error.__name__ in str(stopped)


async def test_a_source_that_hangs_doesnt_keep_a_stopped_batch(session, sandbox):
    """It is ended where it waits, and closed."""
    closed = []

    async def source():
        try:
            yield videos(1)[0]
            await asyncio.sleep(1e6)
        finally:
            closed.append(True)

    sandbox.trouble("error", status=401)
    result = await make_batch(session, source())

    assert isinstance(result.stopped, q.AuthenticationError)
    assert closed == [True]


async def test_the_first_reason_wins(session, sandbox):
    """A 401 after a 402 changes nothing."""
    sandbox.trouble("error", status=402)
    sandbox.trouble("error", status=401, times=1000)
    result = await make_batch(session, videos(10), max_in_flight=1)

    assert isinstance(result.stopped, q.InsufficientCreditsError)


@pytest.mark.parametrize("status", [400, 404, 418])
async def test_any_other_refusal_is_one_outcome(session, sandbox, status):
    """The others are done."""
    sandbox.trouble("error", status=status)
    result = await make_batch(session, videos(4))

    assert [outcome.error.status for outcome in result.failures] == [status]
    assert len(result.records) == 3
    assert result.stopped is None


async def test_jobs_that_are_lost_or_late_are_outcomes(sandbox, quick):
    """JobLostError and JobTimeoutError are each one outcome with its job."""
    limits = q.Timeouts(job=0.15, appear=0.05)
    async with sandbox.session(**quick | {"timeouts": limits}) as session:
        sandbox.trouble("late", seconds=100.0)
        lost = await make_batch(session, videos(2))
    async with sandbox.session(**quick | {"timeouts": q.Timeouts(job=0.15)}) as session:
        sandbox.trouble("late", seconds=100.0)
        late = await make_batch(session, videos(2))

    assert [type(outcome.error) for outcome in lost.failures] == [q.JobLostError]
    assert [type(outcome.error) for outcome in late.failures] == [q.JobTimeoutError]
    assert (late.failures[0].job.record_ids, late.credits_refunded) == (("vid_003",), 0)


# --- what pauses it -----------------------------------------------------------------------------


async def test_in_a_pause_one_tries_and_nothing_is_read(unused_tcp_port, quick):
    """However long it takes: no more than one try at a time, with pauses that grow."""
    tries, trying, delays = [], 0, []

    class Policy:
        def delays(self):
            return iter([delays.append(n) or 0.001 for n in range(1000)])

    class Unreachable(Stand):
        async def _order(self, request, *, retry_failed, approve, withdrawn):
            nonlocal trying
            await approve()
            trying += 1
            tries.append(trying)
            await asyncio.sleep(0.002)
            trying -= 1
            raise q.ConnectionFailedError("refused")

    session = q.QameraSession("mk_live_a.bcdefgh", base_url=f"http://127.0.0.1:{unused_tcp_port}", **quick)
    source = Counted(videos(100))
    async with session:
        running = asyncio.ensure_future(handed_out(make_batch(Unreachable(session), source)))
        while len(tries) < 50:
            await asyncio.sleep(0.001)
        running.cancel()
        await asyncio.wait([running])

    assert tries[:5] == [1, 2, 3, 4, 5]
    assert set(tries[5:]) == {1}
    assert source.read == 5


async def test_the_pause_follows_the_retry_policy_and_ends_for_all(session, sandbox):
    """The waits are RetryPolicy.delays(), taken up from the first in the next outage."""
    waits, real = [], asyncio.sleep

    class Policy:
        def delays(self):
            for number in range(1, 100):
                waits.append(number)
                yield 0.001

    class Away(Stand):
        left = 12

        async def _order(self, request, *, retry_failed, approve, withdrawn):
            if Away.left:

                async def then_fail():
                    await approve()
                    if Away.left:
                        Away.left -= 1
                        raise q.RequestTimeoutError("not sent", sent=False)

                return await super()._order(
                    request, retry_failed=retry_failed, approve=then_fail, withdrawn=withdrawn
                )
            return await super()._order(
                request, retry_failed=retry_failed, approve=approve, withdrawn=withdrawn
            )

    stand = Away(session)
    session._retry = Policy()
    first = await make_batch(stand, videos(10))
    counted = list(waits)
    Away.left = 7
    second = await make_batch(stand, videos(10))

    assert (len(first.records), len(second.records)) == (10, 10)
    assert counted == [1, 2, 3, 4, 5, 6, 7, 8]
    assert waits[len(counted) :] == [1, 2, 3]
    assert len(posts(sandbox)) == 20
    assert real is asyncio.sleep


async def test_a_pause_is_told_when_it_begins_and_when_it_ends(session, sandbox, caplog):
    """One WARNING and one INFO for each, however often it is tried meanwhile."""
    caplog.set_level("INFO", "qamera_async")

    class Away(Stand):
        left = 12

        async def _order(self, request, *, retry_failed, approve, withdrawn):
            async def then_fail():
                await approve()
                if Away.left:
                    Away.left -= 1
                    raise q.ConnectionFailedError("No connection to example.com")

            return await super()._order(
                request, retry_failed=retry_failed, approve=then_fail, withdrawn=withdrawn
            )

    def told():
        lines = [r for r in caplog.records if r.name == "qamera_async" and "the batch" in r.getMessage()]
        return [(r.levelname, r.getMessage()) for r in lines]

    stand = Away(session)
    await make_batch(stand, videos(10))
    first = told()
    Away.left = 1
    await make_batch(stand, videos(2))

    assert [level for level, _ in first] == ["WARNING", "INFO"]
    assert "can't be reached: " in first[0][1]
    assert "No connection to example.com" in first[0][1]
    assert first[0][1].endswith("the batch waits and goes on by itself")
    assert told() == first * 2


async def test_a_batch_without_a_pause_tells_of_none(session, sandbox, caplog):
    """Not of an end of one either."""
    caplog.set_level("INFO", "qamera_async")
    sandbox.trouble("error", status=400)
    await make_batch(session, videos(3))

    assert "the batch" not in caplog.text


async def test_a_pause_can_be_stopped(session, sandbox):
    """A job in flight that meets a 401 ends a batch that waits for the network."""

    class Away(Stand):
        async def _order(self, request, *, retry_failed, approve, withdrawn):
            async def then_fail():
                await approve()
                raise q.ConnectionFailedError("refused")

            return await super()._order(
                request, retry_failed=retry_failed, approve=then_fail, withdrawn=withdrawn
            )

    old = session.job("vid_nowhere")
    session._retry = q.RetryPolicy(base=1000.0, max_delay=1000.0)
    requests = [q.VideoRequest("i", ref="old"), *videos(20)]
    running = asyncio.ensure_future(handed_out(make_batch(Away(session, {"old": old}), requests)))
    while not [r for r in sandbox.requests if r.method == "GET"]:
        await asyncio.sleep(0.001)
    sandbox.trouble("error", on="GET", status=401)
    outcomes, reason = await asyncio.wait_for(running, 5)

    assert isinstance(reason, q.AuthenticationError)
    assert [outcome.job for outcome in outcomes] == [old]
    assert posts(sandbox) == []


async def test_in_a_pause_nothing_is_read_though_there_is_room(session, sandbox):
    """A slow source is not asked for the next request while nothing can be reached."""
    read = []

    async def source():
        for request in videos(10):
            read.append(request)
            yield request
            await asyncio.sleep(0.005)

    class Away(Stand):
        away = True

        async def _order(self, request, *, retry_failed, approve, withdrawn):
            async def then_fail():
                await approve()
                if self.away:
                    raise q.ConnectionFailedError("refused")

            return await super()._order(
                request, retry_failed=retry_failed, approve=then_fail, withdrawn=withdrawn
            )

    stand = Away(session)
    running = asyncio.ensure_future(handed_out(make_batch(stand, source())))
    await asyncio.sleep(0.1)
    in_the_pause = len(read)
    stand.away = False
    outcomes, reason = await running

    assert in_the_pause == 2  # the second was being asked for when the first failed
    assert (len(outcomes), reason) == (10, None)
    assert len(posts(sandbox)) == 10


async def test_what_comes_to_be_ordered_after_it_stopped_is_not(session, sandbox):
    """A look into the ledger that ends late orders nothing any more."""
    old = session.job("vid_nowhere")
    looked = asyncio.Event()

    class Slow(Stand):
        async def _order(self, request, *, retry_failed, approve, withdrawn):
            if request.ref in self.known:
                return self.known[request.ref]
            await looked.wait()
            return await self.session._order(request, retry_failed=retry_failed, approve=approve)

    requests = [q.VideoRequest("i", ref="old"), *videos(9)]
    running = asyncio.ensure_future(handed_out(make_batch(Slow(session, {"old": old}), requests)))
    while not [r for r in sandbox.requests if r.method == "GET"]:
        await asyncio.sleep(0.001)
    old._failed(q.AuthenticationError("revoked", status=401))
    await asyncio.sleep(0.01)
    looked.set()
    outcomes, _ = await running

    assert [outcome.job for outcome in outcomes] == [old]
    assert posts(sandbox) == []


async def test_a_pause_whose_only_item_ends_otherwise_is_tried_by_the_next(session, sandbox):
    """Another process orders what waits for the network: the batch reads on, and that one finds out."""
    known = await session.register_video(image_id="i")

    class Elsewhere(Stand):
        tries = 0

        async def _order(self, request, *, retry_failed, approve, withdrawn):
            if request.ref == "sku-0":
                self.tries += 1
                if self.tries > 1:
                    return known
                await approve()
                raise q.ConnectionFailedError("refused")
            return await super()._order(
                request, retry_failed=retry_failed, approve=approve, withdrawn=withdrawn
            )

    batch = make_batch(Elsewhere(session), videos(3), max_in_flight=1)
    outcomes, reason = await asyncio.wait_for(handed_out(batch), 5)

    assert [outcome.ok for outcome in outcomes] == [True] * 3
    assert reason is None
    assert len(posts(sandbox)) == 3


async def test_only_what_is_provably_unsent_is_submitted_again(session, sandbox):
    """Where a byte may have left, whoever says so, it is one outcome."""
    error = q.RequestTimeoutError("half of it was sent", sent=True)

    class Half(Stand):
        async def _order(self, request, *, retry_failed, approve, withdrawn):
            await approve()
            if request.ref == "sku-1":
                raise error
            return await self.session._order(request, retry_failed=retry_failed)

    result = await asyncio.wait_for(collected(make_batch(Half(session), videos(3))), 5)

    assert [outcome.error for outcome in result.outcomes] == [None, error, None]
    assert len(posts(sandbox)) == 2
