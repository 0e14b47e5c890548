"""The calls, reports, stop and journal of a rotation on a fake of Dask, in virtual time."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from postpress_async import CustomProxy, Pace, ProxyPool, events
from postpress_async.cluster import _coordinator
from postpress_async.cluster._messages import RemoteCall, Shard
from postpress_async.errors import (
    ApiError,
    Applied,
    AttemptTimeoutError,
    JournalNotWritableError,
)
from postpress_async.models import Attempt, ProxyChange
from postpress_async.rotation import Halt, Outcome, Rotation, State
from postpress_async.rotation._rows import rows_of
from postpress_async.rotation.journal import Journal
from postpress_async.rotation.journal._row_hashes import RowHashes
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
    patched,
    recorded,
    respond,
    rotate,
    rotation_of,
)
from tests.support.virtual_loop import run

pytestmark = pytest.mark.usefixtures("fake_dask")


def test_two_workers_share_the_accounts_and_send_each_one_once() -> None:
    dask = FakeDask("w1", "w2")

    rotation, outcomes = rotate(dask, accounts(300))

    assert {outcome.account_id for outcome in outcomes} == set(accounts(300))
    assert {outcome.state for outcome in outcomes} == {State.PATCHED}
    assert (rotation.summary.patched, rotation.summary.attempts) == (300, 300)
    assert min(dask.sent.values()) > 100
    assert dask.closed == ["w1", "w2"]
    assert {len(keys) for keys in dask.keys.values()} == {1}


def test_worker_has_few_calls_during_the_trial() -> None:
    """The API must get only a few requests with an API key that it refuses."""
    in_flight = most_in_flight = 0

    async def refuse(*_: object) -> None:
        nonlocal in_flight, most_in_flight
        in_flight += 1
        most_in_flight = max(most_in_flight, in_flight)
        await asyncio.sleep(LATENCY)
        in_flight -= 1
        raise api_error("errors/key_missing", 401)

    rotation, _ = rotate(FakeDask("w1", script=refuse), accounts(1_000), pace=Pace(in_flight=500))

    assert rotation.summary.key_refused
    assert most_in_flight == _coordinator.TRIAL_WINDOW
    assert rotation.summary.attempts <= 2 * _coordinator.TRIAL_WINDOW
    assert rotation.summary.total == 1_000


def test_rows_are_read_only_as_fast_as_workers_process_them() -> None:
    """An input of millions of rows must not be held in memory."""
    read = 0

    def changes() -> Iterator[tuple[str, ProxyChange]]:
        nonlocal read
        while True:
            read += 1
            yield f"acc_{read}", US

    async def main() -> int:
        most_ahead = 0
        async with rotation_of(FakeDask("w1", "w2"), changes()) as rotation:
            async for _ in rotation:
                most_ahead = max(most_ahead, read - rotation.summary.total)
                if rotation.summary.total == 5_000:
                    rotation.stop()
        return most_ahead

    # Two workers have windows of about 70 calls, and as many outcomes may wait for the loop above.
    assert run(main()) < 2 * 2 * 140


def largest_load(latency: float) -> int:
    """The largest number of calls that a worker had at the same time, if requests take *latency* seconds."""
    largest = 0

    async def measure(worker: FakeWorker, *_: object) -> None:
        nonlocal largest
        coordinator = worker.dask.coordinator
        assert coordinator is not None
        largest = max(largest, *(len(worker.calls) for worker in coordinator._workers.values()))
        await asyncio.sleep(latency)

    rotate(FakeDask("w1", script=measure), accounts(3_000))
    return largest


def test_fast_worker_gets_the_calls_of_the_next_quarter_of_a_second() -> None:
    """With fewer, it would wait for shards."""
    assert largest_load(latency=0.005) > 200


def test_slow_worker_gets_at_most_twice_its_concurrency_limit() -> None:
    """More calls would be in doubt if it is lost."""
    assert largest_load(latency=1.0) <= max(2 * IN_FLIGHT, _coordinator.TRIAL_WINDOW)


def test_reports_contain_no_account_id_proxy_or_text_of_the_api() -> None:
    """The scheduler keeps them, and shows them to everyone who can open its dashboard."""

    async def refuse(_worker: FakeWorker, account_id: str, *_: object) -> None:
        await asyncio.sleep(LATENCY)
        detail, instance = f"{account_id} is gone: s3cret", f"/accounts/{account_id}/proxy"
        raise api_error("errors/resource_not_found", 404, detail=detail, instance=instance)

    dask = FakeDask("w1", script=refuse)
    _, outcomes = rotate(dask, accounts(5, CUSTOM))

    [outcome, *_] = outcomes
    assert outcome.instance == f"/accounts/{outcome.account_id}/proxy"
    assert isinstance(outcome.error, ApiError)
    assert outcome.error.detail == f"{outcome.account_id} is gone: s3cret"
    reports = b"".join(event["reports"] for event in dask.events)
    assert b"resource_not_found" in reports
    assert [text for text in (b"acc_", b"s3cret", b"p.example.com", b"A title") if text in reports] == []


def test_repr_of_a_shard_shows_no_account_or_proxy() -> None:
    """Dask logs the repr if the task fails."""
    shard = Shard.of("token", "process", [RemoteCall(1, "acc_1", CUSTOM, 0, "key", 0, False)])

    assert repr(shard) == "Shard(token='token', process='process', key='token-1')"
    assert shard.calls() == [RemoteCall(1, "acc_1", CUSTOM, 0, "key", 0, False)]


def test_observer_gets_the_retries_of_workers() -> None:
    seen: list[events.Event] = []
    retrying: list[int] = []

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

    async def main() -> None:
        dask = FakeDask("w1", script=back_off)
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


def test_accounts_after_a_failed_canary_are_not_sent() -> None:
    async def refuse(worker: FakeWorker, *_: object) -> None:
        await respond(worker)
        raise api_error("errors/proxy_error", 502)

    halt = Halt(failures={"proxy": "5%"}, canary=20)
    rotation, _ = rotate(FakeDask("w1", "w2", script=refuse), accounts(500), halt=halt)

    assert rotation.summary.halted is not None
    assert rotation.summary.states == {State.FAILED: 20, State.SKIPPED: 480}


def test_accounts_after_a_passed_canary_are_sent() -> None:
    rotation, _ = rotate(FakeDask("w1", "w2"), accounts(500), halt=Halt(failures="5%", canary=20))

    assert rotation.summary.canary_passed
    assert rotation.summary.complete


def test_dead_proxy_is_quarantined_for_all_workers() -> None:
    """The coordinator has the pool, so failover and the cap of each proxy work as on one machine."""
    proxies = [CustomProxy(host=f"p{number}.example.com", port=1) for number in range(10)]

    async def fail_on_p0(_worker: FakeWorker, _account: str, change: Any, _keys: object, hooks: Any) -> None:
        await asyncio.sleep(LATENCY)
        if change.host != "p0.example.com":
            return
        error = api_error("errors/proxy_error", 502)
        error.applied = Applied.NO
        while not hooks.should_give_up(error):
            pass  # retry
        raise error

    pool = ProxyPool(proxies, accounts_per_proxy=100)
    rotation, outcomes = rotate(FakeDask("w1", "w2", script=fail_on_p0), list(accounts(900)), pool=pool)

    assert rotation.summary.patched == 900
    assert rotation.summary.quarantined == 1
    accounts_by_proxy = Counter(outcome.proxy for outcome in outcomes)
    assert accounts_by_proxy == {f"p{number}.example.com:1": 100 for number in range(1, 10)}


def test_stop_reaches_all_workers_and_completes_the_requests_in_flight() -> None:
    def stopped_workers(dask: FakeDask) -> int:
        plugins = [plugin for worker in dask.workers.values() for plugin in worker.plugins.values()]
        return sum(plugin._waits.ended for plugin in plugins)

    async def main() -> tuple[FakeDask, Rotation]:
        dask = FakeDask("w1", "w2")
        async with rotation_of(dask, accounts(1_000)) as rotation:
            await wait_until(lambda: rotation.summary.patched >= 200)
            rotation.stop()
            assert stopped_workers(dask) == 0
            await wait_until(lambda: stopped_workers(dask) == 2)
            await rotation.run()
        return dask, rotation

    dask, rotation = run(main())

    states = rotation.summary.states
    assert states[State.PATCHED] == dask.sent.total()
    assert states[State.PATCHED] + states[State.SKIPPED] == 1_000


def test_leaving_the_rotation_by_an_exception_cancels_the_calls_of_workers() -> None:
    """As a second Ctrl-C does. The next run sends the unknown accounts with the same keys."""

    async def main() -> tuple[FakeDask, Rotation]:
        dask = FakeDask("w1")
        with suppress(KeyboardInterrupt):
            async with rotation_of(dask, accounts(1_000)) as rotation:
                await wait_until(lambda: rotation.summary.patched >= 200)
                raise KeyboardInterrupt
        sent = dask.sent.total()
        await asyncio.sleep(10 * LATENCY)
        assert dask.sent.total() == sent
        return dask, rotation

    dask, rotation = run(main())

    in_doubt = dask.sent.total() - rotation.summary.patched
    assert 0 < in_doubt <= rotation.summary.states[State.UNKNOWN] <= IN_FLIGHT + _coordinator.TRIAL_WINDOW


async def test_journal_that_cannot_be_written_ends_the_rotation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Journal, outcome: Outcome) -> None:
        raise JournalNotWritableError(f"the disk is full: {outcome.account_id}")

    monkeypatch.setattr(Journal, "record", fail)

    with pytest.raises(JournalNotWritableError, match="the disk is full"):
        async with rotation_of(FakeDask("w1"), accounts(50), journal=tmp_path / "journal") as rotation:
            await rotation.run()


async def test_shard_is_not_submitted_before_its_rows_are_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later run must be able to detect that a row was edited."""
    dask, may_write = FakeDask("w1"), asyncio.Event()
    on_disk = RowHashes.on_disk

    async def write_late(hashes: RowHashes) -> None:
        await may_write.wait()
        await on_disk(hashes)

    monkeypatch.setattr(RowHashes, "on_disk", write_late)
    async with rotation_of(dask, iter(accounts(50).items()), journal=tmp_path / "journal") as rotation:
        await asyncio.sleep(5 * _coordinator.GATHER_INTERVAL)
        submitted_before = dask.shard_sizes.copy()
        may_write.set()
        await rotation.run()

    assert submitted_before == []
    assert rotation.summary.patched == 50


