"""How long a poll holds up the event loop."""

from processes import child, fake
from report import Row, Table, figure

ABOUT = """
How late the event loop was at worst in each poll, by a timer of 1 ms, and no later than the CPU that the
process spent meanwhile, so that what other programs take does not count; 100 jobs waiting. The bare loop is
an aiohttp GET with `.json()`, which looks for nothing in the list and keeps nothing. The list of 100,000 is
33 MB.
"""


async def main(scale):
    """Measure lists of each length, changed and unchanged, plain and gzip."""
    table = Table("The worst stall of the event loop", ABOUT)
    for number in scale.lists:
        polls = scale.polls if number < 100_000 else max(3, scale.polls // 2)
        interval = {1_000: 0.1, 10_000: 0.3}.get(number, 2.5)
        for changing in (False, True):
            for compressed in (False, True):
                async with fake(records=number, changing=changing, compressed=compressed) as server:
                    # In turn, each in a process of its own.
                    told = await child(
                        "stalls", url=server.url, polls=polls, interval=interval, number=min(100, number - 1)
                    )
                    bare = await child("naive_stalls", url=server.url, polls=polls, interval=interval)
                kind = "gzip" if compressed else "plain"
                target = 6.0 if number == 10_000 and changing else None
                table.rows.append(
                    Row(
                        f"{number:,} videos, {'changed' if changing else 'unchanged'}, {kind}",
                        {
                            "qamera-async": figure([s * 1000 for s in told], "ms", target, worst=True),
                            "bare loop": figure([s * 1000 for s in bare], "ms"),
                        },
                    )
                )
    return table
