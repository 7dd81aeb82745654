"""Settings: frozen values that are validated when they are built."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, TypeAlias, cast

import attrs
import backoff

from ._models import JobState
from .errors import ConfigurationError, is_number, short_repr

_Validator: TypeAlias = Callable[[Any, "attrs.Attribute[Any]", Any], None]

_DONE: Final = frozenset({"DONE", "COMPLETED", "SUCCEEDED"})
_FAILED: Final = frozenset(
    {"FAILED", "FAILURE", "ERROR", "CANCELLED", "CANCELED", "ABORTED", "EXPIRED", "TIMED_OUT"}
)
_USUAL_PENDING: Final = frozenset(
    (
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
    )
)


def _seconds(*, zero: bool = False, infinite: bool = False, none: bool = False) -> _Validator:
    allowed = f"{'zero or a' if zero else 'a'} positive number of seconds"
    allowed += " (or math.inf)" if infinite else ""
    allowed += " or None" if none else ""

    def check(policy: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value is None and none:
            return
        valid = is_number(value) and (value > 0 or (zero and value == 0)) and (infinite or value < math.inf)
        if not valid:
            raise ConfigurationError(
                f"{type(policy).__name__}.{attribute.name} must be {allowed}, not {short_repr(value)}."
            )

    return check


def _positive_int(policy: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(
            f"{type(policy).__name__}.{attribute.name} must be a positive int, not {short_repr(value)}."
        )


def _doubling(first: float, limit: float) -> Iterator[float]:
    if not first:
        return itertools.repeat(0.0)  # expo() would raise OverflowError after 1,024 delays
    delays = backoff.expo(factor=first, max_value=limit)
    delays.send(None)  # the first value of expo() is None
    return map(float, delays)


def _at_least_interval(seconds: float) -> Any:  # noqa: ANN401 - attrs types a factory as its result
    def default(policy: PollPolicy) -> float:
        return max(seconds, policy.interval) if is_number(policy.interval) else seconds

    return attrs.Factory(default, takes_self=True)


@attrs.frozen
class PollPolicy:
    """How often a list is polled.

    Args:
        interval: The pause between polls, in seconds.
        stale_after: The maximum age of a list while submissions queue for the rate limit, in seconds. At
            least `interval`. Default: 15 or `interval`, whichever is longer.
        max_interval: The longest pause in an outage, in seconds. At least `interval`. Default: 60 or
            `interval`, whichever is longer.

    Raises:
        ConfigurationError: A value is invalid.

    Example:
        >>> PollPolicy(interval=20)
        PollPolicy(interval=20, stale_after=20, max_interval=60.0)

    """

    interval: float = attrs.field(default=3.0, validator=_seconds())
    stale_after: float = attrs.field(default=_at_least_interval(15.0), validator=_seconds())
    max_interval: float = attrs.field(default=_at_least_interval(60.0), validator=_seconds())

    def __attrs_post_init__(self) -> None:
        for name, value in (("stale_after", self.stale_after), ("max_interval", self.max_interval)):
            if value < self.interval:
                raise ConfigurationError(
                    f"PollPolicy.{name} must be at least interval={self.interval:g}, not {short_repr(value)}."
                )

    def outage_delays(self) -> Iterator[float]:
        """Return an endless iterator of the pauses after consecutive failed polls.

        Returns:
            2, 4, 8, ... times `interval`, in seconds, at most `max_interval`.

        """
        return _doubling(self.interval * 2, self.max_interval)


@attrs.frozen
class RetryPolicy:
    """How operations that are safe to repeat are retried. Waiting for the rate limit is not an attempt.

    Args:
        attempts: The number of attempts, including the first.
        base: The wait before the second attempt, in seconds; it doubles with each attempt. 0: no waits.
        max_delay: The longest wait, in seconds.

    Raises:
        ConfigurationError: A value is invalid.

    Example:
        >>> RetryPolicy(attempts=2)
        RetryPolicy(attempts=2, base=1.0, max_delay=60.0)

    """

    attempts: int = attrs.field(default=4, validator=_positive_int)
    base: float = attrs.field(default=1.0, validator=_seconds(zero=True))
    max_delay: float = attrs.field(default=60.0, validator=_seconds())

    def delays(self) -> Iterator[float]:
        """Return an endless iterator of the waits between attempts. The caller counts the attempts.

        Returns:
            1, 2, 4, 8, ... times `base`, each plus a random jitter of up to half of `base` (the API's section
            "Every request", 429), in seconds, at most `max_delay`.

        """
        return map(self._with_jitter, _doubling(self.base, self.max_delay))

    def _with_jitter(self, delay: float) -> float:
        jitter = random.uniform(0, self.base / 2)  # noqa: S311 - not for security
        return min(delay + jitter, self.max_delay)


@attrs.frozen
class Timeouts:
    """How long operations may take, in seconds.

    Args:
        connect: One connection: name lookup, TCP and TLS handshake.
        request: One exchange with the API, from the start of connecting to the last byte of the response.
        job: One `await job`; math.inf means no limit.
        appear: How long a new record may be absent from its list; None means as long as the wait for the job.
        missing: How long a record may be absent that was listed before.
        reconcile: How long the library looks for the records of an ambiguous submission; 0 means not at all.
        url: How long a new URL may be refused by the host of the file; 0 means that a refusal is final.
        close: How long `aclose()` waits for submissions that are being sent; 0 means not at all.

    Raises:
        ConfigurationError: A value is invalid.

    Example:
        >>> Timeouts(job=3600).job
        3600

    """

    connect: float = attrs.field(default=10.0, validator=_seconds())
    request: float = attrs.field(default=60.0, validator=_seconds())
    job: float = attrs.field(default=1800.0, validator=_seconds(infinite=True))
    appear: float | None = attrs.field(default=None, validator=_seconds(zero=True, none=True))
    missing: float = attrs.field(default=120.0, validator=_seconds(zero=True))
    reconcile: float = attrs.field(default=30.0, validator=_seconds(zero=True))
    url: float = attrs.field(default=30.0, validator=_seconds(zero=True))
    close: float = attrs.field(default=60.0, validator=_seconds(zero=True))


def _words(name: str, values: Iterable[str]) -> frozenset[str]:
    given = cast("object", values)
    iterable = isinstance(given, Iterable) and not isinstance(given, str | bytes)
    words: list[object] = [*values] if iterable else [None]
    if not all(isinstance(word, str) and word.strip() for word in words):
        raise ConfigurationError(
            f"StatusRules.{name} must be a set or list of non-empty words, not {short_repr(values)}."
        )
    return frozenset(word.strip().upper() for word in cast("list[str]", words))


def _done_words(values: Iterable[str]) -> frozenset[str]:
    return _words("done", values)


def _failed_words(values: Iterable[str]) -> frozenset[str]:
    return _words("failed", values)


@attrs.frozen(repr=False)
class StatusRules:
    """Which statuses are final. Any other status means that the job is pending; letter case is ignored.

    The API documents only `DONE` (GET /api/external/videos).

    Args:
        done: Statuses of jobs that are finished and have their result.
        failed: Statuses of jobs that are finished without a result.

    Raises:
        ConfigurationError: A word is empty, or in both sets, or `done` is empty.

    Example:
        >>> StatusRules(done={"READY"}).state("ready")
        <JobState.DONE: 'done'>

    """

    done: frozenset[str] = attrs.field(default=_DONE, converter=_done_words)
    failed: frozenset[str] = attrs.field(default=_FAILED, converter=_failed_words)
    _states: Mapping[str, JobState] = attrs.field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        if not self.done:
            raise ConfigurationError("StatusRules.done must have at least one word, or no job could be done.")
        if both := self.done & self.failed:
            raise ConfigurationError(
                f"StatusRules.done and .failed must have no word in common, not {', '.join(sorted(both))}."
            )
        states = dict.fromkeys(_USUAL_PENDING, JobState.PENDING)
        states |= dict.fromkeys(self.failed, JobState.FAILED) | dict.fromkeys(self.done, JobState.DONE)
        object.__setattr__(self, "_states", states)  # as attrs documents for frozen classes

    def __repr__(self) -> str:
        given = [
            f"{name}={{{', '.join(map(repr, sorted(words)))}}}"
            for name, words, default in (("done", self.done, _DONE), ("failed", self.failed, _FAILED))
            if words != default
        ]
        return f"StatusRules({', '.join(given)})"

    def state(self, status: str) -> JobState | None:
        """Return the meaning of a status; None for an unknown one, which counts as pending.

        Args:
            status: The status as the server lists it.

        """
        return self._states.get(status.strip().upper())
