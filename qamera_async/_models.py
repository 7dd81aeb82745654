"""Requests, receipts, records and intents: frozen values.

Requests are validated when they are built, because callers write them. Values from the server are validated
by `_protocol`, which decodes the responses.
"""

from __future__ import annotations

import enum
import itertools
import math
import unicodedata
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from datetime import datetime
from typing import Any, ClassVar, TypeAlias, cast

import attrs

MAX_REEL_IMAGES = 10
"""The most images of one reel (POST /api/external/reel/register-reel)."""

_MAX_REF_BYTES = 512
_MAX_JSON_DEPTH = 50
_MAX_JSON_INT_BITS = 64
_JSON_VALUE = "a JSON value (str, int of at most 64 bits, finite float, bool, None, list or mapping)"


def check_text(value: object, name: str, allowed: str = "a non-empty str") -> str:
    """Return a non-blank text as a plain str that can be encoded as UTF-8.

    Args:
        value: The value to check.
        name: The name of the parameter, for the message.
        allowed: What is allowed, for the message.

    Raises:
        InvalidRequestError: The value is not a str, is blank, or cannot be encoded as UTF-8.

    """
    if not isinstance(value, str) or not value.strip():
        raise _invalid(name, allowed, value)
    return _plain_text(value, name)


def check_record_ids(record_ids: tuple[str, ...]) -> tuple[str, ...]:
    """Return record ids without duplicates.

    Args:
        record_ids: One or more record ids.

    Raises:
        InvalidRequestError: There is no id, or one of them is not a non-empty str.

    """
    if not record_ids:
        raise errors.InvalidRequestError("No record ids: pass at least one.")
    return tuple(dict.fromkeys(check_text(id_, f"record_ids[{i}]") for i, id_ in enumerate(record_ids)))


def _invalid(name: str, allowed: str, value: object) -> errors.InvalidRequestError:
    return errors.InvalidRequestError(f"{name} must be {allowed}, not {errors.short_repr(value)}.")


