"""A rotation that is cancelled, as by a second Ctrl-C: what was sent, and what only waited."""

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from postpress_async import (
    CustomProxy,
    ManagedProxy,
    Pace,
    PostPressSession,
    ProxyPool,
    RetryPolicy,
    errors,
    events,
)
from postpress_async.rotation import Rotation, State
from postpress_async.rotation.journal._reading import JournalReader
from postpress_async.sandbox import Sandbox
from tests.rotation.test_rotation import make, recorded
from tests.support.virtual_world import World, in_virtual_time, now, world

US = ManagedProxy(country="US")
OWN = CustomProxy(host="proxy.example.com", port=8080)
PROXIES = [CustomProxy(host=f"p{n}.example.net", port=3128) for n in range(9)]
FAULTS = {
    "steady": [],
    "flaky": ["errors/proxy_error", "lost", "errors/no_channel"],
    "pooled": ["errors/proxy_error", "lost", "errors/no_channel"],
    "on to the next proxy": ["errors/invalid_proxy_credentials", "errors/invalid_proxy_credentials"],
}
NOT_SENT = ("skipped", 0, errors.Applied.NO)


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite3"


def changes(count: int) -> dict[str, Any]:
    return {f"acc_{number}": US for number in range(count)}


async def cancel(rotation: Rotation, moment: Callable[[], bool]) -> None:
    """Run it in a task that is cancelled at that *moment*."""

    async def run() -> None:
        async with rotation:
            await rotation.run()

    task = asyncio.create_task(run())
    while not moment():
        assert not task.done()
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def after(seconds: float) -> Callable[[], bool]:
    until = now() + seconds
    return lambda: now() >= until


def settled(at: World) -> dict[int, events.AccountSettled]:
    """The observer's events for each row, by its ordinal."""
    outcomes = [event for _, event in at.events if isinstance(event, events.AccountSettled)]
    assert len({event.ordinal for event in outcomes}) == len(outcomes)
    return {event.ordinal: event for event in outcomes}


def begun(at: World) -> set[str]:
    """Accounts of which a request was begun."""
    return {event.account_id for _, event in at.events if isinstance(event, events.AttemptStarted)}


@pytest.mark.parametrize("seconds", [0.0, 0.01, 0.049, 0.051, 0.12, 0.3, 0.6, 1.1])
@pytest.mark.parametrize("shape", FAULTS)
def test_applied_change_is_never_recorded_as_not_applied_after_a_cancellation(seconds, shape) -> None:
    """And what was sent is recorded with its attempts, also if it was only refused."""

    @in_virtual_time
    async def played() -> None:
        at: World
        async with world(Pace(rate=40.0, in_flight=20)) as at:
            for number in range(0, 60, 3):
                at.server.faults.script(f"acc_{number}", *FAULTS[shape])
            pool = None if shape in {"steady", "flaky"} else ProxyPool(PROXIES, failovers=2)
            input_: Any = changes(60) if pool is None else list(changes(60))
            rotation = at.session.rotate(input_, in_flight=30, pool=pool, halt="never")
            await cancel(rotation, after(seconds))

            sent = begun(at)
            outcomes = {event.account_id: event for event in settled(at).values()}
            assert {account for account in changes(60) if at.server.record.sends(account)} <= sent
            assert sent <= outcomes.keys()
            for account, event in outcomes.items():
                if account in sent:
                    assert event.attempts > 0, account
                    if event.applied is errors.Applied.NO:
                        assert not at.server.record.patched_accounts[account], account
                else:
                    assert (event.state, event.attempts, event.applied) == NOT_SENT, account
            assert at.left() == dict.fromkeys(at.left(), 0)

    played()


@in_virtual_time
async def test_accounts_that_only_waited_were_not_sent() -> None:
    """Behind the pace, or behind another change of its own account; what is in flight is in doubt."""
    at: World
    async with world(Pace(in_flight=2)) as at:
        for number in range(2):
            at.server.faults.script(f"acc_{number}", "hang")
        pairs: list[tuple[str, Any]] = [
            ("acc_0", US),
            ("acc_0", OWN),
            ("acc_1", US),
            ("acc_2", US),
            ("acc_2", OWN),
        ]
        await cancel(at.session.rotate(pairs, in_flight=5), after(1.0))

        outcomes = {row: (event.state, event.attempts, event.applied) for row, event in settled(at).items()}
        doubt = ("unknown", 1, errors.Applied.UNKNOWN)
        assert outcomes == {0: doubt, 1: NOT_SENT, 2: doubt, 3: NOT_SENT, 4: NOT_SENT}
        assert at.left() == dict.fromkeys(at.left(), 0)


@in_virtual_time
async def test_an_account_that_backs_off_after_a_refusal_is_skipped_with_its_attempts() -> None:
    """Nothing is in flight, and the answer said that nothing was applied; its key is used up."""
    at: World
    async with world(retry=RetryPolicy(first_wait=20.0)) as at:
        at.server.faults.script("acc_0", *["errors/provider_error"] * 9)
        rotation = at.session.rotate(changes(1))
        await cancel(rotation, lambda: bool(rotation.retrying))

        outcome = settled(at)[0]
        assert (outcome.state, outcome.attempts, outcome.applied) == (State.SKIPPED, 1, errors.Applied.NO)
        assert outcome.error_type == "errors/provider_error"


