"""A rotation with a pool: all accounts get a working proxy, and few try a dead one."""

import asyncio
import sqlite3
from collections import Counter
from contextlib import closing
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

QUICK = RetryPolicy(first_wait=0.001, max_wait=0.01)
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


class Tries:
    """The sandbox's dead proxies, and how many accounts' requests each of all was tried with."""

    def __init__(self, *dead: str) -> None:
        self.dead = set(dead)
        self.tried: Counter[str] = Counter()

    def __call__(self, proxy: Any) -> bool:
        where = f"{proxy['host']}:{proxy['port']}"
        self.tried[where] += 1
        return where in self.dead


async def rotate(
    session: PostPressSession, accounts: Any, pool: ProxyPool, **options: Any
) -> tuple[dict[str, Outcome], RotationSummary]:
    async with session.rotate(accounts, pool=pool, **{"halt": NEVER, **options}) as rotation:
        outcomes = {outcome.account_id: outcome async for outcome in rotation}
    return outcomes, rotation.summary


async def test_accounts_that_name_nothing_get_a_proxy_of_the_pool() -> None:
    """These are ids, or pairs with None; rows with a change keep it."""
    own, managed = CustomProxy(host="own.example.net", port=1), ManagedProxy(country="US")
    accounts = ["acc_1", ("acc_2", None), ("acc_3", own), ("acc_4", managed)]
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
async def test_a_pool_that_no_account_would_use_is_refused(session, changes) -> None:
    """Managed proxies are billed, and a user who gives a pool expects it to be used."""
    with pytest.raises(ValueError, match=r"would use the pool: each .* a change of its own; leave pool out"):
        session.rotate(changes, pool=ProxyPool(proxies(2)))


@pytest.mark.parametrize("surveyed", [False, True])
async def test_a_pool_that_no_row_of_a_fleet_would_use_is_refused(session, tmp_path, surveyed) -> None:
    path = tmp_path / "fleet.csv"
    path.write_text("account_id,country\nacc_1,US\nacc_2,DE\n")
    with Fleet.open(path, pooled=True) as fleet:
        if surveyed:
            fleet.survey()
        with pytest.raises(ValueError, match="no row of the fleet would use the pool"):
            session.rotate(fleet, pool=ProxyPool(proxies(2)))


async def test_a_fleet_that_was_not_opened_for_a_pool_does_not_take_one(session, tmp_path) -> None:
    """Rows without a change would be refused, and the others do not use the pool."""
    path = tmp_path / "fleet.csv"
    path.write_text("account_id,country\nacc_1,US\nacc_2,\n")
    with Fleet.open(path) as fleet, pytest.raises(ValueError, match="open it with pooled=True"):
        session.rotate(fleet, pool=ProxyPool(proxies(2)))


async def test_pairs_that_come_once_are_not_used_up_to_look_at_them(session) -> None:
    """An iterator can be read only once."""
    pairs = iter([("acc_1", ManagedProxy(country="US"))])

    session.rotate(pairs, pool=ProxyPool(proxies(2)))

    assert len(list(pairs)) == 1


async def test_without_a_pool_an_account_alone_is_refused() -> None:
    accounts: list[Any] = ["acc_1", ("acc_2", None)]
    async with Sandbox() as sandbox, sandbox.session() as session:
        with pytest.raises(ValueError, match=r"changes\[0\]: row not a pair"):
            session.rotate(accounts)
        async with session.rotate(iter(accounts)) as rotation:
            outcomes = [outcome async for outcome in rotation]

    assert [outcome.state for outcome in outcomes] == [State.SKIPPED] * 2
    assert sandbox.record.requests == 0


async def test_a_proxy_that_fails_once_is_tried_again() -> None:
    """A 502 often passes: one more try, and no other proxy."""
    async with Sandbox() as sandbox, sandbox.session(retry=QUICK) as session:
        sandbox.script("acc_1", "errors/proxy_error")
        outcomes, summary = await rotate(session, ["acc_1"], ProxyPool(proxies(2)))

    assert outcomes["acc_1"].attempts == 2
    assert host_of(sandbox, "acc_1") == "p0.example.net"
    assert summary.quarantined == 0


async def test_a_proxy_that_fails_twice_gives_way_to_the_next() -> None:
    """And each proxy is tried under a key of its own, or the store of keys would answer for the first."""
    tries = Tries(proxy_label(0))
    async with Sandbox(dead_proxies=tries) as sandbox, sandbox.session(retry=QUICK) as session:
        outcomes, summary = await rotate(session, ["acc_1"], ProxyPool(proxies(2)))

    assert tries.tried == {proxy_label(0): 2, proxy_label(1): 1}
    assert outcomes["acc_1"].state is State.PATCHED
    assert (outcomes["acc_1"].attempts, outcomes["acc_1"].proxy) == (3, "u@p1.example.net:3128")
    assert summary.attempts == 3


