"""Settings as frozen values, checked where they are made.

This is the only room that imports backoff, and only its generator of doubling waits: what may be sent
again, and when to give up, is decided where the requests are made.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeGuard, cast

import attrs
import backoff

from ._models import JobState
from .errors import ConfigurationError, shown

if TYPE_CHECKING:
    from collections.abc import Callable

_Validator: TypeAlias = "Callable[[Any, attrs.Attribute[Any], Any], None]"

_MEMO_WORDS = 256

_DONE: Final = frozenset({"DONE", "COMPLETED", "SUCCEEDED"})
_FAILED: Final = frozenset(
    {"FAILED", "FAILURE", "ERROR", "CANCELLED", "CANCELED", "ABORTED", "EXPIRED", "TIMED_OUT"}
)
_USUAL_PENDING: Final = frozenset(
    {
        "",
        "PENDING",
        "IN_PROGRESS",
        "RETRY_PENDING",
        "PROCESSING",
        "QUEUED",
        "CREATED",
        "NEW",
        "STARTED",
        "RUNNING",
    }
)


def is_number(value: object) -> TypeGuard[float]:
    """Say whether a value is a number that can be compared with others: no bool, no NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return not math.isnan(value)
    except OverflowError:  # an int beyond every float
        return False


def _seconds(*, zero: bool = False, infinite: bool = False, none: bool = False) -> _Validator:
    allowed = f"{'zero or a' if zero else 'a'} positive number of seconds"
    allowed += " (or math.inf)" if infinite else ""
    allowed += " or None" if none else ""

    def check(policy: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value is None and none:
            return
        good = is_number(value) and (value > 0 or (zero and value == 0)) and (infinite or value < math.inf)
        if not good:
            raise ConfigurationError(
                f"{type(policy).__name__}.{attribute.name} must be {allowed}, not {shown(value)}."
            )

    return check


def _attempts(policy: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(
            f"{type(policy).__name__}.{attribute.name} must be a whole number from 1, not {shown(value)}."
        )


def _doubling(first: float, limit: float) -> Iterator[float]:
    if not first:
        # Nothing doubled stays nothing, but the power of two beside it would outgrow a float.
        return itertools.repeat(0.0)
    delays = backoff.expo(factor=first, max_value=limit)
    delays.send(None)  # backoff's generators give nothing at first
    return map(float, delays)


def _default_from(seconds: float) -> Any:  # noqa: ANN401 - attrs types a factory as what it makes
    # Whoever sets only a long interval means it: the defaults beside it give way.
    def make(policy: PollPolicy) -> float:
        return max(seconds, policy.interval) if is_number(policy.interval) else seconds

    return attrs.Factory(make, takes_self=True)


@attrs.frozen
class PollPolicy:
    """How often the one list is fetched for everybody who waits.

    Args:
        interval: The pause between polls, in seconds.
        stale_after: How old the list may get while submissions queue for the quota, in seconds. At
            least `interval`; unless given, 15 or the interval, whichever is longer.
        max_interval: The longest pause in an outage, in seconds. At least `interval`; unless given, 60
            or the interval, whichever is longer.

    Raises:
        ConfigurationError: A value is no such number of seconds.

    """

    interval: float = attrs.field(default=3.0, validator=_seconds())
    stale_after: float = attrs.field(default=_default_from(15.0), validator=_seconds())
    max_interval: float = attrs.field(default=_default_from(60.0), validator=_seconds())

    def __attrs_post_init__(self) -> None:
        for name, value in (("stale_after", self.stale_after), ("max_interval", self.max_interval)):
            if value < self.interval:
                raise ConfigurationError(
                    f"PollPolicy.{name} must be at least the interval ({self.interval:g}), "
                    f"not {shown(value)}."
                )

    def outage_delays(self) -> Iterator[float]:
        """Give the pauses between polls that fail in a row, endlessly.

        Returns:
            Twice the interval, four times, eight times, ..., in seconds, at most `max_interval`.

        """
        return _doubling(self.interval * 2, self.max_interval)


@attrs.frozen
class RetryPolicy:
    """How what is safe to send again is sent again. Waits for the quota are no attempts.

    Args:
        attempts: How often in all, the first time included.
        base: The first wait, in seconds; it doubles from one to the next. 0: no waiting at all.
        max_delay: The longest wait, in seconds.

    Raises:
        ConfigurationError: A value is no such number.

    """

    attempts: int = attrs.field(default=4, validator=_attempts)
    base: float = attrs.field(default=1.0, validator=_seconds(zero=True))
    max_delay: float = attrs.field(default=60.0, validator=_seconds())

    def delays(self) -> Iterator[float]:
        """Give the waits between attempts, endlessly: whoever asks counts the attempts.

        Returns:
            The base times 1, 2, 4, 8, ..., each with up to half a base of jitter (the API's own advice
            on 429), in seconds, at most `max_delay`.

        """
        return map(self._jittered, _doubling(self.base, self.max_delay))

    def _jittered(self, delay: float) -> float:
        jitter = random.uniform(0, self.base / 2)  # noqa: S311 - spreads requests, guards nothing
        return min(delay + jitter, self.max_delay)


@attrs.frozen
class Timeouts:
    """How long each thing may take, in seconds.

    Args:
        connect: One connection, from the look-up of the name to the end of the TLS handshake.
        request: One exchange, from the first byte sent to the last one read.
        job: One `await job`; math.inf waits without limit.
        appear: How long a new record may be missing from the list; None: as long as one may wait for it.
        missing: How long a record that was seen may be missing.
        reconcile: How long an ambiguous POST is looked into; 0: not at all.
        close: How long closing a session waits for POSTs under way; 0: not at all.

    Raises:
        ConfigurationError: A value is no such number of seconds.

    """

    connect: float = attrs.field(default=10.0, validator=_seconds())
    request: float = attrs.field(default=60.0, validator=_seconds())
    job: float = attrs.field(default=1800.0, validator=_seconds(infinite=True))
    appear: float | None = attrs.field(default=None, validator=_seconds(zero=True, none=True))
    missing: float = attrs.field(default=120.0, validator=_seconds(zero=True))
    reconcile: float = attrs.field(default=30.0, validator=_seconds(zero=True))
    close: float = attrs.field(default=60.0, validator=_seconds(zero=True))


def _words(name: str, values: Iterable[str]) -> frozenset[str]:
    came = cast("object", values)
    if isinstance(came, str | bytes) or not isinstance(came, Iterable):
        raise ConfigurationError(f"StatusRules.{name} must be a set or list of words, not {shown(came)}.")
    words: set[str] = set()
    for word in cast("Iterable[object]", came):
        if not isinstance(word, str) or not word.strip():
            raise ConfigurationError(f"StatusRules.{name} must hold non-empty words, not {shown(word)}.")
        words.add(_plain(word))
    return frozenset(words)


def _done_words(values: Iterable[str]) -> frozenset[str]:
    words = _words("done", values)
    if not words:
        raise ConfigurationError("StatusRules.done must hold at least one word: no job would ever be done.")
    return words


def _failed_words(values: Iterable[str]) -> frozenset[str]:
    return _words("failed", values)


def _plain(word: str) -> str:
    return word.strip().upper()


def _no_memo() -> dict[str, JobState]:
    return {}


@attrs.frozen(repr=False)
class StatusRules:
    """Which status words mean what, letter case aside. Any other word means that the job is pending.

    The API documents only `DONE` (GET /api/external/videos).

    Args:
        done: Words for a job that is finished and has its video.
        failed: Words for a job that is finished and never will.

    Raises:
        ConfigurationError: A word is empty, or in both, or `done` has none.

    """

    done: frozenset[str] = attrs.field(default=_DONE, converter=_done_words)
    failed: frozenset[str] = attrs.field(default=_FAILED, converter=_failed_words)
    _seen: dict[str, JobState] = attrs.field(factory=_no_memo, init=False, eq=False)

    def __attrs_post_init__(self) -> None:
        if both := self.done & self.failed:
            raise ConfigurationError(
                f"StatusRules.done and .failed must have no word in common, not {', '.join(sorted(both))}."
            )

    def __repr__(self) -> str:
        given = [
            f"{name}={{{', '.join(map(repr, sorted(words)))}}}"
            for name, words, default in (("done", self.done, _DONE), ("failed", self.failed, _FAILED))
            if words != default
        ]
        return f"StatusRules({', '.join(given)})"

    def state(self, status: str) -> JobState:
        """Give the meaning of the server's word; PENDING for one that nobody knows.

        Args:
            status: The word as the list has it.

        """
        # Asked for every video of every list, with the same few words.
        state = self._seen.get(status)
        if state is None:
            word = _plain(status)
            if word in self.done:
                state = JobState.DONE
            elif word in self.failed:
                state = JobState.FAILED
            else:
                state = JobState.PENDING
            if len(self._seen) < _MEMO_WORDS:  # words come from the server, so their number is bounded here
                self._seen[status] = state
        return state

    def knows(self, status: str) -> bool:
        """Say whether a word is in the rules or a usual one for a pending job: others deserve a warning.

        Args:
            status: The word as the list has it.

        """
        word = _plain(status)
        return word in self.done or word in self.failed or word in _USUAL_PENDING
