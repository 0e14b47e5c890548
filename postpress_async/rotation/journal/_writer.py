"""The thread that commits a journal's rows, many at a time."""

import asyncio
import concurrent.futures.thread  # noqa: F401 # pyright: ignore[reportUnusedImport] # see `finish`
import sqlite3
import threading
from pathlib import Path
from typing import Any, Final, TypeVar

from postpress_async.errors import JournalNotWritableError

COMMIT_EVERY: Final = 0.05
"""Seconds for which rows are gathered before they are committed: each commit flushes the disk."""

GATHERED: Final = 1_000
"""Rows that are enough to be committed at once."""

BACKLOG: Final = 5_000
"""Rows that may wait for the disk; beyond them the rotation waits, so that memory stays bounded."""

AT_ONCE: Final = (64, 8, 1)
"""Rows of one statement, as many as there are: old SQLites take 999 values in one."""

_ACCOUNT: Final = 2  # the place of the account's id in the row of an outcome
_NAMED: Final = 5

T = TypeVar("T")


class Insert:
    """
    An INSERT of which many rows are one statement.

    The interpreter's lock changes hands around each statement, while the event loop wants it: row by row, the
    thread took 3.9 us of the processor for an account, and takes 2.5 us with `AT_ONCE` of them.

    Args:
        into: The statement, up to its VALUES.
        values: Those of one row, in brackets.
    """

    def __init__(self, into: str, values: str) -> None:
        self.told: Final = {size: f"{into} VALUES {', '.join([values] * size)}" for size in AT_ONCE}


class Writer:
    """Takes rows in the event loop, and commits them in a thread of its own."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path = path
        self._connection = connection
        self._file = _identity(path)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._rows: list[tuple[str | Insert, tuple[Any, ...]]] = []
        self._waiting: list[asyncio.Future[None]] = []
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._failure: str | None = None
        self._lost: list[tuple[Any, ...]] = []
        self._thread = threading.Thread(target=self._write, name="postpress-journal", daemon=True)

    @property
    def is_behind(self) -> bool:
        return len(self._rows) > BACKLOG

    def put(self, statement: str | Insert, row: tuple[Any, ...]) -> None:
        """
        Take a row for the next commit. An account's id is its third value.

        Raises:
            JournalNotWritableError: An earlier commit failed. The row is told among those that are lost.
        """
        if self._failure is not None:
            self._lost.append(row)
            self.check()
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._thread.start()
        self._rows.append((statement, row))
        if not self._wake.is_set():  # setting it takes two locks
            self._wake.set()

    def promise(self) -> asyncio.Future[None]:
        """Done when all that was put before is on the disk, or cannot be: see `check`."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        self._wake.set()
        return done

    async def committed(self) -> None:
        """Return when all that was put before is on the disk."""
        await self.promise()
        self.check()

    @property
    def has_failed(self) -> bool:
        """Whether a commit has failed, and none follows."""
        return self._failure is not None

    def check(self) -> None:
        """Raise `JournalNotWritableError` if a commit has failed."""
        if self._failure is not None:
            raise JournalNotWritableError(
                f"{self._path}: {self._failure}; {_named(self._lost)}, and nothing more is sent. Free the "
                "disk or mend the file, then run the same command again"
            )

    async def finish(self) -> None:
        if self._loop is not None:
            self._closing.set()
            self._wake.set()
            # The thread ends after its last commit; it is waited for even if we are cancelled meanwhile.
            # It needs `concurrent.futures.thread`, imported above: here a file descriptor may not be free.
            ended = asyncio.ensure_future(asyncio.to_thread(self._thread.join))
            cancelled = None
            while not ended.done():
                try:
                    await asyncio.shield(ended)
                except asyncio.CancelledError as error:
                    cancelled = error
            if cancelled is not None:
                raise cancelled
        self.check()

    def end_well(self) -> None:
        """Say that every account that was sent has its outcome on the disk."""
        try:
            with self._connection:
                self._connection.execute("DELETE FROM run WHERE name = 'under way'")
            # Somebody may still read it, and then nobody folds the -wal file in when this connection closes.
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            raise JournalNotWritableError(f"{self._path}: {error}; run the same command again") from None

    def close(self) -> None:
        """Let go of the file; the last connection to close folds the -wal file into it."""
        self._connection.close()

    def _write(self) -> None:
        while True:
            self._wake.wait()
            if len(self._rows) < GATHERED:
                self._closing.wait(COMMIT_EVERY)
            self._wake.clear()
            closing = self._closing.is_set()
            # Who waits is taken first, so that their rows are among those taken next.
            waiting = _taken(self._waiting)
            rows = _taken(self._rows)
            self._commit(rows)
            self._release(waiting)
            if closing and not self._rows:
                return

    def _commit(self, rows: list[tuple[str | Insert, tuple[Any, ...]]]) -> None:
        if not rows:
            return
        if self._failure is not None:  # they came while the commit that failed was under way
            self._lost += [row for _, row in rows]
            return
        try:
            if _identity(self._path) != self._file:
                raise sqlite3.OperationalError("the file was deleted or replaced under way")
            with self._connection:
                for statement in dict.fromkeys(statement for statement, _ in rows):
                    _execute(self._connection, statement, [row for said, row in rows if said is statement])
        except Exception as error:  # SQLite's own, or a text that is none: the thread must live to tell
            self._lost += [row for _, row in rows]
            self._failure = str(error)

    def _release(self, waiting: list[asyncio.Future[None]]) -> None:
        assert self._loop is not None  # noqa: S101 - the thread starts after it is set
        for done in waiting:
            try:
                self._loop.call_soon_threadsafe(_settle, done)
            except RuntimeError:  # the loop is closed: nobody waits any more
                return


def _execute(connection: sqlite3.Connection, statement: str | Insert, rows: list[tuple[Any, ...]]) -> None:
    if isinstance(statement, str):
        connection.executemany(statement, rows)
        return
    done = 0
    for size, told in statement.told.items():
        while len(rows) - done >= size:
            connection.execute(told, [value for row in rows[done : done + size] for value in row])
            done += size


def _named(lost: list[tuple[Any, ...]]) -> str:
    """The accounts in *lost*, by name as far as a sentence holds them."""
    accounts = [row[_ACCOUNT] for row in lost if len(row) > _ACCOUNT]
    if not accounts:
        return "nothing of an account is lost"
    names = ", ".join(accounts[:_NAMED])
    names += f" and {len(accounts) - _NAMED:,} more" if len(accounts) > _NAMED else ""
    many = "1 account" if len(accounts) == 1 else f"{len(accounts):,} accounts"
    return f"what came of {many} could not be recorded ({names})"


def _identity(path: Path) -> tuple[int, int] | None:
    # A file that was deleted still takes writes, and nobody would ever read them.
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _taken(queue: list[T]) -> list[T]:
    # Not swapped for a new list: the loop's thread may be about to append to this one.
    taken = queue[:]
    del queue[: len(taken)]
    return taken


def _settle(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)
