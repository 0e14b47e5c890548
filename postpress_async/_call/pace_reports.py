"""Log records and events about changes of a session's pace."""

import asyncio
import logging
import math
from collections.abc import Callable

from postpress_async import events
from postpress_async._safe_observer import SafeObserver

_log = logging.getLogger("postpress_async.pace")


def report_pauses(observer: SafeObserver[events.Event] | None) -> Callable[[bool], None]:
    """
    Return a function that logs and reports when the circuit breaker opens (True) and closes (False).

    It has no reference to the session. With a cycle, Python would not warn at once about a session left open.
    """
    began = 0.0

    def on_pause(paused: bool) -> None:
        nonlocal began
        now = asyncio.get_running_loop().time()
        if paused:
            began = now
            _log.warning("the service is down: all calls wait, except for probes", extra={"paused": True})
            event: events.Event = events.PauseBegan()
        else:
            elapsed = now - began
            message = "the service is up again after %.1f s: calls continue"
            _log.warning(message, elapsed, extra={"paused": False, "elapsed": elapsed})
            event = events.PauseEnded(elapsed)
        if observer is not None:
            observer(event)

    return on_pause


def shown_rate(rate: float) -> float | None:
    """The rate limit as users see it: None for an infinite one."""
    return None if rate == math.inf else rate


def report_changes(
    observer: SafeObserver[events.Event] | None,
) -> Callable[[int | None, float | None], None]:
    """Return a function that logs and reports a new concurrency limit and a new rate limit, if not None."""

    def on_change(limit: int | None, rate: float | None) -> None:
        if limit is not None:
            _log.debug("the concurrency limit is now %d", limit, extra={"limit": limit})
            if observer is not None:
                observer(events.LimitChanged(limit))
        if rate is not None:
            value = shown_rate(rate)
            if value is None:
                _log.info("the rate is no longer limited", extra={"rate": value})
            else:
                _log.info("the rate limit is now %.4g requests per second", value, extra={"rate": value})
            if observer is not None:
                observer(events.RateChanged(value))

    return on_change
