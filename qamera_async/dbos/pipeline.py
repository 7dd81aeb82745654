"""The pipeline: DBOS beside a session, and the sweep that takes over what the dead have left."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from dbos import DBOS, DBOSConfig, SetWorkflowID

from ..errors import ConfigurationError, InvalidRequestError, LedgerUnavailableError, QameraError
from ..ledger.address import Address
from ..ledger.rows import request_text
from ..ledger.sqlite.subsec import Connection
from .result import PipelineResult
from .work import BATCH, BATCHES, INTERVAL, ORDER, ORDERS, Running, batch, is_running, order, run_with

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence
    from types import TracebackType

    from ..ledger.ledger import Ledger
    from ..models import Request
    from ..session import QameraSession
    from .result import Said

_log = logging.getLogger("qamera_async")

VERSION = "1"
"""Of the workflows here: what one version has begun, another doesn't go on with."""
_DATABASES = ("postgresql://", "postgres://", "sqlite:///")
_PATIENCE = 10.0  # seconds for whoever adopts the work of one's own name to end
_PAUSE = 0.1  # seconds
_MANY = 500  # workflows that are asked for at a time
_DEAD_LOOKS = 2  # a database that restarts lets go of everybody for a moment


class Pipeline:
    """Durable work with a session: what is asked for is done, whichever process dies on the way.

    An async context manager, inside of that of its session. One of a process at a time, since DBOS allows no
    more. Entering it launches DBOS, which makes its tables where there are none and holds up the event loop
    for that moment.

    Args:
        session: what orders, waits and downloads; it needs a ledger.
        database: where DBOS keeps how far everything has come, as an SQLAlchemy URL, ``postgresql://...`` or
            ``sqlite:///...``; None means the database of the ledger, or a file beside the ledger's.
        download_to: the folder for the clips, each named after its ``ref``; None means none are fetched.
        executor_id: the name of this process among those that share the database. No two may have one name
            at a time; who comes back under the same name goes on with its own work at once.
        version: of the program around it: what one version has begun, only the same version goes on with.
        concurrency: how many requests may be under way in this process.
        sweep_every: how often to look for work of the dead, in seconds.

    Raises:
        ConfigurationError: a setting that can't be used.
        LedgerError: when it is entered, and a database can't be used.
    """

    def __init__(
        self,
        session: QameraSession,
        *,
        database: str | None = None,
        download_to: str | os.PathLike[str] | None = None,
        executor_id: str = "local",
        version: str = VERSION,
        concurrency: int = 100,
        sweep_every: float = 5.0,
    ) -> None:
        self._session = session
        # The pipeline stands on the session, and shares its ledger.
        ledger = session._ledger  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        place = session._place  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        if place is None:
            raise ConfigurationError("session: it has no ledger, which is what makes an order once-only")
        if not executor_id.strip() or not version.strip():
            raise ConfigurationError("executor_id, version: allowed are names that aren't blank")
        if type(concurrency) is not int or concurrency < 1:
            raise ConfigurationError(f"concurrency: got {concurrency!r}, allowed is a whole number from 1 on")
        if not sweep_every > 0:
            raise ConfigurationError(f"sweep_every: got {sweep_every!r}, allowed are seconds above 0")
        if database is not None and not database.startswith(_DATABASES):
            # What came is not shown: it may hold a password.
            raise ConfigurationError("database: allowed are postgresql://... and sqlite:///...")
        self._ledger: Ledger = ledger  # type: ignore[assignment]  # there is a place, so it is kept
        self._database = database if database is not None else _beside(place)
        self._folder = None if download_to is None else str(Path(download_to).absolute())
        self._executor_id = executor_id
        self._version = version
        self._concurrency = concurrency
        self._sweep_every = sweep_every
        self._seen_dead: Counter[str] = Counter()
        self._running: Running | None = None
        self._launched = False
        self._sweeping: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Pipeline {self._executor_id} {'new' if self._running is None else 'open'}>"

    async def __aenter__(self) -> Self:
        if is_running():
            raise ConfigurationError("This process has a pipeline already, and DBOS allows for one.")
        await self._become()
        retry = self._session._retry  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        self._running = Running(self._session, retry)
        try:
            self._launch()
            run_with(self._running)
            for queue, most in ((ORDERS, self._concurrency), (BATCHES, None)):
                await DBOS.register_queue_async(
                    queue,
                    worker_concurrency=most,
                    polling_interval_sec=INTERVAL,
                    on_conflict="always_update",
                )
        except BaseException:
            await self._leave()
            raise
        self._sweeping = asyncio.create_task(self._sweep(), name="qamera-sweep")
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.wait([self._sweeping])
        await self._leave()

    async def _become(self) -> None:
        """Take this executor's name, which says that it lives."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _PATIENCE
        while not await self._ledger.storage.become(self._executor_id):
            if loop.time() > deadline:
                raise ConfigurationError(
                    f"executor_id: a process that lives is called {self._executor_id!r}; each needs its own"
                )
            await asyncio.sleep(_PAUSE)

    def _launch(self) -> None:
        config = DBOSConfig(
            name="qamera",
            system_database_url=self._database,
            executor_id=self._executor_id,
            application_version=self._version,
            log_level="WARNING",
        )
        if self._database.startswith("sqlite:"):
            # From Python 3.12 on DBOS takes it for granted that SQLite is of 2023 or later.
            config["db_engine_kwargs"] = {"connect_args": {"factory": Connection}}
        try:
            theirs = DBOS(config=config)._launched  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
            if not theirs:
                self._launched = True
                # Here and not in a thread: the loop that runs it is the one that runs the workflows.
                DBOS.launch()
        except Exception as error:
            # Its text may hold the address, and with it a password.
            failure: QameraError = LedgerUnavailableError(
                f"The pipeline's database can't be used ({type(error).__name__}).",
                path=_shown(self._database),
            )
        else:
            if not theirs:
                return
            failure = ConfigurationError("This process has a DBOS of its own, and DBOS allows for one.")
        raise failure

    async def _leave(self) -> None:
        if self._running is not None:
            self._running.stop()
            await asyncio.sleep(0)
        run_with(None)
        if self._launched:
            self._launched = False
            loop = asyncio.get_running_loop()
            with ThreadPoolExecutor(1, thread_name_prefix="qamera-dbos") as executor:
                await loop.run_in_executor(executor, DBOS.destroy)
            # DBOS had put its own pool of threads there, which is gone by now.
            loop.set_default_executor(ThreadPoolExecutor())
        await self._ledger.storage.leave(self._executor_id)

    # --- what is asked for ----------------------------------------------------------------------

    async def run(self, request: Request) -> PipelineResult:
        """Order a request, wait for it and fetch its clip; this spends credits.

        Whoever asks for the same again, in whatever process, gets the same result. What did not end well is
        tried again by asking again: the ledger keeps it from being ordered twice.

        Args:
            request: with a ``ref``, by which it is found again.

        Raises:
            InvalidRequestError: it has no ``ref``.
        """
        ((ref, found),) = (await self._earlier(_by_ref([request]))).items()
        said = found.said
        if said is None:
            with SetWorkflowID(found.workflow_id):
                handle = await DBOS.enqueue_workflow_async(ORDERS, order, found.text, self._folder)
            said = await handle.get_result(polling_interval_sec=INTERVAL)
        return PipelineResult.of(ref, said)

    async def run_batch(self, requests: Iterable[Request]) -> list[PipelineResult]:
        """Do so with many, on a queue that all processes of the pipeline work on.

        Args:
            requests: each with a ``ref`` of its own.

        Returns:
            Their results, in the same order.

        Raises:
            InvalidRequestError: one has no ``ref``, or two have the same; nothing was ordered.
        """
        asked = _by_ref(requests)
        known = await self._earlier(asked)
        fresh = {found.workflow_id: found.text for found in known.values() if found.said is None}
        if fresh:
            batch_id = f"batch-{_digest(*fresh)}"
            with SetWorkflowID(batch_id):
                handle = await DBOS.enqueue_workflow_async(BATCHES, batch, fresh, self._folder)
            said = await handle.get_result(polling_interval_sec=INTERVAL)
        else:
            said = {}
        return [
            PipelineResult.of(ref, found.said if found.said is not None else said[found.workflow_id])
            for ref, found in known.items()
        ]

    async def _earlier(self, asked: dict[str, str]) -> dict[str, _Found]:
        """Give for each ref what became of it, or the id of the workflow that is to do it."""
        found = {ref: _Found(text, _id(ref, text, 1), None) for ref, text in asked.items()}
        left, attempt = list(found), 1
        while left:
            again: list[str] = []
            for start in range(0, len(left), _MANY):
                refs = {found[ref].workflow_id: ref for ref in left[start : start + _MANY]}
                for status in await DBOS.list_workflows_async(workflow_ids=list(refs), load_input=False):
                    ref = refs[status.workflow_id]
                    said: Said | None = status.output
                    if status.status == "SUCCESS" and said is not None and "kind" not in said:
                        found[ref].said = said
                    elif status.status not in ("PENDING", "ENQUEUED", "DELAYED"):
                        again.append(ref)
            attempt += 1
            for ref in again:
                found[ref].workflow_id = _id(ref, found[ref].text, attempt)
            left = again
        return found

    # --- what the dead have left ----------------------------------------------------------------

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self._sweep_every)
            try:
                await self._adopt()
            except Exception:
                _log.exception("looking for the work of dead executors failed; it is tried again")

    async def _adopt(self) -> None:
        """Put back on its queue what executors have under way that are dead."""
        # Whoever was frozen while the database restarted was taken for dead, and has lost its name.
        if not await self._ledger.storage.become(self._executor_id):
            _log.warning("another process that lives has the executor's name %s", self._executor_id)
        pending = await self._pending(None)
        names = {status.executor_id for status in pending} - {self._executor_id}
        dead = await self._ledger.storage.dead(names)
        self._seen_dead = Counter({name: self._seen_dead[name] + 1 for name in dead})
        for name, looks in self._seen_dead.items():
            # Under its name, so that it can't come back meanwhile, and nobody else adopts the same.
            if looks < _DEAD_LOOKS or not await self._ledger.storage.become(name):
                continue
            try:
                left = await self._pending(name)
                for status in left:
                    queue = BATCHES if status.name == BATCH else ORDERS
                    await DBOS.resume_workflow_async(status.workflow_id, queue_name=queue)
                _log.warning("adopted %d workflows of the executor %s, which is dead", len(left), name)
            finally:
                await self._ledger.storage.leave(name)

    async def _pending(self, executor_id: str | None) -> Sequence[Any]:
        return await DBOS.list_workflows_async(
            status="PENDING",
            name=[ORDER, BATCH],
            app_version=self._version,
            executor_id=executor_id,
            load_input=False,
            load_output=False,
        )


class _Found:
    """A request that is asked for, and what is known of it."""

    __slots__ = ("said", "text", "workflow_id")

    def __init__(self, text: str, workflow_id: str, said: Said | None) -> None:
        self.text = text
        self.workflow_id = workflow_id
        self.said = said


def _by_ref(requests: Iterable[Request]) -> dict[str, str]:
    asked: dict[str, str] = {}
    for request in requests:
        if request.ref is None:
            raise InvalidRequestError("ref: a pipeline finds a request again by it, and one has none")
        if request.ref in asked:
            raise InvalidRequestError(f"ref: {request.ref!r} stands for two requests")
        asked[request.ref] = request_text(request)
    return asked


def _id(ref: str, text: str, attempt: int) -> str:
    """Give the workflow of a request: another request under the same ref has another."""
    name = _digest(ref) if "\0" in ref else ref  # PostgreSQL keeps no NUL
    return f"{name}-{_digest(text)}-{attempt}"


def _digest(*texts: str) -> str:
    return blake2b("\n".join(texts).encode(), digest_size=8).hexdigest()


def _beside(place: str | Address) -> str:
    """Give the database for DBOS that goes with a ledger's place."""
    return place.text if isinstance(place, Address) else f"sqlite:///{Path(place).absolute()}-dbos"


def _shown(database: str) -> str:
    """Give an address without its user and password."""
    scheme, separator, rest = database.partition("://")
    place, _, options = rest.partition("?")
    # An @ behind the mark may be in a password there, or end one that holds the mark.
    return f"{scheme}{separator}{'' if '@' in options else place.rpartition('@')[2]}"
