"""What the progress counts and estimates, and how it looks."""

import io
import math
import time
from datetime import UTC, datetime
from types import SimpleNamespace

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from qamera_async import (
    AmbiguousSubmissionError,
    BadRequestError,
    ConnectionFailedError,
    DownloadError,
    Intent,
    JobFailedError,
    JobState,
    JobTimeoutError,
    Outcome,
    Receipt,
    ReelRequest,
    ServerError,
    Video,
    VideoRequest,
)
from qamera_async.cli.display import summary
from qamera_async.cli.estimate import Median
from qamera_async.cli.live import render
from qamera_async.cli.progress import Progress
from qamera_async.cli.snapshot import JobKind, JobLine, Snapshot, Wait
from qamera_async.cli.words import clean, clock, roughly, size
from qamera_async.events import (
    Ambiguous,
    Downloading,
    Failed,
    Finished,
    Polled,
    RateLimitWait,
    Retrying,
    Submitted,
    Updated,
)

REQUEST = VideoRequest("img")
HOSTILE = "a\x1b[2J\x1b]0;title\x07\u202eb\r\n[red]c[/red]"


class Clock:
    """A clock that stands still until it is told."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def video(record_id, state=JobState.PENDING, status=None):
    return Video(record_id, status or state.name, state)


def submitted(*record_ids, ref=None, credits_reserved=10, request=REQUEST):
    return Submitted(ref, request, Receipt(record_ids, credits_reserved=credits_reserved))


def failed(*record_ids):
    videos = tuple(video(record_id, JobState.FAILED, "REJECTED") for record_id in record_ids)
    return JobFailedError("no", record_ids=record_ids, records=videos)


def outcome(*record_ids, error=None, path=None, request=REQUEST, index=0):
    job = SimpleNamespace(record_ids=record_ids) if record_ids else None
    return Outcome(index, request, job, None, path, error)


def ambiguous():
    return AmbiguousSubmissionError("?", intent=Intent("i", REQUEST, datetime.now(UTC)))


@pytest.fixture
def now():
    return Clock()


@pytest.fixture
def progress(now):
    return Progress(10, 60, 60.0, clock=now)


# --- counting -------------------------------------------------------------------------------------


def test_a_job_is_counted_from_its_receipt_to_its_outcome(progress):
    """In flight from Submitted to Finished, done with its outcome."""
    progress.on_event(submitted("a"))
    first = progress.snapshot(1)
    progress.on_event(Finished(video("a", JobState.DONE)))
    second = progress.snapshot(1)
    progress.outcome(outcome("a"))
    third = progress.snapshot(1)

    assert (first.submitted, first.in_flight, first.done) == (1, 1, 0)
    assert (second.submitted, second.in_flight, second.done) == (1, 0, 0)
    assert (third.submitted, third.in_flight, third.done, third.settled) == (1, 0, 1, 1)


def test_a_failed_job_gives_its_credits_back_once(progress):
    """What its receipt reserved is refunded, also where event and outcome both tell of it."""
    progress.on_event(submitted("a", credits_reserved=10))
    progress.on_event(submitted("b", credits_reserved=7))
    progress.on_event(submitted("c", credits_reserved=None))
    progress.on_event(Failed(("b",), failed("b")))
    progress.outcome(outcome("b", error=failed("b")))
    seen = progress.snapshot(3)

    assert (seen.reserved, seen.refunded, seen.failed, seen.in_flight) == (17, 7, 1, 2)


def test_a_failure_that_only_the_outcome_tells_of_is_refunded_too(progress):
    """The outcome alone is enough; a job that timed out lives on, and its credits stay reserved."""
    progress.on_event(submitted("a"))
    progress.on_event(submitted("b"))
    progress.outcome(outcome("a", error=failed("a")))
    progress.outcome(outcome("b", error=JobTimeoutError("late", record_ids=("b",), timeout=1.0)))
    seen = progress.snapshot(2)

    assert (seen.refunded, seen.failed, seen.in_flight) == (10, 2, 0)


def test_rows_that_a_ledger_had_are_outcomes_alone(progress):
    """Done, failed and ambiguous without a Submitted event are counted, and reserve nothing."""
    progress.outcome(outcome("a"))
    progress.outcome(outcome("b", error=failed("b")))
    progress.outcome(outcome(error=ambiguous()))
    seen = progress.snapshot(0)

    assert (seen.done, seen.failed, seen.ambiguous, seen.settled) == (1, 1, 1, 3)
    assert (seen.submitted, seen.reserved, seen.refunded, seen.in_flight) == (0, 0, 0, 0)


def test_a_job_of_several_records_is_one(progress):
    """Finished names the first of them, Failed all; neither leaves one behind."""
    progress.on_event(submitted("a1", "a2"))
    progress.on_event(submitted("b1", "b2"))
    progress.on_event(Updated(video("a2", status="RENDERING")))
    both = progress.snapshot(2)
    progress.on_event(Finished(video("a1", JobState.DONE)))
    progress.on_event(Failed(("b1", "b2"), failed("b1", "b2")))
    seen = progress.snapshot(2)

    assert both.in_flight == 2
    assert (seen.in_flight, seen.refunded) == (0, 10)


def test_a_job_submitted_by_an_earlier_run_is_in_flight_while_it_is_pending(progress):
    """It is known by its updates alone, and goes with its last one or with its outcome."""
    progress.on_event(Updated(video("a", status="RENDERING")))
    progress.on_event(Updated(video("b")))
    progress.on_event(Updated(video("c", JobState.DONE)))
    before = progress.snapshot(0)
    progress.on_event(Updated(video("a", JobState.DONE)))
    progress.outcome(outcome("b"))
    after = progress.snapshot(0)

    assert [(job.name, job.status) for job in before.jobs] == [("a", "RENDERING"), ("b", "PENDING")]
    assert (before.in_flight, before.submitted, after.in_flight) == (2, 0, 0)


def test_an_update_that_came_before_the_receipt_makes_no_second_job(progress):
    """Its records are those of the receipt."""
    progress.on_event(Updated(video("a2")))
    progress.on_event(submitted("a1", "a2"))

    assert progress.snapshot(1).in_flight == 1


def test_nothing_is_kept_of_what_is_over(progress):
    """Memory is that of the jobs in flight."""
    for name in ("a", "b", "c"):
        progress.on_event(submitted(name))
        progress.on_event(Downloading(name, 1, 10))
    progress.on_event(Finished(video("a", JobState.DONE)))
    progress.outcome(outcome("a"))
    progress.on_event(Failed(("b",), failed("b")))
    failed_ = set(progress._records)
    progress.outcome(outcome("b", error=failed("b")))
    progress.outcome(outcome("c", error=JobTimeoutError("late", record_ids=("c",), timeout=1.0)))

    assert failed_ == {"c"}
    assert (progress._records, progress._running, progress._finished, progress._downloads) == ({}, {}, {}, {})


RECORDS = st.sampled_from(["a", "b", "c", "d"])
EVENTS = st.one_of(
    st.builds(lambda ids: submitted(*ids), st.lists(RECORDS, min_size=1, max_size=3, unique=True)),
    st.builds(lambda id_, state: Updated(video(id_, state)), RECORDS, st.sampled_from(JobState)),
    st.builds(lambda id_: Finished(video(id_, JobState.DONE)), RECORDS),
    st.builds(lambda id_: Failed((id_,), failed(id_)), RECORDS),
    st.builds(Downloading, RECORDS, st.integers(0, 10), st.none() | st.integers(0, 10)),
    st.builds(RateLimitWait, st.floats(0, 100)),
    st.just(Ambiguous(Intent("i", REQUEST, datetime.now(UTC)))),
    st.just(Polled(1, 0, 1)),
    st.builds(lambda delay: Retrying("register", 1, delay, ConnectionFailedError("no")), st.floats(0, 60)),
    st.builds(
        lambda ids, error: outcome(*ids, error=error),
        st.lists(RECORDS, max_size=2, unique=True),
        st.sampled_from([None, failed("a"), ambiguous(), BadRequestError("no", status=400)]),
    ),
)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.tuples(st.floats(0, 1000), EVENTS), max_size=40),
    st.none() | st.integers(0, 60),
    st.integers(1, 100),
    st.floats(0.001, 1000),
)
def test_whatever_the_order_what_is_counted_adds_up(events, total, limit, window):
    """Counts are those of what was seen; the rest of the time is never negative nor no number."""
    now = Clock()
    progress = Progress(total, limit, window, clock=now)
    outcomes, accepted = [], []
    for seconds, event in events:
        now.now += seconds
        if isinstance(event, Outcome):
            outcomes.append(event)
            progress.outcome(event)
        else:
            accepted += [event] if isinstance(event, Submitted) else []
            progress.on_event(event)
        seen = progress.snapshot(1)

        assert seen.settled == len(outcomes)
        assert seen.done == sum(event.error is None for event in outcomes)
        assert seen.ambiguous == sum(isinstance(e.error, AmbiguousSubmissionError) for e in outcomes)
        assert seen.submitted == len(accepted)
        assert seen.reserved == 10 * len(accepted)
        assert 0 <= seen.refunded <= seen.reserved
        assert 0 <= seen.in_flight <= 4
        assert seen.remaining is None or (math.isfinite(seen.remaining) and seen.remaining >= 0)
        assert all(job.age >= 0 for job in seen.jobs)
        assert len(seen.jobs) <= 6


def test_ten_thousand_jobs_in_flight_cost_an_event_and_a_look_no_more_than_ten():
    """Neither an event nor a snapshot looks at all the jobs."""

    def spent(number):
        progress = Progress(number + 1000)
        for index in range(number):
            progress.on_event(submitted(f"v{index}"))
        start = time.thread_time()
        for index in range(1000):
            progress.on_event(submitted(f"w{index}"))
            progress.on_event(Updated(video(f"w{index}")))
            progress.snapshot(1)
            progress.on_event(Finished(video(f"w{index}", JobState.DONE)))
            progress.outcome(outcome(f"w{index}"))
        return time.thread_time() - start

    few, many = (min(spent(number) for _ in range(3)) for number in (10, 10_000))

    assert many < 5 * few


# --- what is worth seeing -------------------------------------------------------------------------


def test_downloads_come_first_then_troubles_then_what_runs_longest(progress, now):
    """At most six: with names, kinds, words and ages."""
    for index in range(8):
        progress.on_event(submitted(f"v{index}", ref=f"sku-{index}", request=ReelRequest(["i"] * 3)))
        now.now += 1
    progress.on_event(Finished(video("v1", JobState.DONE)))
    progress.on_event(Downloading("v1", 5, 10))
    progress.outcome(outcome("v2", error=failed("v2"), request=VideoRequest("i", ref="sku-2")))
    progress.outcome(outcome(error=ambiguous(), index=6))
    progress.on_event(Updated(video("v0", status="RENDERING")))
    now.now += 1
    jobs = progress.snapshot(1).jobs

    assert jobs == (
        JobLine(JobKind.DOWNLOADING, "sku-1", "reel of 3", "downloading", 1.0, 5, 10),
        JobLine(JobKind.AMBIGUOUS, "row 7", "video", "ambiguous", 1.0),
        JobLine(JobKind.FAILED, "sku-2", "video", "REJECTED", 1.0),
        JobLine(JobKind.RUNNING, "sku-0", "reel of 3", "RENDERING", 9.0),
        JobLine(JobKind.RUNNING, "sku-3", "reel of 3", "submitted", 6.0),
        JobLine(JobKind.RUNNING, "sku-4", "reel of 3", "submitted", 5.0),
    )


def test_what_is_over_is_no_longer_seen(progress, now):
    """A download with its last byte, one that is silent for long, a failure of a while ago."""
    progress.on_event(Downloading("whole", 10, 10))
    progress.on_event(Downloading("silent", 1, 10))
    progress.outcome(outcome("f", error=failed("f")))
    first = progress.snapshot(1).jobs
    now.now += 61
    second = progress.snapshot(1).jobs
    now.now += 100
    third = progress.snapshot(1).jobs

    assert [job.name for job in first] == ["silent", "f"]
    assert [job.name for job in second] == ["silent"]
    assert third == ()


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (BadRequestError("no", status=400), "refused, 400"),
        (JobTimeoutError("late", record_ids=("a",), timeout=1.0), "timed out"),
        (DownloadError("no", record_id="a"), "not downloaded"),
        (ValueError("no"), "failed"),
    ],
)
def test_a_trouble_has_a_word(progress, error, word):
    """What went wrong is said in a word or two."""
    progress.outcome(outcome("a", error=error))

    assert progress.snapshot(0).jobs[0].status == word


def test_what_is_no_request_is_an_outcome_like_others(progress):
    """A row that holds something else is named by its number."""
    progress.outcome(outcome(error=ValueError("no"), request=object(), index=4))

    assert progress.snapshot(0).jobs[0].name == "row 5"


# --- waiting --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionFailedError("no"), "the network is away"),
        (ServerError("no", status=503), "the server answers 503"),
    ],
)
def test_a_network_that_is_away_is_told_until_it_is_tried_again(progress, now, error, reason):
    """The last Retrying counts, and is forgotten after its delay or with the next answer."""
    progress.on_event(Retrying("register", 1, 8.0, error))
    now.now += 3
    waiting = progress.snapshot(1).wait
    now.now += 5
    over = progress.snapshot(1).wait
    progress.on_event(Retrying("register", 2, 8.0, error))
    progress.on_event(Polled(1, 0, 1))
    answered = progress.snapshot(1).wait

    assert waiting == Wait(reason, 5.0, trouble=True)
    assert over is None
    assert answered is None


def test_a_download_that_is_tried_again_holds_up_nothing_else(progress):
    """It isn't what everything waits for."""
    progress.on_event(Retrying("download of a", 1, 8.0, DownloadError("no", record_id="a")))

    assert progress.snapshot(1).wait is None


