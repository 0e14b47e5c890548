"""Atomic writing of a file that only its owner can read."""

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from postpress_async.errors import RotationError


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """
    Open a temporary file that replaces *path* when the block ends, or is deleted if the block raises.

    The temporary file is in the same folder and has mode 0600. It is flushed to disk before it is renamed.

    Raises:
        RotationError: *path* cannot be written, or is a symbolic link, a folder or a device.
    """
    target = Path(path)
    _check_is_regular(target)
    try:
        handle, temporary = tempfile.mkstemp(
            prefix=f".{target.name[:64]}.", suffix=".part", dir=target.parent
        )
    except OSError as error:
        raise _not_writable(target, error) from None
    try:
        with open(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except OSError as error:
        raise _not_writable(target, error) from None
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


def _check_is_regular(path: Path) -> None:
    try:
        status = os.lstat(path)
    except OSError:
        return  # it does not exist, or creating the file will raise
    if stat.S_ISLNK(status.st_mode):
        raise RotationError(f"{path} is a symbolic link, which is not followed; name the file itself")
    if not stat.S_ISREG(status.st_mode):
        raise RotationError(f"{path} is not a regular file; name another file")


def _sync_folder(folder: Path) -> None:
    # The new name is stored in the folder. Some systems cannot open or flush a folder.
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _not_writable(path: Path, error: OSError) -> RotationError:
    return RotationError(f"{path} cannot be written ({error.strerror or error}); name another file")
