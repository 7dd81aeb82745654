"""A connection to PostgreSQL as the ledger works with it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import psycopg

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


class Result:
    """What comes of a statement; it is sent when somebody asks for that, if not before.

    Args:
        send: sends it, with all that waits before it.
    """

    def __init__(self, send: Callable[[], None]) -> None:
        self._send = send
        self._rowcount: int | None = None
        self._rows: list[tuple[Any, ...]] = []

    def came(self, rowcount: int, rows: list[tuple[Any, ...]]) -> None:
        """Note what came."""
        self._rowcount, self._rows = rowcount, rows

    @property
    def rowcount(self) -> int:
        """The rows that it was about."""
        if self._rowcount is None:
            self._send()
        return self._rowcount or 0

    def fetchone(self) -> tuple[Any, ...] | None:
        """Give the first row."""
        return next(iter(self.fetchall()), None)

    def fetchall(self) -> list[tuple[Any, ...]]:
        """Give all rows."""
        if self._rowcount is None:
            self._send()
        return self._rows


class Session:
    """One connection, from entering the ledger to its loss or end.

    Statements wait until a result is asked for or the transaction ends: what waits together is one message
    there and one back.

    Args:
        connection: it, each message a transaction of its own unless it begins one.
    """

    def __init__(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        self._connection = connection
        self._cursor = psycopg.ClientCursor(connection)
        self._waiting: list[tuple[str, Result]] = []
        self._sent = False  # whether anything of the transaction was sent
        self._heard: list[str] = []
        self.wrote = False

    @property
    def lost(self) -> bool:
        """Whether the connection is gone."""
        return self._connection.closed

    def execute(self, sql: str, values: Sequence[Any] = (), /) -> Result:
        """Give what comes of a statement, with values for its question marks."""
        if not sql.startswith("SELECT"):
            self.wrote = True
        return self._wait(sql.replace("?", "%s"), [_sent(value) for value in values])

    def message(self, sql: str, values: Mapping[str, Any]) -> list[list[tuple[Any, ...]]]:
        """Send statements that are one transaction; give the rows of each.

        Args:
            sql: the statements, with ``%(NAME)s`` for values, and semicolons between them.
            values: what the names stand for.
        """
        sent = {name: _sent(value) for name, value in values.items()}
        results = [self._wait(statement, sent) for statement in sql.split("; ")]
        return [result.fetchall() for result in results]

    def begin(self) -> None:
        """Begin a transaction."""
        self.wrote = self._sent = False
        self._waiting.clear()
        self._wait("BEGIN")

    def commit(self) -> None:
        """End it; what it wrote is on the disk then."""
        if not self._sent and len(self._waiting) == 1:
            self._waiting.clear()  # there was nothing to do
            return
        self._wait("COMMIT")
        self.send()

    def roll_back(self) -> None:
        """Undo it."""
        self._waiting.clear()
        with contextlib.suppress(psycopg.Error):
            self._connection.execute("ROLLBACK")

    def send(self) -> None:
        """Send what waits."""
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._sent = True
            self._cursor.execute("; ".join(text for text, _ in waiting).encode())
            for _, result in waiting:
                result.came(self._cursor.rowcount, _rows(self._cursor))
                self._cursor.nextset()

    # --- what others say ------------------------------------------------------------------------

    @property
    def fileno(self) -> int:
        """What to wait on for something to take in."""
        return self._connection.fileno()

    def listen(self, channel: str) -> None:
        """From now on hear what is said on a channel."""
        self._connection.add_notify_handler(lambda notify: self._heard.append(notify.payload))
        self._connection.execute(f"LISTEN {channel}".encode())

    def take_in(self) -> None:
        """Take in what has come while nothing was asked.

        Raises:
            psycopg.Error: the connection is lost.
        """
        self._connection.pgconn.consume_input()
        while (notify := self._connection.pgconn.notifies()) is not None:
            self._heard.append(notify.extra.decode())

    def heard(self) -> list[str]:
        """Give what was heard since the last call."""
        heard, self._heard = self._heard, []
        return heard

    def close(self) -> None:
        """Let go of the connection, whatever state it is in."""
        with contextlib.suppress(Exception):
            self._connection.close()

    def _wait(self, sql: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> Result:
        result = Result(self.send)
        text = self._cursor.mogrify(sql.encode(), values) if values else sql
        self._waiting.append((text, result))
        return result


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
