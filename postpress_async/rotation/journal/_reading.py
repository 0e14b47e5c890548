"""
A journal opened for reading, for example by `status`, `export` and `report`.

It can be read while a run writes it, after a run died, and from a read-only folder. Nothing is written. If
the file is damaged or is no journal, `JournalError` is raised. Memory use does not grow with the fleet.
"""

import math
import os
import re
import shlex
import shutil
import sqlite3
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Self, TypeAlias, TypeVar

from postpress_async import _fields
from postpress_async.errors import Applied, JournalError, Scope
from postpress_async.rotation._outcome import Outcome, State
from postpress_async.rotation.journal._database import (
    DAMAGE,
    add_views,
    is_empty,
    lost_log,
    needs_log,
    read_run,
    refuse_lost_log,
)
from postpress_async.rotation.journal._file import JournalFile

LATEST: Final = 253_402_300_799.0  # the last Unix time that `datetime` supports: the end of the year 9999
CHUNK: Final = 4_096  # rows to read at once
_BUSY_TIMEOUT: Final = 10.0  # seconds to wait for SQLite's lock, which a run holds only for a moment
_NUMBER: Final = re.compile(r"[0-9]+")

_Stamp: TypeAlias = tuple[int, int, int, int]
T = TypeVar("T")


class JournalView:
    """
    A journal, opened for reading; close it, or use it in a ``with`` block.

    Attributes:
        path: The path as given.
    """

    def __init__(self, path: str | os.PathLike[str], *, run: int | None = None) -> None:
        """
        Open the journal at *path*.

        Args:
            path: Path of the journal.
            run: Number of the run to read; None for the latest.

        Raises:
            JournalError: The file does not exist, is not a journal, has no such run, or cannot be read.
        """
        self._reader = JournalReader(path, run=run)
        self.path: Final = self._reader.path

    def outcomes(self, states: Collection[State] = ()) -> Iterator[Outcome]:
        """
        Yield the outcomes in the order of the input, only those with one of *states* if given.

        They are read in chunks, so that a slow reader does not block a run. Each chunk is read when it is
        needed, so it may be newer than the one before.

        Raises:
            JournalError: The file is damaged, or a run changed it meanwhile.
        """
        return self._reader.outcomes(states)

    def close(self) -> None:
        """Close the file."""
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class JournalReader:
    """Queries of a journal that is opened for reading; see `JournalView` for the arguments and errors."""

    def __init__(self, path: str | os.PathLike[str], *, run: int | None = None) -> None:
        self._run: Final = run
        self.path: Final = Path(path)
        self.quoted_path: Final = shlex.quote(str(path))  # for a shell command
        # If the path is a symbolic link, the -wal is beside the file that it points to.
        self._real: Final = Path(os.path.realpath(self.path))
        with ExitStack() as stack:
            try:
                self._open(stack)
            except (*DAMAGE, OSError) as error:
                reason = getattr(error, "strerror", None) or error
                raise JournalError(f"{self._real} cannot be read ({reason}): name another journal") from None
            self._closing: Final = stack.pop_all()

    def _open(self, stack: ExitStack) -> None:
        path = self._real
        status = path.stat()  # before opening, because opening a device could have side effects
        example = "name a journal, such as fleet.csv.rotation.sqlite3"
        if not stat.S_ISREG(status.st_mode):
            raise JournalError(f"{path} is not a regular file: {example}")
        full = "if its disk was full when it was created, give the same command again"
        if not status.st_size:
            raise JournalError(f"{path} is empty: {full}; otherwise {example}")
        self._file = JournalFile.open(path, os.O_RDONLY)
        stack.callback(self._file.close)
        self._connection, self._stamp = connect_read_only(path, stack)
        if is_empty(path, self._connection):
            if self._file.is_locked():
                raise JournalError(f"{path} is being created by a run: try again in a moment")
            raise JournalError(
                f"{path} is not a whole journal, because it has no tables: {full}; if it was copied, copy "
                f"{path.name}-wal too"
            )
        add_views(self._connection, self._run)
        if self._run not in {None, read_run(self._connection)["id"]}:
            hint = f"`postpress-async history {self.quoted_path}` lists them"
            raise JournalError(f"{self.path} has no run {self._run}: {hint}")
        self._connection.execute("PRAGMA query_only = ON")
        self._connection.execute("SELECT ordinal FROM latest LIMIT 1").fetchone()
        refuse_lost_log(path)
        # A run in progress sets the mark during each checkpoint. If the run ends between the first two
        # checks, the third one no longer finds the mark.
        if needs_log(self._connection) and not self._file.is_locked() and needs_log(self._connection):
            raise lost_log(path)
        self._connection.create_function("as_counted", 1, _as_counted, deterministic=True)

    def close(self) -> None:
        self._closing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, sql: str, *values: object) -> list[Any]:
        """Return the rows of an SQL query; *values* are its parameters, or one mapping of them."""
        return list(self.stream(sql, *values))

    def stream(self, sql: str, *values: object) -> Iterator[Any]:
        """Yield the rows of an SQL query. A run's -wal grows until the last row is read."""
        parameters = values[0] if values and isinstance(values[0], Mapping) else values
        try:
            cursor = self._connection.execute(sql, parameters)
            while rows := cursor.fetchmany(CHUNK):
                yield from rows
            changed = self._stamp is not None and self._stamp != _stamp_of(self._real)
        except DAMAGE as error:
            raise self._damaged(error) from None
        except OSError as error:
            raise JournalError(f"{self.path} is gone ({error.strerror}): name another journal") from None
        if changed:
            raise JournalError(f"{self.path} was written while it was read: run the same command again")

    def in_chunks(self, sql: str, *values: object) -> Iterator[Any]:
        """
        Yield the rows of a query in chunks, so that a slow reader does not block a run.

        The query's first column must be the ordinal. Its first parameter must be the ordinal after which it
        starts.
        """
        last = -1
        while rows := self.ask(sql, last, *values):
            yield from rows
            if not isinstance(rows[-1][0], int) or rows[-1][0] <= last:  # would loop forever
                raise self._damaged(ValueError("its rows are not in order"))
            last = rows[-1][0]

    def read(self, convert: Callable[[list[Any]], T], sql: str, *values: object) -> T:
        """Return *convert* of the rows of a query; its `ValueError` or `TypeError` means a damaged file."""
        try:
            return convert(self.ask(sql, *values))
        except DAMAGE as error:
            raise self._damaged(error) from None

    @staticmethod
    def text(value: Any) -> Any:
        """Return *value*; if it is text, with unprintable characters escaped."""
        return _fields.printable(value) if isinstance(value, str) else value

    def run(self) -> dict[str, Any]:
        """What is recorded about the latest run; see `read_run`."""
        try:
            return read_run(self._connection)
        except DAMAGE as error:
            raise self._damaged(error) from None

    def is_written(self) -> bool:
        """Whether a run has the journal open."""
        return self._file.is_locked()

    @contextmanager
    def at_one_moment(self) -> Iterator[None]:
        """Read from one snapshot of the journal, for seconds only, because a run's -wal grows meanwhile."""
        self.ask("BEGIN")
        try:
            self.ask("SELECT 1 FROM run")  # the first read takes the snapshot
            yield
        finally:
            self.ask("ROLLBACK")

    def outcomes(self, states: Collection[State] = ()) -> Iterator[Outcome]:
        wanted = tuple(states)
        condition = f"AND state IN ({', '.join('?' * len(wanted))}) " if wanted else ""
        sql = f"SELECT * FROM latest WHERE ordinal > ? {condition}ORDER BY ordinal LIMIT {CHUNK}"
        return map(self.outcome, self.in_chunks(sql, *wanted))

    def outcome(self, row: tuple[Any, ...]) -> Outcome:
        """Return the `Outcome` of a whole row of the view ``latest``."""
        try:
            return Outcome(*(convert(value) for convert, value in zip(_CONVERTERS, row, strict=True)))
        except DAMAGE as error:
            raise self._damaged(error) from None

    def _damaged(self, error: Exception) -> JournalError:
        return JournalError(f"{self.path} is damaged ({printable(str(error))}): name another journal")


