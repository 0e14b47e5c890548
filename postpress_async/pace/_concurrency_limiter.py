"""The adaptive concurrency limit: slow start, then CUBIC growth, and a decrease on many refusals."""

import math
from typing import Final

CUBIC_BETA: Final = 0.7
"""Factor of a decrease (RFC 9438, section 4.6)."""

CUBIC_C: Final = 0.05
"""Growth: back at the old limit 1.8 s after a decrease, at twice the limit 4.5 s after it."""

TOLERATED_SHARE: Final = 0.1
"""Share of refusals that is not overload: services always answer some requests with a 503."""

LEARNED_TOLERATED_SHARE: Final = 0.03
"""The same, once a decrease has ended the refusals, so that the load must be their cause."""

SIGNIFICANCE: Final = 2.5
"""Standard deviations above the tolerated share that are significant: by chance in 1 of 160 checks."""

MAX_LATENCY_FACTOR: Final = 2.0
"""Factor of the best latency above which the service is queueing, so that the limit does not grow."""

BASELINE_TTL: Final = 30.0
"""Seconds for which the baseline latency is valid. Then, if it keeps the limit from growing, the limit is
lowered for a window and the latency measured again, as BBR does. Otherwise the limit would never grow again
after the service became slower for good, or would drift into the queue of one that only seemed slow."""

FIRST_BASELINE_TTL: Final = 3.0
"""The same for the first latencies: with a heavy tail, the fast responses arrive first."""

MAX_INITIAL_LIMIT: Final = 100
"""Highest limit before the first response. A service that refuses requests does so within 5 ms, long before
the first responses show anything."""

DEFAULT_LATENCY: Final = 0.1
"""Latency in seconds that is assumed before the first response."""


