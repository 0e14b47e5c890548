"""Reads a journal in several ways: its tables, and the commands `status`, `export` and `history`."""

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from attrs import evolve, field, frozen
from click.testing import CliRunner

from postpress_async._cli import cli


@frozen
class Record:
    """One account, as read from the table or from `export`."""

    account_id: str
    state: str
    attempts: int
    status: int | None
    error_type: str | None
    scope: str | None
    applied: str | None
    proxy: str | None


@frozen
class Reading:
    """
    A journal as all its readers show it.

    Attributes:
        table: The latest run's rows of the table, by ordinal.
        export: The rows of `export`.
        status: The object of `status --json`.
        may_be_sent: The ordinal below which a run that died may have sent accounts without a row.
        runs: The columns of each run, by its number.
        outcomes: The rows of each run, by its number.
        history: The objects of `history --json`.
        assignments: The objects of `export --assignments`.
        error: Why the commands could not read the journal; then they are missing here.
    """

    table: dict[int, Record] = field(factory=dict)
    export: tuple[Record, ...] = ()
    status: dict[str, Any] = field(factory=dict)
    may_be_sent: int = 0
    runs: dict[int, dict[str, Any]] = field(factory=dict)
    outcomes: dict[int, list[tuple[Any, ...]]] = field(factory=dict)
    history: tuple[dict[str, Any], ...] = ()
    assignments: tuple[dict[str, Any], ...] = ()
    error: str | None = None

    @property
    def latest(self) -> int:
        """Number of the latest run; 0 without any run."""
        return max(self.runs, default=0)


def read(journal: Path) -> Reading:
    """Read the tables from a copy, and run the commands on the journal itself."""
    status = _command("status", str(journal), "--json")
    export = _command("export", str(journal), "--format", "jsonl")
    if status.exit_code or export.exit_code:
        codes = f"status exits {status.exit_code} and export {export.exit_code}"
        return evolve(_table(journal), error=f"{codes}: {status.exception or export.exception}")
    rows = tuple(_record({**line, "proxy": line["proxy_label"]}) for line in _objects(export.stdout))
    history = _objects(_command("history", str(journal), "--json").stdout)
    assignments = _objects(_command("export", str(journal), "--format", "jsonl", "--assignments").stdout)
    return evolve(
        _table(journal),
        export=rows,
        status=json.loads(status.stdout),
        history=history,
        assignments=assignments,
    )


def _objects(lines: str) -> tuple[dict[str, Any], ...]:
    return tuple(json.loads(line) for line in lines.splitlines())


def _command(*args: str) -> Any:
    return CliRunner().invoke(cli, args, standalone_mode=False)


def _record(row: dict[str, Any]) -> Record:
    names = "account_id state attempts status error_type scope applied proxy".split()
    return Record(*[row[name] for name in names])


# `export` has a proxy label only for a proxy of a pool. Other assignments contain a space.
_LATEST = """
    SELECT *, CASE WHEN instr(assignment, ' ') THEN NULL ELSE assignment END AS proxy FROM latest
"""
_OUTCOMES = "SELECT * FROM outcomes WHERE run = ? ORDER BY ordinal"


def _table(journal: Path) -> Reading:
    with TemporaryDirectory() as folder:
        copy = Path(folder, "copy.sqlite3")
        copy_journal(journal, copy)
        with closing(sqlite3.connect(copy)) as connection:
            connection.row_factory = sqlite3.Row
            try:
                marks = dict(tuple(row) for row in connection.execute("SELECT name, value FROM run"))
                rows = [dict(row) for row in connection.execute(_LATEST)]
                runs = {row["id"]: dict(row) for row in connection.execute("SELECT * FROM runs")}
                outcomes = {
                    run: [tuple(row) for row in connection.execute(_OUTCOMES, (run,))] for run in runs
                }
            except sqlite3.OperationalError:  # the disk was full before the tables were created
                return Reading()
    may_be_sent = max(marks.get("doubtful", 0), marks["reached"] if "under way" in marks else 0)
    table = {row["ordinal"]: _record(row) for row in rows}
    return Reading(table=table, may_be_sent=int(may_be_sent), runs=runs, outcomes=outcomes)


def copy_journal(journal: Path, copy: Path) -> None:
    """Copy the database and its -wal as they are on disk, as a kill would leave them."""
    for end in ("", "-wal"):
        if (file := journal.with_name(journal.name + end)).exists():
            shutil.copyfile(file, copy.with_name(copy.name + end))
