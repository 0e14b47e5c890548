"""Runs of selected accounts: those that have certain proxies according to the journal."""

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from postpress_async import (
    CustomProxy,
    Fleet,
    ManagedProxy,
    PostPressSession,
    ProxyPool,
    RetryPolicy,
    RotationSummary,
)
from postpress_async.errors import JournalError
from postpress_async.rotation import State
from postpress_async.rotation._selection import Selection
from postpress_async.rotation.journal._history import assignments_of, runs_of, select
from postpress_async.rotation.journal._reading import JournalReader
from postpress_async.sandbox import Sandbox
from tests.support.journals import outcome, write
from tests.support.rotations import query

ACCOUNTS = [f"acc_{number}" for number in range(10)]
OLD_SUBNET = "10.1.1"
"""The first three numbers of the addresses in the subnet that accounts leave."""


def proxies(subnet: str, count: int) -> list[CustomProxy]:
    return [CustomProxy(host=f"{subnet}.{number}", port=3128) for number in range(1, count + 1)]


def write_fleet(path: Path, count: int) -> Path:
    path.write_text("account_id\n" + "".join(f"acc_{number:06}\n" for number in range(count)))
    return path


def write_journal(path: Path, count: int, *, moving: int) -> Path:
    """
    Write the journal of a complete run in which the first *moving* of each 100 accounts have a proxy in
    `OLD_SUBNET`.
    """

    def label(number: int) -> str:
        if number % 100 < moving:
            return f"{OLD_SUBNET}.{1 + number // 100 % 8}:3128"
        return f"10.2.2.{1 + number % 40}:3128"

    outcomes = (outcome(number, assignment=label(number)) for number in range(count))
    return write(path, outcomes, state="complete", began=1.0, ended=2.0, total=count)


async def rotate(sandbox: Sandbox, changes: Any, journal: Path, **options: Any) -> RotationSummary:
    async with (
        PostPressSession(sandbox.api_key, base_url=sandbox.url, retry=RetryPolicy(attempts=1)) as session,
        session.rotate(changes, journal=journal, **options) as rotation,
    ):
        return await rotation.run()


def assignments(journal: Path) -> dict[str, str]:
    with JournalReader(journal) as view:
        return {entry.account_id: entry.assignment for entry in assignments_of(view)}


# --- Patterns ---


@pytest.mark.parametrize(
    ("pattern", "assignment", "expected"),
    [
        ("10.1.1.0/24", "10.1.1.77:3128", True),
        ("10.1.1.0/24", "user@10.1.1.77:3128", True),
        ("10.1.1.0/24", "10.1.2.77:3128", False),
        ("10.1.1.0/24", "p1.example.net:3128", False),
        ("10.1.1.0/24", "line 7 10.1.1.77:3128", True),
        ("10.1.1.0/24", "managed 10.1.1.77", False),
        ("2001:db8::/32", "[2001:db8::1]:3128", True),
        ("2001:db8::/32", "10.1.1.1:3128", False),
        ("p1.example.net", "p1.example.net:3128", True),
        ("P1.Example.net", "user@p1.example.net:3128", True),
        ("p1.example.net", "p11.example.net:3128", False),
        ("p1.example.net:3128", "p1.example.net:3128", True),
        ("p1.example.net:3128", "p1.example.net:3129", False),
        ("user@p1.example.net", "user@p1.example.net:3128", True),
        ("user@p1.example.net", "user2@p1.example.net:3128", False),
        ("user@p1.example.net:1", "user@p1.example.net:3128", False),
        ("2001:db8:0::1", "[2001:db8::1]:3128", True),
        ("[2001:db8::1]:3128", "[2001:db8::1]:3128", True),
        ("[2001:db8::1]:3129", "[2001:db8::1]:3128", False),
    ],
)
def test_pattern_matches_host_port_and_user_name(pattern, assignment, expected) -> None:
    selection = Selection.of([pattern])

    assert selection is not None
    assert selection.matches(assignment) is expected


@pytest.mark.parametrize("pattern", ["", "10.1.1.7/24", "10.1.1.0/x", "p1:port", "user@", ":3128"])
def test_other_forms_of_patterns_are_rejected(pattern) -> None:
    with pytest.raises(ValueError, match="write HOST, HOST:PORT, USER@HOST or a network"):
        Selection.of([pattern])


# --- Which accounts are sent ---