def reader_of(view: JournalView) -> JournalReader:
    """Return the reader of *view*, whose queries are not part of the public API."""
    return view._reader  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]


def connect_read_only(path: Path, stack: ExitStack) -> tuple[sqlite3.Connection, _Stamp | None]:
    """
    Open the database at *path*, which must be absolute, until *stack* is closed; nothing is written.

    Also return the file's stamp if SQLite would not notice that a run changes the file; otherwise None. If
    the stamp is another one after a query, the result is invalid.
    """
    log, index = f"{path}-wal", f"{path}-shm"
    stamp = None
    if os.path.exists(log) and os.path.exists(index):  # a run is under way, or died
        mode = "mode=ro"
    elif os.path.exists(log) and os.path.getsize(log):
        # The -shm index is missing, as in a copied journal. SQLite would create it, so open a temporary copy.
        copy = Path(stack.enter_context(TemporaryDirectory(prefix="postpress-"))) / "journal"
        shutil.copyfile(path, copy)
        shutil.copyfile(log, f"{copy}-wal")
        path, mode = copy, "mode=rw"
    else:
        # No run is writing. Without `immutable`, SQLite would create files beside the database.
        stamp, mode = _stamp_of(path), "immutable=1"
    connection = sqlite3.connect(
        f"{path.as_uri()}?{mode}", uri=True, timeout=_BUSY_TIMEOUT, isolation_level=None
    )
    return stack.enter_context(closing(connection)), stamp


def printable(text: str) -> str:
    """Return *text* with unprintable characters escaped; raise `TypeError` if it is no text."""
    if not isinstance(text, str):  # SQLite stores any type in any column
        raise TypeError("bytes or a number instead of text")
    return _fields.printable(text)


def _as_counted(text: str | bytes | float | None) -> str | bytes | float | None:
    """Return a sort key that places ``line 2`` before ``line 10``; used as an SQL function."""
    return _NUMBER.sub(lambda number: number[0].zfill(20), text) if isinstance(text, str) else text


def _stamp_of(path: Path) -> _Stamp:
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _seconds(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("an invalid time")
    return float(value)


def _unix_time(value: float) -> float:
    return _seconds(value if 0 <= value <= LATEST else math.nan)


def _optional(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else convert(value)


# For each column of ``latest``, in order. SQLite checks no types, and a damaged file may contain any value.
_CONVERTERS: Final[tuple[Callable[[Any], Any], ...]] = (
    *(int, _optional(int), printable, State, int, _optional(int)),
    *(_optional(printable), _optional(Scope), _optional(Applied), _optional(printable)),
    *(_seconds, _unix_time, _optional(printable)),
)
