"""How both web apps start: where the API is, and where things are kept."""

from __future__ import annotations

import argparse
import os
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
from web.board import Board
from yarl import URL

from qamera_async import PollPolicy, QameraSession, Timeouts
from qamera_async.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

PAGE = Path(__file__).parent
"""The folder of what a browser gets."""

FILES = ("page.css", "page.js", "icon.svg")

DEFAULT_URL = "https://app.qamera.ai"
"""The API that a session uses if QAMERA_BASE_URL is not set."""


def arguments(description: str) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    parser.add_argument("--port", type=int, default=8080, help="0 means any free one")
    parser.add_argument("--folder", type=Path, default=Path("web-app"), help="for the ledger and the clips")
    parser.add_argument(
        "--name", action="append", default=[], help="a host name that the app goes by, besides localhost"
    )
    return parser.parse_args()


def hosts_of(asked: argparse.Namespace) -> frozenset[str]:
    """Give the names that the app goes by."""
    return frozenset({"localhost", "127.0.0.1", "::1", *[name.lower() for name in (asked.host, *asked.name)]})


def board_in(folder: Path) -> Callable[[], AbstractAsyncContextManager[Board]]:
    """Give what opens the app's board: on the real API where there is a key, else on the sandbox."""
    return lambda: _on_the_api(folder) if os.environ.get("QAMERA_API_KEY") else _on_the_sandbox(folder)


@asynccontextmanager
async def _on_the_api(folder: Path) -> AsyncIterator[Board]:
    clips, ledger = folder / "clips", folder / "jobs.db"
    clips.mkdir(parents=True, exist_ok=True)
    origin = _origin(os.environ.get("QAMERA_BASE_URL") or DEFAULT_URL)
    async with (
        QameraSession(ledger=ledger) as qamera,
        Board(qamera, ledger=ledger, origin=origin, clips=clips) as board,
    ):
        yield board


@asynccontextmanager
async def _on_the_sandbox(folder: Path) -> AsyncIterator[Board]:
    clips, ledger = folder / "sandbox-clips", folder / "sandbox.db"
    clips.mkdir(parents=True, exist_ok=True)
    async with Sandbox(job_seconds=6.0) as sandbox:
        print(
            "On the sandbox: no key is needed, and no credits are spent.\n"
            "The image img_fails makes a job fail, and the answer to an order of img_lost is lost."
        )
        async with (
            sandbox.session(
                ledger=ledger,
                polling=PollPolicy(interval=1.0),
                timeouts=Timeouts(reconcile=3.0),
                trace_configs=[_trouble_on(sandbox)],
            ) as qamera,
            Board(qamera, ledger=ledger, origin=_origin(sandbox.url), clips=clips) as board,
        ):
            yield board


def _origin(url: str) -> str:
    """Return scheme, host and port of a URL, as the ledger stores them."""
    return str(URL(url).origin())


def _trouble_on(sandbox: Sandbox) -> aiohttp.TraceConfig:
    """Let two images show what can go wrong: the sandbox is told of it just before the order leaves."""

    async def sending(_: object, __: object, sent: aiohttp.TraceRequestChunkSentParams) -> None:
        if b'"img_fails"' in sent.chunk:
            sandbox.trouble("fail_job")
        if b'"img_lost"' in sent.chunk:
            sandbox.trouble("reset_after")

    trace = aiohttp.TraceConfig()
    trace.on_request_chunk_sent.append(sending)
    return trace
