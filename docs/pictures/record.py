"""Makes the pictures of the README from a real run on the sandbox.

python docs/pictures/record.py

It needs the extra ``test`` (for playwright) and a Chromium. A batch of 48 requests runs under a quota; on its
way its progress is recorded as an SVG, and its report is photographed at the end.
"""

from __future__ import annotations

import asyncio
import io
import shutil
import tempfile
from pathlib import Path

from playwright.async_api import async_playwright
from rich.console import Console

from qamera_async import PollPolicy, QameraError, ReelRequest, Request, Timeouts, VideoRequest
from qamera_async.cli.live import render
from qamera_async.cli.progress import Progress
from qamera_async.cli.snapshot import JobKind, Snapshot
from qamera_async.report import thumbnail_path, write_report
from qamera_async.sandbox import Sandbox

HERE = Path(__file__).parent
COLUMNS, WIDTH, HEIGHT = 96, 1280, 1420
QUOTA = 30, 8.0
ENOUGH = 12  # outcomes
PRODUCTS = (
    "sneaker",
    "backpack",
    "mug",
    "watch",
    "lamp",
    "chair",
    "teapot",
    "scarf",
    "bottle",
    "camera",
    "desk",
)
COLOURS = ("white", "olive", "steel", "sand")


def requests() -> list[Request]:
    """Give 44 videos and 4 reels."""
    names = [f"{product}-{colour}" for product in PRODUCTS for colour in COLOURS]
    videos = [VideoRequest(image_id=f"img_{name}", suggestion="Slow zoom in", ref=name) for name in names]
    reels = [ReelRequest([f"img_{p}-{c}" for p in PRODUCTS[:4]], ref=f"reel-{c}") for c in COLOURS]
    return [*videos[:20], *reels, *videos[20:]]


def is_telling(snapshot: Snapshot) -> bool:
    """Whether there is something of everything to see: ends, downloads, and jobs under way."""
    loading = any(job.kind is JobKind.DOWNLOADING and job.done for job in snapshot.jobs)
    return loading and snapshot.in_flight > 0 and snapshot.settled >= ENOUGH


async def record(folder: Path) -> None:
    """Run the batch, and keep a picture of its progress."""
    progress = Progress(len(requests()), *QUOTA)
    picture = ""
    async with Sandbox(5.0, quota=QUOTA, clip_bytes=8_000_000) as sandbox:
        sandbox.cdn_trouble("slow", times=200, rate=5_500_000)
        sandbox.trouble("fail_job")
        sandbox.trouble("reset_after")
        async with sandbox.session(
            ledger=folder / "jobs.db",
            on_event=progress.on_event,
            polling=PollPolicy(interval=0.5, stale_after=2.0),
            timeouts=Timeouts(reconcile=3.0),
        ) as session:

            async def watch() -> None:
                nonlocal picture
                while not picture:
                    await asyncio.sleep(0.05)
                    snapshot = progress.snapshot(session.rate_limiter.used)
                    if is_telling(snapshot):
                        picture = drawn(snapshot)

            watching = asyncio.create_task(watch())
            async for outcome in session.batch(requests(), download_to=folder / "clips"):
                progress.outcome(outcome)
                if outcome.path is not None and outcome.record is not None:
                    thumbnail = thumbnail_path(outcome.path)
                    thumbnail.parent.mkdir(exist_ok=True)
                    try:
                        await session.download_thumbnail(outcome.record, thumbnail)
                    except QameraError as error:
                        print(error)
            watching.cancel()
    if not picture:
        raise SystemExit("There was no telling moment: run it again.")
    (HERE / "progress.svg").write_text(picture, "utf-8")


def drawn(snapshot: Snapshot) -> str:
    """Give the progress as an SVG."""
    console = Console(
        record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    console.print(render(snapshot, COLUMNS))
    return console.export_svg(title="qamera batch catalogue.csv --to clips --ledger jobs.db")


async def photograph(page_file: Path) -> None:
    """Keep a picture of the top of a page."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = await browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        await page.goto(page_file.as_uri())
        await page.wait_for_load_state("networkidle")
        await page.screenshot(path=HERE / "report.png")
        await browser.close()


async def main() -> None:
    """Make both."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        await record(folder)
        report = await write_report(
            folder / "jobs.db", folder / "clips" / "report.html", title="catalogue.csv"
        )
        await photograph(report.resolve())


if __name__ == "__main__":
    asyncio.run(main())
