"""Runs of some accounts on the command line: what they say, and which command finishes or repeats them."""

import json

import pytest

from tests.support.command_line import JOURNAL, arun, write_fleet
from tests.support.journals import change

pytestmark = pytest.mark.slow

OLD = "".join(f"10.1.1.{number}:3128\n" for number in range(1, 6))
NEW = "".join(f"10.2.2.{number}:3128\n" for number in range(1, 6))


@pytest.fixture
async def night(folder, sandbox):
    """Ten accounts on the five proxies of a subnet."""
    write_fleet(folder, 10, "")
    (folder / "old.txt").write_text(OLD)
    (folder / "new.txt").write_text(NEW)
    done = await arun(sandbox, "rotate", "fleet.csv", "--pool", "old.txt")
    assert done.returncode == 0, done.stderr
    return folder


async def history(sandbox) -> list[dict[str, object]]:
    done = await arun(sandbox, "history", JOURNAL, "--json")
    return [json.loads(line) for line in done.stdout.splitlines()]


async def test_accounts_on_two_proxies_are_moved(night, sandbox) -> None:
    words = ("rotate", "fleet.csv", "--pool", "new.txt", "--on", "10.1.1.1", "--on", "10.1.1.2:3128")
    done = await arun(sandbox, *words)

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("4 accounts: 4 patched")
    assert [run["selection"] for run in await history(sandbox)] == [
        None,
        "accounts on 10.1.1.1, 10.1.1.2:3128",
    ]
    assert (await arun(sandbox, "history", JOURNAL)).stdout.splitlines()[5:] == [
        "  accounts on 10.1.1.1, 10.1.1.2:3128",
        "  4 patched of 4 accounts, 4 requests",
        *(await arun(sandbox, "history", JOURNAL)).stdout.splitlines()[7:8],
        f"  postpress-async {' '.join(words)}",
    ]


async def test_a_dry_run_shows_which_accounts_would_move(night, sandbox) -> None:
    words = ("rotate", "fleet.csv", "--pool", "new.txt", "--on", "10.1.1.0/30", "--dry-run")
    done = await arun(sandbox, *words)

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("6 accounts: 6 with one of the pool\n")
    assert sandbox.record.requests == 10
    assert len(await history(sandbox)) == 1


async def test_accounts_leave_a_subnet_of_which_the_list_still_has_proxies(night, sandbox) -> None:
    """Some of them were given another proxy of the dead subnet, and reported as patched."""
    (night / "new.txt").write_text(OLD + NEW)
    words = ("rotate", "fleet.csv", "--pool", "new.txt", "--on", "10.1.1.0/24")
    preview = await arun(sandbox, *words, "--dry-run")
    done = await arun(sandbox, *words)
    left = await arun(sandbox, "export", JOURNAL, "--assignments", "--on", "10.1.1.0/24")

    assert preview.stderr.startswith("5 of 10 proxies are not used: they are on 10.1.1.0/24\n")
    assert preview.stdout.splitlines()[1].startswith("5 proxies in new.txt")
    assert done.stdout.startswith("10 accounts: 10 patched")
    assert len(left.stdout.splitlines()) == 1


async def test_export_lists_the_accounts_on_a_subnet(night, sandbox) -> None:
    """Also the proxies without a user name, which no search for ``@10.1.1.`` would find."""
    done = await arun(sandbox, "export", JOURNAL, "--assignments", "--on", "10.1.1.0/30")
    other = await arun(sandbox, "export", JOURNAL, "--on", "10.1.1.0/30")

    accounts = [line.split(",")[0] for line in done.stdout.splitlines()[1:]]
    assert accounts == [f'"acc_00000{number}"' for number in (0, 1, 2, 5, 6, 7)]
    assert (other.returncode, "--on requires --assignments" in other.stderr) == (2, True)


async def test_history_shows_one_run(night, sandbox) -> None:
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


