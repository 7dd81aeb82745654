"""Send a paid POST at most once: claim, slot, mark as sending, send, parse, record.

Once a byte of its body may have left, a submission is never sent again: the API does not promise to honour an
idempotency key (its section "Every request"). A submission that provably did not leave is retried.
"""

from __future__ import annotations

import asyncio
import logging
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
    without_traceback,
)
from ..events import Ambiguous, Emit, RateLimitWait, Submitted
from ..ledger.places import NoLedger
from .claim import Claim, suspension_clock
from .reconcile import Reconciler

_T = TypeVar("_T")
_log = logging.getLogger("qamera_async")

LEASE = 60.0
"""Seconds without a sign of life after which other processes may treat a process as dead."""

_TOO_MANY_REQUESTS = 429
_CUT_OFF_PAUSE = 1.0  # seconds between cancellations of a submission that `Submitter.aclose` cuts off


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
        lease: Seconds without a sign of life after which other processes may treat this process as dead. The
            first byte of a submission leaves only while the commit of "sending" is younger than half the
            lease. Tests pass a short lease.

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
        """How many POSTs are being sent or wait for their answer."""
        return sum(claim.attempt.in_flight for claim in self._claims)

    # --- what callers ask for ---------------------------------------------------------------------

    async def claim(self, request: Request, *, retry_failed: bool = False) -> Claim:
        """Claim a request in the ledger, so that no other process submits it too.

        Cancelling the caller releases the claim.

        Args:
            request: The request.
            retry_failed: Claim a request again that the ledger has as failed.

        Returns:
            The claim, to be sent or withdrawn. If its ``earlier`` is set, nothing is left to do with it.

        Raises:
            InvalidRequestError: The request can't be sent.
            AmbiguousSubmissionError: An earlier submission of it is ambiguous.
            RefConflictError: The ledger has another request with the same ref.
            LedgerError: The ledger can't be used.
            SessionClosedError: The session is closed, or was closed meanwhile.

        """
        claim = Claim(request)
        if self._closing:
            raise SessionClosedError("The session is closed.")
        self._claims.add(claim)
        await self._run(claim, self._claim(claim, retry_failed=retry_failed))
        return claim

    async def send(self, claim: Claim) -> Receipt:
        """Send a claimed request and return its receipt; to be called once for each claim.

        Cancelling the caller before the request has a connection withdraws the request. Afterwards the
        submission runs to its answer: the receipt is stored in the ledger, emitted as `Submitted` and logged
        as a warning.

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
        """Give up a claim; idempotent.

        Then `send` raises `asyncio.CancelledError`, unless the request has a connection. Such a submission
        runs to its answer; if the request turns out not to have left, it is not sent again.
        """
        claim.withdrawn = True
        if claim.task is None or claim.task.done():
            self._end(claim, unsent=True)
        elif not (claim.attempt.connected or claim.attempt.body_sent):
            claim.task.cancel()

    async def aclose(self) -> None:
        """Withdraw the submissions that have no connection, and wait for the others; idempotent.

        A submission without an answer after ``Timeouts.close`` seconds is cut off: it is ambiguous.
        """
        self._closing = True
        self.reconciler.stop()
        for claim in list(self._claims):
            self.withdraw(claim)
        running = {claim.task for claim in self._claims if claim.task is not None}
        patience = self._timeouts.close
        while running:
            _, running = await asyncio.wait(running, timeout=patience)
            for task in running:
                task.cancel()
            # If the ledger hangs too, each of its operations needs a cancellation of its own.
            patience = _CUT_OFF_PAUSE

    # --- tasks ------------------------------------------------------------------------------------

    async def _run(self, claim: Claim, step: Coroutine[Any, Any, _T]) -> _T:
        """Run a step of a submission in a task that outlives its caller."""
        task = claim.task = asyncio.get_running_loop().create_task(
            step, name=f"qamera-submit-{claim.intent_id}"
        )
        task.add_done_callback(partial(self._on_step_done, claim))
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            claim.orphaned = True
            if task.done():
                self._on_step_done(claim, task)
            self.withdraw(claim)
            raise
        if task.cancelled():
            raise self._withdrawn_error()
        result: _T = task.result()
        return result

    def _on_step_done(self, claim: Claim, task: asyncio.Task[Any]) -> None:
        """Release a claim whose caller is gone, and log a result whose caller is gone; idempotent."""
        if task.cancelled():
            # A task that is cancelled before its first step runs none of its code.
            self._end(claim, unsent=True)
        elif claim.orphaned:
            claim.orphaned = False
            if (error := task.exception()) is not None:
                _log.warning("A submission that was cancelled or cut off ended with: %s", error)
            elif isinstance(receipt := task.result(), Receipt):
                _log.warning(
                    "A submission was accepted after its caller was cancelled: %s",
                    _described(claim, receipt),
                )
            else:
                self._end(claim, unsent=True)

    def _withdrawn_error(self) -> BaseException:
        if self._closing:
            return SessionClosedError(
                "The session was closed before the request was sent; nothing was submitted."
            )
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
        answered = False
        try:
            response = await retry(
                "register", partial(self._send, claim), self._retry_policy, self._emit, _is_unsent
            )
            answered = True
            return await self._record(claim, response)
        finally:
            self._end(claim, unsent=not (answered or claim.attempt.body_sent))

    async def _send(self, claim: Claim) -> Response:
        """Send the request; again only after a 429 in the API's shape, which proves that it was refused."""
        while True:
            response = await self._attempt(claim)
            if response.status != _TOO_MANY_REQUESTS or not is_definite_rejection(response):
                return response
            self._note_unsent(claim)
            if self._limiter.exhausted:
                raise parse_error(response)

    async def _attempt(self, claim: Claim) -> Response:
        """Send the request once.

        Raises:
            AmbiguousSubmissionError: No answer, and the server may have got the request.
            QameraError: The server provably did not get the request.

        """
        slot = await self._limiter.acquire(Priority.SUBMISSION, self._on_wait)
        try:
            await self._mark_sending(claim)
        except BaseException:
            slot.give_back()
            raise
        try:
            return await self._api.send(
                claim.http_request, slot, attempt=claim.attempt, before_body=partial(self._fence, claim)
            )
        except asyncio.CancelledError:
            if not claim.attempt.body_sent:
                raise
            # The session or the event loop is being closed: there is no time to look for candidates.
            claim.orphaned, look = True, False
            lost: QameraError = TransportError("The session was closed before the answer arrived.", sent=True)
        except Exception as error:
            if not claim.attempt.body_sent:
                self._note_unsent(claim)
                raise
            look = True
            lost = _as_qamera_error(error)
        raise await self._ambiguous(claim, lost, look=look)

    def _note_unsent(self, claim: Claim) -> None:
        """Reset a claim after an attempt that was not processed; raise if it was withdrawn meanwhile."""
        self._ledger.unsent(claim.intent)
        claim.attempt = Attempt()
        if claim.withdrawn:
            raise asyncio.CancelledError

    async def _mark_sending(self, claim: Claim) -> None:
        """Commit that the request is being sent, before its first byte leaves."""
        began = suspension_clock()
        claim.intent = attrs.evolve(claim.intent, sent_at=datetime.now(UTC))
        await self._ledger.sending(claim.intent)
        claim.sent_at = began
        claim.list_number = self._pollers[claim.kind.records.path].list_number

    async def _fence(self, claim: Claim) -> None:
        """Commit "sending" again if the last commit is old; this fails if the intent was resolved meanwhile.

        A process that is suspended for longer than its lease counts as dead, and a person may abandon its
        submissions. So the first byte leaves only while the commit is younger than half the lease.
        """
        while suspension_clock() - claim.sent_at > self._lease / 2:
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
        outcome = _read(response)
        if isinstance(outcome, Receipt):
            return await self._accept(claim, outcome)
        if not is_definite_rejection(response):
            raise await self._ambiguous(claim, outcome)
        await self._stored(claim, self._ledger.refused(claim.intent, outcome))
        raise outcome

    async def _accept(self, claim: Claim, receipt: Receipt) -> Receipt:
        """Record a receipt, then emit it; if the ledger fails, log and emit it."""
        self.submissions += 1
        try:
            self.reconciler.note_receipt(claim, receipt)
            await self._stored(claim, self._ledger.submitted(claim.intent, receipt))
        except Exception as error:
            # No traceback: some log handlers print the local variables of its frames.
            _log.error("A receipt could not be stored: %s. %s", _described(claim, receipt), error)
            raise
        finally:
            self._emit(Submitted(claim.request.ref, claim.request, receipt))
        return receipt

    async def _ambiguous(
        self, claim: Claim, cause: QameraError, *, look: bool = True
    ) -> AmbiguousSubmissionError:
        """Record that a submission is ambiguous, with the candidates for its records."""
        claim.ended_at = suspension_clock()
        candidates = await self.reconciler.reconcile(claim) if look else ()
        claim.intent = attrs.evolve(claim.intent, candidates=candidates)
        await self._stored(claim, self._ledger.ambiguous(claim.intent, cause.summary))
        self._emit(Ambiguous(claim.intent))
        return AmbiguousSubmissionError(
            "The submission was sent, and it is not known whether the server accepted it.",
            intent=claim.intent,
            candidates=candidates,
            record_ids=cause.record_ids if isinstance(cause, InvalidResponseError) else (),
            cause=cause,
            may_share_candidates=claim.may_share_candidates,
        )

    async def _stored(self, claim: Claim, writing: Coroutine[Any, Any, None]) -> None:
        """Wait until the ledger has stored a result. Cancelling ends the wait only, not the storing."""
        try:
            await writing
        except asyncio.CancelledError:
            claim.orphaned = True


def _read(response: Response) -> Receipt | QameraError:
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
    _log.error(
        "A submission met %s after it was sent:\n%s", name, "".join(traceback.format_tb(error.__traceback__))
    )
    return QameraError(f"The answer could not be processed ({name}).")


def _is_unsent(error: QameraError) -> bool:
    return isinstance(error, TransportError) and not error.sent and not error.permanent


def _described(claim: Claim, receipt: Receipt) -> str:
    records = ", ".join(receipt.record_ids)
    return f"records {records}, order {receipt.order_id}, ref {claim.request.ref!r}"
