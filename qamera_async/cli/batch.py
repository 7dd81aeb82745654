"""``batch``: a catalogue of rows to a folder of clips."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from . import values
from .asking import agreed, say_first
from .codes import Code, gravest
from .connection import session_of
from .many import Bounds, doubts, run_batch
from .progress import Progress
from .report import write_report
from .rows import CatalogueError, read_rows
from .running import run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .. import Request
    from .options import Api, Manners
    from .running import Running

REPORT = "report.html"


@attrs.frozen(kw_only=True)
class Catalogue:
    """What a batch was asked to do.

    Args:
        file: The rows; ``-`` is the standard input.
        folder: Where clips, thumbnails and the report go.
        ledger: What is paid for.
        bounds: What it may take.
        dry_run: Whether to say only what it would do.
        yes: Whether not to ask.

    """

    file: str
    folder: Path
    ledger: Path
    bounds: Bounds
    dry_run: bool = False
    yes: bool = False


def batch(asked: Catalogue, api: Api, manners: Manners) -> Code:
    """Check the rows, say what they take, ask, and run."""
    requests: Sequence[Request] = ()
    orders = 0
    try:
        # Before there is a loop, so that Ctrl-C ends a read from a terminal.
        content = sys.stdin.buffer.read() if asked.file == "-" else Path(asked.file).read_bytes()
    except OSError as error:
        unreadable = error

        async def tell(running: Running) -> Code:
            running.report(unreadable)
            return Code.USAGE

        return run(manners, tell)

    async def prepare(running: Running) -> Code:
        nonlocal requests, orders
        try:
            requests = (await asyncio.to_thread(read_rows, asked.file, content)).requests
        except CatalogueError as error:
            _tell_of_rows(running, error)
            return Code.USAGE
        orders = await say_first(
            running,
            requests,
            asked.ledger,
            api,
            retry_failed=asked.bounds.retry_failed,
            dry_run=asked.dry_run,
        )
        return Code.DONE

    code = run(manners, prepare)
    if code is not Code.DONE or asked.dry_run:
        return code
    if not agreed(orders, yes=asked.yes):
        return Code.INTERRUPTED
    return run(manners, lambda running: _make(running, asked, api, requests))


async def _make(running: Running, asked: Catalogue, api: Api, requests: Sequence[Request]) -> Code:
    running.how_to_go_on = "Nothing is lost: give the same command again, and it goes on where it stopped."
    progress = Progress(len(requests), *api.limits)
    async with session_of(api, ledger=asked.ledger, on_event=progress.on_event) as session:
        tally = await run_batch(running, session, requests, asked.folder, asked.bounds, progress)
        if tally.ambiguous:
            await doubts(running, session, asked.ledger)
        credit = progress.snapshot(session.budget.used)
    code = await conclude(
        running, asked.ledger, asked.folder, tally.summary(credit.reserved, credit.refunded), asked.file
    )
    return gravest([tally.code, code])


async def conclude(running: Running, ledger: Path, folder: Path, summary: str, title: str) -> Code:
    """Write the report, and say what it all came to and where the report is."""
    report: Path | None = None
    code = Code.DONE
    try:
        report = await write_report(ledger, folder / REPORT, title=title)
    except OSError as error:
        code = running.report(error, "the report could not be written")
    running.result(
        summary if report is None else f"{summary}\nReport: {report}",
        "summary",
        lambda: {"summary": summary, "report": None if report is None else str(report)},
    )
    return code


def _tell_of_rows(running: Running, error: CatalogueError) -> None:
    for problem in error.problems:
        running.screen.error(f"{error.name}:{problem.line}: {problem.reason}")
        if running.manners.json:
            running.screen.out(values.line("problem", {"line": problem.line, "reason": problem.reason}))
    count = len(error.problems)
    running.screen.error(f"Nothing was ordered: {count} row{'s' if count > 1 else ''} to correct first.")
