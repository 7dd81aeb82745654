"""The API's three endpoints: a request's body in, an answer out. The JSON is written by hand."""

from __future__ import annotations

import gzip
import hashlib
import json
import uuid
from typing import TYPE_CHECKING, Any, Final, cast

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .arrivals import ArrivedRequest
    from .trouble import Script
    from .world import World

_MOST_IMAGES = 10
_TEXTS: Final[Mapping[int, str]] = {
    400: "Invalid request body.",
    401: "Invalid API key.",
    402: "Insufficient credits. Required: 10, available: 2.",
    403: "Missing required scope: 'content.register'.",
    404: "Not found.",
    405: "Method not allowed.",
    413: "Request body too large.",
    429: "Too many requests. Please retry after a short delay.",
}


@attrs.frozen
class Answer:
    """What the API says: the status, the body's bytes, and headers."""

    status: int
    body: bytes
    headers: Mapping[str, str] = attrs.field(factory=dict[str, str])


def error(status: int, text: str | None = None, headers: Mapping[str, str] | None = None) -> Answer:
    """Give an error in the API's shape; None as ``text`` means the API's own words for that status."""
    text = _TEXTS.get(status, "Internal server error.") if text is None else text
    return Answer(status, json.dumps({"error": text}).encode(), headers or {})


class Endpoints:
    """The endpoints by method and path."""

    def __init__(self, world: World, script: Script, *, etag: bool, compress: bool) -> None:
        self._world = world
        self._script = script
        self._etag = etag
        self._compress = compress
        self.by_path: dict[str, dict[str, Callable[[ArrivedRequest], Answer]]] = {
            "/api/external/videos": {"GET": self._videos},
            "/api/external/video-picker/register-videos": {"POST": self._register_video},
            "/api/external/reel/register-reel": {"POST": self._register_reel},
        }

    def _videos(self, request: ArrivedRequest) -> Answer:
        body, headers = self._world.listing(), dict[str, str]()
        if self._etag:
            headers["ETag"] = f'W/"{hashlib.blake2b(body, digest_size=8).hexdigest()}"'
            if header(request, "If-None-Match") == headers["ETag"]:
                return Answer(304, b"", headers)
        if self._compress and "gzip" in (header(request, "Accept-Encoding") or ""):
            body, headers["Content-Encoding"] = gzip.compress(body, 5), "gzip"
        return Answer(200, body, headers)

    def _register_video(self, request: ArrivedRequest) -> Answer:
        body = _object(request.body)
        if body is None:
            return error(400, "Malformed JSON body.")
        images = [body[name] for name in ("imageId", "generatedImageId") if name in body]
        if len(images) != 1:
            return error(400, "Provide exactly one of imageId and generatedImageId.")
        if not _is_id(images[0]):
            return error(400, "The image id must be a non-empty string.")
        for name in ("suggestion", "provider"):
            if not isinstance(body.get(name, ""), str):
                return error(400, f"{name} must be a string.")
        return self._taken("video", body, request)

    def _register_reel(self, request: ArrivedRequest) -> Answer:
        body = _object(request.body)
        if body is None:
            return error(400, "Malformed JSON body.")
        ids = body.get("imagesIds")
        if not isinstance(ids, list) or not all(_is_id(i) for i in cast("list[object]", ids)):
            return error(400, "imagesIds must be a list of non-empty strings.")
        if not 1 <= len(cast("list[object]", ids)) <= _MOST_IMAGES:
            return error(400, f"imagesIds must hold 1 to {_MOST_IMAGES} ids.")
        return self._taken("reel", body, request)

    def _taken(self, kind: str, body: dict[str, Any], request: ArrivedRequest) -> Answer:
        price, available = self._world.prices[kind], self._world.credits
        if price > available:
            return error(402, f"Insufficient credits. Required: {price}, available: {available}.")
        key = header(request, "Idempotency-Key")
        order = self._world.order(kind, body, key, self._script.for_order())
        receipt = {
            "createdRecordIds": order.record_ids,
            "batchId": order.id.replace("order", "batch"),
            "orderId": order.id,
            "reservationId": order.id.replace("order", "res"),
            "creditsReserved": order.credits,
        }
        return Answer(200, json.dumps(receipt).encode())


def header(request: ArrivedRequest, name: str) -> str | None:
    """Give a header's value, letter case of its name aside; None where it was not sent."""
    for key, value in request.headers.items():
        if key.lower() == name.lower():
            return value
    return None


def correlation() -> dict[str, str]:
    """Give the header that the API sends with each answer to a POST."""
    return {"X-Correlation-Id": str(uuid.uuid4())}


def _is_id(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        decoded: object = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, Any]", decoded) if isinstance(decoded, dict) else None
