"""A rotation completes each account once despite errors, stops, kills and a refused API key."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
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
    Outcome,
    PostPressSession,
    RetryPolicy,
    Rotation,
    errors,
)
from postpress_async.models import ProxyChange
from postpress_async.rotation import Halt, Row, State
from postpress_async.rotation._account_task import AccountTask
from postpress_async.rotation._row_keys import RowKeys
from postpress_async.rotation.journal import Journal
from postpress_async.sandbox import Fault, Sandbox
from tests.support.journals import crash_copy, crash_copy_after
from tests.support.rotations import (
    ACCOUNTS,
    US,
    Stub,
    api_error,
    make_rotation,
    managed_rows,
    query,
    run,
    states_by_account,
)


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite3"


async def test_every_account_is_sent_once_recorded_and_yielded(journal) -> None:
    in_doubt = api_error("unexpected_error", applied=errors.Applied.UNKNOWN)
    stub = Stub(acc_3=api_error("resource_not_found"), acc_5=in_doubt)

    async with make_rotation(stub, journal) as rotation:
        outcomes = [outcome async for outcome in rotation]

    assert sorted(stub.account_ids) == ACCOUNTS
    assert sorted(outcome.account_id for outcome in outcomes) == ACCOUNTS
    assert rotation.summary.states == {State.PATCHED: 8, State.FAILED: 1, State.UNKNOWN: 1}
    assert Counter(states_by_account(journal).values()) == {"patched": 8, "failed": 1, "unknown": 1}


async def test_failure_is_recorded_with_status_type_scope_and_request_id(journal) -> None:
    async with make_rotation(Stub(acc_3=api_error("proxy_error")), journal) as rotation:
        outcomes = {outcome.account_id: outcome async for outcome in rotation}

    columns = "ordinal, status, error_type, scope, applied, instance"
    [row] = query(journal, f"SELECT {columns} FROM outcomes WHERE state = 'failed'")
    assert row == (3, 502, "errors/proxy_error", "proxy", "no", "req_1")
    assert isinstance(outcomes["acc_3"].error, errors.ProxyError)


async def test_in_flight_limits_how_many_accounts_are_updated_at_once() -> None:
    running = most_running = 0

    async def update(
        account_id: str, change: ProxyChange, keys: RowKeys, hooks: AccountTask, /
    ) -> AccountPatched:
        nonlocal running, most_running
        running += 1
        most_running = max(most_running, running)
        await asyncio.sleep(0)
        running -= 1
        return AccountPatched(account_id)

    await run(make_rotation(update, in_flight=4))

    assert most_running == 4


async def test_input_is_read_only_as_fast_as_it_is_processed() -> None:
    """An input of ten million rows must not be held in memory."""
    read = 0

    def endless() -> Iterator[Row]:
        nonlocal read
        while True:
            yield Row(read, None, f"acc_{read}", US)
            read += 1

    async with Rotation(Stub(), endless(), in_flight=5) as rotation:
        for _ in range(20):
            await anext(rotation)
        # Rows whose outcome was consumed, is in the queue (5), or is pending (5), and the row being read.
        assert read <= 20 + 5 + 5 + 1


@given(crash_at=st.integers(0, 9), in_flight=st.integers(1, 4))
def test_next_run_sends_exactly_the_accounts_that_a_crashed_run_did_not_patch(
    tmp_path_factory, crash_at, in_flight
) -> None:
    journal = tmp_path_factory.mktemp("r") / "run.sqlite3"
    first, second = Stub(**{f"acc_{crash_at}": KeyError("a bug")}), Stub()

    with pytest.raises(KeyError):
        asyncio.run(run(make_rotation(first, journal, in_flight)))
    patched = {account for account, state in states_by_account(journal).items() if state == "patched"}
    asyncio.run(run(make_rotation(second, journal, in_flight)))

    assert set(second.account_ids) == set(ACCOUNTS) - patched
    assert set(states_by_account(journal).values()) == {"patched"}


async def test_next_run_sends_accounts_in_doubt_under_the_same_key_but_not_failed_ones(journal) -> None:
    timeout = api_error("request_timeout", applied=errors.Applied.UNKNOWN)
    first, second = Stub(acc_1=api_error("resource_not_found"), acc_2=timeout), Stub()
    await run(make_rotation(first, journal))

    await run(make_rotation(second, journal))

    assert second.account_ids == ["acc_2"]
    assert second.keys[0] == first.keys[first.account_ids.index("acc_2")]
    assert Counter(states_by_account(journal).values()) == {"patched": 9, "failed": 1}


async def test_resumed_run_uses_the_renewed_key_of_a_managed_change(journal) -> None:
    """If the next run sent the first key again, the API might hand out a second managed proxy."""
    used_keys: list[str | None] = []

    async def crash(
        account_id: str, change: ProxyChange, keys: RowKeys, hooks: AccountTask, /
    ) -> AccountPatched:
        await keys.renew()
        used_keys.append(keys.current)
        raise KeyError("a crash")

    async def succeed(
        account_id: str, change: ProxyChange, keys: RowKeys, hooks: AccountTask, /
    ) -> AccountPatched:
        used_keys.append(keys.current)
        return AccountPatched(account_id)

    opener = partial(Journal, journal)
    rows = [Row(0, None, "acc_1", US)]
    with pytest.raises(KeyError):
        await run(Rotation(crash, iter(rows), in_flight=1, journal=opener))
    await run(Rotation(succeed, iter(rows), in_flight=1, journal=opener))

    assert used_keys[0] == used_keys[1]


async def test_leaving_the_block_early_completes_requests_in_flight_and_skips_the_rest(journal) -> None:
    stub = Stub()
    async with make_rotation(stub, journal) as rotation:
        async for _ in rotation:
            break

    assert len(stub.account_ids) < 10
    assert rotation.summary.stopped
    states = states_by_account(journal)
    assert {account for account in ACCOUNTS if states[account] == "patched"} == set(stub.account_ids)
    assert Counter(states.values())["skipped"] == 10 - len(stub.account_ids)


async def test_next_run_after_a_stop_sends_exactly_the_remaining_accounts(journal) -> None:
    first, second = Stub(), Stub()
    async with make_rotation(first, journal) as rotation:
        async for _ in rotation:
            rotation.stop()

    await run(make_rotation(second, journal))

    assert sorted(first.account_ids + second.account_ids) == ACCOUNTS


async def test_cancellation_records_accounts_in_flight_as_unknown(journal) -> None:
    """The change may have been applied, so the state is not failed."""
    started = asyncio.Event()

    async def never_end(
        account_id: str, change: ProxyChange, keys: RowKeys, hooks: AccountTask, /
    ) -> AccountPatched:
        started.set()
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    task = asyncio.create_task(run(make_rotation(never_end, journal, in_flight=2)))
    await started.wait()
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert states_by_account(journal) == {"acc_0": "unknown", "acc_1": "unknown"}


@pytest.mark.parametrize("type_", ["missing_credentials", "insufficient_privileges"])
async def test_rotation_halts_at_the_first_error_about_the_api_key(type_, journal) -> None:
    """Every other account would get the same error."""
    stub = Stub(**{account: api_error(type_) for account in ACCOUNTS})

    rotation = await run(make_rotation(stub, journal, in_flight=1))

    assert stub.account_ids == ["acc_0"]
    assert rotation.summary.key_refused
    assert type_ in (rotation.summary.halted or "")
    # Even the account that was sent is skipped, not failed: a run with the right key sends it again.
    assert Counter(states_by_account(journal).values()) == {"skipped": 10}


@pytest.mark.parametrize("type_", ["missing_credentials", "insufficient_privileges"])
async def test_key_revoked_during_a_run_halts_it_and_fails_no_account(type_, journal) -> None:
    """Requests in flight are refused, too. The next run sends all of these accounts."""
    accounts = [f"acc_{number}" for number in range(300)]
    first = Stub(**{account: api_error(type_) for account in accounts[200:]})
    opener = partial(Journal, journal)
    halt = Halt(failures="never")

    rotation = await run(
        Rotation(first, managed_rows(accounts), in_flight=20, journal=opener, finite=True, halt=halt)
    )

    assert rotation.summary.key_refused
    assert type_ in (rotation.summary.halted or "")
    assert len(first.account_ids) <= 200 + 2 * 20
    states = states_by_account(journal)
    assert Counter(states.values()) == {"patched": 200, "skipped": 100}
    assert rotation.summary.states == {State.PATCHED: 200, State.SKIPPED: 100}
    second = Stub()
    await run(Rotation(second, managed_rows(accounts), in_flight=20, journal=opener, finite=True))
    assert sorted(second.account_ids) == sorted(accounts[200:])


async def test_key_refused_after_another_halt_is_reported(journal) -> None:
    """The command line has its own exit code for a refused key."""
    stub = Stub(acc_0=api_error("proxy_error"), acc_1=api_error("missing_credentials"))

    rotation = await run(make_rotation(stub, journal, in_flight=2, halt=Halt(failures=1)))

    assert rotation.summary.key_refused
    assert states_by_account(journal)["acc_1"] == "skipped"


async def test_account_patched_after_the_halt_proves_that_the_key_works() -> None:
    """
    Five accounts get the same 401, which halts the rotation. The account that is still in flight is patched.
    """
    halted = asyncio.Event()

    async def update(account_id: str, *rest: Any) -> AccountPatched:
        if account_id == "acc_0":
            await halted.wait()
            return AccountPatched(account_id)
        if account_id == "acc_5":
            asyncio.get_running_loop().call_later(0, halted.set)
        raise api_error("invalid_credentials")

    rotation = await run(make_rotation(update, in_flight=2, halt=Halt(failures=5)))

    assert rotation.summary.patched == 1
    assert "5 accounts failed" in (rotation.summary.halted or "")
    assert not rotation.summary.key_refused


async def test_same_401_for_all_accounts_of_a_short_run_means_the_key_is_refused(journal) -> None:
    """
    The summary advises the user to check the key. The error says nothing about the accounts, so the next run
    sends them.
    """
    stub = Stub(**{account: api_error("invalid_credentials") for account in ACCOUNTS})

    rotation = await run(make_rotation(stub, journal, halt=Halt(failures="never")))

    assert rotation.summary.key_refused
    assert "check the API key" in (rotation.summary.halted or "")
    assert rotation.summary.states == Counter({State.SKIPPED: 10})
    assert set(states_by_account(journal).values()) == {"skipped"}
    second = Stub()
    await run(make_rotation(second, journal))
    assert sorted(second.account_ids) == ACCOUNTS


async def test_same_401_for_the_first_20_accounts_means_the_key_is_refused() -> None:
    """The error type alone does not tell whether the API key or the credentials of the account are wrong."""
    accounts = [f"acc_{number}" for number in range(100)]
    stub = Stub(**{account: api_error("invalid_credentials") for account in accounts})

    rotation = await run(Rotation(stub, managed_rows(accounts), in_flight=1))

    assert len(stub.account_ids) == 20
    assert rotation.summary.key_refused


async def test_connection_and_service_errors_do_not_hide_a_refused_key() -> None:
    """A failed connection or a 503 says nothing about the key."""
    accounts = [f"acc_{number}" for number in range(100)]
    stub = Stub(**{account: api_error("invalid_credentials") for account in accounts})
    stub.errors_by_account["acc_0"] = errors.ConnectError("no connection")
    stub.errors_by_account["acc_5"] = api_error("network_down")

    rotation = await run(Rotation(stub, managed_rows(accounts), in_flight=1))

    assert len(stub.account_ids) == 22
    assert rotation.summary.key_refused


async def test_next_run_sends_accounts_that_got_no_response(journal) -> None:
    """A failed connection or a missed deadline says nothing about the account."""
    first = Stub(acc_1=errors.ConnectError("no connection"), acc_2=errors.DeadlineError("late"))
    second = Stub()
    await run(make_rotation(first, journal))
    assert Counter(states_by_account(journal).values()) == {"patched": 8, "skipped": 2}

    await run(make_rotation(second, journal))
    assert sorted(second.account_ids) == ["acc_1", "acc_2"]


async def test_account_in_flight_at_a_kill_stays_in_doubt_and_gets_one_managed_proxy(
    sandbox, tmp_path, policy
) -> None:
    """
    The API executed the killed run's request. The error responses of the second run do not settle the doubt,
    so the third run sends the same key again.
    """
    journal = tmp_path / "run.sqlite3"
    sandbox.script(
        "acc_1", Fault(executes=True, ends="never"), "errors/service_unavailable", "errors/no_channel"
    )

    async with sandbox.session(retry=policy) as session:
        first = asyncio.create_task(run(session.rotate({"acc_1": US}, journal=journal)))
        copy = await crash_copy_after(first, sandbox.record, 1, journal)
        await run(session.rotate({"acc_1": US}, journal=copy))
        assert states_by_account(copy) == {"acc_1": "unknown"}
        await run(session.rotate({"acc_1": US}, journal=copy))

    assert states_by_account(copy) == {"acc_1": "patched"}
    assert sandbox.record.managed_handed_out == 1


async def test_exception_of_the_block_is_not_wrapped_in_an_exception_group() -> None:
    """An `except KeyError` around the block would not catch an `ExceptionGroup`."""

    async def raise_in_the_block() -> None:
        async with make_rotation(Stub()) as rotation:
            async for _ in rotation:
                raise KeyError("raised in the block")

    with pytest.raises(KeyError, match="raised in the block"):
        await raise_in_the_block()


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
async def test_error_of_the_input_is_raised_after_requests_in_flight_complete(journal, asynchronous) -> None:
    def broken() -> Iterator[Row]:
        yield from list(managed_rows())[:5]
        raise ValueError("the input broke")

    async def abroken() -> AsyncIterator[Row]:
        for row in broken():
            yield row

    source = abroken() if asynchronous else broken()
    opener = partial(Journal, journal)
    with pytest.raises(ValueError, match="the input broke"):
        await run(Rotation(Stub(), source, in_flight=3, journal=opener))

    assert Counter(states_by_account(journal).values()) == {"patched": 5}


async def test_stopped_rotation_does_not_wait_for_its_input() -> None:
    """The input waits forever, as for a queue that stays empty."""

    async def waiting() -> AsyncIterator[Row]:
        yield next(managed_rows())
        await asyncio.get_running_loop().create_future()

    async with asyncio.timeout(5), Rotation(Stub(), waiting(), in_flight=3) as rotation:
        async for _ in rotation:
            break

    assert [outcome async for outcome in rotation] == []


async def test_rotation_must_be_entered_exactly_once(journal) -> None:
    """Otherwise it would wait forever, or leave its journal locked."""
    rotation = make_rotation(Stub(), journal)
    with pytest.raises(RuntimeError, match="enter the rotation first"):
        await rotation.run()
    await run(rotation)
    with pytest.raises(RuntimeError, match="cannot be entered twice"):
        await run(rotation)
    await run(make_rotation(Stub(), journal))


async def test_journal_of_another_target_is_rejected(sandbox, journal) -> None:
    """After a trial in the sandbox, the real run would otherwise find all accounts done and send nothing."""
    async with sandbox.session() as session, session.rotate({"acc_1": US}, journal=journal) as rotation:
        await rotation.run()

    async with PostPressSession("pp_live_key") as real:
        with pytest.raises(errors.JournalError, match="for this machine, not for https://"):
            await run(real.rotate({"acc_1": US}, journal=journal))


async def test_errors_about_accounts_do_not_halt_without_a_threshold() -> None:
    accounts = [f"acc_{number}" for number in range(100)]
    stub = Stub(**{account: api_error("disconnected_account") for account in accounts[1:]})
    stub.errors_by_account["acc_0"] = api_error("resource_not_found")

    rotation = await run(Rotation(stub, managed_rows(accounts), in_flight=1, halt=Halt(failures="never")))

    assert len(stub.account_ids) == 100
    assert rotation.summary.halted is None


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(list, id="a list"),
        pytest.param(dict, id="a mapping"),
        pytest.param(iter, id="an iterator"),
        pytest.param(lambda pairs: async_pairs(pairs), id="an asynchronous generator"),
    ],
)
async def test_changes_can_be_any_iterable(wrap: Callable[[Any], Any], sandbox) -> None:
    changes = [(account, US) for account in ACCOUNTS]

    async with sandbox.session() as session, session.rotate(wrap(changes)) as rotation:
        account_ids = [outcome.account_id async for outcome in rotation]

    assert sorted(account_ids) == sorted(sandbox.record.patched_accounts) == ACCOUNTS


async def async_pairs(pairs: list[Any]) -> AsyncIterator[Any]:
    for pair in pairs:
        await asyncio.sleep(0)
        yield pair


async def test_invalid_pair_is_skipped_and_the_others_are_sent(sandbox) -> None:
    """One bad row of a million is reported, not raised."""
    changes: list[Any] = [("acc_1", US), ("acc/../admin", US), ("acc_2", "US"), ("acc_3", US)]

    async with sandbox.session() as session, session.rotate(iter(changes)) as rotation:
        outcomes: list[Outcome] = [outcome async for outcome in rotation]

    assert Counter(outcome.state for outcome in outcomes) == {State.PATCHED: 2, State.SKIPPED: 2}
    assert sandbox.record.requests == 2


async def test_rows_of_a_fleet_file_are_sent(sandbox, tmp_path) -> None:
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


async def test_bad_network_loses_no_account_and_orders_no_proxy_twice(tmp_path) -> None:
    """2% provider errors, 1% each of 503 and 504, 0.5% dropped connections; 1% of accounts do not exist."""
    custom = CustomProxy(host="h.example", port=1)
    changes = {f"acc_{number}": custom if number % 2 else US for number in range(2000)}
    quick = RetryPolicy(first_wait=0.001)
    async with Sandbox(profile="flaky", seed=7) as sandbox, sandbox.session(retry=quick) as session:
        async with session.rotate(changes, journal=tmp_path / "run.sqlite3") as rotation:
            await rotation.run()

    states = states_by_account(tmp_path / "run.sqlite3")
    assert len(states) == 2000
    # A managed change whose stored response is a 504 stays in doubt: its key always gets the same response.
    assert set(rotation.summary.errors) <= {"errors/resource_not_found", "errors/request_timeout"}
    assert all(changes[account] is US for account, state in states.items() if state == "unknown")
    patched = {account for account, state in states.items() if state == "patched"}
    assert patched == set(sandbox.record.patched_accounts)
    assert sandbox.record.managed_handed_out == sum(changes[account] is US for account in patched)


def test_repr_of_a_row_does_not_show_the_password() -> None:
    """Rows appear in logs and debuggers."""
    change = CustomProxy(host="h", port=1, password="hunter2")

    assert "hunter2" not in repr(Row(0, 1, "acc_1", change))


# --- Resumed runs ---


async def test_account_recorded_as_skipped_is_in_doubt_if_a_killed_run_sent_it(
    sandbox, tmp_path, policy
) -> None:
    """
    If the third run trusted the recorded "skipped", it would use a fresh key and order a second managed
    proxy.
    """
    journal = tmp_path / "run.sqlite3"
    async with sandbox.session(retry=policy) as session:
        async with session.rotate({"acc_1": US}, journal=journal) as rotation:
            rotation.stop()
            await rotation.run()
        assert states_by_account(journal) == {"acc_1": "skipped"}
        async with session.rotate({"acc_1": US}, journal=journal) as rotation:
            while not sandbox.record.requests:
                await asyncio.sleep(0)
            copy = crash_copy(journal)
            await rotation.run()
        sandbox.script("acc_1", "errors/service_unavailable")
        async with session.rotate({"acc_1": US}, journal=copy) as rotation:
            await rotation.run()

    assert states_by_account(copy) == {"acc_1": "patched"}
    assert sandbox.record.managed_handed_out == 1


async def test_closed_session_keeps_accounts_in_doubt_and_stops_reading_the_input(sandbox, tmp_path) -> None:
    journal = tmp_path / "run.sqlite3"
    sandbox.script("acc_0", "lost")
    async with sandbox.session(retry=RetryPolicy(attempts=1)) as session:
        await run(session.rotate({"acc_0": US}, journal=journal))
    assert states_by_account(journal) == {"acc_0": "unknown"}
    read = []

    def pairs() -> Iterator[tuple[str, ProxyChange]]:
        for number in range(1000):
            read.append(number)
            yield f"acc_{number}", US

    async def run_on_a_closed_session() -> None:
        session = sandbox.session()
        async with session.rotate(pairs(), journal=journal, in_flight=2) as rotation:
            await session.aclose()
            await rotation.run()

    with pytest.raises(errors.SessionClosedError):
        await run_on_a_closed_session()

    assert states_by_account(journal)["acc_0"] == "unknown"
    assert len(read) < 10


@pytest.mark.parametrize(
    ("change", "state"),
    [(US, "unknown"), (CustomProxy(host="h", port=1), "failed")],
    ids=["managed", "custom"],
)
async def test_error_response_does_not_settle_whether_an_earlier_run_applied_the_change(
    sandbox, tmp_path, change, state
) -> None:
    """The first run's change was applied, but the response was lost."""
    journal = tmp_path / "run.sqlite3"
    sandbox.script("acc_1", "lost", "errors/service_unavailable", "errors/no_channel")
    async with sandbox.session(retry=RetryPolicy(attempts=1)) as session:
        await run(session.rotate({"acc_1": change}, journal=journal))
    async with sandbox.session(retry=RetryPolicy(first_wait=0.001)) as session:
        await run(session.rotate({"acc_1": change}, journal=journal))

    assert query(journal, "SELECT state, applied FROM outcomes") == [(state, "unknown")]


