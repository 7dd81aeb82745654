"""Which records have been in a list, and since which one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, KeysView

# A list may lack a record for a while. For how long, in seconds, one that is gone is remembered, so that
# what is remembered stays as long as the list and not as long as all there ever was.
_REMEMBERED = 900.0
_FEWEST = 1_000  # so many are remembered whatever the length of the list


class Seen:
    """The ids of all lists, each with the number of the list that showed it first."""

    def __init__(self) -> None:
        self.lists = 0
        self._first: dict[str, int] = {}
        self._gone: dict[str, float] = {}
        self._longest = _FEWEST

    def add(self, ids: KeysView[str], now: float, *, again: bool = False) -> None:
        """Note what a list held.

        Args:
            ids: of its videos.
            now: in seconds.
            again: whether these have been noted already.
        """
        self.lists += 1
        first = self._first
        if again and not self._gone and len(first) >= len(ids):
            return
        if not first.keys() >= ids:
            for record_id in [record_id for record_id in ids if record_id not in first]:
                first[record_id] = self.lists
        self._longest = max(self._longest, len(ids))
        # All that is listed is remembered by now, so with equal numbers nothing is missing.
        if len(first) > len(ids) or self._gone:
            present = set(ids)
            self._gone = {i: self._gone.get(i, now) for i in first if i not in present}
            # A whole list may be missing once; more than that is a server that forgets what is finished.
            # `first` keeps the order of its ids, and so do those that are gone: the oldest go first.
            many = len(self._gone) - self._longest
            for number, (record_id, since) in enumerate(list(self._gone.items())):
                if number < many or now - since > _REMEMBERED:
                    del self._gone[record_id], first[record_id]

    def new_since(self, ids: Collection[str], lists: int) -> set[str]:
        """Give those of ``ids`` that none of the first ``lists`` lists held."""
        return {record_id for record_id in ids if self._first.get(record_id, lists + 1) > lists}

    def __contains__(self, record_id: str) -> bool:
        return record_id in self._first
