"""Runs of some accounts: those that have certain proxies by the journal."""

import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import closing
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

ACCOUNTS = [f"acc_{number}" for number in range(10)]
DEAD = "10.1.1"
"""The first three numbers of the addresses in the subnet that is left."""


def proxies(network: str, count: int) -> list[CustomProxy]:
    return [CustomProxy(host=f"{network}.{number}", port=3128) for number in range(1, count + 1)]


def write_fleet(path: Path, count: int) -> Path:
    path.write_text("account_id\n" + "".join(f"acc_{number:06}\n" for number in range(count)))
    return path


def write_night(path: Path, count: int, *, dead: int) -> Path:
    """The journal of a complete run in which the first *dead* of each 100 accounts got a proxy in `DEAD`."""

    def label(number: int) -> str:
        network, host = (DEAD, 1 + number // 100 % 8) if number % 100 < dead else ("10.2.2", 1 + number % 40)
        return f"{network}.{host}:3128"

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


def rows(journal: Path, sql: str) -> list[Any]:
    with closing(sqlite3.connect(journal)) as connection:
        return connection.execute(sql).fetchall()


# --- What matches ---


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
def test_a_pattern_matches_host_port_and_user_name(pattern, assignment, expected) -> None:
    selection = Selection.of([pattern])

    assert selection is not None
    assert selection.matches(assignment) is expected


@pytest.mark.parametrize("pattern", ["", "10.1.1.7/24", "10.1.1.0/x", "p1:port", "user@", ":3128"])
def test_another_form_is_refused(pattern) -> None:
    with pytest.raises(ValueError, match="write HOST, HOST:PORT, USER@HOST or a network"):
        Selection.of([pattern])


# --- What is sent ---


@pytest.mark.parametrize(
    "count", [pytest.param(1_000, id="1,000"), pytest.param(100_000, id="100,000", marks=pytest.mark.slow)]
)
async def test_a_dead_subnet_is_left_by_its_accounts_and_no_other(tmp_path, sandbox, count) -> None:
    """Eight of a hundred accounts move. The pool's limit counts those that its proxies already have."""
    fleet = write_fleet(tmp_path / "fleet.csv", count)
    with Fleet.open(fleet, pooled=True) as opened:
        journal = write_night(tmp_path / "j", count, dead=8)
        before, moved = assignments(journal), count * 8 // 100
        cap = count // 40
        pool = ProxyPool(proxies("10.2.2", 40), accounts_per_proxy=cap)

        summary = await rotate(sandbox, opened, journal, pool=pool, on=[f"{DEAD}.0/24"])

    after = assignments(journal)
    assert (summary.patched, summary.total) == (moved, moved)
    assert {account for account in before if before[account].startswith(DEAD)} == {
        account for account in before if before[account] != after[account]
    }
    assert sandbox.record.patched_accounts == Counter(
        name for name in before if before[name].startswith(DEAD)
    )
    assert max(Counter(after.values()).values()) <= cap
    assert not any(label.startswith(DEAD) for label in after.values())
    assert rows(journal, "SELECT count(*) FROM outcomes WHERE run = 2") == [(moved,)]


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        pytest.param(["10.1.1", "10.2.2"], "10.2.2.", id="a list that still has the subnet"),
        pytest.param(["10.1.1"], "10.1.1.", id="a list of nothing else, with new passwords"),
    ],
)
async def test_accounts_get_no_proxy_that_they_are_to_leave(tmp_path, sandbox, listed, expected) -> None:
    old = dict(zip(ACCOUNTS, proxies("10.1.1", len(ACCOUNTS)), strict=True))
    await rotate(sandbox, old, tmp_path / "j")
    pool = ProxyPool([proxy for network in listed for proxy in proxies(network, 5)])

    summary = await rotate(sandbox, ACCOUNTS, tmp_path / "j", on=["10.1.1.0/24"], pool=pool)

    assert summary.patched == len(ACCOUNTS)
    hosts = {sandbox.proxy_of(account)["proxy"]["host"] for account in ACCOUNTS}
    assert all(host.startswith(expected) for host in hosts)
    assert len(hosts) == 5


async def test_a_mapping_is_restricted_too(tmp_path, sandbox) -> None:
    fleet = {f"acc_{number}": proxy for number, proxy in enumerate(proxies("10.1.1", 4))}
    await rotate(sandbox, fleet, tmp_path / "j")

    summary = await rotate(
        sandbox, dict.fromkeys(fleet, ManagedProxy(country="US")), tmp_path / "j", on="10.1.1.2"
    )

    assert summary.patched == 1
    assert assignments(tmp_path / "j")["acc_1"] == "managed US"


