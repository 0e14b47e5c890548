"""Observers are the caller's, and so are their mistakes."""

import logging
from collections.abc import Callable
from typing import Final, Generic, TypeVar

_log = logging.getLogger("postpress_async.events")

T = TypeVar("T")


class Guarded(Generic[T]):
    """
    An observer that never raises: its mistakes are logged instead.

    The first of them is told with its traceback, and so are the tenth, the hundredth and so on: one that
    always raises does so five times an account, and a night's log may lie on the journal's disk.

    """

    def __init__(self, observer: Callable[[T], object]) -> None:
        self._observer: Final = observer
        self._raised = 0
        self._next_told = 1

    def __call__(self, event: T) -> None:
        """Hand *event* on."""
        try:
            self._observer(event)
        except Exception:
            self._raised += 1
            if self._raised == self._next_told:
                self._next_told *= 10
                told = "an observer of postpress_async raised on %s; it raised %d times so far"
                _log.exception(told, type(event).__name__, self._raised)
