"""A session's pace: limit, gate and rate joined, and the calls that wait for their turn."""

import asyncio
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Final, TypeAlias

from postpress_async._wait_queue import WaitQueue
from postpress_async.pace._pace import Pace
from postpress_async.pace.gate import ROW, Gate
from postpress_async.pace.limit import Limit
from postpress_async.pace.rate import Rate
from postpress_async.pace.ticket import Sign, Ticket

LONGEST_OWN: Final = 2.0
"""Seconds of Retry-After that are the refused call's own affair. More of it shuts the gate for all if so many
requests get it that it must be meant for all. Each call waits as long as it was told to in any case."""

SHORTEST_TIMER: Final = 0.001
"""Seconds. A loop may fire a timer a clock's tick too early, and must not be kept busy by that."""

TURNS: Final = 8
"""Of so many turns that both want, one is a new call's and the others are retries'."""


# A global is read in a third of the time of an attribute.
_SUCCESS, _ALIVE, _OVERLOAD, _THROTTLED, _NONE = Sign
Turn: TypeAlias = "asyncio.Future[Ticket | None]"


class Pacer:
    """
    Lets calls in, in the order in which they came, as fast as the service takes them.

    Retries come before new calls, but for one turn in eight. It belongs to the event loop in which a call
    first has to wait, and has no task of its own: one timer at most, and only while somebody waits.

    Args:
        pace: What the user says of it.
        clock: Gives the time in seconds; None for that of the running loop.
        random: Gives numbers from 0 to 1.
        on_pause: Called with True when all calls begin to pause and with False when they go on. It is the
            last thing that is done, so that nothing is left half done if it raises.
    """

    def __init__(
        self,
        pace: Pace,
        *,
        clock: Callable[[], float] | None = None,
        random: Callable[[], float],
        on_pause: Callable[[bool], object] | None = None,
    ) -> None:
        self._pace: Final = pace
        self._clock = clock or self._loop_clock
        self._on_pause: Final = on_pause
        self._limit: Final = Limit(pace.in_flight, pace.start)
        # Few in flight give few signs: 5 is more than the attempts of one call.
        self._gate: Final = Gate(max(5, min(ROW, 2 * pace.in_flight)), random)
        self._rate: Final = Rate(pace.rate)
        self._served = 0
        self._mark_at = -float("inf")
        self._taken = 0  # slots; those of refused requests among them, while they are held
        self._held: Final[list[float]] = []  # a heap of when they are freed
        self._waiting: Final = (WaitQueue[Ticket | None](), WaitQueue[Ticket | None]())  # retries, new calls
        self._turn = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._room = 0  # `limit` where a call may come in at once, 0 where it has to ask
        self._look()

    @property
    def paused(self) -> bool:
        """Whether all calls pause."""
        return self._gate.shut

    @property
    def limit(self) -> int:
        """How many requests may be in flight now."""
        return int(self._limit.value) if self._pace.adaptive else self._pace.in_flight

    @property
    def in_flight(self) -> int:
        """Requests sent and not yet answered."""
        return self._taken - len(self._held)

    @property
    def waiting(self) -> int:
        """Calls in `enter`."""
        return self._waiting[0].count + self._waiting[1].count

    @property
    def rate(self) -> float:
        """Requests a second that may go out now; infinite where nothing says otherwise."""
        return self._rate.value

    def lease(self, rate: float) -> None:
        """From now on, so many requests a second at most: this session's share of a rate."""
        self._rate.lease(rate, self._clock())
        if self._waiting[0].count or self._waiting[1].count:
            self._admit()

    def pause(self) -> None:
        """Pause, on the word of another session of the same key: the service is out."""
        if not self._pace.adaptive or self._gate.shut:
            return
        now = self._clock()
        self._gate.heard(now)
        self._limit.pause(self._gate.began)
        self._look()
        if self._waiting[0].count or self._waiting[1].count:
            self._admit()
        if self._on_pause is not None:
            self._on_pause(True)

    def try_enter(self) -> Ticket | None:
        """A ticket if there is one at once; None where the call has to `enter`."""
        if self._taken >= self._room:
            return None
        now = self._clock()
        if self._rate.active and not self._rate.take(now):
            return None
        self._taken += 1
        return Ticket(now, self._gate.generation)

    async def enter(self, *, retry: bool = False) -> Ticket:
        """
        A ticket, when it is this call's turn.

        Args:
            retry: Whether the call was sent before, and so comes before those that were not.
        """
        if (ticket := self.try_enter()) is not None:
            return ticket
        turn = self.queue(retry=retry)
        try:
            ticket = await turn
        except BaseException:
            self.withdraw(turn, retry=retry)
            raise
        assert ticket is not None  # noqa: S101 - nobody else has the turn
        return ticket

    def queue(self, *, retry: bool = False) -> Turn:
        """
        The future of a ticket, for a call that has no coroutine to spare for its wait; see `enter`.

        Whoever gives it up, or gives it the result None, has to `withdraw` it.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop is not None:
                raise RuntimeError("the pacer was first used in another event loop")
            self._loop = loop
        turn: Turn = loop.create_future()
        alone = not self.waiting
        self._waiting[0 if retry else 1].append(turn)
        if alone or self._rate.active:  # else the others are seen to already; a rate learns from who waits
            self._admit()
        return turn

    def withdraw(self, turn: Turn, *, retry: bool = False) -> None:
        """Give up a *turn*; if its ticket came at the same moment, the ticket is handed on."""
        ticket = turn.result() if turn.done() and not turn.cancelled() else None
        if ticket is not None:
            self._rate.give_back()
            self._return(ticket)
        else:
            self._waiting[0 if retry else 1].discard(turn)
            self._admit()

    def leave(self, ticket: Ticket, sign: Sign, retry_after: float | None = None) -> bool:
        """
        The attempt is over.

        Args:
            ticket: What `enter` gave.
            sign: What the attempt's end says.
            retry_after: Seconds that the answer asks to wait. The call itself has to wait so long;
                beyond 2 s all do.

        Returns:
            Whether the attempt counts as one. An attempt that met an outage that is known, or found it out as
            a probe, says nothing of its call.
        """
        if not self._pace.adaptive:
            self._taken -= 1
            if self._waiting[0].count or self._waiting[1].count:
                self._admit()
            return True
        if sign is _NONE:
            self._return(ticket)
            return True
        now = self._clock()
        gate, counts = self._gate, True
        was_shut = gate.shut
        if ticket.generation == gate.generation and not gate.shut:
            if sign is _SUCCESS:
                self._served += 1
                if now >= self._mark_at:
                    self._mark_at = self._rate.mark(self._served, now)
                self._limit.answered(ticket.sent, self._taken, now, True)
                gate.fine(now)
            elif sign is _ALIVE:
                self._limit.answered(ticket.sent, self._taken, now, False)
                gate.fine(now)
            else:
                counts = self._refused(ticket, sign, retry_after, now)
        elif ticket.probe and ticket.generation == gate.generation:
            counts = self._probed(sign, retry_after, now)
        else:
            counts = sign is _SUCCESS or sign is _ALIVE  # sent before a pause
        if (sign is _OVERLOAD or sign is _THROTTLED) and now < (until := ticket.sent + self._limit.latency):
            heappush(self._held, until)
        else:
            self._taken -= 1
        if self._waiting[0].count or self._waiting[1].count:
            self._admit()
        else:
            self._room = 0 if gate.shut else int(self._limit.value)
        if gate.shut is not was_shut and self._on_pause is not None:
            self._on_pause(gate.shut)
        return counts

    def _loop_clock(self) -> float:
        self._clock = asyncio.get_running_loop().time
        return self._clock()

    def _refused(self, ticket: Ticket, sign: Sign, retry_after: float | None, now: float) -> bool:
        """A sign of overload at the open gate; whether it stays open."""
        key_wide = False
        if sign is _THROTTLED:
            key_wide = self._rate.throttled(
                ticket.sent, self._served, now, retry_after or 0.0, self.in_flight
            )
        else:
            self._limit.refused(ticket.sent, now)
        shuts = self._gate.sign(ticket.sent, self._limit.latency, now)
        if retry_after is not None and retry_after > LONGEST_OWN and (key_wide or sign is not _THROTTLED):
            shuts = self._gate.asked(retry_after, now, at_once=key_wide) or shuts
        if shuts:
            self._limit.pause(self._gate.began)
        return not shuts

    def _probed(self, sign: Sign, retry_after: float | None, now: float) -> bool:
        """The answer to a probe; whether it counts as an attempt."""
        fine = sign is _SUCCESS or sign is _ALIVE
        if self._gate.probed(fine, now):
            self._limit.resume(now)
            self._rate.resume(self._served, now)
        elif retry_after is not None and retry_after > LONGEST_OWN:
            self._gate.asked(retry_after, now, at_once=True)
        return fine

    def _return(self, ticket: Ticket) -> None:
        """Take back a ticket with which nothing was learned."""
        self._taken -= 1
        if ticket.probe and self._gate.shut and ticket.generation == self._gate.generation:
            self._gate.probed(None, self._clock())
        self._admit()

    def _admit(self) -> None:
        """Let in who may come in, and see to it that the next ones are."""
        now = self._clock()
        while self._held and self._held[0] <= now + SHORTEST_TIMER:
            heappop(self._held)
            self._taken -= 1
        due = None
        gate = self._gate
        while self._waiting[0].has_next() or self._waiting[1].has_next():
            if gate.shut and not gate.may_probe(now + SHORTEST_TIMER):
                due = gate.next_probe_at
                break
            if self._taken >= (self._pace.in_flight if gate.shut else self.limit):
                due = self._held[0] if self._held else None
                break
            if self._rate.active and not self._rate.take(now + SHORTEST_TIMER):
                due = self._rate.ready_at
                break
            turn = self._next()
            self._taken += 1
            if gate.shut:
                gate.probe(now)
            turn.set_result(Ticket(now, gate.generation, gate.shut))
        self._look()
        if due is not None:
            self._wake_at(due, now)
        elif self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _next(self) -> Turn:
        retries, new = self._waiting
        queue = retries if retries.has_next() else new
        if queue is retries and new.has_next():
            self._turn = (self._turn + 1) % TURNS
            queue = retries if self._turn else new
        return queue.pop()

    def _wake_at(self, due: float, now: float) -> None:
        if self._timer is not None:
            if self._timer_at <= due:
                return  # at worst it wakes for nothing, and is set anew
            self._timer.cancel()
        assert self._loop is not None  # noqa: S101 - nobody waits without a loop
        self._timer_at = due
        self._timer = self._loop.call_later(max(due - now, SHORTEST_TIMER), self._woken)

    def _woken(self) -> None:
        self._timer = None
        self._admit()

    def _look(self) -> None:
        """Is there anything to ask before a call comes in?"""
        if self._gate.shut or self._waiting[0].count or self._waiting[1].count:
            self._room = 0
        else:
            self._room = self.limit
