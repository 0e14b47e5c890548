"""A dry run reports the errors of the real run, and does not write the journal."""

import errno
import json
import os
import re
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from postpress_async import _cli as cli
from postpress_async.rotation import State
from postpress_async.rotation.journal._database import LOG_NEEDED
from postpress_async.rotation.journal._file import JournalFile
from postpress_async.rotation.journal._input_check import RunRequest
from postpress_async.rotation.journal._preflight import read_progress
from tests.support import journals
from tests.support.command_line import JOURNAL, SANDBOX_KEY
from tests.support.journals import outcome

SANDBOX = ["--sandbox"]


@pytest.fixture
def folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new current folder with a fleet of ten accounts, and an API key in the environment."""
    monkeypatch.setenv("POSTPRESS_API_KEY", SANDBOX_KEY)
    write_fleet(folder, 10)
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> "Run":
    """Run the command in this process; return its exit code, standard output and standard error."""

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["postpress-async", *words])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.run()
        assert isinstance(ended.value.code, int)
        return ended.value.code, *capfd.readouterr()

    return run


Run = Callable[..., tuple[int, str, str]]


def write_fleet(folder: Path, count: int) -> None:
    rows = "".join(f"acc_{number},US\n" for number in range(count))
    (folder / "fleet.csv").write_text(f"account_id,country\n{rows}")


def files(folder: Path) -> dict[str, int]:
    """The size of each file in the folder."""
    return {path.name: path.lstat().st_size for path in folder.iterdir()}


def execute_sql(statement: str) -> None:
    """Change the journal, which is created if it is missing."""
    connection = sqlite3.connect(JOURNAL)
    with connection:
        connection.execute(statement)
    connection.close()


def of_another_input(folder: Path, run: Run) -> None:
    run("rotate", "fleet.csv", "--sandbox")
    write_fleet(folder, 11)


def of_a_newer_version(folder: Path, run: Run) -> None:
    run("rotate", "fleet.csv", "--sandbox")
    execute_sql("PRAGMA user_version = 3")


def damaged(folder: Path, run: Run) -> None:
    run("rotate", "fleet.csv", "--sandbox")
    execute_sql("DROP TABLE outcomes")


def locked(path: Path) -> JournalFile:
    """Lock the journal at *path*, which is created if it is missing, as a run does."""
    file = JournalFile.open(path, os.O_RDWR | os.O_CREAT)
    assert file.lock()
    return file


def with_two_hard_links(folder: Path, run: Run) -> None:
    run("rotate", "fleet.csv", "--sandbox")
    Path("another").hardlink_to(JOURNAL)


def without_its_log(folder: Path, run: Run) -> None:
    run("rotate", "fleet.csv", "--sandbox")
    execute_sql(f"INSERT INTO run VALUES ('{LOG_NEEDED}', 1)")


@pytest.mark.parametrize(
    ("make", "words", "code", "fact"),
    [
        pytest.param(of_another_input, SANDBOX, 2, "belongs to another input", id="another input's"),
        pytest.param(
            lambda _, run: run("rotate", "fleet.csv", "--sandbox"),
            ["--base-url", "https://127.0.0.1:1/v1"],
            2,
            "to a rotation for this machine, not for https://127.0.0.1:1/v1",
            id="another target's",
        ),
        pytest.param(lambda *_: locked(Path(JOURNAL)), SANDBOX, 3, "in use", id="another run's"),
        pytest.param(with_two_hard_links, SANDBOX, 2, "one of 2 names", id="two hard links"),
        pytest.param(without_its_log, SANDBOX, 2, "is incomplete", id="without its -wal"),
        pytest.param(of_a_newer_version, SANDBOX, 2, "from a newer", id="a newer version's"),
        pytest.param(
            lambda *_: execute_sql("CREATE TABLE t (x)"), SANDBOX, 2, "not a journal", id="another database"
        ),
        pytest.param(
            lambda *_: Path(JOURNAL).write_text("acc_1\n"), SANDBOX, 2, "not a database", id="a fleet"
        ),
        pytest.param(damaged, SANDBOX, 2, "is damaged", id="damaged"),
        pytest.param(lambda *_: Path(JOURNAL).symlink_to("x"), SANDBOX, 2, "is a symbolic link", id="a link"),
        pytest.param(lambda *_: Path(JOURNAL).mkdir(), SANDBOX, 3, "cannot be written", id="a folder"),
        pytest.param(
            lambda *_: None,
            [*SANDBOX, "--journal", "no/j"],
            2,
            "no is not a directory",
            id="no folder for it",
        ),
    ],
)
def test_dry_run_refuses_a_journal_with_the_error_of_the_real_run(
    folder, run, make, words, code, fact
) -> None:
    made = make(folder, run)
    before = files(folder)

    dry = run("rotate", "fleet.csv", *words, "--dry-run")
    after = files(folder)
    real = run("rotate", "fleet.csv", *words)

    assert fact in dry[2]
    assert dry == (code, "", dry[2]) == real
    assert after == before
    if isinstance(made, JournalFile):
        made.close()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows protects folders in another way")
def test_dry_run_reports_that_the_journal_cannot_be_created_in_a_read_only_folder(
    folder, run, monkeypatch
) -> None:
    monkeypatch.setattr("os.access", lambda _, mode: mode != os.W_OK)

    code, _, message = run("rotate", "fleet.csv", "--sandbox", "--dry-run")

    expected = (
        "cannot be written (Permission denied): name another journal, in a folder that you may write to"
    )
    assert (code, message) == (3, f"postpress-async: {JOURNAL} {expected}\n")


def test_error_for_a_journal_without_permissions_does_not_suggest_another_one(
    folder, run, monkeypatch
) -> None:
    """In another journal, no account would be completed, and all would be sent again."""
    run("rotate", "fleet.csv", "--sandbox")

    def refused(*_: object) -> JournalFile:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(JournalFile, "open", refused)

    assert run("rotate", "fleet.csv", "--sandbox")[2] == (
        f"postpress-async: {JOURNAL} cannot be written (Permission denied): "
        "correct its permissions or its disk, then run the same command again\n"
    )


def test_dry_run_writes_nothing_beside_the_journal_of_an_earlier_run(folder, run) -> None:
    """By default, SQLite creates two files when it reads a database in WAL mode."""
    run("rotate", "fleet.csv", "--sandbox", "--limit", "4")
    before = files(folder)

    code, output, _ = run("rotate", "fleet.csv", "--sandbox", "--dry-run")

    assert code == 0
    assert f"4 of them are completed in {JOURNAL}; 6 would be sent" in output
    assert files(folder) == before


def test_dry_run_describes_how_the_input_was_edited(folder, run) -> None:
    run("rotate", "fleet.csv", "--sandbox", "--limit", "4")
    write_fleet(folder, 13)
    appended = run("rotate", "fleet.csv", "--sandbox", "--dry-run")
    lines = (folder / "fleet.csv").read_text().splitlines(keepends=True)
    (folder / "fleet.csv").write_text("".join([lines[0], *lines[2:]]))
    removed = run("rotate", "fleet.csv", "--sandbox", "--dry-run", "--json")

    assert "the input was edited since the last run: 3 rows more\n" in appended[1]
    assert "4 of them are completed" in appended[1]
    fields = json.loads(removed[1])
    assert fields["input_edit"] == (
        "row 1 is another account: acc_1 instead of acc_0; 1 account removed; 3 rows more"
    )
    assert (fields["settled"], fields["to_send"]) == (3, 9)


def test_dry_run_with_on_unknown_report_does_not_count_accounts_that_a_killed_run_may_have_sent(
    folder, run
) -> None:
    """The real run does not send these accounts."""
    run("rotate", "fleet.csv", "--sandbox", "--limit", "4")
    execute_sql("DELETE FROM outcomes WHERE ordinal >= 4")
    execute_sql("UPDATE runs SET state = 'running'")
    execute_sql("INSERT OR REPLACE INTO run VALUES ('under way', 1.0), ('reached', 7), ('doubtful', 0)")

    _, report, _ = run("rotate", "fleet.csv", "--sandbox", "--dry-run", "--on-unknown", "report")
    _, retry, _ = run("rotate", "fleet.csv", "--sandbox", "--dry-run")
    _, sent, _ = run("rotate", "fleet.csv", "--sandbox", "--on-unknown", "report")

    assert f"7 of them are completed in {JOURNAL}; 3 would be sent" in report
    assert "PATCH the sandbox/accounts/acc_7 " in report
    assert "acc_6" not in report
    assert f"4 of them are completed in {JOURNAL}; 6 would be sent" in retry
    assert sent.startswith("10 accounts: 7 patched, 3 unknown")


def test_dry_run_of_retry_failed_counts_failed_accounts_as_sent(folder, run) -> None:
    run("rotate", "fleet.csv", "--sandbox")
    execute_sql("UPDATE outcomes SET state = 'failed' WHERE ordinal < 3")

    again = run("rotate", "fleet.csv", "--sandbox", "--dry-run")
    failed = run("retry-failed", JOURNAL, "fleet.csv", "--sandbox", "--dry-run")

    assert "10 of them are completed" in again[1]
    assert f"7 of them are completed in {JOURNAL}; 3 would be sent" in failed[1]


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: None, id="no journal"),
        pytest.param(lambda: Path(JOURNAL).touch(), id="an empty file"),
        pytest.param(
            lambda: execute_sql(f"PRAGMA application_id = {0x70705F6A}"), id="no tables after a full disk"
        ),
    ],
)
def test_dry_run_without_completed_accounts_does_not_mention_them(folder, run, make) -> None:
    make()
    before = files(folder)

    code, output, _ = run("rotate", "fleet.csv", "--sandbox", "--dry-run")

    assert code == 0
    assert "completed" not in output
    assert files(folder) == before


def test_dry_run_does_not_show_a_quarantined_proxy_until_the_list_is_edited(folder, run) -> None:
    """The real run does not use a quarantined proxy, but probes all proxies of an edited list at once."""
    (folder / "fleet.csv").write_text("account_id\nacc_0\nacc_1\n")
    (folder / "proxies.txt").write_text("p0.example:80\np1.example:80\n")
    words = ("rotate", "fleet.csv", "--pool", "proxies.txt", "--sandbox", "--every", "0s")
    run(*words)
    now = time.time()
    execute_sql(f"INSERT INTO proxies VALUES ('p0.example:80', 2, {now}, {now + 3600})")

    _, same_list, _ = run(*words, "--dry-run")
    (folder / "proxies.txt").write_text("p0.example:80:user:new\np0.example:80\np1.example:80\n")
    _, edited_list, _ = run(*words, "--dry-run")

    assert hosts(same_list) == ["p1.example", "p1.example"]
    assert "p0.example" in hosts(edited_list)
    assert run(*words)[0] == 0
    assert hosts(run(*words, "--dry-run")[1])[0] == "p0.example", "the run has ended the quarantine"


def hosts(output: str) -> list[str]:
    """The proxy hosts in the requests that a dry run shows."""
    return re.findall('"host": "([^"]+)"', output)


# --- The accounts that a run would not send ---


def test_row_in_doubt_is_done_unless_it_has_an_outcome_that_is_sent_again(tmp_path) -> None:
    """With on_unknown="report". A dead run may have sent rows 0 to 2."""
    path = journals.write(tmp_path / "j", [outcome(0), outcome(1, State.SKIPPED)], total=5)
    journals.execute_sql(path, "INSERT INTO run VALUES ('doubtful', 3)")

    progress = read_progress(path, RunRequest(total=5, on_unknown="report"))

    assert progress.done == 2
    assert progress.done_by_ordinal == bytes([1, 0, 1, 0, 0])


def test_rows_in_doubt_of_an_input_of_unknown_length_do_not_reduce_the_count(tmp_path) -> None:
    path = journals.write(tmp_path / "j", [outcome(0), outcome(1)], total=5)
    journals.execute_sql(path, "INSERT INTO run VALUES ('doubtful', 5)")

    assert read_progress(path, RunRequest(on_unknown="report")).done == 2


def test_run_that_was_killed_before_it_could_send_leaves_no_row_in_doubt(tmp_path) -> None:
    path = journals.write(tmp_path / "j", [outcome(0)], total=5)
    journals.execute_sql(path, "UPDATE runs SET state = 'running'")
    journals.execute_sql(path, "INSERT OR REPLACE INTO run VALUES ('reached', 64)")

    assert read_progress(path, RunRequest(total=5, on_unknown="report")).done == 1
