"""``qamera batch``, ``ledger`` and ``report``, as a shell runs them."""

import asyncio
import json
import signal

import pytest
from command import QUICK, qamera, started

from qamera_async.sandbox import Sandbox


@pytest.fixture
async def sandbox():
    """A sandbox without a quota, whose jobs are quick."""
    async with Sandbox(0.05, credits=100_000, quota=None) as running:
        yield running


@pytest.fixture
def run(sandbox, tmp_path):
    """Run a batch of a catalogue in a folder of its own."""

    async def batch(catalogue, *more, stdin=b"", **environment):
        return await qamera(
            *("batch", catalogue, "--to", "clips", "--ledger", "jobs.db", *QUICK, *more),
            sandbox=sandbox,
            stdin=stdin,
            cwd=tmp_path,
            **environment,
        )

    return batch


@pytest.fixture
def catalogue(tmp_path):
    """A file of some rows, with a reel."""
    path = tmp_path / "catalogue.csv"
    rows = ["image_id,image_ids,suggestion,ref", "img_1,,Slow zoom,one", "img_2,,,two", ",img_3 img_4,,three"]
    path.write_text("\n".join(rows))
    return path


def many(path, number):
    """Write a catalogue of so many rows."""
    path.write_text("image_id,ref\n" + "".join(f"img_{n},sku-{n}\n" for n in range(number)))
    return path


def clips(folder):
    """Give the names of the clips that are there."""
    return sorted(path.stem for path in folder.glob("*.mp4"))


async def test_a_catalogue_becomes_a_folder_of_clips(run, sandbox, catalogue, tmp_path):
    """Videos and reels are ordered as the rows say; clips, thumbnails and the report are there."""
    ended = await run(catalogue)

    assert ended.code == 0
    assert sorted((order.body for order in sandbox.orders), key=str) == [
        {"imageId": "img_1", "suggestion": "Slow zoom"},
        {"imageId": "img_2"},
        {"imagesIds": ["img_3", "img_4"]},
    ]
    assert clips(tmp_path / "clips") == ["one", "three", "two"]
    assert len(list((tmp_path / "clips" / "thumbnails").glob("*.jpg"))) == 3
    assert (tmp_path / "clips" / "report.html").is_file()
    assert "3 done, 0 failed, 0 ambiguous, of 3; 35 credits reserved" in ended.out


async def test_run_again_it_goes_on(run, sandbox, catalogue, tmp_path):
    """What is there is neither ordered nor fetched again; a clip that is missing is fetched."""
    await run(catalogue)
    (tmp_path / "clips" / "two.mp4").unlink()
    before = len(sandbox.requests)
    ended = await run(catalogue)

    assert ended.code == 0
    assert len(sandbox.orders) == 3
    assert clips(tmp_path / "clips") == ["one", "three", "two"]
    assert len([r for r in sandbox.requests[before:] if r.path.endswith(".mp4")]) == 1


async def test_every_bad_row_is_told_before_anything_is_sent(run, sandbox, tmp_path):
    """Each with its line and reason, exit code 2."""
    path = tmp_path / "bad.csv"
    path.write_text("image_id,image_ids,ref\nimg_1,,a\n,,b\nimg_2,,a\nimg_3,img_4,c\n")
    ended = await run(path)
    objects = (await run(path, "--json")).objects

    assert ended.code == 2
    assert [line.split(": ")[0] for line in ended.err.splitlines()[:3]] == [
        f"{path}:3",
        f"{path}:4",
        f"{path}:5",
    ]
    assert [problem["line"] for problem in objects] == [3, 4, 5]
    assert sandbox.requests == []


async def test_rows_may_come_from_standard_input(run, sandbox, tmp_path):
    """As JSON lines, too."""
    lines = [{"image_id": "img_1", "ref": "one"}, {"image_ids": ["img_2", "img_3"], "ref": "two"}]
    ended = await run("-", stdin="\n".join(map(json.dumps, lines)).encode())

    assert ended.code == 0
    assert clips(tmp_path / "clips") == ["one", "two"]


async def test_a_dry_run_sends_nothing_and_leaves_nothing(run, sandbox, tmp_path):
    """It says how many, for how many credits and how long; without a key, a ledger or a folder."""
    path = many(tmp_path / "catalogue.csv", 150)
    said = await qamera(
        *("batch", path, "--to", "clips", "--ledger", "jobs.db", "--dry-run"),
        cwd=tmp_path,
        QAMERA_BASE_URL=sandbox.url,
    )
    [plan] = (await run(path, "--dry-run", "--json")).objects

    assert said.code == 0
    assert "150 videos, about 1,500 credits" in said.out
    assert "2 min" in said.out  # 56 in a window, since 4 of the 60 are left to polls
    assert (plan["type"], plan["orders"], plan["credits"]) == ("plan", 150, 1500)
    assert sandbox.requests == []
    assert [path.name for path in tmp_path.iterdir()] == ["catalogue.csv"]


