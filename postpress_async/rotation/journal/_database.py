"""
The journal's database: its connection, what it records about a run, checkpoints, and its errors.

SQLite keeps the latest commits in the -wal file beside the database. If the -wal is lost or not copied,
SQLite silently opens the database as it was at the last checkpoint, and a run would repeat all requests since
then. Therefore the database has a mark, `LOG_NEEDED`, that reveals a missing -wal.
"""

import getpass
import json
import os
import secrets
import socket
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

from postpress_async._version import __version__
from postpress_async.errors import JournalError, JournalNotWritableError
from postpress_async.rotation.journal._schema import (
    CURRENT_RUN,
    MIGRATION,
    SCHEMA,
    V1_VIEWS,
    VERSION,
    views_of,
)

APPLICATION_ID: Final = 0x70705F6A  # "pp_j"
DAMAGE: Final = (sqlite3.Error, ValueError, TypeError)
"""The exceptions that reading a damaged file raises: SQLite errors, invalid values, missing rows."""

FIRST_WATERMARK: Final = 64  # the watermark at the start of a run: it may send its first 64 rows
SET_WATERMARK: Final = "INSERT OR REPLACE INTO run VALUES ('reached', ?)"

LOG_NEEDED: Final = "log needed"
"""
A row of the table ``run`` that exists in the database file while the file alone is incomplete.

Each checkpoint copies the mark into the file. The mark is deleted right after the checkpoint, so the deletion
is only in the -wal, until the end of the run copies the whole -wal into the file. A reader of both files does
not see the mark, but a reader of the file alone does.
"""

_NOT_WRITABLE: Final = {
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
}


def damage_error(path: Path, error: Exception) -> JournalError:
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in _NOT_WRITABLE:  # the low byte is the primary code
        advice = "fix that, then run the same command again"
        return JournalNotWritableError(f"{path} cannot be written ({error}): {advice}")
    return JournalError(f"{path} is damaged ({error}): name another journal")


def connect(path: Path) -> tuple[sqlite3.Connection, bool]:
    """Open the database for writing, with new tables if it is empty; return also whether it was empty."""
    connection = sqlite3.connect(path, check_same_thread=False)
    try:
        if created := is_empty(path, connection):
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA wal_autocheckpoint = 0")  # only `checkpoint` writes `LOG_NEEDED`
        if created:
            with connection:
                connection.executescript(f"BEGIN; {SCHEMA}")  # in one transaction
                insert_run(connection)
        else:
            if needs_log(connection):  # checked before anything is written to the -wal
                # If the -wal is empty, truncated or from another file, SQLite finds no commit in it. Then
                # every row without an outcome is in doubt.
                [(_, commits, _)] = connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
                accept(connection, lost=commits <= 0)
            if _version(connection) < VERSION:
                connection.executescript(MIGRATION)
    except BaseException:
        connection.close()
        raise
    return connection, created


def is_empty(path: Path, connection: sqlite3.Connection) -> bool:
    """Whether the database has no tables; raise `JournalError` if it is no journal of a known version."""
    if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        return True
    if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise JournalError(f"{path} is a database, but not a journal: name another journal")
    if _version(connection) not in {1, VERSION}:
        raise JournalError(f"{path} is from a newer postpress-async: update it, or name another journal")
    return False


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def add_views(connection: sqlite3.Connection, run: int | None = None) -> None:
    """
    Add temporary views, so that queries for the latest run read run number *run*. The file is not written.

    For a journal of version 1, the views have the tables and columns of the present version, with one run.
    """
    if _version(connection) == 1:
        connection.executescript(V1_VIEWS)
    elif run is not None:
        connection.executescript(views_of(run))


# --- What is recorded about a run ---------------------------------------------------------------


def insert_run(connection: sqlite3.Connection) -> None:
    token = secrets.token_hex(12)  # so the idempotency keys differ from those of all earlier runs
    connection.execute("INSERT INTO runs (token, state) VALUES (?, 'running')", (token,))
    connection.execute(SET_WATERMARK, (FIRST_WATERMARK,))


