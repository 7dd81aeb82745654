"""One video and one reel, awaited together, with their statuses printed as they change.

python examples/quickstart.py                       on the sandbox: needs no key, spends nothing
python examples/quickstart.py --live IMAGE_ID...    on the real API: needs QAMERA_API_KEY, spends credits
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys

from qamera_async import Job, PollPolicy, QameraError, QameraSession, ReelRequest, Video, VideoRequest
from qamera_async.sandbox import Sandbox

REFUSED = 2


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Make one video and one reel, and await both.")
    parser.add_argument(
        "--live",
        nargs="+",
        metavar="IMAGE_ID",
        help="use the real API with these images (1 to 10); this spends credits",
    )
    parser.add_argument("--yes", action="store_true", help="with --live: spend credits without asking")
    return parser.parse_args()


async def followed(name: str, job: Job[Video]) -> Video:
    """Print each status of a job, then return its video."""
    async for video in job.updates():
        print(f"{name} {video.id}: {video.status}")
    return await job


async def make(qamera: QameraSession, image_ids: list[str]) -> None:
    """Register a video of the first image and a reel of all of them, and await both."""
    # Both are checked before the first is paid for.
    video_request = VideoRequest(image_id=image_ids[0], suggestion="Slow zoom in")
    reel_request = ReelRequest(image_ids)

    # Before anything is awaited, so that both are in the making while we wait.
    video_job = await qamera.register(video_request)
    print(f"video registered: {', '.join(video_job.record_ids)}")
    reel_job = await qamera.register(reel_request)
    print(f"reel registered: {', '.join(reel_job.record_ids)}")

    video, reel = await asyncio.gather(followed("video", video_job), followed("reel", reel_job))

    print(f"video URL: {video.video_url}")
    print(f"reel URL: {reel.video_url}")


async def on_sandbox() -> None:
    """Run on a server of our own on this machine."""
    print("This runs on the sandbox, a server on this machine: no key is needed and no credits are spent.")
    async with Sandbox(job_seconds=1.0) as sandbox:
        async with sandbox.session(polling=PollPolicy(interval=0.25)) as qamera:
            await make(qamera, ["img_001", "img_002", "img_003"])
        print(f"{len(sandbox.requests)} requests in all, {sandbox.credits} sandbox credits left")


async def on_real_api(image_ids: list[str]) -> None:
    """Run on the real API, with the key from the environment."""
    async with QameraSession() as qamera:
        await make(qamera, image_ids)


def may_spend(image_ids: list[str], *, yes: bool) -> bool:
    """Say that this spends credits, and ask where nobody has said yes to it."""
    print(
        f"This registers one video (of {image_ids[0]}) and one reel (of {len(image_ids)} images) "
        "on the real API. It SPENDS CREDITS of your account."
    )
    if yes:
        return True
    if not sys.stdin.isatty():
        print("Refused: nobody is there to be asked. Pass --yes to spend them.", file=sys.stderr)
        return False
    try:
        agreed = input("Go on? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        agreed = False
    if not agreed:
        print("Nothing was sent.", file=sys.stderr)
    return agreed


def main() -> int:
    """Run the command line; give its exit status."""
    asked = arguments()
    if asked.live and not os.environ.get("QAMERA_API_KEY"):
        print("--live needs an API key in QAMERA_API_KEY.", file=sys.stderr)
        return REFUSED
    if asked.live and not may_spend(asked.live, yes=asked.yes):
        return REFUSED
    try:
        asyncio.run(on_real_api(asked.live) if asked.live else on_sandbox())
    except QameraError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted. What was registered goes on; its ids are above.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
