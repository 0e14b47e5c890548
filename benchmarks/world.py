"""What a service does to its client, what is claimed of the client then, and what came of it."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from attrs import Factory, evolve, frozen

from postpress_async.sandbox.faults import NONE, Fault
from postpress_async.sandbox.server import Outage

FULL: Final = 20_000
"""Accounts for which the claims are made."""


@frozen
class Request:
    """
    All that a service may look at when it deals out what happens by chance.

    Attributes:
        account: The account's number.
        chance: In [0, 1), of the seed, the account and how many requests of it came before.
    """

    account: int
    chance: float


@frozen
class Spell:
    """
    A time in which the service is unwell: with one of the server's outages, or a fault for every request.

    Attributes:
        leaves: The share of the usual answers that the service gives meanwhile.
    """

    start: float
    end: float
    kind: Outage | Fault
    factor: float = 10.0

    @property
    def leaves(self) -> float:
        return 1 / self.factor if self.kind == "slow" else 0.0


@frozen
class Scenario:
    """
    What is played, and what is claimed of it.

    Attributes:
        within: Makespan over the ideal, at most.
        usual: Answers a second that the service, perfectly used within *in_flight*, gives when well.
        asks: Requests over those that had to be made, at most.
        deal: What happens to a request by chance, or for ever; every such attempt had to be made.
        dead: Whose proxy does not work.
        hopeless: Whose update fails whatever is tried.
        plot: The times in which the service is unwell.
        server: Arguments of `Server`.
        policy: Arguments of `RetryPolicy`.
        burst: Answers that come on top of *usual* at first.
        ceiling: ``Pace.rate``.
        throttled: Share of requests that are answered 429, at most.
        lost: Accounts that fail although another attempt would have helped, at most.
        settles: Seconds that the service is well at first at least, however few the accounts.
        single: What is measured is one call made within the outage; the rotation is its background.
    """

    name: str
    within: float
    usual: float = 1000.0
    asks: float = math.inf
    deal: Callable[[Request], Fault] = lambda _request: NONE
    dead: Callable[[int], bool] = lambda _account: False
    hopeless: Callable[[int], bool] = lambda _account: False
    plot: tuple[Spell, ...] = ()
    server: Mapping[str, Any] = Factory(dict)
    policy: Mapping[str, Any] = Factory(dict)
    in_flight: int = 50
    start: int = 20
    burst: int = 0
    ceiling: float | None = None
    throttled: float = math.inf
    lost: int = 0
    sessions: int = 1
    single: bool = False
    settles: float = 0.0
    accounts: int = FULL

    def of(self, accounts: int) -> "Scenario":
        """The same with no more than so many: the service gets unwell at the same share of them."""
        accounts = min(accounts, self.accounts)
        if not self.plot:
            return evolve(self, accounts=accounts)
        first = self.plot[0].start
        sooner = first - max(first * accounts / self.accounts, min(first, self.settles))
        plot = (evolve(spell, start=spell.start - sooner, end=spell.end - sooner) for spell in self.plot)
        return evolve(self, accounts=accounts, plot=tuple(plot))

    def rate(self, now: float) -> float:
        """Answers a second that the service can give then."""
        for spell in self.plot:
            if spell.start <= now < spell.end:
                return self.usual * spell.leaves
        return self.usual

    def ideal(self, needed: float) -> float:
        """Seconds that so many answers take where every free second of the service is used."""
        return ideal(needed - self.burst, self.rate)


def ideal(needed: float, rate: Callable[[float], float]) -> float:
    """Seconds that *needed* answers take at *rate*, in answers a second at that time."""
    left, now, step = needed, 0.0, 0.005
    while left > 0:
        done = rate(now + step / 2) * step
        if done >= left:
            return now + left / rate(now + step / 2)
        left -= done
        now += step
    return now


@frozen
class Result:
    """
    What came of a scenario.

    Attributes:
        makespan: Virtual seconds from the first request to the last outcome.
        requests: Attempts that were begun, those that found no connection included.
        needed: Of these, those that had to be made.
        patched: Accounts that have their new proxy.
        unlucky: Accounts that failed because each of their attempts met a trouble of its own.
        lost: Accounts that failed although another attempt would have helped.
        throttled: Answers that were a 429.
        peak: Requests that the server had at once, at most.
        timers: Set in the loop: a figure in which any difference between two runs shows.
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
        """Requests that need not have been made, as a share of the others."""
        return (self.requests - self.needed) / max(self.needed, 1)


def broken(scenario: Scenario, result: Result) -> list[str]:
    """
    What of *scenario*'s claims *result* breaks.

    With fewer accounts the beginning, the end and the probes of an outage weigh more: then it may lose no
    more seconds and no more requests than a run of full length.
    """
    times = 1.0 if scenario.single else scenario.accounts / result.accounts
    full = result.ideal if scenario.single else scenario.ideal(result.needed * times)
    late = result.makespan - result.ideal - (scenario.within - 1) * full
    wrong = []
    if late > 1e-6:
        wrong.append(f"{late:.2f} s beyond {scenario.within:g} of the ideal")
    if result.requests - result.needed > (scenario.asks - 1) * result.needed * times + 1e-6:
        wrong.append(f"{result.requests - result.needed} requests too many")
    if result.throttled > scenario.throttled * result.requests * times:
        wrong.append(f"{result.throttled} answers a 429")
    if result.lost > scenario.lost:
        wrong.append(f"{result.lost} accounts lost")
    if result.patched + result.unlucky + result.lost != result.accounts and not scenario.single:
        wrong.append("accounts unsettled")
    return wrong
