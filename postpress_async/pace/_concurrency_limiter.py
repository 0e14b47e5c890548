"""How many requests may be in flight: slow start, then cubic growth, and a cut on many refusals."""

import math
from typing import Final

CUBIC_BETA: Final = 0.7
"""What a cut leaves. CUBIC's beta (RFC 9438, section 4.6)."""

CUBIC_C: Final = 0.05
"""Of the cubic: back at the old limit 1.8 s after a cut, at twice the limit 4.5 s after it."""

TOLERATED_SHARE: Final = 0.1
"""Share of refusals that is no overload: services answer some requests with a 503 on any day."""

LEARNED_TOLERATED_SHARE: Final = 0.03
"""The same, once a cut has made the refusals cease: they do come of the load."""

SIGNIFICANCE: Final = 2.5
"""Standard deviations above the tolerated share before it counts: by chance in 1 of 160 looks."""

MAX_LATENCY_FACTOR: Final = 2.0
"""Times the best latency beyond which the service queues, and the limit does not grow."""

BASELINE_TTL: Final = 30.0
"""Seconds that the usual latency is believed. Then, if it is what holds the limit back, the limit is lowered
for a window and the latency taken anew (as BBR does): a service that got slower for good is else never asked
for more, and one that is merely believed to be slow drifts into its queue."""

FIRST_BASELINE_TTL: Final = 3.0
"""The same for the first latencies: those of a heavy tail that come first are the fast ones."""

MAX_INITIAL_LIMIT: Final = 100
"""In flight at most before there was an answer: a service that refuses the rest does so within 5 ms, far
sooner than the first answers can tell anything."""

DEFAULT_LATENCY: Final = 0.1
"""Seconds an answer is believed to take while there was none."""


