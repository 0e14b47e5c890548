"""
How much faster are several workers than one process, and what limits them?

This benchmark rotates the same fleet with a journal in one process, and with 1 and 2 workers of ``local:N``.
With a server that responds at once, the CPU is the limit. With a server that takes 100 ms, the limit is the
100 requests in flight of each process. Then it estimates the costs of larger fleets, which the coordinator
limits, because it records every account::

    python -m benchmarks.cluster [--accounts 50000]
"""

import argparse
import asyncio
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from attrs import frozen

from postpress_async import ManagedProxy, PostPressSession
from postpress_async.cluster import Cluster
from tests.support.canned_server import canned_server

KEY: Final = "pp_test_sandbox"
CHANGE: Final = ManagedProxy(country="US")
LATENCY: Final = 0.1


@frozen
class Cost:
    """
    The cost of a rotation.

    Attributes:
        wall: Seconds per account.
        cpu: Seconds of CPU time per account, in the process that writes the journal.
        journal: Bytes of the journal per account.
        grown: Bytes by which the memory of the process that writes the journal grew.
    """

    wall: float
    cpu: float
    journal: float
    grown: int


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def _rotate(sender: PostPressSession | Cluster, count: int) -> Cost:
    """Measure a rotation of *count* accounts by the session or cluster *sender*."""
    changes = ((f"acc_{number:08}", CHANGE) for number in range(count))
    with TemporaryDirectory() as folder:
        journal = Path(folder, "run.sqlite3")
        async with sender:
            wall, cpu, memory = time.perf_counter(), time.process_time(), _resident_bytes()
            async with sender.rotate(changes, journal=journal) as rotation:
                await rotation.run()
                grown = _resident_bytes() - memory
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        assert rotation.summary.patched == count, rotation.summary
        size = os.path.getsize(journal)  # noqa: ASYNC240 - the rotation is over
        return Cost(wall / count, cpu / count, size / count, grown)


def _sender(base: str, workers: int) -> PostPressSession | Cluster:
    if not workers:
        return PostPressSession(KEY, base_url=base)
    return Cluster(f"local:{workers}", api_key=KEY, base_url=base)


@contextmanager
def _slow_server() -> Iterator[str]:
    """Start a sandbox with a latency of 100 ms in another process, and yield its URL."""
    words = [sys.executable, "-m", "postpress_async", "sandbox", "--latency", str(LATENCY)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            matches = (re.search(r"http://[^ '\"]+", line) for line in process.stdout)
            yield next(url[0].strip() for url in matches if url is not None)
        finally:
            process.terminate()


def _estimate(cost: Cost) -> None:
    """Print an estimate of the coordinator's time, journal and memory for larger fleets."""
    rate = 1 / cost.cpu
    print(f"\nestimate: one coordinator handles {rate:,.0f} accounts per second on this CPU")
    for count in (10**7, 10**9):
        hours, size = count / rate / 3600, count * cost.journal / 1e9
        # Besides, a fleet file needs 40 bytes per account to find duplicates, and a resumed run needs 1 byte
        # for the account's state.
        memory = (cost.grown + 41 * count) / 1e9
        print(f"{count:>15,} accounts: {hours:6.2f} hours, journal {size:5.1f} GB, memory {memory:5.2f} GB")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description="See the module.")
    parser.add_argument("--accounts", type=int, default=50_000)
    count = parser.parse_args(arguments).accounts
    print(
        f"{'server':>8} {'sent from':>12} {'per second':>10} {'CPU us':>7} {'journal':>8} {'grown MiB':>10}"
    )
    costs: dict[tuple[str, int], Cost] = {}
    with canned_server(None) as fast, _slow_server() as slow:
        for server, base, accounts in (("at once", fast, count), ("100 ms", slow, count // 5)):
            for workers in (0, 1, 2):
                cost = costs[server, workers] = asyncio.run(_rotate(_sender(base, workers), accounts))
                sender = f"local:{workers}" if workers else "one process"
                figures = f"{1 / cost.wall:10,.0f} {cost.cpu * 1e6:7.1f} {cost.journal:8.1f}"
                print(f"{server:>8} {sender:>12} {figures} {cost.grown / (1 << 20):10.1f}", flush=True)
    _estimate(costs["at once", 2])
    print(
        f"\n{count:,} accounts ({count // 5:,} at 100 ms), 100 in flight per process.\n"
        "CPU us: CPU time per account. grown MiB: growth of the memory. Both are of the process that writes\n"
        "the journal. journal: its bytes per account.\n"
        f"Python {platform.python_version()}, distributed {version('distributed')}, {os.cpu_count()} cores, "
        f"{platform.platform()}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
