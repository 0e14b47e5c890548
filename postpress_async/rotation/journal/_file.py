"""A journal's file: claimed for one run, recognised as ours, and as this input's."""

import errno
import math
import os
import secrets
import sqlite3
from pathlib import Path
from typing import Final

from postpress_async.errors import JournalError, JournalNotWritableError
from postpress_async.rotation.journal._coverage import COVER, MAY_BE_SENT, make
from postpress_async.rotation.journal._lock import JournalFile
from postpress_async.rotation.journal._watermark import LEAST, REACHED

APPLICATION_ID: Final = 0x70705F6A  # "pp_j"
DAMAGE: Final = (sqlite3.Error, ValueError, TypeError)
"""What reading a damaged file raises: SQLite's own, text that is none, a row that is not there."""

SCHEMA: Final = """
CREATE TABLE run (name TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
CREATE TABLE outcomes (
    ordinal INTEGER PRIMARY KEY,
    line INTEGER,
    account_id TEXT NOT NULL,
    state TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    status INTEGER,
    error_type TEXT,
    scope TEXT,
    applied TEXT,
    instance TEXT,
    elapsed REAL NOT NULL,
    settled_at REAL NOT NULL,
    proxy TEXT
);
CREATE TABLE generations (ordinal INTEGER PRIMARY KEY, generation INTEGER NOT NULL);
"""

# Made for journals that were begun before there was a pool, too.
PROXIES: Final = """
CREATE TABLE IF NOT EXISTS proxies (
    label TEXT PRIMARY KEY,
    failures INTEGER NOT NULL,
    quarantined_at REAL
) WITHOUT ROWID
"""

_NEXT_GENERATION: Final = """
INSERT OR REPLACE INTO generations
SELECT ordinal, coalesce(generation, 0) + 1 FROM outcomes LEFT JOIN generations USING (ordinal) WHERE {}
"""
# The key of such an account is the one that the dead run has used: it stays.
_IN_DOUBT: Final = (
    f"UPDATE outcomes SET state = 'unknown', applied = 'unknown', attempts = 0 WHERE {MAY_BE_SENT}"  # noqa: S608
)
REOPENED: Final = "CASE applied WHEN 'unknown' THEN 'unknown' ELSE 'skipped' END"
"""In SQL: the state of an account that failed and is to be sent again."""

_UNWRITABLE: Final = {
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
}


def refusal_of(place: Path, error: Exception) -> JournalError:
    """What is told of one of `DAMAGE`: whether the disk is at fault, or the file."""
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in _UNWRITABLE:  # the low byte; the rest is detail
        return JournalNotWritableError(
            f"{place} cannot be written ({error}): mend that, or name another journal"
        )
    return JournalError(f"{place} is damaged ({error}): name another journal")


def in_use(place: Path) -> JournalNotWritableError:
    """What is told of a journal that another run has open."""
    return JournalNotWritableError(f"{place} is in use by another run: wait for it, or name another journal")


def lock(place: Path, file: JournalFile) -> None:
    """
    Lock the journal at *place* for one run until *file* is closed.

    Raises:
        JournalNotWritableError: Another run holds the lock, under whatever name, or there are no locks here.
        JournalError: The file has more than one name.
    """
    try:
        locked = file.lock()
    except OSError as error:
        raise JournalNotWritableError(
            f"{place} cannot be locked ({error.strerror}). Name a journal on another file system"
        ) from None
    if not locked:
        raise in_use(place)
    refuse_links(place, file)


def refuse_links(place: Path, file: JournalFile) -> None:
    """Raise `JournalError` if the file has several names: SQLite keeps a -wal for one of them only."""
    if file.links > 1:
        raise JournalError(
            f"{place} is one of {file.links} names (hard links) of one file, and the latest outcomes may be "
            "in a -wal beside another name. Delete the names that have no -wal, or name another journal"
        )


def connect(place: Path) -> tuple[sqlite3.Connection, bool]:
    """The journal's database, and whether it is a new one."""
    connection = sqlite3.connect(place, check_same_thread=False)
    try:
        if fresh := is_fresh(place, connection):
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute("PRAGMA user_version = 1")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA wal_autocheckpoint = 0")  # a checkpoint must be one of `checkpoint`
        if fresh:
            with connection:
                connection.executescript(f"BEGIN; {SCHEMA} {PROXIES}")  # all of it, or none
                connection.execute("INSERT INTO run VALUES ('run', ?)", (secrets.token_hex(12),))
                connection.execute(REACHED, (LEAST,))
        connection.execute(PROXIES)
    except DAMAGE as error:
        connection.close()
        raise refusal_of(place, error) from None
    except BaseException:
        connection.close()
        raise
    return connection, fresh


