"""
The journal: one SQLite file in which every account's end can be read, also after a crash.

Rows are handed to a thread of its own, which commits them about every 50 ms: a commit is a flush of the
disk, and one for each account would be slower than the API. What was sent and not yet committed when
the process died is sent again by the next run, under the same idempotency key.
"""

import os
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Final, Self
from weakref import WeakSet

from postpress_async.errors import JournalError
from postpress_async.rotation._journal_file import (
    DAMAGE,
    check_input,
    claim,
    connect,
    mark_under_way,
    take_lock,
)
from postpress_async.rotation._writer import Writer
from postpress_async.rotation.outcome import Outcome, State

_OUTCOME: Final = "INSERT OR REPLACE INTO outcomes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_GENERATION: Final = "INSERT OR REPLACE INTO generations VALUES (?, ?)"
_REOPEN: Final = "UPDATE outcomes SET state = 'skipped' WHERE state = 'failed' AND error_type = ?"
_CHUNK: Final = 4_096
_STATES: Final = frozenset(State)


# Opening a file a second time and closing it lets go of the locks that this process has on it.
_OPEN: Final[WeakSet["Journal"]] = WeakSet()


class Journal:
    """
    One rotation's memory on disk; made by `open`, closed by `aclose`.

    Attributes:
        path: Where it lies.
        run: The name of the rotation, the same in every run on this journal.
        resumed: Whether an earlier run began it.
        generations: By ordinal, how many idempotency keys an account has used up.
    """

    def __init__(
        self, path: Path, connection: sqlite3.Connection, lock: sqlite3.Connection, *, resumed: bool
    ) -> None:
        self.path: Final = path
        self.resumed: Final = resumed
        self._lock: Final = lock
        self._writer: Final = Writer(path, connection)
        # Reads have a connection of their own: the other one is the writer thread's.
        self._reader: Final = sqlite3.connect(path)
        told = self._reader.execute("SELECT value FROM run WHERE name = 'run'")
        self.run: Final[str] = told.fetchone()[0]
        self.generations: Final[dict[int, int]] = dict(self._reader.execute("SELECT * FROM generations"))

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, digest: bytes | None = None, target: str | None = None
    ) -> Self:
        """
        The journal at *path*, made if there is none, for the input with this *digest* and this *target*.

        Raises:
            JournalError: It is another run's, another input's or target's, no journal, or cannot be written.
        """
        place = Path(path)
        if any(place.exists() and place.samefile(other.path) for other in _OPEN):
            raise JournalError(f"{place} is in use by another run: wait for it, or name another journal")
        claim(place)
        with ExitStack() as stack:
            lock = stack.enter_context(closing(take_lock(place)))
            try:
                connection, fresh = connect(place)
                stack.callback(connection.close)
                check_input(place, connection, digest, target)
                mark_under_way(connection)
                made = cls(place, connection, lock, resumed=not fresh)
            except DAMAGE as error:
                raise JournalError(f"{place} is damaged ({error}): name another journal") from None
            stack.pop_all()
            _OPEN.add(made)
            return made

    def counts(self) -> Counter[State]:
        """How many accounts stand where, as committed."""
        rows = self._asked("SELECT state, count(*) FROM outcomes GROUP BY state")
        return Counter({self._state(state): count for state, count in rows})

    def errors(self) -> Counter[str]:
        """How many accounts ended with which error type, as committed."""
        told = "SELECT error_type, count(*) FROM outcomes WHERE error_type IS NOT NULL GROUP BY error_type"
        return Counter(dict(self._asked(told)))

    def entries(self) -> Iterator[tuple[int, str, State]]:
        """Ordinal, account and state of all that is recorded, in order; read in pieces of bounded size."""
        told = "SELECT ordinal, account_id, state FROM outcomes WHERE ordinal > ? ORDER BY ordinal LIMIT ?"
        last = -1
        while rows := self._asked(told, last, _CHUNK):
            for ordinal, account_id, state in rows:
                yield ordinal, account_id, self._state(state)
            last = rows[-1][0]

    def _state(self, name: str) -> State:
        if name not in _STATES:
            raise JournalError(f"{self.path} is damaged (a state that is none): name another journal")
        return State(name)

    def _asked(self, told: str, *values: object) -> list[Any]:
        try:
            return self._reader.execute(told, values).fetchall()
        except DAMAGE as error:
            raise JournalError(f"{self.path} is damaged ({error}): name another journal") from None

    def record(self, outcome: Outcome) -> None:
        """
        Take *outcome* for the next commit.

        Raises:
            JournalError: An earlier commit failed: nothing more can be recorded.
        """
        self._writer.put(_OUTCOME, _row(outcome))

    def reopen(self, error_type: str) -> None:
        """Take every account that failed with *error_type* for one that was not sent, at the next commit."""
        self._writer.put(_REOPEN, (error_type,))

    async def room(self) -> None:
        """Return once the disk is not far behind: at once, mostly."""
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
            JournalError: It could not be committed.
        """
        try:
            await self._writer.finish()
            self._writer.end_well()
        finally:
            _OPEN.discard(self)
            self._reader.close()
            self._writer.close()
            self._lock.close()


def _row(outcome: Outcome) -> tuple[Any, ...]:
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
