"""
Checkpoints of a journal, and whether its file alone is the whole journal.

SQLite keeps the latest commits in the -wal beside the file. If the -wal is lost or not copied along, SQLite
silently opens the file as it was at the last checkpoint, and everything sent since then would be sent again.
"""

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final, Literal

from postpress_async.errors import JournalError

LOG_NEEDED: Final = "log needed"
"""
A name in the table ``run`` of the file that its -wal deletes: the file alone is incomplete.

It is written before each checkpoint and deleted right after it. So the deletion is in the -wal only, until
SQLite or the end of a run copies the whole -wal into the file.
"""


def refuse_lost_log(path: Path) -> None:
    """Raise `JournalError` if the journal needs its -wal, and the -wal does not exist."""
    log = f"{path}-wal"
    if not path.stat().st_size or os.path.exists(log):
        return
    # Without `immutable`, SQLite would create a -wal.
    uri = f"{Path(os.path.abspath(path)).as_uri()}?immutable=1"
    with closing(sqlite3.connect(uri, uri=True)) as connection:
        # In this order: a run that begins now creates the -wal before it writes the mark.
        if needs_log(connection) and not os.path.exists(log):
            raise lost_log(path)


def needs_log(connection: sqlite3.Connection) -> bool:
    """Whether the file needs a -wal that this *connection* does not see."""
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'run'").fetchone():
        return False
    return bool(connection.execute("SELECT 1 FROM run WHERE name = ?", (LOG_NEEDED,)).fetchone())


def lost_log(path: Path) -> JournalError:
    """The error for a journal without the -wal that it needs."""
    return JournalError(
        f"{path} is incomplete: {path.name}-wal is missing, or is not its own, with the latest outcomes of "
        "a run that was killed. Put it back beside the journal. If it is lost for good, create an empty file "
        "of that name and start the run: each account that is not recorded as patched or failed is then "
        "treated as one that may have been sent (see --on-unknown)"
    )


def accept_log(connection: sqlite3.Connection) -> None:
    """
    Accept what *connection* sees as the whole journal, before it has written anything.

    If the -wal that the file needs is empty, truncated or from another file, SQLite finds no commit in it.
    Then every row that may have been sent is in doubt.
    """
    if needs_log(connection):
        [(_, commits, _)] = connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        delete_mark(connection, lost=commits <= 0)


def delete_mark(connection: sqlite3.Connection, *, lost: bool = False) -> None:
    """Record that file and -wal are the whole journal; if *lost*, that the latest commits are missing."""
    if not needs_log(connection):
        return  # without waiting for a writer
    with connection:
        connection.execute("DELETE FROM run WHERE name = ?", (LOG_NEEDED,))
        if lost:
            connection.execute("DELETE FROM run WHERE name = 'reached'")


def checkpoint(connection: sqlite3.Connection, mode: Literal["FULL", "PASSIVE"]) -> None:
    """Copy the -wal into the file, which needs its -wal from then on."""
    with connection:
        connection.execute("INSERT OR REPLACE INTO run VALUES (?, 1)", (LOG_NEEDED,))
    try:
        connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
    finally:
        delete_mark(connection)
