"""Which budget belongs to a key and origin, for all sessions of the process."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from typing import TYPE_CHECKING

from ..errors import ConfigurationError
from . import RateLimiter

if TYPE_CHECKING:
    from collections.abc import Callable


class _Account:
    __slots__ = ("budget", "holders", "usual")

    def __init__(self, budget: RateLimiter, *, usual: bool) -> None:
        self.budget = budget
        self.usual = usual  # not one that a session brought along
        self.holders = 0


_accounts: dict[tuple[str, str], _Account] = {}
_accounts_lock = threading.Lock()
left_behind: deque[Callable[[], None]] = deque()
"""What sessions that nobody closed have left to be let go of."""


def _begin_anew() -> None:
    """In a forked child: the threads behind the logs, and who might hold a lock, are the parent's."""
    global _accounts_lock  # noqa: PLW0603
    _accounts_lock = threading.Lock()
    _accounts.clear()
    left_behind.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


def join(origin: str, api_key: str, budget: RateLimiter | None) -> tuple[RateLimiter, Callable[[], None]]:
    """Give the budget of a key and origin, and what to call when its session is closed.

    Raises:
        ConfigurationError: an open session holds another budget for this key and origin.
    """
    # Only a digest is kept: this table outlives the sessions, and no key should.
    while left_behind:
        left_behind.popleft()()
    name = origin, hashlib.sha256(api_key.encode()).hexdigest()
    with _accounts_lock:
        for other in [key for key, old in _accounts.items() if key != name and _idle(old)]:
            del _accounts[other]
        account = _accounts.get(name)
        if account is None:
            account = _accounts[name] = _Account(budget or RateLimiter(), usual=budget is None)
        elif account.holders and budget is not None and budget is not account.budget:
            raise ConfigurationError(
                "rate_limiter: another session with this key and origin is open with a different one; pass "
                "the same RateLimiter to both, or none"
            )
        elif not account.holders:
            # Nobody holds it, so what the last session asked for binds nobody; what it sent still counts.
            chosen = budget or (account.budget if account.usual else RateLimiter())
            if chosen is not account.budget:
                chosen.absorb(account.budget)
                account.budget = chosen
                account.usual = budget is None
        account.holders += 1

    def leave() -> None:
        with _accounts_lock:
            account.holders -= 1

    return account.budget, leave


def _idle(account: _Account) -> bool:
    return not account.holders and not account.budget.used and not account.budget.cooldown
