"""Distinguishes 429s that the request rate causes from those that occur at any rate."""

import math
from typing import Final

ALLOWANCE: Final = 0.02
"""Share of 429s that is always tolerated: so few do no harm, whatever causes them."""

MARGIN: Final = 1.5
"""Multiple of the background share that is tolerated, in addition to `ALLOWANCE`."""

CUSUM_THRESHOLD: Final = 7.0
"""Threshold of the cumulative sum. A true share of at most two thirds of the tolerated one exceeds it by
chance once in about 10,000 429s."""

THRESHOLD_PER_SHARE: Final = 150.0
"""At the limit of a known tier, the threshold is 1 plus this multiple of the background share."""

MIN_REFUSED: Final = 6
"""Minimum number of 429s from which a share is estimated."""

MIN_EXPECTED: Final = 16.0
"""Minimum number of expected 429s before the share is lowered, at most to two standard deviations above the
observed one."""

UNTESTED_SHARE: Final = 0.03
"""Highest share that is believed without a trial, because it does little harm if it is wrong."""

UNCHANGED_RATIO, LOWERED_RATIO = 0.6, 0.1
"""Multiples of the share of 429s before a trial that speak against and for the rate as their cause. The share
before is too high on average, because an unusual number of 429s starts the trial."""

RATE_IS_CAUSE, RATE_IS_NOT_CAUSE = -3.0, 4.0
"""Log-likelihood ratios at which a trial ends, for errors of about 5% and 2%. The second error is worse: the
session then exceeds its tier until the next trial."""

TRIAL_429S: Final = 8.0
"""Number of 429s, expected if the rate is not their cause, after which a trial ends with the likelier one."""


class Background:
    """
    The share of requests that get a 429 at any request rate, for example because of limits per account.

    A cumulative sum detects that more requests get one: each 429 adds 1, each request subtracts the tolerated
    share, and the sum never falls below 0 (CUSUM: E. S. Page, "Continuous Inspection Schemes", Biometrika 41,
    1954).

    Attributes:
        share: The share, as far as it is known.
        requests_below: Requests sent below the plateau, where an unchanged tier refuses none.
    """

    def __init__(self) -> None:
        self.share: float = 0.0
        self.requests_below: int = 0
        self._refused_below = 0
        self._sum = 0.0
        self._refused = self._requests = 0  # in total
        self._refused_at_zero = self._requests_at_zero = 0  # when the sum was last 0
        self._refused_at_update = self._served_at_update = 0

    @property
    def tolerated(self) -> float:
        """The share that is tolerated."""
        return MARGIN * self.share + ALLOWANCE

    @property
    def recent(self) -> tuple[int, int]:
        """The 429s and the requests since the sum was last 0."""
        return self._refused - self._refused_at_zero, self._requests - self._requests_at_zero

    def record_throttled(self, served: int, in_flight: int, *, below: bool) -> float:
        """
        Record a 429, with the requests served so far and whether it was sent below the plateau.

        Returns the cumulative sum.
        """
        requests = served + in_flight + self._refused + 1
        added = requests - self._requests
        if added < 0:
            # Requests that ended otherwise, for example with a 503, are no longer in *in_flight*.
            self._requests_at_zero += added
        self._sum -= self.tolerated * max(0, added)
        if self._sum <= 0:
            self._sum = 0.0
            self._refused_at_zero, self._requests_at_zero = self._refused, requests - 1
        self._sum += 1
        self._refused += 1
        self._requests = requests
        if below:
            self._refused_below += 1
            share = self._refused_below / max(1, self.requests_below)
            if self._refused_below >= MIN_REFUSED and self.share < share <= UNTESTED_SHARE:
                self.learn(share, served)
        return self._sum

    def restart(self) -> None:
        """Forget the sum and what was seen below the plateau, because the rate or the share has changed."""
        self._sum = 0.0
        self.requests_below = self._refused_below = 0

    def learn(self, share: float, served: int) -> None:
        """Set the share; *served* is the total so far."""
        self.share = share
        self._refused_at_update, self._served_at_update = self._refused, served

    def update(self, served: int, *, limited: bool) -> None:
        """
        Lower the share if significantly fewer 429s arrived; *served* is the total so far.

        *limited* says that the limit of a tier is known. Then only requests below the plateau count.
        """
        refused, requests = self._refused_below, self.requests_below
        if not limited:
            refused = self._refused - self._refused_at_update
            requests = served - self._served_at_update + refused
        expected = self.share * requests
        if expected < MIN_EXPECTED:
            return
        share = min(self.share, (refused + 2 * math.sqrt(refused)) / requests)
        self.learn(share if share >= ALLOWANCE / 10 else 0.0, served)
        self.requests_below = self._refused_below = 0


class Trial:
    """
    Whether a lower rate lowers the share of 429s, as it does below the limit of a tier.

    Decided by a sequential probability ratio test (A. Wald, "Sequential Tests of Statistical Hypotheses",
    1945) with as few requests as possible.

    Args:
        refused: 429s before the trial.
        requests: The requests among which they were.
        background: The share of 429s that are known not to depend on the rate.
        served: The total that will have been served when the first request of the trial is.
    """

    def __init__(self, refused: int, requests: int, background: float, served: int) -> None:
        self.sent: int = 0
        self.refused: int = 0
        self.is_second: bool = False
        self._background: Final = background
        self._before: Final = refused, requests
        lowered = max(background, LOWERED_RATIO * refused / requests)
        unchanged = min(max(UNCHANGED_RATIO * refused / requests, 2 * lowered), (1 + lowered) / 2)
        self._refused_weight: Final = math.log(unchanged / lowered)
        self._served_weight: Final = math.log((1 - unchanged) / (1 - lowered))
        self._served_before: Final = served
        self._longest: Final = TRIAL_429S / unchanged

    @property
    def share(self) -> float:
        """The share of 429s, before and in the trial."""
        refused, requests = self._before
        return (refused + self.refused) / (requests + self.sent)

    def second(self, served: int) -> "Trial":
        """A trial at another rate, after this one; *served* is the total so far."""
        refused, requests = self._before
        in_flight = max(0, self.sent - self.refused - max(0, served - self._served_before))
        trial = Trial(refused + self.refused, requests + self.sent, self._background, served + in_flight)
        trial.is_second = True
        return trial

    def result(self, served: int) -> bool | None:
        """Whether the rate causes the 429s; None if that is not known yet. *served* is the total so far."""
        # Refusals may arrive long before the other responses: count all requests against the first result,
        # and only those with a response for the second.
        evidence = self.refused * self._refused_weight
        if evidence + (self.sent - self.refused) * self._served_weight >= RATE_IS_NOT_CAUSE:
            return False
        if evidence + (served - self._served_before) * self._served_weight <= RATE_IS_CAUSE:
            return True
        responses = served - self._served_before + self.refused
        if responses >= self._longest:
            return evidence + (responses - self.refused) * self._served_weight < 0
        return None
