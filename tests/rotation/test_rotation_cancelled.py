"""Cancelled rotations, as by a second Ctrl-C: accounts that were sent and accounts that only waited."""

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from postpress_async import (
    CustomProxy,
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
from tests.support.rotations import (
    US,
    assert_nothing_left_open,
    make_rotation,
    query,
    run,
    run_and_cancel,
    settled_events,
    states_by_account,
)
from tests.support.virtual_world import World, in_virtual_time, now
from tests.support.virtual_world import world as virtual_world

CUSTOM = CustomProxy(host="proxy.example.com", port=8080)
PROXIES = [CustomProxy(host=f"p{n}.example.net", port=3128) for n in range(9)]
FLAKY = ["errors/proxy_error", "lost", "errors/no_channel"]
# For each scenario, the faults of every third account, and whether the rotation has a pool.
SCENARIOS: dict[str, tuple[list[str], bool]] = {
    "no faults": ([], False),
    "faults": (FLAKY, False),
    "faults with a pool": (FLAKY, True),
    "failover": (["errors/invalid_proxy_credentials"] * 2, True),
}
NOT_SENT = ("skipped", 0, errors.Applied.NO)
IN_DOUBT = ("unknown", 1, errors.Applied.UNKNOWN)


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite3"


def changes(count: int) -> dict[str, Any]:
    return {f"acc_{number}": US for number in range(count)}


def after_seconds(seconds: float) -> Callable[[], bool]:
    until = now() + seconds
    return lambda: now() >= until


def accounts_with_an_attempt(world: World) -> set[str]:
    return {event.account_id for _, event in world.events if isinstance(event, events.AttemptStarted)}


@pytest.mark.parametrize("seconds", [0.0, 0.01, 0.049, 0.051, 0.12, 0.3, 0.6, 1.1])
@pytest.mark.parametrize("scenario", SCENARIOS)
@in_virtual_time
async def test_applied_change_is_never_recorded_as_not_applied_after_a_cancellation(
    seconds, scenario
) -> None:
    """Every account that was sent is recorded with its attempts, even if the API only refused it."""
    faults, has_pool = SCENARIOS[scenario]
    async with virtual_world(Pace(rate=40.0, in_flight=20)) as world:
        for number in range(0, 60, 3):
            world.server.faults.script(f"acc_{number}", *faults)
        accounts: Any = list(changes(60)) if has_pool else changes(60)
        pool = ProxyPool(PROXIES, failovers=2) if has_pool else None
        rotation = world.session.rotate(accounts, in_flight=30, pool=pool, halt="never")
        await run_and_cancel(rotation, after_seconds(seconds))

        sent = accounts_with_an_attempt(world)
        outcomes = {event.account_id: event for event in settled_events(world).values()}
        assert {account for account in changes(60) if world.server.record.sends(account)} <= sent
        assert sent <= outcomes.keys()
        for account, event in outcomes.items():
            if account in sent:
                assert event.attempts > 0, account
                if event.applied is errors.Applied.NO:
                    assert not world.server.record.patched_accounts[account], account
            else:
                assert (event.state, event.attempts, event.applied) == NOT_SENT, account
        assert_nothing_left_open(world)


@in_virtual_time
async def test_accounts_that_waited_at_the_cancellation_are_skipped() -> None:
    """They waited for a permit, or for another change of the same account. Accounts in flight are unknown."""
    async with virtual_world(Pace(in_flight=2)) as world:
        for number in range(2):
            world.server.faults.script(f"acc_{number}", "hang")
        pairs: list[tuple[str, Any]] = [
            ("acc_0", US),
            ("acc_0", CUSTOM),
            ("acc_1", US),
            ("acc_2", US),
            ("acc_2", CUSTOM),
        ]
        await run_and_cancel(world.session.rotate(pairs, in_flight=5), after_seconds(1.0))

        outcomes = {
            ordinal: (event.state, event.attempts, event.applied)
            for ordinal, event in settled_events(world).items()
        }
        assert outcomes == {0: IN_DOUBT, 1: NOT_SENT, 2: IN_DOUBT, 3: NOT_SENT, 4: NOT_SENT}
        assert_nothing_left_open(world)


@in_virtual_time
async def test_account_cancelled_in_backoff_is_skipped_with_its_attempts() -> None:
    """Nothing is in flight, and the error response says that the change was not applied."""
    async with virtual_world(retry=RetryPolicy(first_wait=20.0)) as world:
        world.server.faults.script("acc_0", *["errors/provider_error"] * 9)
        rotation = world.session.rotate(changes(1))
        await run_and_cancel(rotation, lambda: rotation.retrying == 1)

        outcome = settled_events(world)[0]
        assert (outcome.state, outcome.attempts, outcome.applied) == (State.SKIPPED, 1, errors.Applied.NO)
        assert outcome.error_type == "errors/provider_error"


@in_virtual_time
async def test_account_cancelled_while_it_waits_for_a_permit_to_retry_is_in_doubt() -> None:
    """The response to its first request was lost, and another account has the only permit."""
    async with virtual_world(Pace(in_flight=1), retry=RetryPolicy(wait=lambda _: 0.5)) as world:
        world.server.faults.script("acc_0", "lost")
        world.server.faults.script("acc_1", "hang")
        await run_and_cancel(world.session.rotate(changes(2), in_flight=2), after_seconds(2.0))

        assert {event.state for event in settled_events(world).values()} == {State.UNKNOWN}
        assert world.server.record.sends("acc_0") == 1


async def test_accounts_refused_for_a_wrong_api_key_are_skipped_even_if_the_run_is_cancelled(
    journal,
) -> None:
    """The cancellation comes after_seconds the halt, while the last accounts are in flight."""
    async with Sandbox() as sandbox, sandbox.session() as session:
        for number in range(25):
            sandbox.script(f"acc_{number}", "hang" if number < 5 else "errors/invalid_credentials")
        rotation = session.rotate(changes(25), journal=journal)
        await run_and_cancel(rotation, lambda: rotation.summary.halted is not None)

    states = Counter(states_by_account(journal).values())
    assert states == {"skipped": 20, "unknown": 5}
    assert rotation.summary.states == states
    with JournalReader(journal) as view:
        assert view.run()["state"] == "halted"


async def start_call_that_keeps_the_permit(sandbox: Sandbox, session: PostPressSession) -> asyncio.Task[Any]:
    """Start a call that keeps the only permit of the session."""
    sandbox.script("acc_held", "hang")
    task = asyncio.create_task(session.update_proxy("acc_held", US))
    while not sandbox.record.sends("acc_held"):
        await asyncio.sleep(0)
    return task


async def cancel_once_waiting(rotation: Rotation, session: PostPressSession, count: int) -> None:
    """Cancel *rotation* once *count* calls wait for a permit."""
    await run_and_cancel(rotation, lambda: session._context.pacer.waiting == count)


async def test_account_in_doubt_that_is_not_sent_stays_in_doubt(journal) -> None:
    """The second run sends nothing, so it learns nothing about the request of the first run."""
    retry = RetryPolicy(attempts=1)
    async with Sandbox() as sandbox, sandbox.session(pace=Pace(in_flight=1), retry=retry) as session:
        sandbox.script("acc_1", "lost")
        await run(session.rotate(changes(2), journal=journal))
        assert states_by_account(journal)["acc_1"] == "unknown"
        permit_holder = await start_call_that_keeps_the_permit(sandbox, session)
        await cancel_once_waiting(session.rotate(changes(2), journal=journal), session, 1)
        permit_holder.cancel()

    assert sandbox.record.sends("acc_1") == 1
    assert states_by_account(journal) == {"acc_0": "patched", "acc_1": "unknown"}


async def test_used_key_is_not_sent_again_after_a_run_that_was_cancelled_while_waiting(journal) -> None:
    """The first run's key got an error response, which the API would replay."""
    retry = RetryPolicy(first_wait=60.0)
    async with Sandbox() as sandbox, sandbox.session(pace=Pace(in_flight=1), retry=retry) as session:
        sandbox.script("acc_1", "errors/provider_error")
        async with session.rotate(changes(3), journal=journal, in_flight=2, limit=2) as rotation:
            while not rotation.retrying:
                await asyncio.sleep(0)
            rotation.stop()
            await rotation.run()
        assert states_by_account(journal)["acc_1"] == "skipped"
        permit_holder = await start_call_that_keeps_the_permit(sandbox, session)
        await cancel_once_waiting(session.rotate(changes(3), journal=journal, in_flight=2), session, 2)
        permit_holder.cancel()
        assert states_by_account(journal) == {"acc_0": "patched", "acc_1": "skipped", "acc_2": "skipped"}
        assert sandbox.record.sends("acc_1") == 1
        await run(session.rotate(changes(3), journal=journal))

    assert set(states_by_account(journal).values()) == {"patched"}
    assert sandbox.record.replayed == 0


@in_virtual_time
async def test_proxy_of_an_account_that_was_never_sent_becomes_available() -> None:
    pool = ProxyPool(PROXIES[:2], accounts_per_proxy=1)
    async with virtual_world(Pace(in_flight=1)) as world:
        world.server.faults.script("acc_0", "hang")
        rotation = world.session.rotate(["acc_0", "acc_1"], pool=pool, in_flight=2)
        await run_and_cancel(rotation, after_seconds(1.0))

        assert [settled_events(world)[ordinal].state for ordinal in (0, 1)] == ["unknown", "skipped"]
    assert rotation._core.allocators[None].available == 1


async def test_account_is_in_doubt_if_its_update_reports_no_attempts(journal) -> None:
    """A stub does not report whether it has sent a request."""
    started = asyncio.Event()

    async def never_end(*_: object) -> Any:
        started.set()
        await asyncio.get_running_loop().create_future()

    await run_and_cancel(make_rotation(never_end, journal, in_flight=1), started.is_set)

    assert query(journal, "SELECT state, attempts, applied FROM outcomes") == [IN_DOUBT]
