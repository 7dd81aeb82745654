"""The sandbox of the soak, in a process of its own: ``python _soak_server.py SEED CREDITS KEY``.

Says its URL as a line of JSON, then obeys lines: ``burst N`` (the next N orders lose their answers),
``restart SECONDS`` (cuts all connections, and listens again on the same port with the same records),
``report PATH`` (writes what it saw as JSON). It answers each with a line and ends with its input.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final
from unittest.mock import patch

from qamera_async.sandbox import Sandbox
from qamera_async.sandbox.trouble import Script, Trouble

if TYPE_CHECKING:
    from collections.abc import Mapping

FAULTY: Final = 0.05
FAILING: Final = 0.02
JOB_SECONDS: Final = 0.5
LISTED: Final = 10.0  # seconds; a list that grew for ever would hide a client that does
BOTH: Final[list[tuple[str, dict[str, Any]]]] = [
    ("reset_before", {}),
    ("reset_after", {}),
    ("error", {"status": 500}),
    ("too_many", {"retry_after": None}),
    ("hang", {}),
    ("truncate", {}),
    ("garbage", {}),
    ("slow", {"seconds": 0.3}),
]
FAULTS: Final[dict[str, list[tuple[str, dict[str, Any]]]]] = {
    "GET": BOTH,
    "POST": [*BOTH, ("error", {"status": 500, "taken": True}), ("error", {"status": 400})],
}


class Dice(Script):
    """Lets a share of requests meet trouble, and of jobs fail; what is scripted goes first."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._random = Random(seed)  # noqa: S311 - it guards nothing
        self.met: Counter[str] = Counter()

    def next(self, method: str) -> Trouble | None:
        """Roll for a request."""
        scripted = super().next(method)
        if scripted is not None or self._random.random() >= FAULTY:
            return scripted
        name, details = self._random.choice(FAULTS[method])
        return Trouble.of(name, method, details)

    def took(self, trouble: Trouble) -> None:
        """Count what was met."""
        details = trouble.details
        kind = " ".join([trouble.name, *([str(details["status"])] if "status" in details else [])])
        self.met[
            f"{trouble.on} {kind}{' (taken)' if trouble.name == 'error' and details['taken'] else ''}"
        ] += 1
        if trouble in self._waiting:
            super().took(trouble)

    def for_order(self) -> dict[str, Mapping[str, Any]]:
        """Roll for a job; each leaves the list some time after it has ended."""
        fails = {"fail_job": {"status": "FAILED"}} if self._random.random() < FAILING else {}
        return {"vanish": {"after": LISTED}, **fails}


def seen(sandbox: Sandbox, met: Counter[str]) -> dict[str, Any]:
    """Give what the server knows of its orders and requests."""
    sent = Counter(
        json.loads(request.body)["imageId"]
        for request in sandbox.requests
        if request.method == "POST" and request.body and request.status != 429
    )
    return {
        "orders": [
            {
                "id": order.id,
                "image": order.body["imageId"],
                "key": order.idempotency_key,
                "records": list(order.record_ids),
                "credits": order.credits,
                "failed": any(sandbox.records[record].outcome == "FAILED" for record in order.record_ids),
            }
            for order in sandbox.orders
        ],
        "sent": sent,
        "credits": sandbox.credits,
        "requests": Counter(request.method for request in sandbox.requests),
        "faults": met,
    }


async def main() -> None:
    """Serve until the input ends."""
    dice = Dice(int(sys.argv[1]))
    with patch("qamera_async.sandbox.Script", lambda: dice):
        sandbox = Sandbox(JOB_SECONDS, int(sys.argv[2]), quota=None, api_key=sys.argv[3])
    async with sandbox:
        print(json.dumps({"url": sandbox.url}), flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            command, argument = line.split(maxsplit=1)
            match command:
                case "burst":
                    sandbox.trouble("reset_after", times=int(argument))
                case "restart":
                    url = sandbox.url
                    await sandbox.aclose()
                    await asyncio.sleep(float(argument))
                    await sandbox.start()
                    if sandbox.url != url:
                        raise AssertionError(f"came back as {sandbox.url}, was {url}")
                case _:
                    await asyncio.sleep(JOB_SECONDS)  # whatever was taken has ended then, and is refunded
                    report = json.dumps(seen(sandbox, dice.met))
                    await asyncio.to_thread(Path(argument.strip()).write_text, report)
            print("done", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
