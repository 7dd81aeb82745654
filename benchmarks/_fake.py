"""The four APIs that are compared, faked by one small server in a process of its own: ``_fake.py OPTIONS``.

Its CPU is not the client's, and it does as little as it can. It says its port, answers each line on standard
input with what it has counted, as JSON, and ends with standard input.
"""

import asyncio
import gzip
import json
import math
import random
import sys
import time
from collections import Counter, deque

import attrs

VIDEOS = b"/api/external/videos"
PENDING, CHANGED, DONE = "PENDING", "RUNNING", "DONE"


def video(number, status):
    """Give one entry of the list."""
    return {
        "id": f"vid_{number:06d}",
        "name": f"Product Showcase - White T-Shirt {number}",
        "thumbnail": f"https://cdn.example.com/videos/thumb_{number:06d}.jpg",
        "videoUrl": f"https://cdn.example.com/videos/vid_{number:06d}.mp4",
        "status": status,
        "voting": "APPROVED",
        "createdAt": "2026-03-20T17:00:00.000Z",
    }


def listing(number, changed=(), status=DONE):
    """Give the body of a list of so many, where those that are ``changed`` have ``status``."""
    changed = frozenset(changed)
    videos = [video(n, status if n in changed else PENDING) for n in range(number)]
    return json.dumps({"videos": videos, "count": number}).encode()


def durations(number, seconds, spread):
    """Give how long each job takes: all the same, or log-normal about a median, the same in each run."""
    draw = random.Random(1)  # noqa: S311 - guards nothing
    return [seconds * math.exp(draw.gauss(0.0, spread)) if spread else seconds for _ in range(number)]


@attrs.frozen
class Options:
    """What the server does.

    Attributes:
        quota: so many requests in so many seconds, or None.
        retry_after: whether a 429 states when to come again.
        speed: how much faster than in life time goes; what a 429 states is told in seconds of life.
        seconds: how long a job takes, or the median of it.
        spread: sigma of the log-normal distribution; 0 means that all take the same.
        records: so many are in the list from the beginning, and pending.
        changing: whether the last record of the list has another status in each list.
        compressed: whether the list is sent as gzip.
        listed: whether a registration is answered with the ids of records that are in the list already.
    """

    quota: tuple[int, float] | None = None
    retry_after: bool = False
    speed: float = 1.0
    seconds: float = 3.0
    spread: float = 0.0
    records: int = 0
    changing: bool = False
    compressed: bool = False
    listed: bool = False


