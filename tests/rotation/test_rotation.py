"""Many accounts: each is completed once, despite errors of the service, journal and operator."""

import asyncio
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postpress_async import (
    AccountPatched,
    CustomProxy,
    Fleet,
    ManagedProxy,
    Outcome,
    PostPressSession,
    RetryPolicy,
    Rotation,
    errors,
)
from postpress_async.models import Attempt, ProxyChange
from postpress_async.rotation import Halt, Row, State, Update
from postpress_async.rotation._account_task import AccountTask
from postpress_async.rotation._row_keys import RowKeys
from postpress_async.rotation.journal import Journal
from postpress_async.sandbox import Fault, Sandbox
from tests.support.journals import crash_copy, crash_copy_after

US = ManagedProxy(country="US")
ACCOUNTS = [f"acc_{number}" for number in range(10)]


def rows(accounts: list[str] = ACCOUNTS) -> Iterator[Row]:
    return (Row(ordinal, None, account, US) for ordinal, account in enumerate(accounts))


class Stub:
    """A session's one function: patches every account except those in *refused*."""

    def __init__(self, **refusals: BaseException) -> None:
        self.account_ids: list[str] = []
        self.keys: list[str | None] = []
        self.refusals = refusals

    async def __call__(
        self, account_id: str, change: ProxyChange, keys: RowKeys, hooks: AccountTask, /
    ) -> AccountPatched:
        self.account_ids.append(account_id)
        self.keys.append(keys.current)
        await asyncio.sleep(0)
        if account_id in self.refusals:
            raise self.refusals[account_id]
        return AccountPatched(account_id, (Attempt(1, 0.0, 0.0, status=200),))


def refusal(type_: str, **facts: Any) -> errors.ApiError:
    kind = errors.BY_TYPE[f"errors/{type_}"]
    assert kind.status is not None
    error = kind(kind.status, errors.Problem(f"errors/{type_}", instance="req_1"))
    for name, fact in facts.items():
        setattr(error, name, fact)
    return error


def make(update: Update, journal: Path | None = None, in_flight: int = 3, **options: Any) -> Rotation:
    opener = None if journal is None else partial(Journal.open, journal)
    return Rotation(update, rows(), in_flight=in_flight, journal=opener, finite=True, **options)


def recorded(journal: Path) -> dict[str, str]:
    with sqlite3.connect(journal) as connection:
        found = dict(connection.execute("SELECT account_id, state FROM outcomes"))
    connection.close()
    return found


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite3"


async def test_every_account_is_completed_once_and_its_outcome_yielded(journal) -> None:
    stub = Stub(acc_3=refusal("resource_not_found"), acc_5=refusal("unexpected_error"))
    stub.refusals["acc_5"].applied = errors.Applied.UNKNOWN  # type: ignore[attr-defined]

    async with make(stub, journal) as rotation:
        outcomes = [outcome async for outcome in rotation]

    assert sorted(stub.account_ids) == ACCOUNTS
    assert sorted(outcome.account_id for outcome in outcomes) == ACCOUNTS
    assert rotation.summary.states == {State.PATCHED: 8, State.FAILED: 1, State.UNKNOWN: 1}
    assert Counter(recorded(journal).values()) == {"patched": 8, "failed": 1, "unknown": 1}


async def test_a_failure_is_recorded_with_all_that_support_will_ask(journal) -> None:
    async with make(Stub(acc_3=refusal("proxy_error")), journal) as rotation:
        outcomes = {outcome.account_id: outcome async for outcome in rotation}

    connection = sqlite3.connect(journal)
    row = connection.execute(
        "SELECT ordinal, status, error_type, scope, applied, instance FROM outcomes WHERE state = 'failed'"
    ).fetchone()
    connection.close()
    assert row == (3, 502, "errors/proxy_error", "proxy", "no", "req_1")
    assert isinstance(outcomes["acc_3"].error, errors.ProxyError)


