"""A loopback server that sends arbitrary bytes and ends its connections in a chosen way."""

import asyncio
import json
import socket
import struct
import uuid

import pytest

import qamera_async as q

RECEIPT = b'{"createdRecordIds":["vid_1"]}'
LIST = b'{"videos":[{"id":"vid_1","status":"DONE","videoUrl":"https://cdn.example.com/a.mp4"}],"count":1}'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


class Connection:
    """One connection of a client, with the operations that a fault performs on it."""

    def __init__(self, server, reader, writer):
        self._server = server
        self._reader = reader
        self._writer = writer
        self._first_byte = b""
        self.ended = False
        self.secure = False

    async def has_another_request(self):
        """Wait for another request; return False if the client closed the connection."""
        self._first_byte = await self._reader.read(1)
        return bool(self._first_byte)

    async def request(self):
        """Read and record a request; return its method."""
        head = self._first_byte + await self._reader.readuntil(b"\r\n\r\n")
        body = b""
        if head.startswith(b"POST"):
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            body = await self._reader.readexactly(int(length.partition(b":")[2]))
        self._server.requests.append((head, body))
        return head.split(b" ", 1)[0].decode()

    async def receive(self):
        """Return the next bytes from the client."""
        return await self._reader.read(65_536)

    async def send(self, answer):
        self._writer.write(answer)
        await self._writer.drain()

    async def close_after_fin(self):
        """Send a FIN, then read and record a request, then close the connection.

        The kernel sends an RST if a connection is closed with unread bytes.
        """
        self._writer.write_eof()
        await self.request()
        self.fin()

    def fin(self):
        """Close the connection with a FIN."""
        self.ended = True
        self._writer.close()

    def rst(self):
        """Close the connection with an RST."""
        self.ended = True
        linger = struct.pack("ii", 1, 0)
        self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._writer.transport.abort()

    async def hang(self):
        """Send nothing more, and close the connection after the client has closed it."""
        while await self.receive():
            pass
        self.fin()

    async def speak_tls(self, context):
        """Perform a TLS handshake, unless the connection is encrypted already."""
        if not self.secure:
            self.secure = True
            await self._writer.start_tls(context)

    def drop(self):
        """Abort the connection, unless a fault has ended it."""
        if not self.ended:
            self._writer.transport.abort()


class FaultServer:
    """A server that answers each request with the next fault; the last fault answers all further requests.

    Each server has its own API key. Sessions with the same key and origin share a rate limit, and the kernel
    reuses ports.

    Args:
        faults: async functions that take a ``Connection``.
    """

    def __init__(self, *faults):
        self._faults = list(faults)
        self._tasks = set()
        self._server = None
        self._failures = []
        self.key = f"mk_live_a.{uuid.uuid4()}"
        self.connections = 0
        self.requests = []

    @property
    def methods(self):
        return [head.split(b" ", 1)[0].decode() for head, _ in self.requests]

    async def listen(self, listening=None):
        listening = listening or socket.create_server(("127.0.0.1", 0))
        self.port = listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._server = await asyncio.start_server(self._accept, sock=listening, backlog=500)

    def session(self, base_url=None, **options):
        """Return a session that sends its requests to this server."""
        return q.QameraSession(self.key, base_url=base_url or self.url, **options)

    async def __aenter__(self):
        await self.listen()
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()
        assert self._failures == []

    def _accept(self, reader, writer):
        self.connections += 1
        task = asyncio.get_running_loop().create_task(self._serve(Connection(self, reader, writer)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection):
        more = True
        try:
            while more and not connection.ended:
                fault = self._faults.pop(0) if len(self._faults) > 1 else self._faults[0]
                await fault(connection)
                more = connection.ended or await connection.has_another_request()
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client has closed the connection
        except Exception as error:
            self._failures.append(error)
        finally:
            connection.drop()


def http(body, status="200 OK", headers=b"", content_type=b"application/json"):
    """Return a complete HTTP response; a body that is not bytes is encoded as JSON."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return b"HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n%s\r\n%s" % (
        status.encode(),
        content_type,
        len(raw),
        headers,
        raw,
    )


def answers(answer, end=None):
    """Return a fault that reads a request and sends bytes.

    Args:
        answer: The bytes to send.
        end: The `Connection` method that ends the connection: "fin", "rst" or "hang". None keeps it open.
    """

    async def fault(connection):
        await connection.request()
        await connection.send(answer)
        if end == "hang":
            await connection.hang()
        elif end is not None:
            getattr(connection, end)()

    return fault


def by_method(post=RECEIPT, *lists):
    """Return a fault that answers POSTs with one body and GETs with one list after the other.

    The last list answers all further GETs.
    """
    remaining = list(lists or [LIST])

    async def fault(connection):
        if await connection.request() == "POST":
            await connection.send(http(post))
        else:
            await connection.send(http(remaining.pop(0) if len(remaining) > 1 else remaining[0]))

    return fault


GOOD = by_method()
FREQUENT_POLLS = q.PollPolicy(interval=0.005, stale_after=0.1, max_interval=0.1)
CALLS = {"POST": lambda session: session.register_video(image_id="i"), "GET": lambda s: s.list_videos()}


async def ambiguous_error(server, options, *, read=True, **timeouts):
    """Submit a video and return its `AmbiguousSubmissionError`; assert that the POST was sent once.

    Args:
        server: A FaultServer.
        options: The options of the session.
        read: Whether the server reads the request; None if that depends on the event loop.
        timeouts: Time limits of the session, in seconds.
    """
    limits = q.Timeouts(**{"request": 5.0, "reconcile": 0.0} | timeouts)
    async with server.session(**options | {"timeouts": limits}) as session:
        with pytest.raises(q.AmbiguousSubmissionError) as lost:
            await asyncio.wait_for(session.register_video(image_id="i", ref="sku-1"), 30)
        assert session.rate_limiter.used == 1
    assert_nothing_left(session)
    assert server.connections == 1
    assert server.methods in {True: [["POST"]], False: [[]], None: [["POST"], []]}[read]
    assert (lost.value.request.ref, lost.value.candidates) == ("sku-1", ())
    return lost.value


def assert_nothing_left(session):
    """Assert that a closed session has no tasks and that no request waits for a slot."""
    assert session.rate_limiter.waiting == 0
    assert [task for task in asyncio.all_tasks() if task.get_name().startswith("qamera")] == []
