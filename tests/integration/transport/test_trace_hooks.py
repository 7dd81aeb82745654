"""Trace hooks of the user: they get the arguments of aiohttp, and their errors are logged and ignored."""

import asyncio
import types

import aiohttp
import pytest
from faults import GOOD, LIST, RECEIPT, FaultServer, answers
from transport_fakes import GET, LOST, POST, REQUESTS

import qamera_async as q
from qamera_async._transport import Attempt

pytestmark = pytest.mark.every_loop
METHODS = pytest.mark.parametrize("method", REQUESTS)
BODIES = {"GET": LIST, "POST": RECEIPT}
SIGNALS = [name for name in dir(aiohttp.TraceConfig) if name.startswith("on_")]


def tracing(hook, factory=types.SimpleNamespace):
    """Return a TraceConfig that calls a hook with the name, the context and the parameters of each signal."""
    config = aiohttp.TraceConfig(trace_config_ctx_factory=factory)
    for signal in SIGNALS:

        async def call(_, context, params, signal=signal):
            await hook(signal, context, params)

        getattr(config, signal).append(call)
    return config


@METHODS
async def test_hooks_do_not_get_the_context_of_this_package(api, slot, method):
    seen = {}

    async def note(signal, context, params):
        seen[signal] = context.trace_request_ctx

    async with FaultServer(GOOD) as server:
        await api(server, trace_configs=[tracing(note)]).send(REQUESTS[method], slot)

    assert {"on_request_start", "on_connection_create_end", "on_request_end"} <= seen.keys()
    assert set(seen.values()) == {None}


async def test_context_factory_of_the_user_is_used(api, slot):
    seen = set()

    def factory(trace_request_ctx):
        return types.SimpleNamespace(mine=trace_request_ctx)

    async def note(_, context, params):
        seen.add(repr(context))

    async with FaultServer(GOOD) as server:
        await api(server, trace_configs=[tracing(note, factory)]).send(GET, slot)

    assert seen == {"namespace(mine=None)"}


@METHODS
@pytest.mark.case(87)
@pytest.mark.parametrize("error", [RuntimeError("S3CRET"), asyncio.CancelledError("S3CRET")])
async def test_error_of_a_hook_is_logged_and_loses_no_response(api, slot, method, error, caplog):
    raised = []

    async def raise_error(signal, context, params):
        raised.append(signal)
        raise error

    async with FaultServer(GOOD) as server:
        response = await api(server, trace_configs=[tracing(raise_error)]).send(REQUESTS[method], slot)

    assert response.body == BODIES[method]
    assert slot.settled == ["response"]
    assert len(caplog.records) == len(raised) > 3
    assert type(error).__name__ in caplog.text
    assert "tracing.<locals>.call" in caplog.text
    assert "S3CRET" not in caplog.text
    assert not any(record.exc_info for record in caplog.records)


@METHODS
async def test_hook_does_not_swallow_a_cancellation(api, slot, method):
    waiting = asyncio.Event()

    async def wait(signal, context, params):
        if signal == "on_request_start":
            waiting.set()
            await asyncio.sleep(60)

    async with FaultServer(GOOD) as server:
        client = api(server, trace_configs=[tracing(wait)])
        sending = asyncio.ensure_future(client.send(REQUESTS[method], slot))
        await waiting.wait()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending

        assert server.requests == []


@METHODS
async def test_hooks_get_the_error_of_a_lost_keep_alive_connection(api, slot, method):
    seen = []

    async def note(signal, context, params):
        if signal == "on_request_exception":
            seen.append(type(params.exception))

    async with FaultServer(GOOD, answers(b"", "fin")) as server:
        client = api(server, trace_configs=[tracing(note)])
        await client.send(REQUESTS[method], slot)
        with pytest.raises(q.TransportError):
            await client.send(REQUESTS[method], slot)

    assert seen == [aiohttp.ServerDisconnectedError]
    assert slot.settled == ["response", LOST]


async def test_nothing_runs_between_before_body_and_the_first_byte(api, slot):
    """A slow hook after before_body would delay the first byte, and the commit that it checked would age."""
    order = []

    async def slow(signal, context, params):
        if signal == "on_request_chunk_sent":
            await asyncio.sleep(0.01)
            order.append("hook")

    async def before_body():
        order.append("before_body")

    async with FaultServer(GOOD) as server:
        client = api(server, trace_configs=[tracing(slow)])
        await client.send(POST, slot, Attempt(before_body))

    assert order == ["hook", "before_body"]


async def test_one_trace_config_serves_several_clients(api, slot):
    seen = []

    async def note(signal, context, params):
        seen.append(signal)

    config = tracing(note)
    async with FaultServer(GOOD) as server:
        for _ in range(2):
            for request in REQUESTS.values():
                await api(server, trace_configs=[config]).send(request, slot)

    assert seen.count("on_request_end") == 4
