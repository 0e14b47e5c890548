"""A session's life: one event loop, the calls under way, and an end that leaves none of them hanging."""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, TypeVar
from weakref import WeakSet

from postpress_async._deadlines import Deadlines, Limit
from postpress_async.errors import ConfigurationError, SessionClosedError

T = TypeVar("T")


class Waits:
    """
    Where calls wait, so that one word wakes them all.

    Attributes:
        ended: No call may wait, or begin an attempt, any more.
    """

    def __init__(self) -> None:
        self.ended: bool = False
        self._waits: Final = Deadlines()
        self._parts: Final[WeakSet[Waits]] = WeakSet()

    def part(self) -> "Waits":
        """The waits of a rotation: they end when it says so, and at the latest with these."""
        part = Waits()
        if self.ended:
            part.end()
        self._parts.add(part)
        return part

    def wait(self, until: float) -> Limit:
        """Raise `TimeoutError` in whoever waits inside, at *until* by the loop's clock or when all ends."""
        return self._waits.until(until)

    def wake(self, future: "asyncio.Future[T | None]", until: float) -> None:
        """Give *future* the result None at *until*, or when all ends; see `Deadlines.wake`."""
        self._waits.wake(future, until)

    def leave(self, future: "asyncio.Future[Any]") -> None:
        """Nobody waits for *future* any more."""
        self._waits.leave(future)

    def end(self) -> None:
        """Wake everyone who waits, for nothing will come."""
        self.ended = True
        self._waits.end()
        for part in self._parts:
            part.end()


class Lifetime(Waits):
    """
    Counts the calls of a session, and wakes those that wait when it ends.

    It is the ``with`` block in which a call is made, from its beginning to its end: it keeps nothing of a
    single one, and so needs no object for each.

    Attributes:
        clock: The time of the calls' loop, in seconds; there is none before the first call.
    """

    clock: Callable[[], float]

    def __init__(self) -> None:
        super().__init__()
        self._closing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._calls = 0
        self._idle: asyncio.Future[None] | None = None

    def __enter__(self) -> None:
        """
        Begin a call.

        Raises:
            SessionClosedError: The session is closed, or being closed.
            ConfigurationError: It was first used in another event loop, or this one is not asyncio's.
        """
        if self._closing:
            raise SessionClosedError("the session is closed and does not reopen: make a new one")
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise ConfigurationError("the session runs under asyncio alone, and here is none of it") from None
        if self._loop is not loop:
            if self._loop is not None:
                raise ConfigurationError(
                    "the session was first used in another event loop: make one session per loop"
                )
            self._loop, self.clock = loop, loop.time
        self._calls += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._calls -= 1
        if not self._calls and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    async def close(self, patience: float) -> None:
        """Let no call begin; give those under way *patience* seconds."""
        self._closing = True
        if self._calls and self._loop is (loop := asyncio.get_running_loop()):
            self._idle = self._idle or loop.create_future()
            await asyncio.wait([self._idle], timeout=patience)
