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
    Raises `RotationError` if *path* cannot be written, or is not a regular file.
    """
    target = Path(path)
    _check_is_regular(target)
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(
            prefix=f".{target.name[:64]}.", suffix=".part", dir=target.parent
        )
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        # Flush the folder too: it stores the new name. Some systems cannot open or flush a folder.
        with suppress(OSError):
            folder = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        reason = error.strerror or error
        raise RotationError(f"{target} cannot be written ({reason}); name another file") from None
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _check_is_regular(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except OSError:
        return  # there is no such file, or creating it will raise a clear error
    if stat.S_ISLNK(mode):
        raise RotationError(f"{path} is a symbolic link, which is not followed; name the file itself")
    if not stat.S_ISREG(mode):
        raise RotationError(f"{path} is not a regular file; name another file")
