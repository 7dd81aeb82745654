"""How a trouble looks on the wire."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiohttp import web

from .endpoints import Answer, error

if TYPE_CHECKING:
    from collections.abc import Callable

    from .arrivals import Arrival
    from .trouble import Trouble

_PAGE = "<!DOCTYPE html><html><head><title>{0}</title></head><body><h1>{0}</h1></body></html>"


async def misbehave(
    trouble: Trouble, request: web.Request, arrival: Arrival, answer: Callable[[], Answer], elsewhere: str
) -> Answer | web.StreamResponse | None:
    """Let one request meet a trouble.

    Args:
        trouble: which, with its details.
        request: the request as aiohttp has it.
        arrival: its place in the log.
        answer: handles the request as the API does; an order is taken by calling it.
        elsewhere: where a redirect leads if its location is left open.

    Returns:
        An answer to be sent, or what was sent already; None: no answer, the connection is gone.
    """
    name, details = trouble.name, trouble.details
    if name == "reset_before":
        _cut(request, abort=True)
        return None
    right = answer() if details.get("taken", name != "too_many") else None
    match name:
        case "reset_after" | "close_after":
            _cut(request, abort=name == "reset_after")
            return None
        case "slow":
            await asyncio.sleep(details["seconds"])
            return right
        case "hang":
            await asyncio.Event().wait()
        case "stall" | "truncate" if right is not None:
            return await _half(request, arrival, right, stall=name == "stall")
        case _:
            pass
    return _wrong(trouble, elsewhere)


def _wrong(trouble: Trouble, elsewhere: str) -> Answer:
    details = trouble.details
    match trouble.name:
        case "too_many":
            after = details["retry_after"]
            return error(429, headers={} if after is None else {"Retry-After": str(after)})
        case "garbage":
            return _html(200, "Down for maintenance")
        case "empty":
            return Answer(200, b"")
        case "redirect":
            location = elsewhere if details["location"] is None else details["location"]
            return Answer(details["status"], b"", {"Location": location})
        case _:
            if details["html"]:
                return _html(details["status"], details["body"] or f"Error {details['status']}")
            return error(details["status"], details["body"])


def _html(status: int, text: str) -> Answer:
    return Answer(status, _PAGE.format(text).encode(), {"Content-Type": "text/html; charset=utf-8"})


def _cut(request: web.Request, *, abort: bool) -> None:
    if request.transport is not None:
        if abort:
            request.transport.abort()
        else:
            request.transport.close()


async def _half(request: web.Request, arrival: Arrival, answer: Answer, *, stall: bool) -> web.StreamResponse:
    headers = {"Content-Type": "application/json", **answer.headers}
    response = web.StreamResponse(status=answer.status, headers=headers)
    response.content_length = len(answer.body)
    await response.prepare(request)
    arrival.is_answered(answer.status)
    await response.write(answer.body[: len(answer.body) // 2])
    if stall:
        await asyncio.Event().wait()
    _cut(request, abort=False)
    return response