async def test_no_more_accounts_are_worked_on_at_once_than_asked_for() -> None:
    now = most = 0

    async def update(
        account_id: str, change: ProxyChange, keys: RowKeys, hooks: AccountTask, /
    ) -> AccountPatched:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        now -= 1
        return AccountPatched(account_id)

    await _run(make(update, in_flight=4))

    assert most == 4


async def test_the_input_is_read_only_as_it_is_worked() -> None:
    """A plan of ten million rows must not stand in memory."""
    read = 0

    def endless() -> Iterator[Row]:
        nonlocal read
        while True:
            yield Row(read, None, f"acc_{read}", US)
            read += 1

    async with Rotation(Stub(), endless(), in_flight=5) as rotation:
        for _ in range(20):
            await anext(rotation)
        assert read <= 20 + 2 * 5 + 1  # told, waiting to be told, and worked on


@given(stop=st.integers(0, 9), in_flight=st.integers(1, 4))
def test_a_stopped_rotation_goes_on_where_it_stopped(tmp_path_factory, stop, in_flight) -> None:
    """Wherever the first run breaks, the next leaves nothing out and redoes nothing that was settled."""
    journal = tmp_path_factory.mktemp("r") / "run.sqlite3"
    first, second = Stub(**{f"acc_{stop}": KeyError("a bug")}), Stub()

    with pytest.raises(KeyError):
        asyncio.run(_run(make(first, journal, in_flight)))
    settled = {account for account, state in recorded(journal).items() if state == "patched"}
    asyncio.run(_run(make(second, journal, in_flight)))

    assert set(second.account_ids) == set(ACCOUNTS) - settled
    assert set(recorded(journal).values()) == {"patched"}


async def _run(rotation: Rotation) -> Rotation:
    async with rotation:
        await rotation.run()
    return rotation


async def test_failures_are_settled_and_doubts_are_not(journal) -> None:
    """A second run sends what is unknown or was skipped, under the same key; a refusal stays refused."""
    doubt = refusal("request_timeout", applied=errors.Applied.UNKNOWN)
    first, second = Stub(acc_1=refusal("resource_not_found"), acc_2=doubt), Stub()
    await _run(make(first, journal))

    await _run(make(second, journal))

    assert second.account_ids == ["acc_2"]
    assert second.keys[0] == first.keys[first.account_ids.index("acc_2")]
    assert Counter(recorded(journal).values()) == {"patched": 9, "failed": 1}


async def test_a_managed_change_s_generation_outlives_the_process(journal) -> None:
    """Without it the next run would start from the first key, and might be handed a second proxy."""
    used: list[str | None] = []

    async def dies(
        account_id: str, change: ProxyChange, keys: RowKeys, hooks: AccountTask, /
    ) -> AccountPatched:
        await keys.renew()
        used.append(keys.current)
        raise KeyError("a crash")

    async def goes_on(
        account_id: str, change: ProxyChange, keys: RowKeys, hooks: AccountTask, /
    ) -> AccountPatched:
        used.append(keys.current)
        return AccountPatched(account_id)

    opener = partial(Journal.open, journal)
    rows = [Row(0, None, "acc_1", US)]
    with pytest.raises(KeyError):
        await _run(Rotation(dies, iter(rows), in_flight=1, journal=opener))
    await _run(Rotation(goes_on, iter(rows), in_flight=1, journal=opener))

    assert used[0] == used[1]


async def test_leaving_the_block_early_sends_nothing_new_and_settles_what_is_in_flight(journal) -> None:
    stub = Stub()
    async with make(stub, journal) as rotation:
        async for _ in rotation:
            break

    assert len(stub.account_ids) < 10
    assert rotation.summary.stopped
    states = recorded(journal)
    assert {account for account in ACCOUNTS if states[account] == "patched"} == set(stub.account_ids)
    assert Counter(states.values())["skipped"] == 10 - len(stub.account_ids)


async def test_stop_is_in_the_summary_and_the_next_run_completes_the_rest(journal) -> None:
    """The skipped ones have their row, and the next run sends exactly those."""
    first, second = Stub(), Stub()
    async with make(first, journal) as rotation:
        async for _ in rotation:
            rotation.stop()

    await _run(make(second, journal))

    assert sorted(first.account_ids + second.account_ids) == ACCOUNTS


