"""The commands that the audit guide names give the answers that it promises."""

import csv
import getpass
import io
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from postpress_async.sandbox._thread import SandboxThread
from tests.support.command_line import CLOCK_AHEAD, JOURNAL, run, write_fleet, write_pool
from tests.support.documents import TEXTS

pytestmark = pytest.mark.slow

COMMANDS = re.findall(r"\| `postpress-async (.+?)` \|", TEXTS["guides/audit.md"])
FIRST_NIGHT = 1_772_416_800.0  # 2026-03-02 02:00:00 UTC
DAY = 86_400.0  # seconds
ROTATE = ["rotate", "fleet.csv", "--every", "20h", "--pool"]


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What each command of the guide prints after runs on 2, 3 and 4 March, each with a new pool."""
    write_fleet(tmp_path, 6, change="")
    with SandboxThread() as sandbox:
        sandbox.script("acc_000005", 200, "errors/resource_not_found")
        environment = {**os.environ, "POSTPRESS_API_KEY": sandbox.api_key, "POSTPRESS_BASE_URL": sandbox.url}
        for night in range(3):
            pool = write_pool(tmp_path, 6).rename(tmp_path / f"pool-{night}.txt")
            pool.write_text(pool.read_text().replace("example.net", f"night-{night}.net"))
            clock_offset = FIRST_NIGHT + night * DAY - time.time()
            command = [sys.executable, "-c", CLOCK_AHEAD, str(clock_offset), *ROTATE, pool.name]
            done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
            assert done.returncode == (1 if night == 1 else 0)  # acc_000005 fails in the second night
    monkeypatch.chdir(tmp_path)
    return {command: run(*command.split(), env={"TZ": "UTC"}).stdout for command in COMMANDS}


def rows(text: str) -> dict[str, dict[str, str]]:
    """The rows of a CSV text by account id."""
    return {row["account_id"]: row for row in csv.DictReader(io.StringIO(text))}


def test_commands_of_the_audit_guide_give_the_promised_answers(outputs, tmp_path) -> None:
    history = outputs[f"history {JOURNAL}"]
    account = outputs[f"history {JOURNAL} acc_000003"].splitlines()
    latest = rows(outputs[f"export {JOURNAL} --assignments"])
    second_run = rows(outputs[f"export {JOURNAL} --run 2"])
    failed = rows(outputs[f"export {JOURNAL} --run 2 --state failed"])
    report = (tmp_path / "run-2.html").read_text("utf-8")
    status = outputs[f"status {JOURNAL}"]

    runs = re.findall(r"^run (\d): (\S+) 02:00:0\d UTC, .* s, complete$", history, re.MULTILINE)
    assert runs == [("1", "2026-03-02"), ("2", "2026-03-03"), ("3", "2026-03-04")]
    assert history.count(f"by {getpass.getuser()} on {socket.gethostname()}") == 3
    assert "postpress-async rotate fleet.csv --every 20h --pool pool-1.txt" in history
    assert [line for line in account if "2026-03-03" in line] == account[1:2]
    assert "@p003.night-1.net:8080" in account[1]
    assert {name: row["assignment"].partition(".")[2] for name, row in latest.items()} == {
        f"acc_{number:06}": "night-2.net:8080" for number in range(6)
    }
    assert len(second_run) == 6
    assert {name: row["error_type"] for name, row in failed.items()} == {
        "acc_000005": "errors/resource_not_found"
    }
    assert "acc_000005" in report
    assert "nothing; every account was patched" in status
    assert outputs[f"history {JOURNAL} --run 2"].startswith("run 2: 2026-03-03")
    assert rows(outputs[f"export {JOURNAL} --assignments --on 10.1.1.0/24"]) == {}
    assert len(outputs) == 9
