"""Lost workers and a lost scheduler, on a fake of Dask, in virtual time."""

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from postpress_async import Pace, events
from postpress_async.cluster import _cluster_watch
from postpress_async.cluster._messages import NewKeyNeeded
from postpress_async.errors import (
    Applied,
    ClusterError,
    ConfigurationError,
)
from postpress_async.models import ProxyChange
from postpress_async.rotation import Outcome, Rotation, State
from postpress_async.rotation._pending_rows import PendingRow
from postpress_async.rotation._row_keys import RowKeys
from tests.support.cluster_world import wait_until
from tests.support.fake_dask import (
    CUSTOM,
    IN_FLIGHT,
    LATENCY,
    US,
    FakeDask,
    FakeWorker,
    accounts,
    api_error,
    recorded,
    rotate,
    rotation_of,
)
from tests.support.virtual_loop import VirtualLoop, run

pytestmark = pytest.mark.usefixtures("fake_dask")


@pytest.mark.parametrize("change", [US, CUSTOM], ids=["managed", "custom"])
def test_unreported_calls_of_a_killed_worker_are_sent_by_another_one(change: ProxyChange) -> None:
    """As in a resumed run, a managed change keeps its idempotency key, and a custom one gets a new key."""

    async def main() -> FakeDask:
        dask = FakeDask("w1")
        async with rotation_of(dask, accounts(100, change)) as rotation:
            await wait_until(lambda: rotation.summary.patched >= 50)
            dask.join("w2")
            dask.kill("w1")
            await rotation.run()
        assert rotation.summary.patched == 100
        return dask

    dask = run(main())
    sent_twice = [keys for keys in dask.keys.values() if len(keys) == 2]

    assert {len(keys) for keys in dask.keys.values()} == {1, 2}
    assert len(sent_twice) <= 2 * IN_FLIGHT  # in flight, or ended and not reported yet
    assert {len(set(keys)) for keys in sent_twice} == {1 if change is US else 2}


def test_managed_change_keeps_the_key_that_a_killed_worker_renewed() -> None:
    """With the older key, the API could order a second proxy."""

    async def renew(worker: FakeWorker, account_id: str, _change: object, keys: Any, _hooks: object) -> None:
        if worker.address == "w1":
            await keys.renew()
            worker.dask.keys[account_id].append(keys.current)
            await asyncio.sleep(100)

    async def main() -> list[str]:
        dask = FakeDask("w1", script=renew)
        async with rotation_of(dask, accounts(1)) as rotation:
            await wait_until(lambda: len(dask.keys["acc_0"]) == 2)
            dask.join("w2")
            dask.kill("w1")
            await rotation.run()
        return dask.keys["acc_0"]

    first, renewed, again = run(main())

    assert first != renewed == again


def test_key_renewed_by_a_killed_worker_is_stored_before_another_worker_uses_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise a resumed run would use the older key, and the API could order a second proxy."""
    stored: list[int] = []
    used: list[tuple[int, list[int]]] = []  # the generation of a key, and the stored ones at its use

    async def store_slowly(_: int, generation: int) -> None:
        await asyncio.sleep(2.0)
        stored.append(generation)

    async def renew(worker: FakeWorker, _account: str, _change: object, keys: Any, _hooks: object) -> None:
        if worker.address == "w1":
            await keys.renew()
        used.append((keys.generation, stored.copy()))

    def keys_of(run: str, pending: PendingRow, _keep: object) -> RowKeys:
        return RowKeys(f"{run}-0", pending.generation, 0, store_slowly, in_doubt=False)

    async def main() -> None:
        dask = FakeDask("w1", script=renew)
        monkeypatch.setattr(RowKeys, "of", keys_of)
        async with rotation_of(dask, accounts(1)) as rotation:
            await wait_until(
                lambda: any(NewKeyNeeded.__name__.encode() in event["reports"] for event in dask.events)
            )
            await asyncio.sleep(0)  # the coordinator processes the report
            dask.join("w2")
            dask.kill("w1")
            await rotation.run()

    run(main())

    assert used == [(1, [1])]


def test_error_response_after_a_loss_leaves_the_account_unknown() -> None:
    """The error response says nothing about the lost worker's request, which may have been applied."""

    async def main() -> Outcome:
        async def refuse(worker: FakeWorker, *_: object) -> None:
            await asyncio.sleep(LATENCY)
            if worker.address == "w2":
                raise api_error("errors/resource_not_found", 404)

        dask = FakeDask("w1", script=refuse)
        async with rotation_of(dask, accounts(1)) as rotation:
            await wait_until(lambda: dask.sent["w1"])
            dask.join("w2")
            dask.kill("w1")
            [outcome] = [outcome async for outcome in rotation]
        return outcome

    outcome = run(main())

    assert (outcome.state, outcome.applied) == (State.UNKNOWN, Applied.UNKNOWN)


