"""
A run with a bad service and dead proxies: server, journal and outcomes must agree.

The suite plays 3,000 accounts; ``nox -s night`` plays 100,000.
"""

import asyncio
import json
import os
import sqlite3
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from postpress_async.sandbox import Sandbox
from postpress_async.sandbox._faults import _chances
from tests.support.command_line import SANDBOX_KEY

pytestmark = pytest.mark.slow

ACCOUNTS = int(os.environ.get("POSTPRESS_TEST_NIGHT", "3000"))
SEED = 20261125
PROXIES = max(20, ACCOUNTS // 200)
DEAD = PROXIES // 20
IN_FLIGHT = 100


def rows(journal: Path, query: str) -> list[Any]:
    connection = sqlite3.connect(journal)
    found = connection.execute(query).fetchall()
    connection.close()
    return found


@pytest.mark.parametrize("seed", [SEED])
async def test_after_a_night_every_account_that_could_be_patched_is(tmp_path: Path, seed: int) -> None:
    """2% provider errors, 1% of 503 and of 504 each, 0.5% dropped; 1% of the accounts do not exist."""
    print(f"seed {seed}")
    accounts = [f"acc_{number:06}" for number in range(ACCOUNTS)]
    absent = {account for account in accounts if _chances(seed, account)[0] < 0.01}
    dead = {f"p{number}.example.net:8080" for number in range(0, PROXIES, 20)}
    tried: Counter[str] = Counter()

    def is_dead(proxy: Any) -> bool:
        address = f"{proxy['host']}:{proxy['port']}"
        tried[address] += 1
        return address in dead

    fleet, pool, journal = (tmp_path / name for name in ("fleet.csv", "proxies.txt", "run.sqlite3"))
    fleet.write_text("account_id\n" + "".join(f"{account}\n" for account in accounts))
    pool.write_text("".join(f"p{number}.example.net:8080:u{number}:hunter2\n" for number in range(PROXIES)))

    async with Sandbox(profile="flaky", seed=seed, dead_proxies=is_dead) as sandbox:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "postpress_async", "rotate", str(fleet), "--pool", str(pool), "--json"),
            *("--journal", str(journal), "--in-flight", str(IN_FLIGHT)),
            env={**os.environ, "POSTPRESS_API_KEY": SANDBOX_KEY, "POSTPRESS_BASE_URL": sandbox.url},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await process.communicate()
        record = sandbox.record

    assert process.returncode == 1, errors.decode()  # those that do not exist have failed
    # The journal, to the account.
    states = dict(rows(journal, "SELECT account_id, state FROM outcomes"))
    assert states == {account: "failed" if account in absent else "patched" for account in accounts}
    # The sandbox's own record.
    assert set(record.patched_accounts) == set(accounts) - absent
    last = {account: record.proxy_of(account) for account in record.patched_accounts}
    labels = dict(rows(journal, "SELECT account_id, assignment FROM outcomes WHERE state = 'patched'"))
    for account, body in last.items():
        assert body is not None
        address = f"{body['proxy']['host']}:8080"
        assert labels[account].endswith(f"@{address}")
        assert address not in dead
    # Each dead proxy was found out by few.
    assert len(dead) >= DEAD
    assert max(tried[address] for address in dead) <= 2 * IN_FLIGHT
    quarantined = rows(journal, "SELECT label FROM proxies WHERE quarantined_at NOT NULL")
    assert {label.partition("@")[2] for (label,) in quarantined} == dead
    # What was said while it ran.
    events = [json.loads(line) for line in output.splitlines()]
    ended = events[-1]
    assert sum(event["event"] == "settled" for event in events) == ACCOUNTS
    assert ended["states"] == {"patched": ACCOUNTS - len(absent), "failed": len(absent)}
    assert ended["errors"] == {"errors/resource_not_found": len(absent)}
    assert ended["quarantined"] == len(dead)
    [(attempts,)] = rows(journal, "SELECT sum(attempts) FROM outcomes")
    assert ended["attempts"] == attempts == record.requests
