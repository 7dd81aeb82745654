"""The one way a paid POST is made: slot, intent, send, classify, receipt.

Once a byte of its body may have left, it is never sent again: the API has no idempotency key that it
promises to honour.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import attrs

from . import protocol
from .errors import (
    AmbiguousSubmissionError,
    ApiError,
    ConnectionFailedError,
    InvalidResponseError,
    QameraError,
    SessionClosedError,
    TransportError,
)
from .events import Ambiguous, Submitted
from .models import Intent
from .transport.tracing import Flight

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .events import Emit
    from .models import Receipt, Request, Video
    from .policies import StatusRules, Timeouts
    from .poller import Poller
    from .transport import Transport

_log = logging.getLogger("qamera_async")

_CLOCK_TOLERANCE = timedelta(seconds=60)


class _Order:
    """One registration under way."""

    __slots__ = ("began", "caller_gone", "ended", "flight", "intent", "lists", "shared", "task")

    def __init__(self, request: Request) -> None:
        self.intent = Intent(str(uuid.uuid4()), request, datetime.now(UTC))
        self.flight = Flight()
        self.caller_gone = False
        self.lists = 0  # how many lists were seen before it was sent
        self.shared = False  # another was ambiguous at the same time
        self.began = 0.0
        self.ended = 0.0
        self.task: asyncio.Task[Receipt] | None = None


class Submitter:
    """Sends registrations, each in a task of its own that outlives its caller."""

    def __init__(
        self, transport: Transport, poller: Poller, timeouts: Timeouts, rules: StatusRules, emit: Emit
    ) -> None:
        self._transport = transport
        self._poller = poller
        self._timeouts = timeouts
        self._rules = rules
        self._emit = emit
        self._orders: set[_Order] = set()
        self._looking: set[_Order] = set()
        # Ids on receipts that no list has shown yet: none of them can be an ambiguous order's record.
        self._claimed: set[str] = set()
        self._lists = 0  # how many lists had been seen when that was last looked through
        self._closing = asyncio.Event()

    async def submit(self, request: Request, approve: Callable[[], Awaitable[None]] | None = None) -> Receipt:
        """Send a registration once and give its receipt.

        Cancelled before sending began, it withdraws the request; afterwards the request runs to its
        answer, which is in an event and in the log.

        Raises:
            InvalidRequestError: nothing was sent.
            AmbiguousSubmissionError: it may or may not have been paid for.
            QameraError: it was not processed.
        """
        path, body = protocol.encode(request)
        order = _Order(request)
        order.task = asyncio.get_running_loop().create_task(
            self._run(order, path, body, approve), name=f"qamera-order-{order.intent.id}"
        )
        self._orders.add(order)
        order.task.add_done_callback(lambda _: self._over(order))
        try:
            return await asyncio.shield(order.task)
        except asyncio.CancelledError:
            if order.task.cancelled():
                # Only closing cancels an order that has begun, or one that still queues.
                if self._closing.is_set() and not _being_cancelled():
                    raise SessionClosedError(
                        "The session was closed before the request was sent; nothing was ordered."
                    ) from None
                raise
            order.caller_gone = True
            if order.task.done():
                self._report(order)
            elif not order.flight.connected:
                order.task.cancel()
            raise

    async def aclose(self) -> None:
        """Withdraw what queues, wait for what is on the wire; what must be cut is ambiguous. Idempotent."""
        self._closing.set()
        for order in self._orders:
            if not order.flight.on_the_wire and order not in self._looking and order.task is not None:
                order.task.cancel()
        tasks = [order.task for order in self._orders if order.task is not None]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=self._timeouts.close)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)

    def _over(self, order: _Order) -> None:
        self._orders.discard(order)
        self._report(order)

    def _report(self, order: _Order) -> None:
        """Leave a trace, once, of an order whose caller is gone."""
        task = order.task
        if task is None or task.cancelled() or not order.caller_gone:
            return
        order.caller_gone = False
        error = task.exception()
        if error is None:
            receipt = task.result()
            _log.warning(
                "a registration whose caller is gone was accepted all the same: records %s, order %s, ref %r",
                ", ".join(receipt.record_ids),
                receipt.order_id,
                order.intent.request.ref,
            )
        else:
            _log.warning("a registration that was cancelled or cut off ended with: %s", error)

    # --- the order's own task -------------------------------------------------------------------

    async def _run(
        self, order: _Order, path: str, body: bytes, approve: Callable[[], Awaitable[None]] | None
    ) -> Receipt:
        headers = {"Content-Type": "application/json", protocol.IDEMPOTENCY_HEADER: order.intent.id}
        loop = asyncio.get_running_loop()

        async def sending() -> None:
            order.began = loop.time()
            order.lists = self._poller.seen.lists
            order.intent = attrs.evolve(order.intent, sent_at=datetime.now(UTC))

        async def attempt() -> protocol.Answer:
            order.flight.connected = False
            return await self._transport.post(path, body, headers, order.flight, sending)

        if approve is not None:
            await approve()
        try:
            answer = await self._transport.retried("register", attempt, _unsent)
        except asyncio.CancelledError:
            if not order.flight.body_left:
                raise
            # Closing, or the end of the loop, cut it off: nobody may be left to raise to.
            order.caller_gone = True
            cut = TransportError("The session was closed before the answer came.", sent=True)
            raise self._ambiguous(order, cut, ()) from None
        except QameraError as error:
            if _known_not_to_be_processed(error, order.flight):
                raise
            order.ended = loop.time()
            raise await self._look_into(order, error) from None
        order.ended = loop.time()
        if not 200 <= answer.status < 300:  # noqa: PLR2004
            stated = protocol.error_of(answer)
            if protocol.is_refusal(answer):
                raise stated
            raise await self._look_into(order, stated)
        try:
            receipt = protocol.read_receipt(answer)
        except QameraError as error:
            raise await self._look_into(order, error) from None
        self._claim(receipt)
        self._emit(Submitted(order.intent.request.ref, order.intent.request, receipt))
        return receipt

    def _claim(self, receipt: Receipt) -> None:
        seen = self._poller.seen
        if seen.lists > self._lists and len(self._orders) <= 1 and not self._looking:
            # With no other order under way, what has been listed is known to the next one anyway.
            self._claimed = {record_id for record_id in self._claimed if record_id not in seen}
            self._lists = seen.lists
        self._claimed.update(receipt.record_ids)

    # --- an ambiguous order ---------------------------------------------------------------------

    async def _look_into(self, order: _Order, cause: QameraError) -> AmbiguousSubmissionError:
        """Look for records that nobody claims, for ``Timeouts.lookup`` seconds at most."""
        found: dict[str, Video] = {}
        self._looking.add(order)
        if len(self._looking) > 1:
            for other in self._looking:
                other.shared = True
        try:
            async with asyncio.timeout(self._timeouts.lookup):
                while not self._closing.is_set():
                    listed = await self._next_list()
                    if listed is None:
                        break
                    found |= self._unclaimed(order, *listed)
                    if self._without_claims(found) and self._alone(order):
                        break
        except TimeoutError:
            pass
        except QameraError as error:
            _log.info("an ambiguous submission can't be looked into: %s", error)
        except Exception:
            # Nothing may take the place of the error that says what may have been paid for.
            _log.exception("looking into an ambiguous submission failed")
        except asyncio.CancelledError:
            # The loop is being torn down. What is known must not go down with it.
            order.caller_gone = True
        self._looking.discard(order)
        return self._ambiguous(order, cause, tuple(self._without_claims(found).values()))

    async def _next_list(self) -> tuple[protocol.Answer, protocol.Listing] | None:
        """The next list from the poller; None where the session closes meanwhile."""
        asking = asyncio.ensure_future(self._poller.ask())
        closing = asyncio.ensure_future(self._closing.wait())
        try:
            await asyncio.wait({asking, closing}, return_when=asyncio.FIRST_COMPLETED)
            return asking.result() if asking.done() else None
        finally:
            for task in (asking, closing):
                task.cancel()
            await asyncio.gather(asking, closing, return_exceptions=True)

    def _alone(self, order: _Order) -> bool:
        """Whether no other POST is under way that may still bring a receipt for what was found."""
        return not any(other is not order and other.flight.on_the_wire for other in self._orders)

    def _unclaimed(
        self, order: _Order, answer: protocol.Answer, listing: protocol.Listing
    ) -> dict[str, Video]:
        if order.lists:
            fresh = self._poller.seen.new_since(listing.statuses, order.lists) - self._claimed
            return protocol.read_some(answer, fresh, listing, self._rules)
        # No list was seen before it: the server's own clock tells what was made meanwhile.
        if answer.date is None:
            return {}
        now = asyncio.get_running_loop().time()
        try:
            earliest = answer.date - timedelta(seconds=now - order.began) - _CLOCK_TOLERANCE
            latest = answer.date - timedelta(seconds=now - order.ended) + _CLOCK_TOLERANCE
        except OverflowError:  # a server's clock at one end of time
            return {}
        return {
            video.id: video
            for video in protocol.read_videos(answer, self._rules)
            if video.id not in self._claimed
            and video.created_at is not None
            and earliest <= video.created_at <= latest
        }

    def _without_claims(self, found: dict[str, Video]) -> dict[str, Video]:
        return {record_id: video for record_id, video in found.items() if record_id not in self._claimed}

    def _ambiguous(
        self, order: _Order, cause: QameraError, candidates: tuple[Video, ...]
    ) -> AmbiguousSubmissionError:
        intent = attrs.evolve(order.intent, candidates=candidates)
        error = AmbiguousSubmissionError(
            "The request was sent, and whether it was accepted is not known.",
            intent=intent,
            candidates=candidates,
            record_ids=cause.record_ids if isinstance(cause, InvalidResponseError) else (),
            cause=copy.copy(cause),
            shared=order.shared,
        )
        self._emit(Ambiguous(intent))
        return error


def _unsent(error: QameraError) -> bool:
    """Whether it is safe and sensible to send the same again."""
    return isinstance(error, TransportError) and not error.sent and not error.permanent


def _known_not_to_be_processed(error: QameraError, flight: Flight) -> bool:
    if isinstance(error, ConnectionFailedError | SessionClosedError):
        return True
    if isinstance(error, ApiError) and error.status in (407, 429):
        return True
    return not flight.body_left


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
