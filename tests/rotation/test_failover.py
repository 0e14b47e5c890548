"""A rotation with a pool: all accounts get a working proxy, and few accounts try a dead proxy."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pandas
import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from postpress_async import (
    CustomProxy,
    Fleet,
    ManagedProxy,
    Outcome,
    PostPressSession,
    ProxyPool,
    RetryPolicy,
    errors,
    events,
)
from postpress_async._call.tracker import WaitGroup
from postpress_async.rotation import Halt, RotationSummary, State
from postpress_async.rotation._account_task import AccountContext, AccountTask
from postpress_async.rotation._pending_rows import PendingRow
from postpress_async.rotation._pool._allocator import ProxyAllocator
from postpress_async.rotation._row_keys import RowKeys
from postpress_async.rotation._rows import Row
from postpress_async.sandbox import Fault, Sandbox
from tests.support.journals import crash_copy_after
from tests.support.rotations import query

QUICK = RetryPolicy(first_wait=0.001, max_wait=0.01)
ONCE = RetryPolicy(attempts=1)
NEVER = Halt(failures="never")


def proxies(count: int) -> list[CustomProxy]:
    return [
        CustomProxy(host=f"p{n}.example.net", port=3128, username="u", password="hunter2")
        for n in range(count)
    ]


def proxy_label(number: int) -> str:
    return f"p{number}.example.net:3128"


def host_of(sandbox: Sandbox, account: str) -> str | None:
    body = sandbox.proxy_of(account)
    return None if body is None else body["proxy"]["host"]


class DeadProxies:
    """Tells the sandbox which proxies are dead, and counts the requests for each proxy."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = set(addresses)
        self.requests: Counter[str] = Counter()

    def __call__(self, proxy: Any) -> bool:
        address = f"{proxy['host']}:{proxy['port']}"
        self.requests[address] += 1
        return address in self.addresses


async def rotate(
    session: PostPressSession, accounts: Any, pool: ProxyPool, **options: Any
) -> tuple[dict[str, Outcome], RotationSummary]:
    async with session.rotate(accounts, pool=pool, **{"halt": NEVER, **options}) as rotation:
        outcomes = {outcome.account_id: outcome async for outcome in rotation}
    return outcomes, rotation.summary


async def test_accounts_without_a_change_get_a_proxy_of_the_pool() -> None:
    custom, managed = CustomProxy(host="own.example.net", port=1), ManagedProxy(country="US")
    accounts = ["acc_1", ("acc_2", None), ("acc_3", custom), ("acc_4", managed)]
    async with Sandbox() as sandbox, sandbox.session() as session:
        outcomes, _ = await rotate(session, accounts, ProxyPool(proxies(2)), in_flight=1)

    assert host_of(sandbox, "acc_1") == "p0.example.net"
    assert host_of(sandbox, "acc_2") == "p1.example.net"
    assert host_of(sandbox, "acc_3") == "own.example.net"
    assert sandbox.proxy_of("acc_4") == {"country": "US"}
    assert {account: outcome.proxy for account, outcome in outcomes.items()} == {
        "acc_1": "u@p0.example.net:3128",
        "acc_2": "u@p1.example.net:3128",
        "acc_3": "own.example.net:1",
        "acc_4": None,
    }


def frame() -> Any:
    return pandas.DataFrame({"account_id": ["acc_1", "acc_2"], "country": ["US", "DE"]})


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"acc_1": ManagedProxy(country="US")}, id="a mapping"),
        pytest.param([("acc_1", ManagedProxy(country="US")), ("acc_2", proxies(1)[0])], id="pairs"),
        pytest.param(frame(), id="a frame"),
    ],
)
async def test_pool_that_no_account_would_use_is_rejected(session, changes) -> None:
    """Managed proxies are billed, and a user who gives a pool expects it to be used."""
    with pytest.raises(ValueError, match=r"would use the pool: each .* a change of its own; leave pool out"):
        session.rotate(changes, pool=ProxyPool(proxies(2)))


