"""The list as it came last, and what the server is asked in place of the same list once more."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from .. import _protocol as protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .._config import StatusRules
    from .._models import Video

_NONE = protocol.Listing({}, complete=True, broken=0)

# For how long, in seconds, the server's word is taken that nothing has changed. Who computes a wrong ETag
# would hide for ever what is finished.
_TRUSTED = 60.0


class Coming(NamedTuple):
    """A list that has been read; ``listing`` is None where it is the same as the latest."""

    answer: protocol.Answer
    listing: protocol.Listing | None
    whole_at: float


class Latest:
    """The list as it came last.

    What was read of it may be let go: it is read again where somebody asks. A video is made of an item when
    somebody looks at it, so that thousands who wait take no memory for what they will never see.
    """

    def __init__(self, rules: StatusRules) -> None:
        self.answer: protocol.Answer | None = None
        self.length = 0  # videos
        self.complete = True  # whether these are all that the server has
        self._rules = rules
        self._listing: protocol.Listing | None = None
        self._snapshots: protocol.Snapshots | None = None
        self._whole_at = -math.inf

    @property
    def listing(self) -> protocol.Listing:
        """Its ids and statuses; none before the first list."""
        if self._listing is None:
            self._listing = _NONE if self.answer is None else protocol.read_listing(self.answer)
        return self._listing

    def has_same_ids(self, listing: protocol.Listing) -> bool:
        """Tell whether another list has its records in its order; False where they aren't at hand."""
        return self._listing is not None and [*self._listing.statuses] == [*listing.statuses]

    def video(self, record_id: str) -> Video | None:
        """Give the video that a record is in it; None where it isn't there."""
        if self.answer is None:
            return None
        if self._snapshots is None:
            self._snapshots = protocol.Snapshots(self.answer, self.listing, self._rules)
        return self._snapshots.get(record_id)

    def condition(self, now: float) -> Mapping[str, str]:
        """Give the headers with which the server may say just that it is the same; ``now`` in seconds."""
        if self.answer is None or now - self._whole_at > _TRUSTED:
            return {}
        return protocol.unless_same(self.answer)

    def read(self, answer: protocol.Answer, now: float) -> Coming:
        """Read an answer to that, which is not yet the latest list then. The same is not read again.

        Args:
            answer: a list, or that it is the same.
            now: the loop's time, in seconds.

        Raises:
            InvalidResponseError: it is no list.
        """
        known, whole = self.answer, answer.status != protocol.NOT_MODIFIED
        if known is not None and not whole:
            answer = known.renewed(answer)
        same = known is not None and answer.body == known.body
        whole_at = now if whole or known is None else self._whole_at
        return Coming(answer, None if same else protocol.read_listing(answer), whole_at)

    def become(self, coming: Coming) -> None:
        """Be that list from now on."""
        self.answer, self._whole_at = coming.answer, coming.whole_at
        if coming.listing is not None:
            self._listing, self._snapshots = coming.listing, None
            self.length, self.complete = len(coming.listing.statuses), coming.listing.complete

    def rest(self) -> None:
        """Let go what was read of it."""
        self._listing = self._snapshots = None
