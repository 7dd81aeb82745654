"""One process among those that share the work: its name, and what it takes over from the dead."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import TYPE_CHECKING, Any

from dbos import DBOS

from ..errors import ConfigurationError
from .work import BATCH, BATCHES, ORDER, ORDERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..ledger.storage import Storage

_log = logging.getLogger("qamera_async")

_PATIENCE = 10.0  # seconds for whoever adopts the work of one's own name to end
_PAUSE = 0.1  # seconds
_DEAD_LOOKS = 2  # a database that restarts lets go of everybody for a moment


class Executor:
    """Who works under a name, and is alive as long as its lock in the ledger.

    Args:
        storage: the ledger's, which has the names.
        name: this process's.
        version: of the program; the work of others is none of its business.
        sweep_every: how often to look for work of the dead, in seconds.
    """

    def __init__(self, storage: Storage, name: str, version: str, sweep_every: float) -> None:
        self._storage = storage
        self._name = name
        self._version = version
        self._sweep_every = sweep_every
        self._seen_dead: Counter[str] = Counter()
        self._sweeping: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Take the name, which says that it lives.

        Raises:
            ConfigurationError: another process that lives has it.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _PATIENCE
        while not await self._storage.become(self._name):
            if loop.time() > deadline:
                raise ConfigurationError(
                    f"executor_id: a process that lives is called {self._name!r}; each needs its own"
                )
            await asyncio.sleep(_PAUSE)

    def sweep(self) -> None:
        """From now on take over what the dead have left."""
        self._sweeping = asyncio.create_task(self._sweep(), name="qamera-sweep")

    async def stop_sweeping(self) -> None:
        """Take over nothing more."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.wait([self._sweeping])

    async def end(self) -> None:
        """Give up the name."""
        await self._storage.leave(self._name)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self._sweep_every)
            try:
                await self.adopt()
            except Exception:
                _log.exception("looking for the work of dead executors failed; it is tried again")

    async def adopt(self) -> None:
        """Put back on its queue what executors have under way that are dead."""
        # Whoever was frozen while the database restarted was taken for dead, and has lost its name.
        if not await self._storage.become(self._name):
            _log.warning("another process that lives has the executor's name %s", self._name)
        pending = await self._pending(None)
        dead = await self._storage.dead({status.executor_id for status in pending} - {self._name})
        self._seen_dead = Counter({name: self._seen_dead[name] + 1 for name in dead})
        for name, looks in self._seen_dead.items():
            # Under its name, so that it can't come back meanwhile, and nobody else adopts the same.
            if looks < _DEAD_LOOKS or not await self._storage.become(name):
                continue
            try:
                left = await self._pending(name)
                for status in left:
                    queue = BATCHES if status.name == BATCH else ORDERS
                    await DBOS.resume_workflow_async(status.workflow_id, queue_name=queue)
                _log.warning("adopted %d workflows of the executor %s, which is dead", len(left), name)
            finally:
                await self._storage.leave(name)

    async def _pending(self, executor_id: str | None) -> Sequence[Any]:
        return await DBOS.list_workflows_async(
            status="PENDING",
            name=[ORDER, BATCH],
            app_version=self._version,
            executor_id=executor_id,
            load_input=False,
            load_output=False,
        )
