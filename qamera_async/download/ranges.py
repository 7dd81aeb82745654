"""What an answer says of its body: ranges, lengths, encodings. No I/O."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .._transport import StreamingResponse
    from .note import Note
    from .parts import Part

PARTIAL: Final = 206
UNSATISFIABLE: Final = 416
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.ASCII)
_NOTHING_ASKED = re.compile(r"bytes \*/(\d{1,18})", re.ASCII)


def length(answer: StreamingResponse) -> int | None:
    """Give what an answer announces as the length of its body; None where it doesn't."""
    return int(answer.headers["content-length"]) if answer.ends == "length" else None


def is_encoded(answer: StreamingResponse) -> bool:
    """Say whether the body is something else than the file's own bytes, in chunks at most."""
    content, transfer = (
        {coding.strip().lower() for coding in answer.headers.get(name, "").split(",")} - {""}
        for name in ("content-encoding", "transfer-encoding")
    )
    return not content <= {"identity"} or not transfer <= {"chunked"}


def fitting_total(answer: StreamingResponse, part: Part, note: Note) -> int | None:
    """Give the size of the whole where a 206 goes on exactly where the part ends; None where it doesn't."""
    found = _RANGE.fullmatch(answer.headers.get("content-range", "").strip())
    if answer.status != PARTIAL or found is None or answer.headers.get("etag") != note.etag:
        return None
    first, last, total = map(int, found.groups())
    fits = first == part.size and first <= last < total and note.total in {None, total}
    # A length that contradicts the range would let bytes of something else in.
    return total if fits and length(answer) in {None, last - first + 1} else None


def is_all(answer: StreamingResponse, part: Part, note: Note) -> bool:
    """Say whether nothing was left to be sent."""
    found = _NOTHING_ASKED.fullmatch(answer.headers.get("content-range", "").strip())
    same = answer.headers.get("etag") == note.etag and note.total in {None, part.size}
    return answer.status == UNSATISFIABLE and found is not None and same and int(found[1]) == part.size
