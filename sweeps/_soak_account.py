"""Whether what the client was told and what the server did add up; pure: each check can be seen to fail."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


@attrs.frozen
class Told:
    """What the client was told of one request.

    Attributes:
        index: which of the requests.
        end: "done", "failed", "refused", "ambiguous", or another error's name.
        order: the order id of its receipt; None: it has none.
        intent: of an ambiguous one, what it went out as; None: it is not ambiguous.
        records: of its receipt; of an ambiguous one, its candidates.
        reserved: the credits of its receipt.
    """

    index: int
    end: str
    order: str | None = None
    intent: str | None = None
    records: tuple[str, ...] = ()
    reserved: int = 0


def image(index: int) -> str:
    """Give the image of a request: each has its own, so that an order tells whose it is."""
    return f"img_{index}"


def faults(jobs: int, told: Iterable[Told], saw: Mapping[str, Any], start: int) -> list[str]:
    """Say what does not add up, in words; an empty list where all does.

    Args:
        jobs: how many requests there were.
        told: what the client was told, in any order.
        saw: the server's report.
        start: the credits there were.
    """
    found: list[str] = []
    by_image: dict[str, list[Told]] = {}
    for one in told:
        by_image.setdefault(image(one.index), []).append(one)
    counts = [len(by_image.get(image(index), [])) for index in range(jobs)]
    if set(counts) != {1} or len(by_image) != jobs:
        found.append(
            f"outcomes: {counts.count(0)} requests without, {sum(n > 1 for n in counts)} with several"
        )
    everything = [one for several in by_image.values() for one in several]
    known = {"done", "failed", "refused", "ambiguous"}
    found += [f"{image(one.index)}: ended as {one.end}" for one in everything if one.end not in known]
    orders: dict[str, list[dict[str, Any]]] = {}
    for order in saw["orders"]:
        orders.setdefault(order["image"], []).append(order)
    found += [f"{name}: ordered {len(several)} times" for name, several in orders.items() if len(several) > 1]
    found += [f"{name}: sent {times} times" for name, times in saw["sent"].items() if times > 1]
    found += [f"{name}: an order of nobody" for name in orders.keys() - by_image.keys()]
    for one in everything:
        found += _one(one, orders.get(image(one.index), []))
    spent = sum(order["credits"] for order in saw["orders"] if not order["failed"])
    if saw["credits"] != start - spent:
        found.append(f"credits: the server has {saw['credits']} of {start}, and its orders took {spent}")
    by_receipts = sum(one.reserved for one in everything if one.end == "done")
    in_doubt = {image(one.index) for one in everything if one.end == "ambiguous"}
    unknown = sum(o["credits"] for o in saw["orders"] if o["image"] in in_doubt and not o["failed"])
    if by_receipts + unknown != start - saw["credits"]:
        found.append(
            f"credits: {by_receipts} by receipts, {unknown} ambiguous, {start - saw['credits']} by the server"
        )
    return found


def _one(one: Told, orders: list[dict[str, Any]]) -> list[str]:
    name = image(one.index)
    if one.end == "refused":
        return [f"{name}: refused, and ordered"] if orders else []
    if one.end == "ambiguous":
        return [
            f"{name}: order {order['id']} went out as {order['key']}, told as {one.intent}"
            for order in orders
            if order["key"] != one.intent
        ]
    if not orders:
        return [f"{name}: {one.end}, and never ordered"]
    order = orders[0]
    found: list[str] = []
    if (order["id"], tuple(order["records"]), order["credits"]) != (one.order, one.records, one.reserved):
        found.append(f"{name}: the receipt of {one.order} {one.records}, the order {order}")
    if order["failed"] != (one.end == "failed"):
        found.append(f"{name}: {one.end}, and the server has failed={order['failed']}")
    return found
