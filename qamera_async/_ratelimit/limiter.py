"""The rate limiter as users see it, and which sessions of this process share one."""

from __future__ import annotations

import asyncio
import copy
import os
import threading
from collections import deque
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from ..errors import ConfigurationError
from .engine import Engine

if TYPE_CHECKING:
    from collections.abc import Callable

    from .engine import Slot
    from .shared import SharedSlots
    from .window import Priority

_LONGEST_WINDOW = 1e9  # seconds


class RateLimiter:
    """The API's rate limit as a live object: at most ``limit`` requests in any ``window`` seconds.

    The defaults are those of the API, section "Every request": all requests of a key count, GET and POST.
    Sessions of one process with the same key and origin share one rate limiter by themselves, and two rate
    limiters with equal numbers count as one. It may be used from any thread. A forked process begins with an
    unused one.

    Example:
        >>> limiter = RateLimiter(limit=30)
        >>> limiter.limit, limiter.used, limiter.cooldown
        (30, 0, 0.0)

    Args:
        limit: requests in a window, at least 1.
        window: length of the window in seconds, at most 1e9.

    Raises:
        ConfigurationError: ``limit`` or ``window`` is out of range.
    """

    __slots__ = ("__weakref__", "_limit", "_window")

    def __init__(self, limit: int = 60, window: float = 60.0) -> None:
        if type(limit) is not int or limit < 1:
            raise ConfigurationError(f"limit must be a whole number of at least 1, got {limit!r}.")
        if not _is_window(window):
            raise ConfigurationError(
                f"window must be a number of seconds above 0 and at most {_LONGEST_WINDOW:g}, got {window!r}."
            )
        self._limit = limit
        self._window = float(window)

    def __repr__(self) -> str:
        return f"RateLimiter(limit={self.limit}, window={self.window}, used={self.used})"

    @property
    def limit(self) -> int:
        """Requests allowed in one window."""
        return self._limit

    @property
    def window(self) -> float:
        """Length of the window in seconds."""
        return self._window

    @property
    def used(self) -> int:
        """Slots that are taken now: requests in flight and those of the last window."""
        return _registry.engine(self).used

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot."""
        return _registry.engine(self).waiting

    @property
    def cooldown(self) -> float:
        """Seconds until the pause after a 429 ends; 0 if there is none."""
        return _registry.engine(self).cooldown


def _is_window(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 < value <= _LONGEST_WINDOW


def limiter_of(engine: Engine) -> RateLimiter:
    """Return a RateLimiter that shows an engine; tests pass an engine with a clock of their own."""
    limiter = RateLimiter(engine.limit, engine.window)
    _registry.assign(limiter, engine)
    return limiter


class SessionLimiter:
    """One session's access to the rate limiter that it shares with others; made by ``session_limiter``.

    ``rate_limiter`` shows the shared state.

    Args:
        account: a name for the key and origin that reveals neither.
        rate_limiter: the rate limiter that was passed to the session; None if none was.

    Raises:
        ConfigurationError: an open session with this key and origin has different numbers.
    """

    def __init__(self, account: str, rate_limiter: RateLimiter | None) -> None:
        self._account = account
        self._error: Exception | None = None
        self._pending: set[asyncio.Timeout] = set()
        self._slots: SharedSlots | None = None
        self._open = True
        self._registry = _registry
        self.rate_limiter, self._engine = self._registry.join(account, rate_limiter)

    async def acquire(self, priority: Priority, on_wait: Callable[[float], None] | None = None) -> Slot:
        """Wait for a slot. Cancelling leaks none.

        Args:
            priority: SUBMISSION goes first; some slots are kept for POLL all the same.
            on_wait: called with a lower bound of the seconds to wait, if no slot is free. It may be called
                again when another process took the slot.

        Raises:
            Exception: a copy of the error that was passed to ``stop``, or an error of the shared slots.
        """
        if self._error is not None:
            raise copy.copy(self._error)
        engine = self._engine
        slot = engine.acquire_nowait(priority)
        if slot is not None:
            return slot
        scope = asyncio.timeout(None)  # stop() lets it expire
        self._pending.add(scope)
        try:
            async with scope:
                slot = await engine.acquire(priority, on_wait)
        except TimeoutError:
            if not scope.expired():
                raise  # an error of the shared slots
        finally:
            self._pending.discard(scope)
        if slot is not None and self._error is None:
            return slot
        if slot is not None:
            slot.give_back()
        assert self._error is not None  # noqa: S101 - the scope expires after stop() only
        raise copy.copy(self._error)

    def poll_delay(self, interval: float, stale_after: float) -> float:
        """Return the seconds to pause before the next poll, so that polls spread over the slots left.

        The pause is the time to the next free slot divided by the free slots, between the two arguments.

        Args:
            interval: the pause while enough slots are free, in seconds.
            stale_after: the longest pause that the rate limit may cause, in seconds.
        """
        return self._engine.poll_delay(interval, stale_after)

    def reserve_polls(self, stale_after: float) -> None:
        """Keep ``min(window / stale_after, limit // 2)`` slots of each window for polls; idempotent.

        Args:
            stale_after: the age in seconds up to which a list may get while submissions wait.
        """
        self._engine.reserve(self, stale_after)

    def attach(self, slots: SharedSlots) -> None:
        """Share the rate limit with other processes: take each slot in ``slots`` too from now on."""
        engine = self._engine
        self.detach()
        self._slots = slots
        engine.attach(slots)

    def detach(self) -> None:
        """Undo ``attach``; idempotent."""
        engine = self._engine
        slots, self._slots = self._slots, None
        if slots is not None:
            engine.detach(slots)

    @property
    def cooldown(self) -> float:
        """Seconds until the pause after a 429 ends; 0 if there is none."""
        return self._engine.cooldown

    @property
    def exhausted(self) -> bool:
        """Whether all responses of the last five windows were 429: give up with RateLimitError."""
        return self._engine.exhausted

    def stop(self, error: Exception) -> None:
        """Let pending and later calls of ``acquire`` raise a copy of ``error``.

        To be called in the session's event loop.
        """
        self._error = error
        for scope in self._pending:
            if not scope.expired():
                scope.reschedule(0)

    def leave(self) -> None:
        """Undo ``reserve_polls`` and ``attach``, and leave the sessions that share it; idempotent."""
        if not self._open:
            return
        self._open = False
        if self._registry is not _registry:
            return  # forked since: this process never joined
        self.detach()
        self._engine.release(self)
        self._registry.leave(self._account)

    def leave_later(self, release: Callable[[], None]) -> None:
        """Leave, and call ``release``, when the next session is built.

        Safe in a finalizer, which may run while a lock is held.
        """
        self._registry.abandoned.append((self, release))


def session_limiter(account: str, rate_limiter: RateLimiter | None) -> SessionLimiter:
    """Return a session's access to the rate limiter of its key and origin.

    Args:
        account: a name for the key and origin that reveals neither.
        rate_limiter: the rate limiter passed to the session. None means the one of the open sessions with
            this key and origin, or one with the API's numbers.

    Raises:
        ConfigurationError: an open session with this key and origin has different numbers.
    """
    return SessionLimiter(account, rate_limiter)


# --- which sessions share a rate limiter ----------------------------------------------------------


class _Entry:
    """The engine of a key and origin. It outlives its sessions by one window."""

    __slots__ = ("engine", "sessions")

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.sessions = 0


class _Registry:
    """The engines of this process: those of rate limiters, and those of keys and origins."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._engines: WeakKeyDictionary[RateLimiter, Engine] = WeakKeyDictionary()
        self._entries: dict[str, _Entry] = {}
        # Of sessions that were never closed: their limiters, and what releases the rest of them.
        self.abandoned: deque[tuple[SessionLimiter, Callable[[], None]]] = deque()

    def engine(self, limiter: RateLimiter) -> Engine:
        """Return the engine of a limiter."""
        with self._lock:
            engine = self._engines.get(limiter)
            if engine is None:
                engine = self._engines[limiter] = Engine(limiter.limit, limiter.window)
            return engine

    def assign(self, limiter: RateLimiter, engine: Engine) -> None:
        """Let a limiter show another engine."""
        with self._lock:
            self._engines[limiter] = engine

    def join(self, account: str, limiter: RateLimiter | None) -> tuple[RateLimiter, Engine]:
        """Count one more session, and return its limiter and engine."""
        while self.abandoned:
            limiter_left, release = self.abandoned.popleft()
            limiter_left.leave()
            release()
        with self._lock:
            self._drop_idle(account)
            entry = self._entries.get(account)
            if limiter is None:
                open_entry = entry is not None and entry.sessions
                limiter = limiter_of(entry.engine) if entry is not None and open_entry else RateLimiter()
            if entry is None:
                entry = self._entries[account] = _Entry(self.engine(limiter))
            else:
                self._unite(entry, limiter)
            entry.sessions += 1
            return limiter, entry.engine

    def leave(self, account: str) -> None:
        """Count one session less."""
        with self._lock:
            self._entries[account].sessions -= 1

    def _unite(self, entry: _Entry, limiter: RateLimiter) -> None:
        """Let an entry and a limiter have one engine."""
        old, new = entry.engine, self.engine(limiter)
        if old is new:
            return
        others = [other for other in self._entries.values() if other is not entry]
        in_use = any(other.engine is new and other.sessions for other in others)
        equal = (old.limit, old.window, old.clock) == (new.limit, new.window, new.clock)
        if equal and not in_use:
            self.assign(limiter, old)
        elif entry.sessions:
            raise ConfigurationError(
                "rate_limiter: another session with this key and origin is open with a different one. "
                "Pass the same RateLimiter to both, or none."
            )
        else:
            # No session is open, so other numbers are allowed. The requests that were sent still count.
            new.take_over(old, move=not any(other.engine is old for other in others))
            entry.engine = new

    def _drop_idle(self, account: str) -> None:
        for other in [
            key
            for key, entry in self._entries.items()
            if key != account and not entry.sessions and not entry.engine.used and not entry.engine.cooldown
        ]:
            del self._entries[other]


_registry = _Registry()


def _reset_after_fork() -> None:
    """Forget the state of the parent process without touching it: its threads may hold the locks."""
    global _registry  # noqa: PLW0603
    _registry = _Registry()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
