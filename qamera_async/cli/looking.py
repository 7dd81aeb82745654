"""``ledger``: what is in one, and what settles a doubt; neither needs a key."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from ..ledger import LedgerEntry, LedgerFile, LedgerState
from ..report import write_report
from . import values
from .codes import Code
from .many import how_to_settle

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .running import Running

_GROUPS = {
    LedgerState.DONE: "finished",
    LedgerState.FAILED: "failed",
    LedgerState.SUBMITTED: "unfinished",
    LedgerState.ADOPTED: "unfinished",
    LedgerState.AMBIGUOUS: "ambiguous",
    LedgerState.CLAIMED: "under way",
    LedgerState.SENDING: "under way",
    LedgerState.REFUSED: "refused",
    LedgerState.ABANDONED: "abandoned",
}
_NAMED = ("failed", "unfinished", "ambiguous", "under way")  # those that are listed one by one
_MOST_NAMED = 50


@attrs.define
class Group:
    """What a ledger has of one kind."""

    count: int = 0
    credits: int = 0
    named: list[LedgerEntry] = attrs.field(factory=list[LedgerEntry])


async def show(running: Running, path: str) -> Code:
    """Show what is finished, failed, unfinished and ambiguous, and the credits of each."""
    groups = {name: Group() for name in dict.fromkeys(_GROUPS.values())}
    async with LedgerFile(path) as ledger:
        async for entry in ledger.entries():
            if running.manners.json:
                running.screen.out(values.line("entry", values.entry(entry)))
            name = _GROUPS[entry.state]
            group = groups[name]
            group.count += 1
            group.credits += 0 if entry.receipt is None else entry.receipt.credits_reserved or 0
            # One that was ordered anew since is history; an ambiguous one is to be settled all the same.
            if name in _NAMED and len(group.named) < _MOST_NAMED and (entry.current or name == "ambiguous"):
                group.named.append(entry)
    if running.manners.json:
        counts = {name: {"count": group.count, "credits": group.credits} for name, group in groups.items()}
        running.screen.out(values.line("summary", counts))
        return Code.DONE
    rows = [
        (name, str(group.count), _credits(name, group.credits))
        for name, group in groups.items()
        if group.count
    ]
    running.screen.table(("state", "requests", "credits"), rows)
    for name in _NAMED:
        _list(running, path, name, groups[name])
    return Code.DONE


async def settle(running: Running, path: str, action: str, intent: str, record_ids: Sequence[str]) -> Code:
    """Say of an ambiguous request what was made of it, or that nothing was."""
    async with LedgerFile(path) as ledger:
        if action == "adopt":
            await ledger.adopt(intent, *record_ids)
        else:
            await ledger.abandon(intent)
    text = (
        f"{intent} is {' '.join(record_ids)} now: the next batch waits for it."
        if action == "adopt"
        else f"{intent} is abandoned: the next batch orders it again."
    )
    running.result(
        text, "settled", lambda: {"intent": intent, "action": action, "record_ids": list(record_ids)}
    )
    return Code.DONE


def _credits(name: str, credit: int) -> str:
    return f"{credit}, refunded" if name == "failed" and credit else str(credit)


def _list(running: Running, path: str, name: str, group: Group) -> None:
    if not group.named:
        return
    running.screen.out("")
    running.screen.out(f"{name}:")
    for entry in group.named:
        if name == "ambiguous":
            for text in how_to_settle(path, entry.id, entry.request, entry.candidates):
                running.screen.out(f"  {text}")
            continue
        why = entry.reason or ", ".join(video.status for video in entry.videos)
        ids = " ".join(entry.record_ids) or entry.id
        running.screen.out(f"  {entry.request.ref or '(no ref)'}  {ids}  {why}".rstrip())
    if group.count > len(group.named):
        running.screen.out(f"  and {group.count - len(group.named)} more, see --json")


async def report(running: Running, ledger: str, to: Path) -> Code:
    """Write the report of a ledger."""
    path = await write_report(ledger, to)
    running.result(f"Report: {path}", "report", lambda: {"report": str(path)})
    return Code.DONE
