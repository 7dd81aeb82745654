"""The Qamera API on loopback: real HTTP, no key, no credits spent.

For trying things out, for one's own tests, and for this library's.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Self

from aiohttp import web

from .server import Arrived, Server
from .trouble import Script
from .world import Order, Record, World

if TYPE_CHECKING:
    from .. import QameraSession

__all__ = ["Arrived", "Order", "Record", "Sandbox"]


class Sandbox:
    """The API and its CDN as two servers on loopback; an async context manager.

    Args:
        job_seconds: how long a job takes; ``math.inf`` means until ``finish``.
        credits: what the account has to spend.
        quota: requests and the window in seconds; None means no quota.
        host: the address to listen on.
        port: the API's port; 0 means any free one.
        api_key: the one key that is valid.
        video_price: credits for a video.
        reel_price: credits for a reel.
        count_delay: a request is counted up to that many seconds after it arrived.
        retry_after: seconds that a 429 of the quota states; None means no header.
        show: "at_once" lists each record from its POST on, "finished" only when it is finished.
    """

    def __init__(
        self,
        job_seconds: float = 2.0,
        credits: int = 1000,  # noqa: A002 - the API's word
        quota: tuple[int, float] | None = (60, 60.0),
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        api_key: str = "mk_live_sandbox.secret",
        video_price: int = 10,
        reel_price: int = 15,
        count_delay: float = 0.0,
        retry_after: float | None = None,
        show: str = "at_once",
    ) -> None:
        self.api_key = api_key
        self.url = ""
        self.cdn_url = ""
        self._host = host
        self._port = port
        self._quota = quota
        self._world = World(job_seconds, credits, {"video": video_price, "reel": reel_price}, show)
        self._script = Script()
        self._server = Server(self._world, self._script, api_key, quota, count_delay, retry_after)
        self._runners: list[web.AppRunner] = []
        self._returning: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Sandbox {self.url or 'not started'} {len(self.orders)} orders>"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def start(self) -> None:
        """Listen; from now on ``url`` and ``cdn_url`` are known."""
        self.url = await self._listen(self._server.api(), self._port)
        self.cdn_url = self._world.cdn_url = await self._listen(self._server.cdn(), 0)

    async def aclose(self) -> None:
        """Stop listening and cut off what hangs; idempotent."""
        for task in self._returning:
            task.cancel()
        while self._runners:
            await self._runners.pop().cleanup()

    async def _listen(self, app: web.Application, port: int) -> str:
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.01, handler_cancellation=True)
        await runner.setup()
        self._runners.append(runner)
        await web.TCPSite(runner, self._host, port).start()
        return f"http://{self._host}:{runner.addresses[0][1]}"

    # --- what it saw ----------------------------------------------------------------------------

    @property
    def requests(self) -> list[Arrived]:
        """All requests as they arrived, those to the CDN among them."""
        return self._server.requests

    @property
    def orders(self) -> list[Order]:
        """The registrations that were accepted."""
        return self._world.orders

    @property
    def records(self) -> dict[str, Record]:
        """All videos and reels by their ids."""
        return self._world.records

    @property
    def credits(self) -> int:
        """What the account has left; refunds of failed jobs come back."""
        return self._world.credits

    # --- what it shall do -----------------------------------------------------------------------

    def session(self, **options: Any) -> QameraSession:  # noqa: ANN401 - those of QameraSession
        """Give a session on this server, its quota set to match; ``options`` are QameraSession's."""
        from .. import QameraSession, RequestBudget  # noqa: PLC0415 - else it knows nothing of the client

        limit, window = self._quota or (1_000_000, 0.001)
        settings: dict[str, Any] = {"api_key": self.api_key, "base_url": self.url} | options
        if "budget" not in settings:
            settings["budget"] = self._budget = getattr(self, "_budget", None) or RequestBudget(limit, window)
        return QameraSession(**settings)

    def trouble(self, name: str, *, times: int = 1, on: str | None = None, **details: Any) -> None:  # noqa: ANN401
        """Script trouble for the next ``times`` requests.

        Args:
            name: "reset_before" or "reset_after" the order was taken, "close_after", "error" (``status``,
                ``html``, ``body``, ``taken``), "too_many" (``retry_after``), "hang", "stall", "truncate",
                "garbage", "empty", "redirect" (``status``, ``location``), "slow" (``seconds``); for an
                order's job "fail_job", "late" (``seconds``), "vanish" (``after``), "multiple"
                (``count``), "no_url" (``seconds``).
            times: how many requests meet it.
            on: "POST", "GET" or "ANY"; None means "POST".
            details: as named above.

        Raises:
            ValueError: there is no such trouble.
        """
        self._script.add(name, times, on or "POST", details)

    async def refuse(self, seconds: float) -> None:
        """Refuse connections from now on, for so many seconds."""
        runner = self._runners[0]
        port = runner.addresses[0][1]
        for site in list(runner.sites):
            await site.stop()

        async def back() -> None:
            await asyncio.sleep(seconds)
            await web.TCPSite(runner, self._host, port).start()

        task = asyncio.get_running_loop().create_task(back())
        self._returning.add(task)
        task.add_done_callback(self._returning.discard)

    def add_records(self, number: int, status: str = "DONE") -> None:
        """Put so many old, finished records into the list."""
        self._world.add_old(number, status)

    def finish(self, record_id: str, status: str = "DONE") -> None:
        """Settle a record now."""
        self._world.finish(record_id, status)

    async def forever(self) -> None:
        """Serve until cancelled."""
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
