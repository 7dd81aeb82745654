"""What pages show of the jobs, and how any number of them are told of each change.

Nothing is queued for a page: all there is of it is the number of the last change that it was sent. So a page
that is slow skips what has changed again meanwhile, and one that is gone leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import enum
import json
import re
import secrets
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class State(enum.StrEnum):
    """How far a job has come, as a page tells it."""

    ORDERING = "ordering"  # it waits for the quota, or is being sent
    PENDING = "pending"
    DONE = "done"
    FAILED = "failed"
    AMBIGUOUS = "ambiguous"
    REFUSED = "refused"
    ABANDONED = "abandoned"
    LOST = "lost"


SETTLED = {State.DONE, State.FAILED, State.REFUSED, State.ABANDONED, State.LOST}


@attrs.frozen
class Clip:
    """A clip to play, by its place among those of its job, and whether there is a still of it."""

    place: int
    still: bool


@attrs.frozen
class Candidate:
    """A record that may have come of an ambiguous order."""

    id: str
    name: str | None
    status: str
    url: str | None


@attrs.frozen
class Card:
    """What a page shows of a job.

    Args:
        id: The id of the form that ordered it.
        kind: "video" or "reel".
        images: The ids of its images.
        suggestion: What was suggested; empty for a reel.
        at: When it was ordered, in ISO 8601.
        state: How far it has come.
        status: The server's own word, last seen; empty before.
        why: What went wrong, in words; empty where nothing did.
        clips: What there is to play; mostly one.
        candidates: Of an ambiguous one, the records to choose from.
        version: The number of its last change.

    """

    id: str
    kind: str
    images: tuple[str, ...]
    suggestion: str
    at: str
    state: State = State.ORDERING
    status: str = ""
    why: str = ""
    clips: tuple[Clip, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    version: int = 0


@attrs.frozen
class Message:
    """One event for a page: its kind, its id, and its data as JSON."""

    event: str
    id: str
    data: str


class Feed:
    """The cards by their ids, and the stream of their changes.

    Args:
        keep: So many cards of settled jobs are kept, those that changed last.

    """

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._cards: dict[str, Card] = {}  # the one that changed last comes last
        self._run = secrets.token_hex(4)  # tells this run's numbers from those of an earlier one
        self._version = 0
        self._news = asyncio.Event()
        self._ended = False

    def __getitem__(self, card_id: str) -> Card:
        return self._cards[card_id]

    def get(self, card_id: str) -> Card | None:
        """Give a card; None where there is none."""
        return self._cards.get(card_id)

    def count(self, state: State) -> int:
        """Tell how many cards are in a state."""
        return sum(card.state is state for card in self._cards.values())

    def put(self, card: Card) -> None:
        """Take a new card, or one in the place of an earlier one."""
        self._version += 1
        self._cards.pop(card.id, None)
        self._cards[card.id] = attrs.evolve(card, version=self._version)
        if card.state in SETTLED:
            settled = [kept.id for kept in self._cards.values() if kept.state in SETTLED]
            for card_id in settled[: -self._keep]:
                del self._cards[card_id]
        self._news.set()
        self._news = asyncio.Event()

    def change(self, card_id: str, **changes: Any) -> None:  # noqa: ANN401 - the fields of a card
        """Change what is told of a job; nobody is told where nothing is new."""
        changed = attrs.evolve(self._cards[card_id], **changes)
        if changed != self._cards[card_id]:
            self.put(changed)

    async def messages(self, since: str = "") -> AsyncIterator[Message]:
        """Give what a page is to be told, until ``end``: all jobs, then each change; changes may coalesce.

        Args:
            since: The id of the last message that it had: then only what has changed since comes. An id of an
                earlier run is none.

        """
        seen = self._number(since)
        if seen is None:
            seen = self._version
            jobs = [attrs.asdict(card) for card in self._cards.values()]
            yield Message("jobs", self._id(seen), json.dumps({"jobs": jobs, "keep": self._keep}))
        while not self._ended:
            news, changed = self._news, self._changed_since(seen)
            for card in changed:
                seen = card.version
                yield Message("job", self._id(seen), json.dumps(attrs.asdict(card)))
            if not changed:
                await news.wait()

    def end(self) -> None:
        """Let all ``messages`` come to their end."""
        self._ended = True
        self._news.set()

    def _changed_since(self, version: int) -> list[Card]:
        changed: list[Card] = []
        for card in reversed(self._cards.values()):
            if card.version <= version:
                break
            changed.append(card)
        return changed[::-1]

    def _id(self, version: int) -> str:
        return f"{self._run}.{version}"

    def _number(self, message_id: str) -> int | None:
        found = re.fullmatch(rf"{self._run}\.([0-9]{{1,15}})", message_id)
        return int(found[1]) if found and int(found[1]) <= self._version else None
