"""What the command's exit codes mean."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class Code(enum.IntEnum):
    """How a command ended, for the shell.

    DONE: all went well. FAILED: some of it failed. USAGE: it can't be done as it was asked for. REFUSED: the
    API said no. DOUBT: registrations that nobody can be sure of; look at them first. INTERRUPTED: by
    Ctrl-C or SIGTERM, or declined. GONE: nobody reads its output any more.
    """

    DONE = 0
    FAILED = 1
    USAGE = 2
    REFUSED = 3
    DOUBT = 4
    INTERRUPTED = 130
    GONE = 141


def gravest(codes: Iterable[Code]) -> Code:
    """Give the code that tells most of several: what costs money before what is only missing."""
    order = (Code.DOUBT, Code.REFUSED, Code.USAGE, Code.FAILED)
    seen = set(codes)
    return next((code for code in order if code in seen), Code.DONE)
