"""
The journal: one SQLite file with the outcome of every account, which survives a crash.

A commit flushes the disk, so one commit per account would be slower than the API. Therefore a thread commits
outcomes in groups: it commits after 50 ms, or earlier if half as many outcomes as requests in flight wait.
If the process dies, the next run sends the rows that were sent but not committed again, under the same
idempotency keys. A write-ahead watermark limits how many rows can be in doubt.
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
from typing import Any, Final, NamedTuple

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
from postpress_async.rotation.journal._edited_input import apply_edit
from postpress_async.rotation.journal._file import lock, open_file
from postpress_async.rotation.journal._input_check import InputCheck, RunRequest, check, of_input
from postpress_async.rotation.journal._reading import CHUNK, JournalReader
from postpress_async.rotation.journal._recovery import (
    BEFORE_THE_RUN,
    DISCARD_COVERED,
    DONE,
    REOPEN_FAILED,
    begin_run,
    read_crashes,
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
"""Records an outcome. It replaces the account's earlier one in this run, but the attempts add up."""
row_of: Final["attrgetter[tuple[Any, ...]]"] = attrgetter(*_COLUMNS)  # values for `OUTCOME`, except the run
_GENERATION: Final = """
INSERT INTO generations (ordinal, generation) VALUES (?, ?)
ON CONFLICT (ordinal) DO UPDATE SET generation = excluded.generation
"""
_REOPEN: Final = f"{REOPEN_FAILED} AND error_type = ?"
# The total never shrinks once an account has an outcome. Before that, another input may replace the first.
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
_MAX_ORDINAL: Final = 2**31  # a larger one can only come from a damaged file
_STATES: Final = frozenset(State)


class Entry(NamedTuple):
    """What the journal knows about an account with an outcome."""

    account_id: str
    state: State
    was_sent: bool
    is_done: bool  # this run does not send it
    settled_at: float  # Unix time of the outcome