@pytest.mark.parametrize("surveyed", [False, True])
async def test_pool_that_no_row_of_a_fleet_would_use_is_rejected(session, tmp_path, surveyed) -> None:
    path = tmp_path / "fleet.csv"
    path.write_text("account_id,country\nacc_1,US\nacc_2,DE\n")
    with Fleet.open(path, pooled=True) as fleet:
        if surveyed:
            fleet.survey()
        with pytest.raises(ValueError, match="no row of the fleet would use the pool"):
            session.rotate(fleet, pool=ProxyPool(proxies(2)))


async def test_fleet_that_was_not_opened_for_a_pool_is_rejected(session, tmp_path) -> None:
    """Rows without a change would be refused, and rows with a change do not use the pool."""
    path = tmp_path / "fleet.csv"
    path.write_text("account_id,country\nacc_1,US\nacc_2,\n")
    with Fleet.open(path) as fleet, pytest.raises(ValueError, match="open it with pooled=True"):
        session.rotate(fleet, pool=ProxyPool(proxies(2)))


async def test_checking_the_pool_does_not_consume_an_iterator(session) -> None:
    pairs = iter([("acc_1", ManagedProxy(country="US"))])

    session.rotate(pairs, pool=ProxyPool(proxies(2)))

    assert len(list(pairs)) == 1


async def test_account_without_a_change_is_refused_without_a_pool() -> None:
    accounts: list[Any] = ["acc_1", ("acc_2", None)]
    async with Sandbox() as sandbox, sandbox.session() as session:
        with pytest.raises(ValueError, match=r"changes\[0\]: row not a pair"):
            session.rotate(accounts)
        async with session.rotate(iter(accounts)) as rotation:
            outcomes = [outcome async for outcome in rotation]

    assert [outcome.state for outcome in outcomes] == [State.SKIPPED] * 2
    assert sandbox.record.requests == 0


async def test_account_retries_a_proxy_that_has_failed_once() -> None:
    """A proxy_error is often transient."""
    async with Sandbox() as sandbox, sandbox.session(retry=QUICK) as session:
        sandbox.script("acc_1", "errors/proxy_error")
        outcomes, summary = await rotate(session, ["acc_1"], ProxyPool(proxies(2)))

    assert outcomes["acc_1"].attempts == 2
    assert host_of(sandbox, "acc_1") == "p0.example.net"
    assert summary.quarantined == 0


async def test_account_gets_the_next_proxy_after_two_failures() -> None:
    """
    The new proxy needs a new idempotency key. Otherwise the API would replay the error of the first proxy.
    """
    dead_proxies = DeadProxies(proxy_label(0))
    async with Sandbox(dead_proxies=dead_proxies) as sandbox, sandbox.session(retry=QUICK) as session:
        outcomes, summary = await rotate(session, ["acc_1"], ProxyPool(proxies(2)))

    assert dead_proxies.requests == {proxy_label(0): 2, proxy_label(1): 1}
    assert outcomes["acc_1"].state is State.PATCHED
    assert (outcomes["acc_1"].attempts, outcomes["acc_1"].proxy) == (3, "u@p1.example.net:3128")
    assert summary.attempts == 3


async def test_proxy_is_quarantined_once_two_accounts_got_invalid_credentials() -> None:
    """Invalid credentials are not retried: each account sends one request before it gets the next proxy."""
    observed: list[events.Event] = []
    async with Sandbox() as sandbox, sandbox.session(retry=QUICK, on_event=observed.append) as session:
        for account in ("acc_1", "acc_3"):  # both get the first proxy
            sandbox.script(account, "errors/invalid_proxy_credentials")
        accounts = ["acc_1", "acc_2", "acc_3", "acc_4"]
        outcomes, summary = await rotate(session, accounts, ProxyPool(proxies(2)), in_flight=1)

    assert [outcomes[account].attempts for account in accounts] == [2, 1, 2, 1]
    assert {host_of(sandbox, account) for account in accounts} == {"p1.example.net"}
    assert summary.quarantined == 1
    assert events.ProxyQuarantined("u@p0.example.net:3128") in observed


