"""How a batch registers one request: within the credits, through the gate, and again where nobody got it."""

from __future__ import annotations

import asyncio
import os
from functools import partial
from typing import TYPE_CHECKING, Protocol

import attrs

from ..errors import (
    AmbiguousSubmissionError,
    ApiError,
    TargetExistsError,
    TransportError,
)
from .outcome import Outcome, receipt_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from .._jobs import Job
    from .._models import Request, Video
    from .gate import Gate
    from .purse import PriceClass, Purse


class Seller(Protocol):
    """What a batch needs of a session."""

    @property
    def _keeps_receipts(self) -> bool:
        """Whether a ledger has what is paid for."""
        ...

    async def _order(
        self,
        request: Request,
        *,
        retry_failed: bool,
        approve: Callable[[], Awaitable[None]],
        withdrawn: asyncio.Future[None],
    ) -> Job:
        """Register a request.

        ``approve`` is awaited before what would be a new order, and may raise to prevent it. Once
        ``withdrawn`` is done, what can't have reached the server yet ends with ``CancelledError``.
        """
        ...

    async def _fetch(self, job: Job, video: Video, path: Path) -> Path:
        """Download a job's clip to ``path``, unless it is there already."""
        ...

    def _target(self, request: Request, job: Job | None, folder: Path) -> Path | None:
        """Give the file in ``folder`` for a request; None while it has no name yet."""
        ...


@attrs.define(eq=False)
class Item:
    """A request in flight.

    ``number``: its place in the order of sending; None before. ``new``: it would be, or is, a new order.
    ``price_class``: holds its reservation. ``probes``: others wait to see whether it reaches the server.
    ``told``: its outcome is there.
    """

    index: int
    request: Request
    withdrawn: asyncio.Future[None]
    job: Job | None = None
    number: int | None = None
    new: bool = False
    price_class: PriceClass | None = None
    probes: bool = False
    told: bool = False

    def unfinished(self) -> Outcome:
        """Give what is known of it so far."""
        return Outcome(self.index, self.request, self.job)


class Registrar:
    """Registers the requests of one batch.

    Args:
        seller: Takes the orders.
        gate: Lets few through at a time; those that come are inside of it.
        purse: What may be spent.
        retry_failed: Whether to order again what a ledger says has failed.
        folder: Where there must be no file of the result's name; None: it will be no file.
        stop: Called with the reason where the batch must stop.
        left: Called when a registration has ended.

    """

    def __init__(
        self,
        seller: Seller,
        gate: Gate,
        purse: Purse,
        *,
        retry_failed: bool,
        folder: Path | None,
        stop: Callable[[BaseException], None],
        left: Callable[[], None],
    ) -> None:
        self._seller = seller
        self._gate = gate
        self._purse = purse
        self._retry_failed = retry_failed
        self._folder = folder
        self._stop = stop
        self._left = left

    async def register(self, item: Item) -> Job:
        """Register a request that is inside of the gate, anew as often as it provably reached nobody.

        Raises:
            Exception: What prevented or refused it; it is no new order, unless it may be.
            CancelledError: It was withdrawn.

        """
        try:
            while True:
                item.new = False
                try:
                    item.job = await self._seller._order(  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
                        item.request,
                        retry_failed=self._retry_failed,
                        approve=partial(self._approve, item),
                        withdrawn=item.withdrawn,
                    )
                except TransportError as error:
                    if error.sent or error.permanent or not item.new:
                        self._settle(item, error)
                        raise
                    self._gate.not_reached(error)
                    self._end_probe(item)
                except Exception as error:
                    self._settle(item, error)
                    raise
                else:
                    self._settle(item, None)
                    return item.job
        finally:
            self._end_probe(item)
            if item.price_class is not None:
                self._purse.give_back(item.price_class)
            self._gate.leave(item.number)
            self._left()

    async def _approve(self, item: Item) -> None:
        """Let a new order through; called by the seller, in the order's own task."""
        if self._folder is not None:
            target = self._seller._target(item.request, None, self._folder)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
            if target is not None and await asyncio.to_thread(os.path.lexists, target):
                raise TargetExistsError(
                    "There is a file already where the result was to be, so nothing was ordered: "
                    "move the file away, or give the request another ref.",
                    path=str(target),
                )
        if item.price_class is None:
            item.price_class = await self._purse.hold(item.request)
        item.probes = await self._gate.wait_for_turn()
        if item.withdrawn.done():
            raise asyncio.CancelledError
        item.number = self._gate.send(item.number)
        item.new = True

    def _settle(self, item: Item, error: Exception | None) -> None:
        """Note what the end of a registration means for the others."""
        price_class, receipt = item.price_class, receipt_of(error) if item.job is None else item.job.receipt
        if not item.new or price_class is None or item.number is None:
            return
        if receipt is not None:
            self._spend(item, price_class, receipt.credits_reserved)
            self._gate.answered(item.number)
        elif isinstance(error, AmbiguousSubmissionError):
            self._spend(item, price_class, None)
            if (limit := self._gate.in_doubt(item.number, error)) is not None:
                self._stop(limit)
        elif isinstance(error, ApiError):
            self._gate.answered(item.number)

    def _spend(self, item: Item, price_class: PriceClass, credits: int | None) -> None:  # noqa: A002 - the API's word
        item.price_class = None
        self._purse.spend(price_class, credits)

    def _end_probe(self, item: Item) -> None:
        if item.probes:
            item.probes = False
            self._gate.probed()
