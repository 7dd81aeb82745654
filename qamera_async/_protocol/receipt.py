"""A registration's answer as a receipt; the same for videos and reels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from .._models import Receipt
from .answer import UNREADABLE, Answer, decoded, identifier_of, reader, text_of, unreadable

if TYPE_CHECKING:
    from collections.abc import Callable

_anything = msgspec.json.Decoder[Any]()


@reader
def read_receipt(answer: Answer) -> Receipt:
    """Give the receipt of a registration; all but its record ids may be missing.

    Raises:
        InvalidResponseError: no readable record id in it.
    """
    expected = "a receipt with createdRecordIds"
    try:
        stated = decoded(_anything, answer.body)
    except UNREADABLE:
        raise unreadable(answer, expected) from None
    ids = stated.get("createdRecordIds") if isinstance(stated, dict) else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    if not isinstance(ids, list) or not ids or not all(map(_whole, ids)):  # pyright: ignore[reportUnknownArgumentType]
        error = unreadable(answer, expected)
        if isinstance(ids, list):
            error.record_ids = tuple(dict.fromkeys(filter(_whole, ids)))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        raise error
    known = {"createdRecordIds": dict.fromkeys(ids), "correlationId": answer.correlation_id}  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    return receipt_reader()({**stated, **known}, Receipt)


def _whole(value: object) -> str | None:
    """Give an id; None for what is none, or lacks a character that could not be read."""
    return None if "\ufffd" in (identifier_of(value) or "") else identifier_of(value)


_structure_receipt: Callable[[Any, type[Receipt]], Receipt] | None = None


def receipt_reader() -> Callable[[Any, type[Receipt]], Receipt]:
    """Give what structures receipts, made for the first order: cattrs takes a while to import.

    To be called before anything is paid for, since an import can fail.
    """
    global _structure_receipt  # noqa: PLW0603
    if _structure_receipt is None:
        from cattrs import Converter  # noqa: PLC0415
        from cattrs.gen import make_dict_structure_fn, override  # noqa: PLC0415

        converter = Converter()
        converter.register_structure_hook(str | None, lambda value, _: text_of(value))
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
