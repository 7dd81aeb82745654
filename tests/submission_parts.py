"""A Submitter with a scripted API, rate limit, list and ledger, for the unit tests of submissions."""

import asyncio
import json
from datetime import UTC, datetime
from email.utils import format_datetime

from qamera_async import ReelRequest, RetryPolicy, StatusRules, Timeouts, TransportError, VideoRequest
from qamera_async._protocol import KINDS, Response, kind_of, parse_list
from qamera_async._submission import Submitter
from qamera_async.events import event_emitter
from qamera_async.ledger.places import NoLedger

REQUESTS = {
    "video": VideoRequest(image_id="img_1", ref="sku-1"),
    "reel": ReelRequest(image_ids=("img_1", "img_2"), ref="sku-1"),
}
"""A request of each kind in the `KINDS` table."""

VIDEO = REQUESTS["video"]
LONG = 60.0  # seconds; no step of these tests takes that long
ITERATIONS = 2  # event loop iterations that each step of the fakes takes


async def run_iterations(number=ITERATIONS):
    for _ in range(number):
        await asyncio.sleep(0)


async def until(condition):
    """Wait until a condition holds."""
    async with asyncio.timeout(LONG):
        while not condition():
            await asyncio.sleep(0)


def unchanged(text):
    return text


def response(status, body, headers=None):
    """Return a response whose body is JSON, unless it is bytes."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Response(status, headers or {}, raw, unchanged)


def receipt_body(*record_ids):
    return {"createdRecordIds": list(record_ids), "orderId": "order_1", "creditsReserved": 10}


# --- scripts for one POST -------------------------------------------------------------------------


class Exchange:
    """One call of `ApiClient.send`, as the scripts below see it."""

    def __init__(self, request, attempt, fence):
        self.request = request
        self.attempt = attempt
        self._fence = fence

    async def send(self):
        """Await the fence and send the first byte, unless the body was sent already."""
        if self.attempt.body_sent:
            return
        await run_iterations(2 * ITERATIONS)
        await self._fence()
        self.attempt.body_sent = True
        await run_iterations()


def answers(status, body, headers=None):
    """Return a script that answers a POST."""

    async def script(exchange):
        await exchange.send()
        return response(status, body, headers)

    return script


def accepts(*record_ids):
    return answers(200, receipt_body(*(record_ids or ("vid_1",))))


def refuses(status, text="No."):
    """Return a script that answers in the API's error shape."""
    return answers(status, {"error": text})


def loses(error):
    """Return a script that raises after the body was sent."""

    async def script(exchange):
        await exchange.send()
        raise error

    return script


def fails(error):
    """Return a script that raises before anything was sent."""

    async def script(_):
        await run_iterations()
        raise error

    return script


class Pause:
    """A script that waits at one stage until `resume` is set, then follows another script.

    Args:
        stage: "connecting" or "sent".
        then: The script for the rest.
    """

    def __init__(self, stage, then=None):
        self.stage = stage
        self.then = then or accepts()
        self.reached = asyncio.Event()
        self.resume = asyncio.Event()

    async def __call__(self, exchange):
        if self.stage == "sent":
            await exchange.send()
        self.reached.set()
        await self.resume.wait()
        return await self.then(exchange)


# --- the fakes ------------------------------------------------------------------------------------


class FakeSlot:
    """A slot that records how it was settled."""

    def __init__(self, limiter):
        self._limiter = limiter
        self.settled = []

    @property
    def exhausted(self):
        return self._limiter.exhausted

    def on_response(self):
        self.settled.append("response")

    def on_lost(self, _):
        self.settled.append("lost")

    def on_429(self, *_):
        self.settled.append("429")

    def give_back(self):
        self.settled.append("given back")


