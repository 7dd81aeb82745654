"""One storage for all sessions of a process that name the same database."""

from __future__ import annotations

import asyncio
import os
import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable
    from typing import Self

    from .slots import Slots
    from .worker import Worker

_C = TypeVar("_C")  # what an operation works with
_LOOK = 0.005  # seconds


class Shared(ABC, Generic[_C]):
    """What counts the users of a database, and lets it go with the last one.

    Args:
        path: what to call the database in messages.
        worker: runs what is asked of it.
    """

    def __init__(self, path: str, worker: Worker[_C]) -> None:
        self.path = path
        self._worker = worker
        self._slots: dict[str, Slots[_C]] = {}
        self.users = 0

    @classmethod
    def _shared(cls, name: Hashable) -> Self:
        """Give the storage of a name; each is to be closed as often as it was given."""
        # A forked child has a storage of its own: threads and locks stay with the parent.
        key = os.getpid(), cls, name
        with _storages_lock:
            storage: Self | None = _storages.get(key)
            if storage is None:
                storage = _storages[key] = cls._named(name)
            storage.users += 1
            return storage

    @classmethod
    @abstractmethod
    def _named(cls, name: Hashable) -> Self:
        """Make the storage of a name."""

    @abstractmethod
    def _new_slots(self, account: str, grace: float) -> Slots[_C]:
        """Make the log of an account's slots."""

    def slots(self, account: str, grace: float) -> Slots[_C]:
        """Give the log of an account's slots."""
        with _storages_lock:
            slots = self._slots.get(account)
            if slots is None:
                slots = self._slots[account] = self._new_slots(account, grace)
            return slots

    def release(self) -> threading.Thread | None:
        """Let go; the last one closes the database, in a thread that ends when it has."""
        with _storages_lock:
            self.users -= 1
            if self.users:
                return None
            for key in [key for key, storage in _storages.items() if storage is self]:
                del _storages[key]
        return self._worker.end()

    async def aclose(self) -> None:
        """Finish what is queued and let go."""
        thread = self.release()
        # Looked at, not joined: a thread that joins could not be left where the disk hangs.
        while thread is not None and thread.is_alive():  # noqa: ASYNC110 - a thread sets no asyncio.Event
            await asyncio.sleep(_LOOK)


_storages: dict[tuple[int, type, Hashable], Any] = {}  # each is of the type that its key has
_storages_lock = threading.Lock()
