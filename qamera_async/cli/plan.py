"""What a batch would order, what that costs and how long the quota makes it take, known before it runs."""

from __future__ import annotations

import enum
from collections import Counter
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

from .. import VideoRequest
from ..ledger import LedgerFile, LedgerState
from .estimate import submission_slots

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from .. import Request
    from ..ledger import LedgerEntry

_VIDEO_CREDITS, _REEL_CREDITS = 10, 15  # the examples of the API's pages (both POST endpoints)
_SHOWN_REFS = 10
_ANEW = {LedgerState.REFUSED, LedgerState.ABANDONED}
_UNDER_WAY = {LedgerState.SENDING, LedgerState.SUBMITTED, LedgerState.ADOPTED}
_MINUTE, _HOUR = 60, 3600

_Sort: TypeAlias = tuple[str | None, int | None]


@attrs.frozen
class Part:
    """The orders of one kind, which take the same credits each.

    Args:
        count: How many are to be ordered.
        images: How many images each reel has; None: they are videos.
        provider: The provider of videos; None leaves it to the server.
        price: What one takes, in credits.
        told: Whether the ledger's newest receipt of the kind told the price; False: it is the example of the
            API's documentation.

    """

    count: int
    images: int | None
    provider: str | None
    price: int
    told: bool


@attrs.frozen
class Plan:
    """What would become of the requests of a batch.

    Args:
        parts: What is to be ordered, by kind, in the order in which the kinds come.
        done: How many the ledger has as done; they are ordered no more.
        under_way: How many are paid for, or being sent by another process; they are waited for.
        failed: How many failed and are not ordered again.
        ambiguous: The refs of those that may be paid for; they are not sent before they are settled.
        conflicts: The refs that the ledger has for another request; they are not sent.
        seconds: The least time until the last order is sent, in seconds, if nobody else uses the quota.
        limit: The quota: how many requests.
        window: The quota: in how many seconds.

    """

    parts: tuple[Part, ...]
    done: int
    under_way: int
    failed: int
    ambiguous: tuple[str, ...]
    conflicts: tuple[str, ...]
    seconds: float
    limit: int
    window: float

    @property
    def orders(self) -> int:
        """How many are to be ordered."""
        return sum(part.count for part in self.parts)

    @property
    def credits(self) -> int:
        """What they take, as far as is known."""
        return sum(part.count * part.price for part in self.parts)

    def as_dict(self) -> dict[str, Any]:
        """Give all of it as JSON has it."""
        return {"orders": self.orders, "credits": self.credits, **attrs.asdict(self)}


class _Fate(enum.Enum):
    ORDER = enum.auto()
    DONE = enum.auto()
    UNDER_WAY = enum.auto()
    FAILED = enum.auto()
    AMBIGUOUS = enum.auto()
    CONFLICT = enum.auto()


async def plan(
    requests: Sequence[Request],
    ledger: str | os.PathLike[str] | None,
    *,
    origin: str,
    limit: int,
    window: float,
    stale_after: float = 15.0,
    retry_failed: bool = False,
) -> Plan:
    """Give what a batch of these requests would do now.

    Args:
        requests: What the batch would be given.
        ledger: The file or address of its ledger, which is not made where there is none; None: none.
        origin: The API's origin that it would order from.
        limit: The quota: how many requests.
        window: The quota: in how many seconds.
        stale_after: How old the list of videos may get while orders queue, in seconds: what polls are left.
        retry_failed: Whether what has failed is ordered again.

    Raises:
        LedgerError: There is a ledger, and it can't be read.

    """
    found: dict[str, LedgerEntry] = {}
    prices: dict[_Sort, int] = {}
    # Only looked at where there is one: a name that leads nowhere is a ledger that begins with this batch.
    if ledger is not None and await LedgerFile(ledger).exists():
        found, prices = await _look_up(requests, ledger, origin)
    fates = [_fate(request, found.get(request.ref or ""), retry_failed=retry_failed) for request in requests]
    refs: dict[_Fate, list[str]] = {fate: [] for fate in _Fate}
    for request, fate in zip(requests, fates, strict=True):
        refs[fate].append(request.ref or "")
    orders = Counter(_sort(one) for one, fate in zip(requests, fates, strict=True) if fate is _Fate.ORDER)
    return Plan(
        parts=tuple([_part(sort, count, prices.get(sort)) for sort, count in orders.items()]),
        done=len(refs[_Fate.DONE]),
        under_way=len(refs[_Fate.UNDER_WAY]),
        failed=len(refs[_Fate.FAILED]),
        ambiguous=tuple(refs[_Fate.AMBIGUOUS]),
        conflicts=tuple(refs[_Fate.CONFLICT]),
        seconds=_duration(orders.total(), limit, window, stale_after),
        limit=limit,
        window=window,
    )