async def test_no_account_is_sent_if_its_row_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_: RowHashes) -> None:
        raise JournalNotWritableError("the disk is full")

    dask = FakeDask("w1")
    monkeypatch.setattr(RowHashes, "on_disk", fail)
    with pytest.raises(JournalNotWritableError, match="the disk is full"):
        async with rotation_of(dask, iter(accounts(50).items()), journal=tmp_path / "journal") as rotation:
            await rotation.run()

    assert dask.shard_sizes == []
    assert rotation.summary.states == {State.SKIPPED: 50}


async def test_journal_of_a_cluster_equals_that_of_a_single_machine(tmp_path: Path) -> None:
    async def update_or_fail(worker: FakeWorker, account_id: str, *_: object) -> object:
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

    dask = FakeDask("w1", "w2", script=update_or_fail)
    async with rotation_of(dask, accounts(100), journal=tmp_path / "cluster") as rotation:
        await rotation.run()
    worker_alone = FakeWorker(FakeDask(), "alone")

    async def update(account_id: str, *_: object) -> Any:
        return await update_or_fail(worker_alone, account_id)

    journal = tmp_path / "alone"
    async with Rotation(
        update,
        rows_of(accounts(100).items()),
        in_flight=50,
        journal=lambda: Journal(journal),
        finite=True,
        total=100,
    ) as single:
        await single.run()

    columns = "ordinal, account_id, state, attempts, status, error_type, scope, applied, instance, assignment"
    assert recorded(tmp_path / "cluster", columns) == recorded(journal, columns)
    assert rotation.summary.states == single.summary.states == {"patched": 80, "failed": 10, "unknown": 10}
    assert rotation.summary.errors == single.summary.errors
