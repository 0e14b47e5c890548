"""The circuit breaker: calls wait while the service is down, and probes detect its recovery."""

import math
from collections.abc import Callable
from typing import Final, Literal

FAILURE_THRESHOLD: Final = 20  # number of overload signals that opens the breaker

SUCCESS_CREDIT: Final = 4
"""Number of overload signals that a success cancels. So the breaker opens only if fewer than one request in
five succeeds."""

MIN_DURATION_FACTOR: Final = 1.5
"""The overload signals must continue for this multiple of the usual latency without a success. A service
that is overloaded but not down also gives many in a row, but some requests succeed in between."""

LASTING_FACTOR: Final = 4
"""If the overload signals have continued this many times longer, twice their threshold opens the breaker even
with occasional successes."""

RETRY_AFTER_SIGNALS: Final = 3
"""Number of consecutive overload signals after which a Retry-After opens the breaker, unless it concerns the
whole API key."""

RECOVERY_THRESHOLD: Final = 50
"""Number of successes after which the next overload signal belongs to a new outage. Before that, it continues
the old outage, whose probes are further apart. Otherwise a service that answers an occasional probe would get
a burst of requests after each of many short pauses."""

PROBE_INTERVAL_SHARE: Final = 1 / 24
"""Time between probes as a share of the outage so far; with jitter, at most 1/19. Exponential backoff could
fall into step with a flapping service. In simulations with 1/16, unlucky jitter prolonged an outage of 20 s
by 4.3%, and saved at most 20 probes."""

MIN_PROBE_INTERVAL, MAX_PROBE_INTERVAL = 0.1, 5.0  # seconds between two probes, before jitter
MAX_PROBES: Final = 16  # maximum number of probes in flight; more than one, because a probe may hang
MAX_RETRY_AFTER: Final = 120.0  # longest pause in seconds after a Retry-After; longer ones are cut to it


class CircuitBreaker:
    """
    Opens when the service is down, and closes when a probe succeeds.

    A request belongs to the *generation* in which it was sent. Do not record responses to requests of an
    earlier generation: they are out of date.
    """

    def __init__(self, threshold: int, random: Callable[[], float]) -> None:
        self.is_open: bool = False  # whether only probes may be sent
        self.generation: int = 0  # number of times that the breaker has opened or closed
        self.probe_at: float = math.inf  # time of the next probe; infinite while the breaker is closed
        self.outage_started: float = 0.0  # start of the current or last outage
        self.last_success: float = -math.inf  # time of the latest response that was not an overload signal
        self._threshold: Final = threshold  # as `FAILURE_THRESHOLD`
        self._random: Final = random  # returns numbers from 0 to 1, for jitter
        self._failures = 0
        self._first_failure_sent = 0.0
        self._consecutive_failures = 0
        self._successes = RECOVERY_THRESHOLD  # since the breaker closed
        self._closed_at = 0.0
        self._probes = 0  # in flight

    @property
    def state(self) -> Literal["closed", "open", "half-open"]:
        if not self.is_open:
            return "closed"
        return "half-open" if self._probes else "open"

    def record_success(self, now: float) -> None:
        """Record a response that is not an overload signal."""
        self.last_success = now
        self._successes += 1
        self._consecutive_failures = 0
        if self._failures:
            self._failures = max(0, self._failures - SUCCESS_CREDIT)

    def record_overload(self, sent: float, latency: float, now: float) -> bool:
        """Record an overload signal for a request sent at *sent*. Returns whether the breaker opens."""
        if not self._failures:
            self._first_failure_sent = sent
            self._start_outage(now)
        self._failures += 1
        self._consecutive_failures += 1
        min_duration = MIN_DURATION_FACTOR * latency
        without_success = now - max(self._first_failure_sent, self.last_success) >= min_duration
        lasting = now - self._first_failure_sent >= LASTING_FACTOR * min_duration
        opens = (without_success and self._failures >= self._threshold) or (
            lasting and self._failures >= 2 * self._threshold
        )
        if opens:
            self._open(now + self._probe_interval(now))
        return opens

    def on_retry_after(self, seconds: float, now: float, *, key_wide: bool) -> bool:
        """
        Open the breaker for the Retry-After of an overload signal, or keep it open longer.

        *key_wide* tells whether the signal concerns all requests with the API key, as a 429 of its rate limit
        does. A 503 may concern a single request. Returns whether the breaker opens.
        """
        until = now + min(seconds, MAX_RETRY_AFTER) * (1 + 0.05 * self._random())  # jitter
        if self.is_open:
            self.probe_at = max(self.probe_at, until)
            return False
        if not key_wide and self._consecutive_failures < RETRY_AFTER_SIGNALS:
            return False
        self._open(until)
        return True

    def trip(self, now: float) -> None:
        """Open because another session with the same API key found that the service is down."""
        if not self._failures:
            self._start_outage(now)
        self._open(now + self._probe_interval(now))

    @property
    def next_probe_at(self) -> float:
        """`probe_at`; infinite if a probe in flight must end first."""
        return self.probe_at if self._probes < MAX_PROBES else math.inf

    def start_probe(self, now: float) -> None:
        self._probes += 1
        self.probe_at = now + self._probe_interval(now)

    def end_probe(self, success: bool | None, now: float) -> bool:
        """Record the result of a probe; None if there is no result. Returns whether the breaker closes."""
        self._probes -= 1
        if success is None:
            self.probe_at = now  # probe again at once
        if not success:
            return False
        self._closed_at = now
        self.is_open = False
        self.generation += 1
        self.probe_at = math.inf
        self._failures = self._consecutive_failures = self._successes = self._probes = 0
        return True

    def _start_outage(self, now: float) -> None:
        """Start a new outage if the service has recovered from the last one. Otherwise that one continues."""
        last_outage = self._closed_at - self.outage_started
        if self._successes >= RECOVERY_THRESHOLD or now - self._closed_at > last_outage:
            self.outage_started = now

    def _open(self, probe_at: float) -> None:
        self.is_open = True
        self.generation += 1
        self.probe_at = probe_at
        self._probes = 0

    def _probe_interval(self, now: float) -> float:
        interval = (now - self.outage_started) * PROBE_INTERVAL_SHARE
        jitter = 0.75 + 0.5 * self._random()
        return min(max(interval, MIN_PROBE_INTERVAL), MAX_PROBE_INTERVAL) * jitter
