"""A FIFO queue of futures that waiters can leave at any time."""

import asyncio
from collections import deque
from typing import Final, Generic, TypeVar

from attrs import define, field

T = TypeVar("T")

SLACK: Final = 64
"""
Discarded futures that may remain in the queue, in addition to one for each future that still waits.

Without this slack, a short queue would be rebuilt at nearly every `WaitQueue.discard`.
"""


@define(eq=False)
class WaitQueue(Generic[T]):
    """
    A FIFO queue of futures.

    Futures that are done, such as cancelled ones, are skipped. Their waiters must `discard` them, which takes
    constant time on average, because a done future is not searched for. The queue takes 8 bytes per future;
    an `OrderedDict` would take 110.
    """

    count: int = 0  # futures that were not discarded
    _futures: "deque[asyncio.Future[T]]" = field(factory=deque)

    def append(self, future: "asyncio.Future[T]") -> None:
        """Add *future* at the end."""
        self._futures.append(future)
        self.count += 1

    def has_next(self) -> bool:
        """Whether there is a future to pop."""
        futures = self._futures
        while futures and futures[0].done():
            futures.popleft()
        return bool(futures)

    def pop(self) -> "asyncio.Future[T]":
        """Remove and return the first future that is not done. Requires `has_next`."""
        self.count -= 1
        return self._futures.popleft()

    def discard(self, future: "asyncio.Future[T]") -> None:
        """Remove *future*, which was appended and not popped."""
        self.count -= 1
        if not future.done():  # the waiter's coroutine was closed, as happens when a loop ends
            self._futures.remove(future)
        if len(self._futures) > 2 * self.count + SLACK:
            self._futures = deque(future for future in self._futures if not future.done())
