"""The commands that read a journal: `status`, `export` and `report`."""

import csv
import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from postpress_async.rotation import State
from tests.support import ROOT
from tests.support.command_line import JOURNAL, run
from tests.support.journals import NIGHT, RunProcess, outcome, write

pytestmark = pytest.mark.slow

README = ROOT / "README.md"


@pytest.fixture
def journal(folder: Path) -> Path:
    """A run of 100 accounts: 90 patched, 9 failed, 1 unknown."""
    states = [State.PATCHED] * 90 + [State.FAILED] * 9 + [State.UNKNOWN]
    return write(
        folder / JOURNAL, (outcome(n, state) for n, state in enumerate(states)), total=100, began=NIGHT
    )


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux allows any bytes in file names")
def test_files_whose_names_are_not_utf8_can_be_used(folder) -> None:
    """The journal records the command, with the names of its files."""
    fleet, journal = (os.fsdecode(name) for name in (b"f\xff.csv", b"j\xff.sqlite3"))
    (folder / fleet).write_text("account_id,country\nacc_sandbox_000001,US\n")

    done = run("rotate", fleet, "--sandbox", "--journal", journal, errors="replace")
    report = run("report", journal, "-o", "report.html", errors="replace")
    history = run("history", journal, errors="replace")

    assert (done.returncode, report.returncode) == (0, 0), done.stderr + report.stderr
    assert r"j\udcff.sqlite3" in (folder / "report.html").read_text("utf-8")
    assert r"f\udcff.csv" in history.stdout


# --- status ---


def test_status_shows_progress_errors_and_the_next_step(journal) -> None:
    done = run("status", JOURNAL, env={"TZ": "UTC"})

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "fleet.csv.rotation.sqlite3: the run has ended\n"
        "  100 of 100 completed (100.0%)\n"
        "  90 patched, 9 failed, 1 unknown\n"
        "  the last account was completed at 2026-11-20 23:00:09 UTC\n"
        "\n"
        "    accounts  scope    error\n"
        "           9  account  errors/resource_not_found\n"
        "           1  service  errors/request_timeout\n"
        "\n"
        "next: start the same rotation again: it sends the accounts that are unknown\n"
    )


def test_status_without_completed_accounts_shows_no_completion_time(folder) -> None:
    """Skipped accounts, such as accounts that got no connection to the API, are not completed."""
    no_connection = {"attempts": 1, "error_type": "ConnectError", "scope": "service"}
    write(
        folder / JOURNAL, (outcome(n, State.SKIPPED, **no_connection) for n in range(3)), total=3, began=NIGHT
    )

    done = run("status", JOURNAL)
    status = json.loads(run("status", JOURNAL, "--json").stdout)

    assert "0 of 3 completed (0.0%)" in done.stdout
    assert "completed at" not in done.stdout
    assert (status["first_settled_at"], status["last_settled_at"]) == (None, None)


def test_status_as_json(journal) -> None:
    done = run("status", JOURNAL, "--json")

    status: dict[str, Any] = json.loads(done.stdout)
    assert status.pop("errors")[0] == {"type": "errors/resource_not_found", "scope": "account", "accounts": 9}
    assert status.pop("next").startswith("start the same rotation again")
    assert status == {
        "journal": JOURNAL,
        "run": "ended",
        "halted": None,
        "selection": None,
        "total": 100,
        "settled": 100,
        "maybe_sent": 0,
        "states": {"patched": 90, "failed": 9, "unknown": 1, "skipped": 0},
        "more_errors": 0,
        "rate": 10.101,
        "seconds_left": None,
        "began": "2026-11-20T23:00:00.000Z",
        "first_settled_at": "2026-11-20T23:00:00.000Z",
        "last_settled_at": "2026-11-20T23:00:09.900Z",
    }


def test_status_can_be_read_while_the_run_is_in_progress(folder) -> None:
    with RunProcess(folder / JOURNAL):
        done = run("status", JOURNAL)
        assert f"{JOURNAL}: a run is in progress\n  20 completed\n  20 patched\n" in done.stdout
        assert re.search(r"^  \d+\.\d accounts per second in the last minute$", done.stdout, re.MULTILINE)
        assert done.stdout.endswith(f"next: nothing; look again with `postpress-async status {JOURNAL}`\n")

    after = run("status", JOURNAL)
    assert f"{JOURNAL}: the last run was killed, or its machine stopped\n" in after.stdout
    assert after.returncode == 0


def test_status_shows_why_a_run_halted(folder) -> None:
    write(folder / JOURNAL, [outcome(0)], total=10, halted="6 of the last 10 accounts failed")

    done = run("status", JOURNAL)

    assert f"{JOURNAL}: the last run halted: 6 of the last 10 accounts failed\n" in done.stdout
    assert "1 of 10 completed (10.0%)" in done.stdout


# --- export ---


