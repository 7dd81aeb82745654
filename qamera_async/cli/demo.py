"""``demo``: what the product does, on a sandbox in this process, without a key and for nothing."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from .. import PollPolicy, ReelRequest, VideoRequest
from ..download import safe_name
from ..report import thumbnail_path
from ..sandbox import Sandbox
from .batch import REPORT, conclude
from .codes import Code, gravest
from .many import Bounds, Tally, run_batch
from .progress import Progress

if TYPE_CHECKING:
    from pathlib import Path

    from .. import Request
    from .running import Running

_QUOTA = 12, 4.0
_JOB_SECONDS = 2.5
_CLIP_BYTES, _RATE = 1_500_000, 1_200_000  # slow enough to be seen
_LEDGER = "demo.db"
_PRODUCTS = {
    "sneaker-white": "Slow zoom in",
    "sneaker-black": "Slow zoom in",
    "backpack-olive": "Turn it once around",
    "mug-enamel": "Steam rises from it",
    "watch-steel": "Light moves over the dial",
    "lamp-brass": "It lights up",
    "chair-oak": "Camera moves around it",
    "teapot-clay": "Tea is poured",
    "scarf-wool": "Wind moves it",
    "bottle-glass": "Drops run down",
    "headphones-red": "Pulse with the beat",
    "camera-retro": "Focus from near to far",
}
_REELS = {
    "reel-shoes": ("sneaker-white", "sneaker-black"),
    "reel-desk": ("lamp-brass", "chair-oak", "mug-enamel"),
}


def requests() -> list[Request]:
    """Give the 12 videos and 2 reels of the demo."""
    videos: list[Request] = [
        VideoRequest(image_id=f"img_{product}", suggestion=suggestion, ref=product)
        for product, suggestion in _PRODUCTS.items()
    ]
    return [
        *videos,
        *(ReelRequest([f"img_{p}" for p in products], ref=ref) for ref, products in _REELS.items()),
    ]


async def demo(running: Running, folder: Path) -> Code:
    """Make 12 videos and 2 reels, one of which fails, and a report of them."""
    await asyncio.to_thread(_clear, folder)
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    running.screen.note("A sandbox of the API in this process: no key, no network, no credits spent.")
    progress = Progress(len(_PRODUCTS) + len(_REELS), *_QUOTA)
    tally = Tally(len(_PRODUCTS) + len(_REELS))
    ledger = folder / _LEDGER
    async with Sandbox(_JOB_SECONDS, quota=_QUOTA, clip_bytes=_CLIP_BYTES) as sandbox:
        sandbox.cdn_trouble("slow", times=2 * (len(_PRODUCTS) + len(_REELS)), rate=_RATE)
        session = sandbox.session(
            ledger=ledger, on_event=progress.on_event, polling=PollPolicy(interval=0.5, stale_after=1.0)
        )
        async with session:
            sandbox.trouble("fail_job")
            await run_batch(running, session, requests(), folder, Bounds(), progress, tally)
    code = await conclude(running, ledger, folder, tally.summary(progress), "qamera demo")
    if tally.failed != 1 or tally.ambiguous or tally.stopped is not None:
        return gravest([tally.code, code])
    running.screen.note("One failed on purpose. Next: set QAMERA_API_KEY, and see qamera video --help.")
    return code


def _clear(folder: Path) -> None:
    """Remove what an earlier demo has left, and nothing else."""
    if not (folder / _LEDGER).exists():
        return
    clips = [folder / safe_name(name, ".mp4") for name in (*_PRODUCTS, *_REELS)]
    for path in [
        folder / REPORT,
        *folder.glob(f"{_LEDGER}*"),
        *clips,
        *(thumbnail_path(clip) for clip in clips),
        *(left for clip in clips for left in folder.glob(f"{clip.name}.part*")),
    ]:
        path.unlink(missing_ok=True)
