"""What happened, as frozen values with ids and numbers in them, for whoever watches.

An event is a report, never a handle: to watch can't change what is watched.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import attrs

from .errors import ConfigurationError, shown

if TYPE_CHECKING:
    from ._models import Intent, Receipt, Request, Video
    from .errors import QameraError

_log = logging.getLogger("qamera_async")


@attrs.frozen
class Submitted:
    """A request was accepted, and credits are reserved for it.

    Args:
        ref: The caller's name for it; None if it has none.
        request: What was sent.
        receipt: What the server answered.

    """

    ref: str | None
    request: Request
    receipt: Receipt


@attrs.frozen
class Updated:
    """A record that somebody waits for has changed.

    Args:
        record: What it is now.

    """

    record: Video


@attrs.frozen
class Finished:
    """A record is done.

    Args:
        record: What it is now.

    """

    record: Video


@attrs.frozen
class Failed:
    """A job gave no video.

    Args:
        record_ids: The job's records.
        error: What its waiters get.

    """

    record_ids: tuple[str, ...]
    error: QameraError


@attrs.frozen
class Ambiguous:
    """A paid request whose answer nobody knows.

    Args:
        intent: What was meant, with its candidates.

    """

    intent: Intent


@attrs.frozen
class RateLimitWait:
    """A request waits for room in the quota.

    Args:
        seconds: For how long, as far as is known.

    """

    seconds: float


@attrs.frozen
class Retrying:
    """Something that is safe to send again will be.

    Args:
        what: What is being tried.
        attempt: The number of the attempt that failed, from 1.
        delay: The wait before the next one, in seconds.
        error: What went wrong.

    """

    what: str
    attempt: int
    delay: float
    error: QameraError


@attrs.frozen
class Polled:
    """The list was fetched by this session; a poll that another process makes for it is no event here.

    Args:
        records: How many entries it has.
        changed: How many that are waited for have changed.
        waiting: How many records are waited for.

    """

    records: int
    changed: int
    waiting: int


@attrs.frozen
class Downloading:
    """Bytes of a result were written, or handed on.

    Args:
        record_id: The record whose result it is.
        done: How many bytes there are so far, those of an earlier attempt included.
        total: How many there will be; None where the server doesn't say.

    """

    record_id: str
    done: int
    total: int | None


Event: TypeAlias = (
    Submitted | Updated | Finished | Failed | Ambiguous | RateLimitWait | Retrying | Polled | Downloading
)
"""Everything that can be reported."""

Emit: TypeAlias = Callable[[Event], None]
"""Takes a report and never fails."""


def guarded(on_event: Callable[[Event], object] | None) -> Emit:
    """Give a function that hands events on, whose reader can do no harm.

    Args:
        on_event: Called with each event; what it raises is logged and goes no further. None: nobody watches.

    Raises:
        ConfigurationError: It can't be called, or is a coroutine function, which nobody would await.

    """
    if on_event is None:
        return _ignored
    if not callable(on_event):
        raise ConfigurationError(f"on_event must be a function of one event or None, not {shown(on_event)}.")
    if _is_async(on_event) or _is_async(getattr(on_event, "__call__", None)):  # noqa: B004 - its kind, not if
        raise ConfigurationError(
            f"on_event must be a plain function, not the coroutine function {shown(on_event)}: "
            "nobody would await it. Let it put the event into an asyncio.Queue instead."
        )

    def emit(event: Event) -> None:
        try:
            on_event(event)
        except Exception:
            _log.exception("on_event raised while it was told of %s", type(event).__name__)

    return emit


def _ignored(_: Event) -> None:
    pass


def _is_async(function: object) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
