"""Cancelling callers at any point of the event loop loses no receipt (P4) and shows no key (P6).

With QAMERA_SWEEPS=full a submission is cancelled at each point, otherwise at every third.
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
from faults import FaultServer, assert_nothing_left, http

import qamera_async as q
from qamera_async._protocol import parse_receipt
from qamera_async._submission import Submitter
from qamera_async.events import Submitted

pytestmark = pytest.mark.slow

STEP = 1 if os.environ.get("QAMERA_SWEEPS") == "full" else 3
TASKS = ["ordinary", *(["eager"] if sys.version_info >= (3, 12) else [])]
PATIENCE = 10.0  # seconds; no step of these tests takes that long
COMPLETED = 3  # submissions that were not cancelled in time; a thread makes the number of points vary
AT_ONCE = q.RetryPolicy(base=0.001, max_delay=0.001)


class Sweep:
    """Submissions of one variant, each cancelled at a later point than the one before.

    ``points`` is the number of cancelled submissions, and ``kept`` is how many of those the server accepted.
    ``faults`` has a text for each broken promise.
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
        self.bodies = []  # the bytes received of each POST body
        self.accepted = []  # the images of the POSTs that were accepted
        self.keys = set()  # the headers with a key
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
        """Record a body, even if it is incomplete; answer with a record id made from the image id."""
        if self.serving is not None:
            await connection.speak_tls(self.serving)
        came = b""
        while b"\r\n\r\n" not in came:
            if not (some := await connection.receive()):
                return
            came += some
        self.keys |= {line for line in came.split(b"\r\n") if line.lower().startswith(b"x-api-key:")}
        body = came.partition(b"\r\n\r\n")[2]
        if body:
            self.bodies.append(body)
        while not body.endswith(b"}"):
            if not (some := await connection.receive()):
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
                "retry": AT_ONCE,
            }
            session = server.session(**options)
            await session.register_video(image_id="img_warm", ref="warm")
            completed = 0
            for point in count(0, self.step):
                if self.cold:
                    await session.aclose()
                    assert_nothing_left(session)
                    session = server.session(**options)
                if not await self._cancelled_at(loop, session, server, point):
                    completed += 1
                    if completed == COMPLETED:
                        break
            self._search_ledger()
            await session.aclose()
            assert_nothing_left(session)
            self._search_ledger()
            await self._all_closed(server)
        assert len(self.accepted) == len(set(self.accepted))

    async def _all_closed(self, server):
        """Wait until no connection is left; the server may accept a connection that the client has closed."""
        async with asyncio.timeout(PATIENCE):
            while server._tasks:
                await asyncio.wait(server._tasks)

    async def _cancelled_at(self, loop, session, server, point):
        """Submit, and cancel at a point; return whether the submission was cancelled before its end."""
        self.events.clear()
        self.caplog.clear()
        name, bodies, used = str(point), len(self.bodies), session.rate_limiter.used
        accepted = len(self.accepted)
        task = loop.create_task(session.register_video(image_id=f"img_{name}", ref=name))
        for later in range(self.times):
            loop.run_at(point + later, task.cancel)
        await asyncio.wait([task])
        loop.discard_planned()
        cancelled = task.cancelled()
        self.points += cancelled
        names = {other: other.get_name() for other in asyncio.all_tasks()}
        if running := [other for other, name in names.items() if name.startswith("qamera-submit")]:
            await asyncio.wait(running)
        await asyncio.sleep(0)  # for the callbacks of these tasks
        await self._all_closed(server)

        def check(good, fault):
            if not good:
                self.faults.append(f"point {point}: {fault}")

        arrived, receipts = len(self.bodies) - bodies, len(self.accepted) - accepted
        check(receipts <= 1, f"{receipts} receipts")
        check(arrived == receipts or (self.refused and arrived <= receipts + 1), f"{arrived} POSTs")
        check(session.rate_limiter.waiting == 0, "a request waits for a slot")
        check(
            session.rate_limiter.used - used == arrived,
            f"{session.rate_limiter.used - used} slots of {arrived} POSTs",
        )
        check(len([event for event in self.events if isinstance(event, Submitted)]) == receipts, "no event")
        self.search.look("log", self.caplog.text)
        self.search.look("event", repr(self.events))
        returned = not cancelled and task.exception() is None
        if returned:
            self.search.look("job", repr(task.result()))
            check(task.result().record_ids == (f"vid_{name}",), "another receipt")
        elif receipts:
            self.kept += 1
            warnings = [r.getMessage() for r in self.caplog.records if r.levelno >= logging.WARNING]
            check(f"vid_{name}" in " ".join(warnings), "the log has no receipt")
        check(returned or cancelled, "neither a job nor cancelled")
        if self.ledger:
            await self._check_ledger(session, name, check)
        return cancelled

    def _search_ledger(self):
        if self.ledger:
            self.search.look_into("ledger", self.ledger.parent)

    async def _check_ledger(self, session, name, check):
        """Submit the same request again: the ledger has its receipt, or lets it be submitted."""
        try:
            async with asyncio.timeout(PATIENCE):
                again = await session.register_video(image_id=f"img_{name}", ref=name)
        except (q.QameraError, TimeoutError) as error:
            check(good=False, fault=f"the ledger has no receipt and refuses a claim: {type(error).__name__}")
        else:
            check(again.record_ids == (f"vid_{name}",), "the ledger has another receipt")
        check(self.accepted.count(name) == 1, f"{self.accepted.count(name)} receipts in all")


@pytest.fixture
def sweep(caplog, contexts, tmp_path):
    """Return a function that runs the sweep of a variant and returns it."""
    caplog.set_level(logging.DEBUG)  # the log is searched for the key

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
def test_cancelled_at_any_point(sweep, transport, use, keeping, tasks, times):
    """Each receipt is recorded, no request is sent twice, no task is left, and nothing shows the key."""
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
def test_cancelled_at_any_callback_of_uvloop(sweep, transport, use, keeping):
    swept = sweep(transport, use, keeping, loop=CountingUvloop, step=1)
    print(f"{swept.points} points")

    assert swept.faults == []
    assert swept.points >= 10
    assert 0 < swept.kept < swept.points
    assert (swept.search.found, swept.search.blind) == (set(), set())


# --- the sweep detects injected faults ------------------------------------------------------------


async def run_in_the_caller(self, claim, step):
    """Replace `Submitter._run`: the submission has no task of its own."""
    return await step


@pytest.mark.case(51)
@pytest.mark.parametrize("keeping", ["no ledger", "ledger"])
@pytest.mark.parametrize("transport", ["TCP", "TLS"])
def test_sweep_finds_receipts_lost_with_the_caller(sweep, transport, keeping, monkeypatch):
    monkeypatch.setattr(Submitter, "_run", run_in_the_caller)
    swept = sweep(transport, keeping=keeping)

    assert [fault for fault in swept.faults if "the log has no receipt" in fault]
    assert [fault for fault in swept.faults if "the ledger has no receipt" in fault] or keeping == "no ledger"


@pytest.mark.case(81)
def test_sweep_finds_the_key_in_each_place(sweep, monkeypatch):
    def leaking(response):
        logging.getLogger("leak").debug("sent with %s", KEY)
        return attrs.evolve(parse_receipt(response), batch_id=KEY)

    monkeypatch.setattr("qamera_async._submission.submit.parse_receipt", leaking)
    monkeypatch.setattr(q.Job, "__repr__", lambda job: f"<Job {job.receipt}>")
    swept = sweep(keeping="ledger")

    assert swept.search.found == {"log", "event", "job", "ledger"}
