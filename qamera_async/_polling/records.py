"""The state of one watched record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from .._models import JobState

if TYPE_CHECKING:
    from .._models import Video
    from ..errors import QameraError

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
    """What is known of one record; handed to the poller while somebody waits for it.

    ``kept`` is its video, unless the last list has it and more is to come: then the poller makes it of that
    list when somebody asks.
    """

    __slots__ = (
        "absences",
        "absent_since",
        "born",
        "done_since",
        "joined",
        "kept",
        "listener",
        "record_id",
        "status",
    )

    def __init__(self, record_id: str, listener: Listener, born: float | None) -> None:
        self.record_id = record_id
        self.listener = listener
        self.kept: Video | None = None
        self.status: str | None = None  # the server's word, last seen
        self.born = born  # when it was made; None where that isn't known, then each wait begins anew
        self.joined = 0.0  # when the present wait began
        self.absent_since: float | None = None
        self.absences = 0
        self.done_since: float | None = None

    @property
    def settled(self) -> bool:
        """Whether nothing more is to be learned of it."""
        return self.kept is not None and (
            self.kept.state is JobState.FAILED
            or (self.kept.state is JobState.DONE and self.done_since is None)
        )

    def keep(self, video: Video | None) -> None:
        """Keep what was seen of it, if it was."""
        if video is not None:
            self.kept, self.status = video, video.status
