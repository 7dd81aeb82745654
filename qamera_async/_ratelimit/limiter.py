"""The rate limiter as users see it, and which sessions of this process share one."""

from __future__ import annotations

import asyncio
import copy
import math
import os
import threading
import time
from collections import deque
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary, WeakSet

import attrs

from ..errors import ConfigurationError, SessionClosedError, is_number
from .engine import Engine
from .window import Priority

if TYPE_CHECKING:
    from collections.abc import Callable

    from .engine import Slot
    from .shared import SharedSlots

_LONGEST_WINDOW = 1e9  # seconds
_STEP = 50  # requests that end in one step of the event loop when a session stops


@attrs.frozen(eq=False, repr=False)
class RateLimiter:
    """The API's rate limit as a live object: at most `limit` requests in any `window` seconds.

    The defaults are those of the API, section "Every request": all requests of a key count, GET and POST.
    Sessions of one process with the same key and origin share one rate limiter by themselves, and passing
    two rate limiters with equal numbers is the same as passing one. A rate limiter that was passed to
    sessions with several keys counts for each key by itself: `used` and `waiting` are then the sums,
    and `cooldown` is the longest. It may be used from any thread. A forked process begins with an unused
    one.

    Example:
        >>> limiter = RateLimiter(limit=30)
        >>> limiter.limit, limiter.used, limiter.cooldown
        (30, 0, 0.0)

    Args:
        limit: Requests in a window, at least 1.
        window: Length of the window in seconds, at most 1e9.

    Raises:
        ConfigurationError: `limit` or `window` is out of range.
    """

    limit: int = 60
    """Requests allowed in one window."""
    window: float = 60.0
    """Length of the window in seconds."""

    def __attrs_post_init__(self) -> None:
        if type(self.limit) is not int or self.limit < 1:
            raise ConfigurationError(f"limit must be a whole number of at least 1, got {self.limit!r}.")
        if not is_number(self.window) or not 0 < self.window <= _LONGEST_WINDOW:
            raise ConfigurationError(
                f"window must be a number of seconds above 0 and at most {_LONGEST_WINDOW:g}, "
                f"got {self.window!r}."
            )

    def __repr__(self) -> str:
        return f"RateLimiter(limit={self.limit}, window={self.window}, used={self.used})"

    @property
    def used(self) -> int:
        """Slots that are taken now: requests in flight and those of the last window."""
        return sum(engine.used for engine in _registry.engines_of(self))

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot."""
        return sum(len(engine.waiting) for engine in _registry.engines_of(self))

    @property
    def cooldown(self) -> float:
        """Seconds until the pause after a 429 ends; 0 if there is none."""
        return max((engine.cooldown_left for engine in _registry.engines_of(self)), default=0.0)


class SessionLimiter:
    """One session's access to the rate limiter that it shares with others; made by `session_limiter`.

    Args:
        engine: What the sessions of its key and origin share.
        rate_limiter: Shows the shared state.
    """

    def __init__(self, engine: Engine, rate_limiter: RateLimiter) -> None:
        self.engine = engine
        self.rate_limiter = rate_limiter
        self._key = object()  # stands for it in the engine, which must not keep the session's tasks alive
        engine.sessions.add(self._key)
        self._stopped = False
        self._error: Exception = SessionClosedError("The session is closed.")  # raised once it has stopped
        self._scopes: set[asyncio.Timeout] = set()  # of the requests that wait for a slot

    async def acquire(
        self, priority: Priority, on_wait: Callable[[float], None] | None = None, kind: str = ""
    ) -> Slot:
        """Wait for a slot. Cancelling leaks none.

        Args:
            priority: Submissions are served first. Slots reserved for polls are not given to submissions.
            on_wait: Called with a lower bound of the seconds to wait, if no slot is free. It may be called
                again when another process took the slot.
            kind: Requests of one kind are refused with 429 for the same reason; see `Slot.exhausted`.

        Raises:
            Exception: A copy of the error that was passed to `stop`, or an error of the shared slots.
        """
        if not self._stopped:
            slot = self.engine.take_free_slot(priority, kind)
            if slot is not None:
                return slot
            scope = asyncio.timeout(None)  # stop() lets it expire
            self._scopes.add(scope)
            try:
                async with scope:
                    slot = await self.engine.wait_for_slot(priority, kind, on_wait)
                if not self._stopped:
                    return slot
                slot.give_back()
            except TimeoutError:
                if not scope.expired():
                    raise  # an error of the shared slots
            finally:
                self._scopes.discard(scope)
        raise copy.copy(self._error)

    def poll_delay(self, interval: float, stale_after: float) -> float:
        """Return the seconds to pause before the next poll, so that polls spread over the slots left.

        The pause is the time to the next free slot divided by the free slots, between the two arguments.

        Args:
            interval: The pause while enough slots are free, in seconds.
            stale_after: The longest pause that the rate limit may cause, in seconds.
        """
        engine = self.engine
        with engine.lock:
            if engine.queues[Priority.SUBMISSION].requests:
                return max(interval, stale_after)
            now = engine.clock()
            free, next_free = engine.window.free(now), engine.window.next_free
        if math.isinf(next_free):
            return interval
        return max(interval, min((next_free - now) / max(free, 1), stale_after))

    def reserve_polls(self, stale_after: float) -> None:
        """Keep `min(window / stale_after, limit // 2)` slots of each window for polls; idempotent.

        Args:
            stale_after: The age in seconds up to which a list may get while submissions wait.
        """
        with self.engine.lock:
            self.engine.window.reserve(self._key, stale_after)

    def attach(self, slots: SharedSlots) -> None:
        """Share the rate limit with other processes: take each slot in `slots` too from now on."""
        self.engine.attach(self._key, slots)

    def detach(self) -> None:
        """Undo `attach`; idempotent."""
        self.engine.detach(self._key)

    @property
    def cooldown(self) -> float:
        """Seconds until the pause after a 429 ends; 0 if there is none."""
        return self.engine.cooldown_left

    async def stop(self, error: Exception) -> None:
        """Let pending and later calls of `acquire` raise a copy of `error`; return when all are told.

        To be called in the session's event loop. Other tasks run meanwhile: ending 20,000 requests in one
        step of the loop would take seconds.
        """
        self._stopped, self._error = True, error
        for number, scope in enumerate(list(self._scopes), 1):
            if scope in self._scopes and not scope.expired():
                scope.reschedule(0)
            if not number % _STEP:
                await asyncio.sleep(0)

    def leave(self) -> None:
        """Undo `reserve_polls` and `attach`, and leave the sessions that share it; idempotent."""
        engine = self.engine
        if engine.from_parent_process:
            return
        with engine.lock:
            engine.sessions.discard(self._key)
            engine.window.reserve(self._key, None)
            engine.detach(self._key)

    def leave_when_next_session_opens(self, release: Callable[[], None]) -> None:
        """Leave, and call `release`, when the next session is built.

        Safe in a finalizer, which may run while a lock is held.
        """
        _registry.abandoned.append((self, release))


def session_limiter(
    account: str, rate_limiter: RateLimiter | None, clock: Callable[[], float] = time.monotonic
) -> SessionLimiter:
    """Return a session's access to the rate limiter of its key and origin.

    Args:
        account: A name for the key and origin that reveals neither.
        rate_limiter: The rate limiter passed to the session. None means the numbers of the open sessions
            with this key and origin, or those of the API.
        clock: A monotonic clock in seconds, for the first session of the account. Tests pass their own one.

    Raises:
        ConfigurationError: An open session with this key and origin has different numbers.
    """
    return _registry.join(account, rate_limiter, clock)


class _Registry:
    """The rate limit of each key and origin in this process. It outlives its sessions by one window."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.engines: dict[str, Engine] = {}  # by account
        self._shown: WeakKeyDictionary[RateLimiter, WeakSet[Engine]] = WeakKeyDictionary()
        # Of sessions that were never closed: their limiters, and what releases the rest of them.
        self.abandoned: deque[tuple[SessionLimiter, Callable[[], None]]] = deque()

    def engines_of(self, limiter: RateLimiter) -> list[Engine]:
        """Return the engine of each account that a rate limiter was passed for."""
        with self._lock:
            return list(self._shown.get(limiter, ()))

    def join(self, account: str, limiter: RateLimiter | None, clock: Callable[[], float]) -> SessionLimiter:
        """Return the limiter of one more session; see `session_limiter`."""
        while self.abandoned:
            session_left, release = self.abandoned.popleft()
            session_left.leave()
            release()
        with self._lock:
            self.engines = {
                key: engine
                for key, engine in self.engines.items()
                if engine.sessions or engine.used or engine.cooldown_left
            }
            engine = self.engines.get(account)
            if limiter is None and engine is not None and engine.sessions:
                limiter = RateLimiter(engine.window.limit, engine.window.length)
            limiter = limiter or RateLimiter()
            if engine is None:
                engine = self.engines[account] = Engine(limiter.limit, limiter.window, clock)
            elif (engine.window.limit, engine.window.length) != (limiter.limit, limiter.window):
                if engine.sessions:
                    raise ConfigurationError(
                        "rate_limiter: another session with this key and origin is open with other numbers. "
                        "Pass a RateLimiter with the same numbers to both, or none."
                    )
                engine.resize(limiter.limit, limiter.window)
            self._shown.setdefault(limiter, WeakSet()).add(engine)
            return SessionLimiter(engine, limiter)


_registry = _Registry()


def _reset_after_fork() -> None:
    """Forget the state of the parent process without touching it: its threads may hold the locks."""
    global _registry  # noqa: PLW0603
    for engine in _registry.engines.values():
        engine.from_parent_process = True
    _registry = _Registry()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
