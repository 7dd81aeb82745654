"""Starts child processes that react to signals in the same way however the tests were started.

A child inherits the ignored signals of its parent. ``nohup`` ignores SIGHUP; a shell script ignores SIGINT
in its background jobs. Without these helpers, tests that run in this way could not interrupt their children.
"""

import asyncio
import contextlib
import signal
import subprocess

SIGNALS = (signal.SIGINT, signal.SIGHUP)


@contextlib.contextmanager
def default_signals():
    """Start children with the default action for SIGINT and SIGHUP while the block runs.

    A new program keeps an ignored signal ignored, but resets a handled signal to its default action. The
    handler here does nothing, so the tests themselves still ignore the signal. ``preexec_fn`` would work as
    well, but it is not safe in a process with threads.
    """
    ignored = [number for number in SIGNALS if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, _do_nothing)
    try:
        yield
    finally:
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def ignored_signals():
    """Start children that ignore SIGINT and SIGHUP while the block runs."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def start(*command, **options):
    """Call `asyncio.create_subprocess_exec` so that the program does not ignore SIGINT and SIGHUP."""
    with default_signals():
        return await asyncio.create_subprocess_exec(*command, **options)


async def start_ignoring_signals(*command, **options):
    """Start a program as ``nohup program &`` in a script does: with SIGINT and SIGHUP ignored."""
    with ignored_signals():
        return await asyncio.create_subprocess_exec(*command, **options)


def run(command, **options):
    """Call `subprocess.run` so that the program does not ignore SIGINT and SIGHUP."""
    with default_signals():
        return subprocess.run(command, check=False, **options)


def _do_nothing(_number, _frame):
    pass
