"""Pauses and rate limits of several workers, on a fake of Dask, in virtual time."""

import asyncio

import pytest

from postpress_async import Pace, events
from postpress_async.cluster import _cluster_watch
from tests.support.cluster_world import wait_until
from tests.support.fake_dask import (
    FakeDask,
    FakeWorker,
    accounts,
    respond,
    rotation_of,
)
from tests.support.virtual_loop import run

pytestmark = pytest.mark.usefixtures("fake_dask")


def test_pause_of_one_worker_pauses_the_others() -> None:
    """Otherwise each worker would send as many requests as it takes to open a circuit breaker."""
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


def test_pause_ends_if_the_only_paused_worker_is_lost() -> None:
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


def test_pause_of_a_lost_worker_does_not_pause_the_others() -> None:
    """The cause may be the lost worker's own network."""

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


def test_rate_is_shared_evenly_and_the_sum_of_the_shares_never_exceeds_it() -> None:
    async def main() -> list[dict[str, float]]:
        dask = FakeDask("w1", "w2")
        seen: list[dict[str, float]] = []

        def shares() -> dict[str, float]:
            return {
                address: worker.pacer.rates[-1] if worker.pacer.rates else 0.0
                for address, worker in dask.workers.items()
            }

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


def test_share_of_a_failed_worker_goes_to_the_others_when_its_calls_have_ended() -> None:
    may_end = asyncio.Event()

    async def hold_one_call_of_w1(worker: FakeWorker, *_: object) -> None:
        if worker.address == "w1" and worker.dask.sent["w1"] == 50:
            await may_end.wait()
        await respond(worker)

    dask = FakeDask("w1", "w2", script=hold_one_call_of_w1)

    async def main() -> list[float]:
        pace = Pace(in_flight=20, rate=900.0)
        async with rotation_of(dask, accounts(5_000), pace=pace) as rotation:
            await wait_until(lambda: dask.sent["w1"] >= 100)
            dask.workers["w1"].remove_plugin()
            await wait_until(lambda: rotation.summary.patched >= 1_000)
            rate_before = dask.workers["w2"].pacer.rates[-1]
            dask.workers["w1"].restore_plugin()
            may_end.set()
            await wait_until(lambda: rotation.summary.patched >= 2_000)
            rate_after = dask.workers["w2"].pacer.rates[-1]
            await rotation.run()
        return [rate_before, rate_after]

    assert run(main()) == [450.0, 900.0]
