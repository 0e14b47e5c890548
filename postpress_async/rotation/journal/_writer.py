"""The thread that commits a journal's rows in groups."""

import asyncio
import concurrent.futures.thread  # noqa: F401 # pyright: ignore[reportUnusedImport] # see `finish`
import sqlite3
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

from postpress_async._fields import counted
from postpress_async.errors import JournalNotWritableError, RotationError
from postpress_async.rotation._atomic_write import atomic_write
from postpress_async.rotation.journal._database import accept, checkpoint
from postpress_async.rotation.journal._recovery import end_run

COMMIT_EVERY: Final = 0.05  # seconds for which rows are gathered, because each commit flushes the disk
# A commit starts earlier if half as many rows as accounts in flight wait, but within these bounds. Smaller
# commits would cost more than they save after a crash.
MAX_ROWS: Final = 1_000
MIN_ROWS: Final = 16
# Number of full commits whose rows may wait for the disk before the rotation waits. This bounds memory use,
# and what is sent while another program holds the journal's write lock.
BACKLOG: Final = 5
BUSY_TIMEOUT: Final = 30.0  # seconds that a commit waits for another program's write lock on the journal
BUSY_TIMEOUT_AT_END: Final = 5.0  # the same for the end of a run, which blocks the event loop
# Commits or rows after which the -wal, by then a few megabytes, is copied into the journal.
COMMITS_PER_CHECKPOINT: Final = 256
ROWS_PER_CHECKPOINT: Final = 20_000
ROWS_PER_STATEMENT: Final = (64, 32, 16, 8, 4, 2, 1)  # old versions of SQLite allow 999 values in one INSERT

_FREE_DISK: Final = "Free the disk or fix the file, then run the same command again"
_PUT_BACK: Final = (
    "Before the next run, put the file and its -wal back from where they were moved, or from a backup. "
    "Without them, a new journal would send these accounts again and order managed proxies twice: check the "
    "accounts, and remove from the fleet those that are done"
)
_ACCOUNT: Final = 2  # index of the account id in the row of an outcome
_MAX_NAMED: Final = 5  # accounts that a message names; more are listed in a file
_MAX_NAMED_WITHOUT_FILE: Final = 1_000  # accounts that a message names if that file cannot be written

T = TypeVar("T")


class Insert:
    """
    An INSERT statement that takes many rows at once.

    The thread releases and acquires the interpreter's lock for each statement, and competes with the event
    loop for it. With one row per statement, it took 3.9 us of CPU time per account; with
    `ROWS_PER_STATEMENT`, 2.5.
    """

    def __init__(self, into: str, values: str, upsert: str) -> None:
        """*values* are the placeholders of one row, in brackets."""
        self.sql: Final = {
            size: f"{into} VALUES {', '.join([values] * size)} {upsert}" for size in ROWS_PER_STATEMENT
        }


_Row: TypeAlias = tuple[Any, ...]


