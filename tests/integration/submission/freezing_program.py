"""A program that submits videos and stops its own process once in each submission.

Usage: freezing_program.py URL LEDGER NUMBER

Prints one word for each submission: "receipt", or the class of the error.
"""

import asyncio
import os
import signal
import sys
from functools import partial

from qamera_async import PollPolicy, QameraError, RetryPolicy, StatusRules, Timeouts, VideoRequest
from qamera_async._polling import Poller
from qamera_async._protocol import KINDS
from qamera_async._ratelimit import RateLimiter, session_limiter
from qamera_async._submission import Submitter
from qamera_async._transport import ApiClient, ConnectionSettings, Secret
from qamera_async.events import event_emitter
from qamera_async.ledger.ledger import Ledger
from qamera_async.ledger.sqlite import SqliteStorage

KEY = "mk_live_a.bcdefgh"
LEASE = 0.3  # seconds
POINTS = ("after the commit", "before the first byte")


def point_of(number):
    """Return the point at which a submission is frozen."""
    return POINTS[number % len(POINTS)]


def request_of(number):
    return VideoRequest(image_id=f"img_{number}", ref=f"sku-{number}")


def stop():
    """Stop this process until another one continues it."""
    os.kill(os.getpid(), signal.SIGSTOP)


class FreezingLedger(Ledger):
    """Stops the process after the next commit of "sending" if `freezes` is set."""

    freezes = False

    async def sending(self, intent):
        await super().sending(intent)
        if self.freezes:
            self.freezes = False
            stop()


class FreezingApi(ApiClient):
    """Stops the process before the first byte of the next POST if `freezes` is set."""

    freezes = False

    async def send(self, request, slot, attempt=None):
        if attempt is not None and attempt.before_body is not None:
            attempt.before_body = partial(self._fence, attempt.before_body)
        return await super().send(request, slot, attempt)

    async def _fence(self, before_body):
        if self.freezes:
            self.freezes = False
            stop()
        await before_body()


class Program:
    """A submitter with its parts, on an API and a ledger file."""

    def __init__(self, url, path):
        timeouts, retry = Timeouts(reconcile=0.0), RetryPolicy(attempts=1)
        settings = ConnectionSettings(api_key=Secret(KEY), base_url=url)
        emit = event_emitter(None)
        limiter = session_limiter(url, RateLimiter(100_000))
        self.api = FreezingApi(settings, timeouts, retry)
        self.ledger = FreezingLedger(SqliteStorage.of(path), url)
        pollers = {
            kind.records.path: Poller(
                kind.records, self.api, limiter, PollPolicy(), timeouts, retry, StatusRules(), emit
            )
            for kind in KINDS.values()
        }
        self.submitter = Submitter(
            self.api, limiter, pollers, self.ledger, timeouts, retry, emit, lease=LEASE
        )

    async def __aenter__(self):
        await self.ledger.open()
        return self

    async def __aexit__(self, *_):
        await self.submitter.aclose()
        await self.api.aclose()
        await self.ledger.aclose()

    async def submit(self, number):
        """Submit a video, and return one word for its outcome."""
        try:
            await self.submitter.send(await self.submitter.claim(request_of(number)))
        except QameraError as error:
            return type(error).__name__
        return "receipt"


async def main(url, path, number):
    async with Program(url, path) as program:
        for each in range(number):
            frozen = program.ledger if point_of(each) == POINTS[0] else program.api
            frozen.freezes = True
            print(await program.submit(each))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