async def test_a_dry_run_knows_what_is_there(run, sandbox, catalogue, tmp_path):
    """What the ledger has done already isn't ordered, and its prices are those of the receipts."""
    await run(catalogue)
    path = many(tmp_path / "more.csv", 2)
    path.write_text(f"{path.read_text()}img_2,two\n")
    [plan] = (await run(path, "--dry-run", "--json")).objects

    assert (plan["orders"], plan["done"], plan["credits"]) == (2, 1, 20)
    assert [part["told"] for part in plan["parts"]] == [True]


async def test_one_that_fails_is_exit_code_1(run, sandbox, catalogue, tmp_path):
    """The others are there; with ``--retry-failed`` it is ordered again."""
    sandbox.trouble("fail_job")
    failed = await run(catalogue)
    again = await run(catalogue)
    retried = await run(catalogue, "--retry-failed")

    assert (failed.code, again.code, retried.code) == (1, 1, 0)
    assert "The job failed" in failed.err
    assert len(sandbox.orders) == 4
    assert clips(tmp_path / "clips") == ["one", "three", "two"]


async def test_credits_have_a_limit(run, sandbox, tmp_path):
    """What is over it isn't ordered, and the summary says so."""
    ended = await run(many(tmp_path / "catalogue.csv", 20), "--max-credits", "50")

    assert ended.code == 1
    assert len(sandbox.orders) == 5
    assert "15 not ordered" in ended.out


async def test_a_refusal_stops_it(run, sandbox, tmp_path):
    """A key that is none is one error and exit code 3."""
    ended = await run(many(tmp_path / "catalogue.csv", 20), QAMERA_API_KEY="mk_live_other.secret")

    assert ended.code == 3
    assert sandbox.orders == []
    assert "stopped: HTTP 401" in ended.err


async def test_a_doubt_is_told_with_what_settles_it(run, sandbox, catalogue, tmp_path):
    """Exit code 4 and two commands; once adopted, the next run fetches it and pays for nothing."""
    sandbox.trouble("reset_after")
    ended = await run(catalogue, "--timeout", "0.5")
    [command] = [line for line in ended.err.splitlines() if line.strip().startswith("it was made:")]
    words = command.split("qamera ")[1].split()
    settled = await qamera(*words, cwd=tmp_path)
    again = await run(catalogue)

    assert (ended.code, settled.code, again.code) == (4, 0, 0)
    assert words[:3] == ["ledger", "jobs.db", "adopt"]
    assert len(sandbox.orders) == 3
    assert clips(tmp_path / "clips") == ["one", "three", "two"]


async def test_what_is_abandoned_is_ordered_again(run, sandbox, catalogue, tmp_path):
    """``abandon`` settles it the other way."""
    sandbox.trouble("error", status=500)
    await run(catalogue, "--timeout", "0.2")
    objects = (await qamera("ledger", "jobs.db", "--json", cwd=tmp_path)).objects
    [doubt] = [entry for entry in objects if entry.get("state") == "ambiguous"]
    settled = await qamera("ledger", "jobs.db", "abandon", doubt["id"], cwd=tmp_path)
    again = await run(catalogue)

    assert (settled.code, again.code) == (0, 0)
    assert len(sandbox.orders) == 3


async def test_the_ledger_is_shown_by_state_with_its_credits(run, sandbox, tmp_path):
    """Counts and credits of each, and those that need a look by name; no key is asked for."""
    sandbox.trouble("fail_job")
    await run(many(tmp_path / "catalogue.csv", 3))
    shown = await qamera("ledger", "jobs.db", cwd=tmp_path)

    rows = [line.split("\t") for line in shown.out.splitlines()]
    assert shown.code == 0
    assert ["finished", "2", "20"] in rows
    assert ["failed", "1", "10, refunded"] in rows
    assert [line.split()[-1] for line in shown.out.splitlines() if line.startswith("  ")] == ["FAILED"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("ledger", "none.db"), 2),
        (("report", "none.db", "--to", "report.html"), 2),
        (("ledger", "jobs.db", "adopt"), 2),
        (("ledger", "jobs.db", "adopt", "intent"), 2),
        (("ledger", "jobs.db", "abandon", "intent", "vid_1"), 2),
        (("ledger", "jobs.db", "forget", "intent"), 2),
    ],
)
async def test_a_ledger_that_is_none_is_not_made(tmp_path, arguments, code):
    """A mistyped name is an error, and leaves no file behind."""
    ended = await qamera(*arguments, cwd=tmp_path)

    assert ended.code == code
    assert "Traceback" not in ended.err
    assert list(tmp_path.iterdir()) == []


