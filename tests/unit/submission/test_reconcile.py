"""Candidates: the records that may belong to an ambiguous submission."""

import asyncio
from datetime import timedelta

import pytest
from submission_parts import LONG, VIDEO, Parts, Pause, accepts, answers, connection_lost, loses, now

import qamera_async as q
from qamera_async._submission.claim import suspension_clock
from qamera_async.ledger.rows import LedgerState, Row

pytestmark = [pytest.mark.every_loop, pytest.mark.usefixtures("no_lost_exceptions")]

SHORT = 0.05  # seconds; the time of a search that finds nothing
LOST = loses(connection_lost(sent=True))


async def ambiguous(parts):
    """Submit, and return the ids of the candidates."""
    return [record.id for record in (await failure(parts.register())).candidates]


async def failure(submission):
    with pytest.raises(q.AmbiguousSubmissionError) as lost:
        await submission
    return lost.value


def created(record_id, moment):
    return {"id": record_id, "status": "PENDING", "createdAt": moment.isoformat()}


# --- after a list was seen ------------------------------------------------------------------------


async def test_record_that_is_new_since_the_submission_is_a_candidate():
    parts = Parts(LOST, lists=[("old",), ("old", "new")], reconcile=LONG)
    parts.poller.show(["old"])

    assert await ambiguous(parts) == ["new"]
    assert parts.poller.lists == []


async def test_candidates_are_in_the_ledger_and_the_event():
    parts = Parts(LOST, lists=[("new",)], reconcile=LONG)
    parts.poller.show(["old"])
    error = await failure(parts.register())

    assert error.intent.candidates == error.candidates
    assert parts.events[0].intent == error.intent


async def test_record_that_an_earlier_list_showed_is_no_candidate():
    """The last list before the submission may lack the record."""
    parts = Parts(LOST, lists=[("a", "b", "new")], reconcile=LONG)
    parts.poller.show(["a", "b"])
    parts.poller.show(["b"])

    assert await ambiguous(parts) == ["new"]


@pytest.mark.parametrize("script", [LOST, answers(500, {}), answers(200, {})])
async def test_search_ends_without_candidates_after_its_time(script):
    parts = Parts(script, lists=[("old",)], reconcile=SHORT)
    parts.poller.show(["old"])

    assert await ambiguous(parts) == []
    assert parts.poller.exhausted.is_set()


async def test_no_search_if_its_time_is_zero():
    parts = Parts(LOST, lists=[("new",)], reconcile=0.0)
    parts.poller.show(["old"])

    assert await ambiguous(parts) == []
    assert parts.poller.lists == [("new",)]


async def test_record_on_a_receipt_of_this_session_is_no_candidate():
    parts = Parts(accepts("vid_a"), LOST, lists=[("vid_a", "new")], reconcile=LONG)
    parts.poller.show(["old"])
    await parts.register()

    assert await ambiguous(parts) == ["new"]


async def test_receipt_that_arrives_during_the_search_takes_its_record():
    """While another submission waits for its answer, any candidate may be its record."""
    pause = Pause("sent", accepts("vid_b"))
    parts = Parts(pause, LOST, lists=[("vid_b",), ("vid_b", "new")], reconcile=LONG)
    parts.poller.show(["old"])
    other = asyncio.ensure_future(parts.register())
    await pause.reached.wait()
    search = asyncio.ensure_future(ambiguous(parts))
    await parts.poller.exhausted.wait()
    assert not search.done()
    pause.resume.set()
    await other
    parts.submitter.reconciler.stop()

    assert await search == ["new"]


async def test_receipts_are_kept_while_an_older_submission_is_open():
    """The lists with their records were fetched after the older submission was sent."""
    pause = Pause("sent", LOST)
    parts = Parts(
        pause, accepts("vid_b"), accepts("vid_c"), lists=[("vid_b", "vid_c", "new")], reconcile=LONG
    )
    parts.poller.show(["old"])
    older = asyncio.ensure_future(ambiguous(parts))
    await pause.reached.wait()
    await parts.register()
    parts.poller.show(["vid_b"])
    await parts.register()
    pause.resume.set()

    assert await older == ["new"]


async def test_receipts_that_a_list_has_shown_are_no_candidates():
    parts = Parts(accepts("vid_a"), accepts("vid_b"), LOST, lists=[("vid_a", "vid_b", "new")], reconcile=LONG)
    parts.poller.show(["old"])
    await parts.register()
    parts.poller.show(["vid_a"])
    await parts.register()

    assert await ambiguous(parts) == ["new"]


