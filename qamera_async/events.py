"""Events: frozen values that a session passes to its `on_event` callback.

::

    from qamera_async import QameraSession
    from qamera_async.events import Event, Finished

    def on_event(event: Event) -> None:
        if isinstance(event, Finished):
            print(event.record.id, "is done")

    session = QameraSession(on_event=on_event)
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import TypeAlias

import attrs

from ._models import Intent, Receipt, Record, Request
from .errors import ConfigurationError, QameraError, short_repr

_log = logging.getLogger("qamera_async")


@attrs.frozen
class Submitted:
    """The server accepted a request and reserved credits for it.

    Args:
        ref: The ref of the request; None if it has none.
        request: The request.
        receipt: The server's receipt.

    """

    ref: str | None
    request: Request
    receipt: Receipt


@attrs.frozen
class Updated:
    """A watched record has changed.

    Args:
        record: The new state of the record.

    """

    record: Record


@attrs.frozen
class Finished:
    """A watched record is done.

    Args:
        record: The final state of the record.

    """

    record: Record


@attrs.frozen
class Failed:
    """A watched record has failed, and with it its job.

    Args:
        record_ids: The id of the record.
        error: Its ``records`` has the final state of the record.

    """

    record_ids: tuple[str, ...]
    error: QameraError


@attrs.frozen
class Ambiguous:
    """The server may or may not have accepted a submission.

    Args:
        intent: The intent of the submission, with its candidates.

    """

    intent: Intent


@attrs.frozen
class RateLimitWait:
    """A request waits for a slot of the rate limit.

    Args:
        seconds: The expected wait, in seconds.

    """

    seconds: float


@attrs.frozen
class Retrying:
    """An attempt failed and will be repeated.

    Args:
        what: The name of the operation, such as "register" or "list_videos".
        attempt: The number of the failed attempt, from 1.
        delay: The wait before the next attempt, in seconds.
        error: The error of the failed attempt.

    """

    what: str
    attempt: int
    delay: float
    error: QameraError


@attrs.frozen
class Polled:
    """The session fetched a list. Polls that another process made for the session are not reported.

    Args:
        records: The number of records in the list.
        changed: The number of watched records that have changed.
        waiting: The number of watched records, each of a job with a waiter.

    """

    records: int
    changed: int
    waiting: int


@attrs.frozen
class Downloading:
    """Bytes of a result were written to a file or passed to the caller.

    Args:
        record_id: The record whose result is downloaded.
        done: The number of bytes so far, including those of earlier attempts.
        total: The size of the result in bytes; None if the server does not say.

    """

    record_id: str
    done: int
    total: int | None


Event: TypeAlias = (
    Submitted | Updated | Finished | Failed | Ambiguous | RateLimitWait | Retrying | Polled | Downloading
)
"""Any event."""

Emit: TypeAlias = Callable[[Event], None]
"""A function that passes an event to `on_event` and logs the exceptions of `on_event`."""


def event_emitter(on_event: Callable[[Event], object] | None) -> Emit:
    """Return a function that passes events to `on_event` and logs its exceptions.

    Any exception is logged and ignored, `asyncio.CancelledError` included. Only `KeyboardInterrupt` and
    `SystemExit` propagate.

    Args:
        on_event: Called with each event; its result is ignored. None: events are dropped.

    Raises:
        ConfigurationError: `on_event` is not callable, or is a coroutine function.

    """
    check_callback("on_event", on_event)

    def emit(event: Event) -> None:
        if on_event is None:
            return
        try:
            on_event(event)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:
            _log.exception("on_event raised an exception for %s", type(event).__name__)

    return emit


def check_callback(name: str, function: object) -> None:
    """Check that a callback is None or a plain function.

    Args:
        name: The name of the parameter, for the message.
        function: The callback.

    Raises:
        ConfigurationError: It is not callable, or is a coroutine function, which would never be awaited.

    """
    if function is None:
        return
    if not callable(function):
        raise ConfigurationError(f"{name} must be a function or None, not {short_repr(function)}.")
    call = getattr(function, "__call__", None)  # noqa: B004 - an object may have an async __call__
    if any(inspect.iscoroutinefunction(f) or inspect.isasyncgenfunction(f) for f in (function, call)):
        raise ConfigurationError(
            f"{name} must be a plain function, not the coroutine function {short_repr(function)}. "
            "Start a task in it, or put its arguments into an asyncio.Queue."
        )
