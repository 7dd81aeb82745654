"""Small bodies that would become all of the memory."""

import asyncio
import gzip
import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from faults import GOOD, FaultServer, answers, http

import qamera_async as q

pytestmark = [
    pytest.mark.usefixtures("no_lost_exceptions"),
    pytest.mark.case(40),
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc"),
]

MIB = 1024 * 1024
# "[" and 1 GiB of zeros in 901 bytes, in blocks of 16 MiB.
BROTLI = (
    bytes.fromhex("0f00805b")
    + bytes.fromhex("fcffff877f02201e0b0472efff0d")
    + bytes.fromhex("fcffff877f02200e0b0074efff0d") * 63
    + b"\x03"
)
BROTLI_HERE = any(find_spec(name) for name in ("brotli", "brotlicffi"))

# A process of its own, since the peak is a process's.
PROGRAM = """
import asyncio, json, sys
import qamera_async as q

ASK = {"POST": lambda session: session.register_video(image_id="i"), "GET": lambda s: s.list_videos()}

def memory(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) * 1024

async def main(url, key, method):
    limits = q.Timeouts(request=60.0, reconcile=0.0)
    once = q.RetryPolicy(attempts=1)
    async with q.QameraSession(key, base_url=url, timeouts=limits, retry=once) as session:
        for ask in ASK.values():
            await ask(session)
        before = memory("VmRSS")
        try:
            await ASK[method](session)
        except q.QameraError as error:
            cause = getattr(error, "cause", error)
            grown = memory("VmHWM") - before
            print(json.dumps([grown, type(error).__name__, type(cause).__name__, cause.message]))

asyncio.run(main(*sys.argv[1:]))
"""


def gzip_bomb():
    """Give "[" and 1 GiB of zeros in 1 MB: compressed members follow each other."""
    zeros = gzip.compress(bytes(256 * MIB), 9)
    return gzip.compress(b"[") + zeros * 4


@pytest.fixture(scope="module")
def bombs():
    return {"gzip": (b"gzip", gzip_bomb()), "brotli": (b"br", BROTLI)}


@pytest.mark.parametrize("method", ["POST", "GET"])
@pytest.mark.parametrize("name", ["gzip", "brotli"])
async def test_a_bomb_stays_small(bombs, name, method):
    """P7: memory stays under 64 MiB above the start; a POST is ambiguous, a GET typed."""
    encoding, bomb = bombs[name]
    answer = http(bomb, headers=b"Content-Encoding: %s\r\n" % encoding)
    async with FaultServer(GOOD, GOOD, answers(answer, "hang")) as server:
        program = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROGRAM, server.url, server.key, method, stdout=asyncio.subprocess.PIPE
        )
        told, _ = await program.communicate()
    grown, error, cause, message = json.loads(told)

    assert grown < 64 * MIB
    assert error == ("AmbiguousSubmissionError" if method == "POST" else "InvalidResponseError")
    assert cause == "InvalidResponseError"
    # Without a package for brotli the HTTP client reads nothing of it.
    assert ("longer than" in message) is (name == "gzip" or BROTLI_HERE)
    assert server.methods == ["POST", "GET", method]


@pytest.mark.parametrize(
    ("status", "cause"), [("200 OK", "InvalidResponseError"), ("500 Nope", "InvalidResponseError")]
)
async def test_a_receipt_or_an_error_that_is_long_is_not_made_anything_of(status, cause):
    """Whole JSON of small parts takes many times its size: what has to be short is refused at 1 MiB."""
    body = gzip.compress(b'{"error": "no", "createdRecordIds": [' + b'"a",' * (8 * MIB) + b'"a"]}')
    answer = http(body, status=status, headers=b"Content-Encoding: gzip\r\n")
    async with FaultServer(GOOD, GOOD, answers(answer, "hang")) as server:
        program = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROGRAM, server.url, server.key, "POST", stdout=asyncio.subprocess.PIPE
        )
        told, _ = await program.communicate()
    grown, error, told_cause, message = json.loads(told)

    assert grown < 64 * MIB
    assert (error, told_cause) == ("AmbiguousSubmissionError", cause)
    assert "longer than 1048576 bytes" in message


async def test_a_long_list_is_read_though_it_is_compressed_well():
    """Videos that differ by a number alone, more alike than any are, become 20 times what was sent."""
    video = b'{"id":"vid_%06d","status":"PENDING","videoUrl":"https://cdn.example.com/videos/vid_%06d.mp4"}'
    body = gzip.compress(b'{"videos": [' + b",".join(video % (n, n) for n in range(50_000)) + b"]}", 9)
    async with FaultServer(answers(http(body, headers=b"Content-Encoding: gzip\r\n"))) as server:
        async with q.QameraSession(server.key, base_url=server.url) as session:
            videos = await session.list_videos()

    assert len(videos) == 50_000


@pytest.mark.parametrize("kind", ["broken", "good"])
async def test_a_list_of_very_many_short_items_is_no_bomb_either(kind):
    """Whole JSON whose items take many times their bytes, in 60 kB of gzip: refused before it is decoded."""
    item = b"1," if kind == "broken" else b'{"id":"a"},'
    body = gzip.compress(b'{"videos": [' + item * (40 * MIB // len(item)) + b"1]}", 9)
    answer = http(body, headers=b"Content-Encoding: gzip\r\n")
    async with FaultServer(GOOD, GOOD, answers(answer, "hang")) as server:
        program = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROGRAM, server.url, server.key, "GET", stdout=asyncio.subprocess.PIPE
        )
        told, _ = await program.communicate()
    grown, error, _, message = json.loads(told)

    assert len(body) < 128 * 1024
    assert grown < 64 * MIB
    assert error == "InvalidResponseError"
    assert "longer than" in message
