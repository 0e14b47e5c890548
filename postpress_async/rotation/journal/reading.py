"""
A journal as its readers see it: what `status`, `export` and `report` are made from.

It is read while a run writes it, after a run died, from a read-only folder. Nothing is written, and what
a damaged or foreign file holds is refused in a sentence. Memory does not grow with the fleet.
"""

import math
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from postpress_async.errors import Applied, JournalError, Scope
from postpress_async.rotation._outcome import Outcome, State
from postpress_async.rotation.journal._file import DAMAGE
from postpress_async.rotation.journal._read_only import open_read_only, stamp_of

LATEST: Final = 253_402_300_799.0
"""The last second of the year 9999, as Unix time; no calendar goes further."""
_CHUNK: Final = 4_096
_NUMBER: Final = re.compile(r"[0-9]+")

T = TypeVar("T")


class JournalView:
    """
    A journal, opened for reading; close it, or use it in a ``with`` block.

    Attributes:
        path: Where it lies, as it was named.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """
        Open the journal at *path*.

        Raises:
            JournalError: It is not there, is no journal, or cannot be read.
        """
        self.path: Final = Path(path)
        # A link is followed to where a run has its -wal.
        self._place: Final = Path(os.path.realpath(self.path))
        self._file: Final = open_read_only(self._place)
        self._file.connection.create_function("as_counted", 1, _as_counted, deterministic=True)

    def close(self) -> None:
        """Let go of the file."""
        self._file.closing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, told: str, *values: object) -> list[Any]:
        """
        The rows that an SQL query gives; *values* are its parameters, or one mapping of them.

        Raises:
            JournalError: The file is damaged, or is written by a run that began meanwhile.
        """
        return list(self.stream(told, *values))

    def stream(self, told: str, *values: object) -> Iterator[Any]:
        """
        The same, a few at a time. A run's file grows as long as this is not read to its end.

        Raises:
            JournalError: As `ask` does.
        """
        named = values[0] if values and isinstance(values[0], Mapping) else values
        try:
            asked = self._file.connection.execute(told, named)
            while rows := asked.fetchmany(_CHUNK):
                yield from rows
            changed = self._file.stamp is not None and self._file.stamp != stamp_of(self._place)
        except DAMAGE as error:
            raise self._damage(error) from None
        except OSError as error:
            raise JournalError(f"{self.path} is gone ({error.strerror}): name another journal") from None
        if changed:
            raise JournalError(f"{self.path} was written while it was read: run the same command again")

    def read(self, read: Callable[[list[Any]], T], told: str, *values: object) -> T:
        """
        What *read* makes of the rows that an SQL query gives.

        Raises:
            JournalError: As `ask` does, and where *read* finds text for a number, or a word that is none.
        """
        try:
            return read(self.ask(told, *values))
        except DAMAGE as error:
            raise self._damage(error) from None

    def is_written(self) -> bool:
        """Whether a run has the journal open."""
        return self._file.file.is_locked()

    @contextmanager
    def at_one_moment(self) -> Iterator[None]:
        """See the journal as it is now, whatever a run adds to it; for seconds, since the file grows."""
        self.ask("BEGIN")
        try:
            self.ask("SELECT 1 FROM run")  # the moment is that of the first look
            yield
        finally:
            self.ask("ROLLBACK")

    def outcomes(self, states: Collection[State] = ()) -> Iterator[Outcome]:
        """
        What came of each account, of these *states* (all, if none is given), in the order of the input.

        It is read in pieces, each as it is at that time: a slow reader holds up nobody.
        """
        wanted = tuple(states)
        marks = f"AND state IN ({', '.join('?' * len(wanted))}) " if wanted else ""
        told = f"SELECT * FROM outcomes WHERE ordinal > ? {marks}ORDER BY ordinal LIMIT ?"  # noqa: S608
        last = -1
        while rows := self.ask(told, last, *wanted, _CHUNK):
            for row in rows:
                yield self.outcome(row)
            if rows[-1][0] <= last:  # it would be asked for ever
                raise self._damage(ValueError("its rows are in no order"))
            last = rows[-1][0]

    def outcome(self, row: tuple[Any, ...]) -> Outcome:
        """
        What a whole row of the table ``outcomes`` says.

        Raises:
            JournalError: It says nothing that could be.
        """
        try:
            return _outcome(*row)
        except DAMAGE as error:
            raise self._damage(error) from None

    def _damage(self, error: Exception) -> JournalError:
        return JournalError(f"{self.path} is damaged ({printable(str(error))}): name another journal")


def _as_counted(text: str | bytes | float | None) -> str | bytes | float | None:
    """In SQL, by which texts are ordered as people count: ``line 2`` before ``line 10``."""
    return _NUMBER.sub(lambda number: number[0].zfill(20), text) if isinstance(text, str) else text


def printable(text: str) -> str:
    """
    *text* with whatever does not print escaped: a journal may come from someone else.

    Raises:
        TypeError: It is no text, which SQLite would keep in any column.
    """
    if not isinstance(text, str):
        raise TypeError("bytes or a number for text")
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _outcome(
    ordinal: int,
    line: int | None,
    account_id: str,
    state: str,
    attempts: int,
    status: int | None,
    error_type: str | None,
    scope: str | None,
    applied: str | None,
    instance: str | None,
    elapsed: float,
    settled_at: float,
    proxy: str | None,
) -> Outcome:
    # SQLite checks no types, and a disk may have changed a bit of any.
    if not (math.isfinite(elapsed) and 0.0 <= settled_at <= LATEST):
        raise ValueError("a time that is none")
    return Outcome(
        int(ordinal),
        None if line is None else int(line),
        printable(account_id),
        State(state),
        int(attempts),
        None if status is None else int(status),
        None if error_type is None else printable(error_type),
        None if scope is None else Scope(scope),
        None if applied is None else Applied(applied),
        None if instance is None else printable(instance),
        float(elapsed),
        float(settled_at),
        None if proxy is None else printable(proxy),
    )
