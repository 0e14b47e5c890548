"""The commands that read a journal: `status`, `export`, `report`."""

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
    """A hundred accounts, of which nine failed and one is unknown."""
    states = [State.PATCHED] * 90 + [State.FAILED] * 9 + [State.UNKNOWN]
    return write(
        folder / JOURNAL, (outcome(n, state) for n, state in enumerate(states)), total=100, began=NIGHT
    )


@pytest.mark.skipif(sys.platform != "linux", reason="the names of files are bytes on Linux alone")
def test_files_whose_names_are_not_utf8_can_be_used(folder) -> None:
    """Before, a command with such a name could not be recorded, nor any outcome after it."""
    fleet, journal = (os.fsdecode(name) for name in (b"f\xff.csv", b"j\xff.sqlite3"))
    (folder / fleet).write_text("account_id,country\nacc_sandbox_000001,US\n")

    done = run("rotate", fleet, "--sandbox", "--journal", journal, errors="replace")
    report = run("report", journal, "-o", "report.html", errors="replace")
    history = run("history", journal, errors="replace")

    assert (done.returncode, report.returncode) == (0, 0), done.stderr + report.stderr
    assert r"j\udcff.sqlite3" in (folder / "report.html").read_text("utf-8")
    assert r"f\udcff.csv" in history.stdout


# --- status ---


def test_status_tells_how_it_went_and_what_to_do(journal) -> None:
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


def test_status_of_a_run_that_settled_nothing_tells_no_time_of_it(folder) -> None:
    """Accounts that were refused a connection were tried, and none of them is settled."""
    fault = {"attempts": 1, "error_type": "ConnectError", "scope": "service"}
    write(folder / JOURNAL, (outcome(n, State.SKIPPED, **fault) for n in range(3)), total=3, began=NIGHT)

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


def test_status_works_while_the_run_goes_on(folder) -> None:
    """From another terminal, at two in the morning."""
    with RunProcess(folder / JOURNAL):
        done = run("status", JOURNAL)
        assert f"{JOURNAL}: a run is in progress\n  20 completed\n  20 patched\n" in done.stdout
        assert re.search(r"^  \d+\.\d accounts per second in the last minute$", done.stdout, re.MULTILINE)
        assert done.stdout.endswith(f"next: nothing; look again with `postpress-async status {JOURNAL}`\n")

    after = run("status", JOURNAL)
    assert f"{JOURNAL}: the last run was killed, or its machine stopped\n" in after.stdout
    assert after.returncode == 0


def test_status_says_why_a_run_halted(folder) -> None:
    write(folder / JOURNAL, [outcome(0)], total=10, halted="6 of the last 10 accounts failed")

    done = run("status", JOURNAL)

    assert f"{JOURNAL}: the last run halted: 6 of the last 10 accounts failed\n" in done.stdout
    assert "1 of 10 completed (10.0%)" in done.stdout


# --- export ---


def test_export_writes_what_failed_to_a_file_of_one_s_own(journal, folder) -> None:
    done = run("export", JOURNAL, "--state", "failed", "--state", "unknown", "-o", "failed.csv")

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "written: failed.csv\n")
    with (folder / "failed.csv").open(newline="") as file:
        assert [row["account_id"] for row in csv.DictReader(file)] == [f"acc_{n:06}" for n in range(90, 100)]
    assert stat.S_IMODE((folder / "failed.csv").stat().st_mode) == 0o600


def test_export_goes_to_standard_output_by_itself(journal) -> None:
    done = run("export", JOURNAL, "--format", "jsonl", "--state", "unknown")

    assert json.loads(done.stdout)["account_id"] == "acc_000099"
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("name", "begin"),
    [
        ("a.parquet", b"PAR1"),
        ("a.jsonl", b'{"line"'),
        ("a.NDJSON", b'{"line"'),
        ("a.csv", b'"line"'),
        ("a", b'"line"'),
    ],
)
def test_export_takes_the_format_from_the_file_s_name(journal, folder, name, begin) -> None:
    assert run("export", JOURNAL, "-o", name).returncode == 0
    assert (folder / name).read_bytes().startswith(begin)


@pytest.mark.parametrize("name", ["a.html", "a.json", "a.xlsx", "a.csv.gz"])
def test_export_writes_no_format_into_a_file_that_is_named_after_another(journal, folder, name) -> None:
    """A browser would show a CSV file as one paragraph."""
    done = run("export", JOURNAL, "-o", name)

    ending = Path(name).suffix
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{name}: {ending} is not a known format. Use .csv, .jsonl or .parquet" in done.stderr
    assert ("`postpress-async report`" in done.stderr) is (ending == ".html")
    assert not (folder / name).exists()


def test_export_writes_the_format_that_is_asked_for_whatever_the_file_is_called(journal, folder) -> None:
    """Who says it in so many words has a reason."""
    assert run("export", JOURNAL, "--format", "csv", "-o", "a.txt").returncode == 0
    assert (folder / "a.txt").read_bytes().startswith(b'"line"')


def test_parquet_on_a_terminal_is_refused(journal) -> None:
    done = run("export", JOURNAL, "--format", "parquet")

    assert done.returncode == 2
    assert "requires -o FILE" in done.stderr


def test_a_reader_that_hangs_up_is_no_traceback(folder) -> None:
    """`| head -1` closes the pipe."""
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


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
@pytest.mark.parametrize("words", [["export", JOURNAL], ["report", JOURNAL, "-o", "-"]])
def test_full_disk_behind_standard_output_is_reported(journal, words) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "postpress_async", *words]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)

    assert done.returncode == 2
    message = "postpress-async: standard output cannot be written (No space left on device)\n"
    assert done.stderr == message


# --- report ---


def test_report_writes_one_page_beside_you(journal, folder) -> None:
    done = run("report", JOURNAL)

    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "written: fleet.csv.rotation.html\n"
    page = folder / "fleet.csv.rotation.html"
    assert page.read_text("utf-8").startswith("<!doctype html>")
    assert stat.S_IMODE(page.stat().st_mode) == 0o600


def test_report_is_written_while_the_run_goes_on(folder) -> None:
    with RunProcess(folder / JOURNAL):
        done = run("report", JOURNAL, "-o", "now.html")

    assert done.returncode == 0
    assert "A run is in progress; this page shows its state when it was written." in (
        folder / "now.html"
    ).read_text("utf-8")


# --- all three ---


@pytest.mark.parametrize("command", ["status", "export", "report"])
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda folder: None, id="no file"),
        pytest.param(lambda folder: (folder / JOURNAL).write_text("account_id\n"), id="a fleet"),
        pytest.param(lambda folder: (folder / JOURNAL).write_bytes(b"SQLite format 3\0" * 400), id="a wreck"),
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
def test_a_link_is_not_written_through(journal, folder, command) -> None:
    (folder / "out").symlink_to(folder / "elsewhere")

    done = run(command, JOURNAL, "-o", "out")

    assert done.returncode == 2
    assert "symbolic link" in done.stderr
    assert not (folder / "elsewhere").exists()


@pytest.mark.parametrize("command", ["status", "export", "report"])
def test_each_command_has_an_example(command) -> None:
    done = run(command, "--help")

    assert f"postpress-async {command} fleet.csv.rotation.sqlite3" in done.stdout