def is_fresh(place: Path, connection: sqlite3.Connection) -> bool:
    """Whether the database has nothing in it yet; raise `JournalError` where what it has is none of ours."""
    if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        return True
    if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise JournalError(f"{place} is a database, but no journal of ours: name another journal")
    if connection.execute("PRAGMA user_version").fetchone()[0] != 1:
        raise JournalError(f"{place} is of a newer postpress-async: update it, or name another journal")
    return False


def claim(place: Path, *, make: bool = True) -> JournalFile | None:
    """
    Open the journal's file, readable by its owner only if it is new, and never through a symbolic link.

    A file that is no database is left as it is: it may be somebody's fleet. Without *make*, a missing file
    stays missing, and only what would be raised otherwise is raised.

    Returns:
        The file; None if there is none.
    """
    if not place.parent.is_dir():
        raise JournalError(f"{place.parent} is no directory: make it, or name another journal")
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)
    try:
        if not make and not os.path.lexists(place):
            if not os.access(place.parent, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return None
        file = JournalFile.open(place, flags | os.O_CREAT * make)
    except OSError as error:
        if place.is_symlink():
            raise JournalError(f"{place} is a symbolic link: name another journal") from None
        raise JournalNotWritableError(
            f"{place} cannot be written ({error.strerror}): name another journal"
        ) from None
    try:
        if not file.is_regular:
            raise JournalError(f"{place} is no regular file: name another journal")
        if file.begins_with() not in {b"", b"SQLite format 3\0"}:
            raise JournalError(f"{place} is not a database, and left as it is: name another journal")
    except BaseException:
        file.close()
        raise
    return file


def mark_under_way(connection: sqlite3.Connection) -> float:
    """
    Record that a run is under way, until its writer ends well, and that it has sent nothing yet.

    If an earlier run did not end well, it may have sent rows that the journal has no word of, but none beyond
    its watermark. Those that it had a word of are unknown already, see `_coverage`.

    Returns:
        The ordinal before which rows that the journal has no word of may have been sent.
    """
    with connection:
        covers = make(connection)
        reached, doubtful = reach_of(connection), _number(connection, "doubtful", 0)
        died = connection.execute("SELECT 1 FROM run WHERE name = 'under way'").fetchone() is not None
        if died or reached == math.inf:  # not known: each row is in doubt that a run left no word of
            doubtful = max(doubtful, reached)
        # A version that did not cover what it might send, or a journal that has lost its latest commits.
        if died and (not covers or reached == math.inf):
            connection.execute(_IN_DOUBT, (0, doubtful))
        connection.execute("INSERT OR REPLACE INTO run VALUES ('doubtful', ?)", (doubtful,))
        connection.execute(REACHED, (0,))
        # A key that was answered is used up: the answer may be stored under it. Its successor is on the disk
        # before this run sends anything, so that the account is in doubt under the new key if this run dies.
        connection.execute(_NEXT_GENERATION.format("state = 'skipped' AND attempts > 0"))
        connection.execute("INSERT OR REPLACE INTO run VALUES ('under way', 1)")
    return doubtful


def permit_first(connection: sqlite3.Connection) -> None:
    """Set the watermark to the ordinal below which the run may send at once."""
    with connection:
        connection.execute(REACHED, (LEAST,))
        for sql in COVER:
            connection.execute(sql, (0, LEAST))


def reach_of(connection: sqlite3.Connection) -> float:
    """The ordinal from which on the latest run has sent nothing; infinite if that is not known."""
    return _number(connection, "reached", math.inf)


def _number(connection: sqlite3.Connection, name: str, default: float) -> float:
    found = connection.execute("SELECT value FROM run WHERE name = ?", (name,)).fetchone()
    number = default if found is None else found[0]
    if not isinstance(number, int | float):
        raise ValueError(f"{name} is no number")  # one of `DAMAGE`
    return number


def reopen_failed(connection: sqlite3.Connection) -> None:
    """
    Have every account that failed sent again, under a fresh key, or its stored refusal would come again.

    One that an earlier run may have changed stays in doubt. It is a custom proxy, which may have a fresh key:
    a managed one is not `failed` while it is in doubt.
    """
    with connection:
        connection.execute(_NEXT_GENERATION.format("state = 'failed'"))
        connection.execute(f"UPDATE outcomes SET state = {REOPENED} WHERE state = 'failed'")  # noqa: S608
