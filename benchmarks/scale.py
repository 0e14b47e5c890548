"""
What does a rotation cost per account, from ten thousand accounts to a million?

For each number of accounts, this benchmark does three things in a new process, with a server that responds at
once. First, it measures a rotation with a journal and the command line's progress statistics. Second, it
measures a run on the same journal that skips the completed accounts and sends 1,000 more. Third, it compares
rotations of 10,000 accounts with the same number of plain calls of `update_proxy`::

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

from postpress_async import CustomProxy, PostPressSession, ProxyChange
from postpress_async._cli.progress import ProgressStats
from tests.support.canned_server import canned_server, two_cores

KEY: Final = "pp_bench_0123456789abcdef0123456789abcdef"
CHANGE: Final = CustomProxy(
    host="proxy.example.com", port=8080, protocol="socks5", username="u", password="p"
)
ADDED: Final = 1_000
"""Number of accounts that the second run adds."""

COMPARED: Final = 10_000
"""Number of calls of `update_proxy`, and of accounts of a rotation, in the comparison."""

ROUNDS: Final = 7
WORKERS: Final = 100


def _changes(count: int) -> Iterator[tuple[str, ProxyChange]]:
    return ((f"acc_{number:08}", CHANGE) for number in range(count))


def _resident_mib() -> float:
    """Return the resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


async def _call_update_proxy(session: PostPressSession, count: int) -> None:
    """Make *count* calls with `WORKERS` workers."""

    async def worker(changes: Iterator[tuple[str, ProxyChange]]) -> None:
        for account_id, change in changes:
            await session.update_proxy(account_id, change)

    changes = _changes(count)
    await asyncio.gather(*(worker(changes) for _ in range(WORKERS)))


