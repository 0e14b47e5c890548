"""Tracks the open calls of a session, so that their waits can be ended and the session can be closed."""

import asyncio
import math
from collections.abc import Callable
from typing import Final
from weakref import WeakSet

from postpress_async._timeouts import TimeoutGroup
from postpress_async.errors import ConfigurationError, SessionClosedError


class WaitGroup(TimeoutGroup):
    """
    The waits of a group of calls. After `end`, no call of the group waits or starts an attempt.

    With *waits_out_outages*, the time for which a call waits for the service does not count against its
    deadline. *ends_at* is the time, by the loop's clock, at which the owner will end the group. No attempt
    runs past it.
    """

    def __init__(self, *, waits_out_outages: bool = False, ends_at: float = math.inf) -> None:
        super().__init__()
        self.waits_out_outages: Final = waits_out_outages
        self.ends_at: Final = ends_at
        self._children: Final[WeakSet[WaitGroup]] = WeakSet()

    def child(self, *, waits_out_outages: bool = True, ends_at: float = math.inf) -> "WaitGroup":
        """Return a group for one rotation, which can be ended alone and also ends when this group ends."""
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
    Counts the open calls of a session. The waits of its rotations are children of this group.

    Each call runs inside ``with tracker``. *clock* is the event loop's clock in seconds; it is set when the
    first call starts.
    """

    clock: Callable[[], float]

    def __init__(self) -> None:
        super().__init__()
        self.closing: bool = False  # no new call is accepted
        self._calls = 0
        self._idle: asyncio.Future[None] | None = None

    def __enter__(self) -> None:
        """Start a call. Raises `SessionClosedError`, or `ConfigurationError` outside of the event loop."""
        if self.closing:
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
        self.closing = True
        if self._calls and self._loop is (loop := asyncio.get_running_loop()):
            self._idle = self._idle or loop.create_future()
            await asyncio.wait([self._idle], timeout=timeout)