class ConcurrencyLimiter:
    """
    The adaptive limit, between 1 and *most*.

    Tell it of each answer with `answered` or `refused`, in time's order.

    Args:
        most: Where it ends.
        start: Where it begins.

    Attributes:
        value: How many may be in flight; a fraction counts for nothing.
        latency: What an answer takes, in seconds: the geometric mean of the last window, since a few
            answers of ten seconds must not look like a queue.
    """

    def __init__(self, most: int, start: int) -> None:
        self.most: Final = most
        self.value: float = float(min(start, most, MAX_INITIAL_LIMIT))
        self.latency: float = DEFAULT_LATENCY
        self._target = float(most)  # slow start ends here
        self._cap = 2 * self.value  # and goes no further before the window's end
        self._starting = True
        self._top = self.value  # the cubic's plateau
        self._since = 0.0  # when the cubic began
        # The window of latencies.
        self._logs = 0.0
        self._timed = 0
        self._answers = 0
        self._peak = self._peak_before = 0  # in flight at most, in this window and the last one
        self._size = 0
        self._looked = 0.0
        # The latency without a queue.
        self._usual: float | None = None
        self._believed_until = math.inf
        self._first_belief = True
        self._dip_at = -math.inf
        self._before_dip: float | None = None
        self._room_before_dip = 1.0
        # The share of refusals.
        self._count = 0.0
        self._refusals = 0.0
        self._cut_at = -math.inf
        self._share = 0.0  # when last cut
        self._count_since = self._refusals_since = 0.0  # since then
        self._judged = True  # whether it is known what the last cut did
        self._helped = False
        self._useless = 0  # cuts in a row that did not help
        self._undo = self.value
        self._before_cut = (self.value, self._target, True)
        self._tolerated = TOLERATED_SHARE
        self._resize()

    def answered(self, sent: float, in_flight: int, now: float, timed: bool) -> None:
        """
        An answer that is no sign of overload, to a request of *sent*, with *in_flight* before it came.

        *timed* where it patched: the latency of a refusal may be another's than the service's.
        """
        if sent > self._cut_at:
            self._count += 1.0
            self._count_since += 1.0
        if sent <= self._dip_at:
            return
        if timed:
            latency = now - sent
            self._logs += math.log(latency) if latency > 1e-6 else -13.8
            self._timed += 1
        self._answers += 1
        if in_flight > self._peak:
            self._peak = in_flight
        if self._starting and self.value < self._cap and 2 * max(self._peak, self._peak_before) > self.value:
            self.value += 1.0
            if self.value >= self._target:
                self._leave_start(self._target, now)
        if self._answers >= self._size:
            self._look(now)

    def refused(self, sent: float, now: float) -> None:
        """A sign of overload, for a request of *sent*."""
        if sent <= self._cut_at:
            return  # it speaks of the limit before the cut
        latency = now - sent
        self._count += 1.0
        self._refusals += 1.0
        self._count_since += 1.0
        self._refusals_since += 1.0
        if latency > self.latency:  # timed out: those that were served were the fast ones
            self._logs += math.log(latency)
            self._timed += 1
        if self._count < 20 or now - self._cut_at < max(0.5, 2 * self.latency):
            return
        if self._refusals > _significant(self._tolerated, self._count):
            self._cut(now)

    def pause(self, since: float) -> None:
        """An outage began at *since*: a cut after that was none of the load's."""
        self._end_dip()
        if self._cut_at >= since:
            self.value, self._target, self._starting = self._before_cut

    def resume(self, now: float) -> None:
        """Go on after a pause: from half, and in slow start back to where it was."""
        self._target = max(self._target if self._starting else self.value, 1.0)
        self.value = max(1.0, self.value / 2)
        self._starting = True
        self._cap = 2 * self.value
        self._judged = True
        self._forget_refusals()
        self._begin_window(now)

    def _look(self, now: float) -> None:
        """At a window's end: what do the latencies say, and how far may the limit go?"""
        room = MAX_LATENCY_FACTOR  # times the limit that is sure not to queue too long
        if self._timed * 2 >= self._answers:
            self.latency = math.exp(self._logs / self._timed)
            room = MAX_LATENCY_FACTOR * self._usual_latency(now) / self.latency
        used = max(self._peak, self._peak_before) >= 0.8 * math.floor(self.value)
        if not self._judged:
            self._judge()
        if self._starting:
            if room < 1:
                self._leave_start(self.value, now)
            self._cap = self.value * room
        elif self._before_dip is not None:
            self._since += now - self._looked
        elif room < 1 or not used or not self._judged:
            self._since += now - self._looked  # time in which it could not grow does not count
        else:
            reach = now - self._since - math.cbrt((1 - CUBIC_BETA) / CUBIC_C)
            goal = self._top * (1 + CUBIC_C * reach**3)
            self.value = min(max(self.value, goal), self.value * min(room, 1.5), float(self.most))
        if self._count >= 5 * self._size:
            if self._tolerated > TOLERATED_SHARE and self._refusals < self._tolerated / 2 * self._count:
                self._tolerated = TOLERATED_SHARE
            self._count /= 2
            self._refusals /= 2
        self._begin_window(now)

    def _usual_latency(self, now: float) -> float:
        latency = self.latency
        if self._usual is None:
            self._usual, self._believed_until = latency, now + FIRST_BASELINE_TTL
        elif self._before_dip is not None:
            self._end_dip()
            if latency < 1.33 * self._usual:
                # Fewer in flight are answered sooner: the rest had only been queueing.
                self.value = max(1.0, self.value * min(max(self._room_before_dip, 0.25), 1.0))
                self._top = min(self._top, self.value)
            elif self._first_belief and latency > 1.5 * self._usual:
                # It was slow start's belief that ended it too early.
                self._starting, self._target, self._cap = True, float(self.most), 2 * self.value
            self._first_belief = False
            self._usual = latency
        elif latency < self._usual:
            self._usual += 0.2 * (latency - self._usual)  # the least of many windows would be luck
        elif now > self._believed_until and not self._starting:
            self._believed_until = now + BASELINE_TTL
            if latency > 1.33 * self._usual:
                self._before_dip, self._dip_at = self.value, now
                self._room_before_dip = MAX_LATENCY_FACTOR * self._usual / latency
                self.value = max(1.0, self.value * max(self._usual / latency, 0.125))
            else:
                self._usual = latency
        return self._usual

    def _end_dip(self) -> None:
        if self._before_dip is not None:
            self.value, self._before_dip = self._before_dip, None

    def _cut(self, now: float) -> None:
        self._end_dip()
        share = self._refusals / self._count
        if self._helped:
            useless = False
        elif self._judged:
            useless = self._refusals_since > 0.6 * self._share * self._count_since > 60 * self._share
        else:
            useless = 1 - share < 1.15 * (1 - self._share)
        if useless:
            self._useless += 1
        else:
            self._useless = 0
            self._undo = self.value
        if self._useless >= 2:
            # Two cuts to half the limit left the share of refusals as it was: it is not the load.
            self._tolerated = min(0.9, share * 1.2)
            self._leave_start(self._undo, now)
            self._useless = 0
            self._judged = True
        else:
            self._before_cut = (self.value, self._target, self._starting)
            self._judged = self._helped = False
            self._leave_start(self.value, now)
            self.value = max(1.0, self.value * CUBIC_BETA)
            self._since = now
            self._cut_at = now
        self._share = share
        self._count_since = self._refusals_since = 0.0
        self._forget_refusals()
        self._begin_window(now)

    def _judge(self) -> None:
        """Did the last cut help?"""
        if self._count >= 20 and self._refusals < 0.02 * self._count:
            self._tolerated = min(self._tolerated, LEARNED_TOLERATED_SHARE)
            self._judged = self._helped = True
        elif self._count >= 100 or self._refusals < self._tolerated * self._count:
            self._judged = self._refusals <= _significant(self._tolerated, self._count)

    def _leave_start(self, value: float, now: float) -> None:
        """Be at the plateau of the cubic."""
        self._starting = False
        self.value = self._top = value
        self._since = now - math.cbrt((1 - CUBIC_BETA) / CUBIC_C)

    def _forget_refusals(self) -> None:
        self._count = self._refusals = 0.0

    def _begin_window(self, now: float) -> None:
        self._logs, self._timed, self._answers, self._looked = 0.0, 0, 0, now
        self._peak_before, self._peak = self._peak, 0
        self._resize()

    def _resize(self) -> None:
        # One round trip of all that is in flight; fewer than 20 latencies tell nothing, and more than
        # 200 nothing that 200 do not.
        self._size = max(20, min(int(self.value), 200))


def _significant(tolerated: float, count: float) -> float:
    return tolerated * count + SIGNIFICANCE * math.sqrt(tolerated * (1 - tolerated) * count)