async def _look_up(
    requests: Sequence[Request], ledger: str | os.PathLike[str], origin: str
) -> tuple[dict[str, LedgerEntry], dict[_Sort, int]]:
    """Give what a ledger has of these requests by ref, and the newest prices of their kinds."""
    wanted = {request.ref for request in requests} - {None}
    sorts = {_sort(request) for request in requests}
    found: dict[str, LedgerEntry] = {}
    prices: dict[_Sort, int] = {}
    async with LedgerFile(ledger) as file:
        async for entry in file.entries():
            if entry.origin != origin:
                continue
            ref, sort = entry.request.ref, _sort(entry.request)
            if entry.current and ref is not None and ref in wanted:
                found[ref] = entry
            credits_reserved = None if entry.receipt is None else entry.receipt.credits_reserved
            if sort in sorts and credits_reserved is not None and credits_reserved >= 0:
                prices[sort] = credits_reserved  # the oldest come first
    return found, prices


def _fate(request: Request, entry: LedgerEntry | None, *, retry_failed: bool) -> _Fate:
    """Give what a batch would do with a request, as the table of `QameraSession.register` has it."""
    if entry is None or entry.state in _ANEW or (entry.state is LedgerState.CLAIMED and not entry.busy):
        return _Fate.ORDER
    if entry.request != request:
        return _Fate.CONFLICT
    if entry.busy or entry.state in _UNDER_WAY:
        return _Fate.UNDER_WAY
    if entry.state is LedgerState.FAILED:
        return _Fate.ORDER if retry_failed else _Fate.FAILED
    return _Fate.DONE if entry.state is LedgerState.DONE else _Fate.AMBIGUOUS


def _sort(request: Request) -> _Sort:
    """Give what tells the price of a request."""
    if isinstance(request, VideoRequest):
        return request.provider, None
    return None, len(request.image_ids)


def _part(sort: _Sort, count: int, price: int | None) -> Part:
    provider, images = sort
    example = _VIDEO_CREDITS if images is None else _REEL_CREDITS
    return Part(count, images, provider, example if price is None else price, told=price is not None)


def _duration(orders: int, limit: int, window: float, stale_after: float) -> float:
    return max(orders - 1, 0) // submission_slots(limit, window, stale_after) * window


def describe(plan: Plan) -> list[str]:
    """Give a plan in a few lines for a person."""
    lines = [_cost(plan)]
    if plan.seconds:
        quota = f"{plan.limit} requests in {plan.window:g} s"
        lines.append(f"By the quota of {quota} the last is sent {_span(plan.seconds)} after the first.")
    earlier = [
        (plan.done, "done already"),
        (plan.under_way, "under way, to be waited for"),
        (plan.failed, "failed and not ordered again"),
    ]
    if any(count for count, _ in earlier):
        lines.append(
            f"From earlier runs: {', '.join(f'{count:,} {what}' for count, what in earlier if count)}."
        )
    if plan.ambiguous:
        lines.append(f"In doubt, not sent before it is settled: {_some(plan.ambiguous)}.")
    if plan.conflicts:
        lines.append(f"Not sent, since the ledger has another request of that ref: {_some(plan.conflicts)}.")
    return lines


def _cost(plan: Plan) -> str:
    if not plan.parts:
        return "This orders nothing."
    videos = sum(part.count for part in plan.parts if part.images is None)
    what = " and ".join(
        f"{count:,} {name}{'' if count == 1 else 's'}"
        for count, name in ((videos, "video"), (plan.orders - videos, "reel"))
        if count
    )
    sources = (
        (True, "as earlier receipts say"),
        (False, "by the example in the API's documentation; the server names its price in each receipt"),
    )
    prices = "; ".join(
        f"{', '.join(_price(part) for part in plan.parts if part.told is told)} {source}"
        for told, source in sources
        if any(part.told is told for part in plan.parts)
    )
    return f"This orders {what}, about {plan.credits:,} credits ({prices})."


def _price(part: Part) -> str:
    if part.images is not None:
        return f"{part.price:,} a reel of {part.images} image{'' if part.images == 1 else 's'}"
    return f"{part.price:,} a video" + ("" if part.provider is None else f" by {part.provider!r}")


def _span(seconds: float) -> str:
    if seconds < _MINUTE:
        return f"{seconds:g} s"
    minutes, rest = divmod(round(seconds), _MINUTE)
    if seconds < _HOUR:
        return f"{minutes} min" + (f" {rest} s" if rest else "")
    hours, minutes = divmod(minutes, _MINUTE)
    return f"{hours:,} h" + (f" {minutes} min" if minutes else "")


def _some(refs: Sequence[str]) -> str:
    more = f" and {len(refs) - _SHOWN_REFS:,} more" if len(refs) > _SHOWN_REFS else ""
    return ", ".join(map(repr, refs[:_SHOWN_REFS])) + more