class Journal:
    """The journal (a checkpoint file) of a rotation; close it with `aclose`."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        in_flight: int | None = None,
        key_lifetime: float = KEY_LIFETIME,
        **options: Any,
    ) -> None:
        """
        Open the journal at *path*, or create it, for one run.

        Args:
            path: Path of the file.
            in_flight: Number of accounts in flight at once, which sizes the commits; None if not known.
            key_lifetime: Seconds for which the API remembers an idempotency key.
            options: Attributes of the `RunRequest`.

        Raises:
            JournalNotWritableError: The file cannot be written, or another run has it open.
            JournalError: The file is not a journal, has another input, target or API key, or lacks its -wal.
        """
        path = Path(path)
        self.path: Final = path
        request = RunRequest(**options)
        self.leaves_unknown: Final = request.on_unknown == "report"  # accounts in doubt are not sent again
        # The API may have forgotten an idempotency key that was used before this Unix time.
        self.keys_expired_before: Final = time.time() - key_lifetime
        self._done_condition: Final = DONE[request.on_unknown]
        # Accounts outside the selection, by the proxy that they have.
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
                _prepare_run(connection, request, self.check, created=created)
                sends_requests = self.check.next_run_at is None
                self.in_doubt_below = 0.0  # rows without an outcome below this ordinal may have been sent
                if sends_requests:
                    self.in_doubt_below = begin_run(connection, retry_failed=request.on_failed == "retry")
                checkpoint(connection, "FULL")  # before anything is sent
                # The writer thread uses the other connection.
                self._reader: Final = stack.enter_context(JournalReader(path))
                run = read_run(connection)
                has_hashes = connection.execute("SELECT 1 FROM changes LIMIT 1").fetchone() is not None
                self._starts: Final = starts_of(run.get("starts"))
                self._crashes: Final = read_crashes(run)
                shortest_step = max(FIRST_WATERMARK, in_flight or 0)
                self._writer: Final = Writer(path, connection, self._lock.inode, in_flight)
                self.watermark: Final = SendWatermark(self._writer, read_watermark(run), shortest_step)
            except DAMAGE as error:
                raise damage_error(path, error) from None
            stack.pop_all()
        self.resumed: Final = not created and not self.check.starts_run
        # Whether each row must be compared with the row that earlier runs had at its position.
        compares_rows = request.by_row or (has_hashes and self.resumed)
        self.by_row: Final = compares_rows and sends_requests and not self.check.same_input
        self.run: Final[str] = run["token"]  # prefix of the run's idempotency keys
        self.number: Final[int] = run["id"]  # number of the run, from 1
        self._of_input: Final = of_input(run)
        self._began: Final = float(run.get("began") or 0)

    def done_counts(self) -> Counter[State]:
        """Number of accounts in the input that this run does not send, by state."""
        rows = f"{BEFORE_THE_RUN} WHERE {self._done_condition} AND {self._of_input}"
        counts = self._reader.ask(f"SELECT state, count(*) FROM {rows} GROUP BY state")
        return Counter({self._state(state): count for state, count in counts})

    def done(self) -> bytes:
        """One byte per ordinal, up to the last account that is done: 1 if done, otherwise 0."""
        rows = f"FROM {BEFORE_THE_RUN} WHERE {self._done_condition}"
        [(first, last)] = self._reader.ask(f"SELECT min(ordinal), max(ordinal) {rows}")
        if first is None:
            return b""
        if first < 0 or last > _MAX_ORDINAL:
            raise JournalError(f"{self.path} is damaged (an invalid ordinal): name another journal")
        marks = bytearray(last + 1)
        for (ordinal,) in self._reader.stream(f"SELECT ordinal {rows}"):
            marks[ordinal] = 1
        return bytes(marks)

    def in_doubt_since(self, ordinal: int) -> float:
        """Unix time of the last activity of the killed run that may have sent a row without an outcome."""
        # The first such run counts: its idempotency key is the first that the API forgets.
        candidates = (last_active for watermark, last_active in self._crashes if ordinal < watermark)
        return min(candidates, default=self._began)

    def entries(self, *, skip_done: bool = False) -> Iterator[tuple[int, Entry]]:
        """Yield the ordinal and `Entry` of each account with an outcome; *skip_done* omits done ones."""
        condition = f"NOT {self._done_condition} AND" if skip_done else ""
        sql = (
            f"SELECT ordinal, account_id, state, attempts > 0, {self._done_condition}, settled_at "
            f"FROM {BEFORE_THE_RUN} WHERE {condition} ordinal > ? ORDER BY ordinal LIMIT {CHUNK}"
        )
        for ordinal, account_id, state, was_sent, is_done, settled_at in self._reader.in_chunks(sql):
            yield ordinal, Entry(account_id, self._state(state), bool(was_sent), bool(is_done), settled_at)

    def generations(self) -> Iterator[tuple[int, tuple[int, str | None]]]:
        """Yield each ordinal with its number of used idempotency keys, and its own key prefix or None."""
        sql = f"SELECT * FROM generations WHERE ordinal > ? ORDER BY ordinal LIMIT {CHUNK}"
        for ordinal, generation, key in self._reader.in_chunks(sql):
            yield ordinal, (generation, key)

    def row_hashes(self) -> RowHashes:
        [(key,)] = self._reader.ask("SELECT value FROM run WHERE name = 'key'")
        sql = f"SELECT * FROM changes WHERE first > ? ORDER BY first LIMIT {_BLOCKS}"
        return RowHashes(self.path, self._writer, key, self._reader.in_chunks(sql))

    def proxies(self) -> dict[str, int]:
        """Number of accounts that have or may have each proxy, by its label."""
        # Accounts that are sent again do not count: they get another proxy, and the pool could appear full.
        sql = (
            f"SELECT assignment, count(*) FROM {BEFORE_THE_RUN} WHERE assignment NOT NULL "
            f"AND {self._done_condition} AND state IN ('patched', 'unknown') GROUP BY assignment"
        )
        return Counter(dict(self._reader.ask(sql))) + Counter(self._outside)

    def quarantines(self) -> dict[str, tuple[float, float | None]]:
        """Start of each quarantine, and time of the next probe if known (both Unix times), by proxy label."""
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
        """Add to the next commit a proxy's quarantine, and whether an account *failed* with the proxy."""
        began, probe_at = (quarantine.began, quarantine.probe_at) if quarantine else (None, None)
        self._writer.put(_PROXY, (label, int(failed), began, probe_at))

    def begin(self, total: int | None, notes: Mapping[str, str] = MappingProxyType({})) -> None:
        """
        Record who started or resumed the run, and clear the reason of an earlier halt.

        The *notes* are ``command``, ``folder`` and ``retry_command`` of the command line, without secrets. A
        run that is started from Python has none.
        """
        if self.check.next_run_at is not None:
            return
        began = time.time()
        self._writer.put(_BEGAN, (began,))
        # SQLite stores UTF-8, but a file name may contain bytes that are not.
        notes = {name: note.encode("utf-8", "backslashreplace").decode() for name, note in notes.items()}
        # Missing notes become NULL, because the command of an earlier start would not repeat this one.
        facts = {name: notes.get(name) for name in _COMMAND_NOTES} | {
            "halted": None,
            "on_unknown": "report" if self.leaves_unknown else "retry",
            "starts": add_start(self._starts, began, notes.get("command")),
        }
        for name, value in facts.items():
            self._writer.put(set_fact(name), (value,))
        self.record_total(total)

    def record_total(self, total: int | None) -> None:
        if total is not None:
            self._writer.put(_TOTAL, (total,))

    def record_halt(self, reason: str) -> None:
        self._writer.put(set_fact("halted"), (reason,))

    def record_interruption(self) -> None:
        """Have `aclose` record that the run was stopped before its last account."""
        self._interrupted = True

    def reopen(self, error_type: str) -> None:
        """Have the next run send the accounts that failed with *error_type* again."""
        self._writer.put(_REOPEN, (error_type,))

    async def limit_backlog(self) -> None:
        """Wait for a commit if too many outcomes are not on disk yet."""
        if self._writer.is_behind:
            await self._writer.committed()

    async def record_generation(self, ordinal: int, generation: int) -> None:
        """Record the number of idempotency keys that the row has used up; return when this is on disk."""
        self._writer.put(_GENERATION, (ordinal, generation))
        await self._writer.committed()

    async def aclose(self) -> None:
        """Commit the remaining outcomes and close; raise `JournalNotWritableError` if that fails."""
        try:
            await self._writer.finish()
            if self.check.next_run_at is None:
                self._writer.end_run(interrupted=self._interrupted)
        except asyncio.CancelledError:
            if not self._writer.has_failed:
                self._writer.end_run(interrupted=True)  # `finish` has waited for the last commit
            raise
        finally:
            self._reader.close()
            self._writer.close()
            self._lock.close()


def _prepare_run(
    connection: sqlite3.Connection, request: RunRequest, comparison: InputCheck, *, created: bool
) -> None:
    """Insert a new run, or update the latest one for its edited input, in one transaction."""
    with connection:
        pool_before = read_run(connection).get("pool")
        if comparison.edit is not None:
            apply_edit(connection, comparison.edit, read_run(connection))
        if comparison.starts_run:
            # A run of selected accounts deletes no earlier run, because those hold the other assignments.
            start_run(connection, request.keep if request.selection is None else None)
        for column, value in comparison.facts.items():
            connection.execute(set_fact(column), (value,))
        if comparison.facts.get("pool", pool_before) != pool_before:
            # Another list may have corrected passwords under the same labels, so probe these proxies at once.
            connection.execute("UPDATE proxies SET probe_at = quarantined_at")
        if (created or comparison.starts_run) and request.total is not None:
            connection.execute(_TOTAL, (request.total,))