class Writer:
    """Takes rows from the event loop, and commits them in a thread."""

    def __init__(
        self, path: Path, connection: sqlite3.Connection, inode: tuple[int, int], in_flight: int | None
    ) -> None:
        """Take over the *connection*: nothing else in this process may write to the journal from now on."""
        self._path = path
        self._connection = connection
        self._inode = inode
        rows_per_commit = MAX_ROWS if in_flight is None else max(MIN_ROWS, in_flight // 2)
        self._rows_per_commit: Final = min(MAX_ROWS, rows_per_commit)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._rows: list[tuple[str | Insert, _Row]] = []
        self._waiting: list[asyncio.Future[None]] = []
        self._wake = threading.Event()
        self._due = threading.Event()  # commit now, without gathering more rows
        self._closing = False
        self._failure: tuple[str, str] | None = None  # why a commit failed, and the next step
        self._lost: list[str] = []  # accounts whose outcomes could not be recorded
        self._commits = self._committed_rows = 0  # since the last checkpoint
        self._thread = threading.Thread(target=self._write, name="postpress-journal", daemon=True)
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT * 1_000:.0f}")

    @property
    def is_behind(self) -> bool:
        return len(self._rows) > BACKLOG * self._rows_per_commit

    def put(self, statement: str | Insert, row: _Row) -> None:
        """
        Add a row to the next commit. The third value of an outcome must be the account id.

        In a commit, each statement runs once for all its rows; the statements run in the order of their first
        rows. If a commit has failed, the row is counted as lost and `JournalNotWritableError` is raised.
        """
        if self._failure is not None:
            self._lose([row])
            self.check()
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._thread.start()
        self._rows.append((statement, row))
        if not self._wake.is_set():  # cheaper than setting it again, which takes two locks
            self._wake.set()
        if len(self._rows) >= self._rows_per_commit and not self._due.is_set():
            self._due.set()

    def flush(self) -> asyncio.Future[None]:
        """Return a future that is done after the commit of all rows so far; then call `check`."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        self._due.set()
        self._wake.set()
        return done

    async def committed(self) -> None:
        """Return when all rows so far are on disk; raise `JournalNotWritableError` if this fails."""
        await self.flush()
        self.check()

    @property
    def has_failed(self) -> bool:
        return self._failure is not None  # no further commit follows then

    def check(self) -> None:
        if self._failure is not None:
            raise self._error(_sentence(self._lost, _MAX_NAMED))

    def _error(self, lost: str) -> JournalNotWritableError:
        fact, advice = self._failure or ("", "")
        return JournalNotWritableError(f"{self._path}: {fact}; {lost}, and nothing more is sent. {advice}")

    def _lose(self, rows: Iterable[_Row]) -> None:
        self._lost += [row[_ACCOUNT] for row in rows if len(row) > _ACCOUNT]

    def _check_file(self) -> None:
        # SQLite would still write to a deleted file, and nobody could read it.
        if self._failure is not None or _identity(self._path) == self._inode:
            return
        recorded = "an unknown number of accounts"
        with suppress(sqlite3.Error):
            [(count,)] = self._connection.execute("SELECT count(*) FROM latest WHERE attempts > 0")
            recorded = counted(count, "account")
        fact = "the file was deleted or replaced under way, so the journal is lost, with the outcomes of"
        self._failure = f"{fact} {recorded}", _PUT_BACK

    async def finish(self) -> None:
        """Commit all rows and end the thread, even if this task is cancelled meanwhile."""
        if self._loop is not None:
            self._closing = True
            self._due.set()
            self._wake.set()
            # `to_thread` needs `concurrent.futures.thread`. It is imported above, because an import would
            # fail here if the process had no file descriptor left.
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

    def end_run(self, *, interrupted: bool) -> None:
        """Record the end of the run; *interrupted* if it was stopped before its last account."""
        self._check_file()
        self.check()
        try:
            self._connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_AT_END * 1_000:.0f}")
            end_run(self._connection, interrupted=interrupted)
            # Closing this connection does not copy the -wal into the file while someone reads the file.
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            raise JournalNotWritableError(f"{self._path}: {error}; run the same command again") from None

    def close(self) -> None:
        """Close the connection. SQLite copies the -wal into the file when the last connection is closed."""
        with suppress(sqlite3.Error):  # a checkpoint that failed may have left its mark
            accept(self._connection)
        self._connection.close()

    def _write(self) -> None:
        while True:
            self._wake.wait()
            self._due.wait(COMMIT_EVERY)
            self._wake.clear()
            self._due.clear()
            closing = self._closing
            # First the futures, then the rows: so the commit contains the rows of every future.
            waiting = _drain(self._waiting)
            self._commit(_drain(self._rows))
            assert self._loop is not None  # noqa: S101 - the thread starts after it is set
            if waiting:
                with suppress(RuntimeError):  # the loop is closed, so no task waits any more
                    self._loop.call_soon_threadsafe(_set_done, waiting)
            if closing and not self._rows:
                return

    def _commit(self, rows: list[tuple[str | Insert, _Row]]) -> None:
        if not rows:
            return
        self._check_file()
        if self._failure is not None:  # the file is gone, or an earlier commit failed
            self._lose(row for _, row in rows)
            return
        try:
            with self._connection:
                for statement in dict.fromkeys(statement for statement, _ in rows):
                    _execute(self._connection, statement, [row for other, row in rows if other is statement])
        except Exception as error:  # SQLite error or invalid text; the thread must survive to report it
            self._lose(row for _, row in rows)
            self._failure = str(error), _FREE_DISK
            return
        self._commits += 1
        self._committed_rows += len(rows)
        if self._commits >= COMMITS_PER_CHECKPOINT or self._committed_rows >= ROWS_PER_CHECKPOINT:
            self._commits = self._committed_rows = 0
            try:
                checkpoint(self._connection, "PASSIVE")
            except sqlite3.Error as error:
                self._failure = str(error), _FREE_DISK


def _execute(connection: sqlite3.Connection, statement: str | Insert, rows: list[_Row]) -> None:
    if isinstance(statement, str):
        connection.executemany(statement, rows)
        return
    done = 0
    for size, sql in statement.sql.items():
        while len(rows) - done >= size:
            connection.execute(sql, [value for row in rows[done : done + size] for value in row])
            done += size


def _listed(path: Path, accounts: list[str]) -> str:
    """Return a sentence about lost *accounts*; if there are many, list them in a file beside the journal."""
    if len(accounts) <= _MAX_NAMED:
        return _sentence(accounts, _MAX_NAMED)
    path = path.with_name(f"{path.name}-unrecorded.txt")
    try:
        with atomic_write(path) as file:
            file.write("".join(f"{account}\n" for account in accounts).encode("utf-8", "backslashreplace"))
    except RotationError as error:
        return f"{_sentence(accounts, _MAX_NAMED_WITHOUT_FILE)} (there is no list of them: {error})"
    return f"{_sentence(accounts, _MAX_NAMED)}; all of them are listed in {path}"


def _sentence(accounts: list[str], max_named: int) -> str:
    if not accounts:
        return "no outcome of an account is lost"
    names = ", ".join(accounts[:max_named])
    if len(accounts) > max_named:
        names += f" and {len(accounts) - max_named:,} more"
    return f"the outcome of {counted(len(accounts), 'account')} could not be recorded ({names})"


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _drain(queue: list[T]) -> list[T]:
    # The list is emptied, not replaced, because the event loop may be about to append to it.
    items = queue[:]
    del queue[: len(items)]
    return items


def _set_done(waiting: list[asyncio.Future[None]]) -> None:
    for done in waiting:
        if not done.done():
            done.set_result(None)
