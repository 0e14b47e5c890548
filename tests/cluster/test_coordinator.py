"""The coordinator and the plugin of its workers, with a stub of Dask, in virtual time."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from postpress_async import CustomProxy, ManagedProxy, Pace, ProxyPool, events
from postpress_async.cluster import _cluster_watch, _coordinator, _worker
from postpress_async.cluster._messages import NewKeyNeeded, RemoteCall, Shard
from postpress_async.errors import (
    ApiError,
    Applied,
    AttemptTimeoutError,
    ClusterError,
    ConfigurationError,
    ConnectError,
    JournalNotWritableError,
    PostPressError,
    Problem,
)
from postpress_async.models import Attempt, ProxyChange
from postpress_async.rotation import Halt, Outcome, Rotation, State
from postpress_async.rotation._pending_rows import PendingRow
from postpress_async.rotation._row_keys import RowKeys
from postpress_async.rotation.journal import Journal
from postpress_async.rotation.journal._row_hashes import RowHashes
from tests.support.fake_dask import LATENCY, FakeDask, FakeWorker, fake_dask, patched, respond, rotation_of
from tests.support.virtual_loop import VirtualLoop, run

__all__ = ["fake_dask"]

pytestmark = pytest.mark.usefixtures("fake_dask")

US = ManagedProxy(country="US")
OWN = CustomProxy(host="p.example.com", port=8080, username="u", password="s3cret")

Script = Callable[..., Awaitable[object]]


def accounts(count: int, change: ProxyChange = US) -> dict[str, ProxyChange]:
    return {f"acc_{number}": change for number in range(count)}


def api_error(type_: str, status: int, **fields: Any) -> ApiError:
    error = ApiError.of(status, Problem(type=type_, title="A title", **fields))
    error.attempts = (Attempt(1, 1e9, LATENCY, type_, status),)
    return error


def rotate(dask_of: Callable[[], FakeDask], changes: Any, **options: Any) -> tuple[Rotation, list[Outcome]]:
    """Run a whole rotation in virtual time, and return it with its outcomes."""

    async def main() -> tuple[Rotation, list[Outcome]]:
        async with rotation_of(dask_of(), changes, **options) as rotation:
            outcomes = [outcome async for outcome in rotation]
        return rotation, outcomes

    return run(main())


async def wait_until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


# --- Sending ---


def test_calls_are_sent_as_shards_and_their_outcomes_come_back() -> None:
    dask = None

    def make() -> FakeDask:
        nonlocal dask
        dask = FakeDask("w1", "w2")
        return dask

    rotation, outcomes = rotate(make, accounts(300))

    assert dask is not None
    assert {outcome.account_id for outcome in outcomes} == set(accounts(300))
    assert {outcome.state for outcome in outcomes} == {State.PATCHED}
    assert (rotation.summary.patched, rotation.summary.attempts) == (300, 300)
    assert min(dask.sent.values()) > 100
    assert dask.closed == ["w1", "w2"]
    assert {len(keys) for keys in dask.keys.values()} == {1}


def test_worker_has_few_calls_until_it_is_known_how_they_end() -> None:
    """A refused key must not be tried on many accounts."""
    in_flight = most_in_flight = 0

    async def refuse(*_: object) -> None:
        nonlocal in_flight, most_in_flight
        in_flight += 1
        most_in_flight = max(most_in_flight, in_flight)
        await asyncio.sleep(LATENCY)
        in_flight -= 1
        raise api_error("errors/key_missing", 401)

    rotation, _ = rotate(lambda: _with(FakeDask("w1"), refuse), accounts(1_000), pace=Pace(in_flight=500))

    assert rotation.summary.key_refused
    assert most_in_flight == _coordinator.TRIAL_WINDOW
    assert rotation.summary.attempts <= 2 * _coordinator.TRIAL_WINDOW
    assert rotation.summary.total == 1_000


def test_rows_are_read_only_as_workers_have_room() -> None:
    """An input of millions of rows is never in memory."""
    read = 0

    def changes() -> Iterator[tuple[str, ProxyChange]]:
        nonlocal read
        while True:
            read += 1
            yield f"acc_{read}", US

    async def main() -> int:
        ahead = 0
        async with rotation_of(FakeDask("w1", "w2"), changes()) as rotation:
            async for _ in rotation:
                ahead = max(ahead, read - rotation.summary.total)
                if rotation.summary.total == 5_000:
                    rotation.stop()
        return ahead

    # The windows, and the outcomes that this loop has not seen yet.
    assert run(main()) < 2 * 2 * (20 + 20 + 100)


def test_fast_worker_gets_a_window_for_a_quarter_of_a_second() -> None:
    """Otherwise it would wait for the next shard; a slow one has at most twice its requests in flight."""
    sizes = {}
    for seconds in (0.005, 1.0):
        most = 0

        async def answer(worker: FakeWorker, *_: object, seconds: float = seconds) -> None:
            nonlocal most
            coordinator = worker.dask.coordinator
            assert coordinator is not None
            most = max(most, sum(len(w.calls) for w in coordinator._workers.values()))
            await asyncio.sleep(seconds)

        rotate(lambda answer=answer: _with(FakeDask("w1"), answer), accounts(3_000))  # type: ignore[misc]
        sizes[seconds] = most

    assert sizes[1.0] <= 2 * 20 + _coordinator.TRIAL_WINDOW
    assert sizes[0.005] > 200


def test_events_contain_nothing_of_a_row() -> None:
    """The scheduler keeps them, and shows them to everyone who can open its dashboard."""
    dask = FakeDask

    async def refuse(_worker: FakeWorker, account_id: str, *_: object) -> None:
        await asyncio.sleep(LATENCY)
        detail, instance = f"{account_id} is gone: s3cret", f"/accounts/{account_id}/proxy"
        raise api_error("errors/resource_not_found", 404, detail=detail, instance=instance)

    made: list[FakeDask] = []
    _, outcomes = rotate(lambda: _kept(made, _with(dask("w1"), refuse)), accounts(5, OWN))

    [outcome, *_] = outcomes
    assert outcome.instance == f"/accounts/{outcome.account_id}/proxy"
    assert isinstance(outcome.error, ApiError)
    assert outcome.error.detail == f"{outcome.account_id} is gone: s3cret"
    written = b"".join(event["reports"] for event in made[0].events)
    assert b"resource_not_found" in written
    assert [word for word in (b"acc_", b"s3cret", b"p.example.com", b"A title") if word in written] == []


def test_repr_of_a_shard_shows_nothing_of_a_row() -> None:
    """Dask logs it if the task fails."""
    shard = Shard.of("token", "process", [RemoteCall(1, "acc_1", OWN, 0, "key", 0, False)])

    assert repr(shard) == "Shard(token='token', process='process', key='token-1')"
    assert shard.calls() == [RemoteCall(1, "acc_1", OWN, 0, "key", 0, False)]


def test_retries_of_workers_reach_the_observer() -> None:
    seen: list[events.Event] = []

    async def back_off(
        worker: FakeWorker, account_id: str, _change: object, _keys: object, hooks: Any
    ) -> None:
        [plugin] = worker.plugins.values()
        error = api_error("errors/unexpected_error", 500)
        hooks.on_attempt_failed(error)
        plugin._on_session_event(events.RetryScheduled(account_id, 1, 2.5, error))
        hooks.on_backoff(True)
        await asyncio.sleep(2.5)
        hooks.on_backoff(False)

    retrying = []

    async def main() -> None:
        dask = _with(FakeDask("w1"), back_off)
        async with rotation_of(dask, accounts(3), on_event=seen.append) as rotation:
            await asyncio.sleep(2.0)
            retrying.append(rotation.retrying)
            await rotation.run()
            retrying.append(rotation.retrying)

    run(main())

    retries = [event for event in seen if isinstance(event, events.RetryScheduled)]
    assert {(event.account_id, event.wait, event.error.code) for event in retries} == {
        (account, 2.5, "errors/unexpected_error") for account in accounts(3)
    }
    assert retrying == [3, 0]


# --- Losses ---


@pytest.mark.parametrize("change", [US, OWN], ids=["managed", "custom"])
def test_calls_of_a_killed_worker_are_sent_by_another_one(change: ProxyChange) -> None:
    """A managed change under the same key; a custom one under a new one, as in a run that is resumed."""

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
    twice = [keys for keys in dask.keys.values() if len(keys) == 2]

    assert {len(keys) for keys in dask.keys.values()} == {1, 2}
    assert len(twice) <= 20 + 20  # in flight, and not reported yet
    assert {len(set(keys)) for keys in twice} == {1 if change is US else 2}


def test_key_that_a_killed_worker_had_renewed_is_used_by_the_next() -> None:
    """Otherwise the API could order a second proxy: it may know nothing of the older key."""

    async def renew(worker: FakeWorker, account_id: str, _change: object, keys: Any, _hooks: object) -> None:
        if worker.address == "w1":
            await keys.renew()
            worker.dask.keys[account_id].append(keys.current)
            await asyncio.sleep(100)

    async def main() -> list[str]:
        dask = _with(FakeDask("w1"), renew)
        async with rotation_of(dask, accounts(1)) as rotation:
            await wait_until(lambda: len(dask.keys["acc_0"]) == 2)
            dask.join("w2")
            dask.kill("w1")
            await rotation.run()
        return dask.keys["acc_0"]

    first, renewed, again = run(main())

    assert first != renewed == again


def test_key_that_a_killed_worker_had_renewed_is_stored_before_the_next_uses_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise a resumed run would use the older key, under which the API could order a second proxy."""
    stored: list[int] = []
    seen: list[tuple[str, list[int]]] = []

    async def store_slowly(_: int, generation: int) -> None:
        await asyncio.sleep(2.0)
        stored.append(generation)

    async def renew(worker: FakeWorker, _account: str, _change: object, keys: Any, _hooks: object) -> None:
        if worker.address == "w1":
            await keys.renew()
        seen.append((keys.current[-2:], [*stored]))

    def keys_of(run: str, pending: PendingRow, _keep: object) -> RowKeys:
        return RowKeys(f"{run}-0", pending.generation, 0, store_slowly, in_doubt=False)

    async def main() -> None:
        dask = _with(FakeDask("w1"), renew)
        monkeypatch.setattr(RowKeys, "of", keys_of)
        async with rotation_of(dask, accounts(1)) as rotation:
            await wait_until(
                lambda: any(NewKeyNeeded.__name__.encode() in event["reports"] for event in dask.events)
            )
            await asyncio.sleep(0)
            dask.join("w2")
            dask.kill("w1")
            await rotation.run()

    run(main())

    assert seen == [("-1", [1])]


