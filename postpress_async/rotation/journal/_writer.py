"""The thread that commits a journal's rows, many at a time."""

import asyncio
import concurrent.futures.thread  # noqa: F401 # pyright: ignore[reportUnusedImport] # see `finish`
import sqlite3
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

from postpress_async.errors import JournalNotWritableError, RotationError
from postpress_async.rotation._atomic_write import atomic_write
from postpress_async.rotation.journal._checkpoint import checkpoint, delete_mark
from postpress_async.rotation.journal._coverage import UNCOVER

COMMIT_EVERY: Final = 0.05
"""Seconds for which rows are gathered, at most, before they are committed: each commit flushes the disk."""

GATHERED: Final = 1_000
"""Rows that are enough to be committed at once, at most."""

FEWEST: Final = 16
"""The same at least: a commit for each row would cost more than what it saves after a crash."""

BACKLOG: Final = 5
"""So many times the rows of a commit may wait for the disk before the rotation waits. That bounds the memory,
and how much is sent while another program holds the journal's write lock."""

BUSY: Final = 30.0
"""Seconds for which a commit waits for another program that holds the journal's write lock."""

BUSY_AT_END: Final = 5.0
"""The same for the last word of a run, for which the event loop waits."""

COMMITS: Final = 256
"""Commits after which the -wal is copied into the file: it has a few megabytes then."""

ROWS: Final = 20_000
"""Rows after which the same is done."""

AT_ONCE: Final = (64, 32, 16, 8, 4, 2, 1)
"""Rows of one statement, as many as there are: old SQLites take 999 values in one."""

_ACCOUNT: Final = 2  # the place of the account's id in the row of an outcome
_NAMED: Final = 5  # accounts that fit into a sentence
_MOST_NAMED: Final = 1_000  # accounts that are named in a message because no file can list them

_GONE: Final = "the file was deleted or replaced under way"

T = TypeVar("T")


class Insert:
    """
    An INSERT of which many rows are one statement.

    The interpreter's lock changes hands around each statement, while the event loop wants it: row by row, the
    thread took 3.9 us of the processor for an account, and takes 2.5 us with `AT_ONCE` of them.

    Args:
        into: The statement, up to its VALUES.
        values: Those of one row, in brackets.
        upsert: What to do with a row that is there already, after the VALUES.
    """

    def __init__(self, into: str, values: str, upsert: str = "") -> None:
        self.told: Final = {size: f"{into} VALUES {', '.join([values] * size)} {upsert}" for size in AT_ONCE}


