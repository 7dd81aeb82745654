"""The examples run as processes, as a user runs them."""

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import children
import postgres
import pytest

from qamera_async.sandbox import Sandbox

EXAMPLES = Path(__file__).parents[1] / "examples"
QUICKSTART = EXAMPLES / "quickstart.py"
ROWS = 20  # with the quota of life, more would take long


def run(*arguments, **environment):
    """Run the quickstart with no terminal."""
    return subprocess.run(
        [sys.executable, QUICKSTART, *arguments],
        env={**{k: v for k, v in os.environ.items() if k != "QAMERA_API_KEY"}, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_quickstart_ends_with_two_urls():
    """On the sandbox: both are DONE, their URLs printed, exit 0."""
    result = run()

    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("DONE") == 2
    assert result.stdout.count(".mp4") == 2


def test_live_without_a_key_is_refused():
    """Exit 2 and one line, no traceback."""
    result = run("--live", "img_1")

    assert result.returncode == 2
    assert "QAMERA_API_KEY" in result.stderr
    assert "Traceback" not in result.stderr


def test_live_spends_nothing_unasked():
    """Where nobody can agree, it says that it spends credits and stops."""
    result = run("--live", "img_1", QAMERA_API_KEY="mk_live_a.b", QAMERA_BASE_URL="http://127.0.0.1:9")

    assert result.returncode == 2
    assert "SPENDS CREDITS" in result.stdout


# --- with a ledger, on a sandbox that outlives them -----------------------------------------------


@pytest.fixture
async def sandbox():
    async with Sandbox(job_seconds=0.2, quota=None, credits=10**6) as sandbox:
        yield sandbox


async def start(sandbox, name, *arguments):
    """Start an example on the sandbox."""
    return await children.start(
        sys.executable,
        EXAMPLES / name,
        *map(str, arguments),
        env={**os.environ, "QAMERA_BASE_URL": sandbox.url, "QAMERA_API_KEY": sandbox.api_key},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def finish(sandbox, name, *arguments):
    """Run an example to its end."""
    process = await start(sandbox, name, *arguments)
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


def catalogue(path, number):
    path.write_text("image_id,suggestion\n" + "".join(f"img_{n},Slow zoom in\n" for n in range(number)))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
async def test_a_catalogue_goes_on_where_it_was_stopped(sandbox, tmp_path, how):
    """Ctrl-C or kill -9 in the middle, then again: each row ordered once, or reported as in doubt."""
    file, clips = catalogue(tmp_path / "catalogue.csv", ROWS), tmp_path / "clips"
    sandbox.trouble("slow", times=500, seconds=0.02)
    process = await start(sandbox, "batch.py", file, clips)
    reading = asyncio.ensure_future(process.communicate())
    while len(sandbox.orders) < ROWS // 3:
        assert not reading.done(), reading.result()
        await asyncio.sleep(0.005)
    process.send_signal(how)
    _, err = await reading
    assert process.returncode == (130 if how is signal.SIGINT else -9)
    assert b"Traceback" not in err
    code, out, err = await finish(sandbox, "batch.py", file, clips)

    in_doubt = err.count("In doubt:")
    assert code == (4 if in_doubt else 0)
    assert in_doubt == 0 or how is signal.SIGKILL
    ordered = Counter(order.body["imageId"] for order in sandbox.orders)
    assert max(ordered.values()) == 1
    assert ROWS - in_doubt <= len(ordered) <= ROWS
    assert len(list(clips.glob("*.mp4"))) == ROWS - in_doubt
    assert f"{ROWS - in_doubt} done, {in_doubt} failed, of {ROWS}" in out

    before = len(sandbox.requests)
    await finish(sandbox, "batch.py", file, clips)
    assert [r for r in sandbox.requests[before:] if r.method == "POST" or r.origin == "cdn"] == []


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ('image_id\na\n" "\n', 3, "image_id"),
        ("image_id,ref\na,x\nb,x\n", 3, "on line 2 too"),
        ("image_id,ref\na,x,y\n", 2, "columns"),
        ("image_id,ref\na\n", 2, "columns"),
        ("image\na\n", 1, "no column image_id"),
        ("", 1, "no column image_id"),
    ],
)
async def test_a_row_that_makes_no_request_is_named_before_anything_is_paid(
    sandbox, tmp_path, text, line, reason
):
    """Its line and the reason; nothing is submitted, though good rows stand before it."""
    file = tmp_path / "catalogue.csv"
    file.write_text(text)
    code, _, err = await finish(sandbox, "batch.py", file, tmp_path / "clips")

    assert code == 2
    assert f"line {line}: " in err
    assert reason in err
    assert "Traceback" not in err
    assert sandbox.requests == []


@pytest.mark.slow
async def test_submitted_in_one_process_awaited_in_another(sandbox, tmp_path):
    """All that passes between them is the ledger's file."""
    ledger = tmp_path / "jobs.db"
    code, out, _ = await finish(sandbox, "resume.py", "submit", ledger, "img_1", "img_2", "img_1")
    assert (code, out.count("ordered")) == (0, 3)
    code, out, _ = await finish(sandbox, "resume.py", "await", ledger)
    assert (code, out.count("DONE")) == (0, 2)
    code, out, _ = await finish(sandbox, "resume.py", "await", ledger)

    assert (code, out) == (0, "0 to await\n")
    assert len(sandbox.orders) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("where", "kill"), [("file", ["--kill"]), ("database", [])])
def test_replicas_share_the_quota_and_lose_no_order(where, kill):
    """Four processes on one key: never more than the quota, and what one leaves that dies is awaited."""
    arguments = ["--seconds", "3", "--window", "3", *kill]
    if where == "database":
        arguments += ["--database", postgres.server().database()]
    result = subprocess.run(
        [sys.executable, EXAMPLES / "replicas.py", *arguments],
        env={k: v for k, v in os.environ.items() if not k.startswith("QAMERA_")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert result.returncode == 0, result.stdout + result.stderr
    assert "(of 60), 0 refused" in result.stdout
    assert result.stdout.count(" ordered, ") == 4
    assert ("kill -9" in result.stdout) == bool(kill)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
def test_durable_pipeline_survives_kill_9(workers):
    """One worker on SQLite, three on PostgreSQL: one is killed and started again."""
    arguments = ["--kill", "--number", "20", "--workers", str(workers)]
    if workers > 1:
        arguments += ["--database", postgres.server().database()]
    result = subprocess.run(
        [sys.executable, EXAMPLES / "durable_pipeline.py", *arguments],
        env={k: v for k, v in os.environ.items() if not k.startswith("QAMERA_")},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )

    assert result.returncode == 0, result.stdout + result.stderr
    assert "kill -9 " in result.stdout
    assert "20 of 20 jobs done" in result.stdout
    assert "20 orders for 20 images, 0 of them twice" in result.stdout


@pytest.mark.slow
async def test_durable_pipeline_fails_unless_every_job_is_done(sandbox, tmp_path):
    """With a key it uses the server of the environment; a failed job makes its exit code non-zero."""
    sandbox.trouble("fail_job")
    process = await children.start(
        sys.executable,
        EXAMPLES / "durable_pipeline.py",
        *("--window", "1", "img_1", "img_2"),
        cwd=tmp_path,
        env={**os.environ, "QAMERA_BASE_URL": sandbox.url, "QAMERA_API_KEY": sandbox.api_key},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()

    assert process.returncode == 1
    assert b"1 of 2 jobs done" in out
    assert b"JobFailedError" in err
