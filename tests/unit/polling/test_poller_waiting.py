"""The poller: when it sends requests, and which waiters get the results."""

import asyncio
import contextvars
import logging
import math

import pytest
from fake_api import Polling, done, error_response, item, response

import qamera_async as q
from qamera_async._protocol import parse_list
from qamera_async.events import Polled, RateLimitWait, Updated

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")


async def pass_intervals(seconds=0.05):
    """Wait for some poll intervals."""
    await asyncio.sleep(seconds)


# --- one poll for all waiters -----------------------------------------------------------------------


async def test_many_waiters_share_one_poll(polling):
    tasks = await polling.waiting(*[polling.job(f"vid_{n}") for n in range(50)])
    await polling.api.respond(response([done(f"vid_{n}") for n in range(50)]))

    videos = [task.result() for task in tasks]
    assert [video.id for video in videos] == [f"vid_{n}" for n in range(50)]
    assert len(polling.api.requests) == 1


async def test_no_waiter_means_no_request(polling):
    job = polling.job("vid_1")
    await pass_intervals()
    assert polling.api.requests == []

    task = await polling.waiting(job)
    await polling.api.respond(response([done("vid_1")]))
    await task
    await job
    await pass_intervals()

    assert len(polling.api.requests) == 1


async def test_last_waiter_leaving_before_the_poll_means_no_request(polling):
    polling.limiter.blocked = True
    task = await polling.waiting(polling.job("vid_1"))
    task.cancel()
    await asyncio.wait([task])
    polling.limiter.blocked = False
    await pass_intervals()

    assert polling.api.requests == []


async def test_last_waiter_leaving_during_a_poll_lets_it_end(polling):
    """A cancelled request would occupy its slot for longer."""
    task = await polling.waiting(polling.job("vid_1"))
    await polling.api.sent.wait()
    task.cancel()
    await asyncio.wait([task])
    assert polling.api.pending is not None

    await polling.api.respond(response([item("vid_1")]))
    await pass_intervals()

    assert len(polling.api.requests) == 1
    assert polling.poller.list_number == 1


async def test_cancelled_waiter_leaves_the_others(polling):
    job = polling.job("vid_1")
    first, second = await polling.waiting(job, job)
    first.cancel()
    await polling.api.respond(response([done("vid_1")]))

    assert (await second).id == "vid_1"
    assert first.cancelled()


async def test_new_job_is_polled_for_one_interval_after_its_creation():
    polling = Polling(interval=0.05)
    loop = asyncio.get_running_loop()
    created_at = loop.time()
    task = await polling.waiting(polling.job("vid_1", created_at=created_at))
    await polling.api.sent.wait()
    sent_at = loop.time()
    await polling.api.respond(response([done("vid_1")]))
    await task

    assert sent_at - created_at >= 0.05
    await polling.poller.aclose()


async def test_fresh_list_answers_a_new_waiter(polling):
    polling = Polling(interval=10.0)
    task = await polling.waiting(polling.job("vid_1"))
    await polling.api.respond(response([done("vid_1"), done("vid_2")]))
    await task

    assert (await polling.job("vid_2")).id == "vid_2"
    assert len(polling.api.requests) == 1
    await polling.poller.aclose()


# --- 429 --------------------------------------------------------------------------------------------


@pytest.mark.case(89)
async def test_no_request_after_a_429_without_waiters(polling):
    """The last waiter leaves while its poll is on the wire, and the response is a 429."""
    task = await polling.waiting(polling.job("vid_1"))
    await polling.api.sent.wait()
    task.cancel()
    await asyncio.wait([task])

    await polling.api.respond(error_response(429))
    await pass_intervals()

    assert len(polling.api.requests) == 1
    assert polling.of(RateLimitWait) == []


async def test_poll_is_repeated_after_a_429(polling):
    polling.limiter.cooldown = 2.0
    task = await polling.waiting(polling.job("vid_1"))
    await polling.api.respond(error_response(429))
    assert isinstance(polling.poller.last_error, q.RateLimitError)
    await polling.api.respond(response([done("vid_1")]))

    assert (await task).id == "vid_1"
    assert polling.of(RateLimitWait) == [RateLimitWait(2.0)]
    assert polling.poller.last_error is None


async def test_exhausted_rate_limit_fails_the_waiters(polling):
    task = await polling.waiting(polling.job("vid_1"))
    polling.limiter.exhausted = True
    await polling.api.respond(error_response(429))

    with pytest.raises(q.RateLimitError):
        await task


