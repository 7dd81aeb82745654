"""One registration under way, and what its end proves."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import attrs

from .._models import Intent
from .._transport.tracing import Flight
from ..errors import (
    ConnectionFailedError,
    LedgerError,
    QameraError,
    RateLimitError,
    SessionClosedError,
    TransportError,
)

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable

    from .._models import Receipt, Request
    from ..ledger.rows import Row


@attrs.frozen(eq=False, repr=False)
class Accepted:
    """What a request came to: a receipt, or the row of an earlier one that stands for it.

    Args:
        intent_id: The intent that was, or had been, sent.
        receipt: What the server answered; None where an earlier one has no receipt.
        earlier: The row of an earlier one; None for a new order.

    """

    intent_id: str
    receipt: Receipt | None
    earlier: Row | None = None


class Order:
    """One registration under way."""

    __slots__ = (
        "approve",
        "began",
        "caller_gone",
        "ended",
        "flight",
        "intent",
        "lists",
        "retry_failed",
        "shared",
        "task",
    )

    def __init__(
        self, request: Request, *, retry_failed: bool, approve: Callable[[], Awaitable[None]] | None
    ) -> None:
        self.intent = Intent(str(uuid.uuid4()), request, datetime.now(UTC))
        self.retry_failed = retry_failed
        self.approve = approve
        self.flight = Flight()
        self.caller_gone = False
        self.lists = 0  # how many lists were seen before it was sent
        self.shared = False  # another was ambiguous at the same time
        self.began = 0.0
        self.ended = 0.0
        self.task: asyncio.Task[Accepted] | None = None


def unsent(error: QameraError) -> bool:
    """Whether it is safe and sensible to send the same again."""
    return isinstance(error, TransportError) and not error.sent and not error.permanent


def not_processed(error: QameraError, flight: Flight) -> bool:
    """Return whether the API provably did not process the submission.

    A 429 in the API's shape is a refusal. After a 407 to a proxy's CONNECT no byte of the body has left.
    """
    if isinstance(error, ConnectionFailedError | SessionClosedError | LedgerError):
        return True
    if isinstance(error, RateLimitError) and not error.foreign:
        return True
    return not flight.body_left
