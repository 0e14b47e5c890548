"""Output of commands that an operator uses together: nightly runs, --on, and rollback."""

import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from postpress_async._cli import cli
from postpress_async.sandbox._thread import SandboxThread
from tests.support.command_line import JOURNAL

Command = Callable[..., Result]
NIGHTLY = ("rotate", "fleet.csv", "--pool", "old.txt", "--every", "20h")
MOVE = ("rotate", "fleet.csv", "--pool", "new.txt", "--on", "10.1.1.1")


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Command]:
    """Runs a command in a folder with a fleet of four accounts and two lists of two proxies each."""
    monkeypatch.chdir(tmp_path)
    Path("fleet.csv").write_text("account_id\n" + "".join(f"acc_{number}\n" for number in range(4)))
    Path("old.txt").write_text("10.1.1.1:3128\n10.1.1.2:3128\n")
    Path("new.txt").write_text("10.3.3.1:3128\n10.3.3.2:3128\n")
    with SandboxThread() as sandbox:
        monkeypatch.setenv("POSTPRESS_API_KEY", sandbox.api_key)
        monkeypatch.setenv("POSTPRESS_BASE_URL", sandbox.url)
        yield lambda *arguments: CliRunner().invoke(cli, arguments, standalone_mode=False)


def test_dry_run_before_the_next_run_is_due_shows_no_requests_for_new_accounts(command: Command) -> None:
    command(*NIGHTLY)
    with Path("fleet.csv").open("a") as fleet:
        fleet.write("acc_new\n")

    text = command(*NIGHTLY, "--dry-run").stdout
    event = json.loads(command(*NIGHTLY, "--dry-run", "--json").stdout.splitlines()[-1])

    assert "; 0 would be sent" in text
    assert "the next run is due at " in text
    assert "PATCH" not in text
    assert (event["to_send"], event["requests"]) == (0, [])


def test_command_that_is_not_due_shows_no_counts_of_the_latest_run(command: Command) -> None:
    """The latest run was a run of some accounts (--on), so its counts would be misleading."""
    command(*NIGHTLY)
    command(*MOVE)

    done = command(*NIGHTLY)

    assert "the next is due at" in done.stdout
    assert " of 4" not in done.output
    assert done.return_value == 0


def test_status_names_the_selection_of_the_latest_run(command: Command) -> None:
    command(*NIGHTLY)
    assert json.loads(command("status", JOURNAL, "--json").stdout)["selection"] is None
    command(*MOVE)

    lines = command("status", JOURNAL).stdout.splitlines()

    assert lines[1:3] == ["  accounts on 10.1.1.1", "  2 of 2 completed (100.0%)"]
    assert json.loads(command("status", JOURNAL, "--json").stdout)["selection"] == "accounts on 10.1.1.1"


def test_rollback_that_no_account_can_make_does_not_suggest_skip_bad(command: Command) -> None:
    command(*NIGHTLY)
    command(*MOVE)

    done = command("rollback", JOURNAL, "--to", "1", "--pool", "new.txt")

    assert done.return_value == 2
    assert done.stderr.splitlines()[-1] == "nothing was sent: 2 accounts cannot go back"


@pytest.mark.parametrize(
    "arguments",
    [
        ("export", "my runs.sqlite3", "--run", "9"),
        ("rollback", "my runs.sqlite3", "--to", "9", "--pool", "old.txt"),
        (*MOVE[:-1], "10.9.9.9", "--journal", "my runs.sqlite3"),
    ],
    ids=["export", "rollback", "--on"],
)
def test_suggested_command_quotes_a_path_with_a_space(command: Command, arguments: tuple[str, ...]) -> None:
    command(*NIGHTLY, "--journal", "my runs.sqlite3")

    refused = command(*arguments)

    suggestion = str(refused.exception).split("`")[1]
    assert command(*shlex.split(suggestion)[1:]).exit_code == 0
