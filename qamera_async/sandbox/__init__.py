"""The Qamera API on loopback: real HTTP, no key, no credits spent.

For trying things out, for one's own tests, and for this library's.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Self

from .arrivals import ArrivedRequest, Log
from .cdn import Cdn
from .listener import Listener
from .quota import Quota
from .records import Order, Record
from .server import ApiServer
from .trouble import ON_THE_SERVER, Script, Trouble
from .world import World

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .. import QameraSession, RateLimiter

__all__ = ["ArrivedRequest", "Order", "Record", "Sandbox"]


class Sandbox:
    """The API and its CDN as two servers on loopback; an async context manager.

    Args:
        job_seconds: how long a job takes, in seconds; ``math.inf`` means until ``finish``.
        credits: what the account has to spend.
        quota: so many requests in a window of so many seconds; None means no quota.
        host: the address to listen on.
        port: the API's port; 0 means any free one.
        api_key: the one key that is valid.
        video_price: credits for a video.
        reel_price: credits for a reel.
        records_per_order: how many records an order makes.
        count_delay: the quota counts a request at a random moment up to that many seconds after it
            arrived, and before it is answered.
        retry_after: what a 429 of the quota states, in seconds; None means no such header.
        show: "at_once" lists a record from its POST on, "finished" only when it is finished.
        forget_finished: whether a record is forgotten once a list has shown it finished.
        etag: whether the list has an ETag, and is answered with 304 where the client has it already.
        compress: whether the list is compressed with gzip where the client takes that.
        clip_bytes: how long the CDN's clips are, in bytes: padding is added that players skip; None means as
            short as they come.

    Raises:
        ValueError: a setting makes no sense.
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
        records_per_order: int = 1,
        count_delay: float = 0.0,
        retry_after: float | None = None,
        show: Literal["at_once", "finished"] = "at_once",
        forget_finished: bool = False,
        etag: bool = False,
        compress: bool = False,
        clip_bytes: int | None = None,
    ) -> None:
        if show not in {"at_once", "finished"}:
            raise ValueError(f"show={show!r}: must be 'at_once' or 'finished'")
        if not job_seconds >= 0 or not count_delay >= 0:
            raise ValueError(f"{job_seconds=}, {count_delay=}: must be seconds, not negative")
        if records_per_order < 1:
            raise ValueError(f"{records_per_order=}: must be at least 1")
        self.api_key = api_key
        self.url = ""
        self.cdn_url = ""
        self._quota = quota
        self._budget: RateLimiter | None = None
        self._log = Log()
        self._script = Script()
        self._world = World(
            job_seconds,
            credits,
            {"video": video_price, "reel": reel_price},
            records_per_order=records_per_order,
            show=show,
            forget_finished=forget_finished,
        )
        counting = Quota(quota, count_delay)
        server = ApiServer(
            self._world,
            self._script,
            self._log,
            counting,
            api_key=api_key,
            retry_after=retry_after,
            etag=etag,
            compress=compress,
        )
        self._api = Listener(server.handle, host, port)
        cdn = Cdn(self._world, self._script, self._log, clip_bytes)
        self._cdn = Listener(cdn.handle, host, 0)

    def __repr__(self) -> str:
        return f"<Sandbox {self.url or 'not started'}, {len(self.orders)} orders>"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def start(self) -> None:
        """Listen; from now on ``url`` and ``cdn_url`` are known.

        Raises:
            OSError: the port is taken.
        """
        try:
            self.cdn_url = self._world.cdn_url = await self._cdn.start()
            self.url = await self._api.start()
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Stop listening and cut off what hangs; idempotent."""
        await self._api.aclose()
        await self._cdn.aclose()

    # --- what it saw ----------------------------------------------------------------------------

    @property
    def requests(self) -> list[ArrivedRequest]:
        """All requests as they arrived, those to the CDN among them; a copy."""
        return self._log.requests()

    @property
    def orders(self) -> list[Order]:
        """The registrations that were accepted; a copy."""
        return list(self._world.orders)

    @property
    def records(self) -> Mapping[str, Record]:
        """All videos and reels by their ids; a view that can't be written to."""
        return MappingProxyType(self._world.records)

    @property
    def credits(self) -> int:
        """What the account has left; the credits of failed jobs are back."""
        return self._world.credits

    # --- what it shall do -----------------------------------------------------------------------

    def session(self, **options: Any) -> QameraSession:  # noqa: ANN401 - those of QameraSession
        """Give a session on this server, its quota set to match.

        Args:
            options: those of ``QameraSession``; they go before what the sandbox would set.

        Returns:
            The session, not yet entered. Those of one sandbox share one budget.
        """
        from .. import QameraSession, RateLimiter  # noqa: PLC0415 - else it knows nothing of the client

        settings: dict[str, Any] = {"api_key": self.api_key, "base_url": self.url} | options
        if "rate_limiter" not in settings:
            if self._budget is None:
                limit, window = self._quota or (1_000_000, 0.001)
                self._budget = RateLimiter(limit=limit, window=window)
            settings["rate_limiter"] = self._budget
        return QameraSession(**settings)

    def trouble(
        self,
        name: str,
        *,
        times: int = 1,
        on: Literal["POST", "GET", "ANY"] = "POST",
        **details: Any,  # noqa: ANN401 - each trouble has its own
    ) -> None:
        """Script trouble for the next ``times`` matching requests to the API, first in, first out.

        One request meets one trouble. An order meets the first of each name that concerns its job, whatever
        becomes of its answer.

        Args:
            name: for a request: "reset_before" or "reset_after" the order was taken (RST), "close_after"
                (FIN), "error" (``status``, ``body``: None means the API's words, ``html``, ``taken``),
                "too_many" (``retry_after``), "hang" (``taken``), "stall" and "truncate" (half of the body),
                "garbage" (an HTML page), "empty", "redirect" (``status``, ``location``), "slow"
                (``seconds`` from when the order was taken until the answer).
                For an order's job: "fail_job" (``status``), "late" (``seconds``), "vanish" (``after`` so
                many seconds), "multiple" (``count``), "no_url" (``seconds``).
                At once: "refuse_connections" (for ``seconds``); those that are open stay so.
            times: how many requests, or orders, meet it.
            on: requests by which method; "ANY" means both.
            details: as named above.

        Raises:
            ValueError: there is no such trouble or detail, or a detail is missing.
            RuntimeError: connections can't be refused, as the sandbox doesn't listen.
        """
        trouble = Trouble.of(name, on, details)
        if name in ON_THE_SERVER:
            self._api.refuse(trouble.details["seconds"])
        else:
            self._script.add(trouble, times)

    def cdn_trouble(self, name: str, *, times: int = 1, **details: Any) -> None:  # noqa: ANN401 - as above
        """Script trouble for the next ``times`` requests to the CDN.

        A request meets the first of each name, so that they can be combined; one that comes instead of the
        file is met alone.

        Args:
            name: instead of the file: "expired" (403, and from then on the list has another URL), "html"
                (``content_type``), "error" (``status``, ``retry_after``), "redirect" (``location``,
                ``status``).
                With the file: "cut" (the connection is lost ``after`` so many bytes of the body), "stall"
                (nothing more comes ``after`` so many), "slow" (``rate`` in bytes per second), "no_etag",
                "weak_etag", "other_etag", "ignore_range" (200 and all of it), "wrong_range" (a 206 that
                starts ``shift`` bytes later than asked, or states another ``total``), "no_length" (the body
                ends with the connection; a "cut" one looks the same), "chunked".
            times: how many requests meet it.
            details: as named above.

        Raises:
            ValueError: there is no such trouble or detail, or a detail is missing.
        """
        self._script.add(Trouble.of(name, "CDN", details), times)

    async def refuse(self, seconds: float) -> None:
        """Refuse connections from now on: the trouble "refuse_connections".

        Args:
            seconds: for how long.

        Raises:
            RuntimeError: the sandbox doesn't listen.
        """
        self.trouble("refuse_connections", seconds=seconds)

    def add_records(self, number: int, status: str = "DONE") -> None:
        """Put old, finished records into the list.

        Args:
            number: how many.
            status: the word that each of them has.
        """
        self._world.add_old(number, status)

    def finish(self, record_id: str, status: str = "DONE") -> None:
        """Let a record reach ``status`` now; a failed one is refunded.

        Args:
            record_id: one of ``records``.
            status: the word that it gets.

        Raises:
            KeyError: there is no such record.
        """
        self._world.finish(record_id, status)
