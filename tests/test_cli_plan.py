"""What a batch would do is known before it is run."""

import asyncio
import json
import sys

import pytest

import qamera_async as q
from qamera_async.cli.plan import Part, Plan, _look_up, describe, plan
from qamera_async.ledger.rows import LedgerState, Row
from qamera_async.ledger.sqlite import SqliteStorage
from qamera_async.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")

ORIGIN = "https://app.qamera.ai"
QUOTA = {"origin": ORIGIN, "limit": 60, "window": 60.0}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "jobs.db"


def video(ref, image="img_1", **options):
    return q.VideoRequest(image, ref=ref, **options)


async def written(path, *rows):
    """Write rows to a ledger."""
    storage = SqliteStorage.of(str(path))
    for number, (request, state, more) in enumerate(rows):
        row = Row(f"int_{number}", ORIGIN, request, state, **more)
        await storage.claim(row, retry_failed=True)
    await storage.aclose()


def receipt(credits_reserved, record_id="vid_1"):
    return {"receipt": q.Receipt((record_id,), credits_reserved=credits_reserved)}


# --- what is ordered ----------------------------------------------------------------------------


@pytest.mark.parametrize("ledger", ["none", "not there"])
async def test_without_a_ledger_all_of_it_is_ordered(path, ledger):
    """Prices are those of the documentation, and no file is made by asking."""
    requests = [
        *[video(f"a{n}") for n in range(3)],
        video("b", provider="pollo"),
        q.ReelRequest(["a", "b"], ref="c"),
    ]

    found = await plan(requests, None if ledger == "none" else path, **QUOTA)

    assert found.parts == (
        Part(3, None, None, 10, told=False),
        Part(1, None, "pollo", 10, told=False),
        Part(1, 2, None, 15, told=False),
    )
    assert (found.orders, found.credits, found.seconds) == (5, 55, 0)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("retry_failed", [False, True])
async def test_the_plan_is_what_the_batch_then_does(path, quick, retry_failed):
    """Done, paid for, in doubt, failed, refused, abandoned, of another request, or new."""
    states = ("done", "submitted", "adopted", "ambiguous", "failed", "refused", "abandoned", "other", "new")
    requests = [video(state) for state in states]
    async with Sandbox(job_seconds=0.05, quota=None) as sandbox:
        async with sandbox.session(**quick, ledger=path) as qamera:
            await (await qamera.register(video("done")))
            await qamera.register(video("submitted"))
            await qamera.register(video("other", "img_2"))
            for ref in ("adopted", "ambiguous", "abandoned"):
                sandbox.trouble("reset_after")
                with pytest.raises(q.AmbiguousSubmissionError) as error:
                    await qamera.register(video(ref))
                if ref == "adopted":
                    await qamera.adopt(error.value, *sandbox.orders[-1].record_ids)
                if ref == "abandoned":
                    await qamera.abandon(error.value)
            sandbox.trouble("fail_job")
            with pytest.raises(q.JobFailedError):
                await (await qamera.register(video("failed")))
            sandbox.trouble("error", status=400)
            with pytest.raises(q.BadRequestError):
                await qamera.register(video("refused", "img_3"))
        quota = QUOTA | {"origin": sandbox.url}
        found = await plan(requests, path, **quota, retry_failed=retry_failed)
        elsewhere = await plan(requests, path, **QUOTA)
        before = len(sandbox.orders)
        async with sandbox.session(**quick, ledger=path) as qamera:
            result = await qamera.batch(requests, retry_failed=retry_failed)
        ordered = len(sandbox.orders) - before

    assert found.orders == ordered == 3 + retry_failed
    assert (found.done, found.under_way, found.failed) == (1, 2, 1 - retry_failed)
    assert (found.ambiguous, found.conflicts) == (("ambiguous",), ("other",))
    assert found.credits == result.credits_reserved
    assert elsewhere.orders == len(requests)