async def test_cancelling_a_rotation_leaves_what_was_in_flight_unknown(journal) -> None:
    """The change may have been applied, so the state is not failed."""
    started = asyncio.Event()

    async def never(
        account_id: str, change: ProxyChange, keys: RowKeys, hooks: AccountTask, /
    ) -> AccountPatched:
        started.set()
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    task = asyncio.create_task(_run(make(never, journal, in_flight=2)))
    await started.wait()
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert recorded(journal) == {"acc_0": "unknown", "acc_1": "unknown"}


@pytest.mark.parametrize("type_", ["missing_credentials", "insufficient_privileges"])
async def test_a_refused_key_stops_the_rotation(type_, journal) -> None:
    """Ten thousand times the same answer would only lock the key."""
    stub = Stub(**{account: refusal(type_) for account in ACCOUNTS})

    rotation = await _run(make(stub, journal, in_flight=1))

    assert stub.account_ids == ["acc_0"]
    assert rotation.summary.key_refused
    assert type_ in (rotation.summary.halted or "")
    # Nothing was found out about the account that was tried: the right key sends it too.
    assert Counter(recorded(journal).values()) == {"skipped": 10}


@pytest.mark.parametrize("type_", ["missing_credentials", "insufficient_privileges"])
async def test_a_key_that_is_revoked_under_way_stops_the_rotation_and_fails_no_account(
    type_, journal
) -> None:
    """Requests in flight are refused, too; the next run sends all of these accounts."""
    accounts = [f"acc_{number}" for number in range(300)]
    first = Stub(**{account: refusal(type_) for account in accounts[200:]})
    opener = partial(Journal.open, journal)
    halt = Halt(failures="never")

    rotation = await _run(
        Rotation(first, rows(accounts), in_flight=20, journal=opener, finite=True, halt=halt)
    )

    assert rotation.summary.key_refused
    assert type_ in (rotation.summary.halted or "")
    assert len(first.account_ids) <= 200 + 2 * 20
    states = recorded(journal)
    assert Counter(states.values()) == {"patched": 200, "skipped": 100}
    assert rotation.summary.states == {State.PATCHED: 200, State.SKIPPED: 100}
    second = Stub()
    await _run(Rotation(second, rows(accounts), in_flight=20, journal=opener, finite=True))
    assert sorted(second.account_ids) == sorted(accounts[200:])


async def test_key_refused_after_another_halt_is_reported_too(journal) -> None:
    """The exit code says what to look at first."""
    stub = Stub(acc_0=refusal("proxy_error"), acc_1=refusal("missing_credentials"))

    rotation = await _run(make(stub, journal, in_flight=2, halt=Halt(failures=1)))

    assert rotation.summary.key_refused
    assert recorded(journal)["acc_1"] == "skipped"


async def test_an_answer_that_comes_after_the_halt_speaks_for_the_key_too() -> None:
    """Five accounts got the same 401 and halted the rotation; the one in flight was then patched."""
    gate = asyncio.Event()

    async def update(account_id: str, *rest: Any) -> AccountPatched:
        if account_id == "acc_0":
            await gate.wait()
            return AccountPatched(account_id)
        if account_id == "acc_5":
            asyncio.get_running_loop().call_later(0, gate.set)
        raise refusal("disconnected_account")

    rotation = await _run(make(update, in_flight=2, halt=Halt(failures=5)))

    assert rotation.summary.patched == 1
    assert "5 accounts failed" in (rotation.summary.halted or "")
    assert not rotation.summary.key_refused


async def test_a_401_that_every_one_of_a_few_accounts_got_is_the_key_s(journal) -> None:
    """The advice is to check the key, and nothing was found out about the accounts."""
    stub = Stub(**{account: refusal("invalid_credentials") for account in ACCOUNTS})

    rotation = await _run(make(stub, journal, halt=Halt(failures="never")))

    assert rotation.summary.key_refused
    assert "check the API key" in (rotation.summary.halted or "")
    assert rotation.summary.states == Counter({State.SKIPPED: 10})
    assert set(recorded(journal).values()) == {"skipped"}
    await _run(make(again := Stub(), journal))
    assert sorted(again.account_ids) == ACCOUNTS


