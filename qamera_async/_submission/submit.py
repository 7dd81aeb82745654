"""Send a paid POST at most once: claim, slot, mark as sending, send, parse, record.

Once a byte of its body may have left, a submission is never sent again: the API does not promise to honour an
idempotency key (its section "Every request"). A submission that provably did not leave is retried.
"""

from __future__ import annotations

import asyncio
import logging
import math
import traceback
from collections.abc import Coroutine, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

import attrs

from .._config import RetryPolicy, Timeouts
from .._models import Receipt, Request
from .._polling import Poller
from .._protocol import Response, is_definite_rejection, parse_error, parse_receipt
from .._ratelimit import Priority, SessionLimiter
from .._transport import ApiClient, Attempt, retry
from ..errors import (
    AmbiguousSubmissionError,
    InvalidResponseError,
    QameraError,
    SessionClosedError,
    TransportError,
    is_unsent,
    without_traceback,
)
from ..events import Ambiguous, Emit, RateLimitWait, Submitted
from ..ledger.places import NoLedger
from .claim import Claim, suspension_clock
from .reconcile import Reconciler

_T = TypeVar("_T")
_log = logging.getLogger("qamera_async")

LEASE = 60.0
"""Seconds without a heartbeat after which other processes may treat a process as dead."""

_TOO_MANY_REQUESTS = 429
_CANCEL_INTERVAL = 1.0  # seconds between repeated cancellations in `Submitter.aclose`


