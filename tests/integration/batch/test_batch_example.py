"""The batch example as a process: invalid input, ambiguous submissions and outages."""

import asyncio
import os
import sys

import pytest
from test_examples import EXAMPLES, catalogue, finish


async def start(sandbox, name, *arguments, url):
    """Start an example with the key of the sandbox and another base URL."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        EXAMPLES / name,
        *map(str, arguments),
        env={**os.environ, "QAMERA_BASE_URL": url, "QAMERA_API_KEY": sandbox.api_key},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        (b"image_id,ref\na,x\nimg\xe9,y\n", 3, "UTF-8"),
        ("image_id,ref\na,x\n".encode("utf-16"), 1, "UTF-8"),
        (b"image_id,ref\na,x\nb," + b"0" * 200_000 + b"\n", 3, "131072"),
        (b"image_id,ref\na,x\n\n\nb," + b"0" * 200_000 + b"\n", 5, "131072"),
        (b"image_id,ref," + b"0" * 200_000 + b"\na,x\n", 1, "131072"),
        (b"image_id,ref\na,x\nb\0c,y\n", 3, "NUL"),
        (b"image_id,note\na,x\nb,y\0\n", 3, "NUL"),
        (b'image_id,ref\r\n"a\r\nb",x\r\nc,\0\r\n', 4, "NUL"),
        (b"image_id,re\0f\na,x\n", 1, "NUL"),
    ],
)
async def test_invalid_catalogue_is_reported_in_one_line(sandbox, tmp_path, content, line, reason):
    """The message states the line number, and nothing is submitted."""
    file = tmp_path / "catalogue.csv"
    file.write_bytes(content)
    code, out, err = await finish(sandbox, "batch.py", file, tmp_path / "clips")

    assert (code, out) == (2, "")
    assert f"{file}, line {line}: " in err
    assert reason in err
    assert err.count("\n") == 1
    assert sandbox.requests == []


@pytest.mark.parametrize("folder", [".", "/", "..", "clips/.."])
async def test_folder_without_a_name_is_refused(sandbox, tmp_path, folder):
    """The default ledger is named after the folder; the message suggests --ledger."""
    file = catalogue(tmp_path / "catalogue.csv", 1)
    code, out, err = await finish(sandbox, "batch.py", file, folder)

    assert (code, out) == (2, "")
    assert repr(folder) in err.splitlines()[-1]
    assert "--ledger" in err.splitlines()[-1]
    assert sandbox.requests == []


async def test_folder_without_a_name_is_accepted_with_a_ledger(sandbox, tmp_path):
    """The ledger then has its own name."""
    file = catalogue(tmp_path / "catalogue.csv", 1)
    (tmp_path / "clips" / "inner").mkdir(parents=True)
    folder = tmp_path / "clips" / "inner" / ".."
    code, _, err = await finish(sandbox, "batch.py", file, folder, "--ledger", tmp_path / "jobs.db")

    assert (code, err) == (0, "")
    assert len(list((tmp_path / "clips").glob("*.mp4"))) == 1


@pytest.mark.slow
async def test_ambiguous_submission_is_reported_with_code_that_resolves_it(sandbox, tmp_path):
    """The printed code has the intent and the ledger, and runs as it is."""
    sandbox.trouble("error", status=500, taken=True)
    file, clips = catalogue(tmp_path / "catalogue.csv", 1), tmp_path / "clips"
    code, _, err = await finish(sandbox, "batch.py", file, clips)

    assert code == 4
    assert "In doubt: img_0" in err
    lines = [line.strip() for line in err.splitlines()]
    opening = next(line for line in lines if line.startswith("async with QameraSession("))
    adopting = next(line for line in lines if "qamera.adopt(" in line)
    assert any("qamera.abandon(" in line for line in lines)
    assert "A catalogue, safely" in err

    program = "\n".join(
        [
            "import asyncio",
            "from qamera_async import QameraSession",
            "async def main():",
            f"    {opening}",
            f"        {adopting.partition('#')[0].replace('RECORD_ID', 'vid_001')}",
            "asyncio.run(main())",
        ]
    )
    script = tmp_path / "resolve.py"
    script.write_text(program)
    code, _, err = await finish(sandbox, script)
    assert (code, err) == (0, "")
    code, out, err = await finish(sandbox, "batch.py", file, clips)

    assert (code, err) == (0, "")
    assert "1 done, 0 failed, of 1" in out
    assert len(sandbox.orders) == 1


@pytest.mark.slow
async def test_unreachable_server_is_reported(sandbox, tmp_path, unused_tcp_port):
    """The example prints a line for each attempt and for the pause."""
    file = catalogue(tmp_path / "catalogue.csv", 1)
    process = await start(
        sandbox, "batch.py", file, tmp_path / "clips", url=f"http://127.0.0.1:{unused_tcp_port}"
    )
    seen = []
    async with asyncio.timeout(60):
        while not any("unreachable" in line for line in seen):
            line = await process.stderr.readline()
            assert line, seen
            seen.append(line.decode())
    process.kill()
    await process.communicate()

    assert any(line.startswith("register: attempt 1 failed") for line in seen)
    assert all("Traceback" not in line for line in seen)