def test_refusal_after_a_loss_leaves_the_account_unknown() -> None:
    """The lost worker's request may have been applied."""

    async def main() -> Outcome:
        async def refuse(worker: FakeWorker, *_: object) -> None:
            await asyncio.sleep(LATENCY)
            if worker.address == "w2":
                raise api_error("errors/resource_not_found", 404)

        dask = _with(FakeDask("w1"), refuse)
        async with rotation_of(dask, accounts(1)) as rotation:
            await wait_until(lambda: dask.sent["w1"])
            dask.join("w2")
            dask.kill("w1")
            [outcome] = [outcome async for outcome in rotation]
        return outcome

    outcome = run(main())

    assert (outcome.state, outcome.applied) == (State.UNKNOWN, Applied.UNKNOWN)


def test_frozen_worker_is_lost_and_what_it_reports_later_is_ignored() -> None:
    async def main() -> tuple[FakeDask, Rotation]:
        dask = FakeDask("w1", "w2")
        async with rotation_of(dask, accounts(2_000)) as rotation:
            await wait_until(lambda: rotation.summary.patched >= 300)
            dask.workers["w1"].is_frozen = True
            frozen = dask.sent["w1"]
            await asyncio.sleep(_cluster_watch.HEARTBEAT_TIMEOUT + 1)
            assert dask.sent["w1"] == frozen
            dask.workers["w1"].thaw()
            await rotation.run()
        return dask, rotation

    dask, rotation = run(main())

    assert rotation.summary.patched == rotation.summary.attempts == 2_000
    assert sum(len(keys) == 2 for keys in dask.keys.values()) <= 2 * (2 * 20 + 50)
    assert all(len(set(keys)) == 1 for keys in dask.keys.values())
    assert {len(keys) for keys in dask.keys.values()} == {1, 2}


