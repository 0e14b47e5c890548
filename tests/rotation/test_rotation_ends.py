"""Rotations that end before their last account (stops, halts, limits), and how the next run continues."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from postpress_async import (
    AccountPatched,
    Fleet,
    ManagedProxy,
    Pace,
    RetryPolicy,
    errors,
    events,
)
from postpress_async.rotation import Halt, Refusal, Rotation, State
from postpress_async.rotation._fleet import reader_of
from postpress_async.rotation.journal import Journal
from postpress_async.sandbox import Fault, Sandbox
from tests.support.journals import crash_copy
from tests.support.rotations import (
    US,
    Stub,
    api_error,
    assert_nothing_left_open,
    collect,
    make_rotation,
    managed_rows,
    query,
    states_by_account,
)
from tests.support.virtual_world import in_virtual_time, now
from tests.support.virtual_world import world as virtual_world


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite3"


def changes(count: int, change: Any = US) -> dict[str, Any]:
    return {f"acc_{number}": change for number in range(count)}


# --- Stops ---


@in_virtual_time
async def test_stop_sends_no_further_requests_or_retries() -> None:
    """
    In an outage, accounts in backoff and accounts that wait for the pace could otherwise take hours after
    Ctrl-C.
    """
    async with virtual_world() as world:
        world.server.faults.script("acc_1", *["errors/provider_error"] * 99)
        async with world.session.rotate(changes(50), in_flight=10) as rotation:
            while not any(isinstance(event, events.RetryScheduled) for _, event in world.events):
                await anext(rotation)
            stopped_at = now()
            rotation.stop()
            remaining = [outcome async for outcome in rotation]
        sent_at = [time for time, event in world.events if isinstance(event, events.AttemptStarted)]

        assert max(sent_at) <= stopped_at
        assert now() - stopped_at < 0.2  # the requests in flight take 0.05 s, the next backoff up to 0.5 s
        assert {outcome.state for outcome in remaining} == {State.PATCHED, State.SKIPPED}
        assert_nothing_left_open(world)


@in_virtual_time
async def test_stop_during_an_outage_ends_the_rotation_at_once() -> None:
    """The circuit breaker is open, so only a probe is in flight."""
    async with virtual_world() as world:
        await world.server.outage("503")
        async with world.session.rotate(changes(500), in_flight=50) as rotation:
            await asyncio.sleep(60)
            stopped_at = now()
            rotation.stop()
            await rotation.run()

        assert now() - stopped_at < 1.0
        assert rotation.summary.states == {State.SKIPPED: 500}


@in_virtual_time
async def test_accounts_that_waited_for_a_permit_at_the_stop_have_no_error_type() -> None:
    """They were not sent because the rotation was stopped, not because the service failed."""
    async with virtual_world(Pace(rate=10.0)) as world:
        async with world.session.rotate(changes(100), in_flight=50) as rotation:
            await anext(rotation)
            rotation.stop()
            remaining = [outcome async for outcome in rotation]

        assert rotation.summary.states[State.SKIPPED] > 90
        assert not rotation.summary.errors
        assert all(outcome.error_type is None for outcome in remaining)


async def test_account_stopped_before_its_retry_gets_a_new_key_in_the_next_run(journal) -> None:
    """With the old key, the API would replay the error response."""
    async with Sandbox() as sandbox:
        sandbox.script("acc_1", "errors/provider_error")
        async with sandbox.session(retry=RetryPolicy(first_wait=60.0)) as session:
            async with session.rotate({"acc_1": US}, journal=journal) as rotation:
                while not rotation.retrying:
                    await asyncio.sleep(0)
                rotation.stop()
        assert states_by_account(journal) == {"acc_1": "skipped"}
        async with sandbox.session(retry=RetryPolicy(attempts=1)) as session:
            [outcome] = await collect(session.rotate({"acc_1": US}, journal=journal))

    assert outcome.state is State.PATCHED
    assert sandbox.record.replayed == 0


async def test_account_in_doubt_that_is_stopped_before_its_retry_stays_in_doubt(journal) -> None:
    """The response was lost. The next run must reuse the key, or the account gets a second managed proxy."""
    async with Sandbox() as sandbox, sandbox.session(retry=RetryPolicy(first_wait=60.0)) as session:
        sandbox.script("acc_1", "lost")
        async with session.rotate({"acc_1": US}, journal=journal) as rotation:
            while not rotation.retrying:
                await asyncio.sleep(0)
            rotation.stop()
        assert states_by_account(journal) == {"acc_1": "unknown"}
        await collect(session.rotate({"acc_1": US}, journal=journal))

    assert states_by_account(journal) == {"acc_1": "patched"}
    assert sandbox.record.managed_handed_out == 1


async def test_account_that_gets_a_final_error_after_the_stop_is_failed(journal) -> None:
    """The next run need not send the account."""
    async with Sandbox(latency=0.02) as sandbox, sandbox.session() as session:
        sandbox.script("acc_1", Fault(type="errors/resource_not_found", latency=0.01))
        async with session.rotate({"acc_1": US}, journal=journal) as rotation:
            while not sandbox.record.requests:
                await asyncio.sleep(0)
            rotation.stop()

    assert states_by_account(journal) == {"acc_1": "failed"}


async def test_closing_the_session_ends_the_backoff_of_its_rotations() -> None:
    async with Sandbox() as sandbox:
        session = sandbox.session(retry=RetryPolicy(first_wait=60.0))
        sandbox.script("acc_1", *["errors/provider_error"] * 9)
        rotation = session.rotate({"acc_1": US})
        async with rotation:
            while not rotation.retrying:
                await asyncio.sleep(0)
            await session.aclose(timeout=0.0)
            [outcome] = [outcome async for outcome in rotation]

    assert outcome.error_type == "errors/provider_error"


# --- Halts ---


async def test_rotation_halts_when_the_threshold_of_failures_is_reached(journal) -> None:
    stub = Stub(**{f"acc_{n}": api_error("proxy_error") for n in range(10)})

    rotation = make_rotation(stub, journal, in_flight=2, halt=Halt(failures=3))
    await collect(rotation)

    assert rotation.summary.halted == (
        "3 accounts failed, all with errors/proxy_error, which is the threshold"
    )
    assert 3 <= len(stub.account_ids) <= 4  # one more was in flight
    states = Counter(states_by_account(journal).values())
    assert states["skipped"] == 10 - len(stub.account_ids)
    assert query(journal, "SELECT halted FROM runs") == [(rotation.summary.halted,)]


async def test_next_run_does_not_count_failures_of_a_halted_run(journal) -> None:
    halt = Halt(failures=1)
    await collect(make_rotation(Stub(acc_0=api_error("proxy_error")), journal, in_flight=1, halt=halt))
    rotation = make_rotation(Stub(), journal, in_flight=1, halt=halt)
    await collect(rotation)

    assert rotation.summary.halted is None
    assert Counter(states_by_account(journal).values()) == {"failed": 1, "patched": 9}


async def test_canary_is_sent_first_and_the_others_only_after_it_passed() -> None:
    started: list[str] = []
    may_respond = asyncio.Event()

    async def update(account_id: str, *_: Any) -> Any:
        started.append(account_id)
        await may_respond.wait()
        return AccountPatched(account_id)

    async with make_rotation(update, in_flight=5, halt=Halt(canary=3)) as rotation:
        for _ in range(100):
            await asyncio.sleep(0)
        assert started == ["acc_0", "acc_1", "acc_2"]
        may_respond.set()
        outcomes = [outcome async for outcome in rotation]

    assert len(outcomes) == 10


async def test_no_further_account_is_sent_after_a_failed_canary(journal) -> None:
    stub = Stub(acc_0=api_error("proxy_error"), acc_1=api_error("proxy_error"))

    rotation = make_rotation(stub, journal, in_flight=5, halt=Halt(canary=4))
    await collect(rotation)

    assert sorted(stub.account_ids) == ["acc_0", "acc_1", "acc_2", "acc_3"]
    assert "2 of the canary's 4 accounts failed" in (rotation.summary.halted or "")


@pytest.mark.parametrize("canary", [1, 5, 10, 11, 1000])
async def test_rotation_ends_although_the_canary_is_never_full(canary) -> None:
    """Rows are refused, or there are fewer rows than the canary needs."""

    def every_second_refused() -> Iterator[Any]:
        for row in managed_rows():
            yield Refusal(row.ordinal, None, None, None, "a reason", "an advice") if row.ordinal % 2 else row

    halt = Halt(canary=canary)
    async with asyncio.timeout(5):
        outcomes = await collect(
            Rotation(Stub(), every_second_refused(), in_flight=3, halt=halt, finite=True)
        )

    assert len(outcomes) == 10


async def test_cancellation_wakes_workers_that_wait_for_the_canary() -> None:
    async def never_end(*_: Any) -> Any:
        await asyncio.get_running_loop().create_future()

    rotation = make_rotation(never_end, in_flight=5, halt=Halt(canary=1))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await collect(rotation)
    assert rotation.summary.states == {State.UNKNOWN: 1}


# --- Limits ---


async def test_limit_sends_that_many_accounts_and_the_next_run_sends_the_rest(journal) -> None:
    first, second = Stub(), Stub()
    rotation = make_rotation(first, journal, in_flight=3, limit=4)
    await collect(rotation)

    assert len(first.account_ids) == 4
    assert not rotation.summary.stopped
    assert not rotation.summary.complete
    assert Counter(states_by_account(journal).values()) == {"patched": 4, "skipped": 6}
    await collect(make_rotation(second, journal))
    assert sorted(second.account_ids) == sorted(set(states_by_account(journal)) - set(first.account_ids))


@pytest.mark.parametrize("in_flight", [1, 3])
async def test_refused_rows_do_not_count_towards_the_limit(journal, in_flight) -> None:
    """Refused rows are refused in each run, so the first three rows would use up every limit up to three."""
    pairs: list[Any] = [("no id", US)] * 3 + list(changes(4).items())
    async with Sandbox() as sandbox, sandbox.session() as session:
        for _ in range(2):
            await collect(session.rotate(pairs, journal=journal, limit=2, in_flight=in_flight))

    assert [sandbox.record.sends(account) for account in changes(4)] == [1] * 4


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, "4"], ids=repr)
async def test_limit_must_be_a_whole_number_from_1(limit, sandbox) -> None:
    async with sandbox.session() as session:
        with pytest.raises(ValueError, match="limit must be a whole number"):
            session.rotate({}, limit=limit)


# --- Accounts in doubt and failed accounts in the next run ---


async def test_on_unknown_report_does_not_send_accounts_in_doubt(journal) -> None:
    timeout = api_error("request_timeout", applied=errors.Applied.UNKNOWN, attempts=(object(),))
    await collect(make_rotation(Stub(acc_2=timeout), journal))
    second = Stub()
    opener = partial(Journal, journal, on_unknown="report")
    rotation = Rotation(second, managed_rows(), in_flight=3, finite=True, journal=opener)
    await collect(rotation)

    assert second.account_ids == []
    assert rotation.summary.states == {State.PATCHED: 9, State.UNKNOWN: 1}
    assert not rotation.summary.complete


async def test_on_unknown_report_does_not_send_accounts_that_a_killed_run_may_have_sent(journal) -> None:
    """The accounts are recorded as skipped, but the killed run may have sent them since."""
    stopped = make_rotation(Stub(), journal)
    async with stopped:
        stopped.stop()
        await stopped.run()
    assert set(states_by_account(journal).values()) == {"skipped"}
    running = Journal(journal)
    copy = crash_copy(journal)
    await running.aclose()

    last_stub = Stub()
    opener = partial(Journal, copy, on_unknown="report")
    last = Rotation(last_stub, managed_rows(), in_flight=3, journal=opener)
    await collect(last)

    assert last_stub.account_ids == []
    assert last.summary.states == {State.UNKNOWN: 10}
    assert set(states_by_account(copy).values()) == {"unknown"}


async def test_on_failed_retry_sends_failed_accounts_with_new_keys(journal) -> None:
    """With the old key, the API would replay the error response although the account was reconnected."""
    async with Sandbox() as sandbox, sandbox.session() as session:
        sandbox.script("acc_1", "errors/disconnected_account")
        await collect(session.rotate(changes(3), journal=journal))
        assert Counter(states_by_account(journal).values()) == {"patched": 2, "failed": 1}
        [outcome] = await collect(session.rotate(changes(3), journal=journal, on_failed="retry"))

    assert outcome.state is State.PATCHED
    assert sandbox.record.replayed == 0
    assert set(states_by_account(journal).values()) == {"patched"}


@pytest.mark.parametrize("name", ["on_unknown", "on_failed"])
async def test_other_values_of_on_unknown_and_on_failed_are_rejected(name, sandbox) -> None:
    async with sandbox.session() as session:
        with pytest.raises(ValueError, match=f'{name} must be "retry" or "report"'):
            session.rotate({}, **{name: "ignore"})


# --- Resumed fleets ---


def write_fleet(folder: Path, count: int = 20) -> Path:
    path = folder / "fleet.csv"
    lines = [f"acc_{n},US" for n in range(count)]
    lines.insert(5, "acc_3,US")  # a duplicate, which is refused
    path.write_text("account_id,country\n" + "\n".join(lines) + "\n")
    return path


async def test_resumed_run_does_not_read_the_rows_of_completed_accounts(tmp_path, journal) -> None:
    """The duplicate row is refused in each run."""
    async with Sandbox() as sandbox, sandbox.session() as session:
        with Fleet.open(write_fleet(tmp_path)) as opened:
            first = await collect(session.rotate(opened, journal=journal, limit=12, in_flight=1))
        with Fleet.open(write_fleet(tmp_path)) as opened:
            read: list[int] = []
            reader = reader_of(opened)
            original = reader.rows

            def counted(done: bytes = b"") -> Generator[Any, None, None]:
                for row in original(done):
                    read.append(row.ordinal)
                    yield row

            reader.rows = counted  # type: ignore[method-assign]
            second = await collect(session.rotate(opened, journal=journal))

    assert len(first) == 13  # 12 accounts and the refused row
    assert read == [5, *range(13, 21)]  # row 5 is the refused row
    assert sum(outcome.state is State.PATCHED for outcome in first + second) == 20
    assert sandbox.record.requests == 20


async def test_journal_that_was_started_without_the_fleet_compares_every_row(tmp_path, journal) -> None:
    """The journal has no digest of the file, so its first account may differ from the first row."""
    async with Sandbox() as sandbox, sandbox.session() as session:
        await collect(session.rotate({"acc_other": US}, journal=journal))
        with Fleet.open(write_fleet(tmp_path)) as opened:
            with pytest.raises(errors.JournalError, match="the journal has acc_other at position 1"):
                await collect(session.rotate(opened, journal=journal))


async def test_total_is_known_for_mappings_and_surveyed_fleets(tmp_path, journal, sandbox) -> None:
    """The total is also recorded in the journal, so that another terminal can show the progress."""

    async def async_pairs() -> AsyncIterator[tuple[str, ManagedProxy]]:
        yield "acc_1", US

    async with sandbox.session() as session:
        assert session.rotate(changes(7)).total == 7
        assert session.rotate(iter(changes(7).items())).total is None
        assert session.rotate(async_pairs()).total is None
        with Fleet.open(write_fleet(tmp_path)) as opened:
            assert session.rotate(opened).total is None
            opened.survey()
            assert session.rotate(opened).total == 21
        await collect(session.rotate(changes(7), journal=journal))

    assert query(journal, "SELECT total FROM runs") == [(7,)]


# --- Accounts that a run does not reach ---


def make_killed(journal: Path) -> None:
    """Change *journal* so that its last run counts as killed."""
    query(journal, "INSERT INTO run VALUES ('under way', 1)")
    query(
        journal,
        "UPDATE outcomes SET state = 'unknown', applied = 'unknown' WHERE state = 'skipped' "
        "AND ordinal < (SELECT value FROM run WHERE name = 'reached')",
    )


async def test_accounts_in_doubt_beyond_the_limit_are_counted_as_unknown(journal) -> None:
    """Otherwise a run that leaves accounts in doubt would end with exit code 0."""
    await collect(make_rotation(Stub(), journal, limit=2))
    make_killed(journal)
    rotation = make_rotation(Stub(), journal, limit=3)
    await collect(rotation)

    assert rotation.summary.states == {State.PATCHED: 5, State.UNKNOWN: 5}
    assert not rotation.summary.complete


async def test_used_key_is_remembered_by_a_run_that_does_not_reach_the_account(journal) -> None:
    """With the used key, the API might replay the error response in a later run."""
    async with Sandbox() as sandbox, sandbox.session() as session:
        sandbox.script("acc_1", Fault(type="errors/provider_error", latency=0.05))
        async with session.rotate(changes(2), journal=journal, in_flight=2) as rotation:
            await anext(rotation)
            rotation.stop()
            await rotation.run()
        assert states_by_account(journal) == {"acc_0": "patched", "acc_1": "skipped"}
        async with session.rotate(changes(2), journal=journal) as rotation:
            rotation.stop()
            await rotation.run()
        assert rotation.summary.states == {State.PATCHED: 1, State.SKIPPED: 1}
    third = Stub()
    opener = partial(Journal, journal)
    await collect(Rotation(third, managed_rows(["acc_0", "acc_1"]), in_flight=1, journal=opener))

    generations = [str(key).rsplit("-", 1)[1] for key in third.keys]
    assert generations == ["2"]  # each of the three runs starts with a new key
