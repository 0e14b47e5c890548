"""Runs with --on: which accounts are sent, what is printed, and which command resumes the run."""

import json

import pytest

from tests.support.command_line import JOURNAL, arun, write_fleet
from tests.support.journals import execute_sql

pytestmark = pytest.mark.slow

OLD = "".join(f"10.1.1.{number}:3128\n" for number in range(1, 6))
NEW = "".join(f"10.2.2.{number}:3128\n" for number in range(1, 6))


@pytest.fixture
async def first_run(folder, sandbox):
    """A run that put ten accounts on the five proxies of the subnet 10.1.1.0/24."""
    write_fleet(folder, 10, "")
    (folder / "old.txt").write_text(OLD)
    (folder / "new.txt").write_text(NEW)
    done = await arun(sandbox, "rotate", "fleet.csv", "--pool", "old.txt")
    assert done.returncode == 0, done.stderr
    return folder


async def history(sandbox) -> list[dict[str, object]]:
    done = await arun(sandbox, "history", JOURNAL, "--json")
    return [json.loads(line) for line in done.stdout.splitlines()]


async def test_accounts_on_two_proxies_are_moved(first_run, sandbox) -> None:
    arguments = ("rotate", "fleet.csv", "--pool", "new.txt", "--on", "10.1.1.1", "--on", "10.1.1.2:3128")
    done = await arun(sandbox, *arguments)

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("4 accounts: 4 patched")
    selection = "accounts on 10.1.1.1, 10.1.1.2:3128"
    assert [run["selection"] for run in await history(sandbox)] == [None, selection]
    second_run = (await arun(sandbox, "history", JOURNAL, "--run", 2)).stdout.splitlines()
    assert second_run[1:3] == [f"  {selection}", "  4 patched of 4 accounts, 4 requests"]
    assert second_run[-1] == f"  postpress-async {' '.join(arguments)}"


async def test_dry_run_shows_how_many_accounts_would_move_and_sends_nothing(first_run, sandbox) -> None:
    arguments = ("rotate", "fleet.csv", "--pool", "new.txt", "--on", "10.1.1.0/30", "--dry-run")
    done = await arun(sandbox, *arguments)

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("6 accounts: 6 with a proxy from the pool\n")
    assert sandbox.record.requests == 10
    assert len(await history(sandbox)) == 1


async def test_accounts_leave_the_subnet_even_if_the_list_still_has_its_proxies(first_run, sandbox) -> None:
    """An account that got another proxy of the dead subnet would be reported as patched."""
    (first_run / "new.txt").write_text(OLD + NEW)
    arguments = ("rotate", "fleet.csv", "--pool", "new.txt", "--on", "10.1.1.0/24")
    preview = await arun(sandbox, *arguments, "--dry-run")
    done = await arun(sandbox, *arguments)
    remaining = await arun(sandbox, "export", JOURNAL, "--assignments", "--on", "10.1.1.0/24")

    assert preview.stderr.startswith("5 of 10 proxies are not used: they are on 10.1.1.0/24\n")
    assert preview.stdout.splitlines()[1].startswith("5 proxies in new.txt")
    assert done.stdout.startswith("10 accounts: 10 patched")
    assert len(remaining.stdout.splitlines()) == 1  # the names of the columns


async def test_export_lists_the_accounts_on_a_subnet(first_run, sandbox) -> None:
    done = await arun(sandbox, "export", JOURNAL, "--assignments", "--on", "10.1.1.0/30")

    accounts = [line.split(",")[0] for line in done.stdout.splitlines()[1:]]
    assert accounts == [f'"acc_00000{number}"' for number in (0, 1, 2, 5, 6, 7)]


@pytest.mark.parametrize("options", [("-o", "a.parquet"), ("--format", "parquet", "-o", "a")], ids=str)
async def test_assignments_cannot_be_exported_as_parquet(first_run, sandbox, options) -> None:
    done = await arun(sandbox, "export", JOURNAL, "--assignments", *options)

    assert done.returncode == 2
    assert "--assignments cannot be combined with" in done.stderr


async def test_export_with_on_requires_assignments(first_run, sandbox) -> None:
    done = await arun(sandbox, "export", JOURNAL, "--on", "10.1.1.0/30")

    assert done.returncode == 2
    assert "--on requires --assignments" in done.stderr


