"""How a rotation ends before its last account, and what the next run makes of it."""

import asyncio
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from postpress_async import CustomProxy, Fleet, ManagedProxy, Outcome, Pace, RetryPolicy, errors, events
from postpress_async.rotation import Halt, Refusal, Rotation, State
from postpress_async.rotation._fleet import reader_of
from postpress_async.rotation.journal import Journal
from postpress_async.sandbox import Fault, Sandbox
from tests.rotation.test_rotation import US, Stub, make, recorded, refusal, rows
from tests.support.journals import crash_copy
from tests.support.virtual_world import World, in_virtual_time, now, world

OWN = CustomProxy(host="proxy.example.com", port=8080)


async def collect(rotation: Rotation) -> list[Outcome]:
    async with rotation:
        return [outcome async for outcome in rotation]


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite3"


def changes(count: int, change: Any = US) -> dict[str, Any]:
    return {f"acc_{number}": change for number in range(count)}


# --- Told to stop ---


@in_virtual_time
async def test_after_a_stop_nothing_more_is_sent_no_retry_either() -> None:
    """Ctrl-C in an outage: who backs off, or waits for the pace, would go on for hours."""
    at: World
    async with world() as at:
        at.server.faults.script("acc_1", *["errors/provider_error"] * 99)
        async with at.session.rotate(changes(50), in_flight=10) as rotation:
            while "acc_1" not in {e.account_id for _, e in at.events if isinstance(e, events.RetryScheduled)}:
                await anext(rotation)
            stopped_at = now()
            rotation.stop()
            left = [outcome async for outcome in rotation]
        sent = [at_ for at_, event in at.events if isinstance(event, events.AttemptStarted)]

        assert max(sent) <= stopped_at
        assert now() - stopped_at < 0.2  # an answer's time, not a wait's
        assert {outcome.state for outcome in left} == {State.PATCHED, State.SKIPPED}
        assert at.left() == dict.fromkeys(at.left(), 0)


@in_virtual_time
async def test_a_stop_in_an_outage_ends_at_once() -> None:
    """The circuit breaker is open, so only a probe is in flight."""
    at: World
    async with world() as at:
        await at.server.outage("503")
        async with at.session.rotate(changes(500), in_flight=50) as rotation:
            await asyncio.sleep(60)
            stopped_at = now()
            rotation.stop()
            await rotation.run()

        assert now() - stopped_at < 1.0
        assert rotation.summary.states == {State.SKIPPED: 500}


@in_virtual_time
async def test_accounts_that_only_waited_for_a_permit_have_no_error() -> None:
    """They were not sent because the rotation was stopped, which is no error of the service."""
    at: World
    async with world(Pace(rate=10.0)) as at:
        async with at.session.rotate(changes(100), in_flight=50) as rotation:
            await anext(rotation)
            rotation.stop()
            left = [outcome async for outcome in rotation]

        assert rotation.summary.states[State.SKIPPED] > 90
        assert not rotation.summary.errors
        assert all(outcome.error_type is None for outcome in left)


async def test_temporarily_refused_accounts_get_a_new_key_in_the_next_run(journal) -> None:
    """The store of keys would give it the refusal of last night."""
    async with Sandbox() as sandbox:
        sandbox.script("acc_1", "errors/provider_error")
        async with sandbox.session(retry=RetryPolicy(first_wait=60.0)) as session:
            async with session.rotate({"acc_1": US}, journal=journal) as rotation:
                while not rotation.retrying:
                    await asyncio.sleep(0)
                rotation.stop()
        assert recorded(journal) == {"acc_1": "skipped"}
        async with sandbox.session(retry=RetryPolicy(attempts=1)) as session:
            [outcome] = await collect(session.rotate({"acc_1": US}, journal=journal))

    assert outcome.state is State.PATCHED
    assert sandbox.record.replayed == 0


async def test_a_doubt_that_is_cut_short_stays_one(journal) -> None:
    """The response was lost, and the stop left no time to retry."""
    async with Sandbox() as sandbox, sandbox.session(retry=RetryPolicy(first_wait=60.0)) as session:
        sandbox.script("acc_1", "lost")
        async with session.rotate({"acc_1": US}, journal=journal) as rotation:
            while not rotation.retrying:
                await asyncio.sleep(0)
            rotation.stop()
        assert recorded(journal) == {"acc_1": "unknown"}
        await collect(session.rotate({"acc_1": US}, journal=journal))

    assert recorded(journal) == {"acc_1": "patched"}
    assert sandbox.record.managed_handed_out == 1


