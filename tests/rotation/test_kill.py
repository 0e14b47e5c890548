"""SIGKILL at any time: the same command completes the rest, and sends no completed account again."""

import asyncio
import os
import random
import signal
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest

from postpress_async.sandbox import Sandbox

pytestmark = pytest.mark.slow

MOMENTS = int(os.environ.get("POSTPRESS_TEST_KILLS", "10"))
ACCOUNTS = 150 * MOMENTS
IN_FLIGHT = 40


def settled(journal: Path) -> set[str]:
    """The accounts that the journal has as done."""
    connection = sqlite3.connect(journal)
    try:
        query = "SELECT account_id FROM outcomes WHERE state IN ('patched', 'failed')"
        return {account for (account,) in connection.execute(query)}
    except sqlite3.OperationalError:  # killed before there was a table
        return set()
    finally:
        connection.close()


async def start(sandbox: Sandbox, fleet: Path, journal: Path, *options: str) -> asyncio.subprocess.Process:
    environment = {**os.environ, "POSTPRESS_API_KEY": sandbox.api_key, "POSTPRESS_BASE_URL": sandbox.url}
    command = ["rotate", str(fleet), "--journal", str(journal), "--in-flight", str(IN_FLIGHT), *options]
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "postpress_async",
        *command,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


@pytest.mark.parametrize("seed", [20261123])
async def test_a_rotation_that_is_killed_goes_on_where_it_was(tmp_path: Path, seed: int) -> None:
    """Ten seeded moments, by how many requests have arrived: nothing left out, nothing settled sent again."""
    print(f"seed {seed}")
    chance = random.Random(seed)
    fleet, journal = tmp_path / "fleet.csv", tmp_path / "run.sqlite3"
    accounts = [f"acc_{number}" for number in range(ACCOUNTS)]
    fleet.write_text("account_id,country\n" + "".join(f"{account},US\n" for account in accounts))
    moments = sorted(chance.sample(range(1, ACCOUNTS), MOMENTS))
    allowed: dict[str, int] = dict.fromkeys(accounts, 1)  # how often each may be sent

    async with Sandbox(latency=0.01) as sandbox:
        for account in accounts[::7]:  # what is sent again meets a gateway that knows nothing of it
            sandbox.script(account, 200, "errors/service_unavailable")
        record = sandbox.record
        resent = 0
        for moment in moments:
            process = await start(sandbox, fleet, journal)
            while record.requests < moment + resent and process.returncode is None:
                await asyncio.sleep(0)
            if process.returncode is None:
                process.send_signal(signal.SIGKILL)
            await process.communicate()
            while record.in_flight:
                await asyncio.sleep(0)
            in_flight = {account for account in accounts if record.sends(account)} - settled(journal)
            resent += len(in_flight)
            for account in in_flight:
                allowed[account] += 1
        process = await start(sandbox, fleet, journal)
        output, _ = await process.communicate()

    assert process.returncode == 0, output
    assert settled(journal) == set(accounts)
    for account in accounts[::7]:
        if allowed[account] > 1:
            allowed[account] += 1  # the attempt that met the 503
    sends = {account: record.sends(account) for account in accounts}
    assert {account: count for account, count in sends.items() if count > allowed[account]} == {}
    assert record.managed_handed_out == ACCOUNTS  # the same Idempotency-Key, so no second proxy
    assert record.replayed > 0  # the kills did catch some in flight


def outcomes(journal: Path) -> dict[str, tuple[str, str | None]]:
    """By account: the state and `applied` that the journal has."""
    with closing(sqlite3.connect(journal)) as connection:
        found = connection.execute("SELECT account_id, state, applied FROM outcomes")
        return {account: (state, applied) for account, state, applied in found}


@pytest.mark.parametrize("seed", [20261126])
async def test_kills_without_idempotency_never_order_a_second_managed_proxy(
    tmp_path: Path, seed: int
) -> None:
    """With --on-unknown report, accounts that a killed run may have sent are not sent again."""
    print(f"seed {seed}")
    chance = random.Random(seed)
    fleet, journal = tmp_path / "fleet.csv", tmp_path / "run.sqlite3"
    accounts = [f"acc_{number}" for number in range(1_500)]
    fleet.write_text("account_id,country\n" + "".join(f"{account},US\n" for account in accounts))
    options = "--no-idempotency", "--on-unknown", "report"

    async with Sandbox(latency=0.01) as sandbox:
        for account in accounts[::50]:
            sandbox.script(account, "lost")
        record = sandbox.record
        for _ in range(3):
            process = await start(sandbox, fleet, journal, *options)
            moment = record.requests + chance.randrange(50, 250)
            while record.requests < moment and process.returncode is None:
                await asyncio.sleep(0)
            process.send_signal(signal.SIGKILL)
            await process.communicate()
            while record.in_flight:
                await asyncio.sleep(0)
        process = await start(sandbox, fleet, journal, *options)
        _, errors = await process.communicate()

    found = outcomes(journal)
    assert max(record.patched_accounts.values()) == 1
    assert set(found.values()) == {("patched", None), ("unknown", "unknown")}
    assert found.keys() == set(accounts)
    unapplied = set(accounts) - record.patched_accounts.keys()
    assert [account for account in unapplied if found[account][0] == "patched"] == []
    assert process.returncode == 1
    assert b"run without --on-unknown report" in errors
