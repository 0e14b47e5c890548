"""
The journal: one SQLite file in which every account's end can be read, also after a crash.

Rows are handed to a thread of its own, which commits them in groups: a commit is a flush of the disk, and
one for each account would be slower than the API. A group is about half as many rows as are in flight, or
what came in 50 ms. What was sent and not yet committed when the process died is sent again by the next run,
under the same idempotency key. How far a run may have sent is there before it sends, so that the rows
beyond are in no doubt.
"""

import asyncio
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, Self, TypeAlias

from postpress_async.errors import JournalError
from postpress_async.rotation._outcome import Outcome, State
from postpress_async.rotation._row_digest import KnownInput
from postpress_async.rotation.journal._checkpoint import accept_log, checkpoint, refuse_lost_log
from postpress_async.rotation.journal._coverage import BEFORE_THE_RUN, SETTLED
from postpress_async.rotation.journal._file import (
    DAMAGE,
    REOPENED,
    claim,
    connect,
    lock,
    mark_under_way,
    permit_first,
    reach_of,
    refusal_of,
    reopen_failed,
)
from postpress_async.rotation.journal._input_check import Completion, check_input, check_pool, completion
from postpress_async.rotation.journal._lock import JournalFile
from postpress_async.rotation.journal._row_hashes import Changes, prepare
from postpress_async.rotation.journal._watermark import LEAST
from postpress_async.rotation.journal._watermark import Reach as Reach
from postpress_async.rotation.journal._writer import Insert, Writer

_OTHERS: Final = (
    "line account_id state status error_type scope applied instance elapsed settled_at proxy".split()
)
# The latest outcome of an account counts, and the attempts of all runs.
_LATEST: Final = "ON CONFLICT (ordinal) DO UPDATE SET attempts = attempts + excluded.attempts, " + ", ".join(
    f"{name} = excluded.{name}" for name in _OTHERS
)
OUTCOME: Final = Insert("INSERT INTO outcomes", f"({', '.join('?' * 13)})", _LATEST)
_PATCHED: Final = Insert(
    "INSERT INTO outcomes (ordinal, line, account_id, attempts, elapsed, settled_at, proxy, state, status)",
    "(?, ?, ?, ?, ?, ?, ?, 'patched', 200)",
    _LATEST,
)  # most are, and then half of the columns say nothing
_GENERATION: Final = "INSERT OR REPLACE INTO generations VALUES (?, ?)"
_REOPEN: Final = f"UPDATE outcomes SET state = {REOPENED} WHERE state = 'failed' AND error_type = ?"  # noqa: S608
_NOTE: Final = "INSERT OR REPLACE INTO run VALUES (?, ?)"
_TOTAL: Final = """
    INSERT INTO run VALUES ('total', ?) ON CONFLICT DO UPDATE SET value = max(value, excluded.value)
"""  # another input, shorter and refused only at its first row, must not make this one shorter
_PROXY: Final = """
INSERT INTO proxies VALUES (?, 1, ?) ON CONFLICT (label)
DO UPDATE SET failures = failures + 1, quarantined_at = coalesce(excluded.quarantined_at, quarantined_at)
"""
_COMMAND_NOTES: Final = ("command", "retry command", "folder")
_CHUNK: Final = 4_096
_BLOCKS: Final = 256  # of hashes, each of which has up to 16 KiB
_MOST: Final = 2**31  # accounts of a rotation: far more than one journal can serve
_IS_PATCHED: Final = State.PATCHED
_IS_UNKNOWN: Final = State.UNKNOWN
_STATES: Final = frozenset(State)

OnUnknown: TypeAlias = Literal["retry", "report"]
OnFailed: TypeAlias = Literal["report", "retry"]

# An unknown outcome is left to the operator if it is only to be reported.
DONE: Final[dict[OnUnknown, str]] = {
    "retry": "state IN ('patched', 'failed')",
    "report": "state IN ('patched', 'failed', 'unknown')",
}


