"""The queue between a rotation's workers and the code that iterates over its outcomes."""

import asyncio
from collections import deque

from attrs import define, field

from postpress_async.rotation._outcome import Outcome


@define(eq=False)
class OutcomeQueue:
    """
    A FIFO queue that can end, and that accepts nothing once its reader has left.

    Unlike an `asyncio.Queue`, it accepts more than *size* outcomes: a producer first puts its outcome and
    then waits for room, so that no outcome is lost if the producer is cancelled.
    """

    _size: int
    _outcomes: deque[Outcome] = field(factory=deque)
    _changed: asyncio.Event = field(factory=asyncio.Event)  # set by each put, and by the end
    _has_room: asyncio.Event = field(factory=asyncio.Event)
    _ended: bool = False
    _abandoned: bool = False

    @property
    def is_full(self) -> bool:
        return len(self._outcomes) >= self._size

    def put(self, outcome: Outcome) -> bool:
        """Append *outcome* even if the queue is full. Return False if the reader has left."""
        if self._abandoned:
            return False
        self._outcomes.append(outcome)
        self._changed.set()
        return True

    async def wait_for_room(self) -> None:
        while self.is_full:
            self._has_room.clear()
            await self._has_room.wait()

    async def get(self) -> Outcome | None:
        """Remove and return the first outcome, waiting for it if necessary; None after the end."""
        while not self._outcomes:
            if self._ended:
                return None
            self._changed.clear()
            await self._changed.wait()
        outcome = self._outcomes.popleft()
        if not self.is_full:
            self._has_room.set()
        return outcome

    def end(self) -> None:
        self._ended = True
        self._changed.set()

    def abandon(self) -> list[Outcome]:
        """The reader has left: return what it did not get, and accept nothing more."""
        self._abandoned = True
        unread = list(self._outcomes)
        self._outcomes.clear()
        self._has_room.set()
        return unread
