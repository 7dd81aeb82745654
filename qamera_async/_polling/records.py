"""What is known of single records: their last state, and which list showed each of them first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from .._models import JobState

if TYPE_CHECKING:
    from collections.abc import Collection, KeysView, Sized

    from .._models import Record
    from .._protocol import RecordList
    from ..errors import QameraError

_URL_GRACE = 60.0  # seconds that a DONE record may lack its URL
_REMEMBERED = 900.0  # seconds that a record is remembered after it disappeared from the list
_MIN_REMEMBERED = 1_000  # so many missing records are remembered however short the list is


class RecordListener(Protocol):
    """A job with waiters: the poller calls it when one of its records changes."""

    since: float
    """When it began to wait, in the loop's time."""

    @property
    def waiters(self) -> Sized:
        """The tasks that wait for the job."""
        ...

    def record_changed(self) -> None:
        """Handle a new status or URL of a record."""

    def record_missing(self, record: TrackedRecord, absent_for: float) -> None:
        """Handle a record that has been missing from the list for too long, in seconds."""

    def polling_failed(self, error: QameraError) -> None:
        """Handle an error that no further poll can cure."""


class TrackedRecord:
    """What is known of one record. All jobs with this record share this object.

    While the record is pending, only its status is kept here. The `Video` is made from the list on demand.
    """

    __slots__ = (
        "__weakref__",
        "_list",
        "_record",
        "created_at",
        "listeners",
        "missing_polls",
        "missing_since",
        "record_id",
        "reported",
        "state",
        "status",
        "url_missing_since",
    )

    def __init__(self, record_id: str) -> None:
        self.record_id = record_id
        self.status: str | None = None  # last seen
        self.state = JobState.PENDING
        self.created_at: float | None = None  # in the loop's time; None: not created by this session
        self.listeners: tuple[RecordListener, ...] = ()
        self.reported = False  # whether a `Finished` or `Failed` event has named it
        self.missing_since: float | None = None
        self.missing_polls = 0
        self.url_missing_since: float | None = None
        self._record: Record | None = None
        self._list: RecordList | None = None  # the list that showed it last

    @property
    def final(self) -> bool:
        """Whether the record is done or failed."""
        return self.state is not JobState.PENDING

    @property
    def record(self) -> Record | None:
        """The record as it was seen last; None before that."""
        if self._list is not None:
            self._record, self._list = self._list.get(self.record_id), None
        return self._record

    def update(self, record: Record) -> None:
        """Store a record."""
        self._record, self._list = record, None
        self.status, self.state = record.status, record.state

    def seen_in(self, records: RecordList) -> bool:
        """Take the record from this list on demand; return whether its status changed."""
        if self._list is not None and self._list.entries is records.entries:
            return False  # the same list again
        self._record, self._list = None, records
        return records.status(self.record_id) != self.status

    def url_appeared(self, record: Record, now: float) -> bool:
        """Return whether a URL appeared late. A DONE record without one counts as pending for a while."""
        since, self.url_missing_since = self.url_missing_since, None
        if record.state is not JobState.DONE or record.video_url is not None:
            return since is not None
        since = now if since is None else since
        if now - since < _URL_GRACE:
            self.state, self.url_missing_since = JobState.PENDING, since
        return False

    def release_list(self) -> None:
        """Keep the record itself, and not the whole list that showed it."""
        _ = self.record

    def watched_since(self, moment: float) -> bool:
        """Return whether a job has watched the record since a moment, in the loop's time."""
        return any([listener.since <= moment for listener in self.listeners])


class ListHistory:
    """Which list showed each record first."""

    def __init__(self) -> None:
        self.lists = 0
        self._first: dict[str, int] = {}
        self._gone: dict[str, float] = {}
        self._longest = _MIN_REMEMBERED

    def add(self, ids: KeysView[str], now: float, *, unchanged: bool = False) -> None:
        """Note which records a list has.

        Args:
            ids: The ids of all records of the list.
            now: The time in seconds.
            unchanged: Whether the list equals one that was noted already.
        """
        self.lists += 1
        first = self._first
        if unchanged and not self._gone and len(first) >= len(ids):
            return
        if not first.keys() >= ids:
            for record_id in [record_id for record_id in ids if record_id not in first]:
                first[record_id] = self.lists
        self._longest = max(self._longest, len(ids))
        # `first` contains all of `ids` here, so with equal lengths nothing is missing.
        if len(first) > len(ids) or self._gone:
            self._gone = {i: self._gone.get(i, now) for i in first if i not in ids}
            # One whole list may disappear and come back. Beyond that the oldest records are forgotten.
            surplus = len(self._gone) - self._longest
            for number, (record_id, since) in enumerate(list(self._gone.items())):
                if number < surplus or now - since > _REMEMBERED:
                    del self._gone[record_id], first[record_id]

    def new_since(self, ids: Collection[str], lists: int) -> set[str]:
        """Return those of `ids` that none of the first `lists` lists showed."""
        return {record_id for record_id in ids if self._first.get(record_id, lists + 1) > lists}

    def __contains__(self, record_id: str) -> bool:
        return record_id in self._first
