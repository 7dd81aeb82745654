"""An unfinished file and an answer: what goes where, and whether nothing is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from .ahead import Ahead
from .attempts import Interrupted
from .filing import disk_error, filed
from .ranges import PARTIAL, UNSATISFIABLE, fitting_total, is_all, length
from .whole import Proof

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._transport import StreamingResponse
    from .errand import Errand
    from .parts import Part
    from .route import Route


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

    async def _copy(self, answer: StreamingResponse, head: bytes) -> None:
        """Read a body to its end while it is being written."""
        part, route = self._part, self._route
        total = length(answer) if part.note is None or part.note.total is None else part.note.total
        proof = Proof() if answer.ends == "connection" and total is None else None
        come = part.size
        piece = head or await route.read(answer)
        try:
            # Whatever ends it: what has come is worth keeping.
            async with Ahead(part.writer) as ahead:
                while piece:
                    come += len(piece)
                    if total is not None and come > total:
                        break
                    if proof is not None:
                        proof.feed(piece)
                    if await ahead.put(piece):
                        self._report(come, total)
                    piece = await route.read(answer)
        except OSError as error:
            raise disk_error(self._errand, error) from error
        if total is not None and come > total:
            # Whose bytes these are nobody knows.
            await filed(self._errand, lambda: part.begin("", None))
        check_end(route, proof, come, total)

    async def _begin(self, answer: StreamingResponse) -> None:
        etag, total = answer.headers.get("etag", ""), length(answer)
        await filed(self._errand, lambda: self._part.begin(etag, total))


def check_end(route: Route, proof: Proof | None, done: int, total: int | None) -> None:
    """Raise unless a body that ended is whole."""
    if total is not None and done != total:
        raise Interrupted(route.error(f"{total} bytes were announced, and {done} came"))
    if proof is not None and not proof.is_whole():
        raise Interrupted(
            route.error("It ended with its connection, and doesn't prove by itself that it is whole")
        )
