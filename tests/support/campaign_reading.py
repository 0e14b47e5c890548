"""What the readers of a journal say of it: its tables, `status`, `export` and `history`."""

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
    """What a reader says of one account."""

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
    What the three readers say of a journal.

    Attributes:
        table: By ordinal, the rows of the table.
        export: The rows of `export`.
        status: The object of `status --json`.
        may_be_sent: The ordinal before which an account without a row may have been sent by a run that died.
        runs: The columns of each run by its number.
        outcomes: The rows of each run by its number.
        history: The objects of `history --json`.
        assignments: The objects of `export --assignments`.
        error: Why there is no journal that could be read; the rest is empty then.
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
        """Number of the latest run; 0 for none."""
        return max(self.runs, default=0)


def read(journal: Path) -> Reading:
    """The table of a copy, and the two commands on the journal itself."""
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


def _command(*words: str) -> Any:
    return CliRunner().invoke(cli, words, standalone_mode=False)


def _record(row: dict[str, Any]) -> Record:
    names = "account_id state attempts status error_type scope applied proxy".split()
    return Record(*[row[name] for name in names])


# The assignment of a row without a proxy of the pool is of another form, and the export has no label for it.
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
                notes = dict(tuple(row) for row in connection.execute("SELECT name, value FROM run"))
                rows = [dict(row) for row in connection.execute(_LATEST)]
                runs = {row["id"]: dict(row) for row in connection.execute("SELECT * FROM runs")}
                outcomes = {
                    run: [tuple(row) for row in connection.execute(_OUTCOMES, (run,))] for run in runs
                }
            except sqlite3.OperationalError:  # its disk was full before there was a table
                return Reading()
    may_be_sent = max(notes.get("doubtful", 0), notes["reached"] if "under way" in notes else 0)
    table = {row["ordinal"]: _record(row) for row in rows}
    return Reading(table=table, may_be_sent=int(may_be_sent), runs=runs, outcomes=outcomes)


def copy_journal(journal: Path, copy: Path) -> None:
    """The files as they lie there, as a killed process leaves them."""
    for end in ("", "-wal"):
        if (file := journal.with_name(journal.name + end)).exists():
            shutil.copyfile(file, copy.with_name(copy.name + end))