async def test_failing_proxy_of_a_row_is_never_replaced() -> None:
    """The call is retried like any other; its outcome names the proxy."""
    custom = CustomProxy(host="own.example.net", port=1, username="me", password="hunter2")
    async with (
        Sandbox(dead_proxies=["own.example.net:1"]) as sandbox,
        sandbox.session(retry=QUICK) as session,
    ):
        outcomes, _ = await rotate(session, [("acc_1", custom), "acc_2"], ProxyPool(proxies(2)))

    assert outcomes["acc_1"].state is State.FAILED
    assert outcomes["acc_1"].attempts == 4
    assert outcomes["acc_1"].proxy == "me@own.example.net:1"


async def test_account_fails_after_its_failovers() -> None:
    """If an account fails with four proxies in a row, the account is more likely to be the cause."""
    dead_proxies = DeadProxies(*map(proxy_label, range(10)))
    async with Sandbox(dead_proxies=dead_proxies) as sandbox, sandbox.session(retry=QUICK) as session:
        outcomes, summary = await rotate(session, ["acc_1"], ProxyPool(proxies(10), failovers=3))

    outcome = outcomes["acc_1"]
    assert len(dead_proxies.requests) == 4
    assert (outcome.state, outcome.error_type) == (State.FAILED, "errors/proxy_error")
    assert outcome.attempts == summary.attempts == 8
    assert summary.quarantined == 0  # failures of a single account do not prove that a proxy is dead


async def test_accounts_get_no_proxy_once_all_have_failed_for_the_cool_down() -> None:
    """
    Rows that contain a change are still sent. The other rows are skipped, and only few requests are wasted.
    """
    dead_proxies = DeadProxies(*map(proxy_label, range(3)))
    accounts: list[Any] = [f"acc_{n}" for n in range(200)] + [("acc_own", ManagedProxy(country="US"))]
    async with Sandbox(dead_proxies=dead_proxies) as sandbox, sandbox.session(retry=QUICK) as session:
        pool = ProxyPool(proxies(3), cool_down=0.1)
        outcomes, summary = await rotate(session, accounts, pool, in_flight=2)

    assert outcomes["acc_own"].state is State.PATCHED
    without_proxy = [outcome for outcome in outcomes.values() if outcome.error_type == "no proxy left"]
    assert summary.without_proxy == len(without_proxy) >= 150  # the others had failed before the cool-down
    assert {outcome.state for outcome in without_proxy} == {State.SKIPPED}
    assert dead_proxies.requests.total() < 100


async def test_few_requests_are_sent_with_a_dead_proxy() -> None:
    """2,000 accounts, 20 proxies, 2 of them dead: no account keeps a dead proxy, and few accounts try one."""
    dead_proxies = DeadProxies(proxy_label(3), proxy_label(11))
    accounts = [f"acc_{n}" for n in range(2000)]
    async with Sandbox(dead_proxies=dead_proxies) as sandbox, sandbox.session(retry=QUICK) as session:
        outcomes, summary = await rotate(session, accounts, ProxyPool(proxies(20)), in_flight=50)

    assert summary.patched == 2000
    assert {host_of(sandbox, account) for account in accounts} == {
        f"p{n}.example.net" for n in range(20) if n not in {3, 11}
    }
    for address in dead_proxies.addresses:
        assert dead_proxies.requests[address] <= 2 * 50
    assert {outcome.proxy for outcome in outcomes.values()} == {
        f"u@{proxy_label(n)}" for n in range(20) if n not in {3, 11}
    }


async def test_refused_account_does_not_count_towards_accounts_per_proxy() -> None:
    pool = ProxyPool(proxies(2), accounts_per_proxy=1)
    async with Sandbox(accounts=["acc_2", "acc_3"]) as sandbox, sandbox.session() as session:
        _, summary = await rotate(session, ["acc_1", "acc_2", "acc_3"], pool, in_flight=1)

    assert summary.states == {State.FAILED: 1, State.PATCHED: 2}
    assert {host_of(sandbox, account) for account in ("acc_2", "acc_3")} == {
        "p0.example.net",
        "p1.example.net",
    }


