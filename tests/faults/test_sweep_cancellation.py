"""P4 at every moment of the loop: a receipt is kept, or the POST is provably unsent; and P6: no key shows.

With QAMERA_SWEEPS=full each moment of a registration has its turn, some 5,000 in all variants together where
Python has eager tasks and 2,900 where it hasn't; without it, every third.
"""

import asyncio
import json
import logging
import os
import sys
from itertools import count

import attrs
import pytest
from canary import KEY, Search
from counting_loop import CountingLoop, CountingUvloop
from faults import FaultServer, http, nothing_left

import qamera_async as q
from qamera_async import _protocol as protocol
from qamera_async._submission import Submitter
from qamera_async._submission.order import Order
from qamera_async.events import Submitted

pytestmark = pytest.mark.slow

STEP = 1 if os.environ.get("QAMERA_SWEEPS") == "full" else 3
TASKS = ["ordinary", *(["eager"] if sys.version_info >= (3, 12) else [])]
PATIENCE = 10.0  # seconds; nothing here takes so long
BY_ITSELF = 3  # a thread makes the number of moments vary


class Sweep:
    """Registrations of one variant, each cancelled at a later moment than the one before.

    ``points`` is how many were cancelled, ``kept`` how many of those the server accepted, and ``faults`` what
    is wrong with any of them, in words.
    """

    def __init__(self, caplog, *, contexts, cold, refused, ledger, eager, times, loop, step):
        self.caplog = caplog
        self.serving, self.trusting = contexts
        self.cold = cold
        self.refused = refused
        self.ledger = ledger
        self.eager = eager
        self.times = times
        self.loop = loop
        self.step = step
        self.points = self.kept = 0
        self.faults = []
        self.events = []
        self.lost = []
        self.bodies = []  # the bytes of each body that began to arrive
        self.accepted = []  # the images of those that were answered with a receipt
        self.keys = set()  # those that came
        known = {"log": "vid_", "event": "Submitted(", "job": "<Job"}
        self.search = Search(known | ({"ledger": "img_warm"} if ledger else {}))

    def run(self):
        with asyncio.Runner(loop_factory=self.loop) as runner:
            loop = runner.get_loop()
            loop.set_exception_handler(lambda _, context: self.lost.append(context))
            if self.eager:
                loop.set_task_factory(asyncio.eager_task_factory)
            runner.run(self._all())
        assert self.lost == []

    async def _answer(self, connection):
        """Note each byte of a body, also of one that is cut; answer with an id made of the image's."""
        if self.serving is not None:
            await connection.speak_tls(self.serving)
        came = b""
        while b"\r\n\r\n" not in came:
            if not (some := await connection.some()):
                return
            came += some
        self.keys |= {line for line in came.split(b"\r\n") if line.lower().startswith(b"x-api-key:")}
        body = came.partition(b"\r\n\r\n")[2]
        if body:
            self.bodies.append(body)
        while not body.endswith(b"}"):
            if not (some := await connection.some()):
                return
            body += some
            self.bodies[-1:] = [body]
        image = json.loads(body)["imageId"].removeprefix("img_")
        if self.refused and self.bodies.count(body) == 1:
            await connection.send(http({"error": "Later."}, "429 Too Many Requests", b"Retry-After: 0\r\n"))
        else:
            self.accepted.append(image)
            await connection.send(http({"createdRecordIds": [f"vid_{image}"]}))

    async def _all(self):
        loop = asyncio.get_running_loop()
        async with FaultServer(self._answer) as server:
            server.key = KEY
            scheme = "http" if self.serving is None else "https"
            options = {
                "base_url": f"{scheme}://127.0.0.1:{server.port}",
                "ssl_context": self.trusting,
                "rate_limiter": q.RateLimiter(1_000_000, 1_000.0),
                "ledger": self.ledger,
                "on_event": self.events.append,
                "timeouts": q.Timeouts(reconcile=0.0),
            }
            session = server.session(**options)
            await session.register_video(image_id="img_warm", ref="warm")
            by_itself = 0
            for moment in count(0, self.step):
                if self.cold:
                    await session.aclose()
                    nothing_left(session)
                    session = server.session(**options)
                if not await self._cancelled_at(loop, session, server, moment):
                    by_itself += 1
                    if by_itself == BY_ITSELF:
                        break
            self._look_into_the_ledger()
            await session.aclose()
            nothing_left(session)
            self._look_into_the_ledger()
            await self._all_closed(server)
        assert len(self.accepted) == len(set(self.accepted))

    async def _all_closed(self, server):
        """Wait until no connection is left; one that was cut off may be accepted only now."""
        async with asyncio.timeout(PATIENCE):
            while server._tasks:
                await asyncio.wait(server._tasks)

    async def _cancelled_at(self, loop, session, server, moment):
        """Register and cancel at a moment; give whether it came to that before the registration ended."""
        self.events.clear()
        self.caplog.clear()
        name, bodies, used = str(moment), len(self.bodies), session.rate_limiter.used
        accepted = len(self.accepted)
        task = loop.create_task(session.register_video(image_id=f"img_{name}", ref=name))
        for later in range(self.times):
            loop.at(moment + later, task.cancel)
        await asyncio.wait([task])
        loop.forget()
        cancelled = task.cancelled()
        self.points += cancelled
        if orders := [other for other in asyncio.all_tasks() if other.get_name().startswith("qamera-order")]:
            await asyncio.wait(orders)
        await asyncio.sleep(0)  # what follows on the end of such a task is a callback of its own
        await self._all_closed(server)

        def see(good, what):
            if not good:
                self.faults.append(f"moment {moment}: {what}")

        arrived, receipts = len(self.bodies) - bodies, len(self.accepted) - accepted
        see(receipts <= 1, f"{receipts} orders")
        see(arrived == receipts or (self.refused and arrived <= receipts + 1), f"{arrived} POSTs")
        see(session.rate_limiter.waiting == 0, "something waits for a slot")
        see(
            session.rate_limiter.used - used == arrived,
            f"{session.rate_limiter.used - used} slots of {arrived} POSTs",
        )
        see(len([event for event in self.events if isinstance(event, Submitted)]) == receipts, "no event")
        self.search.look("log", self.caplog.text)
        self.search.look("event", repr(self.events))
        told = not cancelled and task.exception() is None
        if told:
            self.search.look("job", repr(task.result()))
            see(task.result().record_ids == (f"vid_{name}",), "another receipt")
        elif receipts:
            self.kept += 1
            warned = [r.getMessage() for r in self.caplog.records if r.levelno >= logging.WARNING]
            see(f"vid_{name}" in " ".join(warned), "a receipt is lost: it is not in the log")
        see(told or cancelled, "neither a job nor cancelled")
        if self.ledger:
            await self._see_the_ledger(session, name, see)
        return cancelled

    def _look_into_the_ledger(self):
        if self.ledger:
            self.search.look_into("ledger", self.ledger.parent)

    async def _see_the_ledger(self, session, name, see):
        """A receipt is there, and no claim that stands in the way: the same again is one order in all."""
        try:
            async with asyncio.timeout(PATIENCE):
                again = await session.register_video(image_id=f"img_{name}", ref=name)
        except (q.QameraError, TimeoutError) as error:
            see(good=False, what=f"the ledger has no receipt and gives no claim: {type(error).__name__}")
        else:
            see(again.record_ids == (f"vid_{name}",), "the ledger has another receipt")
        see(self.accepted.count(name) == 1, f"{self.accepted.count(name)} orders in all")