async def test_managed_change_in_doubt_is_not_sent_again_without_idempotency_keys(
    sandbox, tmp_path, policy
) -> None:
    journal = tmp_path / "run.sqlite3"
    sandbox.script("acc_1", "lost")
    async with sandbox.session(retry=policy, idempotency=False) as session:
        await run(session.rotate({"acc_1": US}, journal=journal))
        await run(session.rotate({"acc_1": US}, journal=journal))

    assert states_by_account(journal) == {"acc_1": "unknown"}
    assert sandbox.record.sends("acc_1") == 1


async def test_leaving_the_block_wakes_all_workers_that_wait_for_room_in_the_queue(journal) -> None:
    """Accounts in backoff allow more workers than the queue of outcomes has places."""

    async def back_off(
        account_id: str, change: ProxyChange, keys: RowKeys, hooks: AccountTask, /
    ) -> AccountPatched:
        hooks.on_backoff(True)
        for _ in range(5):
            await asyncio.sleep(0)
        hooks.on_backoff(False)
        return AccountPatched(account_id)

    many = managed_rows([f"acc_{number}" for number in range(100)])
    async with asyncio.timeout(5), Rotation(back_off, many, in_flight=2) as rotation:
        for _ in range(200):
            await asyncio.sleep(0)  # fill the queue without reading from it
        async for _ in rotation:
            break