async def test_account_in_doubt_counts_towards_accounts_per_proxy() -> None:
    """If the response is lost, the account may have the proxy."""
    pool = ProxyPool(proxies(1), accounts_per_proxy=1)
    async with Sandbox() as sandbox, sandbox.session(retry=ONCE) as session:
        sandbox.script("acc_1", "lost")
        outcomes, _ = await rotate(session, ["acc_1", "acc_2"], pool, in_flight=1)

    assert outcomes["acc_1"].state is State.UNKNOWN
    assert outcomes["acc_2"].error_type == "no proxy left"


async def test_account_stays_in_doubt_if_the_response_with_an_earlier_proxy_was_lost() -> None:
    """The account may have the first proxy, although the API refused the second one."""
    async with Sandbox() as sandbox, sandbox.session(retry=QUICK) as session:
        sandbox.script(
            "acc_1", "drop", "errors/proxy_error", "errors/proxy_error", "errors/disconnected_account"
        )
        outcomes, _ = await rotate(session, ["acc_1"], ProxyPool(proxies(2)))

    assert (outcomes["acc_1"].state, outcomes["acc_1"].applied) == (State.UNKNOWN, "unknown")
    assert outcomes["acc_1"].attempts == 4


async def test_account_stopped_before_its_failover_is_skipped_and_continued_by_the_next_run(tmp_path) -> None:
    journal = tmp_path / "run.sqlite3"

    async def run_and_stop(session: PostPressSession) -> None:
        async with session.rotate(
            ["acc_1"], pool=ProxyPool(proxies(2)), journal=journal, halt=NEVER
        ) as rotation:
            while sandbox.record.by_status[502] < 2:
                await asyncio.sleep(0)
            rotation.stop()
            await rotation.run()
        assert rotation.summary.states == {State.SKIPPED: 1}

    async with Sandbox(dead_proxies=[proxy_label(0)]) as sandbox, sandbox.session(retry=QUICK) as session:
        sandbox.script("acc_1", Fault(latency=0.01), Fault(latency=0.01))
        await run_and_stop(session)
        await rotate(session, ["acc_1"], ProxyPool(proxies(2)[1:]), journal=journal)

    assert host_of(sandbox, "acc_1") == "p1.example.net"


async def test_journal_records_the_proxy_of_each_account_and_the_failures_of_each_proxy(tmp_path) -> None:
    """Operators report failing proxies to their seller."""
    journal = tmp_path / "run.sqlite3"
    accounts = [f"acc_{n}" for n in range(12)]
    async with Sandbox(dead_proxies=[proxy_label(1)]) as sandbox, sandbox.session(retry=QUICK) as session:
        await rotate(session, accounts, ProxyPool(proxies(3)), journal=journal, in_flight=1)

    by_proxy = "SELECT assignment, count(*) FROM outcomes GROUP BY assignment"
    accounts_by_proxy = dict(query(journal, by_proxy))
    assert set(accounts_by_proxy) == {"u@p0.example.net:3128", "u@p2.example.net:3128"}
    assert sum(accounts_by_proxy.values()) == 12
    sql = "SELECT label, failures, quarantined_at NOT NULL FROM proxies"
    [(label, failures, quarantined)] = query(journal, sql)
    assert (label, quarantined) == ("u@p1.example.net:3128", 1)
    assert 2 <= failures <= 4  # more accounts than two may have been retrying when it was quarantined
    assert "hunter2" not in str(query(journal, "SELECT * FROM outcomes"))


async def test_accounts_per_proxy_counts_accounts_of_earlier_runs(tmp_path) -> None:
    journal, accounts = tmp_path / "run.sqlite3", [f"acc_{n}" for n in range(6)]
    async with Sandbox() as sandbox, sandbox.session() as session:
        pool = ProxyPool(proxies(3), accounts_per_proxy=2)
        await rotate(session, accounts, pool, journal=journal, limit=4, in_flight=1)
        _, summary = await rotate(session, accounts, pool, journal=journal, in_flight=1)

    assert summary.patched == 6
    assert Counter(host_of(sandbox, account) for account in accounts) == {
        f"p{n}.example.net": 2 for n in range(3)
    }


