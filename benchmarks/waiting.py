"""Waiting under the quota: requests, 429s, how long it takes and how late each result is."""

import asyncio
import functools
import itertools
import os
from collections import Counter

from _fake import durations
from clients import installed
from processes import child, fake
from report import Row, Table, figure

SPEED, SPREAD = 10.0, 0.5
ABOUT = """
All jobs are registered at once and awaited, under a quota of 60 requests in 6 s: everything ten times
faster than in life. qamera-async is told so by its settings; of the others each sleep takes a tenth, while
their timeouts are as in life. A job takes 3 s, or as a
log-normal distribution with that median and sigma 0.5 has it. Makespan: from the first registration until
the last result, over the least that the quota allows: registrations alone, 60 in each window, and then the
job. Late: from the server's "done" until the caller has it. Each peer asks for its own job by its id, of a
fake of its own API; the quota is that of Qamera AI, which theirs don't have, and for which they were not
made. CPU is not ten times faster: who sends thousands of requests is held up here more than in life. A
client whose jobs are not all done after 2.5 times the least, and 6 s, is cut off. Lateness is that of the
jobs that finished; of the others, those that were registered are paid for. By its own notes the video API
of openai ends in September 2026; its client still has it. Its server may name the time between polls, and
that of replicate may hold a request open until a job is done (`run` asks for it): the fakes do neither. Two
clients run at a time. 250 jobs, and jobs of log-normal length, are run once, the rest three times; counts of
what was raised are sums. qamera-async alone knows of the quota.
"""
NOTES = {
    "replicate": "sends a GET up to 10 times, and a POST once",
    "openai": "sends up to 3 times",
    "runwayml": "sends up to 3 times",
    "aiohttp, a loop for each job": "sends up to 5 times",
    "httpx, a loop for each job": "sends up to 5 times",
}


def least(number, quota, seconds, spread):
    """Give the seconds that the quota and the jobs take at least."""
    limit, window = quota
    return max(n // limit * window + took for n, took in enumerate(durations(number, seconds, spread)))


async def _one(lanes, name, retries, number, *, quota, seconds, retry_after, spread):
    """Run a client's jobs; give what became of them."""
    shortest = least(number, quota, seconds, spread)
    served = {"quota": quota, "retry_after": retry_after, "seconds": seconds, "spread": spread}
    asked = {
        "client": name,
        "number": number,
        "retries": retries,
        "quota": quota,
        "limit": 2.5 * shortest + 6,
    }
    async with lanes, fake(speed=SPEED, **served) as server:
        told = await child("jobs", url=server.url, speed=SPEED, **asked)
        seen = await server.count()
    had, counted = told["had"], seen["counted"]
    late = [at - seen["done_at"][int(record.rpartition("_")[2])] for record, at in had.items()]
    return {
        "requests": counted.get("GET", 0) + counted.get("POST", 0),
        "429": counted.get("429", 0),
        "finished": len(had),
        "cut": told["cut"],
        "failed": told["failed"],
        "makespan": (max(had.values()) - told["start"]) / shortest if len(had) == number else None,
        "mean": sum(late) / len(late) if late else None,
        "worst": max(late, default=None),
        "cpu": told["cpu"],
    }


def _row(name, retries, number, runs):
    """Give the row of a client: medians of its runs, and what happened in all of them."""
    mine = name == "qamera-async"
    failed = sum((Counter(run["failed"]) for run in runs), Counter({"": sum(run["cut"] for run in runs)}))
    happened = [
        f"{count} raised {error}" if error else f"{count} cut off" for error, count in failed.items() if count
    ]
    if retries:
        happened.insert(0, "up to 11 times" if name != "replicate" else "a POST up to 11 times, too")
    elif name in NOTES:
        happened.insert(0, NOTES[name])

    def median(key, unit="", target=None, *, worst=False):
        values = [run[key] for run in runs if run[key] is not None]
        return figure(values, unit, target, worst=worst) if values else "none"

    most = {30: 50, 100: 120, 250: 290}.get(number) if mine else None
    return Row(
        f"{name}{', retries raised' if retries else ''}",
        {
            "jobs": figure(number),
            "finished": median("finished"),
            "requests": median("requests", "", most, worst=True),
            "429s": median("429", "", 0 if mine else None, worst=True),
            # Of the runs in which all finished it would say little.
            "makespan": "not all"
            if any(run["makespan"] is None for run in runs)
            else median("makespan", "x", 1.06 if mine and number >= 100 else None),
            "late, mean": median("mean", "s"),
            "late, worst": median("worst", "s"),
            "CPU": median("cpu", "s"),
        },
        "; ".join(happened),
    )


async def main(scale):
    """Measure all clients under each condition; one table for each."""
    names, left_out = installed()
    variants = [(name, None) for name in names]
    if scale.retries:
        variants += [(name, scale.retries) for name in names if name != "qamera-async"]
    lanes = asyncio.Semaphore(min(2, os.cpu_count() or 1))
    tables = []
    for spread, retry_after in itertools.product(scale.spreads, (False, True)):
        lengths = "jobs of log-normal length" if spread else f"jobs of {scale.seconds:g} s"
        header = "with Retry-After" if retry_after else "without Retry-After"
        table = Table(f"Under the quota: {lengths}, a 429 {header}", "" if tables else ABOUT)
        table.left_out = left_out
        run = functools.partial(
            _one, lanes, quota=scale.quota, seconds=scale.seconds, spread=spread, retry_after=retry_after
        )
        for number in scale.jobs:
            chosen = [variant for variant in variants if number > 1 or not variant[1]]
            repeats = scale.repeats if number <= 100 and not spread else 1
            rounds = []
            for _ in range(repeats):
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(run(*variant, number)) for variant in chosen]
                rounds.append([task.result() for task in tasks])
            table.rows += [
                _row(*variant, number, runs) for variant, *runs in zip(chosen, *rounds, strict=True)
            ]
        tables.append(table)
    return tables
