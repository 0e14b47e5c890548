"""Grants permits within the limits of concurrency and rate and the circuit breaker; queues waiting calls."""

import asyncio
import math
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Final, Literal, TypeAlias

from attrs import define

from postpress_async._wait_queue import WaitQueue
from postpress_async.pace._circuit_breaker import FAILURE_THRESHOLD, CircuitBreaker
from postpress_async.pace._concurrency_limiter import ConcurrencyLimiter
from postpress_async.pace._load_signal import LoadSignal
from postpress_async.pace._pace import Pace
from postpress_async.pace._rate_limiter import RateLimiter

OWN_RETRY_AFTER: Final = 2.0
"""Longest Retry-After, in seconds, that delays only the call that gets it. A longer one also opens the
circuit breaker if enough requests get it. The call itself always waits for its full Retry-After."""

MIN_TIMER: Final = 0.001
"""Shortest delay of a timer, in seconds. An event loop may fire a timer one clock tick early. Without a
minimum delay, the timer would then be set and fire again and again."""

OVERLOAD_SHARE: Final = 0.05
"""Share of overload signals among about the latest 50 requests above which the service is overloaded."""

RETRY_SHARE: Final = 8  # if retries and new calls wait, one in this many permits goes to a new call

# Reading a global takes a tenth of the time of reading an enumeration's member.
_NONE, _SUCCESS = LoadSignal.NONE, LoadSignal.SUCCESS
_OVERLOAD, _THROTTLED = LoadSignal.OVERLOAD, LoadSignal.THROTTLED


@define(eq=False)
class Permit:
    """The permit to send one request. Return it with `Pacer.release`, once."""

    sent: float  # the pacer's time at which it was granted
    generation: int  # the circuit breaker's generation at that time
    probe: bool = False  # whether the request is a probe of the open circuit breaker


PermitFuture: TypeAlias = "asyncio.Future[Permit | None]"


