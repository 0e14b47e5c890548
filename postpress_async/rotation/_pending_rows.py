"""What is still to be settled: the input, less what the journal has as done; and under which keys."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Final, Generic, Protocol, TypeAlias, TypeVar

from attrs import define

from postpress_async.errors import JournalError
from postpress_async.rotation._outcome import Outcome, State
from postpress_async.rotation._outcome_sink import Notes
from postpress_async.rotation._rows import Refusal, Row
from postpress_async.rotation.journal import Journal
from postpress_async.rotation.journal._row_hashes import RowHashes

Rows: TypeAlias = Iterator[Row | Refusal] | AsyncIterator[Row | Refusal]

Source: TypeAlias = Rows | Callable[[bytes], Iterator[Row | Refusal]]
"""
The rows; or what gives them all but those that are done, told by a byte that is not 0 for each ordinal.
"""

T = TypeVar("T")


@define
class OpenRow:
    """
    A row that is to be settled.

    Attributes:
        row: The row, or why there is none.
        maybe_sent: Whether it was sent before, by this run or an earlier one, and may have been applied.
        recorded: Whether the journal has an outcome of it that stays true as long as it is not sent again.
        generation: How many idempotency keys it has used up.
        left: Whether it is not to be sent, since it is in doubt and the operator wants to decide.
    """

    row: Row | Refusal
    maybe_sent: bool = False
    recorded: bool = False
    generation: int = 0
    left: bool = False

    @property
    def is_sent(self) -> bool:
        """Whether a request is to be sent for it."""
        return not self.left and not isinstance(self.row, Refusal)

    def outcome_unsent(self) -> Outcome | None:
        """What to record if the run does not send it; None if the journal says it already."""
        row = self.row
        if self.recorded:
            return None
        unsent = Outcome.left_in_doubt if self.maybe_sent else Outcome.skipped
        return unsent(row.ordinal, row.line, row.account_id or "")

    @property
    def says_unknown(self) -> bool:
        """Whether the journal has it as unknown."""
        return self.recorded and self.maybe_sent

    @property
    def state_unsent(self) -> State:
        """Its state if the run does not send it."""
        return State.UNKNOWN if self.maybe_sent else State.SKIPPED


class Takes(Protocol):
    """Where a rotation takes its rows from."""

    @property
    def at_hand(self) -> bool:
        """Whether nobody ever waits for one."""
        ...

    @property
    def changes(self) -> RowHashes | None:
        """What compares the rows with those of earlier runs; None if that is done, or there is no journal."""
        ...

    def take_at_once(self) -> OpenRow | None:
        """The next one, where they are at hand; None after the last."""
        ...

    async def take(self) -> OpenRow | None:
        """The next one; None after the last."""
        ...


class OpenRows:
    """The rows that are still to be settled, one at a time to whoever asks."""

    def __init__(self, source: Source, journal: Journal | None) -> None:
        self._lock = asyncio.Lock()  # an asynchronous generator cannot be asked twice at once
        self._resumed: Final = journal is not None and journal.resumed
        self._journal: Final = journal
        self._doubtful: Final = 0.0 if journal is None else journal.in_doubt_below
        self._leaves_doubts: Final = journal is not None and journal.leaves_doubts
        # Where it is known to be the same input, what is done need not be read row by row.
        skips = callable(source) and journal is not None and journal.same_input
        self.changes: Final = journal.row_hashes() if journal is not None and journal.by_row else None
        if callable(source):
            source = source(journal.done() if skips and journal is not None else b"")
        self._at_hand: Final[Iterator[Row | Refusal]] = source if isinstance(source, Iterator) else iter(())
        self._coming: Final = None if isinstance(source, Iterator) else source
        self._entries: Final = _InStep(() if journal is None else journal.entries(but_done=skips))
        self._generations: Final = _InStep(() if journal is None else journal.generations())

    @property
    def at_hand(self) -> bool:
        """See `Takes.at_hand`."""
        return self._coming is None

    def take_at_once(self) -> OpenRow | None:
        """
        See `Takes.take_at_once`.

        Raises:
            JournalError: The journal has another account in its place, or another change for it.
        """
        for row in self._at_hand:
            if (taken := self._open(row)) is not None:
                return taken
        return None

    async def take(self) -> OpenRow | None:
        """See `Takes.take`; it raises what `take_at_once` does."""
        if self._coming is None:
            return self.take_at_once()
        async with self._lock:
            async for row in self._coming:
                if (taken := self._open(row)) is not None:
                    return taken
            return None

    def _open(self, row: Row | Refusal) -> OpenRow | None:
        taken = OpenRow(row) if not self._resumed else self._resume(row)
        if self.changes is not None:
            self.changes.check(row)
        return taken

    def _resume(self, row: Row | Refusal) -> OpenRow | None:
        generation = self._generations.at(row.ordinal) or 0
        if (known := self._entries.at(row.ordinal)) is None:
            # If a run died that may have got as far as this row, the row may have been in flight.
            in_doubt = row.ordinal < self._doubtful
            left = in_doubt and self._leaves_doubts
            return OpenRow(row, maybe_sent=in_doubt, generation=generation, left=left)
        account_id, state, sent, done = known
        if account_id != (row.account_id or ""):
            raise JournalError(
                f"the journal has {account_id} as number {row.ordinal + 1} of the input, which now has "
                f"{row.account_id}: give back that input, or name another journal"
            )
        if done:
            return None
        in_doubt = state is not State.SKIPPED
        return OpenRow(row, maybe_sent=in_doubt, recorded=in_doubt or sent, generation=generation)


class _InStep(Generic[T]):
    """Values by ordinal, in the order of their ordinals, and looked up in that order."""

    def __init__(self, values: Iterable[tuple[int, T]]) -> None:
        self._values = iter(values)
        self._next = next(self._values, None)

    def at(self, ordinal: int) -> T | None:
        while self._next is not None and self._next[0] < ordinal:
            self._next = next(self._values, None)
        return None if self._next is None or self._next[0] != ordinal else self._next[1]


class RowKeys:
    """
    The idempotency keys of one row: made from the run, the ordinal and a generation.

    A run that died and goes on makes the same keys for what was in flight, so that what the API did
    already is not done again. A generation is on the disk before it is used: a managed change is else
    handed out twice, and a custom one told of a refusal that a later key had overcome.

    Attributes:
        in_doubt: See `Keys`.
    """

    __slots__ = ("_generation", "_journal", "_ordinal", "_run", "in_doubt")

    def __init__(self, run: str, taken: OpenRow, journal: Notes | None) -> None:
        self.in_doubt: bool = taken.maybe_sent
        self._run = run
        self._ordinal = taken.row.ordinal
        self._journal = journal
        self._generation = taken.generation

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