async def test_a_refusal_that_is_final_is_so_after_a_stop_too(journal) -> None:
    """The request in flight got its response, so the next run need not send the account."""
    async with Sandbox(latency=0.02) as sandbox, sandbox.session() as session:
        sandbox.script("acc_1", Fault(type="errors/resource_not_found", latency=0.01))
        async with session.rotate({"acc_1": US}, journal=journal) as rotation:
            while not sandbox.record.requests:
                await asyncio.sleep(0)
            rotation.stop()

    assert recorded(journal) == {"acc_1": "failed"}


async def test_a_session_that_closes_ends_its_rotations() -> None:
    """Their waits are the session's; none of them may outlive it."""
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


async def test_too_many_failures_halt_the_rotation(journal) -> None:
    """A list of proxies that is wrong is noticed after ten accounts, not after a hundred thousand."""
    stub = Stub(**{f"acc_{n}": refusal("proxy_error") for n in range(10)})

    rotation = make(stub, journal, in_flight=2, halt=Halt(failures=3))
    await collect(rotation)

    assert rotation.summary.halted == (
        "3 accounts failed, all with errors/proxy_error, which is the threshold"
    )
    assert 3 <= len(stub.account_ids) <= 4  # one more was in flight
    states = Counter(recorded(journal).values())
    assert states["skipped"] == 10 - len(stub.account_ids)
    with sqlite3.connect(journal) as connection:
        [(reason,)] = connection.execute("SELECT halted FROM runs")
    connection.close()
    assert reason == rotation.summary.halted


async def test_the_next_run_forgets_the_halt(journal) -> None:
    """Failures of the last night do not count in this one: if the cause remains, it halts again."""
    await collect(make(Stub(acc_0=refusal("proxy_error")), journal, in_flight=1, halt=Halt(failures=1)))
    rotation = make(Stub(), journal, in_flight=1, halt=Halt(failures=1))
    await collect(rotation)

    assert rotation.summary.halted is None
    assert Counter(recorded(journal).values()) == {"failed": 1, "patched": 9}


async def test_the_canary_goes_first_and_alone() -> None:
    """Three accounts are sent; the other seven only when all three are patched."""
    begun: list[str] = []
    gate = asyncio.Event()

    async def update(account_id: str, *_: Any) -> Any:
        begun.append(account_id)
        await gate.wait()
        return await Stub()(account_id, US, *_[1:])

    async with make(update, in_flight=5, halt=Halt(canary=3)) as rotation:
        for _ in range(100):
            await asyncio.sleep(0)
        assert begun == ["acc_0", "acc_1", "acc_2"]
        gate.set()
        outcomes = [outcome async for outcome in rotation]

    assert len(outcomes) == 10


async def test_a_canary_that_dies_sends_nobody_else(journal) -> None:
    stub = Stub(acc_0=refusal("proxy_error"), acc_1=refusal("proxy_error"))

    rotation = make(stub, journal, in_flight=5, halt=Halt(canary=4))
    await collect(rotation)

    assert sorted(stub.account_ids) == ["acc_0", "acc_1", "acc_2", "acc_3"]
    assert "2 of the canary's 4 accounts failed" in (rotation.summary.halted or "")


@pytest.mark.parametrize("canary", [1, 5, 10, 11, 1000])
async def test_a_canary_never_keeps_the_end_waiting(canary) -> None:
    """With refused rows, or fewer rows than the canary, the rotation does not wait for more."""

    def mixed() -> Iterator[Any]:
        for row in rows():
            yield Refusal(row.ordinal, None, None, None, "a reason", "an advice") if row.ordinal % 2 else row

    async with asyncio.timeout(5):
        outcomes = await collect(
            Rotation(Stub(), mixed(), in_flight=3, halt=Halt(canary=canary), finite=True)
        )

    assert len(outcomes) == 10


async def test_a_canary_can_be_stopped() -> None:
    """Workers that wait for the end of the canary are woken."""

    async def never(*_: Any) -> Any:
        await asyncio.get_running_loop().create_future()

    rotation = make(never, in_flight=5, halt=Halt(canary=1))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await collect(rotation)
    assert rotation.summary.states == {State.UNKNOWN: 1}


# --- A limit ---