@pytest.mark.parametrize("change", [US, OWN], ids=["managed", "custom"])
def test_worker_that_restarts_at_its_address_sends_nothing_of_its_predecessor(change: ProxyChange) -> None:
    """The scheduler gives it the same shards, some calls of which were reported."""
    completed: set[str] = set()

    def on_event(event: events.Event) -> None:
        if isinstance(event, events.AccountSettled):
            completed.add(event.account_id)

    async def main() -> tuple[FakeDask, set[str]]:
        dask = FakeDask("w1")
        async with rotation_of(dask, accounts(300, change), on_event=on_event) as rotation:
            await wait_until(lambda: rotation.summary.patched >= 130)
            before = completed.copy()
            dask.kill("w1", restarts=True)
            await rotation.run()
        assert rotation.summary.patched == rotation.summary.attempts == 300
        return dask, before

    dask, before = run(main())
    twice = {account: keys for account, keys in dask.keys.items() if len(keys) == 2}

    assert before & twice.keys() == set()
    assert 0 < len(twice) <= 20 + 20  # in flight, and not reported yet
    assert {len(keys) for keys in dask.keys.values()} == {1, 2}
    assert {len(set(keys)) for keys in twice.values()} == {1 if change is US else 2}


def test_account_is_in_doubt_if_its_worker_restarts_without_an_api_key() -> None:
    """The worker that reports that it sends nothing is not the one that may have sent the account."""

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


