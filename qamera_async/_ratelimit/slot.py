"""A slot: the right to send one request."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .._config import RetryPolicy
    from . import RateLimiter
    from .shared import SlotLog
    from .window import Priority


class Slot:
    """The right to send one request, until it is settled by one of its methods."""

    __slots__ = ("_budget", "_settled", "granted_at", "priority", "tickets")

    def __init__(self, budget: RateLimiter, priority: Priority, granted_at: float) -> None:
        self._budget = budget
        self._settled = False
        self.priority = priority
        self.granted_at = granted_at
        self.tickets: tuple[tuple[SlotLog, object], ...] = ()  # the same slot in the logs

    def answered(self) -> None:
        """The server answered: the slot is free one window from now."""
        self._settle(0.0, ok=True)

    def cut_off(self, extra: float) -> None:
        """No answer will come: the server may count the request up to ``extra`` seconds from now."""
        self._settle(extra, ok=False)

    def unsent(self) -> None:
        """The request never left: the slot is free at once."""
        self._settle(None, ok=False)

    def _settle(self, extra: float | None, *, ok: bool) -> None:
        if not self._settled:
            self._settled = True
            self._budget.settle(self, extra, ok=ok)

    def rejected(self, retry_after: float | None, policy: RetryPolicy) -> float | None:
        """The server said 429: hold everybody.

        Returns:
            The seconds to hold, or None where this has gone on for five windows.
        """
        self._settled = True
        return self._budget.reject(self, retry_after, policy)

    def settle_tickets(self, until: float | None) -> None:
        """Settle it in the logs: free again at ``until``; None means at once."""
        for log, ticket in self.tickets:
            log.settle(ticket, until)