async def test_one_401_for_each_of_the_first_twenty_tells_of_the_key() -> None:
    """A wrong key reads as if each account's own credentials were wrong."""
    accounts = [f"acc_{number}" for number in range(100)]
    stub = Stub(**{account: refusal("invalid_credentials") for account in accounts})

    rotation = await _run(Rotation(stub, rows(accounts), in_flight=1))

    assert len(stub.account_ids) == 20
    assert rotation.summary.key_refused


async def test_a_flake_does_not_hide_that_the_key_is_wrong() -> None:
    """A lost connection or a 503 says nothing about the key, neither way."""
    accounts = [f"acc_{number}" for number in range(100)]
    stub = Stub(**{account: refusal("invalid_credentials") for account in accounts})
    stub.refusals["acc_0"] = errors.ConnectError("no connection")
    stub.refusals["acc_5"] = refusal("network_down")

    rotation = await _run(Rotation(stub, rows(accounts), in_flight=1))

    assert len(stub.account_ids) == 22
    assert rotation.summary.key_refused


async def test_an_account_that_was_never_reached_is_sent_by_the_next_run(journal) -> None:
    """A wrong base URL or a closed session says nothing about the account."""
    first, second = (
        Stub(acc_1=errors.ConnectError("no connection"), acc_2=errors.DeadlineError("late")),
        Stub(),
    )

    await _run(make(first, journal))
    assert Counter(recorded(journal).values()) == {"patched": 8, "skipped": 2}

    await _run(make(second, journal))
    assert sorted(second.account_ids) == ["acc_1", "acc_2"]


async def test_accounts_maybe_sent_by_a_dead_run_stay_in_doubt(sandbox, tmp_path, policy) -> None:
    """Killed with a request in flight that was carried out: a 503 must not cost a second managed proxy."""
    journal = tmp_path / "run.sqlite3"
    sandbox.script(
        "acc_1", Fault(executes=True, ends="never"), "errors/service_unavailable", "errors/no_channel"
    )

    async def run(session: PostPressSession, journal: Path) -> None:
        async with session.rotate({"acc_1": US}, journal=journal) as rotation:
            await rotation.run()

    async with sandbox.session(retry=policy) as session:
        first = asyncio.create_task(run(session, journal))
        copy = await crash_copy_after(first, sandbox.record, 1, journal)
        await run(session, copy)
        assert recorded(copy) == {"acc_1": "unknown"}  # no_channel is fatal, and leaves the doubt
        await run(session, copy)

    assert recorded(copy) == {"acc_1": "patched"}
    assert sandbox.record.managed_handed_out == 1


async def test_the_block_s_own_exception_comes_out_as_it_is() -> None:
    """An `ExceptionGroup` around a `KeyError` of one's own would pass every handler by."""

    async def look() -> None:
        async with make(Stub()) as rotation:
            async for _ in rotation:
                raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await look()


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
async def test_an_input_that_breaks_lets_what_is_in_flight_settle(journal, asynchronous) -> None:
    """The input's error is raised unchanged; accounts that were sent have their outcomes."""

    def broken() -> Iterator[Row]:
        yield from list(rows())[:5]
        raise ValueError("the input broke")

    async def abroken() -> AsyncIterator[Row]:
        for row in broken():
            yield row

    source = abroken() if asynchronous else broken()
    opener = partial(Journal.open, journal)
    with pytest.raises(ValueError, match="the input broke"):
        await _run(Rotation(Stub(), source, in_flight=3, journal=opener))

    assert Counter(recorded(journal).values()) == {"patched": 5}


