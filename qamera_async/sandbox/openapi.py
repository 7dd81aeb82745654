"""What the API is, for clients in any language: an OpenAPI document, written by hand."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

PATH: Final = "/openapi.json"


@cache
def document() -> bytes:
    """Give the document as JSON."""
    return Path(__file__).with_suffix(".json").read_bytes()