async def test_input_can_stop_its_rotation_and_its_next_row_is_still_sent(journal) -> None:
    rotation: Rotation

    def rows_with_a_stop() -> Iterator[Row]:
        for row in managed_rows():
            if row.ordinal == 4:
                rotation.stop()
            yield row

    rotation = Rotation(Stub(), rows_with_a_stop(), in_flight=1)
    async with rotation:
        states = [outcome.state async for outcome in rotation]

    assert states == [State.PATCHED] * 5


async def test_rotation_ends_although_its_input_stops_it_and_then_waits_forever(journal) -> None:
    rotation: Rotation
    stopped = asyncio.Event()

    async def rows_with_a_stop() -> AsyncIterator[Row]:
        for row in managed_rows(ACCOUNTS[:3]):
            yield row
        rotation.stop()
        asyncio.get_running_loop().call_soon(stopped.set)
        await asyncio.get_running_loop().create_future()

    async def update(account_id: str, change: ProxyChange, *rest: Any) -> AccountPatched:
        await stopped.wait()
        return await Stub()(account_id, change, *rest)

    opener = partial(Journal, journal)
    rotation = Rotation(update, rows_with_a_stop(), in_flight=4, journal=opener)
    async with asyncio.timeout(5), rotation:
        account_ids = [outcome.account_id async for outcome in rotation]

    assert sorted(account_ids) == ACCOUNTS[:3]
    assert states_by_account(journal) == dict.fromkeys(ACCOUNTS[:3], "patched")
    assert rotation.summary.stopped


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_cancelled_error_raised_by_the_input_does_not_count_as_its_end(asynchronous: bool) -> None:
    """
    The input may await a task that was cancelled. The rotation would otherwise count as complete with rows
    unread.
    """

    def broken() -> Iterator[Row]:
        yield from managed_rows(ACCOUNTS[:3])
        raise asyncio.CancelledError

    async def abroken() -> AsyncIterator[Row]:
        for row in managed_rows(ACCOUNTS[:3]):
            yield row
        raise asyncio.CancelledError

    stub = Stub()
    with pytest.raises(RuntimeError, match="the input raised CancelledError"):
        await run(Rotation(stub, abroken() if asynchronous else broken(), in_flight=2))

    assert sorted(stub.account_ids) == ACCOUNTS[:3]
