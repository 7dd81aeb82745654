"""Measure what the library promises about speed, and the same of others.

``python benchmarks/run.py [--smoke] [--only SECTION ...] [--into FOLDER] [--figures FILE]``

Prints tables in Markdown. With ``--into docs`` it writes the page `docs/benchmarks.md` and its charts.
Servers run in processes of their own; comparisons are interleaved, and medians.
"""

import argparse
import asyncio
import json
from pathlib import Path

import attrs
import download
import functions
import growth
import ledger
import overhead
import page
import poll
import quota
import rows
import stall
import waiters
import waiting
from report import CLAIMS, Table


@attrs.frozen
class Scale:
    """How much is measured.

    Attributes:
        jobs: so many run under the quota.
        quota: so many requests in so many seconds.
        seconds: for which they take.
        spreads: sigma of how long they take.
        retries: of the peers, beside their default; None: not beside it.
        repeats: of what takes long.
        rounds: of what is repeated.
        requests: in each round.
        waiting: so many jobs wait.
        settle: seconds until jobs that begin to wait are looked at.
        pause: seconds over which their memory is looked at; 3 is that between our polls.
        slices: each twice as long, in which their CPU is looked at.
        lists: lengths of the list.
        polls: so many are looked at.
        decades: 10 to the power of these many jobs, or videos.
        limit: seconds after which a client is given up.
        claims: whether what is promised of the product by itself is measured, too.
    """

    jobs: tuple[int, ...] = (1, 30, 100, 250)
    quota: tuple[int, float] = (60, 6.0)
    seconds: float = 3.0
    spreads: tuple[float, ...] = (0.0, waiting.SPREAD)
    retries: int | None = 10
    repeats: int = 3
    rounds: int = 9
    requests: int = 200
    waiting: tuple[int, ...] = (1_000, 10_000)
    settle: float = 5.0
    pause: float = 3.0
    slices: int = 3
    lists: tuple[int, ...] = (1_000, 10_000, 100_000)
    polls: int = 15
    decades: tuple[int, ...] = (1, 2, 3, 4, 5)
    limit: float = 60.0
    claims: bool = True


SMOKE = Scale(
    jobs=(30,),
    quota=(20, 2.0),
    seconds=0.5,
    spreads=(0.0,),
    retries=None,
    repeats=1,
    rounds=2,
    requests=20,
    waiting=(100,),
    settle=0.5,
    pause=0.5,
    slices=1,
    lists=(1_000,),
    polls=3,
    decades=(1, 2),
    limit=20.0,
    claims=False,
)


async def claims(scale):
    """Measure what is promised of the product by itself."""
    await overhead.command(scale)
    await functions.main()
    for promised in (quota, ledger, download, rows) if scale.claims else ():
        await promised.main(quick=False)
    return Table("By itself", "What is promised of qamera-async, with nothing beside it.", CLAIMS)


SECTIONS = {
    "waiting": waiting.main,
    "request": overhead.request,
    "imports": overhead.imports,
    "waiters": waiters.main,
    "stall": stall.main,
    "poll": poll.main,
    "growth": growth.main,
    "claims": claims,
}


def _show(tables):
    """Print tables; give them as values for JSON."""
    tables = tables if isinstance(tables, list) else [tables]
    for table in tables:
        print(table.markdown(), flush=True)
    return [attrs.asdict(table) for table in tables]


def _known(file):
    """Give what is known from earlier."""
    return json.loads(file.read_text("utf-8")) if file is not None and file.exists() else {}


def _keep(known, file):
    """Write what is known, where a file for it is given."""
    if file is not None:
        file.write_text(json.dumps(known), "utf-8")


async def main(arguments):
    """Run what is asked for, and write what is known."""
    scale = SMOKE if arguments.smoke else Scale()
    known = _known(arguments.figures)
    names = [name for name in SECTIONS if arguments.only is None or name in arguments.only]
    if arguments.smoke:
        # All at once, as nobody reads these figures.
        measured = zip(names, await asyncio.gather(*(SECTIONS[name](scale) for name in names)), strict=True)
        known |= {name: _show(tables) for name, tables in measured}
    else:
        for name in names:
            known[name] = _show(await SECTIONS[name](scale))
            _keep(known, arguments.figures)
    _keep(known, arguments.figures)
    if arguments.into is not None:
        found = {name: [Table.of(table) for table in known[name]] for name in SECTIONS if name in known}
        page.write(arguments.into, found, smoke=arguments.smoke)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a little of everything, all at once")
    parser.add_argument("--only", nargs="*", choices=SECTIONS, help="these; none: just write the page")
    parser.add_argument("--into", type=Path, metavar="FOLDER", help="where the page goes")
    parser.add_argument(
        "--figures",
        type=Path,
        metavar="FILE",
        help="kept from run to run: what isn't measured is taken from it",
    )
    options = parser.parse_args()
    found = {*SECTIONS} if options.only is None else {*options.only, *_known(options.figures)}
    missing = [name for name in SECTIONS if name not in found]
    if options.into is not None and missing:
        parser.error(f"--into: a page has all sections, and there is nothing known of {', '.join(missing)}")
    for folder in (options.into, options.figures and options.figures.parent):
        if folder is not None and not folder.is_dir():
            parser.error(f"{folder} is no folder")
    asyncio.run(main(options))