async def test_waiting_for_a_slot_is_an_event(polling):
    polling.limiter.blocked = True
    task = await polling.waiting(polling.job("vid_1"))
    await pass_intervals()
    task.cancel()

    assert polling.of(RateLimitWait) == [RateLimitWait(60.0)]


# --- failures ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "failure",
    [
        error_response(500),
        q.RequestTimeoutError("x", sent=True),
        q.ConnectionFailedError("x"),
        response([], status=502),
    ],
    ids=["500", "no response", "no network", "502"],
)
async def test_outage_slows_polling_down_and_fails_no_waiter(polling, failure):
    task = await polling.waiting(polling.job("vid_1"))
    await polling.api.respond(failure)
    assert polling.poller.last_error is not None
    await polling.api.respond(response([done("vid_1")]))

    (_, failed_at), (repeated_at, _) = polling.api.exchanges
    assert (await task).id == "vid_1"
    assert repeated_at - failed_at >= 0.9 * 2 * polling.polling.interval


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (error_response(400), q.BadRequestError),
        (error_response(401), q.AuthenticationError),
        (error_response(403), q.PermissionDeniedError),
        (error_response(404), q.NotFoundError),
        (response([], status=307), q.InvalidResponseError),
        (q.ConnectionFailedError("x", permanent=True), q.ConnectionFailedError),
    ],
    ids=["400", "401", "403", "404", "redirect", "certificate"],
)
async def test_permanent_error_fails_every_waiter(polling, failure, error):
    first, second = polling.job("vid_1"), polling.job("vid_2")
    tasks = await polling.waiting(first, first, second)
    await polling.api.respond(failure)

    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(each) for each in errors] == [error] * 3
    assert len({id(each) for each in errors}) == 3


async def test_unexpected_error_is_logged_and_polling_restarts(polling, caplog):
    task = await polling.waiting(polling.job("vid_1"))
    await polling.api.respond(RuntimeError("a bug"))
    with pytest.raises(q.QameraError, match="RuntimeError"):
        await task
    assert "a bug" in caplog.text

    task = await polling.waiting(polling.job("vid_1"))
    await polling.api.respond(response([done("vid_1")]))

    assert (await task).id == "vid_1"


@pytest.mark.parametrize("error", [asyncio.CancelledError(), ValueError("x")], ids=["cancelled", "other"])
async def test_poller_survives_a_callback_that_raises(caplog, error):
    """A callback that raises CancelledError ends the task of the poller, and a new task is started."""

    def emit(event):
        if isinstance(event, Updated):
            raise error

    polling = Polling(emit=emit)
    task = await polling.waiting(polling.job("vid_1"))
    await polling.api.respond(response([done("vid_1")]))
    with pytest.raises(q.QameraError):
        await asyncio.wait_for(task, 5)
    assert "stopped unexpectedly" in caplog.text

    polling.poller._emit = lambda _: None
    task = await polling.waiting(polling.job("vid_2"))
    await polling.api.respond(response([done("vid_2")]))

    assert (await asyncio.wait_for(task, 5)).id == "vid_2"
    await polling.poller.aclose()


async def test_poller_whose_task_is_cancelled_fails_its_waiters(polling, caplog):
    task = await polling.waiting(polling.job("vid_1"))
    await polling.api.sent.wait()
    (poller,) = [each for each in asyncio.all_tasks() if each.get_name().startswith("qamera-poller")]
    poller.cancel()

    with pytest.raises(q.QameraError, match="cancelled"):
        await asyncio.wait_for(task, 5)
    assert "stopped unexpectedly" in caplog.text


async def test_closing_fails_the_waiters(polling):
    task = await polling.waiting(polling.job("vid_1"))
    asking = asyncio.ensure_future(polling.poller.next_list())
    await polling.api.sent.wait()
    await polling.poller.aclose()

    for each in (task, asking):
        with pytest.raises(q.SessionClosedError):
            await each
    with pytest.raises(q.SessionClosedError):
        await polling.poller.next_list()
    with pytest.raises(q.SessionClosedError):
        await polling.job("vid_1")
    assert [each for each in asyncio.all_tasks() if each.get_name().startswith("qamera")] == []


# --- lists ------------------------------------------------------------------------------------------


