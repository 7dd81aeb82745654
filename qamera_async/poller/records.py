"""What is known of one record, and which trouble waiting can't cure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ..errors import ApiError, ConnectionFailedError, InvalidResponseError, QameraError, SessionClosedError
from ..models import JobState

if TYPE_CHECKING:
    from ..models import Video

URL_GRACE = 60.0  # seconds that a DONE record without a videoUrl is given for it to show up
GONE_POLLS = 3


class Listener(Protocol):
    """Who wants to know what becomes of a record: a job, whose users have no business with these."""

    def _changed(self, record: Record) -> None:
        """The record has another status, or its video."""
        ...

    def _failed(self, error: QameraError) -> None:
        """Nobody can wait for this now."""
        ...


class Record:
    """What is known of one record; handed to the poller while somebody waits for it."""

    __slots__ = ("absences", "absent_since", "born", "done_since", "joined", "listener", "record_id", "video")

    def __init__(self, record_id: str, listener: Listener, born: float | None) -> None:
        self.record_id = record_id
        self.listener = listener
        self.video: Video | None = None
        self.born = born  # when it was made; None where that isn't known, then each wait begins anew
        self.joined = 0.0  # when the present wait began
        self.absent_since: float | None = None
        self.absences = 0
        self.done_since: float | None = None

    @property
    def settled(self) -> bool:
        """Whether nothing more is to be learned of it."""
        return self.video is not None and (
            self.video.state is JobState.FAILED
            or (self.video.state is JobState.DONE and self.done_since is None)
        )


def is_final(error: QameraError) -> bool:
    """Tell whether waiting can't help: the same request would get the same answer."""
    if isinstance(error, ConnectionFailedError):
        return error.permanent
    if isinstance(error, SessionClosedError):
        return True
    if isinstance(error, ApiError):
        return error.status == 407 or (error.status in (400, 401, 403, 404) and not error.foreign)  # noqa: PLR2004
    return isinstance(error, InvalidResponseError) and error.status is not None and 300 <= error.status < 400  # noqa: PLR2004
