"""What is fetched, and for whom."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import DownloadError
from .guard import host_of

if TYPE_CHECKING:
    from .._models import Video


class Errand:
    """What is fetched: the clip or the thumbnail of a record, and where to.

    Args:
        record_id: the record.
        thumbnail: its thumbnail, and not its clip.
        path: where to; None: to no file.
    """

    def __init__(self, record_id: str, *, thumbnail: bool = False, path: str | None = None) -> None:
        self.record_id = record_id
        self.what = "thumbnail" if thumbnail else "video"
        self.path = path

    @property
    def record(self) -> str:
        """The record and what of it, as a note has it."""
        return f"{self.record_id} {self.what}"

    def url_of(self, video: Video) -> str | None:
        """Give the URL as the list has it; None where it has none (yet)."""
        return (video.thumbnail if self.what == "thumbnail" else video.video_url) or None

    def error(self, message: str, url: str | None, status: int | None = None) -> DownloadError:
        """Give an error about it; of the URL only the host is told, as the rest may be a secret."""
        host = None if url is None else host_of(url)
        return DownloadError(message, record_id=self.record_id, path=self.path, status=status, host=host)
