"""What the events promise: frozen reports, and a reader that can do no harm."""

import copy
import functools
import logging
import pickle
from datetime import UTC, datetime
from typing import get_args

import pytest

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
    guarded,
)

REQUEST = VideoRequest("img_1", ref="SKU-1")
VIDEO = Video("vid_1", "DONE", JobState.DONE)
ERROR = RequestTimeoutError("no answer")
EVENTS = [
    Submitted("SKU-1", REQUEST, Receipt(("vid_1",))),
    Updated(VIDEO),
    Finished(VIDEO),
    Failed(("vid_1",), ERROR),
    Ambiguous(Intent("int_1", REQUEST, datetime(2026, 3, 20, tzinfo=UTC))),
    RateLimitWait(1.5),
    Retrying("GET /videos", 1, 2.0, ERROR),
    Polled(10, 2, 3),
    Downloading("vid_1", 1024, None),
]


def test_every_kind_of_event_is_in_the_union():
    """Whoever matches on `Event` is told by a type checker what is missing."""
    assert set(get_args(Event)) == {type(event) for event in EVENTS}


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_survives_pickling_and_copying_and_can_be_hashed(event):
    """Events go through queues to other processes; they carry values, never handles."""
    twin = pickle.loads(pickle.dumps(event))  # noqa: S301 - own bytes

    assert repr(twin) == repr(event)
    assert copy.copy(event) == event
    assert hash(event) == hash(copy.copy(event))


def test_a_reader_is_called_with_each_event_in_order():
    """What it returns is of no interest."""
    seen = []
    emit = guarded(seen.append)

    for event in EVENTS:
        emit(event)

    assert seen == EVENTS


def test_what_a_reader_raises_is_logged_and_goes_no_further(caplog):
    """A mistake in a progress bar costs no video, and can be found in the log."""

    def reader(_):
        raise ZeroDivisionError

    guarded(reader)(EVENTS[0])

    (record,) = caplog.records
    assert (record.name, record.levelno) == ("qamera_async", logging.ERROR)
    assert "Submitted" in record.getMessage()
    assert record.exc_info[0] is ZeroDivisionError


def test_ctrl_c_in_a_reader_is_not_swallowed():
    """Only mistakes are the reader's own; a wish to stop is everybody's."""

    def reader(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        guarded(reader)(EVENTS[0])


def test_nobody_watching_is_fine():
    """None gives a function that does nothing."""
    assert guarded(None)(EVENTS[0]) is None


async def coroutine_reader(event):
    """Would never be awaited."""


async def generator_reader(event):
    """Would never be iterated."""
    yield event


class AsyncReader:
    """An object that is called like a coroutine function."""

    async def __call__(self, event):
        """Would never be awaited."""


@pytest.mark.parametrize(
    "reader",
    [coroutine_reader, functools.partial(coroutine_reader), generator_reader, AsyncReader()],
    ids=["coroutine", "partial", "generator", "object"],
)
def test_a_coroutine_function_is_refused_at_once(reader):
    """Otherwise its events would be lost without a word."""
    with pytest.raises(ConfigurationError, match="on_event must be a plain function"):
        guarded(reader)


@pytest.mark.parametrize("reader", [7, "print", []])
def test_what_can_not_be_called_is_refused_at_once(reader):
    """The mistake is found when the session is made, not at the first event."""
    with pytest.raises(ConfigurationError, match="on_event must be a function of one event or None"):
        guarded(reader)