def read_run(connection: sqlite3.Connection) -> dict[str, Any]:
    """Return the marks of the latest run, and its columns in ``runs`` that are not NULL."""
    cursor = connection.execute(f"SELECT * FROM runs WHERE id = {CURRENT_RUN}")
    names = [column[0] for column in cursor.description]
    facts = {name: value for name, value in zip(names, cursor.fetchone(), strict=True) if value is not None}
    if not {"id", "token", "state"} <= facts.keys():
        raise ValueError("the latest run has no id, token or state")  # callers report it as damage
    return facts | dict(connection.execute("SELECT name, value FROM run"))


@cache  # the writer compares statements by identity
def set_fact(column: str) -> str:
    return f"UPDATE runs SET {column} = ? WHERE id = {CURRENT_RUN}"


def set_marks(connection: sqlite3.Connection, marks: Mapping[str, object]) -> None:
    """Set marks: rows of the table ``run``, which determine how the latest run is resumed."""
    connection.executemany("INSERT OR REPLACE INTO run VALUES (?, ?)", marks.items())


def delete_marks(connection: sqlite3.Connection, *names: str) -> None:
    connection.executemany("DELETE FROM run WHERE name = ?", [(name,) for name in names])


def add_start(starts: list[dict[str, Any]], began: float, command: str | None) -> str:
    """Return the column ``starts`` with a new entry: this process starts or resumes the run at *began*."""
    try:
        operator = getpass.getuser()
    except (OSError, KeyError, ImportError):  # in some containers, the user has no name
        operator = None
    host = socket.gethostname()
    entry = {"began": began, "operator": operator, "host": host, "version": __version__, "command": command}
    return json.dumps([*starts, entry])


def starts_of(value: str | None) -> list[dict[str, Any]]:
    """Return the entries of a run's column ``starts``; raise `ValueError` if it is damaged."""
    starts = [] if value is None else json.loads(value)
    if not isinstance(starts, list) or not all(isinstance(start, dict) for start in starts):
        raise ValueError("an invalid list of starts")
    return starts


# --- Checkpoints --------------------------------------------------------------------------------


def checkpoint(connection: sqlite3.Connection, mode: Literal["FULL", "PASSIVE"]) -> None:
    """Copy the -wal into the database file, which is incomplete without its -wal from then on."""
    with connection:
        set_marks(connection, {LOG_NEEDED: 1})
    try:
        connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
    finally:
        accept(connection)


def accept(connection: sqlite3.Connection, *, lost: bool = False) -> None:
    """Delete `LOG_NEEDED`; if *lost*, also delete the watermark, because the latest commits are missing."""
    if needs_log(connection):  # a write transaction could have to wait for another writer
        with connection:
            delete_marks(connection, LOG_NEEDED, *(["reached"] if lost else []))


def needs_log(connection: sqlite3.Connection) -> bool:
    """Whether the file needs a -wal that this *connection* does not see."""
    if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'run'").fetchone() is None:
        return False  # an empty database, or one that is no journal
    return connection.execute("SELECT 1 FROM run WHERE name = ?", (LOG_NEEDED,)).fetchone() is not None


def refuse_lost_log(path: Path) -> None:
    """Raise `JournalError` if the journal needs its -wal, and the -wal does not exist."""
    log = f"{path}-wal"
    if not path.stat().st_size or os.path.exists(log):
        return
    # Without `immutable`, SQLite would create the missing -wal.
    uri = f"{Path(os.path.abspath(path)).as_uri()}?immutable=1"
    with closing(sqlite3.connect(uri, uri=True)) as connection:
        # Checked again after the mark, because a run that starts now creates the -wal before the mark.
        if needs_log(connection) and not os.path.exists(log):
            raise lost_log(path)


def lost_log(path: Path) -> JournalError:
    return JournalError(
        f"{path} is incomplete: {path.name}-wal is missing, or belongs to another journal. It has the "
        "latest outcomes of a run that was killed. Put it back beside the journal. If it is lost for good, "
        "create an empty file with that name and start the run: every account that is not recorded as "
        "patched or failed is then treated as one that may have been sent (see --on-unknown)"
    )
