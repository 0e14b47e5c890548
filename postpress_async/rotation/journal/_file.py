"""Opens the journal's file for one run, and refuses a file that is not usable as a journal."""

import errno
import os
from pathlib import Path

from postpress_async.errors import JournalError, JournalNotWritableError
from postpress_async.rotation.journal._lock import JournalFile


def open_file(path: Path, *, create: bool = True) -> JournalFile | None:
    """
    Open the journal's file for writing; never through a symbolic link.

    A new file is readable by its owner only. A file that is not a database is not changed: it may be a fleet.
    Without *create*, return None if the file does not exist, but could be created.

    Raises:
        JournalNotWritableError: The file cannot be opened, or not be created.
        JournalError: It is not a regular file, or not a database.
    """
    if not path.parent.is_dir():
        raise JournalError(f"{path.parent} is not a directory: create it, or name another journal")
    if not create and not os.path.lexists(path):
        if not os.access(path.parent, os.W_OK):
            raise _not_writable(path, os.strerror(errno.EACCES))
        return None
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | (os.O_CREAT if create else 0)
    try:
        file = JournalFile.open(path, flags)
    except OSError as error:
        if path.is_symlink():
            raise JournalError(f"{path} is a symbolic link: name another journal") from None
        raise _not_writable(path, error.strerror) from None
    if not file.is_regular or file.begins_with() not in {b"", b"SQLite format 3\0"}:
        kind = "a database, and was not changed" if file.is_regular else "a regular file"
        file.close()
        raise JournalError(f"{path} is not {kind}: name another journal")
    return file


def lock(path: Path, file: JournalFile) -> None:
    """
    Lock the journal for one run until *file* is closed.

    Raises:
        JournalNotWritableError: Another run holds the lock, under any name of the file, or the file system
            has no locks.
        JournalError: The file has several names.
    """
    try:
        locked = file.lock()
    except OSError as error:
        raise JournalNotWritableError(
            f"{path} cannot be locked ({error.strerror}). Name a journal on another file system"
        ) from None
    refuse_shared(path, file, in_use=not locked)


def refuse_shared(path: Path, file: JournalFile, *, in_use: bool) -> None:
    """
    Raise an error if another run has the journal open, or if the file has several names.

    SQLite keeps a -wal for only one of the names.
    """
    if in_use:
        raise JournalNotWritableError(
            f"{path} is in use by another run: wait for it, or name another journal"
        )
    if file.links > 1:
        raise JournalError(
            f"{path} is one of {file.links} names (hard links) of one file, and the latest outcomes may be "
            "in a -wal beside another name. Delete the names that have no -wal, or name another journal"
        )


def _not_writable(path: Path, reason: str | None) -> JournalNotWritableError:
    advice = "name another journal, in a folder that you may write to"
    if path.is_file():  # another journal would send all accounts again
        advice = "correct its permissions or its disk, then run the same command again"
    return JournalNotWritableError(f"{path} cannot be written ({reason}): {advice}")