async def test_account_of_a_killed_run_is_sent_with_another_proxy_under_a_new_key(tmp_path) -> None:
    """An API may reject a known idempotency key with another body, as the sandbox does."""
    journal = tmp_path / "run.sqlite3"
    async with Sandbox() as sandbox, sandbox.session() as session:
        sandbox.script("acc_1", Fault(executes=True, ends="never"))
        first = asyncio.create_task(rotate(session, ["acc_1"], ProxyPool(proxies(1)), journal=journal))
        copy = await crash_copy_after(first, sandbox.record, 1, journal)
        outcomes, _ = await rotate(session, ["acc_1"], ProxyPool(proxies(2)[1:]), journal=copy)

    assert outcomes["acc_1"].state is State.PATCHED
    assert host_of(sandbox, "acc_1") == "p1.example.net"
    assert sandbox.record.by_status[400] == 0


async def test_account_in_doubt_stays_in_doubt_if_no_proxy_is_left(tmp_path, monkeypatch) -> None:
    """The account may have the proxy of the first run, so it is not skipped."""
    journal = tmp_path / "run.sqlite3"
    async with Sandbox() as sandbox, sandbox.session(retry=ONCE) as session:
        sandbox.script("acc_1", "lost")
        await rotate(session, ["acc_1"], ProxyPool(proxies(1)), journal=journal)
        with monkeypatch.context() as patch:
            patch.setattr(ProxyAllocator, "give", lambda *_, **__: None)
            outcomes, summary = await rotate(session, ["acc_1"], ProxyPool(proxies(1)), journal=journal)

        assert (outcomes["acc_1"].state, outcomes["acc_1"].applied) == (State.UNKNOWN, "unknown")
        assert (outcomes["acc_1"].error_type, summary.without_proxy) == ("no proxy left", 1)
        outcomes, _ = await rotate(session, ["acc_1"], ProxyPool(proxies(2)[1:]), journal=journal)

    assert outcomes["acc_1"].state is State.PATCHED
    assert host_of(sandbox, "acc_1") == "p1.example.net"


async def test_account_cancelled_between_two_proxies_has_no_assignment() -> None:
    """The first proxy has certainly failed, so the next run may give it to another account."""
    cancelled_outcomes, renewing_key = list[Outcome](), asyncio.Event()

    async def never_store_generation(_ordinal: int, _generation: int) -> None:
        renewing_key.set()
        await asyncio.get_running_loop().create_future()

    async def fail(*_: object) -> Any:
        raise errors.ProxyError(502, errors.Problem("errors/proxy_error"))

    allocator = ProxyAllocator(ProxyPool(proxies(2), accounts_per_proxy=1))
    context = AccountContext(
        update=fail,
        waits=WaitGroup(),
        pools={None: allocator},
        on_backoff=bool,
        on_attempt_failed=bool,
        on_cancelled=cancelled_outcomes.append,
    )
    row = Row(0, None, "acc_1", None)
    keys = RowKeys.of("run", PendingRow(row), never_store_generation)
    task = asyncio.create_task(AccountTask(context, row, keys).run())
    await renewing_key.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert [outcome.proxy for outcome in cancelled_outcomes] == [None]
    assert allocator.available == 1  # the second proxy is still assigned, the first is not


async def test_account_cancelled_in_flight_is_recorded_with_its_proxy(tmp_path) -> None:
    """The account may have the proxy, so it must count towards `accounts_per_proxy` in the next run."""
    journal = tmp_path / "run.sqlite3"
    async with Sandbox(latency=60.0) as sandbox, sandbox.session() as session:
        task = asyncio.create_task(rotate(session, ["acc_1"], ProxyPool(proxies(1)), journal=journal))
        while not sandbox.record.requests:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    recorded = query(journal, "SELECT state, assignment FROM outcomes")
    assert recorded == [("unknown", "u@p0.example.net:3128")]


