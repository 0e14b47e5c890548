"""Writes journals directly, without a rotation, and copies them as a kill would leave them."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from postpress_async import Outcome
from postpress_async.errors import Applied, Scope
from postpress_async.rotation import State
from postpress_async.rotation.journal import OUTCOME, Journal, row_of
from postpress_async.rotation.journal._database import connect, set_fact
from postpress_async.sandbox import Record

NIGHT = 1_795_215_600.0
"""Unix time of the first `outcome`: 2026-11-20 23:00:00 UTC."""


def crash_copy(journal: Path) -> Path:
    """Copy the journal as it would be on disk if the process were killed now."""
    copy = journal.with_name("killed.sqlite3")
    for end in ("", "-wal"):
        copy.with_name(copy.name + end).write_bytes(journal.with_name(journal.name + end).read_bytes())
    return copy


async def crash_copy_after(task: asyncio.Task[Any], record: Record, accounts: int, journal: Path) -> Path:
    """Make a `crash_copy` once *task* has patched this number of accounts, then cancel the task."""
    while len(record.patched_accounts) < accounts:
        await asyncio.sleep(0)
    copy = crash_copy(journal)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return copy


def outcome(ordinal: int, state: State = State.PATCHED, **other: object) -> Outcome:
    """The outcome of account number *ordinal*, a tenth of a second after the previous account's."""
    facts: dict[str, object] = {"attempts": 1, "status": 200, "elapsed": 0.25}
    facts |= {"account_id": f"acc_{ordinal:06}", "settled_at": NIGHT + ordinal / 10}
    if state is State.FAILED:
        facts |= {"status": 404, "error_type": "errors/resource_not_found", "scope": Scope.ACCOUNT}
        facts |= {"applied": Applied.NO, "instance": f"req_{ordinal}"}
    elif state is State.UNKNOWN:
        facts |= {"status": 504, "error_type": "errors/request_timeout", "scope": Scope.SERVICE}
        facts |= {"applied": Applied.UNKNOWN, "instance": f"req_{ordinal}"}
    elif state is State.SKIPPED:
        facts |= {"attempts": 0, "status": None, "elapsed": 0.0, "applied": Applied.NO}
    return Outcome(ordinal, ordinal + 2, state=state, **(facts | other))  # type: ignore[arg-type]


def patched_outcome(
    ordinal: int,
    line: int | None,
    account_id: str,
    attempts: int,
    elapsed: float,
    assignment: str | None = None,
) -> Outcome:
    """The outcome of an account that has its new proxy."""
    return Outcome(
        ordinal, line, account_id, State.PATCHED, attempts, 200, elapsed=elapsed, assignment=assignment
    )


def refused(ordinal: int) -> Outcome:
    """The outcome of an account with an invalid row."""
    return outcome(ordinal, State.SKIPPED, error_type="port out of range", scope=Scope.REQUEST)


def recorded_states(journal: Journal) -> dict[str, int]:
    """The number of accounts by state in the latest run."""
    return dict(journal._reader.ask("SELECT state, count(*) FROM latest GROUP BY state"))


def write(path: Path, outcomes: Iterable[Outcome], **facts: object) -> Path:
    """Write the journal of a run that ended. *facts* are columns of ``runs`` or marks in ``run``."""
    connection, _ = connect(path)
    with connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.executemany(OUTCOME.sql[1], ((*row_of(outcome), 1) for outcome in outcomes))
        columns = {row[1] for row in connection.execute("PRAGMA table_info(runs)")}
        for name, value in facts.items():
            if name in columns:
                connection.execute(set_fact(name), (value,))
            else:
                connection.execute("INSERT OR REPLACE INTO run VALUES (?, ?)", (name, value))
    connection.close()
    path.chmod(0o600)
    return path


def execute_sql(path: Path, statement: str, *values: object) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(statement, values)
    connection.close()


_PROGRAM = """
import asyncio, os, sys
from postpress_async.rotation.journal import Journal
from postpress_async.rotation import Outcome, State

async def main():
    journal = Journal(sys.argv[1])
    for ordinal in range(20):
        journal.record(Outcome(ordinal, ordinal + 2, f"acc_{ordinal}", State.PATCHED, 1, 200, elapsed=0.1))
    await journal.record_generation(0, 1)
    print("written", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


class RunProcess:
    """A process that has recorded twenty accounts, and keeps the journal open until it is killed."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(path)], stdout=subprocess.PIPE, env={**os.environ}
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"written\n"

    def kill(self) -> None:
        """Kill the process with SIGKILL, which it cannot handle."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.communicate()

    def __enter__(self) -> "RunProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
