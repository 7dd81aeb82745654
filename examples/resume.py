"""Submit in one process, await in another: all that passes between them is the ledger's file.

python examples/resume.py submit jobs.db IMAGE_ID...     orders a video of each image, and ends
python examples/resume.py await jobs.db                  awaits what is not finished

Both use the API of QAMERA_BASE_URL with the key of QAMERA_API_KEY; to spend nothing, set them to what
`python -m qamera_async.sandbox` prints.
"""

from __future__ import annotations

import argparse
import asyncio
import sys

from qamera_async import JobError, QameraError, QameraSession


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Submit in one process, await in another.")
    commands = parser.add_subparsers(dest="command", required=True)
    submitting = commands.add_parser("submit", help="order a video of each image; this spends credits")
    submitting.add_argument("ledger")
    submitting.add_argument("image_ids", nargs="+", metavar="IMAGE_ID")
    commands.add_parser("await", help="await what is not finished").add_argument("ledger")
    return parser.parse_args()


async def submit(ledger: str, image_ids: list[str]) -> int:
    """Order a video of each image; the same image again is the same job."""
    async with QameraSession(ledger=ledger) as qamera:
        for image_id in image_ids:
            job = await qamera.register_video(image_id=image_id, ref=image_id)
            print(f"{image_id}: ordered, records {', '.join(job.record_ids)}")
    return 0


async def await_all(ledger: str) -> int:
    """Await what the ledger has as not finished; one that fails keeps no other from its end."""
    failed = 0
    async with QameraSession(ledger=ledger) as qamera:
        jobs = await qamera.unfinished()
        print(f"{len(jobs)} to await")
        for done in asyncio.as_completed([job.wait() for job in jobs]):
            try:
                video = await done
                print(f"{video.id}: {video.status} {video.video_url}")
            except JobError as error:
                failed += 1
                print(error, file=sys.stderr)
    return 1 if failed else 0


def main() -> int:
    """Run the command line; give its exit status."""
    asked = arguments()
    try:
        if asked.command == "submit":
            return asyncio.run(submit(asked.ledger, asked.image_ids))
        return asyncio.run(await_all(asked.ledger))
    except QameraError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted. What was ordered goes on; await it another time.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
