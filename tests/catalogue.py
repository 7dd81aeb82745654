"""A program that runs a catalogue of requests with a ledger, to be killed by tests and run again.

    python catalogue.py '{"url": ..., "key": ..., "ledger": ..., "number": 120, ...}'

Prints what it is about: "sending ID" before an intent is written, "over ID" when its end is known and kept.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys

from qamera_async import PollPolicy, QameraSession, RateLimiter, RetryPolicy, Timeouts, VideoRequest
from qamera_async.ledger.ledger import Ledger


def say(text: str) -> None:
    """Write a line at once: who is killed flushes no buffers."""
    os.write(1, f"{text}\n".encode())


def announced(ledger: Ledger) -> None:
    """Say which intents are under way, so that a test knows what was on the wire at a kill."""
    sending, submitted, let_go = ledger.sending, ledger.submitted, ledger.let_go

    async def sending_(intent):
        say(f"sending {intent.id}")
        await sending(intent)

    async def submitted_(intent, receipt):
        await submitted(intent, receipt)
        say(f"over {intent.id}")

    def let_go_(intent):
        let_go(intent)
        say(f"over {intent.id}")

    ledger.sending, ledger.submitted, ledger.let_go = sending_, submitted_, let_go_


def intent_after_the_post(ledger: Ledger) -> None:
    """Take the protection out: the intent is written only when the receipt is there."""
    sending, submitted = ledger.sending, ledger.submitted

    async def sending_(intent):
        pass

    async def submitted_(intent, receipt):
        await sending(intent)
        await submitted(intent, receipt)

    ledger.sending, ledger.submitted = sending_, submitted_


async def main(asked: dict) -> None:
    """Run it to the end."""
    limit, window = asked.get("quota") or (10**6, 0.001)
    async with QameraSession(
        asked["key"],
        base_url=asked["url"],
        ledger=asked["ledger"],
        rate_limiter=RateLimiter(limit, window),
        polling=PollPolicy(interval=0.05, stale_after=window / 4 if window > 1 else 0.2, max_interval=1.0),
        retry=RetryPolicy(attempts=3, base=0.01, max_delay=1.0),
        timeouts=Timeouts(reconcile=0.1),
    ) as qamera:
        if asked.get("intent_after_the_post"):
            intent_after_the_post(qamera._ledger)
        announced(qamera._ledger)
        numbers = range(asked["number"])
        order = reversed(numbers) if asked.get("backwards") else numbers
        requests = (VideoRequest(f"img_{n}", ref=f"sku-{n}") for n in order)
        batch = qamera.batch(requests, max_in_flight=60, download_to=asked.get("folder"))
        async for outcome in batch:
            say(f"outcome {outcome.request.ref} {type(outcome.error).__name__ if outcome.error else 'ok'}")
    say("finished")


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
