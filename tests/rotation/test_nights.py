"""
The same nightly command, with ``--every`` and ``--keep``, updates a fleet while its files change.

The clock is set ahead to each night. The fast test runs six nights in this process. The slow test runs thirty
nights of 2,000 accounts, with a new process for each command; two of the processes are killed.
"""

import getpass
import json
import os
import random
import shlex
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final

import pytest
from attrs import Factory, define, field, frozen
from click.testing import CliRunner

from postpress_async._cli import cli
from postpress_async.sandbox import Sandbox
from postpress_async.sandbox._thread import SandboxThread
from tests.support.command_line import CLOCK_AHEAD, JOURNAL

DAY: Final = 86_400.0
FIRST_NIGHT: Final = 1_795_226_400.0
"""2026-11-21 02:00:00 UTC."""
COMMAND: Final = (
    "rotate fleet.csv --pool proxies.txt --every 20h --keep 7 --canary 5 --halt 10 --in-flight 40".split()
)
DISCONNECTED: Final = "errors/disconnected_account"


@frozen
class CommandResult:
    exit_code: int
    stdout: str
    stderr: str


RunCommand = Callable[[float, list[str]], CommandResult]
"""Runs the command line with these arguments, and with a clock that is this number of seconds ahead."""


def run_in_this_process(ahead: float, arguments: list[str]) -> CommandResult:
    clock = time.time
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: clock() + ahead)
        done = CliRunner().invoke(cli, arguments, standalone_mode=False)
    if done.exception is not None:
        return CommandResult(2, done.stdout, f"{done.stderr}{done.exception}")
    return CommandResult(done.return_value or 0, done.stdout, done.stderr)


