"""One origin: a real HTTP server on loopback that can stop listening and come back."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Listener:
    """Serves one handler for all paths.

    Args:
        handler: answers every request.
        host: the address to listen on.
        port: 0 means any free one.
    """

    def __init__(
        self, handler: Callable[[web.Request], Awaitable[web.StreamResponse]], host: str, port: int
    ) -> None:
        self._handler = handler
        self._host = host
        self._port = port
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None
        self._return: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Listen, and give the origin's URL.

        Raises:
            OSError: the port is taken.
        """
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handler)
        # Cancellation lets a hanging handler end with its client.
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.01)
        await self._runner.setup()
        await self._listen()
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    def refuse(self, seconds: float) -> None:
        """Stop listening at once, and listen again on the same port after so many seconds.

        Raises:
            RuntimeError: it doesn't listen, or refuses already.
        """
        if self._server is None:
            raise RuntimeError("connections can only be refused while the sandbox listens")
        self._server.close()
        self._server = None
        self._return = asyncio.get_running_loop().create_task(self._listen_again(seconds))

    async def aclose(self) -> None:
        """Stop listening, end the handlers, and cut what is still connected; idempotent."""
        if self._return is not None:
            self._return.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await self._return
            self._return = None
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._runner is not None:
            runner, self._runner = self._runner, None
            connections = [] if runner.server is None else runner.server.connections
            transports = [connection.transport for connection in connections]
            await runner.cleanup()
            for transport in transports:
                # A client that doesn't read would keep a closing connection open for ever.
                if transport is not None:
                    transport.abort()
            await asyncio.sleep(0)

    async def _listen_again(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self._listen()

    async def _listen(self) -> None:
        if self._runner is None or self._runner.server is None:
            return
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            self._runner.server, self._host, self._port, reuse_address=True
        )
        self._port = self._server.sockets[0].getsockname()[1]
