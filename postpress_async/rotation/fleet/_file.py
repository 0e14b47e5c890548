"""
The bytes of a fleet as lines of text, as often as they are asked for.

What is no regular file is first copied to a private temporary one. No text of a file reaches an error:
a fleet holds passwords, and so would the exception of a decoder.
"""

import codecs
import errno
import hashlib
import io
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Final, TypeAlias

from postpress_async.errors import FleetError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

STDIN: Final = "-"
"""The source that is standard input."""

LONGEST_LINE: Final = 1024 * 1024
"""Bytes of the longest line that is read, in UTF-8; beyond it, a file has another format or no end."""

_BLOCK: Final = 64 * 1024
_UTF16: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # Excel's "Unicode text" begins so

PARQUET: Final = b"PAR1"
"""The first bytes of a Parquet file."""

# What people take for a fleet, by its first bytes, and the way out.
_FORMATS: Final = {
    b"PK\x03\x04": "is a workbook or a zip archive: export it as CSV in UTF-8",
    b"\xd0\xcf\x11\xe0": "is an old Excel workbook: export it as CSV in UTF-8",
    b"\x1f\x8b": "is compressed: unpack it first, as in gunzip -c FILE | ... -",
    b"\x28\xb5\x2f\xfd": "is compressed: unpack it first, as in zstd -dc FILE | ... -",
    b"PARE": "is encrypted Parquet: write it without encryption",
    b"ARROW1": "is an Arrow or Feather file: write it as Parquet or CSV",
    b"SQLite format 3\0": "is a SQLite database: name it as sqlite:///FILE, and give a query",
}
_LONGEST_MARK: Final = 16

_UNOPENED: Final[dict[type[Exception], str]] = {
    FileNotFoundError: "does not exist: check the path, or give - for standard input",
    IsADirectoryError: "is a directory: give a file in it",
    PermissionError: "is not readable for you: change its permissions, or pipe it in",
}

_Stamp: TypeAlias = tuple[int, int, int, int]


