"""
Scenarios drawn from seeds, for cases that the chosen scenarios may miss.

The constants of the pace were tuned with `TUNED` and other seeds, all of them below 409. `HELD_OUT` show how
the pace handles scenarios for which it was not tuned, so do not tune it by their results.
"""

import math
import random
from collections.abc import Callable
from typing import Any, Final

from attrs import asdict, evolve

from tests.support.pace_scenarios import flapping, lognormal, outage, pareto
from tests.support.pace_world import Behavior, Curve, Scenario, always

TUNED: Final = range(1, 9)
HELD_OUT: Final = range(501, 509)

ACCOUNTS: Final = 10_000

KINDS: Final = ("503", "refused", "504")


def fixed(latency: float) -> Callable[[random.Random], float]:
    return lambda _chance: latency


def ramp(start: float, end: float, before: float, after: float) -> Curve:
    """The value *before* until *start*, the value *after* from *end*, and a straight line in between."""
    return lambda now: before + (after - before) * min(max((now - start) / (end - start), 0.0), 1.0)


def _flap(chance: random.Random) -> Scenario:
    """The service alternates between working and an outage every few seconds."""
    down, up = chance.uniform(1.0, 4.0), chance.uniform(2.0, 6.0)
    latency, kind = chance.uniform(0.03, 0.1), chance.choice(KINDS)
    behavior = Behavior(latency=fixed(latency), out=flapping(kind, up, down))
    # With few in flight, the 10,000 accounts take long enough for several outages.
    name = f"{kind}, well {up:.1f} s, out {down:.1f} s, {latency * 1000:.0f} ms"
    return Scenario(name, behavior, None, 1.1, 1.1, in_flight=chance.choice((20, 30, 50)))


def _ramp(chance: random.Random) -> Scenario:
    """The capacity rises or falls slowly, and the queue is short."""
    low, high = chance.uniform(4, 12), chance.uniform(30, 60)
    before, after = (low, high) if chance.random() < 0.7 else (high, low)
    start, seconds = chance.uniform(0.0, 4.0), chance.uniform(10.0, 60.0)
    queue, latency = chance.choice((0, 5, 20, 60)), chance.uniform(0.03, 0.1)
    capacity = ramp(start, start + seconds, before, after)
    behavior = Behavior(latency=fixed(latency), capacity=lambda now: math.floor(capacity(now)), queue=queue)
    name = f"{before:.0f} to {after:.0f} in {seconds:.0f} s, queue {queue}, {latency * 1000:.0f} ms"
    return Scenario(name, behavior, None, 1.15, 1.15, in_flight=chance.choice((100, 200, 400)))


def _heavy(chance: random.Random) -> Scenario:
    """A few of the responses take very long, up to 2 s."""
    mean = chance.uniform(0.03, 0.1)
    if chance.random() < 0.5:
        shape = chance.uniform(1.0, 1.7)
        name, latency = f"lognormal {shape:.1f}", lognormal(mean, shape)
    else:
        shape = chance.uniform(1.8, 2.6)
        name, latency = f"Pareto {shape:.1f}", pareto(mean, shape)
    capacity = chance.choice((math.inf, 30.0, 50.0))
    behavior = Behavior(latency=lambda dice: min(latency(dice), 2.0), capacity=always(capacity))
    name += f", mean {mean * 1000:.0f} ms, {capacity:.0f} at once"
    in_flight = 50 if capacity == math.inf else chance.choice((50, 200))
    return Scenario(name, behavior, None, 1.12, 1.03, in_flight=in_flight)


def _hang(chance: random.Random) -> Scenario:
    """The service sends no responses for some seconds."""
    start, seconds = chance.uniform(2.0, 8.0), chance.uniform(5.0, 30.0)
    timeout, latency = chance.choice((2.0, 5.0, 10.0, 30.0)), chance.uniform(0.05, 0.1)
    behavior = Behavior(latency=fixed(latency), out=outage("silent", start, start + seconds))
    name = f"{seconds:.0f} s from {start:.0f} s, {timeout:.0f} s attempts, {latency * 1000:.0f} ms"
    # Requests that hang occupy all permits until their timeout, even if the service recovers earlier.
    within = 1.16 if timeout < 30 else 1.5
    return Scenario(name, behavior, None, within, 1.05, in_flight=20, timeout=timeout)


def _stray(chance: random.Random) -> Scenario:
    """A share of 429s that does not depend on the rate."""
    share, latency = chance.uniform(0.005, 0.05), chance.uniform(0.03, 0.1)
    begins = chance.choice((0.0, 4.0))
    retry_after = chance.choice((None, None, 1.0))
    behavior = Behavior(
        latency=fixed(latency), stray=lambda now: share * (now >= begins), retry_after=retry_after
    )
    name = f"{share:.1%} 429 from {begins:.0f} s, {latency * 1000:.0f} ms"
    name += f", Retry-After: {retry_after:.0f}" if retry_after else ""
    # A retry waits for up to 1 s, and the last account may get more than one 429.
    return Scenario(name, behavior, None, 1.35, 1.08, in_flight=chance.choice((20, 50)))


def _mixture(chance: random.Random) -> Scenario:
    """Two families at the same time, often with random errors or a rate limit as well."""
    first_family, second_family = chance.sample((_flap, _ramp, _heavy, _hang, _stray), 2)
    first, second = first_family(chance), second_family(chance)
    # If both change the same attribute, the first family wins.
    changes = _changed_attributes(second.behavior) | _changed_attributes(first.behavior)
    behavior = Behavior(**changes)
    name = f"{first_family.__name__[1:]} and {second_family.__name__[1:]}"
    match chance.choice(("", "passing", "unavailable", "tier")):
        case "passing":
            share = chance.uniform(0.01, 0.1)
            behavior = evolve(behavior, passing=share)
            name += f", {share:.0%} provider_error"
        case "unavailable":
            share = chance.uniform(0.005, 0.03)
            behavior = evolve(behavior, unavailable=always(share))
            name += f", {share:.1%} 503"
        case "tier":
            tier = chance.uniform(80.0, 300.0)
            behavior = evolve(behavior, tier=always(tier))
            name += f", tier of {tier:.0f}/s"
        case _:
            pass
    timeout = min(first.timeout, second.timeout)
    return Scenario(name, behavior, None, 1.35, 1.25, in_flight=first.in_flight, timeout=timeout, failures=3)


_DEFAULTS: Final = asdict(Behavior(), recurse=False)


def _changed_attributes(behavior: Behavior) -> dict[str, Any]:
    """The attributes of *behavior* that differ from their defaults."""
    attributes = asdict(behavior, recurse=False)
    return {name: value for name, value in attributes.items() if value != _DEFAULTS[name]}


FAMILIES: Final = {
    "flap": _flap,
    "ramp": _ramp,
    "heavy": _heavy,
    "hang": _hang,
    "stray": _stray,
    "mix": _mixture,
}


def generated(seeds: range, *families: str) -> list[Scenario]:
    """The scenarios of *families*, or of all of them, for these seeds."""
    scenarios = []
    for family in families or FAMILIES:
        for seed in seeds:
            scenario = FAMILIES[family](random.Random(f"{family} {seed}"))
            scenarios.append(evolve(scenario, name=f"{family} {seed}: {scenario.name}", accounts=ACCOUNTS))
    return scenarios
