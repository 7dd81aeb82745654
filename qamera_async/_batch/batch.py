"""`Batch`: many requests at once."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Generator, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import attrs

from .._config import RetryPolicy
from .._models import Record, Request
from ..errors import AmbiguousSubmissionError, ConfigurationError, short_repr
from .limits import CreditLimit, SubmissionLimit
from .runner import BatchAccess, Outcome, Runner


@attrs.frozen
class BatchResult:
    """All outcomes of a batch.

    Args:
        outcomes: One for each request that was submitted or can't be, in the order of the input.
        stopped: Why the batch stopped before the end of its input; None if it read all requests.
        credits_reserved: The credits that the receipts of this batch state. Earlier jobs don't count.
        credits_refunded: The credits of those jobs of this batch that failed.

    """

    outcomes: tuple[Outcome, ...]
    stopped: BaseException | None = None
    credits_reserved: int = 0
    credits_refunded: int = 0

    @property
    def records(self) -> tuple[Record, ...]:
        """The records of all requests that have a result, in the order of the input."""
        return tuple(outcome.unwrap() for outcome in self.outcomes if outcome.ok)

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """The outcomes with an error, in the order of the input."""
        return tuple(outcome for outcome in self.outcomes if not outcome.ok)

    def summary(self) -> str:
        """Return a line with the numbers of outcomes, the credits, and why the batch stopped."""
        failures = self.failures
        ambiguous = sum(isinstance(outcome.error, AmbiguousSubmissionError) for outcome in failures)
        counts = f"{len(self.outcomes) - len(failures)} done, {len(failures) - ambiguous} failed"
        credit = f"{self.credits_reserved} credits reserved, {self.credits_refunded} of them refunded"
        text = f"{counts}, {ambiguous} ambiguous; {credit}."
        if self.stopped is None:
            return text
        return f"{text} Stopped by {type(self.stopped).__name__}: {self.stopped}"


class Batch:
    """Many requests, submitted and awaited together. Made by `QameraSession.batch`.

    ``async for`` yields each `Outcome` as soon as the request has one. ``await`` returns all of them as a
    `BatchResult`, in the order of the input. A batch is consumed once, in one of these ways; nothing is read
    or submitted before. Use ``async with`` to leave a loop early: its end waits until no task is left.

    Requests are read only as far as they can be submitted. At most five submissions are on the wire or being
    reconciled at once. This limit bounds the cost of a failing server, since five ambiguous submissions in a
    row stop the batch. Requests that wait for another process with the same ledger are not counted.

    The batch stops on 401, 402 and 403, at ``max_credits``, after five ambiguous submissions in a row, when
    its iterable raises, when jobs can't be polled, and when the ledger or the session can't be used. Then
    nothing more is submitted, the outcomes of everything paid for are handed out, and the reason is raised
    after the last one, or is in `BatchResult.stopped`. While the server is unreachable, the batch pauses and
    one request at a time tries again.

    If the consumer leaves early or is cancelled, nothing more is read or submitted. What is paid for and was
    not handed out is logged.

    Args:
        access: The session, as far as the batch needs it.
        requests: An iterable or async iterable of requests.
        retry: The delays while the server is unreachable.
        max_in_flight: How many requests may be submitted and not handed out.
        max_credits: The most credits that new submissions of the batch may cost; None means no limit. Only a
            request whose price is not known before its receipt can exceed the limit. Requests that differ in
            kind, provider, number of images or ``extra_body`` may differ in price.
        retry_failed: Whether to submit again what the ledger knows to have failed.
        download_to: The folder for the results. It is created if missing, and ``~`` is expanded. None means
            no downloads.
        overwrite: Whether downloads replace existing files. If not, a request whose file exists is refused
            before it is submitted.
        allow_private: Whether downloads from private addresses are allowed.
        max_downloads: How many downloads may run at once.

    Raises:
        ConfigurationError: A setting is invalid, or ``requests`` is no iterable.

    Example:
        ::

            async with qamera.batch(requests, download_to="clips", max_credits=500) as batch:
                async for outcome in batch:
                    print(outcome.request.ref, outcome.path or outcome.error)

    """

    def __init__(
        self,
        access: BatchAccess,
        requests: Iterable[Request] | AsyncIterable[Request],
        *,
        retry: RetryPolicy,
        max_in_flight: int = 300,
        max_credits: int | None = None,
        retry_failed: bool = False,
        download_to: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
        allow_private: bool = False,
        max_downloads: int = 4,
    ) -> None:
        kinds = ("__aiter__", "__iter__", "__getitem__")
        if isinstance(requests, str | bytes) or not any([hasattr(requests, name) for name in kinds]):
            raise ConfigurationError(
                f"requests must be an iterable or async iterable of requests, not {short_repr(requests)}."
            )
        if max_credits is not None:
            _check_whole_number("max_credits", max_credits, 0)
        self._consumed = False
        self._runner = Runner(
            access=access,
            requests=requests,
            credits=CreditLimit(max_credits),
            limit=SubmissionLimit(retry),
            max_in_flight=_check_whole_number("max_in_flight", max_in_flight, 1),
            retry_failed=retry_failed,
            folder=_check_folder(download_to),
            overwrite=overwrite,
            allow_private=allow_private,
            downloads=asyncio.Semaphore(_check_whole_number("max_downloads", max_downloads, 1)),
        )

    @property
    def submitted(self) -> int:
        """How many submissions of this batch the server has accepted. Earlier jobs don't count."""
        return self._runner.submitted

    @property
    def finished(self) -> int:
        """How many requests have an outcome, handed out or not."""
        return self._runner.finished

    @property
    def credits_reserved(self) -> int:
        """The credits that the receipts of this batch state so far. Earlier jobs don't count."""
        return self._runner.credits.stated

    @property
    def stopped(self) -> BaseException | None:
        """Why the batch submits nothing more; None while it goes on, or if it has read all requests."""
        return self._runner.stopped

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Read and submit nothing more, and wait until no task of the batch is left."""
        self._consumed = True
        await self._runner.leave()

    def __aiter__(self) -> AsyncIterator[Outcome]:
        """Iterate over the outcomes as they finish.

        Raises:
            RuntimeError: The batch was consumed before, or an iteration that was left early is continued.
            BaseException: Why the batch stopped; raised after the last outcome.

        """
        self._consume()
        return _Outcomes(self._runner)

    def __await__(self) -> Generator[object, None, BatchResult]:
        """Return all outcomes, in the order of the input.

        Raises:
            RuntimeError: The batch was consumed before.

        """
        self._consume()
        return self._collect().__await__()

    def _consume(self) -> None:
        if self._consumed:
            raise RuntimeError("A batch can be consumed once: make another one.")
        self._consumed = True

    async def _collect(self) -> BatchResult:
        runner = self._runner
        outcomes: list[Outcome] = []
        try:
            while (outcome := await runner.next()) is not None:
                outcomes.append(outcome)
        except BaseException:
            runner.ready.extend(outcomes)  # nobody gets them, so they are logged
            await runner.leave()
            raise
        outcomes.sort(key=lambda outcome: outcome.index)
        return BatchResult(tuple(outcomes), runner.stopped, runner.credits.stated, runner.refunded)


class _Outcomes:
    """The iterator of one ``async for``; once it is forgotten, the batch reads and submits nothing more."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._reason_raised = False
        weakref.finalize(self, runner.leave_soon).atexit = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Outcome:
        runner = self._runner
        try:
            outcome = await runner.next()
        except BaseException:
            await runner.leave()
            raise
        if outcome is not None:
            return outcome
        if runner.stopped is None or self._reason_raised:
            raise StopAsyncIteration
        self._reason_raised = True
        raise runner.stopped

    async def aclose(self) -> None:
        """Read and submit nothing more, and wait until no task of the batch is left. Idempotent."""
        await self._runner.leave()


def _check_whole_number(name: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigurationError(
            f"{name} must be a whole number of at least {least}, not {short_repr(value)}."
        )
    return value


def _check_folder(path: str | os.PathLike[str] | None) -> Path | None:
    if path is None:
        return None
    try:
        text = os.fspath(path)
        # A lone surrogate can't be part of a file name, nor be written to a ledger or a log.
        if text and "\0" not in text and text.encode():
            return Path(os.path.expanduser(text))  # noqa: PTH111 - Path.expanduser raises if there is no home
    except (AttributeError, TypeError, UnicodeEncodeError):
        pass
    raise ConfigurationError(f"download_to must be the path of a folder or None, not {short_repr(path)}.")