class FleetFile:
    """
    A file, or a copy of what came through a pipe.

    A file is opened anew for each pass. Once `sha256` has read it, all later passes compare each block with
    what it was then, before a byte of the block is used: a file may be rewritten in place, and its time set
    back.

    Attributes:
        name: The file's name without its folder, or ``<stdin>``.
        shown: What an error calls it: the path as it was given.
    """

    def __init__(self, source: str | os.PathLike[str]) -> None:
        """Raise `FleetError` if *source* cannot be read."""
        path = os.fspath(source)
        self.name = "<stdin>" if path == STDIN else _printable(os.path.basename(path))
        self.shown = "standard input" if path == STDIN else _printable(path) or "a file without a name"
        self._path = path
        self._spool: IO[bytes] | None = None
        self._hash: hashlib._Hash | None = None  # pyright: ignore[reportPrivateUsage]
        self._blocks: list[bytes] = []
        self._closed = False
        if path == STDIN:
            self._copy(_stdin())
        else:
            with self._open() as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    self._copy(file)
                self._stamp = _stamp(file)

    def error(self, fact: str) -> FleetError:
        """The error that says *fact* of this file."""
        return FleetError(f"{self.shown} {fact}")

    def error_in(self, line: int, fact: str) -> FleetError:
        """The error that says *fact* of one line of it."""
        return FleetError(f"line {line} of {self.shown} {fact}")

    def close(self) -> None:
        """Delete the copy, if there is one."""
        self._closed = True
        if self._spool is not None:
            self._spool.close()

    def begins(self, mark: bytes) -> bool:
        """Whether its first bytes are *mark*."""
        with self.opened() as file:
            return file.read(len(mark)) == mark

    def refuse_other_formats(self) -> None:
        """Raise `FleetError` if its first bytes are of a format that people take for a fleet."""
        with self.opened() as file:
            self._refuse_format(file.read(_LONGEST_MARK) or b"")

    def _refuse_format(self, block: bytes) -> None:
        for first, fact in _FORMATS.items():
            if block.startswith(first):
                raise self.error(fact)

    def sha256(self) -> "hashlib._Hash":  # pyright: ignore[reportPrivateUsage]
        """The hash over all bytes, ready to take more. Later passes must find the same bytes."""
        if self._hash is None:
            digest, blocks = hashlib.sha256(), list[bytes]()
            with self.opened() as file:
                while block := _read_block(file):
                    digest.update(block)
                    blocks.append(_block_digest(block))
            self._hash, self._blocks = digest, blocks
        return self._hash.copy()

    def lines(self) -> Generator[list[str], None, None]:
        r"""
        All lines with their ends (``\n``, ``\r\n`` or ``\r``), some hundred at a time.

        Memory is bounded, whatever the file holds.

        Raises:
            FleetError: It changed, is not text, or has a line over `LONGEST_LINE`.
        """
        number, rest = 0, b""
        with self.opened() as file:
            for block in self._utf8(file):
                text = rest + block
                if b"\0" in block:
                    bad = number + len(text[: text.index(b"\0") + 1].splitlines())
                    raise self.error_in(bad, "has a NUL byte, which no text has: save the file as UTF-8")
                # bytes, not str: that one breaks at U+2028 and others, which a password may have
                lines = text.splitlines(keepends=True)
                # The end of a line may be in the next block, and "\r" may be half of one.
                rest = b"" if text.endswith(b"\n") else lines.pop()
                if len(rest) > LONGEST_LINE or (lines and len(lines[0]) > LONGEST_LINE):
                    raise self.error_in(number + 1, "is over 1 MiB long: give each account its own line")
                yield self._decoded(lines, number)
                number += len(lines)
            yield self._decoded(rest.splitlines(keepends=True), number)

    def _decoded(self, lines: list[bytes], before: int) -> list[str]:
        """*lines* as text, the first of which has *before* lines before it."""
        try:
            return [line.decode() for line in lines]
        except UnicodeDecodeError:
            bad = before + 1 + next(index for index, line in enumerate(lines) if not _is_utf8(line))
        # Not in the except: its error holds the line, and would stay on the chain of ours.
        raise self.error_in(bad, "is not UTF-8: save the file as UTF-8")

    def _utf8(self, file: io.RawIOBase) -> Iterator[bytes]:
        """The blocks of *file* without a byte-order mark, and in UTF-8 if it says it is UTF-16."""
        block = file.read(_BLOCK) or b""
        self._refuse_format(block)
        if not block.startswith(_UTF16):
            block = block.removeprefix(codecs.BOM_UTF8)
            while block:
                yield block
                block = file.read(_BLOCK) or b""
            return
        # What is wrong in UTF-16 is passed on as wrong UTF-8, and so found with its line.
        decoder = codecs.getincrementaldecoder("utf-16")("surrogatepass")
        while block:
            if text := decoder.decode(block):
                yield text.encode("utf-8", "surrogatepass")
            block = file.read(_BLOCK) or b""
        if decoder.getstate()[0]:
            yield b"\xff"

    @contextmanager
    def opened(self) -> Iterator[io.RawIOBase]:
        """
        Its bytes from the first, for one pass; two passes do not move each other.

        Raises:
            FleetError: It is closed, changed, or an `OSError` came out of the block.
        """
        if self._closed:
            raise self.error("is closed: open the fleet again")
        with self._open() if self._spool is None else View(self._spool) as file:
            self._check(file)
            try:
                known = self._hash is not None and self._spool is None  # nobody else has the copy
                yield CheckedFile(file, self._blocks, self._changed) if known else file
            except OSError as error:
                raise self.error(f"cannot be read: {_why(error)}") from error
            self._check(file)

    def _check(self, file: io.RawIOBase) -> None:
        if self._spool is None and _stamp(file) != self._stamp:
            raise self._changed()

    def _changed(self) -> FleetError:
        return self.error("has changed since it was opened: begin again when nothing writes to it")

    def _open(self) -> io.FileIO:
        try:
            return io.FileIO(self._path)
        except (OSError, ValueError) as error:  # ValueError: a NUL or half a surrogate pair in the path
            fact = _UNOPENED.get(type(error)) or f"cannot be opened: {_why(error)}"
            raise self.error(fact) from error

    def _copy(self, pipe: IO[bytes] | io.FileIO) -> None:
        # Where the system can, it never has a name: a run that is killed leaves no passwords behind.
        self._spool = spool = tempfile.TemporaryFile(prefix="postpress-fleet-")  # noqa: SIM115 - until `close`
        first = b""
        try:
            while block := pipe.read(_BLOCK):
                spool.write(block)
                first = first or block
                if b"\0" in block and not first.startswith((*_UTF16, PARQUET)):
                    break  # refused when it is read; and /dev/zero has no end
        except OSError as error:
            spool.close()
            raise self.error(f"cannot be copied to a temporary file: {_why(error)}") from error
        except BaseException:
            spool.close()
            raise


