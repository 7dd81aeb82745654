"""A request as bytes (the API's sections "POST .../register-videos" and "POST .../register-reel")."""

from __future__ import annotations

from typing import Any

import msgspec

from .._models import ReelRequest, Request, VideoRequest
from ..errors import InvalidRequestError

VIDEOS_PATH = "/api/external/videos"
REGISTER_VIDEO_PATH = "/api/external/video-picker/register-videos"
REGISTER_REEL_PATH = "/api/external/reel/register-reel"
KEY_HEADER = "X-Api-Key"
IDEMPOTENCY_HEADER = "Idempotency-Key"


def encode(request: Request) -> tuple[str, bytes]:
    """Give the path and the JSON body of a registration.

    Raises:
        InvalidRequestError: ``extra_body`` names a field that the library itself sends.
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
    taken = fields.keys() & request.extra_body.keys()
    if taken:
        raise InvalidRequestError(
            f"extra_body must not have fields of the request, got {', '.join(sorted(taken))}."
        )
    body = {name: value for name, value in fields.items() if value is not None} | dict(request.extra_body)
    return path, msgspec.json.encode(body, enc_hook=dict)