async def test_a_limit_takes_so_many_and_skips_the_rest(journal) -> None:
    """A first look at a fleet: the next run, without a limit, does the others."""
    first, second = Stub(), Stub()
    rotation = make(first, journal, in_flight=3, limit=4)
    await collect(rotation)

    assert len(first.account_ids) == 4
    assert not rotation.summary.stopped
    assert not rotation.summary.complete
    assert Counter(recorded(journal).values()) == {"patched": 4, "skipped": 6}
    await collect(make(second, journal))
    assert sorted(second.account_ids) == sorted(set(recorded(journal)) - set(first.account_ids))


@pytest.mark.parametrize("in_flight", [1, 3])
async def test_rows_that_are_refused_do_not_use_a_limit_up(journal, in_flight) -> None:
    """Refused rows are refused in each run: three of them first would use up a limit of three."""
    pairs: list[Any] = [("no id", US)] * 3 + list(changes(4).items())
    async with Sandbox() as sandbox, sandbox.session() as session:
        for _ in range(2):
            await collect(session.rotate(pairs, journal=journal, limit=2, in_flight=in_flight))

    assert [sandbox.record.sends(account) for account in changes(4)] == [1] * 4


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, "4"], ids=repr)
async def test_a_limit_is_a_number(limit, sandbox) -> None:
    async with sandbox.session() as session:
        with pytest.raises(ValueError, match="limit must be a whole number"):
            session.rotate({}, limit=limit)


# --- What the next run does with doubts and failures ---


async def test_doubts_can_be_left_to_a_person(journal) -> None:
    """With `report`, accounts that may have got a proxy are not sent again."""
    doubt = refusal("request_timeout", applied=errors.Applied.UNKNOWN, attempts=(object(),))
    await collect(make(Stub(acc_2=doubt), journal))
    left = Rotation(
        again := Stub(),
        rows(),
        in_flight=3,
        finite=True,
        journal=lambda: Journal.open(journal, on_unknown="report"),
    )
    await collect(left)

    assert again.account_ids == []
    assert left.summary.states == {State.PATCHED: 9, State.UNKNOWN: 1}
    assert not left.summary.complete


async def test_on_unknown_report_leaves_accounts_of_a_dead_run(journal) -> None:
    """The recorded rows say "not sent", but the dead run may have sent them since."""
    stopped = make(Stub(), journal)
    async with stopped:
        stopped.stop()
        await stopped.run()
    assert set(recorded(journal).values()) == {"skipped"}
    held = Journal.open(journal)
    copy = crash_copy(journal)
    await held.aclose()

    again = Stub()
    last = Rotation(again, rows(), in_flight=3, journal=lambda: Journal.open(copy, on_unknown="report"))
    await collect(last)

    assert again.account_ids == []
    assert last.summary.states == {State.UNKNOWN: 10}
    assert set(recorded(copy).values()) == {"unknown"}


async def test_failed_accounts_can_be_sent_again_with_new_keys(journal) -> None:
    """The account was reconnected meanwhile; the store of keys still knows the old refusal."""
    async with Sandbox() as sandbox, sandbox.session() as session:
        sandbox.script("acc_1", "errors/disconnected_account")
        await collect(session.rotate(changes(3), journal=journal))
        assert Counter(recorded(journal).values()) == {"patched": 2, "failed": 1}
        [outcome] = await collect(session.rotate(changes(3), journal=journal, on_failed="retry"))

    assert outcome.state is State.PATCHED
    assert sandbox.record.replayed == 0
    assert set(recorded(journal).values()) == {"patched"}


@pytest.mark.parametrize("name", ["on_unknown", "on_failed"])
async def test_unknown_choice_is_refused(name, sandbox) -> None:
    async with sandbox.session() as session:
        with pytest.raises(ValueError, match=f'{name} must be "retry" or "report"'):
            session.rotate({}, **{name: "ignore"})


# --- A fleet that is taken up again ---


def fleet(folder: Path, count: int = 20) -> Path:
    path = folder / "fleet.csv"
    lines = [f"acc_{n},US" for n in range(count)]
    lines.insert(5, "acc_3,US")  # named twice
    path.write_text("account_id,country\n" + "\n".join(lines) + "\n")
    return path


