"""A journal's file: claimed for one run, recognised as ours, and as this input's."""

import hashlib
import os
import secrets
import sqlite3
import stat
from pathlib import Path
from typing import Final

from postpress_async.errors import JournalError

APPLICATION_ID: Final = 0x70705F6A  # "pp_j"
DAMAGE: Final = (sqlite3.Error, ValueError, TypeError)
"""What reading a damaged file raises: SQLite's own, text that is none, a row that is not there."""

_SCHEMA: Final = """
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


def take_lock(place: Path) -> sqlite3.Connection:
    """
    Held as long as the journal is open, and let go by the system when the process dies.

    An empty database beside it, locked exclusively: SQLite locks alike on every system, and the journal
    itself must stay readable to others while it is written.
    """
    name = f"{place}-lock"
    if os.path.lexists(name) and not (os.path.isfile(name) and os.access(name, os.W_OK)):
        raise JournalError(
            f"{name} cannot be locked: delete it if no run is under way, or name another journal"
        )
    lock = None
    try:
        lock = sqlite3.connect(name, timeout=0.0, isolation_level=None)
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.Error as error:
        if lock is not None:
            lock.close()
        if "locked" in str(error):
            raise JournalError(
                f"{place} is in use by another run: wait for it, or name another journal"
            ) from None
        raise JournalError(f"{place} cannot be written ({error}): name another journal") from None
    return lock


def connect(place: Path) -> tuple[sqlite3.Connection, bool]:
    """The journal's database, and whether it is a new one."""
    connection = sqlite3.connect(place, check_same_thread=False)
    try:
        fresh = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
        if fresh:
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute("PRAGMA user_version = 1")
        elif connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            raise JournalError(f"{place} is a database, but no journal of ours: name another journal")
        elif connection.execute("PRAGMA user_version").fetchone()[0] != 1:
            raise JournalError(f"{place} is of a newer postpress-async: update it, or name another journal")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        if fresh:
            with connection:
                connection.executescript(f"BEGIN; {_SCHEMA}")
                connection.execute("INSERT INTO run VALUES ('run', ?)", (secrets.token_hex(12),))
    except DAMAGE as error:
        connection.close()
        raise JournalError(f"{place} cannot be used as a journal ({error}): name another journal") from None
    except BaseException:
        connection.close()
        raise
    return connection, fresh


def claim(place: Path) -> None:
    """
    See to it that there is a file that only its owner reads, and never through a symbolic link.

    Whatever is there already and is no database is left as it is: it may be somebody's fleet.
    """
    if not place.parent.is_dir():
        raise JournalError(f"{place.parent} is no directory: make it, or name another journal")
    try:
        handle = os.open(place, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
    except OSError as error:
        fact = "is a symbolic link" if place.is_symlink() else f"cannot be written ({error.strerror})"
        raise JournalError(f"{place} {fact}: name another journal") from None
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise JournalError(f"{place} is no regular file: name another journal")
        if os.read(handle, 16) not in {b"", b"SQLite format 3\0"}:
            raise JournalError(f"{place} is not a database, and left as it is: name another journal")
    finally:
        os.close(handle)


def check_input(
    place: Path, connection: sqlite3.Connection, digest: bytes | None, target: str | None
) -> None:
    """Refuse an input, and a target, other than those that the journal was begun with."""
    told = dict(connection.execute("SELECT name, value FROM run"))
    if target is not None and told.setdefault("target", target) != target:
        raise JournalError(
            f"{place} was begun for {told['target']}, not for {target}: name another journal, or what was "
            "settled there would be left out here"
        )
    with connection:
        connection.execute("INSERT OR IGNORE INTO run VALUES ('target', ?)", (target or "",))
    if "input" in told:
        if digest is not None and told["input"] != _stretched(digest, told["salt"]):
            raise JournalError(
                f"{place} was begun with another input, or other options: give back that input to go on with "
                "it, or name another journal to begin anew"
            )
    elif digest is not None:
        salt = secrets.token_bytes(16)
        rows = [("input", _stretched(digest, salt)), ("salt", salt)]
        with connection:
            connection.executemany("INSERT INTO run VALUES (?, ?)", rows)


def mark_under_way(connection: sqlite3.Connection) -> None:
    """
    Say that a run is under way, until its writer ends well.

    Where an earlier run did not, it may have sent what one before it had skipped, and left no word of it.
    """
    with connection:
        if connection.execute("SELECT 1 FROM run WHERE name = 'under way'").fetchone():
            connection.execute(
                "UPDATE outcomes SET state = 'unknown', applied = 'unknown' WHERE state = 'skipped'"
            )
        connection.execute("INSERT OR REPLACE INTO run VALUES ('under way', 1)")


def _stretched(digest: bytes, salt: bytes) -> bytes:
    # The input has passwords in it, and a file of one row could be guessed: 50 ms a guess, and no table.
    return hashlib.scrypt(digest, salt=salt, n=2**14, r=8, p=1, dklen=32)
