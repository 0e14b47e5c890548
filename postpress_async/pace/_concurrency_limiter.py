"""The adaptive concurrency limit: slow start, then CUBIC growth, and a decrease on many overload signals."""

import math
from typing import Final

CUBIC_BETA: Final = 0.7  # factor of a decrease (RFC 9438, section 4.6)
CUBIC_C: Final = 0.05  # growth of the cubic: 4.5 s after a decrease, the limit is twice its old value
CUBIC_K: Final = math.cbrt((1 - CUBIC_BETA) / CUBIC_C)  # seconds from a decrease to the old value: 1.8

TOLERATED_SHARE: Final = 0.1
"""Share of overload signals that is tolerated, because any service answers some requests with a 503."""

LEARNED_TOLERATED_SHARE: Final = 0.04
"""The same after a decrease has ended the overload signals, which shows that the load causes them."""

SIGNIFICANCE: Final = 2.5
"""Number of standard deviations above the tolerated share that is significant. By chance, 1 of 160 checks
exceeds it."""

MIN_REQUESTS: Final = 20  # minimum number of requests for which a share of overload signals is checked
ENOUGH_REQUESTS: Final = 100  # number of requests after which the effect of a decrease is known
AVERAGE_WEIGHT: Final = 0.02  # weight of a request in `overload_share`: about the latest 50 requests count
MAX_LATENCY_FACTOR: Final = 2.0  # multiple of the baseline latency above which requests queue
SLOWDOWN_FACTOR: Final = 1.33  # multiple of the baseline latency above which responses are certainly slower

BASELINE_TTL: Final = 30.0
"""Seconds for which the baseline latency is valid. If it has expired and responses are slower, a probe lowers
the limit for one window and measures the latency again, as in BBR. Without probes, the limit could not grow
after the service became permanently slower. Without a baseline, it would grow until requests queue."""

FIRST_BASELINE_TTL: Final = 3.0
"""The same for the first baseline, which may be too low, because fast responses arrive first."""

MAX_INITIAL_LIMIT: Final = 100
"""Maximum limit before the first response. An overloaded service may respond with errors within 5 ms, so a
higher limit would give very many of them before the first success."""

HALVING_OUTAGE: Final = 5.0
"""Seconds of an outage after which calls continue at half the limit, because the service may have lost its
warm caches. After a shorter outage, the limit is higher in proportion."""

DEFAULT_LATENCY: Final = 0.1  # latency in seconds that is assumed before the first response
MIN_LATENCY: Final = 1e-6  # shortest latency in seconds whose logarithm is used

MIN_WINDOW, MAX_WINDOW = 20, 200
"""Minimum and maximum number of responses in a window. Between them, a window has as many responses as the
concurrency limit: one round trip of all requests in flight."""


