"""Log records and events about changes of a session's pace."""

import asyncio
import logging
import math

from attrs import define

from postpress_async import events
from postpress_async._safe_observer import SafeObserver

_log = logging.getLogger("postpress_async.pace")


def shown_rate(rate: float) -> float | None:
    """The rate limit as users see it: None instead of infinity."""
    return None if rate == math.inf else rate


@define
class PaceReports:
    """
    The callbacks of a pacer, which log each change and report it to the session's observer.

    This object has no reference to the session. Such a reference cycle would delay Python's warning about a
    session that was not closed.
    """

    _observer: SafeObserver[events.Event] | None
    _paused_at: float = 0.0

    def on_pause(self, paused: bool) -> None:
        """Called with True when the circuit breaker opens, and with False when it closes."""
        now = asyncio.get_running_loop().time()
        if paused:
            self._paused_at = now
            _log.warning("the service is down: all calls wait, except for probes", extra={"paused": True})
            self._report(events.PauseBegan())
        else:
            elapsed = now - self._paused_at
            message = "the service is up again after %.1f s: calls continue"
            _log.warning(message, elapsed, extra={"paused": False, "elapsed": elapsed})
            self._report(events.PauseEnded(elapsed))

    def on_change(self, limit: int | None, rate: float | None) -> None:
        """Called with a new concurrency limit, a new rate limit, or both; None if unchanged."""
        if limit is not None:
            _log.debug("the concurrency limit is now %d", limit, extra={"limit": limit})
            self._report(events.LimitChanged(limit))
        if rate is not None:
            shown = shown_rate(rate)
            if shown is None:
                _log.info("the rate is no longer limited", extra={"rate": None})
            else:
                _log.info("the rate limit is now %.4g requests per second", shown, extra={"rate": shown})
            self._report(events.RateChanged(shown))

    def _report(self, event: events.Event) -> None:
        if self._observer is not None:
            self._observer(event)
