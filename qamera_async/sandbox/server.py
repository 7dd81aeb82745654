"""The API's three endpoints and the CDN, as aiohttp applications."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from email.utils import formatdate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from aiohttp import web

from .trouble import ORDER_TROUBLES, REQUEST_TROUBLES, Script, Trouble
from .world import Quota, World, delayed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_HERE = Path(__file__).parent
_TOO_MANY = "Too many requests. Please retry after a short delay."


@attrs.define
class Arrived:
    """One request as it arrived; ``at`` is ``time.monotonic()``, ``status`` None while not answered."""

    at: float
    origin: str
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    status: int | None = None


class Server:
    """Answers as the API does, and misbehaves as it is told."""

    def __init__(
        self,
        world: World,
        script: Script,
        api_key: str,
        quota: tuple[int, float] | None,
        count_delay: float,
        retry_after: float | None,
    ) -> None:
        self.requests: list[Arrived] = []
        self._world = world
        self._script = script
        self._api_key = api_key
        self._quota = None if quota is None else Quota(*quota)
        self._count_delay = count_delay
        self._retry_after = retry_after

    def api(self) -> web.Application:
        """Give the API's application."""
        app = web.Application(middlewares=[self._recorded("api")])
        app.router.add_get("/api/external/videos", self._answering(self._list))
        app.router.add_post(
            "/api/external/video-picker/register-videos", self._answering(self._register_video)
        )
        app.router.add_post("/api/external/reel/register-reel", self._answering(self._register_reel))
        return app

    def cdn(self) -> web.Application:
        """Give the application of the other origin, where the files are."""
        app = web.Application(middlewares=[self._recorded("cdn")])

        async def file(request: web.Request) -> web.StreamResponse:
            name = "clip.mp4" if request.path.endswith(".mp4") else "thumbnail.jpg"
            return web.FileResponse(_HERE / name)

        app.router.add_get("/videos/{name}", file)
        return app

    # --- every request --------------------------------------------------------------------------

    def _recorded(self, origin: str) -> Any:  # noqa: ANN401 - aiohttp's own type for it is private
        @web.middleware
        async def middleware(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            arrived = Arrived(
                time.monotonic(), origin, request.method, request.path, dict(request.headers), b""
            )
            self.requests.append(arrived)
            arrived.body = await request.read()
            try:
                response = await handler(request)
            except web.HTTPException as error:
                response = _error(error.status, error.reason)
            arrived.status = response.status
            return response

        return middleware

    def _answering(
        self, endpoint: Callable[[web.Request], Awaitable[web.Response]]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handler(request: web.Request) -> web.StreamResponse:
            if self._count_delay:
                await asyncio.sleep(delayed(self._count_delay))
            refusal = self._refused(request)
            if refusal is not None:
                return refusal
            trouble = self._script.next(request.method, REQUEST_TROUBLES)
            if trouble is None:
                return await endpoint(request)
            return await self._troubled(trouble, request, endpoint)

        return handler

    def _refused(self, request: web.Request) -> web.Response | None:
        key = request.headers.get("X-Api-Key")
        if key is None:
            key = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if key != self._api_key:
            return _error(401, "Invalid API key.")
        if self._quota is not None and not self._quota.admits():
            response = _error(429, _TOO_MANY)
            if self._retry_after is not None:
                response.headers["Retry-After"] = f"{self._retry_after:g}"
            return response
        return None

    # --- the endpoints --------------------------------------------------------------------------

    async def _list(self, _: web.Request) -> web.Response:
        return web.Response(body=self._world.listing(), content_type="application/json")

    async def _register_video(self, request: web.Request) -> web.Response:
        body = await _json(request)
        if body is None:
            return _error(400, "Malformed JSON.")
        ids = [body[name] for name in ("imageId", "generatedImageId") if name in body]
        if len(ids) != 1 or not isinstance(ids[0], str) or not ids[0]:
            return _error(400, "Exactly one of imageId and generatedImageId is required.")
        return self._ordered("video", body, request)

    async def _register_reel(self, request: web.Request) -> web.Response:
        body = await _json(request)
        if body is None:
            return _error(400, "Malformed JSON.")
        ids = body.get("imagesIds")
        if not isinstance(ids, list) or not 1 <= len(ids) <= 10 or not all(isinstance(i, str) for i in ids):  # noqa: PLR2004  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
            return _error(400, "imagesIds must hold 1 to 10 ids.")
        return self._ordered("reel", body, request)

    def _ordered(self, kind: str, body: dict[str, Any], request: web.Request) -> web.Response:
        world = self._world
        price = world.prices[kind]
        if price > world.credits:
            return _error(402, f"Insufficient credits. Required: {price}, available: {world.credits}.")
        details: dict[str, Any] = {}
        while (trouble := self._script.next("POST", ORDER_TROUBLES)) is not None:
            details |= _order_details(trouble)
        order = world.order(kind, body, request.headers.get("Idempotency-Key"), details)
        number = order.id.partition("_")[2]
        return web.json_response(
            {
                "createdRecordIds": order.record_ids,
                "batchId": f"batch_{number}",
                "orderId": order.id,
                "reservationId": f"res_{number}",
                "creditsReserved": price,
            },
            headers={"X-Correlation-Id": str(uuid.uuid4())},
        )

    # --- trouble --------------------------------------------------------------------------------

    async def _troubled(  # noqa: C901, PLR0911, PLR0912 - one branch for each trouble by name
        self,
        trouble: Trouble,
        request: web.Request,
        endpoint: Callable[[web.Request], Awaitable[web.Response]],
    ) -> web.StreamResponse:
        details = trouble.details
        if trouble.name == "reset_before":
            return _cut(request, abort=True)
        if trouble.name == "too_many":
            headers = {"Retry-After": str(details["retry_after"])} if "retry_after" in details else {}
            return web.json_response({"error": _TOO_MANY}, status=429, headers=headers)
        if trouble.name == "slow":
            await asyncio.sleep(details["seconds"])
            return await endpoint(request)
        if details.get("taken", trouble.name != "error"):
            answer = await endpoint(request)
        else:
            answer = web.Response()
        match trouble.name:
            case "reset_after":
                return _cut(request, abort=True)
            case "close_after":
                return _cut(request, abort=False)
            case "error":
                text = details.get("body", "An internal error occurred.")
                status = details.get("status", 500)
                if details.get("html", False):
                    return web.Response(
                        text=f"<html><h1>{text}</h1></html>", content_type="text/html", status=status
                    )
                return _error(status, text)
            case "garbage":
                return web.Response(text="<html>Maintenance</html>", content_type="text/html")
            case "empty":
                return web.Response(body=b"", content_type="application/json")
            case "redirect":
                location = details.get("location", f"{self._world.cdn_url}/videos/elsewhere.mp4")
                return web.Response(status=details.get("status", 307), headers={"Location": location})
            case "truncate" | "stall":
                await _half(request, answer)
                return await _hang() if trouble.name == "stall" else _cut(request, abort=False)
            case _:
                return await _hang()


def _order_details(trouble: Trouble) -> dict[str, Any]:
    details = trouble.details
    match trouble.name:
        case "fail_job":
            return {"outcome": details.get("status", "FAILED")}
        case "late":
            return {"late": details["seconds"]}
        case "vanish":
            return {"vanish": details["after"]}
        case "multiple":
            return {"count": details["count"]}
        case _:
            return {"no_url": details["seconds"]}


async def _json(request: web.Request) -> dict[str, Any] | None:
    try:
        body = json.loads(await request.read())
    except ValueError:
        return None
    return body if isinstance(body, dict) else None  # pyright: ignore[reportUnknownVariableType]


def _error(status: int, text: str) -> web.Response:
    return web.json_response({"error": text}, status=status)


def _cut(request: web.Request, *, abort: bool) -> web.Response:
    transport = request.transport
    if transport is not None:
        if abort:
            transport.abort()
        else:
            transport.close()
    return web.Response()


async def _half(request: web.Request, answer: web.Response) -> None:
    body = answer.body if isinstance(answer.body, bytes) else b""
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nDate: {formatdate(usegmt=True)}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    if request.transport is not None:
        request.transport.write(head.encode() + body[: len(body) // 2])


async def _hang() -> web.Response:
    await asyncio.Event().wait()
    return web.Response()