def test_suspended_coordinator_does_not_blame_the_workers() -> None:
    """After Ctrl-Z and fg, their heartbeats only seem to be missing."""

    async def main() -> FakeDask:
        dask = FakeDask("w1")
        async with rotation_of(dask, accounts(500)) as rotation:
            await wait_until(lambda: rotation.summary.patched >= 100)
            loop = asyncio.get_running_loop()
            assert isinstance(loop, VirtualLoop)
            dask.workers["w1"].is_frozen = True  # its heartbeat comes a little late
            loop._jump.now += 100.0
            await asyncio.sleep(1.0)
            dask.workers["w1"].thaw()
            await rotation.run()
        return dask

    assert {len(keys) for keys in run(main()).keys.values()} == {1}


def test_worker_that_joins_late_gets_calls() -> None:
    async def main() -> FakeDask:
        dask = FakeDask("w1")
        async with rotation_of(dask, accounts(2_000)) as rotation:
            await wait_until(lambda: rotation.summary.patched >= 100)
            dask.join("w2")
            await rotation.run()
        return dask

    assert run(main()).sent["w2"] > 500


def test_without_a_scheduler_the_rotation_ends() -> None:
    async def main() -> None:
        dask = FakeDask("w1")
        async with rotation_of(dask, accounts(2_000)) as rotation:
            await wait_until(lambda: rotation.summary.patched >= 100)
            dask.is_gone = True
            dask.workers["w1"].is_frozen = True
            with pytest.raises(ClusterError, match="scheduler does not respond any more"):
                await rotation.run()
            raise KeyError(rotation)

    with pytest.raises(KeyError) as caught:
        run(main())
    assert caught.value.args[0].summary.states[State.UNKNOWN] > 0


def test_without_a_worker_the_rotation_ends() -> None:
    with pytest.raises(ClusterError, match="no usable worker \\(no worker is connected\\)"):
        rotate(FakeDask, accounts(10))


@pytest.mark.parametrize("stop", [True, False], ids=["the run is stopped", "doubts are left to the operator"])
async def test_lost_account_that_is_not_sent_again_is_recorded_as_unknown(tmp_path: Path, stop: bool) -> None:
    """Otherwise the next run would take it for one that was never sent."""
    path = tmp_path / "j"
    dask = FakeDask("w1")
    on_unknown = "retry" if stop else "report"
    async with rotation_of(dask, accounts(1), journal=path, on_unknown=on_unknown) as rotation:
        await wait_until(lambda: dask.sent["w1"])
        if stop:
            rotation.stop()
        dask.kill("w1")
        await rotation.run()

    assert rotation.summary.states == {State.UNKNOWN: 1}
    assert recorded(path) == [("acc_0", "unknown", "unknown")]


def test_account_that_no_other_worker_gets_before_the_stop_is_unknown() -> None:
    """The account waits for a worker when the run is stopped."""

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


def test_account_that_the_next_worker_has_not_sent_at_the_stop_is_unknown() -> None:
    """That worker reports that it sent nothing, which says nothing about the lost one."""

    async def stay(*_: object) -> None:
        await asyncio.sleep(3.0)

    async def main() -> list[Outcome]:
        dask = _with(FakeDask("w1"), stay)
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


def test_account_that_was_patched_when_the_rotation_is_cancelled_is_not_skipped() -> None:
    """The account's task has not run since the worker reported it."""
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


# --- Problems of workers ---


@pytest.mark.parametrize(
    "error",
    [
        ConfigurationError("no API key"),
        ClusterError("the worker has postpress-async 0, and the command has 1"),
    ],
    ids=["no key", "another version"],
)
def test_worker_with_a_problem_leaves_the_calls_to_the_others(error: PostPressError) -> None:
    def make() -> FakeDask:
        dask = FakeDask("w1", "w2")
        dask.setup_errors["w1"] = error
        return dask

    made: list[FakeDask] = []
    rotation, _ = rotate(lambda: _kept(made, make()), accounts(200))

    assert rotation.summary.patched == 200
    assert made[0].sent == {"w2": 200}


