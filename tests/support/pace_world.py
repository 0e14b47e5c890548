"""A simulated service and rotation without sockets, in virtual time, to measure the pacer alone."""

import asyncio
import math
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from attrs import Factory, define, evolve, field, frozen

from postpress_async.pace import Pace
from postpress_async.pace._load_signal import LoadSignal
from postpress_async.pace._pacer import Pacer, Permit
from tests.support.simulated_service import ideal
from tests.support.virtual_loop import VirtualLoop, run

Curve = Callable[[float], float]
"""A number that depends on the time in seconds."""


def always(value: float) -> Curve:
    return lambda _now: value


def between(start: float, end: float, inside: float, outside: float) -> Curve:
    """The value *inside* from *start* to *end*, and *outside* before and after."""
    return lambda now: inside if start <= now < end else outside


async def acquire(pace: Pacer, *, retry: bool = False) -> Permit:
    """Wait for a permit, as a call does."""
    if (permit := pace.try_acquire()) is not None:
        return permit
    future = pace.enqueue(retry=retry)
    try:
        permit = await future
    except BaseException:
        pace.withdraw(future, retry=retry)
        raise
    assert permit is not None
    return permit


@frozen
class Behavior:
    """
    How the simulated service responds.

    Attributes:
        latency: Draws the seconds of work for a request from a source of random numbers.
        slow: Factor of the work of requests that start at a time.
        capacity: Number of requests that the service processes at once, at a time.
        queue: Maximum number of requests that wait for the capacity. Further ones get a 503.
        concurrency: Number of processed requests from which further ones get a 429.
        out: The outage at a time: "refused", "503", "504", "silent", or "" for none.
        tier: Requests per second that the API key may send at a time. Further ones get a 429.
        burst: Size of the token bucket of the tier.
        window: Length in seconds of the fixed windows that the tier uses; None for a token bucket.
        retry_after: Retry-After of a 429 in seconds; None for no header, 0 for the exact time, rounded up.
        overload_retry_after: Retry-After of a 503 in seconds.
        passing: Share of responses that are a provider_error; a retry may succeed.
        unavailable: Share of responses that are a 503 at a time; a retry may succeed.
        stray: Share of requests that get a 429 at any rate, as with a limit per account; a retry may succeed.
        dead: Share of accounts whose every attempt is a proxy_error.
        refusal: Seconds after which 429s, and 503s for a full queue, are sent.
    """

    latency: Callable[[random.Random], float] = lambda _chance: 0.05
    slow: Curve = lambda _now: 1.0
    capacity: Curve = lambda _now: math.inf
    queue: int = 150
    concurrency: float = math.inf
    out: Callable[[float], str] = lambda _now: ""
    tier: Curve = lambda _now: math.inf
    burst: float = 20.0
    window: float | None = None
    retry_after: float | None = None
    overload_retry_after: float | None = None
    passing: float = 0.0
    unavailable: Curve = lambda _now: 0.0
    stray: Curve = lambda _now: 0.0
    dead: float = 0.0
    refusal: float = 0.005


@frozen
class Reply:
    signal: LoadSignal
    retry_after: float | None = None
    dead: bool = False


PATCHED, PASSING, DEAD = (
    Reply(LoadSignal.SUCCESS),
    Reply(LoadSignal.ALIVE),
    Reply(LoadSignal.ALIVE, dead=True),
)


