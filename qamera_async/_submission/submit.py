"""Send a paid POST at most once: claim, slot, mark as sending, send, parse, record.

Once a byte of its body may have left, a submission is never sent again: the API promises to honour no idempotency key
(its section "Every request"). A submission that provably did not leave is retried.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import time
import uuid
from collections.abc import Awaitable, Coroutine, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

import attrs

from .._config import RetryPolicy, Timeouts
from .._models import Intent, Receipt, Record, Request
from .._polling import Poller
from .._protocol import Response, encode_request, is_definite_rejection, kind_of, parse_error, parse_receipt
from .._ratelimit import Priority, SessionLimiter
from .._transport import ApiClient, Attempt, retry
from ..errors import (
    AmbiguousSubmissionError,
    InvalidResponseError,
    LedgerError,
    QameraError,
    SessionClosedError,
    TransportError,
    without_traceback,
)
from ..events import Ambiguous, Emit, RateLimitWait, Submitted
from ..ledger.places import NoLedger
from ..ledger.rows import Row
from .reconcile import Reconciler

_T = TypeVar("_T")
_log = logging.getLogger("qamera_async")

LEASE = 60.0
"""Seconds after which other processes may take a process that shows no sign of life for lost."""


class Claim:
    """The right to send one request, and the state of its submission.

    Attributes:
        intent: What is stored in the ledger before the request is sent.
        kind: The kind of the request, from the table of kinds.
        earlier: The row of an earlier submission that stands for this request; None where there is none.

    """

    __slots__ = (
        "attempt",
        "committed_at",
        "earlier",
        "ended_at",
        "http_request",
        "intent",
        "kind",
        "list_number",
        "may_share_candidates",
        "orphaned",
        "sent_at",
        "task",
    )

    def __init__(self, request: Request) -> None:
        self.kind = kind_of(request)
        self.intent = Intent(str(uuid.uuid4()), request, datetime.now(UTC))
        self.http_request = encode_request(request, self.intent.id)
        self.earlier: Row | None = None
        self.attempt = Attempt()
        self.task: asyncio.Task[Any] | None = None
        self.orphaned = False  # no caller is left to get the result
        self.may_share_candidates = False  # another submission was ambiguous at the same time
        self.committed_at = 0.0  # when the last commit of "sending" began, by `_suspension_clock`
        self.list_number = 0  # the list that was the last one before sending; 0: none is known
        self.sent_at = self.ended_at = 0.0  # by the loop's clock

    @property
    def intent_id(self) -> str:
        """The id of the intent."""
        return self.intent.id

    @property
    def request(self) -> Request:
        """The request that is claimed."""
        return self.intent.request


class Submitter:
    """Send the submissions of a session, each in a task that outlives its caller.

    Args:
        api: Sends single requests to the API.
        limiter: The rate limit that submissions and polls share.
        pollers: The poller of each list, by the path of the list.
        ledger: Stores intents and receipts.
        timeouts: ``reconcile`` and ``close`` apply here.
        retry_policy: How submissions that provably did not leave are retried.
        emit: Is called with `Submitted`, `Ambiguous`, `RateLimitWait` and `Retrying`.
        lease: Seconds after which other processes may take this one for lost. The first byte of a submission leaves
            only while the commit of "sending" is younger than half of it.

    """

    def __init__(
        self,
        api: ApiClient,
        limiter: SessionLimiter,
        pollers: Mapping[str, Poller],
        ledger: NoLedger,
        timeouts: Timeouts,
        retry_policy: RetryPolicy,
        emit: Emit,
        *,
        lease: float = LEASE,
    ) -> None:
        self._api = api
        self._limiter = limiter
        self._pollers = pollers
        self._ledger = ledger
        self._timeouts = timeouts
        self._retry_policy = retry_policy
        self._emit = emit
        self._lease = lease
        self._claims: set[Claim] = set()  # claimed, and without a result yet
        self._closing = False
        self.reconciler = Reconciler(pollers, ledger, timeouts, self._claims)
        self.submissions = 0
        """How many submissions the server has accepted."""

    @property
    def in_flight(self) -> int:
        """How many POSTs are on the wire."""
        return sum(claim.attempt.in_flight for claim in self._claims)

    # --- what callers ask for ---------------------------------------------------------------------

    async def claim(self, request: Request, *, retry_failed: bool = False) -> Claim:
        """Claim a request in the ledger, so that no other process submits it too.

        Args:
            request: The request.
            retry_failed: Claim a request again that the ledger has as failed.

        Returns:
            The claim, to be sent or withdrawn; where its ``earlier`` is set, neither.

        Raises:
            InvalidRequestError: The request can't be sent.
            AmbiguousSubmissionError: An earlier submission of it is ambiguous.
            RefConflictError: The ledger has another request with the same ref.
            LedgerError: The ledger can't be used.
            SessionClosedError: The session is closed, or was closed meanwhile.

        """
        claim = Claim(request)
        self._refuse_if_closing()
        self._claims.add(claim)
        try:
            claim.earlier = await self._run(claim, self._claim(claim, retry_failed=retry_failed))
        except BaseException:
            self._claims.discard(claim)
            raise
        if claim.earlier is not None:
            self._claims.discard(claim)
        return claim

    async def send(self, claim: Claim) -> Receipt:
        """Send a claimed request once and return its receipt.

        A caller that is cancelled before the request reached a connection withdraws it. Afterwards the submission
        runs to its answer, which is in the ledger, in an event and in the log.

        Raises:
            AmbiguousSubmissionError: The server may or may not have accepted the submission.
            LedgerUnavailableError: The receipt could not be stored, and is in the error.
            SessionClosedError: The session was closed before the request was sent.
            asyncio.CancelledError: The claim was withdrawn.
            QameraError: The submission was refused, or provably did not reach the server.

        """
        if claim not in self._claims:
            raise SessionClosedError("The session was closed before the request was sent.")
        return await self._run(claim, self._submit(claim))

    def withdraw(self, claim: Claim) -> None:
        """Give up a claim that may not have reached the server; one that may have runs to its answer."""
        if claim.task is None or claim.task.done():
            self._release(claim)
        elif not claim.attempt.connected:
            claim.task.cancel()

    async def aclose(self) -> None:
        """Withdraw what waits, wait ``Timeouts.close`` seconds for what is on the wire; idempotent.

        A submission that has no answer by then is cut off and ambiguous.
        """
        self._closing = True
        self.reconciler.stop()
        for claim in list(self._claims):
            if claim.task is None or claim.task.done():
                self._release(claim)
            elif not claim.attempt.in_flight and not self.reconciler.is_active(claim):
                claim.task.cancel()
        tasks = [claim.task for claim in self._claims if claim.task is not None]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=self._timeouts.close)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)

    # --- tasks ------------------------------------------------------------------------------------

    async def _run(self, claim: Claim, step: Coroutine[Any, Any, _T]) -> _T:
        """Run a step of a submission in a task that outlives its caller."""
        task = claim.task = asyncio.get_running_loop().create_task(step, name=f"qamera-{claim.intent_id}")
        task.add_done_callback(partial(self._step_done, claim))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                # The task is cancelled by `withdraw` and `aclose` only.
                if self._closing and not _is_being_cancelled():
                    raise SessionClosedError(
                        "The session was closed before the request was sent; nothing was submitted."
                    ) from None
                raise
            claim.orphaned = True
            if task.done():
                self._step_done(claim, task)
            self.withdraw(claim)
            raise

    def _step_done(self, claim: Claim, task: asyncio.Task[Any]) -> None:
        """Log, once, the result of a step that has no caller any more."""
        if not claim.orphaned or task.cancelled():
            return
        claim.orphaned = False
        error = task.exception()
        if error is not None:
            _log.warning("A submission that was cancelled or cut off ended with: %s", error)
        elif isinstance(receipt := task.result(), Receipt):
            _log.warning(
                "A submission was accepted after its caller was cancelled: records %s, order %s, ref %r",
                ", ".join(receipt.record_ids),
                receipt.order_id,
                claim.request.ref,
            )
        else:
            self._release(claim)

    def _refuse_if_closing(self) -> None:
        if self._closing:
            raise SessionClosedError("The session is closed.")

    def _release(self, claim: Claim) -> None:
        """Remove a claim from the ledger that was never sent."""
        if claim in self._claims:
            self._claims.discard(claim)
            self._ledger.withdraw(claim.intent)
            self._ledger.let_go(claim.intent)

    # --- a submission, step by step ---------------------------------------------------------------

    async def _claim(self, claim: Claim, *, retry_failed: bool) -> Row | None:
        try:
            earlier = await self._ledger.claim(claim.intent, retry_failed=retry_failed)
        except AmbiguousSubmissionError:
            self._ledger.let_go(claim.intent)
            raise
        except BaseException:
            self._ledger.withdraw(claim.intent)
            self._ledger.let_go(claim.intent)
            raise
        if earlier is not None:
            self._ledger.let_go(claim.intent)
        return earlier

    async def _submit(self, claim: Claim) -> Receipt:
        try:
            response = await retry(
                "register", partial(self._attempt, claim), self._retry_policy, self._emit, _is_unsent
            )
            return await self._record(claim, response)
        except AmbiguousSubmissionError:
            raise
        except asyncio.CancelledError:
            if claim.attempt.body_sent:
                raise await self._cut_off(claim) from None
            self._ledger.withdraw(claim.intent)
            raise
        except BaseException:
            if not claim.attempt.body_sent:
                self._ledger.withdraw(claim.intent)
            raise
        finally:
            self._claims.discard(claim)
            self._ledger.let_go(claim.intent)

    async def _attempt(self, claim: Claim) -> Response:
        """Send the request; again only after a 429 in the API's shape, which proves that it was refused.

        Raises:
            AmbiguousSubmissionError: No answer, and the server may have got the request.
            QameraError: The server provably did not process the request.

        """
        while True:
            slot = await self._limiter.acquire(Priority.SUBMISSION, self._on_wait)
            try:
                await self._mark_sending(claim)
            except BaseException:
                slot.give_back()
                raise
            try:
                response = await self._api.send(
                    claim.http_request, slot, attempt=claim.attempt, before_body=partial(self._fence, claim)
                )
            except QameraError as error:
                if not claim.attempt.body_sent:
                    self._ledger.unsent(claim.intent)
                    raise
                lost = without_traceback(error)
            else:
                if response.status != 429 or not is_definite_rejection(response):  # noqa: PLR2004
                    return response
                self._ledger.unsent(claim.intent)
                claim.attempt = Attempt()
                if self._limiter.exhausted:
                    raise parse_error(response)
                self._emit(RateLimitWait(self._limiter.cooldown))
                continue
            raise await self._reconcile(claim, lost)

    async def _mark_sending(self, claim: Claim) -> None:
        """Commit that the request is being sent, before its first byte leaves."""
        began = _suspension_clock()
        claim.intent = attrs.evolve(claim.intent, sent_at=datetime.now(UTC))
        await self._ledger.sending(claim.intent)
        claim.committed_at = began
        claim.sent_at = asyncio.get_running_loop().time()
        claim.list_number = self._pollers[claim.kind.records.path].list_number

    async def _fence(self, claim: Claim) -> None:
        """Commit "sending" again where the process stood still since; fails if the intent was resolved meanwhile.

        Another process may take a process without a sign of life for lost, and a person may then abandon its
        submission. So the first byte leaves only while the commit is younger than half the lease.
        """
        while _suspension_clock() - claim.committed_at > self._lease / 2:
            await self._mark_sending(claim)

    def _on_wait(self, seconds: float) -> None:
        self._emit(RateLimitWait(seconds))

    async def _record(self, claim: Claim, response: Response) -> Receipt:
        """Record what the answer proves, and return the receipt.

        Raises:
            AmbiguousSubmissionError: The answer proves neither acceptance nor refusal.
            LedgerUnavailableError: The receipt could not be stored, and is in the error.
            QameraError: The server refused the submission.

        """
        claim.ended_at = asyncio.get_running_loop().time()
        if not 200 <= response.status < 300:  # noqa: PLR2004
            error = parse_error(response)
            if not is_definite_rejection(response):
                raise await self._reconcile(claim, error)
            await self._stored(claim, self._ledger.refused(claim.intent, error))
            raise error
        try:
            receipt = parse_receipt(response)
        except QameraError as error:
            unreadable = without_traceback(error)
        else:
            self.submissions += 1
            self.reconciler.note_receipt(claim, receipt)
            try:
                await self._stored(claim, self._ledger.submitted(claim.intent, receipt))
            except LedgerError as error:
                _log.error("A receipt could not be stored: %s", error)  # noqa: TRY400 - no traceback with locals
                raise
            finally:
                self._emit(Submitted(claim.request.ref, claim.request, receipt))
            return receipt
        raise await self._reconcile(claim, unreadable)

    # --- ambiguous submissions --------------------------------------------------------------------

    async def _reconcile(self, claim: Claim, cause: QameraError) -> AmbiguousSubmissionError:
        claim.ended_at = asyncio.get_running_loop().time()
        return await self._ambiguous(claim, cause, await self.reconciler.reconcile(claim))

    async def _cut_off(self, claim: Claim) -> AmbiguousSubmissionError:
        """The session closes, or the loop ends, before the answer arrived."""
        claim.orphaned = True
        cause = TransportError("The session was closed before the answer arrived.", sent=True)
        return await self._ambiguous(claim, cause, ())

    async def _ambiguous(
        self, claim: Claim, cause: QameraError, candidates: tuple[Record, ...]
    ) -> AmbiguousSubmissionError:
        claim.intent = attrs.evolve(claim.intent, candidates=candidates)
        await self._stored(claim, self._ledger.ambiguous(claim.intent, cause.summary))
        self._emit(Ambiguous(claim.intent))
        return AmbiguousSubmissionError(
            "The submission was sent, and it is not known whether the server accepted it.",
            intent=claim.intent,
            candidates=candidates,
            record_ids=cause.record_ids if isinstance(cause, InvalidResponseError) else (),
            cause=copy.copy(cause),
            may_share_candidates=claim.may_share_candidates,
        )

    async def _stored(self, claim: Claim, writing: Awaitable[None]) -> None:
        """Wait until a fact is in the ledger. A cancellation ends the wait only: the fact is stored all the same."""
        try:
            await writing
        except asyncio.CancelledError:
            claim.orphaned = True


def _is_unsent(error: QameraError) -> bool:
    return isinstance(error, TransportError) and not error.sent and not error.permanent


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _suspension_clock() -> float:
    """Return the seconds of a clock that goes on while the machine is suspended."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()
