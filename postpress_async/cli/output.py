"""Where a command's words go: its table or page to a file or standard output, people's lines beside a bar."""

import asyncio
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, BinaryIO, Final

from postpress_async.errors import RotationError
from postpress_async.rotation._whole_file import whole_file


def many(count: int, one: str, more: str) -> str:
    """*count* of something, in words."""
    return f"{count:,} {one if count == 1 else more}"


def moment(seconds: float) -> str:
    """A Unix time in the local time zone, which is named."""
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


def tell(text: str) -> None:
    """A line for people on standard error, above the bar if there is one. Nobody may read it any more."""
    # Not click.echo: it looks for the real stream behind rich's, and so writes into the middle of the bar.
    if sys.stderr is not None:
        with suppress(OSError, ValueError):
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()


TOO_MANY_FILES: Final = "too many open files: raise their limit (ulimit -n)"


def is_file_limit(error: object) -> bool:
    """Whether the process, or the system, may open no more files or connections."""
    return isinstance(error, OSError) and error.errno in {errno.EMFILE, errno.ENFILE}


def tell_file_limit_once(loop: asyncio.AbstractEventLoop) -> None:
    """Have *loop* report a lack of file descriptors in one sentence, where asyncio prints many tracebacks."""
    told = False

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal told
        if is_file_limit(context.get("exception")) and not told:
            told = True
            tell(f"postpress-async: {TOO_MANY_FILES}")
        if not told:  # what asyncio reports afterwards follows from it
            loop.default_exception_handler(context)

    loop.set_exception_handler(handle)


@contextmanager
def written(place: str | None) -> Iterator[BinaryIO]:
    """
    The file *place*, which is there when it is whole; standard output for None and for ``-``.

    Raises:
        RotationError: It cannot be written.
    """
    if place not in {None, "-"}:
        assert place is not None  # noqa: S101 - for mypy
        with whole_file(place) as file:
            yield file
        return
    if sys.stdout is None:
        raise RotationError("standard output is closed: give -o FILE")
    try:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - what could not be written is not tried again
        raise RotationError(f"standard output cannot be written ({error.strerror})") from None
