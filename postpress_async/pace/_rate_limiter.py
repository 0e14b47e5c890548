"""The rate limiter: a configured ceiling, and a rate learned from 429s."""

import math
from typing import Final

from postpress_async.pace._background import CUSUM_THRESHOLD, THRESHOLD_PER_SHARE, Background, Trial

BURST: Final = 0.01
"""Seconds that a request may be early. More could exceed the tier's burst, which is unknown. Less would cost
throughput, because timers fire some milliseconds late."""

DECREASE_FACTOR: Final = 0.9
"""Factor by which a 429 lowers the rate."""

RECOVERY_TIME: Final = 5.0
"""Seconds until the rate is back at the plateau, and again until it is 10% above it. See `RateLimiter`."""

MIN_REQUESTS_PER_RECOVERY: Final = 200
"""A recovery takes at least the time of this many requests, up to a minute: each costs one or two 429s."""

RETRY_AFTER_FACTOR: Final = 4
"""A recovery takes at least this many times the Retry-After."""

DOUBLING_TIME: Final = 0.6
"""Seconds in which the rate doubles while the limit of the tier is only known to be higher."""

MIN_RATE: Final = 1.0
"""Lowest learned rate, in requests per second. Otherwise a session with one call an hour would learn a limit
of one request an hour from a 429."""

MIN_FIRST_RATE: Final = 10.0
"""The same for the first 429, which may arrive before any other response."""

BELOW_PLATEAU: Final = 0.97
"""Share of the plateau below which an unchanged tier refuses nothing."""

TRIAL_FACTOR: Final = 0.7
"""Multiple of the served rate that a trial allows. That rate may be inaccurate, or shared by sessions."""

SECOND_TRIAL_SHARE: Final = 0.12
"""Share of 429s above which a second trial at a much lower rate must agree. If several sessions with the same
key exceed the tier, a slightly lower rate of one of them changes little."""

SECOND_TRIAL_FACTOR: Final = 0.1
"""Multiple of the served rate that a second trial allows, or more for `MIN_TRIAL_429S`."""

MIN_TRIAL_429S: Final = 1.2
"""429s per second that a second trial would get if the rate does not cause them. It takes about 10 s then."""

MAX_TRIAL_SHARE: Final = 0.5
"""Share of 429s above which only the rate can be the cause."""

MIN_DECREASE_INTERVAL: Final = 0.5
"""Minimum seconds between decreases, so that the effect of the last one is known."""

MEASURING_WINDOW: Final = 1.0
"""Seconds over which the served rate is measured; at the first 429, a quarter of that is enough."""

MIN_MEASURED: Final = 20
"""Minimum number of responses over which the served rate is measured."""


