"""
How much longer does a rotation take because of outages, overload and errors of the service?

This benchmark runs the real session and rotation with the real sandbox in virtual time (see
`tests.support.virtual_loop`). The same seed always gives the same result::

    python -m benchmarks.simulation [--accounts 20000] [--seed 1] [names...]

*ideal* is the time that the service needs for the necessary requests if it is never idle. *ratio* is the time
of the rotation (*makespan*) divided by *ideal*. *needless* is the number of unnecessary requests, as a share
of the necessary ones. *lost* is the number of accounts that failed although another attempt would have
succeeded. *unlucky* is the number of accounts whose attempts all got a random fault.
"""

import argparse
import math
import os
import platform
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version

from tests.support.simulated_service import FULL, Result, Scenario, broken
from tests.support.simulation import measure
from tests.support.simulation_scenarios import ALL

HEAD = (
    f"{'scenario':42} {'makespan':>10} {'ideal':>9} {'ratio':>7} {'requests/account':>16} "
    f"{'needless':>8} {'lost':>5} {'unlucky':>7} {'429':>6}  {'claim':33}"
)


def claim(scenario: Scenario) -> str:
    """Return the limits that the scenario must keep, in a few words."""
    words = [
        "ends" if scenario.max_makespan_ratio == math.inf else f"ratio {scenario.max_makespan_ratio:.4g}"
    ]
    if scenario.max_request_ratio < math.inf:
        words.append(f"needless {scenario.max_request_ratio - 1:.0%}")
    if scenario.max_throttled_share < math.inf:
        words.append(f"429 {scenario.max_throttled_share:.1%}")
    return ", ".join(words)


def line(scenario: Scenario, result: Result) -> str:
    """Return a row of the table."""
    broken_claims = broken(scenario, result)
    return (
        f"{result.name:42} {result.makespan:8.2f} s {result.ideal:7.2f} s {result.ratio:7.4f} "
        f"{result.requests / result.accounts:16.4f} {result.needless:8.2%} "
        f"{result.lost:5} {result.unlucky:7} {result.throttled / max(result.requests, 1):6.2%}  "
        f"{claim(scenario):33} " + (f"FAIL: {'; '.join(broken_claims)}" if broken_claims else "pass")
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, and return 1 if a claim does not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulation", description="See the module.")
    parser.add_argument("--accounts", type=int, default=FULL)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "names", nargs="*", default=[""], help="Parts of the names of scenarios. Default: all."
    )
    options = parser.parse_args(arguments)
    chosen = [scenario for scenario in ALL.values() if any(part in scenario.name for part in options.names)]
    started, failed = time.monotonic(), 0
    print(HEAD)
    for scenario in chosen:
        result = measure(scenario, options.accounts, options.seed)
        failed += bool(broken(scenario, result))
        print(line(scenario, result), flush=True)
    versions = ", ".join(f"{name} {version(name)}" for name in ("postpress-async", "aiohttp", "tenacity"))
    print(f"\n{len(chosen) - failed} of {len(chosen)} claims hold.")
    seconds = time.monotonic() - started
    print(f"{options.accounts:,} accounts, seed {options.seed}, {seconds:.0f} s of real time")
    print(f"Python {platform.python_version()}, {versions}")
    print(f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
