"""A file that is written whole or not at all, and read by its owner alone."""

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from postpress_async.errors import RotationError


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """
    A file to write to, which takes the name *path* once the block ends well, and is gone where it does not.

    It is written beside *path*, with mode 0600, and on the disk before it takes the place of what was there.

    Raises:
        RotationError: It cannot be written, or *path* is a link, a folder or a device.
    """
    place = Path(path)
    _check(place)
    try:
        handle, part = tempfile.mkstemp(prefix=f".{place.name[:64]}.", suffix=".part", dir=place.parent)
    except OSError as error:
        raise _refusal(place, error) from None
    try:
        with open(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, place)
        _keep_name(place.parent)
    except OSError as error:
        raise _refusal(place, error) from None
    finally:
        with suppress(FileNotFoundError):
            os.unlink(part)


def _check(place: Path) -> None:
    try:
        status = os.lstat(place)
    except OSError:
        return  # there is none, or what is wrong is told when it is made
    if stat.S_ISLNK(status.st_mode):
        raise RotationError(f"{place} is a symbolic link, and not followed: name the file itself")
    if not stat.S_ISREG(status.st_mode):
        raise RotationError(f"{place} is no regular file: name another file")


def _keep_name(folder: Path) -> None:
    # A name is the folder's; systems that cannot flush one keep names in their own way.
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _refusal(place: Path, error: OSError) -> RotationError:
    return RotationError(f"{place} cannot be written ({error.strerror or error}): name another file")