async def test_what_another_process_is_at_is_under_way(path):
    """Claimed or sent by somebody alive; once that is dead, a claim is ordered and a POST is in doubt."""
    code = (
        "import asyncio, sys\n"
        "import attrs\n"
        "from qamera_async import VideoRequest\n"
        "from qamera_async.ledger.rows import LedgerState, Row\n"
        "from qamera_async.ledger.sqlite import SqliteStorage\n"
        "async def main():\n"
        "    storage = SqliteStorage.of(sys.argv[1])\n"
        "    sending = lambda row: attrs.evolve(row, state=LedgerState.SENDING)\n"
        "    for ref in ('claimed', 'sending'):\n"
        "        row = Row(ref, sys.argv[2], VideoRequest('img_1', ref=ref))\n"
        "        await storage.claim(row, retry_failed=False)\n"
        "    await storage.change('sending', set(LedgerState), sending)\n"
        "    print('there', flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, str(path), ORIGIN, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    await process.stdout.readline()
    requests = [video("claimed"), video("sending")]

    alive = await plan(requests, path, **QUOTA)
    process.kill()
    await process.communicate()
    dead = await plan(requests, path, **QUOTA)

    assert (alive.under_way, alive.orders, alive.ambiguous) == (2, 0, ())
    assert (dead.under_way, dead.orders, dead.ambiguous) == (0, 1, ("sending",))


async def test_a_request_without_a_ref_is_always_an_order(path):
    """As the ledger merges none of them."""
    await written(path, (video(None), LedgerState.DONE, {}))

    assert (await plan([video(None), video(None)], path, **QUOTA)).orders == 2


async def test_a_ref_that_was_ordered_anew_counts_as_its_newest(path):
    """What failed before is of no account."""
    await written(path, (video("a"), LedgerState.FAILED, {}), (video("a"), LedgerState.DONE, {}))

    found = await plan([video("a")], path, **QUOTA)

    assert (found.done, found.failed) == (1, 0)


async def test_what_was_to_be_ordered_anew_and_was_withdrawn_is_ordered(path):
    """The failed one counts no more, as for a session."""
    await written(path, (video("a"), LedgerState.FAILED, {}), (video("a"), LedgerState.CLAIMED, {}))
    storage = SqliteStorage.of(str(path))
    await storage.withdraw("int_1")
    await storage.aclose()

    assert (await plan([video("a")], path, **QUOTA)).orders == 1


async def test_of_a_long_ledger_only_what_is_asked_for_is_held(path):
    """It may be that of many catalogues."""
    await written(
        path, *[(video(f"r{n}", provider=f"p{n}"), LedgerState.DONE, receipt(n)) for n in range(300)]
    )

    found, prices = await _look_up([video("r7", provider="p8"), video("r299", provider="p9")], path, ORIGIN)

    assert set(found) == {"r7", "r299"}
    assert prices == {("p8", None): 8, ("p9", None): 9}


async def test_a_ledger_that_can_not_be_read_is_an_error(path):
    """Not a plan that orders all of it again."""
    path.write_bytes(b"no ledger" * 1000)

    with pytest.raises(q.LedgerError):
        await plan([video("a")], path, **QUOTA)


# --- what it costs ------------------------------------------------------------------------------


async def test_the_newest_receipt_of_a_kind_tells_its_price(path):
    """Of its provider, or number of images; one that doesn't tell is passed over."""
    reel = q.ReelRequest(["a", "b"])
    await written(
        path,
        (video(None), LedgerState.DONE, receipt(20)),
        (video(None), LedgerState.DONE, receipt(12)),
        (video(None), LedgerState.DONE, receipt(None)),
        (video(None), LedgerState.DONE, receipt(-1)),
        (video(None, provider="pollo"), LedgerState.DONE, receipt(0)),
        (reel, LedgerState.DONE, receipt(30)),
    )
    requests = [
        video("a"),
        video("b", provider="pollo"),
        video("c", provider="x"),
        q.ReelRequest(["a", "b"], ref="d"),
        q.ReelRequest(["a"], ref="e"),
    ]

    found = await plan(requests, path, **QUOTA)

    assert [(part.price, part.told) for part in found.parts] == [
        *((12, True), (0, True), (10, False), (30, True), (15, False))
    ]


# --- how long it takes --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("orders", "limit", "window", "stale_after", "seconds"),
    [
        (0, 60, 60.0, 15.0, 0),
        (1, 60, 60.0, 15.0, 0),
        (56, 60, 60.0, 15.0, 0),
        (57, 60, 60.0, 15.0, 60),
        (112, 60, 60.0, 15.0, 60),
        (113, 60, 60.0, 15.0, 120),
        (61, 60, 60.0, 60.0, 60),
        (31, 60, 60.0, 0.1, 60),
        (30, 60, 60.0, 0.1, 0),
        (3, 1, 10.0, 15.0, 20),
        (57, 60, 60.0, 14.9, 60),
        (55, 60, 60.0, 14.9, 0),
        (56, 60, 60.0, 14.9, 60),
    ],
)
async def test_the_last_is_sent_when_the_quota_lets_it_through(orders, limit, window, stale_after, seconds):
    """As many at once as the window has, but for what polls are left."""
    requests = [video(f"r{n}") for n in range(orders)]

    found = await plan(requests, None, origin=ORIGIN, limit=limit, window=window, stale_after=stale_after)

    assert found.seconds == seconds