def test_rotation_ends_if_all_workers_have_a_problem() -> None:
    def make() -> FakeDask:
        dask = FakeDask("w1")
        dask.setup_errors["w1"] = ConfigurationError("no API key: set POSTPRESS_API_KEY")
        return dask

    with pytest.raises(ClusterError, match="no usable worker \\(w1: no API key: set POSTPRESS_API_KEY\\)"):
        rotate(make, accounts(10))


def test_worker_of_another_version_is_refused() -> None:
    async def main() -> PostPressError | None:
        plugin = _worker.SessionPlugin("token", {}, False)
        plugin._version = "0.0.1"  # type: ignore[misc]
        plugin.setup(FakeWorker(FakeDask(), "w1"))
        return plugin.problem

    assert "install the same version" in str(run(main()))


def test_error_of_the_retry_strategy_ends_the_rotation() -> None:
    async def fail(*_: object) -> None:
        raise ZeroDivisionError("division by zero")

    with pytest.raises(ZeroDivisionError, match="division by zero"):
        rotate(lambda: _with(FakeDask("w1"), fail), accounts(10))


class TwoPartsError(Exception):
    """It can be pickled, but not unpickled."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


def test_error_of_the_retry_strategy_that_cannot_be_unpickled_ends_the_rotation() -> None:
    async def fail(worker: FakeWorker, *_: object) -> None:
        if worker.dask.sent["w1"] < 20:
            raise TwoPartsError("bad", "strategy")

    with pytest.raises(RuntimeError, match="TwoPartsError: bad strategy"):
        rotate(lambda: _with(FakeDask("w1"), fail), accounts(1))


def test_account_whose_result_cannot_be_read_is_sent_once_by_each_worker() -> None:
    async def fail(worker: FakeWorker, *_: object) -> None:
        if sum(worker.dask.sent.values()) < 20:
            raise ZeroDivisionError

    dask = _with(FakeDask("w1", "w2"), fail)
    dask.loses_results = True
    with pytest.raises(ClusterError, match="w2: ModuleNotFoundError: No module named 'strategy'"):
        rotate(lambda: dask, accounts(1))

    assert dask.sent == {"w1": 1, "w2": 1}


def test_task_that_cannot_be_submitted_ends_the_rotation() -> None:
    """Otherwise its calls would never end."""

    async def main() -> None:
        dask = FakeDask("w1")
        async with asyncio.timeout(60), rotation_of(dask, accounts(300)) as rotation:
            await wait_until(lambda: rotation.summary.patched >= 100)
            dask.submit_error = RuntimeError("the client is closed")
            await rotation.run()

    with pytest.raises(ClusterError, match="w1: RuntimeError: the client is closed"):
        run(main())


def test_worker_that_cannot_run_shards_leaves_them_to_others() -> None:
    """For example because installing the plugin failed there."""

    async def main() -> FakeDask:
        dask = FakeDask("w1", "w2")
        async with rotation_of(dask, accounts(200)) as rotation:
            plugin = dask.workers["w1"].plugins.popitem()
            await rotation.run()
            dask.workers["w1"].plugins.update([plugin])
        assert rotation.summary.patched == 200
        return dask

    assert run(main()).sent == {"w2": 200}


def test_worker_whose_shards_raise_an_os_error_is_not_tried_for_ever() -> None:
    """Example: a stale file handle of a network file system when Dask imports the package."""

    async def fail(_: object) -> None:
        raise OSError(116, "Stale file handle")

    async def main() -> None:
        dask = FakeDask("w1")
        async with asyncio.timeout(60), rotation_of(dask, accounts(10)) as rotation:
            [plugin] = dask.workers["w1"].plugins.values()
            plugin.run = fail
            await rotation.run()

    with pytest.raises(ClusterError, match=r"w1: OSError: .*Stale file handle"):
        run(main())


@pytest.mark.parametrize("stop", [False, True], ids=["a new key is stored", "the rotation is stopped"])
def test_worker_with_a_problem_is_still_controlled(stop: bool) -> None:
    """Only one of its shards failed. The calls of the others wait for what the coordinator says."""

    async def main() -> Rotation:
        dask, problem = FakeDask("w1"), asyncio.Event()

        async def wait(_worker: object, account_id: str, _change: object, keys: Any, hooks: Any) -> None:
            if account_id == "acc_0":
                await problem.wait()
                while stop and not hooks.waits.ended:
                    await asyncio.sleep(0.1)
                await keys.renew()

        async def changes() -> AsyncIterator[tuple[str, ProxyChange]]:
            yield "acc_0", US
            await wait_until(lambda: dask.sent["w1"])
            plugin = dask.workers["w1"].plugins.popitem()
            yield "acc_1", US
            await wait_until(lambda: len(dask.sizes) == 2)
            dask.workers["w1"].plugins.update([plugin])
            dask.join("w2")
            await wait_until(lambda: dask.sent["w2"])
            problem.set()

        async with asyncio.timeout(100), rotation_of(_with(dask, wait), changes()) as rotation:
            if stop:
                await problem.wait()
                rotation.stop()
            await rotation.run()
        return rotation

    assert run(main()).summary.patched == 2


def test_failed_canary_keeps_the_other_accounts_from_being_sent() -> None:
    async def refuse(worker: FakeWorker, *_: object) -> None:
        await respond(worker)
        raise api_error("errors/proxy_error", 502)

    halt = Halt(failures={"proxy": "5%"}, canary=20)
    rotation, _ = rotate(lambda: _with(FakeDask("w1", "w2"), refuse), accounts(500), halt=halt)

    assert rotation.summary.halted is not None
    assert rotation.summary.states == {State.FAILED: 20, State.SKIPPED: 480}


def test_passed_canary_lets_the_others_follow() -> None:
    rotation, _ = rotate(lambda: FakeDask("w1", "w2"), accounts(500), halt=Halt(failures="5%", canary=20))

    assert rotation.summary.canary_passed
    assert rotation.summary.complete


@pytest.mark.parametrize("reachable", [True, False])
def test_host_that_no_worker_reaches_halts_the_rotation(reachable: bool) -> None:
    """A single worker may have no network; an outage would be waited out."""

    async def connect(
        worker: FakeWorker, account_id: str, _change: object, _keys: object, hooks: Any
    ) -> None:
        await asyncio.sleep(LATENCY)
        if reachable and worker.address == "w2":
            return
        for number in range(1, 4):
            error = ConnectError("no connection to api.example.com:443")
            error.attempts = tuple(Attempt(n, 1e9, LATENCY) for n in range(number))
            hooks.on_attempt_failed(error)
            await asyncio.sleep(1.0)
        raise error

    rotation, _ = rotate(lambda: _with(FakeDask("w1", "w2"), connect), accounts(100), halt="never")

    halted = rotation.summary.halted
    assert (halted is None) is reachable
    assert reachable or (halted or "").startswith("no connection to api.example.com:443")


def test_pause_that_one_worker_finds_reaches_the_others() -> None:
    """Otherwise each worker would send 20 requests into the outage."""
    seen: list[events.Event] = []

    async def main() -> FakeDask:
        dask = FakeDask("w1", "w2")
        async with rotation_of(dask, accounts(500), on_event=seen.append) as rotation:
            await wait_until(lambda: rotation.summary.patched >= 100)
            dask.workers["w1"].pacer.paused = True
            await wait_until(lambda: dask.workers["w2"].pacer.paused)
            assert dask.coordinator is not None
            assert dask.coordinator.paused
            for worker in dask.workers.values():
                worker.pacer.paused = False
            await rotation.run()
        return dask

    dask = run(main())

    assert (dask.workers["w1"].pacer.pauses, dask.workers["w2"].pacer.pauses) == (0, 1)
    assert [type(event) for event in seen if not isinstance(event, events.AccountSettled)] == [
        events.PauseBegan,
        events.PauseEnded,
    ]


def test_pause_ends_with_the_loss_of_the_worker_that_found_it() -> None:
    seen: list[events.Event] = []

    async def main() -> bool:
        dask = FakeDask("w1")
        async with rotation_of(dask, accounts(500), on_event=seen.append) as rotation:
            coordinator = dask.coordinator
            assert coordinator is not None
            await wait_until(lambda: rotation.summary.patched >= 100)
            dask.workers["w1"].pacer.paused = True
            await wait_until(lambda: coordinator.paused)
            dask.join("w2")
            dask.kill("w1")
            await wait_until(lambda: rotation.summary.patched >= 400)
            return coordinator.paused

    assert not run(main())
    assert [type(event) for event in seen if not isinstance(event, events.AccountSettled)] == [
        events.PauseBegan,
        events.PauseEnded,
    ]


def test_pause_that_a_lost_worker_finds_does_not_reach_the_others() -> None:
    """The cause may be that worker's own network."""

    async def main() -> FakeDask:
        dask = FakeDask("w1", "w2")
        async with rotation_of(dask, accounts(3_000)) as rotation:
            await wait_until(lambda: rotation.summary.patched >= 300)
            frozen = dask.workers["w1"]
            frozen.is_frozen = frozen.pacer.paused = True
            await asyncio.sleep(_cluster_watch.HEARTBEAT_TIMEOUT + 1)
            frozen.thaw()
            await rotation.run()
        return dask

    assert run(main()).workers["w2"].pacer.pauses == 0


