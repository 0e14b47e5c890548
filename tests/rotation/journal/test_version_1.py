"""Journals of version 1, which hold one run each, are read, migrated and resumed."""

import csv
import hashlib
import io
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest
from click.testing import CliRunner

from postpress_async import AccountPatched
from postpress_async._cli import cli
from postpress_async.errors import JournalError
from postpress_async.models import Attempt, ProxyChange
from postpress_async.rotation import Fleet, Halt, ProxyPool, Rotation, RotationSummary
from postpress_async.rotation._account_task import AccountTask
from postpress_async.rotation._input import RotationInput
from postpress_async.rotation._row_keys import RowKeys
from postpress_async.rotation._selection import Selection
from postpress_async.rotation.journal import Journal
from postpress_async.rotation.journal._database import APPLICATION_ID
from postpress_async.rotation.journal._schema import MIGRATION
from tests.support import DATA
from tests.support.command_line import JOURNAL
from tests.support.journals import crash_copy

ACCOUNTS: Final = [f"acc_{number:02}" for number in range(12)]
STATES: Final = {
    "finished": {"patched": 11, "failed": 1},
    "halted": {"patched": 2, "failed": 4, "skipped": 6},
    "killed": {"patched": 4},  # another six were in flight
}
HISTORY: Final = {"finished": "complete", "halted": "halted", "killed": "killed"}
TOKEN_OF_KILLED: Final = "403101b29418bfad62b5ba0c"
SCRYPT: Final = hashlib.scrypt


@pytest.fixture(autouse=True)
def _hashes_as_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the real scrypt, as the stored journals did, instead of the fast one of `tests.conftest`."""
    monkeypatch.setattr(hashlib, "scrypt", SCRYPT)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Write a fleet, a proxy list and the journal *name* to a new current folder; return the path."""
    monkeypatch.chdir(tmp_path)
    rows = (f"{account},{'' if number % 3 else 'US'}\n" for number, account in enumerate(ACCOUNTS))
    Path("fleet.csv").write_text("account_id,country\n" + "".join(rows))
    Path("proxies.txt").write_text(
        "".join(f"p{number}.example.net:8080:user{number}:hunter2-{number}\n" for number in range(4))
    )

    def make(name: str) -> Path:
        with closing(sqlite3.connect(JOURNAL)) as connection:
            connection.executescript((DATA / f"journal-v1-{name}.sql").read_text())
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute("PRAGMA user_version = 1")
            connection.execute("PRAGMA journal_mode = WAL")
        path = tmp_path / JOURNAL
        path.chmod(0o600)
        return path

    return make


def command(*words: str) -> str:
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
    return result.stdout


async def rotate(path: Path, **options: Any) -> tuple[RotationSummary, dict[str, str]]:
    """Rotate with the journal; return the summary, and the idempotency key of each account that was sent."""
    keys: dict[str, str] = {}

    async def update(
        account_id: str, change: ProxyChange, row_keys: RowKeys, hooks: AccountTask, /
    ) -> AccountPatched:
        keys[account_id] = row_keys.current
        return AccountPatched(account_id, (Attempt(1, 0.0, 0.0, status=200),))

    pool = ProxyPool.read("proxies.txt")
    with Fleet.open("fleet.csv", pooled=True) as fleet:
        changes = RotationInput.of(fleet, pooled=True).only(Selection.of(options.pop("on", ())))
        options = {"on_unknown": "retry", "on_failed": "report", **options}
        opener = changes.journal_opener(path, target="this machine", pools={None: pool}, **options)
        halt = Halt(failures="never")
        rotation = Rotation(
            update, changes.rows, in_flight=3, journal=opener, finite=True, total=12, halt=halt, pool=pool
        )
        async with rotation:
            return await rotation.run(), keys


def version(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])


@pytest.mark.parametrize("name", STATES)
def test_commands_that_read_a_journal_do_not_migrate_it(make, name) -> None:
    path = make(name)
    before = path.read_bytes()

    status = json.loads(command("status", JOURNAL, "--json"))
    exported = list(csv.DictReader(io.StringIO(command("export", JOURNAL))))
    [run] = [json.loads(line) for line in command("history", JOURNAL, "--json").splitlines()]
    account = command("history", JOURNAL, "acc_01")
    assignments = command("export", JOURNAL, "--assignments")
    report = command("report", JOURNAL, "--run", "1", "-o", "-")

    assert {state: count for state, count in status["states"].items() if count} == STATES[name]
    assert len(exported) == sum(STATES[name].values())
    assert (run["state"], run["total"]) == (HISTORY[name], 12)
    assert {state: count for state, count in run["states"].items() if count} == STATES[name]
    assert "patched, user" in account
    assert '"acc_01","user' in assignments
    assert "acc_0" in report
    assert path.read_bytes() == before
    assert version(path) == 1


