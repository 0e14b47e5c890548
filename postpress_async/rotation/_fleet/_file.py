"""
A file with a fleet, whose bytes or lines of text can be read several times.

Anything except a regular file is first copied to a private temporary file. A fleet contains passwords, so
errors never contain text of the file, not even in a chained exception of a decoder.
"""

import codecs
import errno
import hashlib
import io
import os
import stat
import sys
import tempfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import IO, TYPE_CHECKING, Final

from postpress_async._fields import printable
from postpress_async.errors import FleetError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

STDIN: Final = "-"  # the source that is standard input
PARQUET: Final = b"PAR1"  # the first bytes of a Parquet file
LONGEST_LINE: Final = 1024 * 1024
"""Maximum length of a line in characters. A file with a longer one has another format, or never ends."""

_BLOCK: Final = 64 * 1024
_UTF16: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # as in Excel's "Unicode text"

# Replaces invalid bytes, so that `lines` can report the line. The lone surrogate, which valid text never
# contains, marks them. The NUL lets `lines` find both invalid bytes and NULs with one test per line.
_INVALID: Final = "\0\udcff"
_MARK_INVALID: Final = "postpress_async.mark_invalid"
codecs.register_error(_MARK_INVALID, lambda error: (_INVALID, getattr(error, "end")))  # noqa: B009 - a UnicodeError has it

# Other formats by their first bytes: what the file is, and how to convert it.
_FORMATS: Final = {
    b"PK\x03\x04": "is a workbook or a zip archive: export it as CSV in UTF-8",
    b"\xd0\xcf\x11\xe0": "is an old Excel workbook: export it as CSV in UTF-8",
    b"\x1f\x8b": "is compressed: unpack it first, as in gunzip -c FILE | ... -",
    b"\x28\xb5\x2f\xfd": "is compressed: unpack it first, as in zstd -dc FILE | ... -",
    b"PARE": "is encrypted Parquet: write it without encryption",
    b"ARROW1": "is an Arrow or Feather file: write it as Parquet or CSV",
    b"SQLite format 3\0": "is a SQLite database: name it as sqlite:///FILE, and give a query",
}

_OPEN_ERRORS: Final[dict[type[Exception], str]] = {
    FileNotFoundError: "does not exist: check the path, or give - for standard input",
    IsADirectoryError: "is a directory: give a file in it",
    PermissionError: "is not readable: change its permissions, or pipe it in",
}


