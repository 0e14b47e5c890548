"""A session's life: one event loop, the calls under way, and an end that leaves none of them hanging."""

import asyncio
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from weakref import WeakSet

from postpress_async.errors import ConfigurationError, SessionClosedError


class Waits:
    """
    Where calls wait, so that one word wakes them all.

    Attributes:
        ended: No call may wait, or begin an attempt, any more.
    """

    def __init__(self) -> None:
        self.ended: bool = False
        self._waits: set[asyncio.Timeout] = set()
        self._parts: WeakSet[Waits] = WeakSet()

    def part(self) -> "Waits":
        """The waits of a rotation: they end when it says so, and at the latest with these."""
        part = Waits()
        part.ended = self.ended
        self._parts.add(part)
        return part

    @asynccontextmanager
    async def wait(self, until: float) -> AsyncIterator[None]:
        """Raise `TimeoutError` in whoever waits inside, at *until* by the loop's clock or when all ends."""
        async with asyncio.timeout_at(None if math.isinf(until) else until) as scope:
            self._waits.add(scope)
            try:
                if self.ended:
                    raise TimeoutError
                yield
            finally:
                self._waits.discard(scope)

    def end(self) -> None:
        """Wake everyone who waits, for nothing will come."""
        self.ended = True
        for scope in self._waits:
            if not scope.expired():
                scope.reschedule(-1.0)  # long ago, by any clock
        for part in self._parts:
            part.end()


class Lifetime(Waits):
    """Counts the calls of a session, and wakes those that wait when it ends."""

    def __init__(self) -> None:
        super().__init__()
        self._closing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._calls = 0
        self._idle: asyncio.Future[None] | None = None

    @contextmanager
    def call(self) -> Iterator[None]:
        """
        One call, from its beginning to its end.

        Raises:
            SessionClosedError: The session is closed, or being closed.
            ConfigurationError: It was first used in another event loop.
        """
        if self._closing:
            raise SessionClosedError("the session is closed and does not reopen: make a new one")
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop is not None:
                raise ConfigurationError(
                    "the session was first used in another event loop: make one session per loop"
                )
            self._loop = loop
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1
            if not self._calls and self._idle is not None and not self._idle.done():
                self._idle.set_result(None)

    async def close(self, patience: float) -> None:
        """Let no call begin; give those under way *patience* seconds."""
        self._closing = True
        loop = asyncio.get_running_loop()
        if self._calls and self._loop is loop:
            self._idle = self._idle or loop.create_future()
            await asyncio.wait([self._idle], timeout=patience)
