"""``batch``: a catalogue of rows to a folder of clips."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from .. import LedgerError
from ..ledger import LedgerFile, LedgerState
from ..report import write_report
from . import values
from .asking import agreed, say_first
from .codes import Code, gravest
from .connection import session_of
from .many import Bounds, Tally, doubts, run_batch
from .paths import check_file, check_folder
from .progress import Progress
from .rows import CatalogueError, read_rows
from .running import run
from .settling import is_address, ledger_command

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from .. import Request
    from .options import Api, Manners
    from .plan import Plan
    from .running import Running

REPORT = "report.html"


@attrs.frozen(kw_only=True)
class Asked:
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
    ledger: str
    bounds: Bounds
    dry_run: bool = False
    yes: bool = False


def batch(asked: Asked, api: Api, manners: Manners) -> Code:
    """Check the rows, say what they take, ask, and run."""
    requests: Sequence[Request] = ()
    planned: Plan | None = None
    check_folder("--to", asked.folder)
    if not is_address(asked.ledger):
        check_file("--ledger", Path(asked.ledger), replace=True)
    content = _content(asked.file)  # before there is a loop, so that Ctrl-C ends a read from a terminal

    async def prepare(running: Running) -> Code:
        nonlocal requests, planned
        try:
            requests = (await asyncio.to_thread(read_rows, asked.file, content)).requests
        except CatalogueError as error:
            _tell_of_rows(running, error)
            return Code.USAGE
        planned = await say_first(
            running,
            requests,
            asked.ledger,
            api,
            retry_failed=asked.bounds.retry_failed,
            dry_run=asked.dry_run,
        )
        return Code.DONE

    code = run(manners, prepare)
    if planned is None or asked.dry_run:
        return code
    if not agreed(planned, yes=asked.yes):
        return Code.INTERRUPTED
    return run(manners, lambda running: _make(running, asked, api, requests))


async def _make(running: Running, asked: Asked, api: Api, requests: Sequence[Request]) -> Code:
    progress = Progress(len(requests), *api.limits)
    tally = Tally(len(requests))
    try:
        async with session_of(api, ledger=asked.ledger, on_event=progress.on_event) as session:
            await run_batch(running, session, requests, asked.folder, asked.bounds, progress, tally)
            if tally.ambiguous:
                await doubts(running, session, asked.ledger)
    except asyncio.CancelledError:
        running.how_to_go_on = f"{tally.summary(progress)} {await _how_to_go_on(asked.ledger)}"
        raise
    code = await conclude(running, asked.ledger, asked.folder, tally.summary(progress), asked.file)
    return gravest([tally.code, code])


async def _how_to_go_on(ledger: str) -> str:
    """Give what to do after an interruption, once all that was on the wire has ended."""
    again = "Give the same command again, and it goes on where it stopped"
    try:
        async with LedgerFile(ledger) as file:
            in_doubt = [entry async for entry in file.entries() if entry.state is LedgerState.AMBIGUOUS]
    except LedgerError as error:
        return f"{again}. {error}"
    if not in_doubt:
        return f"{again}."
    count = "1 request is" if len(in_doubt) == 1 else f"{len(in_doubt):,} requests are"
    return (
        f"{again}, but {count} in doubt and will not be sent again by itself: "
        f"{ledger_command(ledger)} shows what settles that."
    )


def _content(file: str) -> bytes:
    try:
        if file != "-":
            return Path(file).read_bytes()
        if sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison]
            raise ValueError("the standard input is closed: give the name of a file.")
        return sys.stdin.buffer.read()
    except OSError as error:
        raise ValueError(f"{file} can't be read: {error.strerror}.") from None


async def conclude(
    running: Running, ledger: str | os.PathLike[str], folder: Path, summary: str, title: str
) -> Code:
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
    count = f"{len(error.problems):,} lines" if len(error.problems) > 1 else "that line"
    running.screen.error(f"Nothing was ordered: correct {count} first.")