async def test_refused_credentials_are_confirmed_by_a_second_account() -> None:
    """One request of each account; then the proxy is quarantined."""
    seen: list[events.Event] = []
    async with Sandbox() as sandbox, sandbox.session(retry=QUICK, on_event=seen.append) as session:
        for account in ("acc_1", "acc_3"):  # both get the first proxy
            sandbox.script(account, "errors/invalid_proxy_credentials")
        accounts = ["acc_1", "acc_2", "acc_3", "acc_4"]
        outcomes, summary = await rotate(session, accounts, ProxyPool(proxies(2)), in_flight=1)

    assert [outcomes[account].attempts for account in accounts] == [2, 1, 2, 1]
    assert {host_of(sandbox, account) for account in accounts} == {"p1.example.net"}
    assert summary.quarantined == 1
    assert events.ProxyQuarantined("u@p0.example.net:3128") in seen


async def test_a_row_s_own_proxy_is_never_replaced() -> None:
    """The call is retried like any other; its outcome names the proxy."""
    own = CustomProxy(host="own.example.net", port=1, username="me", password="hunter2")
    async with (
        Sandbox(dead_proxies=["own.example.net:1"]) as sandbox,
        sandbox.session(retry=QUICK) as session,
    ):
        outcomes, _ = await rotate(session, [("acc_1", own), "acc_2"], ProxyPool(proxies(2)))

    assert outcomes["acc_1"].state is State.FAILED
    assert outcomes["acc_1"].attempts == 4
    assert outcomes["acc_1"].proxy == "me@own.example.net:1"


async def test_an_account_gets_its_failovers_and_no_more() -> None:
    """Four dead proxies in a row say that something else is wrong with it."""
    tries = Tries(*map(proxy_label, range(10)))
    async with Sandbox(dead_proxies=tries) as sandbox, sandbox.session(retry=QUICK) as session:
        outcomes, summary = await rotate(session, ["acc_1"], ProxyPool(proxies(10), failovers=3))

    outcome = outcomes["acc_1"]
    assert len(tries.tried) == 4
    assert (outcome.state, outcome.error_type) == (State.FAILED, "errors/proxy_error")
    assert outcome.attempts == summary.attempts == 8
    assert summary.quarantined == 0  # one account is no proof against a proxy


async def test_dead_pool_is_given_up_after_the_cool_down() -> None:
    """Rows with a change of their own are sent; the others are not, and say why. Few requests are wasted."""
    tries = Tries(*map(proxy_label, range(3)))
    accounts: list[Any] = [f"acc_{n}" for n in range(200)] + [("acc_own", ManagedProxy(country="US"))]
    async with Sandbox(dead_proxies=tries) as sandbox, sandbox.session(retry=QUICK) as session:
        pool = ProxyPool(proxies(3), cool_down=0.1)
        outcomes, summary = await rotate(session, accounts, pool, in_flight=2)

    assert outcomes["acc_own"].state is State.PATCHED
    left = [outcome for outcome in outcomes.values() if outcome.error_type == "no proxy left"]
    assert summary.without_proxy == len(left) >= 150  # two at once, and those that backed off meanwhile
    assert {outcome.state for outcome in left} == {State.SKIPPED}
    assert tries.tried.total() < 100


async def test_a_dead_proxy_is_found_out_by_few() -> None:
    """2,000 accounts, 20 proxies, 2 of them dead: no account keeps a dead one, and few try one."""
    tries = Tries(proxy_label(3), proxy_label(11))
    accounts = [f"acc_{n}" for n in range(2000)]
    async with Sandbox(dead_proxies=tries) as sandbox, sandbox.session(retry=QUICK) as session:
        outcomes, summary = await rotate(session, accounts, ProxyPool(proxies(20)), in_flight=50)

    assert summary.patched == 2000
    assert {host_of(sandbox, account) for account in accounts} == {
        f"p{n}.example.net" for n in range(20) if n not in {3, 11}
    }
    for dead in tries.dead:
        assert tries.tried[dead] <= 2 * 50
    assert {outcome.proxy for outcome in outcomes.values()} == {
        f"u@{proxy_label(n)}" for n in range(20) if n not in {3, 11}
    }


