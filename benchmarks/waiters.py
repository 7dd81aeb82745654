"""What many waiting jobs cost, with default settings and nobody in a hurry: memory and CPU."""

from clients import installed
from processes import child, fake
from report import Row, Table, figure

ABOUT = """
Jobs that are in the list and wait, each awaited by a task of its own, with every client's defaults; the
list is as long as there are jobs, and one other video has another status in each list. Memory: traced by
Python, the median of samples over one pause, less that with one job waiting. CPU: of one core. Not the same
work: a loop polls each 3 s, runwayml each 6 s, openai each 1 s and replicate each 0.5 s; those three ask
for one small object, where the others fetch the list. No quota applies here. All begin at once, so polls of
one job each stay in step. A client that needs a whole core polls less often than it would.
"""


async def main(scale):
    """Measure all clients with each number of jobs."""
    table = Table("Waiting jobs", ABOUT)
    names, table.left_out = installed()
    for number in scale.waiting:
        async with fake(records=number + 1, changing=True) as server:
            for name in names:
                table.rows.append(await _one(server.url, name, number, scale))
        async with fake(records=1) as server:
            row = await _one(server.url, "qamera-async", number, scale)
            row.name += ", in no list yet"
            table.rows.append(row)
    return table


async def _one(url, name, number, scale):
    mine = name == "qamera-async"
    options = {
        "within": scale.limit,
        "url": url,
        "client": name,
        "number": number,
        "pause": scale.pause,
        "slices": scale.slices,
        "settle": scale.settle,
    }
    memory = await child("waiting", **options, traced=True)
    each = ""
    if memory is not None:
        each = figure(memory["bytes"], "bytes", 4_000 if mine else None)
    cpu = await child("waiting", **options, traced=False)
    share = ""
    if cpu is not None:
        shares = [100 * share for share in cpu["shares"]]
        share = figure(shares, "%", 1.5 if mine and number == 1_000 else None)
    happened = [
        f"{count:,} of {number:,} jobs raised {error} while the {what} was measured"
        for what, told in (("memory", memory), ("CPU", cpu))
        if told is not None
        for error, count in told["failed"].items()
    ]
    if memory is None or cpu is None:
        happened.append(f"given up after {scale.limit:.0f} s where there is no figure")
    return Row(
        f"{name}: {number:,} jobs",
        {"memory of each": each, "CPU": share},
        "; ".join(happened),
    )
