"""Runs a batch and tells of it: each outcome as it comes, then a summary, and what to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from .. import AmbiguousSubmissionError, LedgerError, QameraError
from . import values
from .advice import said
from .codes import Code, gravest
from .connection import shown
from .running import code_of
from .settling import ledger_command
from .thumbnails import Thumbnails

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .. import Outcome, QameraSession, Request, Video
    from .progress import Progress
    from .running import Running


_MOST_DOUBTS = 10  # told one by one


@attrs.frozen(kw_only=True)
class Bounds:
    """What a batch may take.

    Args:
        max_in_flight: How many may be submitted and not finished.
        max_credits: How many credits it may spend; None: no limit.
        retry_failed: Whether to order again what the ledger says has failed.

    """

    max_in_flight: int = 300
    max_credits: int | None = None
    retry_failed: bool = False


@attrs.define
class Tally:
    """What a batch came to so far."""

    total: int
    done: int = 0
    failed: int = 0
    ambiguous: int = 0
    stopped: QameraError | None = None

    def count(self, outcome: Outcome) -> None:
        """Count one more."""
        if outcome.ok:
            self.done += 1
        elif isinstance(outcome.error, AmbiguousSubmissionError):
            self.ambiguous += 1
        else:
            self.failed += 1

    @property
    def seen(self) -> int:
        """How many outcomes there were."""
        return self.done + self.failed + self.ambiguous

    @property
    def code(self) -> Code:
        """How a command with this ends."""
        codes = [Code.DOUBT] if self.ambiguous else []
        if self.failed:
            codes.append(Code.FAILED)
        if self.stopped is not None:
            codes.append(code_of(self.stopped))
        return gravest(codes)

    def summary(self, progress: Progress) -> str:
        """Give it in a line, with the credits."""
        seen = progress.snapshot(0)
        left = self.total - self.seen
        parts = [f"{self.done} done", f"{self.failed} failed", f"{self.ambiguous} ambiguous"]
        if left:
            parts.append(f"{left} not ordered")
        credit = f"{seen.reserved} credits reserved, {seen.refunded} of them refunded"
        return f"{', '.join(parts)}, of {self.total}; {credit}."


async def run_batch(
    running: Running,
    session: QameraSession,
    requests: Sequence[Request],
    folder: Path,
    bounds: Bounds,
    progress: Progress,
    tally: Tally,
) -> None:
    """Run a batch to its end or to where it must stop; its clips and thumbnails go into the folder."""
    batch = session.batch(
        requests,
        max_in_flight=bounds.max_in_flight,
        max_credits=bounds.max_credits,
        retry_failed=bounds.retry_failed,
        download_to=folder,
    )
    async with Thumbnails(session, running.screen) as thumbnails, shown(running, progress, session):
        try:
            async for outcome in batch:
                tally.count(outcome)
                progress.outcome(outcome)
                _tell(running, outcome, tally)
                if outcome.path is not None and outcome.record is not None:
                    thumbnails.fetch(outcome.record, outcome.path)
        except QameraError as reason:
            tally.stopped = reason
            running.report(reason, "stopped")
        await thumbnails.finished()


def _tell(running: Running, outcome: Outcome, tally: Tally) -> None:
    name = outcome.request.ref or f"request {outcome.index + 1}"
    if running.manners.json:
        running.screen.out(values.line("outcome", values.outcome(outcome)))
    elif outcome.ok:
        running.step(f"{tally.seen}/{tally.total} {name}: {outcome.path}")
    if isinstance(outcome.error, AmbiguousSubmissionError):
        running.screen.error(
            f"{name}: in doubt, it may have been paid for; what settles it comes at the end."
        )
    elif outcome.error is not None:
        running.screen.error(f"{name}: {said(outcome.error)}")


async def doubts(running: Running, session: QameraSession, ledger: str) -> None:
    """Tell of what is ambiguous, what may have come of it, and how to settle it."""
    try:
        intents = await session.ambiguous()
    except LedgerError as error:
        running.report(error)
        return
    for intent in intents[:_MOST_DOUBTS]:
        for text in how_to_settle(ledger, intent.id, intent.request, intent.candidates):
            running.screen.error(text)
    if len(intents) > _MOST_DOUBTS:
        more = len(intents) - _MOST_DOUBTS
        running.screen.error(f"And {more:,} more in doubt: {ledger_command(ledger)}")


def how_to_settle(ledger: str, intent_id: str, request: Request, candidates: Sequence[Video]) -> list[str]:
    """Give lines that say what is in doubt, and the commands that settle it."""
    seen = ", ".join(video.id for video in candidates) or "none seen, which is not 'not made'"
    record = candidates[0].id if len(candidates) == 1 else "RECORD_ID"
    return [
        f"In doubt: {request.ref or intent_id}. Look into the Qamera app; candidates: {seen}.",
        f"  it was made:     {ledger_command(ledger, 'adopt', intent_id, record)}",
        f"  it was not made: {ledger_command(ledger, 'abandon', intent_id)}",
    ]
