"""The circuit breaker: calls wait while the service is down, and probes detect its recovery."""

import math
from collections.abc import Callable
from typing import Final, Literal

FAILURE_THRESHOLD: Final = 20
"""Overload signals that open the breaker. Each success cancels `SUCCESS_CREDIT` of them."""

SUCCESS_CREDIT: Final = 4
"""A service is therefore down if it answers fewer than one in five requests."""

MIN_DURATION_FACTOR: Final = 1.5
"""The signals must continue for this many times the usual latency without a success. A service that is only
overloaded also refuses many requests in a row, but answers others in between."""

RECOVERY_THRESHOLD: Final = 50
"""Successes after which the next failure starts a new outage. Otherwise a service that answers only an
occasional probe would get a burst of requests each time, after a pause as short as the first."""

PROBE_INTERVAL_SHARE: Final = 1 / 24
"""Time between probes as a share of the outage so far; with jitter, at most 1/19. Exponential backoff can
fall into step with a flapping service. With 1/16, unlucky jitter prolonged an outage of 20 s by 4.3%, and
saved at most 20 probes."""

MIN_PROBE_INTERVAL, MAX_PROBE_INTERVAL = 0.1, 5.0
"""Shortest and longest time between two probes, in seconds, before jitter."""

MAX_PROBES: Final = 16
"""Maximum probes in flight. A single probe that hangs would hide that the service is back."""

MAX_RETRY_AFTER: Final = 120.0
"""Longest Retry-After in seconds that the breaker honours; longer ones are shortened to it."""


class CircuitBreaker:
    """
    Opens when the service is down, and closes when a probe succeeds.

    A request belongs to the *generation* in which it was sent. Do not report responses to requests of an
    earlier generation: they are out of date.

    Attributes:
        is_open: Whether only probes may be sent.
        generation: Number of times that it has opened or closed.
        outage_started: Start of the current or last outage.
        probe_at: Time of the next probe; infinite while it is closed.
        last_success: Time of the latest response that was not an overload signal.
    """

    def __init__(self, threshold: int, random: Callable[[], float]) -> None:
        self.is_open: bool = False
        self.generation: int = 0
        self.probe_at: float = math.inf
        self.outage_started: float = 0.0
        self._threshold: Final = threshold
        self._random: Final = random
        self._failures = 0
        self._first_failure_sent = 0.0
        self.last_success: float = -math.inf
        self._consecutive = 0
        self._successes = RECOVERY_THRESHOLD  # since it closed
        self._closed_at = 0.0
        self._probes = 0

    @property
    def state(self) -> Literal["closed", "open", "half-open"]:
        """The state; half-open while a probe is in flight."""
        return "closed" if not self.is_open else "half-open" if self._probes else "open"

    def record_success(self, now: float) -> None:
        """Record a response that is not an overload signal."""
        self.last_success = now
        self._successes += 1
        self._consecutive = 0
        if self._failures:
            self._failures = max(0, self._failures - SUCCESS_CREDIT)

    def record_overload(self, sent: float, latency: float, now: float) -> bool:
        """Record an overload signal for a request sent at *sent*. Returns whether the breaker opens."""
        if not self._failures:
            self._first_failure_sent = sent
            self._start_outage(now)
        self._failures += 1
        self._consecutive += 1
        silence = now - max(self._first_failure_sent, self.last_success)
        down = self._failures >= self._threshold and silence >= MIN_DURATION_FACTOR * latency
        lasting = now - self._first_failure_sent >= 4 * MIN_DURATION_FACTOR * latency
        if not down and not (lasting and self._failures >= 2 * self._threshold):
            return False
        self._open(now + self._probe_interval(now))
        return True

    def on_retry_after(self, seconds: float, now: float, *, key_wide: bool) -> bool:
        """
        Handle the Retry-After of an overload signal, which may open the breaker, or keep it open longer.

        Returns whether the breaker opens. *key_wide* says that the signal concerns all requests with the
        key (a 429). A 503 may concern a single request, so three consecutive signals are required.
        """
        until = now + min(seconds, MAX_RETRY_AFTER) * (1 + 0.05 * self._random())
        if self.is_open:
            self.probe_at = max(self.probe_at, until)
            return False
        if not key_wide and self._consecutive < 3:
            return False
        self._open(until)
        return True

    def trip(self, now: float) -> None:
        """Open because another session with the same key found the service down, and probe soon."""
        if not self._failures:
            self._first_failure_sent = now
            self._start_outage(now)
        self._open(now + self._probe_interval(now))

    @property
    def next_probe_at(self) -> float | None:
        """The time of the next probe; None if closed, or if a probe in flight must end first."""
        return self.probe_at if self.is_open and self._probes < MAX_PROBES else None

    def may_probe(self, now: float) -> bool:
        """Whether a probe may be sent now."""
        return self.is_open and now >= self.probe_at and self._probes < MAX_PROBES

    def start_probe(self, now: float) -> None:
        """Record that a probe was sent."""
        self._probes += 1
        self.probe_at = now + self._probe_interval(now)

    def end_probe(self, success: bool | None, now: float) -> bool:
        """Record the result of a probe; None if it ended without one. Returns whether the breaker closes."""
        self._probes -= 1
        if success is None:
            self.probe_at = now  # nothing was learned, so probe again at once
        if not success:
            return False
        self._closed_at = now
        self.is_open = False
        self.generation += 1
        self.probe_at = math.inf
        self._failures = self._consecutive = self._successes = self._probes = 0
        return True

    def _start_outage(self, now: float) -> None:
        """Start a new outage, unless the last one has only just ended."""
        recovered = self._successes >= RECOVERY_THRESHOLD
        if recovered or now - self._closed_at > self._closed_at - self.outage_started:
            self.outage_started = now

    def _open(self, probe_at: float) -> None:
        self.is_open = True
        self.generation += 1
        self.probe_at = probe_at
        self._probes = 0

    def _probe_interval(self, now: float) -> float:
        interval = (now - self.outage_started) * PROBE_INTERVAL_SHARE
        return min(max(interval, MIN_PROBE_INTERVAL), MAX_PROBE_INTERVAL) * (0.75 + 0.5 * self._random())