class Writer:
    """Takes rows in the event loop, and commits them in a thread of its own."""

    def __init__(
        self, path: Path, connection: sqlite3.Connection, file: tuple[int, int], in_flight: int | None
    ) -> None:
        """
        Args:
            path: Where the journal lies.
            connection: Its database, to which nobody else writes from now on.
            file: Its device and inode.
            in_flight: Accounts in flight at once: half as many rows are committed together. None: `GATHERED`.
        """
        self._path = path
        self._connection = connection
        self._file = file
        self._enough: Final = GATHERED if in_flight is None else min(GATHERED, max(FEWEST, in_flight // 2))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._rows: list[tuple[str | Insert, tuple[Any, ...]]] = []
        self._waiting: list[asyncio.Future[None]] = []
        self._wake = threading.Event()
        self._due = threading.Event()  # do not gather more rows
        self._closing = False
        self._failure: str | None = None
        self._is_gone = False
        self._recorded = "an unknown number of accounts"
        self._lost: list[tuple[Any, ...]] = []
        self._commits = self._committed_rows = 0  # since the last checkpoint
        self._thread = threading.Thread(target=self._write, name="postpress-journal", daemon=True)
        connection.execute(f"PRAGMA busy_timeout = {BUSY * 1_000:.0f}")

    @property
    def is_behind(self) -> bool:
        return len(self._rows) > BACKLOG * self._enough

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
        if len(self._rows) >= self._enough and not self._due.is_set():
            self._due.set()

    def promise(self) -> asyncio.Future[None]:
        """Done when all that was put before is on the disk, or cannot be: see `check`."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        self._due.set()
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
            raise self._error(_named(self._lost))

    def _error(self, lost: str) -> JournalNotWritableError:
        if not self._is_gone:
            return JournalNotWritableError(
                f"{self._path}: {self._failure}; {lost}, and nothing more is sent. Free the "
                "disk or fix the file, then run the same command again"
            )
        return JournalNotWritableError(
            f"{self._path}: {self._failure}, so the journal is lost, with the outcomes of {self._recorded}; "
            f"{lost}, and nothing more is sent. Before the next run, put the file and its -wal back from "
            "where they were moved, or from a backup. Without them, a new journal would send these accounts "
            "again and order managed proxies twice: check the accounts, and leave out of the fleet those "
            "that are done"
        )

    def _lose_file(self) -> None:
        # SQLite still has the file open, so that it can count what nobody else can read.
        with suppress(sqlite3.Error):
            told = "SELECT count(*) FROM outcomes WHERE attempts > 0"
            self._recorded = _accounts(self._connection.execute(told).fetchone()[0])
        self._is_gone = True
        self._failure = _GONE  # last: the event loop looks at it

    async def finish(self) -> None:
        if self._loop is not None:
            self._closing = True
            self._due.set()
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
        if self._failure is not None:
            raise self._error(_listed(self._path, self._lost))

    def end_well(self) -> None:
        """Say that every account that was sent has its outcome on the disk."""
        if _identity(self._path) != self._file:
            self._lose_file()
            self.check()
        try:
            self._connection.execute(f"PRAGMA busy_timeout = {BUSY_AT_END * 1_000:.0f}")
            with self._connection:
                for sql in UNCOVER:
                    self._connection.execute(sql)
                self._connection.execute("DELETE FROM run WHERE name = 'under way'")
            # Somebody may still read it, and then nobody folds the -wal file in when this connection closes.
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            raise JournalNotWritableError(f"{self._path}: {error}; run the same command again") from None

    def close(self) -> None:
        """Let go of the file; the last connection to close folds the -wal file into it."""
        with suppress(sqlite3.Error):  # a checkpoint may have failed before it could say this
            delete_mark(self._connection)
        self._connection.close()

    def _write(self) -> None:
        while True:
            self._wake.wait()
            self._due.wait(COMMIT_EVERY)
            self._wake.clear()
            self._due.clear()
            closing = self._closing
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
        if _identity(self._path) != self._file:
            self._lost += [row for _, row in rows]
            self._lose_file()
            return
        try:
            with self._connection:
                for statement in dict.fromkeys(statement for statement, _ in rows):
                    _execute(self._connection, statement, [row for said, row in rows if said is statement])
        except Exception as error:  # SQLite's own, or a text that is none: the thread must live to tell
            self._lost += [row for _, row in rows]
            self._failure = str(error)
            return
        self._commits += 1
        self._committed_rows += len(rows)
        if self._commits >= COMMITS or self._committed_rows >= ROWS:
            self._checkpoint()

    def _checkpoint(self) -> None:
        self._commits = self._committed_rows = 0
        try:
            checkpoint(self._connection, "PASSIVE")
        except sqlite3.Error as error:
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
    """How many accounts are *lost*, and the first of them by name."""
    return _sentence(_ids(lost), _NAMED)


def _listed(path: Path, lost: list[tuple[Any, ...]]) -> str:
    """The same with all of them, in a file beside the journal at *path* if a sentence is too short."""
    ids = _ids(lost)
    if len(ids) <= _NAMED:
        return _sentence(ids, _NAMED)
    place = path.with_name(f"{path.name}-unrecorded.txt")
    try:
        with atomic_write(place) as file:
            file.write("".join(f"{account}\n" for account in ids).encode("utf-8", "backslashreplace"))
    except RotationError as error:
        return f"{_sentence(ids, _MOST_NAMED)} (there is no list of them: {error})"
    return f"{_sentence(ids, _NAMED)}; all of them are listed in {place}"


def _ids(lost: list[tuple[Any, ...]]) -> list[str]:
    return [row[_ACCOUNT] for row in lost if len(row) > _ACCOUNT]


def _sentence(accounts: list[str], most: int) -> str:
    if not accounts:
        return "nothing of an account is lost"
    names = ", ".join(accounts[:most])
    names += f" and {len(accounts) - most:,} more" if len(accounts) > most else ""
    return f"what came of {_accounts(len(accounts))} could not be recorded ({names})"


def _accounts(count: int) -> str:
    return "1 account" if count == 1 else f"{count:,} accounts"


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