@pytest.mark.parametrize("on_unknown", ["retry", "report"])
async def test_account_that_is_sent_again_counts_for_one_proxy_only(tmp_path, on_unknown) -> None:
    """If the account also counted for its earlier proxy, no proxy would be left for the second account."""
    journal, accounts = tmp_path / "run.sqlite3", ["acc_1", "acc_2"]
    pool = ProxyPool(proxies(2), accounts_per_proxy=1)
    async with Sandbox() as sandbox, sandbox.session(retry=ONCE) as session:
        sandbox.script("acc_1", "lost")
        await rotate(session, accounts, pool, journal=journal, in_flight=1)
        _, summary = await rotate(session, accounts, pool, journal=journal, on_unknown=on_unknown)

    expected = {State.PATCHED: 2} if on_unknown == "retry" else {State.PATCHED: 1, State.UNKNOWN: 1}
    assert summary.states == expected


async def create_journal_with_first_proxy_quarantined(session: PostPressSession, journal: Path) -> None:
    """Run a rotation whose journal then has the first of two proxies in quarantine."""
    accounts = [f"acc_{number}" for number in range(4)]
    _, summary = await rotate(session, accounts, ProxyPool(proxies(2)), journal=journal, in_flight=1)
    assert summary.quarantined == 1


@pytest.mark.parametrize("probe_at", [True, False], ids=["this version", "version 1"])
async def test_quarantine_continues_in_the_next_run_until_it_is_probed(tmp_path, probe_at) -> None:
    journal, dead_proxies = tmp_path / "run.sqlite3", DeadProxies(proxy_label(0))
    async with Sandbox(dead_proxies=dead_proxies) as sandbox, sandbox.session(retry=QUICK) as session:
        await create_journal_with_first_proxy_quarantined(session, journal)
        if not probe_at:
            query(journal, "UPDATE proxies SET probe_at = NULL")
        before = dead_proxies.requests[proxy_label(0)]
        _, summary = await rotate(session, ["acc_8"], ProxyPool(proxies(2)), journal=journal, every=0)

        assert dead_proxies.requests[proxy_label(0)] == before
        assert summary.quarantined == 1

        dead_proxies.addresses.clear()
        [(began,)] = query(journal, "SELECT quarantined_at FROM proxies")
        query(journal, f"UPDATE proxies SET probe_at = {began!r} + 1e-6")
        _, summary = await rotate(session, ["acc_9"], ProxyPool(proxies(2)), journal=journal, every=0)

    assert host_of(sandbox, "acc_9") == "p0.example.net"
    assert summary.quarantined == 0
    assert query(journal, "SELECT quarantined_at, probe_at FROM proxies") == [(None, None)]


async def test_quarantine_ends_if_the_proxy_list_was_edited(tmp_path) -> None:
    """A password may have been corrected, and labels do not contain passwords."""
    journal, dead_proxies = tmp_path / "run.sqlite3", DeadProxies(proxy_label(0))
    async with Sandbox(dead_proxies=dead_proxies) as sandbox, sandbox.session(retry=QUICK) as session:
        await create_journal_with_first_proxy_quarantined(session, journal)
        dead_proxies.addresses.clear()
        edited = ProxyPool([evolve(proxy, password="corrected") for proxy in proxies(2)])
        _, summary = await rotate(session, ["acc_9"], edited, journal=journal, every=0)

    assert host_of(sandbox, "acc_9") == "p0.example.net"
    assert summary.quarantined == 0


async def test_account_refused_after_a_cancelled_run_is_not_sent_in_every_run(tmp_path) -> None:
    """
    The first run's request may have been applied, which stays recorded, but the error response is final.
    """
    journal = tmp_path / "run.sqlite3"
    async with Sandbox() as sandbox, sandbox.session() as session:
        sandbox.script("acc_1", "hang", "errors/resource_not_found")
        first = asyncio.create_task(rotate(session, ["acc_1"], ProxyPool(proxies(1)), journal=journal))
        while not sandbox.record.requests:
            await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        second, _ = await rotate(session, ["acc_1"], ProxyPool(proxies(1)), journal=journal)
        third, summary = await rotate(session, ["acc_1"], ProxyPool(proxies(1)), journal=journal)

    assert (second["acc_1"].state, second["acc_1"].applied) == (State.FAILED, "unknown")
    assert third == {}
    assert summary.states == {State.FAILED: 1}