async def test_history_of_one_run_does_not_read_the_others(night, sandbox) -> None:
    """An old run of which something is damaged kept all others from being listed."""
    await arun(sandbox, "rotate", "fleet.csv", "--pool", "new.txt", "--on", "10.1.1.1")
    change(night / JOURNAL, "UPDATE runs SET counts = 'damaged' WHERE id = 1")

    first, second = [await arun(sandbox, "history", JOURNAL, "--run", number) for number in (1, 2)]

    assert (first.returncode, second.returncode) == (2, 0), second.stderr
    assert second.stdout.startswith("run 2: ")


async def test_a_dry_run_says_when_the_next_run_is_due(night, sandbox) -> None:
    """Three requests were shown that no run would send."""
    words = ("rotate", "fleet.csv", "--pool", "new.txt", "--every", "20h", "--dry-run")
    done = await arun(sandbox, *words)

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[2].endswith("; 0 would be sent")
    assert done.stdout.splitlines()[3].startswith("the next run is due at ")
    assert "PATCH" not in done.stdout
    assert len(done.stdout.splitlines()) == 4


async def test_the_limit_per_proxy_counts_the_accounts_that_stay(night, sandbox) -> None:
    """Two accounts move to a list of one proxy that already has two, so it has room for one more."""
    (night / "one.txt").write_text("10.1.1.5:3128\n")
    words = ("--on", "10.1.1.1", "--pool", "one.txt", "--accounts-per-proxy", "3")
    dry = await arun(sandbox, "rotate", "fleet.csv", *words, "--dry-run")
    assert dry.stdout.count("(the pool is exhausted)") == 1

    done = await arun(sandbox, "rotate", "fleet.csv", *words)

    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("2 accounts: 1 patched, 1 skipped")


async def test_nothing_is_sent_if_no_account_matches(night, sandbox) -> None:
    done = await arun(sandbox, "rotate", "fleet.csv", "--pool", "new.txt", "--on", "10.9.9.0/24")

    assert done.returncode == 2
    assert f"nothing was sent: {JOURNAL} has no accounts on 10.9.9.0/24" in done.stderr
    assert (sandbox.record.requests, len(await history(sandbox))) == (10, 1)


async def test_an_unfinished_run_says_which_command_finishes_it(night, sandbox) -> None:
    on = ("rotate", "fleet.csv", "--pool", "new.txt", "--on", "10.1.1.0/24", "--limit", "4")
    await arun(sandbox, *on)

    done = await arun(sandbox, "rotate", "fleet.csv", "--pool", "old.txt", "--every", "0s")

    assert done.returncode == 2
    assert "has an unfinished run (accounts on 10.1.1.0/24)" in done.stderr
    assert f"`postpress-async {' '.join(on)}`" in done.stderr
    done = await arun(sandbox, *on[:-2])
    assert (done.returncode, sandbox.record.requests) == (0, 20)
    done = await arun(sandbox, "rotate", "fleet.csv", "--pool", "old.txt", "--every", "0s")
    assert (done.returncode, sandbox.record.requests) == (0, 30)


async def test_the_failed_accounts_of_the_run_are_sent_by_the_command_that_is_shown(night, sandbox) -> None:
    sandbox.script("acc_000001", "errors/disconnected_account")
    on = ("rotate", "fleet.csv", "--pool", "new.txt", "--on", "10.1.1.2")
    done = await arun(sandbox, *on)
    assert f"to retry the failed accounts: postpress-async {' '.join(on)}" in done.stderr

    done = await arun(sandbox, *on)

    assert done.stdout.startswith("1 account: 1 patched"), done.stderr


async def test_it_cannot_be_combined_with_an_interval(night, sandbox) -> None:
    done = await arun(sandbox, "rotate", "fleet.csv", "--on", "p1", "--every", "20h")

    assert done.returncode == 2
    assert "--on cannot be combined with --every" in done.stderr
