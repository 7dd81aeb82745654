"""Many requests at once, bounded: in flight, in credits, and in what a server in trouble may cost."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

from ..errors import ConfigurationError, short_repr
from .folder import checked
from .iterator import Outcomes
from .outcome import BatchResult, Outcome
from .purse import Purse
from .registrar import Seller
from .run import Run
from .source import Source

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterable, Generator, Iterable

    from .._config import RetryPolicy
    from .._models import Request

__all__ = ["Batch", "BatchResult", "Outcome", "Seller"]


class Batch:
    """Many requests; made by ``QameraSession.batch`` and consumed once.

    ``async for`` gives each `Outcome` as soon as there is one, in the memory of those in flight; ``await``
    gives all of them, in the order of the requests, as a `BatchResult`. Nothing is read or submitted before.

    Args:
        seller: The session.
        requests: Any iterable or async iterable of requests; it is read only as far as they can go on.
        retry: How long to pause while the server can't be reached.
        max_in_flight: How many may be submitted and not handed out.
        max_credits: What its new orders may take, in credits; None: no limit. Only the first of each kind may
            pass it, and where its receipt doesn't tell its price, there is no second.
        retry_failed: Whether to order again what a ledger says has failed.
        download_to: A folder for the results, made where there is none, and tried with an empty file before
            anything is read; None: they stay where they are.
        max_downloads: How many downloads may run at a time.

    Raises:
        ConfigurationError: A setting that can't be used, or requests that are no iterable.

    """

    def __init__(
        self,
        seller: Seller,
        requests: Iterable[Request] | AsyncIterable[Request],
        *,
        retry: RetryPolicy,
        max_in_flight: int = 300,
        max_credits: int | None = None,
        retry_failed: bool = False,
        download_to: str | os.PathLike[str] | None = None,
        max_downloads: int = 4,
    ) -> None:
        if max_credits is not None:
            _check("max_credits", max_credits, 0)
        self._consumed = False
        self._purse = Purse(max_credits)
        self._run = Run(
            seller,
            Source(requests),
            self._purse,
            retry=retry,
            max_in_flight=_check("max_in_flight", max_in_flight, 1),
            retry_failed=retry_failed,
            folder=checked(download_to),
            max_downloads=_check("max_downloads", max_downloads, 1),
        )

    def __aiter__(self) -> Outcomes:
        """Give the outcomes as they come.

        Raises:
            RuntimeError: It was consumed before, or what this gave is gone on with after it was left early.
            BaseException: After the last outcome, why the batch stopped.

        """
        self._consume()
        return Outcomes(self._run)

    def __await__(self) -> Generator[object, None, BatchResult]:
        """Give all outcomes, in the order given.

        Raises:
            RuntimeError: It was consumed before.

        """
        self._consume()
        return self._collect().__await__()

    def _consume(self) -> None:
        if self._consumed:
            raise RuntimeError("A batch can be consumed once: make another one.")
        self._consumed = True

    async def _collect(self) -> BatchResult:
        collected: list[Outcome] = []
        try:
            async with aclosing(self._run.outcomes(raising=False)) as outcomes:
                async for outcome in outcomes:
                    collected.append(outcome)  # noqa: PERF401 - what came before a cancellation counts
        except BaseException:
            self._run.log_left(collected)
            raise
        collected.sort(key=lambda outcome: outcome.index)
        return BatchResult(tuple(collected), self._run.stopped, self._purse.reserved, self._run.refunded)


def _check(name: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigurationError(f"{name} must be a whole number from {least}, not {short_repr(value)}.")
    return value