@pytest.mark.slow
async def test_transient_errors_quarantine_few_working_proxies() -> None:
    """200 of 2,000 accounts get two proxy errors, so each of the 25 proxies fails for about 8 accounts."""
    async with Sandbox(seed=3) as sandbox, sandbox.session(retry=QUICK) as session:
        for number in range(2000):
            if number % 10 == 0:
                sandbox.script(f"acc_{number}", "errors/proxy_error", "errors/proxy_error")
        accounts = [f"acc_{number}" for number in range(2000)]
        _, summary = await rotate(session, accounts, ProxyPool(proxies(25)), in_flight=5)

    assert summary.patched == 2000
    assert summary.quarantined <= 3


async def test_rows_of_a_fleet_file_without_a_change_use_the_pool(tmp_path) -> None:
    path = tmp_path / "fleet.csv"
    path.write_text("account_id,country\nacc_1,\nacc_2,DE\n")
    async with Sandbox() as sandbox, sandbox.session() as session:
        with Fleet.open(path, pooled=True) as fleet:
            _, summary = await rotate(session, fleet, ProxyPool(proxies(1)), journal=tmp_path / "j")

            with pytest.raises(ValueError, match="opened for a pool"):
                session.rotate(fleet)

    assert summary.patched == 2
    assert host_of(sandbox, "acc_1") == "p0.example.net"
    assert sandbox.proxy_of("acc_2") == {"country": "DE"}


def test_fleet_cannot_have_a_default_change_and_a_pool(tmp_path) -> None:
    (tmp_path / "fleet.csv").write_text("account_id\nacc_1\n")
    with pytest.raises(ValueError, match="default and pooled cannot be combined"):
        Fleet.open(tmp_path / "fleet.csv", default=ManagedProxy(country="US"), pooled=True)


@settings(max_examples=15)
@given(
    dead=st.sets(st.integers(0, 7), max_size=6),
    wrong=st.sets(st.integers(0, 7), max_size=2),
    assign=st.sampled_from(["round-robin", "sticky"]),
    flaky=st.sets(st.integers(0, 39), max_size=8),
    in_flight=st.integers(1, 9),
)
def test_each_outcome_agrees_with_the_sandbox_for_any_dead_and_flaky_proxies(
    dead, wrong, assign, flaky, in_flight
) -> None:
    """Each account has one outcome, with the proxy that the sandbox has for it and never a dead proxy."""
    accounts = [f"acc_{n}" for n in range(40)]

    async def main() -> None:
        async with Sandbox(dead_proxies=[proxy_label(n) for n in dead]) as sandbox:
            for number in flaky:
                sandbox.script(f"acc_{number}", "errors/service_unavailable", "errors/proxy_error")
            for number in wrong:
                sandbox.script(f"acc_{number}", "errors/invalid_proxy_credentials")
            pool = ProxyPool(proxies(8), assign=assign)
            async with sandbox.session(retry=QUICK) as session:
                outcomes, summary = await rotate(session, accounts, pool, in_flight=in_flight)
            assert sorted(outcomes) == sorted(accounts)
            assert summary.total == 40
            for account, outcome in outcomes.items():
                host = host_of(sandbox, account)
                assert (outcome.state is State.PATCHED) == (host is not None)
                if host is not None:
                    assert outcome.proxy == f"u@{host}:3128"
                    assert host not in {f"p{n}.example.net" for n in dead}
            assert summary.attempts == sandbox.record.requests
            if len(dead) <= 3 and not wrong:  # each account may try four proxies
                assert summary.patched == 40

    asyncio.run(main())