async def test_history_shows_one_run(first_run, sandbox) -> None:
    await arun(sandbox, "rotate", "fleet.csv", "--pool", "new.txt", "--on", "10.1.1.1")

    second = (await arun(sandbox, "history", JOURNAL, "--run", "2")).stdout
    account = (await arun(sandbox, "history", JOURNAL, "acc_000000", "--run", "2")).stdout
    missing = await arun(sandbox, "history", JOURNAL, "--run", "3")

    assert second.startswith("run 2: ")
    assert second.count("\nrun ") == 0
    assert "accounts on 10.1.1.1\n" in second
    assert account.startswith("run 2: ")
    assert account.count("\n") == 1
    assert (missing.returncode, "has no run 3" in missing.stderr) == (2, True)


async def test_history_of_one_run_works_even_if_another_run_is_damaged(first_run, sandbox) -> None:
    await arun(sandbox, "rotate", "fleet.csv", "--pool", "new.txt", "--on", "10.1.1.1")
    execute_sql(first_run / JOURNAL, "UPDATE runs SET counts = 'damaged' WHERE id = 1")

    first, second = [await arun(sandbox, "history", JOURNAL, "--run", number) for number in (1, 2)]

    assert (first.returncode, second.returncode) == (2, 0), second.stderr
    assert second.stdout.startswith("run 2: ")


async def test_dry_run_before_the_next_run_is_due_shows_the_time_and_no_requests(first_run, sandbox) -> None:
    arguments = ("rotate", "fleet.csv", "--pool", "new.txt", "--every", "20h", "--dry-run")
    done = await arun(sandbox, *arguments)

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[2].endswith("; 0 would be sent")
    assert done.stdout.splitlines()[3].startswith("the next run is due at ")
    assert "PATCH" not in done.stdout
    assert len(done.stdout.splitlines()) == 4


async def test_accounts_per_proxy_counts_accounts_outside_the_selection(first_run, sandbox) -> None:
    """Of the two selected accounts, only one can move to a proxy that already has two accounts."""
    (first_run / "one.txt").write_text("10.1.1.5:3128\n")
    arguments = ("--on", "10.1.1.1", "--pool", "one.txt", "--accounts-per-proxy", "3")

    dry = await arun(sandbox, "rotate", "fleet.csv", *arguments, "--dry-run")
    done = await arun(sandbox, "rotate", "fleet.csv", *arguments)

    assert dry.stdout.count("(the pool is exhausted)") == 1
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("2 accounts: 1 patched, 1 skipped")


async def test_nothing_is_sent_if_no_account_matches(first_run, sandbox) -> None:
    done = await arun(sandbox, "rotate", "fleet.csv", "--pool", "new.txt", "--on", "10.9.9.0/24")

    assert done.returncode == 2
    assert f"nothing was sent: {JOURNAL} has no accounts on 10.9.9.0/24" in done.stderr
    assert (sandbox.record.requests, len(await history(sandbox))) == (10, 1)


async def test_unfinished_run_blocks_other_runs_and_its_command_is_shown(first_run, sandbox) -> None:
    move = ("rotate", "fleet.csv", "--pool", "new.txt", "--on", "10.1.1.0/24")
    limited_move = (*move, "--limit", "4")
    all_accounts = ("rotate", "fleet.csv", "--pool", "old.txt", "--every", "0s")
    await arun(sandbox, *limited_move)

    blocked = await arun(sandbox, *all_accounts)

    assert blocked.returncode == 2
    assert "has an unfinished run (accounts on 10.1.1.0/24)" in blocked.stderr
    assert f"`postpress-async {' '.join(limited_move)}`" in blocked.stderr
    resumed = await arun(sandbox, *move)
    assert (resumed.returncode, sandbox.record.requests) == (0, 20)
    allowed = await arun(sandbox, *all_accounts)
    assert (allowed.returncode, sandbox.record.requests) == (0, 30)


async def test_suggested_command_sends_the_failed_accounts_again(first_run, sandbox) -> None:
    sandbox.script("acc_000001", "errors/disconnected_account")
    move = ("rotate", "fleet.csv", "--pool", "new.txt", "--on", "10.1.1.2")

    first = await arun(sandbox, *move)
    again = await arun(sandbox, *move)

    assert f"to retry the failed accounts: postpress-async {' '.join(move)}" in first.stderr
    assert again.stdout.startswith("1 account: 1 patched"), again.stderr


async def test_on_cannot_be_combined_with_every(first_run, sandbox) -> None:
    done = await arun(sandbox, "rotate", "fleet.csv", "--on", "p1", "--every", "20h")

    assert done.returncode == 2
    assert "--on cannot be combined with --every" in done.stderr
