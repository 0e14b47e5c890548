"""Which 429s depend on the request rate, and which come at any rate."""

from typing import Final

ALLOWANCE: Final = 0.02
"""Share of 429s that is tolerated before anything is known. A limit that refuses so few need not be found."""

MARGIN: Final = 1.5
"""Times the background that is tolerated, on top of `ALLOWANCE`."""

EXCESS: Final = 7.0
"""429s beyond the tolerated share before there are too many. A share of two thirds of the tolerated one, or
less, gets there by chance once in some 10,000 429s."""

UNMOVED: Final = 3
"""Cuts of the rate in a row, without effect, after which the 429s are a background."""

LOWERED: Final = 0.6
"""Of the share before: a cut that leaves less had an effect. A tier refuses nearly nothing below its rate."""

TELLING: Final = 8.0
"""429s, seen or expected, that a corrected background is based on."""


class Background:
    """
    The share of requests that is answered 429 whatever the request rate; limits per account do that.

    Two questions are asked of the 429s. Are there more than the background explains? A cumulative sum tells:
    each 429 adds 1, each request subtracts the tolerated share, and the sum never falls below 0 (CUSUM:
    E. S. Page, "Continuous Inspection Schemes", Biometrika 41, 1954). And does a lower rate lower their
    share? A tier refuses nothing below its rate. So if each of three cuts in a row left the share as it was,
    it is the background.

    Attributes:
        share: From 0 to 1.
        cuts: Cuts in a row that did not lower the share of 429s.
    """

    def __init__(self) -> None:
        self.share: float = 0.0
        self.cuts: int = 0
        self._sum = 0.0
        self._refused = self._requests = 0  # in all
        self._refused_at_cut = self._requests_at_cut = 0
        self._share_at_cut = 0.0  # from the cut before to the last one, if that is known
        self._refused_before = self._requests_before = 0  # when the present row of cuts began
        self._refused_below = self._requests_below = 0  # since the last cut, below the plateau
        self._refused_at_look = self._served_at_look = 0

    def saw(self, served: int, in_flight: int, *, before_cut: bool, below: bool) -> bool:
        """
        Count a 429; whether there are too many.

        Args:
            served: Requests that were served so far.
            in_flight: Requests that are in flight.
            before_cut: Whether the request was sent before the last cut.
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
        # What is sent together may be refused together, before any of it is served.
        return self._sum >= EXCESS + tolerated * in_flight

    def judge(self, *, below: bool) -> bool:
        """Whether the 429s, although too many, do not depend on the rate; otherwise the rate is to be cut."""
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

    def look(self, served: int) -> None:
        """Lower the share if so many were *served* with less than half of the 429s that it lets expect."""
        refused = self._refused - self._refused_at_look
        expected = self.share * (served - self._served_at_look + refused)
        if expected < TELLING:
            return
        if refused < expected / 2:
            self.share *= refused / expected
            if self.share < ALLOWANCE / 10:
                self.share = 0.0
        self._refused_at_look, self._served_at_look = self._refused, served


def _share(refused: int, requests: int) -> float:
    return refused / max(requests, 1)