class ConcurrencyLimiter:
    """
    The adaptive concurrency limit, between 1 and *most*.

    Report each response with `record_response` or `record_overload`, in order of time.

    Args:
        most: Highest limit.
        start: First limit.

    Attributes:
        value: The limit; its fraction is ignored.
        latency: Seconds of a response: the geometric mean of the last window, because a few responses of
            ten seconds must not look like a queue.
    """

    def __init__(self, most: int, start: int) -> None:
        self.most: Final = most
        self.value: float = float(min(start, most, MAX_INITIAL_LIMIT))
        self.latency: float = DEFAULT_LATENCY
        self._target = float(most)  # where slow start ends
        self._cap = 2 * self.value  # the most that slow start reaches in this window
        self._starting = True
        self._top = self.value  # plateau of the cubic
        self._since = 0.0  # when the cubic began
        # The window of latencies.
        self._logs = 0.0
        self._timed = 0
        self._answers = 0
        self._peak = self._peak_before = 0  # most in flight in this window and the last one
        self._size = 0
        self._window_ended = 0.0
        # The baseline latency, without a queue.
        self._baseline: float | None = None
        self._baseline_expires = math.inf
        self._first_baseline = True
        self._probe_at = -math.inf
        self._before_probe: float | None = None
        self._room_before_probe = 1.0
        # The share of refusals.
        self._count = 0.0
        self._refusals = 0.0
        self._decreased_at = -math.inf
        self._share = 0.0  # at the last decrease
        self._count_since = self._refusals_since = 0.0  # since the last decrease
        self._effect_known = True  # whether the effect of the last decrease is known
        self._helped = False
        self._useless = 0  # decreases in a row without effect
        self._undo = self.value
        self._before_decrease = (self.value, self._target, True)
        self._tolerated = TOLERATED_SHARE
        self._resize()

    def record_response(self, sent: float, in_flight: int, now: float, timed: bool) -> None:
        """
        Record a response that is not a signal of overload, to a request sent at *sent*.

        Args:
            sent: Time at which the request was sent.
            in_flight: Requests in flight before the response arrived.
            now: The time.
            timed: Whether it was a success: another error may not have the latency of the service.
        """
        if sent > self._decreased_at:
            self._count += 1.0
            self._count_since += 1.0
        if sent <= self._probe_at:
            return
        if timed:
            latency = now - sent
            self._logs += math.log(latency) if latency > 1e-6 else -13.8
            self._timed += 1
        self._answers += 1
        if in_flight > self._peak:
            self._peak = in_flight
        if self._starting and self.value < self._cap and 2 * max(self._peak, self._peak_before) > self.value:
            self.value += 1.0
            if self.value >= self._target:
                self._leave_start(self._target, now)
        if self._answers >= self._size:
            self._end_window(now)

    def record_overload(self, sent: float, now: float) -> None:
        """Record a signal of overload, for a request sent at *sent*."""
        if sent <= self._decreased_at:
            return  # it concerns the limit before the decrease
        latency = now - sent
        self._count += 1.0
        self._refusals += 1.0
        self._count_since += 1.0
        self._refusals_since += 1.0
        if latency > self.latency:  # a timeout: only the fast requests were served
            self._logs += math.log(latency)
            self._timed += 1
        if self._count < 20 or now - self._decreased_at < max(0.5, 2 * self.latency):
            return
        if self._refusals > _significant(self._tolerated, self._count):
            self._decrease(now)

    def pause(self, since: float) -> None:
        """The circuit breaker opened for an outage since *since*: undo a decrease after that."""
        self._end_probe()
        if self._decreased_at >= since:
            self.value, self._target, self._starting = self._before_decrease

    def resume(self, now: float) -> None:
        """Continue after an outage with half the limit, and return to the old limit in slow start."""
        self._target = max(self._target if self._starting else self.value, 1.0)
        self.value = max(1.0, self.value / 2)
        self._starting = True
        self._cap = 2 * self.value
        self._effect_known = True
        self._forget_refusals()
        self._begin_window(now)

    def _end_window(self, now: float) -> None:
        """At the end of a window: adapt the limit to the latencies."""
        room = MAX_LATENCY_FACTOR  # factor by which the limit may grow without queueing too long
        if self._timed * 2 >= self._answers:
            self.latency = math.exp(self._logs / self._timed)
            room = MAX_LATENCY_FACTOR * self._update_baseline(now) / self.latency
        used = max(self._peak, self._peak_before) >= 0.8 * math.floor(self.value)
        if not self._effect_known:
            self._check_effect()
        if self._starting:
            if room < 1:
                self._leave_start(self.value, now)
            self._cap = self.value * room
        elif self._before_probe is not None:
            self._since += now - self._window_ended
        elif room < 1 or not used or not self._effect_known:
            self._since += now - self._window_ended  # does not count: it could not grow
        else:
            reach = now - self._since - math.cbrt((1 - CUBIC_BETA) / CUBIC_C)
            goal = self._top * (1 + CUBIC_C * reach**3)
            self.value = min(max(self.value, goal), self.value * min(room, 1.5), float(self.most))
        if self._count >= 5 * self._size:
            if self._tolerated > TOLERATED_SHARE and self._refusals < self._tolerated / 2 * self._count:
                self._tolerated = TOLERATED_SHARE
            self._count /= 2
            self._refusals /= 2
        self._begin_window(now)

    def _update_baseline(self, now: float) -> float:
        latency = self.latency
        if self._baseline is None:
            self._baseline, self._baseline_expires = latency, now + FIRST_BASELINE_TTL
        elif self._before_probe is not None:
            self._end_probe()
            if latency < 1.33 * self._baseline:
                # With fewer in flight, responses are faster: the rest had only been queueing.
                self.value = max(1.0, self.value * min(max(self._room_before_probe, 0.25), 1.0))
                self._top = min(self._top, self.value)
            elif self._first_baseline and latency > 1.5 * self._baseline:
                # A baseline that was too low ended slow start too early.
                self._starting, self._target, self._cap = True, float(self.most), 2 * self.value
            self._first_baseline = False
            self._baseline = latency
        elif latency < self._baseline:
            self._baseline += 0.2 * (
                latency - self._baseline
            )  # smoothed: the lowest of many windows would be chance
        elif now > self._baseline_expires and not self._starting:
            self._baseline_expires = now + BASELINE_TTL
            if latency > 1.33 * self._baseline:
                self._before_probe, self._probe_at = self.value, now
                self._room_before_probe = MAX_LATENCY_FACTOR * self._baseline / latency
                self.value = max(1.0, self.value * max(self._baseline / latency, 0.125))
            else:
                self._baseline = latency
        return self._baseline

    def _end_probe(self) -> None:
        if self._before_probe is not None:
            self.value, self._before_probe = self._before_probe, None

    def _decrease(self, now: float) -> None:
        self._end_probe()
        share = self._refusals / self._count
        if self._helped:
            useless = False
        elif self._effect_known:
            useless = self._refusals_since > 0.6 * self._share * self._count_since > 60 * self._share
        else:
            useless = 1 - share < 1.15 * (1 - self._share)
        if useless:
            self._useless += 1
        else:
            self._useless = 0
            self._undo = self.value
        if self._useless >= 2:
            # Two decreases left the share of refusals as it was, so the load is not the cause.
            self._tolerated = min(0.9, share * 1.2)
            self._leave_start(self._undo, now)
            self._useless = 0
            self._effect_known = True
        else:
            self._before_decrease = (self.value, self._target, self._starting)
            self._effect_known = self._helped = False
            self._leave_start(self.value, now)
            self.value = max(1.0, self.value * CUBIC_BETA)
            self._since = now
            self._decreased_at = now
        self._share = share
        self._count_since = self._refusals_since = 0.0
        self._forget_refusals()
        self._begin_window(now)

    def _check_effect(self) -> None:
        """Find out whether the last decrease helped."""
        if self._count >= 20 and self._refusals < 0.02 * self._count:
            self._tolerated = min(self._tolerated, LEARNED_TOLERATED_SHARE)
            self._effect_known = self._helped = True
        elif self._count >= 100 or self._refusals < self._tolerated * self._count:
            self._effect_known = self._refusals <= _significant(self._tolerated, self._count)

    def _leave_start(self, value: float, now: float) -> None:
        """Continue at the plateau of the cubic."""
        self._starting = False
        self.value = self._top = value
        self._since = now - math.cbrt((1 - CUBIC_BETA) / CUBIC_C)

    def _forget_refusals(self) -> None:
        self._count = self._refusals = 0.0

    def _begin_window(self, now: float) -> None:
        self._logs, self._timed, self._answers, self._window_ended = 0.0, 0, 0, now
        self._peak_before, self._peak = self._peak, 0
        self._resize()

    def _resize(self) -> None:
        # One round trip of all requests in flight. Fewer than 20 latencies say nothing, and more than 200
        # no more than 200.
        self._size = max(20, min(int(self.value), 200))


def _significant(tolerated: float, count: float) -> float:
    return tolerated * count + SIGNIFICANCE * math.sqrt(tolerated * (1 - tolerated) * count)
