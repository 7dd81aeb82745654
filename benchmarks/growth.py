"""How the cost grows: with the jobs that wait, and with the list."""

import math

from processes import child, fake
from report import Row, Table, figure

ABOUT = """
CPU and memory from 10 to 100,000 jobs and videos. A whole wait: so many jobs in a list of as many, from the
first task until the last result, all of them done in one list. A poll: 10 jobs wait, and the list is so
long. The bare loop is an aiohttp GET of that list with `.json()`. The slope is that of the line through the
points from 1,000 on (log of the cost over log of the number): 1 is linear. Last decade: that from 10,000 to
100,000. Where the number is small, what any request costs hides it. The jobs have a list of as many, so the
first two rows grow with both. The CPU of a poll is that of the whole process, with the timers of the
measurement.
"""
WHOLE, MEMORY = "jobs: a whole wait", "jobs: memory while they wait"
CHANGED, UNCHANGED, BARE = "list: a poll, changed", "list: a poll, unchanged", "list: a bare loop's GET"


def slope(points):
    """Give the slope of the line through the logarithms of these pairs."""
    logs = [(math.log(x), math.log(y)) for x, y in points]
    mean_x, mean_y = (sum(values) / len(logs) for values in zip(*logs, strict=True))
    above = sum((x - mean_x) * (y - mean_y) for x, y in logs)
    return above / sum((x - mean_x) ** 2 for x, _ in logs)


async def main(scale):
    """Measure all decades."""
    series = {name: {} for name in (WHOLE, MEMORY, CHANGED, UNCHANGED, BARE)}
    for number in (10**decade for decade in scale.decades):
        polls = scale.polls if number < 100_000 else 4
        interval = max(0.1, number * 3e-5)
        async with fake(records=number) as server:
            series[UNCHANGED][number] = await child(
                "polls", url=server.url, jobs=min(10, number), polls=polls, interval=interval
            )
            series[BARE][number] = await child("gets", url=server.url, polls=polls, interval=interval)
            told = await child(
                "waiting",
                url=server.url,
                client="qamera-async",
                number=number,
                slices=0,
                settle=scale.settle,
                pause=scale.pause,
                traced=True,
            )
            series[MEMORY][number] = [told["bytes"] * (number - 1)]
        async with fake(records=number, changing=True) as server:
            series[CHANGED][number] = await child(
                "polls", url=server.url, jobs=min(10, number - 1), polls=polls, interval=interval
            )
        series[WHOLE][number] = []
        for _ in range(scale.repeats):
            async with fake(records=number) as server:
                series[WHOLE][number].append(await child("whole", url=server.url, jobs=number))
    table = Table("How the cost grows", ABOUT)
    for name, points in series.items():
        unit, factor = ("MiB", 2**-20) if name == MEMORY else ("ms", 1000)
        figures = {
            f"{number:,}": figure([value * factor for value in values], unit)
            for number, values in points.items()
        }
        medians = [(number, figures[f"{number:,}"].median) for number in points if number >= 1_000]
        medians = (
            medians if len(medians) > 1 else [(number, figures[f"{number:,}"].median) for number in points]
        )
        target = 1.1 if name != BARE and len(scale.decades) == len(points) >= 5 else None
        slopes = {"slope": figure(slope(medians), "", target), "last decade": figure(slope(medians[-2:]))}
        table.rows.append(Row(name, figures | slopes))
    return table
