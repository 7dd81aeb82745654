"""The wire, as pure functions: a request becomes bytes, an answer becomes a model or an error.

No I/O and no clock. The only room that knows the wire's names (the API's sections "GET
/api/external/videos", "POST .../register-videos", "POST .../register-reel", "Every request").
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import attrs
import msgspec

from .errors import (
    ApiError,
    AuthenticationError,
    BadRequestError,
    InsufficientCreditsError,
    InvalidRequestError,
    InvalidResponseError,
    NotFoundError,
    PermissionDeniedError,
    QameraError,
    QuotaExceededError,
    ServerError,
)
from .models import Receipt, ReelRequest, Request, Video, VideoRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from .policies import StatusRules

VIDEOS_PATH = "/api/external/videos"
REGISTER_VIDEO_PATH = "/api/external/video-picker/register-videos"
REGISTER_REEL_PATH = "/api/external/reel/register-reel"
KEY_HEADER = "X-Api-Key"
IDEMPOTENCY_HEADER = "Idempotency-Key"

_EXCERPT_CHARS = 200
_LONGEST_RETRY_AFTER = 3600.0  # seconds; more is taken for a mistake of the server
_EXCERPT_BYTES = 16 * 1024
# What a decoder can raise on bytes from anywhere: RecursionError on nested brackets, ValueError on an
# integer of thousands of digits.
_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)


def _unchanged(text: str) -> str:
    return text


@attrs.frozen
class Answer:
    """What came back: status, headers with lower-case names, the body after decompression.

    ``conceal`` takes secrets out of a text before it goes into an error.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    conceal: Callable[[str], str] = attrs.field(default=_unchanged, repr=False, eq=False)

    @property
    def correlation_id(self) -> str | None:
        """The server's name for this exchange in its logs, where it sent one."""
        value = self.headers.get("x-correlation-id", "").strip()
        return self.conceal(value)[:_EXCERPT_CHARS] or None

    @property
    def date(self) -> datetime | None:
        """The server's clock when it answered, an aware UTC datetime; None where it didn't say."""
        try:
            moment = parsedate_to_datetime(self.headers["date"])
        except (KeyError, ValueError, TypeError):
            return None
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)

    def excerpt(self) -> str:
        """The start of the body as text, without secrets."""
        # Concealed before it is cut, so that no half of a key is left at the cut.
        text = self.conceal(self.body[:_EXCERPT_BYTES].decode("utf-8", "replace"))
        return text if len(text) <= _EXCERPT_CHARS else text[:_EXCERPT_CHARS] + "..."


# --- requests -------------------------------------------------------------------------------------


def encode(request: Request) -> tuple[str, bytes]:
    """Give the path and the JSON body of a registration.

    Raises:
        InvalidRequestError: ``extra`` names a field that the library itself sends.
    """
    if isinstance(request, VideoRequest):
        path = REGISTER_VIDEO_PATH
        fields: dict[str, Any] = {
            "imageId": request.image_id,
            "generatedImageId": request.generated_image_id,
            "suggestion": request.suggestion,
            "provider": request.provider,
        }
    elif isinstance(request, ReelRequest):  # pyright: ignore[reportUnnecessaryIsInstance]
        path = REGISTER_REEL_PATH
        fields = {"imagesIds": request.image_ids}
    else:
        raise InvalidRequestError(
            f"request: got {type(request).__name__}, allowed are VideoRequest and ReelRequest"
        )
    taken = fields.keys() & request.extra.keys()
    if taken:
        raise InvalidRequestError(
            f"extra: got {', '.join(sorted(taken))}, allowed are only fields that the request doesn't have"
        )
    body = {name: value for name, value in fields.items() if value is not None} | dict(request.extra)
    return path, msgspec.json.encode(body, enc_hook=dict)


# --- errors ---------------------------------------------------------------------------------------

