"""Distinguishes 429s that the request rate causes from those that occur at any rate."""

from typing import Final

ALLOWANCE: Final = 0.02
"""Share of 429s that is always tolerated: so few do no harm, whatever causes them."""

MARGIN: Final = 1.5
"""Multiple of the background share that is tolerated, in addition to `ALLOWANCE`."""

CUSUM_THRESHOLD: Final = 7.0
"""Threshold of the cumulative sum. A true share of at most two thirds of the tolerated one exceeds it by
chance once in about 10,000 429s."""

MAX_INEFFECTIVE_DECREASES: Final = 3
"""Consecutive decreases of the rate without effect after which the 429s are the background."""

EFFECTIVE_RATIO: Final = 0.6
"""A decrease had an effect if the share of 429s falls below this multiple of the previous share. Below its
rate limit, a tier refuses almost nothing."""

MIN_SAMPLE: Final = 8.0
"""Minimum number of 429s, observed or expected, from which a share is estimated."""


class Background:
    """
    The share of requests that get a 429 at any request rate, for example because of limits per account.

    A cumulative sum detects more 429s than the background explains: each 429 adds 1, each request subtracts
    the tolerated share, and the sum never falls below 0 (CUSUM: E. S. Page, "Continuous Inspection Schemes",
    Biometrika 41, 1954). If three consecutive decreases of the rate do not lower the share of 429s, that
    share is the background, because a tier refuses nothing below its rate limit.
    """

    def __init__(self) -> None:
        self.share: float = 0.0
        self.ineffective_decreases: int = 0
        self._sum = 0.0
        self._refused = self._requests = 0  # in total
        self._refused_at_decrease = self._requests_at_decrease = 0
        self._share_at_decrease = 0.0  # between the last two decreases, if known
        self._refused_before = self._requests_before = 0  # when the current series of decreases began
        self._refused_below = self._requests_below = 0  # since the last decrease, below the plateau
        self._refused_at_update = self._served_at_update = 0

    def record_throttled(self, served: int, in_flight: int, *, before_decrease: bool, below: bool) -> bool:
        """
        Record a 429, with the requests served so far. Returns whether the background does not explain it.

        *below* says whether the rate is below the plateau, at which there were too many 429s.
        """
        self._refused += 1
        requests = served + in_flight + self._refused
        tolerated = MARGIN * self.share + ALLOWANCE
        self._sum = max(0.0, self._sum - tolerated * max(0, requests - self._requests)) + 1
        self._requests = requests
        if before_decrease:
            self._refused_at_decrease += 1
        elif below:
            self._refused_below = self._refused - self._refused_at_decrease
            self._requests_below = requests - self._requests_at_decrease
        # Requests sent together may be refused together, before any of them is served.
        return self._sum >= CUSUM_THRESHOLD + tolerated * in_flight

    def is_independent(self, *, below: bool) -> bool:
        """Whether the excess 429s do not depend on the rate. If they do, decrease the rate."""
        refused = self._refused - self._refused_at_decrease
        recent = _share(refused, self._requests - self._requests_at_decrease)
        share = _share(self._refused - self._refused_before, self._requests - self._requests_before)
        background = 0.0
        if below and recent >= EFFECTIVE_RATIO * max(share, self._share_at_decrease):
            self.ineffective_decreases += 1
            if self.ineffective_decreases >= MAX_INEFFECTIVE_DECREASES:
                background = min(share, 0.9)
        else:
            self.ineffective_decreases = 0
            self._refused_before, self._requests_before = (
                self._refused_at_decrease,
                self._requests_at_decrease,
            )
            if self.share and self._refused_below >= MIN_SAMPLE:
                background = _share(self._refused_below, self._requests_below)
        self._sum = 0.0
        self._refused_below = self._requests_below = 0
        if background <= self.share:
            self._refused_at_decrease, self._requests_at_decrease = self._refused, self._requests
            self._share_at_decrease = recent if refused >= MIN_SAMPLE else 0.0
            return False
        self.share = background
        return True

    def update(self, served: int) -> None:
        """Lower the share if fewer than half of the expected 429s arrived; *served* is the total so far."""
        refused = self._refused - self._refused_at_update
        expected = self.share * (served - self._served_at_update + refused)
        if expected < MIN_SAMPLE:
            return
        if refused < expected / 2:
            self.share *= refused / expected
            if self.share < ALLOWANCE / 10:
                self.share = 0.0
        self._refused_at_update, self._served_at_update = self._refused, served


def _share(refused: int, requests: int) -> float:
    return refused / max(requests, 1)
