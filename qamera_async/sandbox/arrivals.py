"""What arrived at the sandbox: every request, to the API and to the CDN."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from aiohttp import web


@attrs.frozen
class ArrivedRequest:
    """One request as it arrived, and what became of it so far.

    Attributes:
        at: when it arrived, in seconds of ``time.monotonic()``.
        origin: "api" or "cdn".
        method: as sent.
        path: as sent, without the query.
        headers: as sent; of a repeated one the last.
        body: as sent; empty until it was read.
        counted_at: when the quota counted it; None: not (yet) counted, or rejected.
        status: what the answer's status line says; None: no answer (yet).
    """

    at: float
    origin: str
    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""
    counted_at: float | None = None
    status: int | None = None


class Arrival:
    """The place of one request in the log, for those who handle it."""

    def __init__(self, log: list[ArrivedRequest], index: int) -> None:
        self._log = log
        self._index = index

    @property
    def request(self) -> ArrivedRequest:
        """The request as it is known now."""
        return self._log[self._index]

    def has_body(self, body: bytes) -> None:
        """Note what was sent as body."""
        self._log[self._index] = attrs.evolve(self.request, body=body)

    def is_counted(self) -> None:
        """Note that it was counted now."""
        self._log[self._index] = attrs.evolve(self.request, counted_at=time.monotonic())

    def is_answered(self, status: int) -> None:
        """Note that a status line is sent."""
        self._log[self._index] = attrs.evolve(self.request, status=status)


class Log:
    """All requests in the order in which they arrived."""

    def __init__(self) -> None:
        self._requests: list[ArrivedRequest] = []

    def add(self, origin: str, request: web.Request) -> Arrival:
        """Note a request that arrives now."""
        arrived = ArrivedRequest(
            time.monotonic(), origin, request.method, request.path, dict(request.headers)
        )
        self._requests.append(arrived)
        return Arrival(self._requests, len(self._requests) - 1)

    def requests(self) -> list[ArrivedRequest]:
        """Give a copy that stays as it is."""
        return list(self._requests)
