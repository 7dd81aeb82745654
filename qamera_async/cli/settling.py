"""The commands that look into a ledger and settle a doubt, as one would type them."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os


def ledger_command(ledger: str | os.PathLike[str], *words: str) -> str:
    """Give ``qamera ledger`` with a ledger's path and what is to be done there, quoted for a shell.

    Args:
        ledger: The ledger's path.
        words: ``adopt``, the intent and a record, or ``abandon`` and the intent; none: it is shown.

    """
    return shlex.join(["qamera", "ledger", str(ledger), *words])
