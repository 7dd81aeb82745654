"""Requests, receipts, videos and intents: frozen values, without a wire name in them.

Requests are checked when they are made, since a caller writes them. What the server said is checked
where its answer is decoded, and only stored here.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from datetime import datetime  # noqa: TC003 - cattrs reads the annotations
from typing import Any, TypeAlias, cast

import attrs

from .errors import InvalidRequestError, shown

MAX_REEL_IMAGES = 10
"""How many images one reel may have (POST /api/external/reel/register-reel)."""

_MAX_DEPTH = 50
_MAX_BITS = 64  # far more than a JSON number keeps in most languages


class FrozenMapping(Mapping[str, Any]):
    """A mapping of JSON values, frozen all the way down: hashable and picklable.

    Mappings inside become `FrozenMapping`, lists and tuples become tuples.

    Args:
        mapping: Names and JSON values: str, int of at most 64 bits, finite float, bool, None, lists or
            mappings of them.

    Raises:
        InvalidRequestError: Something in it is no JSON value.

    """

    __slots__ = ("_data",)
    _data: dict[str, Any]

    def __init__(self, mapping: Mapping[str, Any] | None = None) -> None:
        data = _frozen_items({} if mapping is None else mapping, "extra_body", 0)
        object.__setattr__(self, "_data", data)

    def __getitem__(self, key: str) -> Any:  # noqa: ANN401 - any JSON value
        return self._data[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._data)

    def __len__(self) -> int:
        return len(self._data)

    def __hash__(self) -> int:
        return hash(frozenset(self._data.items()))

    def __repr__(self) -> str:
        return repr(self._data)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a FrozenMapping cannot be changed: {name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a FrozenMapping cannot be changed: {name}")

    def __copy__(self) -> FrozenMapping:
        return self

    def __deepcopy__(self, memo: object) -> FrozenMapping:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return frozen, (self._data,)


def frozen(mapping: Mapping[str, Any] | None) -> FrozenMapping:
    """Freeze a mapping of JSON values; None and an empty one give the one empty instance.

    Args:
        mapping: As for `FrozenMapping`; None is an empty one.

    Raises:
        InvalidRequestError: It is no mapping, or something in it is no JSON value.

    """
    if mapping is None:
        return _NOTHING
    # One that is frozen already is known to be in order.
    return (mapping if isinstance(mapping, FrozenMapping) else FrozenMapping(mapping)) or _NOTHING


def _frozen_items(mapping: object, path: str, depth: int) -> dict[str, Any]:
    if not isinstance(mapping, Mapping):
        raise InvalidRequestError(f"{path} must be a mapping of names to JSON values, not {shown(mapping)}.")
    items: dict[str, Any] = {}
    for key, value in cast("Mapping[object, object]", mapping).items():
        if not isinstance(key, str):
            raise InvalidRequestError(f"{path} must have names that are str, not {shown(key)}.")
        name = _encodable(key, f"a name in {path}")
        items[name] = _frozen_value(value, f"{path}[{shown(name)}]", depth + 1)
    return items


def _frozen_value(value: object, path: str, depth: int) -> Any:  # noqa: ANN401 - any JSON value
    if depth > _MAX_DEPTH:
        # A mapping that contains itself ends here too.
        raise InvalidRequestError(f"extra_body must be nested at most {_MAX_DEPTH} deep.")
    if value is None or isinstance(value, bool | FrozenMapping):
        return value
    if isinstance(value, str):
        return _encodable(value, path)
    if isinstance(value, int) and value.bit_length() <= _MAX_BITS:
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, Mapping):
        inner = FrozenMapping.__new__(FrozenMapping)
        object.__setattr__(inner, "_data", _frozen_items(cast("Mapping[object, object]", value), path, depth))
        return inner
    if isinstance(value, list | tuple):
        values = cast("list[object] | tuple[object, ...]", value)
        return tuple(_frozen_value(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(values))
    raise InvalidRequestError(
        f"{path} must be a JSON value (str, int of at most 64 bits, finite float, bool, None, "
        f"list or mapping), not {shown(value)}."
    )


_NOTHING = FrozenMapping()


def _encodable(text: str, name: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequestError(
            f"{name} must be text that UTF-8 can carry, without lone surrogates, not {shown(text)}."
        ) from None
    # A subclass (of an enum, say) would be spelled by its own rules later on.
    return text if type(text) is str else str.__str__(text)


def checked_text(value: object, name: str, allowed: str = "a non-empty str") -> str:
    """Give a text that can be sent.

    Raises:
        InvalidRequestError: It is none, empty or blank, or has no UTF-8 form.

    """
    if not isinstance(value, str) or not value.strip():
        raise InvalidRequestError(f"{name} must be {allowed}, not {shown(value)}.")
    return _encodable(value, name)


def checked_ids(record_ids: tuple[str, ...]) -> tuple[str, ...]:
    """Give the ids to attach to, each once.

    Raises:
        InvalidRequestError: none, or one that is no id.
    """
    if not record_ids:
        raise InvalidRequestError("record_ids: got none, allowed is one or more")
    checked = (checked_text(record_id, f"record_ids[{place}]") for place, record_id in enumerate(record_ids))
    return tuple(dict.fromkeys(checked))


def _plain(value: Any) -> Any:  # noqa: ANN401 - checked by the validator
    # A subclass (of an enum, say) would be spelled by its own rules later on.
    return str.__str__(value) if isinstance(value, str) else value


def _optional_text(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None:
        checked_text(value, attribute.name, "a non-empty str or None")


def _checked_image_ids(values: Iterable[str]) -> tuple[str, ...]:
    # To a type checker a str is an iterable of str like any other; to a reel it is one id by mistake.
    came = cast("object", values)
    if isinstance(came, str | bytes | bytearray | Mapping | AbstractSet) or not isinstance(came, Iterable):
        raise InvalidRequestError(
            f"image_ids must be a list of 1 to {MAX_REEL_IMAGES} image ids, not {shown(values)}."
        )
    ids: list[str] = []
    for index, value in enumerate(values):
        if index == MAX_REEL_IMAGES:
            # Said before the rest is read: the iterable may be endless.
            raise InvalidRequestError(
                f"image_ids must hold 1 to {MAX_REEL_IMAGES} image ids, not more: {shown(ids)}."
            )
        ids.append(checked_text(value, f"image_ids[{index}]"))
    if not ids:
        raise InvalidRequestError(f"image_ids must hold 1 to {MAX_REEL_IMAGES} image ids, not none.")
    return tuple(ids)


@attrs.frozen
class VideoRequest:
    """One video from one image (POST /api/external/video-picker/register-videos).

    Args:
        image_id: The source image. Exactly one of the two ids is needed.
        generated_image_id: A generated image as the source.
        suggestion: Creative direction, motion; None leaves it to the server.
        provider: The generation provider; None leaves it to the server (today: `pollo`).
        ref: The caller's own name for this piece of work; never sent. None: it has no name.
        extra_body: Further fields for the body, by their names on the wire; None: no further ones.

    Raises:
        InvalidRequestError: A field can't be sent as it is.

    """

    image_id: str | None = attrs.field(default=None, converter=_plain, validator=_optional_text)
    generated_image_id: str | None = attrs.field(default=None, converter=_plain, validator=_optional_text)
    suggestion: str | None = attrs.field(default=None, converter=_plain, validator=_optional_text)
    provider: str | None = attrs.field(default=None, converter=_plain, validator=_optional_text)
    ref: str | None = attrs.field(default=None, converter=_plain, validator=_optional_text)
    extra_body: FrozenMapping = attrs.field(default=_NOTHING, converter=frozen)

    def __attrs_post_init__(self) -> None:
        if self.image_id is None and self.generated_image_id is None:
            raise InvalidRequestError(
                "image_id or generated_image_id is missing: a video is made from exactly one of them."
            )
        if self.image_id is not None and self.generated_image_id is not None:
            raise InvalidRequestError(
                f"image_id {shown(self.image_id)} and generated_image_id {shown(self.generated_image_id)} "
                "were both given: a video is made from exactly one of them."
            )


@attrs.frozen
class ReelRequest:
    """One reel from several images (POST /api/external/reel/register-reel).

    Args:
        image_ids: 1 to 10 ids of images, in the order of the reel.
        ref: The caller's own name for this piece of work; never sent. None: it has no name.
        extra_body: Further fields for the body, by their names on the wire; None: no further ones.

    Raises:
        InvalidRequestError: A field can't be sent as it is.

    """

    image_ids: tuple[str, ...] = attrs.field(converter=_checked_image_ids)
    ref: str | None = attrs.field(default=None, converter=_plain, validator=_optional_text)
    extra_body: FrozenMapping = attrs.field(default=_NOTHING, converter=frozen)


Request: TypeAlias = VideoRequest | ReelRequest
"""What can be registered."""


@attrs.frozen
class Receipt:
    """What the server answers to an accepted request: proof that it is paid for (both POST endpoints).

    Args:
        record_ids: The records that were made, one or more: all it takes to follow the job.
        batch_id: The server's id of the batch; None where the answer has none.
        order_id: The server's id of the order; None where the answer has none.
        reservation_id: The server's id of the reserved credits; None where the answer has none.
        credits_reserved: How many credits were reserved; None where the answer doesn't tell.
        correlation_id: The server's name for the exchange; None where the answer has none.

    """

    record_ids: tuple[str, ...]
    batch_id: str | None = None
    order_id: str | None = None
    reservation_id: str | None = None
    credits_reserved: int | None = None
    correlation_id: str | None = None


class JobState(enum.Enum):
    """What a status means, whatever the server's word for it."""

    PENDING = "pending"
    DONE = "done"
    FAILED = "failed"


@attrs.frozen
class Video:
    """One entry of the server's list, a reel as well (GET /api/external/videos).

    Args:
        id: The record id.
        status: The server's word for its state.
        state: What that word means by the session's `StatusRules`.
        name: What it is called in the Qamera app; None where the list has none.
        thumbnail: The URL of its thumbnail; None where there is none (yet).
        video_url: The URL of the clip; None where there is none (yet).
        voting: The verdict of the app's users; None where there is none.
        created_at: An aware datetime in UTC; None where the list has none.

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
"""What the lists of the API hold."""


@attrs.frozen
class Intent:
    """A paid request that was meant to be sent, and when it was.

    Args:
        id: The library's own id of it.
        request: What was meant.
        sent_at: When sending began, an aware datetime in UTC.
        candidates: Videos that may have come of it, where its answer is not known.

    """

    id: str
    request: Request
    sent_at: datetime
    candidates: tuple[Video, ...] = ()