async def test_killed_run_is_resumed_under_its_idempotency_keys(make) -> None:
    path = make("killed")
    status = json.loads(command("status", JOURNAL, "--json"))

    summary, keys = await rotate(path)

    assert status["maybe_sent"] == 8  # all accounts without an outcome
    assert keys == {account: f"{TOKEN_OF_KILLED}-{n:x}-0" for n, account in enumerate(ACCOUNTS) if n >= 4} | {
        account: f"{TOKEN_OF_KILLED}-{n:x}-1" for n, account in enumerate(ACCOUNTS) if n >= 4 and n % 3
    }
    assert (summary.patched, summary.resumed) == (12, 4)
    assert version(path) == 2
    [run] = [json.loads(line) for line in command("history", JOURNAL, "--json").splitlines()]
    assert (run["number"], run["state"], run["states"]) == (1, "complete", {"patched": 12})


async def test_halted_run_is_resumed_and_its_failed_accounts_can_be_retried(make) -> None:
    path = make("halted")

    summary, keys = await rotate(path)

    assert sorted(keys) == ACCOUNTS[6:]
    assert summary.states == {"patched": 8, "failed": 4}
    _, keys = await rotate(path, on_failed="retry")
    assert sorted(keys) == ACCOUNTS[2:6]
    assert {key.rpartition("-")[2] for key in keys.values()} == {"1"}


async def test_finished_run_is_left_alone_until_a_new_one_is_due(make) -> None:
    path = make("finished")

    _, keys_of_first_command = await rotate(path)
    summary, keys = await rotate(path, every=0.0)

    assert keys_of_first_command == {}
    assert (sorted(keys), summary.patched) == (ACCOUNTS, 12)
    first, second = (json.loads(line) for line in command("history", JOURNAL, "--json").splitlines())
    assert first["states"] == STATES["finished"]
    assert second["states"] == {"patched": 12}
    assert command("history", JOURNAL, "acc_05").count("\n") == 2


async def test_accounts_on_a_proxy_are_selected_by_the_assignments_of_version_1(make) -> None:
    path = make("finished")
    lines = csv.reader(io.StringIO(command("export", JOURNAL, "--assignments")))
    on_proxy = [account for account, assignment, *_ in lines if "@p1.example.net:" in assignment]

    _, keys = await rotate(path, on=["p1.example.net"])

    assert 0 < len(on_proxy) < len(ACCOUNTS)
    assert sorted(keys) == on_proxy
    assert version(path) == 2
    _, second = (json.loads(line) for line in command("history", JOURNAL, "--json").splitlines())
    assert (second["selection"], second["states"]) == (
        "accounts on p1.example.net",
        {"patched": len(on_proxy)},
    )


async def test_killed_run_must_be_finished_before_selected_accounts_are_sent(make) -> None:
    path = make("killed")

    with pytest.raises(JournalError, match="unfinished run"):
        await rotate(path, on=["p1.example.net"])


def statements() -> list[str]:
    """The statements of the migration."""
    complete, statement = [], ""
    for part in MIGRATION.split(";"):
        statement += f"{part};"
        if part.strip() and sqlite3.complete_statement(statement):
            complete.append(statement)
            statement = ""
    return complete


@pytest.mark.parametrize("count", range(1, len(statements())))
async def test_migration_that_stops_after_any_statement_leaves_version_1(make, monkeypatch, count) -> None:
    """The original is the journal after an error; the copy is the journal after a kill."""
    path, copies = make("killed"), []

    class FullDisk(sqlite3.Connection):
        def executescript(self, sql_script: str, /) -> sqlite3.Cursor:
            for statement in statements()[:count]:
                self.execute(statement)
            copies.append(crash_copy(path))
            raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patched:
        connect = sqlite3.connect
        patched.setattr(
            sqlite3, "connect", lambda *names, **options: connect(*names, **options, factory=FullDisk)
        )
        with pytest.raises(Exception, match="disk is full"):
            Journal(path)

    for journal in (path, *copies):
        assert version(journal) == 1
        _, keys = await rotate(journal)
        assert sorted(keys) == ACCOUNTS[4:]
    assert len(copies) == 1


async def test_accounts_are_in_doubt_if_the_log_was_lost_before_the_migration(make) -> None:
    """The migration writes a new -wal, so the journal must be checked before."""
    path = make("halted")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("INSERT INTO run VALUES ('log needed', 1)")
    assert not path.with_name(f"{path.name}-wal").exists()
    path.with_name(f"{path.name}-wal").touch()  # the operator confirms that it is lost for good

    journal = Journal(path)
    in_doubt = journal.in_doubt_below
    await journal.aclose()

    assert in_doubt == float("inf")