async def test_next_list_ignores_the_poll_on_the_wire(polling):
    task = await polling.waiting(polling.job("vid_1"))
    await polling.api.sent.wait()
    asking = asyncio.ensure_future(polling.poller.next_list())
    await polling.api.respond(response([item("vid_1")]))
    assert not asking.done()
    await polling.api.respond(response([done("vid_1"), done("vid_2")]))

    assert "vid_2" in (await asking).entries
    await task


async def test_next_list_waits_through_an_outage_unless_told_otherwise(polling):
    asking = [
        asyncio.ensure_future(polling.poller.next_list(raise_on_failure=once)) for once in (False, True)
    ]
    await polling.api.respond(error_response(500))
    with pytest.raises(q.ServerError):
        await asking[1]
    assert not asking[0].done()
    await polling.api.respond(response([item("vid_1")]))

    assert "vid_1" in (await asking[0]).entries
    await pass_intervals()
    assert len(polling.api.requests) == 2


async def test_fetch_list_is_retried_and_noted(polling):
    fetching = asyncio.ensure_future(polling.poller.fetch_list())
    await polling.api.respond(error_response(500))
    await polling.api.respond(error_response(429))
    await polling.api.respond(response([item("vid_1")]))

    assert "vid_1" in (await fetching).entries
    assert [priority.name for priority, _ in polling.limiter.slots] == ["SUBMISSION"] * 3
    assert polling.poller.new_since(["vid_1", "vid_2"], polling.poller.list_number) == {"vid_2"}


async def test_fetch_list_gives_up_on_an_exhausted_rate_limit(polling):
    polling.limiter.exhausted = True
    fetching = asyncio.ensure_future(polling.poller.fetch_list())
    await polling.api.respond(error_response(429))

    with pytest.raises(q.RateLimitError):
        await fetching
    assert len(polling.api.requests) == 1


async def test_fetch_list_does_not_hide_a_change_from_the_polls(polling):
    """The next poll has the same list as `fetch_list`, and still notifies the waiter."""
    job = polling.job("vid_1")
    task = await polling.waiting(job)
    await polling.api.respond(response([item("vid_1")]))
    fetching = asyncio.ensure_future(polling.poller.fetch_list())
    await polling.api.respond(response([done("vid_1")]))
    await fetching
    await polling.api.respond(response([done("vid_1")]))

    assert (await task).status == "DONE"


async def test_polled_event_counts_records_changes_and_watched(polling):
    tasks = await polling.waiting(polling.job("vid_1"), polling.job("vid_2"))
    await polling.api.respond(response([item("vid_1"), item("vid_2"), item("vid_3")]))
    await polling.api.respond(response([done("vid_1"), item("vid_2"), item("vid_3")]))
    tasks[1].cancel()

    assert polling.of(Polled) == [Polled(3, 2, 2), Polled(3, 1, 1)]


async def test_statistics_count_waiters_and_records(polling):
    pair, single = polling.job("vid_1", "vid_2"), polling.job("vid_2")
    tasks = await polling.waiting(pair, pair, single)

    assert (polling.poller.watched, polling.poller.waiters) == (2, 3)
    assert polling.poller.list_age is None
    await polling.api.respond(response([item("vid_1")]))
    assert polling.poller.list_age < 5
    assert polling.poller.polls == 1
    for task in tasks:
        task.cancel()


# --- ETags ------------------------------------------------------------------------------------------


async def test_unchanged_list_is_requested_by_its_etag(polling):
    job = polling.job("vid_1")
    task = await polling.waiting(job)
    tagged = {"etag": '"abc"'}
    first = await polling.api.respond(response([item("vid_1")], headers=tagged))
    second = await polling.api.respond(response([], status=304, headers=tagged))
    third = await polling.api.respond(response([done("vid_1")], headers=tagged))

    assert "If-None-Match" not in first.headers
    assert second.headers["If-None-Match"] == third.headers["If-None-Match"] == '"abc"'
    assert (await task).status == "DONE"


async def test_etag_is_trusted_for_a_minute_only(polling, monkeypatch):
    """A server with wrong ETags can hide a change for a minute at most."""
    monkeypatch.setattr("qamera_async._polling.poller._ETAG_TRUST", 0.0)
    task = await polling.waiting(polling.job("vid_1"))
    tagged = {"etag": '"abc"'}
    await polling.api.respond(response([item("vid_1")], headers=tagged))
    await pass_intervals(0.01)
    request = await polling.api.respond(response([done("vid_1")], headers=tagged))

    assert "If-None-Match" not in request.headers
    assert (await task).status == "DONE"