class FakeLimiter:
    """Grants slots after some loop iterations; `blocked` makes all requests wait."""

    def __init__(self, log):
        self._log = log
        self.slots = []
        self.exhausted = False
        self.cooldown = 0.0
        self.open = asyncio.Event()
        self.open.set()
        self.waiting = 0

    async def acquire(self, priority, on_wait=None, kind=""):
        self.waiting += 1
        try:
            if not self.open.is_set() and on_wait is not None:
                on_wait(1.5)
            await self.open.wait()
            await run_iterations()
        finally:
            self.waiting -= 1
        self._log.append("slot")
        self.slots.append(FakeSlot(self))
        return self.slots[-1]

    @property
    def settled(self):
        """Return how each slot was settled."""
        return [how for slot in self.slots for how in slot.settled or ["never"]]


class FakeApi:
    """Follows a script for each POST; the last script serves all further POSTs."""

    def __init__(self, log, scripts):
        self._log = log
        self._scripts = list(scripts) or [accepts()]
        self.requests = []  # the requests of which a byte was sent

    async def send(self, request, slot, attempt):
        script = self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]

        async def fence():
            await attempt.before_body()
            self._log.append("POST")
            self.requests.append(request)

        attempt.in_flight = True
        try:
            answer = await script(Exchange(request, attempt, fence))
        except BaseException:
            if attempt.body_sent:
                slot.on_lost(1.0)
            else:
                slot.give_back()
            raise
        else:
            if answer.status == 429:
                slot.on_429(None, None)
            else:
                slot.on_response()
            return answer
        finally:
            attempt.in_flight = False


class FakePoller:
    """Returns scripted lists, each a tuple of record ids or of JSON objects; then waits for ever."""

    def __init__(self, spec, *lists, date=None):
        self._spec = spec
        self.lists = list(lists)
        self.date = date
        self.list_number = 0
        self._first = {}
        self.exhausted = asyncio.Event()

    def show(self, items):
        """Make a list the newest one that the poller has fetched."""
        records = [item if isinstance(item, dict) else {"id": item, "status": "PENDING"} for item in items]
        headers = {} if self.date is None else {"date": format_datetime(self.date, usegmt=True)}
        body = response(200, {self._spec.key: records, "count": len(records)}, headers)
        listed = parse_list(body, self._spec, StatusRules())
        self.list_number += 1
        for record_id in listed.entries:
            self._first.setdefault(record_id, self.list_number)
        return listed

    async def next_list(self):
        await run_iterations()
        if not self.lists:
            self.exhausted.set()
            await asyncio.Event().wait()
        items = self.lists.pop(0)
        if isinstance(items, BaseException):
            raise items
        return self.show(items)

    def new_since(self, ids, list_number):
        return {i for i in ids if self._first.get(i, list_number + 1) > list_number}


class FakeLedger(NoLedger):
    """A ledger in memory. Like a database, it completes operations whose caller was cancelled.

    `failures` are the errors of the operations by name; `delays` are events that operations wait for, and
    `waiting` is the one that did so last. `at_work` are the intents that this process works on.
    """

    kept = True

    def __init__(self, log):
        self._log = log
        self.states = {}
        self.at_work = set()
        self.failures = {}
        self.delays = {}
        self.waiting = None  # the operation that waits for its delay
        self.earlier = None
        self.receipts = []
        self.sending_elsewhere = False
        self.claimed_elsewhere = set()

    async def _operation(self, name):
        await run_iterations()
        if name in self.delays:
            self.waiting = name
            await self.delays[name].wait()
        if name in self.failures:
            raise self.failures[name]
        self._log.append(name)

    async def claim(self, intent, *, retry_failed):
        self.at_work.add(intent.id)
        if self.earlier is None:
            self.states[intent.id] = "claimed"
        await self._operation("claim")
        return self.earlier

    async def sending(self, intent):
        self.states[intent.id] = "sending"
        await self._operation("sending")

    def unsent(self, intent):
        self.states[intent.id] = "claimed"
        self._log.append("unsent")

    def withdraw(self, intent):
        if self.states.get(intent.id) in {"claimed", "sending"}:
            del self.states[intent.id]
        self._log.append("withdraw")

    def let_go(self, intent):
        self.at_work.discard(intent.id)

    async def refused(self, intent, error):
        self.states[intent.id] = "refused"
        await self._operation("refused")

    async def submitted(self, intent, receipt):
        self.states[intent.id] = "submitted"
        self.receipts.append(receipt)
        await self._operation("receipt")

    async def ambiguous(self, intent, reason):
        self.states[intent.id] = "ambiguous"
        await self._operation("ambiguous")

    async def alone(self, intent):
        await run_iterations()
        if "alone" in self.failures:
            raise self.failures["alone"]
        return not self.sending_elsewhere

    async def unclaimed(self, record_ids):
        await run_iterations()
        if "unclaimed" in self.failures:
            raise self.failures["unclaimed"]
        return set(record_ids) - self.claimed_elsewhere


