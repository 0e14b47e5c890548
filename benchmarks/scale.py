"""
What does a fleet cost, an account, from ten thousand to a million?

A rotation with its journal, of which the report is made, and with the figures of the command's progress,
against a server that answers at once; each size in a process of its own. Then a second run on the same
journal, which passes over all that is settled and sends 1,000 more. Last, `update_proxy` alone, called by as
many workers, in turns with rotations of as many accounts::

    python -m benchmarks.scale [--accounts 10000 100000 1000000] [--transport session] [--observer]
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
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
from postpress_async.cli.progress import Figures

KEY: Final = "pp_bench_0123456789abcdef0123456789abcdef"
CHANGE: Final = CustomProxy(
    host="proxy.example.com", port=8080, protocol="socks5", username="u", password="p"
)
MORE: Final = 1_000
ALONE: Final = 10_000
"""Calls of `update_proxy`, and accounts of a rotation, that are compared with each other."""

ROUNDS: Final = 7
WORKERS: Final = 100


def _changes(count: int) -> Iterator[tuple[str, ProxyChange]]:
    return ((f"acc_{number:08}", CHANGE) for number in range(count))


def _resident() -> float:
    """MiB of memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


async def _alone(session: PostPressSession, count: int) -> None:
    async def worker(changes: Iterator[tuple[str, ProxyChange]]) -> None:
        for account_id, change in changes:
            await session.update_proxy(account_id, change)

    changes = _changes(count)
    await asyncio.gather(*(worker(changes) for _ in range(WORKERS)))


async def _rotate(session: PostPressSession, count: int, journal: Path, new: int = 0) -> dict[str, Any]:
    """When the account *new* was begun, the most memory, and the CPU time at each tenth of the accounts."""
    first, most, marks = 0.0, 0.0, [time.process_time()]

    def changes() -> Iterator[tuple[str, ProxyChange]]:
        nonlocal first
        for number, change in enumerate(_changes(count)):
            if number == new:
                first = time.perf_counter()
            yield change

    async with session.rotate(changes(), journal=journal, in_flight=WORKERS) as rotation:
        figures = Figures(count, rotation, session)
        async for outcome in rotation:
            figures.add(outcome)
            if outcome.ordinal % (count // 10) == 0 and outcome.ordinal:
                marks.append(time.process_time())
            if outcome.ordinal % 5_000 == 0:
                most = max(most, _resident())
    assert rotation.summary.patched == count, rotation.summary
    return {"first": first, "most": max(most, _resident()), "marks": marks}


async def _measured(session: PostPressSession, count: int, journal: Path, new: int = 0) -> dict[str, Any]:
    """What a rotation of that many took; those that the journal has are passed over."""
    before, cpu, wall = _resident(), time.process_time(), time.perf_counter()
    told = await _rotate(session, count, journal, new)
    return {
        "cpu": time.process_time() - cpu,
        "wall": time.perf_counter() - wall,
        "first": told["first"] - wall,
        "most": told["most"],
        "marks": told["marks"],
        "before": before,
    }


async def _compared(session: PostPressSession, folder: Path) -> list[float]:
    """The CPU time of a rotation's account, as a ratio to that of an `update_proxy`, round by round."""
    ratios = []
    for number in range(ROUNDS):
        began = time.process_time()
        await _alone(session, ALONE)
        between = time.process_time()
        await _rotate(session, ALONE, folder / f"{number}.sqlite3")
        ratios.append((time.process_time() - between) / (between - began))
    return ratios


async def _all(base: str, transport: Any, observer: Any, count: int) -> dict[str, Any]:
    async with PostPressSession(KEY, base_url=base, transport=transport, on_event=observer) as session:
        with TemporaryDirectory() as folder:
            await _alone(session, ALONE // 10)  # makes the connections
            journal = Path(folder, "run.sqlite3")
            told: dict[str, Any] = {"run": await _measured(session, count, journal)}
            told["run"]["bytes"] = journal.stat().st_size  # noqa: ASYNC240 - all is over
            told["resumed"] = await _measured(session, count + MORE, journal, count)
            told["ratios"] = await _compared(session, Path(folder))
    return told


def _one(base: str, transport: Any, observer: bool, count: int, core: int | None) -> None:
    """The work of one process: prints its figures as JSON."""
    if core is not None:
        os.sched_setaffinity(0, {core})
    print(json.dumps(asyncio.run(_all(base, transport, id if observer else None, count))))


def _tell(count: int, told: dict[str, Any]) -> None:
    run, resumed = told["run"], told["resumed"]
    each = run["cpu"] / count * 1e6
    marks = run["marks"]  # the first tenth has the start in it, and so is not looked at
    drift = (marks[-1] - marks[-2]) / (marks[2] - marks[1])
    passed_over = (resumed["cpu"] * 1e6 - MORE * each) / count
    print(
        f"{count:>9,} {each:8.1f} {statistics.median(told['ratios']):7.2f} "
        f"{min(told['ratios']):.2f}-{max(told['ratios']):.2f} "
        f"{drift:6.2f} {count / run['wall']:9,.0f} {run['first'] * 1e3:9.1f} "
        f"{run['most']:9.1f} {run['most'] - run['before']:7.1f} {run['bytes'] / count:9.1f} "
        f"{resumed['first'] * 1e3:10.1f} {passed_over:9.2f}",
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description="See the module.")
    parser.add_argument("--accounts", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--transport", choices=["session", "lean"], default="session")
    parser.add_argument("--observer", action="store_true", help="with one that does next to nothing")
    parser.add_argument("--one", nargs=2, metavar=("URL", "CORE"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.one is not None:
        base, core = given.one
        _one(base, given.transport, given.observer, given.accounts[0], int(core) if core else None)
        return 0

    cores = two_cores()
    print(
        f"{'accounts':>9} {'CPU us':>8} {'/ alone':>7} {'from-to':>9} {'drift':>6} {'a second':>9} "
        f"{'first ms':>9} {'MiB':>9} {'grown':>7} {'bytes':>9} {'resume ms':>10} {'us each':>9}"
    )
    with canned_server(None if cores is None else cores[1]) as base:
        for count in given.accounts:
            core = "" if cores is None else str(cores[0])
            words = ["--observer"] * given.observer
            words += ["--transport", given.transport, "--accounts", str(count), "--one", base, core]
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.scale", *words], stdout=subprocess.PIPE, check=True
            )
            _tell(count, json.loads(done.stdout))
    print(
        "\nCPU us: of an account, the journal's thread included; / alone: that of rotations of "
        f"{ALONE:,}\n"
        f"accounts as a ratio to as many calls of update_proxy, median of {ROUNDS} rounds in turn;\n"
        "drift: the CPU of the ninth tenth of the accounts as a ratio to that of the second;\n"
        "first ms: until the first request; MiB: of memory at most, grown: since before it began;\n"
        f"bytes: of the journal, an account; resume ms: until the first of {MORE:,} more accounts is sent;\n"
        "us each: of CPU for each account that was settled before, and so passed over."
    )
    versions = ", ".join(f"{name} {version(name)}" for name in ("postpress-async", "aiohttp"))
    watched = "an observer" if given.observer else "no observer"
    print(f"Transport {given.transport}, {watched}. Python {platform.python_version()}, {versions}")
    print(f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores")
    return 0


if __name__ == "__main__":
    sys.exit(main())
