"""A journal's file, opened so that nothing is written: not to it, and not beside it."""

import os
import shutil
import sqlite3
import stat
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from attrs import frozen

from postpress_async.errors import JournalError
from postpress_async.rotation.journal._checkpoint import lost_log, needs_log
from postpress_async.rotation.journal._file import DAMAGE, is_fresh
from postpress_async.rotation.journal._lock import JournalFile

_BUSY: Final = 10.0
"""Seconds to wait for a lock; a run that writes holds none that a reader meets for longer than a moment."""


@frozen
class OpenFile:
    """
    A journal that can be read.

    Attributes:
        connection: Where to ask; read-only.
        closing: Closes it, and deletes a copy if one had to be made.
        stamp: The file as it was, where nobody else may write it meanwhile; None where that is safe.
        file: The file itself, which a run locks.
    """

    connection: sqlite3.Connection
    closing: ExitStack
    stamp: tuple[int, ...] | None
    file: JournalFile


def open_read_only(place: Path) -> OpenFile:
    """
    The journal at *place*, which a run may be writing.

    Raises:
        JournalError: It is not there, is no journal, or cannot be read.
    """
    _check(place)
    with ExitStack() as stack:
        try:
            file = JournalFile.open(place, os.O_RDONLY)
            stack.callback(file.close)
            connection, stamp = connect_read_only(place, stack)
            _recognise(place, connection, file)
            refuse_stale(place, connection)
            # A run that is under way has the mark for a moment at each checkpoint.
            if needs_log(connection) and not file.is_locked() and needs_log(connection):
                raise lost_log(place)
        except DAMAGE as error:
            raise JournalError(f"{place} cannot be read ({error}): name another journal") from None
        except OSError as error:
            raise JournalError(f"{place} cannot be read ({error.strerror}): name another journal") from None
        return OpenFile(connection, stack.pop_all(), stamp, file)


def stamp_of(place: Path) -> tuple[int, ...]:
    """What changes when *place* is written or replaced."""
    status = place.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _check(place: Path) -> None:
    # Before it is opened: a device may do anything when it is.
    try:
        status = place.stat()
    except OSError as error:
        raise JournalError(f"{place} cannot be read ({error.strerror}): name another journal") from None
    if not stat.S_ISREG(status.st_mode):
        raise JournalError(f"{place} is no regular file: name a journal, such as fleet.csv.rotation.sqlite3")
    if not status.st_size:
        raise JournalError(
            f"{place} is empty: if its disk was full when it was made, give the same command again; else "
            "name a journal, such as fleet.csv.rotation.sqlite3"
        )


def connect_read_only(place: Path, stack: ExitStack) -> tuple[sqlite3.Connection, tuple[int, ...] | None]:
    """
    The database at *place*, an absolute path, until *stack* is closed; and its stamp, as `OpenFile` has it.

    Raises:
        OSError: It is not there, or cannot be copied where it has to be.
    """
    log, index = f"{place}-wal", f"{place}-shm"
    if os.path.exists(log) and os.path.exists(index):  # a run is under way, or died
        return stack.enter_context(closing(_sqlite(place, "mode=ro"))), None
    if os.path.exists(log) and os.path.getsize(log):
        # Somebody took the file along without its index, and SQLite would make one beside it.
        aside = Path(stack.enter_context(TemporaryDirectory(prefix="postpress-")))
        copy = aside / "journal"
        shutil.copyfile(place, copy)
        shutil.copyfile(log, f"{copy}-wal")
        return stack.enter_context(closing(_sqlite(copy, "mode=rw"))), None
    # Nobody writes it. SQLite makes no file beside it only if told that this stays so: see `stamp`.
    stamp = stamp_of(place)
    return stack.enter_context(closing(_sqlite(place, "immutable=1"))), stamp


def refuse_stale(place: Path, connection: sqlite3.Connection) -> None:
    """Raise `JournalError` if *connection* sees a file that needs its -wal, and there is none."""
    # In this order: a run that begins now makes the -wal first.
    if needs_log(connection) and not os.path.exists(f"{place}-wal"):
        raise lost_log(place)


def _sqlite(place: Path, how: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{place.as_uri()}?{how}", uri=True, timeout=_BUSY, isolation_level=None)


def _recognise(place: Path, connection: sqlite3.Connection, file: JournalFile) -> None:
    connection.execute("PRAGMA query_only = ON")
    if is_fresh(place, connection):
        if file.is_locked():
            raise JournalError(f"{place} is being made by a run: look again in a moment")
        raise JournalError(
            f"{place} is no whole journal, for it has no tables: if its disk was full when it was made, give "
            f"the same command again; if it was copied, copy {place.name}-wal too"
        )
    connection.execute("SELECT ordinal FROM outcomes LIMIT 1").fetchone()
