"""The one way a paid POST is made: claim, slot, intent, send, classify, receipt.

Once a byte of its body may have left, it is never sent again: the API has no idempotency key that it
promises to honour.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import attrs

from .. import _protocol as protocol
from ..errors import (
    AmbiguousSubmissionError,
    InvalidResponseError,
    LedgerError,
    QameraError,
    SessionClosedError,
    TransportError,
)
from ..events import Ambiguous, Submitted
from .candidates import Candidates
from .order import Accepted, Order, not_processed, unsent

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .._config import StatusRules, Timeouts
    from .._models import Receipt, Request, Video
    from .._polling import Poller
    from .._transport import Transport
    from ..events import Emit
    from ..ledger.places import NoLedger

_log = logging.getLogger("qamera_async")


class Submitter:
    """Sends registrations, each in a task of its own that outlives its caller."""

    def __init__(
        self,
        transport: Transport,
        poller: Poller,
        timeouts: Timeouts,
        rules: StatusRules,
        emit: Emit,
        ledger: NoLedger,
    ) -> None:
        self._transport = transport
        self._poller = poller
        self._timeouts = timeouts
        self._emit = emit
        self._ledger = ledger
        self.candidates = Candidates(poller, rules, ledger)
        self._orders: set[Order] = set()
        self._looking: set[Order] = set()
        self._closing = asyncio.Event()

    async def submit(
        self,
        request: Request,
        *,
        retry_failed: bool = False,
        approve: Callable[[], Awaitable[None]] | None = None,
        withdrawn: asyncio.Future[None] | None = None,
    ) -> Accepted:
        """Send a registration once and give its receipt, or what a ledger has of an earlier one.

        Cancelled before sending began, it withdraws the request; afterwards the request runs to its
        answer, which is in an event, in the log and in the ledger.

        Args:
            request: what is meant.
            retry_failed: send anew what a ledger says has failed.
            approve: awaited before what would be a new order; raising prevents it.
            withdrawn: once it is done, what the server can't have seen yet ends with ``CancelledError``.

        Raises:
            InvalidRequestError: nothing was sent.
            AmbiguousSubmissionError: it may or may not have been paid for.
            QameraError: it was not processed.
        """
        path, body = protocol.encode(request)
        protocol.receipt_reader()
        order = Order(request, retry_failed=retry_failed, approve=approve)
        order.task = asyncio.get_running_loop().create_task(
            self._run(order, path, body), name=f"qamera-order-{order.intent.id}"
        )
        self._orders.add(order)
        order.task.add_done_callback(lambda _: self._over(order))
        if withdrawn is not None:
            withdrawn.add_done_callback(lambda _: _withdraw(order))
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
            else:
                _withdraw(order)
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

    def _over(self, order: Order) -> None:
        self._orders.discard(order)
        self._report(order)

    def _report(self, order: Order) -> None:
        """Leave a trace, once, of an order whose caller is gone."""
        task = order.task
        if task is None or task.cancelled() or not order.caller_gone:
            return
        order.caller_gone = False
        error = task.exception()
        if error is not None:
            _log.warning("a registration that was cancelled or cut off ended with: %s", error)
        elif task.result().earlier is None and (receipt := task.result().receipt) is not None:
            _log.warning(
                "a registration whose caller is gone was accepted all the same: records %s, order %s, ref %r",
                ", ".join(receipt.record_ids),
                receipt.order_id,
                order.intent.request.ref,
            )

    # --- the order's own task -------------------------------------------------------------------

    async def _run(self, order: Order, path: str, body: bytes) -> Accepted:
        ledger = self._ledger
        try:
            earlier = await ledger.claim(order.intent, retry_failed=order.retry_failed)
            if earlier is not None:
                return Accepted(earlier.id, earlier.receipt, earlier)
            if order.approve is not None:
                await order.approve()
            answer = await self._sent(order, path, body)
            return Accepted(order.intent.id, await self._receipt(order, answer))
        except AmbiguousSubmissionError:
            raise
        except BaseException:
            if not order.flight.body_left:
                ledger.withdraw(order.intent)
            raise
        finally:
            ledger.let_go(order.intent)

    async def _sent(self, order: Order, path: str, body: bytes) -> protocol.Answer:
        """Send it; give the answer, whatever it says.

        Raises:
            AmbiguousSubmissionError: no answer, and the server may have got it.
            QameraError: the server has not.
        """
        headers = {"Content-Type": "application/json", protocol.IDEMPOTENCY_HEADER: order.intent.id}
        loop = asyncio.get_running_loop()

        async def sending() -> None:
            order.intent = attrs.evolve(order.intent, sent_at=datetime.now(UTC))
            await self._ledger.sending(order.intent)
            order.began = loop.time()
            order.lists = self._poller.lists_seen

        async def attempt() -> protocol.Answer:
            order.flight.connected = False
            try:
                return await self._transport.post(path, body, headers, order.flight, sending, refused)
            except QameraError as error:
                if unsent(error):
                    refused()
                raise

        def refused() -> None:
            self._ledger.unsent(order.intent)

        try:
            answer = await self._transport.retried("register", attempt, unsent)
        except asyncio.CancelledError:
            if not order.flight.body_left:
                raise
            # Closing, or the end of the loop, cut it off: nobody may be left to raise to.
            order.caller_gone = True
            cut = TransportError("The session was closed before the answer came.", sent=True)
            raise await self._ambiguous(order, cut, ()) from None
        except QameraError as error:
            if not_processed(error, order.flight):
                order.flight.body_left = False
                raise
            order.ended = loop.time()
            raise await self._look_into(order, error) from None
        order.ended = loop.time()
        return answer

    async def _receipt(self, order: Order, answer: protocol.Answer) -> Receipt:
        """Give the receipt, kept, of an answer.

        Raises:
            AmbiguousSubmissionError: it has none, and is no refusal.
            LedgerUnavailableError: it could not be kept; it is in the error.
            QameraError: the server refused the order.
        """
        if not 200 <= answer.status < 300:  # noqa: PLR2004
            stated = protocol.error_of(answer)
            if not protocol.is_refusal(answer):
                raise await self._look_into(order, stated)
            await _kept(order, self._ledger.refused(order.intent, stated))
            raise stated
        try:
            receipt = protocol.read_receipt(answer)
        except QameraError as error:
            raise await self._look_into(order, error) from None
        except Exception as error:
            _log.exception("reading a receipt failed")
            unread = QameraError(f"The receipt could not be read ({type(error).__name__}).")
            raise await self._look_into(order, unread) from None
        oldest = min(other.lists for other in self._orders if other.began or other is order)
        self.candidates.claim(receipt, oldest)
        try:
            await _kept(order, self._ledger.submitted(order.intent, receipt))
        except LedgerError as error:
            _log.error("a receipt could not be kept: %s", error)
            raise
        finally:
            self._emit(Submitted(order.intent.request.ref, order.intent.request, receipt))
        return receipt

    # --- an ambiguous order ---------------------------------------------------------------------

    async def _look_into(self, order: Order, cause: QameraError) -> AmbiguousSubmissionError:
        """Look for records that nobody claims, for ``Timeouts.reconcile`` seconds at most."""
        found: dict[str, Video] = {}
        self._looking.add(order)
        if len(self._looking) > 1:
            for other in self._looking:
                other.shared = True
        try:
            async with asyncio.timeout(self._timeouts.reconcile):
                while self._timeouts.reconcile and not self._closing.is_set():
                    listed = await self._next_list()
                    if listed is None:
                        break
                    found |= self.candidates.among(order, *listed)
                    if (
                        self.candidates.without_claims(found)
                        and self._alone(order)
                        and await self._ledger.alone(order.intent)
                    ):
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
        return await self._ambiguous(order, cause, await self._left_of(order, found))

    async def _left_of(self, order: Order, found: dict[str, Video]) -> tuple[Video, ...]:
        try:
            return await self.candidates.unclaimed(found)
        except LedgerError as error:
            _log.warning("the ledger can't be asked for claims: %s", error)
        except asyncio.CancelledError:
            order.caller_gone = True
        return tuple(self.candidates.without_claims(found).values())

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

    def _alone(self, order: Order) -> bool:
        """Whether no other POST is under way that may still bring a receipt for what was found."""
        return not any(other is not order and other.flight.on_the_wire for other in self._orders)

    async def _ambiguous(
        self, order: Order, cause: QameraError, candidates: tuple[Video, ...]
    ) -> AmbiguousSubmissionError:
        intent = order.intent = attrs.evolve(order.intent, candidates=candidates)
        await _kept(order, self._ledger.ambiguous(intent, cause.summary))
        error = AmbiguousSubmissionError(
            "The request was sent, and whether it was accepted is not known.",
            intent=intent,
            candidates=candidates,
            record_ids=cause.record_ids if isinstance(cause, InvalidResponseError) else (),
            cause=copy.copy(cause),
            may_share_candidates=order.shared,
        )
        self._emit(Ambiguous(intent))
        return error


def _withdraw(order: Order) -> None:
    """Cancel what the server can't have seen yet; the rest runs to its answer."""
    if order.task is not None and not order.flight.connected:
        order.task.cancel()


async def _kept(order: Order, writing: Awaitable[None]) -> None:
    """Wait until something is in the ledger. Who cancels the wait can't undo what is known."""
    try:
        await writing
    except asyncio.CancelledError:
        order.caller_gone = True  # it is being written all the same, and the log has it too


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
