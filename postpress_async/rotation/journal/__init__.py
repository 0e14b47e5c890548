"""
The journal: one SQLite file that has every account's outcome, also after a crash.

A thread commits rows in groups, because a commit flushes the disk and one for each account would be slower
than the API. A group has about half as many rows as are in flight, or the rows of 50 ms. Rows that were sent
and not committed when the process died are sent again by the next run, under the same idempotency keys. A
watermark written ahead of sending bounds the rows in doubt.
"""

import asyncio
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Self

from postpress_async.errors import JournalError
from postpress_async.rotation._outcome import KEY_LIFETIME, Outcome, State
from postpress_async.rotation._pool._allocator import Quarantine
from postpress_async.rotation.journal._database import (
    DAMAGE,
    FIRST_WATERMARK,
    add_start,
    checkpoint,
    connect,
    damage_error,
    read_run,
    refuse_lost_log,
    set_fact,
    starts_of,
)
from postpress_async.rotation.journal._edited_input import take
from postpress_async.rotation.journal._file import lock, open_file
from postpress_async.rotation.journal._input_check import InputCheck, RunRequest, check, of_input
from postpress_async.rotation.journal._reading import CHUNK, JournalReader
from postpress_async.rotation.journal._recovery import (
    BEFORE_THE_RUN,
    DISCARD_COVERED,
    DONE,
    REOPEN_FAILED,
    begin_run,
    read_doubts,
    read_watermark,
    start_run,
)
from postpress_async.rotation.journal._row_hashes import RowHashes
from postpress_async.rotation.journal._schema import CURRENT_RUN, OUTCOME_COLUMNS
from postpress_async.rotation.journal._watermark import SendWatermark
from postpress_async.rotation.journal._writer import Insert, Writer

_COLUMNS: Final = OUTCOME_COLUMNS.split()
OUTCOME: Final = Insert(
    f"INSERT INTO outcomes ({', '.join(_COLUMNS)}, run)",
    f"({', '.join('?' * len(_COLUMNS))}, ?)",
    "ON CONFLICT (run, ordinal) DO UPDATE SET attempts = attempts + excluded.attempts, "
    + ", ".join(f"{name} = excluded.{name}" for name in _COLUMNS if name not in {"ordinal", "attempts"}),
)
"""The latest outcome of an account replaces the one before; attempts are those of all runs."""
row_of: Final["attrgetter[tuple[Any, ...]]"] = attrgetter(*_COLUMNS)  # the values of `OUTCOME`
_GENERATION: Final = """
INSERT INTO generations (ordinal, generation) VALUES (?, ?)
ON CONFLICT (ordinal) DO UPDATE SET generation = excluded.generation
"""
_REOPEN: Final = f"{REOPEN_FAILED} AND error_type = ?"
# Another input may follow one of which nothing was sent.
_TOTAL: Final = f"""
    UPDATE runs SET total = max(iif(EXISTS (SELECT 1 FROM latest), coalesce(total, 0), 0), ?)
    WHERE id = {CURRENT_RUN}
"""
_BEGAN: Final = f"UPDATE runs SET began = coalesce(began, ?) WHERE id = {CURRENT_RUN}"
_PROXY: Final = """
INSERT INTO proxies (label, failures, quarantined_at, probe_at) VALUES (?, ?, ?, ?) ON CONFLICT (label) DO
UPDATE SET failures = failures + excluded.failures, quarantined_at = excluded.quarantined_at,
probe_at = excluded.probe_at
"""
_COMMAND_NOTES: Final = ("command", "retry_command", "folder")
_BLOCKS: Final = 256  # blocks of hashes per query, each up to 16 KiB
_MOST_ACCOUNTS: Final = 2**31  # a larger ordinal is damage
_STATES: Final = frozenset(State)


