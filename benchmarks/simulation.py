"""
What does an unwell service cost a rotation?

The real session and rotation against the real sandbox, aiohttp on both sides, in virtual time; see
`benchmarks.virtual`. A run repeats exactly from its seed::

    python -m benchmarks.simulation [--accounts 20000] [--seed 1] [names...]

The ideal is the time in which a service that is used in every free second gives the answers that had to be
given. *needless* are the other requests, as a share of the needed ones; *lost* the accounts that failed
although another attempt would have helped; *unlucky* those that met a trouble of their own in each attempt.
"""

import argparse
import math
import os
import platform
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version

from benchmarks.play import measure
from benchmarks.scenarios import ALL
from benchmarks.world import FULL, Result, Scenario, broken

HEAD = (
    f"{'scenario':42} {'makespan':>10} {'ideal':>9} {'ratio':>7} {'requests/account':>16} "
    f"{'needless':>8} {'lost':>5} {'unlucky':>7} {'429':>6}  {'claim':33}"
)


def claim(scenario: Scenario) -> str:
    """What is claimed, in a few characters."""
    words = ["ends" if scenario.within == math.inf else f"ratio {scenario.within:.4g}"]
    if scenario.asks < math.inf:
        words.append(f"needless {scenario.asks - 1:.0%}")
    if scenario.throttled < math.inf:
        words.append(f"429 {scenario.throttled:.1%}")
    return ", ".join(words)


def line(scenario: Scenario, result: Result) -> str:
    """A row of the table."""
    wrong = broken(scenario, result)
    return (
        f"{result.name:42} {result.makespan:8.2f} s {result.ideal:7.2f} s {result.ratio:7.4f} "
        f"{result.requests / result.accounts:16.4f} {result.needless:8.2%} "
        f"{result.lost:5} {result.unlucky:7} {result.throttled / max(result.requests, 1):6.2%}  "
        f"{claim(scenario):33} " + (f"FAIL: {'; '.join(wrong)}" if wrong else "pass")
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 where a claim does not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulation", description="See the module.")
    parser.add_argument("--accounts", type=int, default=FULL)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("names", nargs="*", help="parts of the names of scenarios; all where none is given")
    given = parser.parse_args(arguments)
    chosen = [s for s in ALL.values() if not given.names or any(name in s.name for name in given.names)]
    began, failed = time.monotonic(), 0
    print(HEAD)
    for scenario in chosen:
        result = measure(scenario, given.accounts, given.seed)
        failed += bool(broken(scenario, result))
        print(line(scenario, result), flush=True)
    versions = ", ".join(f"{name} {version(name)}" for name in ("postpress-async", "aiohttp", "tenacity"))
    print(f"\n{len(chosen) - failed} of {len(chosen)} claims hold.")
    print(f"{given.accounts:,} accounts, seed {given.seed}, {time.monotonic() - began:.0f} s of real time")
    print(f"Python {platform.python_version()}, {versions}")
    print(f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
