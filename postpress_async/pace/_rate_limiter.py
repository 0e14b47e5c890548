"""How many requests a second: a ceiling that is given, and one that 429s teach."""

import math
from typing import Final

from postpress_async.pace._background import Background

BURST: Final = 0.01
"""Seconds that a request may go before its time. More would exceed the burst of a tier that is known by its
rate alone; less would cost throughput, since timers fire some milliseconds late."""

DECREASE_FACTOR: Final = 0.9
"""What a 429 leaves of the rate."""

RECOVERY_TIME: Final = 5.0
"""Seconds until the rate is where it was; twice that until it is a tenth above. See `RateLimiter`."""

MIN_REQUESTS_PER_RECOVERY: Final = 200
"""Requests in a recovery at least, up to a minute of them: each recovery costs a 429 or two."""

RETRY_AFTER_FACTOR: Final = 4
"""A recovery takes so many times the Retry-After that all had to wait, at least."""

DOUBLING_TIME: Final = 0.6
"""Seconds in which the rate doubles while nothing is known of the tier but that it is higher."""

MIN_RATE: Final = 1.0
"""Requests a second that 429s do not go below: a session that calls once an hour must not learn from its
one 429 that its tier is one an hour."""

MIN_FIRST_RATE: Final = 10.0
"""The same for the first 429, which may come before there was an answer."""

BELOW_PLATEAU: Final = 0.97
"""Of the plateau: below that a tier that is still the same refuses nothing."""

MIN_DECREASE_INTERVAL: Final = 0.5
"""Seconds before another 429 slows: until then the rate after the last one is not known."""

MEASURING_WINDOW: Final = 1.0
"""Seconds over which the served rate is measured; at the first 429 a quarter of that has to do."""

MIN_MEASURED: Final = 20
"""Answers over which it is measured, at least."""


class RateLimiter:
    """
    A token bucket whose rate is the lower of *ceiling* and what 429s taught.

    Without either it is not *active*, and need not be asked. 429s that do not depend on the rate are told
    from the others by a `Background`. After one of the others the rate goes to a tenth below
    what was served, and comes back along a cubic whose plateau is where the 429 came:
    ``plateau * (1 + 0.1 * ((t - 5) / 5) ** 3)``. Most of the time is spent just below the tier, and a tier
    that has grown is found soon: past t = 10 the rate doubles every 5 s. Time in which nobody had to wait for
    the rate does not count.

    Args:
        ceiling: Requests a second; None for none.

    Attributes:
        active: Whether there is a rate at all.
        value: Requests a second; infinite where there is no rate.
        ready_at: When the next request may go.
    """

    def __init__(self, ceiling: float | None) -> None:
        self.ceiling: float = math.inf if ceiling is None else ceiling
        self.active: bool = ceiling is not None
        self.value: float = self.ceiling
        self.ready_at: float = -math.inf
        self._due = -math.inf  # the next one's time; as in the "generic cell rate algorithm"
        self._learned = math.inf
        self._plateau = 0.0
        self._searching = True
        self._recovery = RECOVERY_TIME
        self._grown = 0.0  # seconds along the cubic
        self._grew_at = 0.0
        self._blocked = False  # whether someone had to wait since
        self._cut_at = -math.inf
        self._served_at_cut = 0
        self._marks: list[tuple[float, int]] = []  # when, and how many had been served
        self._background: Final = Background()
        self._undo = math.inf  # the learned rate before the present row of cuts

    def take(self, now: float) -> bool:
        """Whether a request may go now; if so, it is counted."""
        if now < self.ready_at:
            self._blocked = True
            return False
        if self._learned < math.inf:
            self._grow(now)
        self._due = (self._due if self._due > now else now) + 1 / self.value
        self.ready_at = self._due - BURST
        return True

    def lease(self, ceiling: float, now: float) -> None:
        """Take another *ceiling*; the request that is due next waits in proportion."""
        before = self.value
        self.ceiling = ceiling
        self.active = True
        self.value = min(self._learned, ceiling)
        if self._due > now and before < math.inf:
            self._due = now + (self._due - now) * before / self.value
            self._make_ready()

    def give_back(self) -> None:
        """The last request that was counted was not sent."""
        if self.active:
            self._due -= 1 / self.value
            self._make_ready()

    def mark(self, served: int, now: float) -> float:
        """So many were *served* in all; when to tell it again."""
        self._marks = [*self._marks[-1:], (now, served)]
        if self._background.share:
            self._background.look(served)
        return now + max(MEASURING_WINDOW, MIN_MEASURED / self.value)

    def resume(self, served: int, now: float) -> None:
        """Go on after a pause, in which nothing can have been served."""
        self._marks = [(now, served)]

    def throttled(
        self, sent: float, served: int, now: float, retry_after: float = 0.0, in_flight: int = 0
    ) -> bool:
        """
        A 429 for a request of *sent*, when so many had been *served* in all and so many are *in_flight*.

        Returns:
            Whether there are so many 429s that they speak for all requests of the key.
        """
        below = self._learned < BELOW_PLATEAU * self._plateau
        background, before_cut = self._background, sent <= self._cut_at
        excess = background.saw(served, in_flight, before_cut=before_cut, below=below)
        if before_cut or now - self._cut_at < MIN_DECREASE_INTERVAL:
            return excess
        # A tier that is known, and no background, make a single 429 enough.
        if not excess and (background.share or self._learned == math.inf):
            return False
        if not background.judge(below=below):
            if not background.cuts:
                self._undo = self._learned
            self._cut(served, now, retry_after)
        elif background.cuts:
            self._undo_cuts(now)
        return excess

    def _undo_cuts(self, now: float) -> None:
        """Lower rates did not help: go back to the rate before the cuts, and search from there."""
        self._background.cuts = 0
        self._learned = self._plateau = self._undo
        self._searching = True
        self._cut_at = self._grew_at = now
        self.value = min(self._learned, self.ceiling)
        self.active = self.value < math.inf

    def _cut(self, served: int, now: float, retry_after: float) -> None:
        when, before = self._marks[0] if self._marks else (now - MEASURING_WINDOW, 0)
        if now - self._cut_at < MEASURING_WINDOW and served - self._served_at_cut >= MIN_MEASURED / 2:
            # What was served before the last cut may have been another tier's.
            when, before = self._cut_at, self._served_at_cut
        measured = (served - before) / max(now - when, MEASURING_WINDOW / 4)
        old = self.value
        # Where the two agree, the rate of now is the better one: what was served lags behind it.
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
        self._cut_at = self._grew_at = now
        self._served_at_cut = served
        if not self.active:
            self.active = True
            self._due = now
        self.value = min(self._learned, self.ceiling)
        self._make_ready()

    def _grow(self, now: float) -> None:
        since, self._grew_at = min(now - self._grew_at, 1.0), now
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
