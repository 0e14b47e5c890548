"""Timeouts for many waits, on one timer of the event loop."""

import asyncio
import math
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from attrs import define, field

T = TypeVar("T")

MIN_INTERVAL: Final = 1e-6
"""
Minimum seconds between two firings of the timer, multiplied by the number of open waits.

A firing checks every open wait. Checking one takes less than a tenth of this time.
"""


class TimeoutGroup:
    """
    Does what `asyncio.timeout` does, for many waits at once.

    `asyncio.timeout` sets and cancels a timer for each wait, which takes 5 to 10 microseconds, although the
    response nearly always arrives long before the timeout. This class sets a single timer, for the earliest
    timeout, and does not cancel it if that wait ends in time. When the timer fires, it expires all waits that
    are due, and is set for the next timeout.
    """

    def __init__(self) -> None:
        self.ended: bool = False  # whether all waits were ended, and new ones expire at once
        # The open waits, each with the time at which it expires, by the loop's clock.
        self._open: Final[dict[Timeout | asyncio.Future[Any], float]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf

    def within(self, seconds: float) -> "Timeout":
        """A timeout for a ``with`` block, which expires *seconds* from now."""
        return Timeout(self, (self._loop or self._get_loop()).time() + seconds)

    def until(self, when: float) -> "Timeout":
        """A timeout that expires at *when* by the loop's clock; with `math.inf`, only `end` expires it."""
        return Timeout(self, when)

    def end(self) -> None:
        """Expire all waits, and those that start later."""
        self.ended = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for wait in self._open:
            _expire(wait)
        self._open.clear()

    def enter(self, timeout: "Timeout") -> "asyncio.Task[object]":
        """Add *timeout* and return the current task; raise `TimeoutError` if the group has ended."""
        if self.ended:
            raise TimeoutError
        task = asyncio.current_task(self._loop or self._get_loop())
        assert task is not None  # noqa: S101 - asyncio runs coroutines in tasks
        self._open[timeout] = timeout.when
        if timeout.when < self._timer_at:
            self._set_timer(timeout.when)
        return task

    def complete_at(self, future: "asyncio.Future[T | None]", when: float) -> None:
        """
        Give *future* the result None at *when* by the loop's clock, or at `end`, unless it is done.

        This takes less memory than a `Timeout`, which matters if very many calls wait. The waiter must call
        `discard` when it stops waiting.
        """
        if self.ended:
            _expire(future)
            return
        self._open[future] = when
        if when < self._timer_at:
            self._set_timer(when)

    def discard(self, wait: "Timeout | asyncio.Future[Any]") -> None:
        self._open.pop(wait, None)

    def _get_loop(self) -> asyncio.AbstractEventLoop:
        # Cached, because looking it up takes as long as the rest of a wait. A session belongs to one loop.
        self._loop = asyncio.get_running_loop()
        return self._loop

    def _set_timer(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = when
        self._timer = (self._loop or self._get_loop()).call_at(when, self._on_timer)

    def _on_timer(self) -> None:
        # A loop may fire a timer one clock tick early. The timeout for which it was set is due nevertheless.
        now = max((self._loop or self._get_loop()).time(), self._timer_at)
        self._timer, self._timer_at = None, math.inf
        due = [wait for wait, when in self._open.items() if when <= now]
        for wait in due:
            del self._open[wait]
            _expire(wait)
        earliest = min(self._open.values(), default=math.inf)
        if earliest < math.inf:
            # If thousands of waits expire shortly after each other, one firing expires many of them.
            self._set_timer(max(earliest, now + MIN_INTERVAL * len(self._open)))


@define(eq=False)
class Timeout:
    """The timeout of one wait: a ``with`` block that raises `TimeoutError` when it expires."""

    _group: TimeoutGroup
    when: float  # by the loop's clock
    expired: bool = False
    _cancelling: int = field(init=False)
    _task: "asyncio.Task[object]" = field(init=False)

    def __enter__(self) -> Self:
        self._task = self._group.enter(self)
        self._cancelling = self._task.cancelling()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task = self._task
        del self._task  # the traceback of its error may refer to this object: a reference cycle
        if not self.expired:
            self._group.discard(self)
        elif (
            # If other code has cancelled the task too, its CancelledError must propagate.
            task.uncancel() <= self._cancelling
            and kind is not None
            and issubclass(kind, asyncio.CancelledError)
        ):
            raise TimeoutError from error

    def expire(self) -> None:
        self.expired = True
        if not self._task.get_loop().is_closed():
            self._task.cancel()


def _expire(wait: Timeout | asyncio.Future[Any]) -> None:
    if isinstance(wait, Timeout):
        wait.expire()
    elif not wait.done() and not wait.get_loop().is_closed():
        wait.set_result(None)