class Journal:
    """The journal (a checkpoint file) of a rotation; made by `open`, closed by `aclose`."""

    def __init__(
        self, path: Path, request: RunRequest, *, in_flight: int | None, key_lifetime: float
    ) -> None:
        """Use `open`."""
        self.path: Final = path
        # Whether accounts that may have been sent are not sent again, but reported.
        self.leaves_doubts: Final = request.on_unknown == "report"
        # Unix time before which a request's idempotency key may be forgotten.
        self.keys_expired_before: Final = time.time() - key_lifetime
        self._done: Final = DONE[request.on_unknown]
        self._outside: Final = {} if request.selection is None else request.selection.outside
        self._interrupted = False
        with ExitStack() as stack:
            file = open_file(path)
            assert file is not None  # noqa: S101 - it is created
            self._lock: Final = stack.enter_context(closing(file))
            lock(path, file)
            try:
                refuse_lost_log(path)
                connection, created = connect(path)
                stack.callback(connection.close)
                self.check: Final = check(path, connection, request)
                _start(connection, request, self.check, created=created)
                # Nothing is sent if the run is left alone.
                is_sent, in_doubt_below = self.check.next_run_at is None, 0.0
                if is_sent:
                    in_doubt_below = begin_run(connection, retry_failed=request.on_failed == "retry")
                checkpoint(connection, "FULL")  # before anything is sent
                # The writer thread uses the other connection.
                self._reader: Final = stack.enter_context(JournalReader(path))
                run = read_run(connection)
                has_hashes = connection.execute("SELECT 1 FROM changes LIMIT 1").fetchone() is not None
                self._starts: Final = starts_of(run.get("starts"))
                self._doubts: Final = read_doubts(run)
                self.watermark: Final = SendWatermark(
                    Writer(path, connection, self._lock.inode, in_flight),
                    read_watermark(run),
                    max(FIRST_WATERMARK, in_flight or 0),
                )
            except DAMAGE as error:
                raise damage_error(path, error) from None
            stack.pop_all()
        self._writer: Final = self.watermark.writer
        self.resumed: Final = not created and not self.check.starts_run
        # Whether rows are to be compared one by one with those of earlier runs.
        self.by_row: Final = (
            not self.check.same_input and is_sent and (request.by_row or (has_hashes and self.resumed))
        )
        # The ordinal below which rows without an outcome may have been sent.
        self.in_doubt_below: Final = in_doubt_below
        self.run: Final[str] = run["token"]  # start of its idempotency keys
        self.number: Final[int] = run["id"]  # from 1
        self._of_input: Final = of_input(run)
        self._began: Final = float(run.get("began") or 0)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        in_flight: int | None = None,
        key_lifetime: float = KEY_LIFETIME,
        **request: Any,
    ) -> Self:
        """
        Open the journal at *path*, or create it, for one run.

        Args:
            path: Path of the file.
            in_flight: Number of accounts in flight at once, which sizes the commits; None if not known.
            key_lifetime: Seconds for which the API knows an idempotency key.
            request: Attributes of a `RunRequest`.

        Raises:
            JournalNotWritableError: The file cannot be written, or another run has it open.
            JournalError: The file is not a journal, has another input, target or API key, or lacks its -wal.
        """
        return cls(Path(path), RunRequest(**request), in_flight=in_flight, key_lifetime=key_lifetime)

    def done_counts(self) -> Counter[State]:
        """Number of accounts of the input that this run leaves as they are, by state."""
        rows = f"{BEFORE_THE_RUN} WHERE {self._done} AND {self._of_input}"
        counts = self._reader.ask(f"SELECT state, count(*) FROM {rows} GROUP BY state")
        return Counter({self._state(state): count for state, count in counts})

    def done(self) -> bytes:
        """A byte for each ordinal up to the last account that is done: 1 if done, otherwise 0."""
        rows = f"FROM {BEFORE_THE_RUN} WHERE {self._done}"
        [(first, last)] = self._reader.ask(f"SELECT min(ordinal), max(ordinal) {rows}")
        if first is None:
            return b""
        if first < 0 or last > _MOST_ACCOUNTS:
            raise JournalError(f"{self.path} is damaged (an invalid ordinal): name another journal")
        marks = bytearray(last + 1)
        for (ordinal,) in self._reader.stream(f"SELECT ordinal {rows}"):
            marks[ordinal] = 1
        return bytes(marks)

    def in_doubt_since(self, ordinal: int) -> float:
        """Unix time until which a killed run may have sent a row without an outcome."""
        return min((last for below, last in self._doubts if ordinal < below), default=self._began)

    def entries(
        self, *, but_done: bool = False
    ) -> Iterator[tuple[int, tuple[str, State, bool, bool, float]]]:
        """
        Yield for each ordinal: the account, its state, whether it was sent, whether it is left, and the time.

        With *but_done*, without the accounts that this run leaves as they are.
        """
        condition = f"NOT {self._done} AND" if but_done else ""
        sql = (
            f"SELECT ordinal, account_id, state, attempts > 0, {self._done}, settled_at "
            f"FROM {BEFORE_THE_RUN} WHERE {condition} ordinal > ? ORDER BY ordinal LIMIT {CHUNK}"
        )
        for ordinal, account_id, state, sent, done, settled_at in self._reader.in_chunks(sql):
            yield ordinal, (account_id, self._state(state), bool(sent), bool(done), settled_at)

    def generations(self) -> Iterator[tuple[int, tuple[int, str | None]]]:
        """Yield for each ordinal how many idempotency keys the account has used up, and how they begin."""
        sql = f"SELECT * FROM generations WHERE ordinal > ? ORDER BY ordinal LIMIT {CHUNK}"
        for ordinal, generation, key in self._reader.in_chunks(sql):
            yield ordinal, (generation, key)

    def row_hashes(self) -> RowHashes:
        """An object that compares rows, from the first, with those that earlier runs took."""
        [(key,)] = self._reader.ask("SELECT value FROM run WHERE name = 'key'")
        sql = f"SELECT * FROM changes WHERE first > ? ORDER BY first LIMIT {_BLOCKS}"
        return RowHashes(self.path, self._writer, key, self._reader.in_chunks(sql))

    def proxies(self) -> dict[str, int]:
        """Number of accounts by label of a proxy that they may have, without those that are sent again."""
        # An account that is sent again gets another proxy. If its old one counted, the pool could be full.
        sql = (
            f"SELECT assignment, count(*) FROM {BEFORE_THE_RUN} WHERE assignment NOT NULL AND {self._done} "
            "AND state IN ('patched', 'unknown') GROUP BY assignment"
        )
        return Counter(dict(self._reader.ask(sql))) + Counter(self._outside)

    def quarantines(self) -> dict[str, tuple[float, float | None]]:
        """Unix times at which a proxy's quarantine began and, if known, of its next probe; by label."""
        sql = "SELECT label, quarantined_at, probe_at FROM proxies WHERE quarantined_at NOT NULL"
        return {label: (began, probe_at) for label, began, probe_at in self._reader.ask(sql)}

    def _state(self, name: str) -> State:
        if name not in _STATES:
            raise JournalError(f"{self.path} is damaged (an invalid state): name another journal")
        return State(name)

    def record(self, outcome: Outcome) -> None:
        """Add *outcome* to the next commit; raise `JournalNotWritableError` if an earlier one failed."""
        self._writer.put(OUTCOME, (*row_of(outcome), self.number))
        if outcome.state is State.UNKNOWN:
            self._writer.put(DISCARD_COVERED, (outcome.ordinal,))

    def record_proxy(self, label: str, quarantine: Quarantine | None, *, failed: bool) -> None:
        """Add to the next commit the quarantine of a pool's proxy, and whether it has failed an account."""
        began, probe_at = (quarantine.began, quarantine.probe_at) if quarantine else (None, None)
        self._writer.put(_PROXY, (label, int(failed), began, probe_at))

    def begin(self, total: int | None, notes: Mapping[str, str] = MappingProxyType({})) -> None:
        """
        Record who started or resumed the run, its number of accounts if known, and that it has not halted.

        The *notes* are ``command``, ``folder`` and ``retry_command`` of the command line, without secrets.
        """
        if self.check.next_run_at is not None:
            return
        self._writer.put(_BEGAN, (began := time.time(),))
        # A run from Python has no notes, and those of the run before would not repeat it.
        # SQLite stores UTF-8, and the name of a file may be other bytes.
        notes = {name: note.encode("utf-8", "backslashreplace").decode() for name, note in notes.items()}
        facts = {name: notes.get(name) for name in _COMMAND_NOTES} | {
            "halted": None,
            "on_unknown": "report" if self.leaves_doubts else "retry",
            "starts": add_start(self._starts, began, notes.get("command")),
        }
        for name, value in facts.items():
            self._writer.put(set_fact(name), (value,))
        self.take(total)

    def take(self, total: int | None) -> None:
        """Record the number of accounts; None if it is not known."""
        if total is not None:
            self._writer.put(_TOTAL, (total,))

    def halted(self, reason: str) -> None:
        """Record why the run stopped by itself."""
        self._writer.put(set_fact("halted"), (reason,))

    def interrupted(self) -> None:
        """Record that the run was stopped before its last account."""
        self._interrupted = True

    def reopen(self, error_type: str) -> None:
        """With the next commit, treat every account that failed with *error_type* as not sent."""
        self._writer.put(_REOPEN, (error_type,))

    async def room(self) -> None:
        """Wait until the disk is not far behind."""
        if self._writer.is_behind:
            await self._writer.committed()

    async def keep_generation(self, ordinal: int, generation: int) -> None:
        """Return when it is on disk that *ordinal* continues with this generation of its idempotency key."""
        self._writer.put(_GENERATION, (ordinal, generation))
        await self._writer.committed()

    async def aclose(self) -> None:
        """Commit the rows that wait, and close; raise `JournalNotWritableError` if that fails."""
        try:
            await self._writer.finish()
            if self.check.next_run_at is None:
                self._writer.end_run(interrupted=self._interrupted)
        except asyncio.CancelledError:
            if not self._writer.has_failed:
                self._writer.end_run(interrupted=True)  # the thread has ended after its last commit
            raise
        finally:
            self._reader.close()
            self._writer.close()
            self._lock.close()


def _start(
    connection: sqlite3.Connection, request: RunRequest, comparison: InputCheck, *, created: bool
) -> None:
    """Start the run, or have the latest one go on with its input, in one transaction."""
    with connection:
        pool_before = read_run(connection).get("pool")
        if comparison.edit is not None:
            take(connection, comparison.edit, read_run(connection))
        if comparison.starts_run:
            # Later runs may need what earlier ones assigned to the other accounts.
            start_run(connection, request.keep if request.selection is None else None)
        for column, value in comparison.facts.items():
            connection.execute(set_fact(column), (value,))
        if comparison.facts.get("pool", pool_before) != pool_before:
            # A list with new passwords has the same labels: probe them at once.
            connection.execute("UPDATE proxies SET probe_at = quarantined_at")
        if (created or comparison.starts_run) and request.total is not None:
            connection.execute(_TOTAL, (request.total,))
