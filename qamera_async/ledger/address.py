"""The address of a ledger in a database, which may hold a password and is shown to nobody."""

from __future__ import annotations

import attrs

SCHEMES = ("postgresql://", "postgres://")


@attrs.frozen
class Address:
    """Where a database is; two of the same text are the same.

    Args:
        text: All of it, with its user and its password.
    """

    text: str = attrs.field(repr=False)
