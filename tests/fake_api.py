"""Fakes of the objects that the poller uses: the API client, the rate limiter and the ledger."""

import asyncio
import json

from qamera_async import PollPolicy, RetryPolicy, StatusRules, Timeouts
from qamera_async._jobs import JobRegistry
from qamera_async._polling import Poller
from qamera_async._protocol import KINDS, VIDEOS, Response


def item(record_id, status="PENDING", url=None, **fields):
    """Return a record as JSON data of the API."""
    return {"id": record_id, "status": status, "videoUrl": url} | fields


def done(record_id):
    """Return a finished record as JSON data of the API."""
    return item(record_id, "DONE", f"https://cdn.example.com/{record_id}.mp4")


def response(items, *, count=None, status=200, headers=None):
    """Return a response of the API with a list."""
    body = json.dumps({"videos": items, "count": len(items) if count is None else count}).encode()
    return Response(status, headers or {}, body)


def error_response(status, *, text="Something happened."):
    """Return an error response in the API's shape."""
    return Response(status, {}, json.dumps({"error": text}).encode())


class FakeApi:
    """An API client whose requests are answered by the test."""

    def __init__(self):
        self.requests = []
        self.exchanges = []  # the times of each request and its response, in the loop's time
        self.pending = None
        self.sent = asyncio.Event()

    async def send(self, request, slot, attempt=None):
        assert self.pending is None, "two requests at once"
        loop = asyncio.get_running_loop()
        self.requests.append(request)
        self.pending = loop.create_future()
        sent_at = loop.time()
        self.sent.set()
        try:
            return await self.pending
        finally:
            self.exchanges.append((sent_at, loop.time()))
            self.pending = None

    def answer(self, answer):
        """Answer the request on the wire, with a response or an error."""
        self.sent.clear()
        if isinstance(answer, BaseException):
            self.pending.set_exception(answer)
        else:
            self.pending.set_result(answer)

    async def respond(self, answer):
        """Wait for a request and answer it; return the request."""
        async with asyncio.timeout(5):
            await self.sent.wait()
        request = self.requests[-1]
        self.answer(answer)
        for _ in range(10):
            await asyncio.sleep(0)
        return request


class FakeServer:
    """A server whose list several API clients fetch.

    ``items`` are its records by id, ``failures`` are answers for the next requests, ``delay`` is how long a
    response takes in seconds, ``times`` are the times of all requests.
    """

    def __init__(self):
        self.items = {}
        self.failures = []
        self.delay = 0.0
        self.times = []

    def add(self, *items):
        """Add records, or replace those with the same ids."""
        self.items.update({each["id"]: each for each in items})

    def finish(self, *record_ids):
        """Set the status of records to DONE."""
        self.add(*map(done, record_ids))

    async def answer(self):
        """Return a response, or raise an error."""
        self.times.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self.delay)
        failure = self.failures.pop(0) if self.failures else None
        if isinstance(failure, BaseException):
            raise failure
        return response(list(self.items.values())) if failure is None else failure

    async def has_answered(self, more=1):
        """Wait until the server has answered some more requests."""
        enough = len(self.times) + more
        async with asyncio.timeout(10):
            while len(self.times) < enough:
                await asyncio.sleep(0.002)


class ServedApi:
    """An API client that a `FakeServer` answers."""

    def __init__(self, server):
        self.server = server
        self.requests = []

    async def send(self, request, slot, attempt=None):
        self.requests.append(request)
        return await self.server.answer()


class FakeSlot:
    """A slot that records whether it was given back."""

    def __init__(self, limiter):
        self._limiter = limiter
        self.given_back = False

    @property
    def exhausted(self):
        return self._limiter.exhausted

    def give_back(self):
        self.given_back = True


class FakeLimiter:
    """A rate limiter that grants every slot at once, unless ``blocked`` is set."""

    def __init__(self):
        self.cooldown = 0.0
        self.exhausted = False
        self.blocked = False
        self.slots = []

    async def acquire(self, priority, on_wait=None, kind=""):
        if self.blocked:
            if on_wait is not None:
                on_wait(60.0)
            await asyncio.get_running_loop().create_future()
        self.slots.append((priority, FakeSlot(self)))
        return self.slots[-1][1]

    def poll_delay(self, interval, stale_after):
        return interval


class FakeLedger:
    """A ledger that records the final states of jobs."""

    def __init__(self):
        self.ends = []

    def settled(self, record_ids, records):
        self.ends.append((record_ids, tuple(record.status for record in records)))


class Polling:
    """A poller and a job registry with their fakes."""

    def __init__(self, *, interval=0.01, emit=None, api=None, board=None, max_interval=None, **timeouts):
        self.api = FakeApi() if api is None else api
        self.limiter = FakeLimiter()
        self.ledger = FakeLedger()
        self.events = []
        self.emit = self.events.append if emit is None else emit
        self.timeouts = Timeouts(**timeouts)
        self.polling = PollPolicy(interval=interval, max_interval=max_interval or 5 * interval)
        self.poller = Poller(
            VIDEOS,
            self.api,
            self.limiter,
            self.polling,
            self.timeouts,
            RetryPolicy(attempts=2, base=0.0),
            StatusRules(),
            self.emit,
            board,
        )
        self.registry = JobRegistry(
            {VIDEOS.path: self.poller},
            lambda: None,
            self.timeouts,
            self.ledger,
            self,
        )

    def job(self, *record_ids, kind="video", **known):
        """Return the job of some records."""
        return self.registry.job(record_ids, KINDS[kind], **known)

    def of(self, kind):
        """Return the events of a kind."""
        return [event for event in self.events if isinstance(event, kind)]

    async def file(self, video, path, **options):
        """Replace `QameraSession.download`."""
        self.downloaded = video, path, options
        return path

    async def waiting(self, *jobs, **options):
        """Start a task that waits for each job; return when the poller watches them."""
        tasks = [asyncio.ensure_future(job.wait(**options)) for job in jobs]
        await asyncio.sleep(0)
        return tasks if len(tasks) > 1 else tasks[0]
