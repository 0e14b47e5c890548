"""The open calls of a session, the waits of its calls, and closing."""

import asyncio
import math
from collections.abc import Callable
from typing import Final
from weakref import WeakSet

from postpress_async._timeouts import TimeoutGroup
from postpress_async.errors import ConfigurationError, SessionClosedError


class WaitGroup(TimeoutGroup):
    """
    The waits of a group of calls. When it has ended, they may neither wait nor start an attempt any more.

    If it *waits_out_outages*, the time for which calls wait for the service is added to their deadlines.
    *ends_at* is the loop's time at which the owner will end the group. No attempt lasts longer.
    """

    def __init__(self, *, waits_out_outages: bool = False, ends_at: float = math.inf) -> None:
        super().__init__()
        self.waits_out_outages: Final = waits_out_outages
        self.ends_at: Final = ends_at
        self._children: Final[WeakSet[WaitGroup]] = WeakSet()

    def child(self, *, waits_out_outages: bool = True, ends_at: float = math.inf) -> "WaitGroup":
        """A group for one rotation: it can be ended alone, and ends with this group at the latest."""
        child = WaitGroup(waits_out_outages=waits_out_outages, ends_at=ends_at)
        if self.ended:
            child.end()
        self._children.add(child)
        return child

    def end(self) -> None:
        """End all waits of this group and its children, and those that start later."""
        super().end()
        for child in self._children:
            child.end()


class CallTracker(WaitGroup):
    """
    Counts the open calls of a session, and ends their waits when it is closed.

    Each call runs inside ``with tracker``: no context manager has to be created for it. *clock* is the event
    loop's clock in seconds, not set before the first call.
    """

    clock: Callable[[], float]

    def __init__(self) -> None:
        super().__init__()
        self._closing = False
        self._calls = 0
        self._idle: asyncio.Future[None] | None = None

    def __enter__(self) -> None:
        """Open a call. Raises `SessionClosedError`; or `ConfigurationError` in another event loop or none."""
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

    def __exit__(self, *_: object) -> None:
        self._calls -= 1
        if not self._calls and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    async def close(self, timeout: float) -> None:
        """Accept no new call, and wait up to *timeout* seconds until the open ones have ended."""
        self._closing = True
        if self._calls and self._loop is (loop := asyncio.get_running_loop()):
            self._idle = self._idle or loop.create_future()
            await asyncio.wait([self._idle], timeout=timeout)