async def test_the_quota_of_a_batch_takes_no_less(quick):
    """What was said is the least: a real batch is no faster."""
    limit, window = 4, 0.2
    requests = [video(f"r{n}") for n in range(7)]
    polling = q.PollPolicy(interval=0.05, stale_after=0.1)
    async with Sandbox(job_seconds=0.0, quota=(limit, window)) as sandbox:
        async with sandbox.session(**quick | {"polling": polling}) as qamera:
            jobs = [asyncio.ensure_future(qamera.register(request)) for request in requests]
            await asyncio.wait(jobs)
            moments = [request.at for request in sandbox.requests if request.method == "POST"]
    found = await plan(requests, None, origin=ORIGIN, limit=limit, window=window, stale_after=0.1)

    assert 0 < found.seconds <= moments[-1] - moments[0]


# --- in words -----------------------------------------------------------------------------------


def a_plan(*parts, **facts):
    defaults = {"done": 0, "under_way": 0, "failed": 0, "ambiguous": (), "conflicts": (), "seconds": 0.0}
    return Plan(parts, **defaults | facts, limit=60, window=60.0)


EXAMPLE = "by the example in the API's documentation; the server names its price in each receipt"


@pytest.mark.parametrize(
    ("found", "lines"),
    [
        (a_plan(), ["This orders nothing."]),
        (
            a_plan(Part(180, None, None, 10, told=False), Part(2, 3, None, 15, told=False), seconds=180.0),
            [
                (
                    "This orders 180 videos and 2 reels, about 1,830 credits "
                    f"(10 a video, 15 a reel of 3 images {EXAMPLE})."
                ),
                "By the quota of 60 requests in 60 s the last is sent 3 min after the first.",
            ],
        ),
        (
            a_plan(Part(1, None, "pollo", 1200, told=True), Part(1, 1, None, 15, told=False)),
            [
                (
                    "This orders 1 video and 1 reel, about 1,215 credits "
                    f"(1,200 a video by 'pollo' as earlier receipts say; 15 a reel of 1 image {EXAMPLE})."
                ),
            ],
        ),
        (
            a_plan(done=1200, under_way=2, failed=3, ambiguous=("a", "\x1b[2J"), conflicts=("x",)),
            [
                "This orders nothing.",
                (
                    "From earlier runs: 1,200 done already, 2 under way, to be waited for, "
                    "3 failed and not ordered again."
                ),
                "In doubt, not sent before it is settled: 'a', '\\x1b[2J'.",
                "Not sent, since the ledger has another request of that ref: 'x'.",
            ],
        ),
    ],
)
def test_a_plan_is_told_in_words(found, lines):
    """What it orders, what that takes by whose word, how long, and what is not ordered."""
    assert describe(found) == lines


def test_many_refs_do_not_fill_the_screen():
    """A few are named, the others are counted; a machine gets all."""
    found = a_plan(ambiguous=tuple(f"r{n}" for n in range(2000)))

    assert describe(found)[1].endswith(", 'r9' and 1,990 more.")
    assert len(found.as_dict()["ambiguous"]) == 2000


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "0.2 s"),
        (59.0, "59 s"),
        (60.0, "1 min"),
        (90.0, "1 min 30 s"),
        (3600.0, "1 h"),
        (7320.0, "2 h 2 min"),
    ],
)
def test_a_duration_is_told_in_words(seconds, words):
    """In units that a person reads."""
    assert f"the last is sent {words} after" in describe(a_plan(seconds=seconds))[1]


def test_a_plan_is_plain_json():
    """For a machine: the sums as well."""
    found = a_plan(Part(2, None, None, 10, told=False), ambiguous=("a",), seconds=60.0)

    assert json.loads(json.dumps(found.as_dict())) == {
        "orders": 2,
        "credits": 20,
        "parts": [{"count": 2, "images": None, "provider": None, "price": 10, "told": False}],
        "done": 0,
        "under_way": 0,
        "failed": 0,
        "ambiguous": ["a"],
        "conflicts": [],
        "seconds": 60.0,
        "limit": 60,
        "window": 60.0,
    }
