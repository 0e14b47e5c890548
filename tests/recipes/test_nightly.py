"""The nightly job: the script that the documentation shows, run by bash, and killed."""

import asyncio
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from itertools import cycle
from pathlib import Path

import pytest

from postpress_async.sandbox import Sandbox

HERE = Path(__file__).parent / "nightly"
PLACES = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
VARIES = r"\d+\.\d(?= s)|\d+(?= of them)"  # seconds, and how far it came
ACCOUNTS = [f"acc_{number:03}" for number in range(300)]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(shutil.which, ("bash", "flock", "tail"))), reason="there is no bash, or no flock"
    ),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "fleet.csv").write_text("account_id\n" + "".join(f"{account}\n" for account in ACCOUNTS))
    (tmp_path / "proxies.txt").write_text("".join(f"p{n}.example.net:8080:u:pass{n}\n" for n in range(5)))
    (tmp_path / "api_key").write_text("pp_test_sandbox\n")
    (tmp_path / "api_key").chmod(0o600)
    return tmp_path


async def start(
    sandbox: Sandbox, folder: Path, stderr: int = asyncio.subprocess.STDOUT, **more: str
) -> asyncio.subprocess.Process:
    environment = {**os.environ, "PATH": PLACES, "POSTPRESS_BASE_URL": sandbox.url, "RATE": "10000", **more}
    return await asyncio.create_subprocess_exec(
        "bash",
        HERE / "rotate-fleet",
        folder,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=stderr,
        start_new_session=True,
    )


async def ended(process: asyncio.subprocess.Process) -> tuple[int | None, str]:
    output, _ = await process.communicate()
    return process.returncode, output.decode()


async def arrivals(sandbox: Sandbox, count: int, process: asyncio.subprocess.Process) -> None:
    while sandbox.record.requests < count:
        assert process.returncode is None, await ended(process)
        await asyncio.sleep(0)


async def let_go(folder: Path) -> None:
    """Return when the lock is free: what is killed keeps it for some milliseconds, until it is gone."""
    free = await asyncio.create_subprocess_exec("flock", "--timeout", "20", folder / "lock", "true")
    assert await free.wait() == 0


def dated(text: str) -> str:
    return re.sub(r"\d{4}-\d\d-\d\d", "DATE", text)