async def test_an_asynchronous_input_is_restricted_too(tmp_path, sandbox) -> None:
    fleet = {f"acc_{number}": proxy for number, proxy in enumerate(proxies("10.1.1", 4))}
    await rotate(sandbox, fleet, tmp_path / "j")

    async def pairs() -> AsyncIterator[tuple[str, ManagedProxy]]:
        for account_id in fleet:
            yield account_id, ManagedProxy(country="US")

    summary = await rotate(sandbox, pairs(), tmp_path / "j", on=["10.1.1.2", "10.1.1.4"])

    assert summary.patched == 2
    assert sandbox.record.patched_accounts == Counter(acc_0=1, acc_1=2, acc_2=1, acc_3=2)


async def test_an_account_that_may_have_the_proxy_is_taken(tmp_path, sandbox) -> None:
    """The latest request got no response: the account may have its new proxy or the earlier one."""
    await rotate(sandbox, {"acc_1": proxies("10.1.1", 1)[0]}, tmp_path / "j")
    sandbox.script("acc_1", "lost")
    await rotate(sandbox, {"acc_1": proxies("10.2.2", 1)[0]}, tmp_path / "j", every=0)
    assert rows(tmp_path / "j", "SELECT state FROM latest") == [("unknown",)]

    summary = await rotate(sandbox, {"acc_1": proxies("10.3.3", 1)[0]}, tmp_path / "j", on=["10.1.1.0/24"])

    assert summary.total == 1


async def test_nothing_is_sent_if_no_account_matches(tmp_path, sandbox) -> None:
    await rotate(sandbox, {"acc_1": proxies("10.1.1", 1)[0]}, tmp_path / "j")

    with pytest.raises(JournalError, match=r"has no accounts on 10\.9\.9\.0/24"):
        await rotate(sandbox, {"acc_1": proxies("10.2.2", 1)[0]}, tmp_path / "j", on=["10.9.9.0/24"])

    assert sandbox.record.requests == 1
    assert rows(tmp_path / "j", "SELECT count(*) FROM runs") == [(1,)]


async def test_nothing_is_sent_if_the_input_has_none_of_the_accounts(tmp_path, sandbox) -> None:
    await rotate(sandbox, {"acc_1": proxies("10.1.1", 1)[0]}, tmp_path / "j")

    with pytest.raises(JournalError, match="the input has none of the accounts on"):
        await rotate(sandbox, {"acc_2": proxies("10.2.2", 1)[0]}, tmp_path / "j", on=["10.1.1.1"])

    assert rows(tmp_path / "j", "SELECT count(*) FROM runs") == [(1,)]


# --- Which run it is ---


async def first_half(sandbox: Sandbox, journal: Path) -> dict[str, CustomProxy]:
    """Ten accounts, of which six are in the subnet, and three of these have moved."""
    old = [*proxies("10.1.1", 6), *proxies("10.2.2", 4)]
    await rotate(sandbox, {f"acc_{number}": proxy for number, proxy in enumerate(old)}, journal)
    new = {f"acc_{number}": proxy for number, proxy in enumerate(proxies("10.3.3", 10))}
    summary = await rotate(sandbox, new, journal, on=["10.1.1.0/24"], limit=3)
    assert summary.patched == 3
    return new


async def test_an_unfinished_run_of_the_same_accounts_is_resumed(tmp_path, sandbox) -> None:
    new = await first_half(sandbox, tmp_path / "j")

    summary = await rotate(sandbox, new, tmp_path / "j", on=["10.1.1.0/24"])

    assert (summary.patched, summary.resumed) == (6, 3)
    assert rows(tmp_path / "j", "SELECT run, count(*) FROM outcomes GROUP BY run") == [(1, 10), (2, 6)]
    assert rows(tmp_path / "j", "SELECT state, selection FROM runs") == [
        ("complete", None),
        ("complete", "accounts on 10.1.1.0/24"),
    ]


async def test_a_run_that_was_stopped_after_its_last_account_blocks_no_other(tmp_path, sandbox) -> None:
    new = await first_half(sandbox, tmp_path / "j")
    await rotate(sandbox, new, tmp_path / "j", on=["10.1.1.0/24"])
    with closing(sqlite3.connect(tmp_path / "j")) as connection, connection:
        connection.execute("UPDATE runs SET state = 'interrupted' WHERE id = 2")

    summary = await rotate(sandbox, new, tmp_path / "j", on=["10.2.2.0/24"])

    assert (summary.patched, summary.resumed) == (4, 0)


