"""A place to download to: a sandbox with one finished video, a session on it, and a folder."""

from contextlib import asynccontextmanager

import pytest

from qamera_async import RetryPolicy
from qamera_async.download import Downloader
from qamera_async.errors import DownloadError
from qamera_async.sandbox import Sandbox
from qamera_async.sandbox.files import Clip

SIZE = 8_000_000
CLIP = Clip(SIZE).read(0, SIZE)
ID = "old_000001"


class Place:
    """A sandbox, a session on it, a downloader, a finished video and a target."""

    def __init__(self, sandbox, session, folder, events):
        self.sandbox, self.session, self.events = sandbox, session, events
        self.target = folder / "clip.mp4"
        self.part = folder / "clip.mp4.part"
        self.note = folder / "clip.mp4.part.json"
        self.downloader = self.another()
        self.video = None

    def another(self, **options):
        """Give a downloader with other settings."""
        settings = {
            "transport": self.session._transport,
            "retry": self.session._retry,
            "timeouts": self.session._timeouts,
            "emit": self.events.append,
            "fresh": self.fresh,
        }
        return Downloader(**(settings | options))

    async def fresh(self, record_id):
        """Look a record up in the list."""
        videos = await self.session.list_videos()
        return next((video for video in videos if video.id == record_id), None)

    async def fetch(self, **options):
        """Download the clip to the target."""
        return await self.downloader.file(self.video, self.target, **options)

    def asked(self):
        """Give the Range header and the status of each request to the CDN."""
        return [(r.headers.get("Range"), r.status) for r in self.sandbox.requests if r.origin == "cdn"]

    def names(self):
        """Give what is in the folder."""
        return sorted(path.name for path in self.target.parent.iterdir())

    def is_whole(self):
        """Say whether the clip is there, byte by byte, and nothing else is."""
        return self.names() == ["clip.mp4"] and self.target.read_bytes() == CLIP


@asynccontextmanager
async def opened(folder, quick):
    """Give a place whose target is in a folder."""
    async with Sandbox(quota=None, clip_bytes=SIZE) as sandbox:
        sandbox.add_records(1)
        async with sandbox.session(**quick) as session:
            place = Place(sandbox, session, folder, [])
            place.video = await place.fresh(ID)
            yield place


async def halved(place, after=3_500_000):
    """Leave the beginning of a clip in the .part, as a download that was cut leaves it."""
    place.sandbox.cdn_trouble("cut", after=after)
    with pytest.raises(DownloadError):
        await place.another(retry=RetryPolicy(attempts=1)).file(place.video, place.target)
    assert place.part.stat().st_size > 0
