"""Downloads against a bare read-and-write loop: speed and memory. ``python benchmarks/download.py``."""

import asyncio
import os
import socketserver
import statistics
import sys
import tempfile
import threading
import time
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import aiohttp
from report import row

from qamera_async import JobState, RetryPolicy, Timeouts, Video
from qamera_async._transport import ConnectionSettings, DownloadClient, Secret
from qamera_async.download import Downloader

SIZE = 200 * 1024 * 1024  # bytes
ROUNDS = 9
SETTINGS = ConnectionSettings(api_key=Secret("mk_live_a.bcdefgh"), base_url="http://127.0.0.1:1")


class Serve(socketserver.StreamRequestHandler):
    """Answers each request with SIZE bytes that begin like an MP4."""

    body = b"\x00\x00\x00\x18ftypmp42" + bytes(1024 * 1024 - 12)

    def handle(self):
        """Answer the requests of one connection."""
        while line := self.rfile.readline():
            while self.rfile.readline() not in {b"\r\n", b""}:
                pass
            if not line.startswith(b"GET"):
                return
            head = f'HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\nETag: "a"\r\n\r\n'
            self.wfile.write(head.encode())
            for _ in range(SIZE // len(self.body)):
                self.wfile.write(self.body)


def serve():
    """Serve in this process until standard input ends."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Serve) as server:
        server.daemon_threads = True
        print(server.server_address[1], flush=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        sys.stdin.read()


@asynccontextmanager
async def server():
    """Run the server in another process; gives the URL of its file."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        __file__,
        "--serve",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    port = int(await process.stdout.readline())
    yield f"http://127.0.0.1:{port}/clip.mp4"
    await process.communicate(b"")


async def bare(http, url, path):
    """Read and write, and nothing else."""
    async with http.get(url) as response:
        with path.open("wb") as file:
            async for piece in response.content.iter_chunked(1024 * 1024):
                file.write(piece)


def resident():
    """Give the memory of this process, in MiB."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


async def timed(work):
    """Give the seconds that something takes."""
    start = time.perf_counter()
    await work
    return time.perf_counter() - start


async def main(quick):
    """Run all rows of this table."""
    async with (
        server() as url,
        aclosing(DownloadClient(SETTINGS, Timeouts())) as client,
        aiohttp.ClientSession() as http,
    ):
        most = 0.0

        def watch(_done, _total):
            nonlocal most
            most = max(most, resident())

        downloader = Downloader(client, RetryPolicy(), Timeouts(), lambda _: None, lambda _: asyncio.sleep(0))
        video = Video("vid_1", "DONE", JobState.DONE, video_url=url)
        ratios, ours, theirs = [], [], []
        with tempfile.TemporaryDirectory(dir=os.environ.get("QAMERA_BENCHMARK_DIR")) as folder:
            path = Path(folder) / "clip.mp4"
            await downloader.file(video, path, overwrite=True)
            start = resident()
            for _ in range(5 if quick else ROUNDS):
                ours.append(await timed(downloader.file(video, path, overwrite=True, on_progress=watch)))
                theirs.append(await timed(bare(http, url, path)))
                ratios.append(theirs[-1] / ours[-1])
    ratio = statistics.median(ratios)
    speed = [SIZE / 2**20 / statistics.median(seconds) for seconds in (ours, theirs)]
    row(
        "a download of 200 MiB, on disk at the end, against a bare loop",
        f"{ratio:.2f} x its speed ({speed[0]:.0f} and {speed[1]:.0f} MiB/s)",
        "0.7 x",
        ratio >= 0.7,
    )
    row("its memory above the start", f"{most - start:.1f} MiB", "32 MiB", most - start < 32)


if __name__ == "__main__":
    if "--serve" in sys.argv:
        serve()
    else:
        asyncio.run(main("--quick" in sys.argv))
