"""What the commands say during a week in which an operator rotates, leaves a subnet, and goes back."""

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
NIGHT = ("rotate", "fleet.csv", "--pool", "old.txt", "--every", "20h")
MOVE = ("rotate", "fleet.csv", "--pool", "new.txt", "--on", "10.1.1.1")


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Command]:
    """Runs a command in a folder with a fleet of four accounts and two lists of two proxies."""
    monkeypatch.chdir(tmp_path)
    Path("fleet.csv").write_text("account_id\n" + "".join(f"acc_{number}\n" for number in range(4)))
    Path("old.txt").write_text("10.1.1.1:3128\n10.1.1.2:3128\n")
    Path("new.txt").write_text("10.3.3.1:3128\n10.3.3.2:3128\n")
    with SandboxThread() as sandbox:
        monkeypatch.setenv("POSTPRESS_API_KEY", sandbox.api_key)
        monkeypatch.setenv("POSTPRESS_BASE_URL", sandbox.url)
        yield lambda *words: CliRunner().invoke(cli, words, standalone_mode=False)


def test_a_dry_run_before_the_next_run_is_due_shows_no_requests(command: Command) -> None:
    command(*NIGHT)
    with Path("fleet.csv").open("a") as fleet:
        fleet.write("acc_new\n")

    text, result = command(*NIGHT, "--dry-run").stdout, command(*NIGHT, "--dry-run", "--json").stdout

    assert "; 0 would be sent" in text
    assert "the next run is due at " in text
    assert "PATCH" not in text
    event = json.loads(result.splitlines()[-1])
    assert (event["to_send"], event["requests"]) == (0, [])


def test_a_start_that_is_not_due_shows_no_counts_of_a_run_of_some_accounts(command: Command) -> None:
    command(*NIGHT)
    command(*MOVE)

    done = command(*NIGHT)

    assert "the next is due at" in done.stdout
    assert " of 4" not in done.output
    assert done.return_value == 0


def test_status_names_the_accounts_of_the_latest_run(command: Command) -> None:
    command(*NIGHT)
    assert json.loads(command("status", JOURNAL, "--json").stdout)["selection"] is None
    command(*MOVE)

    lines = command("status", JOURNAL).stdout.splitlines()

    assert lines[1:3] == ["  accounts on 10.1.1.1", "  2 of 2 completed (100.0%)"]
    assert json.loads(command("status", JOURNAL, "--json").stdout)["selection"] == "accounts on 10.1.1.1"


def test_a_rollback_of_no_account_does_not_advise_to_send_the_others(command: Command) -> None:
    command(*NIGHT)
    command(*MOVE)

    done = command("rollback", JOURNAL, "--to", "1", "--pool", "new.txt")

    assert done.return_value == 2
    assert done.stderr.splitlines()[-1] == "nothing was sent: 2 accounts cannot go back"


@pytest.mark.parametrize(
    "words",
    [
        ("export", "my runs.sqlite3", "--run", "9"),
        ("rollback", "my runs.sqlite3", "--to", "9", "--pool", "old.txt"),
        (*MOVE[:-1], "10.9.9.9", "--journal", "my runs.sqlite3"),
    ],
    ids=["export", "rollback", "--on"],
)
def test_a_hint_can_be_pasted_if_the_path_has_a_space(command: Command, words: tuple[str, ...]) -> None:
    command(*NIGHT, "--journal", "my runs.sqlite3")

    refused = command(*words)

    hint = str(refused.exception).split("`")[1]
    assert command(*shlex.split(hint)[1:]).exit_code == 0
