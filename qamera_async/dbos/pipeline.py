"""The pipeline: DBOS beside a session, and what it is asked for."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Self

from dbos import DBOS, DBOSConfig, SetWorkflowID

from ..errors import ConfigurationError, InvalidRequestError, LedgerUnavailableError, QameraError
from ..ledger.address import Address
from ..ledger.rows import request_text
from ..ledger.sqlite.subsec import Connection
from .executor import Executor
from .result import PipelineResult
from .work import BATCHES, INTERVAL, ORDERS, Running, batch, is_running, order, run_with

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable
    from types import TracebackType

    from .._models import Request
    from .._session import QameraSession
    from ..ledger.ledger import Ledger
    from .result import Said

VERSION = "1"
"""Of the workflows here: what one version has begun, another doesn't go on with."""
_DATABASES = ("postgresql://", "postgres://", "sqlite:///")
_MANY = 500  # workflows that are asked for at a time


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
        ledger = session.internals.ledger
        place = session.internals.ledger_address
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
        self._database = database if database is not None else _beside(place)
        self._folder = None if download_to is None else str(Path(download_to).absolute())
        self._executor_id = executor_id
        self._version = version
        self._concurrency = concurrency
        kept: Ledger = ledger  # type: ignore[assignment]  # there is a place, so it is kept
        self._executor = Executor(kept.storage, executor_id, version, sweep_every)
        self._running: Running | None = None
        self._launched = False

    def __repr__(self) -> str:
        return f"<Pipeline {self._executor_id} {'new' if self._running is None else 'open'}>"

    async def __aenter__(self) -> Self:
        if is_running():
            raise ConfigurationError("This process has a pipeline already, and DBOS allows for one.")
        await self._executor.begin()
        self._running = Running(self._session, self._session.internals.retry)
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
        self._executor.sweep()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._executor.stop_sweeping()
        await self._leave()

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
            theirs = vars(DBOS(config=config))["_launched"]
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
        await self._executor.end()

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
