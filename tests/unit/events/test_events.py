"""Events and the callbacks that receive them."""

import asyncio
import copy
import functools
import inspect
import logging
import pickle
import typing
from datetime import UTC, datetime
from unittest.mock import AsyncMock

import attrs
import pytest
from cattrs.preconf.json import make_converter

from qamera_async._models import Intent, JobState, Receipt, Video, VideoRequest
from qamera_async.errors import ConfigurationError, RequestTimeoutError
from qamera_async.events import (
    Ambiguous,
    Downloading,
    Event,
    Failed,
    Finished,
    Polled,
    RateLimitWait,
    Retrying,
    Submitted,
    Updated,
    check_callback,
    event_emitter,
)

REQUEST = VideoRequest("img_1", ref="SKU-1", extra_body={"seed": 7})
VIDEO = Video("vid_1", "DONE", JobState.DONE)
ERROR = RequestTimeoutError("no answer")
EVENTS = [
    Submitted("SKU-1", REQUEST, Receipt(("vid_1",))),
    Updated(VIDEO),
    Finished(VIDEO),
    Failed(("vid_1",), ERROR),
    Ambiguous(Intent("int_1", REQUEST, datetime(2026, 3, 20, tzinfo=UTC))),
    RateLimitWait(1.5),
    Retrying("list_videos", 1, 2.0, ERROR),
    Polled(10, 2, 3),
    Downloading("vid_1", 1024, None),
]


def by_type(value):
    return type(value).__name__


def test_every_event_class_is_in_the_union():
    assert set(typing.get_args(Event)) == {type(event) for event in EVENTS}


@pytest.mark.parametrize("event", EVENTS, ids=by_type)
def test_event_survives_pickling_and_copying_and_is_hashable(event):
    twin = pickle.loads(pickle.dumps(event))  # noqa: S301 - own bytes

    assert repr(twin) == repr(event)
    assert copy.copy(event) == event
    assert hash(event) == hash(copy.copy(event))


@pytest.mark.parametrize("event", EVENTS, ids=by_type)
def test_annotations_resolve_at_run_time(event):
    fields = {field.name for field in attrs.fields(attrs.resolve_types(type(event)))}

    assert fields == typing.get_type_hints(type(event)).keys()
    assert fields == inspect.signature(type(event), eval_str=True).parameters.keys()


@pytest.mark.parametrize("event", EVENTS, ids=by_type)
def test_cattrs_turns_an_event_into_json(event):
    assert make_converter().dumps(event).startswith("{")


@pytest.mark.parametrize(
    "event", [event for event in EVENTS if not isinstance(event, Failed | Retrying)], ids=by_type
)
def test_cattrs_restores_an_event_from_json(event):
    converter = make_converter()

    assert converter.loads(converter.dumps(event), type(event)) == event


@pytest.mark.parametrize("event", [Failed(("vid_1",), ERROR), Retrying("list_videos", 1, 2.0, ERROR)])
def test_cattrs_restores_the_message_of_an_error_in_an_event(event):
    converter = make_converter()

    assert converter.loads(converter.dumps(event), type(event)).error.message == "no answer"


def test_callback_receives_events_in_order():
    received = []
    emit = event_emitter(received.append)

    for event in EVENTS:
        emit(event)

    assert received == EVENTS


@pytest.mark.parametrize("exception", [ZeroDivisionError, asyncio.CancelledError, GeneratorExit])
def test_exception_of_the_callback_is_logged_and_ignored(caplog, exception):
    def on_event(_):
        raise exception

    event_emitter(on_event)(EVENTS[0])

    (record,) = caplog.records
    assert (record.name, record.levelno) == ("qamera_async", logging.ERROR)
    assert "Submitted" in record.getMessage()
    assert record.exc_info[0] is exception


async def test_callback_that_raises_cancelled_error_does_not_cancel_the_task():
    def on_event(_):
        raise asyncio.CancelledError

    async def register():
        event_emitter(on_event)(EVENTS[0])
        await asyncio.sleep(0)
        return "receipt"

    assert await asyncio.create_task(register()) == "receipt"


@pytest.mark.parametrize("exception", [KeyboardInterrupt, SystemExit])
def test_keyboard_interrupt_and_system_exit_propagate(exception):
    def on_event(_):
        raise exception

    with pytest.raises(exception):
        event_emitter(on_event)(EVENTS[0])


def test_without_a_callback_events_are_dropped():
    assert event_emitter(None)(EVENTS[0]) is None


async def coroutine_callback(event):
    """Do nothing."""


async def generator_callback(event):
    yield event


class AsyncCallable:
    """An object with an async __call__."""

    async def __call__(self, event):
        """Do nothing."""


@pytest.mark.parametrize(
    "callback",
    [
        coroutine_callback,
        functools.partial(coroutine_callback),
        generator_callback,
        AsyncCallable(),
        AsyncCallable().__call__,
        AsyncMock(),
    ],
    ids=["function", "partial", "generator", "object", "method", "mock"],
)
def test_coroutine_function_is_refused(callback):
    with pytest.raises(ConfigurationError, match="on_event must be a plain function"):
        event_emitter(callback)
    with pytest.raises(ConfigurationError, match="on_progress must be a plain function"):
        check_callback("on_progress", callback)


@pytest.mark.parametrize("callback", [7, "print", []])
def test_object_that_is_not_callable_is_refused(callback):
    with pytest.raises(ConfigurationError, match="on_event must be a function or None"):
        event_emitter(callback)
    with pytest.raises(ConfigurationError, match="on_progress must be a function or None"):
        check_callback("on_progress", callback)


@pytest.mark.parametrize("callback", [None, print, [].append, lambda done, total: None])
def test_plain_callables_are_accepted(callback):
    check_callback("on_progress", callback)