class Service:
    """Responds in virtual time. It also processes requests that the client has given up."""

    def __init__(self, behavior: Behavior, seed: int) -> None:
        self.behavior = behavior
        self.chance = random.Random(seed)
        self.loop = asyncio.get_running_loop()
        self.requests = 0
        self.peak = 0  # most requests in flight
        self.work = 0.0  # seconds of work for requests that the client had not given up, at the usual speed
        self.needed = 0  # number of these requests
        self.signals: Counter[LoadSignal] = Counter()
        self._open: set[asyncio.Future[Reply]] = set()
        self._busy = 0
        self._queue: deque[tuple[int, asyncio.Future[Reply]]] = deque()
        self._tokens, self._seen = behavior.burst, 0.0
        self._window = -1

    async def request(self, account: int, timeout: float) -> Reply:
        """Send one request, and return the reply. A timeout is an overload signal."""
        future: asyncio.Future[Reply] = self.loop.create_future()
        self._accept(account, future)
        self._open.add(future)
        self.peak = max(self.peak, len(self._open))
        try:
            async with asyncio.timeout(timeout):
                reply = await future
        except TimeoutError:
            reply = Reply(LoadSignal.OVERLOAD)
        finally:
            self._open.discard(future)
        self.signals[reply.signal] += 1
        return reply

    def abort(self) -> None:
        """Lose all connections."""
        for future in self._open:
            self._answer(future, Reply(LoadSignal.OVERLOAD))

    def _accept(self, account: int, future: asyncio.Future[Reply]) -> None:
        self.requests += 1
        behavior, now = self.behavior, self.loop.time()
        match behavior.out(now):
            case "silent":
                return None
            case "refused":
                return self._answer_later(0.005, future, Reply(LoadSignal.OVERLOAD))
            case "503":
                return self._answer_later(
                    0.05, future, Reply(LoadSignal.OVERLOAD, behavior.overload_retry_after)
                )
            case "504":
                return self._answer_later(1.0, future, Reply(LoadSignal.OVERLOAD))
        # No random number is drawn for a share of 0, so that other scenarios do not depend on this feature.
        stray = behavior.stray(now)
        if stray and self.chance.random() < stray:
            return self._answer_later(
                behavior.refusal, future, Reply(LoadSignal.THROTTLED, behavior.retry_after)
            )
        wait = self._throttle(now)
        if wait is not None:
            retry_after = behavior.retry_after
            if retry_after is not None:
                retry_after = float(max(retry_after, math.ceil(wait), 1))
            return self._answer_later(behavior.refusal, future, Reply(LoadSignal.THROTTLED, retry_after))
        if self._busy >= behavior.concurrency:
            return self._answer_later(behavior.refusal, future, Reply(LoadSignal.THROTTLED))
        if self._busy < behavior.capacity(now):
            return self._process(account, future)
        if len(self._queue) < behavior.queue:
            return self._queue.append((account, future))
        return self._answer_later(
            behavior.refusal, future, Reply(LoadSignal.OVERLOAD, behavior.overload_retry_after)
        )

    def _throttle(self, now: float) -> float | None:
        """Return the seconds until the tier allows a request; None if it allows one now, and count it."""
        behavior, rate = self.behavior, self.behavior.tier(now)
        if rate == math.inf:
            return None
        if behavior.window is not None:
            if now // behavior.window != self._window:
                self._window, self._tokens = int(now // behavior.window), rate * behavior.window
            wait = (self._window + 1) * behavior.window - now
        else:
            self._tokens = min(behavior.burst, self._tokens + rate * (now - self._seen))
            wait = (1 - self._tokens) / rate
        self._seen = now
        if self._tokens < 1 - 1e-9:
            return wait
        self._tokens -= 1
        return None

    def _process(self, account: int, future: asyncio.Future[Reply]) -> None:
        self._busy += 1
        behavior, now = self.behavior, self.loop.time()
        if account % 1000 < behavior.dead * 1000:
            reply = DEAD
        elif self.chance.random() < behavior.passing:
            reply = PASSING
        elif self.chance.random() < behavior.unavailable(now):
            reply = Reply(LoadSignal.OVERLOAD, behavior.overload_retry_after)
        else:
            reply = PATCHED
        seconds = behavior.latency(self.chance)
        if not future.done():
            self.work += seconds
            self.needed += 1
        self.loop.call_later(seconds * behavior.slow(now), self._finish, future, reply)

    def _finish(self, future: asyncio.Future[Reply], reply: Reply) -> None:
        self._busy -= 1
        self._answer(future, reply)
        while self._queue and self._busy < self.behavior.capacity(self.loop.time()):
            self._process(*self._queue.popleft())

    def _answer_later(self, seconds: float, future: asyncio.Future[Reply], reply: Reply) -> None:
        self.loop.call_later(seconds, self._answer, future, reply)

    def _answer(self, future: asyncio.Future[Reply], reply: Reply) -> None:
        if not future.done():
            future.set_result(reply)


@define
class Tally:
    """The accounts of a rotation by result."""

    patched: int = 0
    failed: int = 0  # those whose last attempt got an overload signal or a 429
    unlucky: int = 0  # those whose last attempt got a random error
    permit_waits: list[float] = field(default=Factory(list))


class Rotation:
    """Updates many accounts with one pacer, as a rotation does with a session."""

    def __init__(self, service: Service, pace: Pace, timeout: float, seed: int) -> None:
        self.service, self.timeout = service, timeout
        self._clock = asyncio.get_running_loop().time
        dice = random.Random(seed + 100).random
        self.pacer = Pacer(pace, clock=self._clock, random=dice, on_pause=self._note_pause)
        self.tally = Tally()
        self._max_retrying = 10 * pace.in_flight
        self._retrying = 0
        self._retry_started = asyncio.Event()
        self._chance = random.Random(seed + 200)
        self._paused_for, self._paused_at = 0.0, math.inf

    def _note_pause(self, paused: bool) -> None:
        if not paused:
            self._paused_for += self._clock() - self._paused_at
        self._paused_at = self._clock() if paused else math.inf

    def _open_for(self) -> float:
        """Seconds so far in which the circuit breaker was closed."""
        return self._clock() - self._paused_for - max(0.0, self._clock() - self._paused_at)

    async def run(self, accounts: range) -> Tally:
        async with asyncio.TaskGroup() as group:
            for account in accounts:
                while self._retrying >= self._max_retrying:
                    self._retry_started.clear()
                    await self._retry_started.wait()
                permit = self.pacer.try_acquire() or await acquire(self.pacer)
                group.create_task(self._update(account, permit))
        return self.tally

    async def _update(self, account: int, permit: Any) -> None:
        attempts, is_retry = 0, False  # attempts that count
        while True:
            if permit is None:
                due = self._open_for()
                permit = self.pacer.try_acquire() or await acquire(self.pacer, retry=True)
                self.tally.permit_waits.append(self._open_for() - due)
            if is_retry:
                self._retrying -= 1
                self._retry_started.set()
            reply = await self.service.request(account, self.timeout)
            if self.pacer.release(permit, reply.signal, reply.retry_after):
                overloaded = reply.signal is LoadSignal.OVERLOAD and self.pacer.overloaded
                attempts = max(attempts, 1) if overloaded else attempts + 1
            permit = None
            if reply.signal is LoadSignal.SUCCESS:
                self.tally.patched += 1
                return
            if attempts >= 4:
                if reply.signal is LoadSignal.ALIVE:
                    self.tally.unlucky += 1
                else:
                    self.tally.failed += 1
                return
            self._retrying += 1
            is_retry = True
            wait = self._chance.random() * min(20.0, 0.5 * 2 ** min(max(attempts, 1) - 1, 10))
            await asyncio.sleep(max(wait, reply.retry_after or 0.0))


@frozen
class Scenario:
    """
    A simulation, and the claims for its result.

    Attributes:
        rate: Responses per second, at a time, of a service that is fully used within *in_flight*. If it is
            None, it is computed from the behavior and the work that was drawn.
        within: Maximum ratio of the makespan to the ideal one.
        asks: Maximum ratio of the requests to the needed ones.
        ceiling: ``Pace.rate``.
        timeout: Seconds after which an attempt times out.
        aborts: Times at which all connections are lost.
        failures: Maximum number of failed accounts.
        throttled: Maximum share of 429s.
    """

    name: str
    behavior: Behavior
    rate: Curve | None
    within: float
    asks: float
    in_flight: int = 50
    start: int = 20
    ceiling: float | None = None
    adaptive: bool = True
    timeout: float = 30.0
    aborts: tuple[float, ...] = ()
    sessions: int = 1
    accounts: int = 20_000
    failures: int = 0
    throttled: float = math.inf


@frozen
class Result:
    name: str
    makespan: float
    ideal: float
    asks: float
    patched: int
    failed: int
    unlucky: int
    throttled: float
    peak: int
    mean_wait: float  # of a retry for its permit, in seconds
    longest_wait: float
    timers: int

    @property
    def ratio(self) -> float:
        return self.makespan / self.ideal

    def __str__(self) -> str:
        return (
            f"{self.name:44} {self.makespan:9.2f} s {self.ratio:6.3f} {self.asks:7.4f} "
            f"{self.failed:6} {self.unlucky:6} {self.throttled:8.4f} {self.peak:5}"
        )


HEAD = (
    f"{'scenario':44} {'makespan':>11} {'/ideal':>6} {'asks':>7} "
    f"{'failed':>6} {'other':>6} {'429':>8} {'peak':>5}"
)


def measure(scenario: Scenario, accounts: int | None = None, seed: int = 1) -> Result:
    """Run *scenario*, with another number of *accounts* if it is not None."""
    if accounts is not None:
        scenario = evolve(scenario, accounts=accounts)
    return run(_run_scenario(scenario, seed))


async def _run_scenario(scenario: Scenario, seed: int) -> Result:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    service = Service(scenario.behavior, seed)
    for when in scenario.aborts:
        loop.call_at(when, service.abort)
    pace = Pace(
        in_flight=scenario.in_flight, start=scenario.start, rate=scenario.ceiling, adaptive=scenario.adaptive
    )
    total, rotations = scenario.accounts, []
    async with asyncio.TaskGroup() as group:
        for number in range(scenario.sessions):
            rotation = Rotation(service, pace, scenario.timeout, seed + number)
            rotations.append(rotation)
            group.create_task(rotation.run(range(number, total, scenario.sessions)))
    makespan = loop.time()
    for rotation in rotations:
        assert rotation.pacer.in_flight == 0
        assert rotation.pacer.waiting == 0
    tallies: Sequence[Tally] = [rotation.tally for rotation in rotations]
    permit_waits = [wait for tally in tallies for wait in tally.permit_waits] or [0.0]
    return Result(
        scenario.name,
        makespan,
        _ideal(scenario, service),
        service.requests / service.needed,
        sum(tally.patched for tally in tallies),
        sum(tally.failed for tally in tallies),
        sum(tally.unlucky for tally in tallies),
        service.signals[LoadSignal.THROTTLED] / service.requests,
        service.peak,
        sum(permit_waits) / len(permit_waits),
        max(permit_waits),
        loop.timers,
    )


def _ideal(scenario: Scenario, service: Service) -> float:
    """Seconds that the work takes if the service is never idle."""
    if scenario.rate is None:
        return ideal(service.work, partial(_usable, scenario, service.work / service.needed))
    needed = float(service.needed)
    if scenario.behavior.tier(0.0) < math.inf and scenario.behavior.window is None:
        needed -= scenario.behavior.burst
    return ideal(needed, scenario.rate)


def _usable(scenario: Scenario, latency: float, now: float) -> float:
    """Seconds of work that the service can do per second at the time *now*."""
    behavior = scenario.behavior
    if behavior.out(now):
        return 0.0
    at_once = min(scenario.in_flight, behavior.capacity(now)) / behavior.slow(now)
    return min(at_once, behavior.tier(now) * latency)
