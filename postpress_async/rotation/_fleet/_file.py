"""
The bytes of a fleet as lines of text, which can be read several times.

Anything except a regular file is first copied to a private temporary file. Errors never contain text of the
file, because a fleet holds passwords; that is why a decoder's exception is not chained.
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

from postpress_async._fields import printable
from postpress_async.errors import FleetError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

STDIN: Final = "-"
"""The source that is standard input."""

LONGEST_LINE: Final = 1024 * 1024
"""Maximum length of a line in bytes of UTF-8. A file with a longer one has another format, or never ends."""

_BLOCK: Final = 64 * 1024
_UTF16: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # as in Excel's "Unicode text"

PARQUET: Final = b"PAR1"
"""The first bytes of a Parquet file."""

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
_LONGEST_MAGIC: Final = 16

_OPEN_ERRORS: Final[dict[type[Exception], str]] = {
    FileNotFoundError: "does not exist: check the path, or give - for standard input",
    IsADirectoryError: "is a directory: give a file in it",
    PermissionError: "is not readable: change its permissions, or pipe it in",
}

_Stamp: TypeAlias = tuple[int, int, int, int]


class FleetFile:
    """
    A file, or a copy of what a pipe contained.

    The file is opened for each pass. After `sha256`, each pass compares every block with its digest before
    using it, because a file can be rewritten in place with its modification time restored.

    Attributes:
        name: The file's name without its folder, or ``<stdin>``.
        shown: Its name in errors: the path, or ``standard input``.
    """

    def __init__(self, source: str | os.PathLike[str]) -> None:
        """Raise `FleetError` if *source* cannot be read."""
        path = os.fspath(source)
        self.name: str = "<stdin>" if path == STDIN else printable(os.path.basename(path))
        self.shown: str = "standard input" if path == STDIN else printable(path) or "a file without a name"
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
        """Return an error about the file."""
        return FleetError(f"{self.shown} {fact}")

    def error_in(self, line: int, fact: str) -> FleetError:
        """Return an error about *line* of the file."""
        return FleetError(f"line {line} of {self.shown} {fact}")

    def close(self) -> None:
        """Delete the copy, if there is one."""
        self._closed = True
        if self._spool is not None:
            self._spool.close()

    def starts_with(self, magic: bytes) -> bool:
        """Whether the first bytes are *magic*."""
        with self.opened() as file:
            return file.read(len(magic)) == magic

    def refuse_other_formats(self) -> None:
        """Raise `FleetError` if the first bytes are those of another known format."""
        with self.opened() as file:
            self._refuse_format(file.read(_LONGEST_MAGIC) or b"")

    def _refuse_format(self, block: bytes) -> None:
        for first, fact in _FORMATS.items():
            if block.startswith(first):
                raise self.error(fact)

    def sha256(self) -> "hashlib._Hash":  # pyright: ignore[reportPrivateUsage]
        """Return an updatable hash of all bytes. Later passes must find the same bytes."""
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
        Yield lists of lines with their ends (``\n``, ``\r\n`` or ``\r``), one list for each block.

        Raises:
            FleetError: The file changed, is not text, or has a line over `LONGEST_LINE`.
        """
        number, rest = 0, b""
        with self.opened() as file:
            for block in self._utf8(file):
                text = rest + block
                if b"\0" in block:
                    bad = number + len(text[: text.index(b"\0") + 1].splitlines())
                    raise self.error_in(bad, "has a NUL byte and is not text: save the file as UTF-8")
                # As bytes: str.splitlines also splits at U+2028 and others, which a password may contain.
                lines = text.splitlines(keepends=True)
                # The end of the last line may be in the next block, and "\r" may be half of it.
                rest = b"" if text.endswith(b"\n") else lines.pop()
                if len(rest) > LONGEST_LINE or (lines and len(lines[0]) > LONGEST_LINE):
                    raise self.error_in(number + 1, "is over 1 MiB long: give each account its own line")
                yield self._decoded(lines, number)
                number += len(lines)
            yield self._decoded(rest.splitlines(keepends=True), number)

    def _decoded(self, lines: list[bytes], before: int) -> list[str]:
        """Decode *lines*, which *before* lines precede."""
        texts: list[str] = []
        try:
            texts.extend(line.decode() for line in lines)
        except UnicodeDecodeError:
            pass
        else:
            return texts
        # Outside the except block: otherwise the error, which holds the line, would be chained.
        raise self.error_in(before + len(texts) + 1, "is not UTF-8: save the file as UTF-8")

    def _utf8(self, file: io.RawIOBase) -> Iterator[bytes]:
        """Yield the blocks of *file* in UTF-8, without byte-order mark. UTF-16 is converted."""
        block = file.read(_BLOCK) or b""
        self._refuse_format(block)
        if not block.startswith(_UTF16):
            block = block.removeprefix(codecs.BOM_UTF8)
            while block:
                yield block
                block = file.read(_BLOCK) or b""
            return
        # Invalid UTF-16 becomes invalid UTF-8, so that `lines` can report its line.
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
        Open the file for one pass, with its own position.

        Raises:
            FleetError: The file is closed or has changed, or the block raised an `OSError`.
        """
        if self._closed:
            raise self.error("is closed: open the fleet again")
        with self._open() if self._spool is None else FileView(self._spool) as file:
            self._check(file)
            try:
                verified = self._hash is not None and self._spool is None  # nothing else can write to a copy
                yield VerifiedFile(file, self._blocks, self._changed) if verified else file
            except OSError as error:
                raise self.error(f"cannot be read: {_reason(error)}") from error
            self._check(file)

    def _check(self, file: io.RawIOBase) -> None:
        if self._spool is None and _stamp(file) != self._stamp:
            raise self._changed()

    def _changed(self) -> FleetError:
        return self.error("has changed since it was opened: start again when nothing writes to it")

    def _open(self) -> io.FileIO:
        try:
            return io.FileIO(self._path)
        except (OSError, ValueError) as error:  # ValueError: a NUL or half a surrogate pair in the path
            fact = _OPEN_ERRORS.get(type(error)) or f"cannot be opened: {_reason(error)}"
            raise self.error(fact) from error

    def _copy(self, pipe: IO[bytes] | io.FileIO) -> None:
        # On most systems it has no name, so a killed run leaves no passwords behind.
        self._spool = spool = tempfile.TemporaryFile(prefix="postpress-fleet-")  # noqa: SIM115 - until `close`
        first = b""
        try:
            while block := pipe.read(_BLOCK):
                spool.write(block)
                first = first or block
                if b"\0" in block and not first.startswith((*_UTF16, PARQUET)):
                    break  # reading it will fail, and /dev/zero has no end
        except OSError as error:
            spool.close()
            raise self.error(f"cannot be copied to a temporary file: {_reason(error)}") from error
        except BaseException:
            spool.close()
            raise


class _Reader(io.RawIOBase):
    """A seekable file with its own position."""

    _at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def _seek(self, file: IO[bytes] | io.RawIOBase, offset: int, whence: int) -> int:
        if whence == os.SEEK_CUR:
            offset, whence = self._at + offset, os.SEEK_SET
        self._at = file.seek(offset, whence)
        return self._at


class FileView(_Reader):
    """A view of a file that several passes share."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._check()
        return self._seek(self._file, offset, whence)

    def readinto(self, buffer: "WriteableBuffer") -> int:
        self._check()
        self._file.seek(self._at)
        count: int = self._file.readinto(buffer)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue] # a BufferedRandom has it
        self._at += count
        return count

    def _check(self) -> None:
        if self._file.closed:
            raise OSError(errno.EBADF, "the fleet was closed")


class VerifiedFile(_Reader):
    """
    A file whose blocks are compared with their digests before they are used.

    Args:
        file: The file, which nothing else may read at the same time.
        digests: The digests of its blocks.
        changed: Creates the error for a block that differs.
    """

    def __init__(
        self, file: io.RawIOBase, digests: Sequence[bytes], changed: Callable[[], FleetError]
    ) -> None:
        self._file = file
        self._digests = digests
        self._changed = changed
        self._number = -1  # of the block in memory
        self._block = b""

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return self._seek(self._file, offset, whence)

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view, filled = memoryview(buffer).cast("B"), 0
        # Fill the whole buffer: pyarrow mistakes a short read for the end of the file.
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
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _stdin() -> IO[bytes]:
    buffer: IO[bytes] | None = getattr(sys.stdin, "buffer", None)
    if buffer is None or buffer.closed:
        raise FleetError("standard input is closed: give the path of a file")
    return buffer


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or "the path has an invalid character"
