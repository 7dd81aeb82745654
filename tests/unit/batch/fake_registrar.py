"""A registrar without a server: it claims, sends and downloads, and counts the cost."""

import asyncio
import logging
from collections import deque

import attrs
from batch_helpers import batch_tasks, consume, until, videos

import qamera_async as q

log = logging.getLogger("qamera_async")


@attrs.define
class Answer:
    """How the server answers one POST.

    Attributes:
        error: The error that `send` raises; None for a receipt.
        price: The credits in the receipt; None if it states none.
        seconds: The time that the POST is on the wire.
        until: An event that the answer waits for; None to answer after `seconds`.
        reconcile: The seconds for which an ambiguous submission is reconciled after the exchange.
        taken: Whether an ambiguous submission was accepted, so that it costs its price.

    """

    error: Exception | None = None
    price: int | None = 10
    seconds: float = 0.0
    until: asyncio.Event | None = None
    reconcile: float = 0.0
    taken: bool = False


class Claim:
    """A claimed request."""

    def __init__(self, request):
        self.request = request
        self.task = None
        self.on_wire = False
        self.released = False


class FakeJob(q.Job):
    """A job that the test finishes."""

    record_ids = ()
    receipt = None

    def __init__(self, *record_ids, receipt=None):
        self.record_ids = record_ids
        self.receipt = receipt
        self.result = asyncio.get_running_loop().create_future()
        self.result.add_done_callback(lambda result: result.cancelled() or result.exception())

    def __repr__(self):
        return f"<FakeJob {self.record_ids}>"

    def __await__(self):
        return asyncio.shield(self.result).__await__()

    def finish(self):
        if not self.result.done():
            self.result.set_result(record_of(self))

    def fail(self, error=None):
        if not self.result.done():
            self.result.set_exception(error or q.JobFailedError("failed", record_ids=self.record_ids))


def record_of(job):
    return q.Video(job.record_ids[0], "DONE", q.JobState.DONE)