@pytest.mark.parametrize(
    "count", [pytest.param(1_000, id="1,000"), pytest.param(100_000, id="100,000", marks=pytest.mark.slow)]
)
async def test_exactly_the_accounts_in_the_subnet_get_another_proxy(tmp_path, sandbox, count) -> None:
    """`accounts_per_proxy` also counts the accounts that the run does not send."""
    fleet = write_fleet(tmp_path / "fleet.csv", count)
    with Fleet.open(fleet, pooled=True) as opened:
        journal = write_journal(tmp_path / "j", count, moving=8)
        before = assignments(journal)
        limit = count // 40
        pool = ProxyPool(proxies("10.2.2", 40), accounts_per_proxy=limit)

        summary = await rotate(sandbox, opened, journal, pool=pool, on=[f"{OLD_SUBNET}.0/24"])

    after = assignments(journal)
    moving = {account for account, label in before.items() if label.startswith(OLD_SUBNET)}
    assert len(moving) == count * 8 // 100
    assert summary.patched == summary.total == len(moving)
    assert moving == {account for account in before if before[account] != after[account]}
    assert sandbox.record.patched_accounts == Counter(moving)
    assert max(Counter(after.values()).values()) <= limit
    assert not any(label.startswith(OLD_SUBNET) for label in after.values())
    assert query(journal, "SELECT count(*) FROM outcomes WHERE run = 2") == [(len(moving),)]


@pytest.mark.parametrize(
    ("subnets", "expected"),
    [
        pytest.param(["10.1.1", "10.2.2"], "10.2.2.", id="old and new subnet"),
        pytest.param(["10.1.1"], "10.1.1.", id="old subnet only, as with new passwords"),
    ],
)
async def test_accounts_get_a_proxy_outside_the_subnet_if_the_pool_has_one(
    tmp_path, sandbox, subnets, expected
) -> None:
    old = dict(zip(ACCOUNTS, proxies("10.1.1", len(ACCOUNTS)), strict=True))
    await rotate(sandbox, old, tmp_path / "j")
    pool = ProxyPool([proxy for subnet in subnets for proxy in proxies(subnet, 5)])

    summary = await rotate(sandbox, ACCOUNTS, tmp_path / "j", on=["10.1.1.0/24"], pool=pool)

    assert summary.patched == len(ACCOUNTS)
    hosts = {sandbox.proxy_of(account)["proxy"]["host"] for account in ACCOUNTS}
    assert all(host.startswith(expected) for host in hosts)
    assert len(hosts) == 5


async def test_selection_applies_to_a_mapping(tmp_path, sandbox) -> None:
    fleet = {f"acc_{number}": proxy for number, proxy in enumerate(proxies("10.1.1", 4))}
    await rotate(sandbox, fleet, tmp_path / "j")

    summary = await rotate(
        sandbox, dict.fromkeys(fleet, ManagedProxy(country="US")), tmp_path / "j", on="10.1.1.2"
    )

    assert summary.patched == 1
    assert assignments(tmp_path / "j")["acc_1"] == "managed US"


async def test_selection_applies_to_an_asynchronous_input(tmp_path, sandbox) -> None:
    fleet = {f"acc_{number}": proxy for number, proxy in enumerate(proxies("10.1.1", 4))}
    await rotate(sandbox, fleet, tmp_path / "j")

    async def pairs() -> AsyncIterator[tuple[str, ManagedProxy]]:
        for account_id in fleet:
            yield account_id, ManagedProxy(country="US")

    summary = await rotate(sandbox, pairs(), tmp_path / "j", on=["10.1.1.2", "10.1.1.4"])

    assert summary.patched == 2
    assert sandbox.record.patched_accounts == Counter(acc_0=1, acc_1=2, acc_2=1, acc_3=2)


async def test_account_that_may_have_the_proxy_is_selected(tmp_path, sandbox) -> None:
    """The latest request got no response, so the account has its new proxy or the earlier one."""
    await rotate(sandbox, {"acc_1": proxies("10.1.1", 1)[0]}, tmp_path / "j")
    sandbox.script("acc_1", "lost")
    await rotate(sandbox, {"acc_1": proxies("10.2.2", 1)[0]}, tmp_path / "j", every=0)
    assert query(tmp_path / "j", "SELECT state FROM latest") == [("unknown",)]

    summary = await rotate(sandbox, {"acc_1": proxies("10.3.3", 1)[0]}, tmp_path / "j", on=["10.1.1.0/24"])

    assert summary.total == 1


async def test_nothing_is_sent_if_no_account_matches(tmp_path, sandbox) -> None:
    await rotate(sandbox, {"acc_1": proxies("10.1.1", 1)[0]}, tmp_path / "j")

    with pytest.raises(JournalError, match=r"has no accounts on 10\.9\.9\.0/24"):
        await rotate(sandbox, {"acc_1": proxies("10.2.2", 1)[0]}, tmp_path / "j", on=["10.9.9.0/24"])

    assert sandbox.record.requests == 1
    assert query(tmp_path / "j", "SELECT count(*) FROM runs") == [(1,)]


