"""A rollback of a run with a pool, on the command line."""

import json
import sqlite3
from contextlib import closing

import pytest

from postpress_async.sandbox import Sandbox
from tests.support.command_line import JOURNAL, arun, write_fleet

pytestmark = pytest.mark.slow

COUNT = 40
ROLLBACK = ("rollback", JOURNAL, "--to", "1", "--pool", "old.txt")


def listed(network: str, count: int) -> str:
    return "".join(f"10.{network}.{number}:3128:user{number}:hunter2\n" for number in range(1, count + 1))


def proxies_of(sandbox: Sandbox) -> dict[str, object]:
    """What the API has for each account."""
    return {f"acc_{n:06}": sandbox.proxy_of(f"acc_{n:06}") for n in range(COUNT)}


@pytest.fixture
async def before(folder, sandbox):
    """What the accounts had before the second night gave them other proxies."""
    write_fleet(folder, COUNT, "")
    (folder / "old.txt").write_text(listed("1.1", 8))
    (folder / "new.txt").write_text(listed("2.2", 8))
    done = await arun(sandbox, "rotate", "fleet.csv", "--pool", "old.txt")
    assert done.returncode == 0, done.stderr
    before = proxies_of(sandbox)
    done = await arun(sandbox, "rotate", "fleet.csv", "--pool", "new.txt", "--every", "0s")
    assert done.returncode == 0, done.stderr
    assert all(proxies_of(sandbox)[account] != proxy for account, proxy in before.items())
    return before


async def test_a_night_is_put_back_account_by_account(before, sandbox) -> None:
    done = await arun(sandbox, *ROLLBACK)

    assert done.returncode == 0, done.stderr
    assert proxies_of(sandbox) == before
    runs = [
        json.loads(line) for line in (await arun(sandbox, "history", JOURNAL, "--json")).stdout.splitlines()
    ]
    assert (runs[-1]["number"], runs[-1]["selection"]) == (3, "rollback to run 1")
    assert runs[-1]["starts"][-1]["command"] == f"postpress-async {' '.join(ROLLBACK)}"
    again = await arun(sandbox, *ROLLBACK)
    assert again.stdout == "nothing was sent: each account has the assignment that it had after run 1\n"
    assert sandbox.record.requests == 3 * COUNT


async def test_lists_can_have_the_tags_that_they_had_in_the_run(before, sandbox) -> None:
    """The file OLD=old.txt did not exist."""
    done = await arun(sandbox, *ROLLBACK[:-1], "OLD=old.txt")

    assert done.returncode == 0, done.stderr
    assert proxies_of(sandbox) == before


async def test_a_dry_run_shows_it_and_sends_nothing(before, sandbox) -> None:
    done = await arun(sandbox, *ROLLBACK, "--dry-run")

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{COUNT} accounts: {COUNT} with a proxy of their own\n")
    assert "PATCH http" in done.stdout
    assert '"host": "10.1.1.1"' in done.stdout
    assert "hunter2" not in done.stdout
    assert sandbox.record.requests == 2 * COUNT


async def test_nothing_is_sent_if_an_account_cannot_go_back(before, sandbox, folder) -> None:
    (folder / "old.txt").write_text(listed("1.1", 7))

    done = await arun(sandbox, *ROLLBACK)

    assert done.returncode == 2
    reason = "its proxy user8@10.1.1.8:3128 is in no list: add a list that has it with --pool"
    assert done.stderr.splitlines() == [
        *(f"acc_{number:06}: {reason}" for number in range(7, COUNT, 8)),
        "nothing was sent: 5 accounts cannot go back. Use --skip-bad to send only the others: 35 accounts",
    ]
    assert sandbox.record.requests == 2 * COUNT
    done = await arun(sandbox, *ROLLBACK, "--skip-bad", "--json")
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["account_id"] for event in events if event["event"] == "refused"] == [
        f"acc_{number:06}" for number in range(7, COUNT, 8)
    ]
    assert sum(proxies_of(sandbox)[account] == proxy for account, proxy in before.items()) == 35


async def test_no_command_is_advised_that_would_send_nothing(before, sandbox) -> None:
    done = await arun(sandbox, *ROLLBACK[:-1], "new.txt")

    assert done.returncode == 2
    assert done.stderr.endswith(f"nothing was sent: {COUNT} accounts cannot go back\n")


async def test_lists_with_tags_are_read_as_in_the_command_that_used_them(before, sandbox) -> None:
    done = await arun(sandbox, *ROLLBACK[:-1], "US=old.txt", "--pool", "DE=new.txt", "--dry-run")

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{COUNT} accounts: {COUNT} with a proxy of their own\n")


async def test_a_stopped_rollback_is_resumed_and_blocks_other_runs(before, sandbox) -> None:
    await arun(sandbox, *ROLLBACK, "--limit", "10")

    other = await arun(sandbox, "rotate", "fleet.csv", "--pool", "new.txt", "--every", "0s")
    assert other.returncode == 2
    assert "has an unfinished run (rollback to run 1)" in other.stderr
    done = await arun(sandbox, *ROLLBACK)

    assert done.returncode == 0, done.stderr
    assert "(10 of them in an earlier run)" in done.stdout
    assert proxies_of(sandbox) == before
    assert sandbox.record.requests == 3 * COUNT


async def test_the_failed_accounts_are_sent_by_the_command_that_is_shown(before, sandbox) -> None:
    sandbox.script("acc_000003", "errors/disconnected_account")
    done = await arun(sandbox, *ROLLBACK)
    assert done.returncode == 1
    assert f"to retry the failed accounts: postpress-async {' '.join(ROLLBACK)}" in done.stderr

    done = await arun(sandbox, *ROLLBACK)

    assert done.stdout.startswith("1 account: 1 patched"), done.stderr
    assert proxies_of(sandbox) == before


async def test_a_managed_proxy_is_ordered_again_for_its_country(folder, sandbox) -> None:
    write_fleet(folder, 3, "DE")
    await arun(sandbox, "rotate", "fleet.csv")
    write_fleet(folder, 3, "US")
    await arun(sandbox, "rotate", "fleet.csv", "--every", "0s")

    done = await arun(sandbox, "rollback", JOURNAL, "--to", "1")

    assert done.returncode == 0, done.stderr
    with closing(sqlite3.connect(folder / JOURNAL)) as connection:
        assert connection.execute("SELECT DISTINCT assignment FROM latest").fetchall() == [("managed DE",)]


async def test_a_run_that_is_not_there_is_refused(before, sandbox) -> None:
    done = await arun(sandbox, "rollback", JOURNAL, "--to", "7", "--pool", "old.txt")

    assert done.returncode == 2
    assert f"{JOURNAL} has no run 7 to go back to" in done.stderr
