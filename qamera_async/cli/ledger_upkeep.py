"""``ledger prune`` and ``ledger copy``: a ledger made smaller, or moved."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import attrs

from ..ledger import LedgerFile, LedgerState, copy_ledger
from .asking import answered
from .codes import Code
from .running import run
from .settling import ledger_command, without_password

if TYPE_CHECKING:
    from ..ledger import Pruned
    from .options import Manners
    from .running import Running

_UNITS = {"h": 3_600, "d": 86_400, "w": 7 * 86_400}
_STATES = {
    LedgerState.DONE: "finished",
    LedgerState.FAILED: "failed",
    LedgerState.REFUSED: "refused",
    LedgerState.ABANDONED: "abandoned",
}


@attrs.frozen(kw_only=True)
class Pruning:
    """What is to be pruned.

    Args:
        ledger: The ledger.
        older_than: How old it has to be, such as ``90d``.
        dry_run: Whether to say only what would be removed.
        yes: Whether not to ask.

    """

    ledger: str
    older_than: str
    dry_run: bool = False
    yes: bool = False


def seconds_of(age: str) -> float:
    """Give the seconds of an age such as ``90d``.

    Raises:
        ValueError: It is none.

    """
    known = re.fullmatch(r"([0-9]{1,6})([hdw])", age)
    if known is None or not int(known[1]):
        raise ValueError(f"--older-than: {age!r} is no age: give hours, days or weeks, as in 12h, 90d or 8w.")
    return float(int(known[1]) * _UNITS[known[2]])


def prune(asked: Pruning, manners: Manners) -> Code:
    """Say what would be removed, ask, and remove it."""
    age = seconds_of(asked.older_than)
    would: Pruned | None = None

    async def look(running: Running) -> Code:
        nonlocal would
        now = datetime.now(UTC)
        async with LedgerFile(asked.ledger) as ledger:
            would = await ledger.prune(age, dry_run=True)
        _tell_of_doubts(running, asked.ledger, kept=would.before < now - timedelta(seconds=age))
        if asked.dry_run:
            _tell(running, would, "Would remove")
        elif would.requests:
            for text in _lines(would, "To remove"):
                running.screen.note(text)
        return Code.DONE

    async def remove(running: Running) -> Code:
        async with LedgerFile(asked.ledger) as ledger:
            _tell(running, await ledger.prune(age), "Removed")
        return Code.DONE

    code = run(manners, look)
    if would is None or asked.dry_run:
        return code
    if would.requests and not asked.yes:
        answer = answered(_question(would), "Nothing was removed.")
        if answer is None:
            raise ValueError("prune: there is no terminal to ask at: look with --dry-run, then give --yes.")
        if not answer:
            return Code.INTERRUPTED
    return run(manners, remove)


async def copy(running: Running, source: str, target: str, *, keep: bool) -> Code:
    """Copy a ledger into another, and say which one to use from now on."""
    running.how_to_go_on = f"Do it again: {ledger_command(source, 'copy', without_password(target))}"
    copied = await copy_ledger(source, target, keep=keep)
    names = without_password(source), without_password(target)
    after = (
        f"{names[0]} is as it was: use only one of both, since each would order what the other has ordered."
        if keep
        else f"{names[0]} can't be opened any more: give {names[1]} as the ledger from now on."
    )
    running.result(
        f"Copied {_number(copied, 'request')} to {names[1]}. {after}",
        "copied",
        lambda: {"requests": copied, "from": names[0], "to": names[1], "kept": keep},
    )
    return Code.DONE


def _question(would: Pruned) -> str:
    again = f", of which {would.refs:,} would be paid for again" if would.refs else ""
    return f"Remove {_number(would.requests, 'request')}{again}?"


def _tell_of_doubts(running: Running, ledger: str, *, kept: bool) -> None:
    if kept:
        running.screen.note(
            "What was made since one that is ambiguous, or being sent, stays until that is settled: "
            f"{ledger_command(ledger)} shows it."
        )


def _tell(running: Running, pruned: Pruned, verb: str) -> None:
    running.result(
        "\n".join(_lines(pruned, verb)),
        "pruned",
        lambda: {
            "removed": verb == "Removed",
            "before": pruned.before.isoformat(),
            "requests": pruned.requests,
            "counts": {state.value: count for state, count in pruned.counts.items()},
            "refs": pruned.refs,
        },
    )


def _lines(pruned: Pruned, verb: str) -> list[str]:
    counts = [f"{pruned.counts[state]:,} {name}" for state, name in _STATES.items() if state in pruned.counts]
    which = f": {', '.join(counts)}" if counts else ""
    moment = pruned.before.isoformat(" ", "minutes").removesuffix("+00:00")
    lines = [f"{verb} {_number(pruned.requests, 'request')} of before {moment} UTC{which}."]
    if pruned.refs:
        lines.append(
            f"{_number(pruned.refs, 'ref')} of these: if asked for again, each is ordered and paid for again."
        )
    return lines


def _number(count: int, what: str) -> str:
    return f"1 {what}" if count == 1 else f"{count:,} {what}s"
