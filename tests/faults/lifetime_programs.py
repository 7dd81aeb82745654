"""Programs for test_lifetimes.py: one is interrupted, one forks. Each prints its outcome.

python lifetime_programs.py NAME '{"url": ..., "key": ..., "ledger": ...}'
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from functools import partial

import qamera_async as q


def session(asked: dict) -> q.QameraSession:
    """Return a session that polls often."""
    return q.QameraSession(
        asked["key"],
        base_url=asked["url"],
        ledger=asked["ledger"],
        polling=q.PollPolicy(interval=0.02, stale_after=0.1, max_interval=0.1),
    )


async def register(asked: dict) -> None:
    """Register one video, and print "cancelled" when the call is cancelled."""
    logging.basicConfig(stream=sys.stdout)
    async with session(asked) as qamera:
        try:
            await qamera.register_video(image_id="img_1", ref="sku-1")
        except asyncio.CancelledError:
            # The loop prints it, so that a second interrupt arrives in the loop and not in this function.
            asyncio.get_running_loop().call_soon(partial(print, "cancelled", flush=True))
            raise


async def fork(asked: dict) -> None:
    """Use two sessions in a forked child: one was used before the fork, the other was only built."""
    told = {}
    unused = session(asked)
    async with session(asked) as used:
        job = await used.register_video(image_id="img_1", ref="sku-1")
        reading, writing = os.pipe()
        if not os.fork():
            try:
                for name, qamera in {"used": used, "unused": unused}.items():
                    for method, error in _refusals(qamera, job if qamera is used else None):
                        told[f"{name}: {method}"] = error
                os.write(writing, json.dumps(told).encode())
            finally:
                os._exit(0)  # the child must not run the rest of this function
        os.close(writing)
        with os.fdopen(reading) as child:
            told = json.load(child)
        told["parent"] = (await job).status
    await unused.aclose()
    print(json.dumps(told))


def _refusals(qamera: q.QameraSession, job: q.Job | None):
    """Yield the error text of each method of a session in this process."""
    calls = {
        "register_video": lambda: qamera.register_video(image_id="img_2"),
        "register_reel": lambda: qamera.register_reel(["img_2"]),
        "list_videos": qamera.list_videos,
        "unfinished": qamera.unfinished,
        "ambiguous": qamera.ambiguous,
        "adopt": lambda: qamera.adopt("intent", "vid_1"),
        "batch": lambda: qamera.batch([q.VideoRequest("img_2")]),
        "job": lambda: qamera.job("vid_1"),
    }
    if job is not None:
        calls |= {"wait": job.wait, "download": lambda: qamera.download(job, "clip.mp4")}

    async def call(name: str) -> None:
        if asyncio.iscoroutine(result := calls[name]()):
            await result

    for name in calls:
        try:
            asyncio.run(call(name))
        except q.SessionClosedError as error:
            yield name, str(error)
        else:
            yield name, "no error"


if __name__ == "__main__":
    asyncio.run({"register": register, "fork": fork}[sys.argv[1]](json.loads(sys.argv[2])))
