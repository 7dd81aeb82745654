"""Responses that arrived during a suspension are read, although their timeout has passed."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from faults import RECEIPT, http
from transport_fakes import REQUESTS

import qamera_async as q

REQUEST_TIMEOUT = 0.3  # seconds


class ThreadServer:
    """A server in a thread, so that it answers while the event loop is blocked.

    Args:
        answer: The bytes that are sent after a request.
        wait: The event that the server awaits before it sends the answer; None sends it immediately.

    """

    def __init__(self, answer, wait=None):
        self._answer, self._wait = answer, wait
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.requested, self.answered = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._thread.join(10)
        self._listener.close()

    def _serve(self):
        connection, _ = self._listener.accept()
        with connection:
            received = b""
            while b"\r\n\r\n" not in received or (
                received.startswith(b"POST") and not received.endswith(b"}")
            ):
                received += connection.recv(65_536)
            self.requested.set()
            if self._wait is not None:
                self._wait.wait(10)
            connection.sendall(self._answer)
            self.answered.set()
            connection.settimeout(10)
            try:
                connection.recv(1)  # until the client closes
            except OSError:
                pass


ANSWERS = {
    "receipt": http(RECEIPT),
    "in many small chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"".join(b"1\r\n%c\r\n" % byte for byte in RECEIPT)
    + b"0\r\n\r\n",
    "1 MiB": http(RECEIPT + b" " * (1024 * 1024 - len(RECEIPT))),
}


@pytest.mark.every_loop
@pytest.mark.case(90)
@pytest.mark.parametrize("method", REQUESTS)
@pytest.mark.parametrize("name", ANSWERS)
async def test_response_that_arrived_while_the_loop_was_blocked_is_read(api, slot, method, name):
    blocked = threading.Event()

    def block():
        blocked.set()
        server.answered.wait(0.1)  # a long response blocks once the buffer of the socket is full
        time.sleep(REQUEST_TIMEOUT * 1.5)

    with ThreadServer(ANSWERS[name], blocked) as server:
        client = api(server.url, q.Timeouts(connect=5.0, request=REQUEST_TIMEOUT))
        asyncio.get_running_loop().call_later(REQUEST_TIMEOUT / 2, block)
        response = await client.send(REQUESTS[method], slot)
        await client.aclose()

    assert response.body.rstrip() == RECEIPT
    assert slot.settled == ["response"]


@pytest.mark.every_loop
async def test_request_without_a_response_still_times_out_after_the_loop_was_blocked(api, slot):
    with ThreadServer(b"HTTP/1.1 200 OK\r\n") as server:
        client = api(server.url, q.Timeouts(connect=5.0, request=REQUEST_TIMEOUT))
        asyncio.get_running_loop().call_later(0.1, time.sleep, REQUEST_TIMEOUT * 2)
        with pytest.raises(q.RequestTimeoutError):
            await client.send(REQUESTS["POST"], slot)
        await client.aclose()


PROGRAM = """
import asyncio, json, sys
from transport_fakes import POST, FakeSlot
import qamera_async as q
from qamera_async._transport import ApiClient, ConnectionSettings, Secret

async def main(url):
    settings = ConnectionSettings(api_key=Secret("mk_live_a.bcdefgh"), base_url=url)
    client = ApiClient(settings, q.Timeouts(connect=5.0, request=1.0), q.RetryPolicy())
    slot = FakeSlot()
    try:
        body = (await client.send(POST, slot)).body.decode()
    except q.QameraError as error:
        body = type(error).__name__
    await client.aclose()
    print(json.dumps([body, slot.settled]))

if sys.argv[1] == "uvloop":
    import uvloop
    uvloop.run(main(sys.argv[2]))
else:
    asyncio.run(main(sys.argv[2]))
"""


@pytest.mark.case(90)
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_response_that_arrived_while_the_process_was_stopped_is_read(loop):
    """SIGSTOP stands for a debugger, a frozen container or a sleeping laptop."""
    stopped = threading.Event()
    with ThreadServer(http(RECEIPT), stopped) as server:
        # The server answers while the process is stopped, and the stop lasts longer than the timeout.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, loop, server.url],
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        try:
            assert server.requested.wait(20)
            process.send_signal(signal.SIGSTOP)
            stopped.set()
            assert server.answered.wait(10)
            time.sleep(1.2)
            process.send_signal(signal.SIGCONT)
            printed, _ = process.communicate(timeout=30)
        finally:
            process.kill()
            process.wait()

    assert json.loads(printed) == [RECEIPT.decode(), ["response"]]
