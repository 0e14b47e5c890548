"""
How fast is a fleet read, in each of its forms, and in how much memory?

One fleet of three kinds of rows is written in every form, and each is read in a process of its own::

    python -m benchmarks.inputs [--rows 1000000] [forms...]

*open* is the time until its first row is checked (a query is copied in it); *digest* what a journal needs to
know it again; *pass* one reading of every row, as the command line does before it sends, and once more while
it does. Seconds are of the processor. *memory* is the most that the process had resident, *of it* what it had
before it read: Python, its libraries, and the frame where it is one.
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

NAMES = ("account_id", "host", "port", "protocol", "username", "password", "country", "ip")
HEAD = f"{'form':12} {'open':>8} {'digest':>8} {'pass':>8} {'rows/s':>10} {'memory':>9} {'of it':>9}"


def rows(count: int) -> Iterator[tuple[Any, ...]]:
    """Half have a proxy of their own, a quarter one without a password, a quarter a country."""
    chance = random.Random(1)
    for number in range(count):
        account = f"acc_01{chance.getrandbits(80):020X}"
        host, port = f"p{chance.randrange(500)}.proxy.example.com", 8000 + number % 1000
        if number % 4 == 3:
            yield account, None, None, None, None, None, chance.choice(["US", "DE", "FR"]), None
        elif number % 4 == 2:
            yield account, host, port, "socks5", None, None, None, None
        else:
            yield account, host, port, "http", f"user{number}", f"{chance.getrandbits(60):x}", None, None


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

    kinds = [arrow.int32() if name == "port" else arrow.string() for name in NAMES]
    schema = arrow.schema(list(zip(NAMES, kinds, strict=True)))
    columns = list(zip(*rows(count), strict=True))
    table = arrow.table([list(column) for column in columns], schema=schema)
    arrow.parquet.write_table(table, path)  # one row group, up to its million rows: the worst there is


def write_sqlite(path: Path, count: int) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"CREATE TABLE fleet ({', '.join(NAMES)})")
        connection.executemany(f"INSERT INTO fleet VALUES ({', '.join('?' * len(NAMES))})", rows(count))


def open_pandas(path: Path) -> Fleet:
    import pandas

    frame = pandas.read_parquet(path)
    return settled(lambda: Fleet.of(frame))


def open_polars(path: Path) -> Fleet:
    import polars

    frame = polars.read_parquet(path)
    return settled(lambda: Fleet.of(frame))


FORMS: dict[str, tuple[str, Callable[[Path, int], None], Callable[[Path], Fleet]]] = {
    "csv": ("fleet.csv", write_csv, lambda path: settled(lambda: Fleet.open(path))),
    "jsonl": ("fleet.jsonl", write_json_lines, lambda path: settled(lambda: Fleet.open(path))),
    "parquet": ("fleet.parquet", write_parquet, lambda path: settled(lambda: Fleet.open(path))),
    "query": (
        "fleet.db",
        write_sqlite,
        lambda path: settled(lambda: Fleet.open_query(f"sqlite:///{path}", "SELECT * FROM fleet")),
    ),
    "pandas": ("fleet.parquet", write_parquet, open_pandas),
    "polars": ("fleet.parquet", write_parquet, open_polars),
}

MEASURED: dict[str, float] = {}


def settled(make: Callable[[], Fleet]) -> Fleet:
    """What *make* gives; the time and the memory before it are remembered."""
    MEASURED["before"] = memory()
    begin = time.process_time()
    fleet = make()
    MEASURED["open"] = time.process_time() - begin
    return fleet


def memory() -> float:
    """The most that was resident, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        1024 * 1024 if sys.platform == "darwin" else 1024
    )


def read(form: str, path: Path) -> None:
    """In a process of its own: a row of the table."""
    with FORMS[form][2](path) as fleet:
        begin = time.process_time()
        fleet.digest  # noqa: B018
        digest = time.process_time() - begin
        begin = time.process_time()
        survey = fleet.survey()
        one_pass = time.process_time() - begin
    assert not survey.refused, next(iter(survey.faults)).sentence()
    print(
        f"{form:12} {MEASURED['open']:6.2f} s {digest:6.2f} s {one_pass:6.2f} s "
        f"{survey.rows / one_pass:10,.0f} {memory():6.0f} MB {MEASURED['before']:6.0f} MB"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inputs", description="See the module.")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--read", metavar="FILE", type=Path, help=argparse.SUPPRESS)
    parser.add_argument(
        "forms", nargs="*", metavar="form", help=f"of {', '.join(FORMS)}; all where none is given"
    )
    given = parser.parse_args(arguments)
    if given.read is not None:
        read(given.forms[0], given.read)
        return 0
    libraries = ("postpress-async", "attrs", "pyarrow", "sqlalchemy", "pandas", "polars")
    print(
        f"Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in libraries)
    )
    print(f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores; {given.rows:,} rows")
    print(HEAD)
    with tempfile.TemporaryDirectory() as folder:
        for form in given.forms or FORMS:
            name, write, _ = FORMS[form]
            if not (path := Path(folder, name)).exists():
                with ProcessPoolExecutor(1, get_context("spawn")) as other:  # its memory is no reader's
                    other.submit(write, path, given.rows).result()
            command = [sys.executable, "-m", "benchmarks.inputs", form, "--read", str(path)]
            subprocess.run(command, check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
