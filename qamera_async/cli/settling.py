"""The commands that look into a ledger and settle a doubt, as one would type them."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path


def ledger_command(ledger: str | os.PathLike[str], *words: str) -> str:
    """Give ``qamera ledger`` with a ledger's path and what is to be done there, quoted for a shell.

    Args:
        ledger: The ledger's path or address; a password in that is left out.
        words: ``adopt``, the intent and a record, or ``abandon`` and the intent; none: it is shown.

    """
    return shlex.join(["qamera", "ledger", without_password(str(ledger)), *words])


def is_address(ledger: str) -> bool:
    """Whether a ledger is in a database and not in a file."""
    return "://" in ledger


def whole_name(ledger: str | os.PathLike[str]) -> str:
    """Give a ledger's name so that it is found from anywhere, without a password."""
    name = os.fspath(ledger)
    return without_password(name) if is_address(name) else os.path.abspath(name)  # noqa: PTH100 - as it is named


def ledger_name(ledger: str | os.PathLike[str]) -> str:
    """Give the last part of a ledger's name: that of its file, or of its database."""
    return Path(without_password(os.fspath(ledger)).partition("?")[0]).name


def without_password(ledger: str) -> str:
    """Give a ledger's path as it is, an address without the password that it may hold."""
    if not is_address(ledger):
        return ledger
    known = re.fullmatch(r"(\w+://)(?:([^/@]*)@)?([^?]*)(.*)", ledger, re.DOTALL)
    if known is None:
        return "ADDRESS"
    scheme, user, place, settings = known.groups()
    kept = [setting for setting in settings[1:].split("&") if setting and "password" not in setting.lower()]
    user = (user or "").partition(":")[0]
    return f"{scheme}{user}{'@' if user else ''}{place}{'?' if kept else ''}{'&'.join(kept)}"