class Parts:
    """A Submitter and its fakes. It must be created while the event loop runs.

    `log` has the steps of all parts in their order, `events` all events.

    Args:
        scripts: What the API does with the POSTs, one after the other.
        ledger: A ledger instead of the fake one.
        lists: The lists that the poller returns.
        date: The server's clock in those lists.
        on_event: Called with each event, in addition.
        retry: How failed connections are retried.
        lease: As for `Submitter`.
        timeouts: Time limits in seconds.
    """

    def __init__(
        self,
        *scripts,
        ledger=None,
        lists=(),
        date=None,
        on_event=None,
        emit=None,
        retry=None,
        lease=LONG,
        **timeouts,
    ):
        self.log = []
        self.events = []
        self.api = FakeApi(self.log, scripts)
        self.limiter = FakeLimiter(self.log)
        self.ledger = ledger or FakeLedger(self.log)
        self.poller = FakePoller(KINDS["video"].records, *lists, date=date)
        # These delays take one loop iteration.
        self.retry = retry or RetryPolicy(attempts=3, base=1e-9, max_delay=1e-9)
        self._on_event = on_event
        self.submitter = Submitter(
            self.api,
            self.limiter,
            {kind.records.path: self.poller for kind in KINDS.values()},
            self.ledger,
            Timeouts(**{"reconcile": 0.0, "close": LONG} | timeouts),
            self.retry,
            emit or event_emitter(self._note),
            lease=lease,
        )

    def _note(self, event):
        self.events.append(event)
        self.log.append(type(event).__name__)
        if self._on_event is not None:
            self._on_event(event)

    @property
    def states(self):
        """Return the states of all intents in the fake ledger."""
        return list(self.ledger.states.values())

    async def register(self, request=VIDEO):
        """Claim a request and send it."""
        async with asyncio.timeout(LONG):
            return await self.submitter.send(await self.submitter.claim(request))

    async def settle(self):
        """Wait until no submission is under way."""
        async with asyncio.timeout(LONG):
            while tasks := submission_tasks():
                await asyncio.wait(tasks)
        await run_iterations()

    def assert_nothing_left(self):
        """Assert that no task, claim or slot is left over."""
        assert submission_tasks() == []
        assert self.limiter.waiting == 0
        assert all(len(slot.settled) == 1 for slot in self.limiter.slots)
        if isinstance(self.ledger, FakeLedger):
            assert self.ledger.at_work == set()
            assert not {"claimed", "sending"} & set(self.states)


def submission_tasks():
    return [task for task in asyncio.all_tasks() if task.get_name().startswith("qamera-submit")]


def connection_lost(*, sent):
    return TransportError("The connection was lost.", sent=sent)


def kinds():
    """Return the names of all kinds; each needs a request in REQUESTS."""
    assert {kind_of(request).name for request in REQUESTS.values()} == set(KINDS)
    return sorted(KINDS)


def now():
    return datetime.now(UTC)