def run_in_new_process(ahead: float, arguments: list[str]) -> CommandResult:
    done = subprocess.run(
        [sys.executable, "-c", CLOCK_AHEAD, str(ahead), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    return CommandResult(done.returncode, done.stdout, done.stderr)


def encode_lines(rows: list[str]) -> bytes:
    return "".join(f"{row}\n" for row in rows).encode()


FILE_FORMS: Final[list[Callable[[list[str]], bytes]]] = [
    encode_lines,
    lambda rows: "".join(f"{row}\r\n" for row in rows).encode(),
    lambda rows: b"\xef\xbb\xbf" + encode_lines(rows),
    lambda rows: encode_lines([f"{rows[0]},note", *(f"{row},x" for row in rows[1:])]),
    lambda rows: encode_lines(rows) + b"\n",
]
"""
The same rows as different programs save them: plain, with CRLF, with a byte-order mark, with an ignored
column, and with an empty line at the end.
"""


@define
class Fleet:
    """The fleet and the proxy list of the operator."""

    accounts: list[str]
    pool: list[str] = Factory(list)
    saves: int = 0

    def save(self) -> None:
        rows = [f"{account},{'US' if _is_managed(account) else ''}" for account in self.accounts]
        encode = FILE_FORMS[self.saves % len(FILE_FORMS)]
        Path("fleet.csv").write_bytes(encode(["account_id,country", *rows]))
        Path("proxies.txt").write_text("".join(f"{line}\n" for line in self.pool))
        self.saves += 1


@define
class Nights:
    """
    Runs the command in several nights, and checks each night.

    Attributes:
        night: The number of the current night, from 0.
        recorded: Accounts that a killed process of this night had recorded as patched; None if none was
            killed.
        run_numbers: The numbers of the runs in the journal.
        applied: How often a change of each account was applied in the earlier nights.
        assigned: For each run number and account, the label of the proxy that the API received last.
    """

    sandbox: SandboxThread
    run_command: RunCommand
    fleet: Fleet
    night: int = 0
    recorded: set[str] | None = None
    run_numbers: list[int] = field(factory=list)
    applied: Counter[str] = field(factory=Counter)
    assigned: dict[tuple[int, str], str] = field(factory=dict)

    def seconds_ahead(self, hour: float) -> float:
        """Seconds from the real time until *hour* hours after the start of the night, at 2 o'clock."""
        return FIRST_NIGHT + self.night * DAY + hour * 3600 - time.time()

    def run(self, hour: float = 0.0, arguments: list[str] = COMMAND) -> CommandResult:
        return self.run_command(self.seconds_ahead(hour), arguments)

    def kill(self, requests: int, hour: float = 0.0) -> None:
        """Run the command in a new process, and kill the process after this number of requests."""
        kill_at = self.sandbox.record.requests + requests
        program = [sys.executable, "-c", CLOCK_AHEAD, str(self.seconds_ahead(hour)), *COMMAND]
        process = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while self.sandbox.record.requests < kill_at and process.poll() is None:
            time.sleep(0.001)
        process.kill()
        assert process.wait() == -9
        while self.sandbox.record.in_flight:
            time.sleep(0.001)
        export = ["export", JOURNAL, "--format", "jsonl", "--state", "patched"]
        exported = run_in_this_process(self.seconds_ahead(0.1), export)
        self.recorded = {json.loads(line)["account_id"] for line in exported.stdout.splitlines()}
        assert len(self.recorded) > 100

    def check_nothing_is_sent(self, hour: float) -> None:
        """Check that the command sends nothing, and says so and when the next run is due."""
        requests_before = self.sandbox.record.requests
        result = self.run(hour)
        assert (result.exit_code, self.sandbox.record.requests) == (0, requests_before), result
        assert "nothing was sent: " in result.stdout
        assert "the next is due at" in result.stdout

    def check_and_end_night(self, *, resumes: tuple[int, ...] = (0,)) -> None:
        """
        Check that each run of this night patched each account once, and check the history of these runs.

        *resumes* has, for each run of this night, how often it was resumed.
        """
        applied, runs = Counter(self.sandbox.record.patched_accounts), len(resumes)
        changes = applied - self.applied
        # A custom proxy is set again if the killed process had not recorded the response.
        in_doubt = set() if self.recorded is None else changes.keys() - self.recorded
        twice = {account for account in in_doubt if changes[account] > runs and not _is_managed(account)}
        assert len(twice) < 100
        assert changes - Counter(twice) == Counter(dict.fromkeys(self.fleet.accounts, runs))
        self.applied, self.recorded = applied, None
        output = run_in_this_process(self.seconds_ahead(1), ["history", JOURNAL, "--json"]).stdout
        history = [json.loads(line) for line in output.splitlines()]
        for run, resumed in zip(history[-runs:], resumes, strict=True):
            assert (run["state"], run["states"]) == ("complete", {"patched": len(self.fleet.accounts)})
            assert run["total"] == len(self.fleet.accounts)
            start, *later = run["starts"]
            assert start["command"] == shlex.join(["postpress-async", *COMMAND])
            assert (start["operator"], start["host"]) == (getpass.getuser(), socket.gethostname())
            assert len(later) == resumed
            self.run_numbers.append(run["number"])
        assert len(history) == min(len(self.run_numbers), 7)  # --keep 7
        night = FIRST_NIGHT + self.night * DAY
        assert night <= _unix(history[-1]["began"]) < night + 3600 * 2
        for account in self.fleet.accounts:
            self.assigned[self.run_numbers[-1], account] = _label(self.sandbox.proxy_of(account))
        self.night += 1

    def check_accounts(self) -> None:
        """Check that `history JOURNAL ACCOUNT` shows the last change that the API received in each night."""
        for account in self.fleet.accounts[:: len(self.fleet.accounts) // 4]:
            output = run_in_this_process(self.seconds_ahead(1), ["history", JOURNAL, account, "--json"])
            changes = [json.loads(line) for line in output.stdout.splitlines()]
            expected = {run: label for (run, name), label in self.assigned.items() if name == account}
            found = {change["run"]: change["assignment"] for change in changes if change["run"] in expected}
            assert found == {run: expected[run] for run in sorted(expected)[-len(found) :]}
            assert len(found) >= min(5, len(expected))


def _is_managed(account: str) -> bool:
    return account.endswith("7")


def _label(body: object) -> str:
    assert isinstance(body, dict)
    if "proxy" not in body:
        return f"managed {body['country']}"
    proxy = body["proxy"]
    return f"{proxy['username']}@{proxy['host']}:{proxy['port']}"


def _unix(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


def pool(name: str, count: int) -> list[str]:
    return [f"{name}{number}.example.net:8080:user{number}:hunter2" for number in range(count)]


@contextmanager
def create_nights(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_command: RunCommand,
    accounts: int,
    latency: float = 0.0,
) -> Iterator[Nights]:
    monkeypatch.chdir(folder)
    fleet = Fleet([f"acc_{number:05}" for number in range(accounts)], pool("a", 20))
    with SandboxThread(Sandbox(latency=latency)) as sandbox:
        monkeypatch.setenv("POSTPRESS_API_KEY", sandbox.api_key)
        monkeypatch.setenv("POSTPRESS_BASE_URL", sandbox.url)
        yield Nights(sandbox, run_command, fleet)


def play(
    nights: Nights,
    count: int,
    *,
    halted: int | None = None,
    killed: int | None = None,
    killed_and_left: int | None = None,
) -> None:
    """
    Play *count* nights. From time to time, the proxy list and the accounts change.

    Args:
        halted: The night in which the run halts.
        killed: The night in which the process is killed, and the command is run again in the same night.
        killed_and_left: The night in which the process is killed, and the command is run again a day later.
    """
    rng, fleet, size = random.Random(16), nights.fleet, len(nights.fleet.accounts)
    for night in range(count):
        if night % 3 == 1:
            fleet.pool = pool(f"n{night}-", 20) if night % 2 else fleet.pool[::-1]
        if night % 4 == 2:
            for account in rng.sample(fleet.accounts, size // 20):
                fleet.accounts.remove(account)
            new = [f"acc_new_{nights.night}_{number}" for number in range(size // 15)]
            for account in new:
                fleet.accounts.insert(rng.randrange(len(fleet.accounts)), account)
        fleet.save()
        if night == halted:
            play_halted_night(nights, rng)
            continue
        if night == killed_and_left:
            # The command of the next night, within the lifetime of the idempotency keys, first resumes the
            # killed run and then starts its own run.
            nights.kill(size // 3, hour=0.75)
            nights.night += 1
            fleet.save()
            result = nights.run()
            assert result.exit_code == 0, result
            nights.check_and_end_night(resumes=(1, 0))
            continue
        if night == killed:
            nights.kill(size // 3)
            fleet.save()
        result = nights.run(0.25)
        assert result.exit_code == 0, result
        if night % 2:
            fleet.save()
        nights.check_nothing_is_sent(0.5)
        nights.check_and_end_night(resumes=(1 if night == killed else 0,))


def play_halted_night(nights: Nights, rng: random.Random) -> None:
    """Let half of the accounts fail, reconnect them, and run the commands that the messages advise."""
    disconnected = rng.sample(nights.fleet.accounts, len(nights.fleet.accounts) // 2)
    for account in disconnected:
        nights.sandbox.script(account, then=DISCONNECTED)
    halted = nights.run()
    assert halted.exit_code == 3
    for account in disconnected:
        nights.sandbox.script(account, then=200)
    status = json.loads(nights.run(0.1, ["status", JOURNAL, "--json"]).stdout)
    assert shlex.join(["postpress-async", *COMMAND]) in status["next"]
    resumed = nights.run(0.25)
    assert resumed.exit_code == 1
    retry_command = resumed.stderr.partition("to retry the failed accounts: ")[2].splitlines()[0]
    nights.run(0.5, shlex.split(retry_command)[1:])
    nights.check_nothing_is_sent(0.75)
    nights.check_and_end_night(resumes=(2,))


def test_each_account_is_patched_once_a_night(tmp_path, monkeypatch) -> None:
    # With fewer accounts, the 40 requests in flight at the halt could be the last requests of the run.
    with create_nights(tmp_path, monkeypatch, run_in_this_process, accounts=120) as nights:
        play(nights, 6, halted=4)
        nights.check_accounts()


@pytest.mark.slow
@pytest.mark.skipif(
    "POSTPRESS_TEST_NIGHTS" not in os.environ, reason="takes minutes: `nox -s night` plays it"
)
def test_each_account_is_patched_once_a_night_over_thirty_nights_with_two_kills(
    tmp_path, monkeypatch
) -> None:
    with create_nights(tmp_path, monkeypatch, run_in_new_process, accounts=2_000, latency=0.01) as nights:
        play(nights, 8, killed=5)
        size_after_8_nights = os.path.getsize(JOURNAL)
        play(nights, 21, halted=4, killed_and_left=11)
        size_after_30_nights = os.path.getsize(JOURNAL)
        nights.check_accounts()

    assert nights.run_numbers == list(range(1, 31))
    assert size_after_30_nights < 1.25 * size_after_8_nights  # --keep 7 bounds the size