class World:
    """The jobs, the quota and the count of what came."""

    def __init__(self, options):
        self.options = options
        self.counted = Counter()
        self.done_at = []
        self._lengths = durations(10_000, options.seconds, options.spread)
        self._orders = 0
        self._window = deque()
        self._lists = 0
        self._bodies = self._make_bodies(PENDING)

    def _make_bodies(self, status):
        number = self.options.records
        bodies = [listing(number, range(number), status)]
        if self.options.changing and status == PENDING:
            bodies.append(listing(number, [number - 1], CHANGED))
        return [gzip.compress(body, 6) if self.options.compressed else body for body in bodies]

    def count(self):
        """Give what came so far."""
        return {"counted": self.counted, "done_at": self.done_at}

    def answer(self, method, path):
        """Give status, body, headers and whether the body is compressed."""
        if path == b"/finish":
            self._bodies = self._make_bodies(DONE)
            return b"200 OK", b"{}", b""
        wait = self._wait()
        self.counted[method.decode()] += 1
        self.counted["429" if wait else "200"] += 1
        if wait:
            stated = (
                f"Retry-After: {math.ceil(wait * self.options.speed)}\r\n" if self.options.retry_after else ""
            )
            body = b'{"error": "Too many requests. Please retry after a short delay."}'
            return b"429 Too Many Requests", body, stated.encode()
        if method == b"GET" and path == VIDEOS:
            return b"200 OK", *self._list()
        if method == b"POST":
            return b"200 OK", self._order(path), b""
        return b"200 OK", self._one(path), b""

    def _wait(self):
        if self.options.quota is None:
            return 0.0
        limit, seconds = self.options.quota
        now = time.monotonic()
        while self._window and self._window[0] <= now - seconds:
            self._window.popleft()
        if len(self._window) < limit:
            self._window.append(now)
            return 0.0
        return self._window[0] + seconds - now

    def _list(self):
        if self.done_at and not self.options.listed:
            now = time.monotonic()
            videos = [video(n, DONE if at <= now else PENDING) for n, at in enumerate(self.done_at)]
            return json.dumps({"videos": videos, "count": len(videos)}).encode(), b""
        self._lists += 1
        compressed = b"Content-Encoding: gzip\r\n" if self.options.compressed else b""
        return self._bodies[self._lists % len(self._bodies)], compressed

    def _order(self, path):
        number = len(self.done_at)
        self.done_at.append(time.monotonic() + self._lengths[number % len(self._lengths)])
        if path.startswith(b"/api/external"):
            receipt = {
                "createdRecordIds": [f"vid_{number:06d}"],
                "batchId": "batch_1",
                "orderId": f"order_{number}",
                "reservationId": "res_1",
                "creditsReserved": 10,
            }
            return json.dumps(receipt).encode()
        return self._one(path, f"vid_{number:06d}")

    def _one(self, path, name=None):
        name = path.rpartition(b"/")[2].decode() if name is None else name
        number = int(name.rpartition("_")[2])
        done = number < len(self.done_at) and self.done_at[number] <= time.monotonic()
        if path.startswith((b"/v1/tasks", b"/v1/image_to_video")):
            task = {"id": name, "status": "RUNNING", "createdAt": "2026-03-20T17:00:00.000Z", "progress": 0.5}
            if done:
                task |= {"status": "SUCCEEDED", "output": [f"https://cdn.example.com/videos/{name}.mp4"]}
            return json.dumps(task).encode()
        if path.startswith(b"/v1/videos"):
            return json.dumps(
                {
                    "id": name,
                    "object": "video",
                    "model": "sora-2",
                    "status": "completed" if done else "in_progress",
                    "progress": 100 if done else 50,
                    "created_at": 1_774_026_000,
                    "completed_at": 1_774_026_030 if done else None,
                    "expires_at": None,
                    "error": None,
                    "prompt": "Slow zoom in",
                    "remixed_from_video_id": None,
                    "seconds": "4",
                    "size": "720x1280",
                }
            ).encode()
        return json.dumps(
            {
                "id": name,
                "model": "owner/model",
                "version": "1",
                "status": "succeeded" if done else "processing",
                "input": {"prompt": "Slow zoom in"},
                "output": f"https://cdn.example.com/videos/{name}.mp4" if done else None,
                "logs": "",
                "error": None,
                "metrics": None,
                "created_at": "2026-03-20T17:00:00.000Z",
                "started_at": "2026-03-20T17:00:00.000Z",
                "completed_at": "2026-03-20T17:00:30.000Z" if done else None,
                "urls": {"get": f"/v1/predictions/{name}", "cancel": f"/v1/predictions/{name}/cancel"},
            }
        ).encode()


class Connection(asyncio.Protocol):
    """Reads one request after the other, and answers at once."""

    def __init__(self, world):
        self._world = world
        self._came = b""
        self._transport = None

    def connection_made(self, transport):
        """Remember where to write."""
        self._transport = transport

    def data_received(self, data):
        """Answer all requests that are whole."""
        self._came += data
        while True:
            head, found, rest = self._came.partition(b"\r\n\r\n")
            if not found:
                return
            lines = head.split(b"\r\n")
            length = 0
            for line in lines[1:]:
                name, _, text = line.partition(b":")
                if name.lower() == b"content-length":
                    length = int(text)
            if len(rest) < length:
                return
            self._came = rest[length:]
            method, path, _ = lines[0].split(b" ")
            status, body, headers = self._world.answer(method, path)
            self._transport.writelines(
                [
                    b"HTTP/1.1 " + status + b"\r\nContent-Type: application/json\r\n" + headers,
                    b"Content-Length: %d\r\n\r\n" % len(body),
                    body,
                ]
            )


async def main():
    """Serve until standard input ends."""
    options = json.loads(sys.argv[1])
    world = World(Options(**options))
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(world), "127.0.0.1", 0, backlog=20_000)
    print(server.sockets[0].getsockname()[1], flush=True)
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.readline():
        print(json.dumps(world.count()), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