async def test_number_of_kept_receipts_is_bounded(monkeypatch):
    monkeypatch.setattr("qamera_async._submission.reconcile._MAX_RECEIPT_IDS", 2)
    parts = Parts(accepts("a"), accepts("b"), accepts("c"), LOST, lists=[("a", "b", "c")], reconcile=LONG)
    parts.poller.show(["old"])
    for _ in range(3):
        await parts.register()

    assert await ambiguous(parts) == ["a"]


async def test_search_goes_on_while_another_process_is_sending():
    parts = Parts(LOST, lists=[("new",)], reconcile=SHORT)
    parts.poller.show(["old"])
    parts.ledger.sending_elsewhere = True

    assert await ambiguous(parts) == ["new"]
    assert parts.poller.exhausted.is_set()


async def test_record_on_a_receipt_of_another_process_is_no_candidate():
    parts = Parts(LOST, lists=[("other", "new")], reconcile=LONG)
    parts.poller.show(["old"])
    parts.ledger.claimed_elsewhere = {"other"}

    assert await ambiguous(parts) == ["new"]


# --- before any list was seen ---------------------------------------------------------------------


async def test_record_created_during_the_exchange_is_a_candidate():
    """The time is that of the server's clock, which may be off by a minute."""
    date = now() + timedelta(days=3)
    records = [
        created("long before", date - timedelta(seconds=75)),
        created("shortly before", date - timedelta(seconds=45)),
        created("now", date),
        created("shortly after", date + timedelta(seconds=45)),
        created("long after", date + timedelta(seconds=75)),
        {"id": "unknown", "status": "PENDING"},
    ]
    parts = Parts(LOST, lists=[records], date=date, reconcile=LONG)

    assert await ambiguous(parts) == ["shortly before", "now", "shortly after"]


async def test_list_without_a_date_gives_no_candidates():
    parts = Parts(LOST, lists=[[created("new", now())]], reconcile=SHORT)

    assert await ambiguous(parts) == []


@pytest.mark.parametrize("year", [1, 9999])
async def test_date_at_the_limits_of_datetime_leaves_the_submission_ambiguous(year):
    date = now().replace(year=year, month=1 if year == 1 else 12, day=1 if year == 1 else 31)
    parts = Parts(LOST, lists=[[created("new", date)]], date=date, reconcile=SHORT)
    await ambiguous(parts)

    assert parts.states == ["ambiguous"]


async def test_receipt_of_this_session_is_no_candidate_by_time():
    date = now()
    records = [created("vid_a", date), created("new", date)]
    parts = Parts(accepts("vid_a"), LOST, lists=[records], date=date, reconcile=LONG)
    await parts.register()

    assert await ambiguous(parts) == ["new"]


async def test_suspension_of_the_machine_counts_as_time(monkeypatch):
    """The clock of the loop stops during a suspension; the clock of the server does not."""
    monkeypatch.setattr(
        "qamera_async._submission.reconcile.suspension_clock", lambda: suspension_clock() + 3600
    )
    date = now()
    records = [created("new", date - timedelta(hours=1)), created("other", date)]
    parts = Parts(LOST, lists=[records], date=date, reconcile=LONG)

    assert await ambiguous(parts) == ["new"]


# --- several ambiguous submissions ----------------------------------------------------------------


async def test_ambiguous_submissions_at_one_time_may_share_candidates():
    parts = Parts(LOST, lists=[("a", "b")] * 2, reconcile=LONG)
    parts.poller.show(["old"])
    one, other = await asyncio.gather(failure(parts.register()), failure(parts.register()))

    assert one.may_share_candidates
    assert other.may_share_candidates
    assert (
        {record.id for record in one.candidates} == {record.id for record in other.candidates} == {"a", "b"}
    )


async def test_ambiguous_submissions_one_after_the_other_do_not_share():
    parts = Parts(LOST, lists=[("a",), ("a", "b")], reconcile=LONG)
    parts.poller.show(["old"])
    one, other = [await failure(parts.register()) for _ in range(2)]

    assert not one.may_share_candidates
    assert not other.may_share_candidates
    assert [record.id for record in other.candidates] == ["b"]


