"""
How much time and memory do the commands need that read a journal of many runs?

This benchmark writes a fleet and a journal with ten runs of the fleet, and runs each command in a process of
its own::

    python -m benchmarks.history [--accounts 1000000] [--runs 10] [--folder DIR]

*seconds* is the elapsed time, which depends on what else the machine does; *cpu* is the CPU time of the
process. *resume* is the command `rotate` after a run that was killed half-way, until it sends its first
request. With ``--folder``, the files are kept and used again.
"""

import argparse
import os
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from attrs import evolve

from postpress_async.errors import Applied
from postpress_async.rotation import Fleet, Outcome, State
from postpress_async.rotation._fleet import reader_of
from postpress_async.rotation.journal import Journal, row_of
from postpress_async.rotation.journal._schema import OUTCOME_COLUMNS
from tests.support.journals import patched_outcome

FIRST_DAY: Final = 1_795_226_400.0  # 2026-11-21
DAY: Final = 86_400.0
INSERT: Final = f"INSERT INTO outcomes ({OUTCOME_COLUMNS.replace(' ', ', ')}, run) VALUES ({'?, ' * 13}?)"
RUN: Final = "INSERT OR REPLACE INTO runs (id, token, began, ended, state, total) VALUES (?, ?, ?, ?, ?, ?)"
COMMANDS: Final = ("history", "history ACCOUNT", "status", "export --assignments", "resume")


def account_id(number: int) -> str:
    """Return an id as long as those of the API. The ids are not sorted."""
    # The multiplication by 2^64 divided by the golden ratio spreads the numbers.
    return f"acc_01{number * 0x9E3779B97F4A7C15 % 2**80:020X}"


def outcomes(accounts: int, run: int) -> Iterator[Outcome]:
    """Yield the outcomes of a run. One in a hundred failed, and one in a thousand is in doubt."""
    patched = patched_outcome(0, 2, "", 1, 0.25)
    for number in range(accounts):
        now = FIRST_DAY + run * DAY + number / 1_000
        label = f"user{number % 500}@p{(number + run) % 500}.example.net:8080"
        outcome = evolve(
            patched,
            ordinal=number,
            line=number + 2,
            account_id=account_id(number),
            settled_at=now,
            assignment=label,
        )
        if number % 100 == run:
            outcome = evolve(outcome, state=State.FAILED, status=404, error_type="errors/resource_not_found")
        elif number % 1_000 == 50 + run:
            outcome = evolve(outcome, state=State.UNKNOWN, applied=Applied.UNKNOWN, status=504)
        yield outcome


def write(folder: Path, accounts: int, runs: int) -> None:
    """Write a fleet and the journal of its runs. The last run was killed half-way."""
    fleet, path = folder / "fleet.csv", folder / "fleet.csv.rotation.sqlite3"
    with fleet.open("w") as file:
        file.write("account_id,country\n")
        file.writelines(f"{account_id(number)},US\n" for number in range(accounts))
    with Fleet.open(fleet) as opened:
        opened.survey()
        journal = Journal(path, digest=reader_of(opened).digest, rows=reader_of(opened), total=accounts)
    journal._writer.close()  # close the files without ending the run, as if it had been killed
    journal._reader.close()
    journal._lock.close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA synchronous = OFF")
    with connection:
        fleet_identity = connection.execute("SELECT input, rows FROM runs").fetchone()
        for run in range(1, runs + 1):
            is_last = run == runs
            began = FIRST_DAY + run * DAY
            values = (
                run,
                f"token-{run}",
                began,
                began + 3_600,
                "running" if is_last else "complete",
                accounts,
            )
            connection.execute(RUN, values)
            rows = outcomes(accounts // 2 if is_last else accounts, run)
            connection.executemany(INSERT, ((*row_of(outcome), run) for outcome in rows))
        connection.execute("UPDATE runs SET input = ?, rows = ?", fleet_identity)
        # The watermark is a little ahead of the last recorded account, as in a run that is killed.
        connection.execute("INSERT OR REPLACE INTO run VALUES ('reached', ?)", (accounts // 2 + 96,))
    connection.close()


def measure(folder: Path, command: str) -> tuple[float, float, float]:
    """Return the elapsed seconds, CPU seconds and megabytes of *command*."""
    journal = "fleet.csv.rotation.sqlite3"
    words = [*command.split()[:1], journal, *command.split()[1:]]
    words = [account_id(123) if word == "ACCOUNT" else word for word in words]
    with socket.create_server(("127.0.0.1", 0)) as server:
        environment = {**os.environ, "POSTPRESS_API_KEY": "pp_test_benchmark"}
        if command == "resume":
            words = ["rotate", "fleet.csv"]
            environment["POSTPRESS_BASE_URL"] = f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "postpress_async", *words],
            cwd=folder,
            env=environment,
            stdout=subprocess.DEVNULL,
        )
        if command == "resume":
            server.accept()[0].recv(1)
            seconds = time.monotonic() - started
            process.kill()
            _, _, usage = os.wait4(process.pid, 0)
        else:
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.monotonic() - started
            if status:
                raise SystemExit(f"{command} failed with status {status}")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> None:
    """Measure, and print a line for each command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.history", description=__doc__)
    parser.add_argument("--accounts", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("commands", nargs="*", default=COMMANDS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "fleet.csv").exists():
            folder.mkdir(exist_ok=True)
            write(folder, options.accounts, options.runs)
        print(f"{'command':22} {'seconds':>8} {'cpu':>8} {'memory':>9}")
        for command in options.commands:
            seconds, cpu, memory = measure(folder, command)
            print(f"{command:22} {seconds:6.1f} s {cpu:6.1f} s {memory:6.0f} MB", flush=True)


if __name__ == "__main__":
    main()
