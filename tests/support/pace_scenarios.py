# ruff: noqa: E501 - a table has one row a line
"""Scenarios for the pacer alone: overload, outages and errors of the service, each with its claims."""

import math
import random
from collections.abc import Callable

from tests.support.pace_world import Behavior, Curve, Scenario, always, between


def outage(kind: str, start: float, end: float) -> Callable[[float], str]:
    return lambda now: kind if start <= now < end else ""


def flapping(kind: str, up: float, down: float, until: float = math.inf) -> Callable[[float], str]:
    """The service works for *up* seconds and then does not for *down* seconds, again and again."""
    return lambda now: kind if now < until and now % (up + down) >= up else ""


def steps(*pairs: tuple[float, float]) -> Curve:
    """A step function of pairs (start, value): each value is valid from its start to the next one."""
    return lambda now: next(value for start, value in reversed(pairs) if now >= start)


def lognormal(mean: float, sigma: float) -> Callable[[random.Random], float]:
    return lambda chance: mean * math.exp(chance.gauss(0.0, sigma) - sigma * sigma / 2)


def pareto(mean: float, alpha: float) -> Callable[[random.Random], float]:
    return lambda chance: mean * (alpha - 1) / alpha * chance.paretovariate(alpha)


THOUSAND = always(1000.0)


def _outage(kind: str, within: float) -> Scenario:
    return Scenario(
        f"out for 20 s: {kind}",
        Behavior(out=outage(kind, 5, 25)),
        between(5, 25, 0, 2000),
        within,
        1.02,
        in_flight=100,
        aborts=(5.0,) if kind == "refused" else (),
    )


def _tier(
    name: str, throttled: float = 0.006, ceiling: float | None = None, retry_after: float | None = None
) -> Scenario:
    return Scenario(
        name,
        Behavior(tier=always(100.0), retry_after=retry_after),
        always(100.0),
        1.03,
        1.01,
        ceiling=ceiling,
        throttled=throttled,
    )


CAPACITY_50 = Behavior(capacity=always(50.0), queue=150)

# fmt: off
TABLE = [
    Scenario("30% passing provider_error", Behavior(passing=0.3), THOUSAND, 1.12, 1.0),
    Scenario("10% dead proxies", Behavior(dead=0.1), THOUSAND, 1.12, 1.0),
    _outage("refused", 1.04),
    _outage("503", 1.04),
    _outage("504", 1.07),
    Scenario("50 at once, started at 20", CAPACITY_50, THOUSAND, 1.03, 1.01, in_flight=1000),
    Scenario("50 at once, started at 1,000", CAPACITY_50, THOUSAND, 1.03, 1.01, in_flight=1000, start=1000),
    Scenario(
        "ten times slower for 20 s, queue 150", Behavior(slow=between(5, 25, 10, 1), capacity=always(50.0)),
        between(5, 25, 100, 1000), 1.03, 1.03, in_flight=400, timeout=2.0,
    ),
    Scenario(
        "ten times slower for 20 s, queue endless",
        Behavior(slow=between(5, 25, 10, 1), capacity=always(50.0), queue=10**6),
        between(5, 25, 100, 1000), 1.03, 1.03, in_flight=400, timeout=2.0,
    ),
    Scenario(
        "ten times slower from 1 s, no bound", Behavior(slow=between(1, 21, 10, 1)),
        between(1, 21, 800, 8000), 1.3, 1.03, in_flight=400, timeout=2.0,
    ),
    _tier("tier of 100/s"),
    _tier("tier of 100/s, Retry-After", retry_after=0),
    _tier("tier of 100/s, rate=100", throttled=0.0, ceiling=100),
    Scenario("5% provider_error, 10% dead", Behavior(passing=0.05, dead=0.1), THOUSAND, 1.12, 1.0),
    Scenario("5% 503, 10% dead", Behavior(unavailable=always(0.05), dead=0.1), THOUSAND, 1.17, 1.0),
]

