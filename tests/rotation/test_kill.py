"""After a SIGKILL at any time, the same command sends the remaining accounts, and no other account again."""

import asyncio
import os
import random
import signal
import sqlite3
import sys
from pathlib import Path

import pytest

from postpress_async.sandbox import Sandbox
from tests.support.rotations import query

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("POSTPRESS_TEST_KILLS", "10"))
ACCOUNTS = 150 * KILLS
IN_FLIGHT = 40


def completed_accounts(journal: Path) -> set[str]:
    """The accounts that the journal has as patched or failed."""
    try:
        rows = query(journal, "SELECT account_id FROM outcomes WHERE state IN ('patched', 'failed')")
    except sqlite3.OperationalError:  # the process was killed before it had created the table
        return set()
    return {account for (account,) in rows}


async def start_command(
    sandbox: Sandbox, fleet: Path, journal: Path, *options: str
) -> asyncio.subprocess.Process:
    environment = {**os.environ, "POSTPRESS_API_KEY": sandbox.api_key, "POSTPRESS_BASE_URL": sandbox.url}
    command = ["rotate", str(fleet), "--journal", str(journal), "--in-flight", str(IN_FLIGHT), *options]
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "postpress_async", *command),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


@pytest.mark.parametrize("seed", [20261123])
async def test_repeatedly_killed_rotation_sends_each_account_and_no_completed_account_again(
    tmp_path: Path, seed: int
) -> None:
    """The process is killed after seeded numbers of requests, and then the command is run again."""
    rng = random.Random(seed)
    fleet, journal = tmp_path / "fleet.csv", tmp_path / "run.sqlite3"
    accounts = [f"acc_{number}" for number in range(ACCOUNTS)]
    fleet.write_text("account_id,country\n" + "".join(f"{account},US\n" for account in accounts))
    kill_points = sorted(rng.sample(range(1, ACCOUNTS), KILLS))  # in requests, without repeated requests
    allowed_sends = dict.fromkeys(accounts, 1)

    async with Sandbox(latency=0.01) as sandbox:
        for account in accounts[::7]:  # a second request of these accounts first gets a 503 from a gateway
            sandbox.script(account, 200, "errors/service_unavailable")
        record = sandbox.record
        resent = 0
        for kill_point in kill_points:
            process = await start_command(sandbox, fleet, journal)
            while record.requests < kill_point + resent and process.returncode is None:
                await asyncio.sleep(0)
            if process.returncode is None:
                process.send_signal(signal.SIGKILL)
            await process.communicate()
            while record.in_flight:
                await asyncio.sleep(0)
            in_flight = {account for account in accounts if record.sends(account)} - completed_accounts(
                journal
            )
            resent += len(in_flight)
            for account in in_flight:
                allowed_sends[account] += 1
        process = await start_command(sandbox, fleet, journal)
        output, _ = await process.communicate()

    assert process.returncode == 0, output
    assert completed_accounts(journal) == set(accounts)
    for account in accounts[::7]:
        if allowed_sends[account] > 1:
            allowed_sends[account] += 1  # the attempt that got the 503
    sends = {account: record.sends(account) for account in accounts}
    assert {account: count for account, count in sends.items() if count > allowed_sends[account]} == {}
    assert record.managed_handed_out == ACCOUNTS  # repeated requests had the same idempotency key
    assert record.replayed > 0  # some accounts were in flight at a kill


def recorded_by_account(journal: Path) -> dict[str, tuple[str, str | None]]:
    """The recorded state and `applied` of each account."""
    rows = query(journal, "SELECT account_id, state, applied FROM outcomes")
    return {account: (state, applied) for account, state, applied in rows}


@pytest.mark.parametrize("seed", [20261126])
async def test_kills_without_idempotency_never_order_a_second_managed_proxy(
    tmp_path: Path, seed: int
) -> None:
    """With `--on-unknown report`, accounts that a killed run may have sent are not sent again."""
    rng = random.Random(seed)
    fleet, journal = tmp_path / "fleet.csv", tmp_path / "run.sqlite3"
    accounts = [f"acc_{number}" for number in range(1_500)]
    fleet.write_text("account_id,country\n" + "".join(f"{account},US\n" for account in accounts))
    options = "--no-idempotency", "--on-unknown", "report"

    async with Sandbox(latency=0.01) as sandbox:
        for account in accounts[::50]:
            sandbox.script(account, "lost")
        record = sandbox.record
        for _ in range(3):
            process = await start_command(sandbox, fleet, journal, *options)
            kill_point = record.requests + rng.randrange(50, 250)
            while record.requests < kill_point and process.returncode is None:
                await asyncio.sleep(0)
            process.send_signal(signal.SIGKILL)
            await process.communicate()
            while record.in_flight:
                await asyncio.sleep(0)
        process = await start_command(sandbox, fleet, journal, *options)
        _, errors = await process.communicate()

    recorded = recorded_by_account(journal)
    assert max(record.patched_accounts.values()) == 1
    assert set(recorded.values()) == {("patched", None), ("unknown", "unknown")}
    assert recorded.keys() == set(accounts)
    not_applied = set(accounts) - record.patched_accounts.keys()
    assert [account for account in not_applied if recorded[account][0] == "patched"] == []
    assert process.returncode == 1
    assert b"run without --on-unknown report" in errors
