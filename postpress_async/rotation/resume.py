"""What is still to be settled: the input, less what the journal has as done; and under which keys."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import TypeAlias

from postpress_async.errors import JournalError
from postpress_async.rotation.journal import Journal
from postpress_async.rotation.outcome import State
from postpress_async.rotation.plan import Refusal, Row

Source: TypeAlias = Iterator[Row | Refusal] | AsyncIterator[Row | Refusal]

DONE = frozenset({State.PATCHED, State.FAILED})
"""States that a resumed rotation leaves as they are; the others are sent (again)."""


class OpenRows:
    """The rows that are still to be settled, one at a time to whoever asks."""

    def __init__(self, rows: Source, journal: Journal | None) -> None:
        self._rows = rows
        self._lock = asyncio.Lock()  # an asynchronous generator cannot be asked twice at once
        self._resumed = journal is not None and journal.resumed
        self._entries = iter(()) if journal is None else journal.entries()
        self._entry = next(self._entries, None)

    async def take(self) -> tuple[Row | Refusal, bool] | None:
        """
        The next one, and whether an earlier run may have sent it; None after the last.

        Raises:
            JournalError: The journal has another account in its place.
        """
        if isinstance(self._rows, Iterator):
            for row in self._rows:
                if (known := self._known(row)) not in DONE:
                    return row, self._resumed and known is not State.SKIPPED
            return None
        async with self._lock:
            async for row in self._rows:
                if (known := self._known(row)) not in DONE:
                    return row, self._resumed and known is not State.SKIPPED
            return None

    def _known(self, row: Row | Refusal) -> State | None:
        """
        What the journal has of it; None where it has nothing, as of what was in flight in a run that died.

        Both are in the order of their ordinals.
        """
        while self._entry is not None and self._entry[0] < row.ordinal:
            self._entry = next(self._entries, None)
        if self._entry is None or self._entry[0] != row.ordinal:
            return None
        _, account_id, state = self._entry
        if account_id != (row.account_id or ""):
            raise JournalError(
                f"the journal has {account_id} as number {row.ordinal + 1} of the input, which now has "
                f"{row.account_id}: give back that input, or name another journal"
            )
        return state


class RowKeys:
    """
    The idempotency keys of one row: made from the run, the ordinal and a generation.

    A run that died and goes on makes the same keys for what was in flight, so that what the API did
    already is not done again. A generation is on the disk before it is used: a managed change is else
    handed out twice, and a custom one told of a refusal that a later key had overcome.
    """

    __slots__ = ("_generation", "_journal", "_ordinal", "_run", "in_doubt")

    def __init__(self, run: str, row: Row, journal: Journal | None, *, in_doubt: bool = False) -> None:
        self.in_doubt = in_doubt
        self._run = run
        self._ordinal = row.ordinal
        self._journal = journal
        self._generation = 0 if journal is None else journal.generations.get(row.ordinal, 0)

    @property
    def current(self) -> str:
        """See `Keys.current`."""
        return f"{self._run}-{self._ordinal:x}-{self._generation:x}"

    async def renew(self) -> None:
        """See `Keys.renew`."""
        self._generation += 1
        self.in_doubt = False
        if self._journal is not None:
            await self._journal.keep_generation(self._ordinal, self._generation)
