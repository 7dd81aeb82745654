"""Some records of a list as they stand there, and a list made of such pieces."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .answer import Answer
from .listing import named_items

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from .listing import Listing


def items_of(answer: Answer, ids: Collection[str], listing: Listing) -> dict[str, str | None]:
    """Give those records of a list whose ids are asked for, as they stand there; None for what doesn't."""
    items: dict[str, str | None] = dict.fromkeys(ids)
    for record_id, raw in named_items(answer, ids, listing):
        items[record_id] = bytes(raw).decode("utf-8", "replace")
    return items


def list_of(items: Iterable[str]) -> Answer:
    """Give a list of such records, as an answer of the server would have it."""
    return Answer(200, {}, f'{{"videos":[{",".join(items)}]}}'.encode())