async def test_304_counts_as_a_list_without_the_record():
    polling = Polling(appear=0.02)
    task = await polling.waiting(polling.job("vid_1"))
    tagged = {"etag": '"abc"'}
    await polling.api.respond(response([item("vid_2")], headers=tagged))
    while not task.done():
        await polling.api.respond(response([], status=304, headers=tagged))

    with pytest.raises(q.JobLostError):
        await task
    await polling.poller.aclose()


# --- long lists -------------------------------------------------------------------------------------


LONG = response([done("vid_1"), *[item(f"other_{n}", name="x" * 50) for n in range(2_000)]])


async def test_other_tasks_run_while_a_long_list_is_processed(polling):
    task = await polling.waiting(polling.job("vid_1"))
    await polling.api.sent.wait()
    polling.api.answer(LONG)
    iterations = 0
    while not task.done():
        await asyncio.sleep(0)
        iterations += 1

    assert iterations >= 4


async def test_waiter_that_leaves_while_a_list_is_read_is_not_notified(polling, monkeypatch):
    """The list still counts as shown."""

    def parse_and_cancel(*arguments):
        records = parse_list(*arguments)
        task.cancel()
        return records

    monkeypatch.setattr("qamera_async._polling.poller.parse_list", parse_and_cancel)
    job = polling.job("vid_1")
    task = await polling.waiting(job)
    await polling.api.respond(LONG)

    assert task.cancelled()
    assert not job.done()
    assert polling.poller.new_since(["other_1"], 1) == set()


# --- statuses and warnings --------------------------------------------------------------------------


async def test_unknown_status_is_pending_and_warned_of_once(polling, caplog):
    caplog.set_level(logging.WARNING, "qamera_async")
    tasks = await polling.waiting(polling.job("vid_1"), polling.job("vid_2"))
    await polling.api.respond(response([item("vid_1", "DREAMING"), item("vid_2", "DREAMING")]))
    await polling.api.respond(response([item("vid_1", "WAKING"), item("vid_2", "DREAMING")]))
    for task in tasks:
        assert not task.done()
        task.cancel()

    assert [caplog.text.count(status) for status in ("DREAMING", "WAKING")] == [1, 1]


async def test_number_of_warnings_is_limited(polling, caplog):
    task = await polling.waiting(polling.job("vid_1"))
    for number in range(150):
        await polling.api.respond(response([item("vid_1", f"S{number}")]))
    task.cancel()

    assert len([record for record in caplog.records if "Unknown status" in record.getMessage()]) == 100


async def test_status_null_is_an_empty_status(polling):
    job = polling.job("vid_1")
    task = await polling.waiting(job)
    await polling.api.respond(response([item("vid_1", None)]))
    assert (job.status, job.state) == ("", q.JobState.PENDING)
    await polling.api.respond(response([item("vid_1", None), item("vid_2")]))
    assert len(polling.of(Updated)) == 1
    await polling.api.respond(response([done("vid_1")]))

    assert (await task).status == "DONE"


async def test_done_without_a_url_is_given_a_minute(polling, monkeypatch):
    job = polling.job("vid_1")
    task = await polling.waiting(job)
    await polling.api.respond(response([item("vid_1", "DONE")]))
    await polling.api.respond(response([item("vid_1", "DONE")]))
    assert not job.done()
    await polling.api.respond(response([done("vid_1")]))

    assert (await task).video_url is not None
    assert len(polling.of(Updated)) == 2


async def test_done_without_a_url_is_final_after_a_minute(polling, monkeypatch):
    job = polling.job("vid_1")
    task = await polling.waiting(job)
    await polling.api.respond(response([item("vid_1", "DONE")]))
    monkeypatch.setattr("qamera_async._polling.poller._URL_GRACE", 0.0)
    await polling.api.respond(response([item("vid_1", "DONE")]))

    assert (await task).video_url is None
    assert len(polling.of(Updated)) == 1


# --- missing records --------------------------------------------------------------------------------


async def test_new_record_may_be_missing_for_the_time_to_appear():
    polling = Polling(appear=0.05)
    loop = asyncio.get_running_loop()
    created_at = loop.time()
    task = await polling.waiting(polling.job("vid_1", "vid_2", created_at=created_at))
    while not task.done():
        await polling.api.respond(response([item("vid_2")]))

    assert loop.time() - created_at >= 0.05
    with pytest.raises(q.JobLostError) as lost:
        await task
    assert lost.value.record is None
    assert lost.value.record_ids == ("vid_1", "vid_2")
    await polling.poller.aclose()


