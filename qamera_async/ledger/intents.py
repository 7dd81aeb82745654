"""The table of a ledger's requests, in SQL: what a statement says, and what a row has to have."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import attrs

from ..errors import LedgerCorruptError
from .rows import LedgerState, Row, decoded

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

_T = TypeVar("_T")

_PAGE = 200  # rows that are read at a time
_COLUMNS = "id, origin, ref, state, owner, body, digest"


class _Result(Protocol):
    @property
    def rowcount(self) -> int: ...
    def fetchone(self) -> Any: ...  # noqa: ANN401 - a database's own row
    def fetchall(self) -> list[Any]: ...


class Tables(Protocol):
    """A connection, in a transaction."""

    def execute(self, sql: str, values: Sequence[Any] = ..., /) -> _Result:
        """Run a statement, with values for its question marks."""
        ...


@attrs.frozen
class Numbered:
    """A row with what it is in its table.

    Args:
        number: Its place in the order of claims.
        current: Whether it is the one that counts for its ref.
        digest: What tells whether it was changed.
        row: It.
    """

    number: int
    current: bool
    digest: int
    row: Row


class Intents:
    """The requests.

    Args:
        path: what to call the database in messages.
        locked: what keeps others from a row that is selected, where a transaction alone doesn't.
    """

    def __init__(self, path: str, locked: str) -> None:
        self._path = path
        self._locked = locked

    def one(self, connection: Tables, where: str, *values: object) -> Row | None:
        """Give the row of a condition, and keep others from it until the transaction ends."""
        # `where` is this module's own, and what is looked for is bound to its marks.
        found = connection.execute(
            f"SELECT {_COLUMNS} FROM intents WHERE {where}{self._locked}",  # noqa: S608
            values,
        ).fetchone()
        return None if found is None else self._row(found)

    def some(
        self, connection: Tables, origin: str | None, states: Collection[LedgerState], last: int
    ) -> list[Numbered]:
        """Give the first of the rows after a number, with what they are beside it."""
        # Written out, so that the index of those states is seen to fit.
        where = f"state IN ({', '.join(sorted(repr(state.value) for state in states))}) AND number > ?"
        values: tuple[object, ...] = (last,)
        if origin is not None:
            where, values = f"origin = ? AND {where}", (origin, last)
        found = connection.execute(
            f"SELECT number, current, {_COLUMNS} FROM intents WHERE {where} "  # noqa: S608
            f"ORDER BY number LIMIT {_PAGE}",
            values,
        )
        return [
            Numbered(number, bool(current), columns[-1], self._row(columns))
            for number, current, *columns in found.fetchall()
        ]

    def _row(self, columns: Sequence[Any]) -> Row:
        *searched, body, digest = columns
        try:
            if digest_of(*searched, body) != digest:
                raise ValueError("the digest differs")  # noqa: TRY301 - one border for both
            return decoded(body)
        except ValueError as error:
            raise LedgerCorruptError(
                f"A row of the ledger is damaged: {searched[0]!r}, {error}.", path=self._path
            ) from None

    def insert(self, connection: Tables, row: Row) -> bool:
        """Whether it could be inserted, since no other of its ref is the one that counts."""
        inserted = connection.execute(
            "INSERT INTO intents (id, origin, ref, state, owner, current, body, digest) "
            "VALUES (?, ?, ?, ?, ?, 1, ?, ?) "
            "ON CONFLICT (origin, ref) WHERE current = 1 AND ref IS NOT NULL DO NOTHING",
            _columns(row),
        ).rowcount
        if inserted:
            self._keep_records(connection, row)
        return bool(inserted)

    def put(self, connection: Tables, rows: Sequence[Numbered]) -> list[Row]:
        """Put rows of another ledger in, in their order; give those in whose place is something else."""
        if not rows:
            return []
        values = [
            (*columns[:5], int(found.current), *columns[5:])
            for found, columns in ((found, _columns(found.row)) for found in rows)
        ]
        marks = ", ".join(["(?, ?, ?, ?, ?, ?, ?, ?)"] * len(rows))
        inserted = connection.execute(
            "INSERT INTO intents (id, origin, ref, state, owner, current, body, digest) "  # noqa: S608 - marks
            f"VALUES {marks} ON CONFLICT DO NOTHING",
            [value for row in values for value in row],
        ).rowcount
        if inserted < len(rows):
            # What was copied before is there, and is the same.
            there = connection.execute(
                "SELECT id, current, digest FROM intents "  # noqa: S608 - marks
                f"WHERE id IN ({', '.join('?' * len(rows))})",
                [found.row.id for found in rows],
            ).fetchall()
            same = {tuple(row) for row in there}
            return [
                found.row
                for found, row in zip(rows, values, strict=True)
                if (row[0], row[5], row[7]) not in same
            ]
        return []

    def strangers(self, connection: Tables, rows: Sequence[Row]) -> list[tuple[str, str]]:
        """Give those of the rows' records that others have, with whose they are; the rest is theirs now."""
        owned = [(row.origin, record_id, row.id) for row in rows for record_id in row.record_ids]
        found: list[tuple[str, str]] = []
        for piece in pieces(owned, _PAGE):
            marks = ", ".join("?" * len(piece))
            intents = {(origin, record_id): intent for origin, record_id, intent in piece}
            there = connection.execute(
                f"SELECT origin, record_id, intent FROM records WHERE record_id IN ({marks})",  # noqa: S608
                [record_id for _, record_id, _ in piece],
            ).fetchall()
            found += [
                (record_id, intent)
                for origin, record_id, intent in there
                if intents.get((origin, record_id), intent) != intent
            ]
            connection.execute(
                f"INSERT INTO records VALUES {', '.join(['(?, ?, ?)'] * len(piece))} "  # noqa: S608 - marks
                "ON CONFLICT DO NOTHING",
                [value for row in piece for value in row],
            )
        return found

    def has(self, connection: Tables, intent_id: str) -> bool:
        """Whether there is a row of this id."""
        return connection.execute("SELECT 1 FROM intents WHERE id = ?", (intent_id,)).fetchone() is not None

    def update(self, connection: Tables, row: Row) -> None:
        """Write down what a row has become."""
        row_id, _, _, state, owner, body, digest = _columns(row)
        connection.execute(
            "UPDATE intents SET state = ?, owner = ?, body = ?, digest = ? WHERE id = ?",
            (state, owner, body, digest, row_id),
        )
        self._keep_records(connection, row)

    def remove(self, connection: Tables, found: Numbered) -> bool:
        """Whether it could be removed, since nobody has changed it meanwhile."""
        row = found.row
        removed = connection.execute(
            "DELETE FROM intents WHERE id = ? AND digest = ?", (row.id, found.digest)
        ).rowcount
        for record_id in row.record_ids if removed else ():
            # By all of its key: not every database has another index.
            connection.execute(
                "DELETE FROM records WHERE origin = ? AND record_id = ? AND intent = ?",
                (row.origin, record_id, row.id),
            )
        return bool(removed)

    def _keep_records(self, connection: Tables, row: Row) -> None:
        for record_id in row.record_ids:
            connection.execute(
                "INSERT INTO records VALUES (?, ?, ?) ON CONFLICT DO NOTHING", (row.origin, record_id, row.id)
            )


def _columns(row: Row) -> tuple[Any, ...]:
    searched = row.id, row.origin, row.request.ref, row.state.value, row.owner
    body = row.encoded()
    return (*searched, body, digest_of(*searched, body))


def pieces(values: Sequence[_T], most: int) -> Iterator[Sequence[_T]]:
    """Give so many at a time: a statement takes only so many marks."""
    return (values[start : start + most] for start in range(0, len(values), most))


def claimed_in(connection: Tables, origin: str, record_ids: Collection[str], but: str = "") -> set[str]:
    """Those of the records that a row has, one row aside."""
    query = "SELECT 1 FROM records WHERE origin = ? AND record_id = ? AND intent != ?"
    return {
        record_id
        for record_id in record_ids
        if connection.execute(query, (origin, record_id, but)).fetchone()
    }


def digest_of(*columns: object) -> int:
    """Give what tells whether any of a row was damaged."""
    return zlib.crc32(repr(columns).encode())
