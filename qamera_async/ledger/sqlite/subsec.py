"""A connection for others' tables, which may ask an older SQLite for what it doesn't have yet."""

from __future__ import annotations

import sqlite3
import time
from typing import Any

_HAS_IT = (3, 42)


class Connection(sqlite3.Connection):
    """One that knows ``unixepoch('subsec')``, the seconds since 1970 with a fraction, before SQLite 3.42."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - those of sqlite3
        super().__init__(*args, **options)
        if sqlite3.sqlite_version_info < _HAS_IT:
            self.create_function("unixepoch", 1, _seconds)


def _seconds(_: object) -> float:
    return time.time()
