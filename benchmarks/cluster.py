"""
What do workers add to one process, what does a shard cost, and how far does one coordinator reach?

The same fleet from one process, and from 1 and 2 workers of ``local:N``, each with its journal: against a
server that answers at once, where the processor is the bound, and against one that takes 100 ms, where the
100 requests in flight of each process are. Then shards that hold nothing, one after the other; and, from
what was measured, what larger fleets take. One coordinator is the bound: it tells and journals each account::

    python -m benchmarks.cluster [--accounts 50000]
"""

import argparse
import asyncio
import os
import pickle
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
from typing import Any, Final

from attrs import frozen

from benchmarks.canned import canned_server
from postpress_async import ManagedProxy, Pace, PostPressSession, RetryPolicy
from postpress_async.cluster import Cluster
from postpress_async.cluster.orders import Orders

KEY: Final = "pp_test_sandbox"
CHANGE: Final = ManagedProxy(country="US")
LATENCY: Final = 0.1
SHARDS: Final = 200


@frozen
class Taken:
    """
    What a rotation took.

    Attributes:
        wall: Seconds, of an account.
        cpu: Seconds of the processor, of an account, in the process that has the journal.
        journal: Bytes of it, of an account.
        grown: Bytes of memory that this process has more than before.
    """

    wall: float
    cpu: float
    journal: float
    grown: int


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def _rotated(sender: PostPressSession | Cluster, count: int) -> Taken:
    """What *sender* takes for a rotation of *count* accounts."""
    changes = ((f"acc_{number:08}", CHANGE) for number in range(count))
    with TemporaryDirectory() as folder:
        journal = Path(folder, "run.sqlite3")
        async with sender:
            wall, cpu, memory = time.perf_counter(), time.process_time(), _resident()
            async with sender.rotate(changes, journal=journal) as rotation:
                await rotation.run()
                grown = _resident() - memory
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        assert rotation.summary.patched == count, rotation.summary
        size = os.path.getsize(journal)  # noqa: ASYNC240 - all is over
        return Taken(wall / count, cpu / count, size / count, grown)


def _sender(base: str, workers: int) -> PostPressSession | Cluster:
    if not workers:
        return PostPressSession(KEY, base_url=base)
    return Cluster(f"local:{workers}", api_key=KEY, base_url=base)


async def _shard(base: str) -> float:
    """Seconds of a shard: a task of Dask, and the worker's question for its rows."""
    orders = Orders("run", base, RetryPolicy(), Pace(), pooled=False, watched=False)

    async def answer(question: Any) -> dict[str, Any]:
        if question["op"] == "hello":
            return {"orders": pickle.dumps(orders), "key": KEY}
        return {"count": 0} if question["op"] == "beat" else {}

    async with Cluster("local:1", api_key=KEY, base_url=base) as cluster:
        cluster.attend("token", answer)
        [worker] = await cluster.workers()
        await cluster.carry("token", 0, worker)  # makes the session and the connections
        began = time.perf_counter()
        for number in range(1, SHARDS + 1):
            await cluster.carry("token", number, worker)
        taken = time.perf_counter() - began
        cluster.dismiss("token")
    return taken / SHARDS


@contextmanager
def _slow_server() -> Iterator[str]:
    """The sandbox's URL, which answers after 100 ms, in a process of its own."""
    words = [sys.executable, "-m", "postpress_async", "sandbox", "--latency", str(LATENCY)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            told = (re.search(r"http://[^ '\"]+", line) for line in process.stdout)
            yield next(url[0].strip() for url in told if url is not None)
        finally:
            process.terminate()


def _on_paper(one: Taken, shard: float) -> None:
    """What the coordinator takes for more, by the processor time of an account here."""
    most = 1 / (one.cpu + shard / 2_000)
    print(f"\non paper: one coordinator takes in {most:,.0f} accounts a second, on this processor")
    for count in (10**7, 10**9):
        hours, size = count / most / 3600, count * one.journal / 1e9
        # A fleet's file: 40 bytes an account, to find those named twice; and one for what a run before did.
        memory = (one.grown + 41 * count) / 1e9
        print(f"{count:>15,} accounts: {hours:6.2f} hours, journal {size:5.1f} GB, memory {memory:5.2f} GB")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description="See the module.")
    parser.add_argument("--accounts", type=int, default=50_000)
    count = parser.parse_args(arguments).accounts
    print(f"{'server':>8} {'sent from':>12} {'a second':>9} {'CPU us':>7} {'journal':>8} {'grown MiB':>10}")
    kept: dict[tuple[str, int], Taken] = {}
    with canned_server(None) as fast, _slow_server() as slow:
        for name, base, accounts in (("at once", fast, count), ("100 ms", slow, count // 5)):
            for workers in (0, 1, 2):
                taken = kept[name, workers] = asyncio.run(_rotated(_sender(base, workers), accounts))
                place = f"local:{workers}" if workers else "one process"
                figures = f"{1 / taken.wall:9,.0f} {taken.cpu * 1e6:7.1f} {taken.journal:8.1f}"
                print(f"{name:>8} {place:>12} {figures} {taken.grown / (1 << 20):10.1f}", flush=True)
        shard = asyncio.run(_shard(fast))
    print(f"\na shard: {shard * 1e3:.2f} ms, of {SHARDS} one after the other")
    _on_paper(kept["at once", 2], shard)
    print(
        f"\n{count:,} accounts ({count // 5:,} at 100 ms), 100 in flight a process; CPU us and grown MiB:\n"
        "of the process that has the journal; journal: its bytes, of an account\n"
        f"Python {platform.python_version()}, distributed {version('distributed')}, {os.cpu_count()} cores, "
        f"{platform.platform()}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
