"""Measure what the library promises about speed: ``python benchmarks/run.py [--quick]``.

Prints one Markdown table: what was measured, the target, whether it was met. Servers run in processes
of their own; comparisons are interleaved, and medians of ratios.
"""

import asyncio
import platform
import sys

import download
import ledger
import quota
import rows
import speed

import qamera_async


async def main() -> None:
    """Run everything and print the table."""
    quick = "--quick" in sys.argv
    print(
        f"qamera-async {qamera_async.__version__}, Python {platform.python_version()}, {platform.machine()}\n"
    )
    print("| what | measured | target | |\n|---|---|---|---|", flush=True)
    await quota.main(quick)
    await speed.main(quick)
    await ledger.main(quick)
    await download.main(quick)
    await rows.main(quick)


if __name__ == "__main__":
    asyncio.run(main())
