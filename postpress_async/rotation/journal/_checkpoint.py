"""
Checkpoints of a journal, and whether its file alone is the whole journal.

SQLite keeps the latest commits in the -wal beside the file. If that is lost or not copied along, SQLite opens
the file alone without a word, as it was at the last checkpoint, and what was sent since would be sent again.
"""

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final, Literal

from postpress_async.errors import JournalError

LOG_NEEDED: Final = "log needed"
"""
In the table ``run`` of the file, but not of the file and its -wal together: the file alone is incomplete.

It is written before each checkpoint and deleted right after it. So the deletion is always in the -wal only,
until SQLite, or the end of a run, folds the whole -wal into the file.
"""


def refuse_lost_log(place: Path) -> None:
    """Raise `JournalError` if the journal at *place* needs its -wal, and there is none."""
    if not place.stat().st_size or os.path.exists(f"{place}-wal"):
        return
    # SQLite would make a -wal for any other connection.
    with closing(
        sqlite3.connect(f"{Path(os.path.abspath(place)).as_uri()}?immutable=1", uri=True)
    ) as connection:
        needed = needs_log(connection)
    if needed:
        raise lost_log(place)


def needs_log(connection: sqlite3.Connection) -> bool:
    """Whether the file needs a -wal that this *connection* does not see."""
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'run'").fetchone():
        return False
    return bool(connection.execute("SELECT 1 FROM run WHERE name = ?", (LOG_NEEDED,)).fetchone())


def lost_log(place: Path) -> JournalError:
    """The refusal of a journal without the -wal that it needs."""
    return JournalError(
        f"{place} is incomplete: {place.name}-wal is missing, or is not its own, with the latest outcomes of "
        "a run that was killed. Put it back beside the journal. If it is lost for good, create an empty file "
        "of that name and start the run: each account that is not recorded as patched or failed is then "
        "treated as one that may have been sent (see --on-unknown)"
    )


def accept_log(connection: sqlite3.Connection) -> None:
    """
    Accept what *connection* sees as the whole journal, before it has written anything.

    If the -wal that the file needs is empty, cut off or another file's, SQLite sees no commit in it. Then
    every row is in doubt that may have been sent.
    """
    if needs_log(connection):
        [(_, commits, _)] = connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        delete_mark(connection, lost=commits <= 0)


def delete_mark(connection: sqlite3.Connection, *, lost: bool = False) -> None:
    """Say that file and -wal are the whole journal again; *lost*: also that its latest commits are lost."""
    if not needs_log(connection):
        return  # without waiting for anyone who writes
    with connection:
        connection.execute("DELETE FROM run WHERE name = ?", (LOG_NEEDED,))
        if lost:
            connection.execute("DELETE FROM run WHERE name = 'reached'")


def checkpoint(connection: sqlite3.Connection, mode: Literal["FULL", "PASSIVE"]) -> None:
    """Copy what is in the -wal into the file, which from then on says that it needs its -wal."""
    with connection:
        connection.execute("INSERT OR REPLACE INTO run VALUES (?, 1)", (LOG_NEEDED,))
    try:
        connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
    finally:
        delete_mark(connection)
