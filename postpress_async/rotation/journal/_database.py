"""The journal's database: its connection, what it says of a run, and the errors for an unusable file."""

import getpass
import json
import secrets
import socket
import sqlite3
from functools import cache
from pathlib import Path
from typing import Any, Final

from postpress_async._version import __version__
from postpress_async.errors import JournalError, JournalNotWritableError
from postpress_async.rotation.journal._checkpoint import accept_log
from postpress_async.rotation.journal._recovery import FIRST_WATERMARK, SET_WATERMARK
from postpress_async.rotation.journal._schema import (
    ADD_PROBE_AT,
    CURRENT_RUN,
    LATER_ADDITIONS,
    MIGRATION,
    NEW_RUN,
    SCHEMA,
    V1_VIEWS,
    VERSION,
    views_of,
)

APPLICATION_ID: Final = 0x70705F6A  # "pp_j"
DAMAGE: Final = (sqlite3.Error, ValueError, TypeError)
"""What reading a damaged file raises: an error of SQLite, an invalid value, or a missing row."""

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
    """The error to raise for one of `DAMAGE`: the file cannot be written, or it is damaged."""
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in _NOT_WRITABLE:  # the low byte is the primary code
        return JournalNotWritableError(
            f"{path} cannot be written ({error}): fix that, then run the same command again"
        )
    return JournalError(f"{path} is damaged ({error}): name another journal")


def connect(path: Path) -> tuple[sqlite3.Connection, bool]:
    """
    Open the journal's database for writing; create the tables if it is empty.

    Returns:
        The connection, and whether the database was empty.
    """
    connection = sqlite3.connect(path, check_same_thread=False)
    try:
        if created := is_empty(path, connection):
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA wal_autocheckpoint = 0")  # only `checkpoint` writes the mark it needs
        if created:
            with connection:
                connection.executescript(f"BEGIN; {SCHEMA}")  # in one transaction
                connection.execute(NEW_RUN, (secrets.token_hex(12),))
                connection.execute(SET_WATERMARK, (FIRST_WATERMARK,))
        else:
            accept_log(connection)  # before anything is written to the -wal
            if _version(connection) < VERSION:
                connection.executescript(MIGRATION)
        with connection:
            for sql in LATER_ADDITIONS:
                connection.execute(sql)
        if "probe_at" not in [column for _, column, *_ in connection.execute("PRAGMA table_info(proxies)")]:
            connection.execute(ADD_PROBE_AT)
    except BaseException:
        connection.close()
        raise
    return connection, created


def is_empty(path: Path, connection: sqlite3.Connection) -> bool:
    """
    Whether the database has no tables yet.

    Raises:
        JournalError: It is the database of another program, or of a newer version.
    """
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
    Add temporary views, so that the queries for the latest run read run number *run*. Nothing is written.

    A journal of version 1 is read like one of the present version, with one run.
    """
    if _version(connection) == 1:
        connection.executescript(V1_VIEWS)
    elif run is not None:
        connection.executescript(views_of(run))


def read_run(connection: sqlite3.Connection) -> dict[str, Any]:
    """What is recorded about the latest run: the values of the table ``run``, and its columns in ``runs``."""
    cursor = connection.execute(f"SELECT * FROM runs WHERE id = {CURRENT_RUN}")
    names = [column[0] for column in cursor.description]
    facts = {name: value for name, value in zip(names, cursor.fetchone(), strict=True) if value is not None}
    if not {"id", "token", "state"} <= facts.keys():
        raise ValueError("the latest run is not whole")  # handled as damage
    return facts | dict(connection.execute("SELECT name, value FROM run"))


def add_start(starts: list[dict[str, Any]], began: float, command: str | None) -> str:
    """The column ``starts`` with an entry more: this process starts or resumes the run at *began*."""
    try:
        operator = getpass.getuser()
    except (OSError, KeyError, ImportError):  # the user has no name, as in some containers
        operator = None
    host = socket.gethostname()
    entry = {"began": began, "operator": operator, "host": host, "version": __version__, "command": command}
    return json.dumps([*starts, entry])


def starts_of(value: str | None) -> list[dict[str, Any]]:
    """
    Return the entries of the column ``starts`` of a run.

    Raises:
        ValueError: The journal is damaged.
    """
    starts = [] if value is None else json.loads(value)
    if not isinstance(starts, list) or not all(isinstance(start, dict) for start in starts):
        raise ValueError("an invalid list of starts")
    return starts


@cache  # the writer recognizes a statement by its identity
def set_fact(column: str) -> str:
    """The SQL statement that sets a column of the latest run."""
    return f"UPDATE runs SET {column} = ? WHERE id = {CURRENT_RUN}"
