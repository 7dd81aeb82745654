"""A catalogue of images to a folder of clips: run it again, and it goes on where it stopped.

python examples/batch.py catalogue.csv clips

The file has a header; its columns are image_id and, if you like, ref, suggestion and provider. What is paid
for is kept in clips.db beside the folder, so that neither Ctrl-C nor a crash makes it pay for anything twice.

It uses the API of QAMERA_BASE_URL with the key of QAMERA_API_KEY, and spends credits there. To spend nothing,
set both to what `python -m qamera_async.sandbox` prints.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import io
import sys
from pathlib import Path

from qamera_async import (
    InvalidRequestError,
    QameraError,
    QameraSession,
    VideoRequest,
)
from qamera_async.events import Event, Retrying

SOME_FAILED, REFUSED, IN_DOUBT, INTERRUPTED = 1, 2, 4, 130
COLUMNS = ("image_id", "suggestion", "provider", "ref")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Make a video of each image of a CSV file.")
    parser.add_argument("catalogue", type=Path, help="a CSV file with a column image_id")
    parser.add_argument("folder", type=Path, help="where the clips go")
    parser.add_argument("--ledger", type=Path, help="what is paid for; FOLDER.db unless you say otherwise")
    parser.add_argument("--max-credits", type=int, help="stop before more are spent")
    asked = parser.parse_args()
    if asked.ledger is None:
        if asked.folder.name in {"", ".."}:
            parser.error(
                f"{str(asked.folder)!r} has no name to call the ledger after: say where with --ledger"
            )
        asked.ledger = asked.folder.with_name(f"{asked.folder.name}.db")
    return asked


def text_of(catalogue: Path) -> str:
    """Give the text of a file.

    Raises:
        ValueError: What no CSV file of UTF-8 has, with the number of its line.

    """
    content = catalogue.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{catalogue}, line {line}: it is not in UTF-8 ({error.reason})") from None
    before, nul, _ = text.partition("\0")
    if nul:
        raise ValueError(f"{catalogue}, line {before.count(chr(10)) + 1}: there is a NUL in it")
    return text


def requests_of(catalogue: Path) -> list[VideoRequest]:
    """Give a request for each row; all of them are checked before the first is paid for.

    Raises:
        ValueError: A line that makes no request, with its number and the reason.

    """
    requests: list[VideoRequest] = []
    lines: dict[str, int] = {}
    rows = csv.DictReader(io.StringIO(text_of(catalogue), newline=""))
    try:
        if "image_id" not in (rows.fieldnames or ()):
            raise ValueError(f"{catalogue}, line 1: there is no column image_id")
        for row in rows:
            line = rows.line_num
            if None in row or None in row.values():
                raise ValueError(f"{catalogue}, line {line}: it has not as many columns as the header")
            given = {name: value for name in COLUMNS if (value := (row.get(name) or "").strip())}
            try:
                request = VideoRequest(
                    image_id=given.get("image_id"),
                    suggestion=given.get("suggestion"),
                    provider=given.get("provider"),
                    # The ref is what a rerun recognises a row by. Without a column ref it is the image id.
                    ref=given.get("ref", given.get("image_id")),
                )
            except InvalidRequestError as error:
                raise ValueError(f"{catalogue}, line {line}: {error}") from None
            earlier = lines.setdefault(str(request.ref), line)
            if earlier != line:
                raise ValueError(f"{catalogue}, line {line}: ref {request.ref!r} is on line {earlier} too")
            requests.append(request)
    except csv.Error as error:
        raise ValueError(f"{catalogue}, line {rows.reader.line_num}: {error}") from None
    return requests


def tell(event: Event) -> None:
    """Say that something is tried again: a run that waits should not look like one that hangs."""
    if isinstance(event, Retrying):
        text = f"{event.what}: attempt {event.attempt} failed, the next in {event.delay:.1f} s: {event.error}"
        print(text, file=sys.stderr)


def how_to_settle(ledger: Path, intent_id: str) -> str:
    """Give the Python that settles what is in doubt."""
    return f"""Look at each in the Qamera app, say what is so, and run it again (see "A catalogue, safely"):
    async with QameraSession(ledger={str(ledger)!r}) as qamera:
        await qamera.adopt({intent_id!r}, "RECORD_ID")  # that record was made of it
        await qamera.abandon({intent_id!r})  # or: nothing was, so it may be ordered again"""


async def make(qamera: QameraSession, asked: argparse.Namespace, requests: list[VideoRequest]) -> int:
    """Run the catalogue to its end, or to where it must stop; give the exit status."""
    done, failed, stopped = 0, 0, False
    batch = qamera.batch(requests, download_to=asked.folder, max_credits=asked.max_credits)
    try:
        async with batch as outcomes:
            async for outcome in outcomes:
                done += outcome.ok
                failed += not outcome.ok
                result = outcome.path or outcome.error
                print(f"{done + failed}/{len(requests)} {outcome.request.ref}: {result}")
    except QameraError as reason:
        print(f"It stopped: {reason}", file=sys.stderr)
        stopped = True
    print(f"{done} done, {failed} failed, of {len(requests)}")
    in_doubt = await qamera.ambiguous()
    for intent in in_doubt:
        seen = ", ".join(video.id for video in intent.candidates) or "none seen"
        print(f"In doubt: {intent.request.ref} (intent {intent.id}), candidates: {seen}", file=sys.stderr)
    if in_doubt:
        print(how_to_settle(asked.ledger, in_doubt[0].id), file=sys.stderr)
    return IN_DOUBT if in_doubt else SOME_FAILED if failed or stopped else 0


async def run(asked: argparse.Namespace, requests: list[VideoRequest]) -> int:
    """Open the session and run."""
    async with QameraSession(ledger=asked.ledger, on_event=tell) as qamera:
        return await make(qamera, asked, requests)


def main() -> int:
    """Run the command line; give its exit status."""
    asked = arguments()
    try:
        requests = requests_of(asked.catalogue)
        return asyncio.run(run(asked, requests))
    except (ValueError, OSError, QameraError) as error:
        print(error, file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        print("Interrupted. Run it again, and it goes on where it stopped.", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
