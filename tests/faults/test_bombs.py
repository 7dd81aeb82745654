"""Small compressed bodies that expand to more than the memory limit."""

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

# A separate process, because the kernel reports the peak memory of a process.
PROGRAM = """
import asyncio, json, sys
import qamera_async as q

CALLS = {"POST": lambda session: session.register_video(image_id="i"), "GET": lambda s: s.list_videos()}

def memory(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) * 1024

async def main(url, key, method):
    limits = q.Timeouts(request=60.0, reconcile=0.0)
    once = q.RetryPolicy(attempts=1)
    async with q.QameraSession(key, base_url=url, timeouts=limits, retry=once) as session:
        for ask in CALLS.values():
            await ask(session)
        before = memory("VmRSS")
        try:
            await CALLS[method](session)
        except q.QameraError as error:
            cause = getattr(error, "cause", error)
            grown = memory("VmHWM") - before
            print(json.dumps([grown, type(error).__name__, type(cause).__name__, cause.message]))

asyncio.run(main(*sys.argv[1:]))
"""


def gzip_bomb():
    """Return "[" and 1 GiB of zeros as 1 MB of concatenated gzip members."""
    zeros = gzip.compress(bytes(256 * MIB), 9)
    return gzip.compress(b"[") + zeros * 4


@pytest.fixture(scope="module")
def bombs():
    """Return the Content-Encoding and the body of each bomb."""
    return {"gzip": (b"gzip", gzip_bomb()), "brotli": (b"br", BROTLI)}


async def memory_and_error_of(server, method):
    """Run a request in its own process; return its memory growth and the texts of its error."""
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, server.url, server.key, method, stdout=asyncio.subprocess.PIPE
    )
    printed, _ = await program.communicate()
    return json.loads(printed)


@pytest.mark.parametrize("method", ["POST", "GET"])
@pytest.mark.parametrize("name", ["gzip", "brotli"])
async def test_decompression_bomb_takes_less_than_64_mib(bombs, name, method):
    """P7: memory grows by less than 64 MiB; a POST is ambiguous, a GET raises InvalidResponseError."""
    encoding, bomb = bombs[name]
    answer = http(bomb, headers=b"Content-Encoding: %s\r\n" % encoding)
    async with FaultServer(GOOD, GOOD, answers(answer, "hang")) as server:
        grown, error, cause, message = await memory_and_error_of(server, method)

    assert grown < 64 * MIB
    assert error == ("AmbiguousSubmissionError" if method == "POST" else "InvalidResponseError")
    assert cause == "InvalidResponseError"
    # Without a brotli package, the HTTP client does not decode the body.
    assert ("longer than" in message) is (name == "gzip" or BROTLI_HERE)
    assert server.methods == ["POST", "GET", method]


@pytest.mark.parametrize("status", ["200 OK", "500 Internal Server Error"])
async def test_receipt_or_error_body_beyond_1_mib_is_not_decoded(status):
    """Decoded JSON with many small values takes a multiple of its size. The limit is 1 MiB."""
    body = gzip.compress(b'{"error": "no", "createdRecordIds": [' + b'"a",' * (8 * MIB) + b'"a"]}')
    answer = http(body, status=status, headers=b"Content-Encoding: gzip\r\n")
    async with FaultServer(GOOD, GOOD, answers(answer, "hang")) as server:
        grown, error, cause, message = await memory_and_error_of(server, "POST")

    assert grown < 64 * MIB
    assert (error, cause) == ("AmbiguousSubmissionError", "InvalidResponseError")
    assert "longer than 1048576 bytes" in message


async def test_highly_compressed_list_is_read():
    """Videos that differ only by their number compress to a twentieth of their size."""
    video = b'{"id":"vid_%06d","status":"PENDING","videoUrl":"https://cdn.example.com/videos/vid_%06d.mp4"}'
    body = gzip.compress(b'{"videos": [' + b",".join(video % (n, n) for n in range(50_000)) + b"]}", 9)
    async with FaultServer(answers(http(body, headers=b"Content-Encoding: gzip\r\n"))) as server:
        async with q.QameraSession(server.key, base_url=server.url) as session:
            videos = await session.list_videos()

    assert len(videos) == 50_000


@pytest.mark.parametrize("kind", ["broken", "good"])
async def test_list_of_many_short_items_takes_less_than_64_mib(kind):
    """Decoding the items would take many times their size. The list is refused before it is decoded."""
    item = b"1," if kind == "broken" else b'{"id":"a"},'
    body = gzip.compress(b'{"videos": [' + item * (40 * MIB // len(item)) + b"1]}", 9)
    answer = http(body, headers=b"Content-Encoding: gzip\r\n")
    async with FaultServer(GOOD, GOOD, answers(answer, "hang")) as server:
        grown, error, _, message = await memory_and_error_of(server, "GET")

    assert len(body) < 128 * 1024
    assert grown < 64 * MIB
    assert error == "InvalidResponseError"
    assert "longer than" in message
