"""The tables, and the way from each version of them to the next."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

from ...errors import LedgerUnavailableError, LedgerVersionError

if TYPE_CHECKING:
    from collections.abc import Callable

    from .session import Session

SCHEMA = "qamera"
LOCKS = 0x516D6C67  # "Qmlg": the first half of the names of our advisory locks
DOOR = 0  # the second half of the lock that is held while tables are made
ADOPTING = -1  # of the one that is held while records are adopted; those of owners count from 1
TABLES: Final = (
    "meta",
    "owners",
    "intents",
    "records",
    "slots",
    "polls",
    "waiting",
    "shown",
    "executors",
    "moved",
)
_RIGHTS: Final = ("SELECT", "INSERT", "UPDATE", "DELETE")


def _first(session: Session) -> None:
    session.execute("CREATE TABLE meta (name TEXT PRIMARY KEY, value BIGINT NOT NULL)")
    # `serial` is that of the last transaction in which the owner wrote.
    session.execute(
        "CREATE TABLE owners (id BIGINT PRIMARY KEY, serial BIGINT NOT NULL, seen TIMESTAMPTZ NOT NULL)"
    )
    # `body` is the whole row as JSON; the columns beside it are what is searched for, and `digest` tells
    # whether any of it was damaged. `current` is 1 for the one row of a ref that counts.
    session.execute(
        "CREATE TABLE intents (number BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, "
        'id TEXT COLLATE "C" NOT NULL UNIQUE, origin TEXT COLLATE "C" NOT NULL, ref TEXT COLLATE "C", '
        "state TEXT NOT NULL, owner BIGINT NOT NULL, current SMALLINT NOT NULL, "
        "body BYTEA NOT NULL, digest BIGINT NOT NULL)"
    )
    session.execute("CREATE UNIQUE INDEX refs ON intents (origin, ref) WHERE current = 1 AND ref IS NOT NULL")
    session.execute(
        "CREATE INDEX open_states ON intents (origin, number) "
        "WHERE state IN ('adopted', 'ambiguous', 'sending', 'submitted')"
    )
    session.execute(
        'CREATE TABLE records (origin TEXT COLLATE "C" NOT NULL, record_id TEXT COLLATE "C" NOT NULL, '
        'intent TEXT COLLATE "C" NOT NULL, PRIMARY KEY (origin, record_id, intent))'
    )
    session.execute("CREATE INDEX intents_records ON records (intent)")
    # `expires` is a moment of the database's clock, in seconds since 1970; `process` tells whose it is.
    session.execute(
        'CREATE TABLE slots (id TEXT COLLATE "C" PRIMARY KEY, account TEXT COLLATE "C" NOT NULL, '
        "process TEXT NOT NULL, priority TEXT NOT NULL, settled BOOLEAN NOT NULL, "
        "expires DOUBLE PRECISION NOT NULL, reserve DOUBLE PRECISION NOT NULL)"
    )
    session.execute("CREATE INDEX accounts ON slots (account, expires)")
    session.execute("INSERT INTO meta VALUES ('ledger', ?)", (secrets.randbits(62),))
    session.execute("INSERT INTO meta VALUES ('version', 0)")


def _second(session: Session) -> None:
    """Make what processes share one poll and their work by."""
    # `begun`, `sent` and `ended` are moments of the database's clock, in seconds since 1970. Who polls is
    # `poller`, of `owner`; who did so last is `last`.
    session.execute(
        'CREATE TABLE polls (account TEXT COLLATE "C" PRIMARY KEY, number BIGINT NOT NULL, '
        "owner BIGINT NOT NULL, poller TEXT NOT NULL, begun DOUBLE PRECISION NOT NULL, last TEXT NOT NULL, "
        "sent DOUBLE PRECISION NOT NULL, ended DOUBLE PRECISION NOT NULL, complete BOOLEAN NOT NULL, "
        "trouble TEXT NOT NULL)"
    )
    session.execute(
        'CREATE TABLE waiting (account TEXT COLLATE "C" NOT NULL, record_id TEXT COLLATE "C" NOT NULL, '
        'poller TEXT COLLATE "C" NOT NULL, owner BIGINT NOT NULL, PRIMARY KEY (account, record_id, poller))'
    )
    session.execute("CREATE INDEX pollers ON waiting (account, poller)")
    # `item` is the record as it stands in the list, NULL: it was looked for and isn't there.
    session.execute(
        'CREATE TABLE shown (account TEXT COLLATE "C" NOT NULL, record_id TEXT COLLATE "C" NOT NULL, '
        "item TEXT, PRIMARY KEY (account, record_id))"
    )
    # The names of processes that share work, and which owner has each.
    session.execute('CREATE TABLE executors (name TEXT COLLATE "C" PRIMARY KEY, owner BIGINT NOT NULL)')


def _third(session: Session) -> None:
    """Make what says that a ledger was moved elsewhere; a version that doesn't look there opens none."""
    session.execute("CREATE TABLE moved (place TEXT NOT NULL)")