async def test_a_refused_account_leaves_its_place_to_another() -> None:
    """With one account per proxy, an account that does not exist must not take a place."""
    pool = ProxyPool(proxies(2), accounts_per_proxy=1)
    async with Sandbox(accounts=["acc_2", "acc_3"]) as sandbox, sandbox.session() as session:
        _, summary = await rotate(session, ["acc_1", "acc_2", "acc_3"], pool, in_flight=1)

    assert summary.states == {State.FAILED: 1, State.PATCHED: 2}
    assert {host_of(sandbox, account) for account in ("acc_2", "acc_3")} == {
        "p0.example.net",
        "p1.example.net",
    }


async def test_one_that_may_have_got_it_keeps_its_place() -> None:
    """If the response is lost, the account may have that proxy, so its place stays taken."""
    pool = ProxyPool(proxies(1), accounts_per_proxy=1)
    once = RetryPolicy(attempts=1)
    async with Sandbox() as sandbox, sandbox.session(retry=once) as session:
        sandbox.script("acc_1", "lost")
        outcomes, _ = await rotate(session, ["acc_1", "acc_2"], pool, in_flight=1)

    assert outcomes["acc_1"].state is State.UNKNOWN
    assert outcomes["acc_2"].error_type == "no proxy left"


async def test_a_doubt_about_an_earlier_proxy_is_not_forgotten() -> None:
    """Lost with the first proxy, refused with the second: the first one may be in force."""
    async with Sandbox() as sandbox, sandbox.session(retry=QUICK) as session:
        sandbox.script(
            "acc_1", "drop", "errors/proxy_error", "errors/proxy_error", "errors/disconnected_account"
        )
        outcomes, _ = await rotate(session, ["acc_1"], ProxyPool(proxies(2)))

    assert (outcomes["acc_1"].state, outcomes["acc_1"].applied) == (State.UNKNOWN, "unknown")
    assert outcomes["acc_1"].attempts == 4


async def test_stopped_between_two_proxies_is_not_failed(tmp_path) -> None:
    """The next proxy was never tried: the next run begins with it."""
    journal = tmp_path / "run.sqlite3"

    async def first(session: PostPressSession) -> None:
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
        await first(session)
        await rotate(session, ["acc_1"], ProxyPool(proxies(2)[1:]), journal=journal)

    assert host_of(sandbox, "acc_1") == "p1.example.net"


def recorded(journal: Path, query: str) -> list[Any]:
    connection = sqlite3.connect(journal)
    found = connection.execute(query).fetchall()
    connection.close()
    return found


async def test_the_journal_tells_of_accounts_and_of_proxies(tmp_path) -> None:
    """Operators see in the journal which proxies to report to the seller."""
    journal = tmp_path / "run.sqlite3"
    accounts = [f"acc_{n}" for n in range(12)]
    async with Sandbox(dead_proxies=[proxy_label(1)]) as sandbox, sandbox.session(retry=QUICK) as session:
        await rotate(session, accounts, ProxyPool(proxies(3)), journal=journal, in_flight=1)

    by_proxy = "SELECT assignment, count(*) FROM outcomes GROUP BY assignment"
    accounts_by_proxy = dict(recorded(journal, by_proxy))
    assert set(accounts_by_proxy) == {"u@p0.example.net:3128", "u@p2.example.net:3128"}
    assert sum(accounts_by_proxy.values()) == 12
    sql = "SELECT label, failures, quarantined_at NOT NULL FROM proxies"
    [(label, failures, quarantined)] = recorded(journal, sql)
    assert (label, quarantined) == ("u@p1.example.net:3128", 1)
    assert 2 <= failures <= 4  # accounts that backed off from it while it was found out
    assert "hunter2" not in str(recorded(journal, "SELECT * FROM outcomes"))


async def test_a_second_run_counts_who_has_a_proxy_already(tmp_path) -> None:
    """Otherwise each run would fill each proxy again."""
    journal, accounts = tmp_path / "run.sqlite3", [f"acc_{n}" for n in range(6)]
    async with Sandbox() as sandbox, sandbox.session() as session:
        first = ProxyPool(proxies(3), accounts_per_proxy=2)
        await rotate(session, accounts, first, journal=journal, limit=4, in_flight=1)
        second = ProxyPool(proxies(3), accounts_per_proxy=2)
        _, summary = await rotate(session, accounts, second, journal=journal, in_flight=1)

    assert summary.patched == 6
    assert Counter(host_of(sandbox, account) for account in accounts) == {
        f"p{n}.example.net": 2 for n in range(3)
    }


