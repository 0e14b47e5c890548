"""A session's pace: limit, breaker and rate joined, and the calls that wait for their future."""

import asyncio
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Final, TypeAlias

from postpress_async._wait_queue import WaitQueue
from postpress_async.pace._circuit_breaker import FAILURE_THRESHOLD, CircuitBreaker
from postpress_async.pace._concurrency_limiter import ConcurrencyLimiter
from postpress_async.pace._load_signal import LoadSignal
from postpress_async.pace._pace import Pace
from postpress_async.pace._permit import Permit
from postpress_async.pace._rate_limiter import RateLimiter

OWN_RETRY_AFTER: Final = 2.0
"""Seconds of Retry-After that only concern the refused call. A longer one opens the breaker for all calls if
so many requests get it that it must be meant for all. The refused call always waits as asked."""

SHORTEST_TIMER: Final = 0.001
"""Seconds. A loop may fire a timer a clock's tick too early, and must not be kept busy by that."""

TURNS: Final = 8
"""Of so many turns that both want, one is a new call's and the others are retries'."""


# A global is read in a third of the time of an attribute.
_SUCCESS, _ALIVE, _OVERLOAD, _THROTTLED, _NONE = LoadSignal
PermitFuture: TypeAlias = "asyncio.Future[Permit | None]"