# --- Rate, pool, stop ---


def test_rate_is_shared_evenly_and_never_exceeded() -> None:
    async def main() -> list[dict[str, float]]:
        dask = FakeDask("w1", "w2")
        seen: list[dict[str, float]] = []

        def shares() -> dict[str, float]:
            return {name: (worker.pacer.rates or [0.0])[-1] for name, worker in dask.workers.items()}

        async with rotation_of(dask, accounts(5_000), pace=Pace(in_flight=20, rate=900.0)) as rotation:
            await wait_until(lambda: rotation.summary.patched >= 200)
            seen.append(shares())
            dask.join("w3")
            sent = rotation.summary.patched
            while dask.sent["w3"] == 0:
                assert sum(shares().values()) <= 900.0
                await asyncio.sleep(0.01)
            seen.append(shares())
            dask.kill("w1")
            await wait_until(lambda: rotation.summary.patched >= sent + 1_000)
            seen.append(shares())
            await rotation.run()
        return seen

    assert run(main()) == [
        {"w1": 450.0, "w2": 450.0},
        {"w1": 300.0, "w2": 300.0, "w3": 300.0},
        {"w2": 450.0, "w3": 450.0},
    ]


def test_rate_of_a_worker_with_a_problem_goes_to_the_others_once_its_calls_ended() -> None:
    async def main() -> list[float]:
        dask = FakeDask("w1", "w2")
        pace = Pace(in_flight=20, rate=900.0)
        async with rotation_of(_with(dask, stay_on_w1), accounts(5_000), pace=pace) as rotation:
            await wait_until(lambda: dask.sent["w1"] >= 100)
            plugin = dask.workers["w1"].plugins.popitem()
            await wait_until(lambda: rotation.summary.patched >= 1_000)
            rates = [dask.workers["w2"].pacer.rates[-1]]
            dask.workers["w1"].plugins.update([plugin])
            ended.set()
            await wait_until(lambda: rotation.summary.patched >= 2_000)
            rates.append(dask.workers["w2"].pacer.rates[-1])
            await rotation.run()
        return rates

    ended = asyncio.Event()

    async def stay_on_w1(worker: FakeWorker, *_: object) -> None:
        if worker.address == "w1" and worker.dask.sent["w1"] == 50:
            await ended.wait()
        await respond(worker)

    assert run(main()) == [450.0, 900.0]