def test_waiting_for_the_quota_is_no_trouble(progress, now):
    """It is told for as long as it lasts."""
    progress.on_event(RateLimitWait(4.0))
    waiting = progress.snapshot(60).wait
    now.now += 4

    assert waiting == Wait("next slot", 4.0, trouble=False)
    assert progress.snapshot(60).wait is None


def test_the_quota_is_shown_as_it_is_given(progress):
    """Used, limit and hold are those of the budget."""
    seen = progress.snapshot(44, 12.0)

    assert (seen.used, seen.limit, seen.cooldown) == (44, 60, 12.0)


# --- the rest of the time -------------------------------------------------------------------------


def test_nobody_knows_before_the_first_job_is_finished(progress, now):
    """None rather than a guess; also where nobody knows how many there are."""
    endless = Progress(None, clock=now)
    for each in (progress, endless):
        each.on_event(submitted("a"))
    before = progress.snapshot(1).remaining
    now.now += 20
    for each in (progress, endless):
        each.on_event(Finished(video("a", JobState.DONE)))

    assert before is None
    assert progress.snapshot(1).remaining is not None
    assert endless.snapshot(1).remaining is None


def test_a_job_of_an_earlier_run_tells_nothing_of_how_long_jobs_take(progress, now):
    """Nobody knows when it was submitted."""
    progress.on_event(Updated(video("old")))
    progress.on_event(submitted("a"))
    now.now += 1
    progress.on_event(Finished(video("old", JobState.DONE)))

    assert progress.snapshot(1).remaining is None