@in_virtual_time
async def test_account_that_waits_for_a_permit_to_retry_is_in_doubt() -> None:
    """The answer to its first request was lost; all slots are taken when it is to be sent once more."""
    at: World
    async with world(Pace(in_flight=1), retry=RetryPolicy(wait=lambda _: 0.5)) as at:
        at.server.faults.script("acc_0", "lost")
        at.server.faults.script("acc_1", "hang")
        await cancel(at.session.rotate(changes(2), in_flight=2), after(2.0))

        assert {event.state for event in settled(at).values()} == {State.UNKNOWN}
        assert at.server.record.sends("acc_0") == 1


async def test_accounts_that_a_wrong_key_refused_are_sent_by_the_next_run_also_after_a_cancellation(
    journal,
) -> None:
    """The second Ctrl-C, while the last accounts are in flight."""
    async with Sandbox() as sandbox, sandbox.session() as session:
        for number in range(25):
            sandbox.script(f"acc_{number}", "hang" if number < 5 else "errors/invalid_credentials")
        rotation = session.rotate(changes(25), journal=journal)
        await cancel(rotation, lambda: rotation.summary.halted is not None)

    states = Counter(recorded(journal).values())
    assert states == {"skipped": 20, "unknown": 5}
    assert rotation.summary.states == states
    with JournalReader(journal) as view:
        assert view.run()["state"] == "halted"


async def hold_up(sandbox: Sandbox, session: PostPressSession) -> asyncio.Task[Any]:
    """A call that takes the only slot of the session's pace, and keeps it."""
    sandbox.script("acc_held", "hang")
    task = asyncio.create_task(session.update_proxy("acc_held", US))
    while not sandbox.record.sends("acc_held"):
        await asyncio.sleep(0)
    return task


async def cancel_waiting(rotation: Rotation, session: PostPressSession, count: int) -> None:
    await cancel(rotation, lambda: session._context.pacer.waiting == count)


async def test_a_doubt_of_an_earlier_run_stays_one(journal) -> None:
    """Nothing was sent today, and so nothing was learned of yesterday's request."""
    retry = RetryPolicy(attempts=1)
    async with Sandbox() as sandbox, sandbox.session(pace=Pace(in_flight=1), retry=retry) as session:
        sandbox.script("acc_1", "lost")
        async with session.rotate(changes(2), journal=journal) as rotation:
            await rotation.run()
        assert recorded(journal)["acc_1"] == "unknown"
        held = await hold_up(sandbox, session)
        await cancel_waiting(session.rotate(changes(2), journal=journal), session, 1)
        held.cancel()

    assert sandbox.record.sends("acc_1") == 1
    assert recorded(journal) == {"acc_0": "patched", "acc_1": "unknown"}


async def test_unsent_accounts_get_a_key_of_their_own_in_the_next_run(journal) -> None:
    """The key that an earlier run had an answer to is put aside before anything waits, and stays so."""
    retry = RetryPolicy(first_wait=60.0)
    async with Sandbox() as sandbox, sandbox.session(pace=Pace(in_flight=1), retry=retry) as session:
        sandbox.script("acc_1", "errors/provider_error")
        async with session.rotate(changes(3), journal=journal, in_flight=2, limit=2) as rotation:
            while not rotation.retrying:
                await asyncio.sleep(0)
            rotation.stop()
            await rotation.run()
        assert recorded(journal)["acc_1"] == "skipped"  # refused for now: its key is spent
        held = await hold_up(sandbox, session)
        await cancel_waiting(session.rotate(changes(3), journal=journal, in_flight=2), session, 2)
        held.cancel()
        assert recorded(journal) == {"acc_0": "patched", "acc_1": "skipped", "acc_2": "skipped"}
        assert sandbox.record.sends("acc_1") == 1
        async with session.rotate(changes(3), journal=journal) as rotation:
            await rotation.run()

    assert set(recorded(journal).values()) == {"patched"}
    assert sandbox.record.replayed == 0


@in_virtual_time
async def test_a_proxy_is_free_again_if_its_account_was_never_sent() -> None:
    """The place of that account is free again."""
    at: World
    pool = ProxyPool(PROXIES[:2], accounts_per_proxy=1)
    async with world(Pace(in_flight=1)) as at:
        at.server.faults.script("acc_0", "hang")
        rotation = at.session.rotate(["acc_0", "acc_1"], pool=pool, in_flight=2)
        await cancel(rotation, after(1.0))

        assert [settled(at)[ordinal].state for ordinal in (0, 1)] == ["unknown", "skipped"]
    assert rotation._core.allocators[None].available == 1


async def test_update_that_does_not_report_its_sends_is_in_doubt(journal) -> None:
    """A stub, or a session of another kind: what it does not say cannot be known."""
    began = asyncio.Event()

    async def never(*_: object) -> Any:
        began.set()
        await asyncio.get_running_loop().create_future()

    await cancel(make(never, journal, in_flight=1), began.is_set)

    connection = sqlite3.connect(journal)
    [recorded] = connection.execute("SELECT state, attempts, applied FROM outcomes")
    connection.close()
    assert recorded == ("unknown", 1, "unknown")