def _plain_text(text: str, name: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _invalid(name, "text without lone surrogates", text) from None
    return str.__str__(text)  # a subclass of str, such as a StrEnum, may be formatted differently


def _checked_text(value: str | None, field: attrs.Attribute[Any]) -> str | None:
    return None if value is None else check_text(value, field.name, "a non-empty str or None")


def _normalized_ref(value: str) -> str:
    text = check_text(value, "ref", "a non-empty str or None")
    visible = "".join(char for char in text if unicodedata.category(char) not in {"Cc", "Cf"}).strip()
    ref = unicodedata.normalize("NFC", visible)
    if not 1 <= len(ref.encode()) <= _MAX_REF_BYTES:
        raise _invalid("ref", f"1 to {_MAX_REF_BYTES} bytes of visible text in UTF-8", value)
    return ref


def _checked_image_ids(values: Iterable[str]) -> tuple[str, ...]:
    # A str is an iterable of str, a set has no order, and a generator may be endless.
    given = cast("object", values)
    wrong_type = isinstance(given, str | bytes | bytearray | Mapping | AbstractSet)
    iterable = isinstance(given, Iterable) and not wrong_type
    ids = list(itertools.islice(values, MAX_REEL_IMAGES + 1)) if iterable else []
    if not 1 <= len(ids) <= MAX_REEL_IMAGES:
        raise _invalid("image_ids", f"a list of 1 to {MAX_REEL_IMAGES} image ids", ids or values)
    return tuple([check_text(image_id, f"image_ids[{index}]") for index, image_id in enumerate(ids)])


def _check_extra_body(request: VideoRequest | ReelRequest) -> None:
    duplicates = sorted(request.extra_body.keys() & set(request.wire_names.values()))
    if duplicates:
        raise errors.InvalidRequestError(
            f"extra_body must not contain {', '.join(duplicates)}: {type(request).__name__} sets it."
        )


def _copied_body(value: Mapping[str, Any] | None) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(cast("object", value), Mapping):
        raise _invalid("extra_body", "a mapping of names to JSON values", value)
    return cast("dict[str, Any]", _copied_json(value, "extra_body", 0))


def _copied_json(value: object, path: str, depth: int) -> object:
    if depth > _MAX_JSON_DEPTH:  # also stops at a value that contains itself
        raise errors.InvalidRequestError(f"extra_body must be nested at most {_MAX_JSON_DEPTH} deep.")
    match value:
        case None | bool():
            return value
        case str():
            return _plain_text(value, path)
        case int() if value.bit_length() <= _MAX_JSON_INT_BITS:
            return int(value)
        case float() if math.isfinite(value):
            return float(value)
        case list() | tuple():
            items = cast("list[object] | tuple[object, ...]", value)
            return [_copied_json(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(items)]
        case Mapping():
            members = cast("Mapping[object, object]", value).items()
            return {
                _json_name(key, path): _copied_json(item, f"{path}[{errors.short_repr(key)}]", depth + 1)
                for key, item in members
            }
        case _:
            raise _invalid(path, _JSON_VALUE, value)


def _json_name(key: object, path: str) -> str:
    if not isinstance(key, str):
        raise errors.InvalidRequestError(f"{path} must have str names, not {errors.short_repr(key)}.")
    return _plain_text(key, f"a name in {path}")


def _optional_text() -> Any:  # noqa: ANN401 - attrs types a field as its value
    converter: Any = attrs.Converter(_checked_text, takes_field=True)
    return attrs.field(default=None, converter=converter)


@attrs.frozen
class VideoRequest:
    """One video from one image (POST /api/external/video-picker/register-videos).

    Args:
        image_id: The source image. Exactly one of the two ids is needed.
        generated_image_id: A generated image as the source.
        suggestion: Creative direction, such as the motion; None leaves it to the server.
        provider: The generation provider; None leaves it to the server (today `pollo`).
        ref: The caller's name for this piece of work, at most 512 bytes in UTF-8; never sent. Invisible
            characters are removed, and the rest is normalised to NFC. None: no name.
        extra_body: Further fields of the JSON body, copied; do not change the copy. None: no further fields.

    Raises:
        InvalidRequestError: A field is invalid.

    Example:
        >>> VideoRequest(image_id="img_abc123", ref=" SKU-7 ").ref
        'SKU-7'

    """

    wire_names: ClassVar[Mapping[str, str]] = {
        "image_id": "imageId",
        "generated_image_id": "generatedImageId",
        "suggestion": "suggestion",
        "provider": "provider",
    }
    """The fields of the JSON body by the names of the attributes."""

    image_id: str | None = _optional_text()
    generated_image_id: str | None = _optional_text()
    suggestion: str | None = _optional_text()
    provider: str | None = _optional_text()
    ref: str | None = attrs.field(default=None, converter=attrs.converters.optional(_normalized_ref))
    extra_body: Mapping[str, Any] = attrs.field(factory=dict[str, Any], converter=_copied_body, hash=False)

    def __attrs_post_init__(self) -> None:
        if (self.image_id is None) is (self.generated_image_id is None):
            raise errors.InvalidRequestError(
                "Pass exactly one of image_id and generated_image_id, "
                f"not {errors.short_repr(self.image_id)} and {errors.short_repr(self.generated_image_id)}."
            )
        _check_extra_body(self)


@attrs.frozen
class ReelRequest:
    """One reel from several images (POST /api/external/reel/register-reel).

    Args:
        image_ids: 1 to 10 image ids, in the order of the reel.
        ref: The caller's name for this piece of work, as for `VideoRequest`. None: no name.
        extra_body: Further fields of the JSON body, copied; do not change the copy. None: no further fields.

    Raises:
        InvalidRequestError: A field is invalid.

    Example:
        >>> ReelRequest(["img_1", "img_2"]).image_ids
        ('img_1', 'img_2')

    """

    wire_names: ClassVar[Mapping[str, str]] = {"image_ids": "imagesIds"}
    """The fields of the JSON body by the names of the attributes."""

    image_ids: tuple[str, ...] = attrs.field(converter=_checked_image_ids)
    ref: str | None = attrs.field(default=None, converter=attrs.converters.optional(_normalized_ref))
    extra_body: Mapping[str, Any] = attrs.field(factory=dict[str, Any], converter=_copied_body, hash=False)

    def __attrs_post_init__(self) -> None:
        _check_extra_body(self)


Request: TypeAlias = VideoRequest | ReelRequest
"""A value that `QameraSession.register` accepts."""


@attrs.frozen
class Receipt:
    """The server's answer to an accepted submission (both POST endpoints).

    Args:
        record_ids: The ids of the created records, one or more.
        batch_id: The server's id of the batch; None if the response has none.
        order_id: The server's id of the order; None if the response has none.
        reservation_id: The server's id of the reserved credits; None if the response has none.
        credits_reserved: The number of reserved credits; None if the response does not say.
        correlation_id: The server's id of the exchange; None if the response has none.

    """

    record_ids: tuple[str, ...]
    batch_id: str | None = None
    order_id: str | None = None
    reservation_id: str | None = None
    credits_reserved: int | None = None
    correlation_id: str | None = None


class JobState(enum.Enum):
    """The meaning of a status word of the server."""

    PENDING = "pending"
    DONE = "done"
    FAILED = "failed"


@attrs.frozen
class Video:
    """A record in the list of videos; reels are in it too (GET /api/external/videos).

    Args:
        id: The record id.
        status: The status word of the server.
        state: The meaning of the status by the session's `StatusRules`.
        name: The name in the Qamera app; None if the list has none.
        thumbnail: The URL of the thumbnail; None if there is none yet.
        video_url: The URL of the video file; None if there is none yet.
        voting: The vote of the users of the Qamera app; None if there is none.
        created_at: When the record was created, an aware datetime in UTC; None if the list does not say.

    """

    id: str
    status: str
    state: JobState
    name: str | None = None
    thumbnail: str | None = None
    video_url: str | None = None
    voting: str | None = None
    created_at: datetime | None = None


Record: TypeAlias = Video
"""An entry in any list of the API."""


@attrs.frozen
class Intent:
    """The durable note that a submission is about to be made.

    Args:
        id: The library's id of the intent, a UUID.
        request: The request to submit.
        sent_at: When sending began, an aware datetime in UTC.
        candidates: Records that may belong to the submission, if it is ambiguous.

    """

    id: str
    request: Request
    sent_at: datetime
    candidates: tuple[Record, ...] = ()


# At the end, because errors imports the classes above for its annotations.
from . import errors  # noqa: E402
