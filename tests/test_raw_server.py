"""What no HTTP framework would send, from a raw server on loopback."""

import asyncio
import gzip
import resource

import pytest

import qamera_async as q

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")

KEY = "mk_live_a.bcdefgh"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
RECEIPT = b'{"createdRecordIds":["vid_1"]}'


class RawServer:
    """Answers each request with the same bytes, then ends the connection."""

    def __init__(self, answer, *, linger=False):
        self.answer = answer
        self.linger = linger
        self.seen = []
        self._open = set()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for writer in self._open:
            writer.transport.abort()
        await self._server.wait_closed()

    async def _serve(self, reader, writer):
        self._open.add(writer)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.seen.append(head.split(b" ", 1)[0])
            if b"POST" in head[:5]:
                await reader.readuntil(b"}")
            writer.write(self.answer)
            await writer.drain()
            if self.linger:
                await reader.read()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._open.discard(writer)
            writer.transport.abort() if self.linger else writer.close()


BROKEN = {
    "nothing": b"",
    "a cut status line": b"HTTP/1.1 20",
    "cut headers": HEAD,
    "a cut body": HEAD + b"Content-Length: 100\r\n\r\n" + RECEIPT,
    "a cut chunked body": HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabc",
    "a bad chunk size": HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n",
    "a garbage status line": b"garbage garbage\r\n\r\n",
    "a bad length": HEAD + b"Content-Length: many\r\n\r\n" + RECEIPT,
    "two lengths": HEAD + b"Content-Length: 3\r\nContent-Length: 30\r\n\r\n" + RECEIPT,
    "length and chunks": HEAD + b"Content-Length: 30\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a header of 20 kB": HEAD + b"X-Long: " + b"a" * 20_000 + b"\r\n\r\n" + RECEIPT,
    "500 headers": HEAD + b"".join(b"X-%d: 1\r\n" % n for n in range(500)) + b"\r\nnothing",
    "status 000": b"HTTP/1.1 000 Odd\r\nContent-Length: 0\r\n\r\n",
    "status 999": b"HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n",
    "an unasked 304": b"HTTP/1.1 304 Not Modified\r\n\r\n",
    "a 204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "a cut gzip": HEAD
    + b"Content-Encoding: gzip\r\nConnection: close\r\n\r\n"
    + gzip.compress(RECEIPT * 50)[:-20],
    "an odd charset": b"HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=odd\r\n\r\n{",
    "a byte order mark": HEAD + b"Content-Length: 5\r\n\r\n\xef\xbb\xbf{}",
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_post_with_a_broken_answer_is_ambiguous(name, quick):
    """P3: one POST on the wire, whatever came back."""
    async with RawServer(BROKEN[name]) as server:
        timeouts = q.Timeouts(request=1.0, lookup=0.02)
        async with q.QameraSession(KEY, base_url=server.url, **quick | {"timeouts": timeouts}) as session:
            with pytest.raises(q.AmbiguousSubmissionError) as ambiguous:
                await session.register_video(image_id="i")

    assert server.seen.count(b"POST") == 1
    assert isinstance(ambiguous.value.cause, q.QameraError)


@pytest.mark.parametrize("name", BROKEN)
async def test_a_get_with_a_broken_answer_is_typed(name, quick):
    """P7: nothing but a QameraError, after a bounded number of attempts, each a slot of the quota."""
    async with RawServer(BROKEN[name]) as server:
        async with q.QameraSession(KEY, base_url=server.url, **quick) as session:
            with pytest.raises(q.QameraError):
                await session.list_videos()
            assert session.budget.used == len(server.seen)

    assert 1 <= len(server.seen) <= quick["retry"].attempts


async def test_a_body_that_stalls_ends_in_time(quick):
    """P7: within Timeouts.request."""
    async with RawServer(HEAD + b"Content-Length: 100\r\n\r\n{", linger=True) as server:
        options = quick | {"timeouts": q.Timeouts(request=0.1, lookup=0.0)}
        async with q.QameraSession(KEY, base_url=server.url, **options) as session:
            with pytest.raises(q.AmbiguousSubmissionError) as ambiguous:
                await session.register_video(image_id="i")

    assert isinstance(ambiguous.value.cause, q.RequestTimeoutError)


async def test_a_compressed_bomb_stays_small(quick):
    """P7: 1 GiB in 1 MB of gzip ends as an error with memory bounded."""
    compressor_input = bytes(1024 * 1024)
    bomb = gzip.compress(b"[" + compressor_input * 256)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    head = HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb)
    async with RawServer(head + bomb, linger=True) as server:
        options = quick | {"timeouts": q.Timeouts(request=20.0)}
        async with q.QameraSession(KEY, base_url=server.url, **options) as session:
            with pytest.raises(q.InvalidResponseError, match="longer than"):
                await session.list_videos()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before

    assert grown < 160 * 1024  # kB; the pieces that were read, and what the parser held