async def test_nothing_is_sent_if_the_input_has_none_of_the_accounts(tmp_path, sandbox) -> None:
    await rotate(sandbox, {"acc_1": proxies("10.1.1", 1)[0]}, tmp_path / "j")

    with pytest.raises(JournalError, match="the input has none of the accounts on"):
        await rotate(sandbox, {"acc_2": proxies("10.2.2", 1)[0]}, tmp_path / "j", on=["10.1.1.1"])

    assert query(tmp_path / "j", "SELECT count(*) FROM runs") == [(1,)]


# --- Runs of a selection and other runs ---


async def start_unfinished_run(sandbox: Sandbox, journal: Path) -> dict[str, CustomProxy]:
    """
    Give six of ten accounts a proxy in the subnet, then move three of the six. Return the changes that move
    all.
    """
    old = [*proxies("10.1.1", 6), *proxies("10.2.2", 4)]
    await rotate(sandbox, {f"acc_{number}": proxy for number, proxy in enumerate(old)}, journal)
    new = {f"acc_{number}": proxy for number, proxy in enumerate(proxies("10.3.3", 10))}
    summary = await rotate(sandbox, new, journal, on=["10.1.1.0/24"], limit=3)
    assert summary.patched == 3
    return new


async def test_unfinished_run_of_the_same_selection_is_resumed(tmp_path, sandbox) -> None:
    new = await start_unfinished_run(sandbox, tmp_path / "j")

    summary = await rotate(sandbox, new, tmp_path / "j", on=["10.1.1.0/24"])

    assert (summary.patched, summary.resumed) == (6, 3)
    assert query(tmp_path / "j", "SELECT run, count(*) FROM outcomes GROUP BY run") == [(1, 10), (2, 6)]
    assert query(tmp_path / "j", "SELECT state, selection FROM runs") == [
        ("complete", None),
        ("complete", "accounts on 10.1.1.0/24"),
    ]


async def test_interrupted_run_without_remaining_accounts_does_not_prevent_another_selection(
    tmp_path, sandbox
) -> None:
    new = await start_unfinished_run(sandbox, tmp_path / "j")
    await rotate(sandbox, new, tmp_path / "j", on=["10.1.1.0/24"])
    query(tmp_path / "j", "UPDATE runs SET state = 'interrupted' WHERE id = 2")

    summary = await rotate(sandbox, new, tmp_path / "j", on=["10.2.2.0/24"])

    assert (summary.patched, summary.resumed) == (4, 0)


async def test_unfinished_run_continues_with_an_edited_input(tmp_path, sandbox) -> None:
    """Rows are removed, moved and appended, both selected rows and other rows."""
    journal = write_journal(tmp_path / "j", 100, moving=8)
    fleet = write_fleet(tmp_path / "fleet.csv", 100)
    options = {"on": ["10.1.1.0/24"], "pool": ProxyPool(proxies("10.3.3", 20))}

    with Fleet.open(fleet, pooled=True) as opened:
        await rotate(sandbox, opened, journal, **options, limit=3)
    head, *lines = fleet.read_text().splitlines(keepends=True)
    for removed in ("acc_000001\n", "acc_000006\n", "acc_000050\n"):
        lines.remove(removed)
    fleet.write_text("".join([head, *lines[::-1], "acc_new\n"]))
    with Fleet.open(fleet, pooled=True) as opened:
        summary = await rotate(sandbox, opened, journal, **options)

    assert (summary.patched, summary.resumed) == (6, 2)  # two of the eight selected accounts were removed
    assert sandbox.record.patched_accounts == Counter(f"acc_{n:06}" for n in range(8) if n != 6)
    assert query(journal, "SELECT state, selection FROM runs WHERE id = 2") == [
        ("complete", "accounts on 10.1.1.0/24")
    ]


@pytest.mark.parametrize("options", [{}, {"every": 0.0}, {"on": ["10.2.2.0/24"]}, {"on_failed": "retry"}])
async def test_unfinished_run_of_a_selection_must_be_finished_first(tmp_path, sandbox, options) -> None:
    new = await start_unfinished_run(sandbox, tmp_path / "j")
    requests = sandbox.record.requests

    with pytest.raises(
        JournalError, match=r"unfinished run \(accounts on 10.1.1.0/24\).* Finish that run first"
    ):
        await rotate(sandbox, new, tmp_path / "j", **options)

    assert sandbox.record.requests == requests


