"""
A fleet under one nightly command, with ``--every`` and ``--keep``, while its inputs change.

The clock is set to each night. The fast suite plays a few nights in this process. The slow one plays thirty
of 2,000 accounts, each start in a process of its own; two of them are killed.
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
class Ended:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


Start = Callable[[float, list[str]], Ended]
"""Runs the command line, with a clock that is a number of seconds ahead."""


def in_this_process(ahead: float, words: list[str]) -> Ended:
    clock = time.time
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: clock() + ahead)
        done = CliRunner().invoke(cli, words, standalone_mode=False)
    if done.exception is not None:
        return Ended(2, done.stdout, f"{done.stderr}{done.exception}")
    return Ended(done.return_value or 0, done.stdout, done.stderr)


def in_a_process(ahead: float, words: list[str]) -> Ended:
    done = subprocess.run(
        [sys.executable, "-c", CLOCK_AHEAD, str(ahead), *words], capture_output=True, text=True, check=False
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def plain(rows: list[str]) -> bytes:
    return "".join(f"{row}\n" for row in rows).encode()


RESAVED: Final[list[Callable[[list[str]], bytes]]] = [
    plain,
    lambda rows: "".join(f"{row}\r\n" for row in rows).encode(),
    lambda rows: b"\xef\xbb\xbf" + plain(rows),
    lambda rows: plain([f"{rows[0]},note", *(f"{row},x" for row in rows[1:])]),
    lambda rows: plain(rows) + b"\n",
]
"""The same rows as a spreadsheet may save them: CRLF, a byte-order mark, an ignored column, an empty line."""


@define
class Fleet:
    """The operator's two files, and the accounts in them."""

    accounts: list[str]
    pool: list[str] = Factory(list)
    saves: int = 0

    def save(self) -> None:
        rows = [f"{account},{'US' if _is_managed(account) else ''}" for account in self.accounts]
        Path("fleet.csv").write_bytes(RESAVED[self.saves % len(RESAVED)](["account_id,country", *rows]))
        Path("proxies.txt").write_text("".join(f"{line}\n" for line in self.pool))
        self.saves += 1


