"""The rows that a run still has to process: those of the input that the journal does not record as done."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Final, TypeAlias

from attrs import define

from postpress_async.errors import Applied, JournalError, NotSentError, Scope
from postpress_async.models import ManagedProxy
from postpress_async.rotation._outcome import KEY_EXPIRED, Outcome, State
from postpress_async.rotation._pool import assignment_of
from postpress_async.rotation._rows import Refusal, Row
from postpress_async.rotation.journal import Journal
from postpress_async.rotation.journal._row_hashes import OrdinalLookup

# The rows of the input. It may also be a function like `FleetReader.rows`, which leaves out the rows whose
# ordinal has a nonzero byte in its argument.
InputRows: TypeAlias = (
    Iterator[Row | Refusal] | AsyncIterator[Row | Refusal] | Callable[[bytes], Iterator[Row | Refusal]]
)


@define
class PendingRow:
    """A row to process."""

    row: Row | Refusal
    recorded: bool = False  # whether the journal has an outcome that stays true until the row is sent again
    generation: int = 0  # number of idempotency keys that it has used up
    leave_in_doubt: bool = False  # whether it is not sent because the operator must settle the doubt
    key: str | None = None  # prefix of its keys, if the input was edited while the row was in doubt
    in_doubt_since: float | None = None  # Unix time at which an earlier run may have sent it
    key_expired: bool = False  # whether the API may have forgotten the key of that earlier request

    @property
    def is_sendable(self) -> bool:
        return not self.leave_in_doubt and not isinstance(self.row, Refusal)

    def unsent_outcome(self) -> Outcome:
        """The row's outcome if the run ends before the row is sent."""
        row = self.row
        row_id = row.ordinal, row.line, row.account_id or ""
        if self.in_doubt_since is None:
            return Outcome(*row_id, State.SKIPPED, applied=Applied.NO)
        return Outcome(
            *row_id,
            State.UNKNOWN,
            applied=Applied.UNKNOWN,
            error_type=KEY_EXPIRED if self.key_expired else None,
            assignment=assignment_of(row.change) if isinstance(row, Row) and row.change is not None else None,
            settled_at=self.in_doubt_since,
        )


def refused_outcome(row: Refusal) -> Outcome:
    error = NotSentError(f"not sent: {row}")
    error.account_id = row.account_id
    return Outcome(
        row.ordinal,
        row.line,
        row.account_id or "",
        State.SKIPPED,
        error_type=row.reason,
        scope=Scope.REQUEST,
        applied=Applied.NO,
        error=error,
    )


class PendingRows:
    """Reads *source*, after the rows in *first* such as a canary, and leaves out the rows that are done."""

    def __init__(self, source: InputRows, journal: Journal | None, first: Iterable[PendingRow] = ()) -> None:
        self._first: Final = deque(first)
        self._lock: Final = asyncio.Lock()  # an asynchronous generator allows only one anext() at a time
        self._journal: Final = journal
        # Compares the rows with those of earlier runs, unless the input is known to be the same.
        self.hashes: Final = journal.row_hashes() if journal is not None and journal.by_row else None
        done, skips_done = b"", False
        if journal is not None and callable(source) and journal.check.same_input:
            # Rows that are done need not be read and compared.
            done, skips_done = journal.done(), True
        if callable(source):
            source = source(done)
        self._rows: Final = source
        entries = () if journal is None else journal.entries(skip_done=skips_done)
        self._entries: Final = OrdinalLookup(entries)
        self._generations: Final = OrdinalLookup(() if journal is None else journal.generations())

    async def next(self) -> PendingRow | None:
        """Return the next row; None after the last. Raises `JournalError` if earlier runs had another one."""
        if self._first:
            return self._first.popleft()
        while (row := await self._read()) is not None:
            pending = self._resume(row)
            if self.hashes is not None:
                self.hashes.check(row)
            if pending is not None:
                return pending
        return None

    async def _read(self) -> Row | Refusal | None:
        if isinstance(self._rows, Iterator):
            return next(self._rows, None)
        async with self._lock:
            return await anext(self._rows, None)

    def _resume(self, row: Row | Refusal) -> PendingRow | None:
        journal = self._journal
        if journal is None or not journal.resumed:
            return PendingRow(row)
        since, recorded = None, False
        if (entry := self._entries.get(row.ordinal)) is not None:
            account_id, state, recorded, done, settled_at = entry
            if account_id != (row.account_id or ""):
                raise JournalError(
                    f"the journal has {account_id} at position {row.ordinal + 1}, but the input has "
                    f"{row.account_id}: restore the original input, or use another journal"
                )
            if done:
                return None
            since = None if state is State.SKIPPED else settled_at
        elif row.ordinal < journal.in_doubt_below:
            # An earlier run that was killed may have sent rows below `in_doubt_below` without recording them.
            since = journal.in_doubt_since(row.ordinal)
        generation, key = self._generations.get(row.ordinal) or (0, None)
        is_managed = isinstance(row, Row) and isinstance(row.change, ManagedProxy)
        expired = is_managed and since is not None and since < journal.keys_expired_before
        return PendingRow(
            row,
            recorded=recorded,
            generation=generation,
            leave_in_doubt=expired or (since is not None and journal.leaves_unknown),
            key=key,
            in_doubt_since=since,
            key_expired=expired,
        )