class View(io.RawIOBase):
    """A place of its own in a file that is shared, so that two passes do not move each other."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._check()
        if whence == os.SEEK_CUR:
            offset, whence = self._at + offset, os.SEEK_SET
        self._at = self._file.seek(offset, whence)
        return self._at

    def _check(self) -> None:
        if self._file.closed:
            raise OSError(errno.EBADF, "the fleet was closed")

    def readinto(self, buffer: "WriteableBuffer") -> int:
        self._check()
        self._file.seek(self._at)
        count: int = self._file.readinto(buffer)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue] # a BufferedRandom has it
        self._at += count
        return count


class CheckedFile(io.RawIOBase):
    """
    A file of which each block must be what it was before.

    Args:
        file: The file, to be read by nobody else meanwhile.
        digests: Those of its blocks.
        changed: Makes the error that is raised for a block that is another.
    """

    def __init__(
        self, file: io.RawIOBase, digests: Sequence[bytes], changed: Callable[[], FleetError]
    ) -> None:
        self._file = file
        self._digests = digests
        self._changed = changed
        self._at = 0
        self._number = -1  # of the block at hand
        self._block = b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        if whence == os.SEEK_CUR:
            offset, whence = self._at + offset, os.SEEK_SET
        self._at = self._file.seek(offset, whence)
        return self._at

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view, filled = memoryview(buffer).cast("B"), 0
        # All of it: pyarrow takes fewer bytes for the end of the file.
        while filled < len(view) and (piece := self._rest_of_block()[: len(view) - filled]):
            view[filled : filled + len(piece)] = piece
            filled += len(piece)
            self._at += len(piece)
        return filled

    def _rest_of_block(self) -> memoryview:
        number, begin = divmod(self._at, _BLOCK)
        if number >= len(self._digests):
            return memoryview(b"")
        if number != self._number:
            self._file.seek(number * _BLOCK)
            block = _read_block(self._file)
            if _block_digest(block) != self._digests[number]:
                raise self._changed()
            self._number, self._block = number, block
        return memoryview(self._block)[begin:]


def _read_block(file: io.RawIOBase) -> bytes:
    block = file.read(_BLOCK) or b""
    while 0 < len(block) < _BLOCK and (more := file.read(_BLOCK - len(block))):
        block += more
    return block


def _block_digest(block: bytes) -> bytes:
    return hashlib.blake2b(block, digest_size=16).digest()


def _stamp(file: io.RawIOBase) -> _Stamp:
    now = os.fstat(file.fileno())
    return now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns


def _stdin() -> IO[bytes]:
    buffer: IO[bytes] | None = getattr(sys.stdin, "buffer", None)
    if buffer is None or buffer.closed:
        raise FleetError("standard input is closed: give the path of a file")
    return buffer


def _why(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or "no path has such a character"


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
