"""A first-in, first-out queue of futures, out of which any may leave at once."""

import asyncio
from collections import deque
from typing import Final, Generic, TypeVar

T = TypeVar("T")

SLACK: Final = 64
"""Futures that have left and may still be in the queue, beyond as many as still wait."""


class WaitQueue(Generic[T]):
    """
    Futures of which the first is served first.

    A future that was cancelled, or got its result from elsewhere, is passed over. It has to be discarded by
    whoever waited for it. That takes constant time: its place in the queue is not searched for. And it takes
    8 bytes a future, where an `OrderedDict` takes 110.

    Attributes:
        count: Futures in the queue that were not discarded.
    """

    __slots__ = ("_futures", "count")

    def __init__(self) -> None:
        self.count: int = 0
        self._futures: deque[asyncio.Future[T]] = deque()

    def append(self, future: "asyncio.Future[T]") -> None:
        """Put *future* at the end."""
        self._futures.append(future)
        self.count += 1

    def has_next(self) -> bool:
        """Whether any future is there to be popped."""
        futures = self._futures
        while futures and futures[0].done():
            futures.popleft()
        return bool(futures)

    def pop(self) -> "asyncio.Future[T]":
        """The first future, which is not done; only if the queue `has_next`."""
        self.count -= 1
        return self._futures.popleft()

    def discard(self, future: "asyncio.Future[T]") -> None:
        """Remove *future*, which was appended and not popped."""
        self.count -= 1
        if not future.done():  # its coroutine was closed, as happens when a loop ends
            self._futures.remove(future)
        if len(self._futures) > 2 * self.count + SLACK:
            self._futures = deque(future for future in self._futures if not future.done())