def done_if(on_unknown: OnUnknown, on_failed: OnFailed) -> str:
    """In SQL: which accounts a run would leave as they are, before it has begun."""
    if on_failed == "report":
        return DONE[on_unknown]
    # What may have been applied is left to the operator with "report", also if it failed.
    reopened = "state = 'failed'" if on_unknown == "retry" else "state = 'failed' AND applied = 'no'"
    return f"{DONE[on_unknown]} AND NOT ({reopened})"


class Journal:
    """
    One rotation's memory on disk; made by `open`, closed by `aclose`.

    Attributes:
        path: Where it lies.
        run: The name of the rotation, the same in every run on this journal.
        resumed: Whether an earlier run began it.
        same_input: Whether it was begun with the rows of this very input.
        completed: Whether nothing is left to be sent, and since when; None if something is.
        by_row: Whether rows are to be compared one by one with those of earlier runs.
        doubtful: The ordinal before which rows that it has no word of may have been sent.
        reach: How far this run may send.
        leaves_doubts: Whether accounts that may have been sent are left to the operator.
    """

    def __init__(
        self,
        path: Path,
        connection: sqlite3.Connection,
        reader: sqlite3.Connection,
        lock: JournalFile,
        *,
        resumed: bool,
        same_input: bool,
        by_row: bool,
        completed: Completion | None,
        doubtful: float,
        on_unknown: OnUnknown,
        in_flight: int | None,
    ) -> None:
        self.path: Final = path
        self.resumed: Final = resumed
        self.same_input: Final = same_input
        self.completed: Final = completed
        self.by_row: Final = by_row
        self.doubtful: Final = doubtful
        self.leaves_doubts: Final = on_unknown == "report"
        self._done: Final = DONE[on_unknown]
        self._lock: Final = lock
        self._writer: Final = Writer(path, connection, lock.inode, in_flight)
        self.reach: Final = Reach(self._writer, reach_of(connection), max(LEAST, in_flight or 0))
        # Reads have a connection of their own: the other one is the writer thread's.
        self._reader: Final = reader
        told = self._reader.execute("SELECT value FROM run WHERE name = 'run'")
        self.run: Final[str] = told.fetchone()[0]

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        digest: bytes | None = None,
        target: str | None = None,
        on_unknown: OnUnknown = "retry",
        on_failed: OnFailed = "report",
        in_flight: int | None = None,
        rows: KnownInput | None = None,
        by_row: bool = False,
        pool: bytes | None = None,
        total: int | None = None,
    ) -> Self:
        """
        The journal at *path*, made if there is none, for the input with this *digest* and this *target*.

        Args:
            path: Where it lies, or is to lie.
            digest: Of the input's bytes; None if it has none.
            target: Where the requests go.
            on_unknown: Whether accounts whose outcome is unknown are sent again, or done.
            on_failed: Whether accounts that failed are done, or sent again, under fresh keys.
            in_flight: Accounts that are in flight at once, by which commits are sized; None if not known.
            rows: The input, if it can be read again: it is known by its rows, whatever its bytes are.
            by_row: Whether its rows are compared one by one, by `changes`.
            pool: The pool's digest, empty without a pool: it must be the same once all accounts are done,
                unless those that failed are sent again. None to compare none.
            total: Rows of the input; None if it is not known.

        Raises:
            JournalNotWritableError: It cannot be written, or is another run's.
            JournalError: It is another input's or target's, lacks its -wal, or is no journal.
        """
        place = Path(path)
        with ExitStack() as stack:
            file = claim(place)
            assert file is not None  # noqa: S101 - it was made
            stack.callback(file.close)
            lock(place, file)
            try:
                refuse_lost_log(place)
                connection, fresh = connect(place)
                stack.callback(connection.close)
                accept_log(connection)
                same = check_input(place, connection, digest, target, rows, by_row=by_row)
                completed = completion(connection, done_if(on_unknown, on_failed), total)
                if pool is not None and on_failed == "report":
                    check_pool(place, connection, pool, completed=completed)
                by_row = prepare(connection) or by_row
                doubtful = mark_under_way(connection)
                if on_failed == "retry":
                    reopen_failed(connection)
                permit_first(connection)
                checkpoint(connection, "FULL")  # before anything is sent
                reader = stack.enter_context(closing(sqlite3.connect(place)))
                made = cls(
                    place,
                    connection,
                    reader,
                    file,
                    resumed=not fresh,
                    same_input=same,
                    by_row=by_row and not same,
                    completed=completed,
                    doubtful=doubtful,
                    on_unknown=on_unknown,
                    in_flight=in_flight,
                )
            except DAMAGE as error:
                raise refusal_of(place, error) from None
            stack.pop_all()
            return made

    def counts(self) -> Counter[State]:
        """How many accounts stand where, as committed."""
        return self._counted("SELECT state, count(*) FROM outcomes GROUP BY state")

    def done_counts(self) -> Counter[State]:
        """The same for the accounts that this run leaves as they are."""
        told = f"FROM {BEFORE_THE_RUN} WHERE {self._done} GROUP BY state"
        return self._counted(f"SELECT state, count(*) {told}")

    def done(self) -> bytes:
        """
        For each ordinal up to the last that is done: 1 where it is, 0 where not. A byte each.

        Raises:
            JournalError: The journal is damaged.
        """
        told = f"FROM {BEFORE_THE_RUN} WHERE {self._done}"
        [(first, last)] = self._asked(f"SELECT min(ordinal), max(ordinal) {told}")
        if first is None:
            return b""
        if first < 0 or last > _MOST:
            raise JournalError(f"{self.path} is damaged (a number that is none): name another journal")
        marks = bytearray(last + 1)
        for (ordinal,) in self._told(f"SELECT ordinal {told}"):
            marks[ordinal] = 1
        return bytes(marks)

    def entries(self, *, but_done: bool = False) -> Iterator[tuple[int, tuple[str, State, bool, bool]]]:
        """
        By ordinal and in its order: the account, its state, whether it was sent, and whether it is done.

        Done is what this run leaves as it is; with *but_done*, that does not come. Read in pieces of
        bounded size.
        """
        which = f"NOT {self._done} AND" if but_done else ""
        told = (
            f"SELECT ordinal, account_id, state, attempts > 0, {self._done} FROM {BEFORE_THE_RUN} "  # noqa: S608 - no text of others
            f"WHERE {which} ordinal > ? ORDER BY ordinal LIMIT {_CHUNK}"
        )
        for ordinal, account_id, state, sent, done in self._in_pieces(told):
            yield ordinal, (account_id, self._state(state), bool(sent), bool(done))

    def generations(self) -> Iterator[tuple[int, int]]:
        """By ordinal and in its order: how many idempotency keys an account has used up."""
        return self._in_pieces(f"SELECT * FROM generations WHERE ordinal > ? ORDER BY ordinal LIMIT {_CHUNK}")  # noqa: S608

    def changes(self) -> Changes:
        """What compares rows, from the first, with those that earlier runs took."""
        [(key,)] = self._asked("SELECT value FROM run WHERE name = 'key'")
        sql = f"SELECT * FROM changes WHERE first > ? ORDER BY first LIMIT {_BLOCKS}"  # noqa: S608
        return Changes(self.path, self._writer, key, self._in_pieces(sql))

    def proxies(self) -> dict[str, int]:
        """For each label of a proxy: how many accounts have it, or may have it, and are left as they are."""
        # One that is sent again gets another: with a place at both, a full pool would have none for it.
        told = f"SELECT proxy, count(*) FROM {BEFORE_THE_RUN} WHERE proxy NOT NULL AND {self._done} AND "  # noqa: S608
        return dict(self._asked(f"{told} state IN ('patched', 'unknown') GROUP BY proxy"))

    def _counted(self, told: str) -> Counter[State]:
        return Counter({self._state(state): count for state, count in self._asked(told)})

    def _state(self, name: str) -> State:
        if name not in _STATES:
            raise JournalError(f"{self.path} is damaged (a state that is none): name another journal")
        return State(name)

    def _in_pieces(self, told: str) -> Iterator[Any]:
        last = -1
        while rows := self._asked(told, last):
            yield from rows
            last = rows[-1][0]

    def _asked(self, told: str, *values: object) -> list[Any]:
        return list(self._told(told, *values))

    def _told(self, told: str, *values: object) -> Iterator[Any]:
        try:
            yield from self._reader.execute(told, values)
        except DAMAGE as error:
            raise refusal_of(self.path, error) from None

    def record(self, outcome: Outcome) -> None:
        """
        Take *outcome* for the next commit.

        Raises:
            JournalNotWritableError: An earlier commit failed: nothing more can be recorded.
        """
        if outcome.state is not _IS_PATCHED:
            self._writer.put(OUTCOME, row_of(outcome))
            if outcome.state is _IS_UNKNOWN:
                self._writer.put(SETTLED, (outcome.ordinal,))
            return
        row = (
            outcome.ordinal,
            outcome.line,
            outcome.account_id,
            outcome.attempts,
            outcome.elapsed,
            outcome.settled_at,
            outcome.proxy,
        )
        self._writer.put(_PATCHED, row)

    def proxy_failed(self, label: str, *, quarantined: bool) -> None:
        """Take for the next commit that the pool's proxy of this label failed an account."""
        self._writer.put(_PROXY, (label, time.time() if quarantined else None))

    def begin(self, total: int | None, notes: Mapping[str, str] = MappingProxyType({})) -> None:
        """
        Note when the rotation first began, and of how many accounts; that no run has halted yet.

        Args:
            total: How many accounts there are; None if that is not known.
            notes: For a run from the command line: the ``command``, its ``folder``, and the ``retry command``
                for what fails. None of them may hold a secret.
        """
        self._writer.put("INSERT OR IGNORE INTO run VALUES ('began', ?)", (time.time(),))
        self._writer.put("DELETE FROM run WHERE name = ?", ("halted",))
        self._writer.put(_NOTE, ("on unknown", "report" if self.leaves_doubts else "retry"))
        if total is not None:
            self._writer.put(_TOTAL, (total,))
        # A run from Python has none, and those of the run before would not repeat it.
        for name in _COMMAND_NOTES:
            self._writer.put("DELETE FROM run WHERE name = ?", (name,))
        for note in notes.items():
            self._writer.put(_NOTE, note)

    def halted(self, reason: str) -> None:
        """Note why the run stopped by itself."""
        self._writer.put(_NOTE, ("halted", reason))

    def reopen(self, error_type: str) -> None:
        """Take every account that failed with *error_type* for one that was not sent, at the next commit."""
        self._writer.put(_REOPEN, (error_type,))

    @property
    def is_behind(self) -> bool:
        """Whether so many rows wait for the disk that no more should come."""
        return self._writer.is_behind

    async def room(self) -> None:
        """Return once the disk is not far behind."""
        if self._writer.is_behind:
            await self._writer.committed()

    async def keep_generation(self, ordinal: int, generation: int) -> None:
        """Return when it is on the disk that *ordinal* goes on under this generation of keys."""
        self._writer.put(_GENERATION, (ordinal, generation))
        await self._writer.committed()

    async def aclose(self) -> None:
        """
        Commit what is waiting, and close.

        Raises:
            JournalNotWritableError: It could not be committed.
        """
        try:
            await self._writer.finish()
            self._writer.end_well()
        except asyncio.CancelledError:
            if not self._writer.has_failed:
                self._writer.end_well()  # its thread has ended all the same, after its last commit
            raise
        finally:
            self._reader.close()
            self._writer.close()
            self._lock.close()


def row_of(outcome: Outcome) -> tuple[Any, ...]:
    """What `OUTCOME` puts into the table."""
    return (
        outcome.ordinal,
        outcome.line,
        outcome.account_id,
        outcome.state,
        outcome.attempts,
        outcome.status,
        outcome.error_type,
        outcome.scope,
        outcome.applied,
        outcome.instance,
        outcome.elapsed,
        outcome.settled_at,
        outcome.proxy,
    )
