"""Distinguishes 429s that the request rate causes from those that occur at any rate."""

from typing import Final

ALLOWANCE: Final = 0.02
"""Share of 429s that is always tolerated: so few do no harm, whatever causes them."""

MARGIN: Final = 1.5
"""Multiple of the background share that is tolerated, in addition to `ALLOWANCE`."""

CUSUM_THRESHOLD: Final = 7.0
"""Threshold of the cumulative sum. A true share of at most two thirds of the tolerated one exceeds it by
chance once in about 10,000 429s."""

MAX_INEFFECTIVE_DECREASES: Final = 2
"""Consecutive decreases of the rate after which 429s that still arrive are the background."""

EFFECTIVE_RATIO: Final = 0.4
"""A decrease had an effect if the share of 429s falls below this multiple of the previous share. Below its
rate limit, a tier refuses almost nothing."""

MIN_SHARE: Final = 0.01
"""Smallest background. For some requests after a decrease, a tier still refuses a few."""

MIN_SAMPLE: Final = 8.0
"""Minimum number of 429s, observed or expected, from which a share is estimated."""


class Background:
    """
    The share of requests that get a 429 at any request rate, for example because of limits per account.

    A cumulative sum detects more 429s than the background explains: each 429 adds 1, each request subtracts
    the tolerated share, and the sum never falls below 0 (CUSUM: E. S. Page, "Continuous Inspection Schemes",
    Biometrika 41, 1954). A tier refuses nothing below its rate limit. So the share of 429s at a lower rate is
    the background, if it is not much smaller than before, and the rate was decreased twice, or has recovered.
    """

    def __init__(self) -> None:
        self.share: float = 0.0
        self.decreases: int = 0  # consecutive ones that had no effect
        self._sum = 0.0
        self._refused = self._requests = 0  # in total
        self._at_zero = (0, 0)  # 429s and requests when the sum was last 0
        self._refused_at_last = self._requests_at_last = 0  # at the last decrease
        self._share_before = 0.0  # at the first decrease of the series
        self._refused_below = self._requests_below = 0  # since then, below the plateau
        self._below = False  # at the last 429
        self._refused_at_update = self._served_at_update = 0

    def record_throttled(self, served: int, in_flight: int, *, before_decrease: bool, below: bool) -> bool:
        """
        Record a 429, with the requests served so far. Returns whether the background does not explain it.

        *below* says whether the rate is below the plateau, at which there were too many 429s.
        """
        self._refused += 1
        requests = served + in_flight + self._refused
        tolerated = MARGIN * self.share + ALLOWANCE
        self._sum -= tolerated * max(0, requests - self._requests)
        if self._sum <= 0:
            self._sum = 0.0
            self._at_zero = self._refused - 1, requests - in_flight - 1
        self._sum += 1
        if before_decrease:
            self._refused_at_last += 1
        else:
            self._refused_below += below
            self._requests_below += self._below * (requests - self._requests)
            self._below = below
        self._requests = requests
        # Requests sent together may be refused together, before any of them is served.
        return self._sum >= CUSUM_THRESHOLD + tolerated * in_flight

    def is_independent(self, *, below: bool) -> bool:
        """Whether the excess 429s do not depend on the rate. If they do, decrease the rate."""
        self._below = True
        share = _share(self._refused_below, self._requests_below)
        refused = self._refused - self._refused_at_last
        recent = _share(refused, self._requests - self._requests_at_last)
        threshold = max(EFFECTIVE_RATIO * self._share_before, MIN_SHARE)
        self._refused_at_last, self._requests_at_last = self._refused, self._requests
        self._sum = 0.0
        if self.decreases and self._refused_below and share >= threshold:
            ineffective = below and self.decreases >= MAX_INEFFECTIVE_DECREASES and recent >= threshold
            if self._refused_below >= MIN_SAMPLE and (ineffective or (not below and share > self.share)):
                self.share = min(max(share, self.share), 0.9)
                self.decreases *= below
                return True
            self.decreases += 1
            if refused >= MIN_SAMPLE:
                self._share_before = max(self._share_before, recent)
            return False
        refused, requests = self._at_zero
        if self._refused - refused < MIN_SAMPLE:
            self._share_before = 0.0  # too few
        else:
            self._share_before = _share(self._refused - refused, self._requests - requests)
        self.decreases = 1
        self._refused_below = self._requests_below = 0
        return False

    def update(self, served: int) -> None:
        """Lower the share if fewer than half of the expected 429s arrived; *served* is the total so far."""
        refused = self._refused - self._refused_at_update
        expected = self.share * (served - self._served_at_update + refused)
        if expected < MIN_SAMPLE:
            return
        if refused < expected / 2:
            self.share *= refused / expected
            if self.share < MIN_SHARE:
                self.share = 0.0
        self._refused_at_update, self._served_at_update = self._refused, served


def _share(refused: int, requests: int) -> float:
    return refused / max(requests, 1)