@attrs.define(eq=False)
class Submitter:
    """Send the submissions of a session, each in a task that outlives its caller.

    Args:
        api: Sends single requests to the API.
        limiter: The rate limit that submissions and polls share.
        pollers: The poller of each list, by the path of the list.
        ledger: Stores intents and receipts.
        timeouts: ``reconcile`` and ``close`` apply here.
        retry_policy: How submissions that provably were not sent are retried.
        emit: Called with `Submitted`, `Ambiguous`, `RateLimitWait` and `Retrying`.
        lease: Seconds without a heartbeat after which other processes may treat this process as dead. The
            first byte of a submission leaves only while the commit of "sending" is younger than half the
            lease. Tests pass a short lease.

    """

    _api: ApiClient
    _limiter: SessionLimiter
    _pollers: Mapping[str, Poller]
    _ledger: NoLedger
    _timeouts: Timeouts
    _retry_policy: RetryPolicy
    _emit: Emit
    _lease: float = attrs.field(default=LEASE, kw_only=True)
    _claims: set[Claim] = attrs.field(factory=set[Claim], init=False)  # those without a result
    _closing: bool = attrs.field(default=False, init=False)
    reconciler: Reconciler = attrs.field(init=False)
    submissions: int = attrs.field(default=0, init=False)
    """The number of submissions that the server has accepted."""
    credits_reserved: int = attrs.field(default=0, init=False)
    """The sum of the credits that the receipts of these submissions state."""

    def __attrs_post_init__(self) -> None:
        self.reconciler = Reconciler(self._pollers, self._ledger, self._timeouts, self._claims)

    # --- interface --------------------------------------------------------------------------------

    async def claim(self, request: Request, *, retry_failed: bool = False) -> Claim:
        """Claim a request in the ledger, so that no other process submits it too.

        Cancelling the caller releases the claim.

        Args:
            request: The request.
            retry_failed: Claim a request again that failed according to the ledger.

        Returns:
            The claim. Send or withdraw it, unless its ``earlier`` is set.

        Raises:
            InvalidRequestError: The request is invalid.
            AmbiguousSubmissionError: An earlier submission of it is ambiguous.
            RefConflictError: The ledger has another request with the same ref.
            LedgerError: The ledger can't be read or written.
            SessionClosedError: The session is closed, or was closed during the call.

        """
        claim = Claim(request)
        if self._closing:
            raise SessionClosedError("The session is closed.")
        self._claims.add(claim)
        await self._run(claim, self._claim(claim, retry_failed=retry_failed))
        return claim

    async def send(self, claim: Claim) -> Receipt:
        """Send a claimed request and return its receipt. Call it once for each claim.

        Cancelling the caller before a byte was sent withdraws the request. After that, the submission
        continues until its response. The receipt is then stored in the ledger, emitted as
        `Submitted` and logged as a warning.

        Raises:
            AmbiguousSubmissionError: The server may or may not have accepted the submission.
            LedgerUnavailableError: The receipt could not be stored, and is in the error.
            SessionClosedError: The session was closed before the request was sent.
            asyncio.CancelledError: The claim was withdrawn before the request was sent.
            QameraError: The submission was refused, or provably did not reach the server.
            RuntimeError: The claim was sent before.

        """
        if claim.send_called:
            raise RuntimeError("A claim can be sent only once.")
        if claim not in self._claims:
            raise self._withdrawn_error()
        claim.send_called = True
        return await self._run(claim, self._submit(claim))

    def withdraw(self, claim: Claim) -> None:
        """Withdraw a claim; idempotent.

        `send` then raises `asyncio.CancelledError`, unless a byte of the request may have been sent. Then
        it continues until its response.
        """
        claim.withdrawn = True
        if claim.task is None or claim.task.done():
            self._end(claim, unsent=True)
        elif not claim.attempt.body_sent:
            claim.attempt.withdrawn = True
            claim.task.cancel()

    async def aclose(self) -> None:
        """Withdraw the submissions that provably were not sent, and wait for the others; idempotent.

        A submission without a response after ``Timeouts.close`` seconds is cancelled and becomes ambiguous.
        """
        self._closing = True
        self.reconciler.stop()
        for claim in list(self._claims):
            self.withdraw(claim)
        running = {claim.task for claim in self._claims if claim.task is not None}
        timeout = self._timeouts.close
        while running:
            _, running = await asyncio.wait(running, timeout=timeout)
            for task in running:
                task.cancel()
            # If the ledger does not respond either, each of its operations must be cancelled.
            timeout = _CANCEL_INTERVAL

    # --- tasks ------------------------------------------------------------------------------------

    async def _run(self, claim: Claim, step: Coroutine[Any, Any, _T]) -> _T:
        """Run a step of a submission in a task that outlives its caller."""
        task = claim.task = asyncio.get_running_loop().create_task(
            step, name=f"qamera-submit-{claim.intent.id}"
        )
        task.add_done_callback(partial(self._on_step_done, claim))
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            claim.log_result = True
            if task.done():
                self._on_step_done(claim, task)
            self.withdraw(claim)
            raise
        if task.cancelled():
            raise self._withdrawn_error()
        result: _T = task.result()
        return result

    def _on_step_done(self, claim: Claim, task: asyncio.Task[Any]) -> None:
        """Release the claim, or log the result, of a step whose caller was cancelled; idempotent."""
        if task.cancelled():
            # A task that is cancelled before its first step runs none of its code.
            self._end(claim, unsent=True)
        elif claim.log_result:
            claim.log_result = False
            if (error := task.exception()) is not None:
                _log.warning(
                    "A submission failed after its caller was cancelled or the session was closed: %s", error
                )
            elif isinstance(receipt := task.result(), Receipt):
                _log.warning(
                    "A submission was accepted after its caller was cancelled: %s",
                    _describe(claim, receipt),
                )
            else:
                self._end(claim, unsent=True)

    def _withdrawn_error(self) -> BaseException:
        if self._closing:
            return SessionClosedError("The session was closed before the request was sent.")
        return asyncio.CancelledError("The claim was withdrawn before the request was sent.")

    def _end(self, claim: Claim, *, unsent: bool) -> None:
        """Stop working on a claim; remove it from the ledger if it was provably not sent. Idempotent."""
        if claim in self._claims:
            self._claims.discard(claim)
            if unsent:
                self._ledger.withdraw(claim.intent)
            self._ledger.let_go(claim.intent)

    # --- a submission, step by step ---------------------------------------------------------------

    async def _claim(self, claim: Claim, *, retry_failed: bool) -> None:
        try:
            claim.earlier = await self._ledger.claim(claim.intent, retry_failed=retry_failed)
        except BaseException:
            self._end(claim, unsent=True)
            raise
        if claim.earlier is not None:
            self._end(claim, unsent=False)

    async def _submit(self, claim: Claim) -> Receipt:
        responded = False
        try:
            response = await retry(
                "register", partial(self._send, claim), self._retry_policy, self._emit, is_unsent
            )
            responded = True
            return await self._record(claim, response)
        finally:
            self._end(claim, unsent=not (responded or claim.attempt.body_sent))

    async def _send(self, claim: Claim) -> Response:
        """Acquire a slot, mark as sending and send; repeat that only after a refusal with 429.

        A 429 in the shape of the API proves that the request was refused.

        Raises:
            AmbiguousSubmissionError: There is no response, and the server may have received the request.
            QameraError: The server refused the request, or provably did not receive it.

        """
        while True:
            slot = await self._limiter.acquire(
                Priority.SUBMISSION, lambda seconds: self._emit(RateLimitWait(seconds)), "register"
            )
            claim.attempt, claim.sent_at = Attempt(partial(self._mark_sending, claim)), -math.inf
            try:
                await self._mark_sending(claim)
            except BaseException:
                slot.give_back()
                raise
            try:
                response = await self._api.send(claim.http_request, slot, claim.attempt)
            except (Exception, asyncio.CancelledError) as error:
                if not claim.attempt.body_sent:
                    if isinstance(error, QameraError):
                        self._reset_attempt(claim)
                    raise
                lost = error
            else:
                if response.status != _TOO_MANY_REQUESTS or not is_definite_rejection(response):
                    return response
                self._reset_attempt(claim)
                if slot.exhausted:
                    raise parse_error(response)
                continue
            raise await self._lost(claim, lost)

    async def _lost(
        self, claim: Claim, error: Exception | asyncio.CancelledError
    ) -> AmbiguousSubmissionError:
        """Return the error of a submission whose response was lost."""
        if isinstance(error, asyncio.CancelledError):
            # The session or the event loop is being closed: there is no time to search for candidates.
            claim.log_result = True
            closed = TransportError("The session was closed before the response arrived.", sent=True)
            return await self._ambiguous(claim, closed, search=False)
        return await self._ambiguous(claim, _as_qamera_error(error))

    def _reset_attempt(self, claim: Claim) -> None:
        """Reset a claim after an attempt that was not processed.

        Raises:
            asyncio.CancelledError: The claim was withdrawn during the attempt.

        """
        self._ledger.unsent(claim.intent)
        claim.attempt = Attempt()
        if claim.withdrawn:
            raise asyncio.CancelledError

    async def _mark_sending(self, claim: Claim) -> None:
        """Commit to the ledger that the request is being sent, before its first byte is sent.

        This is the fence of each submission. A process that is suspended for longer than its lease counts as
        dead, and a person may abandon its submissions. So "sending" is committed again if the last commit is
        older than half the lease. The commit fails if the intent was resolved.
        """
        while suspension_clock() - claim.sent_at > self._lease / 2:
            began = suspension_clock()
            claim.intent = attrs.evolve(claim.intent, sent_at=datetime.now(UTC))
            await self._ledger.sending(claim.intent)
            claim.sent_at = began
            claim.list_number = self._pollers[claim.kind.records.path].list_number

    async def _record(self, claim: Claim, response: Response) -> Receipt:
        """Record the outcome that the response proves, and return the receipt.

        Raises:
            AmbiguousSubmissionError: The response proves neither acceptance nor refusal.
            LedgerUnavailableError: The receipt could not be stored, and is in the error.
            QameraError: The server refused the submission.

        """
        outcome = _parse(response)
        if isinstance(outcome, Receipt):
            return await self._accept(claim, outcome)
        if not is_definite_rejection(response):
            raise await self._ambiguous(claim, outcome)
        await self._wait_until_stored(claim, self._ledger.refused(claim.intent, outcome))
        raise outcome

    async def _accept(self, claim: Claim, receipt: Receipt) -> Receipt:
        """Record a receipt in the ledger, or in the log if the ledger fails, and emit `Submitted`."""
        self.submissions += 1
        self.credits_reserved += receipt.credits_reserved or 0
        try:
            self.reconciler.add_receipt(receipt)
            await self._wait_until_stored(claim, self._ledger.submitted(claim.intent, receipt))
        except Exception as error:
            # Without the traceback, because some log handlers print the local variables of its frames.
            _log.error("A receipt could not be stored: %s. %s", _describe(claim, receipt), error)
            raise
        finally:
            try:
                self._emit(Submitted(claim.request.ref, claim.request, receipt))
            except BaseException:  # KeyboardInterrupt or SystemExit, which no callback's guard stops
                _log.warning("A submission was accepted, and on_event raised: %s", _describe(claim, receipt))
                raise
        return receipt

    async def _ambiguous(
        self, claim: Claim, cause: QameraError, *, search: bool = True
    ) -> AmbiguousSubmissionError:
        """Record that a submission is ambiguous, with the candidates for its records."""
        claim.ended_at = suspension_clock()
        candidates = await self.reconciler.reconcile(claim) if search else ()
        claim.intent = attrs.evolve(claim.intent, candidates=candidates)
        await self._wait_until_stored(claim, self._ledger.ambiguous(claim.intent, cause.summary))
        self._emit(Ambiguous(claim.intent))
        return AmbiguousSubmissionError(
            "The submission was sent, and the server may or may not have accepted it.",
            intent=claim.intent,
            candidates=candidates,
            record_ids=cause.record_ids if isinstance(cause, InvalidResponseError) else (),
            cause=cause,
            may_share_candidates=claim.may_share_candidates,
        )

    async def _wait_until_stored(self, claim: Claim, operation: Coroutine[Any, Any, None]) -> None:
        """Wait until the ledger has stored a result. Cancelling ends the wait, and the result is logged."""
        try:
            await operation
        except asyncio.CancelledError:
            claim.log_result = True


def _parse(response: Response) -> Receipt | QameraError:
    """Return the receipt in a response, or the error that the response stands for."""
    try:
        return parse_receipt(response) if 200 <= response.status < 300 else parse_error(response)  # noqa: PLR2004
    except Exception as error:
        return _as_qamera_error(error)


def _as_qamera_error(error: Exception) -> QameraError:
    """Return an error without its traceback; log the traceback of an unexpected one."""
    if isinstance(error, QameraError):
        return without_traceback(error)
    name = type(error).__name__
    # Only the lines of code: the message and the local variables may contain the API key.
    _log.error("%s after a submission was sent:\n%s", name, "".join(traceback.format_tb(error.__traceback__)))
    return QameraError(f"The response could not be processed ({name}).")


def _describe(claim: Claim, receipt: Receipt) -> str:
    records = ", ".join(receipt.record_ids)
    return f"records {records}, order {receipt.order_id}, ref {claim.request.ref!r}"