def test_with_all_submitted_it_is_the_rest_of_the_youngest(now):
    """A typical job less its age, never negative; nothing once all have their outcome."""
    progress = Progress(2, clock=now)
    progress.on_event(submitted("a"))
    now.now += 30
    progress.on_event(Finished(video("a", JobState.DONE)))
    progress.outcome(outcome("a"))
    progress.on_event(submitted("b"))
    now.now += 10
    young = progress.snapshot(1).remaining
    now.now += 100
    old = progress.snapshot(1).remaining
    progress.outcome(outcome("b"))

    assert young == pytest.approx(20)
    assert old == 0
    assert progress.snapshot(1).remaining == 0


def simulated(total, limit, window, job_seconds, now):
    """Run a batch as the quota lets it; give the estimate at each second and when it was over."""
    progress = Progress(total, limit, window, clock=now)
    slots = limit - int(min(window / 15, limit // 2))
    start, sent, running, told = now.now, [], {}, []
    while True:
        for name, since in list(running.items()):
            if now.now - since >= job_seconds:
                del running[name]
                progress.on_event(Finished(video(name, JobState.DONE)))
                progress.outcome(outcome(name))
        while len(sent) < total and (len(sent) < slots or now.now - sent[-slots] >= window):
            name = f"v{len(sent)}"
            sent.append(now.now)
            running[name] = now.now
            progress.on_event(submitted(name))
        told.append((now.now - start, progress.snapshot(0).remaining))
        if not running and len(sent) == total:
            return told
        now.now += 1


@pytest.mark.parametrize(("total", "job_seconds"), [(50, 40), (224, 40), (300, 40), (300, 200), (1000, 90)])
def test_the_estimate_is_right_and_steady_under_the_quota(now, total, job_seconds):
    """From the first finished job on it is right to some seconds, and doesn't jump."""
    told = simulated(total, 60, 60.0, job_seconds, now)
    end = told[-1][0]
    known = [(at, remaining) for at, remaining in told if remaining is not None]

    assert known[0][0] == job_seconds
    assert all(abs(at + remaining - end) <= 5 for at, remaining in known)


def test_rows_a_ledger_has_done_need_no_slot(now):
    """What is left is what the time is for."""
    progress = Progress(1000, 60, 60.0, clock=now)
    for index in range(990):
        progress.outcome(outcome(f"old{index}"))
    for index in range(5):
        progress.on_event(submitted(f"v{index}"))
    now.now += 30
    progress.on_event(Finished(video("v0", JobState.DONE)))

    assert progress.snapshot(5).remaining == pytest.approx(30)


def test_a_batch_slower_than_its_quota_is_estimated_by_its_pace(now):
    """Where something else holds it up, such as how many may be in flight."""
    progress = Progress(200, 10**6, 0.001, clock=now)
    for index in range(100):
        progress.on_event(submitted(f"v{index}"))
        progress.on_event(Finished(video(f"v{index}", JobState.DONE)))
        progress.outcome(outcome(f"v{index}"))
        now.now += 2

    assert progress.snapshot(1).remaining == pytest.approx(200, abs=0.01)


def test_a_hold_and_queued_downloads_count(now):
    """Nothing is sent before the end of a hold; downloads take as long as those before."""
    progress = Progress(4, clock=now)
    for name in ("a", "b", "c"):
        progress.on_event(submitted(name))
    now.now += 10
    progress.on_event(Finished(video("a", JobState.DONE)))
    before = progress.snapshot(60, 50.0).remaining
    progress.on_event(Downloading("a", 1, 10))
    now.now += 3
    progress.on_event(Downloading("a", 10, 10))
    progress.outcome(outcome("a", path="a.mp4"))
    progress.outcome(outcome(error=ValueError("no")))
    progress.on_event(Finished(video("b", JobState.DONE)))
    one_runs = progress.snapshot(60).remaining
    progress.on_event(Finished(video("c", JobState.DONE)))

    assert before == pytest.approx(60)
    assert one_runs == pytest.approx(3)
    assert progress.snapshot(60).remaining == pytest.approx(3)


def test_downloads_that_take_longer_than_the_rest_are_what_is_waited_for(now):
    """A few are fetched at a time, and all that have no outcome yet have to come through."""
    progress = Progress(13, clock=now)
    for name in "abcdefghijklm":
        progress.on_event(submitted(name))
    now.now += 1
    for name in "abcdefghijkl":
        progress.on_event(Finished(video(name, JobState.DONE)))
    progress.on_event(Downloading("a", 1, 10))
    now.now += 8
    progress.on_event(Downloading("a", 10, 10))
    progress.outcome(outcome("a", path="a.mp4"))

    assert progress.snapshot(60).remaining == pytest.approx(8 * 12 / 4)


def test_what_is_fetched_after_an_outcome_hides_no_download(now):
    """Thumbnails, once they are there, are not among the jobs worth seeing."""
    progress = Progress(20, clock=now)
    for number in range(8):
        progress.on_event(submitted(f"v{number}"))
        progress.outcome(outcome(f"v{number}", path="a.mp4"))
        progress.on_event(Downloading(f"v{number}", 1, 2))
        progress.on_event(Downloading(f"v{number}", 2, 2))
    progress.on_event(submitted("last"))
    progress.on_event(Finished(video("last", JobState.DONE)))
    progress.on_event(Downloading("last", 1, 10))

    assert [job.name for job in progress.snapshot(1).jobs] == ["last"]


def test_the_median_is_that_of_the_last_two_hundred():
    """Old values are forgotten in their order."""
    median = Median()
    for value in [5.0] * 200 + [1.0] * 99:
        median.add(value)
    before = median.value
    for value in [1.0] * 3:
        median.add(value)

    assert Median().value is None
    assert (before, median.value) == (5.0, 1.0)


# --- how it looks ---------------------------------------------------------------------------------

JOBS = (
    JobLine(JobKind.DOWNLOADING, "shoe", "video", "downloading", 4, 3_200_000, 10_400_000),
    JobLine(JobKind.DOWNLOADING, "bag", "reel of 4", "downloading", 4, 812_000, None),
    JobLine(JobKind.FAILED, HOSTILE, "video", HOSTILE, 12),
    JobLine(JobKind.AMBIGUOUS, "帽子" * 40, "video", "ambiguous", 31),
    JobLine(JobKind.RUNNING, "n" * 300 + "-000123", "reel of 10", "S" * 300, 400_000),
    JobLine(JobKind.RUNNING, "e\u0301" * 40, "", "", 1),
)
SNAPSHOT = Snapshot(
    total=1000,
    done=409,
    failed=2,
    ambiguous=1,
    submitted=468,
    in_flight=56,
    reserved=4680,
    refunded=20,
    used=44,
    limit=60,
    cooldown=0.0,
    wait=None,
    elapsed=512.0,
    remaining=660.0,
    jobs=JOBS,
)
AWAY = Wait("the network is away", 8.0, trouble=True)
SNAPSHOTS = [
    SNAPSHOT,
    attrs.evolve(SNAPSHOT, used=60, cooldown=12.2, wait=AWAY),
    attrs.evolve(SNAPSHOT, total=None, remaining=None, used=10**7, limit=10**6),
    attrs.evolve(
        SNAPSHOT, total=10**9, done=10**8, reserved=10**12, wait=Wait("next slot", 9.0, trouble=False)
    ),
    attrs.evolve(SNAPSHOT, total=0, done=0, failed=0, ambiguous=0, remaining=0.0, jobs=()),
]


def drawn(snapshot, width, encoding="utf-8", **options):
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(
        file=file, width=width, **{"force_terminal": True, "color_system": "truecolor", **options}
    )
    console.print(render(snapshot, width))
    file.flush()
    return file.buffer.getvalue().decode(encoding)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("width", [1, 10, 30, 60, 80, 120, 200])
@pytest.mark.parametrize("snapshot", SNAPSHOTS)
def test_no_line_is_as_wide_as_the_terminal(snapshot, width, encoding):
    """Nothing wraps, whatever the names hold; a line for each thing to say."""
    lines = drawn(snapshot, width, encoding, color_system=None).splitlines()

    assert len(lines) == 3 + len(snapshot.jobs)
    assert max(map(cell_len, lines)) < max(width, 2)
    assert all(line.isprintable() for line in lines)


def test_what_others_wrote_is_no_markup_and_no_control():
    """Names and words can't colour, erase or turn anything."""
    text = drawn(SNAPSHOT, 120)

    assert "[red]c[/red]" in text
    assert "\x1b[2J" not in text
    assert "\x1b]0;" not in text
    assert "\u202e" not in text
    assert "\r" not in text


def test_the_overall_line_has_bar_counts_and_time():
    """As the design has it: what is done, failed and ambiguous, credits, quota, and what is left."""
    first, second, third, *jobs = drawn(SNAPSHOT, 80, color_system=None).splitlines()

    assert first.endswith("412/1,000   41 %  about 11 min left")
    assert first.startswith("━━━━━")
    assert "╍" in first
    assert "─" in first
    assert second.startswith("409 done · 2 failed · 1 ambiguous · 56 in flight")
    assert third.startswith("quota ━━━━━━━─── 44/60 · 4,680 credits, 20 back")
    assert jobs[0].startswith("↓ shoe ")
    assert jobs[0].endswith("3.2/10.4 MB")
    assert "000123" in jobs[4]


@pytest.mark.parametrize(
    ("remaining", "ending"), [(None, " 41 %"), (0.4, "nearly done"), (42.0, "about 40 s left")]
)
def test_the_rest_of_the_time_is_told_as_far_as_it_is_known(remaining, ending):
    """Nothing where nobody knows, and no countdown of zeros."""
    first = drawn(attrs.evolve(SNAPSHOT, remaining=remaining), 80, color_system=None).splitlines()[0]

    assert first.endswith(ending)


def test_what_has_no_room_is_left_out_as_a_whole():
    """Nothing is cut in its middle."""
    waiting = attrs.evolve(SNAPSHOT, wait=Wait("next slot", 14.0, trouble=False))
    thirds = [drawn(waiting, width, color_system=None).splitlines()[2] for width in (60, 80)]

    assert thirds[0] == "quota ━━━━━━━─── 44/60 · 4,680 credits, 20 back"
    assert thirds[1] == "quota ━━━━━━━─── 44/60 · 4,680 credits, 20 back · next slot in 14 s"


@pytest.mark.parametrize("width", [60, 120])
def test_a_hold_and_a_network_that_is_away_are_seen(width):
    """Also on a narrow terminal."""
    held = drawn(attrs.evolve(SNAPSHOT, cooldown=12.2), width, color_system=None)
    away = drawn(attrs.evolve(SNAPSHOT, wait=AWAY), width, color_system=None)

    assert "held 12 s" in held
    assert "the network is away, again in 8 s" in away


def test_a_single_failure_among_many_is_seen_and_the_bar_is_full_only_at_the_end():
    """A small part has a cell of its own, and what is missing too."""
    almost = drawn(
        attrs.evolve(SNAPSHOT, total=10_000, done=9_998, failed=1, ambiguous=0), 80, color_system=None
    )
    all_ = drawn(
        attrs.evolve(SNAPSHOT, total=10_000, done=9_999, failed=1, ambiguous=0), 80, color_system=None
    )

    assert "╍─" in almost.splitlines()[0]
    assert "99 %" in almost.splitlines()[0]
    assert "╍  10,000/10,000" in all_.splitlines()[0]
    thirds = drawn(attrs.evolve(SNAPSHOT, total=3, done=1, failed=1, ambiguous=1), 80, color_system=None)
    assert "─" not in thirds.splitlines()[0]


def test_no_colour_means_none(monkeypatch):
    """NO_COLOR leaves the shapes, which differ as well."""
    monkeypatch.setenv("NO_COLOR", "1")
    text = drawn(SNAPSHOT, 80)

    assert not any(f"\x1b[{number}m" in text for number in range(30, 48))
    assert "╍" in text


def test_ascii_is_enough():
    """Where the terminal can't do better, all of it is ASCII."""
    text = drawn(SNAPSHOT, 80, "ascii", color_system=None)

    assert text.isascii()
    assert text.startswith("#####")


@pytest.mark.parametrize(
    ("snapshot", "text"),
    [
        (
            SNAPSHOT,
            (
                "409 of 1000 done, 2 failed, 1 ambiguous, 56 in flight, 4680 credits reserved, 20 refunded, "
                "8:32 passed, about 11 min left"
            ),
        ),
        (
            attrs.evolve(
                SNAPSHOT, total=None, failed=0, ambiguous=0, reserved=0, refunded=0, cooldown=3.0, wait=AWAY
            ),
            "409 done, 56 in flight, 8:32 passed, held 3 s by the quota, the network is away, again in 8 s",
        ),
    ],
)
def test_a_plain_line_says_the_same(snapshot, text):
    """For logs."""
    assert summary(snapshot) == text


# --- words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "harmless"),
    [
        ("plain, with ünïcödé 帽子", "plain, with ünïcödé 帽子"),
        ("a\nb\tc\rd\u2028e\u00a0f", "a b c d e f"),
        ("\x1b[31m\x07\x9b\u202e\u2066\ud800\x00", "�[31m������"),
    ],
)
def test_nothing_but_what_can_be_seen_is_left(text, harmless):
    """Blanks become spaces, the rest of what can't be seen a replacement character."""
    assert clean(text) == harmless


@given(st.text())
def test_what_is_clean_is_one_printable_line(text):
    """Whatever it was."""
    assert clean(text).isprintable()


@pytest.mark.parametrize(
    ("function", "number", "text"),
    [
        (clock, 0.9, "0:00"),
        (clock, 200, "3:20"),
        (clock, 3803, "1:03:23"),
        (roughly, 8.4, "8 s"),
        (roughly, 42, "40 s"),
        (roughly, 89, "90 s"),
        (roughly, 700, "12 min"),
        (roughly, 7510, "2 h 5 min"),
        (roughly, 7190, "2 h"),
        (roughly, 260_000, "3 days"),
        (lambda count: size(count, 10_400_000), 812, "0.0"),
        (size, 812, "812 B"),
        (size, 3_210_000, "3.2 MB"),
        (size, 5 * 10**16, "50000.0 TB"),
    ],
)
def test_numbers_are_worded_for_people(function, number, text):
    """No more exact than anybody needs."""
    assert function(number) == text
