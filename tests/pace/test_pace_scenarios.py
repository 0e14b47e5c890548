"""
Simulations of the pacer alone, in virtual time: overloaded services, outages and recoveries.

By default, the scenarios of `MORE` run with fewer accounts, and only a few generated scenarios run.
``nox -s simulation`` runs all of them with all accounts, and the generated ones with seeds that were not used
to tune the pace. ``python -m tests.pace.test_pace_scenarios [accounts]`` prints a table of the results.
"""

import asyncio
import os
import sys

import pytest
from attrs import evolve

from postpress_async.pace import Pace
from tests.support.pace_generated import HELD_OUT, TUNED, generated
from tests.support.pace_scenarios import MORE, TABLE
from tests.support.pace_world import HEAD, Behavior, Result, Rotation, Scenario, Service, always, measure
from tests.support.virtual_loop import run

pytestmark = pytest.mark.slow

ALL = {scenario.name: scenario for scenario in [*TABLE, *MORE]}
SEED = 1

FULL = "POSTPRESS_TEST_PACE" in os.environ
"""Whether to run all scenarios with all accounts, as ``nox -s simulation`` does."""

MAX_ACCOUNTS = 20_000
"""Scenarios with more accounts run only in the full run."""

FEWER_ACCOUNTS = 12_000
"""Enough for the outages and changes, which start within 6 s: at most 2,000 accounts complete per second."""

NEVER_SHORTENED = {
    "two sessions, tier of 100/s", "heavy tail, 50 at once", "3% 429 whatever the rate from 5 s"
}  # fmt: skip
"""Scenarios that require all accounts. Two sessions take a minute to share a tier. A single slow response, or
an account that gets several 429s in a row, takes a large part of a short run."""


def measure_shortened(scenario: Scenario, accounts: int) -> tuple[Scenario, Result]:
    """
    Run *scenario* with fewer *accounts*. Also returns the scenario with the claims for that number.

    The time that a rotation loses at its start and end does not depend on the number of accounts. So with
    half of the accounts, the loss may be twice as large in proportion.
    """
    factor = scenario.accounts / accounts
    shortened = evolve(
        scenario,
        accounts=accounts,
        within=1 + (scenario.within - 1) * factor,
        asks=1 + (scenario.asks - 1) * factor,
    )
    return shortened, measure(shortened, seed=SEED)


def broken_claims(scenario: Scenario, result: Result) -> list[str]:
    """The claims of *scenario* that *result* breaks, as sentences."""
    wrong = []
    if result.ratio > scenario.within:
        wrong.append(f"makespan / ideal {result.ratio:.3f} > {scenario.within}")
    if result.asks > scenario.asks + 1e-9:
        wrong.append(f"requests / needed {result.asks:.4f} > {scenario.asks}")
    if result.failed > scenario.failures:
        wrong.append(f"{result.failed} accounts lost")
    if result.throttled > scenario.throttled:
        wrong.append(f"{result.throttled:.4f} of the responses were a 429")
    if result.patched + result.failed + result.unlucky != scenario.accounts:
        wrong.append("accounts without an outcome")
    return wrong


@pytest.mark.parametrize("scenario", [s for s in TABLE if s.accounts <= MAX_ACCOUNTS], ids=lambda s: s.name)
def test_main_scenarios_meet_their_claims(scenario: Scenario) -> None:
    """They run with all accounts: more would hide the time that is lost at the start and the end."""
    result = measure(scenario, seed=SEED)
    print(f"seed {SEED}\n{HEAD}\n{result}")

    assert broken_claims(scenario, result) == []


@pytest.mark.parametrize(
    "scenario", [s for s in MORE if FULL or s.accounts <= MAX_ACCOUNTS], ids=lambda s: s.name
)
def test_further_scenarios_meet_their_claims(scenario: Scenario) -> None:
    is_whole = FULL or scenario.name in NEVER_SHORTENED
    accounts = scenario.accounts if is_whole else min(FEWER_ACCOUNTS, scenario.accounts)
    shortened, result = measure_shortened(scenario, accounts)
    print(f"seed {SEED}\n{HEAD}\n{result}")

    assert broken_claims(shortened, result) == []


