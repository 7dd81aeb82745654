"""What a poll of 10,000 videos costs once its body is read, against msgspec's own typed decode of it."""

import asyncio
import time

import msgspec
from _fake import DONE, listing
from report import Row, Table, figure

from qamera_async import PollPolicy, RateLimiter, RetryPolicy, StatusRules, Timeouts
from qamera_async._polling import Poller
from qamera_async._protocol import VIDEOS, Response
from qamera_async._ratelimit import session_limiter
from qamera_async.events import Polled

WATCHED = 100
UNCHANGED_MS, CHANGED_RATIO = 0.5, 1.5  # the targets
ABOUT = """
CPU of a poll of 10,000 videos once its body is read, with 100 records watched: from the response until all
waiters are notified. It is compared with msgspec's decode of all fields into structs, in turn and in one
process. The poll is the fourth of its session. The first ones take longer, since they allocate memory that
later ones use again. Both include the time to free a list: msgspec's own, and that of the poll before.
msgspec's decode compares, remembers and notifies nothing.
"""


class _Api:
    """Answers each request with the next body that is put in `bodies`."""

    def __init__(self):
        self.bodies = asyncio.Queue()
        self.answered_at = 0.0

    async def send(self, request, slot):  # noqa: ARG002 - all requests get the same
        """Return the next response and note the CPU time."""
        body = await self.bodies.get()
        slot.on_response()
        response = Response(200, {}, body)
        self.answered_at = time.process_time()
        return response


class _Item(msgspec.Struct):
    id: str
    name: str | None
    thumbnail: str | None
    videoUrl: str | None  # noqa: N815 - the wire's name
    status: str
    voting: str | None
    createdAt: str  # noqa: N815 - the wire's name


class _List(msgspec.Struct):
    videos: list[_Item]
    count: int


def _decode_milliseconds(decode, body):
    start = time.process_time()
    decode(body)
    return (time.process_time() - start) * 1000


async def _poll_milliseconds(bodies):
    """Return the CPU milliseconds that a new poller takes for the last of several lists."""
    api, polled = _Api(), asyncio.Queue()

    def on_event(event):
        if isinstance(event, Polled):
            polled.put_nowait(time.process_time())

    limiter = session_limiter("benchmark", RateLimiter(10**6, 0.001))
    policy = PollPolicy(interval=0.001, stale_after=0.005)
    poller = Poller(VIDEOS, api, limiter, policy, Timeouts(), RetryPolicy(), StatusRules(), on_event)
    waiters = [poller.watch((poller.track(f"vid_{number:06d}"),)) for number in range(WATCHED)]
    try:
        for body in bodies:
            api.bodies.put_nowait(bytes(bytearray(body)))  # equal bodies are different objects
            ended_at = await polled.get()
        return (ended_at - api.answered_at) * 1000
    finally:
        await poller.aclose()
        for waiter in waiters:
            poller.unwatch(waiter)
        limiter.leave()


async def main(scale):
    """Measure it."""
    decode = msgspec.json.Decoder(_List).decode
    first, other = listing(10_000), listing(10_000, [8_000])
    # The first polls of a poller allocate the memory that later ones use again.
    lists = {
        "unchanged": (first, other, first, first),
        "changed elsewhere": (first, other, first, listing(10_000, [9_000])),
        "10 of the watched records finished": (first, other, first, listing(10_000, range(10), DONE)),
    }
    full, spent = [], {name: [] for name in lists}
    for number in range(scale.rounds * 2 + 1):
        decoded = _decode_milliseconds(decode, first)
        taken = {name: await _poll_milliseconds(bodies) for name, bodies in lists.items()}
        if number:
            full.append(decoded)
            for name, milliseconds in taken.items():
                spent[name].append(milliseconds)
    table = Table("One poll", ABOUT, [Row("msgspec's full typed decode", {"CPU": figure(full, "ms")})])
    for name, values in spent.items():
        ratios = [value / whole for value, whole in zip(values, full, strict=True)]
        table.rows.append(
            Row(
                name,
                {
                    "CPU": figure(values, "ms", UNCHANGED_MS if name == "unchanged" else None),
                    "over msgspec": figure(ratios, "x", None if name == "unchanged" else CHANGED_RATIO),
                },
            )
        )
    return table
