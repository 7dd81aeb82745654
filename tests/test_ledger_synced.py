"""P5: what the operating system sees: an intent on the disk before the first byte of its POST leaves.

Needs strace. Where it may not run the test is skipped, and fails where CI is set in the environment.
"""

import asyncio
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from qamera_async.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")

PROGRAM = Path(__file__).with_name("catalogue.py")
TRACED = "trace=fdatasync,fsync,pwrite64,pwritev,sendto,write,writev,sendmsg"
LINE = re.compile(r"(?P<process>\d+) +(?:<\.\.\. )?(?P<call>\w+)(?P<rest>.*)")


def calls(lines):
    """Give each system call: the places where it began and ended, its name, and all of its text."""
    begun, found = {}, []
    for place, line in enumerate(lines):
        if (match := LINE.match(line)) is None:
            continue
        process, call, rest = match.groups()
        if "<... " in line:
            began, text = begun.pop(process)
            found.append((began, place, call, text + rest))
        elif "<unfinished ...>" in line:
            begun[process] = place, rest
        else:
            found.append((place, place, call, rest))
    return found


def unsynced(lines, keys, ledger):
    """Give the keys whose intent was not surely on the ledger's disk when its POST began, with why."""
    found, made = {}, calls(lines)
    files = [f"<{ledger}>", f"<{ledger}-wal>"]
    for key in keys:
        sent = min(
            began for began, _, _, text in made if "POST /api" in text and key in text and "<TCP:" in text
        )
        written = [
            (ended, file)
            for _, ended, call, text in made
            for file in files
            if call.startswith("pwrite") and file in text and key in text and r"\"sending\"" in text
        ]
        if not written or min(written)[0] > sent:
            found[key] = "not written"
        elif not any(
            after < began
            and ended < sent
            and call in ("fsync", "fdatasync")
            and file in text
            and "= 0" in text
            for after, file in written
            for began, ended, call, text in made
        ):
            found[key] = "not synced"
    return found


WRITE = '7 pwrite64(5</l/jobs.db-wal>, "..key_1..\\"sending\\"..", 4096, 56) = 4096'
SYNC = "7 fdatasync(5</l/jobs.db-wal>) = 0"
POST = '8 sendto(9<TCP:[127.0.0.1:4->127.0.0.1:5]>, "POST /api.. Idempotency-Key: key_1", 99, 0) = 99'
CUT = ["7 fdatasync(5</l/jobs.db-wal> <unfinished ...>", "7 <... fdatasync resumed>) = 0"]


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ([WRITE, SYNC, POST], {}),
        ([WRITE, *CUT, POST], {}),
        ([WRITE.replace("-wal", ""), SYNC.replace("-wal", ""), POST], {}),
        ([POST, WRITE, SYNC], {"key_1": "not written"}),
        ([WRITE.replace("sending", "claimed"), SYNC, POST], {"key_1": "not written"}),
        ([WRITE.replace("jobs.db-wal", "copy.db-wal"), SYNC, POST], {"key_1": "not written"}),
        ([WRITE, POST], {"key_1": "not synced"}),
        ([WRITE, POST, SYNC], {"key_1": "not synced"}),
        ([SYNC, WRITE, POST], {"key_1": "not synced"}),
        ([CUT[0], WRITE, CUT[1], POST], {"key_1": "not synced"}),
        ([WRITE, CUT[0], POST, CUT[1]], {"key_1": "not synced"}),
        ([WRITE, SYNC.replace("-wal", "-owners"), POST], {"key_1": "not synced"}),
        ([WRITE, SYNC.replace("-wal", ""), POST], {"key_1": "not synced"}),
        ([WRITE, SYNC.replace("= 0", "= -1 EIO (Input/output error)"), POST], {"key_1": "not synced"}),
    ],
)
def test_a_trace_is_read_by_file_and_order(lines, found):
    """A sync counts that begins after the write, ends well before the POST, and is of the very file."""
    assert unsynced(lines, ["key_1"], "/l/jobs.db") == found


def not_here(reason):
    """Skip, or fail where CI is set: there strace is to be had."""
    if os.environ.get("CI"):
        pytest.fail(f"strace is required here: {reason}")
    pytest.skip(reason)


@pytest.mark.case(59)
async def test_each_intent_is_synced_before_the_first_byte_of_its_post(tmp_path):
    """The intent written to the ledger, the disk told to keep that very file, then the POST."""
    if shutil.which("strace") is None:
        not_here("strace is not installed")
    trace, ledger = tmp_path / "trace", tmp_path.resolve() / "jobs.db"
    async with Sandbox(job_seconds=0.05, quota=None) as sandbox:
        asked = {"url": sandbox.url, "key": sandbox.api_key, "ledger": str(ledger), "number": 12}
        process = await asyncio.create_subprocess_exec(
            "strace", "-f", "-yy", "-s", "9000", "-e", TRACED, "-o", trace,
            sys.executable, PROGRAM, json.dumps(asked),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        _, err = await process.communicate()
        if process.returncode and b"ptrace" in err:
            not_here("strace may not run")
        assert process.returncode == 0, err.decode()
        keys = [order.idempotency_key for order in sandbox.orders]

    assert len(keys) == 12
    assert unsynced(trace.read_text("utf-8", "replace").splitlines(), keys, ledger) == {}
