"""An answer as it came, and what can be said of it whatever it is."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import attrs
import msgspec

from ..errors import InvalidResponseError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

NOT_MODIFIED = 304
_ETAG = r'(W/)?"[!\x23-\x7e]{0,200}"'  # RFC 9110, 8.8.3, and no longer than is sensible
_EXCERPT_CHARS = 200
_EXCERPT_BYTES = 16 * 1024
# What a decoder can raise on bytes from anywhere: RecursionError on nested brackets, ValueError on an
# integer of thousands of digits.
UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)
# Half of a surrogate pair in a JSON text, as the group; what only looks like one, and pairs, are passed over.
# A text, as the other patterns are: compiled with its first use, it costs the import nothing.
_HALF = (
    rb"(?:\\\\)+|\\u[dD][89abAB][\da-fA-F]{2}\\u[dD][c-fC-F][\da-fA-F]{2}|(\\u[dD][89a-fA-F][\da-fA-F]{2})"
)

_T = TypeVar("_T")
_P = ParamSpec("_P")


def _unchanged(text: str) -> str:
    return text


@attrs.frozen(eq=False)
class Answer:
    """What came back: status, headers with lower-case names, the body after decompression.

    ``conceal`` takes secrets out of a text before it goes into an error.
    """

    status: int
    # A traceback with locals shows an answer, which may echo the key.
    headers: Mapping[str, str] = attrs.field(repr=False)
    body: bytes = attrs.field(repr=False)
    conceal: Callable[[str], str] = attrs.field(default=_unchanged, repr=False)

    @property
    def correlation_id(self) -> str | None:
        """The server's name for this exchange in its logs, where it sent one."""
        value = self.headers.get("x-correlation-id", "").encode("ascii", "replace").decode()
        return self.conceal(value.strip())[:_EXCERPT_CHARS] or None

    @property
    def date(self) -> datetime | None:
        """The server's clock when it answered, an aware UTC datetime; None where it didn't say."""
        try:
            moment = parsedate_to_datetime(self.headers["date"])
            return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
        except (KeyError, ValueError, TypeError, OverflowError):
            return None

    def renewed(self, answer: Answer) -> Answer:
        """Give this one as it is now, by the headers of a 304 that says that it is the same."""
        return attrs.evolve(self, headers={**self.headers, **answer.headers})

    def excerpt(self) -> str:
        """The start of the body as text, without secrets."""
        # Concealed before it is cut, so that no half of a key is left at the cut.
        text = self.conceal(self.body[:_EXCERPT_BYTES].decode("utf-8", "replace"))
        return text if len(text) <= _EXCERPT_CHARS else text[:_EXCERPT_CHARS] + "..."


def unless_same(answer: Answer) -> dict[str, str]:
    """Give the header that asks for another answer than this one; none where it has no name for itself."""
    etag = answer.headers.get("etag", "")
    return {"If-None-Match": etag} if re.fullmatch(_ETAG, etag) else {}


def decoded(decoder: msgspec.json.Decoder[_T], body: bytes | msgspec.Raw) -> _T:
    """Decode JSON; half of a character, which JavaScript writes of a text that it has cut, is replaced.

    Raises:
        MsgspecError, ValueError, RecursionError: it can't be read all the same.
    """
    try:
        return decoder.decode(body)
    except UNREADABLE:
        # In place: a substitution takes memory for each piece between two.
        mended = bytearray(body)
        halves = 0
        for found in re.finditer(_HALF, body):
            if found[1]:
                mended[found.start() : found.end()] = b"\\ufffd"
                halves += 1
        if not halves:
            raise
        return decoder.decode(bytes(mended))


def unreadable(answer: Answer, expected: str) -> InvalidResponseError:
    """Give the error for an answer with a good status that isn't what it should be."""
    return InvalidResponseError(
        f"The server's answer can't be read: expected {expected}.",
        status=answer.status,
        expected=expected,
        excerpt=answer.excerpt(),
        correlation_id=answer.correlation_id,
    )


def reader(read: Callable[_P, _T]) -> Callable[_P, _T]:
    """Let a function's error lead into none of its frames, whose locals hold what the server said."""

    @wraps(read)
    def reading(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return read(*args, **kwargs)
        except InvalidResponseError as error:
            failure = error.with_traceback(None)
        failure.__context__ = None
        try:
            raise failure
        finally:
            del failure  # else it and this frame would keep each other until the next garbage collection

    return reading


def text_of(value: object) -> str | None:
    """Give a text; None for what is none."""
    return value if isinstance(value, str) else None


def identifier_of(value: object) -> str | None:
    """Give an id; None for what is none, or blank."""
    return value if isinstance(value, str) and value.strip() else None
