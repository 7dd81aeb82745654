"""The files that the CDN has: a small clip that plays, made as long as wanted, and a still."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

_HERE = Path(__file__).parent
_HEADER = 16  # bytes of the size and the name of a box that may be longer than 4 GiB
# A prime number of bytes, so that no piece of the padding looks like another that is a power of two away.
_PADDING = 65_521


class File(Protocol):
    """Bytes that are made when they are asked for."""

    content_type: str
    size: int
    etag: str

    def read(self, start: int, stop: int) -> bytes:
        """Give the bytes from ``start`` to before ``stop``."""
        ...


class Still:
    """The thumbnail."""

    content_type = "image/jpeg"

    def __init__(self) -> None:
        self._body = (_HERE / "thumbnail.jpg").read_bytes()
        self.size = len(self._body)
        self.etag = _etag(self._body)

    def read(self, start: int, stop: int) -> bytes:
        """Give the bytes from ``start`` to before ``stop``."""
        return self._body[start:stop]


class Clip:
    """The clip; what it lacks in length is a ``free`` box, which players skip.

    Args:
        size: how long, in bytes; None means as short as it comes.

    Raises:
        ValueError: it can't be as short as that.
    """

    content_type = "video/mp4"

    def __init__(self, size: int | None) -> None:
        self._body = (_HERE / "clip.mp4").read_bytes()
        self.size = len(self._body) if size is None else size
        rest = self.size - len(self._body)
        if rest and rest < _HEADER:
            raise ValueError(
                f"clip_bytes={size!r}: must be {len(self._body)} or at least {len(self._body) + _HEADER}"
            )
        self._padding = b""
        if rest:
            self._body += (1).to_bytes(4, "big") + b"free" + rest.to_bytes(8, "big")
            self._padding = random.Random(0).randbytes(_PADDING)  # noqa: S311 - it only fills
        self.etag = _etag(self._body)

    def read(self, start: int, stop: int) -> bytes:
        """Give the bytes from ``start`` to before ``stop``."""
        return b"".join(self._runs(start, stop))

    def _runs(self, start: int, stop: int) -> Iterator[bytes]:
        yield self._body[start:stop]
        at = max(start, len(self._body))
        while at < stop:
            place = (at - len(self._body)) % _PADDING
            run = self._padding[place : place + stop - at]
            yield run
            at += len(run)


def _etag(body: bytes) -> str:
    return f'"{hashlib.sha256(body).hexdigest()[:16]}"'
