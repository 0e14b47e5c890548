"""
What does a fleet cost, an account, from ten thousand to a million?

A rotation with its journal and an observer that counts, as the command's progress does, against a server that
answers at once; each size in a process of its own. Beside it stands `update_proxy` alone, called by as many
workers. Last, a second run on the same journal passes over all that is settled and sends 1,000 more::

    python -m benchmarks.scale [--accounts 10000 100000 1000000] [--transport session]
"""

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from benchmarks.canned import canned_server, two_cores
from postpress_async import CustomProxy, PostPressSession, ProxyChange

KEY: Final = "pp_bench_0123456789abcdef0123456789abcdef"
CHANGE: Final = CustomProxy(
    host="proxy.example.com", port=8080, protocol="socks5", username="u", password="p"
)
MORE: Final = 1_000
ALONE: Final = 20_000
"""Calls of `update_proxy` that the rotation is compared with."""


def _changes(count: int) -> Iterator[tuple[str, ProxyChange]]:
    return ((f"acc_{number:08}", CHANGE) for number in range(count))


def _resident() -> float:
    """MiB of memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


async def _alone(base: str, transport: Any) -> float:
    """Microseconds of CPU of one `update_proxy`."""
    async with PostPressSession(KEY, base_url=base, transport=transport) as session:

        async def worker(changes: Iterator[tuple[str, ProxyChange]]) -> None:
            for account_id, change in changes:
                await session.update_proxy(account_id, change)

        for count in (ALONE // 10, ALONE):  # the first ones make the connections
            changes, began = _changes(count), time.process_time()
            await asyncio.gather(*(worker(changes) for _ in range(100)))
    return (time.process_time() - began) / ALONE * 1e6


async def _rotate(base: str, transport: Any, count: int, journal: Path) -> dict[str, float]:
    """What a rotation of that many took; those that the journal has are passed over."""
    first, seen, most = 0.0, 0, 0.0

    def observe(_: object) -> None:
        nonlocal first, seen
        first = first or time.perf_counter()
        seen += 1

    before, cpu, wall = _resident(), time.process_time(), time.perf_counter()
    async with PostPressSession(KEY, base_url=base, transport=transport, on_event=observe) as session:
        async with session.rotate(_changes(count), journal=journal) as rotation:
            async for outcome in rotation:
                if outcome.ordinal % 5_000 == 0:
                    most = max(most, _resident())
        assert rotation.summary.patched == count, rotation.summary
    return {
        "cpu": time.process_time() - cpu,
        "wall": time.perf_counter() - wall,
        "first": first - wall,
        "most": max(most, _resident()),
        "before": before,
    }


def _one(base: str, transport: Any, count: int, core: int | None) -> None:
    """The work of one process: prints its figures as JSON."""
    if core is not None:
        os.sched_setaffinity(0, {core})
    with TemporaryDirectory() as folder:
        journal = Path(folder, "run.sqlite3")
        told: dict[str, Any] = {"alone": asyncio.run(_alone(base, transport))}
        told["run"] = asyncio.run(_rotate(base, transport, count, journal))
        told["run"]["bytes"] = journal.stat().st_size
        told["resumed"] = asyncio.run(_rotate(base, transport, count + MORE, journal))
    print(json.dumps(told))


def _tell(count: int, told: dict[str, Any]) -> None:
    run, resumed, alone = told["run"], told["resumed"], told["alone"]
    each = run["cpu"] / count * 1e6
    passed_over = (resumed["cpu"] * 1e6 - MORE * each) / count
    print(
        f"{count:>9,} {each:8.1f} {each / alone:7.2f} {count / run['wall']:9,.0f} {run['first'] * 1e3:9.1f} "
        f"{run['most']:9.1f} {run['most'] - run['before']:7.1f} {run['bytes'] / count:9.1f} "
        f"{resumed['first'] * 1e3:10.1f} {passed_over:9.2f}",
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description="See the module.")
    parser.add_argument("--accounts", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--transport", choices=["session", "lean"], default="session")
    parser.add_argument("--one", nargs=2, metavar=("URL", "CORE"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.one is not None:
        base, core = given.one
        _one(base, given.transport, given.accounts[0], int(core) if core else None)
        return 0

    cores = two_cores()
    print(
        f"{'accounts':>9} {'CPU us':>8} {'/ alone':>7} {'a second':>9} {'first ms':>9} {'MiB':>9} "
        f"{'grown':>7} {'bytes':>9} {'resume ms':>10} {'us each':>9}"
    )
    with canned_server(None if cores is None else cores[1]) as base:
        for count in given.accounts:
            core = "" if cores is None else str(cores[0])
            words = ["--transport", given.transport, "--accounts", str(count), "--one", base, core]
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.scale", *words], stdout=subprocess.PIPE, check=True
            )
            _tell(count, json.loads(done.stdout))
    print(
        "\nCPU us: of an account, the journal's thread included; / alone: as a ratio to update_proxy;\n"
        "first ms: until the first request; MiB: of memory at most, grown: since before it began;\n"
        f"bytes: of the journal, an account; resume ms: until the first of {MORE:,} more accounts is sent;\n"
        "us each: of CPU for each account that was settled before, and so passed over."
    )
    versions = ", ".join(f"{name} {version(name)}" for name in ("postpress-async", "aiohttp"))
    print(f"Transport {given.transport}. Python {platform.python_version()}, {versions}")
    print(f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores")
    return 0


if __name__ == "__main__":
    sys.exit(main())