def test_dead_proxy_is_quarantined_for_all_workers() -> None:
    """The pool is the coordinator's, with its caps and its failover."""
    proxies = [CustomProxy(host=f"p{number}.example.com", port=1) for number in range(10)]

    async def use(_worker: FakeWorker, _account: str, change: Any, _keys: object, hooks: Any) -> None:
        await asyncio.sleep(LATENCY)
        for _ in range(2):
            if change.host == "p0.example.com":
                error = api_error("errors/proxy_error", 502)
                error.applied = Applied.NO
                if hooks.should_give_up(error):
                    raise error

    pool = ProxyPool(proxies, accounts_per_proxy=100)
    rotation, outcomes = rotate(
        lambda: _with(FakeDask("w1", "w2"), use), [f"acc_{number}" for number in range(900)], pool=pool
    )

    assert rotation.summary.patched == 900
    assert rotation.summary.quarantined == 1
    used = [outcome.proxy for outcome in outcomes]
    assert {used.count(label) for label in set(used)} == {100}
    assert "p0.example.com:1" not in used


def test_stop_ends_waits_and_completes_what_is_in_flight() -> None:
    async def main() -> tuple[FakeDask, Rotation]:
        dask = FakeDask("w1", "w2")
        async with rotation_of(dask, accounts(1_000)) as rotation:
            await wait_until(lambda: rotation.summary.patched >= 200)
            rotation.stop()
            assert not any(
                plugin._waits.ended for w in dask.workers.values() for plugin in w.plugins.values()
            )
            await wait_until(
                lambda: all(
                    plugin._waits.ended for w in dask.workers.values() for plugin in w.plugins.values()
                )
            )
            await rotation.run()
        return dask, rotation

    dask, rotation = run(main())

    states = rotation.summary.states
    assert states[State.PATCHED] == sum(dask.sent.values())
    assert states[State.PATCHED] + states[State.SKIPPED] == 1_000