async def test_a_fleet_that_is_taken_up_is_not_read_row_by_row(tmp_path, journal) -> None:
    """Rows of completed accounts need no models; duplicates stay refused."""
    async with Sandbox() as sandbox, sandbox.session() as session:
        with Fleet.open(fleet(tmp_path)) as opened:
            first = await collect(session.rotate(opened, journal=journal, limit=12, in_flight=1))
        with Fleet.open(fleet(tmp_path)) as opened:
            read: list[int] = []
            reader = reader_of(opened)
            original = reader.rows

            def counted(done: bytes = b"") -> Generator[Any, None, None]:
                for row in original(done):
                    read.append(row.ordinal)
                    yield row

            reader.rows = counted  # type: ignore[method-assign]
            second = await collect(session.rotate(opened, journal=journal))

    assert len(first) == 13  # twelve, and the row that is refused
    assert read == [5, *range(13, 21)]  # it is so again
    assert sum(outcome.state is State.PATCHED for outcome in first + second) == 20
    assert sandbox.record.requests == 20


async def test_a_journal_that_was_begun_without_the_file_checks_every_row(tmp_path, journal) -> None:
    """The journal has no digest of the file: its account number 3 may be another one of the file."""
    async with Sandbox() as sandbox, sandbox.session() as session:
        await collect(session.rotate({"acc_other": US}, journal=journal))
        with Fleet.open(fleet(tmp_path)) as opened:
            with pytest.raises(errors.JournalError, match="the journal has acc_other at position 1"):
                await collect(session.rotate(opened, journal=journal))


async def test_a_rotation_knows_how_many_there_are_where_that_can_be_known(
    tmp_path, journal, sandbox
) -> None:
    """For progress displays, in this process or from another terminal."""

    async def asynchronous() -> AsyncIterator[tuple[str, ManagedProxy]]:
        yield "acc_1", US

    async with sandbox.session() as session:
        assert session.rotate(changes(7)).total == 7
        assert session.rotate(iter(changes(7).items())).total is None
        assert session.rotate(asynchronous()).total is None
        with Fleet.open(fleet(tmp_path)) as opened:
            assert session.rotate(opened).total is None
            opened.survey()
            assert session.rotate(opened).total == 21
        await collect(session.rotate(changes(7), journal=journal))

    with sqlite3.connect(journal) as connection:
        [(total, began)] = connection.execute("SELECT total, began FROM runs")
    connection.close()
    assert total == 7
    assert began > 1.7e9


# --- What a run leaves as it found it ---


def died(journal: Path) -> None:
    """Make the last run on *journal* one that was killed."""
    with sqlite3.connect(journal) as connection:
        connection.execute("INSERT INTO run VALUES ('under way', 1)")
        connection.execute(
            "UPDATE outcomes SET state = 'unknown', applied = 'unknown' WHERE state = 'skipped' "
            "AND ordinal < (SELECT value FROM run WHERE name = 'reached')"
        )
    connection.close()


async def test_accounts_maybe_sent_by_a_dead_run_and_not_reached_by_this_one_are_counted(journal) -> None:
    """Else a night of ten accounts and a limit of five ends as complete, with exit code 0."""
    await collect(make(Stub(), journal, limit=2))
    died(journal)
    rotation = make(Stub(), journal, limit=3)
    await collect(rotation)

    assert rotation.summary.states == {State.PATCHED: 5, State.UNKNOWN: 5}
    assert not rotation.summary.complete


async def test_a_run_that_does_not_reach_an_account_does_not_forget_its_spent_key(journal) -> None:
    """The account was refused while the run stopped; with the same key, the API may replay the refusal."""
    async with Sandbox() as sandbox, sandbox.session() as session:
        sandbox.script("acc_1", Fault(type="errors/provider_error", latency=0.05))
        async with session.rotate(changes(2), journal=journal, in_flight=2) as rotation:
            await anext(rotation)
            rotation.stop()
            await rotation.run()
        assert recorded(journal) == {"acc_0": "patched", "acc_1": "skipped"}
        async with session.rotate(changes(2), journal=journal) as rotation:
            rotation.stop()
            await rotation.run()
        assert rotation.summary.states == {State.PATCHED: 1, State.SKIPPED: 1}
    third = Stub()
    await collect(
        Rotation(third, rows(["acc_0", "acc_1"]), in_flight=1, journal=lambda: Journal.open(journal))
    )

    assert [str(key).rsplit("-", 1)[1] for key in third.keys] == ["2"]  # a fresh one for each run
