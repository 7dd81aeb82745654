"""Some records of a list: as they stand there, as videos, and a list made of such pieces."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .answer import Answer
from .listing import named_items, read_items

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from .._config import StatusRules
    from .._models import Video
    from .listing import Listing


class Snapshots:
    """The videos of a list by their ids, each made when it is asked for."""

    def __init__(self, answer: Answer, listing: Listing, rules: StatusRules) -> None:
        self._answer = answer
        self._rules = rules
        self._items = dict(named_items(answer, listing.statuses, listing))

    def get(self, record_id: str) -> Video | None:
        """Give a video; None where the list has none that can be read."""
        raw = self._items.get(record_id)
        if raw is None:
            return None
        return read_items(self._answer, [(record_id, raw)], self._rules).get(record_id)


def items_of(answer: Answer, ids: Collection[str], listing: Listing) -> dict[str, str | None]:
    """Give those records of a list whose ids are asked for, as they stand there; None for what doesn't."""
    items: dict[str, str | None] = dict.fromkeys(ids)
    for record_id, raw in named_items(answer, ids, listing):
        items[record_id] = bytes(raw).decode("utf-8", "replace")
    return items


def list_of(items: Iterable[str]) -> Answer:
    """Give a list of such records, as an answer of the server would have it."""
    return Answer(200, {}, f'{{"videos":[{",".join(items)}]}}'.encode())