class FleetFile:
    """
    A file, or a copy of the content of a pipe or a query.

    The file is opened for each pass. After `sha256`, each pass compares every block with its digest before
    using it, because a file can be rewritten in place with its modification time restored.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        *,
        content: Iterable[bytes] | None = None,  # if given, it is copied, and *source* is only a name
        shown: str | None = None,  # the name in errors
    ) -> None:
        """Raise `FleetError` if *source* cannot be read."""
        path = os.fspath(source)
        self.name: str = "<stdin>" if path == STDIN else printable(os.path.basename(path))
        named = "standard input" if path == STDIN else printable(path) or "a file without a name"
        self.shown: str = shown or named
        self._path = path
        self._spool: IO[bytes] | None = None
        self._digests: list[bytes] = []
        self._closed = False
        if content is not None:
            self._copy(content)
        elif path == STDIN:
            self._copy(_blocks(_stdin()))
        else:
            with self._open() as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    self._copy(_blocks(file))
                self._stamp = _stamp(file)

    def error(self, fact: str, line: int | None = None) -> FleetError:
        return FleetError(f"{self.shown if line is None else f'line {line} of {self.shown}'} {fact}")

    def close(self) -> None:
        """Delete the copy, if there is one."""
        self._closed = True
        if self._spool is not None:
            self._spool.close()

    def first_bytes(self) -> bytes:
        """Return some of the first bytes; raise `FleetError` if the format is not supported."""
        with self.opened() as file:
            content = file.peek()
        for magic, fact in _FORMATS.items():
            if content.startswith(magic):
                raise self.error(fact)
        return content

    def sha256(self) -> "hashlib._Hash":  # pyright: ignore[reportPrivateUsage]
        """Return an updatable hash of the digests of all blocks. Later passes must find the same bytes."""
        if not self._digests:
            with self.opened() as file:
                digests = [_block_digest(block) for block in _blocks(file)]
            self._digests = [*digests, _block_digest(b"")]  # so that a pass fails if blocks were appended
        return hashlib.sha256(b"".join(self._digests))

    def lines(self) -> Generator[str, None, None]:
        r"""Yield each line with its end; raise `FleetError` if it is too long or invalid UTF-8 or UTF-16."""
        encoding = "utf-16" if self.first_bytes().startswith(_UTF16) else "utf-8-sig"
        with self.opened() as file:
            text = io.TextIOWrapper(file, encoding, _MARK_INVALID, newline="")
            lines = iter(partial(text.readline, LONGEST_LINE + 1), "")
            for number, line in enumerate(lines, start=1):
                if "\0" in line or len(line) > LONGEST_LINE:
                    raise self.error(_fault(line), number)
                yield line

    @contextmanager
    def opened(self) -> Iterator[io.BufferedReader]:
        """Open the file for one pass; raise `FleetError` if it has changed, or cannot be read."""
        if self._closed:
            raise self.error("is closed: open the fleet again")
        with self._open() if self._spool is None else nullcontext(self._spool) as file:
            self._check(file)
            try:
                yield io.BufferedReader(_FilePass(file, self._digests), _BLOCK)
            except OSError as error:
                if error.errno == errno.ESTALE:
                    raise self._changed() from None
                raise self.error(f"cannot be read: {_reason(error)}") from error
            self._check(file)

    def _check(self, file: IO[bytes]) -> None:
        if self._spool is None and _stamp(file) != self._stamp:
            raise self._changed()

    def _changed(self) -> FleetError:
        return self.error("has changed since it was opened: start again when nothing writes to it")

    def _open(self) -> IO[bytes]:
        try:
            return io.BufferedReader(io.FileIO(self._path), _BLOCK)
        except (OSError, ValueError) as error:  # ValueError: a NUL or half a surrogate pair in the path
            fact = _OPEN_ERRORS.get(type(error)) or f"cannot be opened: {_reason(error)}"
            raise self.error(fact) from error

    def _copy(self, content: Iterable[bytes]) -> None:
        # On most systems the temporary file has no name, so it disappears even if the process is killed.
        self._spool = spool = tempfile.TemporaryFile(prefix="postpress-fleet-")  # noqa: SIM115 - until `close`
        first = b""
        try:
            for block in content:
                spool.write(block)
                first = first or block
                if b"\0" in block and not first.startswith((*_UTF16, PARQUET)):
                    break  # it is not text, so reading it will fail; /dev/zero has no end
            spool.flush()
        except BaseException as error:
            spool.close()
            if isinstance(error, OSError):
                raise self.error(f"cannot be copied to a temporary file: {_reason(error)}") from error
            raise


class _FilePass(io.RawIOBase):
    """
    One pass over a file, with a position of its own, because several passes may share the file.

    A block that differs from its digest raises `OSError` with ``ESTALE``. Without digests, it is not checked.
    """

    def __init__(self, file: IO[bytes], digests: Sequence[bytes]) -> None:
        self._file = file
        self._digests = digests
        self._position = 0
        self._block_number = -1  # of the block in memory
        self._block = b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        if whence == os.SEEK_CUR:
            offset += self._position
        elif whence == os.SEEK_END:
            offset += self._file.seek(0, os.SEEK_END)
        self._position = offset
        return offset

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer).cast("B")
        number, start = divmod(self._position, _BLOCK)
        if number != self._block_number:
            self._block_number, self._block = number, self._read_block(number)
        piece = self._block[start : start + len(view)]
        view[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def _read_block(self, number: int) -> bytes:
        if self._file.closed:
            raise OSError(errno.EBADF, "the fleet was closed")
        self._file.seek(number * _BLOCK)
        block = self._file.read(_BLOCK)
        if number < len(self._digests) and _block_digest(block) != self._digests[number]:
            raise OSError(errno.ESTALE, "the file has changed")
        return block


def _fault(line: str) -> str:
    if _INVALID in line:
        return "is not UTF-8: save the file as UTF-8"
    if "\0" in line:
        return "has a NUL byte and is not text: save the file as UTF-8"
    return "is over 1 MiB long: give each account its own line"


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    return iter(partial(file.read, _BLOCK), b"")


def _block_digest(block: bytes) -> bytes:
    return hashlib.blake2b(block, digest_size=16).digest()


def _stamp(file: IO[bytes]) -> tuple[int, int, int, int]:
    """Metadata that changes if the file is replaced or written to."""
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _stdin() -> IO[bytes]:
    buffer: IO[bytes] | None = getattr(sys.stdin, "buffer", None)
    if buffer is None or buffer.closed:
        raise FleetError("standard input is closed: give the path of a file")
    return buffer


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or "the path has an invalid character"
