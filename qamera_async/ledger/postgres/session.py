"""A connection to PostgreSQL as the ledger works with it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import attrs
import psycopg

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@attrs.frozen
class Result:
    """What came of a statement.

    Args:
        rowcount: The rows that it was about.
        rows: Those that it gave.
    """

    rowcount: int
    rows: list[tuple[Any, ...]]

    def fetchone(self) -> tuple[Any, ...] | None:
        """Give the first row."""
        return self.rows[0] if self.rows else None

    def fetchall(self) -> list[tuple[Any, ...]]:
        """Give all rows."""
        return self.rows


class Session:
    """One connection, from entering the ledger to its loss or end.

    Args:
        connection: it, each statement a transaction of its own.
    """

    def __init__(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        self._connection = connection
        self.wrote = False

    @property
    def lost(self) -> bool:
        """Whether the connection is gone."""
        return self._connection.closed

    def execute(self, sql: str, values: Sequence[Any] = (), /) -> Result:
        """Run a statement, with values for its question marks."""
        if not sql.startswith("SELECT"):
            self.wrote = True
        cursor = self._connection.execute(
            sql.replace("?", "%s").encode(), [_sent(value) for value in values] or None
        )
        return Result(cursor.rowcount, _rows(cursor))

    def message(self, sql: str, values: Mapping[str, Any]) -> list[list[tuple[Any, ...]]]:
        """Run statements that are one message there and one back, and one transaction; give the rows of each.

        Args:
            sql: the statements, with ``%(NAME)s`` for values.
            values: what the names stand for.
        """
        cursor = psycopg.ClientCursor(self._connection)
        cursor.execute(sql.encode(), {name: _sent(value) for name, value in values.items()})
        found = [_rows(cursor)]
        while cursor.nextset():
            found.append(_rows(cursor))
        return found

    def begin(self) -> None:
        """Begin a transaction."""
        self.wrote = False
        self._connection.execute("BEGIN")

    def commit(self) -> None:
        """End it; what it wrote is on the disk then."""
        self._connection.execute("COMMIT")

    def roll_back(self) -> None:
        """Undo it."""
        with contextlib.suppress(psycopg.Error):
            self._connection.execute("ROLLBACK")

    def close(self) -> None:
        """Let go of the connection, whatever state it is in."""
        with contextlib.suppress(Exception):
            self._connection.close()


def _rows(cursor: psycopg.Cursor[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    if cursor.description is None:
        return []
    return [tuple([_told(value) for value in row]) for row in cursor.fetchall()]


# PostgreSQL's texts have no NUL, and ours may.


def _sent(value: object) -> object:
    return value.replace("\\", "\\\\").replace("\0", "\\0") if isinstance(value, str) else value


def _told(value: object) -> object:
    if not isinstance(value, str) or "\\" not in value:
        return value
    return "\\".join(part.replace("\\0", "\0") for part in value.split("\\\\"))
