"""``python -m qamera_async.sandbox``: the API on loopback, for trying one's own code."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys

from . import Sandbox


def _quota(text: str) -> tuple[int, float]:
    limit, _, window = text.partition("/")
    return int(limit), float(window)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m qamera_async.sandbox", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 means any free one")
    parser.add_argument("--job-seconds", type=float, default=5.0, help="how long a job takes")
    parser.add_argument("--credits", type=int, default=1000, help="what the account has to spend")
    parser.add_argument("--quota", type=_quota, default=(60, 60.0), metavar="LIMIT/SECONDS")
    parser.add_argument("--no-quota", action="store_const", const=None, dest="quota")
    parser.add_argument("--records", type=int, default=0, help="old records in the list")
    parser.add_argument("--count-delay", type=float, default=0.0, help="seconds until a request is counted")
    parser.add_argument("--etag", action="store_true", help="an ETag for the list, and 304 where it is known")
    parser.add_argument("--compress", action="store_true", help="the list in gzip where the client takes it")
    return parser.parse_args()


async def _serve(arguments: argparse.Namespace) -> None:
    sandbox = Sandbox(
        arguments.job_seconds,
        arguments.credits,
        arguments.quota,
        port=arguments.port,
        count_delay=arguments.count_delay,
        etag=arguments.etag,
        compress=arguments.compress,
    )
    sandbox.add_records(arguments.records)
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        # Without signal handlers of the loop, as on Windows, Ctrl-C is a KeyboardInterrupt.
        with contextlib.suppress(NotImplementedError):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with sandbox:
        lines = (
            f"url: {sandbox.url}",
            f"key: {sandbox.api_key}",
            f"export QAMERA_BASE_URL={sandbox.url} QAMERA_API_KEY={sandbox.api_key}",
        )
        print("\n".join(lines), flush=True)  # noqa: T201 - it is a command
        await stopped.wait()


if __name__ == "__main__":
    try:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_serve(_arguments()))
    except (OSError, ValueError) as error:
        sys.exit(f"qamera sandbox: {error}")
