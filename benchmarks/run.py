"""Measure what the library promises about speed, and the same of others.

``python benchmarks/run.py [--smoke] [--only SECTION ...]``

Prints tables in Markdown. Servers run in processes of their own; comparisons are interleaved, and medians.
"""

import argparse
import asyncio

import attrs
import overhead
import poll
import stall
import waiters


@attrs.frozen
class Scale:
    """How much is measured.

    Attributes:
        rounds: of what is repeated.
        requests: in each round.
        waiting: so many jobs wait.
        settle: seconds until jobs that begin to wait are looked at.
        slices: of 6 s, in which their CPU is looked at.
        lists: lengths of the list.
        polls: so many are looked at.
        limit: seconds after which a client is given up.
    """

    rounds: int = 9
    requests: int = 200
    waiting: tuple[int, ...] = (1_000, 10_000)
    settle: float = 5.0
    slices: int = 3
    lists: tuple[int, ...] = (1_000, 10_000, 100_000)
    polls: int = 15
    limit: float = 60.0


SMOKE = Scale(rounds=2, requests=20, waiting=(100,), settle=1.0, slices=1, lists=(1_000,), polls=3)
SECTIONS = {
    "request": overhead.request,
    "imports": overhead.imports,
    "waiters": waiters.main,
    "stall": stall.main,
    "poll": poll.main,
}


async def main(arguments):
    """Run what is asked for."""
    scale = SMOKE if arguments.smoke else Scale()
    for name in arguments.only or SECTIONS:
        table = await SECTIONS[name](scale)
        print(table.markdown(), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a little of everything")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="these sections")
    asyncio.run(main(parser.parse_args()))
