"""
A large rotation with service errors and dead proxies: server, journal and outcomes must agree.

The suite rotates 3,000 accounts, and ``nox -s night`` 100,000.
"""

import asyncio
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from postpress_async.sandbox import Sandbox
from postpress_async.sandbox._faults import _chances
from tests.support.command_line import SANDBOX_KEY
from tests.support.rotations import query, states_by_account

pytestmark = pytest.mark.slow

ACCOUNTS = int(os.environ.get("POSTPRESS_TEST_NIGHT", "3000"))
SEED = 20261125
PROXIES = max(20, ACCOUNTS // 200)
IN_FLIGHT = 100


@pytest.mark.parametrize("seed", [SEED])
async def test_large_rotation_patches_every_existing_account_despite_faults_and_dead_proxies(
    tmp_path: Path, seed: int
) -> None:
    """
    2% provider errors, 1% each of 503 and 504, 0.5% dropped connections; 1% of the accounts do not exist.
    """
    accounts = [f"acc_{number:06}" for number in range(ACCOUNTS)]
    # The accounts that do not exist in the sandbox's profile "flaky".
    missing = {account for account in accounts if _chances(seed, account)[0] < 0.01}
    dead = {f"p{number}.example.net:8080" for number in range(0, PROXIES, 20)}
    requests_by_proxy: Counter[str] = Counter()

    def is_dead(proxy: Any) -> bool:
        address = f"{proxy['host']}:{proxy['port']}"
        requests_by_proxy[address] += 1
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

    assert process.returncode == 1, errors.decode()  # accounts that do not exist have failed
    expected = {account: "failed" if account in missing else "patched" for account in accounts}
    assert states_by_account(journal) == expected
    # The sandbox has the proxies that the journal has recorded, and none of them is dead.
    assert set(record.patched_accounts) == set(accounts) - missing
    labels = dict(query(journal, "SELECT account_id, assignment FROM outcomes WHERE state = 'patched'"))
    for account in record.patched_accounts:
        body = record.proxy_of(account)
        assert body is not None
        address = f"{body['proxy']['host']}:8080"
        assert labels[account].endswith(f"@{address}")
        assert address not in dead
    # Few requests were sent with each dead proxy before it was quarantined.
    assert max(requests_by_proxy[address] for address in dead) <= 2 * IN_FLIGHT
    quarantined = query(journal, "SELECT label FROM proxies WHERE quarantined_at NOT NULL")
    assert {label.partition("@")[2] for (label,) in quarantined} == dead
    # The event stream agrees with the journal and the sandbox.
    events = [json.loads(line) for line in output.splitlines()]
    ended = events[-1]
    assert sum(event["event"] == "settled" for event in events) == ACCOUNTS
    assert ended["states"] == {"patched": ACCOUNTS - len(missing), "failed": len(missing)}
    assert ended["errors"] == {"errors/resource_not_found": len(missing)}
    assert ended["quarantined"] == len(dead)
    [(attempts,)] = query(journal, "SELECT sum(attempts) FROM outcomes")
    assert ended["attempts"] == attempts == record.requests
