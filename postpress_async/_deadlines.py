"""Ends what takes too long: one timer for all the waits of a session."""

import asyncio
import math
from types import TracebackType
from typing import Any, Final, Self, TypeVar

T = TypeVar("T")

FINEST: Final = 1e-6
"""Seconds between two looks at the open limits, for each of them: a look takes less than a tenth of that."""


class Deadlines:
    """
    What `asyncio.timeout` does, for many waits at once.

    A timer each is set and taken back where, nearly always, an answer comes long before: 5 to 10
    microseconds of each call. This one is set for the earliest deadline and left alone: calls that end
    before it cost a place in a set. When it fires it ends what is due, and is set for what is then earliest.

    Attributes:
        ended: Nothing may be waited for any more.
    """

    def __init__(self) -> None:
        self.ended: bool = False
        self._open: Final[dict[Limit | asyncio.Future[Any], float]] = {}  # and when each is due
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf

    def __len__(self) -> int:
        """How many are inside."""
        return len(self._open)

    def within(self, seconds: float) -> "Limit":
        """A limit for what is done in its ``with`` block; *seconds* count from now."""
        loop = self._loop or self._get_loop()
        return Limit(self, loop.time() + seconds)

    def until(self, when: float) -> "Limit":
        """The same, *when* by the loop's clock; infinite for none but `end`."""
        return Limit(self, when)

    def end(self) -> None:
        """Let the time of all be up, and of all who come."""
        self.ended = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for each in self._open:
            _expire(each)
        self._open.clear()

    def enter(self, limit: "Limit") -> "asyncio.Task[object]":
        """
        The task of *limit*, which is kept from now on.

        Raises:
            TimeoutError: The `end` has come.
        """
        if self.ended:
            raise TimeoutError
        task = asyncio.current_task(self._loop or self._get_loop())
        assert task is not None  # noqa: S101 - asyncio runs coroutines in tasks
        self._open[limit] = limit.when
        if limit.when < self._timer_at:
            self._set(limit.when)
        return task

    def wake(self, future: "asyncio.Future[T | None]", when: float) -> None:
        """
        Give *future* the result None at *when* by the loop's clock, or at the `end`, unless it is done.

        For waits of which there may be very many: they need no `Limit`. Whoever waited has to `leave`.
        """
        if self.ended:
            _expire(future)
            return
        self._open[future] = when
        if when < self._timer_at:
            self._set(when)

    def leave(self, limit: "Limit | asyncio.Future[Any]") -> None:
        """It is over, in time or not."""
        self._open.pop(limit, None)

    def _get_loop(self) -> asyncio.AbstractEventLoop:
        # Once: to ask for it costs as much as all the rest, and a session is of one loop.
        self._loop = asyncio.get_running_loop()
        return self._loop

    def _set(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = when
        self._timer = (self._loop or self._get_loop()).call_at(when, self._look)

    def _look(self) -> None:
        # A loop may fire a tick of its clock too early, and what it fired for is due all the same.
        now = max((self._loop or self._get_loop()).time(), self._timer_at)
        self._timer, self._timer_at = None, math.inf
        due = [each for each, when in self._open.items() if when <= now]
        for each in due:
            del self._open[each]
            _expire(each)
        earliest = min(self._open.values(), default=math.inf)
        if earliest < math.inf:
            # Thousands that end one after the other are not worth a look each at all the others.
            self._set(max(earliest, now + FINEST * len(self._open)))


class Limit:
    """
    The time of one wait: a ``with`` block that raises `TimeoutError` when it is up.

    Attributes:
        when: The end, by the loop's clock.
        expired: Whether it came.
    """

    __slots__ = ("_cancelling", "_deadlines", "_task", "expired", "when")

    _cancelling: int
    _task: "asyncio.Task[object]"

    def __init__(self, deadlines: Deadlines, when: float) -> None:
        self._deadlines = deadlines
        self.when: float = when
        self.expired: bool = False

    def __enter__(self) -> Self:
        self._task = self._deadlines.enter(self)
        self._cancelling = self._task.cancelling()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task = self._task
        del self._task  # whose error may have this block's frame in its traceback: a cycle
        if not self.expired:
            self._deadlines.leave(self)
        elif (
            # Where somebody else cancelled the task too, it is cancelled.
            task.uncancel() <= self._cancelling
            and kind is not None
            and issubclass(kind, asyncio.CancelledError)
        ):
            raise TimeoutError from error

    def expire(self) -> None:
        """Its time is up."""
        self.expired = True
        if not self._task.get_loop().is_closed():
            self._task.cancel()


def _expire(each: Limit | asyncio.Future[Any]) -> None:
    if isinstance(each, Limit):
        each.expire()
    elif not each.done() and not each.get_loop().is_closed():
        each.set_result(None)
