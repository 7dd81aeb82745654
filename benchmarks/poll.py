"""What a poll of 10,000 videos costs once its body is read, against msgspec's own typed decode of it."""

import asyncio
import time

import msgspec
from _fake import DONE, listing
from report import Row, Table, figure

from qamera_async import PollPolicy, RetryPolicy, StatusRules, Timeouts
from qamera_async._polling import Poller
from qamera_async._protocol import VIDEOS, Response, parse_list

ABOUT = """
CPU of a poll of 10,000 videos once its body is read, 100 records waited for, over that of msgspec's decode
of all fields into structs; in turn, in one process. What msgspec made is freed in its time, as the list
before is in ours. msgspec's decode compares nothing, remembers nothing and tells nobody.
"""


class _Listener:
    """A job that ignores all changes."""

    since = 0.0
    waiters = ()

    def record_changed(self):
        """Ignore a change."""

    def record_missing(self, record, absent_for):
        """Ignore a missing record."""

    def polling_failed(self, error):
        """Ignore a failure."""


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


def _milliseconds(call):
    start = time.process_time()
    call()
    return (time.process_time() - start) * 1000


async def main(scale):
    """Measure it."""
    decode = msgspec.json.Decoder(_List).decode
    bodies = {
        "unchanged": listing(10_000),
        "changed elsewhere": listing(10_000, [9_000]),
        "10 of those waited for finished": listing(10_000, range(10), DONE),
    }
    full, spent = [], {name: [] for name in bodies}
    now = asyncio.get_running_loop().time()
    for number in range(scale.rounds * 2 + 1):
        decoded = _milliseconds(lambda: decode(bodies["unchanged"]))
        taken = {
            name: _milliseconds(_poller(bodies["unchanged"], body, now)) for name, body in bodies.items()
        }
        if number:
            full.append(decoded)
            for name, milliseconds in taken.items():
                spent[name].append(milliseconds)
    table = Table("One poll", ABOUT, [Row("msgspec's full typed decode", {"CPU": figure(full, "ms")})])
    most = dict(zip(bodies, ((1.0, None), (None, 0.7), (None, 1.7)), strict=True))
    for name, values in spent.items():
        ratios = [value / whole for value, whole in zip(values, full, strict=True)]
        table.rows.append(
            Row(
                name,
                {
                    "CPU": figure(values, "ms", most[name][0]),
                    "over msgspec": figure(ratios, "x", most[name][1]),
                },
            )
        )
    return table


def _poller(first, second, now):
    """Return a call that processes the second list, after the first was processed."""
    rules = StatusRules()
    # Nothing is sent, so the poller needs neither a client nor a limiter.
    poller = Poller(VIDEOS, None, None, PollPolicy(), Timeouts(), RetryPolicy(), rules, lambda _: None)
    poller._poll_at = lambda _: None
    for number in range(100):
        poller.watch(poller.track(f"vid_{number:06d}"), _Listener())

    def process(response):
        records = parse_list(response, VIDEOS, rules, poller._latest)
        poller._note(records)
        poller._on_list(records, now, 0)

    process(Response(200, {}, first))
    response = Response(200, {}, bytes(bytearray(second)))  # an equal body, not the same object
    return lambda: process(response)