def test_late_reports_of_a_frozen_worker_are_ignored() -> None:
    async def main() -> tuple[FakeDask, Rotation]:
        dask = FakeDask("w1", "w2")
        async with rotation_of(dask, accounts(2_000)) as rotation:
            await wait_until(lambda: rotation.summary.patched >= 300)
            dask.workers["w1"].is_frozen = True
            sent_before = dask.sent["w1"]
            await asyncio.sleep(_cluster_watch.HEARTBEAT_TIMEOUT + 1)
            assert dask.sent["w1"] == sent_before
            dask.workers["w1"].thaw()
            await rotation.run()
        return dask, rotation

    dask, rotation = run(main())

    assert rotation.summary.patched == rotation.summary.attempts == 2_000
    assert {len(keys) for keys in dask.keys.values()} == {1, 2}
    assert {len(set(keys)) for keys in dask.keys.values()} == {1}
    assert sum(len(keys) == 2 for keys in dask.keys.values()) <= 70  # the window of the frozen worker


@pytest.mark.parametrize("change", [US, CUSTOM], ids=["managed", "custom"])
def test_worker_that_restarts_at_the_same_address_does_not_run_the_old_shards(change: ProxyChange) -> None:
    """The scheduler assigns the old shards to it, although some of their calls were reported as ended."""
    completed: set[str] = set()

    def on_event(event: events.Event) -> None:
        if isinstance(event, events.AccountSettled):
            completed.add(event.account_id)

    async def main() -> tuple[FakeDask, set[str]]:
        dask = FakeDask("w1")
        async with rotation_of(dask, accounts(300, change), on_event=on_event) as rotation:
            await wait_until(lambda: rotation.summary.patched >= 130)
            completed_before = completed.copy()
            dask.kill("w1", restarts=True)
            await rotation.run()
        assert rotation.summary.patched == rotation.summary.attempts == 300
        return dask, completed_before

    dask, completed_before = run(main())
    sent_twice = {account: keys for account, keys in dask.keys.items() if len(keys) == 2}

    assert completed_before & sent_twice.keys() == set()
    assert {len(keys) for keys in dask.keys.values()} == {1, 2}
    assert len(sent_twice) <= 2 * IN_FLIGHT  # in flight, or ended and not reported yet
    assert {len(set(keys)) for keys in sent_twice.values()} == {1 if change is US else 2}


def test_account_is_unknown_if_its_worker_restarts_without_an_api_key() -> None:
    """The new process reports that it sent nothing, but the old one may have sent the account."""

    async def main() -> list[Outcome]:
        dask = FakeDask("w1")
        async with rotation_of(dask, accounts(1)) as rotation:
            await wait_until(lambda: dask.sent["w1"])
            dask.setup_errors["w1"] = ConfigurationError("no API key")
            dask.kill("w1", restarts=True)
            await asyncio.sleep(LATENCY)
            rotation.stop()
            return [outcome async for outcome in rotation]

    [outcome] = run(main())

    assert (outcome.state, outcome.applied) == (State.UNKNOWN, Applied.UNKNOWN)


def test_workers_are_not_lost_while_the_coordinator_is_suspended() -> None:
    """After Ctrl-Z and fg, their last heartbeats are old, although they kept running."""

    async def main() -> FakeDask:
        dask = FakeDask("w1")
        async with rotation_of(dask, accounts(500)) as rotation:
            await wait_until(lambda: rotation.summary.patched >= 100)
            loop = asyncio.get_running_loop()
            assert isinstance(loop, VirtualLoop)
            dask.workers["w1"].is_frozen = True  # so that no new heartbeat hides the effect
            loop._virtual_clock.now += 100.0
            await asyncio.sleep(1.0)
            dask.workers["w1"].thaw()
            await rotation.run()
        return dask

    assert {len(keys) for keys in run(main()).keys.values()} == {1}