def test_rotation_left_at_once_cancels_what_workers_have() -> None:
    """A second Ctrl-C: the next run asks under the same keys."""

    async def leave(dask: FakeDask) -> None:
        async with rotation_of(dask, accounts(1_000)) as rotation:
            await wait_until(lambda: rotation.summary.patched >= 200)
            raise KeyError(rotation)

    async def main() -> tuple[FakeDask, Rotation]:
        dask = FakeDask("w1")
        with pytest.raises(KeyError) as caught:
            await leave(dask)
        sent = sum(dask.sent.values())
        await asyncio.sleep(10 * LATENCY)
        assert sum(dask.sent.values()) == sent
        return dask, caught.value.args[0]

    dask, rotation = run(main())

    in_doubt = sum(dask.sent.values()) - rotation.summary.patched
    assert 0 < in_doubt <= rotation.summary.states[State.UNKNOWN] <= 20 + _coordinator.TRIAL_WINDOW


async def test_journal_that_cannot_be_written_ends_the_rotation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Journal, outcome: Outcome) -> None:
        raise JournalNotWritableError(f"the disk is full: {outcome.account_id}")

    monkeypatch.setattr(Journal, "record", fail)

    with pytest.raises(JournalNotWritableError, match="the disk is full"):
        async with rotation_of(FakeDask("w1"), accounts(50), journal=tmp_path / "j") as rotation:
            await rotation.run()


async def test_rows_are_on_disk_before_their_shard_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later run must be able to tell that a row has changed meanwhile."""
    dask, may_write = FakeDask("w1"), asyncio.Event()
    on_disk = RowHashes.on_disk

    async def write_late(hashes: RowHashes) -> None:
        await may_write.wait()
        await on_disk(hashes)

    monkeypatch.setattr(RowHashes, "on_disk", write_late)
    async with rotation_of(dask, iter(accounts(50).items()), journal=tmp_path / "j") as rotation:
        await asyncio.sleep(5 * _coordinator.GATHER_INTERVAL)
        before = dask.sizes.copy()
        may_write.set()
        await rotation.run()

    assert before == []
    assert rotation.summary.patched == 50


async def test_nothing_is_sent_if_the_rows_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_: RowHashes) -> None:
        raise JournalNotWritableError("the disk is full")

    dask = FakeDask("w1")
    monkeypatch.setattr(RowHashes, "on_disk", fail)
    with pytest.raises(JournalNotWritableError, match="the disk is full"):
        async with rotation_of(dask, iter(accounts(50).items()), journal=tmp_path / "j") as rotation:
            await rotation.run()

    assert dask.sizes == []
    assert rotation.summary.states == {State.SKIPPED: 50}


async def test_cluster_leaves_the_journal_of_a_single_machine(tmp_path: Path) -> None:
    """The journal has the same outcomes, failed and unknown ones included."""

    async def answer(worker: FakeWorker, account_id: str, *_: object) -> object:
        await respond(worker)
        number = int(account_id.removeprefix("acc_"))
        if number % 10 == 3:
            raise api_error("errors/resource_not_found", 404, instance=f"req_{number}")
        if number % 10 == 4:
            error = AttemptTimeoutError("no response")
            error.applied = Applied.UNKNOWN
            error.attempts = (Attempt(1, 1e9, LATENCY, "AttemptTimeoutError"),)
            raise error
        return patched(account_id, 1 + number % 2)

    dask = _with(FakeDask("w1", "w2"), answer)
    async with rotation_of(dask, accounts(100), journal=tmp_path / "cluster") as rotation:
        await rotation.run()
    alone = FakeWorker(FakeDask(), "alone")

    async def update(account_id: str, *_: object) -> Any:
        return await answer(alone, account_id)

    journal = tmp_path / "alone"
    async with Rotation(
        update, _rows(100), in_flight=50, journal=lambda: Journal.open(journal), finite=True, total=100
    ) as single:
        await single.run()

    columns = "ordinal, account_id, state, attempts, status, error_type, scope, applied, instance, assignment"
    assert recorded(tmp_path / "cluster", columns) == recorded(journal, columns)
    assert rotation.summary.states == single.summary.states == {"patched": 80, "failed": 10, "unknown": 10}
    assert rotation.summary.errors == single.summary.errors


def recorded(path: Path, columns: str = "account_id, state, applied") -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(f"SELECT {columns} FROM outcomes ORDER BY ordinal").fetchall()


def _rows(count: int) -> Any:
    from postpress_async.rotation._rows import rows_of

    return rows_of(accounts(count).items())


def _with(dask: FakeDask, script: Script) -> FakeDask:
    dask.script = script
    return dask


def _kept(made: list[FakeDask], dask: FakeDask) -> FakeDask:
    made.append(dask)
    return dask
