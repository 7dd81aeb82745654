"""From a place to a session: settings, tables, and the lock that says that this owner lives.

An owner's lock is one of its connection: it ends with that, whatever the process died of, and whoever comes
back has to take it again before anything is written.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import attrs
import psycopg
from psycopg import errors

from ...errors import LedgerCorruptError, LedgerUnavailableError, QameraError
from ..moving import check_not_moved
from .schema import LOCKS, SCHEMA, TABLES, check_rights, check_schema, has_tables, migrate, without_rights
from .session import Session

if TYPE_CHECKING:
    from .place import Place

_log = logging.getLogger("qamera_async")

_PATIENCE = 10.0  # seconds that another connection may hold what is wanted
_PAUSE = 0.02  # seconds
_HELD = (
    "FROM pg_locks WHERE locktype = 'advisory' AND granted AND classid = ? AND objsubid = 2 "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)
ALIVE = f"SELECT objid::bigint {_HELD}"
"""The owners whose connections are there, in SQL; its mark is for ``LOCKS``."""

# A transaction whose process hangs must not keep the others for good. "off" would say that a commit is on the
# disk before it is; what asks for more than that stays. An owner that is idle lives, too.
_SETTINGS = (
    f"SELECT set_config('search_path', '{SCHEMA}', false), "  # noqa: S608 - our own name
    "set_config('synchronous_commit', "
    "CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on' "
    "ELSE current_setting('synchronous_commit') END, false), "
    "set_config('default_transaction_isolation', 'read committed', false), "
    "set_config('lock_timeout', '10s', false), set_config('statement_timeout', '60s', false), "
    "set_config('idle_in_transaction_session_timeout', '20s', false), "
    "(SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'idle_session_timeout'), "
    "current_setting('server_encoding'), current_setting('fsync')"
)
# What is there has our names, and is something else, or not all of it.
_OF_OTHERS = {"42P07", "42P01", "42703", "42809", "42804", errors.NoDataFound.sqlstate}
_WHOLE = ", ".join(f"'{table}'::regclass" for table in TABLES)  # an error where one is missing
LONG_DEAD = f"seen < clock_timestamp() - interval '7 days' AND id NOT IN ({ALIVE})"
"""Owners that nobody will ask for any more, in SQL; its mark is for ``LOCKS``."""

REACHED = "See that the database runs and that its address is right"
_FIXES = {
    "25006": "Give the address of one that can be written",
    "42501": "Give the database's role the right to it",
    "53100": "Make room on the database's disk",
    "55P03": "Wait for the program that holds it, or end it",
}


@attrs.frozen
class Entered:
    """A session that has entered a ledger.

    Args:
        session: It.
        ledger: Which ledger it is, whatever leads there.
        backend: The server's process behind it.
        serial: That of the owner's last transaction that is kept; None: none is.
    """

    session: Session
    ledger: int
    backend: int
    serial: int | None


def is_there(place: Place) -> bool:
    """Tell whether a database has a ledger; nothing is made.

    Raises:
        LedgerError: the database can't be asked.
    """
    session = _session(place)
    try:
        return has_tables(session)
    except psycopg.Error as error:
        failed = _unusable(place, session, error)
    finally:
        session.close()
    raise failed


def entered(place: Place, owner: int, ledger: int | None) -> Entered:
    """Enter a ledger as an owner.

    Args:
        place: where it is.
        owner: who comes.
        ledger: which one it has to be; None: whatever is there, or a new one.

    Raises:
        LedgerError: it isn't one that can be worked with.
        psycopg.Error: the connection was lost on the way.
    """
    session = _session(place)
    try:
        check_schema(session, place.shown)
        if has_tables(session):
            check_rights(session, place.shown)
        if ledger is None:
            migrate(session, place.shown)
        found, *_ = _one(session, f"SELECT value, {_WHOLE} FROM meta WHERE name = 'ledger'")  # noqa: S608
        if ledger is not None and found != ledger:
            raise _replaced(place)  # noqa: TRY301 - closed as with any other error
        _take_lock(session, owner, place)
        # Who moves it locks that table before it looks for owners, so that one of both sees the other.
        check_not_moved(session, place.shown)
        if ledger is None:
            session.execute(f"DELETE FROM owners WHERE {LONG_DEAD}", (LOCKS,))  # noqa: S608
        backend, serial = _one(
            session, "SELECT pg_backend_pid(), (SELECT serial FROM owners WHERE id = ?)", owner
        )
        return Entered(session, found, backend, serial)
    except BaseException as error:
        failed = error
        if isinstance(error, psycopg.Error) and not session.lost:
            failed = _unusable(place, session, error)
        session.close()
    raise failed


def living(session: Session) -> set[int]:
    """Give the owners whose connections are there."""
    return {owner for (owner,) in session.execute(ALIVE, (LOCKS,)).fetchall()}


def _session(place: Place) -> Session:
    """Give a session with our settings.

    Raises:
        LedgerUnavailableError: the database can't be reached, or is of no use.
    """
    fix = REACHED
    try:
        session = Session(place.connected())
    except psycopg.Error as error:
        reason = place.reason(error)
    else:
        try:
            *_, encoding, fsync = _one(session, _SETTINGS)
        except psycopg.Error as error:
            reason = place.reason(error)
        else:
            if fsync == "off":
                _log.warning(
                    "the database %s has fsync off: a crash of its machine loses orders", place.shown
                )
            if encoding == "UTF8":
                return session
            reason = f"its encoding is {encoding}, and a ledger needs UTF8"
            fix = "Give the address of one in UTF8"
        session.close()
    raise LedgerUnavailableError(f"The database can't be used: {reason}.", path=place.shown, fix=fix)


def _take_lock(session: Session, owner: int, place: Place) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not _one(session, "SELECT pg_try_advisory_lock(?, ?)", LOCKS, owner)[0]:
        # Nobody else has this owner's name: the connection that was lost is still there on the server's side,
        # and what it was about to commit is decided when it has gone.
        session.execute(
            f"SELECT pg_terminate_backend(pid) {_HELD} AND objid = ?::oid", (LOCKS, owner)
        ).fetchall()
        if time.monotonic() > deadline:
            raise LedgerUnavailableError(
                "The database keeps the lock of a connection that was lost.", path=place.shown
            )
        time.sleep(_PAUSE)


def _unusable(place: Place, session: Session, error: psycopg.Error) -> QameraError:
    """Give our error for one of a database that answers."""
    if isinstance(error, errors.InsufficientPrivilege):
        statement = without_rights(session)
        return LedgerUnavailableError(
            f"The database's role may not make the ledger's tables. Have its owner run: {statement}",
            path=place.shown,
            fix="Have that done",
        )
    if error.sqlstate in _OF_OTHERS:
        return LedgerCorruptError(
            f"The database's schema {SCHEMA} holds no ledger of this package: {place.reason(error)}.",
            path=place.shown,
        )
    return LedgerUnavailableError(
        f"The database can't be used: {place.reason(error)}.", path=place.shown, fix=fix_for(error)
    )


def fix_for(error: psycopg.Error) -> str:
    """Say what mends it, as the beginning of an advice."""
    return _FIXES.get(error.sqlstate or "", REACHED)


def _replaced(place: Place) -> LedgerUnavailableError:
    return LedgerUnavailableError(
        "The ledger was replaced or removed while it was in use.", path=place.shown, fix="Open it anew"
    )


def _one(session: Session, sql: str, *values: object) -> tuple[Any, ...]:
    found = session.execute(sql, values).fetchone()
    if found is None:
        raise errors.NoDataFound("a row of the ledger's own is missing")
    return found