@define
class Nights:
    """Plays nights, and checks each of them."""

    sandbox: SandboxThread
    start: Start
    fleet: Fleet
    night: int = 0
    recorded: set[str] | None = None
    numbers: list[int] = field(factory=list)
    applied: Counter[str] = field(factory=Counter)
    assigned: dict[tuple[int, str], str] = field(factory=dict)

    def at(self, hour: float) -> float:
        """How far ahead the clock is at this hour of the night, counted from two."""
        return FIRST_NIGHT + self.night * DAY + hour * 3600 - time.time()

    def run(self, hour: float = 0.0, words: list[str] = COMMAND) -> Ended:
        return self.start(self.at(hour), words)

    def kill(self, requests: int, hour: float = 0.0) -> None:
        """Start, and kill the process after a number of requests."""
        until = self.sandbox.record.requests + requests
        words = [sys.executable, "-c", CLOCK_AHEAD, str(self.at(hour)), *COMMAND]
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while self.sandbox.record.requests < until and process.poll() is None:
            time.sleep(0.001)
        process.kill()
        assert process.wait() == -9
        while self.sandbox.record.in_flight:
            time.sleep(0.001)
        exported = in_this_process(
            self.at(0.1), ["export", JOURNAL, "--format", "jsonl", "--state", "patched"]
        )
        self.recorded = {json.loads(line)["account_id"] for line in exported.stdout.splitlines()}
        assert len(self.recorded) > 100

    def nothing_is_sent(self, hour: float) -> None:
        """A start that sends nothing says so, and when the next run is due."""
        before = self.sandbox.record.requests
        ended = self.run(hour)
        assert (ended.code, self.sandbox.record.requests) == (0, before), ended
        assert "nothing was sent: " in ended.stdout
        assert "the next is due at" in ended.stdout

    def ends(self, *, resumes: tuple[int, ...] = (0,)) -> None:
        """Check that each run patched each account once, and what the history says of the runs."""
        applied, runs = Counter(self.sandbox.record.patched_accounts), len(resumes)
        changes = applied - self.applied
        # A custom proxy is set again if the killed process had not recorded the answer.
        in_doubt = set() if self.recorded is None else changes.keys() - self.recorded
        twice = {account for account in in_doubt if changes[account] > runs and not _is_managed(account)}
        assert len(twice) < 100
        assert changes - Counter(twice) == Counter(dict.fromkeys(self.fleet.accounts, runs))
        self.applied, self.recorded = applied, None
        output = in_this_process(self.at(1), ["history", JOURNAL, "--json"]).stdout
        history = [json.loads(line) for line in output.splitlines()]
        for run, resumed in zip(history[-runs:], resumes, strict=True):
            assert (run["state"], run["states"]) == ("complete", {"patched": len(self.fleet.accounts)})
            assert run["total"] == len(self.fleet.accounts)
            start, *later = run["starts"]
            assert start["command"] == shlex.join(["postpress-async", *COMMAND])
            assert (start["operator"], start["host"]) == (getpass.getuser(), socket.gethostname())
            assert len(later) == resumed
            self.numbers.append(run["number"])
        assert len(history) == min(len(self.numbers), 7)
        night = FIRST_NIGHT + self.night * DAY
        assert night <= _unix(history[-1]["began"]) < night + 3600 * 2
        for account in self.fleet.accounts:
            self.assigned[self.numbers[-1], account] = _label(self.sandbox.proxy_of(account))
        self.night += 1

    def check_accounts(self) -> None:
        """`history JOURNAL ACCOUNT` has the last change that the API received in each night."""
        for account in self.fleet.accounts[:: len(self.fleet.accounts) // 4]:
            output = in_this_process(self.at(1), ["history", JOURNAL, account, "--json"])
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
def nights(
    folder: Path, monkeypatch: pytest.MonkeyPatch, start: Start, accounts: int, latency: float = 0.0
) -> Iterator[Nights]:
    monkeypatch.chdir(folder)
    fleet = Fleet([f"acc_{number:05}" for number in range(accounts)], pool("a", 20))
    with SandboxThread(Sandbox(latency=latency)) as sandbox:
        monkeypatch.setenv("POSTPRESS_API_KEY", sandbox.api_key)
        monkeypatch.setenv("POSTPRESS_BASE_URL", sandbox.url)
        yield Nights(sandbox, start, fleet)


def play(
    nights: Nights, count: int, *, halts_in: int, killed_in: tuple[int, ...] = (), left_in: int = -1
) -> None:
    chance, fleet, size = random.Random(16), nights.fleet, len(nights.fleet.accounts)
    for night in range(count):
        if night % 3 == 1:
            fleet.pool = pool(f"n{night}-", 20) if night % 2 else fleet.pool[::-1]
        if night % 4 == 2:
            for account in chance.sample(fleet.accounts, size // 20):
                fleet.accounts.remove(account)
            new = [f"acc_new_{nights.night}_{number}" for number in range(size // 15)]
            for account in new:
                fleet.accounts.insert(chance.randrange(len(fleet.accounts)), account)
        fleet.save()
        if night == halts_in:
            _halted_night(nights, chance)
            continue
        if night == left_in:
            # The next night's start resumes the run, within the lifetime of its idempotency keys, and then
            # starts the new one.
            nights.kill(size // 3, hour=0.75)
            nights.night += 1
            fleet.save()
            ended = nights.run()
            assert ended.code == 0, ended
            nights.ends(resumes=(1, 0))
            continue
        if night in killed_in:
            nights.kill(size // 3)
            fleet.save()
        ended = nights.run(0.25)
        assert ended.code == 0, ended
        if night % 2:
            fleet.save()
        nights.nothing_is_sent(0.5)
        nights.ends(resumes=(int(night in killed_in),))


def _halted_night(nights: Nights, chance: random.Random) -> None:
    """Accounts fail, a person corrects the cause, and follows the hints."""
    broken = chance.sample(nights.fleet.accounts, len(nights.fleet.accounts) // 2)
    for account in broken:
        nights.sandbox.script(account, then=DISCONNECTED)
    halted = nights.run()
    assert halted.code == 3
    for account in broken:
        nights.sandbox.script(account, then=200)
    status = json.loads(nights.run(0.1, ["status", JOURNAL, "--json"]).stdout)
    assert shlex.join(["postpress-async", *COMMAND]) in status["next"]
    again = nights.run(0.25)
    assert again.code == 1
    retry = again.stderr.partition("to retry the failed accounts: ")[2].splitlines()[0]
    nights.start(nights.at(0.5), shlex.split(retry)[1:])
    nights.nothing_is_sent(0.75)
    nights.ends(resumes=(2,))


def test_each_account_is_patched_once_a_night(tmp_path, monkeypatch) -> None:
    # With fewer, the 40 requests in flight at the tenth failure could be the last ones of the halted run.
    with nights(tmp_path, monkeypatch, in_this_process, accounts=120) as each:
        play(each, 6, halts_in=4)
        each.check_accounts()


@pytest.mark.slow
@pytest.mark.skipif(
    "POSTPRESS_TEST_NIGHTS" not in os.environ, reason="takes minutes: `nox -s night` plays it"
)
def test_thirty_nights_of_a_fleet(tmp_path, monkeypatch) -> None:
    size = []

    with nights(tmp_path, monkeypatch, in_a_process, accounts=2_000, latency=0.01) as each:
        play(each, 8, halts_in=-1, killed_in=(5,))
        size.append(os.path.getsize(JOURNAL))
        play(each, 21, halts_in=4, left_in=11)
        size.append(os.path.getsize(JOURNAL))
        each.check_accounts()

    assert each.numbers == list(range(1, 31))
    assert size[1] < 1.25 * size[0]