def test_export_writes_accounts_of_given_states_to_a_private_file(journal, folder) -> None:
    done = run("export", JOURNAL, "--state", "failed", "--state", "unknown", "-o", "failed.csv")

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "written: failed.csv\n")
    with (folder / "failed.csv").open(newline="") as file:
        assert [row["account_id"] for row in csv.DictReader(file)] == [f"acc_{n:06}" for n in range(90, 100)]
    assert stat.S_IMODE((folder / "failed.csv").stat().st_mode) == 0o600


def test_export_writes_to_standard_output_by_default(journal) -> None:
    done = run("export", JOURNAL, "--format", "jsonl", "--state", "unknown")

    assert json.loads(done.stdout)["account_id"] == "acc_000099"
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("name", "first_bytes"),
    [
        ("a.parquet", b"PAR1"),
        ("a.jsonl", b'{"line"'),
        ("a.NDJSON", b'{"line"'),
        ("a.csv", b'"line"'),
        ("a", b'"line"'),
    ],
)
def test_export_chooses_the_format_by_the_name_of_the_file(journal, folder, name, first_bytes) -> None:
    assert run("export", JOURNAL, "-o", name).returncode == 0
    assert (folder / name).read_bytes().startswith(first_bytes)


@pytest.mark.parametrize("name", ["a.html", "a.json", "a.xlsx", "a.csv.gz"])
def test_export_refuses_a_file_name_with_the_suffix_of_another_format(journal, folder, name) -> None:
    """Other programs choose how to read a file by its suffix."""
    done = run("export", JOURNAL, "-o", name)

    suffix = Path(name).suffix
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{name}: {suffix} is not a known format. Use .csv, .jsonl or .parquet" in done.stderr
    assert ("`postpress-async report`" in done.stderr) is (suffix == ".html")
    assert not (folder / name).exists()


def test_format_option_overrides_the_name_of_the_file(journal, folder) -> None:
    assert run("export", JOURNAL, "--format", "csv", "-o", "a.txt").returncode == 0
    assert (folder / "a.txt").read_bytes().startswith(b'"line"')


def test_parquet_requires_an_output_file(journal) -> None:
    done = run("export", JOURNAL, "--format", "parquet")

    assert done.returncode == 2
    assert "requires -o FILE" in done.stderr


def test_closed_pipe_causes_no_traceback(folder) -> None:
    """`head -1` closes the pipe after one line."""
    write(folder / JOURNAL, (outcome(n) for n in range(20_000)))
    done = subprocess.run(
        f"{sys.executable} -m postpress_async export {JOURNAL} | head -1",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.stderr == ""
    assert done.stdout.startswith('"line","account_id"')


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has /dev/full")
@pytest.mark.parametrize("arguments", [["export", JOURNAL], ["report", JOURNAL, "-o", "-"]])
def test_full_disk_is_reported_if_standard_output_cannot_be_written(journal, arguments) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "postpress_async", *arguments]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)

    assert done.returncode == 2
    message = "postpress-async: standard output cannot be written (No space left on device)\n"
    assert done.stderr == message


# --- report ---


def test_report_writes_a_private_page_into_the_current_directory(journal, folder) -> None:
    done = run("report", JOURNAL)

    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "written: fleet.csv.rotation.html\n"
    page = folder / "fleet.csv.rotation.html"
    assert page.read_text("utf-8").startswith("<!doctype html>")
    assert stat.S_IMODE(page.stat().st_mode) == 0o600


def test_report_can_be_written_while_the_run_is_in_progress(folder) -> None:
    with RunProcess(folder / JOURNAL):
        done = run("report", JOURNAL, "-o", "now.html")

    assert done.returncode == 0
    page = (folder / "now.html").read_text("utf-8")
    assert "A run is in progress; this page shows its state when it was written." in page


# --- status, export and report ---


@pytest.mark.parametrize("command", ["status", "export", "report"])
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda folder: None, id="no file"),
        pytest.param(lambda folder: (folder / JOURNAL).write_text("account_id\n"), id="a CSV file"),
        pytest.param(
            lambda folder: (folder / JOURNAL).write_bytes(b"SQLite format 3\0" * 400), id="a damaged database"
        ),
        pytest.param(lambda folder: (folder / JOURNAL).mkdir(), id="a directory"),
    ],
)
def test_file_that_is_not_a_journal_is_reported_in_one_sentence(folder, command, make) -> None:
    make(folder)
    before = sorted(os.listdir(folder))

    done = run(command, JOURNAL)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("postpress-async: ")
    assert JOURNAL in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(os.listdir(folder)) == before


@pytest.mark.parametrize("command", ["export", "report"])
def test_output_is_not_written_through_a_symbolic_link(journal, folder, command) -> None:
    (folder / "out").symlink_to(folder / "elsewhere")

    done = run(command, JOURNAL, "-o", "out")

    assert done.returncode == 2
    assert "symbolic link" in done.stderr
    assert not (folder / "elsewhere").exists()


@pytest.mark.parametrize("command", ["status", "export", "report"])
def test_help_has_an_example_with_a_journal(command) -> None:
    done = run(command, "--help")

    assert f"postpress-async {command} fleet.csv.rotation.sqlite3" in done.stdout