MORE = [
    Scenario("calm", Behavior(), THOUSAND, 1.02, 1.0),
    Scenario("calm, 1,000 in flight", Behavior(), always(20000.0), 1.7, 1.0, in_flight=1000),
    Scenario("calm, 1 s an answer, 1,000 in flight", Behavior(latency=lambda _c: 1.0), THOUSAND, 1.4, 1.0, in_flight=1000),
    Scenario("not adaptive, calm", Behavior(), THOUSAND, 1.01, 1.0, adaptive=False),
    Scenario(
        "silent for 20 s, 2 s attempts", Behavior(out=outage("silent", 5, 25)), between(5, 25, 0, 2000),
        1.1, 1.02, in_flight=100, timeout=2.0,
    ),
    Scenario(
        "silent for 20 s, 30 s attempts", Behavior(out=outage("silent", 5, 25)), between(5, 25, 0, 2000),
        1.4, 1.02, in_flight=100,
    ),
    Scenario(
        "silent for 60 s, 30 s attempts", Behavior(out=outage("silent", 5, 65)), between(5, 65, 0, 2000),
        1.1, 1.02, in_flight=100,
    ),
    Scenario("flapping, 3 s and 3 s, 503", Behavior(out=flapping("503", 3, 3)), lambda t: 1000.0 * (t % 6 < 3), 1.15, 1.06),
    Scenario("flapping, 3 s and 3 s, refused", Behavior(out=flapping("refused", 3, 3)), lambda t: 1000.0 * (t % 6 < 3), 1.15, 1.06),
    Scenario("flapping, 1 s and 1 s, 503", Behavior(out=flapping("503", 1, 1)), lambda t: 1000.0 * (t % 2 < 1), 1.4, 1.15),
    Scenario("flapping, 0.3 s and 0.3 s, 503", Behavior(out=flapping("503", .3, .3)), lambda t: 1000.0 * (t % .6 < .3), 1.8, 1.6, failures=10),
    Scenario("flapping, 20 s and 10 s, 504", Behavior(out=flapping("504", 20, 10)), lambda t: 1000.0 * (t % 30 < 20), 1.12, 1.03, accounts=70_000),
    Scenario(
        "capacity 50, 25, 100", Behavior(capacity=steps((0, 50), (6, 25), (20, 100))),
        steps((0, 1000), (6, 500), (20, 2000)), 1.06, 1.02, in_flight=400, accounts=60_000,
    ),
    Scenario("50 at once, no queue", Behavior(capacity=always(50.0), queue=0), THOUSAND, 1.12, 1.1, in_flight=400, failures=5),
    Scenario("50 at once, queue of 10", Behavior(capacity=always(50.0), queue=10), THOUSAND, 1.1, 1.1, in_flight=400),
    Scenario("5 at once, queue of 15", Behavior(capacity=always(5.0), queue=15), always(100.0), 1.05, 1.08, in_flight=1000, failures=5),
    Scenario("heavy tail, lognormal", Behavior(latency=lognormal(0.05, 1.5)), THOUSAND, 1.3, 1.0),
    Scenario("heavy tail, lognormal, 400 in flight", Behavior(latency=lognormal(0.05, 1.5)), always(8000.0), 2.2, 1.0, in_flight=400, accounts=100_000),
    Scenario("heavy tail, Pareto", Behavior(latency=pareto(0.05, 2.2)), THOUSAND, 1.3, 1.0),
    Scenario("heavy tail, 50 at once", Behavior(latency=lognormal(0.05, 1.5), capacity=always(50.0)), THOUSAND, 1.2, 1.03, in_flight=1000),
    Scenario("1% 503 for ever", Behavior(unavailable=always(0.01)), THOUSAND, 1.05, 1.0),
    Scenario("1% 503 for ever, Retry-After: 10", Behavior(unavailable=always(0.01), overload_retry_after=10.0), THOUSAND, 2.0, 1.0),
    Scenario("15% 503 for ever", Behavior(unavailable=always(0.15)), THOUSAND, 1.3, 1.0, failures=40),
    Scenario("30% 503 for ever", Behavior(unavailable=always(0.3)), THOUSAND, 1.3, 1.0, failures=300),
    Scenario("50% 503 for ever", Behavior(unavailable=always(0.5)), THOUSAND, 1.6, 1.0, failures=2000),
    Scenario("90% 503 for 20 s", Behavior(unavailable=between(5, 25, 0.9, 0)), THOUSAND, 2.2, 1.2, failures=500),
    Scenario("slow ramp to 20 times, 2 s attempts", Behavior(slow=lambda t: 1 + min(t, 20.0) * 0.95, capacity=always(50.0)), lambda t: 1000.0 / (1 + min(t, 20.0) * 0.95), 1.15, 1.03, in_flight=400, timeout=2.0, failures=100),
    Scenario("slower for good, 5 times, then room", Behavior(slow=between(3, 1e9, 5, 1)), between(3, 1e9, 1600, 8000), 1.2, 1.0, in_flight=400, accounts=200_000),
    Scenario("two sessions, tier of 100/s", Behavior(tier=always(100.0)), always(100.0), 1.05, 1.02, sessions=2, throttled=0.015),
    Scenario("three sessions, tier of 100/s", Behavior(tier=always(100.0)), always(100.0), 2.5, 1.06, sessions=3),
    Scenario("four sessions, tier of 100/s", Behavior(tier=always(100.0)), always(100.0), 3.5, 1.15, sessions=4, failures=50),
    Scenario("two sessions, 50 at once", CAPACITY_50, THOUSAND, 1.05, 1.02, in_flight=1000, sessions=2, failures=3),
    Scenario("out for an hour: 503", Behavior(out=outage("503", 5, 3605)), between(5, 3605, 0, 2000), 1.01, 1.06, in_flight=100),
    Scenario("out for an hour: silent", Behavior(out=outage("silent", 5, 3605)), between(5, 3605, 0, 2000), 1.01, 1.06, in_flight=100),
    Scenario("out from the start for 20 s: refused", Behavior(out=outage("refused", 0, 20)), between(0, 20, 0, 2000), 1.06, 1.02, in_flight=100),
    Scenario(
        "recovery into half the capacity", Behavior(out=outage("refused", 5, 25), capacity=steps((0, 50), (25, 25), (35, 50)), queue=50),
        steps((0, 1000), (5, 0), (25, 500), (35, 1000)), 1.07, 1.04, in_flight=400, aborts=(5.0,), failures=10,
    ),
    Scenario("tier 100, 400, 50", Behavior(tier=steps((0, 100), (60, 400), (120, 50))), steps((0, 100), (60, 400), (120, 50)), 1.2, 1.02, throttled=0.015, accounts=60_000),
    Scenario("tier of 5/s, burst 5", Behavior(tier=always(5.0), burst=5), always(5.0), 1.06, 1.03, throttled=0.03, accounts=3000, failures=3),
    Scenario("tier of 1,000/s, burst 20, 1,000 in flight", Behavior(tier=always(1000.0)), THOUSAND, 1.11, 1.02, in_flight=1000, throttled=0.015, accounts=100_000),
    Scenario("tier of 100/s, burst 1", Behavior(tier=always(100.0), burst=1), always(100.0), 1.12, 1.03, throttled=0.03),
    Scenario("tier of 100/s, 1 s an answer", Behavior(tier=always(100.0), latency=lambda _c: 1.0), always(100.0), 1.08, 1.03, in_flight=400, throttled=0.03),
    Scenario("tier of 100/s, Retry-After: 30", Behavior(tier=always(100.0), retry_after=30.0), always(100.0), 9.0, 1.05),
    Scenario("tier of 6,000 a minute, fixed window", Behavior(tier=always(100.0), window=60.0, retry_after=0), lambda t: 1000.0 if t % 60 < 6 else 0.0, 1.1, 1.03, throttled=0.02),
    Scenario("at most 30 at once, else 429", Behavior(concurrency=30.0), always(600.0), 1.35, 1.06, in_flight=200, throttled=0.05),
    Scenario("10% 429 whatever the rate", Behavior(stray=always(0.1)), THOUSAND, 1.4, 1.13, failures=5),
    Scenario("3% 429 whatever the rate from 5 s", Behavior(stray=between(5, 1e9, 0.03, 0)), THOUSAND, 1.1, 1.04),
    Scenario("1% 429 whatever the rate, Retry-After: 10", Behavior(stray=always(0.01), retry_after=10.0), THOUSAND, 2.0, 1.02),
    Scenario("tier of 100/s, 2% 429 whatever the rate", Behavior(tier=always(100.0), stray=always(0.02)), always(100.0), 1.03, 1.08, failures=3),
    Scenario("one in flight, out for 20 s: 504", Behavior(out=outage("504", 5, 25)), between(5, 25, 0, 20), 1.1, 1.05, in_flight=1, accounts=500),
    Scenario("capacity 50, for 5 minutes", CAPACITY_50, THOUSAND, 1.02, 1.02, in_flight=1000, accounts=300_000),
]
# fmt: on
