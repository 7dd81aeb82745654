"""Which run of the machine this is: what a monotonic clock says means nothing in another one."""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def boot_id() -> str:
    """Give a name that changes with each boot; empty where the system has none to tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except (OSError, ValueError):
        return ""