async def test_account_of_a_dead_run_is_sent_again_with_the_next_proxy(tmp_path) -> None:
    """The request has a new key, because the old one belongs to the old body."""
    journal = tmp_path / "run.sqlite3"
    async with Sandbox() as sandbox, sandbox.session() as session:
        sandbox.script("acc_1", Fault(executes=True, ends="never"))
        first = asyncio.create_task(rotate(session, ["acc_1"], ProxyPool(proxies(1)), journal=journal))
        copy = await crash_copy_after(first, sandbox.record, 1, journal)
        outcomes, _ = await rotate(session, ["acc_1"], ProxyPool(proxies(2)[1:]), journal=copy)

    assert outcomes["acc_1"].state is State.PATCHED
    assert host_of(sandbox, "acc_1") == "p1.example.net"
    assert sandbox.record.by_status[400] == 0


async def test_one_in_doubt_for_which_no_proxy_is_left_stays_in_doubt(tmp_path, monkeypatch) -> None:
    """The account may have the earlier proxy: it is not skipped, nor sent with the same key."""
    journal = tmp_path / "run.sqlite3"
    once = RetryPolicy(attempts=1)
    async with Sandbox() as sandbox, sandbox.session(retry=once) as session:
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


async def test_one_that_is_given_up_between_two_proxies_has_neither() -> None:
    """The first one failed for certain: its place is free for others in the next run."""
    lost, renewing = list[Outcome](), asyncio.Event()

    async def keep(_ordinal: int, _generation: int) -> None:
        renewing.set()
        await asyncio.get_running_loop().create_future()

    async def refuses(*_: object) -> Any:
        raise errors.ProxyError(502, errors.Problem("errors/proxy_error"))

    allocator = ProxyAllocator(ProxyPool(proxies(2), accounts_per_proxy=1))
    context = AccountContext(
        update=refuses,
        waits=WaitGroup(),
        pools={None: allocator},
        on_backoff=bool,
        on_attempt_failed=bool,
        on_cancelled=lost.append,
    )
    row = Row(0, None, "acc_1", None)
    task = asyncio.create_task(AccountTask(context, row, RowKeys.of("run", PendingRow(row), keep)).run())
    await renewing.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert [outcome.proxy for outcome in lost] == [None]
    assert allocator.available == 1  # the second one is assigned, but not the first


async def test_one_that_was_given_up_may_have_its_proxy(tmp_path) -> None:
    """A second Ctrl-C: where such accounts are only reported, their places at the proxies are not free."""
    journal = tmp_path / "run.sqlite3"
    async with Sandbox(latency=60.0) as sandbox, sandbox.session() as session:
        task = asyncio.create_task(rotate(session, ["acc_1"], ProxyPool(proxies(1)), journal=journal))
        while not sandbox.record.requests:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with closing(sqlite3.connect(journal)) as connection:
        [(state, proxy)] = connection.execute("SELECT state, assignment FROM outcomes")
    assert (state, proxy) == ("unknown", "u@p0.example.net:3128")


@pytest.mark.parametrize("on_unknown", ["retry", "report"])
async def test_one_that_is_sent_again_has_no_place_from_before(tmp_path, on_unknown) -> None:
    """If it had a place at its old and its new proxy, the last account would find no place."""
    journal, accounts = tmp_path / "run.sqlite3", ["acc_1", "acc_2"]
    once = RetryPolicy(attempts=1)

    def pool() -> ProxyPool:
        return ProxyPool(proxies(2), accounts_per_proxy=1)

    async with Sandbox() as sandbox, sandbox.session(retry=once) as session:
        sandbox.script("acc_1", "lost")
        await rotate(session, accounts, pool(), journal=journal, in_flight=1)
        _, summary = await rotate(session, accounts, pool(), journal=journal, on_unknown=on_unknown)

    left = {State.PATCHED: 2} if on_unknown == "retry" else {State.PATCHED: 1, State.UNKNOWN: 1}
    assert summary.states == left


async def test_a_journal_from_before_there_were_pools_takes_them(tmp_path) -> None:
    """The first proxy that failed an account ended each run, with requests sent and not recorded."""
    journal = tmp_path / "run.sqlite3"
    async with Sandbox(dead_proxies=[proxy_label(0)]) as sandbox, sandbox.session(retry=QUICK) as session:
        await rotate(session, ["acc_1", "acc_2"], ProxyPool(proxies(2)[1:]), journal=journal, limit=1)
        recorded(journal, "DROP TABLE proxies")
        outcomes, _ = await rotate(session, ["acc_1", "acc_2"], ProxyPool(proxies(2)), journal=journal)

    assert outcomes["acc_2"].state is State.PATCHED
    assert recorded(journal, "SELECT label, failures FROM proxies") == [("u@p0.example.net:3128", 1)]


