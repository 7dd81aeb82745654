"""A path to a connection: made new, or looked at closely before anything is written to it."""

from __future__ import annotations

import logging
import os
import secrets
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import LedgerCorruptError, LedgerUnavailableError, LedgerVersionError
from ..moving import check_not_moved
from .schema import APPLICATION_ID, MIGRATIONS, migrate

if TYPE_CHECKING:
    from .owners import Owners

_log = logging.getLogger("qamera_async")

_PATIENCE = 10.0  # seconds that another process may hold the database
_SETTLE = "UPDATE meta SET value = 1 WHERE name = 'settled'"
_WAL_HEADER = 32  # bytes, before the first frame
_WRITABLE_BITS = 0o222


def opened(path: Path, owners: Owners) -> tuple[sqlite3.Connection, int]:
    """Give a connection and the owner that this process now is.

    Raises:
        LedgerError: what is there is no ledger that can be worked with; it was left as it is.
        sqlite3.Error, OSError: the disk, or another process.
    """
    with owners.door():
        if not os.path.lexists(path):
            if os.path.lexists(f"{path}-wal"):
                raise LedgerCorruptError(
                    "The ledger is gone, and only its -wal file is left.", path=str(path)
                )
            _make(path)
        _examine(path, closing_was_cut=owners.closing)
        connection = _connected(path)
        owner = secrets.randbelow(2**31 - 1) + 1
        try:
            owners.become(owner)
            migrate(connection)
            _enter(connection, owner, path)
        except BaseException:
            owners.leave(owner)
            _close(connection, path, owners)
            raise
        owners.mark_closing(closing=False)
    return connection, owner


def closed(connection: sqlite3.Connection, path: Path, owners: Owners, owner: int) -> None:
    """Close a connection; the last one leaves all in the one file."""
    with owners.door():
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("DELETE FROM owners WHERE id = ?", (owner,))
            others = [number for (number,) in connection.execute("SELECT id FROM owners")]
            if not any(map(owners.alive, others)):
                connection.execute(_SETTLE)
            connection.execute("COMMIT")
        finally:
            owners.leave(owner)
            _close(connection, path, owners)


def shrink(path: Path, owners: Owners, owner: int) -> None:
    """Give the room of removed rows back to the disk, unless anybody else has the ledger open.

    It is written anew for that, and who wants to write has to wait so long. Whoever comes waits at the door.
    """
    with owners.door(), closing(_connected(path)) as connection:
        others = [number for (number,) in connection.execute("SELECT id FROM owners") if number != owner]
        if not any(map(owners.alive, others)):
            connection.execute("VACUUM")


def _close(connection: sqlite3.Connection, path: Path, owners: Owners) -> None:
    """Close a connection; where it was the last one, say in the file that it is all there is.

    The last one takes the -wal file away, and another process may have died just now, so that nobody knows
    beforehand which one is the last.
    """
    owners.mark_closing(closing=True)
    if connection.in_transaction:
        connection.execute("ROLLBACK")
    connection.close()
    if not os.path.lexists(f"{path}-wal") and os.path.lexists(path):
        with closing(_connected(path)) as last:
            last.execute(_SETTLE)
    owners.mark_closing(closing=False)


