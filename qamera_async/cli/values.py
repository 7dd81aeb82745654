"""Values as JSON: what ``--json`` writes, one object a line."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from .. import Intent

if TYPE_CHECKING:
    from cattrs import Converter

    from .. import Outcome, Video
    from ..ledger import LedgerEntry


def line(kind: str, fields: Mapping[str, object]) -> str:
    """Give one JSON object, its type first."""
    return msgspec.json.encode({"type": kind, **fields}).decode()


def plain(value: object) -> Any:  # noqa: ANN401 - whatever JSON has
    """Give a value of the library as JSON has it: its fields by their names, moments as ISO 8601."""
    return _converter().unstructure(value)


def error(value: BaseException) -> dict[str, Any]:
    """Give an error: its class, its text, and the evidence that is a plain value."""
    fields: dict[str, Any] = {"error": type(value).__name__, "message": str(value)}
    for name in ("status", "correlation_id", "retry_after", "required", "available", "record_ids", "path"):
        evidence = getattr(value, name, None)
        if evidence is not None:
            fields[name] = plain(evidence)
    intent = getattr(value, "intent", None)
    if isinstance(intent, Intent):
        fields["intent"] = intent.id
    candidates: tuple[Video, ...] = getattr(value, "candidates", ())
    if candidates:
        fields["candidates"] = [candidate.id for candidate in candidates]
    return fields


def outcome(value: Outcome) -> dict[str, Any]:
    """Give what became of one request."""
    receipt = None if value.job is None else value.job.receipt
    fields: dict[str, Any] = {
        "index": value.index,
        "ref": value.request.ref,
        "ok": value.ok,
        "record_ids": [] if value.job is None else list(value.job.record_ids),
        "credits_reserved": None if receipt is None else receipt.credits_reserved,
        "video": None if value.record is None else plain(value.record),
        "path": None if value.path is None else str(value.path),
    }
    return fields if value.error is None else {**fields, **error(value.error)}


def entry(value: LedgerEntry) -> dict[str, Any]:
    """Give what a ledger has of one request."""
    fields: dict[str, Any] = plain(value)
    fields["files"] = {str(path): size for path, size in value.files.items()}
    return fields


@cache
def _converter() -> Converter:
    from cattrs import Converter  # noqa: PLC0415 - it takes a while, and only ``--json`` needs it

    converter = Converter()
    converter.register_unstructure_hook(datetime, datetime.isoformat)
    converter.register_unstructure_hook(Path, str)
    converter.register_unstructure_hook_func(
        lambda kind: isinstance(kind, type) and issubclass(kind, enum.Enum),
        lambda member: member.value,
    )
    converter.register_unstructure_hook_func(
        lambda kind: isinstance(kind, type) and issubclass(kind, Mapping) and not issubclass(kind, dict),
        _items,
    )
    return converter


def _items(mapping: Mapping[str, object]) -> dict[str, Any]:
    return {name: _items(value) if isinstance(value, Mapping) else value for name, value in mapping.items()}  # pyright: ignore[reportUnknownArgumentType]
