"""The nightly job: cron's line and systemd's command, run as they are in the documentation, and killed."""

import asyncio
import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from postpress_async.sandbox import Sandbox

HERE = Path(__file__).parent / "nightly"
ACCOUNTS = [f"acc_{number:03}" for number in range(300)]
VARIES = r"\d+\.\d(?= s)|\d+(?= of them)"  # seconds, and how far it came
PROGRESS = r"[\d,]+ of 300: "

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not all(map(shutil.which, ("flock", "tail"))), reason="there is no flock"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "fleet.csv").write_text("account_id\n" + "".join(f"{account}\n" for account in ACCOUNTS))
    (tmp_path / "proxies.txt").write_text("".join(f"p{n}.example.net:8080:u:pass{n}\n" for n in range(5)))
    (tmp_path / "api_key").write_text("pp_test_sandbox\n")
    (tmp_path / "api_key").chmod(0o600)
    return tmp_path


async def start(sandbox: Sandbox, folder: Path, rate: str = "10000") -> asyncio.subprocess.Process:
    """Run cron's line with cron's environment: only what the table says."""
    lines = (HERE / "crontab").read_text().splitlines()
    variables = dict(line.split("=", 1) for line in lines if re.match(r"\w+=", line))
    [command] = [line.split(maxsplit=5)[5] for line in lines if line.startswith("*")]
    command = command.replace("/var/lib/postpress", str(folder)).replace(r"\%", "%")
    path = variables["PATH"].replace("/opt/postpress/bin", str(Path(sys.executable).parent))
    return await asyncio.create_subprocess_shell(
        command.replace("--rate 50", f"--rate {rate}"),
        env={"PATH": path, "HOME": str(folder), "POSTPRESS_BASE_URL": sandbox.url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )


async def mail(process: asyncio.subprocess.Process) -> str:
    """What cron would mail."""
    output, _ = await process.communicate()
    return output.decode()


async def arrivals(sandbox: Sandbox, count: int, process: asyncio.subprocess.Process) -> None:
    while sandbox.record.requests < count:
        assert process.returncode is None, await mail(process)
        await asyncio.sleep(0)


async def unlocked(folder: Path) -> None:
    """Return when the lock is free: a killed process keeps it for some milliseconds."""
    free = await asyncio.create_subprocess_exec("flock", "--timeout", "20", folder / "lock", "true")
    assert await free.wait() == 0


def ask(folder: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(folder / "fleet.csv.rotation.sqlite3")) as connection, connection:
        return connection.execute(query).fetchall()


async def test_killed_night_is_resumed_and_each_night_is_a_run(folder: Path, assert_output) -> None:
    """No account is left out, and no recorded one is sent again in the same night."""
    async with Sandbox(accounts=ACCOUNTS[:-2], latency=0.1) as sandbox:
        process = await start(sandbox, folder, rate="100")  # so that it cannot be over before it is killed
        await arrivals(sandbox, 60, process)
        os.killpg(process.pid, signal.SIGKILL)
        await mail(process)
        await unlocked(folder)
        done = {account for (account,) in ask(folder, "SELECT account_id FROM outcomes")}
        lines = ["killed; started again:", *(await mail(await start(sandbox, folder))).splitlines()]
        assert {account for account in done if sandbox.sends(str(account)) > 1} == set()
        first = dict(sandbox.record.patched_accounts)
        lines += ["and again:", *(await mail(await start(sandbox, folder))).splitlines()]
        assert sandbox.record.patched_accounts == first
        ask(folder, "UPDATE runs SET began = began - 86400")  # as if a day had passed
        lines += ["in the next night:", *(await mail(await start(sandbox, folder))).splitlines()]

    assert done
    assert first.keys() == set(ACCOUNTS[:-2])
    assert all(sandbox.record.patched_accounts[account] > first[account] for account in first)
    assert ask(folder, "SELECT id, state FROM runs") == [(1, "complete"), (2, "complete")]
    assert_output("nightly", [re.sub(VARIES, "N", line) for line in lines if not re.match(PROGRESS, line)])


async def test_signal_lets_requests_in_flight_finish(folder: Path) -> None:
    """The next start resumes the run."""
    async with Sandbox(latency=0.05) as sandbox:
        process = await start(sandbox, folder)
        await arrivals(sandbox, 20, process)
        os.killpg(process.pid, signal.SIGTERM)
        await mail(process)
        await unlocked(folder)
        [(recorded,)] = ask(folder, "SELECT count(*) FROM outcomes WHERE state = 'patched'")
        assert recorded == sandbox.record.requests
        assert await mail(await start(sandbox, folder)) == ""

    assert sandbox.record.requests == len(ACCOUNTS)


async def test_second_start_leaves_the_first_alone_and_sends_no_mail(folder: Path) -> None:
    async with Sandbox(latency=0.05) as sandbox:
        first = await start(sandbox, folder)
        await arrivals(sandbox, 20, first)
        assert await mail(await start(sandbox, folder)) == ""
        assert await mail(first) == ""

    assert sandbox.record.requests == len(ACCOUNTS)


@pytest.mark.parametrize(
    ("error_type", "words"),
    [("insufficient_privileges", "key was refused"), ("disconnected_account", "halted")],
    ids=["the key is refused", "too many fail"],
)
async def test_halted_night_says_why_and_can_be_resumed(folder: Path, error_type: str, words: str) -> None:
    async with Sandbox() as sandbox:
        for account in ACCOUNTS:
            sandbox.script(account, then=f"errors/{error_type}")
        for _ in ("at two", "started again"):
            assert words in await mail(await start(sandbox, folder))

    assert ask(folder, "SELECT id, state FROM runs") == [(1, "halted")]


async def test_service_runs_the_command_of_the_crontab(folder: Path) -> None:
    text = (HERE / "rotate-fleet.service").read_text().replace("\\\n", " ")
    [line] = re.findall(r"^ExecStart=(.+)$", text, re.MULTILINE)
    [cron] = re.findall(r"lock (postpress-async .+) >rotate", (HERE / "crontab").read_text())
    words = shlex.split(line.replace("%%", "%").replace("${CREDENTIALS_DIRECTORY}/", ""))
    assert [Path(words[0]).name, *words[1:]] == shlex.split(cron.replace(r"\%", "%"))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    """A mistake in a unit shows at two in the night."""
    program = Path(sys.executable).parent / "postpress-async"
    for unit in HERE.glob("rotate-fleet*.*"):
        text = unit.read_text().replace("/opt/postpress/bin/postpress-async", str(program))
        (tmp_path / unit.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", *sorted(map(str, tmp_path.iterdir()))],
        capture_output=True,
        text=True,
        check=False,
    )

    ours = [line for line in done.stderr.splitlines() if "rotate-fleet" in line and "man " not in line]
    assert (done.returncode, ours) == (0, [])
