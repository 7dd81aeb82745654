"""One claimed request and the state of its submission."""

from __future__ import annotations

import asyncio
import time
import uuid
from datetime import UTC, datetime
from typing import Any

from .._models import Intent, Request
from .._protocol import encode_request, kind_of
from .._transport import Attempt
from ..ledger.rows import Row


class Claim:
    """The right to send one request once, and the state of its submission.

    Attributes:
        intent: What is stored in the ledger before the request is sent.
        kind: The kind of the request, from the table of kinds.
        earlier: The row of an earlier submission that stands for this request; None where there is none.

    """

    __slots__ = (
        "attempt",
        "earlier",
        "ended_at",
        "http_request",
        "intent",
        "kind",
        "list_number",
        "may_share_candidates",
        "orphaned",
        "send_called",
        "sent_at",
        "task",
        "withdrawn",
    )

    def __init__(self, request: Request) -> None:
        self.kind = kind_of(request)
        self.intent = Intent(str(uuid.uuid4()), request, datetime.now(UTC))
        self.http_request = encode_request(request, self.intent.id)
        self.earlier: Row | None = None
        self.attempt = Attempt()
        self.task: asyncio.Task[Any] | None = None  # the step that runs now, or ran last
        self.send_called = False
        self.orphaned = False  # its caller was cancelled: the result goes to the log
        self.withdrawn = False  # not to be sent again if it provably did not leave
        self.may_share_candidates = False  # another submission was ambiguous at the same time
        self.list_number = 0  # the last list before it was sent; 0: none
        # By `suspension_clock`; 0: not yet.
        self.sent_at = 0.0  # when the last commit of "sending" began
        self.ended_at = 0.0  # when the answer arrived, or was lost

    @property
    def intent_id(self) -> str:
        """The id of the intent."""
        return self.intent.id

    @property
    def request(self) -> Request:
        """The request that is claimed."""
        return self.intent.request


def suspension_clock() -> float:
    """Return the seconds of a monotonic clock that goes on while the machine is suspended."""
    # That is CLOCK_BOOTTIME on Linux, CLOCK_MONOTONIC on macOS, and time.monotonic on Windows.
    clock = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))
    return time.monotonic() if clock is None else time.clock_gettime(clock)