@pytest.fixture
def sweep(caplog, contexts, tmp_path):
    """Give a function that makes a sweep of a variant and runs it."""
    caplog.set_level(logging.DEBUG)  # what is looked for is the key, too

    def swept(
        transport="TCP",
        use="warm",
        keeping="no ledger",
        tasks="ordinary",
        times=1,
        loop=CountingLoop,
        step=STEP,
    ):
        sweep = Sweep(
            caplog,
            contexts=contexts if transport == "TLS" else (None, None),
            cold=use == "cold",
            refused=use == "refused first",
            ledger=tmp_path / "jobs.db" if keeping == "ledger" else None,
            eager=tasks == "eager",
            times=times,
            loop=loop,
            step=step,
        )
        sweep.run()
        return sweep

    return swept


@pytest.mark.case(81)
@pytest.mark.parametrize(
    "times",
    [
        pytest.param(1, id="once", marks=pytest.mark.case(51)),
        pytest.param(2, id="twice", marks=pytest.mark.case(51, 53)),
        pytest.param(1_000, id="again and again", marks=pytest.mark.case(51, 53)),
    ],
)
@pytest.mark.parametrize("tasks", TASKS)
@pytest.mark.parametrize("keeping", ["no ledger", "ledger"])
@pytest.mark.parametrize("use", ["cold", "warm", "refused first"])
@pytest.mark.parametrize("transport", ["TCP", "TLS"])
def test_cancelled_at_any_moment_a_receipt_is_kept_or_nothing_was_sent(
    sweep, transport, use, keeping, tasks, times
):
    """Never two orders, nothing is left over, and no key shows; eager tasks are there from Python 3.12 on."""
    swept = sweep(transport, use, keeping, tasks, times)
    print(f"{swept.points} points")

    assert swept.faults == []
    assert swept.points >= 30 // STEP
    assert 0 < swept.kept < swept.points
    assert (swept.search.found, swept.search.blind) == (set(), set())
    assert swept.keys == {f"X-Api-Key: {KEY}".encode()}


