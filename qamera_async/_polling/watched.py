"""The records that are waited for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, KeysView

    from .records import Record


class Watched:
    """The records that are waited for, by their ids: nearly always one for each, and thousands of them."""

    def __init__(self) -> None:
        self._first: dict[str, Record] = {}
        self._further: dict[str, tuple[Record, ...]] = {}

    def __len__(self) -> int:
        return len(self._first)

    def __iter__(self) -> Iterator[Record]:
        yield from self._first.values()
        for records in self._further.values():
            yield from records

    def __contains__(self, record: Record) -> bool:
        return record in self.of(record.record_id)

    @property
    def ids(self) -> KeysView[str]:
        """The ids, each once."""
        return self._first.keys()

    def of(self, record_id: str) -> tuple[Record, ...]:
        """Give those with an id."""
        first = self._first.get(record_id)
        return () if first is None else (first, *self._further.get(record_id, ()))

    def add(self, record: Record) -> None:
        """Take one in that isn't there."""
        if record.record_id in self._first:
            self._further[record.record_id] = (*self._further.get(record.record_id, ()), record)
        else:
            self._first[record.record_id] = record

    def discard(self, record: Record) -> bool:
        """Take it out; tell whether it was the last with its id."""
        records = self.of(record.record_id)
        if record not in records:
            return False
        left = [other for other in records if other is not record]
        self._further.pop(record.record_id, None)
        if not left:
            del self._first[record.record_id]
            return True
        self._first[record.record_id] = left[0]
        if left[1:]:
            self._further[record.record_id] = tuple(left[1:])
        return False