_CLASSES: dict[int, type[ApiError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    429: QuotaExceededError,
}
_CREDITS = re.compile(r"required:\s*(\d{1,18})\D+available:\s*(\d{1,18})", re.IGNORECASE | re.ASCII)


def _stated_error(body: bytes) -> str | None:
    """The error text where the body has one of the API's two shapes, else None."""
    try:
        stated = msgspec.json.decode(body)
    except _UNREADABLE:
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
        numbers = _CREDITS.search(text)
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
    """Tell whether an answer to a POST proves that the order was not taken.

    Any 4xx in the API's shape but 408 and 409, and 429 and 407 in any shape.
    """
    status = answer.status
    if status in (407, 429):
        return True
    return 400 <= status < 500 and status not in (408, 409) and _stated_error(answer.body) is not None  # noqa: PLR2004


# --- answers --------------------------------------------------------------------------------------


def _unreadable(answer: Answer, expected: str) -> InvalidResponseError:
    return InvalidResponseError(
        f"The server's answer can't be read: expected {expected}.",
        status=answer.status,
        expected=expected,
        excerpt=answer.excerpt(),
        correlation_id=answer.correlation_id,
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _identifier(value: object) -> str | None:
    return value if isinstance(value, str) and value.strip() else None


def read_receipt(answer: Answer) -> Receipt:
    """Give the receipt of a registration; all but its record ids may be missing.

    Raises:
        InvalidResponseError: no readable record id in it.
    """
    expected = "a receipt with createdRecordIds"
    try:
        stated = msgspec.json.decode(answer.body)
    except _UNREADABLE:
        raise _unreadable(answer, expected) from None
    ids = stated.get("createdRecordIds") if isinstance(stated, dict) else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    if not isinstance(ids, list) or not ids or not all(map(_identifier, ids)):  # pyright: ignore[reportUnknownArgumentType]
        raise _unreadable(answer, expected)
    return _receipts()({**stated, "correlationId": answer.correlation_id}, Receipt)


_structure_receipt: Callable[[Any, type[Receipt]], Receipt] | None = None


def _receipts() -> Callable[[Any, type[Receipt]], Receipt]:
    """The structuring of receipts, made when the first one comes: cattrs takes a while to import."""
    global _structure_receipt  # noqa: PLW0603
    if _structure_receipt is None:
        from cattrs import Converter  # noqa: PLC0415
        from cattrs.gen import make_dict_structure_fn, override  # noqa: PLC0415

        converter = Converter()
        converter.register_structure_hook(str | None, lambda value, _: _text(value))
        converter.register_structure_hook(int | None, lambda value, _: value if type(value) is int else None)
        converter.register_structure_hook(
            Receipt,
            make_dict_structure_fn(
                Receipt,
                converter,
                record_ids=override(rename="createdRecordIds"),
                batch_id=override(rename="batchId"),
                order_id=override(rename="orderId"),
                reservation_id=override(rename="reservationId"),
                credits_reserved=override(rename="creditsReserved"),
                correlation_id=override(rename="correlationId"),
            ),
        )
        _structure_receipt = converter.structure
    return _structure_receipt


class _Brief(msgspec.Struct, gc=False):
    id: str
    status: str | None = None


class _BriefList(msgspec.Struct):
    videos: list[_Brief]
    count: int | None = None


class _RawList(msgspec.Struct):
    videos: list[msgspec.Raw]
    count: Any = None


class _Full(msgspec.Struct, gc=False):
    id: str
    status: str | None = None
    name: str | None = None
    thumbnail: str | None = None
    voting: str | None = None
    video_url: str | None = msgspec.field(name="videoUrl", default=None)
    created_at: str | None = msgspec.field(name="createdAt", default=None)


class _FullList(msgspec.Struct):
    videos: list[_Full]
    count: int | None = None


_brief_list = msgspec.json.Decoder(_BriefList)
_raw_list = msgspec.json.Decoder(_RawList)
_full_list = msgspec.json.Decoder(_FullList)
_full = msgspec.json.Decoder(_Full)
_any_object = msgspec.json.Decoder(dict[str, Any])

_LIST = 'a list of videos: {"videos": [{"id": ..., "status": ...}, ...]}'


@attrs.frozen
class Listing:
    """A list of videos, read only as far as ids and statuses.

    ``complete`` is False where the server's ``count`` says that there are more than came; ``broken``
    counts the items that are no video.
    """

    statuses: Mapping[str, str]
    complete: bool
    broken: int


def read_listing(answer: Answer) -> Listing:
    """Read ids and statuses of a list of videos; what is broken in it hides nothing else.

    Raises:
        InvalidResponseError: it is no list of videos.
    """
    try:
        brief = _brief_list.decode(answer.body)
    except _UNREADABLE:
        full, count, broken = _each_for_itself(answer)
        return Listing(
            {item.id: item.status or "" for item in full},
            count is None or count <= len(full) + broken,
            broken,
        )
    videos = brief.videos
    statuses = {item.id: item.status or "" for item in videos}
    broken = statuses.pop("", None) is not None
    return Listing(statuses, brief.count is None or brief.count <= len(videos), int(broken))


def read_some(answer: Answer, ids: Iterable[str], listing: Listing, rules: StatusRules) -> dict[str, Video]:
    """Give those videos of a list whose ids are asked for; the others are not made into objects."""
    wanted = set(ids) & listing.statuses.keys()
    if not wanted:
        return {}
    found: dict[str, Video] = {}
    # A raw item is only skipped over, which is cheaper than a typed one; the order is that of the list.
    items = _raw_list.decode(answer.body).videos
    if listing.broken or len(items) != len(listing.statuses):
        candidates: Iterable[_Full | None] = map(_tolerant, items)
    else:
        candidates = (
            _tolerant(raw) for raw, name in zip(items, listing.statuses, strict=True) if name in wanted
        )
    for item in candidates:
        if item is not None and item.id in wanted:
            found[item.id] = _video(item, rules)
    return found


def read_videos(answer: Answer, rules: StatusRules) -> tuple[Video, ...]:
    """Give all videos of a list, in the server's order; a broken item is left out.

    Raises:
        InvalidResponseError: it is no list of videos.
    """
    try:
        items = _full_list.decode(answer.body).videos
    except _UNREADABLE:
        items, _, _ = _each_for_itself(answer)
    return tuple([_video(item, rules) for item in items if item.id])


def _each_for_itself(answer: Answer) -> tuple[list[_Full], int | None, int]:
    """The slow way: items, count and number of broken items of a list that isn't as documented."""
    try:
        raw = _raw_list.decode(answer.body)
    except _UNREADABLE:
        raise _unreadable(answer, _LIST) from None
    items = [item for item in map(_tolerant, raw.videos) if item is not None]
    count = raw.count if type(raw.count) is int else None
    return items, count, len(raw.videos) - len(items)


def _tolerant(raw: msgspec.Raw) -> _Full | None:
    """A video whose fields of a wrong type count as absent; None where not even the id is one."""
    try:
        item = _full.decode(raw)
    except _UNREADABLE:
        try:
            stated = _any_object.decode(raw)
        except _UNREADABLE:
            return None
        item = _Full(
            _text(stated.get("id")) or "",
            _text(stated.get("status")),
            _text(stated.get("name")),
            _text(stated.get("thumbnail")),
            _text(stated.get("voting")),
            _text(stated.get("videoUrl")),
            _text(stated.get("createdAt")),
        )
    return item if _identifier(item.id) else None


def _video(item: _Full, rules: StatusRules) -> Video:
    status = item.status or ""
    return Video(
        item.id,
        status,
        rules.state(status),
        item.name,
        item.thumbnail,
        item.video_url or None,
        item.voting,
        _moment(item.created_at),
    )


def _moment(text: str | None) -> datetime | None:
    """An aware UTC datetime of an ISO 8601 text; None where it is none."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is UTC:
            return moment
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
