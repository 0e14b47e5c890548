"""The rate limiter: a configured ceiling, and a rate learned from 429s."""

import math
from typing import Final

from postpress_async.pace._background import CUSUM_THRESHOLD, THRESHOLD_PER_SHARE, Background, Trial

BURST: Final = 0.01
"""Seconds by which a request may be early. A larger value could exceed the burst that the tier allows, which
is unknown. A smaller one would cost throughput, because timers fire some milliseconds late."""

DECREASE_FACTOR: Final = 0.9  # factor by which a 429 lowers the rate
DOUBLING_TIME: Final = 0.6  # seconds in which the rate doubles while the tier's limit is unknown but higher
MIN_DECREASE_INTERVAL: Final = 0.5  # seconds between decreases, so that the effect of the last one is known

RECOVERY_TIME: Final = 5.0
"""Seconds after a decrease until the rate is back at the plateau. After twice that, it is 10% above it."""

MIN_REQUESTS_PER_RECOVERY: Final = 200  # minimum requests, because each recovery costs one or two 429s
MAX_RECOVERY_FOR_REQUESTS: Final = 60.0  # maximum seconds to which this minimum prolongs a recovery
RETRY_AFTER_FACTOR: Final = 4  # a recovery lasts for at least this multiple of the Retry-After

MIN_RATE: Final = 1.0
"""Lowest learned rate, in requests per second. Without it, a session with one call per hour would learn a
limit of one request per hour from a 429."""

MIN_FIRST_RATE: Final = 10.0  # the same for the first 429, which may arrive before any other response
BELOW_PLATEAU: Final = 0.97  # share of the plateau below which the tier gives no 429s, unless it has changed
MAX_TRIAL_SHARE: Final = 0.5  # share of 429s above which only the rate can be the cause

TRIAL_FACTOR: Final = 0.7
"""Multiple of the served rate that a trial allows. It is well below 1, because the measured rate may be
inaccurate, or other sessions may use a part of the tier."""

SECOND_TRIAL_SHARE: Final = 0.12
"""Share of 429s above which a second trial at a much lower rate must agree. If several sessions with the same
key exceed the tier, a slightly lower rate of one of them changes little."""

SECOND_TRIAL_FACTOR: Final = 0.1
"""Multiple of the served rate that a second trial allows, or more for `MIN_TRIAL_429S`."""

MIN_TRIAL_429S: Final = 1.2
"""Minimum number of 429s per second that a second trial would get if the rate is not their cause. With fewer,
it would take longer than about 10 s."""

MEASURING_WINDOW: Final = 1.0
"""Seconds over which the served rate is measured. At the first 429, a quarter of that is enough."""

MIN_MEASURED: Final = 20  # minimum number of responses over which the served rate is measured


