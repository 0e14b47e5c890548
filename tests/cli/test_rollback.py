"""The command ``rollback``."""

import json
import sqlite3
from contextlib import closing

import pytest

from postpress_async.sandbox import Sandbox
from tests.support.command_line import JOURNAL, arun, write_fleet

pytestmark = pytest.mark.slow

COUNT = 40
ROLLBACK = ("rollback", JOURNAL, "--to", "1", "--pool", "old.txt")


def proxy_list(network: str, count: int) -> str:
    return "".join(f"10.{network}.{number}:3128:user{number}:hunter2\n" for number in range(1, count + 1))


def proxies_of(sandbox: Sandbox) -> dict[str, object]:
    """The proxy that each account has in the sandbox."""
    return {f"acc_{n:06}": sandbox.proxy_of(f"acc_{n:06}") for n in range(COUNT)}


@pytest.fixture
async def first_proxies(folder, sandbox):
    """The proxies of the accounts after the first of two runs. The second run gave each another proxy."""
    write_fleet(folder, COUNT, "")
    (folder / "old.txt").write_text(proxy_list("1.1", 8))
    (folder / "new.txt").write_text(proxy_list("2.2", 8))
    done = await arun(sandbox, "rotate", "fleet.csv", "--pool", "old.txt")
    assert done.returncode == 0, done.stderr
    first_proxies = proxies_of(sandbox)
    done = await arun(sandbox, "rotate", "fleet.csv", "--pool", "new.txt", "--every", "0s")
    assert done.returncode == 0, done.stderr
    assert all(proxies_of(sandbox)[account] != proxy for account, proxy in first_proxies.items())
    return first_proxies


async def test_rollback_gives_each_account_its_earlier_proxy_once(first_proxies, sandbox) -> None:
    done = await arun(sandbox, *ROLLBACK)

    assert done.returncode == 0, done.stderr
    assert proxies_of(sandbox) == first_proxies
    history = await arun(sandbox, "history", JOURNAL, "--json")
    run = json.loads(history.stdout.splitlines()[-1])
    assert (run["number"], run["selection"]) == (3, "rollback to run 1")
    assert run["starts"][-1]["command"] == f"postpress-async {' '.join(ROLLBACK)}"
    again = await arun(sandbox, *ROLLBACK)
    assert again.stdout == "nothing was sent: each account has the assignment that it had after run 1\n"
    assert sandbox.record.requests == 3 * COUNT


async def test_list_can_have_a_tag(first_proxies, sandbox) -> None:
    done = await arun(sandbox, *ROLLBACK[:-1], "OLD=old.txt")

    assert done.returncode == 0, done.stderr
    assert proxies_of(sandbox) == first_proxies


async def test_dry_run_shows_the_requests_of_a_rollback_and_sends_nothing(first_proxies, sandbox) -> None:
    done = await arun(sandbox, *ROLLBACK, "--dry-run")

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{COUNT} accounts: {COUNT} with a proxy of their own\n")
    assert "PATCH http" in done.stdout
    assert '"host": "10.1.1.1"' in done.stdout
    assert "hunter2" not in done.stdout
    assert sandbox.record.requests == 2 * COUNT


async def test_nothing_is_sent_if_an_account_cannot_go_back(first_proxies, sandbox, folder) -> None:
    (folder / "old.txt").write_text(proxy_list("1.1", 7))

    done = await arun(sandbox, *ROLLBACK)

    assert done.returncode == 2
    reason = "its proxy user8@10.1.1.8:3128 is in no list: add a list that has it with --pool"
    assert done.stderr.splitlines() == [
        *(f"acc_{number:06}: {reason}" for number in range(7, COUNT, 8)),
        "nothing was sent: 5 accounts cannot go back. Use --skip-bad to send only the others: 35 accounts",
    ]
    assert sandbox.record.requests == 2 * COUNT
    done = await arun(sandbox, *ROLLBACK, "--skip-bad", "--json")
    assert done.returncode == 1, done.stderr  # some accounts are left
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["account_id"] for event in events if event["event"] == "refused"] == [
        f"acc_{number:06}" for number in range(7, COUNT, 8)
    ]
    assert sum(proxies_of(sandbox)[account] == proxy for account, proxy in first_proxies.items()) == 35


async def test_skip_bad_is_not_suggested_if_no_account_can_go_back(first_proxies, sandbox) -> None:
    done = await arun(sandbox, *ROLLBACK[:-1], "new.txt")

    assert done.returncode == 2
    assert done.stderr.endswith(f"nothing was sent: {COUNT} accounts cannot go back\n")


async def test_skip_bad_does_not_hide_that_no_account_can_go_back(first_proxies, sandbox) -> None:
    done = await arun(sandbox, *ROLLBACK[:-1], "new.txt", "--skip-bad")

    assert done.returncode == 1
    assert done.stdout == (
        f"nothing was sent: {COUNT} accounts cannot go back, and no other account has changed since run 1\n"
    )


async def test_several_lists_can_have_tags(first_proxies, sandbox) -> None:
    done = await arun(sandbox, *ROLLBACK[:-1], "US=old.txt", "--pool", "DE=new.txt", "--dry-run")

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{COUNT} accounts: {COUNT} with a proxy of their own\n")


async def test_unfinished_rollback_is_resumed_and_blocks_other_runs(first_proxies, sandbox) -> None:
    await arun(sandbox, *ROLLBACK, "--limit", "10")

    other = await arun(sandbox, "rotate", "fleet.csv", "--pool", "new.txt", "--every", "0s")
    done = await arun(sandbox, *ROLLBACK)

    assert other.returncode == 2
    assert "has an unfinished run (rollback to run 1)" in other.stderr
    assert done.returncode == 0, done.stderr
    assert "(10 of them in an earlier run)" in done.stdout
    assert proxies_of(sandbox) == first_proxies
    assert sandbox.record.requests == 3 * COUNT


async def test_suggested_command_sends_the_failed_accounts_again(first_proxies, sandbox) -> None:
    sandbox.script("acc_000003", "errors/disconnected_account")

    first = await arun(sandbox, *ROLLBACK)
    again = await arun(sandbox, *ROLLBACK)

    assert first.returncode == 1
    assert f"to retry the failed accounts: postpress-async {' '.join(ROLLBACK)}" in first.stderr
    assert again.stdout.startswith("1 account: 1 patched"), again.stderr
    assert proxies_of(sandbox) == first_proxies


async def test_managed_proxy_is_ordered_again_for_its_country(folder, sandbox) -> None:
    write_fleet(folder, 3, "DE")
    await arun(sandbox, "rotate", "fleet.csv")
    write_fleet(folder, 3, "US")
    await arun(sandbox, "rotate", "fleet.csv", "--every", "0s")

    done = await arun(sandbox, "rollback", JOURNAL, "--to", "1")

    assert done.returncode == 0, done.stderr
    with closing(sqlite3.connect(folder / JOURNAL)) as connection:
        assert connection.execute("SELECT DISTINCT assignment FROM latest").fetchall() == [("managed DE",)]


async def test_rollback_to_an_unknown_run_is_refused(first_proxies, sandbox) -> None:
    done = await arun(sandbox, "rollback", JOURNAL, "--to", "7", "--pool", "old.txt")

    assert done.returncode == 2
    assert f"{JOURNAL} has no run 7 to go back to" in done.stderr