def test_worker_that_joins_during_the_run_gets_calls() -> None:
    async def main() -> FakeDask:
        dask = FakeDask("w1")
        async with rotation_of(dask, accounts(2_000)) as rotation:
            await wait_until(lambda: rotation.summary.patched >= 100)
            dask.join("w2")
            await rotation.run()
        return dask

    assert run(main()).sent["w2"] > 500


def test_rotation_ends_if_the_scheduler_does_not_respond() -> None:
    async def main() -> Rotation:
        dask = FakeDask("w1")
        with suppress(ClusterError):  # leaving the block raises the error again
            async with rotation_of(dask, accounts(2_000)) as rotation:
                await wait_until(lambda: rotation.summary.patched >= 100)
                dask.is_gone = True
                dask.workers["w1"].is_frozen = True
                with pytest.raises(ClusterError, match="scheduler does not respond any more"):
                    await rotation.run()
        return rotation

    assert run(main()).summary.states[State.UNKNOWN] > 0


def test_rotation_ends_if_no_worker_connects() -> None:
    with pytest.raises(ClusterError, match="no usable worker \\(no worker is connected\\)"):
        rotate(FakeDask(), accounts(10))


@pytest.mark.parametrize("stop", [True, False], ids=["stopped", "on_unknown=report"])
async def test_account_of_a_lost_worker_that_is_not_sent_again_is_unknown(tmp_path: Path, stop: bool) -> None:
    """If it were recorded as skipped, the next run would treat it as never sent."""
    journal = tmp_path / "journal"
    dask = FakeDask("w1")
    on_unknown = "retry" if stop else "report"
    async with rotation_of(dask, accounts(1), journal=journal, on_unknown=on_unknown) as rotation:
        await wait_until(lambda: dask.sent["w1"])
        if stop:
            rotation.stop()
        dask.kill("w1")
        await rotation.run()

    assert rotation.summary.states == {State.UNKNOWN: 1}
    assert recorded(journal) == [("acc_0", "unknown", "unknown")]


def test_account_of_a_lost_worker_that_waits_for_another_one_at_the_stop_is_unknown() -> None:
    async def main() -> list[Outcome]:
        dask = FakeDask("w1")
        async with rotation_of(dask, accounts(1)) as rotation:
            await wait_until(lambda: dask.sent["w1"])
            dask.kill("w1")
            await asyncio.sleep(2 * _cluster_watch.POLL_INTERVAL)
            rotation.stop()
            return [outcome async for outcome in rotation]

    [outcome] = run(main())

    assert (outcome.state, outcome.applied) == (State.UNKNOWN, Applied.UNKNOWN)


def test_account_of_a_lost_worker_that_the_next_one_did_not_send_is_unknown() -> None:
    """The next worker reports that it sent nothing, but the lost one may have sent the account."""

    async def respond_slowly(*_: object) -> None:
        await asyncio.sleep(3.0)

    async def main() -> list[Outcome]:
        dask = FakeDask("w1", script=respond_slowly)
        async with rotation_of(dask, accounts(2), pace=Pace(in_flight=1)) as rotation:
            await wait_until(lambda: dask.sent["w1"])
            dask.kill("w1")
            await asyncio.sleep(2 * _cluster_watch.POLL_INTERVAL)
            dask.join("w2")
            await wait_until(lambda: dask.sent["w2"])
            rotation.stop()
            return [outcome async for outcome in rotation]

    outcomes = run(main())

    assert {outcome.state for outcome in outcomes} == {State.PATCHED, State.UNKNOWN}


def test_account_that_was_patched_just_before_a_cancellation_is_not_skipped() -> None:
    """The worker has reported the success, but the cancellation reaches the account's task first."""
    reported: list[Any] = []

    async def main() -> Rotation:
        dask, main_task = FakeDask("w1"), asyncio.current_task()
        assert main_task is not None

        def cancel_and_deliver(event: dict[str, Any]) -> None:
            if not reported:
                main_task.cancel()
            reported.append(event)
            FakeDask.deliver(dask, event)

        dask.deliver = cancel_and_deliver  # type: ignore[method-assign]
        with suppress(asyncio.CancelledError):
            async with rotation_of(dask, accounts(10)) as rotation:
                await rotation.run()
        return rotation

    states = run(main()).summary.states

    assert reported
    assert states == {State.UNKNOWN: 10}
