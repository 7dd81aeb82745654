"""``sandbox``: the API on loopback, for trying one's own code."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from ..sandbox import Sandbox
from .codes import Code

if TYPE_CHECKING:
    from .running import Running


async def serve(
    running: Running,
    port: int,
    job_seconds: float,
    credits_: int,
    quota: tuple[int, float] | None,
    records: int,
) -> Code:
    """Serve until it is stopped, which is how it ends well."""
    sandbox = Sandbox(job_seconds, credits_, quota, port=port)
    sandbox.add_records(records)
    async with sandbox:
        running.result(
            f"url: {sandbox.url}\nkey: {sandbox.api_key}\n"
            f"export QAMERA_BASE_URL={sandbox.url} QAMERA_API_KEY={sandbox.api_key}",
            "sandbox",
            lambda: {"url": sandbox.url, "key": sandbox.api_key},
        )
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
    return Code.DONE