def made(folder: Path) -> set[str]:
    """What a run left, the date of the night written as ``DATE``."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    names = {dated(str(path)) for path in files}
    inputs = {"fleet.csv", "proxies.txt", "api_key", "lock"}
    return {name for name in names - inputs if not name.startswith("night.sqlite3-")}


def settled(folder: Path) -> set[str]:
    """Accounts that the journal of the night has as done."""
    try:
        with closing(sqlite3.connect(folder / "night.sqlite3")) as connection:
            query = "SELECT account_id FROM outcomes WHERE state IN ('patched', 'failed')"
            return {account for (account,) in connection.execute(query)}
    except sqlite3.OperationalError:  # it has no table yet
        return set()


async def test_killed_night_is_resumed_and_completed_once(folder: Path, shows) -> None:
    """By the next start: no account is left out, and no recorded one is sent again."""
    async with Sandbox(accounts=ACCOUNTS[:-2], latency=0.1) as sandbox:
        process = await start(sandbox, folder, RATE="100")  # so that it cannot be over before it is killed
        await arrivals(sandbox, 20, process)
        while not (done := settled(folder)):
            await asyncio.sleep(0)
        os.killpg(process.pid, signal.SIGKILL)
        report = [f"killed; it left {' '.join(sorted(made(folder)))}"]
        await ended(process)
        await let_go(folder)
        for start_ in ("started again", "and again"):
            code, output = await ended(await start(sandbox, folder))
            report += [f"{start_}: exit code {code}; it left {' '.join(sorted(made(folder)))}"]
            report += [f"  {line}" for line in output.splitlines()]

    assert sandbox.record.patched_accounts.keys() == set(ACCOUNTS[:-2])
    assert {account for account in done if sandbox.record.sends(account) > 1} == set()
    shows("nightly", [re.sub(VARIES, "N", dated(line)) for line in report])


async def test_a_signal_lets_what_is_in_flight_settle(folder: Path) -> None:
    """`systemctl stop`: the exit code says so, and the night goes on."""
    async with Sandbox(latency=0.05) as sandbox:
        process = await start(sandbox, folder)
        await arrivals(sandbox, 20, process)
        process.send_signal(signal.SIGTERM)
        code, output = await ended(process)
        assert (code, len(settled(folder))) == (130, sandbox.record.requests)
        assert "ended by a signal (130): the next start goes on" in output
        assert await ended(await start(sandbox, folder)) == (0, "")

    assert sandbox.record.requests == len(ACCOUNTS)
    assert made(folder) == {"log/DATE.jsonl", "log/DATE.sqlite3", "log/DATE.txt"}


async def test_a_second_one_leaves_the_first_alone(folder: Path) -> None:
    """cron does not know what it started before, and mails all output: a person reads why."""
    async with Sandbox(latency=0.05) as sandbox:
        first = await start(sandbox, folder)
        await arrivals(sandbox, 20, first)
        assert await ended(await start(sandbox, folder)) == (75, "")
        terminal, end = os.openpty()
        by_hand = await start(sandbox, folder, stderr=end)
        assert await ended(by_hand) == (75, "")
        assert os.read(terminal, 1_000) == b"rotate-fleet: another one is still under way\r\n"
        os.close(terminal)
        os.close(end)
        assert (await ended(first))[0] == 0

    assert sandbox.record.requests == len(ACCOUNTS)


async def test_accounts_left_by_the_time_limit_come_first_in_the_next_night(folder: Path) -> None:
    """If each night started from the first row, the last rows would never be sent."""
    async with Sandbox(latency=0.05) as sandbox:
        code, output = await ended(await start(sandbox, folder, RATE="100", MAX_DURATION="1s"))
        assert (code, "the next start goes on" in output) == (1, True)
        assert made(folder) == {"log/DATE.jsonl", "log/DATE.txt", "night", "night.sqlite3"}
        assert (await ended(await start(sandbox, folder)))[0] == 0

    assert sandbox.record.requests == len(ACCOUNTS)


@pytest.mark.parametrize(
    ("types", "code", "words"),
    [
        (["insufficient_privileges"], 4, "key was refused"),
        (["disconnected_account", "checkpoint_error"], 3, "halted"),
    ],
    ids=["the key is refused", "too many fail"],
)
async def test_halted_night_says_why_and_can_be_resumed(
    folder: Path, types: list[str], code: int, words: str
) -> None:
    """A person looks at it: the exit code is no success, and nothing is thrown away."""
    async with Sandbox() as sandbox:
        for account, error_type in zip(ACCOUNTS, cycle(types), strict=False):
            sandbox.script(account, then=f"errors/{error_type}")
        for _ in ("at two", "started again"):  # which tells no more than its own
            ends, output = await ended(await start(sandbox, folder))
            assert (ends, words in output) == (code, True), output
            assert output.count("journal: ") == 1, output

    assert made(folder) == {"log/DATE.jsonl", "log/DATE.txt", "night", "night.sqlite3"}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    """A mistake in a unit shows at two in the night."""
    for unit in HERE.glob("rotate-fleet*.*"):
        text = unit.read_text().replace("/usr/local/bin/rotate-fleet", str(HERE / "rotate-fleet"))
        (tmp_path / unit.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", *sorted(map(str, tmp_path.iterdir()))],
        capture_output=True,
        text=True,
        check=False,
    )

    ours = [line for line in done.stderr.splitlines() if "rotate-fleet" in line and "man " not in line]
    assert (done.returncode, ours) == (0, [])


async def test_cron_finds_what_it_starts(folder: Path) -> None:
    """cron gives a job next to no environment: only what the table says."""
    lines = (HERE / "crontab").read_text().splitlines()
    variables = dict(line.split("=", 1) for line in lines if re.match(r"\w+=", line))
    (command,) = (line.split(maxsplit=5)[5] for line in lines if line.startswith("*"))
    places = {"/opt/postpress/bin": str(Path(sys.executable).parent), "/usr/local/bin": str(HERE)}
    path = os.pathsep.join(places.get(entry, entry) for entry in variables["PATH"].split(os.pathsep))
    async with Sandbox() as sandbox:
        process = await asyncio.create_subprocess_shell(
            command.replace("/var/lib/postpress", str(folder)),
            env={"PATH": path, "HOME": str(folder), "POSTPRESS_BASE_URL": sandbox.url},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        assert await ended(process) == (0, "")

    assert sandbox.record.requests == len(ACCOUNTS)
