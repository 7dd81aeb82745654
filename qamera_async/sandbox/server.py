"""The API's origin: who may come in, what counts, and which trouble a request meets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from . import openapi
from .endpoints import Answer, Endpoints, correlation, error, header
from .misbehave import misbehave

if TYPE_CHECKING:
    from .arrivals import Arrival, ArrivedRequest, Log
    from .quota import Quota
    from .trouble import Script
    from .world import World


class ApiServer:
    """Answers as the API does, and misbehaves as it is told.

    Args:
        world: what the endpoints work on.
        script: the trouble to come.
        log: where arriving requests are noted.
        quota: counts them.
        api_key: the one valid key.
        retry_after: what a 429 of the quota states, in seconds; None: it has no such header.
    """

    def __init__(
        self,
        world: World,
        script: Script,
        log: Log,
        quota: Quota,
        *,
        api_key: str,
        retry_after: float | None,
        etag: bool,
        compress: bool,
    ) -> None:
        self._world = world
        self._script = script
        self._log = log
        self._quota = quota
        self._endpoints = Endpoints(world, script, etag=etag, compress=compress).by_path
        self._api_key = api_key
        self._retry_after = {} if retry_after is None else {"Retry-After": f"{retry_after:g}"}

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer any request."""
        arrival = self._log.add("api", request)
        answer: Answer | web.StreamResponse | None
        try:
            arrival.has_body(await request.read())
            if request.path == openapi.PATH:
                # Free, and for whoever asks: it is no part of the API.
                answer = Answer(200, openapi.document()) if request.method == "GET" else _only("GET")
            else:
                answer = await self._answer(request, arrival)
        except web.HTTPRequestEntityTooLarge:
            answer = error(413)
        if answer is None:
            # The connection is closed: aiohttp wants a response, and nobody gets to see it.
            return web.Response()
        if not isinstance(answer, Answer):
            return answer
        arrival.is_answered(answer.status)
        extra = correlation() if request.method == "POST" else {}
        headers = {"Content-Type": "application/json", **extra, **answer.headers}
        return web.Response(status=answer.status, body=answer.body, headers=headers)

    async def _answer(self, request: web.Request, arrival: Arrival) -> Answer | web.StreamResponse | None:
        methods = self._endpoints.get(request.path)
        if methods is None:
            return error(404)
        if request.method not in methods:
            return _only(*methods)
        if (refusal := self._unauthorized(arrival.request)) is not None:
            return refusal
        await self._quota.moment()
        # What is refused for the quota meets no trouble, and a scripted 429 doesn't count.
        trouble = self._script.next(request.method)
        if trouble is None or trouble.name != "too_many":
            if not self._quota.admits():
                return error(429, headers=self._retry_after)
            arrival.is_counted()

        def endpoint() -> Answer:
            return methods[request.method](arrival.request)

        if trouble is None:
            return endpoint()
        self._script.took(trouble)
        elsewhere = f"{self._world.cdn_url}/elsewhere"
        return await misbehave(trouble, request, arrival, endpoint, elsewhere)

    def _unauthorized(self, request: ArrivedRequest) -> Answer | None:
        key = header(request, "X-Api-Key")
        if key is None:
            scheme, _, token = (header(request, "Authorization") or "").partition(" ")
            key = token.strip() if scheme.lower() == "bearer" else None
        if key is None:
            return error(401, "Missing API key.")
        return None if key == self._api_key else error(401)


def _only(*methods: str) -> Answer:
    return error(405, headers={"Allow": ", ".join(methods)})
