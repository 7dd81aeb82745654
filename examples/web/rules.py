"""What both web apps hold to: who may ask and what may be asked for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from web.board import FORM_ID

from qamera_async import InvalidRequestError, ReelRequest, Request, VideoRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_BODY = 16 * 1024  # bytes
MAX_ID = 200  # characters
MAX_SUGGESTION = 2000  # characters

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; media-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
"""What goes with every answer. The page has nothing inline, and nothing from anywhere else."""


def refusal(method: str, headers: Mapping[str, str], hosts: frozenset[str]) -> str:
    """Tell why a request must not be answered; empty where it may be.

    Args:
        method: Its method.
        headers: Its headers; a mapping that doesn't mind letter case.
        hosts: The names that this app goes by.

    """
    host = headers.get("Host", "")
    if _name_in(f"//{host}") not in hosts:
        # Else a page of any site could have its own name lead here, and be "the same origin".
        return f"This app doesn't go by the name {host!r}: start it with --name."
    if method in {"GET", "HEAD"}:
        return ""
    # A browser says where a POST comes from; what says nothing is no browser, and has nobody's rights.
    site, origin = headers.get("Sec-Fetch-Site", "same-origin"), headers.get("Origin")
    if site != "same-origin" or (origin is not None and origin.partition("://")[2] != host):
        return "Only the app's own page may ask for that."
    if not headers.get("Content-Type", "").startswith("application/json"):
        return "The body must be JSON, with that as its Content-Type."
    return ""


def request_of(body: bytes) -> Request:
    """Give the request that a form asks for.

    Args:
        body: A JSON object with ``id``, ``kind``, ``images`` and, for a video, ``suggestion``.

    Raises:
        InvalidRequestError: It asks for nothing that can be ordered.

    """
    fields = _fields(body)
    form_id, kind, images = fields.get("id"), fields.get("kind"), fields.get("images")
    if not isinstance(form_id, str) or not FORM_ID.fullmatch(form_id):
        raise InvalidRequestError("id: 8 to 64 letters, digits and hyphens are needed.")
    if not isinstance(images, list) or not images:
        raise InvalidRequestError("images: the id of an image is needed.")
    ids = [_text("images", image, MAX_ID) for image in images]
    if not all(ids):
        raise InvalidRequestError("images: an id is empty.")
    suggestion = _text("suggestion", fields.get("suggestion", ""), MAX_SUGGESTION)
    if kind == "reel" and not suggestion:
        return ReelRequest(ids, ref=form_id)  # type: ignore[arg-type]  # it takes any iterable
    if kind == "video" and len(ids) == 1:
        return VideoRequest(ids[0], suggestion=suggestion or None, ref=form_id)
    raise InvalidRequestError("A video has one image, and a reel has no suggestion.")


def record_of(body: bytes) -> str:
    """Give the id of the record that is to be adopted.

    Args:
        body: A JSON object with ``record``.

    Raises:
        InvalidRequestError: It names none.

    """
    record = _text("record", _fields(body).get("record"), MAX_ID)
    if not record:
        raise InvalidRequestError("record: the id of a record is needed.")
    return record


def _name_in(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:  # brackets that hold no IPv6 address
        return None


def _fields(body: bytes) -> dict[str, Any]:
    try:
        form = json.loads(body)
    except (ValueError, RecursionError):
        raise InvalidRequestError("The body is no JSON.") from None
    return form if isinstance(form, dict) else {}


def _text(name: str, value: object, limit: int) -> str:
    if not isinstance(value, str) or len(value) > limit:
        raise InvalidRequestError(f"{name}: text of at most {limit} characters is needed.")
    return value.strip()