# --- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [q.AuthenticationError("No.", status=401), q.RequestTimeoutError("Late."), LookupError("A defect.")],
)
async def test_failed_search_still_raises_the_ambiguous_error(error):
    """The candidates that were found before the failure are in the error."""
    parts = Parts(LOST, lists=[("new",), error], reconcile=LONG)
    parts.poller.show(["old"])
    parts.ledger.sending_elsewhere = True

    assert await ambiguous(parts) == ["new"]
    assert parts.states == ["ambiguous"]


@pytest.mark.parametrize("operation", ["alone", "unclaimed"])
@pytest.mark.parametrize(
    "error", [q.LedgerUnavailableError("Gone.", path="jobs.db"), LookupError("A defect.")]
)
async def test_failing_ledger_hides_no_candidate(operation, error):
    parts = Parts(LOST, lists=[("new",)], reconcile=LONG)
    parts.poller.show(["old"])
    parts.ledger.failures[operation] = error

    assert await ambiguous(parts) == ["new"]


@pytest.mark.parametrize("date", [None, now()], ids=["after a list", "before any list"])
async def test_long_list_leaves_time_for_other_tasks(date):
    """Decoding all records of a long list at once would block the event loop."""
    number = 15_000
    items = [created(f"vid_{n}", date or now()) for n in range(number)]
    parts = Parts(LOST, lists=[items], date=date, reconcile=LONG)
    if date is None:
        parts.poller.show(["old"])
    next_list, iterations = parts.poller.next_list, [0]

    async def count_iterations():
        while True:
            iterations[0] += 1
            await asyncio.sleep(0)

    async def next_list_and_count():
        listed = await next_list()
        iterations[0] = 0
        return listed

    parts.poller.next_list = next_list_and_count
    counting = asyncio.ensure_future(count_iterations())
    parts.ledger.alone = no_other_process
    found = await ambiguous(parts)
    counting.cancel()

    assert len(found) == number
    assert iterations[0] >= number // 1_000


async def no_other_process(_):
    return True


async def test_stopping_when_the_time_is_up_raises_no_other_error():
    parts = Parts(LOST, reconcile=SHORT)
    stopped = []

    async def next_list():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            parts.submitter.reconciler.stop()
            stopped.append(True)
            raise

    parts.poller.next_list = next_list

    assert await ambiguous(parts) == []
    assert stopped


async def test_no_search_after_stopping():
    parts = Parts(LOST, lists=[("new",)], reconcile=LONG)
    parts.poller.show(["old"])
    parts.submitter.reconciler.stop()

    assert await ambiguous(parts) == []
    assert parts.poller.lists == [("new",)]


# --- earlier submissions in the ledger ------------------------------------------------------------


def row(name, **values):
    return Row(name, "https://example.com", VIDEO, LedgerState.AMBIGUOUS, **values)


def video(record_id, status="PENDING"):
    return q.Video(record_id, status, q.JobState.PENDING)


async def test_earlier_candidates_are_returned_as_listed_now():
    parts = Parts(lists=[[{"id": "a", "status": "PROCESSING"}]])
    found = await parts.submitter.reconciler.find_candidates(
        [row("one", candidates=(video("a"), video("gone")))]
    )

    assert [(record.id, record.status) for record in found["one"]] == [
        ("a", "PROCESSING"),
        ("gone", "PENDING"),
    ]


async def test_candidates_of_an_earlier_submission_are_found_by_its_time():
    date = now()
    sent_at = date - timedelta(hours=1)
    records = [
        created("before", sent_at - timedelta(seconds=90)),
        created("new", sent_at + timedelta(seconds=30)),
        created("other", sent_at + timedelta(seconds=30)),
        created("after", sent_at + timedelta(seconds=150)),
    ]
    parts = Parts(lists=[records], date=date, request=60.0)
    parts.ledger.claimed_elsewhere = {"other"}
    rows = [row("one", sent_at=sent_at), row("two", sent_at=sent_at), row("never sent")]
    found = await parts.submitter.reconciler.find_candidates(rows)

    assert {name: [record.id for record in records] for name, records in found.items()} == {
        "one": ["new"],
        "two": ["new"],
    }
    assert parts.poller.list_number == 1


async def test_find_candidates_raises_the_error_of_the_list():
    parts = Parts(lists=[q.AuthenticationError("No.", status=401)])
    with pytest.raises(q.AuthenticationError):
        await parts.submitter.reconciler.find_candidates([row("one", sent_at=now())])