async def test_an_input_that_waits_does_not_keep_a_stopped_rotation() -> None:
    """The input waits for a queue that stays empty."""

    async def waits() -> AsyncIterator[Row]:
        yield next(rows())
        await asyncio.get_running_loop().create_future()

    async with asyncio.timeout(5), Rotation(Stub(), waits(), in_flight=3) as rotation:
        async for _ in rotation:
            break

    assert [outcome async for outcome in rotation] == []


async def test_a_rotation_is_entered_once_and_first(journal) -> None:
    """Else it would wait for ever, or leave its journal locked."""
    rotation = make(Stub(), journal)
    with pytest.raises(RuntimeError, match="enter the rotation first"):
        await rotation.run()
    await _run(rotation)
    with pytest.raises(RuntimeError, match="cannot be entered twice"):
        await _run(rotation)
    await _run(make(Stub(), journal))


async def test_a_journal_of_another_target_is_refused(sandbox, journal) -> None:
    """A trial in the sandbox must not make the real run a run of nothing."""
    async with sandbox.session() as session, session.rotate({"acc_1": US}, journal=journal) as rotation:
        await rotation.run()

    async with PostPressSession("pp_live_key") as real:
        with pytest.raises(errors.JournalError, match="for this machine, not for https://"):
            await _run(real.rotate({"acc_1": US}, journal=journal))


async def test_other_refusals_halt_nothing() -> None:
    accounts = [f"acc_{number}" for number in range(100)]
    stub = Stub(**{account: refusal("disconnected_account") for account in accounts[1:]})
    stub.refusals["acc_0"] = refusal("resource_not_found")

    rotation = await _run(Rotation(stub, rows(accounts), in_flight=1, halt=Halt(failures="never")))

    assert len(stub.account_ids) == 100
    assert rotation.summary.halted is None


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(list, id="a list"),
        pytest.param(dict, id="a mapping"),
        pytest.param(iter, id="an iterator"),
        pytest.param(lambda pairs: _each(pairs), id="an asynchronous generator"),
    ],
)
async def test_changes_come_from_any_iterable(wrap: Callable[[Any], Any], sandbox) -> None:
    changes = [(account, US) for account in ACCOUNTS]

    async with sandbox.session() as session, session.rotate(wrap(changes)) as rotation:
        account_ids = [outcome.account_id async for outcome in rotation]

    assert sorted(account_ids) == sorted(sandbox.record.patched_accounts) == ACCOUNTS


async def _each(pairs: list[Any]) -> AsyncIterator[Any]:
    for pair in pairs:
        await asyncio.sleep(0)
        yield pair


async def test_a_wrong_pair_is_an_outcome_and_the_others_go_on(sandbox) -> None:
    """One bad row of a million is reported, not raised."""
    changes: list[Any] = [("acc_1", US), ("acc/../admin", US), ("acc_2", "US"), ("acc_3", US)]

    async with sandbox.session() as session, session.rotate(iter(changes)) as rotation:
        outcomes: list[Outcome] = [outcome async for outcome in rotation]

    assert Counter(outcome.state for outcome in outcomes) == {State.PATCHED: 2, State.SKIPPED: 2}
    assert sandbox.record.requests == 2


async def test_a_fleet_file_goes_through_a_session(sandbox, tmp_path) -> None:
    path = tmp_path / "fleet.csv"
    path.write_text("account_id,proxy,country\nacc_1,socks5://u:p%40ss@h.example:1080,\nacc_2,,de\n")

    async with sandbox.session() as session:
        with Fleet.open(path) as fleet:
            async with session.rotate(fleet, journal=tmp_path / "run.sqlite3") as rotation:
                await rotation.run()

    assert rotation.summary.complete
    assert sandbox.proxy_of("acc_2") == {"country": "DE"}
    assert sandbox.proxy_of("acc_1") == {
        "proxy": {
            "host": "h.example",
            "port": 1080,
            "protocol": "socks5",
            "username": "u",
            "password": "p@ss",
        }
    }