class RateLimiter:
    """
    A token bucket whose rate is the lower of *ceiling* and the rate learned from 429s.

    If there is no limit, the bucket is not *active*, and `try_acquire` need not be called. A `Background`
    filters out 429s that do not depend on the rate. After too many other 429s, a `Trial` of a lower rate
    determines whether the rate is their cause. If so, the rate falls to 10% below the served rate, and then
    recovers along a cubic whose plateau is the rate at the 429: ``plateau * (1 + 0.1 * ((t - 5) / 5) ** 3)``.
    So it is just below the limit of the tier for most of the time, and a single 429 lowers it again. It also
    finds a higher limit soon, because it doubles every 5 s after t = 10. The time t does not advance while no
    request has to wait for the rate limit.
    """

    def __init__(self, ceiling: float | None) -> None:
        self.ceiling: float = math.inf if ceiling is None else ceiling
        self.active: bool = ceiling is not None  # whether the rate is limited
        self.value: float = self.ceiling  # the rate in requests per second; infinite without a limit
        self.served: int = 0  # requests served so far; the owner counts them
        self._due = -math.inf  # time of the next request, as in the generic cell rate algorithm
        self._learned = math.inf  # the rate learned from 429s
        self._plateau = 0.0
        # Whether the rate had reached the plateau at the last decrease. If not, the plateau may be too high.
        self._plateau_reached = False
        self._searching = True  # whether the limit of the tier is unknown
        self._recovery = RECOVERY_TIME
        self._cubic_time = 0.0  # the time t of the cubic
        self._grew_at = 0.0
        self._blocked = False  # whether a request had to wait since the rate last grew
        self._decreased_at = -math.inf
        self._served_at_decrease = 0
        self._samples: list[tuple[float, int]] = []  # the latest two times, and `served` at each of them
        self._background: Final = Background()
        self._trial: Trial | None = None
        self._learned_before_trial, self._searching_before_trial = math.inf, True

    @property
    def ready_at(self) -> float:
        """Time from which the next request may be sent."""
        return self._due - BURST

    def try_acquire(self, now: float) -> bool:
        if now < self.ready_at:
            self._blocked = True
            return False
        if self._trial is not None:
            self._trial.sent += 1
            self._end_trial(now)
        elif self._learned < math.inf:
            self._grow(now)
            if self._is_below_plateau:
                self._background.requests_below += 1
        self._due = max(self._due, now) + 1 / self.value
        return True

    def set_ceiling(self, ceiling: float, now: float) -> None:
        """Change the ceiling. The remaining wait for the next token changes in proportion."""
        old_rate = self.value
        self.ceiling = ceiling
        self._set_learned(self._learned)
        if self._due > now and old_rate < math.inf:
            self._due = now + (self._due - now) * old_rate / self.value

    def refund(self) -> None:
        """Put the last token back, because its request was not sent."""
        if self.active:
            self._due -= 1 / self.value

    def record_served(self, now: float) -> float:
        """Take a sample of `served`. Returns the time at which to call this method again."""
        self._samples = [*self._samples[-1:], (now, self.served)]
        if self._background.share:
            self._background.update(self.served, limited=self._learned < math.inf)
        return now + self.measuring_window

    @property
    def measuring_window(self) -> float:
        return max(MEASURING_WINDOW, MIN_MEASURED / self.value)

    def resume(self, now: float) -> None:
        """Restart the measurement of the served rate after a time without requests."""
        self._samples = [(now, self.served)]

    def record_throttled(self, sent: float, now: float, retry_after: float = 0.0, in_flight: int = 0) -> bool:
        """Record a 429. Returns whether most requests get one, so its Retry-After concerns all of them."""
        if sent <= self._decreased_at:
            return False
        background, below = self._background, self._is_below_plateau
        cumulative_sum = background.record_throttled(self.served, in_flight, below=below)
        throttled, requests = background.recent
        # Of requests that are sent together, the 429s may arrive before any other response.
        is_excessive = cumulative_sum >= CUSUM_THRESHOLD + background.tolerated * in_flight
        if self._trial is not None:
            self._trial.throttled += 1
            if self._end_trial(now):
                return False
        if now - self._decreased_at >= MIN_DECREASE_INTERVAL:
            if self._learned < math.inf and not below and not self._searching and self._trial is None:
                if cumulative_sum >= min(1 + THRESHOLD_PER_SHARE * background.share, CUSUM_THRESHOLD):
                    # The served rate may be low because of few requests, as after an outage. The requests
                    # that got no 429 show what the tier serves.
                    served_share = 1 - (throttled - 1) / requests
                    self._decrease(now, retry_after, at_least=min(self.value * served_share, self._plateau))
            elif is_excessive:
                self._decrease_and_try(now, retry_after, in_flight)
        return is_excessive and throttled >= requests / 2

    @property
    def _is_below_plateau(self) -> bool:
        """Whether the tier gives no 429s at this rate, unless it has changed."""
        known = self._plateau_reached and not self._searching and self._trial is None
        return known and self._learned < BELOW_PLATEAU * self._plateau

    def _decrease_and_try(self, now: float, retry_after: float, in_flight: int) -> None:
        """Decrease the rate. If the 429s may have another cause, start a trial of an even lower rate."""
        if self._trial is None:
            self._learned_before_trial, self._searching_before_trial = self._learned, self._searching
        self._trial = None
        accurate = self._decrease(now, retry_after)
        throttled, requests = self._background.recent
        self._background.restart()
        if accurate and throttled <= MAX_TRIAL_SHARE * requests:
            self._trial = Trial(throttled, requests, self._background.share, self.served + in_flight)
            self._set_learned(max(TRIAL_FACTOR * self._plateau, MIN_RATE))

    def _end_trial(self, now: float) -> bool:
        """End the trial if its result is known. Returns whether it has ended."""
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
        self._decreased_at = self._grew_at = now
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
        """
        Decrease the rate to 10% below the served rate, which becomes the plateau.

        *at_least* is a lower bound of the plateau. Returns whether the served rate was measured long enough.
        """
        since, served_before = self._samples[0] if self._samples else (now - MEASURING_WINDOW, 0)
        if (
            now - self._decreased_at < MEASURING_WINDOW
            and self.served - self._served_at_decrease >= MIN_MEASURED / 2
        ):
            # Measure only since the last decrease, because the tier may have changed then.
            since, served_before = self._decreased_at, self._served_at_decrease
        served_rate = (self.served - served_before) / max(now - since, MEASURING_WINDOW / 4)
        old_rate = self.value
        plateau = max(min(old_rate, served_rate), at_least)
        if served_rate > 0.9 * old_rate:
            plateau = old_rate  # more accurate than the served rate, which lags behind it
        # The burst of the tier may hide for a while that the rate exceeds its limit.
        self._plateau_reached = BELOW_PLATEAU * old_rate <= self._plateau
        self._plateau = max(plateau, MIN_RATE if self._learned < math.inf else MIN_FIRST_RATE)
        accurate = now - since >= MEASURING_WINDOW / 2
        self._searching = self._learned == math.inf or not accurate
        self._recovery = max(
            RECOVERY_TIME,
            min(MIN_REQUESTS_PER_RECOVERY / self._plateau, MAX_RECOVERY_FOR_REQUESTS),
            RETRY_AFTER_FACTOR * retry_after,
        )
        self._cubic_time = 0.0
        self._decreased_at = self._grew_at = now
        self._served_at_decrease = self.served
        if not self.active:
            self._due = now
        self._set_learned(max(self._plateau * DECREASE_FACTOR, MIN_RATE))
        return accurate

    def _set_learned(self, rate: float) -> None:
        self._learned = rate
        self.value = min(rate, self.ceiling)
        self.active = self.value < math.inf

    def _grow(self, now: float) -> None:
        seconds = min(now - self._grew_at, 1.0)  # after a second without a request, demand has changed
        self._grew_at = now
        if not self._blocked:
            return
        self._blocked = False
        if self._searching:
            self._learned *= 2 ** (seconds / DOUBLING_TIME)
        else:
            self._cubic_time += seconds
            progress = self._cubic_time / self._recovery - 1  # -1 after the decrease, 0 at the plateau
            if progress < 1:
                cubic = self._plateau * (1 + (1 - DECREASE_FACTOR) * progress**3)
                self._learned = max(self._learned, cubic)
            else:
                self._learned *= 2 ** (seconds / self._recovery)
        self._set_learned(self._learned)
