"""
How fast is a fleet read in each format, and how much memory does it need?

This benchmark writes one fleet with three kinds of rows in all formats, and reads each file in a process of
its own::

    python -m benchmarks.inputs [--rows 1000000] [formats...]

All times are CPU time. *open* is the time to open the fleet, which includes copying the result of a query.
*digest* is the time to compute the digest by which a journal recognizes the fleet. *pass* is the time to read
all rows once; the command line reads them once before it sends anything, and again while it sends. *memory*
is the peak resident memory of the process. *before* is its peak before the fleet is opened, which includes
Python, the libraries and, for pandas and polars, the frame.
"""

import argparse
import csv
import json
import os
import platform
import random
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from postpress_async.rotation import Fleet
from postpress_async.rotation._fleet import reader_of

NAMES = ("account_id", "host", "port", "protocol", "username", "password", "country", "ip")
HEAD = f"{'format':12} {'open':>8} {'digest':>8} {'pass':>8} {'rows/s':>10} {'memory':>9} {'before':>9}"


def rows(count: int) -> Iterator[tuple[Any, ...]]:
    """Yield *count* rows. A quarter have a managed proxy, and a quarter a proxy without a password."""
    generator = random.Random(1)
    for number in range(count):
        account = f"acc_01{generator.getrandbits(80):020X}"
        host, port = f"p{generator.randrange(500)}.proxy.example.com", 8000 + number % 1000
        if number % 4 == 3:
            yield account, None, None, None, None, None, generator.choice(["US", "DE", "FR"]), None
        elif number % 4 == 2:
            yield account, host, port, "socks5", None, None, None, None
        else:
            yield account, host, port, "http", f"user{number}", f"{generator.getrandbits(60):x}", None, None


def write_csv(path: Path, count: int) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(NAMES)
        writer.writerows(rows(count))


def write_json_lines(path: Path, count: int) -> None:
    with path.open("w") as file:
        for row in rows(count):
            pairs = zip(NAMES, row, strict=True)
            file.write(json.dumps({name: value for name, value in pairs if value is not None}) + "\n")


def write_parquet(path: Path, count: int) -> None:
    import pyarrow as arrow
    import pyarrow.parquet

    types = [arrow.int32() if name == "port" else arrow.string() for name in NAMES]
    schema = arrow.schema(list(zip(NAMES, types, strict=True)))
    columns = list(zip(*rows(count), strict=True))
    table = arrow.table([list(column) for column in columns], schema=schema)
    # One row group has up to a million rows, which needs the most memory to read.
    arrow.parquet.write_table(table, path)


def write_sqlite(path: Path, count: int) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"CREATE TABLE fleet ({', '.join(NAMES)})")
        connection.executemany(f"INSERT INTO fleet VALUES ({', '.join('?' * len(NAMES))})", rows(count))


def open_pandas(path: Path) -> Fleet:
    import pandas

    frame = pandas.read_parquet(path)
    return opened(lambda: Fleet.of(frame))


def open_polars(path: Path) -> Fleet:
    import polars

    frame = polars.read_parquet(path)
    return opened(lambda: Fleet.of(frame))


# For each format: the file's name, a function that writes the file, and a function that opens the fleet.
FORMATS: dict[str, tuple[str, Callable[[Path, int], None], Callable[[Path], Fleet]]] = {
    "csv": ("fleet.csv", write_csv, lambda path: opened(lambda: Fleet.open(path))),
    "jsonl": ("fleet.jsonl", write_json_lines, lambda path: opened(lambda: Fleet.open(path))),
    "parquet": ("fleet.parquet", write_parquet, lambda path: opened(lambda: Fleet.open(path))),
    "query": (
        "fleet.db",
        write_sqlite,
        lambda path: opened(lambda: Fleet.open_query(f"sqlite:///{path}", "SELECT * FROM fleet")),
    ),
    "pandas": ("fleet.parquet", write_parquet, open_pandas),
    "polars": ("fleet.parquet", write_parquet, open_polars),
}

MEASURED: dict[str, float] = {}


def opened(open_fleet: Callable[[], Fleet]) -> Fleet:
    """Open the fleet, and record the time and the memory before it in `MEASURED`."""
    MEASURED["before"] = peak_memory()
    start = time.process_time()
    fleet = open_fleet()
    MEASURED["open"] = time.process_time() - start
    return fleet


def peak_memory() -> float:
    """Return the peak resident memory of this process in MB."""
    units_per_megabyte = 1024 * 1024 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / units_per_megabyte


def read(name: str, path: Path) -> None:
    """Read the fleet and print a row of the table. Runs in its own process."""
    with FORMATS[name][2](path) as fleet:
        start = time.process_time()
        reader_of(fleet).digest  # noqa: B018 - computed when it is first read
        digest = time.process_time() - start
        start = time.process_time()
        survey = fleet.survey()
        full_pass = time.process_time() - start
    assert not survey.refused, next(iter(survey.faults)).sentence()
    print(
        f"{name:12} {MEASURED['open']:6.2f} s {digest:6.2f} s {full_pass:6.2f} s "
        f"{survey.rows / full_pass:10,.0f} {peak_memory():6.0f} MB {MEASURED['before']:6.0f} MB"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inputs", description="See the module.")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--read", metavar="FILE", type=Path, help=argparse.SUPPRESS)
    parser.add_argument(
        "formats", nargs="*", metavar="format", help=f"Any of {', '.join(FORMATS)}. Default: all."
    )
    options = parser.parse_args(arguments)
    if options.read is not None:
        read(options.formats[0], options.read)
        return 0
    libraries = ("postpress-async", "attrs", "pyarrow", "sqlalchemy", "pandas", "polars")
    print(
        f"Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in libraries)
    )
    print(f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores; {options.rows:,} rows")
    print(HEAD)
    with tempfile.TemporaryDirectory() as folder:
        for name in options.formats or FORMATS:
            file_name, write, _ = FORMATS[name]
            if not (path := Path(folder, file_name)).exists():
                # In another process, because a child's peak memory starts at its parent's.
                with ProcessPoolExecutor(1, get_context("spawn")) as writer:
                    writer.submit(write, path, options.rows).result()
            command = [sys.executable, "-m", "benchmarks.inputs", name, "--read", str(path)]
            subprocess.run(command, check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