async def test_a_rotation_over_a_bad_network_loses_no_account_and_doubles_no_proxy(tmp_path) -> None:
    """2% provider errors, 1% each of 503 and 504, 0.5% dropped connections; 1% of accounts do not exist."""
    own = CustomProxy(host="h.example", port=1)
    changes = {f"acc_{number}": own if number % 2 else US for number in range(2000)}
    quick = RetryPolicy(first_wait=0.001)
    async with Sandbox(profile="flaky", seed=7) as sandbox, sandbox.session(retry=quick) as session:
        async with session.rotate(changes, journal=tmp_path / "run.sqlite3") as rotation:
            await rotation.run()

    states = recorded(tmp_path / "run.sqlite3")
    assert len(states) == 2000
    # A managed change whose 504 is stored stays in doubt by design: asking again gets the same answer.
    assert set(rotation.summary.errors) <= {"errors/resource_not_found", "errors/request_timeout"}
    assert all(changes[account] is US for account, state in states.items() if state == "unknown")
    patched = {account for account, state in states.items() if state == "patched"}
    assert patched == set(sandbox.record.patched_accounts)
    assert sandbox.record.managed_handed_out == sum(changes[account] is US for account in patched)


def test_a_custom_change_s_row_shows_no_password() -> None:
    """Rows travel through logs and debuggers."""
    change = CustomProxy(host="h", port=1, password="hunter2")

    assert "hunter2" not in repr(Row(0, 1, "acc_1", change))


# --- What one run leaves to the next ---


async def test_skipped_accounts_sent_by_a_dead_run_are_in_doubt(sandbox, tmp_path, policy) -> None:
    """Skipped, sent by the next run, killed: the old word must not make a fresh key, and a second proxy."""
    journal = tmp_path / "run.sqlite3"
    async with sandbox.session(retry=policy) as session:
        async with session.rotate({"acc_1": US}, journal=journal) as rotation:
            rotation.stop()
            await rotation.run()
        assert recorded(journal) == {"acc_1": "skipped"}
        async with session.rotate({"acc_1": US}, journal=journal) as rotation:
            while not sandbox.record.requests:
                await asyncio.sleep(0)
            copy = crash_copy(journal)
            await rotation.run()
        sandbox.script("acc_1", "errors/service_unavailable")
        async with session.rotate({"acc_1": US}, journal=copy) as rotation:
            await rotation.run()

    assert recorded(copy) == {"acc_1": "patched"}
    assert sandbox.record.managed_handed_out == 1


async def test_a_session_that_closes_leaves_a_doubt_as_it_is(sandbox, tmp_path) -> None:
    """Nothing was learned of what an earlier run may have sent; and the input is not read to its end."""
    journal = tmp_path / "run.sqlite3"
    sandbox.script("acc_0", "lost")
    once = RetryPolicy(attempts=1)
    async with sandbox.session(retry=once) as session:
        await _run(session.rotate({"acc_0": US}, journal=journal))
    assert recorded(journal) == {"acc_0": "unknown"}
    read = []

    def pairs() -> Iterator[tuple[str, ProxyChange]]:
        for number in range(1000):
            read.append(number)
            yield f"acc_{number}", US

    async def close_and_go_on() -> None:
        session = sandbox.session()
        async with session.rotate(pairs(), journal=journal, in_flight=2) as rotation:
            await session.aclose()
            await rotation.run()

    with pytest.raises(errors.SessionClosedError):
        await close_and_go_on()

    assert recorded(journal)["acc_0"] == "unknown"
    assert len(read) < 10


@pytest.mark.parametrize(
    ("change", "state"),
    [(US, "unknown"), (CustomProxy(host="h", port=1), "failed")],
    ids=["managed", "custom"],
)
async def test_a_later_run_s_refusal_says_nothing_about_what_an_earlier_run_sent(
    sandbox, tmp_path, change, state
) -> None:
    """The first run's change was applied, and its answer was lost: `applied` is never "no" again."""
    journal = tmp_path / "run.sqlite3"
    sandbox.script("acc_1", "lost", "errors/service_unavailable", "errors/no_channel")
    async with sandbox.session(retry=RetryPolicy(attempts=1)) as session:
        await _run(session.rotate({"acc_1": change}, journal=journal))
    async with sandbox.session(retry=RetryPolicy(first_wait=0.001)) as session:
        await _run(session.rotate({"acc_1": change}, journal=journal))

    with closing(sqlite3.connect(journal)) as connection:
        recorded = connection.execute("SELECT state, applied FROM outcomes").fetchall()
    assert recorded == [(state, "unknown")]