class Pacer:
    """
    Grants permits in FIFO order, as fast as the service can handle the requests.

    Retries come before new calls, except for one permit in eight. A pacer belongs to the event loop in which
    a call first waits. It has no task, and at most one timer, which is set only while calls wait.

    Args:
        pace: The user's settings.
        clock: Returns the time in seconds; None for the clock of the running loop.
        random: Returns numbers from 0 to 1.
        on_pause: Called with True when the circuit breaker opens and with False when it closes. It is called
            last, so the state is consistent even if it raises.
        on_change: Called with the concurrency limit and the rate when one of them has changed by a tenth. The
            other one is None if it has not.
    """

    def __init__(
        self,
        pace: Pace,
        *,
        clock: Callable[[], float] | None = None,
        random: Callable[[], float],
        on_pause: Callable[[bool], object] | None = None,
        on_change: Callable[[int | None, float | None], object] | None = None,
    ) -> None:
        self._pace: Final = pace
        self._clock = clock or self._loop_clock
        self._on_pause: Final = on_pause
        self._on_change: Final = on_change
        self._limiter: Final = ConcurrencyLimiter(pace.in_flight, pace.start)
        # Few requests in flight give few overload signals. The attempts of one call must not suffice, and by
        # default it has four.
        threshold = max(5, min(FAILURE_THRESHOLD, 2 * pace.in_flight))
        self._breaker: Final = CircuitBreaker(threshold, random)
        self._rate_limiter: Final = RateLimiter(pace.rate)
        self._record_served_at = -math.inf
        self._permits = 0  # permits in use, and held ones
        # A heap of the times at which held permits are released. The permit of a request with an overload
        # signal is held until the usual latency has passed, so that fast errors do not cause more requests.
        self._held: Final[list[float]] = []
        self._stale = 0  # permits in use that were granted before the breaker last opened or closed
        self._retries: Final = WaitQueue[Permit | None]()
        self._new_calls: Final = WaitQueue[Permit | None]()
        self._retries_in_a_row = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._fast_limit = 0  # `limit` if a permit is free without further checks, otherwise 0
        self._update_fast_limit()
        self._reported_limit, self._reported_rate = float(self.limit), self.rate

    @property
    def paused(self) -> bool:
        return self._breaker.is_open

    @property
    def is_full(self) -> bool:
        """Whether no further new call may wait."""
        maximum = self._pace.max_waiting
        return maximum is not None and self._new_calls.count >= maximum

    @property
    def breaker_state(self) -> Literal["closed", "open", "half-open"]:
        return self._breaker.state

    @property
    def overloaded(self) -> bool:
        """Whether many requests get an overload signal while others succeed."""
        limiter, breaker = self._limiter, self._breaker
        if breaker.is_open or limiter.overload_share <= OVERLOAD_SHARE:
            return False
        # Without this check, accounts that always get a 503 would be retried for ever at the end of a run.
        return self._clock() - breaker.last_success <= max(0.5, 2 * limiter.latency)

    @property
    def limit(self) -> int:
        return int(self._limiter.value) if self._pace.adaptive else self._pace.in_flight

    @property
    def in_flight(self) -> int:
        """Requests without a response yet."""
        return self._permits - len(self._held)

    @property
    def waiting(self) -> int:
        return self._retries.count + self._new_calls.count

    @property
    def rate(self) -> float:
        """The current rate limit in requests per second; infinite without a limit."""
        return self._rate_limiter.value

    def lease(self, rate: float) -> None:
        """Limit the rate to *rate* requests per second, this session's share of its cluster's rate."""
        self._rate_limiter.set_ceiling(rate, self._clock())
        self._admit()

    def pause(self) -> None:
        """Open the circuit breaker because another session with the same API key found the service down."""
        if not self._pace.adaptive or self._breaker.is_open:
            return
        now = self._clock()
        self._breaker.trip(now)
        self._limiter.pause(self._breaker.outage_started)
        self._stale = self.in_flight
        self._admit()
        if self._on_pause is not None:
            self._on_pause(True)

    def try_acquire(self) -> Permit | None:
        if self._permits >= self._fast_limit:
            return None
        now = self._clock()
        if self._rate_limiter.active and not self._rate_limiter.try_acquire(now):
            return None
        self._permits += 1
        return Permit(now, self._breaker.generation)

    def enqueue(self, *, retry: bool = False) -> PermitFuture:
        """
        Return the future of a permit. *retry* tells whether the call has already sent a request.

        A caller that stops waiting for the future, or sets its result to None, must `withdraw` it.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop is not None:
                raise RuntimeError("the pacer was first used in another event loop")
            self._loop = loop
        future: PermitFuture = loop.create_future()
        is_first = not self.waiting
        (self._retries if retry else self._new_calls).append(future)
        # If others wait already, the timer or a response will admit this call. But the rate limiter must know
        # of each call that waits, because the rate grows only while calls wait for it.
        if is_first or self._rate_limiter.active:
            self._admit()
        return future

    def withdraw(self, future: PermitFuture, *, retry: bool = False) -> None:
        """Stop waiting for *future*. If its permit was granted at the same moment, the next call gets it."""
        permit = future.result() if future.done() and not future.cancelled() else None
        if permit is not None:
            self._rate_limiter.refund()
            self._return(permit)
        else:
            (self._retries if retry else self._new_calls).discard(future)
            self._admit()

    def release(self, permit: Permit, signal: LoadSignal, retry_after: float | None = None) -> bool:
        """
        Return a permit, because its attempt has ended.

        The caller waits for *retry_after* seconds. If they exceed `OWN_RETRY_AFTER`, they may also open the
        circuit breaker. Returns whether the attempt counts as one of its call. A failed probe, or an attempt
        that fails in a known outage, does not count.
        """
        if signal is _NONE or not self._pace.adaptive:
            self._return(permit)
            return True
        now, breaker = self._clock(), self._breaker
        was_open = breaker.is_open
        is_overload = signal is _OVERLOAD or signal is _THROTTLED
        counts = not is_overload
        if permit.generation != breaker.generation:  # sent before the breaker opened or closed
            self._stale -= 1
        elif permit.probe:
            self._end_probe(counts, retry_after or 0.0, now)
        elif is_overload:
            counts = self._record_overload(permit, signal, retry_after or 0.0, now)
        else:
            self._record_success(permit, now, timed=signal is _SUCCESS)
        if breaker.is_open is not was_open:
            self._stale = self.in_flight - 1
        hold_until = permit.sent + self._limiter.latency
        if is_overload and now < hold_until:
            heappush(self._held, hold_until)
        else:
            self._permits -= 1
        if self._retries.count or self._new_calls.count:
            self._admit()
        else:
            self._update_fast_limit()
        if self._limiter.value != self._reported_limit or self._rate_limiter.value != self._reported_rate:
            self._report_changes()
        if breaker.is_open is not was_open and self._on_pause is not None:
            self._on_pause(breaker.is_open)
        return counts

    def _report_changes(self) -> None:
        limit, rate = self._reported_limit, self._reported_rate
        limit_changed = not 0.9 * limit < self.limit < 1.1 * limit
        rate_changed = rate != self.rate and not 0.9 * rate < self.rate < 1.1 * rate
        if limit_changed or rate_changed:
            self._reported_limit, self._reported_rate = float(self.limit), self.rate
            if self._on_change is not None:
                self._on_change(self.limit if limit_changed else None, self.rate if rate_changed else None)

    def _loop_clock(self) -> float:
        self._clock = asyncio.get_running_loop().time
        return self._clock()

    def _record_success(self, permit: Permit, now: float, *, timed: bool) -> None:
        self._rate_limiter.served += 1
        if now >= self._record_served_at:
            if permit.sent - self._breaker.last_success > self._rate_limiter.measuring_window:
                self._rate_limiter.resume(now)  # after a time without requests
            self._record_served_at = self._rate_limiter.record_served(now)
        self._limiter.record_response(permit.sent, self._permits, now, timed)
        self._breaker.record_success(now)

    def _record_overload(self, permit: Permit, signal: LoadSignal, retry_after: float, now: float) -> bool:
        """Record an overload signal while the breaker is closed. Returns whether it stays closed."""
        key_wide = False
        if signal is LoadSignal.THROTTLED:
            key_wide = self._rate_limiter.record_throttled(permit.sent, now, retry_after, self.in_flight)
        else:
            self._limiter.record_overload(permit.sent, now)
        opens = self._breaker.record_overload(permit.sent, self._limiter.latency, now)
        may_pause = key_wide or signal is LoadSignal.OVERLOAD
        if may_pause and retry_after > OWN_RETRY_AFTER:
            opens = self._breaker.on_retry_after(retry_after, now, key_wide=key_wide) or opens
        if opens:
            self._limiter.pause(self._breaker.outage_started)
        return not opens

    def _end_probe(self, success: bool, retry_after: float, now: float) -> None:
        outage = now - self._breaker.outage_started
        if self._breaker.end_probe(success, now):
            self._limiter.resume(now, outage)
            self._rate_limiter.resume(now)
        elif retry_after > OWN_RETRY_AFTER:
            self._breaker.on_retry_after(retry_after, now, key_wide=True)

    def _return(self, permit: Permit) -> None:
        """Return a permit whose attempt gave no load signal."""
        self._permits -= 1
        if permit.generation != self._breaker.generation:
            self._stale -= 1
        elif permit.probe:
            self._breaker.end_probe(None, self._clock())
        # Without `adaptive`, only the number of permits has changed. `_admit` would double the time.
        if self._pace.adaptive or self._retries.count or self._new_calls.count:
            self._admit()

    def _admit(self) -> None:
        """Grant the permits that are free, and set the timer for the next one."""
        now = self._clock()
        while self._held and self._held[0] <= now + MIN_TIMER:
            heappop(self._held)
            self._permits -= 1
        due, breaker = math.inf, self._breaker
        while self._retries.has_next() or self._new_calls.has_next():
            if breaker.is_open and now + MIN_TIMER < breaker.next_probe_at:
                due = breaker.next_probe_at
                break
            if self._permits >= self._max_permits():
                due = self._held[0] if self._held else math.inf
                break
            if self._rate_limiter.active and not self._rate_limiter.try_acquire(now + MIN_TIMER):
                due = self._rate_limiter.ready_at
                break
            future = self._pop_waiting()
            self._permits += 1
            if breaker.is_open:
                breaker.start_probe(now)
            future.set_result(Permit(now, breaker.generation, breaker.is_open))
        self._update_fast_limit()
        if due < math.inf:
            self._wake_at(due, now)
        elif self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _pop_waiting(self) -> PermitFuture:
        if not self._retries.has_next():
            return self._new_calls.pop()
        if self._new_calls.has_next():
            self._retries_in_a_row = (self._retries_in_a_row + 1) % RETRY_SHARE
            if self._retries_in_a_row == 0:
                return self._new_calls.pop()
        return self._retries.pop()

    def _wake_at(self, due: float, now: float) -> None:
        if self._timer is not None:
            if self._timer_at <= due:
                return  # if it fires too early, `_admit` sets it again
            self._timer.cancel()
        assert self._loop is not None  # noqa: S101 - calls only wait in a loop
        self._timer_at = due
        self._timer = self._loop.call_later(max(due - now, MIN_TIMER), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._admit()

    def _max_permits(self) -> int:
        """The permits that may be in use. Those from before an outage do not count against the limit."""
        in_flight = self._pace.in_flight
        return in_flight if self._breaker.is_open else min(self.limit + self._stale, in_flight)

    def _update_fast_limit(self) -> None:
        waiting = self._breaker.is_open or self._retries.count or self._new_calls.count
        self._fast_limit = 0 if waiting else self._max_permits()
