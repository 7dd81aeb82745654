"""The tables, and the way from each version of them to the next."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

APPLICATION_ID = 0x516D6C67  # "Qmlg", so that another program's database isn't taken for a ledger


def _first(connection: sqlite3.Connection) -> None:
    connection.execute("CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID")
    connection.execute("CREATE TABLE owners (id INTEGER PRIMARY KEY)")
    # `body` is the whole row as JSON; the columns beside it are what is searched for, and `digest` tells
    # whether any of it was damaged. `current` is 1 for the one row of a ref that counts.
    connection.execute(
        "CREATE TABLE intents (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, origin TEXT NOT NULL, "
        "ref TEXT, state TEXT NOT NULL, owner INTEGER NOT NULL, current INTEGER NOT NULL, "
        "body BLOB NOT NULL, digest INTEGER NOT NULL)"
    )
    connection.execute(
        "CREATE UNIQUE INDEX refs ON intents (origin, ref) WHERE current = 1 AND ref IS NOT NULL"
    )
    connection.execute(
        "CREATE INDEX open_states ON intents (origin, state) WHERE state NOT IN ('done', 'failed')"
    )
    connection.execute(
        "CREATE TABLE records (origin TEXT NOT NULL, record_id TEXT NOT NULL, intent TEXT NOT NULL, "
        "PRIMARY KEY (origin, record_id, intent)) WITHOUT ROWID"
    )
    # `expires` is a moment of the monotonic clock of that boot; `process` tells whose it is.
    connection.execute(
        "CREATE TABLE slots (id TEXT PRIMARY KEY, account TEXT NOT NULL, "
        "process TEXT NOT NULL, priority TEXT NOT NULL, settled INTEGER NOT NULL, expires REAL NOT NULL, "
        "reserve REAL NOT NULL, boot TEXT NOT NULL)"
    )
    connection.execute("CREATE INDEX accounts ON slots (account, expires)")
    # Whether the file alone, without its -wal, is all there is.
    connection.execute("INSERT INTO meta VALUES ('settled', 1)")


def _second(connection: sqlite3.Connection) -> None:
    """Make what processes share one poll and their work by."""
    # `begun`, `sent` and `ended` are moments of the monotonic clock. Who polls is `poller`, of `owner`; who
    # did so last is `last`.
    connection.execute(
        "CREATE TABLE polls (account TEXT PRIMARY KEY, number INTEGER NOT NULL, owner INTEGER NOT NULL, "
        "poller TEXT NOT NULL, begun REAL NOT NULL, last TEXT NOT NULL, sent REAL NOT NULL, "
        "ended REAL NOT NULL, complete INTEGER NOT NULL, trouble TEXT NOT NULL) WITHOUT ROWID"
    )
    connection.execute(
        "CREATE TABLE waiting (account TEXT NOT NULL, record_id TEXT NOT NULL, poller TEXT NOT NULL, "
        "owner INTEGER NOT NULL, PRIMARY KEY (account, record_id, poller)) WITHOUT ROWID"
    )
    connection.execute("CREATE INDEX pollers ON waiting (account, poller)")
    # `item` is the record as it stands in the list, NULL: it was looked for and isn't there.
    connection.execute(
        "CREATE TABLE shown (account TEXT NOT NULL, record_id TEXT NOT NULL, item TEXT, "
        "PRIMARY KEY (account, record_id)) WITHOUT ROWID"
    )
    # The names of processes that share work, and which owner has each.
    connection.execute("CREATE TABLE executors (name TEXT PRIMARY KEY, owner INTEGER NOT NULL) WITHOUT ROWID")


def _third(connection: sqlite3.Connection) -> None:
    """Make what says that a ledger was moved elsewhere; a version that doesn't look there opens none."""
    connection.execute("CREATE TABLE moved (place TEXT NOT NULL)")


MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (_first, _second, _third)
"""Each brings a ledger from the version that is its place to the next one."""


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the tables up to date, wholly or not at all."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        for step in MIGRATIONS[version:]:
            step(connection)
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