async def quarantine_first(session: PostPressSession, journal: Path) -> None:
    """Make a journal in which the first of two proxies is quarantined."""
    accounts = [f"acc_{number}" for number in range(4)]
    _, summary = await rotate(session, accounts, ProxyPool(proxies(2)), journal=journal, in_flight=1)
    assert summary.quarantined == 1


@pytest.mark.parametrize("probe_at", [True, False], ids=["this version", "a version that forgot quarantines"])
async def test_quarantine_lasts_until_the_next_run(tmp_path, probe_at) -> None:
    journal, tries = tmp_path / "run.sqlite3", Tries(proxy_label(0))
    async with Sandbox(dead_proxies=tries) as sandbox, sandbox.session(retry=QUICK) as session:
        await quarantine_first(session, journal)
        if not probe_at:
            recorded(journal, "ALTER TABLE proxies DROP COLUMN probe_at")
        before = tries.tried[proxy_label(0)]
        _, summary = await rotate(session, ["acc_8"], ProxyPool(proxies(2)), journal=journal, every=0)

        assert tries.tried[proxy_label(0)] == before
        assert summary.quarantined == 1

        tries.dead.clear()
        [(began,)] = recorded(journal, "SELECT quarantined_at FROM proxies")
        with sqlite3.connect(journal) as connection:
            connection.execute("UPDATE proxies SET probe_at = ?", (began + 1e-6,))
        connection.close()
        _, summary = await rotate(session, ["acc_9"], ProxyPool(proxies(2)), journal=journal, every=0)

    assert host_of(sandbox, "acc_9") == "p0.example.net"
    assert summary.quarantined == 0
    assert recorded(journal, "SELECT quarantined_at, probe_at FROM proxies") == [(None, None)]


async def test_edited_list_is_probed_at_once(tmp_path) -> None:
    """Passwords may have been corrected, and labels do not contain them."""
    journal, tries = tmp_path / "run.sqlite3", Tries(proxy_label(0))
    async with Sandbox(dead_proxies=tries) as sandbox, sandbox.session(retry=QUICK) as session:
        await quarantine_first(session, journal)
        tries.dead.clear()
        edited = ProxyPool([evolve(proxy, password="corrected") for proxy in proxies(2)])
        _, summary = await rotate(session, ["acc_9"], edited, journal=journal, every=0)

    assert host_of(sandbox, "acc_9") == "p0.example.net"
    assert summary.quarantined == 0


async def test_a_refusal_after_a_run_that_died_is_not_asked_for_every_night(tmp_path) -> None:
    """The doubt about what the dead run sent stays recorded, and the refusal is final."""
    journal, copy = tmp_path / "run.sqlite3", tmp_path / "killed.sqlite3"
    async with Sandbox() as sandbox, sandbox.session() as session:
        sandbox.script("acc_1", "hang", "errors/resource_not_found")
        dead = asyncio.create_task(rotate(session, ["acc_1"], ProxyPool(proxies(1)), journal=journal))
        while not sandbox.record.requests:
            await asyncio.sleep(0)
        dead.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dead
        copy.write_bytes(journal.read_bytes())
        outcomes, _ = await rotate(session, ["acc_1"], ProxyPool(proxies(1)), journal=copy)
        again, summary = await rotate(session, ["acc_1"], ProxyPool(proxies(1)), journal=copy)

    assert (outcomes["acc_1"].state, outcomes["acc_1"].applied) == (State.FAILED, "unknown")
    assert again == {}
    assert summary.states == {State.FAILED: 1}


@pytest.mark.slow
async def test_passing_errors_take_no_good_proxy_out() -> None:
    """One answer in ten is a proxy_error that passes; over 2,000 accounts each proxy meets many."""
    async with Sandbox(seed=3) as sandbox, sandbox.session(retry=QUICK) as session:
        for number in range(2000):
            if number % 10 == 0:
                sandbox.script(f"acc_{number}", "errors/proxy_error", "errors/proxy_error")
        accounts = [f"acc_{number}" for number in range(2000)]
        _, summary = await rotate(session, accounts, ProxyPool(proxies(25)), in_flight=5)

    assert summary.patched == 2000
    assert summary.quarantined <= 3


async def test_a_fleet_file_leaves_its_empty_rows_to_the_pool(tmp_path) -> None:
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


def test_a_default_and_a_pool_are_one_too_many(tmp_path) -> None:
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
def test_each_account_ends_once_with_its_true_outcome(dead, wrong, assign, flaky, in_flight) -> None:
    """The outcome's proxy is the sandbox's, and never a dead one; every account has its end."""
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
            if len(dead) <= 3 and not wrong:  # four tries are enough whichever proxies they are
                assert summary.patched == 40

    asyncio.run(main())