async def _rotate(session: PostPressSession, count: int, journal: Path, completed: int = 0) -> dict[str, Any]:
    """
    Rotate *count* accounts with *journal*, of which the first *completed* are completed already.

    Returns the time when the first new account was taken from the input (``first``), the peak memory in MiB
    (``peak``), and the CPU time at the start and after each tenth of the accounts (``marks``).
    """
    first, peak, marks = 0.0, 0.0, [time.process_time()]

    def changes() -> Iterator[tuple[str, ProxyChange]]:
        nonlocal first
        for number, change in enumerate(_changes(count)):
            if number == completed:
                first = time.perf_counter()
            yield change

    async with session.rotate(changes(), journal=journal, in_flight=WORKERS) as rotation:
        progress = ProgressStats(count, rotation, session)
        async for outcome in rotation:
            progress.add(outcome)
            if outcome.ordinal % (count // 10) == 0 and outcome.ordinal:
                marks.append(time.process_time())
            if outcome.ordinal % 5_000 == 0:
                peak = max(peak, _resident_mib())
    assert rotation.summary.patched == count, rotation.summary
    return {"first": first, "peak": max(peak, _resident_mib()), "marks": marks}


async def _measure(
    session: PostPressSession, count: int, journal: Path, completed: int = 0
) -> dict[str, Any]:
    """Measure a rotation like `_rotate`, which skips the accounts that the journal has completed."""
    before, cpu, wall = _resident_mib(), time.process_time(), time.perf_counter()
    figures = await _rotate(session, count, journal, completed)
    return {
        "cpu": time.process_time() - cpu,
        "wall": time.perf_counter() - wall,
        "first": figures["first"] - wall,
        "peak": figures["peak"],
        "marks": figures["marks"],
        "before": before,
    }


async def _compare(session: PostPressSession, folder: Path) -> list[float]:
    """Return the ratio of a rotation's CPU time to that of plain calls, for each round."""
    ratios = []
    for number in range(ROUNDS):
        start = time.process_time()
        await _call_update_proxy(session, COMPARED)
        middle = time.process_time()
        await _rotate(session, COMPARED, folder / f"{number}.sqlite3")
        ratios.append((time.process_time() - middle) / (middle - start))
    return ratios


async def _measure_all(base: str, transport: Any, observer: Any, count: int) -> dict[str, Any]:
    async with PostPressSession(KEY, base_url=base, transport=transport, on_event=observer) as session:
        with TemporaryDirectory() as folder:
            await _call_update_proxy(session, COMPARED // 10)  # opens the connections
            journal = Path(folder, "run.sqlite3")
            figures: dict[str, Any] = {"run": await _measure(session, count, journal)}
            figures["run"]["bytes"] = journal.stat().st_size  # noqa: ASYNC240 - the rotation is over
            figures["resumed"] = await _measure(session, count + ADDED, journal, count)
            figures["ratios"] = await _compare(session, Path(folder))
    return figures


def _run_size(base: str, transport: Any, observer: bool, count: int, core: int | None) -> None:
    """Measure one size in this process and print its figures as JSON."""
    if core is not None:
        os.sched_setaffinity(0, {core})
    do_nothing = id  # a function in C, which takes as little time as possible
    print(json.dumps(asyncio.run(_measure_all(base, transport, do_nothing if observer else None, count))))


def _print_row(count: int, figures: dict[str, Any]) -> None:
    run, resumed = figures["run"], figures["resumed"]
    cpu = run["cpu"] / count * 1e6
    marks = run["marks"]  # the first tenth includes the start, so it is not compared
    drift = (marks[-1] - marks[-2]) / (marks[2] - marks[1])
    skipped_cpu = (resumed["cpu"] * 1e6 - ADDED * cpu) / count
    print(
        f"{count:>9,} {cpu:8.1f} {statistics.median(figures['ratios']):7.2f} "
        f"{min(figures['ratios']):.2f}-{max(figures['ratios']):.2f} "
        f"{drift:6.2f} {count / run['wall']:10,.0f} {run['first'] * 1e3:9.1f} "
        f"{run['peak']:9.1f} {run['peak'] - run['before']:7.1f} {run['bytes'] / count:9.1f} "
        f"{resumed['first'] * 1e3:10.1f} {skipped_cpu:9.2f}",
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description="See the module.")
    parser.add_argument("--accounts", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--transport", choices=["session", "lean"], default="session")
    parser.add_argument("--observer", action="store_true", help="Use an observer that does nothing.")
    parser.add_argument("--size", nargs=2, metavar=("URL", "CORE"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.size is not None:
        base, core = options.size
        _run_size(base, options.transport, options.observer, options.accounts[0], int(core) if core else None)
        return 0

    cores = two_cores()
    print(
        f"{'accounts':>9} {'CPU us':>8} {'/ calls':>7} {'from-to':>9} {'drift':>6} {'per second':>10} "
        f"{'first ms':>9} {'MiB':>9} {'grown':>7} {'bytes':>9} {'resume ms':>10} {'skip us':>9}"
    )
    with canned_server(None if cores is None else cores[1]) as base:
        for count in options.accounts:
            core = "" if cores is None else str(cores[0])
            words = ["--observer"] * options.observer
            words += ["--transport", options.transport, "--accounts", str(count), "--size", base, core]
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.scale", *words], stdout=subprocess.PIPE, check=True
            )
            _print_row(count, json.loads(done.stdout))
    print(
        "\nCPU us: CPU time per account, including the journal's thread.\n"
        f"/ calls: ratio of the CPU time of rotations of {COMPARED:,} accounts to that of as many calls of\n"
        f"update_proxy, median and range of {ROUNDS} rounds.\n"
        "drift: ratio of the CPU time of the last full tenth of the accounts to that of the second tenth.\n"
        "first ms: time until the first request. MiB: peak memory. grown: its growth during the rotation.\n"
        f"bytes: journal per account. resume ms: time until the first of {ADDED:,} more accounts is sent.\n"
        "skip us: CPU time per account that was completed before and is skipped."
    )
    versions = ", ".join(f"{name} {version(name)}" for name in ("postpress-async", "aiohttp"))
    observer = "an observer" if options.observer else "no observer"
    print(f"Transport {options.transport}, {observer}. Python {platform.python_version()}, {versions}")
    print(f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores")
    return 0


if __name__ == "__main__":
    sys.exit(main())
