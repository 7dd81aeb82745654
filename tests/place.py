"""A sandbox with one finished video, its clients, and a target folder, for the download tests."""

from contextlib import asynccontextmanager
from unittest.mock import Mock

import pytest

from qamera_async import RetryPolicy, StatusRules
from qamera_async._protocol import VIDEOS, list_request, parse_list
from qamera_async._transport import ApiClient, ConnectionSettings, DownloadClient, Secret
from qamera_async.download import Downloader
from qamera_async.errors import DownloadError
from qamera_async.sandbox import Sandbox
from qamera_async.sandbox.files import Clip

SIZE = 8_000_000
CLIP = Clip(SIZE).read(0, SIZE)
ID = "old_000001"


class Place:
    """A sandbox, a downloader, a finished video and the path of the target."""

    def __init__(self, sandbox, folder, quick):
        self.sandbox, self.events, self._quick = sandbox, [], quick
        self.target = folder / "clip.mp4"
        self.part = folder / "clip.mp4.part"
        self.note = folder / "clip.mp4.part.json"
        self._settings = ConnectionSettings(api_key=Secret(sandbox.api_key), base_url=sandbox.url)
        self._api = ApiClient(self._settings, quick["timeouts"], quick["retry"])
        self.clients = []
        self.client = self.new_client()
        self.downloader = self.another()
        self.video = None

    def new_client(self, timeouts=None):
        """Return a download client with other timeouts."""
        self.clients.append(DownloadClient(self._settings, timeouts or self._quick["timeouts"]))
        return self.clients[-1]

    def another(self, **options):
        """Return a downloader with other settings."""
        settings = {
            "client": self.client,
            "retry": self._quick["retry"],
            "timeouts": self._quick["timeouts"],
            "emit": self.events.append,
            "fresh": self.fresh,
        }
        return Downloader(**(settings | options))

    async def fresh(self, record_id):
        """Fetch the list and return a record."""
        response = await self._api.send(list_request(VIDEOS), Mock())  # a slot without a rate limit
        return parse_list(response, VIDEOS, StatusRules()).get(record_id)

    async def aclose(self):
        """Close the clients."""
        for client in [self._api, *self.clients]:
            await client.aclose()

    async def fetch(self, **options):
        """Download the clip to the target."""
        return await self.downloader.file(self.video, self.target, **options)

    def asked(self):
        """Return the Range header and the status of each request to the CDN."""
        return [(r.headers.get("Range"), r.status) for r in self.sandbox.requests if r.origin == "cdn"]

    def names(self):
        """Return the names of all files in the target folder."""
        return sorted(path.name for path in self.target.parent.iterdir())

    def is_whole(self):
        """Return whether the folder has only the complete clip."""
        return self.names() == ["clip.mp4"] and self.target.read_bytes() == CLIP


@asynccontextmanager
async def opened(folder, quick):
    """Yield a `Place` whose target is in a folder."""
    async with Sandbox(quota=None, clip_bytes=SIZE) as sandbox:
        sandbox.add_records(1)
        place = Place(sandbox, folder, quick)
        try:
            place.video = await place.fresh(ID)
            yield place
        finally:
            await place.aclose()


async def halved(place, after=3_500_000):
    """Write a partial file with a download that the CDN cuts."""
    place.sandbox.cdn_trouble("cut", after=after)
    with pytest.raises(DownloadError):
        await place.another(retry=RetryPolicy(attempts=1)).file(place.video, place.target)
    assert place.part.stat().st_size > 0
