"""
Notes between a worker and the coordinator, none lost and none taken twice, over connections that may break.

Each end numbers its notes and keeps them until the other has said how many it has. What was sent and not
answered is sent again over the next connection; what comes a second time is passed over.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Final

from attrs import define, field

Note = tuple[Any, ...]
"""A word that says what it is, and plain values."""

PARCEL: Final = 5_000
"""Notes of one message, at most."""


@define
class Outbox:
    """Notes that the other end does not have yet, for all that is known."""

    first: int = 0
    _notes: deque[Note] = field(factory=deque)

    def put(self, *note: Any) -> None:
        """Take a note for the next message."""
        self._notes.append(note)

    def __len__(self) -> int:
        return len(self._notes)

    def parcel(self) -> list[Note]:
        """The oldest of them, numbered from `first`."""
        return [note for note, _ in zip(self._notes, range(PARCEL), strict=False)]

    def has(self, count: int) -> None:
        """The other end has the first *count* of all notes that were ever put."""
        while self.first < count and self._notes:
            self._notes.popleft()
            self.first += 1


@define
class Inbox:
    """Counts the notes that came, so that each is taken once."""

    count: int = 0

    def fresh(self, first: int, notes: Sequence[Note]) -> Iterator[Note]:
        """Those of *notes*, numbered from *first*, that did not come before."""
        for note in notes[max(0, self.count - first) :]:
            self.count += 1
            yield note
