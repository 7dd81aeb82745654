"""Helpers for the tests of batches."""

import asyncio

import qamera_async as q


def posts(sandbox):
    """Return the POSTs that a sandbox has received."""
    return [request for request in sandbox.requests if request.method == "POST"]


def videos(number, **fields):
    return [q.VideoRequest(f"img_{n}", ref=f"sku-{n}", **fields) for n in range(number)]


class Counted:
    """An iterator that counts the requests read from it."""

    def __init__(self, requests):
        self.requests = iter(requests)
        self.read = 0

    def __iter__(self):
        return self

    def __next__(self):
        request = next(self.requests)
        self.read += 1
        return request


async def consume(batch):
    """Iterate over a batch; return its outcomes, and the exception that ended it or None."""
    outcomes = []
    try:
        async for outcome in batch:
            outcomes.append(outcome)  # noqa: PERF401 - keeps the outcomes before the error
    except Exception as error:
        return outcomes, error
    return outcomes, None


async def collect(batch):
    return await batch


async def until(condition, seconds=5.0):
    """Wait until a condition holds."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.001)


def batch_tasks(*prefixes):
    """Return the names of the running batch tasks, or of tasks with other prefixes."""
    names = [task.get_name() for task in asyncio.all_tasks()]
    return [name for name in names if name.startswith(prefixes or "qamera-batch")]