class ConcurrencyLimiter:
    """
    The adaptive concurrency limit, between 1 and *maximum*.

    Record each response with `record_response` or `record_overload`, in chronological order. At the end of
    each window of responses, the limit is adapted to the latency.
    """

    def __init__(self, maximum: int, initial: int) -> None:
        self._maximum: Final = maximum
        self.value: float = float(min(initial, maximum, MAX_INITIAL_LIMIT))  # the limit; round it down
        # The geometric mean of the last window, in seconds. With an arithmetic mean, a few responses of ten
        # seconds would look like a queue.
        self.latency: float = DEFAULT_LATENCY
        self._ssthresh = float(maximum)  # the slow start threshold (RFC 9438)
        self._window_cap = 2 * self.value  # slow start does not exceed it in this window
        self._slow_start = True
        self._plateau = self.value  # of the cubic
        self._cubic_started = 0.0
        self._peak = self._peak_before = 0  # most requests in flight in this window, and in the last one
        self._begin_window(0.0)
        # The baseline: the latency if no request queues.
        self._baseline: float | None = None
        self._baseline_expires = math.inf
        self._first_baseline = True
        self._probe_started = -math.inf
        self._value_before_probe: float | None = None
        self._headroom_before_probe = 1.0
        # The share of overload signals.
        self.overload_share: float = 0.0  # exponential average of about the latest 50 requests
        self._requests = self._overloads = 0.0
        self._decreased_at = -math.inf
        self._share_at_decrease = 0.0
        self._requests_since_decrease = self._overloads_since_decrease = 0.0
        self._effect_known = True  # whether the effect of the last decrease is known
        self._decrease_helped = False
        self._ineffective_decreases = 0  # consecutive ones
        self._value_before_decreases = self.value
        self._before_last_decrease = (self.value, self._ssthresh, self._slow_start)
        self._tolerated = TOLERATED_SHARE

    def record_response(self, sent: float, in_flight: int, now: float, timed: bool) -> None:
        """
        Record a response that is not an overload signal, with the requests in flight, including this one.

        *timed* tells whether the latency counts: error responses may be faster than the service usually is.
        """
        self.overload_share *= 1 - AVERAGE_WEIGHT
        if sent > self._decreased_at:
            self._requests += 1.0
            self._requests_since_decrease += 1.0
        if sent <= self._probe_started:
            return
        if timed:
            latency = now - sent
            self._log_latency_sum += math.log(latency if latency > MIN_LATENCY else MIN_LATENCY)
            self._timed_responses += 1
        self._responses += 1
        if in_flight > self._peak:
            self._peak = in_flight
        if (
            self._slow_start
            and self.value < self._window_cap
            and 2 * max(self._peak, self._peak_before) > self.value
        ):
            self.value += 1.0
            if self.value >= self._ssthresh:
                self._leave_slow_start(self._ssthresh, now)
        if self._responses >= self._window_size:
            self._end_window(now)

    def record_overload(self, sent: float, now: float) -> None:
        self.overload_share += AVERAGE_WEIGHT * (1 - self.overload_share)
        if sent <= self._decreased_at:
            return  # the request was sent at the limit before the decrease
        latency = now - sent
        self._requests += 1.0
        self._overloads += 1.0
        self._requests_since_decrease += 1.0
        self._overloads_since_decrease += 1.0
        if latency > self.latency:  # a timeout; without it, only the latencies of fast requests would count
            self._log_latency_sum += math.log(latency)
            self._timed_responses += 1
        if self._requests < MIN_REQUESTS or now - self._decreased_at < max(0.5, 2 * self.latency):
            return  # it is too early for a share, or for the effect of the last decrease
        if self._overloads > _significant(self._tolerated, self._requests):
            self._decrease(now)

    def pause(self, since: float) -> None:
        """Undo a decrease that the outage from *since* has caused, because the circuit breaker has opened."""
        self._end_probe()
        if self._decreased_at >= since:
            self.value, self._ssthresh, self._slow_start = self._before_last_decrease

    def resume(self, now: float, outage: float) -> None:
        """Continue after *outage* seconds, in slow start from a part of the limit back to the full limit."""
        self._ssthresh = max(self._ssthresh if self._slow_start else self.value, 1.0)
        self.value = max(1.0, self.value * max(0.5, 1 - 0.5 * outage / HALVING_OUTAGE))
        self._slow_start = True
        self._window_cap = 2 * self.value
        self._effect_known = True
        self._requests = self._overloads = 0.0
        self._begin_window(now)

    def _end_window(self, now: float) -> None:
        """Adapt the limit to the latencies of the window."""
        headroom = MAX_LATENCY_FACTOR  # factor by which the limit may grow without queueing too long
        if self._timed_responses * 2 >= self._responses:
            self.latency = math.exp(self._log_latency_sum / self._timed_responses)
            headroom = MAX_LATENCY_FACTOR * self._update_baseline(now) / self.latency
        used = max(self._peak, self._peak_before) >= 0.8 * math.floor(self.value)
        if not self._effect_known:
            self._check_effect()
        if self._slow_start:
            if headroom < 1:
                self._leave_slow_start(self.value, now)
            self._window_cap = self.value * headroom
        elif self._value_before_probe is not None or headroom < 1 or not used or not self._effect_known:
            self._cubic_started += now - self._window_ended  # the limit must not catch up for this time later
        else:
            elapsed = now - self._cubic_started - CUBIC_K
            target = self._plateau * (1 + CUBIC_C * elapsed**3)
            self.value = min(max(self.value, target), self.value * min(headroom, 1.5), float(self._maximum))
        is_measured = self._requests >= 5 * self._window_size
        if self._is_queueing or (is_measured and self._overloads < self._tolerated / 2 * self._requests):
            self._tolerated = min(self._tolerated, TOLERATED_SHARE)
        if is_measured:
            self._requests /= 2
            self._overloads /= 2
        self._begin_window(now)

    def _update_baseline(self, now: float) -> float:
        """Adapt the baseline to the latency of the window, and start or end a probe. Returns the baseline."""
        latency = self.latency
        if self._baseline is None:
            self._baseline, self._baseline_expires = latency, now + FIRST_BASELINE_TTL
        elif self._value_before_probe is not None:
            self._end_probe()
            if latency < SLOWDOWN_FACTOR * self._baseline:
                # Fewer requests in flight made responses faster, so requests had been queueing.
                self.value = max(1.0, self.value * min(max(self._headroom_before_probe, 0.25), 1.0))
                self._plateau = min(self._plateau, self.value)
            elif self._first_baseline and latency > 1.5 * self._baseline:
                # The baseline was too low, which ended slow start too early: continue slow start.
                self._slow_start = True
                self._ssthresh = float(self._maximum)
                self._window_cap = 2 * self.value
            self._first_baseline = False
            self._baseline = latency
        elif latency < self._baseline:
            # Smoothed, because the lowest latency of many windows is an outlier.
            self._baseline += 0.2 * (latency - self._baseline)
        elif now > self._baseline_expires and not self._slow_start:
            self._baseline_expires = now + BASELINE_TTL
            if latency > SLOWDOWN_FACTOR * self._baseline:
                self._value_before_probe, self._probe_started = self.value, now
                self._headroom_before_probe = MAX_LATENCY_FACTOR * self._baseline / latency
                self.value = max(1.0, self.value * max(self._baseline / latency, 0.125))
            else:
                self._baseline = latency
        return self._baseline

    @property
    def _is_queueing(self) -> bool:
        return self._baseline is not None and self.latency > SLOWDOWN_FACTOR * self._baseline

    def _end_probe(self) -> None:
        if self._value_before_probe is not None:
            self.value, self._value_before_probe = self._value_before_probe, None

    def _decrease(self, now: float) -> None:
        self._end_probe()
        share = self._overloads / self._requests
        if self._was_ineffective(share):
            self._ineffective_decreases += 1
        else:
            self._ineffective_decreases = 0
            self._value_before_decreases = self.value
        if self._ineffective_decreases >= 2:
            # Two decreases did not lower the share of overload signals, so the load is not their cause.
            self._tolerated = min(0.9, share * 1.2)
            self._leave_slow_start(self._value_before_decreases, now)
            self._ineffective_decreases = 0
            self._effect_known = True
        else:
            self._before_last_decrease = (self.value, self._ssthresh, self._slow_start)
            self._effect_known = self._decrease_helped = False
            self._leave_slow_start(self.value, now)
            in_flight = max(self._peak, self._peak_before)
            if 0 < 2 * in_flight < self.value:
                self.value = float(in_flight)  # something else limits the requests, for example the rate
            self.value = max(1.0, self.value * CUBIC_BETA)
            self._cubic_started = now
            self._decreased_at = now
        self._share_at_decrease = share
        self._requests_since_decrease = self._overloads_since_decrease = 0.0
        self._requests = self._overloads = 0.0
        self._begin_window(now)

    def _was_ineffective(self, share: float) -> bool:
        """Whether the last decrease did not help; *share* is the present share of overload signals."""
        if self._decrease_helped or self._is_queueing:
            return False
        if not self._effect_known:
            return 1 - share < 1.15 * (1 - self._share_at_decrease)  # the share of successes hardly grew
        share_before, requests = self._share_at_decrease, self._requests_since_decrease
        is_measured = share_before > 0 and requests > ENOUGH_REQUESTS
        return is_measured and self._overloads_since_decrease > 0.6 * share_before * requests

    def _check_effect(self) -> None:
        if self._requests < MIN_REQUESTS:
            return
        if self._overloads < 0.02 * self._requests:
            self._tolerated = min(self._tolerated, LEARNED_TOLERATED_SHARE)
            self._effect_known = self._decrease_helped = True
        elif self._requests >= ENOUGH_REQUESTS or self._overloads < self._tolerated * self._requests:
            self._effect_known = self._overloads <= _significant(self._tolerated, self._requests)

    def _leave_slow_start(self, value: float, now: float) -> None:
        """Leave slow start with the limit *value*, which is the plateau of the cubic."""
        self._slow_start = False
        self.value = self._plateau = value
        self._cubic_started = now - CUBIC_K

    def _begin_window(self, now: float) -> None:
        self._log_latency_sum = 0.0
        self._timed_responses = self._responses = 0
        self._window_ended = now
        self._peak_before, self._peak = self._peak, 0
        self._window_size = max(MIN_WINDOW, min(int(self.value), MAX_WINDOW))


def _significant(tolerated: float, count: float) -> float:
    """The largest number of overload signals of *count* requests that may exceed the share by chance."""
    return tolerated * count + SIGNIFICANCE * math.sqrt(tolerated * (1 - tolerated) * count)