class RateLimiter:
    """
    A token bucket whose rate is the lower of *ceiling* and the rate learned from 429s.

    Without either, it is not *active*, and `try_acquire` need not be called. A `Background` filters out 429s
    that do not depend on the rate. After too many others, a `Trial` of a lower rate decides whether the rate
    causes them. If so, it falls to 10% below the served rate, and recovers along a cubic whose plateau is the
    rate at the 429: ``plateau * (1 + 0.1 * ((t - 5) / 5) ** 3)``. It stays just below the limit of the tier
    most of the time, where a single 429 lowers it again, but soon finds a higher one: after t = 10 it doubles
    every 5 s. Time in which no request had to wait for the rate limit does not count.

    Attributes:
        active: Whether the rate is limited.
        value: Requests per second; infinite without a limit.
        ready_at: Time from which the next request may be sent.
        served: Requests served so far. The owner counts them.
    """

    def __init__(self, ceiling: float | None) -> None:
        self.ceiling: float = math.inf if ceiling is None else ceiling
        self.active: bool = ceiling is not None
        self.value: float = self.ceiling
        self.ready_at: float = -math.inf
        self.served: int = 0
        self._due = -math.inf  # time of the next request, as in the generic cell rate algorithm
        self._learned = math.inf
        self._plateau = 0.0
        self._plateau_reached = False  # by the time of the last decrease; otherwise it may be too high
        self._searching = True
        self._recovery = RECOVERY_TIME
        self._grown = 0.0  # seconds along the cubic
        self._grown_at = 0.0
        self._blocked = False  # whether a request has had to wait since the last growth
        self._decreased_at = -math.inf
        self._served_at_decrease = 0
        self._samples: list[tuple[float, int]] = []  # times, and the total served by then
        self._background: Final = Background()
        self._trial: Trial | None = None
        self._learned_before_trial, self._searching_before_trial = math.inf, True

    def try_acquire(self, now: float) -> bool:
        """Take a token if there is one. Returns whether there was."""
        if now < self.ready_at:
            self._blocked = True
            return False
        if self._trial is not None:
            self._trial.sent += 1
            self._end_trial(now)
        elif self._learned < math.inf:
            self._grow(now)
            if self._is_below:
                self._background.requests_below += 1
        self._due = (self._due if self._due > now else now) + 1 / self.value
        self.ready_at = self._due - BURST
        return True

    def set_ceiling(self, ceiling: float, now: float) -> None:
        """Change the ceiling. The wait for the next token changes in proportion."""
        before = self.value
        self.ceiling = ceiling
        self.active = True
        self.value = min(self._learned, ceiling)
        if self._due > now and before < math.inf:
            self._due = now + (self._due - now) * before / self.value
            self._make_ready()

    def refund(self) -> None:
        """Put the last token back, because its request was not sent."""
        if self.active:
            self._due -= 1 / self.value
            self._make_ready()

    def record_served(self, now: float) -> float:
        """Take a sample of `served`. Returns the time at which to call this again."""
        self._samples = [*self._samples[-1:], (now, self.served)]
        if self._background.share:
            self._background.update(self.served, limited=self._learned < math.inf)
        return now + self.measuring_window

    @property
    def measuring_window(self) -> float:
        """Seconds over which the served rate is measured."""
        return max(MEASURING_WINDOW, MIN_MEASURED / self.value)

    def resume(self, now: float) -> None:
        """Restart the measurement after a pause, in which nothing was served."""
        self._samples = [(now, self.served)]

    def record_throttled(self, sent: float, now: float, retry_after: float = 0.0, in_flight: int = 0) -> bool:
        """Record a 429. Returns whether the whole key is refused, so that its Retry-After concerns all."""
        if sent <= self._decreased_at:
            return False
        background, below = self._background, self._is_below
        total = background.record_throttled(self.served, in_flight, below=below)
        refused, requests = background.recent
        # Requests sent together may be refused together, before any of them is served.
        excess = total >= CUSUM_THRESHOLD + background.tolerated * in_flight
        if self._trial is not None:
            self._trial.refused += 1
            if self._end_trial(now):
                return False
        if now - self._decreased_at >= MIN_DECREASE_INTERVAL:
            if self._learned < math.inf and not below and not self._searching and self._trial is None:
                if total >= min(1 + THRESHOLD_PER_SHARE * background.share, CUSUM_THRESHOLD):
                    # Not below the plateau for want of requests, as after an outage.
                    within = self.value * (1 - (refused - 1) / requests)
                    self._decrease(now, retry_after, at_least=min(within, self._plateau))
            elif excess:
                self._decrease_and_try(now, retry_after, in_flight)
        return excess and refused >= requests / 2

    @property
    def _is_below(self) -> bool:
        """Whether an unchanged tier refuses nothing at this rate."""
        known = self._plateau_reached and not self._searching and self._trial is None
        return known and self._learned < BELOW_PLATEAU * self._plateau

    def _decrease_and_try(self, now: float, retry_after: float, in_flight: int) -> None:
        """Decrease the rate. If it may not be the cause of the 429s, start a trial of an even lower one."""
        if self._trial is None:
            self._learned_before_trial, self._searching_before_trial = self._learned, self._searching
        self._trial = None
        accurate = self._decrease(now, retry_after)
        refused, requests = self._background.recent
        self._background.restart()
        if accurate and refused <= MAX_TRIAL_SHARE * requests:
            self._trial = Trial(refused, requests, self._background.share, self.served + in_flight)
            self._set_learned(max(TRIAL_FACTOR * self._plateau, MIN_RATE))

    def _end_trial(self, now: float) -> bool:
        """End the trial if its result is known. Returns whether it ended."""
        assert self._trial is not None  # noqa: S101 - for mypy
        rate_is_cause = self._trial.result(self.served)
        if rate_is_cause is None:
            return False
        trial, self._trial = self._trial, None
        if not rate_is_cause and trial.share > SECOND_TRIAL_SHARE and not trial.is_second:
            self._trial = trial.second(self.served)
            rate = max(SECOND_TRIAL_FACTOR * self._plateau, MIN_TRIAL_429S / trial.share)
            self._set_learned(max(min(rate, TRIAL_FACTOR * self._plateau), MIN_RATE))
            return True
        self._decreased_at = self._grown_at = now
        if rate_is_cause:
            self._set_learned(max(self._plateau * DECREASE_FACTOR, MIN_RATE))
        else:
            self._background.learn(trial.share, self.served)
            learned, self._searching = self._learned_before_trial, self._searching_before_trial
            self._plateau = learned if learned < math.inf else 0.0
            self._set_learned(learned)
        self._background.restart()
        return True

    def _decrease(self, now: float, retry_after: float, at_least: float = 0.0) -> bool:
        """Decrease the rate to below the served rate. Returns whether that was measured for long enough."""
        when, before = self._samples[0] if self._samples else (now - MEASURING_WINDOW, 0)
        if (
            now - self._decreased_at < MEASURING_WINDOW
            and self.served - self._served_at_decrease >= MIN_MEASURED / 2
        ):
            # Requests served before the last decrease may have been served at another tier.
            when, before = self._decreased_at, self._served_at_decrease
        measured = (self.served - before) / max(now - when, MEASURING_WINDOW / 4)
        old = self.value
        # If the two agree, the current rate is more accurate, because the served rate lags behind it.
        plateau = old if measured > 0.9 * old else max(min(old, measured), at_least)
        # The tier's burst may hide for a while that the rate exceeds its limit.
        self._plateau_reached = BELOW_PLATEAU * old <= self._plateau
        self._plateau = max(plateau, MIN_RATE if self._learned < math.inf else MIN_FIRST_RATE)
        accurate = now - when >= MEASURING_WINDOW / 2
        self._searching = self._learned == math.inf or not accurate
        self._recovery = max(
            RECOVERY_TIME,
            min(MIN_REQUESTS_PER_RECOVERY / self._plateau, 60.0),
            RETRY_AFTER_FACTOR * retry_after,
        )
        self._grown = 0.0
        self._decreased_at = self._grown_at = now
        self._served_at_decrease = self.served
        if not self.active:
            self._due = now
        self._set_learned(max(self._plateau * DECREASE_FACTOR, MIN_RATE))
        self._make_ready()
        return accurate

    def _set_learned(self, rate: float) -> None:
        self._learned = rate
        self.value = min(rate, self.ceiling)
        self.active = self.value < math.inf

    def _grow(self, now: float) -> None:
        since, self._grown_at = min(now - self._grown_at, 1.0), now
        if not self._blocked:
            return
        self._blocked = False
        if self._searching:
            self._learned *= 2 ** (since / DOUBLING_TIME)
        else:
            self._grown += since
            reach = self._grown / self._recovery - 1
            if reach < 1:
                self._learned = max(self._learned, self._plateau * (1 + (1 - DECREASE_FACTOR) * reach**3))
            else:
                self._learned *= 2 ** (since / self._recovery)
        self.value = min(self._learned, self.ceiling)

    def _make_ready(self) -> None:
        self.ready_at = self._due - BURST