async def test_a_report_can_be_made_of_a_ledger(run, catalogue, tmp_path):
    """Without a key, wherever it is to be."""
    await run(catalogue)
    ended = await qamera("report", "jobs.db", "--to", "page.html", cwd=tmp_path)

    assert (ended.code, ended.out.strip()) == (0, "Report: page.html")
    assert 'src="clips/thumbnails/one.jpg"' in (tmp_path / "page.html").read_text()


async def test_json_is_an_object_an_outcome_and_a_summary(run, catalogue):
    """Nothing else is on stdout."""
    ended = await run(catalogue, "--json")

    outcomes = [item for item in ended.objects if item["type"] == "outcome"]
    assert sorted(outcome["ref"] for outcome in outcomes) == ["one", "three", "two"]
    assert all(outcome["ok"] and outcome["path"] and outcome["record_ids"] for outcome in outcomes)
    assert [item["type"] for item in ended.objects if item not in outcomes] == ["summary"]


async def test_quiet_is_quiet(run, catalogue):
    """Only the summary is left of a batch that goes well."""
    ended = await run(catalogue, "--quiet")

    assert ended.err == ""
    assert [line.split(":")[0] for line in ended.out.splitlines()] == [
        "3 done, 0 failed, 0 ambiguous, of 3; 35 credits reserved, 0 of them refunded.",
        "Report",
    ]


async def test_no_control_codes_where_nobody_looks_at_a_terminal(run, sandbox, tmp_path):
    """Neither in what is piped nor in what it says of hostile names."""
    path = tmp_path / "catalogue.jsonl"
    path.write_text(json.dumps({"image_id": "img_1", "ref": "a\x1b[2Jb\r\n\x9bc"}))
    sandbox.trouble("fail_job", status="\x1b[31mBAD")
    ended = await run(path, "--timeout", "0.5")

    assert ended.code == 1
    assert "\x1b" not in ended.out + ended.err
    assert "\x9b" not in ended.out + ended.err


@pytest.mark.parametrize(
    "url", ["nonsense", "http://127.0.0.1:99999", "ftp://x/y", "http://elsewhere.test", "http://[::1"]
)
async def test_a_dry_run_refuses_the_addresses_that_a_run_would(catalogue, tmp_path, url):
    """As usage, with the setting's name."""
    ended = await qamera(
        *("batch", catalogue, "--to", "clips", "--ledger", "jobs.db", "--dry-run"),
        cwd=tmp_path,
        QAMERA_BASE_URL=url,
    )

    assert ended.code == 2
    assert "QAMERA_BASE_URL" in ended.err


@pytest.mark.parametrize(
    "places",
    [("--to", "catalogue.csv", "--ledger", "jobs.db"), ("--to", "clips", "--ledger", "nowhere/jobs.db")],
)
async def test_places_that_can_not_be_are_told_before_anything_is_sent(sandbox, catalogue, tmp_path, places):
    """A folder that is a file, a ledger in no folder."""
    ended = await qamera("batch", catalogue, *places, *QUICK, sandbox=sandbox, cwd=tmp_path)

    assert (ended.code, sandbox.requests) == (2, [])
    assert len(ended.err.splitlines()) == 1


async def test_what_is_in_doubt_never_advises_to_order_again(run, sandbox, catalogue, tmp_path):
    """Neither the ledger's reason nor the report says "try again" of what may be paid for."""
    sandbox.trouble("reset_after", times=3)
    await run(catalogue, "--timeout", "0.3")
    objects = (await qamera("ledger", "jobs.db", "--json", cwd=tmp_path)).objects
    reasons = [entry["reason"] for entry in objects if entry.get("state") == "ambiguous"]

    assert len(reasons) == 3
    assert [reason for reason in reasons if "again" in reason] == []
    assert "try again" not in (tmp_path / "clips" / "report.html").read_text()


# --- interrupted --------------------------------------------------------------------------------


