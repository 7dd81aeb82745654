"""An answer that says no, as an error (the API's section "Every request")."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from ..errors import (
    ApiError,
    AuthenticationError,
    BadRequestError,
    InsufficientCreditsError,
    InvalidResponseError,
    NotFoundError,
    PermissionDeniedError,
    QameraError,
    RateLimitError,
    ServerError,
)
from .answer import UNREADABLE, Answer, decoded

if TYPE_CHECKING:
    from collections.abc import Mapping

_LONGEST_RETRY_AFTER = 3600.0  # seconds; more is taken for a mistake of the server
_CLASSES: dict[int, type[ApiError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    429: RateLimitError,
}
_anything = msgspec.json.Decoder[Any]()
_CREDITS = r"(?ia)required:\s*(\d{1,18})\D+available:\s*(\d{1,18})"


def _stated_error(body: bytes) -> str | None:
    """The error text where the body has one of the API's two shapes, else None."""
    try:
        stated = decoded(_anything, body)
    except UNREADABLE:
        return None
    error = stated.get("error") if isinstance(stated, dict) else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    if isinstance(error, str):
        return error
    if not isinstance(error, dict):
        return None
    texts: list[Any] = [error.get("message"), error.get("message_i18n"), error.get("code")]  # pyright: ignore[reportUnknownMemberType]
    for text in texts:
        if isinstance(text, dict):
            text = next((value for value in text.values() if isinstance(value, str)), None)  # noqa: PLW2901  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
        if isinstance(text, str) and text:
            return text
    return "(no text)"


def error_of(answer: Answer) -> QameraError:
    """Give the error that an answer with a status other than 200 means."""
    status = answer.status
    if not 400 <= status <= 599:  # noqa: PLR2004
        return InvalidResponseError(
            f"The server answered with status {status}, which the API doesn't have.",
            status=status,
            expected="status 200, or an error of 400 to 599",
            excerpt=answer.excerpt(),
            correlation_id=answer.correlation_id,
        )
    stated = _stated_error(answer.body)
    text = answer.conceal(stated if stated is not None else answer.excerpt())
    evidence: dict[str, Any] = {
        "status": status,
        "correlation_id": answer.correlation_id,
        "retry_after": retry_after(answer.headers),
        "foreign": stated is None,
    }
    if status == 402:  # noqa: PLR2004
        numbers = re.search(_CREDITS, text)
        required, available = (int(n) for n in numbers.groups()) if numbers else (None, None)
        return InsufficientCreditsError(text, required=required, available=available, **evidence)
    if status >= 500:  # noqa: PLR2004
        return ServerError(text, **evidence)
    return _CLASSES.get(status, ApiError)(text, **evidence)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Give the seconds, at most an hour, that the server asks to wait; None where it said nothing usable."""
    value = headers.get("retry-after", "").strip()
    # Digits of other scripts, nan and hexadecimal notations are no seconds.
    if not value.isascii() or not re.fullmatch(r"\d{1,12}(\.\d{1,6})?", value):
        return None
    return min(float(value), _LONGEST_RETRY_AFTER)


def is_refusal(answer: Answer) -> bool:
    """Return whether an answer to a POST proves that the API did not accept the submission.

    A refusal is a 4xx in the API's shape, except 408 and 409. In another shape no status is a refusal, not
    even 429 or 407: a gateway may send its own answer after it forwarded the POST to the API.
    """
    status = answer.status
    return 400 <= status < 500 and status not in (408, 409) and _stated_error(answer.body) is not None  # noqa: PLR2004
