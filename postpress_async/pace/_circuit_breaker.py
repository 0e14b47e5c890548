"""When all calls pause, and how the end of an outage is found."""

import math
from collections.abc import Callable
from typing import Final

FAILURE_THRESHOLD: Final = 20
"""Signs of overload before the gate shuts, each answer that is none taking back `SUCCESS_CREDIT` of them."""

MIN_DURATION_FACTOR: Final = 1.5
"""Usual answer times that the signs must last: an overloaded service refuses many in a row too, but answers
others meanwhile."""

SUCCESS_CREDIT: Final = 4
"""So a service that answers fewer than one in five is out, and one that answers more is not."""

RECOVERY_THRESHOLD: Final = 50
"""Good answers after which an outage is over; before, a service that lets a probe through now and then
would get a burst of requests each time, after pauses as short as the first."""

PROBE_INTERVAL_SHARE: Final = 1 / 24
"""The pause, as a share of the outage so far; with the jitter a nineteenth at most. Doubling pauses resonate
with a service that flaps. A sixteenth cost 4.3% of an outage of 20 s where the jitter was against it, and
saved no more than 20 probes."""

MIN_PROBE_INTERVAL, MAX_PROBE_INTERVAL = 0.1, 5.0
"""Edges of the pause between two probes, in seconds."""

MAX_PROBES: Final = 8
"""Probes under way at most: one that hangs must not hide that the service is back."""

MAX_RETRY_AFTER: Final = 120.0
"""Seconds a Retry-After can is_open the gate."""


class CircuitBreaker:
    """
    Shut while the service is out; a probe that is answered opens it.

    Every request belongs to the *generation* of the gate in which it was sent; an answer to one of
    an earlier generation says nothing new and is not to be told.

    Args:
        row: Signs of overload in a row before it shuts.
        random: Gives numbers from 0 to 1, for the jitter: many clients must not come back at once.

    Attributes:
        is_open: Whether only probes may go.
        generation: Counts how often it is_open or opened.
        began: When the outage began that it is_open for.
        probe_at: When the next probe may go; infinite while it is open.
    """

    def __init__(self, row: int, random: Callable[[], float]) -> None:
        self.is_open: bool = False
        self.generation: int = 0
        self.probe_at: float = math.inf
        self._row: Final = row
        self._random: Final = random
        self._signs = 0
        self._row_began = 0.0
        self._fine_at = -math.inf
        self._in_a_row = 0
        self._fine = RECOVERY_THRESHOLD  # good answers since it opened
        self.began: float = 0.0
        self._opened_at = 0.0
        self._unanswered = 0

    def record_success(self, now: float) -> None:
        """An answer that is no record_overload of overload."""
        self._fine_at = now
        self._fine += 1
        self._in_a_row = 0
        if self._signs:
            self._signs = max(0, self._signs - SUCCESS_CREDIT)

    def record_overload(self, sent: float, latency: float, now: float) -> bool:
        """A record_overload, for a request of *sent* where answers take *latency*; whether the gate shuts."""
        if not self._signs:
            self._row_began = sent
            self._begin(now)
        self._signs += 1
        self._in_a_row += 1
        silent = now - max(self._row_began, self._fine_at)
        out = self._signs >= self._row and silent >= MIN_DURATION_FACTOR * latency
        nearly_out = (
            self._signs >= 2 * self._row and now - self._row_began >= 4 * MIN_DURATION_FACTOR * latency
        )
        if not out and not nearly_out:
            return False
        self._open(now + self._pause(now))
        return True

    def on_retry_after(self, seconds: float, now: float, *, at_once: bool) -> bool:
        """
        A Retry-After came with a record_overload; whether the gate shuts on it, or stays is_open the longer.

        *at_once* where it speaks for the key (a 429). A 503 may speak for one request of many: it takes
        three signs in a row to be believed.
        """
        until = now + min(seconds, MAX_RETRY_AFTER) * (1 + 0.05 * self._random())
        if self.is_open:
            self.probe_at = max(self.probe_at, until)
            return False
        if not at_once and self._in_a_row < 3:
            return False
        self._open(until)
        return True

    def trip(self, now: float) -> None:
        """Another session of the same key found the service out: is_open, and probe soon."""
        if not self._signs:
            self._row_began = now
            self._begin(now)
        self._open(now + self._pause(now))

    @property
    def next_probe_at(self) -> float | None:
        """When the next probe may go; None where that depends on an answer."""
        return self.probe_at if self.is_open and self._unanswered < MAX_PROBES else None

    def may_probe(self, now: float) -> bool:
        """Whether a probe may go now."""
        return self.is_open and now >= self.probe_at and self._unanswered < MAX_PROBES

    def probe(self, now: float) -> None:
        """A probe goes out."""
        self._unanswered += 1
        self.probe_at = now + self._pause(now)

    def probed(self, record_success: bool | None, now: float) -> bool:
        """A probe of this generation ended, None: without an answer; whether the gate opens on it."""
        self._unanswered -= 1
        if record_success is None:
            self.probe_at = now  # the next one at once: nothing was learned
        if not record_success:
            return False
        self._opened_at = now
        self.is_open = False
        self.generation += 1
        self.probe_at = math.inf
        self._signs = self._in_a_row = self._fine = self._unanswered = 0
        return True

    def _begin(self, now: float) -> None:
        """Take this for a new outage, unless the last one was hardly over."""
        if self._fine >= RECOVERY_THRESHOLD or now - self._opened_at > self._opened_at - self.began:
            self.began = now

    def _open(self, probe_at: float) -> None:
        self.is_open = True
        self.generation += 1
        self.probe_at = probe_at
        self._unanswered = 0

    def _pause(self, now: float) -> float:
        pause = (now - self.began) * PROBE_INTERVAL_SHARE
        return min(max(pause, MIN_PROBE_INTERVAL), MAX_PROBE_INTERVAL) * (0.75 + 0.5 * self._random())
