"""The adaptive concurrency limit: slow start, then CUBIC growth, and a decrease on many refusals."""

import math
from typing import Final

CUBIC_BETA: Final = 0.7
"""Factor of a decrease (RFC 9438, section 4.6)."""

CUBIC_C: Final = 0.05
"""Growth: back at the old limit 1.8 s after a decrease, at twice the limit 4.5 s after it."""

TOLERATED_SHARE: Final = 0.1
"""Share of refusals that does not mean overload: any service answers some requests with a 503."""

LEARNED_TOLERATED_SHARE: Final = 0.04
"""The same after a decrease has ended the refusals, which shows that the load causes them."""

SIGNIFICANCE: Final = 2.5
"""Standard deviations above the tolerated share that are significant; by chance in 1 of 160 checks."""

MAX_LATENCY_FACTOR: Final = 2.0
"""Multiple of the baseline latency above which the service is queueing, so the limit must not grow."""

SLOWER: Final = 1.33
"""Multiple of the baseline latency above which requests are certainly slower than usual."""

BASELINE_TTL: Final = 30.0
"""Seconds for which the baseline latency is valid. If an expired baseline keeps the limit from growing, the
limit is lowered for one window and the latency measured again, as in BBR. Otherwise the limit could never
grow after the service became permanently slower, or would rise until requests queue."""

FIRST_BASELINE_TTL: Final = 3.0
"""The same for the first baseline, which is too low if latencies vary: fast responses arrive first."""

MAX_INITIAL_LIMIT: Final = 100
"""Maximum limit before the first response. A service that refuses requests does so within 5 ms, long before
the first responses arrive."""

LONG_OUTAGE: Final = 10.0
"""Seconds. After half of that, a service may have lost its warm caches: then start with half the limit."""

DEFAULT_LATENCY: Final = 0.1
"""Latency in seconds, assumed before the first response."""


