"""The open calls of a session, the waits of its calls, and closing."""

import asyncio
import math
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, TypeVar
from weakref import WeakSet

from postpress_async._timeouts import Timeout, TimeoutGroup
from postpress_async.errors import ConfigurationError, SessionClosedError

T = TypeVar("T")


class WaitGroup:
    """
    The waits of a group of calls, which can all be ended at once.

    Args:
        waits_out_outages: See below.
        ends_at: See below.

    Attributes:
        ended: The calls may neither wait nor start an attempt any more.
        waits_out_outages: Whether the time for which the calls wait for the service does not count against
            their deadlines.
        ends_at: Time of the event loop's clock at which the group's owner will end it. No attempt lasts
            longer.
    """

    def __init__(self, *, waits_out_outages: bool = False, ends_at: float = math.inf) -> None:
        self.ended: bool = False
        self.waits_out_outages: Final = waits_out_outages
        self.ends_at: Final = ends_at
        self._timeouts: Final = TimeoutGroup()
        self._children: Final[WeakSet[WaitGroup]] = WeakSet()

    def child(self, *, waits_out_outages: bool = True, ends_at: float = math.inf) -> "WaitGroup":
        """A group for one rotation: it can be ended alone, and ends with this group at the latest."""
        child = WaitGroup(waits_out_outages=waits_out_outages, ends_at=ends_at)
        if self.ended:
            child.end()
        self._children.add(child)
        return child

    def timeout_at(self, when: float) -> Timeout:
        """A ``with`` block that raises `TimeoutError` at *when* (loop's clock), or when the group ends."""
        return self._timeouts.until(when)

    def wake(self, future: "asyncio.Future[T | None]", when: float) -> None:
        """Give *future* the result None at *when*, or when the group ends; see `TimeoutGroup.wake`."""
        self._timeouts.wake(future, when)

    def discard(self, future: "asyncio.Future[Any]") -> None:
        """Forget *future*: no call waits for it any more."""
        self._timeouts.discard(future)

    def end(self) -> None:
        """End all waits of this group and its children, and those that start later."""
        self.ended = True
        self._timeouts.end()
        for child in self._children:
            child.end()


class CallTracker(WaitGroup):
    """
    Counts the open calls of a session, and ends their waits when it is closed.

    Each call runs inside ``with tracker``. The tracker keeps nothing for a single call, so no object is
    needed for each.

    Attributes:
        clock: The event loop's clock, in seconds. Not set before the first call.
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
        Open a call.

        Raises:
            SessionClosedError: The session is closed or closing.
            ConfigurationError: The session was first used in another event loop, or this is not asyncio.
        """
        if self._closing:
            raise SessionClosedError("the session is closed and cannot be reopened: create a new one")
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise ConfigurationError("the session requires a running asyncio event loop") from None
        if self._loop is not loop:
            if self._loop is not None:
                raise ConfigurationError(
                    "the session was first used in another event loop: create one session per loop"
                )
            self._loop, self.clock = loop, loop.time
        self._calls += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._calls -= 1
        if not self._calls and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    async def close(self, timeout: float) -> None:
        """Accept no new call, and wait up to *timeout* seconds until the open ones have ended."""
        self._closing = True
        if self._calls and self._loop is (loop := asyncio.get_running_loop()):
            self._idle = self._idle or loop.create_future()
            await asyncio.wait([self._idle], timeout=timeout)
