"""The report of a ledger: one HTML file that works offline, beside the clips that it shows."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from .. import ConfigurationError
from ..cli.settling import ledger_name
from ..ledger import LedgerFile
from .clips import thumbnail_path

if TYPE_CHECKING:
    import os

__all__ = ["thumbnail_path", "write_report"]


async def write_report(
    ledger: str | os.PathLike[str], to: str | os.PathLike[str], *, title: str | None = None
) -> Path:
    """Write what a ledger has as one HTML file: totals, a timeline, and a card for each request.

    It needs neither a key nor the network. The clips stay where they are: the page has their places as seen
    from its own.

    Args:
        ledger: The file or address that a session was given as its ``ledger``.
        to: The file to write; one that is there is replaced, whole or not at all.
        title: What stands at the top; None: the ledger's name.

    Returns:
        The file that was written.

    Raises:
        ConfigurationError: The extra ``cli`` isn't installed.
        LedgerError: There is no such ledger, or it can't be used.
        OSError: The file can't be written.

    """
    try:
        from .page import write_page  # noqa: PLC0415 - only who wants a report needs Jinja2
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            "A report needs Jinja2, which isn't installed: pip install 'qamera-async[cli]'."
        ) from error
    async with LedgerFile(ledger) as file:
        entries = [entry async for entry in file.entries()]
    target = Path(to)
    return await asyncio.to_thread(
        write_page,
        entries,
        ledger=ledger,
        to=target,
        title=f"Report of {ledger_name(ledger)}" if title is None else title,
        made=datetime.now(UTC).astimezone(),
    )