class ConcurrencyLimiter:
    """
    The adaptive concurrency limit, between 1 and *maximum*.

    Record each response with `record_response` or `record_overload`, in chronological order.

    Attributes:
        value: The limit; round it down.
        refusal_share: Share of overload signals, as an exponential average of the latest 50 requests.
        latency: Latency in seconds: the geometric mean of the last window, because a few responses of ten
            seconds must not look like a queue.
    """

    def __init__(self, maximum: int, initial: int) -> None:
        self._maximum: Final = maximum
        self.value: float = float(min(initial, maximum, MAX_INITIAL_LIMIT))
        self.latency: float = DEFAULT_LATENCY
        self._ssthresh = float(maximum)  # the slow start threshold (RFC 9438)
        self._cap = 2 * self.value  # the limit of slow start in this window
        self._slow_start = True
        self._plateau = self.value  # of the cubic
        self._cubic_started = 0.0  # when the cubic started
        # The window of latencies.
        self._log_latencies = 0.0
        self._latencies = 0
        self._responses = 0
        self._peak = self._peak_before = 0  # most requests in flight, in this window and the last one
        self._size = 0
        self._window_ended = 0.0
        # The baseline latency, without a queue.
        self._baseline: float | None = None
        self._baseline_expires = math.inf
        self._first_baseline = True
        self._probe_at = -math.inf
        self._before_probe: float | None = None
        self._headroom_before_probe = 1.0
        # The share of refusals.
        self.refusal_share: float = 0.0
        self._requests = 0.0
        self._refusals = 0.0
        self._decreased_at = -math.inf
        self._share = 0.0  # at the last decrease
        self._requests_since = self._refusals_since = 0.0  # since the last decrease
        self._effect_known = True  # whether the effect of the last decrease is known
        self._decrease_helped = False
        self._ineffective_decreases = 0  # consecutive decreases without effect
        self._before_decreases = self.value
        self._before_last_decrease = (self.value, self._ssthresh, True)
        self._tolerated = TOLERATED_SHARE
        self._resize()

    def record_response(self, sent: float, in_flight: int, now: float, timed: bool) -> None:
        """
        Record a response that is not an overload signal, with the requests in flight before it.

        *timed* says whether its latency counts: that of an error may not be the latency of the service.
        """
        self.refusal_share *= 0.98
        if sent > self._decreased_at:
            self._requests += 1.0
            self._requests_since += 1.0
        if sent <= self._probe_at:
            return
        if timed:
            latency = now - sent
            self._log_latencies += math.log(latency) if latency > 1e-6 else -13.8
            self._latencies += 1
        self._responses += 1
        if in_flight > self._peak:
            self._peak = in_flight
        if (
            self._slow_start
            and self.value < self._cap
            and 2 * max(self._peak, self._peak_before) > self.value
        ):
            self.value += 1.0
            if self.value >= self._ssthresh:
                self._leave_slow_start(self._ssthresh, now)
        if self._responses >= self._size:
            self._end_window(now)

    def record_overload(self, sent: float, now: float) -> None:
        """Record an overload signal for a request sent at *sent*."""
        self.refusal_share += 0.02 * (1 - self.refusal_share)
        if sent <= self._decreased_at:
            return  # it concerns the limit before the decrease
        latency = now - sent
        self._requests += 1.0
        self._refusals += 1.0
        self._requests_since += 1.0
        self._refusals_since += 1.0
        if latency > self.latency:  # a timeout: only the fast requests were served
            self._log_latencies += math.log(latency)
            self._latencies += 1
        if self._requests < 20 or now - self._decreased_at < max(0.5, 2 * self.latency):
            return
        if self._refusals > _significant(self._tolerated, self._requests):
            self._decrease(now)

    def pause(self, since: float) -> None:
        """The circuit breaker opened for an outage that started at *since*: undo a later decrease."""
        self._end_probe()
        if self._decreased_at >= since:
            self.value, self._ssthresh, self._slow_start = self._before_last_decrease

    def resume(self, now: float, outage: float) -> None:
        """After *outage* seconds, start with a part of the limit and return to the full one in slow start."""
        self._ssthresh = max(self._ssthresh if self._slow_start else self.value, 1.0)
        self.value = max(1.0, self.value * max(0.5, 1 - outage / LONG_OUTAGE))
        self._slow_start = True
        self._cap = 2 * self.value
        self._effect_known = True
        self._forget_refusals()
        self._begin_window(now)

    def _end_window(self, now: float) -> None:
        """Adapt the limit to the latencies of the window."""
        headroom = MAX_LATENCY_FACTOR  # factor by which the limit may grow without queueing too long
        if self._latencies * 2 >= self._responses:
            self.latency = math.exp(self._log_latencies / self._latencies)
            headroom = MAX_LATENCY_FACTOR * self._update_baseline(now) / self.latency
        used = max(self._peak, self._peak_before) >= 0.8 * math.floor(self.value)
        if not self._effect_known:
            self._check_effect()
        if self._slow_start:
            if headroom < 1:
                self._leave_slow_start(self.value, now)
            self._cap = self.value * headroom
        elif self._before_probe is not None:
            self._cubic_started += now - self._window_ended
        elif headroom < 1 or not used or not self._effect_known:
            self._cubic_started += now - self._window_ended  # does not count: it could not grow
        else:
            elapsed = now - self._cubic_started - math.cbrt((1 - CUBIC_BETA) / CUBIC_C)
            goal = self._plateau * (1 + CUBIC_C * elapsed**3)
            self.value = min(max(self.value, goal), self.value * min(headroom, 1.5), float(self._maximum))
        if self._tolerated > TOLERATED_SHARE and self._is_queueing:
            self._tolerated = TOLERATED_SHARE
        if self._requests >= 5 * self._size:
            if self._tolerated > TOLERATED_SHARE and self._refusals < self._tolerated / 2 * self._requests:
                self._tolerated = TOLERATED_SHARE
            self._requests /= 2
            self._refusals /= 2
        self._begin_window(now)

    def _update_baseline(self, now: float) -> float:
        latency = self.latency
        if self._baseline is None:
            self._baseline, self._baseline_expires = latency, now + FIRST_BASELINE_TTL
        elif self._before_probe is not None:
            self._end_probe()
            if latency < SLOWER * self._baseline:
                # Fewer requests in flight made responses faster, so the other requests were queueing.
                self.value = max(1.0, self.value * min(max(self._headroom_before_probe, 0.25), 1.0))
                self._plateau = min(self._plateau, self.value)
            elif self._first_baseline and latency > 1.5 * self._baseline:
                # A baseline that was too low ended slow start too early.
                self._slow_start, self._ssthresh, self._cap = True, float(self._maximum), 2 * self.value
            self._first_baseline = False
            self._baseline = latency
        elif latency < self._baseline:
            # Smoothed, because the minimum of many windows is an outlier.
            self._baseline += 0.2 * (latency - self._baseline)
        elif now > self._baseline_expires and not self._slow_start:
            self._baseline_expires = now + BASELINE_TTL
            if latency > SLOWER * self._baseline:
                self._before_probe, self._probe_at = self.value, now
                self._headroom_before_probe = MAX_LATENCY_FACTOR * self._baseline / latency
                self.value = max(1.0, self.value * max(self._baseline / latency, 0.125))
            else:
                self._baseline = latency
        return self._baseline

    @property
    def _is_queueing(self) -> bool:
        return self._baseline is not None and self.latency > SLOWER * self._baseline

    def _end_probe(self) -> None:
        if self._before_probe is not None:
            self.value, self._before_probe = self._before_probe, None

    def _decrease(self, now: float) -> None:
        self._end_probe()
        share = self._refusals / self._requests
        if self._decrease_helped or self._is_queueing:
            ineffective = False
        elif self._effect_known:
            ineffective = self._refusals_since > 0.6 * self._share * self._requests_since > 60 * self._share
        else:
            ineffective = 1 - share < 1.15 * (1 - self._share)
        if ineffective:
            self._ineffective_decreases += 1
        else:
            self._ineffective_decreases = 0
            self._before_decreases = self.value
        if self._ineffective_decreases >= 2:
            # Two decreases did not lower the share of refusals, so the load is not the cause.
            self._tolerated = min(0.9, share * 1.2)
            self._leave_slow_start(self._before_decreases, now)
            self._ineffective_decreases = 0
            self._effect_known = True
        else:
            self._before_last_decrease = (self.value, self._ssthresh, self._slow_start)
            self._effect_known = self._decrease_helped = False
            self._leave_slow_start(self.value, now)
            in_flight = max(self._peak, self._peak_before)
            if 0 < 2 * in_flight < self.value:
                self.value = float(in_flight)  # something else limits them, for example a rate
            self.value = max(1.0, self.value * CUBIC_BETA)
            self._cubic_started = now
            self._decreased_at = now
        self._share = share
        self._requests_since = self._refusals_since = 0.0
        self._forget_refusals()
        self._begin_window(now)

    def _check_effect(self) -> None:
        """Determine whether the last decrease helped."""
        if self._requests >= 20 and self._refusals < 0.02 * self._requests:
            self._tolerated = min(self._tolerated, LEARNED_TOLERATED_SHARE)
            self._effect_known = self._decrease_helped = True
        elif self._requests >= 100 or 20 <= self._requests > self._refusals / self._tolerated:
            self._effect_known = self._refusals <= _significant(self._tolerated, self._requests)

    def _leave_slow_start(self, value: float, now: float) -> None:
        """Leave slow start, at the plateau of the cubic."""
        self._slow_start = False
        self.value = self._plateau = value
        self._cubic_started = now - math.cbrt((1 - CUBIC_BETA) / CUBIC_C)

    def _forget_refusals(self) -> None:
        self._requests = self._refusals = 0.0

    def _begin_window(self, now: float) -> None:
        self._log_latencies, self._latencies, self._responses, self._window_ended = 0.0, 0, 0, now
        self._peak_before, self._peak = self._peak, 0
        self._resize()

    def _resize(self) -> None:
        # One round trip of all requests in flight; 20 latencies are needed, and 200 are enough.
        self._size = max(20, min(int(self.value), 200))


def _significant(tolerated: float, count: float) -> float:
    return tolerated * count + SIGNIFICANCE * math.sqrt(tolerated * (1 - tolerated) * count)