async def test_an_unfinished_run_goes_on_with_an_edited_input(tmp_path, sandbox) -> None:
    """Rows were removed, moved and appended, among those that it takes and among the others."""
    journal = write_night(tmp_path / "j", 100, dead=8)
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

    assert (summary.patched, summary.resumed) == (6, 2)  # 8 without the two that were removed
    assert sandbox.record.patched_accounts == Counter(f"acc_{n:06}" for n in range(8) if n != 6)
    assert rows(journal, "SELECT state, selection FROM runs WHERE id = 2") == [
        ("complete", "accounts on 10.1.1.0/24")
    ]


@pytest.mark.parametrize("options", [{}, {"every": 0.0}, {"on": ["10.2.2.0/24"]}, {"on_failed": "retry"}])
async def test_an_unfinished_run_of_other_accounts_is_finished_first(tmp_path, sandbox, options) -> None:
    new = await first_half(sandbox, tmp_path / "j")
    requests = sandbox.record.requests

    with pytest.raises(
        JournalError, match=r"unfinished run \(accounts on 10.1.1.0/24\).* Finish that run first"
    ):
        await rotate(sandbox, new, tmp_path / "j", **options)

    assert sandbox.record.requests == requests


async def test_an_unfinished_run_of_all_accounts_is_finished_first(tmp_path, sandbox) -> None:
    old = {f"acc_{number}": proxy for number, proxy in enumerate(proxies("10.1.1", 6))}
    await rotate(sandbox, old, tmp_path / "j", limit=3)

    with pytest.raises(JournalError, match=r"unfinished run \(all accounts\)"):
        await rotate(sandbox, old, tmp_path / "j", on=["10.1.1.0/24"])

    assert sandbox.record.requests == 3


async def test_a_complete_run_does_not_prevent_the_next(tmp_path, sandbox) -> None:
    """Accounts that moved are not sent again; accounts that came back are."""
    new = await first_half(sandbox, tmp_path / "j")
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


async def test_accounts_in_doubt_keep_their_keys(tmp_path, sandbox) -> None:
    """The same command resumes the complete run, and orders no second managed proxy."""
    await rotate(sandbox, {"acc_1": proxies("10.1.1", 1)[0]}, tmp_path / "j")
    us = {"acc_1": ManagedProxy(country="US")}
    sandbox.script("acc_1", "lost")
    await rotate(sandbox, us, tmp_path / "j", on=["10.1.1.1"])
    assert rows(tmp_path / "j", "SELECT state FROM latest") == [("unknown",)]

    summary = await rotate(sandbox, us, tmp_path / "j", on=["10.1.1.1"])

    assert summary.states == {State.PATCHED: 1}
    assert rows(tmp_path / "j", "SELECT count(*) FROM runs") == [(2,)]


async def test_the_next_night_counts_from_the_latest_run_of_all_accounts(tmp_path, sandbox) -> None:
    new = await first_half(sandbox, tmp_path / "j")
    await rotate(sandbox, new, tmp_path / "j", on=["10.1.1.0/24"])
    with closing(sqlite3.connect(tmp_path / "j")) as connection, connection:
        connection.execute("UPDATE runs SET began = began - 7200 WHERE id = 1")
        connection.execute("UPDATE runs SET began = began - 3600 WHERE id = 2")

    early = await rotate(sandbox, new, tmp_path / "j", every=3 * 3600)
    assert early.attempts == 0
    summary = await rotate(sandbox, new, tmp_path / "j", every=1.5 * 3600)

    assert summary.patched == 10
    assert rows(tmp_path / "j", "SELECT id, selection FROM runs ORDER BY id")[-1] == (3, None)


@pytest.mark.parametrize("options", [{}, {"on_failed": "retry"}])
async def test_the_same_input_after_a_run_of_some_accounts_is_refused(tmp_path, sandbox, options) -> None:
    new = await first_half(sandbox, tmp_path / "j")
    await rotate(sandbox, new, tmp_path / "j", on=["10.1.1.0/24"])

    with pytest.raises(JournalError, match=r"covered only some accounts .*add --every 0s.*failed accounts"):
        await rotate(sandbox, new, tmp_path / "j", **options)


async def test_a_selection_that_another_run_has_made_obsolete_is_refused(tmp_path, sandbox) -> None:
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
async def test_it_requires_a_journal_and_no_interval(sandbox, tmp_path, options) -> None:
    with pytest.raises(ValueError, match=r"require a journal|cannot be combined with every"):
        await rotate(sandbox, {}, **({"journal": tmp_path / "j", "on": ["p1"]} | options))