@pytest.mark.slow
@pytest.mark.case(51, 81)
@pytest.mark.skipif(CountingUvloop is None, reason="uvloop is not installed")
@pytest.mark.parametrize("keeping", ["no ledger", "ledger"])
@pytest.mark.parametrize("use", ["cold", "warm", "refused first"])
@pytest.mark.parametrize("transport", ["TCP", "TLS"])
def test_cancelled_at_any_callback_of_uvloop_a_receipt_is_kept_or_nothing_was_sent(
    sweep, transport, use, keeping
):
    swept = sweep(transport, use, keeping, loop=CountingUvloop, step=1)
    print(f"{swept.points} points")

    assert swept.faults == []
    assert swept.points >= 10
    assert 0 < swept.kept < swept.points
    assert (swept.search.found, swept.search.blind) == (set(), set())


# --- the sweep finds what is wrong --------------------------------------------------------------


async def in_the_callers_task(self, request, *, retry_failed=False, approve=None, withdrawn=None):
    """Stand in for Submitter.submit: the POST is awaited in its caller's task."""
    path, body = protocol.encode(request)
    order = Order(request, retry_failed=retry_failed, approve=approve)
    self._orders.add(order)
    try:
        return await self._run(order, path, body)
    finally:
        self._orders.discard(order)


@pytest.mark.case(51)
@pytest.mark.parametrize("keeping", ["no ledger", "ledger"])
@pytest.mark.parametrize("transport", ["TCP", "TLS"])
def test_without_a_task_of_its_own_a_post_loses_its_receipt(sweep, transport, keeping, monkeypatch):
    """The test above can fail: it does where the caller's cancellation reaches the POST."""
    monkeypatch.setattr(Submitter, "submit", in_the_callers_task)
    swept = sweep(transport, keeping=keeping)

    assert [fault for fault in swept.faults if "a receipt is lost" in fault]
    assert [fault for fault in swept.faults if "the ledger has no receipt" in fault] or keeping == "no ledger"


@pytest.mark.case(81)
def test_a_key_that_is_written_anywhere_is_found(sweep, monkeypatch):
    """The test above can fail: it does where the log, the events, the jobs or the ledger have the key."""
    read_receipt = protocol.read_receipt

    def leaking(answer):
        logging.getLogger("leak").debug("sent with %s", KEY)
        return attrs.evolve(read_receipt(answer), batch_id=KEY)

    monkeypatch.setattr(protocol, "read_receipt", leaking)
    monkeypatch.setattr(q.Job, "__repr__", lambda job: f"<Job {job.receipt}>")
    swept = sweep(keeping="ledger")

    assert swept.search.found == {"log", "event", "job", "ledger"}
