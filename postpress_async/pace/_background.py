"""Tells 429s that depend on the request rate from those that come at any rate."""

from typing import Final

ALLOWANCE: Final = 0.02
"""Share of 429s that is tolerated before anything is known. It does not matter which limit causes so few."""

MARGIN: Final = 1.5
"""Factor of the background that is tolerated, in addition to `ALLOWANCE`."""

EXCESS: Final = 7.0
"""429s above the tolerated share that are too many. A share of two thirds of the tolerated one, or less,
exceeds this by chance once in about 10,000 429s."""

UNMOVED: Final = 3
"""Decreases of the rate in a row without effect after which the 429s are a background."""

LOWERED: Final = 0.6
"""A decrease that leaves less than this part of the previous share had an effect. Below its rate, a tier
refuses nearly nothing."""

TELLING: Final = 8.0
"""Fewest 429s, seen or expected, from which the background is corrected."""


class Background:
    """
    The share of requests that get a 429 at any request rate, for example because of limits per account.

    Are there more 429s than the background explains? A cumulative sum decides: each 429 adds 1, each request
    subtracts the tolerated share, and the sum never falls below 0 (CUSUM: E. S. Page, "Continuous Inspection
    Schemes", Biometrika 41, 1954). Does a lower rate lower their share? A tier refuses nothing below its
    rate. So if each of three decreases in a row left the share as it was, it is the background.

    Attributes:
        share: From 0 to 1.
        cuts: Decreases in a row that did not lower the share of 429s.
    """

    def __init__(self) -> None:
        self.share: float = 0.0
        self.cuts: int = 0
        self._sum = 0.0
        self._refused = self._requests = 0  # in all
        self._refused_at_cut = self._requests_at_cut = 0
        self._share_at_cut = 0.0  # between the last two decreases, if known
        self._refused_before = self._requests_before = 0  # when the current series of decreases began
        self._refused_below = self._requests_below = 0  # since the last decrease, below the plateau
        self._refused_at_update = self._served_at_update = 0

    def record_throttled(self, served: int, in_flight: int, *, before_cut: bool, below: bool) -> bool:
        """
        Record a 429. Returns whether there are too many.

        Args:
            served: Requests served so far.
            in_flight: Requests in flight.
            before_cut: Whether the request was sent before the last decrease.
            below: Whether the rate is below the one at which there were too many.
        """
        self._refused += 1
        requests = served + in_flight + self._refused
        tolerated = MARGIN * self.share + ALLOWANCE
        self._sum = max(0.0, self._sum - tolerated * max(0, requests - self._requests)) + 1
        self._requests = requests
        if before_cut:
            self._refused_at_cut += 1
        elif below:
            self._refused_below = self._refused - self._refused_at_cut
            self._requests_below = requests - self._requests_at_cut
        # Requests sent together may be refused together, before any of them is served.
        return self._sum >= EXCESS + tolerated * in_flight

    def is_independent(self, *, below: bool) -> bool:
        """Whether the 429s, although too many, do not depend on the rate. Otherwise decrease the rate."""
        refused = self._refused - self._refused_at_cut
        since = _share(refused, self._requests - self._requests_at_cut)
        share = _share(self._refused - self._refused_before, self._requests - self._requests_before)
        found = 0.0
        if below and since >= LOWERED * max(share, self._share_at_cut):
            self.cuts += 1
            if self.cuts >= UNMOVED:
                found = min(share, 0.9)
        else:
            self.cuts = 0
            self._refused_before, self._requests_before = self._refused_at_cut, self._requests_at_cut
            if self.share and self._refused_below >= TELLING:
                found = _share(self._refused_below, self._requests_below)
        self._sum = 0.0
        self._refused_below = self._requests_below = 0
        if found <= self.share:
            self._refused_at_cut, self._requests_at_cut = self._refused, self._requests
            self._share_at_cut = since if refused >= TELLING else 0.0
            return False
        self.share = found
        return True

    def update(self, served: int) -> None:
        """Lower the share if there were less than half of the expected 429s; *served* is the total."""
        refused = self._refused - self._refused_at_update
        expected = self.share * (served - self._served_at_update + refused)
        if expected < TELLING:
            return
        if refused < expected / 2:
            self.share *= refused / expected
            if self.share < ALLOWANCE / 10:
                self.share = 0.0
        self._refused_at_update, self._served_at_update = self._refused, served


def _share(refused: int, requests: int) -> float:
    return refused / max(requests, 1)