class Pacer:
    """
    Lets calls in, in the order in which they came, as fast as the service takes them.

    Retries come before new calls, but for one future in eight. It belongs to the event loop in which a call
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
        self._limiter: Final = ConcurrencyLimiter(pace.in_flight, pace.start)
        # Few in flight give few signs: 5 is more than the attempts of one call.
        self._breaker: Final = CircuitBreaker(max(5, min(FAILURE_THRESHOLD, 2 * pace.in_flight)), random)
        self._rate_limiter: Final = RateLimiter(pace.rate)
        self._served = 0
        self._mark_at = -float("inf")
        self._taken = 0  # slots; those of refused requests among them, while they are held
        self._held: Final[list[float]] = []  # a heap of when they are freed
        self._waiting: Final = (WaitQueue[Permit | None](), WaitQueue[Permit | None]())  # retries, new calls
        self._turn = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._room = 0  # `limit` where a call may come in at once, 0 where it has to ask
        self._look()

    @property
    def paused(self) -> bool:
        """Whether all calls pause."""
        return self._breaker.is_open

    @property
    def limit(self) -> int:
        """How many requests may be in flight now."""
        return int(self._limiter.value) if self._pace.adaptive else self._pace.in_flight

    @property
    def in_flight(self) -> int:
        """Requests sent and not yet answered."""
        return self._taken - len(self._held)

    @property
    def waiting(self) -> int:
        """Calls in `acquire`."""
        return self._waiting[0].count + self._waiting[1].count

    @property
    def rate(self) -> float:
        """Requests a second that may go out now; infinite where nothing says otherwise."""
        return self._rate_limiter.value

    def lease(self, rate: float) -> None:
        """From now on, so many requests a second at most: this session's share of a rate."""
        self._rate_limiter.lease(rate, self._clock())
        if self._waiting[0].count or self._waiting[1].count:
            self._admit()

    def pause(self) -> None:
        """Pause, on the word of another session of the same key: the service is out."""
        if not self._pace.adaptive or self._breaker.is_open:
            return
        now = self._clock()
        self._breaker.trip(now)
        self._limiter.pause(self._breaker.began)
        self._look()
        if self._waiting[0].count or self._waiting[1].count:
            self._admit()
        if self._on_pause is not None:
            self._on_pause(True)

    def try_acquire(self) -> Permit | None:
        """A permit if there is one at once; None where the call has to `acquire`."""
        if self._taken >= self._room:
            return None
        now = self._clock()
        if self._rate_limiter.active and not self._rate_limiter.take(now):
            return None
        self._taken += 1
        return Permit(now, self._breaker.generation)

    async def acquire(self, *, retry: bool = False) -> Permit:
        """
        A permit, when it is this call's future.

        Args:
            retry: Whether the call was sent before, and so comes before those that were not.
        """
        if (permit := self.try_acquire()) is not None:
            return permit
        future = self.enqueue(retry=retry)
        try:
            permit = await future
        except BaseException:
            self.withdraw(future, retry=retry)
            raise
        assert permit is not None  # noqa: S101 - nobody else has the future
        return permit

    def enqueue(self, *, retry: bool = False) -> PermitFuture:
        """
        The future of a permit, for a call that has no coroutine to spare for its wait; see `acquire`.

        Whoever gives it up, or gives it the result None, has to `withdraw` it.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop is not None:
                raise RuntimeError("the pacer was first used in another event loop")
            self._loop = loop
        future: PermitFuture = loop.create_future()
        alone = not self.waiting
        self._waiting[0 if retry else 1].append(future)
        if (
            alone or self._rate_limiter.active
        ):  # else the others are seen to already; a rate learns from who waits
            self._admit()
        return future

    def withdraw(self, future: PermitFuture, *, retry: bool = False) -> None:
        """Give up a *future*; if its permit came at the same moment, the permit is handed on."""
        permit = future.result() if future.done() and not future.cancelled() else None
        if permit is not None:
            self._rate_limiter.give_back()
            self._return(permit)
        else:
            self._waiting[0 if retry else 1].discard(future)
            self._admit()

    def release(self, permit: Permit, sign: LoadSignal, retry_after: float | None = None) -> bool:
        """
        The attempt is over.

        Args:
            permit: What `acquire` gave.
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
            self._return(permit)
            return True
        now = self._clock()
        breaker, counts = self._breaker, True
        was_shut = breaker.is_open
        if permit.generation == breaker.generation and not breaker.is_open:
            if sign is _SUCCESS:
                self._served += 1
                if now >= self._mark_at:
                    self._mark_at = self._rate_limiter.mark(self._served, now)
                self._limiter.answered(permit.sent, self._taken, now, True)
                breaker.record_success(now)
            elif sign is _ALIVE:
                self._limiter.answered(permit.sent, self._taken, now, False)
                breaker.record_success(now)
            else:
                counts = self._refused(permit, sign, retry_after, now)
        elif permit.probe and permit.generation == breaker.generation:
            counts = self._probed(sign, retry_after, now)
        else:
            counts = sign is _SUCCESS or sign is _ALIVE  # sent before a pause
        if (sign is _OVERLOAD or sign is _THROTTLED) and now < (until := permit.sent + self._limiter.latency):
            heappush(self._held, until)
        else:
            self._taken -= 1
        if self._waiting[0].count or self._waiting[1].count:
            self._admit()
        else:
            self._room = 0 if breaker.is_open else int(self._limiter.value)
        if breaker.is_open is not was_shut and self._on_pause is not None:
            self._on_pause(breaker.is_open)
        return counts

    def _loop_clock(self) -> float:
        self._clock = asyncio.get_running_loop().time
        return self._clock()

    def _refused(self, permit: Permit, sign: LoadSignal, retry_after: float | None, now: float) -> bool:
        """A sign of overload at the open breaker; whether it stays open."""
        key_wide = False
        if sign is _THROTTLED:
            key_wide = self._rate_limiter.throttled(
                permit.sent, self._served, now, retry_after or 0.0, self.in_flight
            )
        else:
            self._limiter.refused(permit.sent, now)
        shuts = self._breaker.record_overload(permit.sent, self._limiter.latency, now)
        if retry_after is not None and retry_after > OWN_RETRY_AFTER and (key_wide or sign is not _THROTTLED):
            shuts = self._breaker.on_retry_after(retry_after, now, at_once=key_wide) or shuts
        if shuts:
            self._limiter.pause(self._breaker.began)
        return not shuts

    def _probed(self, sign: LoadSignal, retry_after: float | None, now: float) -> bool:
        """The answer to a probe; whether it counts as an attempt."""
        fine = sign is _SUCCESS or sign is _ALIVE
        if self._breaker.probed(fine, now):
            self._limiter.resume(now)
            self._rate_limiter.resume(self._served, now)
        elif retry_after is not None and retry_after > OWN_RETRY_AFTER:
            self._breaker.on_retry_after(retry_after, now, at_once=True)
        return fine

    def _return(self, permit: Permit) -> None:
        """Take back a permit with which nothing was learned."""
        self._taken -= 1
        if permit.probe and self._breaker.is_open and permit.generation == self._breaker.generation:
            self._breaker.probed(None, self._clock())
        self._admit()

    def _admit(self) -> None:
        """Let in who may come in, and see to it that the next ones are."""
        now = self._clock()
        while self._held and self._held[0] <= now + SHORTEST_TIMER:
            heappop(self._held)
            self._taken -= 1
        due = None
        breaker = self._breaker
        while self._waiting[0].has_next() or self._waiting[1].has_next():
            if breaker.is_open and not breaker.may_probe(now + SHORTEST_TIMER):
                due = breaker.next_probe_at
                break
            if self._taken >= (self._pace.in_flight if breaker.is_open else self.limit):
                due = self._held[0] if self._held else None
                break
            if self._rate_limiter.active and not self._rate_limiter.take(now + SHORTEST_TIMER):
                due = self._rate_limiter.ready_at
                break
            future = self._next()
            self._taken += 1
            if breaker.is_open:
                breaker.probe(now)
            future.set_result(Permit(now, breaker.generation, breaker.is_open))
        self._look()
        if due is not None:
            self._wake_at(due, now)
        elif self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _next(self) -> PermitFuture:
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
        if self._breaker.is_open or self._waiting[0].count or self._waiting[1].count:
            self._room = 0
        else:
            self._room = self.limit
