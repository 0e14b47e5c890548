"""
Opens and locks the journal's file for one run.

The lock is on the file itself, so that it protects every name (hard link) of the file. A lock file beside the
journal would protect one name only, and only until someone deletes the lock file.
"""

import errno
import os
import stat
import struct
import sys
import threading
from itertools import chain
from pathlib import Path
from typing import Final, Self

from postpress_async.errors import JournalError, JournalNotWritableError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

    # In `struct flock`, the kind of lock is the first field on Linux, and a late one on macOS and the BSDs.
    _IS_LINUX: Final = sys.platform == "linux"
    _LAYOUT: Final = "hhqqi" if _IS_LINUX else "qqihh"

# The byte that is locked. SQLite stores no data in the page at 0x40000000, and locks the first 512 bytes of
# it. This byte is behind them.
BYTE: Final = 0x4000_0000 + 1_024

Inode = tuple[int, int]


class JournalFile:
    """
    A descriptor of a journal's file: opened before SQLite opens the file, and closed after SQLite closes it.

    If a process closes any descriptor of a file, the system releases all POSIX locks of the process on that
    file, including SQLite's. Therefore this class closes all descriptors of a file together, when the last
    `JournalFile` is closed.
    """

    def __init__(self, handle: int) -> None:
        status = os.fstat(handle)
        self.inode: Final[Inode] = status.st_dev, status.st_ino
        self.links: Final = status.st_nlink  # number of the file's names
        self.is_regular: Final = stat.S_ISREG(status.st_mode)
        self.handle: Final = handle
        self.is_open = True
        self.has_lock = False
        with _guard:
            _files.setdefault(self.inode, []).append(self)

    @classmethod
    def open(cls, path: str | os.PathLike[str], flags: int) -> Self:
        """Open the file at *path*, or raise OSError; a new file is readable by its owner only."""
        # Without O_NONBLOCK, opening a named pipe waits until another process opens it.
        return cls(os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o600))

    def begins_with(self) -> bytes:
        """Return the first 16 bytes, which are SQLite's magic number if the file is a database."""
        os.lseek(self.handle, 0, os.SEEK_SET)
        return os.read(self.handle, 16)

    def lock(self) -> bool:
        """Lock the file until it is closed or the process ends; return False if another run has locked it."""
        with _guard:
            if self._is_locked_here() or not _try(self.handle, lock=True):
                return False
            self.has_lock = True
            return True

    def is_locked(self) -> bool:
        """Whether this process or another one holds the lock."""
        with _guard:
            return self._is_locked_here() or _is_locked(self.handle)

    def _is_locked_here(self) -> bool:
        return any(file.has_lock for file in _files.get(self.inode, ()))

    def close(self) -> None:
        """Release the lock if it is held through this object; closing again does nothing."""
        with _guard:
            files = _files.get(self.inode, [])
            if not self.is_open or self not in files:
                return
            self.is_open = False
            if self.has_lock:
                self.has_lock = False
                _try(self.handle, lock=False)
            if not any(file.is_open for file in files):
                for file in _files.pop(self.inode):
                    os.close(file.handle)


def open_file(path: Path, *, create: bool = True) -> JournalFile | None:
    """
    Open the journal's file for writing; never through a symbolic link.

    A file that is not a database is refused and not changed, because it may be a fleet. If *create* is False
    and the file does not exist but could be created, return None.
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
    """Lock the journal for one run until *file* is closed."""
    try:
        locked = file.lock()
    except OSError as error:
        raise JournalNotWritableError(
            f"{path} cannot be locked ({error.strerror}). Name a journal on another file system"
        ) from None
    refuse_shared(path, file, in_use=not locked)


def refuse_shared(path: Path, file: JournalFile, *, in_use: bool) -> None:
    if in_use:
        raise JournalNotWritableError(
            f"{path} is in use by another run: wait for it, or name another journal"
        )
    if file.links > 1:  # SQLite keeps a -wal for only one of the names
        raise JournalError(
            f"{path} is one of {file.links} names (hard links) of one file, and the latest outcomes may be "
            "in a -wal beside another name. Delete the names that have no -wal, or name another journal"
        )


def _not_writable(path: Path, reason: str | None) -> JournalNotWritableError:
    advice = "name another journal, in a folder that you may write to"
    if path.is_file():  # do not suggest another journal, with which all accounts would be sent again
        advice = "correct its permissions or its disk, then run the same command again"
    return JournalNotWritableError(f"{path} cannot be written ({reason}): {advice}")


_guard: Final = threading.Lock()
_files: Final[dict[Inode, list[JournalFile]]] = {}  # files whose descriptors are still open

if sys.platform == "win32":

    def _try(handle: int, *, lock: bool) -> bool:
        os.lseek(handle, BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK if lock else msvcrt.LK_UNLCK, 1)
        except OSError:
            return False
        return True

    def _is_locked(handle: int) -> bool:
        if not _try(handle, lock=True):
            return True
        _try(handle, lock=False)
        return False

else:

    def _try(handle: int, *, lock: bool) -> bool:
        try:
            _control(handle, "SETLK", fcntl.F_WRLCK if lock else fcntl.F_UNLCK)
        except OSError as error:
            if error.errno in {errno.EACCES, errno.EAGAIN}:
                return False
            raise
        return True

    def _is_locked(handle: int) -> bool:
        # The system replaces the kind of lock with F_UNLCK if no other process holds a lock.
        conflict = struct.unpack_from(_LAYOUT, _control(handle, "GETLK", fcntl.F_WRLCK))
        return bool(conflict[0 if _IS_LINUX else 3] != fcntl.F_UNLCK)

    def _control(handle: int, command: str, kind: int) -> bytes:
        # Not flock(): on macOS and over NFS it conflicts with the locks that SQLite takes on the same file.
        lock = (kind, os.SEEK_SET, BYTE, 1, 0) if _IS_LINUX else (BYTE, 1, 0, kind, os.SEEK_SET)
        flock = struct.pack(_LAYOUT, *lock)
        if _IS_LINUX:
            # An open file description (OFD) lock belongs to the descriptor. It is not released if this
            # process closes another descriptor of the file, for example after it copied the journal.
            try:
                return fcntl.fcntl(handle, getattr(fcntl, f"F_OFD_{command}"), flock)
            except OSError as error:
                if error.errno != errno.EINVAL:  # gVisor and other sandboxes have no OFD locks
                    raise
        return fcntl.fcntl(handle, getattr(fcntl, f"F_{command}"), flock)

    def _close_in_child() -> None:
        # Otherwise the child would still hold the lock after its parent has died.
        for file in chain.from_iterable(_files.values()):
            os.close(file.handle)
        _files.clear()
        _guard.release()

    os.register_at_fork(before=_guard.acquire, after_in_parent=_guard.release, after_in_child=_close_in_child)