def _make(path: Path) -> None:
    """Make a new ledger under another name first: what has its own is never half of one."""
    unfinished = Path(f"{path}-new")
    for leftover in (unfinished, Path(f"{unfinished}-wal"), Path(f"{unfinished}-shm")):
        with suppress(FileNotFoundError):
            leftover.unlink()
    # The database's own files take this mode over: what is asked for may be nobody else's business.
    os.close(os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    connection = _connected(unfinished)
    with closing(connection):
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        migrate(connection)
    unfinished.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _examine(path: Path, *, closing_was_cut: bool) -> None:
    """Refuse what can't be worked with, without writing a byte."""
    facts = path.stat()
    if not path.is_file():
        raise LedgerUnavailableError(
            "The ledger's path is no file.", path=str(path), fix="Give that of a file"
        )
    # SQLite takes one byte for none, and would delete the -wal of an empty file.
    if facts.st_size <= 1:
        raise LedgerCorruptError(
            "The ledger's file is empty. A new ledger begins without a file.", path=str(path)
        )
    if not facts.st_mode & _WRITABLE_BITS or not os.access(path, os.W_OK):
        raise LedgerUnavailableError(
            "The ledger's file is read-only.", path=str(path), fix="Make it writable"
        )
    has_wal = os.path.lexists(f"{path}-wal")
    # Without a -wal nobody has it open, so that the file can be read as one that doesn't change.
    immutable = "" if has_wal else "&immutable=1"
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro{immutable}", uri=True)) as connection:
        try:
            _check(connection, path, is_all=not _has_frames(path) and not closing_was_cut)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode & 0xFF not in (
                sqlite3.SQLITE_CORRUPT,
                sqlite3.SQLITE_NOTADB,
                sqlite3.SQLITE_ERROR,
            ):
                raise
            raise LedgerCorruptError(f"The ledger is damaged: {error}.", path=str(path)) from None


def _has_frames(path: Path) -> bool:
    """Whether there is anything in the -wal: one that was emptied has lost as much as one that is gone."""
    try:
        return Path(f"{path}-wal").stat().st_size > _WAL_HEADER
    except OSError:
        return False


def _check(connection: sqlite3.Connection, path: Path, *, is_all: bool) -> None:
    if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise LedgerCorruptError("The file is no ledger of this package.", path=str(path))
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        raise LedgerVersionError(
            f"The ledger has version {version}, known are those up to {len(MIGRATIONS)}.",
            path=str(path),
            found=version,
            supported=len(MIGRATIONS),
        )
    # Not the quick one, which believes each index: a ref that is wrong in one would be ordered anew.
    verdict = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if verdict != "ok":
        raise LedgerCorruptError(f"The ledger is damaged: {verdict}.", path=str(path))
    settled = connection.execute("SELECT value FROM meta WHERE name = 'settled'").fetchone()
    if is_all and (settled is None or settled[0] != 1):
        raise LedgerCorruptError(
            "The ledger's -wal file is missing or empty, and with it what was written last.", path=str(path)
        )


def _connected(path: Path) -> sqlite3.Connection:
    # One thread opens it and uses it, another one may run the interpreter's last clean-up.
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        timeout=_PATIENCE,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=64,
    )
    try:
        # Two that do this at once to a new file would be in each other's way; the door keeps them apart.
        connection.execute("PRAGMA journal_mode = WAL")
        # Each commit is on the disk before it is said to be done.
        connection.execute("PRAGMA synchronous = FULL")
    except BaseException:
        connection.close()
        raise
    return connection


def _enter(connection: sqlite3.Connection, owner: int, path: Path) -> None:
    """Put an owner in, and say in the file itself that it now has a -wal that belongs to it."""
    connection.execute("BEGIN IMMEDIATE")
    # Who moves it looks for owners in a transaction of this kind, so that one of both sees the other.
    check_not_moved(connection, str(path))
    connection.execute("UPDATE meta SET value = 0 WHERE name = 'settled'")
    connection.execute("INSERT INTO owners VALUES (?)", (owner,))
    connection.execute("COMMIT")
    # Another program that is reading keeps pages out of the file; it is waited for, within reason.
    connection.execute("PRAGMA busy_timeout = 2000")
    busy, pages, copied = connection.execute("PRAGMA wal_checkpoint(FULL)").fetchone()
    connection.execute(f"PRAGMA busy_timeout = {int(_PATIENCE * 1000)}")
    if busy or pages != copied:
        _log.warning(
            "another program is reading the ledger: a copy of it without its -wal file could pass for whole"
        )
