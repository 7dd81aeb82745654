"""An unfinished file and an answer: what goes where, and whether nothing is missing."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import attrs

from .._boot import boot_id
from .attempts import Interrupted
from .filing import disk_error, filed
from .note import Note, is_strong
from .ranges import PARTIAL, UNSATISFIABLE, fitting_total, is_all, length
from .threads import Ahead
from .whole import Proof

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..transport.fetch import Fetched
    from .attempts import Errand
    from .parts import Part
    from .route import Route

_log = logging.getLogger("qamera_async")
BUFFER = 2 * 1024 * 1024  # bytes; half of it costs a tenth of the speed
_PATIENCE = 1.0  # seconds: so much of a slow download a kill may cost
_MOST_PIECES = 512  # half of what the system takes at once


class Filling:
    """Fills an unfinished file.

    Args:
        errand: what is fetched.
        route: leads to its bytes.
        part: the file.
        report: told of the bytes there are and how many there will be, None where nobody says.
    """

    def __init__(
        self, errand: Errand, route: Route, part: Part, report: Callable[[int, int | None], None]
    ) -> None:
        self._errand = errand
        self._route = route
        self._part = part
        self._report = report

    async def attempt(self) -> None:
        """Fetch what is missing, or all of it.

        Raises:
            DownloadError: it can't be had, or not be written.
            Interrupted: not all of it came; what did is kept.
        """
        part, route = self._part, self._route
        note = part.note if part.size else None
        while True:
            headers = {} if note is None else {"Range": f"bytes={part.size}-", "If-Range": note.etag}
            async with route.answer(headers) as answer:
                if note is None or answer.status not in {PARTIAL, UNSATISFIABLE}:
                    head = await route.head(answer)
                    await self._begin(answer)
                    await self._copy(answer, head)
                    return
                if is_all(answer, part, note):
                    return
                total = fitting_total(answer, part, note)
                if total is not None:
                    part.note = attrs.evolve(note, total=total)
                    await self._copy(answer, b"")
                    return
            # It is about other bytes than those that are here.
            note = None

    async def _copy(self, answer: Fetched, head: bytes) -> None:
        """Read a body to its end while it is being written."""
        part, route = self._part, self._route
        total = length(answer) if part.note is None or part.note.total is None else part.note.total
        proof = Proof() if answer.ends == "connection" and total is None else None
        ahead = Ahead(part)
        pieces: list[bytes] = []
        held = 0
        clock = asyncio.get_running_loop().time
        written = clock()
        come = part.size
        piece = head or await route.read(answer)
        try:
            while piece:
                come += len(piece)
                if total is not None and come > total:
                    break
                pieces.append(piece)
                held += len(piece)
                if proof is not None:
                    proof.feed(piece)
                if held >= BUFFER or len(pieces) >= _MOST_PIECES or clock() >= written + _PATIENCE:
                    await ahead.put(pieces)
                    pieces, held, written = [], 0, clock()
                    self._report(come, total)
                piece = await route.read(answer)
            await ahead.put(pieces)
            pieces = []  # else a cancellation from here on would write it twice
            await ahead.settle()
        except OSError as error:
            raise disk_error(self._errand, error) from error
        except BaseException:
            # What has come is worth keeping, whatever ended it.
            await _quietly_written(ahead, pieces)
            raise
        if total is not None and come > total:
            # Whose bytes these are nobody knows.
            await filed(self._errand, lambda: part.begin(None))
        check_end(route, proof, come, total)

    async def _begin(self, answer: Fetched) -> None:
        etag = answer.headers.get("etag", "")
        note = Note(self._errand.record, etag, length(answer), boot_id()) if is_strong(etag) else None
        await filed(self._errand, lambda: self._part.begin(note))


async def _quietly_written(ahead: Ahead, pieces: list[bytes]) -> None:
    try:
        await ahead.put(pieces)
        await ahead.settle()
    except Exception:
        _log.debug("the last bytes of a download that ended early could not be kept", exc_info=True)


def check_end(route: Route, proof: Proof | None, done: int, total: int | None) -> None:
    """Raise unless a body that ended is whole."""
    if total is not None and done != total:
        raise Interrupted(route.error(f"{total} bytes were announced, and {done} came"))
    if proof is not None and not proof.is_whole():
        raise Interrupted(
            route.error("It ended with its connection, and doesn't prove by itself that it is whole")
        )
