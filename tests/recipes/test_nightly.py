"""The crontab of the documentation rotates a fleet every night, even if it is killed or stopped."""

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
VARYING_NUMBER = r"\d+\.\d(?= s)|\d+(?= of them)"  # seconds, and accounts of the killed run
PROGRESS_LINE = r"[\d,]+ of 300: "

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
    """Run the crontab's command as cron would, with only the environment that the crontab sets."""
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


async def mail_of(process: asyncio.subprocess.Process) -> str:
    """Wait for the end of *process*, and return its output, which cron would mail."""
    output, _ = await process.communicate()
    return output.decode()


async def wait_for_requests(sandbox: Sandbox, count: int, process: asyncio.subprocess.Process) -> None:
    while sandbox.record.requests < count:
        assert process.returncode is None, await mail_of(process)
        await asyncio.sleep(0)


async def wait_for_unlock(folder: Path) -> None:
    """Wait until the lock is free: a killed process holds it for some milliseconds."""
    flock = await asyncio.create_subprocess_exec("flock", "--timeout", "20", folder / "lock", "true")
    assert await flock.wait() == 0


def query_journal(folder: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(folder / "fleet.csv.rotation.sqlite3")) as connection, connection:
        return connection.execute(query).fetchall()


async def test_killed_run_is_resumed_and_each_night_is_a_new_run(folder: Path, assert_output) -> None:
    """All accounts are sent, and no recorded account is sent again in the same night."""
    async with Sandbox(accounts=ACCOUNTS[:-2], latency=0.1) as sandbox:
        process = await start(sandbox, folder, rate="100")  # so slow that it is killed before it ends
        await wait_for_requests(sandbox, 60, process)
        os.killpg(process.pid, signal.SIGKILL)
        await mail_of(process)
        await wait_for_unlock(folder)
        recorded = {account for (account,) in query_journal(folder, "SELECT account_id FROM outcomes")}
        lines = ["killed; started again:", *(await mail_of(await start(sandbox, folder))).splitlines()]
        assert {account for account in recorded if sandbox.sends(str(account)) > 1} == set()
        first_night = dict(sandbox.record.patched_accounts)
        lines += ["and again:", *(await mail_of(await start(sandbox, folder))).splitlines()]
        assert sandbox.record.patched_accounts == first_night
        query_journal(folder, "UPDATE runs SET began = began - 86400")  # as if a day had passed
        lines += ["in the next night:", *(await mail_of(await start(sandbox, folder))).splitlines()]

    assert recorded
    assert first_night.keys() == set(ACCOUNTS[:-2])
    assert all(sandbox.record.patched_accounts[account] > count for account, count in first_night.items())
    assert query_journal(folder, "SELECT id, state FROM runs") == [(1, "complete"), (2, "complete")]
    lines = [re.sub(VARYING_NUMBER, "N", line) for line in lines if not re.match(PROGRESS_LINE, line)]
    assert_output("nightly", lines)


async def test_run_stopped_by_sigterm_completes_requests_in_flight_and_is_resumed(folder: Path) -> None:
    async with Sandbox(latency=0.05) as sandbox:
        process = await start(sandbox, folder)
        await wait_for_requests(sandbox, 20, process)
        os.killpg(process.pid, signal.SIGTERM)
        await mail_of(process)
        await wait_for_unlock(folder)
        [(recorded,)] = query_journal(folder, "SELECT count(*) FROM outcomes WHERE state = 'patched'")
        assert recorded == sandbox.record.requests
        assert await mail_of(await start(sandbox, folder)) == ""

    assert sandbox.record.requests == len(ACCOUNTS)


async def test_start_during_a_run_does_nothing_and_sends_no_mail(folder: Path) -> None:
    async with Sandbox(latency=0.05) as sandbox:
        first = await start(sandbox, folder)
        await wait_for_requests(sandbox, 20, first)
        assert await mail_of(await start(sandbox, folder)) == ""
        assert await mail_of(first) == ""

    assert sandbox.record.requests == len(ACCOUNTS)


@pytest.mark.parametrize(
    ("error_type", "reason"),
    [("insufficient_privileges", "key was refused"), ("disconnected_account", "halted")],
    ids=["the API key is rejected", "too many accounts fail"],
)
async def test_each_start_of_a_halted_run_mails_the_reason_and_resumes_it(
    folder: Path, error_type: str, reason: str
) -> None:
    async with Sandbox() as sandbox:
        for account in ACCOUNTS:
            sandbox.script(account, then=f"errors/{error_type}")
        for _ in range(2):
            assert reason in await mail_of(await start(sandbox, folder))

    assert query_journal(folder, "SELECT id, state FROM runs") == [(1, "halted")]


async def test_service_runs_the_command_of_the_crontab(folder: Path) -> None:
    unit = (HERE / "rotate-fleet.service").read_text().replace("\\\n", " ")
    [service_command] = re.findall(r"^ExecStart=(.+)$", unit, re.MULTILINE)
    [cron_command] = re.findall(r"lock (postpress-async .+) >rotate", (HERE / "crontab").read_text())
    program, *arguments = shlex.split(
        service_command.replace("%%", "%").replace("${CREDENTIALS_DIRECTORY}/", "")
    )
    assert [Path(program).name, *arguments] == shlex.split(cron_command.replace(r"\%", "%"))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    """Otherwise a mistake in a unit would be noticed only at night."""
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

    warnings = [line for line in done.stderr.splitlines() if "rotate-fleet" in line and "man " not in line]
    assert (done.returncode, warnings) == (0, [])
