"""Keeps the exceptions of observers, which are application code, from failing the observed calls."""

import asyncio
import logging
from collections.abc import Callable
from typing import Generic, TypeVar

from attrs import define

_log = logging.getLogger("postpress_async.events")

T = TypeVar("T")


@define(eq=False)
class SafeObserver(Generic[T]):
    """
    Calls an observer, and logs the exceptions that it raises instead of passing them on.

    A `CancelledError` is logged too: an observer awaits nothing, so the error cannot mean that its task was
    cancelled. `KeyboardInterrupt` and `SystemExit` are passed on.

    Only the first, tenth, hundredth ... exception is logged, with its traceback. An observer that always
    raises does so five times per account, and the log may be on the same disk as the journal.
    """

    _observer: Callable[[T], object]
    _raised: int = 0
    _next_logged: int = 1

    def __call__(self, event: T) -> None:
        try:
            self._observer(event)
        except (Exception, asyncio.CancelledError):
            self._raised += 1
            if self._raised == self._next_logged:
                self._next_logged *= 10
                message = "an observer of postpress_async raised on %s; it raised %d times so far"
                _log.exception(message, type(event).__name__, self._raised)