class FakeRegistrar:
    """Replaces the `Registrar` of a session.

    Args:
        answer: A function that returns the answer to a request; by default a receipt of 10 credits.
        known: The job or the error that the ledger has for each ref.
        job_seconds: How long a job takes; None leaves it to the test.
        has_ledger: Whether there is a ledger.

    """

    def __init__(self, answer=None, *, known=None, job_seconds=0.0, has_ledger=False):
        self.answer = answer or (lambda request: Answer())
        self.known = known or {}
        self.job_seconds = job_seconds
        self.has_ledger = has_ledger
        self.claims = []
        self.posts = []
        self.on_wire = self.most_on_wire = 0
        self.paid = 0
        self.jobs = []
        self.downloads = []
        self.rate_limit = asyncio.Event()
        self.rate_limit.set()
        self.waiting = 0
        self.claimed_elsewhere = {}  # an event for each ref that another process has claimed

    # --- operations of the registrar ------------------------------------------------------------

    async def claim(self, request, *, retry_failed):
        if not isinstance(request, q.VideoRequest | q.ReelRequest):
            raise q.InvalidRequestError("no request")
        await asyncio.sleep(0)
        if request.ref in self.claimed_elsewhere:
            await self.claimed_elsewhere[request.ref].wait()
        known = self.known.get(request.ref)
        if isinstance(known, Exception):
            raise known
        if known is not None:
            return known
        claim = Claim(request)
        self.claims.append(claim)
        return claim

    async def send(self, claim):
        claim.task = asyncio.create_task(self._post(claim), name="fake-post")
        try:
            return await asyncio.shield(claim.task)
        except asyncio.CancelledError:
            if not claim.task.cancelled():
                claim.task.add_done_callback(self._log_orphan)
                self.withdraw(claim)
            raise

    def new_job(self, claim, receipt):
        (job,) = [job for job in self.jobs if job.receipt is receipt]
        if self.job_seconds is not None:
            asyncio.get_running_loop().call_later(self.job_seconds, job.finish)
        return job

    def withdraw(self, claim):
        claim.released = claim.task is None
        if claim.task is not None and not claim.on_wire:
            claim.task.cancel()

    def target(self, request, job, folder):
        name = request.ref or (None if job is None else job.record_ids[0])
        return None if name is None else folder / f"{name}.mp4"

    async def download(self, job, record, path, *, overwrite, allow_private):
        self.downloads.append((job, record, path, overwrite, allow_private))
        path.write_text(record.id)
        return path

    # --- the server -----------------------------------------------------------------------------

    async def _post(self, claim):
        self.waiting += 1
        try:
            await self.rate_limit.wait()
        finally:
            self.waiting -= 1
        answer = self.answer(claim.request)
        if isinstance(answer.error, q.TransportError) and not answer.error.sent:
            raise answer.error
        await self._exchange(claim, answer)
        if isinstance(answer.error, q.AmbiguousSubmissionError):
            self.paid += (answer.price or 0) if answer.taken else 0
            await asyncio.sleep(answer.reconcile)
        if answer.error is not None:
            raise answer.error
        self.paid += answer.price or 0
        receipt = q.Receipt((f"vid_{len(self.jobs) + 1:03}",), credits_reserved=answer.price)
        self.jobs.append(FakeJob(*receipt.record_ids, receipt=receipt))
        return receipt

    async def _exchange(self, claim, answer):
        claim.on_wire = True
        self.posts.append(claim.request)
        self.on_wire += 1
        self.most_on_wire = max(self.most_on_wire, self.on_wire)
        try:
            await asyncio.sleep(answer.seconds)
            if answer.until is not None:
                await answer.until.wait()
        finally:
            self.on_wire -= 1

    @staticmethod
    def _log_orphan(task):
        if not task.cancelled() and task.exception() is None:
            log.warning("accepted after its caller was cancelled: %s", task.result().record_ids)


def script(*answers, then=None):
    """Return an answer function that returns the answers in turn, then always ``then`` or the last answer."""
    left = deque(answers)

    def answer(request):
        if left and (len(left) > 1 or then is not None):
            return left.popleft()
        return then or left[0]

    return answer


def ambiguous(request=None, **options):
    intent = q.Intent("1", request or q.VideoRequest("i"), None)
    return Answer(q.AmbiguousSubmissionError("lost", intent=intent), **options)


def refused(status=400, **options):
    kinds = {
        400: q.BadRequestError,
        401: q.AuthenticationError,
        402: q.InsufficientCreditsError,
        403: q.PermissionDeniedError,
    }
    return Answer(kinds.get(status, q.ApiError)("no", status=status, **options))


def unreachable():
    return Answer(q.ConnectionFailedError("No connection to example.com."))


def make_batch(registrar, requests, *, retry=None, **options):
    return q.Batch(
        registrar, requests, retry=retry or q.RetryPolicy(attempts=3, base=0.001, max_delay=0.01), **options
    )


async def until_idle():
    """Wait until no batch task and no POST is running."""
    await until(lambda: not batch_tasks("qamera-batch", "fake-post"))


async def check_outage_stop_and_early_exit(folder):
    """Run batches that meet an outage and a stop, and two whose loops are left early."""
    answers = script(unreachable(), ambiguous(), *[Answer(seconds=0.001)] * 8, refused(401))
    batch = make_batch(FakeRegistrar(answers), videos(20), max_in_flight=10, download_to=folder)
    outcomes, reason = await consume(batch)

    assert (len(outcomes), reason.status) == (9, 401)
    async with make_batch(FakeRegistrar(), videos(100), max_in_flight=10) as batch:
        async for _ in batch:
            break
    assert batch_tasks() == []
    async for _ in make_batch(FakeRegistrar(), videos(100), max_in_flight=10):
        break
    await until_idle()