@pytest.mark.parametrize(
    "scenario", generated(HELD_OUT) if FULL else generated(TUNED[:2]), ids=lambda s: s.name
)
def test_generated_scenarios_meet_their_claims(scenario: Scenario) -> None:
    """
    The scenarios are drawn from seeds: flapping, ramps, heavy tails, hangs, random 429s and mixtures.

    Even a client that does not adapt may need longer than a scenario claims, because a single slow response
    at the end can take a fifth of the time of 10,000 accounts. Then 1.1 times the time of that client is
    allowed.
    """
    result = measure(scenario, seed=SEED)
    if result.ratio > scenario.within:
        not_adaptive = measure(evolve(scenario, adaptive=False), seed=SEED)
        scenario = evolve(scenario, within=max(scenario.within, 1.1 * not_adaptive.ratio))
    print(f"seed {SEED}\n{HEAD}\n{result}")

    assert broken_claims(scenario, result) == []


@pytest.mark.parametrize(
    "scenario", generated(HELD_OUT if FULL else TUNED[:4], "stray"), ids=lambda s: s.name
)
def test_429s_at_any_rate_leave_most_of_the_throughput(scenario: Scenario) -> None:
    """
    Up to 3% of 429s leave nine tenths of the throughput, and up to 5% leave eight tenths.

    The throughput is compared with that of a client that does not adapt, which repeats as many requests.
    """
    kept = 0.9 if scenario.behavior.stray(10.0) <= 0.03 else 0.8
    not_adaptive = measure(evolve(scenario, adaptive=False), seed=SEED)
    result = measure(scenario, seed=SEED)
    print(f"seed {SEED}: {not_adaptive.makespan / result.makespan:.3f}")

    assert result.makespan <= not_adaptive.makespan / kept


@pytest.mark.parametrize("share", [0.01, 0.03])
def test_429s_at_any_rate_take_hardly_more_time_than_as_many_503s(share: float) -> None:
    """A lower rate does not lower their share, so it must not slow the rotation down."""
    throttled = Scenario("429", Behavior(stray=always(share)), always(1000.0), 1.2, 1.1)
    unavailable = Scenario("503", Behavior(unavailable=always(share)), always(1000.0), 1.2, 1.1)

    assert measure(throttled, seed=SEED).makespan <= measure(unavailable, seed=SEED).makespan / 0.9


def test_idle_minute_between_rotations_does_not_lower_the_rate() -> None:
    """The limit of 1,000 requests per second is not known yet after the first rotation of 1,000 accounts."""

    async def two_rotations() -> float:
        service = Service(Behavior(tier=always(1000.0), latency=lambda _chance: 0.002), SEED)
        rotation = Rotation(service, Pace(in_flight=50), 30.0, SEED)
        await rotation.run(range(1_000))
        await asyncio.sleep(60.0)
        started = asyncio.get_running_loop().time()
        await rotation.run(range(1_000))
        return asyncio.get_running_loop().time() - started

    assert run(two_rotations()) <= 3.0


@pytest.mark.parametrize(
    ("name", "accounts"),
    [("out for 20 s: 503", 12_000), ("heavy tail, 50 at once", 3_000), ("two sessions, 50 at once", 3_000)],
)
def test_same_seed_gives_exactly_the_same_result(name: str, accounts: int) -> None:
    scenario = evolve(ALL[name], accounts=accounts)

    assert measure(scenario, seed=7) == measure(scenario, seed=7)
    assert measure(scenario, seed=7) != measure(scenario, seed=8)


@pytest.mark.parametrize("name", ["30% passing provider_error", "50 at once, started at 1,000"])
def test_no_retry_waits_much_longer_for_a_permit_than_the_mean(name: str) -> None:
    result = measure(ALL[name], 6000, seed=SEED)

    assert result.longest_wait <= max(0.1, 4 * result.mean_wait)


if __name__ == "__main__":
    print(f"seed {SEED}\n{HEAD}")
    for scenario in [*ALL.values(), *generated(TUNED), *generated(HELD_OUT)]:
        if len(sys.argv) > 1:
            scenario = evolve(scenario, accounts=int(sys.argv[1]))
        result = measure(scenario, seed=SEED)
        print(result, *broken_claims(scenario, result), flush=True)
