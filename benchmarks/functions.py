"""Count the functions of the package that run for one job: ``python benchmarks/functions.py [-v]``.

The job is ``job = await session.register_video(...); await job`` without a ledger and without ``on_event``.
The sandbox runs in another process. Opening and closing the session don't count. Neither do comprehensions,
generator expressions and the methods that attrs generates.
"""

import asyncio
import sys
import threading
from collections import defaultdict
from pathlib import Path
from types import CodeType

from quota import KEY, POLLING, server
from report import row

import qamera_async
from qamera_async import QameraSession

PACKAGE = Path(qamera_async.__file__).parent
TARGET = 79
COMPREHENSIONS = {"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"}


def module_of(code: CodeType) -> str | None:
    """Return the module of a function of the package as a path; None if it belongs to something else."""
    path = Path(code.co_filename)
    if not path.is_relative_to(PACKAGE) or path.is_relative_to(PACKAGE / "sandbox"):
        return None
    return str(path.relative_to(PACKAGE))


async def functions() -> dict[str, list[str]]:
    """Run one job and return the names of the functions that ran, by module, in order of the first call."""
    seen: dict[CodeType, None] = {}

    def note(frame, event, _):
        if event == "call":
            seen.setdefault(frame.f_code)

    async with (
        server(job_seconds=0.5, quota=[60, 60.0]) as (url, _),
        QameraSession(KEY, base_url=url, polling=POLLING) as session,
    ):
        threading.setprofile(note)  # for threads that start meanwhile
        sys.setprofile(note)
        try:
            job = await session.register_video(image_id="img_1")
            await job
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
    found = defaultdict(list)
    for code in seen:
        module = module_of(code)
        if module is not None and code.co_name not in COMPREHENSIONS:
            found[module].append(code.co_qualname)
    return found


async def main(*, verbose: bool = False) -> None:
    """Print the number as a row; with ``verbose`` print the names by module first."""
    found = await functions()
    number = sum(map(len, found.values()))
    if verbose:
        for module, names in sorted(found.items()):
            print(f"{module}: {len(names)}", *names, sep="\n    ")
    row(
        "functions of this package that run for one job, without a ledger",
        f"{number} in {len(found)} modules",
        "under 80",
        number <= TARGET,
    )


if __name__ == "__main__":
    asyncio.run(main(verbose="-v" in sys.argv))
