"""The rate limiter: a configured ceiling, and a rate learned from 429s."""

import math
from typing import Final

from postpress_async.pace._background import Background

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
    that do not depend on the rate. After any other 429, the rate falls to 10% below the served rate, and
    recovers along a cubic whose plateau is the rate at the 429: ``plateau * (1 + 0.1 * ((t - 5) / 5) ** 3)``.
    It stays just below the limit of the tier most of the time, but soon finds a higher one: after t = 10 it
    doubles every 5 s. Time in which no request had to wait for the rate limit does not count.

    Attributes:
        active: Whether the rate is limited.
        value: Requests per second; infinite without a limit.
        ready_at: Time from which the next request may be sent.
    """

    def __init__(self, ceiling: float | None) -> None:
        self.ceiling: float = math.inf if ceiling is None else ceiling
        self.active: bool = ceiling is not None
        self.value: float = self.ceiling
        self.ready_at: float = -math.inf
        self._due = -math.inf  # time of the next request, as in the generic cell rate algorithm
        self._learned = math.inf
        self._plateau = 0.0
        self._searching = True
        self._recovery = RECOVERY_TIME
        self._grown = 0.0  # seconds along the cubic
        self._grown_at = 0.0
        self._blocked = False  # whether a request has had to wait since the last growth
        self._decreased_at = -math.inf
        self._served_at_decrease = 0
        self._samples: list[tuple[float, int]] = []  # times, and the total served by then
        self._background: Final = Background()
        self._before_decreases = math.inf  # the learned rate before the current series of decreases

    def try_acquire(self, now: float) -> bool:
        """Take a token if there is one. Returns whether there was."""
        if now < self.ready_at:
            self._blocked = True
            return False
        if self._learned < math.inf:
            self._grow(now)
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

    def record_served(self, served: int, now: float) -> float:
        """Record the total number *served*. Returns the time at which to call this again."""
        self._samples = [*self._samples[-1:], (now, served)]
        if self._background.share:
            self._background.update(served)
        return now + max(MEASURING_WINDOW, MIN_MEASURED / self.value)

    def resume(self, served: int, now: float) -> None:
        """Restart the measurement after a pause, in which nothing was served."""
        self._samples = [(now, served)]

    def record_throttled(
        self, sent: float, served: int, now: float, retry_after: float = 0.0, in_flight: int = 0
    ) -> bool:
        """Record a 429; *served* is the total so far. Returns whether it concerns the whole key."""
        below = self._learned < BELOW_PLATEAU * self._plateau
        background, before_decrease = self._background, sent <= self._decreased_at
        excess = background.record_throttled(served, in_flight, before_decrease=before_decrease, below=below)
        if before_decrease or now - self._decreased_at < MIN_DECREASE_INTERVAL:
            return excess
        # If the tier is known and there is no background, a single 429 is enough.
        if not excess and (background.share or self._learned == math.inf):
            return False
        if not background.is_independent(below=below):
            if not background.ineffective_decreases:
                self._before_decreases = self._learned
            self._decrease(served, now, retry_after)
        elif background.ineffective_decreases:
            self._undo_decreases(now)
        return excess

    def _undo_decreases(self, now: float) -> None:
        """Restore the rate before the decreases, which had no effect, and search from there."""
        self._background.ineffective_decreases = 0
        self._learned = self._plateau = self._before_decreases
        self._searching = True
        self._decreased_at = self._grown_at = now
        self.value = min(self._learned, self.ceiling)
        self.active = self.value < math.inf

    def _decrease(self, served: int, now: float, retry_after: float) -> None:
        when, before = self._samples[0] if self._samples else (now - MEASURING_WINDOW, 0)
        if (
            now - self._decreased_at < MEASURING_WINDOW
            and served - self._served_at_decrease >= MIN_MEASURED / 2
        ):
            # Requests served before the last decrease may have been served at another tier.
            when, before = self._decreased_at, self._served_at_decrease
        measured = (served - before) / max(now - when, MEASURING_WINDOW / 4)
        old = self.value
        # If the two agree, the current rate is more accurate, because the served rate lags behind it.
        plateau = old if measured > 0.9 * old else min(old, measured)
        self._plateau = max(plateau, MIN_RATE if self._learned < math.inf else MIN_FIRST_RATE)
        self._searching = self._learned == math.inf or now - when < MEASURING_WINDOW / 2
        self._recovery = max(
            RECOVERY_TIME,
            min(MIN_REQUESTS_PER_RECOVERY / self._plateau, 60.0),
            RETRY_AFTER_FACTOR * retry_after,
        )
        self._learned = max(self._plateau * DECREASE_FACTOR, MIN_RATE)
        self._grown = 0.0
        self._decreased_at = self._grown_at = now
        self._served_at_decrease = served
        if not self.active:
            self.active = True
            self._due = now
        self.value = min(self._learned, self.ceiling)
        self._make_ready()

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
