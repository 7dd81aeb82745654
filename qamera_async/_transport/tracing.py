"""Trace hooks: ours, that see whether a body may have left, and the user's, kept from doing harm."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import aiohttp

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import SimpleNamespace

    from ..errors import QameraError

_log = logging.getLogger("qamera_async")

_SIGNALS = (
    "on_request_start",
    "on_request_chunk_sent",
    "on_response_chunk_received",
    "on_request_end",
    "on_request_exception",
    "on_request_redirect",
    "on_connection_queued_start",
    "on_connection_queued_end",
    "on_connection_create_start",
    "on_connection_create_end",
    "on_connection_reuseconn",
    "on_dns_resolvehost_start",
    "on_dns_resolvehost_end",
    "on_dns_cache_hit",
    "on_dns_cache_miss",
    "on_request_headers_sent",
)


class Flight:
    """How far one request has come; what is said of connections and bodies is known of POSTs only.

    ``on_the_wire``: it has its slot and is not answered yet. ``connected``: it has a connection, so that
    the server may see it. ``body_left``: a byte of its body may have left.
    ``refusal``: the last 429, until another answer.
    """

    __slots__ = ("body_left", "connected", "on_the_wire", "refusal")

    def __init__(self) -> None:
        self.on_the_wire = False
        self.refusal: QameraError | None = None
        self.connected = False
        self.body_left = False


def flight_trace() -> aiohttp.TraceConfig:
    """Give the hooks that keep a request's ``Flight`` up to date."""

    async def connected(_: object, context: SimpleNamespace, __: object) -> None:
        context.trace_request_ctx.connected = True

    async def body_leaves(_: object, context: SimpleNamespace, __: object) -> None:
        # Called before the write, so that "not sent" is never said of what the server got.
        context.trace_request_ctx.body_left = True

    trace = aiohttp.TraceConfig()
    trace.on_connection_create_end.append(connected)
    trace.on_connection_reuseconn.append(connected)
    trace.on_request_chunk_sent.append(body_leaves)
    return trace


def guarded_trace(config: aiohttp.TraceConfig) -> aiohttp.TraceConfig:
    """Give a copy of a user's hooks; what they raise is logged and goes no further."""

    def guard(hook: Callable[..., Awaitable[None]]) -> Any:  # noqa: ANN401 - one guard for each signal's type
        async def guarded(client: object, context: object, params: object) -> None:
            try:
                await hook(client, context, params)
            except Exception:
                # A traceback would hold the request's headers, and with them the key.
                _log.error("a trace hook raised; it is %s", getattr(hook, "__qualname__", type(hook)))

        return guarded

    # The annotation asks for a class; any factory serves.
    factory: Any = config.trace_config_ctx
    copy = aiohttp.TraceConfig(trace_config_ctx_factory=factory)
    for name in _SIGNALS:
        getattr(copy, name).extend(guard(hook) for hook in getattr(config, name))
    return copy