async def test_unfinished_run_of_all_accounts_must_be_finished_first(tmp_path, sandbox) -> None:
    old = {f"acc_{number}": proxy for number, proxy in enumerate(proxies("10.1.1", 6))}
    await rotate(sandbox, old, tmp_path / "j", limit=3)

    with pytest.raises(JournalError, match=r"unfinished run \(all accounts\)"):
        await rotate(sandbox, old, tmp_path / "j", on=["10.1.1.0/24"])

    assert sandbox.record.requests == 3


async def test_complete_run_of_a_selection_allows_another_selection(tmp_path, sandbox) -> None:
    """Accounts that have left the subnet are not selected again."""
    new = await start_unfinished_run(sandbox, tmp_path / "j")
    await rotate(sandbox, new, tmp_path / "j", on=["10.1.1.0/24"])

    summary = await rotate(sandbox, new, tmp_path / "j", on=["10.3.3.1", "10.3.3.2"])
    with pytest.raises(JournalError, match="has no accounts on"):
        await rotate(sandbox, new, tmp_path / "j", on=["10.1.1.0/24"])

    assert summary.patched == 2
    with JournalReader(tmp_path / "j") as view:
        assert [(run.number, run.selection, run.total) for run in runs_of(view)] == [
            (1, None, 10),
            (2, "accounts on 10.1.1.0/24", 6),
            (3, "accounts on 10.3.3.1, 10.3.3.2", 2),
        ]


async def test_same_selection_resumes_a_complete_run_with_accounts_in_doubt(tmp_path, sandbox) -> None:
    """The accounts keep their idempotency keys, so no second managed proxy is ordered."""
    await rotate(sandbox, {"acc_1": proxies("10.1.1", 1)[0]}, tmp_path / "j")
    us = {"acc_1": ManagedProxy(country="US")}
    sandbox.script("acc_1", "lost")
    await rotate(sandbox, us, tmp_path / "j", on=["10.1.1.1"])
    assert query(tmp_path / "j", "SELECT state FROM latest") == [("unknown",)]

    summary = await rotate(sandbox, us, tmp_path / "j", on=["10.1.1.1"])

    assert summary.states == {State.PATCHED: 1}
    assert query(tmp_path / "j", "SELECT count(*) FROM runs") == [(2,)]


async def test_every_counts_from_the_latest_run_of_all_accounts(tmp_path, sandbox) -> None:
    new = await start_unfinished_run(sandbox, tmp_path / "j")
    await rotate(sandbox, new, tmp_path / "j", on=["10.1.1.0/24"])
    query(tmp_path / "j", "UPDATE runs SET began = began - 7200 WHERE id = 1")
    query(tmp_path / "j", "UPDATE runs SET began = began - 3600 WHERE id = 2")

    early = await rotate(sandbox, new, tmp_path / "j", every=3 * 3600)
    assert early.attempts == 0
    summary = await rotate(sandbox, new, tmp_path / "j", every=1.5 * 3600)

    assert summary.patched == 10
    assert query(tmp_path / "j", "SELECT id, selection FROM runs ORDER BY id")[-1] == (3, None)


@pytest.mark.parametrize("options", [{}, {"on_failed": "retry"}])
async def test_run_of_all_accounts_after_a_run_of_a_selection_requires_every(
    tmp_path, sandbox, options
) -> None:
    new = await start_unfinished_run(sandbox, tmp_path / "j")
    await rotate(sandbox, new, tmp_path / "j", on=["10.1.1.0/24"])

    with pytest.raises(JournalError, match=r"covered only some accounts .*add --every 0s.*failed accounts"):
        await rotate(sandbox, new, tmp_path / "j", **options)


async def test_selection_is_rejected_if_the_journal_was_written_after_it_was_made(tmp_path, sandbox) -> None:
    old = {"acc_1": proxies("10.1.1", 1)[0]}
    await rotate(sandbox, old, tmp_path / "j")
    selection = Selection.of(["10.1.1.1"])
    assert selection is not None
    with JournalReader(tmp_path / "j") as view:
        select(selection, view)
    await rotate(sandbox, old, tmp_path / "j", every=0)

    with pytest.raises(JournalError, match="was written meanwhile"):
        await rotate(sandbox, old, tmp_path / "j", on=selection)

    assert sandbox.record.requests == 2


@pytest.mark.parametrize("options", [{"journal": None}, {"every": 0.0}])
async def test_on_requires_a_journal_and_cannot_be_combined_with_every(sandbox, tmp_path, options) -> None:
    with pytest.raises(ValueError, match=r"require a journal|cannot be combined with every"):
        await rotate(sandbox, {}, **({"journal": tmp_path / "j", "on": ["p1"]} | options))
