"""Distinguishes 429s that the request rate causes from those that occur at any rate."""

import math
from typing import Final

ALLOWANCE: Final = 0.02  # share of 429s that is always tolerated, because it does little harm
MARGIN: Final = 1.5  # multiple of the background share that is tolerated, in addition to `ALLOWANCE`
MIN_SHARE: Final = 0.002  # a lower background share is treated as 0

CUSUM_THRESHOLD: Final = 7.0
"""Threshold of the cumulative sum. If the true share is at most two thirds of the tolerated one, the sum
exceeds the threshold by chance about once in 10,000 429s."""

THRESHOLD_PER_SHARE: Final = 150.0
"""At the known limit of a tier, the threshold is 1 plus this multiple of the background share."""

MIN_429S: Final = 6  # minimum number of 429s for an estimate of the background share
MIN_EXPECTED: Final = 16.0  # number of 429s that the share must predict before an update may lower it

LOWERING_DEVIATIONS: Final = 2.0
"""The share is lowered at most to this many standard deviations above the observed share."""

UNTESTED_SHARE: Final = 0.03  # highest share that is accepted without a trial: an error does little harm

UNCHANGED_RATIO, LOWERED_RATIO = 0.6, 0.1
"""Shares of 429s in a trial, as multiples of the share before it, that are expected if the rate is not their
cause, and if it is. The first is below 1 because an unusually high share starts a trial."""

RATE_IS_CAUSE, RATE_IS_NOT_CAUSE = -3.0, 4.0
"""Log-likelihood ratios at which a trial ends. About 5% of the first results are wrong, and 2% of the second
ones, whose errors are worse: the session then exceeds its tier until the next trial."""

TRIAL_429S: Final = 8.0
"""A trial ends with the likelier result after as many requests as would give this many 429s if the rate were
not their cause."""


class Background:
    """
    The background share: the share of requests that get a 429 whatever the request rate, for example because
    of a limit per account.

    A cumulative sum detects that the share of 429s exceeds the tolerated share: each 429 adds 1, each request
    subtracts the tolerated share, and the sum never falls below 0 (CUSUM: E. S. Page, "Continuous Inspection
    Schemes", Biometrika 41, 1954). In all methods, *served* is the number of requests served so far.
    """

    def __init__(self) -> None:
        self.share: float = 0.0  # the estimate
        # Requests sent below the plateau of the rate limiter. Unless the tier has changed, all their 429s
        # belong to the background.
        self.requests_below: int = 0
        self._throttled_below = 0
        self._sum = 0.0
        self._throttled = self._requests = 0  # totals
        self._throttled_at_zero = self._requests_at_zero = 0  # totals when the sum was last 0
        self._throttled_at_update = self._served_at_update = 0  # totals at the last update

    @property
    def tolerated(self) -> float:
        return MARGIN * self.share + ALLOWANCE

    @property
    def recent(self) -> tuple[int, int]:
        """The 429s and the requests since the sum was last 0."""
        return self._throttled - self._throttled_at_zero, self._requests - self._requests_at_zero

    def record_throttled(self, served: int, in_flight: int, *, below: bool) -> float:
        """Record a 429, sent *below* the plateau of the rate limiter or not. Returns the cumulative sum."""
        requests = served + in_flight + self._throttled + 1
        added = requests - self._requests
        if added < 0:
            # Requests that ended with another error, such as a 503, are neither served nor in flight.
            self._requests_at_zero += added
        self._sum -= self.tolerated * max(0, added)
        if self._sum <= 0:
            self._sum = 0.0
            self._throttled_at_zero, self._requests_at_zero = self._throttled, requests - 1
        self._sum += 1
        self._throttled += 1
        self._requests = requests
        if below:
            self._throttled_below += 1
            share = self._throttled_below / max(1, self.requests_below)
            if self._throttled_below >= MIN_429S and self.share < share <= UNTESTED_SHARE:
                self.learn(share, served)
        return self._sum

    def restart(self) -> None:
        """Reset the sum and the counts below the plateau, because the rate or the share has changed."""
        self._sum = 0.0
        self.requests_below = self._throttled_below = 0

    def learn(self, share: float, served: int) -> None:
        self.share = share
        self._throttled_at_update, self._served_at_update = self._throttled, served

    def update(self, served: int, *, limited: bool) -> None:
        """Lower the background share if significantly fewer 429s arrived."""
        throttled, requests = self._throttled_below, self.requests_below
        if not limited:  # the limit of the tier is unknown, so requests at any rate count
            throttled = self._throttled - self._throttled_at_update
            requests = served - self._served_at_update + throttled
        expected = self.share * requests
        if expected < MIN_EXPECTED:
            return
        share = min(self.share, (throttled + LOWERING_DEVIATIONS * math.sqrt(throttled)) / requests)
        self.learn(share if share >= MIN_SHARE else 0.0, served)
        self.requests_below = self._throttled_below = 0


class Trial:
    """
    Determines whether the request rate is the cause of 429s: whether a lower rate lowers their share.

    A sequential probability ratio test needs as few requests as possible for that (A. Wald, "Sequential Tests
    of Statistical Hypotheses", 1945).

    Args:
        throttled: Number of 429s before the trial.
        requests: Number of requests before the trial that gave these 429s.
        background: The background share that is already known.
        served: Number of requests served so far, plus those in flight: they do not belong to the trial.
    """

    def __init__(self, throttled: int, requests: int, background: float, served: int) -> None:
        self.sent: int = 0  # during the trial; the owner counts these requests
        self.throttled: int = 0  # 429s during the trial; the owner counts them
        self.is_second: bool = False  # whether another trial at a higher rate preceded this one
        self._background: Final = background
        self._throttled_before: Final = throttled
        self._requests_before: Final = requests
        # The expected shares in the trial if the rate is the cause, and if it is not.
        lowered = max(background, LOWERED_RATIO * throttled / requests)
        unchanged = min(max(UNCHANGED_RATIO * throttled / requests, 2 * lowered), (1 + lowered) / 2)
        self._throttled_weight: Final = math.log(unchanged / lowered)
        self._served_weight: Final = math.log((1 - unchanged) / (1 - lowered))
        self._served_before: Final = served
        self._max_responses: Final = TRIAL_429S / unchanged

    @property
    def share(self) -> float:
        """The share of 429s before and during the trial."""
        return (self._throttled_before + self.throttled) / (self._requests_before + self.sent)

    def second(self, served: int) -> "Trial":
        """A trial at another rate that continues this one. *served* is the number served so far."""
        in_flight = max(0, self.sent - self.throttled - max(0, served - self._served_before))
        trial = Trial(
            self._throttled_before + self.throttled,
            self._requests_before + self.sent,
            self._background,
            served + in_flight,
        )
        trial.is_second = True
        return trial

    def result(self, served: int) -> bool | None:
        """Whether the rate is the cause of the 429s; None while the test is undecided."""
        # 429s may arrive long before other responses. So requests in flight count as served for the result
        # "not the cause", and do not count for the result "the cause".
        served_in_trial = served - self._served_before
        evidence = self.throttled * self._throttled_weight
        if evidence + (self.sent - self.throttled) * self._served_weight >= RATE_IS_NOT_CAUSE:
            return False
        if evidence + served_in_trial * self._served_weight <= RATE_IS_CAUSE:
            return True
        if served_in_trial + self.throttled >= self._max_responses:
            return evidence + served_in_trial * self._served_weight < 0
        return None