async def test_a_session_without_idempotency_rotates_without_it(sandbox, tmp_path, policy) -> None:
    """And so sends no managed change twice whose outcome is unknown, in this run or in the next."""
    journal = tmp_path / "run.sqlite3"
    sandbox.script("acc_1", "lost")
    async with sandbox.session(retry=policy, idempotency=False) as session:
        await _run(session.rotate({"acc_1": US}, journal=journal))
        await _run(session.rotate({"acc_1": US}, journal=journal))

    assert recorded(journal) == {"acc_1": "unknown"}
    assert sandbox.record.sends("acc_1") == 1


async def test_leaving_the_block_wakes_all_who_wait_to_tell(journal) -> None:
    """Accounts that back off make room for more workers than the queue of outcomes has places."""

    async def backs_off(
        account_id: str, change: ProxyChange, keys: RowKeys, hooks: AccountTask, /
    ) -> AccountPatched:
        hooks.on_backoff(True)
        for _ in range(5):
            await asyncio.sleep(0)
        hooks.on_backoff(False)
        return AccountPatched(account_id)

    many = rows([f"acc_{number}" for number in range(100)])
    async with asyncio.timeout(5), Rotation(backs_off, many, in_flight=2) as rotation:
        for _ in range(200):
            await asyncio.sleep(0)  # nobody listens meanwhile
        async for _ in rotation:
            break


async def test_an_input_may_stop_its_own_rotation(journal) -> None:
    """A generator that knows when the night is over; the row it was asked for is still its last word."""
    rotation: Rotation

    def until_enough() -> Iterator[Row]:
        for row in rows():
            if row.ordinal == 4:
                rotation.stop()
            yield row

    rotation = Rotation(Stub(), until_enough(), in_flight=1)
    async with rotation:
        states = [outcome.state async for outcome in rotation]

    assert states == [State.PATCHED] * 5


async def test_an_input_that_stops_its_rotation_and_then_waits_keeps_nobody(journal) -> None:
    """The input stopped the rotation and blocks: requests in flight end, and then the rotation."""
    rotation: Rotation
    gate = asyncio.Event()

    async def until_enough() -> AsyncIterator[Row]:
        for row in rows(ACCOUNTS[:3]):
            yield row
        rotation.stop()
        asyncio.get_running_loop().call_soon(gate.set)
        await asyncio.get_running_loop().create_future()

    async def update(account_id: str, change: ProxyChange, *rest: Any) -> AccountPatched:
        await gate.wait()
        return await Stub()(account_id, change, *rest)

    opener = partial(Journal.open, journal)
    rotation = Rotation(update, until_enough(), in_flight=4, journal=opener)
    async with asyncio.timeout(5), rotation:
        account_ids = [outcome.account_id async for outcome in rotation]

    assert sorted(account_ids) == ACCOUNTS[:3]
    assert recorded(journal) == dict.fromkeys(ACCOUNTS[:3], "patched")
    assert rotation.summary.stopped


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_an_input_that_is_cancelled_by_itself_is_no_end(asynchronous: bool) -> None:
    """A task of its own was cancelled, say: else the rotation calls itself complete, with the rest unread."""

    def broken() -> Iterator[Row]:
        yield from rows(ACCOUNTS[:3])
        raise asyncio.CancelledError

    async def abroken() -> AsyncIterator[Row]:
        for row in rows(ACCOUNTS[:3]):
            yield row
        raise asyncio.CancelledError

    stub = Stub()
    with pytest.raises(RuntimeError, match="the input raised CancelledError"):
        await _run(Rotation(stub, abroken() if asynchronous else broken(), in_flight=2))

    assert sorted(stub.account_ids) == ACCOUNTS[:3]
