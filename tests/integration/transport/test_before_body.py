"""The before_body callback: it is awaited before the first byte of a POST, and can stop the POST."""

import asyncio

import pytest
from faults import GOOD, RECEIPT, FaultServer, http
from transport_fakes import LOST, POST

import qamera_async as q
from qamera_async._transport import Attempt

pytestmark = pytest.mark.every_loop


class RefusedError(Exception):
    """An error that a callback raises."""


class Recorder:
    """A server that records when bytes arrive on a connection."""

    def __init__(self):
        self.received = b""
        self.connected = asyncio.Event()

    async def __call__(self, connection):
        self.connected.set()
        while data := await connection.receive():
            self.received += data
            if b"\r\n\r\n{" in self.received:
                await connection.send(http(RECEIPT))


async def test_server_receives_nothing_before_the_callback_returns(api, slot):
    recorder = Recorder()
    received = []

    async def before_body():
        await recorder.connected.wait()
        await asyncio.sleep(0.05)  # longer than bytes take on loopback
        received.append(recorder.received)

    async with FaultServer(recorder) as server:
        await api(server).send(POST, slot, Attempt(before_body))

    assert received == [b""]
    assert POST.body in recorder.received


@pytest.mark.parametrize(
    "error", [RefusedError("no"), OSError(5, "disk"), asyncio.CancelledError("no"), TimeoutError()]
)
@pytest.mark.parametrize("late", [False, True], ids=["at once", "later"])
async def test_error_of_the_callback_is_raised_and_nothing_is_sent(api, slot, error, late):
    recorder = Recorder()

    async def before_body():
        if late:
            await asyncio.sleep(0.01)
        raise error

    attempt = Attempt(before_body)
    async with FaultServer(recorder) as server:
        with pytest.raises(type(error)) as raised:
            await api(server).send(POST, slot, attempt)

    assert raised.value is error
    assert recorder.received == b""
    assert not attempt.body_sent
    assert slot.settled == ["given back"]


async def test_client_works_after_the_callback_raised(api, slot):
    async def before_body():
        raise RefusedError

    async with FaultServer(GOOD) as server:
        client = api(server)
        with pytest.raises(RefusedError):
            await client.send(POST, slot, Attempt(before_body))
        response = await client.send(POST, slot)

    assert response.body == RECEIPT
    assert server.methods == ["POST"]


async def test_callback_is_awaited_once_for_a_long_body(api, slot):
    calls = []

    async def before_body():
        calls.append(None)

    body = b'{"x":"%s"}' % (b"x" * 500_000)
    async with FaultServer(GOOD) as server:
        await api(server).send(type(POST)("POST", "/x", body), slot, Attempt(before_body))

    assert len(calls) == 1
    assert server.requests[0][1] == body


async def test_withdrawn_attempt_sends_nothing(api, slot):
    recorder = Recorder()

    async def before_body():
        attempt.withdrawn = True

    attempt = Attempt(before_body)
    async with FaultServer(recorder) as server:
        with pytest.raises(q.TransportError):
            await api(server).send(POST, slot, attempt)

    assert recorder.received == b""
    assert not attempt.body_sent
    assert slot.settled == ["given back"]


@pytest.mark.parametrize("how", ["cancelled", "timeout", "closed"])
async def test_nothing_is_sent_after_the_call_has_ended(api, slot, how):
    """A callback that continues in spite of its cancellation cannot release the POST."""
    recorder = Recorder()
    waiting, ended, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def before_body():
        waiting.set()
        while not go_on.is_set():
            try:
                await go_on.wait()
            except asyncio.CancelledError:
                pass
        ended.set()

    attempt = Attempt(before_body)
    async with FaultServer(recorder) as server:
        client = api(server, q.Timeouts(request=0.2 if how == "timeout" else 5.0))
        sending = asyncio.ensure_future(client.send(POST, slot, attempt))
        await waiting.wait()
        if how == "cancelled":
            sending.cancel()
        elif how == "closed":
            await client.aclose()
        await asyncio.wait([sending])
        go_on.set()
        await ended.wait()
        await asyncio.sleep(0.05)

    assert sending.cancelled() or isinstance(sending.exception(), q.TransportError | q.SessionClosedError)
    assert recorder.received == b""
    assert not attempt.body_sent
    assert slot.settled == ["given back"]


async def test_response_before_the_request_was_sent_is_ignored(api, slot):
    """A response that arrives before the POST was sent proves nothing about it."""
    never = asyncio.Event()
    attempt = Attempt(never.wait)

    async def answer_first(connection):
        await connection.send(http(RECEIPT))
        await connection.hang()

    async with FaultServer(answer_first) as server:
        with pytest.raises(q.TransportError) as failed:
            await api(server).send(POST, slot, attempt)

    assert not failed.value.sent
    assert not attempt.body_sent
    assert slot.settled == ["given back"]


async def test_server_that_closes_during_the_callback_receives_nothing(api, slot):
    async def closes(connection):
        connection.fin()

    async def before_body():
        await asyncio.sleep(0.1)

    attempt = Attempt(before_body)
    async with FaultServer(closes) as server:
        with pytest.raises(q.TransportError) as failed:
            await api(server).send(POST, slot, attempt)

    assert failed.value.sent == attempt.body_sent
    assert slot.settled == ([LOST] if attempt.body_sent else ["given back"])
