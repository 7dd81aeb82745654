"""Settings of a session, the secrets in its errors, and calls that wait for a slot when it closes."""

import asyncio
import pickle
import ssl
import traceback

import aiohttp
import pytest

import qamera_async as q
from qamera_async.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")

KEY = "mk_live_canary.SECRETCANARY"


async def test_cancelled_list_shows_no_key():
    """Neither the traceback nor the context of the error has frames of the HTTP client."""
    async with Sandbox(quota=None, api_key=KEY) as sandbox, sandbox.session() as other:
        sandbox.trouble("hang", on="GET")
        with pytest.raises(TimeoutError) as timed_out:
            async with asyncio.timeout(0.1):
                await other.list_videos()
        lines = traceback.TracebackException.from_exception(timed_out.value, capture_locals=True).format()

    assert "SECRETCANARY" not in "".join(line for line in lines if "test_session_edges" not in line)
    assert "aiohttp" not in "".join(line for line in lines if line.lstrip().startswith("File"))


async def test_errors_have_no_cause_or_context_from_the_http_client(quick):
    """Exceptions of the HTTP client hold the headers of the request, and so the key."""
    async with Sandbox(quota=None) as sandbox, sandbox.session(**quick) as session:
        for name in ("reset_after", "truncate", "garbage"):
            sandbox.trouble(name)
            with pytest.raises(q.QameraError) as caught:
                await session.register_video(image_id="i")
            error = caught.value
            while error is not None:
                assert not type(error).__module__.startswith("aiohttp")
                error = error.__cause__ or error.__context__


async def test_closing_ends_calls_that_wait_for_a_slot(quick):
    """`list_videos` and `register_video` raise SessionClosedError without waiting for a slot."""
    async with Sandbox(quota=(1, 60.0)) as sandbox:
        session = sandbox.session(**quick)
        await session.list_videos()
        queued = asyncio.ensure_future(session.list_videos())
        ordering = asyncio.ensure_future(session.register_video(image_id="i"))
        await asyncio.sleep(0.01)
        await asyncio.wait_for(session.aclose(), 2)
        results = await asyncio.wait_for(asyncio.gather(queued, ordering, return_exceptions=True), 2)

    assert [type(result) for result in results] == [q.SessionClosedError] * 2
    assert session.rate_limiter.waiting == 0


@pytest.mark.parametrize(
    "options",
    [
        {"api_key": ""},
        {"api_key": "a b"},
        {"api_key": "a\n"},
        {"api_key": "ключ"},
        {"polling": 3},
        {"proxy": 3},
        {"proxy": "garbage"},
        {"proxy": "socks5://x:1"},
        {"ssl_context": "x"},
        {"trace_configs": 5},
        {"trace_configs": [object()]},
        {"trust_env": "no"},
        {"allow_http": "no"},
        {"base_url": "http://example.com"},
        {"base_url": "ftp://example.com"},
        {"base_url": "example.com"},
        {"base_url": "https://u:p@example.com"},
        {"base_url": "https://h:0"},
        {"base_url": "https://h\r\nx"},
        {"base_url": KEY},
        {"rate_limiter": 3},
        {"on_event": 3},
    ],
)
def test_invalid_setting_is_refused_and_shows_no_key(options):
    """The session refuses it when it is built. Neither the text nor a traceback with locals shows the key."""
    with pytest.raises(q.ConfigurationError) as refused:
        q.QameraSession(**{"api_key": KEY, "base_url": "https://example.com"} | options)
    lines = traceback.TracebackException.from_exception(refused.value, capture_locals=True).format()
    ours = [line for line in lines if "qamera_async/" in line]

    assert "SECRETCANARY" not in str(refused.value)
    assert options.get("base_url") == KEY or "SECRETCANARY" not in "".join(ours)


def test_valid_settings_are_accepted():
    """The settings have a secret in their values, and neither their repr nor a pickle shows it."""
    session = q.QameraSession(
        KEY,
        base_url="http://cluster.internal:8080/qamera/",
        allow_http=True,
        proxy="http://user:password@proxy.internal:3128",
        trust_env=True,
        ssl_context=ssl.create_default_context(),
        trace_configs=[aiohttp.TraceConfig()],
    )

    assert "password" not in repr(session._settings)
    assert "SECRETCANARY" not in repr(session._settings)
    with pytest.raises(TypeError):
        pickle.dumps(session._settings)
