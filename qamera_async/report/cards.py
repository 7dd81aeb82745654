"""The contact sheet: what a card shows of an entry."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from .. import ReelRequest
from ..cli.settling import ledger_command
from ..ledger import LedgerState
from .clips import clip_of, web_url
from .states import group, label
from .timeline import name_of
from .totals import processing
from .wording import duration, visible

if TYPE_CHECKING:
    from pathlib import Path

    from .. import Request
    from ..ledger import LedgerEntry

_MOST_IDS = 50
_LONG = 2000  # characters of a suggestion or a reason


@attrs.frozen
class Fact:
    """A line of a card.

    Args:
        name: What it tells.
        values: What it is, one or more.
        is_id: Whether these are ids, which one may search for.

    """

    name: str
    values: tuple[str, ...]
    is_id: bool = False


@attrs.frozen
class Card:
    """What is shown of an entry.

    Args:
        name: What it is called.
        group: Which filter shows it.
        state: What its state is called.
        suggestion: What was suggested; empty: nothing was.
        facts: What else is to be known.
        why: Why it isn't done; empty where there is nothing to say.
        commands: What settles it, in the order of the candidates.
        clip: The link to its clip; None where there is none.
        thumbnail: The link to its thumbnail; None where there is none.
        url: Where the clip is on the web, if it isn't here; else None.

    """

    name: str
    group: str
    state: str
    suggestion: str
    facts: tuple[Fact, ...]
    why: str
    commands: tuple[str, ...]
    clip: str | None
    thumbnail: str | None
    url: str | None


def card(entry: LedgerEntry, ledger: str, folder: Path) -> Card:
    """Give the card of an entry; looks for its files.

    Args:
        entry: The entry.
        ledger: The ledger's path, for the commands.
        folder: The absolute folder of the page.

    """
    clip = clip_of(entry, folder)
    done = entry.state is LedgerState.DONE
    urls = [url for video in entry.videos if (url := web_url(video.video_url))] if done else []
    return Card(
        name_of(entry),
        group(entry),
        label(entry),
        visible(getattr(entry.request, "suggestion", None) or "", _LONG),
        tuple(_facts(entry)),
        _why(entry),
        tuple(_commands(entry, ledger)),
        clip.href if clip else None,
        clip.thumbnail if clip else None,
        urls[0] if urls and clip is None else None,
    )


def _facts(entry: LedgerEntry) -> list[Fact]:
    facts = [_source(entry.request)]
    provider = getattr(entry.request, "provider", None)
    if provider:
        facts.append(Fact("Provider", (visible(provider),)))
    if entry.record_ids:
        facts.append(_ids("Record", entry.record_ids))
    if entry.candidates and entry.state is LedgerState.AMBIGUOUS:
        facts.append(_ids("Candidate", tuple(video.id for video in entry.candidates)))
    amount = entry.receipt.credits_reserved if entry.receipt else None
    if amount is not None:
        back = ", refunded" if entry.state is LedgerState.FAILED else ""
        facts.append(Fact("Credits", (f"{amount:,}{back}",)))
    seconds = processing(entry)
    if seconds is not None:
        facts.append(Fact("Took", (duration(seconds),)))
    return facts


def _source(request: Request) -> Fact:
    if isinstance(request, ReelRequest):
        return _ids("Image", request.image_ids)
    if request.image_id is not None:
        return _ids("Image", (request.image_id,))
    return _ids("Generated", (request.generated_image_id or "",))


def _ids(name: str, ids: tuple[str, ...]) -> Fact:
    more = len(ids) - _MOST_IDS
    values = [visible(one) for one in ids[:_MOST_IDS]]
    if more > 0:
        values.append(f"and {more:,} more")
    return Fact(name if len(ids) == 1 else f"{name}s", tuple(values), is_id=True)


def _why(entry: LedgerEntry) -> str:
    if entry.state is LedgerState.FAILED:
        words = [f"{video.id}: {video.status}" for video in entry.videos[:_MOST_IDS]]
        return visible("; ".join(filter(None, [entry.reason, *words])), _LONG)
    if entry.state is LedgerState.AMBIGUOUS and not entry.candidates:
        return f"{visible(entry.reason, _LONG)} No record is known that may have come of it.".lstrip()
    return visible(entry.reason, _LONG)


def _commands(entry: LedgerEntry, ledger: str) -> list[str]:
    if entry.state is not LedgerState.AMBIGUOUS:
        return []
    # An id that begins with a hyphen would be taken for an option.
    ids = [video.id for video in entry.candidates[:_MOST_IDS] if not video.id.startswith("-")]
    words = [("adopt", entry.id, one) for one in ids] + [("abandon", entry.id)]
    return [visible(ledger_command(ledger, *some), _LONG) for some in words]