async def test_seen_record_is_lost_after_three_polls_without_it():
    polling = Polling(missing=0.0)
    job = polling.job("vid_1", "vid_2")
    task = await polling.waiting(job)
    await polling.api.respond(response([item("vid_1", "PROCESSING"), item("vid_2")]))
    for _ in range(2):
        await polling.api.respond(response([item("vid_2")]))
        assert not task.done()
    await polling.api.respond(response([item("vid_2")]))

    with pytest.raises(q.JobLostError) as lost:
        await task
    assert lost.value.record.status == "PROCESSING"
    assert lost.value.record_ids == ("vid_1", "vid_2")
    assert job.status == "PROCESSING"
    await polling.poller.aclose()


async def test_absence_from_an_incomplete_list_does_not_count():
    polling = Polling(appear=0.0)
    task = await polling.waiting(polling.job("vid_1"))
    for _ in range(4):
        await polling.api.respond(response([item("vid_2")], count=2))

    assert not task.done()
    task.cancel()
    await polling.poller.aclose()


async def test_absence_counts_only_for_jobs_that_waited_before_the_poll():
    polling = Polling(appear=0.0)
    first = await polling.waiting(polling.job("vid_1"))
    await polling.api.sent.wait()
    await asyncio.sleep(0.002)
    second = await polling.waiting(polling.job("vid_1", "vid_2"))
    await polling.api.respond(response([]))

    assert first.done()
    assert not second.done()
    first.exception()
    second.cancel()
    await polling.poller.aclose()


async def test_each_wait_for_an_unseen_record_begins_anew():
    polling = Polling(appear=0.1)
    job = polling.job("vid_1")
    for _ in range(3):
        task = await polling.waiting(job, timeout=0.06)
        while not task.done():
            polling.api.sent.clear() if polling.api.pending is None else polling.api.answer(response([]))
            await asyncio.sleep(0.005)
        with pytest.raises(q.JobTimeoutError):
            await task
    if polling.api.pending is not None:
        polling.api.answer(response([]))
    await polling.poller.aclose()


def test_infinite_interval_is_refused():
    with pytest.raises(q.ConfigurationError):
        q.PollPolicy(interval=math.inf)


async def test_poller_does_not_run_in_the_context_of_a_waiter(polling):
    variable, values = contextvars.ContextVar("variable", default=None), []
    polling.poller._emit = lambda _: values.append(variable.get())

    async def wait():
        variable.set("a request of a web application")
        await polling.job("vid_1")

    task = asyncio.ensure_future(wait())
    await polling.api.respond(response([done("vid_1")]))
    await task

    assert set(values) == {None}


async def test_each_wait_for_a_seen_record_begins_anew():
    polling = Polling(missing=0.0)
    job = polling.job("vid_1")
    task = await polling.waiting(job)
    for items in ([item("vid_1")], [], []):
        await polling.api.respond(response(items))
    task.cancel()
    await asyncio.wait([task])
    task = await polling.waiting(job)
    for _ in range(2):
        await polling.api.respond(response([]))
        assert not task.done()
    await polling.api.respond(response([]))

    with pytest.raises(q.JobLostError):
        await task
    await polling.poller.aclose()


async def test_unsolicited_304_is_an_outage(polling):
    """A broken cache may recover, so no waiter fails."""
    task = await polling.waiting(polling.job("vid_1"))
    await polling.api.respond(response([], status=304))
    assert isinstance(polling.poller.last_error, q.InvalidResponseError)
    await polling.api.respond(response([done("vid_1")]))

    assert (await task).id == "vid_1"


async def test_new_waiter_is_notified_by_an_unchanged_list(polling):
    """The known list is too old for a new waiter, and the next poll returns the same list."""
    tagged = {"etag": '"abc"'}
    first = await polling.waiting(polling.job("vid_1"))
    await polling.api.respond(response([item("vid_1"), done("vid_2")], headers=tagged))
    polling.poller._last_success_at = -math.inf
    second = await polling.waiting(polling.job("vid_2"))
    assert not second.done()
    await polling.api.respond(response([], status=304, headers=tagged))

    assert (await second).id == "vid_2"
    first.cancel()
