"""One claimed request and the state of its submission."""

from __future__ import annotations

import asyncio
import math
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
        request: The request.
        intent: The note that the ledger stores before the request is sent.
        kind: The kind of the request, from the table of kinds.
        http_request: The POST.
        earlier: The ledger's row of an earlier submission of the same request; None if there is none.
        attempt: The state of the POST.
        task: The task of the present or last step; None before the first.
        send_called: Whether `Submitter.send` was called.
        log_result: Whether the result goes to the log, for example because the caller was cancelled.
        withdrawn: Whether the request is not to be sent again if it provably was not sent.
        may_share_candidates: Whether another submission was ambiguous at the same time.
        list_number: The number of the last list before the request was sent; 0 if there was none.
        sent_at: When the last commit of "sending" began, by `suspension_clock`; minus infinity before.
        ended_at: When the response arrived or was lost, by `suspension_clock`; 0 before.

    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.kind = kind_of(request)
        self.intent = Intent(str(uuid.uuid4()), request, datetime.now(UTC))
        self.http_request = encode_request(request, self.intent.id)
        self.earlier: Row | None = None
        self.attempt = Attempt()
        self.task: asyncio.Task[Any] | None = None
        self.send_called = self.log_result = self.withdrawn = self.may_share_candidates = False
        self.list_number = 0
        self.sent_at = -math.inf
        self.ended_at = 0.0


def suspension_clock() -> float:
    """Return the seconds of a monotonic clock that also counts the time while the machine is suspended."""
    # That is CLOCK_BOOTTIME on Linux, CLOCK_MONOTONIC on macOS, and time.monotonic on Windows.
    clock = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))
    return time.monotonic() if clock is None else time.clock_gettime(clock)