MIGRATIONS: tuple[Callable[[Session], None], ...] = (_first, _second, _third)
"""Each brings a ledger from the version that is its place to the next one."""


def has_tables(session: Session) -> bool:
    """Whether there is a ledger, or something of its names."""
    # Not by the name alone, which would need a right on the schema.
    return _there(session, "pg_class c JOIN pg_namespace n ON n.oid = relnamespace", "relname", "meta")


def version(session: Session) -> int:
    """Give the version of the tables; 0: there are none."""
    if not has_tables(session):
        return 0
    found = session.execute("SELECT value FROM meta WHERE name = 'version'").fetchone()
    return 0 if found is None else int(found[0])


def migrate(session: Session, path: str) -> None:
    """Make the tables, or bring them up to date, wholly or not at all.

    Raises:
        LedgerVersionError: they are newer.
        psycopg.Error: they can't be made.
    """
    found = version(session)
    if found > len(MIGRATIONS):
        raise LedgerVersionError(
            f"The ledger has version {found}, known are those up to {len(MIGRATIONS)}.",
            path=path,
            found=found,
            supported=len(MIGRATIONS),
        )
    if found == len(MIGRATIONS):
        return
    session.begin()
    try:
        session.execute("SELECT pg_advisory_xact_lock(?, ?)", (LOCKS, DOOR))
        if not _there(session, "pg_namespace n", "nspname", SCHEMA):
            session.execute(f"CREATE SCHEMA {SCHEMA}")
        for step in MIGRATIONS[version(session) :]:  # another process may have been faster
            step(session)
        session.execute("UPDATE meta SET value = ? WHERE name = 'version'", (len(MIGRATIONS),))
        session.commit()
    except BaseException:
        session.roll_back()
        raise


def check_schema(session: Session, path: str) -> None:
    """Refuse a schema that can't be looked into.

    Raises:
        LedgerUnavailableError: a right is missing; it says how to give it.
    """
    usable = session.execute(
        "SELECT has_schema_privilege(oid, 'USAGE') FROM pg_namespace WHERE nspname = ?", (SCHEMA,)
    ).fetchone()
    if usable == (False,):
        raise _missing(session, path, "the ledger's schema", "USAGE, CREATE ON SCHEMA")


def check_rights(session: Session, path: str) -> None:
    """Refuse tables that can't be worked with; what is still to be made is none of them.

    Raises:
        LedgerUnavailableError: a right is missing; it says how to give it.
    """
    values = ", ".join(f"('{table}', '{right}')" for table in TABLES for right in _RIGHTS)
    (may,) = session.execute(
        f"SELECT bool_and(has_table_privilege(to_regclass(name)::oid, kind)) "  # noqa: S608
        f"FROM (VALUES {values}) AS rights(name, kind)"
    ).fetchone() or (False,)
    if not may:
        raise _missing(session, path, "the ledger's tables", f"{', '.join(_RIGHTS)} ON ALL TABLES IN SCHEMA")


def _missing(session: Session, path: str, what: str, right: str) -> LedgerUnavailableError:
    return LedgerUnavailableError(
        f"The database's role may not work with {what}. Have the owner run: "
        f"GRANT {right} {SCHEMA} TO {_role(session)};",
        path=path,
        fix="Have that done",
    )


def without_rights(session: Session) -> str:
    """Say which statement lets this role make the tables."""
    role = _role(session)
    if _there(session, "pg_namespace n", "nspname", SCHEMA):
        return f"GRANT USAGE, CREATE ON SCHEMA {SCHEMA} TO {role};"
    return f"CREATE SCHEMA {SCHEMA} AUTHORIZATION {role};"


def _role(session: Session) -> str:
    (role,) = session.execute("SELECT quote_ident(current_user)").fetchone() or ("",)
    return str(role)


def _there(session: Session, catalogue: str, column: str, name: str) -> bool:
    # What is looked through is this module's own.
    found = session.execute(
        f"SELECT 1 FROM {catalogue} WHERE {column} = ? AND n.nspname = ?",  # noqa: S608
        (name, SCHEMA),
    ).fetchone()
    return found is not None