async def begun(sandbox, catalogue, tmp_path, orders, **options):
    """Start a batch, and wait until so many orders have arrived."""
    process = await started(
        *("batch", catalogue, "--to", "clips", "--ledger", "jobs.db", *QUICK),
        sandbox=sandbox,
        cwd=tmp_path,
        **options,
    )
    while len(sandbox.orders) < orders:
        await asyncio.sleep(0.005)
    return process


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGINT, marks=pytest.mark.case(54)),
        pytest.param(signal.SIGTERM, marks=pytest.mark.case(55)),
    ],
)
async def test_the_first_signal_waits_for_what_is_on_the_wire(run, sandbox, tmp_path, number):
    """Its receipt is in the ledger, nothing more is sent, and it says how to go on."""
    path = many(tmp_path / "catalogue.csv", 300)
    sandbox.trouble("slow", seconds=0.5, times=1000)
    process = await begun(sandbox, path, tmp_path, 5)
    process.send_signal(number)
    _, err = await process.communicate()
    ordered = len(sandbox.orders)
    objects = (await qamera("ledger", "jobs.db", "--json", cwd=tmp_path)).objects

    assert process.returncode == 130
    assert "goes on where it stopped" in err.decode()
    assert "Traceback" not in err.decode()
    assert ordered < 300
    assert len([entry for entry in objects if entry.get("state") == "submitted"]) == ordered
    assert [entry for entry in objects if entry.get("state") in {"sending", "ambiguous"}] == []


@pytest.mark.case(54)
async def test_the_second_signal_leaves_at_once(sandbox, tmp_path):
    """What is on the wire then is ambiguous in the ledger: it is not forgotten."""
    path = many(tmp_path / "catalogue.csv", 300)
    sandbox.trouble("hang", times=1000)
    process = await begun(sandbox, path, tmp_path, 3)
    process.send_signal(signal.SIGINT)
    while b"Stopping" not in await process.stderr.readline():
        pass
    process.send_signal(signal.SIGINT)
    await asyncio.wait_for(process.wait(), 10)
    objects = (await qamera("ledger", "jobs.db", "--json", cwd=tmp_path)).objects

    assert process.returncode == 130
    assert len([entry for entry in objects if entry.get("state") == "ambiguous"]) >= 3


async def test_an_interruption_tells_of_what_is_in_doubt(sandbox, tmp_path):
    """What it was cut off from is not said to go on by itself; what settles it is."""
    path = many(tmp_path / "catalogue.csv", 20)
    sandbox.trouble("reset_after", times=3)
    sandbox.trouble("slow", seconds=0.2, times=100)
    process = await begun(sandbox, path, tmp_path, 5)
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()
    objects = (await qamera("ledger", "jobs.db", "--json", cwd=tmp_path)).objects
    count = len([entry for entry in objects if entry.get("state") == "ambiguous"])
    last = err.decode().splitlines()[-1]

    assert process.returncode == 130
    assert count > 0
    assert "in doubt" in last
    assert "qamera ledger jobs.db" in last
    assert "credits reserved" in last


@pytest.mark.case(96)
async def test_command_started_with_sigint_and_sighup_ignored_stops_on_sigterm(sandbox, tmp_path):
    path = many(tmp_path / "catalogue.csv", 200)
    sandbox.trouble("slow", seconds=0.05, times=1000)
    process = await begun(sandbox, path, tmp_path, 5, nohup=True)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGHUP)
    while len(sandbox.orders) < 120:
        assert process.returncode is None
        await asyncio.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, err = await process.communicate()
    objects = (await qamera("ledger", "jobs.db", "--json", cwd=tmp_path)).objects

    assert process.returncode == 130, err.decode()
    assert "Traceback" not in err.decode()
    assert len(sandbox.orders) < 200
    assert {entry["state"] for entry in objects if "state" in entry} <= {"submitted", "done"}


@pytest.mark.slow
async def test_killed_twice_nothing_is_ordered_twice(run, sandbox, tmp_path):
    """Of 300 rows every clip is there, but for those that were on the wire at the kills."""
    path = many(tmp_path / "catalogue.csv", 300)
    for orders in (60, 150):
        process = await begun(sandbox, path, tmp_path, orders)
        process.kill()
        await process.communicate()
    ended = await run(path, "--timeout", "5")
    objects = (await qamera("ledger", "jobs.db", "--json", cwd=tmp_path)).objects

    images = [order.body["imageId"] for order in sandbox.orders]
    doubts = {entry["request"]["ref"] for entry in objects if entry.get("state") == "ambiguous"}
    assert len(images) == len(set(images))
    assert ended.code == (4 if doubts else 0)
    assert {*clips(tmp_path / "clips"), *doubts} == {f"sku-{number}" for number in range(300)}
