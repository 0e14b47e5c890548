"""A scenario of the simulation with its claims, and its result."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from attrs import Factory, evolve, frozen

from postpress_async.sandbox._faults import NONE, Fault
from postpress_async.sandbox._server import Outage

FULL: Final = 20_000
"""Number of accounts of a scenario, unless it gives another one."""


@frozen
class Request:
    """
    A request, for which a scenario chooses a fault.

    Attributes:
        account: Number of the account.
        chance: Random number in [0, 1). It depends on the seed, the account and the number of its request.
    """

    account: int
    chance: float


@frozen
class Disruption:
    """
    A period with an outage of the server, or with the same fault for every request.

    Attributes:
        start: Start in virtual seconds since the first request.
        end: End in virtual seconds since the first request, exclusive.
        kind: The outage or the fault.
        factor: Factor of the latency if *kind* is "slow".
        remaining_rate: Share of the usual responses per second that the service still sends.
    """

    start: float
    end: float
    kind: Outage | Fault
    factor: float = 10.0

    @property
    def remaining_rate(self) -> float:
        return 1 / self.factor if self.kind == "slow" else 0.0


@frozen
class Scenario:
    """
    A scenario and its claims.

    Attributes:
        max_makespan_ratio: Maximum ratio of the makespan to the ideal one.
        usual_rate: Responses per second of the service if it has no disruption and is fully used.
        max_request_ratio: Maximum ratio of the requests to the necessary ones.
        choose_fault: Returns the random or permanent fault of a request. An attempt that gets a fault counts
            as necessary.
        dead: Whether the proxy of an account is dead.
        hopeless: Whether the updates of an account always fail.
        disruptions: The outages of the service, in order.
        server: Arguments of `Server`.
        policy: Arguments of `RetryPolicy`.
        in_flight: ``Pace.in_flight``.
        initial_limit: ``Pace.start``.
        max_rate: ``Pace.rate``.
        burst: Number of additional responses at the start.
        max_throttled_share: Maximum share of requests that get a 429.
        max_lost: Maximum number of accounts that fail although another attempt would succeed.
        min_calm_seconds: Minimum seconds before the first disruption, even with few accounts.
        single: Whether to measure a single call during the first disruption, while the rotation runs.
    """

    name: str
    max_makespan_ratio: float
    usual_rate: float = 1000.0
    max_request_ratio: float = math.inf
    choose_fault: Callable[[Request], Fault] = lambda _request: NONE
    dead: Callable[[int], bool] = lambda _account: False
    hopeless: Callable[[int], bool] = lambda _account: False
    disruptions: tuple[Disruption, ...] = ()
    server: Mapping[str, Any] = Factory(dict)
    policy: Mapping[str, Any] = Factory(dict)
    in_flight: int = 50
    initial_limit: int = 20
    burst: int = 0
    max_rate: float | None = None
    max_throttled_share: float = math.inf
    max_lost: int = 0
    sessions: int = 1
    single: bool = False
    min_calm_seconds: float = 0.0
    accounts: int = FULL

    def shortened_to(self, accounts: int) -> "Scenario":
        """
        Return the scenario with at most *accounts*.

        The first disruption starts earlier, in proportion to the number of accounts, and the others keep
        their distance from it.
        """
        accounts = min(accounts, self.accounts)
        if not self.disruptions:
            return evolve(self, accounts=accounts)
        first = self.disruptions[0].start
        new_first = max(first * accounts / self.accounts, min(first, self.min_calm_seconds))
        shift = first - new_first
        disruptions = tuple(
            evolve(item, start=item.start - shift, end=item.end - shift) for item in self.disruptions
        )
        return evolve(self, accounts=accounts, disruptions=disruptions)

    def rate(self, now: float) -> float:
        """Responses per second of the service at the time *now*."""
        for disruption in self.disruptions:
            if disruption.start <= now < disruption.end:
                return self.usual_rate * disruption.remaining_rate
        return self.usual_rate

    def ideal(self, needed: float) -> float:
        """Seconds for *needed* responses if the service is never idle."""
        return ideal(needed - self.burst, self.rate)


def ideal(needed: float, rate: Callable[[float], float]) -> float:
    """Seconds for *needed* responses if *rate* gives the responses per second at a time in seconds."""
    remaining, now, step = needed, 0.0, 0.005
    while remaining > 0:
        current_rate = rate(now + step / 2)
        if current_rate * step >= remaining:
            return now + remaining / current_rate
        remaining -= current_rate * step
        now += step
    return now


@frozen
class Result:
    """
    The result of a scenario.

    Attributes:
        makespan: Virtual seconds from the first request to the last outcome.
        ideal: The makespan if the service were never idle.
        requests: Number of attempts, including those that got no connection.
        needed: Number of necessary attempts.
        patched: Number of patched accounts.
        unlucky: Number of failed accounts that could not succeed: they are hopeless, or every attempt got a
            random fault.
        lost: Number of accounts that failed although another attempt would have succeeded.
        throttled: Number of 429s.
        peak: Highest number of concurrent requests in the server.
        timers: Number of timers that the event loop set. It reveals any difference between two runs.
    """

    name: str
    accounts: int
    makespan: float
    ideal: float
    requests: int
    needed: int
    patched: int
    unlucky: int
    lost: int
    throttled: int
    peak: int
    timers: int

    @property
    def ratio(self) -> float:
        return self.makespan / self.ideal

    @property
    def needless(self) -> float:
        """Unnecessary requests as a share of the necessary ones."""
        return (self.requests - self.needed) / max(self.needed, 1)


def broken(scenario: Scenario, result: Result) -> list[str]:
    """
    The claims of *scenario* that *result* breaks, as sentences.

    The start, the end and the probes of an outage cost the same, however many accounts there are. So a run
    with fewer accounts may exceed the ideal by as many seconds, requests and 429s as a run with all accounts.
    """
    scale = 1.0 if scenario.single else scenario.accounts / result.accounts
    ideal_of_all = result.ideal if scenario.single else scenario.ideal(result.needed * scale)
    excess = result.makespan - result.ideal - (scenario.max_makespan_ratio - 1) * ideal_of_all
    wrong = []
    if excess > 1e-6:
        wrong.append(f"{excess:.2f} s more than {scenario.max_makespan_ratio:g} times the ideal")
    if result.requests - result.needed > (scenario.max_request_ratio - 1) * result.needed * scale + 1e-6:
        wrong.append(f"{result.requests - result.needed} requests too many")
    if result.throttled > scenario.max_throttled_share * result.requests * scale:
        wrong.append(f"{result.throttled} responses were a 429")
    if result.lost > scenario.max_lost:
        wrong.append(f"{result.lost} accounts lost")
    if result.patched + result.unlucky + result.lost != result.accounts and not scenario.single:
        wrong.append("accounts without an outcome")
    return wrong
